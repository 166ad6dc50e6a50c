# SPDX-License-Identifier: Apache-2.0
"""The inbound bridge: serves a stream of an engine as a local feed.

It has no state of its own, and none in the engine: it fills its log from the end of the stream,
then listens, then follows. Messages keep their stream ids. What was published is known by its id,
so records that come again are dropped, and a hole in the ids is a gap.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final, Literal, TypedDict, Unpack

from .._options import LOG_SIZE
from .._server.access import Allow
from .._server.lag import OnLag
from .._wire.address import parse_address
from .._wire.handshake import FIRST_ID
from ..errors import MessageTooLarge
from .engine import Credentials, StreamInfo, make_engine
from .errors import EngineError, Unfit, opened_words
from .far import Far, History, far_id
from .life import Backoff, Counts, Life
from .record import Record, Unreadable

__all__ = ["Inbound", "InboundStats"]

log: Final = logging.getLogger("jumiks.bridge")

HISTORY: Final = 64 << 20
MOST_RUNS: Final = 1000
"""Restarts of the source that are remembered."""


class Serving(TypedDict, total=False):
    """What an inbound bridge passes on to its `Server`."""

    max_lag: int | None
    on_lag: OnLag
    patience: float | Literal["default"] | None
    mode: int | None
    group: str | int | None
    allow: Allow
    share_log: bool


@dataclass(frozen=True, slots=True)
class InboundStats:
    """The figures of an inbound bridge.

    Args:
        state: `"running"`, or what it waits for: `"connecting"`, `"filling"` (its log, before it
            listens), or what is wrong with the engine.
        problem: the last error in words, while there is one; else "".
        server_id: that of the far feed; 0 while it does not listen.
        next_id: the stream id of the message that comes next.
        clients: clients of the far feed.
        records: records read, those that came again included.
        messages: messages published.
        bytes: bytes of them, with their frames.
        engine_reconnects: connections to the engine, beyond the first.
        repeated: records that came again and were dropped.
        restarts: times that the stream was another one, so that the far feed began anew.
        gaps: gaps told, by reason; a hole that no record explains is `"evicted"`.
        lost: messages in those of known size.
        unknown_gaps: gaps of unknown size among them.
        record_age: seconds since the last record came; None if there was none.
    """

    state: str
    problem: str
    server_id: int
    next_id: int
    clients: int
    records: int
    messages: int
    bytes: int
    engine_reconnects: int
    repeated: int
    restarts: int
    gaps: dict[str, int]
    lost: int
    unknown_gaps: int
    record_age: float | None


@dataclass(slots=True)
class _Counts(Counts):
    repeated: int = 0
    restarts: int = 0


class _Lineage:
    """Which stream ids stand for which ids of which source, as far as they were published."""

    def __init__(self) -> None:
        self._begins: deque[int] = deque(maxlen=MOST_RUNS)
        self._runs: deque[tuple[int, int]] = deque(maxlen=MOST_RUNS)

    @staticmethod
    def _run(record: Record) -> tuple[int, int]:
        end = record.end
        return end.server, end.source - end.stream

    def note(self, record: Record) -> None:
        """Take a record in, in order."""
        run = self._run(record)
        if not self._runs or self._runs[-1] != run:
            self._begins.append(record.seq)
            self._runs.append(run)

    def fits(self, record: Record, next_id: int) -> bool:
        """Whether what a record says of ids before `next_id` is what was said of them before."""
        stream = min(record.last, next_id - 1)
        index = bisect_right(self._begins, stream) - 1
        return index < 0 or self._runs[index] == self._run(record)


class _Another(Exception):
    """The stream is not the one that was followed so far."""

    def __init__(self, lineage: str = "") -> None:
        super().__init__(lineage)
        self.lineage = lineage


class Inbound(Life):
    """Serve a stream of an engine as a local feed.

    ::

        asyncio.run(Inbound("nats://host/TICKS", "@ticks").run())

    Args:
        url: the stream, such as `nats://host/TICKS` or `redis://host/ticks`.
        where: the far feed's address: `"@name"` or a path.
        history: bytes of records, about, that are in the log before any client can connect.
        log_size: bytes of the far feed's log; by default twice the history.
        wait: seconds in which the stream may still come into being.
        credentials: how to log in.
        options: `max_lag`, `on_lag`, `patience`, `mode`, `group`, `allow` and `share_log` of
            `Server`.

    Raises:
        TypeError, ValueError: an argument is wrong; the text says what would be right.
        JumiksError: the engine's client is not installed.

    The rules are those of docs/bridge.md.
    """

    def __init__(
        self,
        url: str,
        where: str | os.PathLike[str],
        *,
        history: int = HISTORY,
        log_size: int | None = None,
        wait: float = 0.0,
        credentials: Credentials | None = None,
        **options: Unpack[Serving],
    ) -> None:
        parse_address(where)
        if isinstance(history, bool) or not isinstance(history, int):
            raise TypeError(f"history is a number of bytes, not {history!r}")
        if history < 0:
            raise ValueError(f"history={history}: it must be 0 bytes or more")
        super().__init__(make_engine(url, credentials))
        self._patience = time.monotonic() + wait
        self._history = history
        size = max(LOG_SIZE, 2 * history) if log_size is None else log_size
        self._far = Far(where, {"log_size": size, **options})
        self._info: StreamInfo | None = None
        self._lineage = _Lineage()
        self._newest = 0
        """The highest stream id that came over this connection."""
        self._epoch = ""
        self._last_record: float | None = None
        self._counts = _Counts()

    async def _work(self) -> None:
        waits = Backoff()
        while True:
            try:
                await self._begin()
                waits.reset()
                await self._follow()
            except Unfit as error:
                if not self._info and time.monotonic() >= self._patience:
                    raise
                self._problem(error)
            except EngineError as error:
                self._problem(error)
            except _Another as another:
                log.warning(
                    "%s: this is another stream now: the far feed restarts", self._engine.target
                )
                self._epoch = another.lineage
                self._counts.restarts += 1
                await self._far.give_way()
                continue
            await asyncio.sleep(waits.next())

    async def _finish(self) -> None:
        await self._engine.close()
        await self._far.close()

    async def _begin(self) -> None:
        before, self._info = self._info, await self._engine.open()
        self._counts.engines += 1
        if before is None:
            found = self._info
            log.info("%s", opened_words(self._engine.target, found.engine, found.records))
        elif before.created and before.created != self._info.created:
            self._epoch = ""
        if self._far.is_open and self._far.server_id != far_id(self._info, self._epoch):
            raise _Another(self._epoch)
        self._problem_over()

    async def _follow(self) -> None:
        engine, far = self._engine, self._far
        self._newest = 0
        start = far.next_id if far.is_open else await engine.back(self._history)
        async with aclosing(engine.read(start)) as records:  # type: ignore[type-var]
            if not far.is_open:
                await self._fill(records)
            async for record in records:
                await self._take(record)

    async def _fill(self, records: AsyncIterator[Record | Unreadable]) -> None:
        # The log is full before anybody can connect: a client that returns may be far ahead of it.
        # Ids within one log have no holes: what is before a hole stays in the engine.
        position = (await self._engine.last()).position
        upto = -1 if position is None else position.stream
        self._lineage = _Lineage()
        record, due = None, 0
        while not self._far.is_open:
            while record is None and due <= upto:
                record, due = await self._next_sound(records, due, upto)
            record, due = await self._listen(records, record, due, upto)

    async def _next_sound(
        self, records: AsyncIterator[Record | Unreadable], due: int, upto: int
    ) -> tuple[Record | None, int]:
        # The next record, None if its messages cannot be had; and the stream id behind it.
        while True:
            record = await anext(records)
            self._note_record()
            if isinstance(record, Unreadable):
                self._note_unreadable(record)
                if record.last >= upto:
                    return None, upto + 1
                continue  # the ids behind it show what is missing
            self._check_order(record)
            if record.count and record.last >= due:
                break
            if not due:
                return None, record.last + 1  # a mark, and all before it has gone
        self._lineage.note(record)
        sound = self._is_sound(record)
        if sound and record.gathered().largest[0] > self._far.largest:
            log.warning("stream ids %d to %d: too large for the log", record.seq, record.last)
            sound = False
        return record if sound else None, record.last + 1

    async def _listen(
        self,
        records: AsyncIterator[Record | Unreadable],
        record: Record | None,
        due: int,
        upto: int,
    ) -> tuple[Record | None, int]:
        # Listen, with all from `record` on; unless there is a hole. Then what is behind it.
        assert self._info is not None
        first = record.seq if record is not None else due or FIRST_ID
        history, size = History(), 0
        making = asyncio.ensure_future(
            self._far.listen(far_id(self._info, self._epoch), first, history)
        )
        try:
            while record is not None:
                size += len(record.body)
                await history.put(record.gathered(), making)
                if due > upto or making.done():
                    break
                before = due
                record, due = await self._next_sound(records, due, upto)
                if record is None or record.seq != before:
                    return record, due
            history.end(whole=True)
            await making
        finally:
            history.end(whole=False)
            await asyncio.gather(making, return_exceptions=True)
        self._counts.messages += due - first if size else 0
        self._counts.bytes += size
        return None, due

    def _is_sound(self, record: Record) -> bool:
        # Whether it has messages that can be read. Else its ids are a gap.
        try:
            record.check()
        except Unreadable as error:
            log.warning("stream ids %d to %d: %s", record.seq, record.last, error)
            return False
        return not record.gap

    async def _take(self, record: Record | Unreadable) -> None:
        self._note_record()
        if isinstance(record, Unreadable):
            # The ids behind it show what is missing.
            self._note_unreadable(record)
            self._counts.gaps["unreadable"] += 1
            return
        far = self._far
        self._check_order(record)
        repeats = record.seq < far.next_id and bool(record.count)
        if repeats and not self._lineage.fits(record, far.next_id):
            raise _Another(f"{record.server} {record.seq}")
        if record.last < far.next_id:
            self._counts.repeated += repeats
            return
        if record.seq > far.next_id:
            self._gap("evicted", record.seq - far.next_id)
            await far.skip_to(record.seq)
        sound = self._is_sound(record)
        self._lineage.note(record)
        if sound:
            await self._publish(record)
            return
        lost = record.last + 1 - far.next_id
        self._gap(record.gap or "unreadable", None if record.lost is None else lost)
        await far.skip_to(record.last + 1)

    def _check_order(self, record: Record) -> None:
        # A bridge out never goes back while the stream does not.
        if record.count and record.seq <= self._newest:
            words = "stream ids %d to %d come behind %d: those that were here are dropped"
            log.warning(words, record.seq, record.last, self._newest)
        self._newest = max(self._newest, record.last)

    async def _publish(self, record: Record) -> None:
        if self._far.next_id == record.seq:
            with suppress(MessageTooLarge):
                await self._publish_part(record, memoryview(record.body), record.count)
                return
        await self._publish_in_parts(record, record.ends())

    async def _publish_part(self, record: Record, part: memoryview, count: int) -> None:
        await self._far.publish(part, record.plain)
        self._counts.messages += count
        self._counts.bytes += len(part)

    async def _publish_in_parts(self, record: Record, ends: Sequence[int]) -> None:
        # All behind what was published before, but for messages that the log does not take.
        far, body = self._far, memoryview(record.body)
        begins = (0, *ends)
        upto = record.count
        while far.next_id <= record.last:
            done = far.next_id - record.seq
            try:
                await self._publish_part(record, body[begins[done] : begins[upto]], upto - done)
            except MessageTooLarge as error:
                large = bisect_right(ends, begins[done] + (error.offset or 0))
                if large > done:
                    upto = large  # those before it go first
                    continue
                self._gap("too-large", 1)
                await far.skip_to(far.next_id + 1)
            upto = record.count

    @staticmethod
    def _note_unreadable(record: Unreadable) -> None:
        log.warning("a record that cannot be read: %s", record)

    def _note_record(self) -> None:
        self._counts.records += 1
        self._last_record = time.monotonic()

    def _gap(self, kind: str, lost: int | None) -> None:
        self._counts.note_gap(self._far.next_id, lost, kind)

    def stats(self) -> InboundStats:
        """All figures, of one moment."""
        counts, far = self._counts, self._far
        return InboundStats(
            state="filling" if self.state == "running" and not far.is_open else self.state,
            problem=self.problem,
            server_id=far.server_id if far.is_open else 0,
            next_id=far.next_id,
            clients=far.clients,
            records=counts.records,
            messages=counts.messages,
            bytes=counts.bytes,
            engine_reconnects=max(0, counts.engines - 1),
            repeated=counts.repeated,
            restarts=counts.restarts,
            gaps=dict(counts.gaps),
            lost=counts.lost,
            unknown_gaps=counts.unknown,
            record_age=None if self._last_record is None else time.monotonic() - self._last_record,
        )
