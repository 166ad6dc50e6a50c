# SPDX-License-Identifier: Apache-2.0
"""Clients of a server that closes at a gap, and may come back to the one in its place.

Ids within one server have no holes. So a feed with a gap takes two servers, and whoever comes back
late finds only the last of several.
"""

from __future__ import annotations

import time
from typing import Final

__all__: list[str] = []

PATIENCE: Final = 3.0
"""Seconds that they have: more than the longest wait of a client, unless it chose its own."""


def not_back(option: str) -> str:
    """Say that some are not back; `option` is what a client needs for that."""
    return f"not all clients came back after a gap: those without {option} end there"


class Returning:
    """How many clients are to come back, and until when."""

    def __init__(self) -> None:
        self.count: int = 0
        """Clients that are waited for."""
        self._until = 0.0

    def closes(self, clients: int) -> None:
        """Note that a server is about to close.

        Args:
            clients: those that it has.
        """
        self.count = clients

    def listens(self) -> None:
        """Note that there is a server in its place."""
        self._until = time.monotonic() + PATIENCE

    @property
    def left(self) -> float:
        """Seconds that they still have; 0 if there is nobody to wait for."""
        return max(0.0, self._until - time.monotonic()) if self.count else 0.0

    def over(self) -> None:
        """Note that they are back, or have gone for good."""
        self.count = 0
