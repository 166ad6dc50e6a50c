# SPDX-License-Identifier: Apache-2.0
"""One end of one run, in a process of its own; harness.py starts it and reads what it prints.

    python -m bench.worker publisher|subscriber ADAPTER PATH WORK

WORK is a `Work` as JSON. A publisher prints "listening", waits for a line, publishes it all, prints
its figures as JSON, and stays until its input is closed. A subscriber prints "connected", and its
figures once it has got as many messages as were published, or the rest is lost.
"""

import gc
import json
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from . import adapters

CYCLE = 1024
"""Different messages; a run publishes them over and over. Each batch is one cycle."""

Figures: TypeAlias = dict[str, float | list[float]]


@dataclass(frozen=True)
class Work:
    """What one run has to do.

    Args:
        messages: how many to publish; a multiple of `CYCLE` unless paced.
        size: of each, bytes; at least 16.
        clients: subscribers.
        batched: in batches, or one `publish` a message and one message an iteration.
        pace: messages a second, for latency; 0 publishes as fast as it goes.
    """

    messages: int
    size: int = 64
    clients: int = 1
    batched: bool = True
    pace: int = 0


def cycle_of(size: int) -> list[bytes]:
    """The messages: a number first, and bytes that differ from message to message."""
    filler = bytes(range(256)) * (size // 256 + 2)
    return [
        index.to_bytes(8, "little") + filler[index % 256 : index % 256 + size - 8]
        for index in range(CYCLE)
    ]


class Checker:
    """Count messages and compare each byte of them with what was published."""

    def __init__(self, size: int) -> None:
        self._cycle = cycle_of(size)
        self._size = size
        self._twice = b"".join(self._cycle) * 2
        self.count = 0
        self.wrong = 0
        self._next = 0

    def take(self, messages: Sequence[bytes]) -> None:
        for begin in range(0, len(messages), CYCLE):
            part = messages if len(messages) <= CYCLE else messages[begin : begin + CYCLE]
            if self._twice.startswith(b"".join(part), self._next * self._size):
                self._next = (self._next + len(part)) % CYCLE
            else:
                self._look_closer(part)
            self.count += len(part)

    def _look_closer(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            index = int.from_bytes(message[:8], "little")
            if index >= CYCLE or message != self._cycle[index]:
                self.wrong += 1
            self._next = (index + 1) % CYCLE


# ---- the publishing end ----


def publish_batches(publisher: adapters.Publisher, work: Work) -> None:
    cycle, send_many = cycle_of(work.size), publisher.send_many
    for _ in range(work.messages // CYCLE):
        send_many(cycle)


def publish_singly(publisher: adapters.Publisher, work: Work) -> None:
    cycle, send = cycle_of(work.size), publisher.send
    for _ in range(work.messages // CYCLE):
        for message in cycle:
            send(message)


def publish_paced(publisher: adapters.Publisher, work: Work) -> None:
    """Each message tells when it was sent. Deadlines are absolute, so delays do not add up."""
    send, stamp = publisher.send, struct.Struct("<QQ")
    filler, begin = bytes(work.size - stamp.size), time.monotonic_ns()
    for number in range(work.messages):
        left = begin + number * 1_000_000_000 // work.pace - time.monotonic_ns()
        if left > 0:
            time.sleep(left / 1e9)
        send(stamp.pack(time.monotonic_ns(), number) + filler)


def publisher_end(adapter: adapters.Adapter, path: str, work: Work) -> Figures:
    publisher = adapter.publisher(path)
    print("listening", flush=True)
    sys.stdin.readline()
    publisher.ready(work.clients)
    gc.disable()
    publish = publish_paced if work.pace else publish_batches if work.batched else publish_singly
    cpu, begin = time.process_time(), time.monotonic_ns()
    publish(publisher, work)
    figures: Figures = {"begin": begin}
    print(json.dumps(figures), flush=True)
    sys.stdin.read()
    # Read after the last message was delivered: threads of the publisher may have sent it.
    figures["cpu"] = time.process_time() - cpu
    publisher.close()
    return figures


# ---- the receiving end ----


def take_batches(batches: Iterator[Sequence[bytes]], checker: Checker, work: Work) -> None:
    for batch in batches:
        checker.take(batch)
        if checker.count >= work.messages:
            return


def take_singly(messages: Iterator[bytes], checker: Checker, work: Work) -> None:
    while checker.count < work.messages:
        taken: list[bytes] = []
        keep = taken.append
        for message in islice(messages, CYCLE):
            keep(message)
        if not taken:
            return
        checker.take(taken)


def receive_all(subscriber: adapters.Subscriber, work: Work) -> Figures:
    checker = Checker(work.size)
    gc.disable()
    cpu = time.process_time()
    if work.batched:
        take_batches(subscriber.batches(), checker, work)
    else:
        take_singly(subscriber.messages(), checker, work)
    end = time.monotonic_ns()
    cpu = time.process_time() - cpu
    return {"count": checker.count, "wrong": checker.wrong, "end": end, "cpu": cpu}


def receive_paced(subscriber: adapters.Subscriber, work: Work) -> Figures:
    stamp, now = struct.Struct("<QQ").unpack_from, time.monotonic_ns
    samples: list[float] = []
    wrong, due = 0, 0
    gc.disable()
    for message in subscriber.messages():
        arrived = now()
        sent, number = stamp(message)
        samples.append((arrived - sent) / 1000)
        wrong += number < due
        due = number + 1
        if due == work.messages:
            break
    count = len(samples)
    samples = sorted(samples[len(samples) // 20 :])  # the first ones find cold caches
    figures: Figures = {"count": count, "wrong": wrong, "end": now(), "cpu": 0.0}
    for name, part in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        figures[name] = samples[min(len(samples) - 1, int(len(samples) * part))] if samples else 0.0
    return figures


def subscriber_end(adapter: adapters.Adapter, path: str, work: Work) -> Figures:
    subscriber = adapter.subscriber(path, work.size)
    print("connected", flush=True)
    figures = receive_paced(subscriber, work) if work.pace else receive_all(subscriber, work)
    subscriber.close()
    return figures


def main() -> None:
    role, name, path, work = sys.argv[1:]
    end = {"publisher": publisher_end, "subscriber": subscriber_end}[role]
    print(json.dumps(end(adapters.load(name), path, Work(**json.loads(work)))), flush=True)


if __name__ == "__main__":
    main()
