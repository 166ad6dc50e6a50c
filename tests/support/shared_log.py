# SPDX-License-Identifier: Apache-2.0
"""Helpers of tests/client/test_shared.py and the files beside it."""

from collections.abc import Callable

from support.shared import (
    HandMadeLog,
)


def written(frame: bytes, head: int | None = None) -> Callable[[HandMadeLog], object]:
    def lie(log: HandMadeLog) -> None:
        end = log.write(frame)
        log.head = end if head is None else head

    return lie
