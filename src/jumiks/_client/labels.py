# SPDX-License-Identifier: Apache-2.0
"""Labels: the ids of a plain 1.0 server, which the client shows and never counts by."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from math import inf
from typing import Final

__all__: list[str] = []

MOST: Final = 8192
"""Runs noted; more than the C core has of messages that are not acked (csrc/client/labels.h)."""

_MODULUS: Final = 1 << 64


class Labels:
    """Which label each of our own ids has (csrc/client/labels.c), in runs that rise by one.

    One thread notes; any may ask.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []  # the first id of ours, and label - id, modulo 2^64
        self._forgotten: tuple[int, int] | None = None  # the least and the greatest label of those

    def note(self, first: int, shift: int) -> None:
        """Note a batch that came; the same one may come again."""
        runs = self._runs
        if runs and (runs[-1][1] == shift or runs[-1][0] >= first):
            return
        if len(runs) >= MOST:
            self._forget(MOST // 2)
        self._runs.append((first, shift))

    def _forget(self, count: int) -> None:
        runs = self._runs
        ends = [
            label
            for (first, shift), (behind, _) in pairwise(runs[: count + 1])
            for label in ((first + shift) % _MODULUS, (behind - 1 + shift) % _MODULUS)
        ]
        known = self._forgotten or (ends[0], ends[0])
        self._forgotten = min(*ends, known[0]), max(*ends, known[1])
        self._runs = runs[count:]

    def of(self, number: int) -> int:
        """The label of a message of ours; of the one to come, what would be consecutive."""
        runs = self._runs
        if not runs or (number < runs[0][0] and self._forgotten is None):
            return 0  # nothing was handed out
        index = max(0, bisect_right(runs, (number, inf)) - 1)
        return (number + runs[index][1]) % _MODULUS

    def find(self, label: int, newest: int) -> int:
        """The last message with this label up to `newest`.

        -1 if there is none, but 0 for 0, as for any id before the first. One that was forgotten was
        acked long ago, and so is what is returned for it.
        """
        if not 0 <= label < _MODULUS:
            return -1
        runs = self._runs
        behind = newest + 1
        for first, shift in reversed(runs):
            number = (label - shift) % _MODULUS
            if first <= number < behind:
                return number
            behind = min(behind, first)
        least, greatest = self._forgotten or (1, 0)
        if least <= label <= greatest:
            return runs[0][0] - 1
        return -1 if label else 0
