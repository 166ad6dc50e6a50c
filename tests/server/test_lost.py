# SPDX-License-Identifier: Apache-2.0
"""What a server says that a client may not have got, by how it ended."""

from __future__ import annotations

import pytest
from support.api import script_process
from support.base import DEADLINE, DELIVERIES, wait_until
from support.servers import Server

from jumiks import Client, ClientInfo, Delivery, EndReason, Gap, GapReason
from jumiks._wire.handshake import FIRST_ID

COUNT = 300
LAST = FIRST_ID + COUNT - 1

all_ways = pytest.mark.parametrize("delivery", DELIVERIES)


@all_ways
def test_a_killed_client_may_have_lost_all_that_it_had_not_acked(
    address: str, delivery: Delivery
) -> None:
    script = """
import sys, time, jumiks
client = jumiks.Client(sys.argv[1], delivery=sys.argv[2])
for _ in range(5):
    client.receive()
client.ack()
print(client.last_id, flush=True)
time.sleep(60)
"""
    ends: list[ClientInfo] = []
    with Server(address, on_disconnect=lambda info, _: ends.append(info)) as server:
        with script_process(script, address, delivery) as process:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([bytes(1000)] * COUNT)
            assert process.stdout is not None
            assert int(process.stdout.readline()) == FIRST_ID + 4
        wait_until(lambda: ends)
    (info,) = ends
    assert info.reason is EndReason.LEFT
    assert info.lost == Gap(FIRST_ID + 5, LAST)
    assert info.lost.reason is GapReason.ENDED


@all_ways
def test_a_client_that_left_with_all_acked_has_lost_nothing(
    address: str, delivery: Delivery
) -> None:
    ends: list[ClientInfo] = []
    with Server(address, on_disconnect=lambda info, _: ends.append(info)) as server:
        with Client(address, delivery=delivery) as client:
            server.publish_many([bytes(1000)] * 3)
            for _ in range(3):
                client.receive(DEADLINE)
            client.ack()
        wait_until(lambda: ends)
    assert (ends[0].reason, ends[0].lost) == (EndReason.LEFT, None)


@pytest.mark.usefixtures("large_log")
def test_a_plain_client_cut_at_a_message_too_large_lost_that_and_what_follows(address: str) -> None:
    ends: list[ClientInfo] = []
    with Server(address, on_disconnect=lambda info, _: ends.append(info)) as server:
        with Client(address, delivery="classic") as client:
            server.publish_many([b"first", bytes(1 << 20), b"after"])
            assert client.receive(DEADLINE) == b"first"
            wait_until(lambda: ends)
    (info,) = ends
    assert info.reason is EndReason.TOO_LARGE
    assert info.lost is not None
    assert (info.lost.first, info.lost.reason) == (FIRST_ID + 1, GapReason.ENDED)


def test_a_client_that_the_lag_policy_cut_is_told_of_as_such(address: str) -> None:
    ends: list[ClientInfo] = []
    with Server(
        address, max_lag=10, patience=0, on_disconnect=lambda info, _: ends.append(info)
    ) as server:
        with Client(address, delivery="framed"):
            server.publish_many([bytes(60_000)] * 12)
            wait_until(lambda: ends)
    (info,) = ends
    assert info.reason is EndReason.LAGGED
    assert info.lost is not None
    assert info.lost.reason is GapReason.SKIPPED
