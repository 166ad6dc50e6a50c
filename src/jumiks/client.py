# SPDX-License-Identifier: Apache-2.0
"""The receiving side."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Self, TypeVar

from . import address
from ._native import (
    Receiver,
    address_of,
    check,
    check_callback,
    ffi,
    lib,
    nanoseconds,
)
from .batch import Batch
from .errors import (
    AckError,
    Closed,
    ConnectionEnded,
    ConnectionLost,
    Disconnected,
    Lagged,
    ProtocolError,
    ServerClosed,
    Timeout,
)
from .handshake import FIRST_ID, START_NOW, START_OLDEST, Capability, ClientHandshake
from .stats import Gap

if TYPE_CHECKING:
    from ._core import Client as Handle

__all__ = ["Client"]

log = logging.getLogger("jumiks")

ARENA_SIZE: Final = 4 << 20
"""Bytes of address space by default for what one receive takes; memory is used as messages need."""

_T = TypeVar("_T")

CONNECT_TIMEOUT: Final = 5.0
"""Seconds by default to connect and shake hands; a live server needs well under one."""

CLASSIC_PACKET: Final = 262144
"""The largest packet taken from a plain 1.0 server, which does not tell. One that left its socket
at the system's default cannot send more than 212960 bytes."""

_ACK_TIME: Final = 0.01
_ACK_PATIENCE: Final = 1_000_000_000  # ns; a live server reads acks well within
_LONG_PACKET: Final = 4096
_MODES: Final = {
    lib.JMK_CLASSIC: "classic",
    lib.JMK_FRAMED: "framed",
    lib.JMK_SHARED: "shared",
}
_START_NAMES: Final = {"now": START_NOW, "oldest": START_OLDEST}


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # What the parent had received and not handed out is the parent's.
    for client in _clients:
        client._left, client._messages = 0, iter(())


os.register_at_fork(after_in_child=_after_fork_in_child)


class CannotShareError(Exception):
    """This system does not let us map what the server shares."""


def _parse_start(start: object) -> int:
    if isinstance(start, str) and start in _START_NAMES:
        return _START_NAMES[start]
    if isinstance(start, bool) or not isinstance(start, int):
        raise ValueError(f"start={start!r}: it must be 'now', 'oldest' or a packet id")
    if not FIRST_ID <= start < 1 << 64:
        raise ValueError(f"start={start}: packet ids begin at {FIRST_ID}")
    return start


@contextmanager
def descriptors_received() -> Iterator[list[int]]:
    """A list for the descriptors that come with a welcome; they are closed at the end."""
    found: list[int] = []
    try:
        yield found
    finally:
        for descriptor in found:
            os.close(descriptor)


class Connecting:
    """The part of a client that connects and shakes hands."""

    _address: str

    def _connect(
        self,
        where: address.Address,
        handshake: ClientHandshake,
        timeout: float | None,
        descriptors: list[int],
    ) -> socket.socket:
        deadline = None if timeout is None else time.monotonic() + timeout
        sock = address.connect(where, timeout)
        with self._shaking_hands(sock, handshake, timeout):
            while not handshake.done:
                sock.settimeout(
                    None
                    if deadline is None
                    else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
                )
                self._shake(sock, handshake, descriptors)
        return sock

    def _shake(
        self, sock: socket.socket, handshake: ClientHandshake, descriptors: list[int]
    ) -> None:
        # Take one packet of the handshake, and answer it.
        packet = self._receive_packet(sock, handshake, descriptors)
        if not packet:
            raise ConnectionLost(f"{self._address!r} closed the connection during the handshake")
        answer = handshake.receive(packet)
        if answer:
            sock.send(answer, socket.MSG_NOSIGNAL)

    def _receive_packet(
        self, sock: socket.socket, handshake: ClientHandshake, descriptors: list[int]
    ) -> bytes:
        # Descriptors come with the welcome to who asked for them, and at no other time. There is
        # room for one too many, so that it is noticed; the kernel drops the rest.
        if handshake.hello is None or Capability.LOG not in handshake.wishes:
            return sock.recv(_LONG_PACKET)
        packet, found, flags, _ = socket.recv_fds(sock, _LONG_PACKET, 3, socket.MSG_CMSG_CLOEXEC)
        descriptors += found
        if flags & socket.MSG_CTRUNC and len(found) < 2:
            raise CannotShareError("no room for two more descriptors")
        return packet

    @contextmanager
    def _shaking_hands(
        self, sock: socket.socket, handshake: ClientHandshake, timeout: float | None
    ) -> Iterator[None]:
        # Close the socket if it fails, and say how.
        try:
            yield
        except (TimeoutError, BlockingIOError):
            sock.close()
            said = "no welcome" if handshake.hello else "no hello"
            raise Timeout(
                f"{self._address!r} sent {said} within {timeout:g} s: "
                "its server is stuck, or it is no jumiks server"
            ) from None
        except (ConnectionResetError, BrokenPipeError) as error:
            sock.close()
            raise ConnectionLost(
                f"{self._address!r} closed the connection during the handshake"
            ) from error
        except BaseException:
            sock.close()
            raise


