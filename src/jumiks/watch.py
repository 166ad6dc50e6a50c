# SPDX-License-Identifier: Apache-2.0
"""What the control thread keeps an eye on: how much it logs, and who falls behind. No I/O here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from .stats import ClientInfo

__all__: list[str] = []

LOG_BURST: Final = 20
"""Lines of one kind that are logged within `LOG_WINDOW`; of more, only the number is."""

LOG_WINDOW: Final = 10.0
"""Seconds."""

LAG_WARNING: Final = 0.5
"""The part of its limit by default at which a client is worth a warning."""

LOOK_EVERY: Final = 0.25
"""Seconds between two looks at all clients' lag."""


class Journal:
    """A log that a storm of peers cannot flood.

    Args:
        log: where lines go.
        now: the clock, s.
    """

    def __init__(self, log: logging.Logger, now: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._now = now
        self._windows: dict[tuple[int, str], tuple[float, int]] = {}

    def log(self, level: int, text: str, *args: object) -> None:
        """Log a line, unless there were too many of this level and `text` just now."""
        self.expire()
        begin, count = self._windows.get((level, text), (self._now(), 0))
        self._windows[level, text] = begin, count + 1
        if count < LOG_BURST:
            self._log.log(level, text, *args)

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to say, on the clock."""
        begins = [begin for begin, count in self._windows.values() if count > LOG_BURST]
        return min(begins) + LOG_WINDOW if begins else None

    def expire(self) -> None:
        """Say how many lines were left out, of the kinds whose window is over."""
        self._sum_up(LOG_WINDOW)

    def close(self) -> None:
        """Say it of all kinds."""
        self._sum_up(0.0)

    def _sum_up(self, least: float) -> None:
        now = self._now()
        for (level, text), (begin, count) in list(self._windows.items()):
            if now - begin >= least:
                del self._windows[level, text]
                if count > LOG_BURST:
                    words = "%d more lines like %r in %.1f s"
                    self._log.log(level, words, count - LOG_BURST, text, now - begin)


def share(info: ClientInfo, max_lag: int, log_size: int) -> float:
    """How far a client is on its way to a limit; 1 is there.

    Args:
        info: the client.
        max_lag: messages; 0 is no limit.
        log_size: bytes; 0 is not known.
    """
    of_messages = info.lag / max_lag if max_lag else 0.0
    of_bytes = info.lag_bytes / log_size if log_size else 0.0
    return max(of_messages, of_bytes)


def parse_part(part: object) -> float:
    """Check a server's `lag_warning` argument.

    Raises:
        TypeError: it is no number.
        ValueError: it is not between 0 and 1.
    """
    if isinstance(part, bool) or not isinstance(part, int | float):
        raise TypeError(f"lag_warning is a part of the limit, such as 0.5, not {part!r}")
    if not 0 < part <= 1:
        raise ValueError(f"lag_warning={part}: it must be above 0, and 1 at most")
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
