# SPDX-License-Identifier: Apache-2.0
"""The receiving side."""

from __future__ import annotations

import _socket
import errno
import logging
import os
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from math import inf
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from ._client.connecting import (
    LONG_PACKET,
    UNINVITED,
    CannotShareError,
    Connecting,
    Wait,
    descriptors_received,
    in_thread,
)
from ._client.labels import Labels
from ._client.reconnect import Backoff, Effort, Return
from ._gap import Gap, GapReason
from ._green import cooperates, until_readable
from ._native import Receiver, address_of, check, fault_of, ffi, lib, nanoseconds, owned
from ._wire import rights
from ._wire.address import parse_address
from ._wire.handshake import (
    FIRST_ID,
    START_NOW,
    START_OLDEST,
    UNTOLD_PACKET,
    Capability,
    ClientHandshake,
    ServerHello,
)
from .batch import Batch
from .errors import (
    AckError,
    Closed,
    ConnectionEnded,
    ConnectionLost,
    Disconnected,
    Lagged,
    MessagesLost,
    ProtocolError,
    ServerClosed,
    Timeout,
)

if TYPE_CHECKING:
    from ._core import Client as Handle

__all__ = ["Client"]

log = logging.getLogger("jumiks")

ARENA_SIZE: Final = 4 << 20
"""Bytes of address space by default for what one receive takes; memory is used as messages need."""

_T = TypeVar("_T")

if TYPE_CHECKING:
    from typing_extensions import TypeVar as _TypeVar

    Item = _TypeVar("Item", bytes, bytes | Gap, default=bytes)
    """What a client's stream has: messages, or gaps too."""
else:
    Item = TypeVar("Item")

Delivery: TypeAlias = Literal["shared", "framed", "classic"]
"""How a client gets messages."""

OnGap: TypeAlias = Callable[[Gap], object] | Literal["raise", "yield"] | None
"""What happens at a gap in the stream."""

CONNECT_TIMEOUT: Final = 5.0
"""Seconds by default to connect and shake hands; a live server needs well under one."""

CLASSIC_PACKET: Final = UNTOLD_PACKET
"""The largest packet taken from a plain 1.0 server, which does not tell. One that left its socket
at the system's default cannot send more than 212960 bytes."""

_detach: Final = _socket.socket.detach
"""In C, and no bytecode. `socket.socket` may be another class, where gevent has patched it."""

_GRACE: Final = 0.05
"""Seconds behind the deadline after which packets without a message are looked at no more."""

_GREEN_LOOK: Final = 1.0
"""Seconds after which a client that lets greenlets run looks whether its server is alive."""

_GREEN_TURN: Final = 0.01
"""Seconds that it receives without letting others run, while there are messages."""

_LEAST_SLEEP: Final = 1e-6  # gevent takes a sleep of 0 for one that lets no timer run

_LATE_ACK_LOOK: Final = 0.01
_ACK_TIME: Final = 0.01
_ACK_PATIENCE: Final = 1_000_000_000  # ns; a live server reads acks well within
_DELIVERIES: Final[dict[int, Delivery]] = {
    lib.JMK_CLASSIC: "classic",
    lib.JMK_FRAMED: "framed",
    lib.JMK_SHARED: "shared",
}
_CAPABILITIES: Final[dict[str, Capability]] = {
    "classic": Capability(0),
    "framed": Capability.FRAMES,
    "shared": Capability.FRAMES | Capability.LOG,
}
_START_NAMES: Final = {"now": START_NOW, "oldest": START_OLDEST}


class _Gaps(NamedTuple):
    """What is known of gaps; replaced as a whole, so that none is counted or told in part."""

    missed: int = 0
    counted: int = 0
    """The last message of the last gap, or before the first of this connection: none up to it is
    due any more."""
    untold: tuple[Gap, ...] = ()


_Taken: TypeAlias = "tuple[int, int, int, list[bytes], int]"
"""Messages made into bytes objects, not all of them handed out: first id, last id, how many are
missing before the first, themselves, and what a plain server's ids are more than ours."""

_NOTHING: Final[_Taken] = (0, 0, 0, [], 0)

