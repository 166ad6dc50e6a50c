# SPDX-License-Identifier: Apache-2.0
"""The far feed: the server of an inbound bridge, with stream ids as packet ids."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

from ..aio import AsyncServer
from .engine import StreamInfo

__all__: list[str] = []

LINGER = 5.0
"""Seconds that clients have to take what was published, before a gap or another stream follows."""


def far_id(info: StreamInfo, lineage: str = "") -> int:
    """Return the far feed's `server_id`, the same on each machine.

    Args:
        info: the stream.
        lineage: what tells the stream from an earlier one with the same name and time, which the
            engine lost; "" by default.
    """
    text = f"{info.name}\0{info.created}" + (f"\0{lineage}" if lineage else "")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


class Far:
    """A server that takes the place of its predecessor at each gap, as ids rise by one within one.

    Args:
        where: its address.
        options: those of `AsyncServer`.
    """

    def __init__(self, where: str | os.PathLike[str], options: dict[str, Any]) -> None:
        self._where = where
        self._options = options
        self._server: AsyncServer | None = None
        self.server_id = 0
        self.next_id = 0
        """The stream id of the message that comes next."""

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    @property
    def clients(self) -> int:
        """How many clients it has."""
        return self._server.stats().clients if self._server is not None else 0

    async def listen(self, server_id: int, first_id: int, history: Iterable[bytes]) -> None:
        """Listen, with the history in the log, whose first message is `first_id`."""
        self._server = await AsyncServer(
            self._where, server_id=server_id, first_id=first_id, history=history, **self._options
        )
        self.server_id = server_id
        self.next_id = self._server.stats().next_id

    async def publish(self, messages: memoryview, plain: bool) -> None:
        """Publish frames, or one payload, waiting where the lag policy says so.

        Raises:
            MessageTooLarge: a message is larger than the log allows; `offset` says which. Nothing
                was published.
        """
        assert self._server is not None
        if plain:
            self.next_id = await self._server.publish_wait(messages) + 1
        else:
            self.next_id = (await self._server.publish_frames_wait(messages)).stop

    async def skip_to(self, next_id: int) -> None:
        """Leave a gap before the message that comes next."""
        server_id = self.server_id
        await self.close()
        await self.listen(server_id, next_id, ())

    async def close(self, linger: float = LINGER) -> None:
        """Close the server; clients have their time to take what was published."""
        server, self._server = self._server, None
        if server is not None:
            await server.close(linger)
