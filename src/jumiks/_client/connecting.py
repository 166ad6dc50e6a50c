# SPDX-License-Identifier: Apache-2.0
"""Connecting and shaking hands, for whoever waits: a thread, an event loop.

What takes time is a generator of waits. Each is a descriptor, and how many seconds to wait at most
until it is readable; or -1, and how many seconds to wait.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from math import inf
from typing import Final, TypeAlias, TypeVar

from .. import errors
from .._green import until_readable
from .._wire import rights
from .._wire.address import Address
from .._wire.connect import connecting
from .._wire.handshake import Capability, ClientHandshake
from ..errors import ConnectionLost, ProtocolError, Refused, Timeout

__all__: list[str] = []

Wait: TypeAlias = tuple[int, float]

LONG_PACKET: Final = 4096
"""Bytes that hold any packet of a handshake."""

_CREDENTIALS: Final = struct.Struct("3i")
_CLOSING_PAUSE: Final = 0.01
_WITHOUT_LIMIT: Final = 60.0
"""Seconds: a wait without a limit is as many of these as it takes."""

SCM_PIDFD: Final = 4
"""The socket module has no name for it (Linux 6.5)."""

_T = TypeVar("_T")


class CannotShareError(Exception):
    """This system does not let us map what the server shares."""


class FeedBehind(Refused):
    """The server's feed has not come yet to where this client goes on."""


_Answer: TypeAlias = "tuple[bytes, list[tuple[int, int, bytes]], int, object]"
"""What recvmsg returns."""


class Received(list[_Answer]):
    """Packets that may have come with descriptors. They are in here before any bytecode follows."""

    def take(self, sock: socket.socket, size: int, room: int, flags: int) -> _Answer:
        """Receive a packet, which stays in the socket or not as `flags` say."""
        self.extend(map(sock.recvmsg, (size,), (room,), (flags,)))
        return self[-1]

    def descriptors(self, kind: int = socket.SCM_RIGHTS) -> list[int]:
        """All that came: those of the server, or the kernel's for its process (`SCM_PIDFD`)."""
        found = array.array("i")
        for _, notes, _, _ in self:
            for level, each, data in notes:
                if (level, each) == (socket.SOL_SOCKET, kind):
                    found.frombytes(data[: len(data) - len(data) % found.itemsize])
        return [descriptor for descriptor in found if descriptor >= 0]

    def all(self) -> list[int]:
        """All that has to be closed."""
        return self.descriptors() + self.descriptors(SCM_PIDFD)


@contextmanager
def descriptors_received() -> Iterator[Received]:
    """What keeps the descriptors that come with a welcome; they are closed at the end."""
    received = Received()
    try:
        yield received
        ours = received.all()
        # With no bytecode in between: a signal finds all of them here, or none.
        deque(chain(map(os.close, ours), map(list.clear, (received,))), 0)
    except BaseException:
        rights.dispose(received.all())  # they may be anything
        raise


def wait_for(wait: Wait, wake: int = -1) -> None:
    """Wait, in this thread, or until `wake` is readable."""
    descriptors = [descriptor for descriptor in (wait[0], wake) if descriptor >= 0]
    until_readable(descriptors, min(wait[1], _WITHOUT_LIMIT))


def in_thread(steps: Generator[Wait, None, _T]) -> _T:
    """Go through the steps, waiting in this thread."""
    while True:
        try:
            wait = next(steps)
        except StopIteration as done:
            result: _T = done.value
            return result
        try:
            wait_for(wait)
        except BaseException:
            steps.close()
            raise


