# SPDX-License-Identifier: Apache-2.0
"""What `aio` asks of an event loop, for asyncio (and its like, such as uvloop) and for trio."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from math import inf
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from . import errors
from .errors import JumiksError

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    import trio

__all__: list[str] = []

T = TypeVar("T")

THREADS: Final = 4
"""Threads at most that one server's waiters share, while somebody waits."""


class Loop(Protocol):
    """An event loop as one server or client uses it."""

    async def pause(self, seconds: float) -> None:
        """Let others run, for this long at least."""

    async def readable(self, descriptor: int, look: Callable[[], bool], timeout: float) -> None:
        """Wait until a descriptor is readable and `look` returns True, or for `timeout` seconds.

        `look` takes what made it readable away, so that the loop is not woken for that again.
        """

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run what blocks for a short time; a cancelled caller does not wait for its end."""

    def soon(self, function: Callable[[], object]) -> None:
        """Call a function in the loop, from any thread; nothing happens if the loop is closed."""

    def close(self, descriptor: int) -> None:
        """Wake the task that waits for a descriptor about to be closed; -1 is none."""


def current() -> Loop:
    """The loop that runs now.

    Raises:
        RuntimeError: none does.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return _Trio()
    return _Asyncio()


class _Asyncio:
    # Whoever has no event loop does not wait for asyncio to be imported.

    def __init__(self) -> None:
        import asyncio

        self._asyncio = asyncio
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._look: Callable[[], bool] = bool
        self._watched = -1
        self._threads: _Threads | None = None

    async def pause(self, seconds: float) -> None:
        await self._asyncio.sleep(seconds)

    async def readable(self, descriptor: int, look: Callable[[], bool], timeout: float) -> None:
        if self._asyncio.get_running_loop() is not self._loop:
            raise JumiksError(errors.OTHER_LOOP)
        waiter = self._waiter = self._loop.create_future()
        self._look = look
        timer = None
        if timeout != inf:
            timer = self._loop.call_later(timeout, _wake, waiter)
        try:
            if self._watched != descriptor:
                self._unwatch()
                self._loop.add_reader(descriptor, self._ready)
                self._watched = descriptor
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _unwatch(self) -> None:
        if self._watched >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._watched)
        self._watched = -1

    def _ready(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            # Nobody takes it now, and level-triggered, the loop would call this again at once.
            self._unwatch()
        elif self._look():
            _wake(waiter)

    async def in_thread(self, function: Callable[[], T]) -> T:
        if self._threads is None:
            self._threads = _Threads()
        return await self._asyncio.wrap_future(self._threads.submit(function), loop=self._loop)

    def soon(self, function: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def close(self, descriptor: int) -> None:
        if self._watched == descriptor:
            self._unwatch()
        if self._waiter is not None and not self._loop.is_closed():
            _wake(self._waiter)
        if self._threads is not None:
            self._threads.close()
            self._threads = None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Threads:
    """Up to `THREADS` daemon threads. Those of a ThreadPoolExecutor would hold up an exit."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def submit(self, function: Callable[[], T]) -> Future[T]:
        from concurrent.futures import Future

        future: Future[T] = Future()
        self._work.put(lambda: _settle(future, function))
        if not self._idle.acquire(blocking=False) and self._count < THREADS:
            self._start_one()
        return future

    def _start_one(self) -> None:
        thread = threading.Thread(
            target=_serve, args=(self._work, self._idle), name="jumiks waits", daemon=True
        )
        # Counted first: what a signal's handler raises may come when it runs already, and then it
        # has to be told of the end.
        self._count += 1
        try:
            thread.start()
        except RuntimeError:
            self._count -= 1  # the system allows no further one
            raise

    def close(self) -> None:
        """Let the threads end once they have done what was submitted."""
        for _ in range(self._count):
            self._work.put(None)
        self._count = 0

    def __del__(self) -> None:
        if hasattr(self, "_count"):  # else a signal's handler raised while it was made
            self.close()


def _serve(work: SimpleQueue[Callable[[], object] | None], idle: threading.Semaphore) -> None:
    while True:
        try:
            task = work.get_nowait()
        except Empty:
            idle.release()
            task = work.get()
        if task is None:
            return
        task()
        del task  # or what it refers to would live until the next one


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class _Trio:
    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._token: trio.lowlevel.TrioToken = trio.lowlevel.current_trio_token()

    async def pause(self, seconds: float) -> None:
        await self._trio.sleep(seconds)

    async def readable(self, descriptor: int, look: Callable[[], bool], timeout: float) -> None:
        try:
            with self._trio.move_on_after(timeout):
                while True:
                    await self._trio.lowlevel.wait_readable(descriptor)
                    if look():
                        return
        except self._trio.ClosedResourceError:
            return

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await self._trio.to_thread.run_sync(function, abandon_on_cancel=True)

    def soon(self, function: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(function)
        except self._trio.RunFinishedError:
            return

    def close(self, descriptor: int) -> None:
        if descriptor >= 0:
            self._trio.lowlevel.notify_closing(descriptor)
