# SPDX-License-Identifier: Apache-2.0
"""The source's end of an outbound bridge: a client that goes on where the engine's stream ends.

The client outlives the engine's connection. It outlives the source's process too: what is left in
the mapped log is read to its end.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from .._gap import Gap, GapReason
from ..aio import AsyncClient
from ..batch import Batch
from ..errors import AckError, ConnectionEnded, JumiksError
from ..monitor import Monitor
from .record import Position

__all__: list[str] = []

CONNECT_SECONDS = 2.0


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
    """

    def __init__(self, where: str | os.PathLike[str], position: Position | None) -> None:
        self._where = where
        self._position = position
        self._client: AsyncClient[bytes | Gap] | None = None
        self.server_id: int = 0
        """The server that what was received last came from, or a gap is about."""

    async def open(self) -> None:
        """Connect; raises what `AsyncClient` does."""
        position = self._position
        self._client = await AsyncClient(
            self._where,
            start="oldest" if position is None else (position.server, position.source + 1),
            timeout=CONNECT_SECONDS,
            on_gap="yield",
            ack="manual",
            reconnect=True,
        )
        self.server_id = self._client.server_id

    @property
    def lag(self) -> int:
        """Messages received and not acked."""
        return self._client.lag if self._client is not None else 0

    async def receive(self) -> Batch | Gap:
        """Return what comes next; raises what `AsyncClient.receive_many` does."""
        assert self._client is not None
        found = await self._client.receive_many()
        if not (isinstance(found, Gap) and found.reason is GapReason.ENDED):
            self.server_id = self._client.server_id  # else it is at the next one by now
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
