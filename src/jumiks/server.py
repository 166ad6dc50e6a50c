# SPDX-License-Identifier: Apache-2.0
"""The publishing side."""

from __future__ import annotations

import atexit
import errno
import functools
import importlib
import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Final, Literal, NoReturn, TypeVar

from . import errors
from ._closing import Closing, shown
from ._green import Pauses, cooperates, new_thread
from ._native import (
    Gathered,
    Publisher,
    Publishing,
    Reservation,
    address_of,
    check,
    ffi,
    gather,
    gather_frames,
    lib,
    nanoseconds,
    owned,
    whole_number,
)
from ._options import (
    HANDSHAKE_TIMEOUT,
    LOG_SIZE,
    MAX_CLIENTS,
    ServerOptions,
    check_count,
    given,
    takes,
)
from ._server import access, lag
from ._server.control import Control, client_infos, log
from ._server.lag_watch import LAG_WARNING, LagWatch
from ._wire.handshake import FIRST_ID, VERSION, Capability, ServerHello
from ._wire.listener import Listener, listen
from .errors import (
    AddressInUse,
    Closed,
    JumiksError,
    MessageTooLarge,
    Timeout,
    counted,
)
from .stats import ClientInfo, EndReason, ServerStats, client_info, server_stats

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._core import Account
    from ._core import Server as Handle

__all__ = ["Server"]

SEND_BUFFER: Final = 196608
"""SO_SNDBUF asked for on each connection, bytes. The kernel counts double; it leaves room under the
usual maximum (net.core.wmem_max, 212992) for the goodbye to a client whose socket is full."""

LINGER: Final = 1.0
"""Seconds by default that `close` gives clients to take what was published."""

_LONGEST: Final = (1 << 63) - 1

_INTERPRETERS: Final = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
_EXIT_PATIENCE: Final = 5.0

_MOVING_PATIENCE: Final = 1.0
"""Seconds in which a server that told its clients of its end has given up its address."""

_MOVING_PAUSE: Final = 0.005

_COLLECTOR_PATIENCE: Final = 1.0
"""Seconds that the collector of a server waits for its thread. It may have come while this thread
holds a lock that the server's thread is waiting for, such as a log handler's."""

_T = TypeVar("_T")


def _other_greenlets_bring(condition: Callable[[], bool], seconds: float | None = None) -> bool:
    """Let other greenlets run until it holds, or the time is over; returns whether it does."""
    deadline = inf if seconds is None else time.monotonic() + seconds
    pauses = Pauses()
    while not condition():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        pauses(left)
    return True


_open_servers: weakref.WeakSet[Server] = weakref.WeakSet()


@atexit.register
def _end_with_interpreter() -> None:
    # A subinterpreter that ends with a thread is a fatal error of the whole process, so there the
    # threads have to go. The process itself ends beside them.
    if _open_servers and not _in_main_interpreter():
        for server in list(_open_servers):
            server._end_now(_EXIT_PATIENCE)


@functools.cache
def _in_main_interpreter() -> bool:
    # Asked when a server is made, as CPython 3.12 ends an interpreter when the last id of it goes:
    # at its end, to ask for its id would end it a second time, which is a fatal error.
    try:
        interpreters = importlib.import_module(_INTERPRETERS)
    except ImportError:
        return True
    return bool(interpreters.get_current() == interpreters.get_main())


def _make_core(options: ServerOptions) -> Handle:
    config = ffi.new("struct jmk_config *")
    config.log_size = options.log_size
    config.max_lag = options.max_lag or 0
    config.first_id = options.first_id
    config.keep, config.keep_bytes = options.kept
    config.patience = options.policy.patience_ns
    config.policy = options.policy.code
    config.max_message = options.largest
    config.max_clients = options.max_clients
    config.send_buffer = SEND_BUFFER
    error = ffi.new("int *")
    handle = owned(map(lib.jmk_server_make, (config,), (error,)), lib.jmk_server_free)
    try:
        check(error[0], "server")
    except OSError as failure:
        text = (
            f"cannot make a log of {options.log_size} bytes (log_size) in a memfd, "
            f"or the thread that serves it: {failure.strerror}"
        )
        raise OSError(failure.errno, text) from failure
    return handle


