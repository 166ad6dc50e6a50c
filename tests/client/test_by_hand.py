# SPDX-License-Identifier: Apache-2.0
"""Clients that ack by hand alone, with several batches under way."""

from collections.abc import Callable
from contextlib import aclosing
from itertools import islice
from typing import Any

import pytest
from peers import classic_server
from support.aio import Run, numbers
from support.api import SOON, Task, break_connection, receive
from support.base import DEADLINE, DELIVERIES, SHARE_LOG, wait_until
from support.servers import Server

from jumiks import (
    AckError,
    AsyncClient,
    Client,
    ClientInfo,
    ConnectionLost,
    Delivery,
    EndReason,
    Gap,
    Lagged,
    Timeout,
)
from jumiks._wire.handshake import FIRST_ID

FIVE = [b"zero", b"one", b"two", b"three", b"four"]

all_ways = pytest.mark.parametrize("delivery", DELIVERIES)


def by_hand(address: str, delivery: Delivery = "shared", **options: Any) -> Client:
    return Client(address, delivery=delivery, ack="manual", **options)


def acked(server: Server) -> int:
    """The last message that the server's one client has acked."""
    (info,) = server.clients()
    return max(info.acked_id, FIRST_ID - 1)


def one_by_one(client: Client, count: int) -> list[bytes]:
    return receive(client, count)


