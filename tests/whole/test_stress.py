# SPDX-License-Identifier: Apache-2.0
"""Everything at once: publishers, clients of all kinds that come, go, lag and die, and the end.

Each client's ledger is held against the publishers': nothing lost without a report, nothing twice,
nothing out of order.
"""

import json
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Self

import pytest
from support.base import DEADLINE, wait_until
from support.servers import Server
from support.wire import FIRST_ID, RawClient

from jumiks import (
    Client,
    Closed,
    ConnectionLost,
    Disconnected,
    EndReason,
    Gap,
    Lagged,
    OnLag,
    Overwritten,
    ServerClosed,
)

DURATION = 1.5
"""Seconds of each storm; enough for some hundred comings and goings."""

PUBLISHERS = 3


Take = Callable[[Client, Callable[[int, bytes], None]], None]
"""Receives until an exception, and tells each message with its id."""


class Publisher:
    """A thread that publishes until the server is closed, in every way there is."""

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.ids: list[int] = []
        self.messages: list[bytes] = []
        self.error: Exception | None = None
        self._random = random.Random(number)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        pause = threading.Event()
        try:
            while True:
                self._publish(self._random.choice([1, 1, 1, 2, 10, 100]))
                pause.wait(self._random.choice([0, 0.0001, 0.001]))
        except Closed:
            return
        except Exception as error:
            self.error = error

    def _publish(self, count: int) -> None:
        start = len(self.messages)
        new = [
            b"%d %d " % (self.number, start + more) + bytes(self._random.choice([0, 10, 100, 3000]))
            for more in range(count)
        ]
        if count > 1:
            ids = list(self.server.publish_many(new))
        elif start % 2:
            ids = [self.server.publish(new[0])]
        else:
            reservation = self.server.reserve(len(new[0]))
            with reservation as view:
                view[:] = new[0]
            assert reservation.packet_id is not None
            ids = [reservation.packet_id]
        # What a close interrupts is left out; whoever got some of it is still checked for order.
        self.ids += ids
        self.messages += new


def take_batches(client: Client, record: Callable[[int, bytes], None]) -> None:
    while True:
        batch = client.receive_many()
        for offset, message in enumerate(batch):
            record(batch.first_id + offset, message)


def take_views(client: Client, record: Callable[[int, bytes], None]) -> None:
    while True:
        with client.receive_many() as batch:
            copies = [bytes(view) for view in batch.views()]
            batch.release()  # raises where they were overwritten meanwhile
        for offset, message in enumerate(copies):
            record(batch.first_id + offset, message)


def take_singly(client: Client, record: Callable[[int, bytes], None]) -> None:
    while True:
        message = client.receive()
        record(client.last_id, message)


def take_slowly(client: Client, record: Callable[[int, bytes], None]) -> None:
    pause = threading.Event()
    while True:
        message = client.receive()
        record(client.last_id, message)
        pause.wait(0.0002)


class Reader:
    """A thread with a client, its ledger, and how it ended."""

    def __init__(
        self,
        server: Server,
        address: str,
        take: Take,
        *,
        enough: int | None = None,
        **options: Any,
    ) -> None:
        self.entries: list[tuple[int, bytes]] = []
        self.gaps: list[Gap] = []
        self.end: Exception | None = None
        self._take = take
        self._enough = enough
        self.client = Client(address, on_gap=self.gaps.append, **options)
        # Whatever is published from now on must come.
        self.first_due = server.stats().next_id
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _record(self, packet_id: int, message: bytes) -> None:
        self.entries.append((packet_id, message))
        if self._enough is not None and len(self.entries) >= self._enough:
            self.client.close()

    def _run(self) -> None:
        while self.end is None:
            try:
                self._take(self.client, self._record)
            except Overwritten as error:
                # That batch was lost while it was looked at; what becomes of the client comes next.
                self.gaps.append(Gap(error.first, error.last))
            except Exception as error:
                self.end = error
        self.client.close()

    def check(self, ledger: dict[int, bytes], last_id: int) -> None:
        """Hold what was received, and what was reported, against what was published."""
        gaps = {gap.first: gap.last for gap in self.gaps if gap.last is not None}
        assert len(gaps) == len(self.gaps)
        next_id = min([*(entry[0] for entry in self.entries[:1]), *gaps], default=self.first_due)
        assert next_id <= self.first_due
        sequence = [-1] * PUBLISHERS
        for packet_id, message in self.entries:
            while next_id != packet_id:
                next_id = gaps.pop(next_id) + 1  # a KeyError here is a loss without a report
                sequence = [-1] * PUBLISHERS
            next_id += 1
            assert ledger.get(packet_id, message) == message
            number, index = (int(word) for word in message.split(b" ", 2)[:2])
            if sequence[number] >= 0:
                assert index == sequence[number] + 1
            sequence[number] = index
        while next_id in gaps:
            next_id = gaps.pop(next_id) + 1
        if isinstance(self.end, ServerClosed):
            assert next_id == last_id + 1
        elif isinstance(self.end, (Lagged, ConnectionLost)):
            if not self.entries and not self.gaps and self.end.first_lost:
                # From the very first message on, which may have come before `first_due`.
                next_id = min(next_id, self.end.first_lost)
            assert self.end.first_lost in (0, next_id)
            assert self.end.last_lost <= last_id
        else:
            assert isinstance(self.end, (Closed, Disconnected)), repr(self.end)
        assert not gaps


