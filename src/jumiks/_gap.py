# SPDX-License-Identifier: Apache-2.0
"""Messages that a client does not get."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

__all__ = ["Gap", "GapReason"]


class GapReason(enum.Enum):
    """Why messages are missing."""

    SKIPPED = "given up by the server, as its lag policy says"
    EVICTED = "not kept by the server"
    ENDED = "the connection ended first"
    RESTARTED = "another server took its place"
    TOO_LARGE = "it seems to be too large for one packet of plain 1.0, as connections end there"


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages that a client will not get.

    Args:
        first: the first of them; 0 if that is unknown.
        last: the last one, inclusive; None if that is unknown, as the server that knew it is gone.
        reason: why; gaps that differ in that alone are equal.
    """

    first: int
    last: int | None
    reason: GapReason = field(default=GapReason.SKIPPED, compare=False)

    def __str__(self) -> str:
        if self.last is None:
            return f"messages from {self.first} on, nobody knows how many"
        if self.first == self.last:
            return f"message {self.first}"
        return f"messages {self.first} to {self.last}"

    @property
    def count(self) -> int | None:
        """How many; None if that is unknown."""
        return None if self.last is None else self.last - self.first + 1


def in_words(gap: Gap, what: str) -> str:
    """Return which messages are so, as a sentence: "message 5 is lost"."""
    return f"{gap} {'is' if gap.count == 1 else 'are'} {what}"
