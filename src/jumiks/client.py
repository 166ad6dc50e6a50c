# SPDX-License-Identifier: Apache-2.0
"""The receiving side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from math import inf
from typing import (
    TYPE_CHECKING,
    Final,
    Generic,
    Literal,
    NoReturn,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from . import errors
from ._client.connecting import in_thread
from ._client.link import Delivery
from ._client.reconnect import Backoff
from ._client.stream import NOTHING_YET, Ack, Item, OnGap, Stream
from ._closing import Closing, shown
from ._gap import Gap
from ._green import cooperates, until_readable
from ._native import Messages, check, check_handler, lib, nanoseconds
from ._options import CONNECT_TIMEOUT, ClientOptions, given, takes
from .batch import Batch, message_dtype
from .errors import Closed, ServerClosed, Timeout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

__all__ = ["Client"]

_T = TypeVar("_T")

_GRACE: Final = 0.05
"""Seconds behind the deadline after which packets without a message are looked at no more."""

_GREEN_LOOK: Final = 1.0
"""Seconds after which a client that lets greenlets run looks whether its server is alive."""

_GREEN_SLICE: Final = 0.01
"""Seconds that it receives without letting others run, while there are messages."""

_LEAST_SLEEP: Final = 1e-6  # gevent takes a sleep of 0 for one that lets no timer run

_LATE_ACK_LOOK: Final = 0.01
_ACK_PATIENCE: Final = 1_000_000_000  # ns; a live server reads acks well within


class Keywords(TypedDict, total=False):
    """What both clients take beside the address and `on_gap`."""

    start: Literal["now", "oldest"] | int | tuple[int, int]
    timeout: float | None
    name: str | None
    wait: float | Literal["default"] | None
    delivery: Delivery
    ack: Ack
    reconnect: bool | Backoff


class _Keywords(Keywords, total=False):
    spin: float


@takes(ClientOptions)
class Client(Closing, Generic[Item]):
    """Receive every message of a server, in order.

    Everything that is published after this returned is delivered, or its loss is told.

    Args:
        where: the server's address: `"@name"`, or a path with a "/" in it.
        {options}

    Raises:
        ConnectionRefusedError, FileNotFoundError: nobody serves that address, or nobody did within
            `wait` seconds.
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

    @overload
    def __init__(
        self: Client[bytes],
        where: str | os.PathLike[str],
        *,
        on_gap: Callable[[Gap], object] | Literal["raise"] | None = None,
        **options: Unpack[_Keywords],
    ) -> None: ...
    @overload
    def __init__(
        self: Client[bytes | Gap],
        where: str | os.PathLike[str],
        *,
        on_gap: Literal["yield"],
        **options: Unpack[_Keywords],
    ) -> None: ...
    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        start: Literal["now", "oldest"] | int | tuple[int, int] = "now",
        timeout: float | None = CONNECT_TIMEOUT,
        name: str | None = None,
        wait: float | Literal["default"] | None = "default",
        delivery: Delivery = "shared",
        on_gap: OnGap = None,
        ack: Ack = "after",
        reconnect: bool | Backoff = False,
        spin: float = 0.0,
    ) -> None:
        options = ClientOptions(**given(ClientOptions, locals()))
        self._stream: Stream[Item] = options.stream(
            where, spin=options.spin, ack_patience=_ACK_PATIENCE
        )
        self._green = cooperates()
        if self._green:
            self._stream.hand_out_by_python()
        self._waiting = False  # one greenlet is, while others run
        self._slice_ends = 0.0
        in_thread(self._stream.arriving())
        self._stream.tell_at_start()

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
        # A subscript: a signal that comes in a call is handled behind it, and what the call
        # returned would be lost.
        message = self._stream[timeout]
        if message is not None:
            return message
        return self._receive_slowly(timeout)

    def _receive_slowly(self, timeout: float | None) -> Item:
        if timeout is not None:
            nanoseconds(timeout)
        stream = self._stream
        try:
            out = stream.out + 1
            first, last, messages = stream.taken
            if out > last:
                if not stream.advance():
                    gap = self._wait_for(stream.take, timeout)
                    if gap is not None:
                        return stream.hand_out_gap(gap)
                out = stream.out + 1
                first, last, messages = stream.taken
            elif stream.handle is None:
                raise Closed(errors.CLOSED.format(what="client"))
            if not first <= out <= last:  # another thread came between
                check(lib.JMK_E_BUSY, "client")
            message = messages[out - first]
            stream.out = out
            return message
        except BaseException:
            stream.show_rest()
            raise

    @overload
    def receive_many(self: Client[bytes], timeout: float | None = None) -> Batch: ...
    @overload
    def receive_many(self: Client[bytes | Gap], timeout: float | None = None) -> Batch | Gap: ...
    def receive_many(self, timeout: float | None = None) -> Batch | Gap:
        """Receive the next messages that are there, at least one, waiting for that if need be.

        Of a shared log it takes messages until they fill 256 KiB, or an eighth of the log if that
        is less, with a header of 16 bytes for each; of packets, what some of them have. So the last
        message is the newest only if the next call, with a timeout of 0, raises `Timeout`.

        Args, Raises: as for `receive`. With `ack="before"` all of them count as handled. With
        `ack="manual"` views of a shared log last until the batch is acked.
        """
        found: Batch | Gap
        try:
            found = self._wait_for(self._stream.batch, timeout)  # type: ignore[assignment]
            return self._stream.hand_out(found)
        except BaseException:
            self._stream.show_rest()
            raise

    @overload
    def receive_array(
        self: Client[bytes], dtype: DTypeLike, timeout: float | None = None
    ) -> NDArray[np.void]: ...
    @overload
    def receive_array(
        self: Client[bytes | Gap], dtype: DTypeLike, timeout: float | None = None
    ) -> NDArray[np.void] | Gap: ...
    def receive_array(
        self, dtype: DTypeLike, timeout: float | None = None
    ) -> NDArray[np.void] | Gap:
        """Receive the next messages as a numpy array, an item per message, waiting for the first.

        It has as many as a batch of `receive_many`, and may not reach to the newest message.
        The array has one dimension and is a copy: it stays as it is, and may be written to.
        `receive_many` and `Batch.array` do it without a copy. The last item is message `last_id`,
        and ids in an array have no holes.

        Args:
            dtype: what numpy takes for one; its items must be as large as the messages.
            timeout: as for `receive`.

        Raises:
            ValueError: a message has another size. None of the batch counts as handed out.
            TypeError: the dtype has Python objects in it.
            ImportError: numpy is not installed: `pip install 'jumiks[numpy]'`.
            Those of `receive`.
        """
        wanted = message_dtype(dtype)

        def take(limit: int) -> NDArray[np.void] | Gap | int:
            return self._stream.array(wanted, limit)

        found: NDArray[np.void] | Gap
        try:
            found = self._wait_for(take, timeout)  # type: ignore[assignment]
            return self._stream.hand_out(found)
        except BaseException:
            self._stream.show_rest()
            raise

    def __iter__(self) -> Iterator[Item]:
        """Receive message after message, until the server closes in good order, or this client.

        A message is acked once the loop comes back for the next; the one at a `break` is not.
        """
        return Messages(self._stream, self._next_slowly)

    def _next_slowly(self) -> Item | None:
        if self._stream.receiver is None:
            return None
        try:
            return self._receive_slowly(None)
        except (ServerClosed, Closed):
            return None

    def run(self, handler: Callable[[Item], object]) -> None:
        """Call `handler` with message after message, until the server closes in good order.

        With `ack="after"` a message is acked once `handler` has returned, and not if it raised.
        With `"before"` it is acked first, with `"manual"` by you. Exceptions come out of here
        (docs/protocol.md, "Acks"). Another `run` or `receive` of this client goes on with the
        message after that one, which counts as handled then. So catch what may be tried again
        inside of `handler`; to get the message again, close this client and make another with
        `start=client.position`.

        Raises:
            TypeError: `handler` is no function, or a coroutine function.
            Lagged, Disconnected, ConnectionLost, ProtocolError, Busy: as `receive` does.
        """
        check_handler(handler, awaited=False)
        for message in self:
            handler(message)

    # ---- waiting ----

    def _wait_for(self, take: Callable[[int], _T | int], timeout: float | None) -> _T:
        # After a signal the wait goes on, and on a new connection.
        limit, deadline = -1, inf
        if timeout is not None:
            limit, deadline = nanoseconds(timeout), time.monotonic() + timeout
        if self._green:
            limit = 0
            self._give_way()
        found = take(limit)
        while isinstance(found, int):
            self._wait_on(found, timeout, deadline)
            left = None if deadline == inf else max(0.0, deadline - time.monotonic())
            found = take(0 if self._green else nanoseconds(left))
        return found

    def _wait_on(self, code: int, timeout: float | None, deadline: float) -> None:
        # Return if it makes sense to take again.
        if code not in NOTHING_YET:
            self._come_back(self._stream.ending(code), deadline)
        elif code == lib.JMK_E_TIMEOUT and self._green and time.monotonic() < deadline:
            self._let_others_run(deadline)
        elif code == lib.JMK_E_TIMEOUT or time.monotonic() > deadline + _GRACE:
            # Without a signal, that is packet after packet with no message in them.
            raise Timeout(errors.NO_MESSAGE.format(timeout=timeout))

    def _come_back(self, ending: Exception, deadline: float) -> None:
        # Be connected again by the deadline, or raise.
        try:
            way = self._stream.way_back(ending)
        finally:
            del ending  # if it is raised, it has this frame, and would keep the connection
        while not way.step():
            if time.monotonic() >= deadline:
                raise way.out_of_time()
            way.wait(deadline)

    def _give_way(self) -> None:
        # A stream that never ends must not hold up all other greenlets.
        if time.monotonic() >= self._slice_ends:
            time.sleep(_LEAST_SLEEP)
            self._slice_ends = time.monotonic() + _GREEN_SLICE

    def _let_others_run(self, deadline: float) -> None:
        # In C it would wait with all greenlets. What is taken is taken by this one alone, so one
        # that is killed while it waits here loses nothing.
        stream = self._stream
        handle = stream.handle  # keeps the descriptor open should another greenlet close
        if handle is None:
            return
        if self._waiting:
            check(lib.JMK_E_BUSY, "client")
        # The socket may have been full of acks: then the next look sends this one again.
        pause = _GREEN_LOOK if stream.acks_have_left() else _LATE_ACK_LOOK
        self._waiting = True
        try:
            until_readable((stream.descriptor,), max(0.0, min(deadline - time.monotonic(), pause)))
        finally:
            self._waiting = False
            self._slice_ends = time.monotonic() + _GREEN_SLICE
            del handle

    # ---- acks ----

    def ack(self, packet_id: int | None = None) -> None:
        """Ack a message now, and all before it. Views of a shared log that it covers are released.

        An ack of a message that was acked changes nothing. After a reconnect to the same server,
        that goes for all that was handed out before; ids of another server are wrong here.

        Args:
            packet_id: by default the last one that was handed out. Of those that a plain 1.0 server
                gave the same id, the last.

        Raises:
            AckError: it was not handed out (yet).
            Busy, Closed: as for `receive`.
        """
        self._stream.ack(self._stream.ack_target(packet_id))

    # ---- asking ----

    @property
    def server_id(self) -> int:
        """The server's random number, by which a restart can be told; 0 from a plain 1.0 server."""
        return self._stream.server_id

    @property
    def delivery(self) -> Delivery:
        """How it gets messages: as `delivery` asked, or the next best that both ends can do."""
        return self._stream.delivery

    @property
    def last_id(self) -> int:
        """The packet id of the last message that was handed out; 0 if there was none.

        A plain 1.0 server may repeat ids, or go back.
        """
        return self._stream.last_id

    @property
    def resume_at(self) -> int:
        """The packet id to go on at in another process.

        That is behind the last message that counts as handled, as `ack` says: "after" has the one
        in work received again, "before" does not, "manual" has all received again that were not
        acked. If nothing was received, it is the first message that this client gets; 0 if that is
        not known, as with a plain 1.0 server. It is an id of this server alone: another one, with
        another `server_id`, begins its ids anew. So give another client `position`.
        """
        return self._stream.resume_at

    @property
    def position(self) -> tuple[int, int]:
        """Where to go on in another process, as `start`: `server_id` and `resume_at`."""
        return self._stream.position

    @property
    def lag(self) -> int:
        """Messages received by this end and not acked."""
        return self._stream.lag

    @property
    def missed(self) -> int:
        """Messages lost in gaps, all together; `on_gap` tells which.

        That is also what `ConnectionLost` names, but not what `Lagged` does: a new client at its
        `resume_at` may get those still.
        """
        return self._stream.missed

    def fileno(self) -> int:
        """A descriptor that is readable whenever a receive would not wait.

        That is: a message or a gap is there, or the end, or an error. It is for `select`, `poll`
        and `epoll` (level- or edge-triggered) and for event loops, stays the same number when the
        client reconnects, and is closed with the client. Take it out of your loop before `close`.
        Do nothing with it but wait.

        Once it is readable, receive with a timeout of 0, and take `Timeout` for "not yet": now and
        then it is readable for what is not a message. So a client that comes back to its server
        takes its steps, and acks go out that the server may be waiting for. Edge-triggered: receive
        until `Timeout`.

        Call it first in the thread that receives. From then on each receive looks ahead, which
        costs it up to a few system calls.
        """
        return self._stream.readiness()

    def __repr__(self) -> str:
        return shown("Client", lambda: f" {self._stream}")

    # ---- closing ----

    def close(self) -> None:
        """Close the connection; a receive that waits in another thread gets `Closed`.

        What was handled is acked, if no other thread is receiving. May be called twice and from any
        thread.
        """
        self._stream.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client stays in its process: others make their own of the address")

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close_forgotten(self)
