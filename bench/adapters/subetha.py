# SPDX-License-Identifier: Apache-2.0
"""subetha-ipc: a broadcast ring in shared memory, of messages of 52 bytes at most.

A full ring refuses a message, and an empty one gives none: neither waits, so both ends ask again.
A subscriber that is killed stops the publisher for good.
"""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import subetha

from bench.work import Work

from . import CONNECT, SILENCE, OneByOne, in_chunks

CAPACITY = 1 << 16
"""Messages in the ring: 4 MiB."""

LOOKS = 1000
"""Looks at an empty ring before a subscriber sleeps for a moment."""


class Publisher(OneByOne):
    def __init__(self, path: str) -> None:
        self._ring = subetha.BroadcastRing(path, CAPACITY)
        self.send = self._send

    def _send(self, message: bytes) -> None:
        push = self._ring.push
        while not push(message):
            os.sched_yield()

    def send_each(self, messages: Sequence[bytes]) -> None:
        push = self._ring.push
        for message in messages:
            while not push(message):
                os.sched_yield()

    def ready(self, clients: int) -> None:
        self._ring.wait_for_consumers(clients, CONNECT)

    def close(self) -> None:
        return


class Subscriber:
    def __init__(self, path: str, work: Work) -> None:
        self._work = work
        self._ring = subetha.BroadcastRing.open(path, CAPACITY)
        self._number = self._ring.register_consumer()

    def messages(self) -> Iterator[bytes]:
        receive, number = self._ring.recv, self._number
        while (message := receive(number) or self._wait()) is not None:
            yield message

    def _wait(self) -> bytes | None:
        deadline = time.monotonic() + SILENCE
        while time.monotonic() < deadline:
            for _ in range(LOOKS):
                message = self._ring.recv(self._number)
                if message is not None:
                    return message
                os.sched_yield()
            time.sleep(50e-6)
        return None

    def batches(self) -> Iterator[Sequence[bytes]]:
        return in_chunks(self.messages(), self._work)

    def close(self) -> None:
        self._ring.unregister_consumer(self._number)


def publisher(path: str, work: Work, **_: Any) -> Publisher:  # noqa: ARG001
    return Publisher(path)


def subscriber(path: str, work: Work, **_: Any) -> Subscriber:
    return Subscriber(path, work)