CHILD = """
import ctypes, json, sys, zlib
import jumiks

ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: the test may be killed

address, delivery = sys.argv[1:3]
gaps, first, last, count, crc = [], 0, -1, 0, 0  # nothing yet

def miss(gap):
    global first, last
    first = first or gap.first  # it may come before any message, and after all of them
    last = gap.last
    gaps.append(gap.count)

with jumiks.Client(address, delivery=delivery, on_gap=miss) as client:
    print("ready", flush=True)
    try:
        while True:
            batch = client.receive_many()
            first = first or batch.first_id
            last = batch.last_id
            try:
                messages = list(batch)
            except jumiks.Overwritten:
                gaps.append(len(batch))
                continue
            count += len(messages)
            for message in messages:
                crc = zlib.crc32(message, crc)
    except jumiks.ConnectionEnded as error:
        end = type(error).__name__
print(json.dumps({"first": first, "last": last, "count": count, "crc": crc, "end": end,
                  "missed": sum(gaps)}))
"""


class Child:
    """A client in a process of its own."""

    def __init__(self, address: str, delivery: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, address, delivery], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)

    def finish(self) -> None:
        self.output, _ = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0

    def check(self, ledger: dict[int, bytes]) -> None:
        said = json.loads(self.output)
        assert said["end"] in ("ServerClosed", "Lagged", "ConnectionLost", "Disconnected")
        assert said["count"] + said["missed"] == said["last"] - said["first"] + 1
        if said["missed"]:
            return
        crc = 0
        for packet_id in range(said["first"], said["last"] + 1):
            if packet_id not in ledger:
                return  # published by a call that the close interrupted
            crc = zlib.crc32(ledger[packet_id], crc)
        assert crc == said["crc"]


class Storm:
    """Comings and goings beside the publishers, until the time is up."""

    def __init__(self, server: Server, address: str, on_lag: OnLag) -> None:
        self.server = server
        self.address = address
        self.on_lag = on_lag
        self.random = random.Random(on_lag)
        self.readers: list[Reader] = []
        self.stopped: list[RawClient] = []
        self.spared = 0
        """The key of a client that nobody disconnects."""

    def read(self, take: Take, **more: Any) -> None:
        self.readers.append(Reader(self.server, self.address, take, **more))

    def go_on(self, duration: float) -> None:
        deadline = time.monotonic() + duration
        takes: list[Take] = [take_batches, take_views, take_singly]
        pause = threading.Event()
        while time.monotonic() < deadline:
            self._one_event(takes)
            pause.wait(0.01)

    def _one_event(self, takes: list[Take]) -> None:
        chance = self.random.random()
        delivery = "shared" if self.random.random() < 0.7 else "classic"
        if chance < 0.4:
            start = self.random.choice(["now", "oldest"])
            enough = self.random.randrange(1, 2000)
            self.read(self.random.choice(takes), enough=enough, delivery=delivery, start=start)
        elif chance < 0.6 and self.on_lag != "block":
            self.stopped.append(RawClient(self.address))
        elif chance < 0.7 and self.stopped:
            self.stopped.pop().close()
        elif chance < 0.75:
            clients = [info for info in self.server.clients() if info.key != self.spared]
            if clients:
                self.server.disconnect(self.random.choice(clients))
        elif chance < 0.85:
            with RawClient(self.address) as raw, suppress(BrokenPipeError):  # cut by then
                raw.ack((1 << 64) - 1)


