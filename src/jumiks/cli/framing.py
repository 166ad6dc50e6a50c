# SPDX-License-Identifier: Apache-2.0
"""Messages in a stream of bytes: lines, or with a NUL behind each or a length before each."""

from __future__ import annotations

import itertools
import os
import select
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

__all__ = ["LENGTH", "read_messages", "write_messages"]

LENGTH: Final = "length"
"""The framing with a u32, little-endian, before each message."""

CHUNK: Final = 1 << 18
"""Bytes to read at a time: large enough to be cheap, small enough to stay in the cache."""

_PREFIX: Final = struct.Struct("<I")


def read_messages(descriptor: int, framing: bytes | str, largest: int) -> Iterator[list[bytes]]:
    """Read a stream to its end; yield its messages, many at a time.

    Args:
        descriptor: where to read.
        framing: the byte behind each message, or `LENGTH`. The last one needs none behind it.
        largest: the largest message, bytes.

    Raises:
        ValueError: a message is larger, or the stream ends inside one that has a length. All
            messages before it were yielded.
    """
    split = _by_length if isinstance(framing, str) else _by_end(framing)
    parts: list[bytes] = []  # the message whose end has not come
    have = wanted = count = 0
    while chunk := _read(descriptor):
        parts.append(chunk)
        have += len(chunk)
        # Each part is joined and looked through once, however long a message is.
        whole = have >= wanted if isinstance(framing, str) else framing in chunk
        if not whole and have <= largest:
            continue
        messages, rest = split(b"".join(parts))
        fit = messages
        if have > largest:  # else all of them do
            fit = list(itertools.takewhile(lambda each: len(each) <= largest, messages))
        if fit:
            yield fit
        count += len(fit)
        size = len(messages[len(fit)]) if len(fit) < len(messages) else _begun(rest, framing)
        if size > largest:
            raise ValueError(_too_large(count + 1, size, framing, largest))
        parts, have, wanted = [rest], len(rest), _PREFIX.size + size
    if not have:
        return
    if isinstance(framing, str):
        raise ValueError(
            f"the input ends inside message {count + 1}, after {have} bytes of it and its "
            "length: leave out --length-prefixed if no length stands before each message"
        )
    yield [b"".join(parts)]


def _read(descriptor: int) -> bytes:
    """Read what is there, and wait for it even if another process made it non-blocking."""
    while True:
        try:
            return os.read(descriptor, CHUNK)
        except BlockingIOError:
            select.select([descriptor], [], [])


def _begun(rest: bytes, framing: bytes | str) -> int:
    """Return the size of the incomplete message, as far as it is known."""
    if not isinstance(framing, str):
        return len(rest)
    return int.from_bytes(rest[: _PREFIX.size], "little") if len(rest) >= _PREFIX.size else 0


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
        f"give --max-message a larger size, or {or_else}"
    )


def _by_end(end: bytes) -> Callable[[bytes], tuple[list[bytes], bytes]]:
    def split(data: bytes) -> tuple[list[bytes], bytes]:
        messages = data.split(end)
        return messages, messages.pop()

    return split


def _by_length(data: bytes) -> tuple[list[bytes], bytes]:
    messages, at = [], 0
    while at + _PREFIX.size <= len(data):
        (size,) = _PREFIX.unpack_from(data, at)
        end = at + _PREFIX.size + size
        if end > len(data):
            break
        messages.append(data[at + _PREFIX.size : end])
        at = end
    return messages, data[at:]


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
