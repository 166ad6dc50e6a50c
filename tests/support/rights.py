# SPDX-License-Identifier: Apache-2.0
"""Descriptors that a test sends, and whether anybody holds them."""

import array
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def send_descriptor(sock: socket.socket, data: bytes, descriptor: int) -> bool:
    """Send a descriptor with a packet; False if the kernel refuses it, and so the packet too."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
    try:
        sock.sendmsg([data], [rights])
    except PermissionError:
        return False
    return True


def is_held(reading: int) -> bool:
    """Whether anybody still has the writing end of a pipe."""
    with suppress(BlockingIOError):
        return os.read(reading, 1) != b""
    return True


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield reading, writing
    finally:
        os.close(reading)
