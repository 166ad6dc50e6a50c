# SPDX-License-Identifier: Apache-2.0
"""Looking at a running server: both ends of a MONITOR connection (docs/protocol.md, "Status").

At the server's end all runs in the control thread. No socket is waited for, at most one answer
a monitor is kept, and what answers cost is bounded: after one that took t seconds there is none for
19 t, so monitors never get more than a twentieth of the thread, or of the GIL.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

from . import access, address, rights
from ._green import let_others_run
from .access import Allow, Peer, Rule
from .connecting import Connecting, Received, in_thread
from .errors import Closed, ConnectionLost, ProtocolError, Refused, Timeout, printable
from .handshake import Capability, ClientHandshake, Status
from .stats import ClientInfo, Gap, ServerStats

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Monitor", "ServerStatus"]

MOST: Final = 8
"""Monitors at a time."""

LEAST_PAUSE: Final = 0.02
"""Seconds between two answers at least."""

_SHARE: Final = 19
_PACKET: Final = 32768
_MOST_ANSWER: Final = 8 << 20
"""Bytes: more than ten thousand clients, which take about a second to read."""

_SPARSE: Final = 16
"""Of so many bytes one opens a list or an object at most: those take long to make, and memory."""

_MOST_NUMBER: Final = (1 << 64) - 1
_HEADER: Final = struct.Struct("<HHI")
_STATUS: Final = 1
_MORE: Final = 1
_UNKNOWN: Final = 2

MonitorRule: TypeAlias = Rule | Literal[False]


def parse_rule(rule: Allow | Literal[False]) -> MonitorRule:
    """Check a server's `monitor` argument; raises as `access.parse` does."""
    return False if rule is False else access.parse(rule, "monitor")


# ---- packets ----


def request(number: int) -> bytes:
    """A request for the status."""
    return _HEADER.pack(_STATUS, 0, number)


def answers(number: int, body: bytes, size: int) -> Iterator[bytes]:
    """The packets of an answer, each of at most `size` bytes."""
    step = size - _HEADER.size
    for begin in range(0, len(body), step):
        flags = _MORE if begin + step < len(body) else 0
        yield _HEADER.pack(_STATUS, flags, number) + body[begin : begin + step]


# ---- the server's end ----


class _Watcher:
    """One monitor: it asks, or waits for its answer, or takes that."""

    def __init__(self, sock: socket.socket, peer: Peer, max_packet: int, *, guarded: bool) -> None:
        self.sock = sock
        self.guarded = guarded
        self.peer = peer
        self.max_packet = max_packet
        self.asked: int | None = None
        self.kind = _STATUS
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
        size = min(max_packet, _PACKET)
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
            packet = watcher.sock.recv(_PACKET)
        except BlockingIOError:
            return
        if len(packet) < _HEADER.size:
            self._drop(watcher)
            return
        watcher.kind, _, watcher.asked = _HEADER.unpack_from(packet)
        # Behind all who have asked before, or who asks without end would always come first.
        descriptor = watcher.sock.fileno()
        self._watchers[descriptor] = self._watchers.pop(descriptor)
        self._epoll.modify(watcher.sock.fileno(), 0)
        self.expire(time.monotonic())

    def _answer(self, watcher: _Watcher) -> None:
        begin, number = time.monotonic(), watcher.asked
        assert number is not None
        watcher.asked = None
        if watcher.kind == _STATUS:
            body = "".join(self._look()).encode()
            watcher.packets.extend(answers(number, body, watcher.max_packet))
        else:
            watcher.packets.append(_HEADER.pack(watcher.kind, _UNKNOWN, number))
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


_PLAIN: Final = tuple(
    each.name
    for each in fields(ClientInfo)
    if each.name not in ("peer", "reason", "limit", "limit_kind", "lost", "error")
)