def _fill(publisher: Publisher, history: Iterable[Buffer | Gathered], max_message: int) -> None:
    # Nobody can connect yet, so no append has to wait.
    for number, message in enumerate(history):
        if isinstance(message, Gathered):  # what a bridge gives: the messages of a record
            code = publisher.append_many(message, 0, 0)[0]
            if code == lib.JMK_E_TOO_LARGE:
                raise MessageTooLarge(message.largest[0], max_message)
            check(code, "server")
            continue
        try:
            code = publisher.append(message)
            if code == lib.JMK_E_TOO_LARGE:
                raise MessageTooLarge(memoryview(message).nbytes, max_message)
        except (TypeError, BufferError, MessageTooLarge) as error:
            error.add_note(f"It is message {number} of history, counted from 0.")
            raise
        if code < FIRST_ID:
            check(code, "server")


def _listen(where: object, options: ServerOptions) -> Listener:
    # The history may have come from a server that is just giving up this address.
    deadline = time.monotonic() + _MOVING_PATIENCE * (options.history != ())
    while True:
        try:
            return listen(where, mode=options.mode, group=options.group)
        except AddressInUse:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_MOVING_PAUSE)


def _end_core(handle: Handle) -> None:
    # A server that could not start leaves nothing behind, so its native thread is waited for.
    lib.jmk_server_close(handle, 0)
    lib.jmk_server_join(handle, int(_EXIT_PATIENCE * 1e9))


def _offered(handle: Handle, options: ServerOptions) -> Capability:
    offered = Capability.FRAMES
    if options.monitor is not False:
        offered |= Capability.MONITOR
    if options.share_log and lib.jmk_server_log_fd(handle) >= 0:
        offered |= Capability.LOG
    elif options.share_log:
        log.warning(
            "this system has no memfd that can be sealed (Linux 5.1), so the log cannot be shared: "
            "clients get packets"
        )
    return offered