_clients: weakref.WeakSet[Client[bytes] | Client[bytes | Gap]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # What the parent had received and not handed out is the parent's.
    for client in _clients:
        client._taken = _NOTHING


os.register_at_fork(after_in_child=_after_fork_in_child)


def _parse_delivery(delivery: object) -> Capability:
    if not isinstance(delivery, str) or delivery not in _CAPABILITIES:
        raise ValueError(f"delivery={delivery!r}: it must be 'shared', 'framed' or 'classic'")
    return _CAPABILITIES[delivery]


def _parse_start(start: object) -> int:
    if isinstance(start, str) and start in _START_NAMES:
        return _START_NAMES[start]
    if isinstance(start, bool) or not isinstance(start, int):
        raise ValueError(f"start={start!r}: it must be 'now', 'oldest' or a packet id")
    if not FIRST_ID <= start < 1 << 64:
        raise ValueError(
            f"start={start}: a packet id is from {FIRST_ID} to {(1 << 64) - 1}; 'oldest' starts "
            "with the oldest message that is kept"
        )
    return start


class ClientOptions(TypedDict, total=False):
    """What a client takes beside its address and `on_gap`; see `Client`."""

    start: Literal["now", "oldest"] | int
    timeout: float | None
    arena_size: int
    delivery: Delivery
    ack: Literal["after", "before"]
    reconnect: bool | Backoff


class _SyncOptions(ClientOptions, total=False):
    spin: float


class Client(Connecting, Generic[Item]):
    """Receive every message of a server, in order.

    Everything that is published after this returned is delivered, or its loss is told.

    Args:
        where: the server's address: `"@name"` or a path.
        start: `"now"`, `"oldest"` for all that the server still keeps, or the packet id to go on
            at; if that is no longer kept, from the oldest that is, and the gap is told. A server
            with `keep` may begin later than at its oldest, so that this client has time to read
            it: that gap is told too.
        timeout: seconds to connect and shake hands; None is no limit.
        arena_size: bytes of address space for what one receive takes.
        delivery: the best way of getting messages to ask for; `client.delivery` tells what it
            became. "shared": read the server's log itself, where the server shares it. "framed":
            packets with many messages each. "classic": one message per packet, as plain 1.0 does.
        spin: seconds to look for a message before sleeping, where the log is shared: a lower
            latency, for a core's time.
        on_gap: what happens at a `Gap`, in its place in the stream: messages that the server
            skipped for this client (its policy says so), no longer had, or took with it. A
            function is called with it; "raise" raises `MessagesLost`; "yield" has it received like
            a message; by default `missed` alone counts it.
        ack: when a message counts as handled. "after", the default: when you ask for the next one.
            After a crash you can get it again, at `resume_at`. "before": when it is handed out. You
            never get it twice, and a crash loses it.
        reconnect: whether to come back to the address when the server has closed, died or was
            started again, and when; True is `Backoff()`. The stream goes on behind the last message
            handed out, if the server is the same and has it still; otherwise with the oldest that
            the new one has, behind a gap.

    Raises:
        ConnectionRefusedError, FileNotFoundError: nobody serves that address.
        PermissionError: the permissions of the path or its directory do not let this user through.
        Timeout: the server did not answer in time.
        Refused: the server did not let this client in; the text says why.
        VersionMismatch: the server speaks another version.
        ProtocolError: that is no jumiks server.
        ConnectionLost: the server closed, or died, before it had answered.
        TypeError, ValueError: an argument is wrong; the text says what would be right.
        OSError: the system lacks something, such as a descriptor or memory.

    Being cut for its lag, refused, or disconnected by the server's user ends a client for good.
    One thread receives at a time; any thread may `close`. What was handed out counts as handled,
    and is acked, once the user comes back for more; `ack` says so earlier.
    """

    _asks_for_process = True

    @overload
    def __init__(
        self: Client[bytes],
        where: str | os.PathLike[str],
        *,
        on_gap: Callable[[Gap], object] | Literal["raise"] | None = None,
        **options: Unpack[_SyncOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Client[bytes | Gap],
        where: str | os.PathLike[str],
        *,
        on_gap: Literal["yield"],
        **options: Unpack[_SyncOptions],
    ) -> None: ...
    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        start: Literal["now", "oldest"] | int = "now",
        timeout: float | None = CONNECT_TIMEOUT,
        arena_size: int = ARENA_SIZE,
        delivery: Delivery = "shared",
        spin: float = 0.0,
        on_gap: OnGap = None,
        ack: Literal["after", "before"] = "after",
        reconnect: bool | Backoff = False,
    ) -> None:
        self._set_up(
            where,
            start=start,
            timeout=timeout,
            arena_size=arena_size,
            delivery=delivery,
            spin=spin,
            on_gap=on_gap,
            ack=ack,
            reconnect=reconnect,
        )
        in_thread(self._enter())
        self._begin()

    def _set_up(
        self,
        where: str | os.PathLike[str],
        *,
        start: Literal["now", "oldest"] | int,
        timeout: float | None,
        arena_size: int,
        delivery: Delivery,
        spin: float,
        on_gap: OnGap,
        ack: Literal["after", "before"],
        reconnect: bool | Backoff,
    ) -> None:
        # All that comes before any I/O.
        self._handle: Handle | None = None
        self._closing: Handle | None = None
        self._receiver: Receiver | None = None
        self._pid = os.getpid()
        self._where = parse_address(where)
        _clients.add(self)
        self._address = str(self._where)
        self._on_gap = on_gap
        self._gaps: _Gaps = _Gaps()
        self._server_id = 0
        self._first = 0  # the first message of this connection; 0 if the server did not say
        self._taken: _Taken = _NOTHING
        self._out = 0  # the last message handed out, whose moving is what hands out
        self._together = (0, 0)  # first and last of what `receive_many` handed out last
        self._acked = 0  # what was acked by hand
        self._labels: Labels | None = None  # of a plain 1.0 server: all ids inside are our own
        self._last_batch: weakref.ref[Batch] | None = None
        self._loans: list[Batch] = []  # those whose views are of the log itself
        self._settling = threading.RLock()  # over the last batch's memory, and what is lent
        # Over who has the handle, and the way back. A signal's handler may close the client in the
        # middle of what this thread does under it.
        self._lock = threading.RLock()
        self._return: Return | None = None
        self._wanted = _parse_start(start)
        self._green = cooperates()
        self._waiting = False  # one greenlet is, while others run
        self._turn_ends = 0.0
        if on_gap not in ("raise", "yield", None) and not callable(on_gap):
            raise TypeError(f"on_gap is 'raise', 'yield', a function or None, not {on_gap!r}")
        if ack not in ("after", "before"):
            raise ValueError(f"ack={ack!r}: it must be 'after' or 'before'")
        self._before = ack == "before"
        self._ack_patience = _ACK_PATIENCE
        nanoseconds(timeout)
        self._timeout = timeout
        if not isinstance(reconnect, bool | Backoff):
            raise TypeError(f"reconnect is True, False or a Backoff, not {reconnect!r}")
        backoff = Backoff() if reconnect is True else reconnect or None
        self._effort = Effort(backoff) if backoff else None
        if isinstance(arena_size, bool) or not isinstance(arena_size, int):
            raise TypeError(f"arena_size is a number of bytes, not {arena_size!r}")
        if not LONG_PACKET <= arena_size <= 1 << 40:
            raise ValueError(f"arena_size={arena_size}: it must be {LONG_PACKET} bytes or more")
        self._arena_size = arena_size
        self._spin = nanoseconds(spin, "spin", none=False)
        self._wishes = _parse_delivery(delivery)

    def _begin(self) -> None:
        # A function is told of a gap at the start while the client is made.
        if not callable(self._on_gap):
            return
        try:
            self._tell()
        except BaseException:
            self.close()
            raise

    # ---- connecting ----

    def _enter(self, ending: ConnectionEnded | None = None) -> Generator[Wait, None, None]:
        """Connect and shake hands: for the first time, or after an ending."""
        timeout = self._timeout
        deadline = inf if timeout is None else time.monotonic() + timeout
        while True:
            framed = Capability.FRAMES in self._wishes
            handshake = ClientHandshake(
                self._wishes,
                self._wanted,
                min(self._arena_size, (1 << 32) - 1 if framed else CLASSIC_PACKET),
                start_for=self._start_again if ending else None,
            )
            try:
                with descriptors_received() as received:
                    sock = yield from self._connect(self._where, handshake, timeout, received)
                    self._join(sock, handshake, received.descriptors(), ending)
                return
            except CannotShareError as error:
                log.warning("%s: cannot read its log, so it has to send: %s", self._address, error)
                self._wishes &= ~Capability.LOG
                timeout = None if deadline == inf else max(0.0, deadline - time.monotonic())

    def _next(self) -> int:
        # The next message due, neither handed out nor in a gap; 0 if that is unknown.
        last = max(self._out, self._gaps.counted)
        return last + 1 if last else 0

    def _start_again(self, hello: ServerHello) -> int:
        if not hello.extended:
            return START_NOW
        return (self._next() if hello.server_id == self._server_id else 0) or START_OLDEST

    def _join(
        self,
        sock: socket.socket,
        handshake: ClientHandshake,
        descriptors: list[int],
        ending: ConnectionEnded | None,
    ) -> None:
        hello, welcome = handshake.hello, handshake.welcome
        assert hello is not None
        first = welcome.first_id if welcome else 0
        gaps: list[Gap] = list(self._gaps_on_return(hello.server_id, first, ending))
        if ending is None and FIRST_ID <= self._wanted < first:
            gaps = [Gap(self._wanted, first - 1, GapReason.EVICTED)]
        if ending is None and self._wanted == START_OLDEST and welcome and welcome.left_out:
            gaps = [Gap(first - welcome.left_out, first - 1, GapReason.EVICTED)]
        try:
            self._make_core(sock, handshake, descriptors)
        except BaseException:
            rights.hang_up(sock, self._guarded)
            raise
        known: _Gaps = self._gaps
        same = hello.server_id == self._server_id != 0
        if ending is not None and not same:
            self._taken = _NOTHING
            self._out = self._acked = 0  # its ids begin anew
        self._server_id, self._first = hello.server_id, first
        missed = known.missed + sum(gap.count or 0 for gap in gaps)
        counted = max(known.counted if same else 0, first - 1)
        self._gaps = _Gaps(missed, counted, (*known.untold, *gaps))
        self._labels = None if hello.extended else Labels()

    def _gaps_on_return(
        self, server_id: int, first: int, ending: ConnectionEnded | None
    ) -> Iterator[Gap]:
        if ending is None:
            return
        due = self._next()
        if server_id == self._server_id != 0:
            if first > due:
                yield Gap(due, first - 1, GapReason.EVICTED)
            return
        # What it published to its end stands in its log, if we have that, also what came after we
        # had lost the connection.
        handle = self._handle
        last = lib.jmk_client_published_id(handle) if handle is not None else 0
        if isinstance(ending, ConnectionLost):
            last = max(last, ending.last_lost)
        if last >= due > 0:
            yield Gap(due, last, GapReason.ENDED)
        elif isinstance(ending, ConnectionLost) and self._delivery != "shared":
            yield Gap(self._shown(due), None, GapReason.RESTARTED)
        if first > FIRST_ID:
            yield Gap(FIRST_ID, first - 1, GapReason.EVICTED)

    def _make_core(
        self, sock: socket.socket, handshake: ClientHandshake, descriptors: list[int]
    ) -> None:
        hello, welcome = handshake.hello, handshake.welcome
        assert hello is not None
        config = ffi.new("struct jmk_client_config *")
        config.first_id = welcome.first_id if welcome else 0
        config.labels = not hello.extended
        config.max_lag = hello.max_lag
        config.max_message = hello.max_message or (1 << 32) - 1
        config.arena_size = self._arena_size
        config.max_packet = min(CLASSIC_PACKET, self._arena_size)
        config.mode = lib.JMK_CLASSIC
        if handshake.framed:
            config.max_packet = min(hello.max_packet or UNTOLD_PACKET, self._arena_size)
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
        elif descriptors:
            raise ProtocolError(UNINVITED)
        sock.setblocking(True)
        config.guard = lib.JMK_GUARD_NONE
        if self._guarded:
            # All descriptors that it takes have come.
            last = rights.refuse(sock)
            config.guard = lib.JMK_GUARD_UNTIL_EMPTY if last else lib.JMK_GUARD_ALWAYS
        descriptor, error = sock.fileno(), ffi.new("int *")
        # The descriptor is in one pair of hands at a time, whatever comes between.
        detached = map(_detach, (sock,))
        made = map(lib.jmk_client_make, detached, (config,), (error,))
        handle = owned(made, lib.jmk_client_free)
        code = error[0]
        if code < 0 and handshake.shared:
            raise CannotShareError(os.strerror(-code))
        check(code, "client")
        self._watch_server(handle, handshake.shared)
        receiver = Receiver(handle, address_of(handle))
        self._handle, self._receiver = handle, receiver
        self._descriptor = descriptor
        self._delivery = _DELIVERIES[config.mode]
        self._max_lag = hello.max_lag

    def _watch_server(self, handle: Handle, shared: bool) -> None:
        # A log tells of its server's death itself. In our own process we would not see it.
        self._watched = shared
        if self._server_pid == os.getpid():
            return
        if self._server_pid == 0 and self._server_pidfd < 0:
            return  # it cannot be seen from here
        try:
            if self._server_pid:
                next(map(lib.jmk_client_watch, (handle,), map(os.pidfd_open, (self._server_pid,))))
            else:
                next(map(lib.jmk_client_watch, (handle,), map(os.dup, (self._server_pidfd,))))
        except ProcessLookupError:
            raise ConnectionLost(f"the server of {self._address!r} died") from None
        except OSError:
            return  # this system has none, or has no descriptor to spare
        self._watched = True

    def _open(self) -> Handle:
        handle = self._handle
        if handle is None:
            raise Closed("this client is closed")
        if self._pid != os.getpid():
            check(lib.JMK_E_FORKED, "client")
        return handle

    # ---- receiving ----

    def receive(self, timeout: float | None = None) -> Item:
        """Receive one message, waiting for it if need be.

        Args:
            timeout: seconds; None is no limit, 0 never waits.

        Raises:
            Timeout: there was none in time.
            MessagesLost: there is a gap, and `on_gap` is "raise".
            ServerClosed: the server closed in good order, and all was received.
            Lagged: the server cut this client; the exception has the figures.
            Disconnected: the server's user ended the connection.
            ConnectionLost: the server died, or it closed before all was received.
            ProtocolError: the server broke the protocol.
            Busy: another thread is receiving.
            Closed: this client is closed, perhaps while this waited.
            OSError: the system lacks memory for it; nothing is lost, and the next call goes on.
        """
        if timeout is not None:
            nanoseconds(timeout)
        out = self._out + 1
        first, last, _, messages, _ = self._taken
        if out > last:
            gap = self._take(timeout)
            if gap is not None:
                return self._hand_out(gap)  # type: ignore[return-value]
            out = self._out + 1
            first, last, _, messages, _ = self._taken
        elif self._handle is None:
            raise Closed("this client is closed")
        if self._before:
            self._ack(out)
        message = messages[out - first]
        self._out = out
        return message

    @overload
    def receive_many(self: Client[bytes], timeout: float | None = None) -> Batch: ...
    @overload
    def receive_many(self: Client[bytes | Gap], timeout: float | None = None) -> Batch | Gap: ...
    def receive_many(self, timeout: float | None = None) -> Batch | Gap:
        """Receive what is there, at least one message, waiting for that if need be.

        Args, Raises: as for `receive`. With `ack="before"` all of them count as handled.
        """
        if self._before and not self._has_taken() and (gap := self._take(timeout)) is not None:
            return self._hand_out(gap)
        if self._has_taken() and self._handle is not None:
            first, last, _, messages, _ = self._taken
            left = messages[self._out + 1 - first :]
            if self._before:
                self._ack(last)
            first_id, count = self._out + 1, len(left)
            batch = Batch(self._shown(first_id), count, messages=left)
        else:
            found = self._look(timeout)
            if isinstance(found, Gap):
                return self._hand_out(found)
            first_id, count, items = found
            handle = self._handle
            if handle is None:
                raise Closed("this client is closed")
            loans = self._loans if self._delivery == "shared" else None
            batch = Batch(self._shown(first_id), count, client=handle, items=items, loans=loans)
            self._last_batch = weakref.ref(batch)
        last_id = first_id + count - 1
        self._together = first_id, last_id
        self._out = last_id
        return batch

    def _has_taken(self) -> bool:
        return self._out < self._taken[1]

    def __iter__(self) -> Iterator[Item]:
        """Receive message after message, until the server closes in good order, or this client.

        A message is acked once the loop comes back for the next; the one at a `break` is not.
        """
        return self._one_by_one() if self._before else self._many()

    def _one_by_one(self) -> Iterator[Item]:
        try:
            while True:
                yield self.receive()
        except (ServerClosed, Closed):
            return

    def _many(self) -> Iterator[Item]:
        monotonic = time.monotonic
        try:
            while self._receiver is not None:
                if self._out >= self._taken[1]:
                    gap = self._take(None)
                    if gap is not None:
                        gap = self._hand_out(gap)
                        yield gap  # type: ignore[misc]
                        continue
                out, taken = self._out, self._taken
                first, last, _, messages, _ = taken
                if last - out == 1:
                    # The next receive acks it: no clock needed, and a slow stream has no other.
                    message = messages[-1]
                    self._out = last
                    yield message
                    continue
                quarter = self._quarter()
                due, ack_at = monotonic() + _ACK_TIME, out + quarter
                if out >= first:
                    messages = messages[out + 1 - first :]
                for message in messages:
                    out += 1
                    self._out = out
                    yield message
                    if self._handle is None:
                        return
                    if self._out is not out or self._taken is not taken:
                        break  # it received otherwise as well; a forked child has none of these
                    # A slow loop acks by time, and within a long batch often enough for max_lag.
                    if out >= ack_at or monotonic() >= due:
                        self._ack(out)
                        due, ack_at = monotonic() + _ACK_TIME, out + quarter
        except (ServerClosed, Closed):
            return

    def _quarter(self) -> int:
        # Messages after which an ack is due.
        return max(1, self._max_lag // 4) if self._max_lag else 1 << 63

    def run(self, handler: Callable[[Item], object]) -> None:
        """Call `handler` with message after message, until the server closes in good order.

        A message is acked after `handler` returned (docs/protocol.md, "Acks"), or before, as `ack`
        says; one for which it raised is not, or is, and the exception comes out of here.

        Raises:
            Lagged, Disconnected, ConnectionLost, ProtocolError, Busy: as `receive` does.
        """
        for message in self:
            handler(message)

    # A signal's exception may come at any bytecode. Until `_out` has moved, the same messages are
    # received again. It moves last, and in one store, and Python handles no signal between that and
    # the `return` or `yield` behind it: neither is a call, nor a jump back.

    def _take(self, timeout: float | None) -> Gap | None:
        # Into a list of bytes, in one call; or a gap that comes first.
        if self._gaps.untold and (gap := self._tell()) is not None:
            return gap
        self._taken = _NOTHING  # while it waits it keeps none of the old ones in memory
        limit = nanoseconds(timeout)
        deadline = inf if timeout is None else time.monotonic() + timeout
        if self._green:
            limit = 0
            self._give_way()
        found: _Taken | int | Gap = self._prepare().take(self._out, limit)
        if isinstance(found, int):
            found = self._again(
                found, timeout, deadline, lambda now, left: now.take(self._out, left)
            )
        if isinstance(found, Gap):
            return found
        first_id, _, lost, _, shift = found
        if self._labels is not None:
            self._labels.note(first_id, shift)
        if lost and (gap := self._skipped(first_id - lost, first_id - 1)) is not None:
            return gap
        # In this order: none of the old ones are left, whatever comes between.
        self._out = first_id - 1
        self._taken = found
        return None

    def _look(self, timeout: float | None) -> tuple[int, int, int] | Gap:
        # For a batch, which stays in the arena: first id, count, address; or a gap before it.
        if self._gaps.untold and (gap := self._tell()) is not None:
            return gap
        limit = nanoseconds(timeout)
        deadline = inf if timeout is None else time.monotonic() + timeout
        if self._green:
            limit = 0
            self._give_way()
        found: tuple[int, int, int, int, int] | int | Gap = self._prepare().look(self._out, limit)
        if isinstance(found, int):
            found = self._again(
                found, timeout, deadline, lambda now, left: now.look(self._out, left)
            )
        if isinstance(found, Gap):
            return found
        first_id, lost, shift, count, items = found
        if self._labels is not None:
            self._labels.note(first_id, shift)
        if lost and (gap := self._skipped(first_id - lost, first_id - 1)) is not None:
            return gap
        return first_id, count, items

    def _prepare(self) -> Receiver:
        receiver = self._receiver
        if receiver is None:
            raise Closed("this client is closed")
        if self._last_batch is not None or self._loans:
            self._settle_batch()
        return receiver

    def _again(
        self,
        code: int,
        timeout: float | None,
        deadline: float,
        take: Callable[[Receiver, int], _T | int],
    ) -> _T | Gap:
        # After a signal the wait goes on, and on a new connection; all other codes raise.
        found: _T | int = code
        while isinstance(found, int):
            if found == lib.JMK_E_TIMEOUT and self._green and time.monotonic() < deadline:
                self._let_others_run(deadline)
            elif found == lib.JMK_E_TIMEOUT or (
                # Without a signal, that is packet after packet with no message in them.
                found == -errno.EINTR and time.monotonic() > deadline + _GRACE
            ):
                raise Timeout(f"no message within {timeout:g} s")
            elif found != -errno.EINTR:
                self._come_back(self._ending(found), deadline)
                if (gap := self._tell()) is not None:
                    return gap
            left = None if deadline == inf else max(0.0, deadline - time.monotonic())
            found = take(self._prepare(), 0 if self._green else nanoseconds(left))
        return found

    def _give_way(self) -> None:
        # A stream that never ends must not hold up all other greenlets.
        if time.monotonic() >= self._turn_ends:
            time.sleep(_LEAST_SLEEP)
            self._turn_ends = time.monotonic() + _GREEN_TURN

    def _let_others_run(self, deadline: float) -> None:
        # In C it would wait with all greenlets. What is taken is taken by this one alone, so one
        # that is killed while it waits here loses nothing.
        handle = self._handle  # keeps the descriptor open should another greenlet close
        if handle is None:
            return
        if self._waiting:
            check(lib.JMK_E_BUSY, "client")
        # The socket may have been full of acks: then the next look sends this one again.
        shared = self._delivery == "shared"
        late = not shared and lib.jmk_client_acked_id(handle) < self._out
        pause = _LATE_ACK_LOOK if late else _GREEN_LOOK
        self._waiting = True
        try:
            until_readable((self._descriptor,), max(0.0, min(deadline - time.monotonic(), pause)))
        finally:
            self._waiting = False
            self._turn_ends = time.monotonic() + _GREEN_TURN
            del handle

    def _settle_batch(self) -> None:
        # The last batch's memory is about to be used again, or given back. Whoever comes while
        # another thread does this waits for its end, as that reads the memory.
        with self._settling:
            last = self._last_batch
            batch = last() if last is not None else None
            if batch is not None:
                batch._settle()
            self._last_batch = None
            while self._loans:
                batch = self._loans[0]
                batch._take_back()
                with suppress(ValueError):  # a signal's handler closed this client meanwhile
                    self._loans.remove(batch)

    def _ending(self, code: int) -> Exception:
        handle = self._handle
        if handle is None:
            return Closed("this client is closed")
        if code == lib.JMK_E_PROTOCOL:
            return fault_of(handle)
        if code == lib.JMK_E_LOST:
            return self._lost(handle)
        if code == lib.JMK_E_END:
            return self._goodbye(handle)
        try:
            check(code, "client")
        except Exception as error:
            return error
        raise AssertionError(code)

    def _lost(self, handle: Handle) -> ConnectionLost:
        plain = self._delivery == "classic"
        words = "a plain 1.0 connection gives no reason" if plain else "the server died"
        reason = f"end of stream from {self._address!r} without a goodbye: {words}"
        # The log is there still, and read to its end, unless the server was just cutting us.
        first, last = self._next(), lib.jmk_client_published_id(handle)
        if last < first:
            return ConnectionLost(reason)
        return ConnectionLost(reason, first_lost=first, last_lost=last)

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
            "the server closed in good order before this client had received everything"
            if words.reason == lib.JMK_R_CLOSING
            else f"the server gave reason {words.reason}, which this version does not know"
        )
        return ConnectionLost(reason, first_lost=words.first_lost, last_lost=words.last_lost)

    # ---- gaps ----

    def _skipped(self, first: int, last: int) -> Gap | None:
        known: _Gaps = self._gaps
        first = max(first, known.counted + 1)
        if first <= last:  # else these messages are received again, and that was told
            gap = Gap(first, last)
            self._gaps = _Gaps(known.missed + last - first + 1, last, (*known.untold, gap))
        return self._tell()

    def _tell(self) -> Gap | None:
        # What is due is told; what is to be handed out is returned, and `_hand_out` follows.
        while self._gaps.untold:
            gap = self._gaps.untold[0]
            if self._on_gap == "yield":
                return gap
            if self._on_gap == "raise":
                error = MessagesLost(gap)
                self._hand_out(gap)
                raise error
            if callable(self._on_gap):
                self._on_gap(gap)  # if it raises, it is told again
            self._hand_out(gap)
        return None

    def _hand_out(self, gap: Gap) -> Gap:
        # As for a message, what follows the store is no place for a signal.
        known: _Gaps = self._gaps
        rest = _Gaps(known.missed, known.counted, known.untold[1:])
        self._gaps = rest
        return gap

    # ---- coming back ----

    def _come_back(self, ending: Exception, deadline: float) -> None:
        # Be connected again by the deadline, or raise.
        if self._effort is None or not isinstance(ending, ServerClosed | ConnectionLost):
            try:
                raise ending
            finally:
                del ending  # it has this frame, and would keep the connection for the collector
        with self._lock:
            way = self._return
            if way is None:
                way = self._return = Return(self, ending, self._effort)
        while not way.step():
            if time.monotonic() >= deadline:
                raise way.out_of_time()
            way.wait(deadline)

    # ---- acks ----

    def ack(self, packet_id: int | None = None) -> None:
        """Ack a message now, and all before it. Views of a shared log that it covers are released.

        Args:
            packet_id: by default the last one that was handed out. Of those that a plain 1.0 server
                gave the same id, the last.

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
        if packet_id is not None and self._labels is not None:
            handled = self._labels.find(packet_id, self._out)
        if handled > self._out or handled < 0:
            last = self.last_id if self._out else "none"
            raise AckError(f"packet id {packet_id} was not handed out; the last one was {last}")
        for batch in tuple(self._loans):
            if batch.last_id <= handled:
                batch._take_back()  # else its views would hold the ack back
        self._acked = max(self._acked, handled)
        return handled

    def _ack(self, handled: int) -> None:
        check(lib.jmk_client_ack(self._open(), handled, self._ack_patience), "client")

    # ---- asking ----

    @property
    def server_id(self) -> int:
        """The server's random number, by which a restart can be told; 0 from a plain 1.0 server."""
        return self._server_id

    @property
    def delivery(self) -> Delivery:
        """How it gets messages: as `delivery` asked, or the next best that both ends can do."""
        return self._delivery

    @property
    def last_id(self) -> int:
        """The packet id of the last message that was handed out; 0 if there was none.

        A plain 1.0 server may repeat ids, or go back.
        """
        return self._shown(self._out)

    def _shown(self, number: int) -> int:
        # The id that the user sees of a message, or of the one to come.
        return number if self._labels is None else self._labels.of(number)

    @property
    def resume_at(self) -> int:
        """Where to go on in another process, as `start`; 0 if nothing was received.

        That is behind the last message that counts as handled, as `ack` says: "after" has the one
        in work received again, "before" does not.
        """
        handled = max(self._handled(), self._acked)
        return self._shown(handled + 1) if self._out else self._first

    def _handled(self) -> int:
        # The last message that counts as handled, for all we know.
        out = self._out
        if self._before:
            return out
        first, last = self._together
        return (first if out == last else out) - 1

    @property
    def lag(self) -> int:
        """Messages received by this end and not acked."""
        handle = self._open()
        return lib.jmk_client_last_id(handle) - lib.jmk_client_acked_id(handle)

    @property
    def missed(self) -> int:
        """Messages lost in gaps, all together; `on_gap` tells which."""
        return self._gaps.missed

    def fileno(self) -> int:
        """The connection's descriptor, to wait until it is readable.

        Some messages may have been read already: before waiting, `receive_many(0)` until `Timeout`.
        """
        self._open()
        return self._descriptor

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else f"last {self.last_id}"
        return f"<jumiks.Client {self._address} ({state})>"

    # ---- closing ----

    def close(self) -> None:
        """Close the connection; a receive that waits in another thread gets `Closed`.

        What was handled is acked, if no other thread is receiving. May be called twice and from any
        thread.
        """
        if self._pid != os.getpid():
            self._handle = self._receiver = None
            return
        if sys.is_finalizing():
            # A thread that stands still for ever may hold the lock, or be on the way back.
            handle, self._handle, self._receiver = self._handle, None, None
        else:
            with self._lock:
                if self._handle is not None:
                    self._closing = self._handle
                self._handle = self._receiver = None
                way, self._return = self._return, None
                if way is not None:
                    way.end()
            handle = self._closing
        if handle is None:
            return
        try:
            self._settle_batch()
            lib.jmk_client_ack(handle, max(0, self._handled()), 0)
        finally:
            lib.jmk_client_close(handle)
        self._closing = None  # until then the next call does what a signal kept this one from

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
