# SPDX-License-Identifier: Apache-2.0
"""The control plane: one quiet thread that lets clients in and tells what became of them.

It sleeps in epoll until somebody connects, replies to the hello, or the core has an event. All
connections shake hands at the same time, each with its deadline. Once a client is let in, its
descriptor belongs to the core and this thread never sees its messages.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from itertools import islice
from typing import TYPE_CHECKING, Final

from .._green import new_thread, original
from .._native import check, ffi, lib, new_eventfd, owned_descriptors
from .._peer import Peer, peer_command
from .._wire import rights
from .._wire.handshake import Capability, ServerHandshake, ServerHello, Status
from .._wire.listener import Listener
from .._wire.status import as_json
from ..errors import JumiksError
from ..stats import ClientInfo, EndReason, client_info, server_stats
from .access import Quota, Rule, refusal
from .journal import Journal
from .lag_watch import LOOK_EVERY, LagWatch
from .monitors import MonitorRule, Monitors
from .pages import MORE_THAN_CONNECTIONS, Pages

if TYPE_CHECKING:
    from .._core import Attached
    from .._core import Server as Handle

__all__: list[str] = []

log = logging.getLogger("jumiks")

MAX_JOINING: Final = 256
"""Connections that may shake hands at a time; of more, one is dropped: see `_dispensable`."""

BACKOFF: Final = 0.1
"""Seconds without accepting after the system ran out of descriptors or memory."""

_LONGEST_SLEEP: Final = 3600.0  # epoll cannot wait for any number of seconds

_NO_THREAD: Final = "can't start new thread"
"""What Python says when the system refuses a thread (EAGAIN), in 3.11 to 3.14."""

_ACCEPTS: Final = 32
_FOR_ONE: Final = 2
SPARE: Final = _FOR_ONE + 1
_REPLY_LIMIT: Final = 4096
_LEAST_PACKET: Final = 512
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}

_NO_LOG: Final = "%s gets packets, as it cannot be given the log: %s"

_STATUS_OF: Final = {
    lib.JMK_E_NO_SLOT: Status.TOO_MANY_CLIENTS,
    lib.JMK_E_START: Status.START,
    lib.JMK_E_CLOSED: Status.CLOSING,
}

ClientCallback = Callable[[ClientInfo], object]


class _Joining:
    """A connection that shakes hands."""

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        handshake: ServerHandshake,
        limit: int,
        *,
        guarded: bool,
        refusal: str | None,
        no_look: str | None,
    ) -> None:
        self.sock = sock
        self.guarded = guarded
        self.peer = peer
        self.handshake = handshake
        self.max_packet = limit
        self.refusal = refusal
        """Why it may not be a client; None if it may."""
        self.no_look = no_look
        """Why it may not be a monitor, if it may not be a client."""
        self.in_spare = False
        """Whether its descriptor is the spare one, as there was no other."""
        self.since = time.monotonic()


class _Spare:
    """Descriptors kept for the time when all others are used up.

    Two are for letting in who has replied, as silent ones may have used up the rest. What that
    takes, the socket once more and the cursor page, is given back by then. One is for the
    connection that there is no other for: it is told so, and refused.

    Args:
        descriptor: of which they are copies.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._copies: list[FileIO] = []
        self.take()

    def take(self) -> bool:
        """Take what is missing, or as much as there is; returns whether that is all."""
        with suppress(OSError):
            while len(self._copies) < SPARE:
                self._copies.extend(owned_descriptors(map(os.dup, (self._descriptor,))))
        return len(self._copies) == SPARE

    def give(self, count: int = SPARE) -> None:
        """Let go of so many of them."""
        while self._copies and count:
            self._copies[-1].close()
            del self._copies[-1]
            count -= 1

    def __del__(self) -> None:
        if hasattr(self, "_copies"):
            self.give()


