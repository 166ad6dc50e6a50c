# SPDX-License-Identifier: Apache-2.0
"""Connecting a client to a server's address (unix(7))."""

import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Final

from .. import errors
from .._green import new_socket
from ..errors import Timeout
from . import rights
from .address import Address, no_folder

__all__: list[str] = []

_FIRST_WAIT: Final = 0.001

_LONGEST_WAIT: Final = 0.05


def make_socket(*, takes_descriptors: bool = False) -> socket.socket:
    sock = new_socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    if not takes_descriptors:
        rights.refuse(sock)
    return sock


def connecting(
    where: Address, timeout: float | None, *, takes_descriptors: bool = False
) -> Generator[tuple[socket.socket | None, float], None, None]:
    """Connect to a server's address, and leave the waiting to the caller.

    Args:
        where: what `parse_client_address` returned for "@name" or a path.
        timeout: seconds to wait for a place in the server's backlog; None is no limit.
        takes_descriptors: whether the server may send some; else the kernel refuses them if it can.

    Yields:
        The connected socket, which is non-blocking and close-on-exec; or None, and how many seconds
        to wait before going on.

    Raises:
        ConnectionRefusedError: no server listens there.
        FileNotFoundError: there is no such path.
        Timeout: the server's backlog stayed full.
        OSError: the system refuses, for the reason given; EPROTOTYPE if a socket of another type
            listens there.
    """
    sock = make_socket(takes_descriptors=takes_descriptors)
    try:
        for wait in _pauses(None if timeout is None else time.monotonic() + timeout):
            try:
                _try_connect(sock, where)
                break
            except BlockingIOError:
                yield None, wait
        else:
            raise Timeout(errors.NO_PLACE.format(address=where.text, timeout=timeout))
    except BaseException:
        sock.close()
        raise
    yield sock, 0.0


def _try_connect(sock: socket.socket, where: Address) -> None:
    try:
        sock.connect(where.sockaddr)
    except BlockingIOError:
        raise  # its backlog is full
    except OSError as error:
        # In a variable of this frame it would keep the frame, and what that has, for the collector.
        raise _explain_connect(error, where) from None


def _explain_connect(error: OSError, where: Address) -> OSError:
    # The same error if there is no more to say.
    if error.errno == errno.ECONNREFUSED:
        return _why_refused(where)
    texts = {
        errno.ENOENT: _what_is_missing(where) + ": start the server first, or check the path",
        errno.ENOTDIR: "a part of this path is not a directory: check the path",
        errno.EACCES: "this user may not connect: it takes write permission on the socket file, "
        "and search permission on its directories",
        errno.EPROTOTYPE: "a socket of another type listens here, so it is no jumiks server, "
        "which is SOCK_SEQPACKET: check the address",
    }
    if error.errno not in texts:
        return error
    return OSError(error.errno, texts[error.errno], where.text)


def _what_is_missing(where: Address) -> str:
    folder = os.path.dirname(where.text) or "."
    if os.path.isdir(folder):
        return "there is no socket at this path"
    return no_folder(folder)


def _why_refused(where: Address) -> ConnectionRefusedError:
    words = "no server listens on this socket file: its server is gone, so start it again"
    if where.abstract:
        words = "no server listens at this address: start it first, or check the address"
    else:
        with suppress(OSError):
            mode = os.stat(where.text).st_mode
            if not stat.S_ISSOCK(mode):
                what = f"this is {kind_of_file(mode)}, no socket: check the path"
                return ConnectionRefusedError(errno.ENOTSOCK, what, where.text)
    return ConnectionRefusedError(errno.ECONNREFUSED, words, where.text)


def kind_of_file(mode: int) -> str:
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISREG, "a file"),
    )
    return next((name for test, name in kinds if test(mode)), "something that is no socket")


def waits(deadline: float | None) -> Iterator[None]:
    """Yield for one try after another, with growing waits between them, until the deadline."""
    for wait in _pauses(deadline):
        yield
        time.sleep(wait)


def _pauses(deadline: float | None) -> Iterator[float]:
    """Yield how long to wait after each try; the last try is at the deadline."""
    wait = _FIRST_WAIT
    while True:
        left = wait if deadline is None else deadline - time.monotonic()
        yield max(0.0, min(wait, left))
        if left <= 0:
            return
        wait = min(wait * 2, _LONGEST_WAIT)
