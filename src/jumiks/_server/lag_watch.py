# SPDX-License-Identifier: Apache-2.0
"""Which clients come near their limit. No I/O here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..stats import ClientInfo, share

__all__: list[str] = []


LAG_WARNING: Final = 0.5
"""The default of `lag_warning`: the part of its limit at which a client is warned of."""

LOOK_EVERY: Final = 0.25
"""Seconds between two checks of all clients' lag."""


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
    """Finds clients that have come near their limit, each once until it is well away again.

    Args:
        part: the part of the limit at which a client is near; at half of that it is well away.
        max_lag: messages; 0 is no limit.
        log_size: bytes.
    """

    def __init__(self, part: float, max_lag: int, log_size: int) -> None:
        self._part = part
        self._max_lag = max_lag
        self._log_size = log_size
        self._told: set[int] = set()

    def newly_near(self, infos: Iterable[ClientInfo]) -> list[ClientInfo]:
        """Return those among all clients that have come near their limit."""
        shares = {info.key: (share(info, self._max_lag, self._log_size), info) for info in infos}
        self._told = {key for key in self._told & shares.keys() if shares[key][0] > self._part / 2}
        found = [
            info
            for key, (part, info) in shares.items()
            if part >= self._part and key not in self._told
        ]
        self._told.update(info.key for info in found)
        return found
