# SPDX-License-Identifier: Apache-2.0
"""Waiting for what another thread changes, with no lock held meanwhile.

A signal's handler may close the server in the middle of a wait, in the same thread. A lock that the
wait holds would stop the control thread, which the close waits for. So this is no Condition.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf

from .._green import original

__all__: list[str] = []


class Changes:
    """Wakes the threads that wait for a condition; it holds no lock."""

    def __init__(self) -> None:
        self._waiters: list[threading.Lock] = []

    def tell(self) -> None:
        """Have all that wait look again."""
        for waiter in tuple(self._waiters):
            with suppress(RuntimeError):  # it was told already, and has not looked yet
                waiter.release()

    def wait_for(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until a condition holds, or the time is over; returns whether it holds.

        Args:
            condition: what `tell` follows, once it may hold.
            timeout: seconds; None is no limit.
        """
        deadline = inf if timeout is None else time.monotonic() + timeout
        waiter = original("_thread", "allocate_lock")()
        waiter.acquire()
        try:
            self._waiters.append(waiter)
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                waiter.acquire(timeout=-1 if left == inf else min(left, threading.TIMEOUT_MAX))
            return True
        finally:
            with suppress(ValueError):  # what a signal's handler raised may have come before it
                self._waiters.remove(waiter)
