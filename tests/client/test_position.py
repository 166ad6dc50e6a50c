# SPDX-License-Identifier: Apache-2.0
"""Going on in another process: at an id of a server, or behind a gap at another one."""

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from peers import classic_server
from support.aio import Run, until
from support.api import SOON, Task, break_connection, receive
from support.base import DEADLINE, DELIVERIES, wait_until
from support.servers import Server

from jumiks import (
    AsyncClient,
    Backoff,
    Client,
    Delivery,
    EndReason,
    Gap,
    GapReason,
    Peer,
    Refused,
    ServerClosed,
    Timeout,
)
from jumiks._client import stream
from jumiks._wire.handshake import FIRST_ID, Status

FEED = 7
OTHER = 8
FIVE = [b"zero", b"one", b"two", b"three", b"four"]

all_ways = pytest.mark.parametrize("delivery", DELIVERIES)


@all_ways
def test_it_goes_on_where_another_client_of_that_server_was(
    address: str, delivery: Delivery
) -> None:
    options: dict[str, Any] = {"delivery": delivery, "on_gap": "raise"}
    with Server(address) as server:
        with Client(address, **options) as client:
            assert client.position == (server.server_id, FIRST_ID)
            server.publish_many(FIVE)
            assert receive(client, 3) == FIVE[:3]
            client.ack()
            at = client.position
            assert at == (server.server_id, FIRST_ID + 3)
        with Client(address, start=at, **options) as client:
            assert receive(client, 2) == FIVE[3:]
            assert client.last_id == FIRST_ID + 4
        end = (server.server_id, FIRST_ID + 5)
        with Client(address, start=end, **options) as client:
            server.publish(b"five")
            assert receive(client, 1) == [b"five"]


def test_what_that_server_no_longer_has_is_a_gap_with_both_ends(address: str) -> None:
    with Server(address, first_id=FIRST_ID + 9, server_id=FEED, history=[b"nine"]):
        with Client(address, start=(FEED, FIRST_ID + 4), on_gap="yield") as client:
            gap = client.receive(DEADLINE)
            assert gap == Gap(FIRST_ID + 4, FIRST_ID + 8)
            assert isinstance(gap, Gap)
            assert gap.reason is GapReason.EVICTED
            assert client.receive(DEADLINE) == b"nine"


@all_ways
@pytest.mark.parametrize("first_id", [FIRST_ID, FIRST_ID + 50])
def test_on_another_server_it_starts_with_the_oldest_behind_a_gap(
    address: str, delivery: Delivery, first_id: int
) -> None:
    # Its id is beyond all that this one has, and means nothing there.
    start = (FEED, FIRST_ID + 1000)
    gaps: list[Gap] = []
    with Server(address, server_id=OTHER, first_id=first_id, history=FIVE):
        with Client(address, start=start, delivery=delivery, on_gap=gaps.append) as client:
            due = [Gap(FIRST_ID + 1000, None)]
            if first_id > FIRST_ID:
                due.append(Gap(FIRST_ID, first_id - 1))
            assert gaps == due
            assert gaps[0].reason is GapReason.RESTARTED
            assert receive(client, 5) == FIVE
            assert client.missed == first_id - FIRST_ID
            client.ack()
            assert client.position == (OTHER, first_id + 5)


def test_a_plain_server_is_another_one(address: str) -> None:
    gaps: list[Gap] = []
    with (
        classic_server(address, "--count", "1") as plain,
        Client(address, start=(FEED, FIRST_ID + 3), on_gap=gaps.append) as client,
    ):
        assert gaps == [Gap(FIRST_ID + 3, None)]
        client.receive(DEADLINE)
        client.ack()
        plain.result()
        position = client.position
    with pytest.raises(ValueError, match=r"0 is a plain 1\.0 server, which"):
        Client(address, start=position)


# ---- a feed that has not come so far yet ----


