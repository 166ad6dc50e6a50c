# SPDX-License-Identifier: Apache-2.0
"""The control plane: one thread per server, which lets clients in and reports their ends.

It sleeps in epoll until a client connects or replies to the hello, or the core has an event. Once a
client is let in, its descriptor belongs to the core, and this thread never sees its messages.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from .. import errors
from .._green import new_thread, original
from .._native import check, ffi, lib
from .._peer import Peer, peer_command
from .._wire.handshake import Capability, ServerHello, Status
from .._wire.listener import Listener
from .._wire.status import as_json
from ..errors import JumiksError
from ..stats import ClientInfo, EndReason, client_info, server_stats
from .access import Quota, Rule
from .changes import Changes
from .journal import Journal
from .lag_watch import LOOK_EVERY, LagWatch
from .monitors import MonitorRule, Monitors
from .newcomers import Newcomer, Newcomers, no_descriptors, take_one
from .pages import MORE_THAN_CONNECTIONS, Pages

if TYPE_CHECKING:
    from .._core import Account, Attached
    from .._core import Server as Handle

__all__: list[str] = []

log = logging.getLogger("jumiks")

_LONGEST_SLEEP: Final = 3600.0  # epoll cannot wait for any number of seconds

_NO_THREAD: Final = "can't start new thread"
"""What Python says when the system refuses a thread (EAGAIN), in 3.11 to 3.14."""

_LAST_STEPS: Final = 1.0
"""Seconds that a thread may need from its last line of ours to its end, and far more."""

_CUT: Final = (EndReason.LAGGED, EndReason.TOO_LARGE)
"""Ends of clients that were not over with it."""

_UNKNOWN: Final = (EndReason.LEFT, EndReason.ERROR)
"""Ends behind which nobody knows what a client received."""

_NO_LOG: Final = "%s gets packets, as it cannot be given the log: %s"

_STATUS_OF: Final = {
    lib.JMK_E_NO_SLOT: Status.TOO_MANY_CLIENTS,
    lib.JMK_E_START: Status.START,
    lib.JMK_E_CLOSED: Status.CLOSING,
}

ClientCallback = Callable[[ClientInfo], object]


class Control:
    """The control thread of one server.

    Args:
        handle: the core's server.
        listener: where clients come in.
        hello: the first packet for clients, without the figures of the moment.
        rule: which peers may connect.
        quota: how many connections one user may have.
        max_clients: how many clients may be connected, for messages.
        handshake_timeout: seconds that a client has for its reply.
        on_connect: called with each client that was let in.
        on_disconnect: called with each client that is gone, and the reason.
        monitor: which peers may ask for the status.
        about: further facts for the status.
        on_lag_warning: called with each client that comes near its limit.
        lag_watch: finds those clients.
    """

    def __init__(
        self,
        handle: Handle,
        listener: Listener,
        *,
        hello: ServerHello,
        rule: Rule,
        quota: Quota,
        max_clients: int,
        handshake_timeout: float,
        on_connect: ClientCallback | None,
        on_disconnect: Callable[[ClientInfo, EndReason], object] | None,
        monitor: MonitorRule,
        about: Mapping[str, object],
        on_lag_warning: ClientCallback | None,
        lag_watch: LagWatch,
    ) -> None:
        self._handle = handle
        self._hello, self._about = hello, about
        self._quota = quota
        self._max_clients = max_clients
        self._let_in_of: Counter[int] = Counter()  # how many of `peers` each user has
        self._on_connect, self._on_disconnect = on_connect, on_disconnect
        self._on_lag_warning = on_lag_warning
        self._lag_watch = lag_watch
        self._next_look = time.monotonic()
        self._journal = Journal(log)
        self._event_fd = lib.jmk_server_event_fd(handle)
        self._closing = False
        self.peers: dict[int, Peer] = {}
        """The peer of each key that the core knows. An entry goes with its CLOSED event."""
        self.present: set[int] = set()
        """Keys of the clients that were let in and are not gone; changed by the thread alone."""
        self.changes = Changes()
        """Tells of `present`, of the server's closing and of this thread's end."""
        self._is_over = False
        self.endings = dict.fromkeys(EndReason, 0)
        """How many clients are gone, by reason; written by the thread alone."""
        self._epoll = original("select", "epoll")()
        self._epoll.register(self._event_fd, select.EPOLLIN)
        self._monitors = Monitors(monitor, self._epoll, self._status)
        self._newcomers = Newcomers(
            listener,
            self._epoll,
            self._journal,
            self._monitors,
            hello_for=self._hello_for,
            rule=rule,
            timeout=handshake_timeout,
            let_in=self._let_in,
            descriptor=self._event_fd,
        )
        self.pages = Pages(self._epoll)
        # Popped by what tears down: the thread, or `start` if it fails.
        self._unclaimed = [True]
        self.thread = new_thread(self._run, f"jumiks {listener.address}")

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

    def close(self, handle: Handle) -> None:
        """Let no client in any more; the thread ends once the core has sent all goodbyes.

        Args:
            handle: the core's server. While the caller has it, its descriptor for events is open,
                though this thread may be over by now.
        """
        self._closing = True
        os.eventfd_write(lib.jmk_server_event_fd(handle), 1)
        self.changes.tell()

    def hurry(self) -> None:
        """Give clients no more time in a close that is under way."""
        handle = self.__dict__.get("_handle")  # the thread drops it at its end
        if handle is not None:
            lib.jmk_server_close(handle, 0)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended; a signal's handler may call it too.

        Args:
            timeout: seconds; None is no limit.
        """
        if self.changes.wait_for(lambda: self._is_over, timeout):
            # Bounded: Thread.join holds a lock for an instant, and may be what was interrupted.
            self.thread.join(_LAST_STEPS)

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
                        self._newcomers.fail(descriptor)
                self._expire()
        finally:
            try:
                self._tear_down()
            finally:
                self._is_over = True
                self.changes.tell()

    def _finished(self) -> bool:
        return self._closing and lib.jmk_server_join(self._handle, 0) == 0

    def _tear_down(self) -> None:
        self._take_events()
        self._newcomers.close()
        self._monitors.close()
        self.pages.close()
        self._epoll.close()
        self._journal.close()
        del self._handle  # frees the log of a closed server, even while its object is referred to

    def _until_next_deadline(self) -> float | None:
        all_deadlines = (each.deadline for each in (self._newcomers, self._monitors, self._journal))
        deadlines = [deadline for deadline in all_deadlines if deadline is not None]
        if self._on_lag_warning is not None and self.present:
            deadlines.append(self._next_look)
        if not deadlines:
            return None
        return min(max(0.0, min(deadlines) - time.monotonic()), _LONGEST_SLEEP)

    def _dispatch(self, descriptor: int, events: int) -> None:
        if descriptor == self._event_fd:
            if self._closing:
                self._newcomers.refuse_all(Status.CLOSING)
                self._newcomers.stop_listening()
            self._take_events()
        elif descriptor == self.pages.fileno():
            self.pages.read()
        elif descriptor in self._newcomers:
            self._newcomers.read_reply(descriptor)
        elif descriptor in self._monitors:
            self._monitors.handle(descriptor, events)
        else:
            self._newcomers.accept(descriptor)

    def stop_listening(self) -> None:
        """Close the listener; only the control thread may call it, or a caller without one."""
        self._newcomers.stop_listening()

    def leave_to_parent(self) -> None:
        """In a forked child: let go of its copies."""
        self._newcomers.leave_to_parent()
        self._epoll.close()
        self.__dict__.pop("_handle", None)

    def _expire(self) -> None:
        now = time.monotonic()
        self._newcomers.expire(now)
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
        for info in self._lag_watch.newly_near(infos):
            self._call(on_lag_warning, info)

    # ---- coming in ----

    def _hello_for(self, sock: socket.socket) -> ServerHello:
        limit = ffi.new("uint32_t *", 0)
        oldest, following = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        check(lib.jmk_socket_prepare(self._handle, sock.fileno(), limit), "server")
        check(lib.jmk_server_ids(self._handle, oldest, following), "server")
        return replace(self._hello, oldest_id=oldest[0], next_id=following[0], max_packet=limit[0])

    def _beyond_quota(self, newcomer: Newcomer) -> str | None:
        uid = newcomer.peer.uid
        others = self._newcomers.held(uid) - 1
        reason = self._quota.refusal(uid, self._let_in_of[uid] + others)
        if reason is None:
            return None
        self._take_events()  # one of them may be gone
        reason = self._quota.refusal(uid, self._let_in_of[uid] + others)
        return reason and f"{reason} (max_clients_per_user)"

    def _status(self) -> Iterator[str]:
        stats = ffi.new("struct jmk_stats *")
        check(lib.jmk_server_stats(self._handle, stats), "server")
        clients = client_infos(self._handle, self.peers)
        figures = server_stats(stats, len(self.pages))
        return as_json(self._about, figures, clients, len(self._monitors))

    def _let_in(self, newcomer: Newcomer) -> None:
        reason = self._beyond_quota(newcomer) or self._newcomers.shortage(newcomer)
        if reason is not None:
            self._newcomers.refuse(newcomer, Status.TOO_MANY_CLIENTS, reason)
            return
        with self._newcomers.room_for_one():
            self._attach(newcomer)

    def _attach(self, newcomer: Newcomer) -> None:
        wish = newcomer.handshake.peer
        assert wish is not None
        if wish.max_packet and wish.max_packet < lib.JMK_LEAST_PACKET:
            text = f"its largest packet, {wish.max_packet} bytes, is below {lib.JMK_LEAST_PACKET}"
            self._newcomers.refuse(newcomer, Status.MALFORMED, text)
            return
        granted = newcomer.handshake.granted
        delivery, limit = lib.JMK_CLASSIC, wish.max_packet
        if Capability.FRAMES in granted:
            delivery = lib.JMK_SHARED if Capability.LOG in granted else lib.JMK_FRAMED
            if delivery == lib.JMK_SHARED and self._has_too_many_pages(newcomer.peer):
                delivery = lib.JMK_FRAMED
            limit = min(newcomer.max_packet, wish.max_packet or newcomer.max_packet)
        attached = ffi.new("struct jmk_attached *")
        # The core may close its descriptor at any moment from now on, so it gets one of its own.
        try:
            descriptor = os.dup(newcomer.sock.fileno())
        except OSError:
            self._newcomers.refuse(newcomer, Status.TOO_MANY_CLIENTS, no_descriptors())
            return
        start = wish.start if newcomer.handshake.extended else 0
        code = lib.jmk_server_attach(self._handle, descriptor, delivery, limit, start, attached)
        if code < 0 and delivery == lib.JMK_SHARED:
            self._journal.log(logging.WARNING, _NO_LOG, newcomer.peer, os.strerror(-code))
            delivery = lib.JMK_FRAMED
            code = lib.jmk_server_attach(self._handle, descriptor, delivery, limit, start, attached)
        if code:
            os.close(descriptor)
            if code == -errno.EMFILE:
                self._newcomers.refuse(newcomer, Status.TOO_MANY_CLIENTS, no_descriptors())
            else:
                full = code == lib.JMK_E_NO_SLOT
                text = errors.ALL_TAKEN.format(count=self._max_clients) * full
                self._newcomers.refuse(newcomer, _STATUS_OF.get(code, Status.INTERNAL), text)
            return
        self._welcome(newcomer, attached)

    def _has_too_many_pages(self, peer: Peer) -> bool:
        held, most = self.pages.held(peer.uid), MORE_THAN_CONNECTIONS * self._quota.limit
        if not self._quota.binds(peer.uid) or held < most:
            return False
        reason = f"its user holds {held} cursor pages, and {most} are the most"
        self._journal.log(logging.WARNING, _NO_LOG, peer, reason)
        return True

    def _welcome(self, newcomer: Newcomer, attached: Attached) -> None:
        key, cursor = attached.key, attached.cursor_fd
        command = peer_command(newcomer.sock, newcomer.peer.pid)
        peer = self.peers[key] = replace(
            newcomer.peer, command=command, name=newcomer.handshake.name
        )
        self._let_in_of[peer.uid] += 1
        welcomed = True
        try:
            self._send_welcome(newcomer, attached)
        except OSError as error:
            self._journal.log(logging.INFO, "%s got no welcome: %s", peer, error)
            # It may still be there, and would wait for it.
            lib.jmk_server_disconnect(self._handle, key, lib.JMK_R_LEFT)
            welcomed = False
        finally:
            if cursor >= 0:
                os.close(cursor)
        self._newcomers.let_go(newcomer)
        lib.jmk_server_release(self._handle, key)
        if not welcomed:
            return  # neither its coming nor its end is reported
        # It may be gone by now; the event that says so follows.
        self.present.add(key)
        self.changes.tell()
        self._journal.log(logging.INFO, "%s connected", peer)
        if self._on_connect is not None:
            account = ffi.new("struct jmk_account *")
            check(lib.jmk_server_account(self._handle, key, account), "server")
            self._call(self._on_connect, client_info(account, peer))

    def _send_welcome(self, newcomer: Newcomer, attached: Attached) -> None:
        if attached.cursor_fd < 0:
            welcome = newcomer.handshake.accept(attached.first_id, None, attached.left_out)
            if welcome:
                newcomer.sock.send(welcome, socket.MSG_NOSIGNAL)
            return
        welcome = newcomer.handshake.accept(
            attached.first_id, attached.first_offset, attached.left_out
        )
        if self._quota.binds(newcomer.peer.uid):
            self.pages.add(newcomer.peer.uid, attached.cursor_fd)
        descriptors = [lib.jmk_server_log_fd(self._handle), attached.cursor_fd]
        try:
            socket.send_fds(newcomer.sock, [welcome], descriptors, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:  # of this user too many are in flight: unix(7)
                raise
            self._journal.log(logging.WARNING, _NO_LOG, newcomer.peer, error.strerror)
            lib.jmk_server_send_packets(self._handle, attached.key)  # if it has not ended by now
            welcome = newcomer.handshake.accept(attached.first_id, None, attached.left_out)
            newcomer.sock.send(welcome, socket.MSG_NOSIGNAL)

    # ---- events ----

    def _take_events(self) -> None:
        event = ffi.new("struct jmk_event *")
        while lib.jmk_server_next_event(self._handle, event) == 0:
            account, kind = event.account, event.kind
            if kind == lib.JMK_EVENT_CLOSED:
                take_one(self._let_in_of, self.peers.pop(account.key).uid)
                continue
            info = client_info(account, self.peers[account.key])
            if kind == lib.JMK_EVENT_SKIPPED:
                self._journal.log(logging.INFO, "%s skipped %s", info.peer, info.lost)
            else:
                self._gone(info, _too_large(account))

    def _gone(self, info: ClientInfo, words: str) -> None:
        assert info.reason is not None
        level = logging.WARNING if info.reason in _CUT else logging.INFO
        verb = "had not acked" if info.reason in _UNKNOWN else "may have lost"
        lost = f"{words}; it {verb} {info.lost}" if info.lost else ""
        self._journal.log(level, "gone (%s): %s%s", info.reason.name, info, lost)
        if info.key not in self.present:
            return  # its coming was not reported
        self.endings[info.reason] += 1
        self.present.remove(info.key)
        self.changes.tell()
        if self._on_disconnect is not None:
            self._call(self._on_disconnect, info, info.reason)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            function(*args)
        except BaseException:  # also sys.exit, and what a cancelled future raises
            log.exception("%r raised", function)


def _too_large(account: Account) -> str:
    if account.reason != lib.JMK_R_TOO_LARGE:
        return ""
    return (
        f"; message {account.first_lost} has {account.too_large} bytes, and {account.largest} are "
        "the most that one packet to it carries"
    )


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
