# SPDX-License-Identifier: Apache-2.0
"""What a run has to do, what it publishes, and how a subscriber checks it."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_IN_CYCLE = 1024
CYCLE_BYTES = 4 << 20
"""A run publishes a few different messages over and over: that many, or of so many bytes."""

WHOLE = 4096
"""Bytes up to which each message is compared with what was published as a whole."""

QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9)
QUANTILE_NAMES = tuple(f"p{part:g}" for part in QUANTILES)

MARK = (1 << 64) - 1
"""In place of a message's number: the last cycle, whose messages tell how many were published."""


@dataclass(frozen=True)
class Work:
    """What one run has to do.

    Args:
        size: of each message, bytes; at least 16.
        clients: subscribers.
        batched: in batches, or one `publish` a message and one message an iteration.
        seconds: to publish for, as fast as it goes, in whole cycles.
        messages: how many to publish instead; 0 goes by `seconds`.
        latency: each message tells when it was sent. Takes `messages`.
        pace: messages per second, for latency; 0 sends as fast as it goes.
    """

    size: int = 64
    clients: int = 1
    batched: bool = True
    seconds: float = 0.4
    messages: int = 0
    latency: bool = False
    pace: float = 0.0

    @property
    def name(self) -> str:
        """As it stands in tables."""
        words = [size_name(self.size), f"{self.clients} client{'s' * (self.clients > 1)}"]
        if not self.latency:
            words.append("batched" if self.batched else "one by one")
        elif self.pace:
            words.append(f"{self.pace / 1000:g} kHz")
        return ", ".join(words)


def size_name(size: int) -> str:
    for unit, name in ((1 << 20, "MB"), (1 << 10, "KB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def cycle_length(size: int) -> int:
    """How many different messages of that size there are."""
    return max(8, min(MOST_IN_CYCLE, CYCLE_BYTES // size))


def cycle_of(size: int) -> list[bytes]:
    """The messages: a number first, and bytes that differ from message to message."""
    filler = bytes(range(256)) * (size // 256 + 2)
    return [
        index.to_bytes(8, "little") + filler[index % 256 : index % 256 + size - 8]
        for index in range(cycle_length(size))
    ]


def last_cycle(size: int, before: int) -> list[bytes]:
    """As many messages that tell how many were published, themselves included."""
    count = cycle_length(size)
    return [struct.pack("<QQ", MARK, before + count) + bytes(size - 16)] * count


@dataclass(frozen=True)
class AtOnce:
    """Messages of one size that were received at once, and not made into objects.

    Args:
        numbers: of all, an array of numpy.
        message: makes one into bytes, by its place.
    """

    numbers: Any
    message: Callable[[int], bytes]


class Checker:
    """Count messages and compare them with what was published.

    Short ones are compared byte by byte; of long ones the length, the number and the last bytes
    (comparing all would cost more than receiving). Of those that came at once the numbers are, as
    the C program does.
    """

    def __init__(self, size: int) -> None:
        self._cycle = cycle_of(size)
        self._size = size
        self._twice = b"".join(self._cycle) * 2 if size <= WHOLE else b""
        self._ends = [(message[:8], message[-8:]) for message in self._cycle]
        self.count = 0
        self.wrong = 0
        self.total = 0
        self._next = 0
        self._due: Any = ()  # the numbers of some cycles

    @property
    def done(self) -> bool:
        return 0 < self.total <= self.count

    def take(self, messages: Sequence[bytes] | AtOnce) -> None:
        if isinstance(messages, AtOnce):
            self._compare_numbers(messages)
            return
        if not self._twice:
            self._compare_ends(messages)
            return
        most = len(self._cycle)
        for begin in range(0, len(messages), most):
            part = messages if len(messages) <= most else messages[begin : begin + most]
            if self._twice.startswith(b"".join(part), self._next * self._size):
                self._next = (self._next + len(part)) % most
            else:
                for message in part:
                    self._look_closer(message)
            self.count += len(part)

    def _compare_numbers(self, batch: AtOnce) -> None:
        import numpy as np

        count, most = len(batch.numbers), len(self._cycle)
        if len(self._due) < most + count:
            self._due = np.resize(np.arange(most, dtype="<u8"), most + count)
        if np.array_equal(batch.numbers, self._due[self._next : self._next + count]):
            self._next = (self._next + count) % most
        else:
            for place in range(count):
                self._look_closer(batch.message(place))
        self.count += count

    def _compare_ends(self, messages: Sequence[bytes]) -> None:
        size, ends = self._size, self._ends
        for message in messages:
            head, tail = ends[self._next]
            if message[:8] == head and message[-8:] == tail and len(message) == size:
                self._next = (self._next + 1) % len(ends)
            else:
                self._look_closer(message)
        self.count += len(messages)

    def _look_closer(self, message: bytes) -> None:
        index = int.from_bytes(message[:8], "little")
        if index == MARK and len(message) == self._size:
            self.total = int.from_bytes(message[8:16], "little")
        elif index >= len(self._cycle) or message != self._cycle[index]:
            self.wrong += 1
        else:
            self._next = (index + 1) % len(self._cycle)
