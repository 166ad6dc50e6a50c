# SPDX-License-Identifier: Apache-2.0
"""A feed that moves from one process to another, and a hole in a feed."""

import subprocess
import time

import pytest
from support.api import SOON, Task, receive, script_process
from support.base import DEADLINE, DELIVERIES, wait_until
from support.receiving import all_arrived
from support.servers import Server

from jumiks import AddressInUse, Client, Closed, Delivery, Gap, GapReason
from jumiks import server as server_module
from jumiks._wire.handshake import FIRST_ID

FEED = 7
FIVE = [b"zero", b"one", b"two", b"three", b"four"]

all_ways = pytest.mark.parametrize("delivery", DELIVERIES)

PUBLISH = """
    print("ready", flush=True)
    for line in sys.stdin:
        server.publish(line.strip().encode())
        print("published", flush=True)
"""

FIRST = """
import sys
with Server(sys.argv[1]) as server:
"""

SECOND = """
import sys
old = jumiks.Client(sys.argv[1], start="oldest", on_gap="raise")
print("reading", flush=True)
with Server(
    sys.argv[1], first_id=old.resume_at, server_id=old.server_id, history=old
) as server:
"""


def says(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != f"{word}\n":
        process.kill()
        pytest.fail(f"{line!r}: {process.communicate()[1]}")


def publish(process: subprocess.Popen[str], first: int, count: int) -> None:
    assert process.stdin is not None
    for number in range(first, first + count):
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        says(process, "published")


@all_ways
def test_a_feed_moves_to_another_process_and_clients_notice_a_reconnect_alone(
    address: str, delivery: Delivery
) -> None:
    numbers = [b"%d" % number for number in range(15)]
    with script_process(FIRST + PUBLISH, address) as first:
        says(first, "ready")
        publish(first, 0, 5)
        with Client(
            address, start="oldest", reconnect=SOON, on_gap="raise", delivery=delivery
        ) as client:
            feed = client.server_id
            task = Task(lambda: receive(client, 15))
            with script_process(SECOND + PUBLISH, address) as second:
                says(second, "reading")
                publish(first, 5, 5)
                assert first.stdin is not None
                first.stdin.close()
                says(second, "ready")
                publish(second, 10, 5)
                assert task.result() == numbers
                assert (client.server_id, client.last_id) == (feed, FIRST_ID + 14)
                with Client(address, start="oldest", on_gap="raise") as late:
                    assert receive(late, 15) == numbers
                    assert (late.server_id, late.last_id) == (feed, FIRST_ID + 14)


@all_ways
def test_a_history_waits_for_the_address_that_it_came_from(
    address: str, delivery: Delivery
) -> None:
    with Server(address, history=FIVE) as old:
        reader = Client(address, start="oldest", on_gap="raise", delivery="framed")
        first, feed = reader.resume_at, reader.server_id
        task = Task(lambda: Server(address, first_id=first, server_id=feed, history=reader))
        client = Client(address, start="oldest", reconnect=SOON, delivery=delivery)
        assert receive(client, 2) == FIVE[:2]
        wait_until(lambda: any(info.acked_id == FIRST_ID + 4 for info in old.clients()))
        all_arrived(old, FIRST_ID + 4)
        old.close(0)
    with client, reader, task.result() as new:
        new.publish(b"five")
        assert receive(client, 4) == [*FIVE[2:], b"five"]
        assert new.stats().oldest_id == FIRST_ID


def test_an_address_that_stays_in_use_is_an_error_a_second_later(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MOVING_PATIENCE", 0.05)
    with Server(address) as server:
        began = time.monotonic()
        with pytest.raises(AddressInUse):
            Server(address, history=FIVE)
        assert time.monotonic() - began >= 0.05
        with Client(address) as client:
            server.publish(b"one")
            assert client.receive(DEADLINE) == b"one"


# ---- a hole in a feed ----


@all_ways
def test_a_hole_in_a_feed_is_a_gap_of_exactly_that(address: str, delivery: Delivery) -> None:
    gaps: list[Gap] = []
    end = FIRST_ID + 5
    with Server(address, server_id=FEED) as server:
        client = Client(address, reconnect=SOON, on_gap=gaps.append, delivery=delivery)
        server.publish_many(FIVE)
        assert receive(client, 2) == FIVE[:2]
        all_arrived(server, end - 1)
        server.close(0)
    for hole in (1, 10, 1000):
        first = end + hole
        with Server(address, server_id=FEED, first_id=first) as server:
            if hole == 1:  # what the server before it had comes first
                assert receive(client, 3) == FIVE[2:]
                task = Task(lambda: client.receive(DEADLINE))
            server.wait_for_clients(1, DEADLINE)
            assert server.publish_many([b"%d" % first] * 10)[0] == first
            assert [task.result(), *receive(client, 9)] == [b"%d" % first] * 10
            assert gaps == [Gap(end, first - 1)]
            assert gaps.pop().reason is GapReason.EVICTED
            end = first + 10
            task = Task(lambda: client.receive(DEADLINE))
            server.drain(DEADLINE)
    client.close()
    with pytest.raises(Closed):
        task.result()
