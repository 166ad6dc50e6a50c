# SPDX-License-Identifier: Apache-2.0
"""A server that continues a feed: where its ids begin, its number, and what it has at the start."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support.api import SMALL_LOG, receive
from support.base import ASYNCIO, DEADLINE, DELIVERIES
from support.servers import AsyncServer, Server
from support.wire import FIRST_ID, RawClient

from jumiks import AsyncClient, Client, Delivery, Gap, MessageTooLarge, Monitor
from jumiks._options import MOST_FIRST_ID

if TYPE_CHECKING:
    from typing_extensions import Buffer

LATER = 5_000_000
SLOT = b"x" * 48

all_ways = pytest.mark.parametrize("delivery", DELIVERIES)


@all_ways
@pytest.mark.parametrize("first_id", [FIRST_ID, LATER, MOST_FIRST_ID])
def test_ids_begin_where_they_are_told_to(address: str, first_id: int, delivery: Delivery) -> None:
    with Server(address, first_id=first_id, max_lag=(1 << 63) - 1, keep=5) as server:
        assert server.publish_many([]) == range(first_id, first_id)
        with Client(address, delivery=delivery) as client:
            assert client.resume_at == first_id
            assert server.publish(b"one") == first_id
            assert server.publish_many([b"two", b"three"]) == range(first_id + 1, first_id + 3)
            with server.reserve(4) as view:
                view[:] = b"four"
            assert receive(client, 4) == [b"one", b"two", b"three", b"four"]
            assert client.last_id == first_id + 3
            client.ack()
            server.drain(DEADLINE)
            (info,) = server.clients()
            assert (info.sent_id, info.acked_id, info.lag) == (first_id + 3, first_id + 3, 0)
        stats = server.stats()
        assert (stats.oldest_id, stats.next_id, stats.published) == (first_id, first_id + 4, 4)
        with Monitor(address) as monitor:
            assert monitor.status().stats.next_id == first_id + 4
        with Client(address, delivery=delivery, start=first_id + 2) as late:
            assert receive(late, 2) == [b"three", b"four"]


def test_the_hello_tells_where_the_ids_stand_and_whose_feed_it_is(address: str) -> None:
    with (
        Server(address, first_id=LATER, server_id=7, history=[b"a", b"b"]),
        RawClient(address) as client,
    ):
        hello = client.hello
        assert (hello.server_id, hello.oldest_id, hello.next_id) == (7, LATER, LATER + 2)


@all_ways
def test_a_start_before_the_first_id_of_a_feed_is_told_as_a_gap(
    address: str, delivery: Delivery
) -> None:
    gaps: list[Gap] = []
    with Server(address, first_id=LATER) as server:
        with Client(address, start=LATER - 9, delivery=delivery, on_gap=gaps.append) as client:
            server.publish(b"one")
            assert receive(client, 1) == [b"one"]
            assert gaps == [Gap(LATER - 9, LATER - 1)]


def test_the_number_is_the_one_that_was_given_and_random_otherwise(address: str) -> None:
    most = (1 << 64) - 1
    with Server(address, server_id=most) as server, Client(address) as client:
        assert server.server_id == client.server_id == most
    with Server(address) as one, Server(f"{address}-2") as two:
        assert 0 not in (one.server_id, two.server_id)
        assert one.server_id != two.server_id


# ---- history ----


@all_ways
def test_history_is_there_before_anybody_can_connect(address: str, delivery: Delivery) -> None:
    def history() -> Iterator[bytes]:
        for number in range(3):
            with pytest.raises(ConnectionRefusedError):
                Client(address)
            yield b"%d" % number

    with Server(address, first_id=LATER, history=history()) as server:
        with Client(address, start="oldest", delivery=delivery) as client:
            assert server.publish(b"3") == LATER + 3
            assert receive(client, 4) == [b"0", b"1", b"2", b"3"]
            assert client.last_id == LATER + 3


@pytest.mark.parametrize("keep", [{}, {"keep": 10}, {"keep_bytes": 20_000}])
def test_history_is_in_the_log_as_if_it_had_been_published(
    address: str, keep: dict[str, Any]
) -> None:
    messages = [b"%d" % number * (number % 9) for number in range(9000)]
    options: dict[str, Any] = {"log_size": SMALL_LOG, "on_lag": "block", **keep}
    with (
        Server(address, history=iter(messages), **options) as server,
        Server(f"{address}-2", **options) as other,
    ):
        for message in messages:
            other.publish(message)
        found, right = server.stats(), other.stats()
        for name in ("oldest_id", "next_id", "log_used", "published", "published_bytes"):
            assert getattr(found, name) == getattr(right, name), name
        assert found.oldest_id > FIRST_ID
        with Client(address, start=found.oldest_id) as client:
            left = messages[found.oldest_id - FIRST_ID :]
            assert receive(client, len(left)) == left


def test_history_may_be_any_buffers(address: str) -> None:
    history: list[Buffer] = [b"one", bytearray(b"two"), memoryview(b"three"), b""]
    with Server(address, history=history), Client(address, start="oldest") as client:
        assert receive(client, 4) == [b"one", b"two", b"three", b""]


class Failure(Exception):
    pass


def failing() -> Iterator[bytes]:
    yield b"one"
    raise Failure


@pytest.mark.parametrize(
    ("history", "error", "words"),
    [
        (failing(), Failure, []),
        ([b"one", "two"], TypeError, ["It is message 1 of history, counted from 0."]),
        ([b"", b"x" * 101], MessageTooLarge, ["It is message 1 of history, counted from 0."]),
    ],
    ids=["it raises", "no message", "too large"],
)
def test_a_history_that_fails_leaves_no_server_behind(
    address: str, history: Any, error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        Server(address, history=history, max_message=100)
    assert getattr(caught.value, "__notes__", []) == words
    with pytest.raises(ConnectionRefusedError):
        Client(address)
    with Server(address, max_message=100) as server:
        assert server.stats().next_id == FIRST_ID


def test_an_async_server_continues_a_feed_likewise(address: str) -> None:
    async def main() -> None:
        history = (b"%d" % number for number in range(3))
        async with AsyncServer(address, first_id=LATER, server_id=7, history=history) as server:
            assert server.server_id == 7
            assert server.publish(b"3") == LATER + 3
            async with AsyncClient(address, start="oldest") as client:
                got = [await client.receive(DEADLINE) for _ in range(4)]
                assert got == [b"0", b"1", b"2", b"3"]
                assert (client.last_id, client.server_id) == (LATER + 3, 7)

    anyio.run(main, **ASYNCIO)
