# SPDX-License-Identifier: Apache-2.0
"""What dies, and what is right then: docs/bridge.md, "Promises", with real engines."""

import shutil
import signal
import subprocess
import sys

import pytest
from support.base import DEADLINE, wait_until
from support.bridges import Bridge, Inside, Publisher, Reader, inside, message, number_of, same
from support.engines import RealEngine
from support.servers import Server

from jumiks import Client, Gap
from jumiks.bridge import Create, Inbound, Outbound, outbound

pytestmark = pytest.mark.slow

FIRST = 100_000

SOURCE = """
import sys, jumiks
with jumiks.Server(sys.argv[1], share_log=True) as server:
    for line in sys.stdin:
        first, behind = map(int, line.split())
        numbers = (each.to_bytes(8, "little") for each in range(first, behind))
        server.publish_many([each.ljust(64, b".") for each in numbers])
        print("done", flush=True)
"""


class Source:
    """A source in a process of its own, which can be killed."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SOURCE, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def publish(self, first: int, behind: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{first} {behind}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def published(first: int, behind: int) -> list[bytes]:
    return [message(each) for each in range(first, behind)]


def test_two_bridges_at_once_store_nothing_twice(engine: RealEngine, address: str) -> None:
    far = f"{address}-far"
    with Server(address, share_log=True) as source, Publisher(source) as publisher:
        with inside(address, engine.url, far) as (first, _), Reader(far) as reader:
            second = Outbound(address, engine.url, create=Create())
            with Inside(second) as other:
                wait_until(lambda: "standby" in (first.stats().state, other.state()))
                before = len(reader.numbers)
                wait_until(reader.has(before + 1000))
                publisher.stop()
                same(reader, publisher)
                assert reader.gaps == []
                assert first.stats().conflicts + second.stats().conflicts >= 1


def test_a_bridge_that_stands_by_takes_over(
    engine: RealEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "STANDBY", 0.1)
    far = f"{address}-far"
    with Server(address, share_log=True) as source, Publisher(source) as publisher:
        with Bridge("out", address, engine.url, "--create") as first:
            with Inside(Inbound(engine.url, far, wait=DEADLINE)), Reader(far) as reader:
                wait_until(reader.has(1))
                with Inside(Outbound(address, engine.url)):
                    first.stop(terminate=False)
                    before = len(reader.numbers)
                    wait_until(reader.has(before + 1000))
                    publisher.stop()
                    same(reader, publisher)
                    assert reader.gaps == []


def test_the_engine_loses_what_it_had_acked(engine: RealEngine, address: str) -> None:
    far = f"{address}-far"
    with Server(address, share_log=True) as source:
        with inside(address, engine.url, far) as (out, _), Reader(far) as reader:
            source.publish_many(published(0, 1000))
            wait_until(reader.has(1000))
            engine.stop()
            before = shutil.copytree(engine.folder, f"{engine.folder}-before")
            engine.start()
            source.publish_many(published(1000, 2000))
            wait_until(reader.has(2000))
            wait_until(lambda: out.stats().outstanding == 0)
            engine.stop()
            shutil.rmtree(engine.folder)
            shutil.move(before, engine.folder)
            engine.start()
            source.publish_many(published(2000, 3000))
            wait_until(reader.has(3000))
            assert reader.numbers == list(range(3000))
            assert reader.gaps == []
            assert out.stats().rewinds == 1
            with Inside(Inbound(engine.url, f"{far}-2")), Reader(f"{far}-2") as other:
                wait_until(other.has(3000))
                assert other.numbers == list(range(3000))


def test_a_source_is_killed_while_the_engine_is_down(engine: RealEngine, address: str) -> None:
    far = f"{address}-far"
    with Source(address) as source:
        with inside(address, engine.url, far) as (out, _), Reader(far) as reader:
            source.publish(0, 1000)
            wait_until(reader.has(1000))
            engine.stop()
            wait_until(lambda: out.stats().state != "running" or out.stats().problem != "")
            source.publish(1000, 100_000)
            source.kill()
            engine.start()
            wait_until(reader.has(100_000))
            assert reader.numbers == list(range(100_000))
            assert reader.gaps == []


def test_a_source_is_killed_while_the_bridge_is_down(engine: RealEngine, address: str) -> None:
    far = f"{address}-far"
    with Source(address) as source:
        with inside(address, engine.url, far), Reader(far) as reader:
            source.publish(0, 1000)
            wait_until(reader.has(1000))
    with Source(address) as source:
        source.publish(1000, 2000)
        with inside(address, engine.url, far) as (out, _), Reader(far) as reader:
            wait_until(reader.has(1000))
            source.publish(2000, 2001)
            wait_until(lambda: number_in(reader, 2000))
            # The gap takes the one id 101000. The far log begins behind it, or had begun before.
            assert reader.numbers in (list(range(1000, 2001)), list(range(2001)))
            gaps = [Gap(FIRST + 1000, FIRST + 1000)] if reader.numbers[0] == 0 else []
            assert [gap for gap in reader.gaps if gap.first != FIRST] == gaps
            assert reader.last_id == FIRST + 2001
            assert out.stats().unknown_gaps == 1
            assert out.stats().gaps == {"restarted": 1}


def test_a_far_reader_gets_all_between_several_gaps(engine: RealEngine, address: str) -> None:
    far, runs = f"{address}-far", 4
    with Bridge("in", engine.url, far, "--wait", "30") as inbound, Reader(far) as reader:
        for run in range(runs):
            with Source(address) as source:
                source.publish(100 * run, 100 * (run + 1))
                with Inside(Outbound(address, engine.url, create=Create())) as out:
                    wait_until(lambda: out.bridge.stats().messages == 100)
            if not run:  # what comes from here on is read all at once
                wait_until(reader.has(100))
                assert inbound.process is not None
                suspended = inbound.process
                suspended.send_signal(signal.SIGSTOP)
        suspended.send_signal(signal.SIGCONT)
        wait_until(reader.has(100 * runs))
        assert reader.numbers == list(range(100 * runs))
        assert reader.gaps == [Gap(at, at) for at in (FIRST + 101 * n - 1 for n in range(1, runs))]


def test_a_gap_reaches_the_far_reader_with_both_its_ends(engine: RealEngine, address: str) -> None:
    far = f"{address}-far"
    with Server(address, share_log=True, log_size=1 << 16) as source:
        with inside(address, engine.url, far), Reader(far) as reader:
            source.publish_many(published(0, 10))
            wait_until(reader.has(10))
    with Server(
        address, share_log=True, log_size=1 << 16, first_id=FIRST + 10, server_id=source.server_id
    ) as source:
        source.publish_many(published(10, 5000))
        oldest = source.stats().oldest_id
        with inside(address, engine.url, far) as (out, _), Reader(far) as reader:
            wait_until(lambda: number_in(reader, 4999))
            assert oldest > FIRST + 10
            assert next(each for each in reader.numbers if each >= 10) == oldest - FIRST
            assert out.stats().gaps == {"evicted": 1}
            assert out.stats().lost == oldest - FIRST - 10


def number_in(reader: Reader, number: int) -> bool:
    return number in reader.numbers[-1:]


def test_a_message_that_the_engine_does_not_take_is_a_gap(
    engine: RealEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = f"{address}-far"
    with Server(address, share_log=True, max_message=1 << 21) as source:
        with inside(address, engine.url, far) as (out, inbound), Reader(far) as reader:
            source.publish_many(published(0, 10))
            wait_until(reader.has(10))
            before = inbound.stats().server_id
            monkeypatch.setattr(type(out._engine), "largest", 1 << 20)
            source.publish(bytes((1 << 20) + 1))
            source.publish_many(published(10, 20))
            wait_until(reader.has(20))
            assert reader.numbers == list(range(20))
            assert [(gap.first, gap.last) for gap in reader.gaps] == [(FIRST + 10, FIRST + 10)]
            assert inbound.stats().server_id == before
            assert out.stats().gaps == inbound.stats().gaps == {"too-large": 1}


def test_a_stream_that_is_made_anew_is_another_feed(engine: RealEngine, address: str) -> None:
    far = f"{address}-far"
    with Server(address, share_log=True) as source:
        with inside(address, engine.url, far) as (_, inbound), Reader(far) as reader:
            source.publish_many(published(0, 100))
            wait_until(reader.has(100))
            before = inbound.stats().server_id
            engine.delete_stream()
            source.publish_many(published(100, 200))
            wait_until(lambda: number_in(reader, 199))
            assert inbound.stats().server_id != before
            assert inbound.stats().restarts == 1
            # All that the source still had is in the new stream, and each of its ids is its own.
            assert reader.numbers == [*range(100), *range(200)]


def test_a_client_moves_to_another_machine(engine: RealEngine, address: str) -> None:
    with Server(address, share_log=True) as source:
        with inside(address, engine.url, f"{address}-b") as (_, b):
            c = Inbound(engine.url, f"{address}-c", wait=DEADLINE)
            with Inside(c):
                source.publish_many(published(0, 1000))
                wait_until(lambda: b.stats().next_id == c.stats().next_id == FIRST + 1000)
                with Client(f"{address}-b", start="oldest") as client:
                    got = [number_of(client.receive(DEADLINE)) for _ in range(300)]
                    client.ack()
                    server_id, resume_at = client.server_id, client.resume_at
                with Client(f"{address}-c", start=resume_at) as client:
                    assert client.server_id == server_id
                    got += [number_of(client.receive(DEADLINE)) for _ in range(700)]
                assert got == list(range(1000))


def test_a_record_that_cannot_be_read_is_a_gap_and_no_loop(
    engine: RealEngine, address: str
) -> None:
    far = f"{address}-far"
    with Server(address, share_log=True) as source:
        with inside(address, engine.url, far), Reader(far) as reader:
            source.publish_many(published(0, 10))
            wait_until(reader.has(10))
        engine.poison(first=FIRST + 10, count=5, server=source.server_id)
        source.publish_many(published(10, 20))
        with inside(address, engine.url, far), Reader(far) as reader:
            wait_until(lambda: number_in(reader, 19))
            assert reader.numbers == list(range(15, 20))
            source.publish_many(published(20, 30))
            wait_until(lambda: number_in(reader, 29))


def test_a_stopped_engine_loses_nothing(
    engine: RealEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jumiks.bridge.engine.LEAST", 0.5)
    far = f"{address}-far"
    with Server(address, share_log=True) as source, Publisher(source) as publisher:
        with inside(address, engine.url, far) as (out, _), Reader(far) as reader:
            wait_until(reader.has(1000))
            engine.strike(signal.SIGSTOP)
            wait_until(lambda: out.stats().state != "running")
            assert "no answer" in out.stats().problem
            engine.strike(signal.SIGCONT)
            before = len(reader.numbers)
            wait_until(reader.has(before + 10_000))
            publisher.stop()
            same(reader, publisher)
            assert reader.gaps == []


def test_an_engine_that_stops_for_five_seconds_loses_nothing(
    engine: RealEngine, address: str
) -> None:
    far = f"{address}-far"
    with Server(address, share_log=True) as source, Publisher(source) as publisher:
        with inside(address, engine.url, far) as (out, _), Reader(far) as reader:
            wait_until(reader.has(1000))
            engine.strike(signal.SIGSTOP)
            wait_until(lambda: (out.stats().ack_age or 0) > 5)
            engine.strike(signal.SIGCONT)
            before = len(reader.numbers)
            wait_until(reader.has(before + 10_000))
            publisher.stop()
            same(reader, publisher)
            assert reader.gaps == []
