# SPDX-License-Identifier: Apache-2.0
"""`Server` and `Client` for asyncio (uvloop, anyio) and trio: the same core, with awaited waits.

Nothing here runs once a message: a client takes batches as the sync one does, and goes to the event
loop only where it has to wait, or has kept the loop from others for long enough. It is used from
the loop's own thread; only `Server` and `Client` may be shared between threads.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, Literal, Self, TypeVar, Unpack, overload

from ._client.reconnect import Backoff, Return
from ._gap import Gap
from ._loops import Loop, current
from ._native import Reservation, check, check_callback, ffi, lib, nanoseconds
from ._options import (
    HANDSHAKE_TIMEOUT,
    LOG_SIZE,
    MAX_CLIENTS,
    ServerOptions,
    documented,
    given,
)
from ._server import access, lag
from ._server.lag_watch import LAG_WARNING
from ._wire.handshake import FIRST_ID
from .batch import Batch
from .client import ARENA_SIZE, CONNECT_TIMEOUT, Client, ClientOptions, Delivery, Item, OnGap
from .errors import Busy, Closed, MessageTooLarge, ServerClosed, Timeout
from .server import LINGER, Server, _Wait, gather_messages
from .stats import ClientInfo, EndReason, ServerStats

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._core import Client as Handle

__all__ = ["AsyncClient", "AsyncServer"]

TURN_TIME: Final = 0.005
"""Seconds that a client hands out messages that are there before the event loop has a turn."""

TURN_MESSAGES: Final = 1 << 16
"""Messages after which it has one in any case."""

SLICE: Final = 50_000_000
"""Nanoseconds at most that a thread waits in the core, so that it ends soon after its caller."""

LOOK_EVERY: Final = 1.0
"""Seconds between looks whether the server's process is there still."""

_NOTHING: Final = (lib.JMK_E_TIMEOUT, -errno.EINTR)
_BATCH_PAUSE: Final = 0.001
_ACK_TRIES: Final = 100
_ACK_PAUSE: Final = 0.01

_T = TypeVar("_T")
_R = TypeVar("_R")


class _Twin(Generic[_T]):
    """What both classes share: they are there once awaited, or entered by `async with`."""

    def __init__(self) -> None:
        self._sync: _T | None = None
        self._began = False
        self._loop: Loop | None = None

    async def _begin(self, loop: Loop) -> _T:
        raise NotImplementedError

    async def _opened(self) -> Self:
        if self._sync is None:
            if self._began:
                raise Closed("this one's start is under way, or has failed: make a new one")
            self._began = True
            self._loop = current()
            self._sync = await self._begin(self._loop)
        return self

    def __await__(self) -> Generator[object, None, Self]:
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def close(self) -> None:
        raise NotImplementedError

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _open(self) -> _T:
        if self._sync is None:
            name = type(self).__name__
            raise Closed(f"this {name} is not there yet: await it, or enter it by 'async with'")
        return self._sync

    def _the_loop(self) -> Loop:
        assert self._loop is not None
        return self._loop

    def __repr__(self) -> str:
        inside = "not there yet" if self._sync is None else repr(self._sync)[1:-1]
        return f"<jumiks.{type(self).__name__}: {inside}>"


