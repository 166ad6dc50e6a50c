# SPDX-License-Identifier: Apache-2.0
"""The publishing side in an event loop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, Literal

from .. import errors
from .._closing import shown
from .._loops import Loop
from .._native import Gathered, Reservation, check_callback, gather, gather_frames, lib, nanoseconds
from .._options import (
    HANDSHAKE_TIMEOUT,
    LOG_SIZE,
    MAX_CLIENTS,
    ServerOptions,
    callbacks,
    given,
    takes,
)
from .._server import access, lag
from .._server.lag_watch import LAG_WARNING
from .._wire.handshake import FIRST_ID
from ..errors import Timeout
from ..server import LINGER, Server, Wait, hurry, is_open
from ..stats import ClientInfo, EndReason, ServerStats
from .twin import Twin

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__: list[str] = []

SLICE: Final = 50_000_000
"""Nanoseconds at most that a thread waits in the core, so that it ends soon after its caller."""

_BATCH_PAUSE: Final = 0.001


@takes(ServerOptions)
class AsyncServer(Twin[Server]):
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
    control thread calls, as it waits for the answer. `history` is read in another thread.

    Args:
        where: `"@name"` for an abstract address, a path with a "/" in it, or a socket that is bound
            already.
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
        options = given(ServerOptions, locals())
        super().__init__()
        self._in_batch = False
        for name in callbacks(ServerOptions):
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
            raise Timeout(errors.BATCH_UNDER_WAY.format(instead="publish_wait"))
        return server.publish(data, 0)

    def publish_many(self, messages: Iterable[Buffer] | Buffer) -> range:
        """Publish messages at once; returns their packet ids, without holes.

        Args:
            messages: as for `Server.publish_many`; looked at once, before the first is published.

        Raises:
            Timeout: as for `publish`; `published` says how many went in, the first ones.
            TypeError, BufferError, MessageTooLarge, Busy, Closed: as for `Server.publish_many`.
        """
        server = self._open()
        if self._in_batch:
            raise Timeout(errors.BATCH_UNDER_WAY.format(instead="publish_many_wait"))
        return server.publish_many(messages, 0)

    def publish_frames(self, frames: Buffer) -> range:
        """Publish the messages of a buffer of frames at once; see `Server.publish_frames`.

        Args:
            frames: a contiguous buffer; looked at once, before its first message is published.

        Raises:
            Timeout: as for `publish_many`.
            ValueError, TypeError, BufferError, MessageTooLarge, Busy, Closed: as for
                `Server.publish_frames`.
        """
        server = self._open()
        if self._in_batch:
            raise Timeout(errors.BATCH_UNDER_WAY.format(instead="publish_frames_wait"))
        return server.publish_frames(frames, 0)

    async def publish_wait(self, data: Buffer, timeout: float | None = None) -> int:
        """Publish one message as soon as the lag policy lets it; returns its packet id.

        Args:
            data: any contiguous buffer, which must not change before this is through.
            timeout: seconds; None is no limit, 0 never waits.

        Raises:
            Those of `Server.publish`. If this is cancelled, nothing was published.
        """
        server = self._open()
        wait = Wait(server, timeout)
        while True:
            if not self._in_batch:
                packet_id = wait.append(data)
                if packet_id >= FIRST_ID:
                    return packet_id
                await self._for_room(wait, packet_id, memoryview(data).nbytes)
            else:
                await self._for_batch(wait)

    async def publish_many_wait(
        self, messages: Iterable[Buffer] | Buffer, timeout: float | None = None
    ) -> range:
        """Publish messages as the lag policy lets them; returns their packet ids, without holes.

        Args:
            messages: as for `Server.publish_many`; they must not change before this is through.
            timeout: seconds for all; None is no limit.

        Raises:
            Those of `Server.publish_many`. If this is cancelled, the first ones were published.
        """
        server = self._open()
        return await self._publish_all(server, gather(messages), timeout)

    async def publish_frames_wait(self, frames: Buffer, timeout: float | None = None) -> range:
        """Publish the messages of a buffer of frames as the lag policy lets them.

        Args:
            frames: as for `Server.publish_frames`; it must not change before this is through.
            timeout: seconds for all; None is no limit.

        Raises:
            Those of `Server.publish_frames`. If this is cancelled, the first ones were published.
        """
        server = self._open()
        return await self._publish_all(server, gather_frames(frames), timeout)

    async def _publish_all(self, server: Server, found: Gathered, timeout: float | None) -> range:
        wait = Wait(server, timeout, of=found.count)
        wait.check_open()
        while self._in_batch:
            await self._for_batch(wait)
        if not found.count:
            return server.publish_many(())
        done = first = 0
        self._in_batch = True
        try:
            while True:
                # The turn belongs to a thread, and other tasks of this one would be held up by it,
                # so it is given back each time.
                before = done
                code, done, begin = wait.append_many(found, done)
                first = begin if not before else first
                if not code:
                    return range(first, first + found.count)
                await self._for_room(wait, lib.JMK_E_FULL, wait.next_size(code, found, done), done)
        finally:
            self._in_batch = False

    async def _for_batch(self, wait: Wait) -> None:
        if wait.left() == 0:
            raise Timeout(errors.BATCH_ALL_THE_TIME)
        await self._the_loop().pause(_BATCH_PAUSE)
        wait.check_open()

    async def _for_room(self, wait: Wait, code: int, size: int, published: int = 0) -> None:
        wait.check_full(code, size)
        await self._patiently(wait.room(size), wait, "publish", published)

    async def _patiently(
        self, call: Callable[[int], int], wait: Wait, what: str, published: int = 0
    ) -> None:
        # Ask the core in the loop first, as the answer may be there; then wait in a thread.
        code = call(0)
        while code:
            left = wait.left()
            if code != lib.JMK_E_TIMEOUT or left == 0:
                wait.again(code, what, wait.holder, published)
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
        wait = Wait(server, timeout)
        last = server.stats().next_id - 1
        if last < FIRST_ID:
            return
        await self._patiently(wait.acked(last), wait, "drain")

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
                present = len(server.clients())
                if present >= count:
                    return
                raise Timeout(
                    errors.TOO_FEW_CLIENTS.format(present=present, count=count, timeout=timeout)
                )
            there = await self._the_loop().in_thread(partial(enough, min(left, SLICE / 1e9)))

    def clients(self) -> tuple[ClientInfo, ...]:
        """The clients connected now, each with its figures."""
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
        """The number by which clients tell a restart; see `Server.server_id`."""
        return self._open().server_id

    @property
    def max_message(self) -> int:
        """The largest message, bytes."""
        return self._open().max_message

    def __repr__(self) -> str:
        def about() -> str:
            return f": {'not there yet' if self._inside is None else repr(self._inside)[1:-1]}"

        return shown("AsyncServer", about)

    # ---- closing ----

    async def close(self, linger: float = LINGER) -> None:
        """Close: what is published still goes out, then clients are told goodbye.

        Tasks that wait to publish get `Closed` at once. Cancelled, it gives clients no more time.

        Args:
            linger: seconds that clients have, all together, to take what was published.
        """
        nanoseconds(linger, "linger")
        server = self._inside
        if server is None:
            return
        if not is_open(server):
            server.close(linger)
            return
        loop = self._the_loop()
        try:
            await loop.in_thread(partial(server.close, linger))
        except BaseException:
            hurry(server)  # that thread may be in the middle of it
            server.close(0)
            raise
        finally:
            loop.close(-1)
