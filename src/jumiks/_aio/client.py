# SPDX-License-Identifier: Apache-2.0
"""The receiving side in an event loop."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final, Generic, Literal, NoReturn, TypeVar, Unpack, overload

from .. import errors
from .._client.link import Delivery
from .._client.reconnect import Backoff, Return
from .._client.stream import NOTHING_YET, Ack, Item, OnGap, Stream
from .._closing import shown
from .._gap import Gap
from .._loops import Loop
from .._native import AsyncMessages, check_handler, lib, nanoseconds
from .._options import CONNECT_TIMEOUT, AsyncClientOptions, given, takes
from ..batch import Batch, message_dtype
from ..client import Keywords
from ..errors import Busy, Closed, ServerClosed, Timeout
from .twin import Twin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

__all__: list[str] = []

SLICE_TIME: Final = 5_000_000
"""Nanoseconds that a client hands out what is there before other tasks run: a time slice."""

SLICE_MESSAGES: Final = 1 << 16
"""Messages after which it has one in any case."""

LOOK_EVERY: Final = 1.0
"""Seconds between looks whether the server's process is there still."""

_ACK_TRIES: Final = 100
_ACK_PAUSE: Final = 0.01

_T = TypeVar("_T")


@takes(AsyncClientOptions)
class AsyncClient(Twin[Stream[Item]], Generic[Item]):
    """Receive every message of a server, in order: `Client` for an event loop.

    ::

        async with AsyncClient("@ticks") as client:
            async for message in client:
                ...

    Args:
        where: the server's address: `"@name"`, or a path with a "/" in it.
        {options}

    Nothing happens before it is awaited or entered; that raises what making a `Client` does. It has
    no `spin`, which would hold up the event loop.

    A cancelled `receive` loses nothing: the next one returns what it would have. One task receives
    at a time.
    """

    @overload
    def __init__(
        self: AsyncClient[bytes],
        where: str | os.PathLike[str],
        *,
        on_gap: Callable[[Gap], object] | Literal["raise"] | None = None,
        **options: Unpack[Keywords],
    ) -> None: ...
    @overload
    def __init__(
        self: AsyncClient[bytes | Gap],
        where: str | os.PathLike[str],
        *,
        on_gap: Literal["yield"],
        **options: Unpack[Keywords],
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
    ) -> None:
        options = AsyncClientOptions(**given(AsyncClientOptions, locals()))
        super().__init__()
        self._stream: Stream[Item] = options.stream(where)
        self._receiving = False

    async def _begin(self, loop: Loop) -> Stream[Item]:
        steps = self._stream.arriving()
        try:
            for descriptor, seconds in steps:
                if descriptor < 0:
                    await loop.pause(seconds)
                else:
                    await _until_readable(loop, descriptor, seconds)
        finally:
            steps.close()
        self._stream.tell_at_start()
        return self._stream

    # ---- receiving ----

    async def receive(self, timeout: float | None = None) -> Item:
        """Receive one message, waiting for it if need be; see `Client.receive`."""
        if timeout is not None:
            nanoseconds(timeout)
        message = self._stream.ready  # no call: see `Client.receive`
        if message is not None:
            return message
        return await self._receive_slowly(timeout)

    async def _receive_slowly(self, timeout: float | None) -> Item:
        stream = self._stream
        if stream.out >= stream.taken[1]:
            gap = await self._wait_for(stream.take, timeout)
            if gap is not None:
                return stream.hand_out_gap(gap)
        elif self._receiving or self._slice_is_over():
            await self._come(timeout, inf)
        if stream.handle is None:
            raise Closed(errors.CLOSED.format(what="client"))
        out = stream.out + 1
        first, _, messages = stream.taken
        message = messages[out - first]
        stream.out = out
        return message

    @overload
    async def receive_many(self: AsyncClient[bytes], timeout: float | None = None) -> Batch: ...
    @overload
    async def receive_many(
        self: AsyncClient[bytes | Gap], timeout: float | None = None
    ) -> Batch | Gap: ...
    async def receive_many(self, timeout: float | None = None) -> Batch | Gap:
        """Receive the next messages that are there; see `Client.receive_many` for how many."""
        found: Batch | Gap = await self._wait_for(self._stream.batch, timeout)
        return self._stream.hand_out(found)

    @overload
    async def receive_array(
        self: AsyncClient[bytes], dtype: DTypeLike, timeout: float | None = None
    ) -> NDArray[np.void]: ...
    @overload
    async def receive_array(
        self: AsyncClient[bytes | Gap], dtype: DTypeLike, timeout: float | None = None
    ) -> NDArray[np.void] | Gap: ...
    async def receive_array(
        self, dtype: DTypeLike, timeout: float | None = None
    ) -> NDArray[np.void] | Gap:
        """Receive the next messages as a numpy array; see `Client.receive_array`."""
        wanted = message_dtype(dtype)

        def take(limit: int) -> NDArray[np.void] | Gap | int:
            return self._stream.array(wanted, limit)

        found: NDArray[np.void] | Gap = await self._wait_for(take, timeout)
        return self._stream.hand_out(found)

    def __aiter__(self) -> AsyncMessages[Item]:
        """Receive message after message, until the server closes in good order, or this client.

        A message is acked once the loop comes back for the next; the one at a `break` is not.
        """
        return AsyncMessages(self._open(), self._next_slowly)

    if not TYPE_CHECKING:  # a type checker refuses `for` by itself

        def __iter__(self) -> NoReturn:
            raise TypeError(errors.NOT_FOR)

    async def _next_slowly(self) -> Item:
        stream = self._stream
        if stream.receiver is None:
            raise StopAsyncIteration
        try:
            if stream.out < stream.taken[1] and stream.taken[0] <= stream.out:
                stream.ack_in_loop(stream.out)  # a slice's end is the time for an ack
            return await self._receive_slowly(None)
        except (ServerClosed, Closed):
            raise StopAsyncIteration from None

    async def run(self, handler: Callable[[Item], object]) -> None:
        """Call `handler` with message after message, until the server closes in good order.

        What it returns is awaited, if that can be. With `ack="after"` a message is acked then, and
        not if that raised. With `"before"` it is acked first, with `"manual"` by you. An exception
        comes out of here; `Client.run` says what a second `run` does then.

        Raises:
            TypeError: `handler` is no function.
            Lagged, Disconnected, ConnectionLost, ProtocolError, Busy: as `receive` does.
        """
        check_handler(handler, awaited=True)
        async for message in self:
            result = handler(message)
            if hasattr(result, "__await__"):
                await result

    # ---- waiting ----

    def _slice_is_over(self) -> bool:
        stream = self._stream
        return time.monotonic_ns() >= stream.slice_ends or stream.out >= stream.slice_last

    def _new_slice(self) -> None:
        stream = self._stream
        stream.slice_ends = time.monotonic_ns() + SLICE_TIME
        stream.slice_last = (stream.out or stream.resume_at) + SLICE_MESSAGES

    async def _wait_for(self, take: Callable[[int], _T | int], timeout: float | None) -> _T:
        # Until there is something to take.
        if timeout is not None:
            nanoseconds(timeout)
        deadline = inf if timeout is None else time.monotonic() + timeout
        while True:
            await self._come(timeout, deadline)
            found = take(0)
            if not isinstance(found, int):
                return found
            # A signal came, the lag policy gave up what was there, or the server is gone: look for
            # what follows it.
            if found not in NOTHING_YET:
                way = self._stream.way_back(self._stream.ending(found))
                if time.monotonic() >= deadline and not way.step():
                    raise way.out_of_time()
            elif time.monotonic() >= deadline:
                raise Timeout(errors.NO_MESSAGE.format(timeout=timeout))

    async def _come(self, timeout: float | None, deadline: float) -> None:
        # Return once the stream has something to take without waiting.
        stream = self._open()
        if self._receiving:
            raise Busy(errors.ONE_CONSUMER.format(other="task"))
        self._receiving = True
        # Meanwhile no other task takes anything.
        ends, stream.slice_ends = stream.slice_ends, 0
        try:
            if stream.way is not None:
                await self._come_back(stream.way, deadline)
            code = stream.peek()
            if code not in NOTHING_YET:
                stream.slice_ends = ends
                if self._slice_is_over():
                    await self._the_loop().pause(0)
                    self._new_slice()
                return
            await self._wait(code, timeout, deadline)
            self._new_slice()
        finally:
            self._receiving = False

    async def _come_back(self, way: Return, deadline: float) -> None:
        loop = self._the_loop()
        loop.close(self._stream.descriptor)  # before another connection gets that number
        while not way.step():
            left = deadline - time.monotonic()
            if left <= 0:
                raise way.out_of_time()
            descriptor, seconds = way.due()
            wait = descriptor if descriptor >= 0 else way.fileno()
            await _until_readable(loop, wait, min(seconds, left))

    def _look(self) -> bool:
        return self._stream.peek() != lib.JMK_E_TIMEOUT

    async def _wait(self, code: int, timeout: float | None, deadline: float) -> None:
        loop, stream = self._the_loop(), self._stream
        while code in NOTHING_YET:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(errors.NO_MESSAGE.format(timeout=timeout))
            if code == -errno.EINTR:
                await loop.pause(0)  # packets without a message keep coming: let other tasks run
            else:
                # The socket may have been full of acks: then this one is sent again soon.
                late = not stream.acks_have_left()
                wait = min(left, _ACK_PAUSE if late else LOOK_EVERY if stream.watched else inf)
                await loop.readable(stream.descriptor, self._look, wait)
            code = stream.peek()

    # ---- acks ----

    async def ack(self, packet_id: int | None = None) -> None:
        """Ack a message now, and all before it; see `Client.ack`."""
        stream = self._open()
        handled = stream.ack_target(packet_id)
        for _ in range(_ACK_TRIES):
            stream.ack(handled)
            if stream.is_acked(handled):
                return
            await self._the_loop().pause(_ACK_PAUSE)

    # ---- asking ----

    @property
    def server_id(self) -> int:
        """The server's random number; see `Client.server_id`."""
        return self._open().server_id

    @property
    def delivery(self) -> Delivery:
        """How it gets messages; see `Client.delivery`."""
        return self._open().delivery

    @property
    def last_id(self) -> int:
        """The packet id of the last message that was handed out; 0 if there was none."""
        return self._stream.last_id

    @property
    def resume_at(self) -> int:
        """The packet id to go on at in another process; see `Client.resume_at`."""
        return self._stream.resume_at

    @property
    def position(self) -> tuple[int, int]:
        """Where to go on in another process, as `start`; see `Client.position`."""
        return self._stream.position

    @property
    def lag(self) -> int:
        """Messages received by this end and not acked."""
        return self._open().lag

    @property
    def missed(self) -> int:
        """Messages lost in gaps, all together; `on_gap` tells which.

        That is also what `ConnectionLost` names, but not what `Lagged` does: a new client at its
        `resume_at` may get those still.
        """
        return self._stream.missed

    def fileno(self) -> int:
        """A descriptor that is readable whenever a receive would not wait; see `Client.fileno`."""
        return self._open().readiness()

    def __repr__(self) -> str:
        def about() -> str:
            return f": {'not there yet' if self._inside is None else self._stream}"

        return shown("AsyncClient", about)

    # ---- closing ----

    async def close(self) -> None:
        """Close the connection; a task that waits in `receive` gets `Closed`. May be repeated."""
        stream = self._inside
        if stream is None or stream.handle is None:
            return
        if stream.is_ours():
            self._the_loop().close(stream.descriptor)
            if stream.way is not None and stream.way.due()[0] >= 0:
                self._the_loop().close(stream.way.due()[0])
        stream.close()

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close_forgotten(self)


def _yes() -> bool:
    return True


async def _until_readable(loop: Loop, descriptor: int, timeout: float) -> None:
    # For a descriptor that is somebody else's soon.
    try:
        await loop.readable(descriptor, _yes, timeout)
    finally:
        loop.close(descriptor)
