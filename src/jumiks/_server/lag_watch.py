# SPDX-License-Identifier: Apache-2.0
"""Which clients come near their limit. No I/O here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..stats import ClientInfo, share

__all__: list[str] = []


LAG_WARNING: Final = 0.5
"""The part of its limit by default at which a client is worth a warning."""

LOOK_EVERY: Final = 0.25
"""Seconds between two looks at all clients' lag."""


def check_lag_warning(name: str, part: object) -> float:
    """Check a server's `lag_warning` argument.

    Raises:
        TypeError: it is no number.
        ValueError: it is not between 0 and 1.
    """
    if isinstance(part, bool) or not isinstance(part, int | float):
        raise TypeError(f"{name} is a part of the limit, such as 0.5, not {part!r}")
    if not 0 < part <= 1:
        raise ValueError(f"{name}={part}: it must be above 0, and 1 at most")
    return part


class LagWatch:
    """Who has come near its limit: each is told of once, until it is well away from it again.

    Args:
        part: of the limit, at which it is told of; at half of that it is well away.
        max_lag: messages; 0 is no limit.
        log_size: bytes.
    """

    def __init__(self, part: float, max_lag: int, log_size: int) -> None:
        self._part = part
        self._max_lag = max_lag
        self._log_size = log_size
        self._told: set[int] = set()

    def look(self, infos: Iterable[ClientInfo]) -> list[ClientInfo]:
        """Look at all clients; returns those to warn of."""
        shares = {info.key: (share(info, self._max_lag, self._log_size), info) for info in infos}
        self._told = {key for key in self._told & shares.keys() if shares[key][0] > self._part / 2}
        found = [
            info
            for key, (part, info) in shares.items()
            if part >= self._part and key not in self._told
        ]
        self._told.update(info.key for info in found)
        return found
