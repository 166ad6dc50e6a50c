# SPDX-License-Identifier: Apache-2.0
"""The far feed: the server of an inbound bridge, with stream ids as packet ids."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from asyncio import Future
from collections import deque
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Final

from .._native import Gathered
from .._options import ServerOptions
from .._server.returning import Returning, not_back
from ..aio import AsyncServer
from ..errors import Timeout
from .engine import StreamInfo

__all__: list[str] = []

log: Final = logging.getLogger("jumiks.bridge")

LINGER = 5.0
"""Seconds that clients have to take what was published, before a gap or another stream follows."""

AHEAD = 16
"""Records of a history that wait for a server that is being made."""


def far_id(info: StreamInfo, lineage: str = "") -> int:
    """Return the far feed's `server_id`, the same on each machine.

    Args:
        info: the stream.
        lineage: what tells the stream from an earlier one with the same name and time, which the
            engine lost; "" by default.
    """
    text = f"{info.name}\0{info.created}" + (f"\0{lineage}" if lineage else "")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


class _GivenUp(Exception):
    """The history has a hole, so this server is not to be."""


class History:
    """Messages for a server that another thread makes, handed to it as they come.

    So no more of a history is in memory than some records.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: SimpleQueue[tuple[Gathered, Future[None]] | None] = SimpleQueue()
        self._untaken: deque[Future[None]] = deque()
        self._whole = False

    def __iter__(self) -> Iterator[Gathered]:
        """Yield them, in that other thread."""
        while (item := self._items.get()) is not None:
            messages, taken = item
            yield messages
            self._loop.call_soon_threadsafe(taken.cancel)  # whether it waits, or does not any more
        if not self._whole:
            raise _GivenUp

    async def put(self, messages: Gathered, making: Future[None]) -> None:
        """Hand some on; waits while there are too many before them, or until the server failed."""
        untaken = self._untaken
        while untaken and untaken[0].done():
            untaken.popleft()
        if len(untaken) >= AHEAD:
            await asyncio.wait([untaken[0], making], return_when=asyncio.FIRST_COMPLETED)
        untaken.append(self._loop.create_future())
        self._items.put((messages, untaken[-1]))

    def end(self, whole: bool) -> None:
        """Say that there are no more.

        Args:
            whole: whether the server is wanted.
        """
        self._whole = self._whole or whole
        self._items.put(None)


class Far:
    """A server that takes the place of its predecessor at each gap, as ids rise by one within one.

    The next one comes no earlier than the clients of the one before are back, or have had their
    time. Until then no more than half a log is published, so that they find it all.

    Args:
        where: its address.
        options: those of `AsyncServer`.
    """

    def __init__(self, where: str | os.PathLike[str], options: dict[str, Any]) -> None:
        self._where = where
        self._options = options
        found = ServerOptions(**options)
        self.largest: int = found.largest
        """Bytes of the largest message that its log takes."""
        self._half = found.log_size // 2
        self._returning = Returning()
        self._first_id = 0
        self._published = 0
        """Bytes, since it listens."""
        self._server: AsyncServer | None = None
        self.server_id: int = 0
        self.next_id: int = 0
        """The stream id of the message that comes next."""

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    @property
    def clients(self) -> int:
        """How many clients it has."""
        return self._server.stats().clients if self._server is not None else 0

    async def listen(self, server_id: int, first_id: int, history: Iterable[Gathered]) -> None:
        """Listen, with the history in the log, whose first message is `first_id`."""
        messages: Any = history  # the server takes these too
        self._server = await AsyncServer(
            self._where, server_id=server_id, first_id=first_id, history=messages, **self._options
        )
        self._returning.listens()
        self._first_id, self._published = first_id, 0
        self.server_id = server_id
        self.next_id = self._server.stats().next_id

    async def publish(self, messages: memoryview, plain: bool) -> None:
        """Publish frames, or one payload, waiting where the lag policy says so.

        Raises:
            MessageTooLarge: a message is larger than the log allows; `offset` says which. Nothing
                was published.
        """
        assert self._server is not None
        if self._returning.left and self._published + len(messages) > self._half:
            await self._for_return(self._server)
        if plain:
            self.next_id = await self._server.publish_wait(messages) + 1
        else:
            self.next_id = (await self._server.publish_frames_wait(messages)).stop
        self._published += len(messages)

    async def skip_to(self, next_id: int) -> None:
        """Leave a gap before the message that comes next."""
        server_id = self.server_id
        await self.give_way()
        await self.listen(server_id, next_id, ())

    async def give_way(self) -> None:
        """Close the server, as another one takes its place."""
        server, returning = self._server, self._returning
        assert server is not None
        if self.next_id != self._first_id:
            await self._for_return(server)
        missing = returning.count if returning.left else 0
        returning.closes(max(missing, server.stats().clients))
        await self.close()

    async def _for_return(self, server: AsyncServer) -> None:
        returning = self._returning
        if returning.left:
            try:
                await server.wait_for_clients(returning.count, returning.left)
            except Timeout:
                log.warning("%s", not_back("reconnect"))
            returning.over()

    async def close(self, linger: float = LINGER) -> None:
        """Close the server; clients have their time to take what was published."""
        server, self._server = self._server, None
        if server is not None:
            await server.close(linger)
