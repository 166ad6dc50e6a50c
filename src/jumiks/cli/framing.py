# SPDX-License-Identifier: Apache-2.0
"""Messages in a stream of bytes, many at a time: lines, or with a NUL behind or a length before."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

__all__ = ["LENGTH", "read_messages", "write_messages"]

LENGTH: Final = "length"
"""The framing with a u32, little-endian, before each message."""

CHUNK: Final = 1 << 18
"""Bytes to read at a time: large enough to be cheap, small enough to be in the cache yet."""

_PREFIX: Final = struct.Struct("<I")


def read_messages(descriptor: int, framing: bytes | str, largest: int) -> Iterator[list[bytes]]:
    """Read a stream to its end; yields what has come, many messages at a time.

    Args:
        descriptor: where to read.
        framing: the byte behind each message, or `LENGTH`. The last one needs none behind it.
        largest: the largest message, bytes.

    Raises:
        ValueError: a message is larger, or the stream ends inside one that has a length.
    """
    split = _by_length if isinstance(framing, str) else _by_end(framing)
    rest = b""
    while chunk := os.read(descriptor, CHUNK):
        messages, rest = split(rest + chunk if rest else chunk)
        if len(rest) > largest + _PREFIX.size:  # the whole ones are for the server to judge
            raise ValueError(f"a message is larger than the server takes, {largest} bytes")
        if messages:
            yield messages
    if not rest:
        return
    if isinstance(framing, str):
        raise ValueError("the input ends inside a message")
    yield [rest]


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


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes, all of them, also where somebody made the descriptor non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