@takes(ServerOptions)
class Server(Closing, Publishing):
    """Publish messages to any number of clients on this machine.

    Args:
        where: `"@name"` for an abstract address, a path with a "/" in it, or a socket that is bound
            already. An
            abstract address has no file permissions: see `allow`.
        {options}

    Raises:
        TypeError, ValueError: an argument is wrong; the text says what would be right.
        AddressInUse: another process serves that address, or another `Server` of this one.
        MessageTooLarge, BufferError: there is such a message in `history`.
        OSError: the address cannot be had, or the system lacks what the log needs.

    Any thread may call any method. The rules are those of docs/protocol.md and docs/design.md.
    """

    def __init__(
        self,
        where: str | os.PathLike[str] | object,
        *,
        max_lag: int | None = None,
        on_lag: lag.OnLag = "disconnect",
        patience: float | Literal["default"] | None = "default",
        log_size: int = LOG_SIZE,
        keep: int = 0,
        keep_bytes: int = 0,
        first_id: int = FIRST_ID,
        server_id: int | None = None,
        history: Iterable[Buffer] = (),
        max_message: int | None = None,
        max_clients: int = MAX_CLIENTS,
        max_clients_per_user: int | None = None,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        mode: int | None = None,
        group: str | int | None = None,
        allow: access.Allow = None,
        share_log: bool = True,
        monitor: access.Allow | Literal[False] = None,
        on_connect: Callable[[ClientInfo], object] | None = None,
        on_disconnect: Callable[[ClientInfo, EndReason], object] | None = None,
        on_lag_warning: Callable[[ClientInfo], object] | None = None,
        lag_warning: float = LAG_WARNING,
    ) -> None:
        options = ServerOptions(**given(ServerOptions, locals()))
        self._handle: Handle | None = None
        self._pid = os.getpid()
        self._max_message = options.largest
        self._id = options.server_id or int.from_bytes(os.urandom(8), "little") or 1
        # The core first: what it lacks is an error before anybody can connect.
        handle = _make_core(options)
        publisher = Publisher(handle, address_of(handle))
        try:
            _fill(publisher, options.history, self._max_message)
            listener = _listen(where, options)
            self._address = str(listener.address)
            self._control = self._make_control(handle, listener, options)
        except BaseException:
            _end_core(handle)
            raise
        self._handle = handle
        self._publisher = publisher
        try:
            self._control.start()
        except BaseException:
            self._handle = self._publisher = None
            self._control.close(handle)
            _end_core(handle)
            if self._control.thread.is_alive():  # it had started when a signal's handler raised
                self._control.thread.join()
            raise
        _in_main_interpreter()
        _open_servers.add(self)

    def _make_control(self, handle: Handle, listener: Listener, options: ServerOptions) -> Control:
        max_lag = options.max_lag or 0
        try:
            return Control(
                handle,
                listener,
                hello=self._hello(_offered(handle, options), options),
                rule=options.rule,
                quota=options.quota,
                max_clients=options.max_clients,
                handshake_timeout=options.handshake_timeout,
                on_connect=options.on_connect,
                on_disconnect=options.on_disconnect,
                monitor=options.monitor_rule,
                about={
                    "address": self._address,
                    "pid": self._pid,
                    "server_id": self._id,
                    "max_lag": max_lag,
                    "on_lag": options.on_lag,
                    "started": time.monotonic(),
                },
                on_lag_warning=options.on_lag_warning,
                lag_watch=LagWatch(
                    options.lag_warning, max_lag, options.log_size - options.kept[1]
                ),
            )
        except BaseException:
            listener.close()
            raise

    def _hello(self, offered: Capability, options: ServerOptions) -> ServerHello:
        return ServerHello(
            VERSION,
            offered,
            server_id=self._id,
            oldest_id=options.first_id,
            next_id=options.first_id,
            max_lag=options.max_lag or 0,
            max_packet=0,
            max_message=self._max_message,
        )

    def _open(self) -> Handle:
        handle = self._handle
        if handle is None:
            raise Closed(errors.CLOSED.format(what="server"))
        if self._pid != os.getpid():
            check(lib.JMK_E_FORKED, "server")
        return handle

    # ---- publishing ----

    def _limit(self, timeout: float | None) -> int:
        # In the control thread nothing waits; see `Wait`.
        limit = nanoseconds(timeout)
        return 0 if self._control.is_current() else limit

    def _turns(self) -> Publisher:
        publisher = self._publisher
        if publisher is None:
            raise Closed(errors.CLOSED.format(what="server"))
        if self._pid != os.getpid():
            check(lib.JMK_E_FORKED, "server")
        return publisher

    # It is in C, and calls `_publish_slowly` where it has to wait. Type checkers see it inherited.
    if not TYPE_CHECKING:
        publish = Publishing.publish

    def _append(self, data: Buffer) -> int:
        publisher = self._publisher
        return publisher.append(data) if publisher is not None else lib.JMK_E_CLOSED

    def _publish_slowly(self, code: int, data: Buffer, timeout: float | None) -> int:
        # `code` is why an append was refused; 0 if the timeout is to be looked at first.
        nanoseconds(timeout)
        code = code or self._append(data)
        if code >= FIRST_ID:
            return code
        size = memoryview(data).nbytes
        wait = Wait(self, timeout)
        while code < FIRST_ID:
            wait.for_room(code, size)
            code = self._append(data)
        return code

    def publish_many(
        self, messages: Iterable[Buffer] | Buffer, timeout: float | None = None
    ) -> range:
        """Publish messages in one call into C; returns their packet ids, which have no holes.

        Args:
            messages: buffers; all are checked before the first of them is published. No mapping,
                as it could mean keys or values. Or an array:
                one buffer of two or more dimensions, or of one and with items of more than a byte,
                such as records of numpy. Each `messages[i]` is a message then, with all bytes that
                it has in memory, those between its fields too. It must be contiguous; the array
                itself may be strided.
            timeout: as for `publish`.

        Raises:
            Timeout: `published` says how many went in, the first ones.
            TypeError, BufferError: one of them is no contiguous buffer, or the array has pointers
                or Python objects in it; none was published.
            MessageTooLarge: one of them is; none was published.
            Busy, Closed: as for `publish`; the first ones may have been published.
        """
        limit = self._limit(timeout)
        return self._publish_all(gather(messages), limit, timeout)

    def publish_frames(self, frames: Buffer, timeout: float | None = None) -> range:
        """Publish the messages of a buffer of frames, in one call into C; returns their packet ids.

        The frames are as `Batch.frames` returns them and docs/protocol.md has them ("Framed
        messages"): `DATA` frames with no flags, one behind the other, from the beginning to the end
        of the buffer. Their ids do not matter: the messages get new ones, which have no holes. All
        frames are checked before the first of them is published.

        Args:
            frames: a contiguous buffer; its messages are copied once, before this returns.
            timeout: as for `publish`.

        Raises:
            ValueError: something in it is no such frame; the text has its offset. None was
                published.
            MessageTooLarge: one of the messages is; `offset` says where. None was published.
            TypeError, BufferError: it is no contiguous buffer.
            Timeout, Busy, Closed: as for `publish_many`.
        """
        limit = self._limit(timeout)
        return self._publish_all(gather_frames(frames), limit, timeout)

    def _publish_all(self, found: Gathered, limit: int, timeout: float | None) -> range:
        publisher = self._turns()
        if not found.count:
            next_id = self.stats().next_id
            return range(next_id, next_id)
        code, done, first, holder = self._beside_greenlets(
            lambda: publisher.append_many(found, 0, limit)
        )
        if code == lib.JMK_E_TOO_LARGE:
            raise self._too_large(found)
        if code:
            self._raise(code, timeout, holder, done, found.count)
        return range(first, first + found.count)

    def _beside_greenlets(self, call: Callable[[], _T]) -> _T:
        # It waits in C with the turn, which belongs to a thread: so in one of its own.
        if not cooperates() or self._control.is_current():
            return call()
        outcome: list[_T] = []
        thread = new_thread(lambda: outcome.append(call()), "jumiks batch")
        thread.start()
        _other_greenlets_bring(lambda: not thread.is_alive())
        return outcome[0]

    def _too_large(self, found: Gathered) -> MessageTooLarge:
        size, offset = found.largest
        return MessageTooLarge(size, self.max_message, offset=offset)

    def _raise(
        self, code: int, timeout: float | None, account: bytes, published: int = 0, of: int = 0
    ) -> NoReturn:
        holder = ffi.from_buffer("struct jmk_account *", account)
        Wait(self, timeout, over=True, of=of).again(code, "publish", holder, published)
        raise AssertionError(code)

    def reserve(self, size: int, timeout: float | None = None) -> Reservation:
        """Return a context manager that hands out a message's bytes in the log, to be written.

        Leaving the block publishes it, an exception in the block discards it. Other publishers wait
        meanwhile. ::

            with server.reserve(image.nbytes) as view:
                numpy.frombuffer(view, image.dtype)[:] = image.ravel()

        What was made of the view and outlives the block (an array, a slice) keeps the bytes that
        were there on leaving, in memory of its own: it never reaches the log.

        Args:
            size: bytes; all of them are published.
            timeout: as for `publish`.

        Raises:
            MessageTooLarge, Timeout, Busy, Closed: as for `publish`, when the block is entered.
            OSError: the system lacks memory for it.
        """
        number = whole_number(size)
        if number is None:
            raise TypeError(f"size is a number of bytes, not {size!r}")
        size = number
        if size < 0:
            raise ValueError(f"size={size}: it must be 0 bytes or more")
        limit = self._limit(timeout)

        def fail(code: int, holder: bytes) -> None:
            if not code:
                raise JumiksError(errors.ENTERED_TWICE)
            if code == lib.JMK_E_TOO_LARGE:
                raise MessageTooLarge(size, self.max_message)
            if not holder:
                check(code, "server")
            self._raise(code, timeout, holder)

        publisher = self._turns()
        if cooperates() and limit and size <= self.max_message:
            Wait(self, timeout).for_room(lib.JMK_E_FULL, size)
        return publisher.reserve(min(size, _LONGEST), limit, fail)

    def drain(self, timeout: float | None = None) -> None:
        """Wait until every client has acked all that is published by now, or is gone.

        Args:
            timeout: seconds; None is no limit.

        Raises:
            Timeout: `holder` is the client that was furthest behind.
            Closed: the server is closed, perhaps while this waited.
        """
        handle, wait = self._open(), Wait(self, timeout)
        last, holder = self.stats().next_id - 1, ffi.new("struct jmk_account *")
        while code := lib.jmk_server_wait_acked(handle, last, wait.limit(), holder):
            wait.again(code, "drain", holder)

    # ---- clients ----

    def wait_for_clients(self, count: int, timeout: float | None = None) -> None:
        """Wait until at least `count` clients are connected.

        Args:
            count: clients.
            timeout: seconds; None is no limit.

        Raises:
            Timeout: there are fewer.
            Closed: the server is closed, perhaps while this waited.
        """
        nanoseconds(timeout)
        self._open()
        check_count("count", count)
        control = self._control

        def present() -> int:
            # One that has left is still in the first of these until its callback was called.
            return min(len(control.present), self.stats().clients)

        def enough() -> bool:
            return self._handle is None or present() >= count

        if control.is_current() and not enough():
            why = errors.WOULD_WAIT.format(what="wait_for_clients")
            raise Timeout(errors.TOO_FEW_NOW.format(present=present(), count=count, why=why))
        wait_for = _other_greenlets_bring if cooperates() else control.changes.wait_for
        if not wait_for(enough, timeout):
            raise Timeout(
                errors.TOO_FEW_CLIENTS.format(present=present(), count=count, timeout=timeout)
            )
        self._open()

    def clients(self) -> tuple[ClientInfo, ...]:
        """Return the clients that are connected now, each with its figures."""
        return tuple(client_infos(self._open(), self._control.peers))

    def disconnect(self, client: ClientInfo) -> None:
        """End one connection, and tell its client so. Nothing happens if it is gone already.

        Args:
            client: one of `clients()`, or what `on_connect` was called with.
        """
        if not isinstance(client, ClientInfo):
            raise TypeError(
                f"client is a ClientInfo, one of clients() or of a callback, not {client!r:.100}"
            )
        code = lib.jmk_server_disconnect(self._open(), client.key, lib.JMK_R_KICKED)
        if code != lib.JMK_E_GONE:
            check(code, "server")

    # ---- figures ----

    def stats(self) -> ServerStats:
        """All figures, of one moment."""
        out = ffi.new("struct jmk_stats *")
        check(lib.jmk_server_stats(self._open(), out), "server")
        return server_stats(out, len(self._control.pages))

    @property
    def endings(self) -> dict[EndReason, int]:
        """How many clients are gone by now, by reason."""
        return dict(self._control.endings)

    @property
    def address(self) -> str:
        """Where clients connect, as a user writes it."""
        return self._address

    @property
    def server_id(self) -> int:
        """The number by which clients tell a restart; random unless `server_id` gave another."""
        return self._id

    @property
    def max_message(self) -> int:
        """The largest message, bytes."""
        return self._max_message

    def __repr__(self) -> str:
        def about() -> str:
            state = "closed" if self._handle is None else f"{len(self._control.present)} clients"
            return f" {self._address} ({state})"

        return shown("Server", about)

    # ---- closing ----

    def close(self, linger: float = LINGER) -> None:
        """Close: deliver what is published, then say goodbye to all clients.

        Publishers that wait get `Closed` at once. Any thread may call this, and more than once: a
        later call waits for the first. A client that does not get everything in time learns which
        messages it lost.
        Callbacks that run come to their end first, so hold no lock that one of them takes.

        Args:
            linger: seconds that all clients together have to receive what was published.
        """
        self._close(nanoseconds(linger, "linger"))

    def _close(self, wait: int, *, collected: bool = False) -> None:
        # A collector may have come anywhere: no switch to other greenlets, and no wait without end.
        if self._pid != os.getpid():
            self._handle = self._publisher = None
            self._control.leave_to_parent()
            return
        if sys.is_finalizing():
            self._close_at_exit()
            return
        handle = self._handle
        if handle is not None:
            # Each of these may be done twice, and what says that they are done comes last: after an
            # exception in between, the next close does them again.
            lib.jmk_server_close(handle, wait)
            self._control.close(handle)
            self._publisher = self._handle = None
            self._control.changes.tell()
        if self._control.is_current():
            return  # called by a callback: the thread ends when that returns
        thread = self._control.thread
        if thread.native_id is None and not thread.is_alive():
            self._control.stop_listening()  # it was never started
            return
        try:
            if cooperates() and not collected:
                _other_greenlets_bring(lambda: not thread.is_alive())
            self._control.join(_COLLECTOR_PATIENCE if collected else None)
        except BaseException:
            # Ctrl-C: no more patience, but the end stays orderly.
            if handle is not None:
                lib.jmk_server_close(handle, 0)
            self._control.join()
            raise

    def _close_at_exit(self) -> None:
        # No other Python thread runs any more, so none is waited for, nor a lock that one may hold.
        handle, self._handle = self._handle, None
        self._publisher = None
        if handle is not None:
            lib.jmk_server_close(handle, 0)
            self._control.stop_listening()

    def _end_now(self, patience: float) -> None:
        handle, self._handle = self._handle, None
        self._publisher = None
        if handle is not None and self._pid == os.getpid():
            self._warn_unclosed()
            lib.jmk_server_close(handle, 0)
            self._control.close(handle)
            self._control.join(patience)

    def _warn_unclosed(self) -> None:
        warnings.warn(errors.NOT_CLOSED.format(it=self), ResourceWarning, source=self, stacklevel=3)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Server stays in its process: give others its address")

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and self._pid == os.getpid():
            self._warn_unclosed()
            self._close(0, collected=True)