class Tries:
    """Counts the connections of a server, which all may connect to."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _peer: Peer) -> bool:
        self.count += 1
        return True


@all_ways
def test_a_feed_that_is_still_filling_up_is_waited_for(address: str, delivery: Delivery) -> None:
    tries = Tries()
    with Server(address, server_id=FEED, history=FIVE[:2], allow=tries) as server:
        start = (FEED, FIRST_ID + 4)
        task = Task(lambda: Client(address, start=start, delivery=delivery, on_gap="raise"))
        wait_until(lambda: tries.count > 2)
        assert server.stats().clients == 0
        server.publish_many(FIVE[2:])
        with task.result() as client:
            assert receive(client, 1) == [b"four"]
            assert client.last_id == FIRST_ID + 4


def test_it_is_waited_for_no_longer_than_the_timeout(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pauses:
        """Two that fit into the timeout, and one that does not."""

        @staticmethod
        def waits() -> Iterator[float]:
            return iter((0.0, 0.001, DEADLINE + 1))

    monkeypatch.setattr(stream, "_UNTIL_THERE", Pauses)
    tries = Tries()
    with Server(address, server_id=FEED, history=FIVE, allow=tries):
        words = f"start {1 << 63} lies beyond what was published; its next packet id is 100005"
        with pytest.raises(Refused, match=words) as caught:
            Client(address, start=(FEED, 1 << 63), timeout=DEADLINE)
        assert caught.value.status == Status.START
        assert tries.count == 3


@all_ways
def test_a_client_that_comes_back_waits_for_its_feed(address: str, delivery: Delivery) -> None:
    tries = Tries()
    with Server(address) as server:
        feed = server.server_id
        client = Client(address, delivery=delivery, reconnect=SOON, on_gap="raise")
        server.publish_many(FIVE[:4])
        assert receive(client, 4) == FIVE[:4]
    with client, Server(address, server_id=feed, history=FIVE[:1], allow=tries) as server:
        with pytest.raises(Timeout):
            client.receive(0.05)
        task = Task(lambda: receive(client, 2))
        wait_until(lambda: tries.count > 2)
        server.publish_many([*FIVE[1:], b"five"])
        assert task.result() == [b"four", b"five"]
        assert client.last_id == FIRST_ID + 5


def test_a_client_that_comes_back_gives_up_as_its_backoff_says(address: str) -> None:
    backoff = Backoff(first=0.001, most=0.01, give_up=0.05)
    with Server(address, server_id=FEED) as server:
        client = Client(address, reconnect=backoff)
        server.publish_many(FIVE)
        assert receive(client, 5) == FIVE
    with client, Server(address, server_id=FEED, history=FIVE[:1]):
        with pytest.raises(ServerClosed) as caught:
            client.receive(DEADLINE)
        assert isinstance(caught.value.__cause__, Refused)
        assert caught.value.__cause__.status == Status.START


def test_a_client_in_an_event_loop_goes_on_and_waits_likewise(address: str, run: Run) -> None:
    tries = Tries()

    async def main() -> None:
        with Server(address, server_id=FEED, history=FIVE[:3], allow=tries) as server:
            async with AsyncClient(address, start=(FEED, FIRST_ID + 1)) as client:
                assert await client.receive(DEADLINE) == b"one"
                await client.ack()
                at = client.position
                assert at == (FEED, FIRST_ID + 2)
            got: list[bytes] = []

            async def go_on() -> None:
                async with AsyncClient(address, start=(FEED, FIRST_ID + 4)) as client:
                    got.append(await client.receive(DEADLINE))

            before = tries.count
            async with anyio.create_task_group() as group:
                group.start_soon(go_on)
                await until(lambda: tries.count > before + 2)
                server.publish_many(FIVE[3:])
            assert got == [b"four"]

    run(main)


@all_ways
def test_a_connection_that_breaks_before_its_first_message_keeps_the_start(
    address: str, delivery: Delivery
) -> None:
    with Server(address, server_id=FEED, history=FIVE) as server:
        start = (FEED, FIRST_ID + 3)
        with Client(
            address, start=start, delivery=delivery, reconnect=SOON, on_gap="raise"
        ) as client:
            break_connection(client)
            wait_until(lambda: server.endings[EndReason.LEFT])
            assert client.position == start
            assert receive(client, 2) == FIVE[3:]