class Client(Connecting):
    """Receive every message of a server, in order.

    Everything that is published after this returned is delivered, or its loss is told.

    Args:
        where: the server's address: `"@name"` or a path.
        start: `"now"`, `"oldest"` for all that the server still keeps, or the packet id to go on
            at; if that is no longer kept, from the oldest that is, and the gap is told.
        timeout: seconds to connect and shake hands; None is no limit.
        arena_size: bytes of address space for what one receive takes.
        framed: whether to ask for many messages a packet; False has it as plain 1.0 does.
        share_log: whether to read the server's log itself, where the server shares it; False has
            messages sent.
        spin: seconds to look for a message before sleeping, where the log is shared: a lower
            latency, for a core's time.
        on_gap: called with each `Gap`, in the stream's order: messages that the server skipped for
            this client (its policy says so), or no longer had at the start.

    Raises:
        ConnectionRefusedError, FileNotFoundError: nobody serves that address.
        Timeout: the server did not answer in time.
        Refused: the server did not let this client in; the text says why.
        VersionMismatch: the server speaks another version.
        ProtocolError: that is no jumiks server.

    One thread receives at a time; any thread may `close`. What was handed out counts as handled,
    and is acked, once the user comes back for more; `ack` says so earlier.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        start: Literal["now", "oldest"] | int = "now",
        timeout: float | None = CONNECT_TIMEOUT,
        arena_size: int = ARENA_SIZE,
        framed: bool = True,
        share_log: bool = True,
        spin: float = 0.0,
        on_gap: Callable[[Gap], object] | None = None,
    ) -> None:
        parsed = self._set_up(where, start, timeout, arena_size, framed, share_log, spin, on_gap)
        try:
            self._enter(parsed, timeout)
        except CannotShareError as error:
            self._do_without_log(error)
            self._enter(parsed, timeout)

    def _set_up(
        self,
        where: str | os.PathLike[str],
        start: Literal["now", "oldest"] | int,
        timeout: float | None,
        arena_size: int,
        framed: bool,
        share_log: bool,
        spin: float,
        on_gap: Callable[[Gap], object] | None,
    ) -> address.Address:
        # All that comes before any I/O.
        self._handle: Handle | None = None
        self._receiver: Receiver | None = None
        self._pid = os.getpid()
        parsed = address.parse(where)
        _clients.add(self)
        self._address = str(parsed)
        self._on_gap = on_gap
        self._missed = 0
        self._told = 0  # the last message of the last gap that was counted
        self._out = 0  # the last message handed out ...
        self._held = 0  # ... and how many of the last are not handled yet, for all we know
        self._messages: Iterator[bytes] = iter(())
        self._left = 0
        self._last_batch: weakref.ref[Batch] | None = None
        self._loans: list[Batch] = []  # those whose views are of the log itself
        self._wanted = _parse_start(start)
        check_callback(on_gap, "on_gap")
        nanoseconds(timeout)
        if isinstance(arena_size, bool) or not isinstance(arena_size, int):
            raise TypeError(f"arena_size is a number of bytes, not {arena_size!r}")
        if not _LONG_PACKET <= arena_size <= 1 << 40:
            raise ValueError(f"arena_size={arena_size}: it must be {_LONG_PACKET} bytes or more")
        self._arena_size = arena_size
        for name, value in (("framed", framed), ("share_log", share_log)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} is True or False, not {value!r}")
        if spin is None:
            raise TypeError("spin is a number of seconds, not None")
        self._spin = nanoseconds(spin)
        self._wishes = Capability.FRAMES if framed else Capability(0)
        if framed and share_log:
            self._wishes |= Capability.LOG
        return parsed

    def _handshake(self) -> ClientHandshake:
        framed = Capability.FRAMES in self._wishes
        packet = min(self._arena_size, (1 << 32) - 1 if framed else CLASSIC_PACKET)
        return ClientHandshake(self._wishes, self._wanted, packet)

    def _do_without_log(self, error: CannotShareError) -> None:
        log.warning("%s: cannot read its log, so it has to send: %s", self._address, error)
        self._wishes &= ~Capability.LOG

    def _enter(self, where: address.Address, timeout: float | None) -> None:
        handshake = self._handshake()
        with descriptors_received() as descriptors:
            sock = self._connect(where, handshake, timeout, descriptors)
            self._join(sock, handshake, descriptors)

    def _join(
        self, sock: socket.socket, handshake: ClientHandshake, descriptors: list[int]
    ) -> None:
        try:
            self._make_core(sock, handshake, descriptors)
        except BaseException:
            sock.close()
            raise
        first = handshake.welcome.first_id if handshake.welcome else 0
        if self._wanted >= FIRST_ID and first > self._wanted:
            try:
                self._tell_gap(self._wanted, first - 1)
            except BaseException:
                self.close()
                raise

    def _make_core(
        self, sock: socket.socket, handshake: ClientHandshake, descriptors: list[int]
    ) -> None:
        hello, welcome = handshake.hello, handshake.welcome
        assert hello is not None
        self._server_id = hello.server_id
        self._max_lag = hello.max_lag
        config = ffi.new("struct jmk_client_config *")
        config.first_id = welcome.first_id if welcome else 0
        config.max_lag = hello.max_lag
        config.max_message = hello.max_message or (1 << 32) - 1
        config.arena_size = self._arena_size
        config.max_packet = min(CLASSIC_PACKET, self._arena_size)
        config.mode = lib.JMK_CLASSIC
        if handshake.framed:
            config.max_packet = min(hello.max_packet or CLASSIC_PACKET, self._arena_size)
            config.mode = lib.JMK_FRAMED
        if handshake.shared:
            assert welcome is not None
            if len(descriptors) != 2:
                raise ProtocolError(
                    f"the server broke the handshake: {len(descriptors)} descriptors came with the "
                    "log it shares, where 2 are due"
                )
            config.mode = lib.JMK_SHARED
            config.log_fd, config.cursor_fd = descriptors
            config.first_offset = welcome.first_offset
            config.spin = self._spin
        self._mode = _MODES[config.mode]
        sock.setblocking(True)
        out = ffi.new("jmk_client **")
        code = lib.jmk_client_new(out, sock.fileno(), config)
        if code in (lib.JMK_E_LOG, lib.JMK_E_SHAPE):
            text = ffi.string(lib.jmk_error_text(code)).decode()
            raise ProtocolError(f"the server broke the handshake: {text}")
        if code < 0 and handshake.shared:
            raise CannotShareError(os.strerror(-code))
        check(code, "client")
        self._descriptor = sock.detach()
        self._handle = ffi.gc(out[0], lib.jmk_client_free)
        self._receiver = Receiver(
            self._handle,
            address_of(out[0]),
            *(
                address_of(ffi.addressof(lib, f"jmk_client_{name}"))
                for name in ("receive", "whole", "unread")
            ),
        )

    def _open(self) -> Handle:
        handle = self._handle
        if handle is None:
            raise Closed("this client is closed")
        if self._pid != os.getpid():
            check(lib.JMK_E_FORKED, "client")
        return handle

    # ---- receiving ----

    def receive(self, timeout: float | None = None) -> bytes:
        """Receive one message, waiting for it if need be.

        Args:
            timeout: seconds; None is no limit, 0 never waits.

        Raises:
            Timeout: there was none in time.
            ServerClosed: the server closed in good order, and all was received.
            Lagged: the server cut this client; the exception has the figures.
            Disconnected: the server's user ended the connection.
            ConnectionLost: it ended without a goodbye.
            ProtocolError: the server broke the protocol.
            Busy: another thread is receiving.
            Closed: this client is closed, perhaps while this waited.
        """
        if timeout is not None:
            nanoseconds(timeout)
        if not self._left:
            self._take(timeout)
        elif self._handle is None:
            raise Closed("this client is closed")
        self._left -= 1
        self._out += 1
        return next(self._messages)

    def receive_many(self, timeout: float | None = None) -> Batch:
        """Receive what is there, at least one message, waiting for that if need be.

        Args, Raises: as for `receive`.
        """
        if self._left and self._handle is not None:
            messages = list(self._messages)
            batch = Batch(self._out + 1, len(messages), messages=messages)
        else:
            handle = self._handle
            first_id, count, items = self._look(timeout)
            loans = self._loans if self._mode == "shared" else None
            batch = Batch(first_id, count, client=handle, items=items, loans=loans)
            self._last_batch = weakref.ref(batch)
        last_id, count = batch.last_id, len(batch)
        self._left = 0
        self._out = last_id
        self._held = count
        return batch

    def __iter__(self) -> Iterator[bytes]:
        """Receive message after message, until the server closes in good order, or this client.

        A message is acked once the loop comes back for the next; the one at a `break` is not.
        """
        monotonic = time.monotonic
        quarter = max(1, self._max_lag // 4) if self._max_lag else 1 << 63
        try:
            while self._receiver is not None:
                if not self._left:
                    self._take(None)
                if self._left == 1:
                    # The next receive acks it: no clock needed, and a slow stream has no other.
                    self._left = 0
                    self._out += 1
                    yield next(self._messages)
                    continue
                due, ack_at = monotonic() + _ACK_TIME, self._out + quarter
                for message in self._messages:
                    self._left -= 1
                    self._out += 1
                    yield message
                    if self._handle is None:
                        return
                    # A slow loop acks by time, and within a long batch often enough for max_lag.
                    if self._out >= ack_at or monotonic() >= due:
                        self._ack(self._out)
                        due, ack_at = monotonic() + _ACK_TIME, self._out + quarter
        except (ServerClosed, Closed):
            return

    def run(self, handler: Callable[[bytes], object]) -> None:
        """Call `handler` with message after message, until the server closes in good order.

        A message is acked after `handler` returned (docs/protocol.md, "Acks"); one for which it
        raised is not, and the exception comes out of here.

        Raises:
            Lagged, Disconnected, ConnectionLost, ProtocolError, Busy: as `receive` does.
        """
        for message in self:
            handler(message)

    # A signal's exception may come at any call below. Until `_out` has moved, the same messages are
    # received again; and it moves in one step with what belongs to it, as no call stands between.

    def _take(self, timeout: float | None) -> None:
        # Into a list of bytes, in one call.
        receiver = self._prepare()
        found = receiver.take(self._out, -1 if timeout is None else nanoseconds(timeout))
        if isinstance(found, int):
            found = self._again(found, timeout, lambda left: receiver.take(self._out, left))
        first_id, lost, messages = found
        if lost:
            self._tell_gap(first_id - lost, first_id - 1)
        iterator, count = iter(messages), len(messages)
        self._messages = iterator
        self._out = first_id - 1
        self._held = 1
        self._left = count

    def _look(self, timeout: float | None) -> tuple[int, int, int]:
        # For a batch, which stays in the arena: first id, count, address.
        receiver = self._prepare()
        found = receiver.look(self._out, nanoseconds(timeout))
        if isinstance(found, int):
            found = self._again(found, timeout, lambda left: receiver.look(self._out, left))
        first_id, lost, count, items = found
        if lost:
            self._tell_gap(first_id - lost, first_id - 1)
        return first_id, count, items

    def _prepare(self) -> Receiver:
        receiver = self._receiver
        if receiver is None:
            raise Closed("this client is closed")
        if self._last_batch is not None:
            self._settle_batch()
        while self._loans:
            self._loans.pop()._take_back()
        return receiver

    def _again(self, code: int, timeout: float | None, take: Callable[[int], _T | int]) -> _T:
        # After a signal the wait goes on; all other codes raise.
        deadline = None if timeout is None else time.monotonic() + timeout
        found: _T | int = code
        while isinstance(found, int):
            if found == -errno.EINTR:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                found = take(nanoseconds(left))
                continue
            if found == lib.JMK_E_TIMEOUT:
                raise Timeout(f"no message within {timeout:g} s")
            raise self._ending(found)
        return found

    def _settle_batch(self) -> None:
        # The last batch's memory is about to be used again, or to be given back.
        batch = self._last_batch() if self._last_batch is not None else None
        self._last_batch = None
        if batch is not None:
            batch._settle()

    def _ending(self, code: int) -> Exception:
        handle = self._handle
        if handle is None:
            return Closed("this client is closed")
        if code == lib.JMK_E_PROTOCOL:
            fault = ffi.string(lib.jmk_client_fault(handle)).decode()
            return ProtocolError(f"the server broke the protocol: {fault}")
        if code == lib.JMK_E_LOST:
            plain = self._mode == "classic"
            words = "a plain 1.0 server gives no reason" if plain else "the server died"
            return ConnectionLost(f"end of stream from {self._address!r}: {words}")
        if code == lib.JMK_E_END:
            return self._goodbye(handle)
        try:
            check(code, "client")
        except Exception as error:
            return error
        raise AssertionError(code)

    def _goodbye(self, handle: Handle) -> ConnectionEnded:
        words = ffi.new("struct jmk_goodbye *")
        lib.jmk_client_goodbye(handle, words)
        if words.reason == lib.JMK_R_LAGGED:
            return Lagged(
                limit_kind="bytes" if words.limit_kind == lib.JMK_LIMIT_BYTES else "messages",
                limit=words.limit,
                lag=words.lag,
                lag_bytes=words.lag_bytes,
                last_acked=words.acked_id,
                first_lost=words.first_lost,
                last_lost=words.last_lost,
                oldest_kept=words.oldest_id,
                resume_at=lib.jmk_client_last_id(handle) + 1,
            )
        if words.reason == lib.JMK_R_PROTOCOL:
            return ProtocolError("the server says that this client broke the protocol")
        if words.reason == lib.JMK_R_KICKED:
            return Disconnected("the server's user ended this connection")
        if words.reason == lib.JMK_R_CLOSING and not words.first_lost:
            return ServerClosed("the server closed, and all it published was received")
        reason = (
            "the server closed before this client had taken everything"
            if words.reason == lib.JMK_R_CLOSING
            else f"the server gave reason {words.reason}, which this version does not know"
        )
        return ConnectionLost(reason, first_lost=words.first_lost, last_lost=words.last_lost)

    def _tell_gap(self, first: int, last: int) -> None:
        gap = Gap(first, last)
        if last > self._told:  # else it is told again, as `on_gap` raised
            self._missed += gap.count
            self._told = last
        if self._on_gap is not None:
            self._on_gap(gap)

    # ---- acks ----

    def ack(self, packet_id: int | None = None) -> None:
        """Ack a message now, and all before it. Views of a shared log that it covers are released.

        Args:
            packet_id: by default the last one that was handed out.

        Raises:
            AckError: it was not handed out (yet).
            Busy, Closed: as for `receive`.
        """
        handled = self._prepare_ack(packet_id)
        self._open()
        if handled:
            self._ack(handled)

    def _prepare_ack(self, packet_id: int | None) -> int:
        handled = self._out if packet_id is None else packet_id
        if isinstance(handled, bool) or not isinstance(handled, int):
            raise TypeError(f"packet_id is a number, not {packet_id!r}")
        if handled > self._out or handled < 0:
            raise AckError(
                f"packet id {handled} was not handed out; the last one was {self._out or 'none'}"
            )
        for batch in tuple(self._loans):
            if batch.last_id <= handled:
                batch._take_back()  # else its views would hold the ack back
        return handled

    def _ack(self, handled: int) -> None:
        check(lib.jmk_client_ack(self._open(), handled, _ACK_PATIENCE), "client")

    # ---- asking ----

    @property
    def server_id(self) -> int:
        """The server's random number, by which a restart can be told; 0 from a plain 1.0 server."""
        return self._server_id

    @property
    def mode(self) -> str:
        """`"shared"` where the log is read, `"framed"`, or `"classic"`: one message a packet."""
        return self._mode

    @property
    def last_id(self) -> int:
        """The packet id of the last message that was handed out; 0 if there was none."""
        return self._out

    @property
    def lag(self) -> int:
        """Messages received by this end and not acked."""
        handle = self._open()
        return lib.jmk_client_last_id(handle) - lib.jmk_client_acked_id(handle)

    @property
    def missed(self) -> int:
        """Messages lost in gaps, all together; `on_gap` tells which."""
        return self._missed

    def fileno(self) -> int:
        """The connection's descriptor, to wait until it is readable.

        Some messages may have been read already: before waiting, `receive_many(0)` until `Timeout`.
        """
        self._open()
        return self._descriptor

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else f"last {self._out}"
        return f"<jumiks.Client {self._address} ({state})>"

    # ---- closing ----

    def close(self) -> None:
        """Close the connection; a receive that waits in another thread gets `Closed`.

        What was handled is acked, if no other thread is receiving. May be called twice and from any
        thread.
        """
        handle, self._handle = self._handle, None
        self._receiver = None
        if handle is None or self._pid != os.getpid():
            return
        self._settle_batch()
        lib.jmk_client_ack(handle, max(0, self._out - self._held), 0)
        lib.jmk_client_close(handle)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client stays in its process: others make their own of the address")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and self._pid == os.getpid():
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()