def is_open(server: Server) -> bool:
    """Whether a server is open, and this process made it."""
    return server._handle is not None and server._pid == os.getpid()


def hurry(server: Server) -> None:
    """Give clients no more time in a close that another thread is in the middle of."""
    server._control.hurry()


def _holder_words(info: ClientInfo) -> str:
    name = repr(info.peer.name) if info.peer.name else info.command
    name = f" ({name})" if name else ""
    process = f"process {info.pid}{name}" if info.pid else errors.UNSEEN
    return errors.HOLDER.format(process=process, lag=counted(info.lag, "message"))


class Wait:
    """A publisher's wait. Signals and other publishers can split it into several calls into C."""

    def __init__(
        self, server: Server, timeout: float | None, *, over: bool = False, of: int = 0
    ) -> None:
        self._server = server
        self._of = of  # messages of a batch
        self._timeout = timeout
        # Callbacks and logging handlers may run in the control thread. It lets clients in, so it
        # must never wait for a client.
        self._in_control = server._control.is_current()
        limit = 0 if self._in_control else nanoseconds(timeout)
        self._deadline = None if limit < 0 else time.monotonic_ns() + limit
        self.holder: Account = ffi.new("struct jmk_account *")
        self._waited = ffi.new("int *")
        self._pauses = Pauses() if cooperates() and not over else None

    def left(self) -> int:
        """Nanoseconds until the deadline; -1 if there is none."""
        if self._deadline is None:
            return -1
        return max(0, self._deadline - time.monotonic_ns())

    def limit(self) -> int:
        """Nanoseconds that the core may wait: none where greenlets do."""
        return self.left() if self._pauses is None else 0

    def check_full(self, code: int, size: int) -> None:
        """Raise why an append of `size` bytes gave `code`, unless there was just no room for it."""
        if code == lib.JMK_E_TOO_LARGE:
            raise MessageTooLarge(size, self._server.max_message)
        if code not in (lib.JMK_E_FULL, lib.JMK_E_TURN):
            check(code, "server")

    def for_room(self, code: int, size: int, published: int = 0) -> None:
        """Wait until an append that gave `code` is worth another try, or raise why it is not."""
        self.check_full(code, size)
        room = self.room(size)
        while code := room(self.limit()):
            self.again(code, "publish", self.holder, published)

    def room(self, size: int) -> Callable[[int], int]:
        """Return what waits for room for as many nanoseconds as it is given, from any thread."""
        handle = self._server._open()
        return lambda limit: lib.jmk_server_wait_room(
            handle, size, limit, self.holder, self._waited
        )

    def acked(self, last: int) -> Callable[[int], int]:
        """Return what waits until all clients have acked a message, likewise."""
        handle = self._server._open()
        return lambda limit: lib.jmk_server_wait_acked(handle, last, limit, self.holder)

    # What an event loop asks for, which does the waiting itself.

    def check_open(self) -> None:
        """Raise Closed or Forked unless the server is open."""
        self._server._open()

    def append(self, data: Buffer) -> int:
        """Publish a message if that needs no wait: its id, or a code of the core."""
        return self._server._append(data)

    def append_many(self, found: Gathered, done: int) -> tuple[int, int, int]:
        """Publish those behind the first `done`, likewise: a code, how many now, the first id."""
        code, done, first, _ = self._server._turns().append_many(found, done, 0)
        return code, done, first

    def next_size(self, code: int, found: Gathered, done: int) -> int:
        """The size of the message that had no room; raise if `code` says something else."""
        if code == lib.JMK_E_TOO_LARGE:
            raise self._server._too_large(found)
        if code != lib.JMK_E_TIMEOUT:
            check(code, "server")
        return found.size_of(done)

    def again(self, code: int, what: str, holder: Account, published: int = 0) -> None:
        """Return if a wait that gave `code` should go on, which is so after a signal."""
        if code == -errno.EINTR:
            return
        if code == lib.JMK_E_TIMEOUT and self._pauses is not None and (left := self.left()):
            self._pauses(left / 1e9 if left > 0 else inf)
            self._server._open()
            return
        if code != lib.JMK_E_TIMEOUT:
            check(code, "server")
        peer = self._server._control.peers.get(holder.key)
        info = client_info(holder, peer) if peer is not None else None
        why = errors.WOULD_WAIT if self._in_control else errors.TIMED_OUT
        done = errors.PUBLISHED.format(published=published, count=self._of) if self._of else ""
        text = errors.HELD_UP.format(
            why=why.format(what=what, timeout=self._timeout),
            holder=_holder_words(info) if info else errors.OTHER_PUBLISHER,
            published=done,
        )
        raise Timeout(text, holder=info, published=published)
