# SPDX-License-Identifier: Apache-2.0
"""The source's end of an outbound bridge: a client that goes on where the engine's stream ends.

The client outlives the engine's connection. It outlives the source's process too: what is left in
the mapped log is read to its end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

from .._gap import Gap, GapReason
from ..aio import AsyncClient
from ..batch import Batch
from ..errors import AckError, Closed, ConnectionEnded, JumiksError, Timeout
from ..monitor import Monitor
from .record import Position

__all__: list[str] = []

CONNECT_SECONDS = 2.0

TOLD_AFTER = 1.0
"""Seconds without a message after which it is said whether the source is there."""


async def blocks(where: str | os.PathLike[str]) -> bool:
    """Whether a source waits for clients that lag, as far as this user may look."""

    def look() -> bool:
        with Monitor(where, timeout=CONNECT_SECONDS) as monitor:
            return monitor.status().on_lag == "block"

    with suppress(OSError, JumiksError):
        return await asyncio.to_thread(look)
    return False


class Source:
    """A client of the source, and what it has given.

    Args:
        where: the source's address.
        position: where the stream ends; None if it is empty.
        check: called with the `server_id` of each server before anything of it is taken; what it
            raises comes out of `open` or `receive`.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        position: Position | None,
        check: Callable[[int], object],
    ) -> None:
        self._where = where
        self._position = position
        self._check = check
        self._client: AsyncClient[bytes | Gap] | None = None
        self.server_id: int = 0
        """The server that what was received last came from, or a gap is about."""

    async def open(self) -> None:
        """Connect, with one try; raises what `AsyncClient` and `check` do."""
        position = self._position
        self._client = await AsyncClient(
            self._where,
            start="oldest" if position is None else (position.server, position.source + 1),
            timeout=CONNECT_SECONDS,
            wait=0,
            on_gap="yield",
            ack="manual",
            reconnect=True,
        )
        self._note(self._client.server_id)

    def _note(self, server_id: int) -> None:
        if server_id != self.server_id:
            self._check(server_id)
            self.server_id = server_id

    @property
    def lag(self) -> int:
        """Messages published and not acked; those received alone where the log is not shared."""
        if self._client is not None:
            with suppress(Closed):
                return self._client._stream.backlog
        return 0

    @property
    def connections(self) -> int:
        """Connections that it has made: the client comes back by itself."""
        return self._client._stream.joins if self._client is not None else 0

    async def receive(self, told: Callable[[BaseException | None], object]) -> Batch | Gap:
        """Return what comes next; raises what `AsyncClient.receive_many` does.

        Args:
            told: called while nothing comes, and before this returns: with what keeps the client
                from coming back to a source that is gone, or with None if it is there.
        """
        assert self._client is not None
        while True:
            try:
                found = await self._client.receive_many(TOLD_AFTER)
                break
            except Timeout as error:
                told(error.__cause__)
        told(None)
        if not (isinstance(found, Gap) and found.reason is GapReason.ENDED):
            self._note(self._client.server_id)  # else it is at the next one by now
        return found

    async def ack(self, server: int, number: int) -> None:
        """Ack all up to a message, which the engine has stored."""
        client = self._client
        if client is not None and client.server_id == server:
            with suppress(AckError, ConnectionEnded):  # the end of a gap was not received
                await client.ack(number)

    async def close(self) -> None:
        """Close it; may be repeated."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