class Connecting:
    """The part of a client that connects and shakes hands."""

    _address: str
    _server_pid: int = 0
    """The process that sent the welcome, as the kernel says; 0 is unknown."""
    _guarded: bool = False
    """Whether descriptors may come to the socket: see `rights`."""
    _server_pidfd: int = -1
    """A descriptor for that process, as long as the handshake takes; -1 if none came."""
    _asks_for_process: bool = False
    """Whether the kernel shall send a descriptor for the server's process with the welcome."""

    def _connect(
        self,
        where: Address,
        handshake: ClientHandshake,
        timeout: float | None,
        received: Received,
    ) -> Generator[Wait, None, socket.socket]:
        deadline = inf if timeout is None else time.monotonic() + timeout
        self._server_pid, self._server_pidfd = 0, -1  # that of a server before is no more
        rights.check_crowd()
        asks = Capability.LOG in handshake.wishes
        sock: socket.socket | None = None
        while sock is None:
            closing = rights.closing()  # the one before, perhaps, by another thread
            try:
                for sock, pause in connecting(where, timeout, takes_descriptors=asks):
                    if sock is None:
                        yield -1, pause
            except OSError as error:
                if not closing or error.errno != errno.EMFILE or time.monotonic() > deadline:
                    raise
                yield -1, _CLOSING_PAUSE
        self._guarded = rights.may_come(sock)
        with self._shaking_hands(sock, handshake, timeout):
            while not handshake.done:
                try:
                    self._shake(sock, handshake, received)
                except BlockingIOError:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise
                    yield sock.fileno(), left
        return sock

    def _shake(self, sock: socket.socket, handshake: ClientHandshake, received: Received) -> None:
        # Take one packet of the handshake, and answer it.
        if handshake.hello is None:
            if self._guarded and rights.come_next(sock):
                raise ProtocolError(errors.BROKEN_HANDSHAKE.format(fault=errors.UNINVITED))
            packet = sock.recv(LONG_PACKET)
        else:
            packet = self._receive_welcome(sock, handshake, received)
        if not packet:
            raise ConnectionLost(errors.HUNG_UP.format(address=self._address))
        answer = handshake.receive(packet)
        if answer:
            if not handshake.done:
                # The kernel shall say who sends the welcome. SO_PEERCRED names who called listen,
                # which may be another process, and gone.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                if self._asks_for_process and not self._guarded:
                    # From another pid namespace the number says nothing. Where the server could
                    # send descriptors too, they would take the room.
                    with suppress(OSError):  # Linux 6.5
                        sock.setsockopt(socket.SOL_SOCKET, rights.SO_PASSPIDFD, 1)
            sock.send(answer, socket.MSG_NOSIGNAL)

    def _receive_welcome(
        self, sock: socket.socket, handshake: ClientHandshake, received: Received
    ) -> bytes:
        # Only a client that asked for the log gets descriptors, with the welcome. It is read with
        # room for two, and stays in the socket, so this thread never closes the last reference.
        asked = Capability.LOG in handshake.wishes
        room = socket.CMSG_SPACE(_CREDENTIALS.size)
        if asked:
            room += socket.CMSG_LEN(2 * 4)
        elif not self._guarded:
            room += socket.CMSG_SPACE(4)
        packet, notes, flags, _ = received.take(
            sock, LONG_PACKET, room, socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in notes:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                self._server_pid = _CREDENTIALS.unpack(data)[0]
        self._server_pidfd = next(iter(received.descriptors(SCM_PIDFD)), -1)
        if flags & socket.MSG_CTRUNC:
            if asked and len(received.descriptors()) < 2:
                raise CannotShareError("no room for two more descriptors")
            fault = (
                errors.DESCRIPTORS_DUE.format(count="more than 2") if asked else errors.UNINVITED
            )
            raise ProtocolError(errors.BROKEN_HANDSHAKE.format(fault=fault))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, rights.SO_PASSPIDFD, 0)
        sock.recv(LONG_PACKET)
        return packet

    @contextmanager
    def _shaking_hands(
        self, sock: socket.socket, handshake: ClientHandshake, timeout: float | None
    ) -> Iterator[None]:
        # Close the socket if it fails, and say how.
        try:
            yield
        except (TimeoutError, BlockingIOError):
            rights.hang_up(sock, self._guarded)
            what = "no welcome" if handshake.hello else "no hello"
            raise Timeout(
                errors.NO_HANDSHAKE.format(address=self._address, what=what, timeout=timeout)
            ) from None
        except (ConnectionResetError, BrokenPipeError):
            rights.hang_up(sock, self._guarded)
            raise ConnectionLost(errors.HUNG_UP.format(address=self._address)) from None
        except BaseException:
            rights.hang_up(sock, self._guarded)
            raise