def batches(client: Client, count: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < count:
        got.extend(client.receive_many(DEADLINE))
    return got


def loop(client: Client, count: int) -> list[bytes]:
    return list(islice(client, count))


@all_ways
@pytest.mark.parametrize("read", [one_by_one, batches, loop])
def test_nothing_is_acked_by_receiving(
    address: str, delivery: Delivery, read: Callable[[Client, int], list[bytes]]
) -> None:
    with Server(address, max_lag=100) as server, by_hand(address, delivery) as client:
        for number in range(8):
            server.publish_many([b"%d" % number] * 10)
            assert read(client, 10) == [b"%d" % number] * 10
            with pytest.raises(Timeout):
                client.receive(0)
        assert acked(server) == FIRST_ID - 1
        assert client.lag == 80
        client.ack(FIRST_ID + 24)
        wait_until(lambda: acked(server) == FIRST_ID + 24)
        assert client.lag == 55
        with pytest.raises(Timeout):
            server.drain(0)
        client.ack()
        server.drain(DEADLINE)
        assert acked(server) == FIRST_ID + 79


@all_ways
def test_an_ack_goes_up_alone_and_to_what_was_handed_out(address: str, delivery: Delivery) -> None:
    with Server(address) as server, by_hand(address, delivery) as client:
        server.publish_many(FIVE)
        with pytest.raises(AckError, match="packet id 100000 was not handed out"):
            client.ack(FIRST_ID)
        assert receive(client, 3) == FIVE[:3]
        with pytest.raises(AckError, match="100003 was not handed out; the last one was 100002"):
            client.ack(FIRST_ID + 3)
        client.ack(FIRST_ID + 1)
        client.ack(FIRST_ID)
        assert client.position == (server.server_id, FIRST_ID + 2)
        wait_until(lambda: acked(server) == FIRST_ID + 1)
        assert receive(client, 2) == FIVE[3:]
        assert acked(server) == FIRST_ID + 1


@all_ways
def test_another_client_goes_on_behind_what_was_acked(address: str, delivery: Delivery) -> None:
    with Server(address) as server:
        with by_hand(address, delivery) as client:
            assert client.position == (server.server_id, FIRST_ID)
            server.publish_many(FIVE)
            assert receive(client, 4) == FIVE[:4]
            assert client.position == (server.server_id, FIRST_ID)
            client.ack(FIRST_ID + 1)
            position = client.position
        with by_hand(address, delivery, start=position) as client:
            assert receive(client, 3) == FIVE[2:]
            assert client.position == position


@all_ways
def test_closing_acks_no_more(address: str, delivery: Delivery) -> None:
    gone: list[ClientInfo] = []
    with Server(address, on_disconnect=lambda info, _: gone.append(info)) as server:
        with by_hand(address, delivery) as client:
            server.publish_many(FIVE)
            assert receive(client, 5) == FIVE
            client.ack(FIRST_ID + 2)
        wait_until(lambda: gone)
        assert gone[0].acked_id == FIRST_ID + 2


# ---- the lag policy ----


@all_ways
def test_under_block_the_publisher_waits_for_acks_by_hand(address: str, delivery: Delivery) -> None:
    with Server(address, max_lag=5, on_lag="block") as server:
        with by_hand(address, delivery) as client:
            server.publish_many(FIVE)
            assert receive(client, 5) == FIVE
            with pytest.raises(Timeout):
                client.receive(0)
            with pytest.raises(Timeout):
                server.publish(b"five", timeout=0)
            task = Task(lambda: server.publish(b"five"))
            client.ack(FIRST_ID + 3)
            assert task.result() == FIRST_ID + 5
            assert receive(client, 1) == [b"five"]


@all_ways
def test_a_client_that_acks_nothing_is_cut_however_much_it_receives(
    address: str, delivery: Delivery
) -> None:
    with Server(address, max_lag=5, patience=0) as server, by_hand(address, delivery) as client:
        server.publish_many(FIVE)
        assert receive(client, 5) == FIVE
        server.publish(b"five")
        with pytest.raises(ConnectionLost if delivery == "classic" else Lagged):
            client.receive(DEADLINE)
        wait_until(lambda: server.endings[EndReason.LAGGED])
        assert client.position == (server.server_id, FIRST_ID)


@all_ways
def test_a_client_that_was_skipped_goes_on_once_it_has_acked_all(
    address: str, delivery: Delivery
) -> None:
    with Server(address, max_lag=5, on_lag="skip", patience=0) as server:
        gaps: list[Gap] = []
        with by_hand(address, delivery, on_gap=gaps.append) as client:
            for turn in range(3):
                first = FIRST_ID + 9 * turn
                server.publish_many(FIVE)
                assert receive(client, 5) == FIVE
                server.publish_many(FIVE[:4])  # it is skipped over some of them
                client.ack(first + 3)
                with pytest.raises(Timeout):
                    client.receive(0.01)
                client.ack(first + 4)
                got = client.receive(DEADLINE)
                gap = gaps.pop()
                assert (gaps, gap.first) == ([], first + 5)
                assert gap.last is not None
                rest = first + 8 - gap.last
                assert [got, *receive(client, rest - 1)] == FIVE[4 - rest : 4]
                client.ack()
                server.drain(DEADLINE)


# ---- coming back ----


@all_ways
def test_a_client_that_comes_back_gets_nothing_twice(address: str, delivery: Delivery) -> None:
    with Server(address, share_log=SHARE_LOG) as server:
        with by_hand(address, delivery, reconnect=SOON, on_gap="raise") as client:
            server.publish_many(FIVE)
            assert receive(client, 4) == FIVE[:4]
            client.ack(FIRST_ID)
            break_connection(client)
            wait_until(lambda: server.endings[EndReason.LEFT])
            assert receive(client, 1) == [b"four"]
            assert client.position == (server.server_id, FIRST_ID + 1)
            client.ack(FIRST_ID + 2)  # of the connection before
            assert client.position == (server.server_id, FIRST_ID + 3)
            client.ack()
            server.drain(DEADLINE)
            assert client.position == (server.server_id, FIRST_ID + 5)


ACKS = [2, 2, 9, 10, 15, 16]
"""How many messages are acked at the end of each connection, of which each brings three."""


@all_ways
def test_acks_count_on_over_many_connections(address: str, delivery: Delivery) -> None:
    messages = [b"%d" % number for number in range(3 * len(ACKS))]
    with Server(address, share_log=SHARE_LOG) as server:
        got: list[bytes] = []
        with by_hand(address, delivery, reconnect=SOON, on_gap="raise") as client:
            before = 0
            for turn, acked_by_then in enumerate(ACKS, 1):
                server.publish_many(messages[len(got) : 3 * turn])
                got += receive(client, 3)
                assert client.position == (server.server_id, FIRST_ID + before)
                client.ack(FIRST_ID + acked_by_then - 1)
                client.ack(FIRST_ID)  # an older one takes nothing back
                before = acked_by_then
                assert client.position == (server.server_id, FIRST_ID + before)
                break_connection(client)
                wait_until(lambda: server.endings[EndReason.LEFT] == turn)  # noqa: B023
                while not server.clients():
                    with pytest.raises(Timeout):
                        client.receive(0.01)  # comes back, and gets nothing again
            with pytest.raises(AckError, match="was not handed out"):
                client.ack(FIRST_ID + len(messages))
            position = client.position
        assert got == messages
        with by_hand(address, delivery, start=position) as another:
            assert receive(another, len(messages) - before) == messages[before:]


@all_ways
def test_in_an_event_loop_acks_count_on_over_connections(
    address: str, delivery: Delivery, run: Run
) -> None:
    async def main() -> None:
        with Server(address, share_log=SHARE_LOG) as server:
            options: Any = {"delivery": delivery, "ack": "manual", "reconnect": SOON}
            async with AsyncClient(address, on_gap="raise", **options) as client:
                for turn in range(1, 4):
                    server.publish_many(FIVE)
                    assert [await client.receive(DEADLINE) for _ in FIVE] == FIVE
                    await client.ack(FIRST_ID + 4 * turn - 1)
                    assert client.position == (server.server_id, FIRST_ID + 4 * turn)
                    break_connection(client)
                    wait_until(lambda: server.endings[EndReason.LEFT] == turn)  # noqa: B023
                    while not server.clients():
                        with pytest.raises(Timeout):
                            await client.receive(0.01)
                server.publish(b"end")
                assert await client.receive(DEADLINE) == b"end"
                assert client.position == (server.server_id, FIRST_ID + 12)
                await client.ack()
                server.drain(DEADLINE)
                assert client.position == (server.server_id, FIRST_ID + 16)

    run(main)


@all_ways
def test_on_another_server_it_begins_anew(address: str, delivery: Delivery) -> None:
    with Server(address) as server:
        client = by_hand(address, delivery, reconnect=SOON)
        server.publish_many(FIVE)
        assert receive(client, 5) == FIVE
        client.ack(FIRST_ID + 3)
    with client, Server(address, history=FIVE) as server:
        assert receive(client, 1) == [b"zero"]
        assert client.position == (server.server_id, FIRST_ID)
        with pytest.raises(AckError):
            client.ack(FIRST_ID + 4)


# ---- views ----


@all_ways
def test_views_last_until_their_batch_is_acked(address: str, delivery: Delivery) -> None:
    with Server(address) as server, by_hand(address, delivery) as client:
        held = []
        for message in FIVE:
            server.publish_many([message] * 3)
            batch = client.receive_many(DEADLINE)
            held.append((batch, batch.views()))
            receive(client, 3 - len(batch))  # packets may come one at a time
        for (batch, views), message in zip(held, FIVE, strict=True):
            assert batch.valid
            assert set(map(bytes, views)) == {message}
        second, views = held[1]
        client.ack(second.last_id)
        for _, views in held[:2]:
            if client.delivery == "shared":
                with pytest.raises(ValueError, match="released"):
                    bytes(views[0])
        for (batch, views), message in zip(held[2:], FIVE[2:], strict=True):
            assert batch.valid
            assert bytes(views[0]) == message
        wait_until(lambda: acked(server) == second.last_id)


def test_a_view_that_lives_on_holds_back_an_ack_by_hand(address: str) -> None:
    with Server(address, share_log=True) as server, by_hand(address) as client:
        server.publish(b"one")
        first = client.receive_many(DEADLINE)
        slice_ = first.views()[0][1:]
        server.publish(b"two")
        second = client.receive_many(DEADLINE)
        client.ack(second.last_id)
        assert acked(server) == FIRST_ID - 1
        assert bytes(slice_) == b"ne"
        del slice_
        wait_until(lambda: acked(server) == FIRST_ID + 1)


# ---- others ----


def test_a_plain_server_gets_acks_by_hand_alone(address: str) -> None:
    with classic_server(address, "--count", "3") as server, by_hand(address) as client:
        assert len(receive(client, 3)) == 3
        with pytest.raises(Timeout):
            client.receive(0)
        assert client.lag == 3
        client.ack(FIRST_ID + 1)
        assert client.lag == 1
        client.ack()
        (report,) = server.result()["clients"]
        assert (report["acks"], report["acked_id"]) == (3, FIRST_ID + 2)
        assert report["each_in_order"]


@all_ways
def test_in_an_event_loop_likewise(address: str, delivery: Delivery, run: Run) -> None:
    messages = numbers(1000)

    async def main() -> None:
        with Server(address) as server:
            async with AsyncClient(address, delivery=delivery, ack="manual") as client:
                server.publish_many(messages)
                got = [await client.receive(DEADLINE) for _ in range(10)]
                async with aclosing(aiter(client)) as stream:
                    async for message in stream:
                        got.append(message)
                        if len(got) == 1000:
                            break
                assert got == messages
                with pytest.raises(Timeout):
                    await client.receive(0.01)
                assert acked(server) == FIRST_ID - 1
                await client.ack(FIRST_ID + 700)
                wait_until(lambda: acked(server) == FIRST_ID + 700)
                assert client.position == (server.server_id, FIRST_ID + 701)
                await client.ack()
                server.drain(DEADLINE)

    run(main)
