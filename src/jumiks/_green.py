# SPDX-License-Identifier: Apache-2.0
"""Programs whose standard library gevent or eventlet has patched.

Such a program has one thread with many greenlets. What blocks that thread holds them all up, so the
patched functions switch to another greenlet instead. Two rules follow:

* The control thread stays a real thread. What it uses are the original functions, locks and
  sockets: the patched ones would start an event loop of their own in it.
* A call that a user makes waits by the patched functions, so that other greenlets run meanwhile. It
  asks the core with a timeout of 0 and waits here. Nobody switches with a lock held.

Neither package is ever imported here: where it is not loaded already, it has patched nothing.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final, Protocol, TypeGuard

__all__: list[str] = []

_FIRST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.01
_LONGEST_WAIT: Final = 60.0


def _monkey(package: str) -> ModuleType | None:
    return sys.modules.get(package)


def _patched(module: str) -> bool:
    gevent, eventlet = _monkey("gevent.monkey"), _monkey("eventlet.patcher")
    return bool(
        (gevent is not None and gevent.is_module_patched(module))
        or (eventlet is not None and eventlet.is_monkey_patched(module.lstrip("_")))
    )


def cooperates() -> bool:
    """Whether this thread's waits leave the processor to other greenlets."""
    return _patched("select") and _patched("time")


def original(module: str, name: str) -> Any:
    """What the standard library has under this name, whatever stands there now."""
    gevent, eventlet = _monkey("gevent.monkey"), _monkey("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched(module):
        return gevent.get_original(module, name)
    if eventlet is not None and eventlet.is_monkey_patched(module.lstrip("_")):
        return getattr(eventlet.original(module), name)
    return getattr(sys.modules[module], name)


class AnyThread(Protocol):
    """What a thread of ours can do, whoever made it."""

    @property
    def native_id(self) -> int | None:
        """The kernel's number for it; None before it runs."""

    def start(self) -> None:
        """Start it; raises RuntimeError if that cannot be."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is over; this blocks the calling thread."""

    def is_alive(self) -> bool:
        """Whether it runs."""


class _RealThread:
    # threading.Thread would start a greenlet.

    def __init__(self, target: Callable[[], object]) -> None:
        self._target = target
        self._running = original("_thread", "allocate_lock")()
        self.native_id: int | None = None

    def start(self) -> None:
        self._running.acquire()
        try:
            original("_thread", "start_new_thread")(self._run, ())
        except BaseException:
            self._running.release()
            raise

    def _run(self) -> None:
        try:
            self.native_id = original("_thread", "get_native_id")()
            self._target()
        finally:
            self._running.release()

    def join(self, timeout: float | None = None) -> None:
        if self._running.acquire(timeout=-1 if timeout is None else timeout):
            self._running.release()

    def is_alive(self) -> bool:
        return bool(self._running.locked())


def new_thread(target: Callable[[], object], name: str) -> AnyThread:
    """Make a thread that no exit waits for, and that is one also where threads are greenlets."""
    if _patched("_thread"):
        return _RealThread(target)
    return threading.Thread(target=target, name=name, daemon=True)


class Pauses:
    """Pauses between looks at what another greenlet may bring about; they grow."""

    def __init__(self) -> None:
        self._pause = _FIRST_PAUSE

    def __call__(self, most: float = _LONGEST_PAUSE) -> None:
        """Let others run for a while, `most` seconds at most."""
        time.sleep(max(0.0, min(self._pause, most)))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def until_readable(descriptors: Iterable[int], seconds: float) -> None:
    """Wait until one of them is readable, or the time is over; other greenlets run meanwhile."""
    if hasattr(select, "poll"):
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        # Rounded up: a wait that is cut short is only repeated.
        poll.poll(int(seconds * 1000) + 1)
    else:  # eventlet has select alone, which knows no largest descriptor there
        select.select(list(descriptors), [], [], seconds)


def is_readable(descriptor: int) -> bool:
    """Whether it is readable now; this neither waits nor switches."""
    poll = original("select", "poll")()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def let_others_run(descriptor: int, deadline: float) -> None:
    """Wait until it is readable, or the deadline; at once where a wait holds up no greenlet."""
    while cooperates() and not is_readable(descriptor):
        left = deadline - time.monotonic()
        if left <= 0:
            return
        until_readable((descriptor,), min(left, _LONGEST_WAIT))


# ---- sockets ----


def _original_socket() -> type[socket.socket]:
    found: type[socket.socket] = original("socket", "socket")
    return found


def new_socket(family: int, kind: int) -> socket.socket:
    """Make a socket that never switches to another greenlet."""
    return _original_socket()(family, kind)


def is_socket(value: object) -> TypeGuard[socket.socket]:
    """Whether it is a socket, an original one or a patched one."""
    return isinstance(value, socket.socket | _original_socket())


def real_socket(sock: socket.socket) -> socket.socket:
    """Return the socket itself, or in the place of a patched one, which is closed, an original."""
    if isinstance(sock, _original_socket()):
        return sock
    real = _original_socket()(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))
    sock.close()
    return real


def accept(sock: socket.socket) -> socket.socket:
    """Accept a connection; raises as `socket.accept`."""
    if not _patched("socket"):
        return sock.accept()[0]
    # `accept` of an original socket makes a patched one.
    descriptor, _ = sock._accept()  # type: ignore[attr-defined]
    return _original_socket()(sock.family, sock.type, 0, descriptor)
