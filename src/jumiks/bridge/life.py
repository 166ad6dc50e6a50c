# SPDX-License-Identifier: Apache-2.0
"""What both bridges share: running until they are closed, state, counts, and waits that grow."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from .engine import Engine
from .errors import EngineError, lost_words

__all__: list[str] = []

log: Final = logging.getLogger("jumiks.bridge")

FIRST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 2.0
CANCEL_AGAIN: Final = 0.2
SAY_AGAIN: Final = 60.0
"""Seconds after which an error that goes on is logged again."""

_SAID: Final = {"source": "waiting for the source"}
"""What a state is called in the log, where its name says too little there."""


class Backoff:
    """Waits that double, and that chance shortens."""

    def __init__(self) -> None:
        self._wait = FIRST_WAIT

    def reset(self) -> None:
        """Begin with the shortest again."""
        self._wait = FIRST_WAIT

    def next(self) -> float:
        """Return the next one, seconds."""
        wait, self._wait = self._wait, min(2 * self._wait, LONGEST_WAIT)
        return wait * (0.5 + random.random() / 2)


@dataclass(slots=True)
class Counts:
    """What both bridges count."""

    records: int = 0
    messages: int = 0
    bytes: int = 0
    engines: int = 0
    gaps: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    unknown: int = 0

    def note_gap(self, first: int, lost: int | None, kind: str) -> None:
        """Count a gap, and log it.

        Args:
            first: the stream id of its first message.
            lost: messages in it; None if that is unknown.
            kind: why they are lost.
        """
        self.gaps[kind] += 1
        self.lost += lost or 0
        self.unknown += lost is None
        log.warning("%s", lost_words(first, lost, kind))


class Life(ABC):
    """A bridge that runs until it is closed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.state: str = "connecting"
        self.problem: str = ""
        self._said_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._closed = asyncio.Event()

    @property
    def stream(self) -> str:
        """The stream's URL, without secrets."""
        return str(self._engine.target)

    async def run(self) -> None:
        """Run until `close`; connect again, as often as it takes, to either side.

        Raises:
            EngineError: the stream is not there, or not fit, at the first look.
            JumiksError: it cannot go on; the text says why.
        """
        if self._task is not None:
            raise RuntimeError("this bridge runs already, or has run: make another")
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._work())
        try:
            if self._closing:
                return
            await self._until_closed(self._task)
            if not self._task.cancelled():
                self._task.result()
        finally:
            await self._stop(self._task)
            self.state = "closed"
            await self._finish()

    async def _until_closed(self, task: asyncio.Task[None]) -> None:
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait([task, closed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
        if not task.done():
            await self._stop(task)

    async def _stop(self, task: asyncio.Task[None]) -> None:
        # A library in between may take the cancellation for its own.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=CANCEL_AGAIN)
        if not task.cancelled():
            task.exception()  # it was raised already, or comes too late to matter

    def close(self) -> None:
        """Have `run` come to its end in good order; any thread may call it, and more than once."""
        self._closing = True
        with suppress(RuntimeError):  # its loop is closed by now
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._closed.set)

    @abstractmethod
    async def _work(self) -> None:
        """Run for ever."""

    @abstractmethod
    async def _finish(self) -> None:
        """End in good order, once `_work` is over."""

    def _problem(self, error: BaseException, state: str = "") -> None:
        words = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror and error.filename:
            words = f"{error.filename}: {error.strerror}"
        state = state or (error.state if isinstance(error, EngineError) else "failed")
        now = time.monotonic()
        if words != self.problem or now >= self._said_at + SAY_AGAIN:
            log.warning("%s: %s", _SAID.get(state, state), words)
            self._said_at = now
        self.problem, self.state = words, state

    def _problem_over(self) -> None:
        if self.problem:
            log.info("running again")
        self.state, self.problem = "running", ""