@pytest.mark.parametrize("on_lag", ["disconnect", "block", "skip"])
def test_every_ledger_agrees_with_what_was_published(address: str, on_lag: OnLag) -> None:
    ends: list[EndReason] = []
    with ExitStack() as stack:
        server = stack.enter_context(
            Server(
                address,
                max_lag=400,
                on_lag=on_lag,
                log_size=1 << 20,
                on_disconnect=lambda _, reason: ends.append(reason),
            )
        )
        storm = Storm(server, address, on_lag)
        children = [stack.enter_context(Child(address, each)) for each in ("shared", "classic")]
        for delivery in ("shared", "classic"):
            for take in (take_batches, take_views, take_singly, take_slowly):
                storm.read(take, delivery=delivery)
        server.wait_for_clients(len(children) + len(storm.readers), DEADLINE)
        storm.spared = sorted(info.key for info in server.clients())[len(children)]
        with Child(address, "shared") as victim:
            publishers = [Publisher(server, number) for number in range(PUBLISHERS)]
            storm.go_on(DURATION)
            victim.process.send_signal(signal.SIGSTOP)
            storm.go_on(DURATION / 10)
        storm.go_on(DURATION / 10)
        # The publishers are still at it.
        wait_until(lambda: all(each.thread.is_alive() for each in publishers))
        server.close()
        for publisher in publishers:
            publisher.thread.join(DEADLINE)
        for reader in storm.readers:
            reader.thread.join(DEADLINE)
        for raw in storm.stopped:
            raw.close()
        for child in children:
            child.finish()
    assert [publisher.error for publisher in publishers] == [None] * PUBLISHERS
    ledger = {
        packet_id: message
        for publisher in publishers
        for packet_id, message in zip(publisher.ids, publisher.messages, strict=True)
    }
    assert len(ledger) == sum(len(publisher.ids) for publisher in publishers) > 1000
    for publisher in publishers:
        assert publisher.ids == sorted(publisher.ids)
    last_id = max(
        *ledger,
        *(entry[0] for reader in storm.readers for entry in reader.entries[-1:]),
        *(reader.first_due - 1 for reader in storm.readers),
    )
    assert min(ledger) == FIRST_ID
    # Nothing is missing among the ids but what the close cut off.
    assert last_id - FIRST_ID + 1 - len(ledger) <= PUBLISHERS * 100
    for reader in storm.readers:
        reader.check(ledger, last_id)
    for child in children:
        child.check(ledger)
    seen = set(ends)
    assert EndReason.LEFT in seen
    assert EndReason.PROTOCOL in seen
    if on_lag == "disconnect":
        assert EndReason.LAGGED in seen
    else:
        assert EndReason.LAGGED not in seen
    if on_lag == "block":
        assert isinstance(storm.readers[0].end, ServerClosed)


def test_publishers_and_clients_that_only_hurry_agree_too(address: str) -> None:
    count = 100
    with Server(address, max_lag=64, on_lag="block", log_size=1 << 16) as server:
        readers = [
            Reader(server, address, take, delivery=delivery)
            for take in (take_batches, take_views, take_singly)
            for delivery in ("shared", "classic")
        ]
        ledger: dict[int, bytes] = {}
        lock = threading.Lock()

        def publish(number: int) -> None:
            for start in range(0, 20 * count, 20):
                batch = [b"%d %d " % (number, index) for index in range(start, start + 20)]
                ids = server.publish_many(batch, timeout=DEADLINE)
                with lock:
                    ledger.update(zip(ids, batch, strict=True))

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * DEADLINE)
        server.drain(DEADLINE)
        server.close()
        for reader in readers:
            reader.thread.join(DEADLINE)
    assert sorted(ledger) == list(range(FIRST_ID, FIRST_ID + 3 * 20 * count))
    for reader in readers:
        reader.check(ledger, FIRST_ID + 3 * 20 * count - 1)
        assert len(reader.entries) == 3 * 20 * count
