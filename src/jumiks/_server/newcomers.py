# SPDX-License-Identifier: Apache-2.0
"""Connections that shake hands: from accept(2) until they are let in, refused or dropped.

All shake hands at the same time, each with its deadline. All runs in the control thread.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from typing import Final

from .._native import owned_descriptors
from .._peer import Peer
from .._wire import rights
from .._wire.handshake import Capability, ServerHandshake, ServerHello, Status
from .._wire.listener import Listener
from .access import Rule, refusal
from .journal import Journal
from .monitors import Monitors

__all__: list[str] = []

MAX_JOINING: Final = 256
"""Connections that may shake hands at a time; of more, one is dropped: see `_dispensable`."""

BACKOFF: Final = 0.1
"""Seconds without accepting after the system ran out of descriptors or memory."""

_ACCEPTS: Final = 32
_FOR_ONE: Final = 2
SPARE: Final = _FOR_ONE + 1
_REPLY_LIMIT: Final = 4096
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


@dataclass(eq=False, slots=True)
class Newcomer:
    """A connection that shakes hands."""

    sock: socket.socket
    peer: Peer
    handshake: ServerHandshake
    max_packet: int
    """The largest packet that can be sent to it, bytes."""
    guarded: bool
    """Whether descriptors may come with its packets: see `_wire.rights`."""
    refusal: str | None
    """Why it may not be a client; None if it may."""
    no_look: str | None
    """Why it may not be a monitor either; None if it may, or was not asked about."""
    in_spare: bool = False
    """Whether its descriptor is the spare one, as there was no other."""
    since: float = field(default_factory=time.monotonic)


class Spare:
    """Descriptors kept for the time when all others are used up.

    Two are for letting in a client that has replied, as silent connections may have used up the
    rest: it takes a second descriptor of the socket, and one of the cursor page. The third is for a
    connection that there is no other descriptor for: it is told so, and refused.

    Args:
        descriptor: what the spare descriptors are copies of.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._copies: list[FileIO] = []
        self.take()

    def take(self) -> bool:
        """Open those that are missing, as far as possible; returns whether all are there."""
        with suppress(OSError):
            while len(self._copies) < SPARE:
                self._copies.extend(owned_descriptors(map(os.dup, (self._descriptor,))))
        return len(self._copies) == SPARE

    def give(self, count: int = SPARE) -> None:
        """Close `count` of them, so that others can be opened."""
        while self._copies and count:
            self._copies[-1].close()
            del self._copies[-1]
            count -= 1

    def __del__(self) -> None:
        if hasattr(self, "_copies"):
            self.give()