class AsyncClient(_Twin["Client[Item]"], Generic[Item]):
    """Receive every message of a server, in order: `Client` for an event loop.

    ::

        async with AsyncClient("@ticks") as client:
            async for message in client:
                ...

    Args, Raises: those of `Client`, but for `spin`, which would hold up the event loop; nothing
        happens before it is awaited or entered.

    A cancelled `receive` loses nothing: the next one returns what it would have. One task receives
    at a time.
    """

    @overload
    def __init__(
        self: AsyncClient[bytes],
        where: str | os.PathLike[str],
        *,
        on_gap: Callable[[Gap], object] | Literal["raise"] | None = None,
        **options: Unpack[ClientOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: AsyncClient[bytes | Gap],
        where: str | os.PathLike[str],
        *,
        on_gap: Literal["yield"],
        **options: Unpack[ClientOptions],
    ) -> None: ...
    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        start: Literal["now", "oldest"] | int = "now",
        timeout: float | None = CONNECT_TIMEOUT,
        arena_size: int = ARENA_SIZE,
        delivery: Delivery = "shared",
        on_gap: OnGap = None,
        ack: Literal["after", "before"] = "after",
        reconnect: bool | Backoff = False,
    ) -> None:
        super().__init__()
        self._client: Client[Item] = Client.__new__(Client)
        self._client._set_up(
            where,
            start=start,
            timeout=timeout,
            arena_size=arena_size,
            delivery=delivery,
            spin=0.0,
            on_gap=on_gap,
            ack=ack,
            reconnect=reconnect,
        )
        self._client._ack_patience = 0  # nothing here may hold up the loop
        self._receiving = False
        self._turn_ends = 0.0
        self._turn_first = 0  # the last message before this turn, once there was one

    async def _begin(self, loop: Loop) -> Client[Item]:
        steps = self._client._enter()
        try:
            for descriptor, seconds in steps:
                if descriptor < 0:
                    await loop.pause(seconds)
                else:
                    await _until_readable(loop, descriptor, seconds)
        finally:
            steps.close()
        self._client._begin()
        return self._client

    # ---- receiving ----

    async def receive(self, timeout: float | None = None) -> Item:
        """Receive one message, waiting for it if need be; see `Client.receive`."""
        client = self._client
        if (
            client._out >= client._taken[1]
            or self._receiving
            or time.monotonic() >= self._turn_ends
        ):
            return await self._surely(client.receive, timeout)
        return client.receive(0)

    @overload
    async def receive_many(self: AsyncClient[bytes], timeout: float | None = None) -> Batch: ...
    @overload
    async def receive_many(
        self: AsyncClient[bytes | Gap], timeout: float | None = None
    ) -> Batch | Gap: ...
    async def receive_many(self, timeout: float | None = None) -> Batch | Gap:
        """Receive what is there, at least one message; see `Client.receive_many`."""
        return await self._surely(self._client.receive_many, timeout)

    async def __aiter__(self) -> AsyncGenerator[Item, None]:
        """Receive message after message, until the server closes in good order, or this client.

        A message is acked once the loop comes back for the next; the one at a `break` is not. With
        trio, which wants it so, leave it early only within `contextlib.aclosing(aiter(client))`.
        """
        client, monotonic = self._open(), time.monotonic
        pause = self._the_loop().pause
        try:
            while client._before:
                yield await self.receive()
            while client._receiver is not None:
                if not client._has_taken():
                    gap = await self._surely(client._take, None)
                    if gap is not None:
                        gap = client._hand_out(gap)
                        yield gap  # type: ignore[misc]
                        continue
                out, taken = client._out, client._taken
                first, last, _, messages, _ = taken
                if last - out == 1:
                    message = messages[-1]
                    client._out = last
                    yield message
                    continue
                quarter = client._quarter()
                ack_at = out + quarter
                if out >= first:
                    messages = messages[out + 1 - first :]
                for message in messages:
                    out += 1
                    client._out = out
                    yield message
                    if client._handle is None:
                        return
                    if client._out is not out or client._taken is not taken:
                        break  # it received otherwise as well; a forked child has none of these
                    if out >= ack_at or monotonic() >= self._turn_ends:
                        self._ack(out)
                        ack_at = out + quarter
                        if monotonic() >= self._turn_ends:
                            await pause(0)
                            self._new_turn()
        except (ServerClosed, Closed):
            return

    async def run(self, handler: Callable[[Item], object]) -> None:
        """Call `handler` with message after message, until the server closes in good order.

        A message is acked after `handler` returned, and after what it returned was awaited, if that
        can be, or before, as `ack` says; one for which it raised is not, or is, and the exception
        comes out of here.

        Raises:
            Lagged, Disconnected, ConnectionLost, ProtocolError, Busy: as `receive` does.
        """
        async for message in self:
            result = handler(message)
            if hasattr(result, "__await__"):
                await result

    def _turn_is_over(self) -> bool:
        last = self._client._out
        if not self._turn_first:
            self._turn_first = last
        return time.monotonic() >= self._turn_ends or last - self._turn_first >= TURN_MESSAGES

    def _new_turn(self) -> None:
        self._turn_ends = time.monotonic() + TURN_TIME
        self._turn_first = self._client._out

    async def _surely(self, take: Callable[[float | None], _R], timeout: float | None) -> _R:
        if timeout is not None:
            nanoseconds(timeout)
        deadline = inf if timeout is None else time.monotonic() + timeout
        while True:
            await self._come(timeout, deadline)
            try:
                return take(0)
            except Timeout as error:
                # A signal came, the lag policy gave up what was there, or the server is gone: look
                # for what follows it.
                if time.monotonic() < deadline:
                    continue
                if error.__cause__ is not None:
                    raise
                raise Timeout(f"no message within {timeout:g} s") from None

    async def _come(self, timeout: float | None, deadline: float) -> None:
        # Return once the sync client has something to say without waiting.
        client = self._open()
        if self._receiving:
            raise Busy(
                "another task is receiving on this client: one client is for one consumer, "
                "so give each task a client of its own"
            )
        self._receiving = True
        try:
            if client._return is not None:
                await self._come_back(client, client._return, deadline)
            code = 0 if client._has_taken() else self._peek()
            if code not in _NOTHING:
                if self._turn_is_over():
                    await self._the_loop().pause(0)
                    self._new_turn()
                return
            await self._wait(client, code, timeout, deadline)
            self._new_turn()
        finally:
            self._receiving = False

    async def _come_back(self, client: Client[Item], way: Return, deadline: float) -> None:
        loop = self._the_loop()
        loop.close(client._descriptor)  # before another connection gets that number
        while not way.step():
            left = deadline - time.monotonic()
            if left <= 0:
                raise way.out_of_time()
            descriptor, seconds = way.due()
            wait = descriptor if descriptor >= 0 else way.fileno()
            await _until_readable(loop, wait, min(seconds, left))

    def _peek(self) -> int:
        # What it finds stays in the core until it is asked for again; an end or an error as well.
        client = self._client
        if client._receiver is None or client._gaps.untold:
            return 0
        found = client._prepare().look(client._out, 0)
        return found if isinstance(found, int) else 0

    def _look(self) -> bool:
        return self._peek() != lib.JMK_E_TIMEOUT

    async def _wait(
        self, client: Client[Item], code: int, timeout: float | None, deadline: float
    ) -> None:
        loop = self._the_loop()
        while code in _NOTHING:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(f"no message within {timeout:g} s")
            if code == -errno.EINTR:
                await loop.pause(0)  # packets without a message keep coming: others have a turn
            else:
                # The socket may have been full of acks: then this one is sent again soon.
                late = client._handle is not None and not self._is_acked(
                    client._handle, client._out
                )
                wait = min(left, _ACK_PAUSE if late else LOOK_EVERY if client._watched else inf)
                await loop.readable(client.fileno(), self._look, wait)
            code = self._peek()

    # ---- acks ----

    async def ack(self, packet_id: int | None = None) -> None:
        """Ack a message now, and all before it; see `Client.ack`."""
        client = self._open()
        handled = client._prepare_ack(packet_id)
        for _ in range(_ACK_TRIES):
            self._ack(handled)
            if self._is_acked(client._open(), handled):
                return
            await self._the_loop().pause(_ACK_PAUSE)

    def _is_acked(self, handle: Handle, handled: int) -> bool:
        # In a shared log it always is, but for what the user's views hold back.
        return self._client._delivery == "shared" or lib.jmk_client_acked_id(handle) >= handled

    def _ack(self, handled: int) -> None:
        if handled:
            check(lib.jmk_client_ack(self._client._open(), handled, 0), "client")

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
        return self._client.last_id

    @property
    def resume_at(self) -> int:
        """Where to go on in another process, as `start`; see `Client.resume_at`."""
        return self._client.resume_at

    @property
    def lag(self) -> int:
        """Messages received by this end and not acked."""
        return self._open().lag

    @property
    def missed(self) -> int:
        """Messages lost in gaps, all together; `on_gap` tells which."""
        return self._client.missed

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._open().fileno()

    # ---- closing ----

    async def close(self) -> None:
        """Close the connection; a task that waits in `receive` gets `Closed`. May be repeated."""
        client = self._sync
        if client is None or client._handle is None:
            return
        if client._pid == os.getpid():
            self._the_loop().close(client._descriptor)
            if client._return is not None and client._return.due()[0] >= 0:
                self._the_loop().close(client._return.due()[0])
        client.close()


