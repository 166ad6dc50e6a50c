# SPDX-License-Identifier: Apache-2.0
"""A log of events that a storm of peers cannot flood. No I/O of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

__all__: list[str] = []

LOG_BURST: Final = 20
"""Lines of one kind that are logged within `LOG_WINDOW`; further ones are only counted."""

LOG_WINDOW: Final = 10.0
"""Seconds."""


class Journal:
    """A log that a storm of peers cannot flood.

    Args:
        log: gets the lines.
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
        """When `expire` has something to log, on the clock."""
        begins = [begin for begin, count in self._windows.values() if count > LOG_BURST]
        return min(begins) + LOG_WINDOW if begins else None

    def expire(self) -> None:
        """Log how many lines were left out, for the kinds whose window is over."""
        self._sum_up(LOG_WINDOW)

    def close(self) -> None:
        """Log that for all kinds."""
        self._sum_up(0.0)

    def _sum_up(self, least: float) -> None:
        now = self._now()
        for (level, text), (begin, count) in list(self._windows.items()):
            if now - begin >= least:
                del self._windows[level, text]
                if count > LOG_BURST:
                    words = "%d more lines like %r in %.1f s"
                    self._log.log(level, words, count - LOG_BURST, text, now - begin)