class Newcomers:
    """All connections of one server that shake hands.

    Args:
        listener: accepts them.
        epoll: where their descriptors are registered, and the listener's.
        journal: logs what becomes of them.
        monitors: takes over those that ask for the status.
        hello_for: prepares a new socket, and gives the hello for it.
        rule: which peers may connect.
        timeout: seconds that each has for its reply.
        let_in: called with each whose reply is good: lets it go, or refuses it.
        descriptor: what the spare descriptors are copies of.
    """

    def __init__(
        self,
        listener: Listener,
        epoll: select.epoll,
        journal: Journal,
        monitors: Monitors,
        *,
        hello_for: Callable[[socket.socket], ServerHello],
        rule: Rule,
        timeout: float,
        let_in: Callable[[Newcomer], None],
        descriptor: int,
    ) -> None:
        self._listener = listener
        self._epoll = epoll
        self._journal = journal
        self._monitors = monitors
        self._hello_for = hello_for
        self._rule = rule
        self._timeout = timeout
        self._let_in = let_in
        self._newcomers: dict[int, Newcomer] = {}
        self._by_user: Counter[int] = Counter()
        self._spare = Spare(descriptor)
        self._deaf_until: float | None = None
        epoll.register(listener.fileno(), select.EPOLLIN)

    def __contains__(self, descriptor: object) -> bool:
        return descriptor in self._newcomers

    def held(self, uid: int) -> int:
        """Return how many connections of a user shake hands."""
        return self._by_user[uid]

    @property
    def deadline(self) -> float | None:
        """When `expire` wants to be called, on the clock of `time.monotonic`."""
        # All have the same time, so the first that came is the first that is due.
        first = next(iter(self._newcomers.values()), None)
        deadlines = [] if first is None else [first.since + self._timeout]
        if self._deaf_until is not None:
            deadlines.append(self._deaf_until)
        return min(deadlines, default=None)

    def expire(self, now: float) -> None:
        """Drop those that did not reply in time; accept again after a shortage."""
        if self._deaf_until is not None and now >= self._deaf_until:
            self._hear_again(now)
        while self._newcomers:
            newcomer = next(iter(self._newcomers.values()))
            if now < newcomer.since + self._timeout:
                break
            self._journal.log(
                logging.INFO, "%s sent no reply within %g s", newcomer.peer, self._timeout
            )
            self.drop(newcomer)

    def refuse_all(self, status: Status) -> None:
        """Refuse all that are here."""
        for newcomer in list(self._newcomers.values()):
            self.refuse(newcomer, status)

    def fail(self, descriptor: int) -> None:
        """Drop the one with that descriptor, if there is one."""
        if descriptor in self._newcomers:
            self.drop(self._newcomers[descriptor])

    def close(self) -> None:
        """Drop all, and accept none any more."""
        for newcomer in list(self._newcomers.values()):
            self.drop(newcomer)
        self.stop_listening()
        self._spare.give()

    def stop_listening(self) -> None:
        """Close the listener; only the control thread may call it, or a caller without one."""
        if self._listener.fileno() >= 0:
            # Closing it is not enough for epoll where a forked child has a copy.
            with suppress(OSError):  # it may be deaf
                self._epoll.unregister(self._listener.fileno())
            self._listener.close()
            self._deaf_until = None

    def leave_to_parent(self) -> None:
        """In a forked child: let go of its copy of the listener."""
        self._listener.close()

    # ---- coming in ----

    def accept(self, descriptor: int) -> None:
        """Accept what waits in the backlog of a listener, if it is ours, and say hello."""
        if descriptor != self._listener.fileno():
            return
        if rights.crowded():
            self._go_deaf("connections whose peers sent descriptors are being closed")
            return
        self._spare.take()
        for _ in range(_ACCEPTS):
            in_spare = False
            try:
                sock = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # that one is gone already
                if self._drop_a_silent_one():
                    self._spare.take()
                    continue
                spare = self._accept_in_spare() if error.errno == errno.EMFILE else None
                if spare is None:
                    self._go_deaf(str(error.strerror))
                    return
                sock, in_spare = spare, True
            guarded = rights.may_come(sock)
            try:
                self._greet(sock, guarded=guarded).in_spare = in_spare
            except OSError as error:
                self._journal.log(
                    logging.INFO, "a connection failed before the handshake: %s", error
                )
                rights.hang_up(sock, guarded)

    def _accept_in_spare(self) -> socket.socket | None:
        # One at a time: the others wait in the backlog until this one is refused or let in.
        if not self._spare.take():
            return None
        self._spare.give(1)
        try:
            return self._listener.accept()
        except OSError:
            self._spare.take()
            return None

    def _go_deaf(self, reason: str) -> None:
        # The connection stays in the backlog, so epoll would say so at once, again and again.
        words = "cannot accept: %s; trying again every %g s"
        self._journal.log(logging.WARNING, words, reason, BACKOFF)
        self._epoll.unregister(self._listener.fileno())
        self._deaf_until = time.monotonic() + BACKOFF

    def _hear_again(self, now: float) -> None:
        try:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        except OSError:  # it lacks memory, or watches
            self._deaf_until = now + BACKOFF
        else:
            self._deaf_until = None

    def _greet(self, sock: socket.socket, *, guarded: bool) -> Newcomer:
        sock.setblocking(False)
        peer = Peer.of(sock)
        # The rule is asked before anything is sent.
        reason = refusal(self._rule, peer, self._listener.address.abstract)
        no_look = None if reason is None else self._monitors.verdict(peer)
        hello = self._hello_for(sock)
        max_packet = hello.max_packet
        if reason is not None and no_look is not None:  # a stranger learns how to read just that
            hello = ServerHello(hello.version, hello.capabilities)
        handshake = ServerHandshake(hello)
        sock.send(handshake.hello(), socket.MSG_NOSIGNAL)
        if len(self._newcomers) >= MAX_JOINING:
            self.drop(self._dispensable((peer.uid,)))
        newcomer = Newcomer(
            sock, peer, handshake, max_packet, guarded=guarded, refusal=reason, no_look=no_look
        )
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._newcomers[sock.fileno()] = newcomer
        self._by_user[peer.uid] += 1
        return newcomer

    def _dispensable(self, newcomers: Iterable[int] = ()) -> Newcomer:
        # The oldest connection of the user that has most of them, newcomers counted. So a user that
        # floods the server pushes out its own connections alone.
        counts = self._by_user + Counter(newcomers)
        crowd = max(counts, key=lambda uid: counts[uid])
        return next(each for each in self._newcomers.values() if each.peer.uid == crowd)

    def _drop_a_silent_one(self) -> bool:
        # All descriptors are in use, many perhaps by connections that say nothing. One that has had
        # more time than any process needs makes room for one that waits; the others keep theirs.
        if not self._newcomers:
            return False
        silent = self._dispensable()
        if time.monotonic() - silent.since < BACKOFF:
            return False
        self.drop(silent)
        return True

    # ---- after the reply ----

    def read_reply(self, descriptor: int) -> None:
        """Read what came on a newcomer's descriptor, and let it in or refuse it."""
        newcomer = self._newcomers[descriptor]
        try:
            if newcomer.guarded and rights.come_next(newcomer.sock):
                self._journal.log(logging.INFO, "%s sent descriptors with its reply", newcomer.peer)
                self.drop(newcomer)
                return
            reply = newcomer.sock.recv(_REPLY_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            reply = b""
        if not reply:
            self.drop(newcomer)
            return
        status = newcomer.handshake.receive(reply)
        if Capability.MONITOR in newcomer.handshake.granted:
            self._let_monitor_in(newcomer)
            return
        if newcomer.refusal is not None:
            self.refuse(newcomer, Status.NOT_ALLOWED, newcomer.refusal)
        elif status is not Status.ACCEPTED:
            self.refuse(newcomer, status)
        else:
            self._let_in(newcomer)

    def _let_monitor_in(self, newcomer: Newcomer) -> None:
        # Of one that may not be a client this was asked before the hello; a rule is asked once.
        asked = newcomer.refusal is not None
        reason = newcomer.no_look if asked else self._monitors.verdict(newcomer.peer)
        if reason is not None:
            self.refuse(newcomer, Status.NOT_ALLOWED, reason)
            return
        reason = self._monitors.crowd(newcomer.peer) or self.shortage(newcomer)
        if reason is not None:
            self.refuse(newcomer, Status.TOO_MANY_CLIENTS, reason)
            return
        try:
            newcomer.sock.send(newcomer.handshake.accept(0), socket.MSG_NOSIGNAL)
        except OSError:
            self.drop(newcomer)  # it is gone
            return
        self._forget(newcomer)
        self._monitors.add(
            newcomer.sock, newcomer.peer, newcomer.max_packet, guarded=newcomer.guarded
        )

    def shortage(self, newcomer: Newcomer) -> str | None:
        """Say why one that came in the spare descriptor cannot stay; None if it can."""
        if not newcomer.in_spare or self._spare.take():
            return None
        return no_descriptors()

    @contextmanager
    def room_for_one(self) -> Iterator[None]:
        """Give up the spare descriptors that letting one in takes, for the time of a block."""
        self._spare.give(_FOR_ONE)
        try:
            yield
        finally:
            self._spare.take()

    def refuse(self, newcomer: Newcomer, status: Status, text: str = "") -> None:
        """Tell a newcomer why it is not let in, and end its connection."""
        self._journal.log(logging.INFO, "%s refused: %s %s", newcomer.peer, status.name, text)
        words = newcomer.handshake.refuse(status, text)
        with suppress(OSError):  # it may be gone, and then needs no reason
            if words:
                newcomer.sock.send(words, socket.MSG_NOSIGNAL)
        self.drop(newcomer)

    def drop(self, newcomer: Newcomer) -> None:
        """End a connection without a word."""
        with suppress(OSError):  # it may be gone
            newcomer.sock.shutdown(socket.SHUT_RDWR)  # a forked child may have a copy
        self.let_go(newcomer)

    def let_go(self, newcomer: Newcomer) -> None:
        """Close its descriptor; the connection goes on if another one of it is open."""
        self._epoll.unregister(newcomer.sock.fileno())
        self._forget(newcomer)
        rights.close(newcomer.sock, newcomer.guarded)
        if newcomer.in_spare:
            self._spare.take()
            if self._deaf_until is not None:
                self._hear_again(time.monotonic())  # the next one may come

    def _forget(self, newcomer: Newcomer) -> None:
        del self._newcomers[newcomer.sock.fileno()]
        take_one(self._by_user, newcomer.peer.uid)


def no_descriptors() -> str:
    """Say that there are no descriptors left, and what to do."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"all {most} descriptors that its process may have are in use: "
        "have its limit raised (ulimit -n, RLIMIT_NOFILE)"
    )


def take_one(counts: Counter[int], uid: int) -> None:
    """Count down by one; a user with none left has no entry."""
    if counts[uid] > 1:
        counts[uid] -= 1
    else:
        del counts[uid]  # or the users that ever were would add up
