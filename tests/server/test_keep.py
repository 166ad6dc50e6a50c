# SPDX-License-Identifier: Apache-2.0
"""History that stays: for late joiners and for who comes back, on top of what is unacked."""

import random
from typing import Any

import pytest
from support.base import DEADLINE, wait_until
from support.servers import Server
from support.wire import FIRST_ID, Witness, raw_client

import jumiks
from jumiks import Client, Delivery, Gap, GapReason, Timeout

LOG = 65536
SLOT = b"x" * 48
"""It takes 64 bytes of the log."""

SLOTS = LOG // 64

kinds = pytest.mark.parametrize(
    "keep",
    [
        {"keep_bytes": 16384},
        {"keep": 256},
        {"keep": 1 << 40, "keep_bytes": 16384},
        {"keep": 1000, "keep_bytes": 16384},
    ],
)
"""256 of those messages, said in four ways."""


def full(server: Server) -> int:
    """Publish until it would have to wait; returns how many went in."""
    count = 0
    while True:
        try:
            server.publish(SLOT, timeout=0)
        except Timeout as error:
            if error.holder is None:
                continue  # another thread had the lock for a moment
            return count
        count += 1


def acked(server: Server, packet_id: int) -> None:
    wait_until(lambda: [info.acked_id for info in server.clients()] == [packet_id])


@kinds
@pytest.mark.parametrize("framed", [True, False], ids=["framed", "classic"])
@pytest.mark.parametrize("before", [0, 100, 5000])
def test_a_client_may_hold_the_log_but_for_what_is_kept(
    address: str, framed: bool, before: int, keep: dict[str, Any]
) -> None:
    with Server(address, log_size=LOG, on_lag="block", **keep) as server:
        server.publish_many([SLOT] * before)
        with raw_client(server, address, framed=framed) as client:
            assert full(server) == SLOTS - min(before, 256)  # no room for history that is not
            assert full(server) == 0
            for number in range(300):
                oldest = server.stats().oldest_id
                client.ack(FIRST_ID + before + number)
                acked(server, FIRST_ID + before + number)
                full(server)
                assert oldest <= server.stats().oldest_id
                assert server.stats().oldest_id <= max(FIRST_ID, FIRST_ID + before + number - 255)
            assert full(server) == 0
            assert server.stats().log_held == (SLOTS - 256) * 64


@kinds
def test_one_message_beyond_what_may_be_held_and_the_client_is_cut_with_its_limit(
    address: str, keep: dict[str, Any]
) -> None:
    with Server(address, log_size=LOG, patience=0, **keep) as server:
        server.publish_many([SLOT] * 3000)
        with raw_client(server, address) as client:
            server.publish_many([SLOT] * (SLOTS - 256))
            assert server.stats().clients == 1
            server.publish(SLOT)
            assert server.stats().clients == 0
            _, bye = client.rest()
            assert bye is not None
            assert bye.limit == (SLOTS - 256) * 64


@kinds
def test_a_client_that_holds_one_message_less_is_not_cut_with_it(
    address: str, keep: dict[str, Any]
) -> None:
    with Server(address, log_size=LOG, patience=0, **keep) as server:
        server.publish_many([SLOT] * 3000)
        with raw_client(server, address), raw_client(server, address) as other:
            server.publish_many([SLOT] * (SLOTS - 256))
            other.ack(FIRST_ID + 3000)
            wait_until(lambda: FIRST_ID + 3000 in [info.acked_id for info in server.clients()])
            server.publish(SLOT)
            acked(server, FIRST_ID + 3000)


@kinds
@pytest.mark.parametrize("clients", [0, 1, 3])
def test_the_last_messages_are_there_whatever_is_published(
    address: str, clients: int, keep: dict[str, Any]
) -> None:
    # A witness that is a moment slower than another would be cut.
    with Server(address, log_size=LOG, on_lag="block", **keep) as server:
        witnesses = [Witness(address) for _ in range(clients)]
        for number in range(5000):
            packet_id = server.publish(SLOT)
            stats = server.stats()
            assert stats.oldest_id <= max(FIRST_ID, packet_id - 255), number
        with Client(address, start=packet_id - 255) as late:
            assert len(late.receive_many(DEADLINE)) > 0
            assert late.missed == 0
        server.close(DEADLINE)
        for witness in witnesses:
            with witness:
                assert isinstance(witness.wait_for_end(), jumiks.ServerClosed)


def test_kept_messages_of_any_size_are_all_there(address: str) -> None:
    sizes = random.Random(7)
    with Server(address, log_size=1 << 20, keep=100) as server:
        with Witness(address):
            for _ in range(3000):
                packet_id = server.publish(b"x" * sizes.choice([0, 1, 64, 500, 4000]))
                assert server.stats().oldest_id <= max(FIRST_ID, packet_id - 99)


