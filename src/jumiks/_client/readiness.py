# SPDX-License-Identifier: Apache-2.0
"""The descriptor by which a client's user waits: readable whenever a receive would not wait.

A connection's socket cannot tell that. Messages may have been read from it already, and where the
log is shared none come through it. So this is an epoll descriptor, which polls as readable while
one of those in it does: the connection's socket, the server's process, and an eventfd that is
raised while something is there already. On the way back to a server the epoll has what that waits
for. Its number stays the same throughout.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from io import FileIO
from math import inf
from typing import Final

from .._green import original
from .._native import new_eventfd, owned_descriptors

__all__: list[str] = []

_ONE: Final = (1).to_bytes(8, "little")
_LONGEST: Final = 3600.0  # s: then the user comes back for nothing once
_SHORTEST: Final = 1e-6  # s: 0 would stop the timer


class _Timer:
    # Python has timerfd(2) from 3.13 on, and the C libraries have had it for long.

    def __init__(self) -> None:
        # Not with the module: it takes time, and newer libffi opens a descriptor that it keeps.
        import ctypes

        self._ctypes = ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        self._file = next(
            owned_descriptors(map(self._checked, map(libc.timerfd_create, (1,), (flags,))))
        )
        self._set = libc.timerfd_settime

    def _checked(self, result: int) -> int:
        if result < 0:
            raise OSError(self._ctypes.get_errno(), os.strerror(self._ctypes.get_errno()))
        return result

    def fileno(self) -> int:
        return self._file.fileno()

    def set(self, seconds: float) -> None:
        # Readable that many seconds from now; inf is never.
        parts = (self._ctypes.c_long * 4)()
        if seconds < inf:
            nanoseconds = int(max(_SHORTEST, min(seconds, _LONGEST)) * 1e9)
            parts[2], parts[3] = divmod(nanoseconds, 1_000_000_000)
        self._checked(self._set(self.fileno(), 0, parts, None))

    def close(self) -> None:
        self._file.close()


class Readiness:
    """The descriptor. It is not readable at first."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may close the client
        self._epoll: select.epoll = original("select", "epoll")()
        self._event = new_eventfd()
        self._epoll.register(self._event.fileno(), select.EPOLLIN)
        self._timer: _Timer | None = None
        self._server: FileIO | None = None
        self._watched: set[int] = set()
        self._socket = -1
        self._wants_room = False
        self._is_shown = False

    def fileno(self) -> int:
        """The epoll descriptor."""
        return self._epoll.fileno()

    def watch(self, socket: int, server: int) -> None:
        """Watch a connection, in the place of whatever was watched before; readable now.

        Args:
            socket: the connection's.
            server: the pidfd of the server's process; -1 is none.
        """
        with self._lock:
            self._unwatch()
            self._register(socket)
            self._socket = socket
            if server >= 0:
                # The core closes its own once the process is dead. A forked child may hold a copy
                # of that, and then it would stay in the epoll.
                self._server = next(owned_descriptors(map(os.dup, (server,))))
                self._register(self._server.fileno())
            self._raise()

    def wait(self, descriptor: int, seconds: float) -> None:
        """Be readable once another descriptor is, or after a time.

        Args:
            descriptor: is watched in the place of whatever was before; -1 is none.
            seconds: the time; inf is no limit.
        """
        with self._lock:
            self._unwatch()
            if descriptor >= 0:
                self._register(descriptor)
            if self._timer is None:
                self._timer = _Timer()
            self._timer.set(seconds)
            self._register(self._timer.fileno())
            self._lower()

    def _register(self, descriptor: int) -> None:
        self._watched.add(descriptor)
        self._epoll.register(descriptor, select.EPOLLIN)

    def _unwatch(self) -> None:
        # By hand: while a forked child has a copy of what was closed here, it stays in the epoll.
        while self._watched:
            descriptor = next(iter(self._watched))
            with suppress(OSError):  # a signal came before it was registered
                self._epoll.unregister(descriptor)
            self._watched.discard(descriptor)
        self._socket = -1
        self._wants_room = False
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def show(self, *, more: bool, wants_room: bool = False) -> None:
        """Be readable if there is more; else once what is watched is.

        Args:
            more: whether a receive would not wait.
            wants_room: whether the socket has to be writable for what a receive has to do.
        """
        with self._lock:
            if self._epoll.closed:
                return
            if wants_room != self._wants_room and self._socket >= 0:
                events = select.EPOLLIN | (select.EPOLLOUT if wants_room else 0)
                self._epoll.modify(self._socket, events)
                self._wants_room = wants_room
            if more:
                self._raise()
            else:
                self._lower()

    def _raise(self) -> None:
        if not self._is_shown:
            self._event.write(_ONE)
            self._is_shown = True

    def _lower(self) -> None:
        # A signal may have come before it was noted as raised, so that is not asked.
        self._is_shown = False
        self._event.read(8)

    def close(self) -> None:
        """Wake whoever waits for it, and close it."""
        with self._lock:
            if not self._epoll.closed:
                self._raise()
                self._unwatch()
                self.leave()

    def leave(self) -> None:
        """Close this process's copy; in a forked child, where the epoll is the parent's too."""
        self._epoll.close()
        self._event.close()
        if self._timer is not None:
            self._timer.close()
        if self._server is not None:
            self._server.close()