def as_json(
    about: Mapping[str, object], stats: ServerStats, clients: Sequence[ClientInfo], monitors: int
) -> Iterator[str]:
    """A status as JSON, in parts, so that no step takes long."""
    figures = {each.name: getattr(stats, each.name) for each in fields(ServerStats)}
    head = {**about, "now": time.monotonic(), "monitors": monitors, "stats": figures}
    yield json.dumps(head)[:-1] + ', "clients": ['
    for index, info in enumerate(clients):
        one: dict[str, object] = {name: getattr(info, name) for name in _PLAIN}
        one |= {"pid": info.peer.pid, "uid": info.peer.uid, "gid": info.peer.gid}
        one["command"] = info.command
        one["lost"] = [info.lost.first, info.lost.last] if info.lost else None
        yield (", " if index else "") + json.dumps(one)
    yield "]}"


# ---- the other end ----


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What a server told of itself; its figures and its clients' are taken one after the other.

    Args:
        address: its address, as its user wrote it.
        pid: its process id as the kernel shows it here; 0 if it is not in our pid namespace.
        server_id: its random number, new each time a server starts.
        max_lag: messages a client may be behind; 0 is no limit.
        on_lag: its lag policy: `"disconnect"`, `"block"` or `"skip"`.
        now: when it answered, seconds on the clock of `time.monotonic`.
        started: when it started, seconds on that clock.
        monitors: monitors connected now, this one included.
        stats: its figures.
        clients: its clients, each with its figures.
        raw: the JSON as it came, which a later version may say more in.
    """

    address: str
    pid: int
    server_id: int
    max_lag: int
    on_lag: str
    now: float
    started: float
    monitors: int
    stats: ServerStats
    clients: tuple[ClientInfo, ...]
    raw: str


def parse_status(text: str) -> ServerStatus:
    """Read an answer. A name that is not known is ignored; one that is not there is 0, "" or empty.

    Raises:
        ProtocolError: it is no status.
    """
    if text.count("[") + text.count("{") > len(text) / _SPARSE + 100:
        raise ProtocolError("the server's status cannot be read: it has too many parts")
    try:
        found = json.loads(text)
        figures = found.get("stats", {})
        return ServerStatus(
            address=_word(found.get("address")),
            pid=_number(found, "pid"),
            server_id=_number(found, "server_id"),
            max_lag=_number(found, "max_lag"),
            on_lag=_word(found.get("on_lag")),
            now=_moment(found, "now"),
            started=_moment(found, "started"),
            monitors=_number(found, "monitors"),
            stats=ServerStats(
                **{each.name: _number(figures, each.name) for each in fields(ServerStats)}
            ),
            clients=tuple(_client(each) for each in found.get("clients", ())),
            raw=text,
        )
    except (
        ArithmeticError,
        AttributeError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ProtocolError(f"the server's status cannot be read: {error!r:.200}") from error


def _word(value: object) -> str:
    # It goes to terminals, and comes from a server that may be anybody's.
    return printable(str(value or ""))


def _number(found: Mapping[str, object], name: str) -> int:
    value = found.get(name, 0)
    if not isinstance(value, int) or not 0 <= value <= _MOST_NUMBER:
        raise TypeError(f"{name} is {value!r:.50}")
    return value


def _moment(found: Mapping[str, object], name: str) -> float:
    value = found.get(name, 0.0)
    if not isinstance(value, int | float) or not 0 <= value <= _MOST_NUMBER:
        raise TypeError(f"{name} is {value!r:.50}")
    return float(value)


def _gap(lost: object) -> Gap | None:
    if not isinstance(lost, list):
        return None
    first, last = lost
    ends = {"first": first, "last": last}
    return Gap(_number(ends, "first"), _number(ends, "last"))


def _client(found: Mapping[str, object]) -> ClientInfo:
    names = [name for name in _PLAIN if name not in ("mode", "since", "last_ack")]
    figures = {name: _number(found, name) for name in names}
    pid, uid, gid = (_number(found, name) for name in ("pid", "uid", "gid"))
    return ClientInfo(
        peer=Peer(pid, uid, gid, command=_word(found.get("command"))),
        mode=_word(found.get("mode")),
        since=_moment(found, "since"),
        last_ack=None if found.get("last_ack") is None else _moment(found, "last_ack"),
        reason=None,
        limit=0,
        limit_kind="",
        lost=_gap(found.get("lost")),
        error="",
        **figures,
    )


def _wait_until(deadline: float | None, sock: socket.socket) -> None:
    # What is sent in small pieces, one now and then, has no more time than what comes at once.
    if deadline is None:
        sock.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(min(left, threading.TIMEOUT_MAX))


class Monitor(Connecting):
    """Ask a running server how it is; it receives no messages, and slows nobody down.

    Args:
        where: the server's address: `"@name"` or a path.
        timeout: seconds to connect, and for each answer; None is no limit.

    Raises:
        Refused: the server does not let this user look, has no status to give, or has too many
            monitors already.
        ConnectionRefusedError, FileNotFoundError, Timeout, VersionMismatch, ProtocolError: as for
            `Client`.
    """

    def __init__(self, where: str | os.PathLike[str], *, timeout: float | None = 5.0) -> None:
        parsed = address.parse(where)
        self._address = str(parsed)
        self._pid = os.getpid()
        self._timeout = timeout
        self._asked = 0
        handshake = ClientHandshake(Capability.MONITOR)
        # No descriptors come: it asks for no log.
        sock = in_thread(self._connect(parsed, handshake, timeout, Received()))
        if Capability.MONITOR not in handshake.granted:
            rights.hang_up(sock, self._guarded)
            raise Refused("it gives no status", status=Status.NOT_ALLOWED)
        self._sock: socket.socket | None = sock

    def status(self) -> ServerStatus:
        """Ask once.

        Raises:
            Timeout: there was no answer in time.
            ConnectionLost: the server is gone.
            ProtocolError: it broke the protocol.
            Closed: this monitor is closed.
        """
        sock = self._sock
        if sock is None:
            raise Closed("this monitor is closed")
        self._asked = (self._asked + 1) % (1 << 32)
        try:
            deadline = None if self._timeout is None else time.monotonic() + self._timeout
            _wait_until(deadline, sock)
            sock.send(request(self._asked), socket.MSG_NOSIGNAL)
            body = self._answer(sock, deadline)
            status = parse_status(body.decode("utf-8", "replace"))
        except TimeoutError as error:
            raise Timeout(f"{self._address!r} gave no status within {self._timeout:g} s") from error
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ConnectionLost(
                f"end of stream from {self._address!r}: the server is gone"
            ) from error
        except (ConnectionLost, ProtocolError):
            # No server stands still because the user keeps a monitor whose connection is over.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            raise
        return replace(status, pid=self._server_pid)

    def _answer(self, sock: socket.socket, deadline: float | None) -> bytearray:
        body = bytearray()
        while len(body) <= _MOST_ANSWER:
            let_others_run(sock.fileno(), inf if deadline is None else deadline)
            _wait_until(deadline, sock)
            if self._guarded and rights.come_next(sock):
                raise ProtocolError("the server sent descriptors that nobody asked for")
            packet = sock.recv(1 << 18)
            if not packet:
                raise ConnectionLost(f"end of stream from {self._address!r}: the server is gone")
            if len(packet) < _HEADER.size:
                raise ProtocolError("the server sent a packet too short for an answer")
            kind, flags, number = _HEADER.unpack_from(packet)
            if number != self._asked:
                continue  # to a question whose time was over
            if kind != _STATUS or flags & _UNKNOWN:
                raise ProtocolError("the server does not know what a status is")
            body += packet[_HEADER.size :]
            if not flags & _MORE:
                return body
        raise ProtocolError(f"the server's status is longer than {_MOST_ANSWER} bytes")

    def close(self) -> None:
        """Close the connection; may be repeated."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._pid == os.getpid():
            rights.hang_up(sock, self._guarded)
        else:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