def test_what_is_kept_fits_in_half_of_the_log(address: str) -> None:
    with Server(address, log_size=LOG, keep=LOG // 32, on_lag="block") as server:
        server.publish_many([SLOT] * 5000)
        with raw_client(server, address) as client:
            assert full(server) == SLOTS // 2
            client.ack(FIRST_ID + 5000)
            acked(server, FIRST_ID + 5000)
            assert full(server) == 1


@pytest.mark.parametrize("delivery", ["shared", "framed"])
def test_a_late_joiner_gets_what_is_kept_while_others_go_on(
    address: str, delivery: Delivery
) -> None:
    with Server(address, log_size=1 << 18, keep=1000) as server, Witness(address) as other:
        server.publish_many([SLOT] * 20_000)
        with Client(address, start="oldest", delivery=delivery) as late:
            next_id = server.stats().next_id
            got: list[int] = []
            while not got or got[-1] < next_id + 3000:
                server.publish_many([SLOT] * 100)
                batch = late.receive_many(DEADLINE)
                got += range(batch.first_id, batch.last_id + 1)
            assert got[0] <= next_id - 1000
            assert got == list(range(got[0], got[-1] + 1))
        other.wait_for(20_000)


@pytest.mark.parametrize("delivery", ["shared", "framed"])
def test_what_is_kept_and_left_out_at_the_start_is_told_as_a_gap(
    address: str, delivery: Delivery
) -> None:
    with Server(address, log_size=1 << 18, keep_bytes=1 << 17) as server:
        server.publish_many([SLOT] * 10_000)
        oldest = server.stats().oldest_id
        with Client(address, start="oldest", delivery=delivery, on_gap="yield") as client:
            gap = client.receive(0)
            assert isinstance(gap, Gap)
            assert (gap.first, gap.reason) == (oldest, GapReason.EVICTED)
            assert client.receive(DEADLINE) == SLOT
            assert gap.last == client.last_id - 1
            assert client.missed == gap.count
        with Client(address, delivery=delivery) as now:
            assert now.missed == 0


def test_a_start_at_the_oldest_leaves_nothing_out_where_there_is_room(address: str) -> None:
    for keep_bytes in (1 << 15, 0):
        with Server(address, log_size=1 << 18, keep_bytes=keep_bytes) as server:
            server.publish_many([SLOT] * 1000)
            with Client(address, start="oldest", on_gap="yield") as client:
                assert client.receive(DEADLINE) == SLOT
                assert (client.last_id, client.missed) == (server.stats().oldest_id, 0)


def test_a_client_that_reads_history_may_come_up_to_those_that_are_live(address: str) -> None:
    with Server(address, log_size=LOG, keep_bytes=LOG // 2, on_lag="block") as server:
        server.publish_many([SLOT] * 5000)
        with raw_client(server, address, start=1) as late:
            # Placed with a quarter of the log in front of it, all of which it may use.
            assert server.clients()[0].lag == SLOTS * 3 // 4
            assert full(server) == SLOTS // 4
            late.read(10)
            late.ack(FIRST_ID + 5000 - SLOTS * 3 // 4 + 9)
            wait_until(lambda: full(server) == 10)


def test_a_client_that_comes_back_goes_on_without_loss_as_far_as_messages_are_kept(
    address: str,
) -> None:
    with Server(address, log_size=LOG, keep=256) as server, Witness(address):
        server.publish_many([SLOT] * 2000)
        with Client(address) as client:
            server.publish(b"first")
            assert client.receive(DEADLINE) == b"first"
            last = client.last_id
        server.publish_many([SLOT] * 200)
        gaps: list[Gap] = []
        with Client(address, start=last + 1, on_gap=gaps.append) as client:
            assert client.receive_many(DEADLINE).first_id == last + 1
        server.publish_many([SLOT] * 5000)
        with Client(address, start=last + 1, on_gap=gaps.append) as client:
            first = client.receive_many(DEADLINE).first_id
        assert [(gap.first, gap.last) for gap in gaps] == [(last + 1, first - 1)]
        assert first <= server.stats().next_id - 256


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"keep": -1}, ValueError, "keep=-1"),
        ({"keep": LOG // 32 + 1}, ValueError, "32768 bytes, has room for 2048 messages at most"),
        ({"keep": 1.5}, TypeError, "keep is a whole number"),
        ({"keep": True}, TypeError, "keep is a whole number"),
        ({"keep_bytes": -1}, ValueError, "keep_bytes=-1"),
        ({"keep_bytes": LOG // 2 + 1}, ValueError, "half of log_size, 32768"),
        ({"keep_bytes": "1M"}, TypeError, "keep_bytes is a whole number"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    address: str, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Server(address, log_size=LOG, **arguments)
