# SPDX-License-Identifier: Apache-2.0
"""The server's end of MONITOR connections.

All runs in the control thread. No socket is waited for, at most one answer per monitor is kept, and
what answers cost is bounded: after one that took t seconds of processor time there is none for
19 t, so monitors never get more than a twentieth of a processor. Time by the clock would not do:
on a busy machine an answer that was preempted would keep all monitors waiting for seconds.
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
from .access import Rule

__all__: list[str] = []

MOST: Final = 8
"""How many monitors may be connected at the same time."""

LEAST_PAUSE: Final = 0.02
"""Seconds between two answers at least."""

_SHARE: Final = 19
MOST_PACKET: Final = 32768
"""Bytes of an answer's packet, whatever the monitor could take."""

MonitorRule: TypeAlias = Rule | Literal[False]


def check_monitor(name: str, rule: object) -> MonitorRule:
    """Check a server's `monitor` argument; raises as `access.check_allow` does."""
    return False if rule is False else access.check_allow(name, rule)


class _Monitor:
    """One monitor: it has not asked, waits for its answer, or is being sent that."""

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
        rule: which peers may be monitors.
        epoll: where their descriptors are registered.
        status: gives the status as JSON, in parts.
    """

    def __init__(
        self, rule: MonitorRule, epoll: select.epoll, status: Callable[[], Iterable[str]]
    ) -> None:
        self._rule = rule
        self._quota = access.Quota.share(MOST)
        self._epoll = epoll
        self._status = status
        self._monitors: dict[int, _Monitor] = {}
        self._due = 0.0

    def __contains__(self, descriptor: object) -> bool:
        return descriptor in self._monitors

    def __len__(self) -> int:
        return len(self._monitors)

    def verdict(self, peer: Peer) -> str | None:
        """Say why the rule does not let this peer in; None if it does. A function is called."""
        if self._rule is False:
            return "it lets no user look at its status (monitor=False)"
        # By default as strict as for an abstract address, as the status shows other users' pids.
        reason = access.refusal(self._rule, peer, abstract=True)
        return reason and reason.replace("connect", "look at its status", 1)

    def crowd(self, peer: Peer) -> str | None:
        """Say why there is no place for this peer now; None if there is."""
        if len(self._monitors) >= MOST:
            return f"it has {MOST} monitors already"
        held = sum(monitor.peer.uid == peer.uid for monitor in self._monitors.values())
        reason = self._quota.refusal(peer.uid, held)
        return reason and reason.replace("connections", "monitors")

    def add(
        self, sock: socket.socket, peer: Peer, max_packet: int, *, guarded: bool = False
    ) -> None:
        """Take over a socket that is registered for EPOLLIN and has its welcome."""
        size = min(max_packet, MOST_PACKET)
        self._monitors[sock.fileno()] = _Monitor(sock, peer, size, guarded=guarded)

    def handle(self, descriptor: int, events: int) -> None:
        """Do what a monitor's descriptor is ready for."""
        monitor = self._monitors[descriptor]
        try:
            if monitor.packets:
                self._send(monitor)
            elif monitor.asked is None:
                self._read(monitor)
            elif events & (select.EPOLLHUP | select.EPOLLERR):
                self._drop(monitor)
        except OSError:
            self._drop(monitor)

    @property
    def deadline(self) -> float | None:
        """When `expire` wants to be called, on the clock of `time.monotonic`."""
        return self._due if any(self._waiting()) else None

    def expire(self, now: float) -> None:
        """Answer the monitor that has waited longest, if an answer is due."""
        monitor = next(self._waiting(), None)
        if monitor is not None and now >= self._due:
            self._answer(monitor)

    def close(self) -> None:
        """Drop all."""
        for monitor in list(self._monitors.values()):
            self._drop(monitor)

    def _waiting(self) -> Iterator[_Monitor]:
        return (each for each in self._monitors.values() if each.asked is not None)

    def _drop(self, monitor: _Monitor) -> None:
        descriptor = monitor.sock.fileno()
        del self._monitors[descriptor]
        self._epoll.unregister(descriptor)
        rights.hang_up(monitor.sock, monitor.guarded)

    def _read(self, monitor: _Monitor) -> None:
        try:
            if monitor.guarded and rights.come_next(monitor.sock):
                self._drop(monitor)
                return
            packet = monitor.sock.recv(MOST_PACKET)
        except BlockingIOError:
            return
        if len(packet) < HEADER.size:
            self._drop(monitor)
            return
        monitor.kind, _, monitor.asked = HEADER.unpack_from(packet)
        # Behind all that have asked before, or one that asks without end would always be first.
        descriptor = monitor.sock.fileno()
        self._monitors[descriptor] = self._monitors.pop(descriptor)
        self._epoll.modify(monitor.sock.fileno(), 0)
        self.expire(time.monotonic())

    def _answer(self, monitor: _Monitor) -> None:
        begin, number = time.thread_time(), monitor.asked
        assert number is not None
        monitor.asked = None
        if monitor.kind == STATUS:
            body = "".join(self._status()).encode()
            monitor.packets.extend(answers(number, body, monitor.max_packet))
        else:
            monitor.packets.append(HEADER.pack(monitor.kind, UNKNOWN, number))
        with suppress(OSError):  # epoll reports it as well
            self._send(monitor)
        cost = time.thread_time() - begin
        self._due = time.monotonic() + max(LEAST_PAUSE, _SHARE * cost)

    def _send(self, monitor: _Monitor) -> None:
        while monitor.packets:
            try:
                monitor.sock.send(monitor.packets[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._epoll.modify(monitor.sock.fileno(), select.EPOLLOUT)
                return
            monitor.packets.popleft()
        self._epoll.modify(monitor.sock.fileno(), select.EPOLLIN)
