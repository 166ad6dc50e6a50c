# SPDX-License-Identifier: Apache-2.0
"""The source's end of an outbound bridge: a client that goes on where the engine's stream ends.

The client outlives the engine's connection. It outlives the source's process too: what is left in
the mapped log is read to its end.
"""

from __future__ import annotations

import os
from typing import Literal

from .._gap import Gap, GapReason
from ..aio import AsyncClient
from ..batch import Batch
from ..errors import Refused
from .record import Position

__all__: list[str] = []

CONNECT_SECONDS = 2.0
_START_REFUSED = 4


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
        self._first: list[Gap] = []
        self.server_id = 0
        """The server that what was received last came from, or a gap is about."""

    async def open(self) -> None:
        """Connect; raises what `AsyncClient` does."""
        await self._open()
        assert self._client is not None
        self.server_id = self._client.server_id

    async def _open(self) -> None:
        position = self._position
        if position is None:
            self._client = await self._connect("oldest")
            return
        try:
            client = await self._connect(position.source + 1)
        except Refused as refused:
            if refused.status != _START_REFUSED:
                raise
        else:
            if client.server_id == position.server:
                self._client = client
                return
            await client.close()
        self._client = await self._connect("oldest")
        self._first = [Gap(position.source + 1, None, GapReason.RESTARTED)]

    async def _connect(self, start: Literal["oldest"] | int) -> AsyncClient[bytes | Gap]:
        client: AsyncClient[bytes | Gap] = AsyncClient(
            self._where,
            start=start,
            timeout=CONNECT_SECONDS,
            on_gap="yield",
            reconnect=True,
        )
        return await client

    @property
    def is_open(self) -> bool:
        """Whether it has connected, once."""
        return self._client is not None

    @property
    def lag(self) -> int:
        """Messages received and not acked."""
        return self._client.lag if self._client is not None else 0

    async def receive(self) -> Batch | Gap:
        """Return what comes next; raises what `AsyncClient.receive_many` does."""
        if self._first:
            return self._first.pop()
        assert self._client is not None
        found = await self._client.receive_many()
        if not (isinstance(found, Gap) and found.reason is GapReason.ENDED):
            self.server_id = self._client.server_id  # else it is at the next one by now
        return found

    async def ack(self, server: int, number: int) -> None:
        """Ack all up to a message, which the engine has stored."""

    async def close(self) -> None:
        """Close it; may be repeated."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
