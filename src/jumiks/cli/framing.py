# SPDX-License-Identifier: Apache-2.0
"""Messages in a stream of bytes: lines, or with a NUL behind each or a length before each."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, Literal, TypeAlias

__all__ = ["LENGTH", "read_messages", "write_messages"]

LENGTH: Final = "length"
"""The framing with a u32, little-endian, before each message."""

CHUNK: Final = 1 << 18
"""Bytes to read at a time: large enough to be cheap, small enough to stay in the cache."""

LOOK: Final = 1.0
"""Seconds after which a wait for input looks whether a signal has come."""

TooLong: TypeAlias = Literal["fail", "skip", "cut"]
"""What becomes of a message that is too large."""

_PREFIX: Final = struct.Struct("<I")


def read_messages(
    descriptor: int,
    framing: bytes | str,
    largest: int,
    too_long: TooLong = "fail",
    tell: Callable[[str], object] = str,
) -> Iterator[list[bytes]]:
    """Read a stream to its end; yield its messages, many at a time.

    Args:
        descriptor: where to read.
        framing: the byte behind each message, or `LENGTH`. The last one needs none behind it.
        largest: the largest message, bytes.
        too_long: what becomes of a message that is larger: the end of all, no message, or its first
            `largest` bytes.
        tell: called with a line for each that is skipped or cut.

    Raises:
        ValueError: a message is larger and `too_long` is "fail", or the stream ends inside one that
            has a length. All messages before it were yielded.
    """
    messages = (_Lengths if isinstance(framing, str) else _Ends)(framing, largest, too_long, tell)
    while chunk := _read(descriptor):
        problem = None
        try:
            messages.feed(chunk)
        except ValueError as error:
            problem = error
        if messages.done:
            yield messages.done
            messages.done = []
        if problem is not None:
            raise problem
    messages.end()
    if messages.done:
        yield messages.done


class _Messages:
    """What was read: messages that are done, and one whose end has not come.

    Each byte is copied and looked through once, however long a message is, and no more than
    `largest` bytes of one are kept.
    """

    def __init__(
        self,
        framing: bytes | str,
        largest: int,
        too_long: TooLong,
        tell: Callable[[str], object],
    ) -> None:
        self._framing = framing
        self._largest = largest
        self._too_long = too_long
        self._tell = tell
        self.done: list[bytes] = []
        self._count = 0
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        raise NotImplementedError

    def end(self) -> None:
        if self._size:
            self._finish()

    def _add(self, part: bytes) -> None:
        room = self._largest - self._size
        self._size += len(part)
        if self._size > self._largest:
            self._check(self._size)
        if room > 0 and part:
            self._parts.append(part[:room])

    def _check(self, size: int) -> None:
        if self._too_long == "fail":
            raise ValueError(_too_large(self._count + 1, size, self._framing, self._largest))

    def _finish(self) -> None:
        self._count += 1
        parts, size, self._parts, self._size = self._parts, self._size, [], 0
        if size > self._largest:
            what = "message" if isinstance(self._framing, str) or self._framing == b"\0" else "line"
            done = "skipped" if self._too_long == "skip" else "cut"
            self._tell(
                f"{what} {self._count} is {done}: it has {size} bytes, and the largest message "
                f"{self._largest}"
            )
            if self._too_long == "skip":
                return
        self.done.append(b"".join(parts))


class _Ends(_Messages):
    """Messages with a byte behind each."""

    def feed(self, chunk: bytes) -> None:
        assert isinstance(self._framing, bytes)
        first, *rest = chunk.split(self._framing)
        self._add(first)
        if not rest:
            return
        self._finish()
        last = rest.pop()
        if rest and max(map(len, rest)) > self._largest:
            for each in rest:
                self._add(each)
                self._finish()
        else:
            self.done += rest
            self._count += len(rest)
        self._add(last)


class _Lengths(_Messages):
    """Messages with a length before each."""

    _prefix = b""
    """As much of a length as has come."""
    _wanted = -1
    """The length of the message; -1 while that has not come."""

    def feed(self, chunk: bytes) -> None:
        data, at = self._prefix + chunk, 0
        while self._wanted >= 0 or at + _PREFIX.size <= len(data):
            if self._wanted < 0:
                (self._wanted,) = _PREFIX.unpack_from(data, at)
                at += _PREFIX.size
                if self._wanted > self._largest:
                    self._check(self._wanted)
            part = data[at : at + self._wanted - self._size]
            at += len(part)
            self._add(part)
            if self._size < self._wanted:
                break
            self._finish()
            self._wanted = -1
        self._prefix = data[at:]

    def end(self) -> None:
        have = self._size + len(self._prefix) + (_PREFIX.size if self._wanted >= 0 else 0)
        if have:
            raise ValueError(
                f"the input ends inside message {self._count + 1}, of which {have} bytes came, its "
                "length included: leave out --length-prefixed if no length stands before each "
                "message"
            )


def _read(descriptor: int) -> bytes:
    """Read what is there, and wait for it even if another process made it non-blocking."""
    while True:
        # Not in the read: a signal that comes just before a system call does not end it.
        if select.select([descriptor], [], [], LOOK)[0]:
            with suppress(BlockingIOError):
                return os.read(descriptor, CHUNK)


def _too_large(number: int, size: int, framing: bytes | str, largest: int) -> str:
    if isinstance(framing, str):
        what = f"message {number} has a length of {size} bytes, and"
        or_else = "leave out --length-prefixed if no length stands before each message"
    elif framing == b"\0":
        what = f"message {number}"
        or_else = "leave out --null if newlines end the messages"
    else:
        what = f"line {number}"
        or_else = "--null or --length-prefixed if newlines do not end the messages"
    return (
        f"{what} is larger than the largest message, {largest} bytes: "
        f"give --max-message a larger size, say --too-long skip or cut, or {or_else}"
    )


def write_messages(descriptor: int, framing: bytes | str, messages: Sequence[bytes]) -> None:
    """Write messages, all of them.

    Args:
        descriptor: where to.
        framing: as for `read_messages`.
        messages: one at least.
    """
    if isinstance(framing, str):
        data = b"".join(part for each in messages for part in (_PREFIX.pack(len(each)), each))
    else:
        data = framing.join(messages) + framing
    write_all(descriptor, data)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes, even if another process made the descriptor non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