def _yes() -> bool:
    return True


async def _until_readable(loop: Loop, descriptor: int, timeout: float) -> None:
    # For a descriptor that is somebody else's soon.
    try:
        await loop.readable(descriptor, _yes, timeout)
    finally:
        loop.close(descriptor)


@documented(ServerOptions)
class AsyncServer(_Twin[Server]):
    """Publish messages to any number of clients: `Server` for an event loop.

    ::

        async with AsyncServer("@ticks") as server:
            server.publish(b"now")
            await server.publish_wait(b"as soon as the lag policy lets it")

    `publish` and `publish_many` never wait. Where the lag policy would have the sync ones wait they
    raise `Timeout`; `publish_wait` and `publish_many_wait` await their turn instead, and meanwhile
    the event loop runs on.

    Nothing happens before it is awaited or entered; that raises what making a `Server` does. The
    callbacks are called in the event loop, but for a function in `allow` or `monitor`, which the
    control thread calls, as it waits for the answer.

    Args:
        where: `"@name"` for an abstract address, a path, or a socket that is bound already.
        {options}
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
        options = given(ServerOptions, locals())
        super().__init__()
        self._in_batch = False
        for name in ("on_connect", "on_disconnect", "on_lag_warning"):
            if options[name] is not None:
                check_callback(options[name], name)
                options[name] = self._in_loop(options[name])
        self._make = partial(Server, where, **options)

    def _in_loop(self, function: Callable[..., object]) -> Callable[..., object]:
        return lambda *args: self._the_loop().soon(partial(function, *args))

    async def _begin(self, loop: Loop) -> Server:
        # In a thread, as a large log takes its time, and so may others who start on this path.
        wanted = threading.Lock()
        made: list[Server] = []

        def make() -> None:
            server = self._make()
            with wanted:
                if not given_up:
                    made.append(server)
                    return
            server.close(0)

        given_up = False
        try:
            await loop.in_thread(make)
        except BaseException:
            with wanted:
                given_up = True
            for server in made:
                server.close(0)
            loop.close(-1)
            raise
        return made[0]

    # ---- publishing ----

    def publish(self, data: Buffer) -> int:
        """Publish one message at once; returns its packet id.

        Args:
            data: any contiguous buffer; copied before this returns.

        Raises:
            Timeout: the lag policy, or another publisher, would have this wait (`publish_wait`);
                nothing was published, and `holder` is the client in the way.
            TypeError, BufferError, MessageTooLarge, Busy, Closed: as for `Server.publish`.
        """
        server = self._open()
        if self._in_batch:
            raise Timeout("a publish_many_wait is under way: await publish_wait instead")
        return server.publish(data, 0)

    def publish_many(self, messages: Iterable[Buffer]) -> range:
        """Publish messages at once; returns their packet ids, without holes.

        Args:
            messages: buffers; looked at once, before the first of them is published.

        Raises:
            Timeout: as for `publish`; `published` says how many went in, the first ones.
            TypeError, BufferError, MessageTooLarge, Busy, Closed: as for `Server.publish_many`.
        """
        server = self._open()
        if self._in_batch:
            raise Timeout("a publish_many_wait is under way: await this one instead")
        return server.publish_many(messages, 0)

    async def publish_wait(self, data: Buffer, timeout: float | None = None) -> int:
        """Publish one message as soon as the lag policy lets it; returns its packet id.

        Args:
            data: any contiguous buffer, which must not change before this is through.
            timeout: seconds; None is no limit, 0 never waits.

        Raises:
            Those of `Server.publish`. If this is cancelled, nothing was published.
        """
        server = self._open()
        wait = _Wait(server, timeout)
        while True:
            if not self._in_batch:
                packet_id = server._append(data)
                if packet_id >= FIRST_ID:
                    return packet_id
                await self._for_room(server, wait, packet_id, memoryview(data).nbytes)
            else:
                await self._for_batch(server, wait)

    async def publish_many_wait(
        self, messages: Iterable[Buffer], timeout: float | None = None
    ) -> range:
        """Publish messages as the lag policy lets them; returns their packet ids, without holes.

        Args:
            messages: buffers, which must not change before this is through.
            timeout: seconds for all; None is no limit.

        Raises:
            Those of `Server.publish_many`. If this is cancelled, the first ones were published.
        """
        server = self._open()
        found = gather_messages(messages)
        wait = _Wait(server, timeout, of=found.count)
        server._open()
        while self._in_batch:
            await self._for_batch(server, wait)
        if not found.count:
            return server.publish_many(())
        done = first = 0
        self._in_batch = True
        try:
            while True:
                # The turn belongs to a thread, and other tasks of this one would be held up by it,
                # so it is given back each time.
                before = done
                code, done, begin, _ = server._turns().append_many(found, done, 0)
                first = begin if not before else first
                if not code:
                    return range(first, first + found.count)
                if code == lib.JMK_E_TOO_LARGE:
                    raise server._too_large(found)
                if code == lib.JMK_E_TIMEOUT:
                    size = ffi.cast("struct jmk_slice *", found.address)[done].size
                    await self._for_room(server, wait, lib.JMK_E_FULL, size, done)
                else:
                    check(code, "server")
        finally:
            self._in_batch = False

    async def _for_batch(self, server: Server, wait: _Wait) -> None:
        if wait.left() == 0:
            raise Timeout("another task's publish_many_wait was under way all the time")
        await self._the_loop().pause(_BATCH_PAUSE)
        server._open()

    async def _for_room(
        self, server: Server, wait: _Wait, code: int, size: int, published: int = 0
    ) -> None:
        if code == lib.JMK_E_TOO_LARGE:
            raise MessageTooLarge(size, server.max_message)
        if code not in (lib.JMK_E_FULL, lib.JMK_E_TURN):
            check(code, "server")
        handle, holder = server._open(), wait._holder
        await self._patiently(
            lambda limit: lib.jmk_server_wait_room(handle, size, limit, holder),
            wait,
            "publish",
            published,
        )

    async def _patiently(
        self, call: Callable[[int], int], wait: _Wait, what: str, published: int = 0
    ) -> None:
        # Ask the core in the loop first, as the answer may be there; then wait in a thread.
        code = call(0)
        while code:
            left = wait.left()
            if code != lib.JMK_E_TIMEOUT or left == 0:
                wait.again(code, what, wait._holder, published)
            slice_ = SLICE if left < 0 else min(SLICE, left)
            code = await self._the_loop().in_thread(partial(call, slice_))

    def reserve(self, size: int) -> Reservation:
        """Write a message in place; see `Server.reserve`. It never waits: `Timeout` as `publish`.

        Other publishers wait until the block is left, so do not await anything in it.
        """
        return self._open().reserve(size, 0)

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until every client has acked all that is published by now; see `Server.drain`."""
        server = self._open()
        wait = _Wait(server, timeout)
        last = server.stats().next_id - 1
        if last < FIRST_ID:
            return
        handle, holder = server._open(), wait._holder
        await self._patiently(
            lambda limit: lib.jmk_server_wait_acked(handle, last, limit, holder), wait, "drain"
        )

    # ---- clients ----

    async def wait_for_clients(self, count: int, timeout: float | None = None) -> None:
        """Wait until at least `count` clients are connected; see `Server.wait_for_clients`."""
        server = self._open()
        deadline = inf if timeout is None else time.monotonic() + timeout
        nanoseconds(timeout)

        def enough(seconds: float) -> bool:
            try:
                server.wait_for_clients(count, seconds)
            except Timeout:
                return False
            return True

        there = enough(0)
        while not there:
            left = deadline - time.monotonic()
            if left <= 0:
                server.wait_for_clients(count, 0)
                return
            there = await self._the_loop().in_thread(partial(enough, min(left, SLICE / 1e9)))

    def clients(self) -> tuple[ClientInfo, ...]:
        """Return the clients that are connected now, each with its figures."""
        return self._open().clients()

    def disconnect(self, client: ClientInfo) -> None:
        """End one connection; see `Server.disconnect`."""
        self._open().disconnect(client)

    # ---- figures ----

    def stats(self) -> ServerStats:
        """All figures, of one moment."""
        return self._open().stats()

    @property
    def endings(self) -> dict[EndReason, int]:
        """How many clients are gone by now, by reason."""
        return self._open().endings

    @property
    def address(self) -> str:
        """Where clients connect, as a user writes it."""
        return self._open().address

    @property
    def server_id(self) -> int:
        """A random number, new with each server, by which clients can tell a restart."""
        return self._open().server_id

    @property
    def max_message(self) -> int:
        """The largest message, bytes."""
        return self._open().max_message

    # ---- closing ----

    async def close(self, linger: float = LINGER) -> None:
        """Close: what is published still goes out, then clients are told goodbye.

        Tasks that wait to publish get `Closed` at once. Cancelled, it gives clients no more time.

        Args:
            linger: seconds that clients have, all together, to take what was published.
        """
        nanoseconds(linger, "linger")
        server = self._sync
        if server is None:
            return
        handle, loop = server._handle, self._the_loop()
        if handle is None or server._pid != os.getpid():
            server.close(linger)
            return
        try:
            await loop.in_thread(partial(server.close, linger))
        except BaseException:
            lib.jmk_server_close(handle, 0)
            server.close(0)
            raise
        finally:
            loop.close(-1)
