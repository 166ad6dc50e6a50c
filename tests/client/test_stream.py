# SPDX-License-Identifier: Apache-2.0
"""The stream below both clients: what it takes, hands out and acks, without a wait."""

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from support.api import Task, sleeps_in
from support.base import DEADLINE, DELIVERIES, wait_until
from support.servers import Server
from support.wire import acks_unread

from jumiks import Batch, Client, ConnectionLost, Delivery, Timeout
from jumiks._client.connecting import in_thread
from jumiks._client.stream import NOTHING_YET, Stream
from jumiks._options import AsyncClientOptions
from jumiks._wire.handshake import FIRST_ID

MESSAGES = [b"%d" % number for number in range(5)]
LAST = FIRST_ID + len(MESSAGES) - 1

all_ways = pytest.mark.parametrize("delivery", DELIVERIES)


@contextmanager
def stream_of(
    address: str, delivery: Delivery, ack: Literal["after", "before"] = "after"
) -> Iterator[Stream[Any]]:
    stream = AsyncClientOptions(delivery=delivery, ack=ack).stream(address)
    in_thread(stream.entering())
    try:
        yield stream
    finally:
        stream.close()


def taken(stream: Stream[Any]) -> bytes:
    """The next message, which is not handed out by this."""
    wait_until(lambda: stream.has_taken() or stream.peek() not in NOTHING_YET)
    if not stream.has_taken() or stream.out >= stream.taken[1]:
        assert stream.take(0) is None
    first, _, messages = stream.taken
    return messages[stream.out + 1 - first]


@all_ways
def test_a_take_of_nothing_returns_at_once(address: str, delivery: Delivery) -> None:
    with Server(address), stream_of(address, delivery) as stream:
        assert stream.take(0) in NOTHING_YET
        assert stream.batch(0) in NOTHING_YET
        assert stream.peek() in NOTHING_YET
        assert (stream.out, stream.last_id, stream.lag) == (0, 0, 0)


@all_ways
@pytest.mark.parametrize("ack", ["after", "before"])
def test_what_is_not_handed_out_is_taken_again(
    address: str, delivery: Delivery, ack: Literal["after", "before"]
) -> None:
    with Server(address) as server, stream_of(address, delivery, ack) as stream:
        server.publish_many(MESSAGES)
        for number, message in enumerate(MESSAGES):
            assert taken(stream) == message
            assert taken(stream) == message
            stream.out = FIRST_ID + number
            assert stream.last_id == FIRST_ID + number


@all_ways
def test_a_batch_counts_once_it_is_handed_out(address: str, delivery: Delivery) -> None:
    with Server(address) as server, stream_of(address, delivery) as stream:
        server.publish_many(MESSAGES)
        wait_until(lambda: stream.peek() not in NOTHING_YET)
        found = stream.batch(0)
        assert isinstance(found, Batch)
        assert (found.first_id, stream.out) == (FIRST_ID, 0)
        again = stream.batch(0)
        assert isinstance(again, Batch)
        assert again.first_id == FIRST_ID
        assert stream.hand_out(again) is again
        assert stream.out == again.last_id


@all_ways
def test_acking_ahead_acks_one_message_at_a_time(address: str, delivery: Delivery) -> None:
    with Server(address) as server, stream_of(address, delivery, "before") as stream:
        server.publish_many(MESSAGES)
        for number, message in enumerate(MESSAGES):
            assert stream.resume_at == FIRST_ID + number or not number
            assert taken(stream) == message
            acked = FIRST_ID + number
            wait_until(lambda: server.clients()[0].acked_id >= acked)  # noqa: B023
            assert server.clients()[0].acked_id == acked
            stream.out = acked
        server.drain(DEADLINE)
        assert stream.resume_at == LAST + 1


@all_ways
def test_a_peek_gives_no_code_for_a_message_taken_or_not(address: str, delivery: Delivery) -> None:
    with Server(address) as server, stream_of(address, delivery) as stream:
        server.publish_many(MESSAGES)
        wait_until(lambda: stream.peek() not in NOTHING_YET)
        assert stream.peek() == 0
        assert not stream.has_taken()
        assert taken(stream) == MESSAGES[0]
        assert stream.has_taken()
        assert stream.peek() == 0


def test_without_a_way_back_the_ending_is_raised(address: str) -> None:
    with Server(address), stream_of(address, "shared") as stream:
        ending = ConnectionLost("it died")
        with pytest.raises(ConnectionLost) as caught:
            stream.way_back(ending)
        assert caught.value is ending
        assert stream.way is None


@pytest.mark.parametrize("delivery", ["framed", "classic"])
def test_a_slow_loop_acks_after_ten_milliseconds(address: str, delivery: Delivery) -> None:
    # A coarse clock counts them, which is up to 10 ms late.
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish_many(MESSAGES)
        wait_until(lambda: server.clients()[0].sent_id == LAST)
        messages = iter(client)
        first, began = next(messages), time.monotonic()
        assert [first, next(messages)] == MESSAGES[:2]
        early = client._stream.is_acked(FIRST_ID)
        assert not early or time.monotonic() - began > 0.009
        wait_until(lambda: time.monotonic() - began > 0.03)
        assert next(messages) == MESSAGES[2]
        assert client._stream.is_acked(FIRST_ID + 1)


def test_an_ack_waits_for_a_socket_that_is_full(address: str) -> None:
    count = 2000
    with acks_unread(address, count) as (read, acks), Client(address) as client:
        for _ in range(count):
            client.receive(DEADLINE)
        task = Task(client.ack)
        wait_until(lambda: task.done or sleeps_in(task.thread, "ack"))
        read.set()
        task.result()
        wait_until(lambda: len(acks) == count)


def test_a_poll_ends_once_there_is_room_for_acks_and_not_before(address: str) -> None:
    count = 2000
    last = FIRST_ID + count - 1
    with acks_unread(address, count) as (read, acks), Client(address) as client:
        for _ in range(count):
            client.receive(DEADLINE)
        with pytest.raises(Timeout):
            client.receive(0)
        assert not client._stream.is_acked(last)
        assert not select.select([client], [], [], 0)[0]
        read.set()
        while not client._stream.is_acked(last):
            assert select.select([client], [], [], DEADLINE)[0]
            with pytest.raises(Timeout):
                client.receive(0)
        wait_until(lambda: len(acks) == count)  # and then there is room
        assert not select.select([client], [], [], 0)[0]


@pytest.mark.parametrize("delivery", ["framed", "classic"])
def test_a_message_handed_out_ends_no_poll_before_a_quarter_of_max_lag_is(
    address: str, delivery: Delivery
) -> None:
    with Server(address, max_lag=40) as server, Client(address, delivery=delivery) as client:
        client.fileno()
        for number in range(1, 11):
            server.publish(b"message")
            assert select.select([client], [], [], DEADLINE)[0]
            client.receive(0)
            # The ack of the last one goes with the next receive.
            assert bool(select.select([client], [], [], 0)[0]) == (client.lag >= 10), number
