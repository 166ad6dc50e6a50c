# SPDX-License-Identifier: Apache-2.0
"""The server's end of MONITOR connections.

All runs in the control thread. No socket is waited for, at most one answer per monitor is kept, and
what answers cost is bounded: after one that took t seconds there is none for 19 t, so monitors
never get more than a twentieth of the thread, or of the GIL.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final, Literal, TypeAlias

from .._peer import Peer
from .._wire import rights
from .._wire.status import HEADER, STATUS, UNKNOWN, answers
from . import access
from .access import Allow, Rule

__all__: list[str] = []

MOST: Final = 8
"""Monitors at a time."""

LEAST_PAUSE: Final = 0.02
"""Seconds between two answers at least."""

_SHARE: Final = 19
MOST_PACKET: Final = 32768
"""Bytes of an answer's packet, whatever the monitor could take."""

MonitorRule: TypeAlias = Rule | Literal[False]


def parse_rule(rule: Allow | Literal[False]) -> MonitorRule:
    """Check a server's `monitor` argument; raises as `access.parse` does."""
    return False if rule is False else access.parse(rule, "monitor")


class _Watcher:
    """One monitor: it asks, or waits for its answer, or takes that."""

    def __init__(self, sock: socket.socket, peer: Peer, max_packet: int, *, guarded: bool) -> None:
        self.sock = sock
        self.guarded = guarded
        self.peer = peer
        self.max_packet = max_packet
        self.asked: int | None = None
        self.kind = STATUS
        self.packets: deque[bytes] = deque()


class Monitors:
    """All monitors of one server.

    Args:
        rule: who may be one.
        epoll: where their descriptors are registered.
        look: gives the status as JSON, in parts.
    """

    def __init__(
        self, rule: MonitorRule, epoll: select.epoll, look: Callable[[], Iterable[str]]
    ) -> None:
        self._rule = rule
        self._quota = access.Quota.share(MOST)
        self._epoll = epoll
        self._look = look
        self._watchers: dict[int, _Watcher] = {}
        self._due = 0.0

    def __contains__(self, descriptor: object) -> bool:
        return descriptor in self._watchers

    def __len__(self) -> int:
        return len(self._watchers)

    def verdict(self, peer: Peer) -> str | None:
        """Why the rule does not let this peer look; None if it does. It asks a function."""
        if self._rule is False:
            return "it lets nobody look at its status"
        # As strict by default as for an abstract address: others' pids are nobody's business.
        reason = access.check(self._rule, peer, abstract=True)
        return reason and reason.replace("connect", "look at its status", 1)

    def crowd(self, peer: Peer) -> str | None:
        """Why there is no place for this peer now; None if there is."""
        if len(self._watchers) >= MOST:
            return f"it has {MOST} monitors already"
        held = sum(watcher.peer.uid == peer.uid for watcher in self._watchers.values())
        reason = self._quota.refusal(peer.uid, held)
        return reason and reason.replace("connections", "monitors")

    def add(
        self, sock: socket.socket, peer: Peer, max_packet: int, *, guarded: bool = False
    ) -> None:
        """Take over a socket that is registered for EPOLLIN and has its welcome."""
        size = min(max_packet, MOST_PACKET)
        self._watchers[sock.fileno()] = _Watcher(sock, peer, size, guarded=guarded)

    def handle(self, descriptor: int, events: int) -> None:
        """Do what a monitor's descriptor is ready for."""
        watcher = self._watchers[descriptor]
        try:
            if watcher.packets:
                self._send(watcher)
            elif watcher.asked is None:
                self._read(watcher)
            elif events & (select.EPOLLHUP | select.EPOLLERR):
                self._drop(watcher)
        except OSError:
            self._drop(watcher)

    @property
    def deadline(self) -> float | None:
        """When `expire` wants to be called, on the clock of `time.monotonic`."""
        return self._due if any(self._waiting()) else None

    def expire(self, now: float) -> None:
        """Answer who has waited for long enough, one at a time."""
        watcher = next(self._waiting(), None)
        if watcher is not None and now >= self._due:
            self._answer(watcher)

    def close(self) -> None:
        """Drop all."""
        for watcher in list(self._watchers.values()):
            self._drop(watcher)

    def _waiting(self) -> Iterator[_Watcher]:
        return (each for each in self._watchers.values() if each.asked is not None)

    def _drop(self, watcher: _Watcher) -> None:
        descriptor = watcher.sock.fileno()
        del self._watchers[descriptor]
        self._epoll.unregister(descriptor)
        rights.hang_up(watcher.sock, watcher.guarded)

    def _read(self, watcher: _Watcher) -> None:
        try:
            if watcher.guarded and rights.come_next(watcher.sock):
                self._drop(watcher)
                return
            packet = watcher.sock.recv(MOST_PACKET)
        except BlockingIOError:
            return
        if len(packet) < HEADER.size:
            self._drop(watcher)
            return
        watcher.kind, _, watcher.asked = HEADER.unpack_from(packet)
        # Behind all who have asked before, or who asks without end would always come first.
        descriptor = watcher.sock.fileno()
        self._watchers[descriptor] = self._watchers.pop(descriptor)
        self._epoll.modify(watcher.sock.fileno(), 0)
        self.expire(time.monotonic())

    def _answer(self, watcher: _Watcher) -> None:
        begin, number = time.monotonic(), watcher.asked
        assert number is not None
        watcher.asked = None
        if watcher.kind == STATUS:
            body = "".join(self._look()).encode()
            watcher.packets.extend(answers(number, body, watcher.max_packet))
        else:
            watcher.packets.append(HEADER.pack(watcher.kind, UNKNOWN, number))
        with suppress(OSError):  # epoll tells of it as well
            self._send(watcher)
        now = time.monotonic()
        self._due = now + max(LEAST_PAUSE, _SHARE * (now - begin))

    def _send(self, watcher: _Watcher) -> None:
        while watcher.packets:
            try:
                watcher.sock.send(watcher.packets[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._epoll.modify(watcher.sock.fileno(), select.EPOLLOUT)
                return
            watcher.packets.popleft()
        self._epoll.modify(watcher.sock.fileno(), select.EPOLLIN)