class Control:
    """The control thread of one server.

    Args:
        handle: the core's server.
        listener: where clients come in.
        hello: what to tell clients, but for the figures of the moment.
        rule: who may connect.
        quota: how many connections one user may have.
        handshake_timeout: seconds a client has for its reply.
        on_connect: called with each client that was let in.
        on_disconnect: called with each that is gone, and why (`ClientInfo.reason`).
        monitor: who may look at the status.
        about: what else the status tells.
        on_lag_warning: called with each that comes near its limit.
        lag_watch: which those are.
    """

    def __init__(
        self,
        handle: Handle,
        listener: Listener,
        *,
        hello: ServerHello,
        rule: Rule,
        quota: Quota,
        handshake_timeout: float,
        on_connect: ClientCallback | None,
        on_disconnect: Callable[[ClientInfo, EndReason], object] | None,
        monitor: MonitorRule,
        about: Mapping[str, object],
        on_lag_warning: ClientCallback | None,
        lag_watch: LagWatch,
    ) -> None:
        self._handle = handle
        self._listener = listener
        self._hello = hello
        # What a stranger learns: how to read why it is one.
        self._nothing = ServerHello(hello.version, hello.capabilities)
        self._rule = rule
        self._quota = quota
        # By user: how many of `_joining`, and of `peers`.
        self._joining_of: Counter[int] = Counter()
        self._let_in_of: Counter[int] = Counter()
        self._timeout = handshake_timeout
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._on_lag_warning = on_lag_warning
        self._lag_watch = lag_watch
        self._next_look = time.monotonic()
        self._journal = Journal(log)
        self._joining: dict[int, _Joining] = {}
        self._event = ffi.new("struct jmk_event *")
        self._stats = ffi.new("struct jmk_stats *")
        self._account = ffi.new("struct jmk_account *")
        self._oldest_id, self._next_id = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        self._event_fd = lib.jmk_server_event_fd(handle)
        self._deaf_until: float | None = None
        self._closing = False
        self.peers: dict[int, Peer] = {}
        """Who is behind each key the core knows; entries go with their CLOSED event."""
        self.present: set[int] = set()
        """Keys of the clients that were let in and are not gone, guarded by `changed`."""
        # Greenlets look at it again and again; who waits for it is a thread.
        self.changed = threading.Condition(original("_thread", "RLock")())
        self.endings = dict.fromkeys(EndReason, 0)
        """How many clients are gone, by reason; written by the thread alone."""
        self._wake = new_eventfd()
        try:
            self._epoll = original("select", "epoll")()
            for descriptor in (self._wake.fileno(), self._event_fd, listener.fileno()):
                self._epoll.register(descriptor, select.EPOLLIN)
            self._about = about
            self._monitors = Monitors(monitor, self._epoll, self._status)
            self._spare = _Spare(self._wake.fileno())
            self.pages = Pages(self._epoll)
            self._unclaimed = [True]  # popped by who tears down: the thread, or who cannot start it
            self.thread = new_thread(self._run, f"jumiks {listener.address}")
        except BaseException:
            self._wake.close()
            raise

    def start(self) -> None:
        """Start the thread.

        Raises:
            OSError: the system allows no further one. All is given back then.
            RuntimeError: Python allows none: in this interpreter, or so late.

        What a signal's handler raises may come when the thread runs already: then `close` ends it.
        """
        try:
            self.thread.start()
        except BaseException as error:
            if self._claim():
                self._tear_down()
            if not isinstance(error, RuntimeError):
                raise
            # Python gives no errno, so its text has to tell the system's refusal from its own.
            if str(error) == _NO_THREAD:
                text = f"cannot start the server's thread: {os.strerror(errno.EAGAIN)}"
                raise OSError(errno.EAGAIN, text) from error
            raise RuntimeError(
                f"cannot start the server's thread: {error}: make the server in the main "
                "interpreter, before it shuts down"
            ) from error

    def is_current(self) -> bool:
        """Whether the caller runs in this thread: in a callback, or a logging handler."""
        return threading.get_native_id() == self.thread.native_id

    def close(self) -> None:
        """Let nobody in any more; the thread ends when the core has said all its goodbyes."""
        self._closing = True
        with self.changed:  # once it is closed the number may be another's
            if not self._wake.closed:
                os.eventfd_write(self._wake.fileno(), 1)

    # What follows runs in the thread.

    def _claim(self) -> bool:
        with suppress(IndexError):
            return self._unclaimed.pop()
        return False

    def _run(self) -> None:
        if not self._claim():
            return
        try:
            while not self._finished():
                for descriptor, events in self._epoll.poll(self._until_next_deadline()):
                    try:
                        self._dispatch(descriptor, events)
                    except BaseException:  # one connection's trouble must not become everybody's
                        log.exception("a connection failed")
                        if descriptor in self._joining:
                            self._drop(self._joining[descriptor])
                self._expire()
        finally:
            self._tear_down()

    def _finished(self) -> bool:
        return self._closing and lib.jmk_server_join(self._handle, 0) == 0

    def _tear_down(self) -> None:
        self._take_events()
        for joining in list(self._joining.values()):
            self._drop(joining)
        self._monitors.close()
        self.pages.close()
        self.stop_listening()
        self._epoll.close()
        self._spare.give()
        self._journal.close()
        with self.changed:
            self._wake.close()
            self.changed.notify_all()
        del self._handle  # a closed server gives its log back, even if somebody still refers to it

    def __del__(self) -> None:
        if hasattr(self, "_wake"):
            self._wake.close()  # of one whose thread was never started

    def _until_next_deadline(self) -> float | None:
        # All have the same time, so the first that came is the first that is due.
        deadlines = [joining.since + self._timeout for joining in islice(self._joining.values(), 1)]
        if self._deaf_until is not None:
            deadlines.append(self._deaf_until)
        deadlines += [
            due for due in (self._monitors.deadline, self._journal.deadline) if due is not None
        ]
        if self._on_lag_warning is not None and self.present:
            deadlines.append(self._next_look)
        if not deadlines:
            return None
        return min(max(0.0, min(deadlines) - time.monotonic()), _LONGEST_SLEEP)

    def _dispatch(self, descriptor: int, events: int) -> None:
        if descriptor == self._event_fd:
            self._take_events()
        elif descriptor == self._wake.fileno():
            os.eventfd_read(descriptor)
            for joining in list(self._joining.values()):
                self._refuse(joining, Status.CLOSING)
            self.stop_listening()
        elif descriptor == self.pages.fileno():
            self.pages.read()
        elif descriptor in self._joining:
            self._read_reply(self._joining[descriptor])
        elif descriptor in self._monitors:
            self._monitors.handle(descriptor, events)
        elif descriptor == self._listener.fileno():
            self._accept()

    def stop_listening(self) -> None:
        """Close the listener; the thread alone may call it, or nobody who runs beside it."""
        if self._listener.fileno() >= 0:
            # Closing it is not enough for epoll where a forked child has a copy.
            with suppress(OSError):  # it may be deaf
                self._epoll.unregister(self._listener.fileno())
            self._listener.close()
            self._deaf_until = None

    def leave_to_parent(self) -> None:
        """In a forked child: let go of its copies."""
        self._listener.close()
        self._epoll.close()
        self.__dict__.pop("_handle", None)

    def _expire(self) -> None:
        now = time.monotonic()
        if self._deaf_until is not None and now >= self._deaf_until:
            self._hear_again(now)
        while self._joining:
            joining = next(iter(self._joining.values()))
            if now < joining.since + self._timeout:
                break
            self._journal.log(
                logging.INFO, "%s sent no reply within %g s", joining.peer, self._timeout
            )
            self._drop(joining)
        self._monitors.expire(now)
        self._journal.expire()
        if self._on_lag_warning is not None and self.present and now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self._warn(self._on_lag_warning)

    def _warn(self, on_lag_warning: ClientCallback) -> None:
        try:
            infos = client_infos(self._handle, self.peers)
        except JumiksError:
            return  # it is closing
        for info in self._lag_watch.look(infos):
            self._call(on_lag_warning, info)

    # ---- coming in ----

    def _accept(self) -> None:
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
        # One at a time: the others wait in the backlog until it is refused, or let in after all.
        if not self._spare.take():
            return None
        self._spare.give(1)
        try:
            return self._listener.accept()
        except OSError:
            self._spare.take()
            return None

    def _shortage(self, joining: _Joining) -> str | None:
        # Why one that came in the spare descriptor cannot stay; None if there are others by now.
        if not joining.in_spare or self._spare.take():
            return None
        return _no_descriptors()

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

    def _greet(self, sock: socket.socket, *, guarded: bool) -> _Joining:
        sock.setblocking(False)
        limit = ffi.new("uint32_t *", 0)
        check(lib.jmk_socket_prepare(self._handle, sock.fileno(), limit), "server")
        peer = Peer.of(sock)
        # Ask before anything is told.
        reason = refusal(self._rule, peer, self._listener.address.abstract)
        no_look = None if reason is None else self._monitors.verdict(peer)
        stranger = reason is not None and no_look is not None
        handshake = ServerHandshake(self._nothing if stranger else self._hello_now(limit[0]))
        sock.send(handshake.hello(), socket.MSG_NOSIGNAL)
        if len(self._joining) >= MAX_JOINING:
            self._drop(self._dispensable((peer.uid,)))
        joining = _Joining(
            sock, peer, handshake, limit[0], guarded=guarded, refusal=reason, no_look=no_look
        )
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._joining[sock.fileno()] = joining
        self._joining_of[peer.uid] += 1
        return joining

    def _dispensable(self, newcomers: Iterable[int] = ()) -> _Joining:
        # The oldest connection of the user that has most, newcomers counted, so that a user who
        # floods pushes nobody out but itself.
        counts = self._joining_of + Counter(newcomers)
        crowd = max(counts, key=lambda uid: counts[uid])
        return next(each for each in self._joining.values() if each.peer.uid == crowd)

    def _drop_a_silent_one(self) -> bool:
        # Out of descriptors, half of them perhaps in connections that say nothing. Who has had
        # more time than any process needs makes room for who waits; the others are not hurried.
        if not self._joining:
            return False
        silent = self._dispensable()
        if time.monotonic() - silent.since < BACKOFF:
            return False
        self._drop(silent)
        return True

    def _hello_now(self, max_packet: int) -> ServerHello:
        check(lib.jmk_server_ids(self._handle, self._oldest_id, self._next_id), "server")
        return replace(
            self._hello,
            oldest_id=self._oldest_id[0],
            next_id=self._next_id[0],
            max_packet=max_packet,
        )

    def _drop(self, joining: _Joining) -> None:
        with suppress(OSError):  # it may be gone
            joining.sock.shutdown(socket.SHUT_RDWR)  # a forked child may have a copy
        self._let_go(joining)

    def _let_go(self, joining: _Joining) -> None:
        # The connection goes on if another descriptor of it is open.
        self._epoll.unregister(joining.sock.fileno())
        self._forget(joining)
        rights.close(joining.sock, joining.guarded)
        if joining.in_spare:
            self._spare.take()
            if self._deaf_until is not None:
                self._hear_again(time.monotonic())  # the next one may come

    def _forget(self, joining: _Joining) -> None:
        del self._joining[joining.sock.fileno()]
        _take_one(self._joining_of, joining.peer.uid)

    def _refuse(self, joining: _Joining, status: Status, text: str = "") -> None:
        self._journal.log(logging.INFO, "%s refused: %s %s", joining.peer, status.name, text)
        words = joining.handshake.refuse(status, text)
        with suppress(OSError):  # it may be gone, and then needs no reason
            if words:
                joining.sock.send(words, socket.MSG_NOSIGNAL)
        self._drop(joining)

    def _read_reply(self, joining: _Joining) -> None:
        try:
            if joining.guarded and rights.come_next(joining.sock):
                self._journal.log(logging.INFO, "%s sent descriptors with its reply", joining.peer)
                self._drop(joining)
                return
            reply = joining.sock.recv(_REPLY_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            reply = b""
        if not reply:
            self._drop(joining)
            return
        status = joining.handshake.receive(reply)
        if Capability.MONITOR in joining.handshake.granted:
            self._let_monitor_in(joining)
            return
        if joining.refusal is not None:
            self._refuse(joining, Status.NOT_ALLOWED, joining.refusal)
        elif status is not Status.ACCEPTED:
            self._refuse(joining, status)
        elif (reason := self._beyond_quota(joining) or self._shortage(joining)) is not None:
            self._refuse(joining, Status.TOO_MANY_CLIENTS, reason)
        else:
            self._spare.give(_FOR_ONE)
            try:
                self._let_in(joining)
            finally:
                self._spare.take()

    def _beyond_quota(self, joining: _Joining) -> str | None:
        uid = joining.peer.uid
        others = self._joining_of[uid] - 1
        reason = self._quota.refusal(uid, self._let_in_of[uid] + others)
        if reason is None:
            return None
        self._take_events()  # one of them may be gone
        reason = self._quota.refusal(uid, self._let_in_of[uid] + others)
        return reason and f"{reason} (max_clients_per_user)"

    def _let_monitor_in(self, joining: _Joining) -> None:
        # Of one that may not be a client this was asked before the hello; a rule is asked once.
        asked = joining.refusal is not None
        reason = joining.no_look if asked else self._monitors.verdict(joining.peer)
        if reason is not None:
            self._refuse(joining, Status.NOT_ALLOWED, reason)
            return
        reason = self._monitors.crowd(joining.peer) or self._shortage(joining)
        if reason is not None:
            self._refuse(joining, Status.TOO_MANY_CLIENTS, reason)
            return
        try:
            joining.sock.send(joining.handshake.accept(0), socket.MSG_NOSIGNAL)
        except OSError:
            self._drop(joining)  # it is gone
            return
        self._forget(joining)
        self._monitors.add(joining.sock, joining.peer, joining.max_packet, guarded=joining.guarded)

    def _status(self) -> Iterator[str]:
        check(lib.jmk_server_stats(self._handle, self._stats), "server")
        clients = client_infos(self._handle, self.peers)
        return as_json(
            self._about, server_stats(self._stats, len(self.pages)), clients, len(self._monitors)
        )

    def _let_in(self, joining: _Joining) -> None:
        wish = joining.handshake.peer
        assert wish is not None
        if wish.max_packet and wish.max_packet < _LEAST_PACKET:
            text = f"its largest packet, {wish.max_packet} bytes, is below {_LEAST_PACKET}"
            self._refuse(joining, Status.MALFORMED, text)
            return
        granted = joining.handshake.granted
        mode, limit = lib.JMK_CLASSIC, wish.max_packet
        if Capability.FRAMES in granted:
            mode = lib.JMK_SHARED if Capability.LOG in granted else lib.JMK_FRAMED
            if mode == lib.JMK_SHARED and self._has_too_many_pages(joining.peer):
                mode = lib.JMK_FRAMED
            limit = min(joining.max_packet, wish.max_packet or joining.max_packet)
        attached = ffi.new("struct jmk_attached *")
        # The core may close its descriptor at any moment from now on, so it gets one of its own.
        try:
            descriptor = os.dup(joining.sock.fileno())
        except OSError:
            self._refuse(joining, Status.TOO_MANY_CLIENTS, _no_descriptors())
            return
        start = wish.start if joining.handshake.extended else 0
        code = lib.jmk_server_attach(self._handle, descriptor, mode, limit, start, attached)
        if code < 0 and mode == lib.JMK_SHARED:
            self._journal.log(logging.WARNING, _NO_LOG, joining.peer, os.strerror(-code))
            mode = lib.JMK_FRAMED
            code = lib.jmk_server_attach(self._handle, descriptor, mode, limit, start, attached)
        if code:
            os.close(descriptor)
            if code == -errno.EMFILE:
                self._refuse(joining, Status.TOO_MANY_CLIENTS, _no_descriptors())
            else:
                self._refuse(joining, _STATUS_OF.get(code, Status.INTERNAL))
            return
        self._welcome(joining, attached)

    def _has_too_many_pages(self, peer: Peer) -> bool:
        held, most = self.pages.held(peer.uid), MORE_THAN_CONNECTIONS * self._quota.limit
        if not self._quota.binds(peer.uid) or held < most:
            return False
        reason = f"its user holds {held} cursor pages, and {most} are the most"
        self._journal.log(logging.WARNING, _NO_LOG, peer, reason)
        return True

    def _welcome(self, joining: _Joining, attached: Attached) -> None:
        key, cursor = attached.key, attached.cursor_fd
        command = peer_command(joining.sock, joining.peer.pid)
        peer = self.peers[key] = replace(joining.peer, command=command)
        self._let_in_of[peer.uid] += 1
        welcomed = True
        try:
            self._send_welcome(joining, attached)
        except OSError as error:
            self._journal.log(logging.INFO, "%s got no welcome: %s", peer, error)
            # It may still be there, and would wait for it.
            lib.jmk_server_disconnect(self._handle, key, lib.JMK_R_LEFT)
            welcomed = False
        finally:
            if cursor >= 0:
                os.close(cursor)
        self._let_go(joining)
        lib.jmk_server_release(self._handle, key)
        if not welcomed:
            return  # nobody is told that it came, nor that it is gone
        # It may be gone by now; the event that says so follows.
        with self.changed:
            self.present.add(key)
            self.changed.notify_all()
        self._journal.log(logging.INFO, "%s connected, client %d", peer, key)
        if self._on_connect is not None:
            check(lib.jmk_server_account(self._handle, key, self._account), "server")
            self._call(self._on_connect, client_info(self._account, peer))

    def _send_welcome(self, joining: _Joining, attached: Attached) -> None:
        if attached.cursor_fd < 0:
            welcome = joining.handshake.accept(attached.first_id, None, attached.left_out)
            if welcome:
                joining.sock.send(welcome, socket.MSG_NOSIGNAL)
            return
        welcome = joining.handshake.accept(
            attached.first_id, attached.first_offset, attached.left_out
        )
        if self._quota.binds(joining.peer.uid):
            self.pages.add(joining.peer.uid, attached.cursor_fd)
        descriptors = [lib.jmk_server_log_fd(self._handle), attached.cursor_fd]
        try:
            socket.send_fds(joining.sock, [welcome], descriptors, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:  # of this user too many are in flight: unix(7)
                raise
            self._journal.log(logging.WARNING, _NO_LOG, joining.peer, error.strerror)
            lib.jmk_server_send_packets(self._handle, attached.key)  # if it has not ended by now
            welcome = joining.handshake.accept(attached.first_id, None, attached.left_out)
            joining.sock.send(welcome, socket.MSG_NOSIGNAL)

    # ---- events ----

    def _take_events(self) -> None:
        while lib.jmk_server_next_event(self._handle, self._event) == 0:
            account, kind = self._event.account, self._event.kind
            if kind == lib.JMK_EVENT_CLOSED:
                _take_one(self._let_in_of, self.peers.pop(account.key).uid)
                continue
            info = client_info(account, self.peers[account.key])
            if kind == lib.JMK_EVENT_SKIPPED:
                self._journal.log(
                    logging.WARNING, "client %d (%s) skipped %s", info.key, info.peer, info.lost
                )
            else:
                self._gone(info)

    def _gone(self, info: ClientInfo) -> None:
        assert info.reason is not None
        level = logging.WARNING if info.reason is EndReason.LAGGED else logging.INFO
        self._journal.log(level, "gone (%s): %s; lost %s", info.reason.name, info, info.lost)
        if info.key not in self.present:
            return  # nobody was told that it came
        self.endings[info.reason] += 1
        with self.changed:
            self.present.remove(info.key)
            self.changed.notify_all()
        if self._on_disconnect is not None:
            self._call(self._on_disconnect, info, info.reason)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            function(*args)
        except BaseException:  # also sys.exit, and what a cancelled future raises
            log.exception("%r raised", function)


def _no_descriptors() -> str:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"all {most} descriptors that its process may have are in use: "
        "have its limit raised (ulimit -n, RLIMIT_NOFILE)"
    )


def _take_one(counts: Counter[int], uid: int) -> None:
    if counts[uid] > 1:
        counts[uid] -= 1
    else:
        del counts[uid]  # or the users that ever were would add up


def client_infos(handle: Handle, peers: dict[int, Peer]) -> list[ClientInfo]:
    """Ask the core for all clients that are connected now.

    Raises:
        JumiksError: as `check` does.
    """
    count = ffi.new("size_t *", 0)
    capacity = len(peers) + 8
    while True:
        accounts = ffi.new("struct jmk_account[]", capacity)
        check(lib.jmk_server_accounts(handle, accounts, capacity, count), "server")
        if count[0] <= capacity:
            break
        capacity = count[0] + 8
    found = []
    for index in range(count[0]):
        peer = peers.get(accounts[index].key)
        if peer is not None:  # else its welcome is not out yet
            found.append(client_info(accounts[index], peer))
    return found
