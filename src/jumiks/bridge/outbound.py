# SPDX-License-Identifier: Apache-2.0
"""The outbound bridge: appends a local feed to a stream of an engine.

It has no state of its own. The stream's last record says where to go on, and each append names the
end that it expects. So a record is stored once, whoever dies and however often it is sent. Between
the source and the engine there are only the records that the engine has not acked, and the rest of
the batch they came from.

After any failure of the engine the position is read again. Of the records in flight those that the
engine has are dropped, and the others are sent again. If the engine lost what it had acked, the
source's history is read again; where that is gone too, a gap says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from asyncio import Future, Task
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from .._gap import Gap, GapReason
from .._wire.address import parse_client_address
from .._wire.handshake import FIRST_ID
from ..batch import Batch
from ..errors import Closed, JumiksError, Overwritten
from .engine import Create, Credentials, Mark, StreamInfo, Tail, make_engine
from .errors import (
    NO_ANSWER,
    Conflict,
    EngineError,
    Loop,
    Standby,
    TooLarge,
    Unfit,
    another_source,
    appends,
    blocks_words,
    loop,
    no_answer,
    opened_words,
    restarted_words,
)
from .far import far_id
from .life import Backoff, Counts, Life
from .look import runs_from
from .record import MOST_LOST, GapKind, Position, Record, split_frames
from .source import Source, blocks

__all__ = ["Outbound", "OutboundStats"]

log: Final = logging.getLogger("jumiks.bridge")

WINDOW: Final = 32

LOOK: Final = 2.0
"""Seconds between looks at the engine while nothing is in flight: it may have gone back."""

STANDBY: Final = 1.0
"""Seconds, at least, between two looks of a bridge that stands by."""

QUIET: Final = 2
"""Such looks at which a stream is the same: then no other bridge appends."""

FLUSH: Final = 5.0
"""Seconds that the engine has at the end to ack what is in flight."""

MOST_SOURCES: Final = 16
"""Sources of which it is remembered how much is stored."""

MARKS: Final = 3
"""Marks in the time that the engine keeps records for, while the source is silent."""

_KINDS: Final[dict[GapReason, GapKind]] = {
    GapReason.SKIPPED: "skipped",
    GapReason.EVICTED: "evicted",
    GapReason.ENDED: "ended",
    GapReason.RESTARTED: "restarted",
    GapReason.TOO_LARGE: "too-large",
}


@dataclass(frozen=True, slots=True)
class OutboundStats:
    """The figures of an outbound bridge.

    Args:
        state: `"running"`, or what it waits for: `"connecting"`, `"source"`, `"standby"`, or what
            is wrong with the engine.
        problem: the last error in words, while there is one; else "".
        position: where the engine's stream ended at the last ack; None if that is not known.
        records: records that the engine has acked.
        messages: messages in them.
        bytes: bytes of their bodies.
        outstanding: records in flight.
        outstanding_bytes: bytes of their bodies.
        source_lag: messages that the source has published, and the engine has not acked. Where the
            source does not share its log, those among them that the bridge has received.
        ack_age: seconds since the last ack of the engine; None if there was none.
        source_reconnects: connections to the source, beyond the first.
        engine_reconnects: connections to the engine, beyond the first.
        conflicts: appends that failed as the stream ended elsewhere.
        rewinds: times that the engine had lost what it had acked.
        gaps: gaps written, by reason.
        lost: messages in those of known size.
        unknown_gaps: gaps of unknown size among them.
    """

    state: str
    problem: str
    position: Position | None
    records: int
    messages: int
    bytes: int
    outstanding: int
    outstanding_bytes: int
    source_lag: int
    ack_age: float | None
    source_reconnects: int
    engine_reconnects: int
    conflicts: int
    rewinds: int
    gaps: dict[str, int]
    lost: int
    unknown_gaps: int


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name}={value}: it must be 1 or more")


@dataclass(slots=True)
class _Counts(Counts):
    sources: int = 0
    conflicts: int = 0
    rewinds: int = 0


class _Seen:
    """What is known of a stream: since when its end stands, and what it has of which source."""

    def __init__(self) -> None:
        self._mark, self._since = Mark(-1), 0.0
        self._last: dict[int, Position] = {}
        self._newest = 0

    def end(self, tail: Tail) -> None:
        """Note where the stream ends now."""
        if tail.mark != self._mark:
            self._mark, self._since = tail.mark, time.monotonic()
        if tail.position is None or tail.position.stream < self._newest:
            self.forget()  # the engine went back
        if tail.position is not None:
            self.stored(tail.position)

    def stored(self, end: Position) -> None:
        """Note that a record with this end is stored."""
        self._note(end)
        self._newest = end.stream

    def begins(self, server: int, stream: int) -> None:
        """Note that records of a source may follow a stream id, of which none was seen so far."""
        if server not in self._last:
            self._note(Position(stream, server, 0))

    def _note(self, end: Position) -> None:
        if end.server not in self._last and len(self._last) >= MOST_SOURCES:
            del self._last[next(iter(self._last))]
        self._last[end.server] = end

    def forget(self) -> None:
        """Know nothing of what is stored."""
        self._last.clear()

    def stored_of(self, server: int) -> Position | None:
        """Where the last record of a source was seen to end; more may be stored behind it."""
        return self._last.get(server)

    def is_quiet(self, mark: Mark) -> bool:
        """Whether the stream has ended at this mark for long enough to have no other bridge."""
        return mark == self._mark and time.monotonic() >= self._since + QUIET * STANDBY


class Outbound(Life):
    """Append a local feed to a stream of an engine, exactly once, gaps included.

    ::

        asyncio.run(Outbound("@ticks", "nats://host/TICKS").run())

    Args:
        source: the feed's address: `"@name"` or a path.
        url: the stream, such as `nats://host/TICKS` or `redis://host/ticks`. A user's name may
            stand in it, a password must not.
        subject: the subject of its records (JetStream); by default that of the stream.
        create: how to make the stream if it is not there; None does not.
        pack: bytes of messages in a record, about; by default what suits the engine.
        plain: store each message as a record of its own, without a frame. Slow.
        window: records that may be in flight.
        on_too_large: what happens at a message that the engine does not take: `"gap"` has a gap
            in its place, `"stop"` ends the bridge.
        credentials: how to log in.

    Raises:
        TypeError, ValueError: an argument is wrong; the text says what would be right.
        JumiksError: the engine's client is not installed.

    The rules are those of docs/bridge.md.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        url: str,
        *,
        subject: str | None = None,
        create: Create | None = None,
        pack: int | None = None,
        plain: bool = False,
        window: int = WINDOW,
        on_too_large: Literal["gap", "stop"] = "gap",
        credentials: Credentials | None = None,
    ) -> None:
        parse_client_address(source)
        _check_number("pack", 1 if pack is None else pack)
        _check_number("window", window)
        if on_too_large not in ("gap", "stop"):
            raise ValueError(f"on_too_large={on_too_large!r}: it must be 'gap' or 'stop'")
        super().__init__(make_engine(url, credentials, subject))
        self._engine.check(create)
        self._where = source
        self._create = create
        self._pack = pack
        self._plain = plain
        self._window = window
        self._on_too_large = on_too_large
        self._source: Source | None = None
        self._receiving: Task[Batch | Gap] | None = None
        self._info: StreamInfo | None = None
        # The end of what the engine has acked, and of what was sent. None: an empty stream.
        self._acked: Position | None = None
        self._sent: Position | None = None
        self._known = False
        """Whether these two are; before that the engine is asked."""
        self._mark = self._acked_mark = Mark(0)
        """What the next append expects, and what the stream had at the last ack."""
        self._ours = False
        """Whether this bridge goes on where its source restarts: it or its source was the last."""
        self._seen = _Seen()
        self._unacked: deque[Record] = deque()
        """Made and not acked, whether or not they are in flight now."""
        self._flying: deque[Future[None]] = deque()
        """Of the first of these."""
        self._rest: Iterator[Record] = iter(())
        """What comes of the last batch, and was not made yet."""
        self._restart: Gap | None = None
        """A gap of unknown size that waits for the message behind it."""
        self._last_ack: float | None = None
        self._last_sign = self._stored_at = 0.0
        self._conflict_at = float("-inf")
        self._counts = _Counts()
        self._waits = Backoff()
        """Between tries at the engine; the shortest again once it has stored something."""

    # ---- the whole ----

    async def _work(self) -> None:
        while True:
            try:
                await self._begin()
                await self._pump()
            except Unfit as error:
                if not self._counts.engines:
                    raise  # wrong from the start: say so, and end
                self._problem(error)
            except Standby as error:
                await self._stand_by(error)
                continue
            except EngineError as error:
                self._problem(error)
                if error.state == NO_ANSWER and self._flying:
                    self._engine.patience.more()
            await asyncio.sleep(self._waits.next())

    async def _finish(self) -> None:
        # What the engine acks now need not be sent again by the next bridge.
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(FLUSH):
                while self._flying:
                    await self._settle_one()
        self._ground()
        await self._drop_source()
        await self._engine.close()

    def _ground(self) -> None:
        for future in self._flying:
            future.cancel()
            if future.done() and not future.cancelled():
                future.exception()
        self._flying.clear()

    async def _begin(self) -> None:
        self._ground()
        before = self._info
        self._info = await self._engine.open(self._create)
        if before is None:
            found = self._info
            log.info("%s", opened_words(self._engine.target, found.engine, found.records))
        tail = await self._engine.last()
        if before is not None and before.created != self._info.created:
            self._seen.forget()
        self._seen.end(tail)
        await self._align(tail.position, tail.mark, before)
        self._mark = self._acked_mark = tail.mark
        self._last_sign = self._stored_at = time.monotonic()
        self._counts.engines += 1
        if not self._unacked:
            self._problem_over()  # else once the first of these is stored

    # ---- where to go on ----

    async def _align(self, found: Position | None, mark: Mark, before: StreamInfo | None) -> None:
        """Compare what the engine has with what was sent to it."""
        if not self._known:
            self._start_at(found)
            return
        same = before is not None and self._info is not None
        same = same and before.created == self._info.created  # type: ignore[union-attr]
        if found is None and same and mark == self._acked_mark:
            return  # all of it was purged or is too old; where it ended is known here
        ends = [self._acked, *(record.end for record in self._unacked)]
        if found in ends:
            for _ in range(ends.index(found)):
                self._stored(self._unacked.popleft())
            self._acked = found
            return
        acked = self._acked
        if found is not None and (acked is None or found.stream > acked.stream):
            # Another bridge was faster. What it did not store is read from the source again.
            self._start_at(found)
            await self._drop_source()
            return
        self._counts.rewinds += 1
        log.warning(
            "%s: the engine lost what it had acked: it ends at %s, not at %s",
            self._engine.target,
            found and found.stream,
            acked and acked.stream,
        )
        await self._rewind(found)
        self._ours = True

    def _start_at(self, found: Position | None) -> None:
        self._acked = self._sent = found
        self._known, self._ours = True, found is None
        self._forget()

    def _forget(self) -> None:
        self._unacked.clear()
        self._rest = iter(())
        self._restart = None

    async def _rewind(self, found: Position | None) -> None:
        """Go back to where the engine ends, with what the source still has."""
        again = await self._reach(found)
        if again is not None or not (self._unacked or self._source):
            await self._drop_source()
            self._start_at(found)
            self._source = again
            return
        acked = self._acked
        if found is None or acked is None:
            return  # what is here begins the stream
        # Another source is there since. Its ids had their stream ids already, and keep them. Or it
        # is gone too: what it had is here and in its mapped log, but for what the engine had acked.
        shift = acked.source - acked.stream
        begin = max(found.stream + 1, FIRST_ID - shift)
        again = await self._reach(Position(begin - 1, acked.server, begin - 1 + shift))
        upto = acked.stream
        if again is not None:
            await self._drop_source()
            self._start_at(found)
            self._source, upto = again, begin - 1
        self._acked = found
        count = upto - found.stream
        if count:
            lost = Record(
                found.stream + 1,
                count,
                acked.server,
                upto + shift - count + 1,
                b"",
                "evicted",
                count,
            )
            self._unacked.appendleft(self._note(lost))
            self._sent = self._unacked[-1].end

    async def _reach(self, position: Position | None) -> Source | None:
        """Return the source that a position is of, to go on there; None if it is not there."""
        source = self._source_at(position)
        with suppress(OSError, JumiksError):
            await source.open()
            if position is None or source.server_id == position.server:
                return source
        await source.close()
        return None

    # ---- moving messages ----

    async def _pump(self) -> None:
        for record in tuple(self._unacked):
            await self._send(record)
        while True:
            record = await self._next()
            self._unacked.append(record)
            self._sent = record.end
            await self._send(record)

    async def _send(self, record: Record) -> None:
        while len(self._flying) >= self._window:
            await self._settle_one()
        while self._flying and self._flying[0].done():
            await self._settle_one()
        if not self._flying:
            self._last_sign = time.monotonic()
        self._flying.append(await self._engine.append(self._mark, record))
        self._mark = self._engine.after(self._mark, record)

    async def _next(self) -> Record:
        while True:
            record = next(self._rest, None)
            if record is not None:
                return record
            item = await self._receive()
            if isinstance(item, Gap):
                self._rest = self._records_of_gap(item)
            elif item is None:
                self._rest = iter((self._mark_record(),))
            else:
                self._rest = self._records_of(item)

    async def _receive(self) -> Batch | Gap | None:
        """Return what comes next from the source, settling what the engine answers meanwhile.

        None: nothing came for so long that the engine needs a mark.
        """
        if self._receiving is None:
            self._receiving = asyncio.create_task(self._from_source())
        while not self._receiving.done():
            waits: list[Future[Batch | Gap] | Future[None]] = [self._receiving]
            if self._flying:
                waits.append(self._flying[0])
            due = min(self._mark_due(), self._last_sign + (self._silence if self._flying else LOOK))
            left = max(0.0, due - time.monotonic())
            await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            while self._flying and self._flying[0].done():
                await self._settle_one()
            self._check_answers()
            if not self._flying and not self._receiving.done():
                if time.monotonic() >= self._mark_due():
                    return None
                await self._look()
        task, self._receiving = self._receiving, None
        return task.result()

    async def _look(self) -> None:
        if time.monotonic() < self._last_sign + LOOK:
            return
        tail = await self._engine.last()
        self._last_sign = time.monotonic()
        self._waits.reset()
        if tail.mark != self._mark:
            raise Conflict(f"{self._engine.target}: it ends elsewhere than it did")

    def _mark_due(self) -> float:
        keep = self._info.keep_seconds if self._info else None
        return (
            float("inf") if keep is None or self._sent is None else self._stored_at + keep / MARKS
        )

    def _mark_record(self) -> Record:
        assert self._sent is not None
        stream, server, source = self._sent
        return Record(stream + 1, 0, server, source + 1)

    @property
    def _silence(self) -> float:
        # Seconds without an answer after which an engine with records in flight counts as lost.
        return self._engine.patience.seconds

    def _check_answers(self) -> None:
        if self._flying and time.monotonic() >= self._last_sign + self._silence:
            flying = f", with {len(self._flying)} records in flight{self._engine.patience.words}"
            raise no_answer(self._engine.target, self._silence, flying)

    async def _settle_one(self) -> None:
        # The first record in flight has its answer, or the engine has its time for it.
        future = self._flying[0]
        if not future.done():
            await asyncio.wait([future], timeout=self._last_sign + self._silence - time.monotonic())
            self._check_answers()
            if not future.done():
                return
        try:
            future.result()
        except Conflict as error:
            self._counts.conflicts += 1
            # Once, it may be a record of our own that came late. Twice, it is another bridge.
            now = time.monotonic()
            often, self._conflict_at = now < self._conflict_at + 2 * self._silence, now
            if often:
                raise appends(error) from None
            raise
        self._flying.popleft()
        record = self._unacked.popleft()
        self._acked_mark = self._engine.after(self._acked_mark, record)
        self._last_ack = self._last_sign = time.monotonic()
        self._waits.reset()
        if not self._flying:
            self._engine.patience.reset()
        if self.problem and self.state != "source":
            self._problem_over()
        self._stored(record)
        self._acked = record.end
        if self._source is not None and self._acked.server:
            await self._source.ack(self._acked.server, self._acked.source)

    def _stored(self, record: Record) -> None:
        counts = self._counts
        self._ours = True
        self._seen.stored(record.end)
        self._stored_at = time.monotonic()
        counts.records += 1
        counts.bytes += len(record.body)
        counts.messages += 0 if record.gap else record.count

    async def _stand_by(self, error: Standby) -> None:
        # This one needs nothing of the source yet.
        self._problem(error)
        self._ground()
        await self._drop_source()
        self._known = False
        self._forget()
        before, misses = None, 0
        while misses < QUIET:
            await asyncio.sleep(STANDBY * (1 + random.random()))
            try:
                tail = await self._engine.last()
            except EngineError:
                return
            self._seen.end(tail)
            misses = misses + 1 if tail.mark == before else 0
            before = tail.mark
        self._conflict_at = float("-inf")

    # ---- the source ----

    async def _from_source(self) -> Batch | Gap:
        waits = Backoff()
        while True:
            try:
                source = await self._connected()
                waits.reset()
                return await source.receive(self._source_is)
            except (Closed, EngineError, Loop):
                raise
            except (JumiksError, OSError) as error:
                # It is not there, or this bridge was cut for its lag: what is missing is a gap.
                self._source_is(error)
                await self._drop_source()
            await asyncio.sleep(waits.next())

    def _source_is(self, away: BaseException | None) -> None:
        # What is wrong with the engine is told first.
        if away is not None and self.state in ("running", "source"):
            self._problem(away, "source")
        elif away is None and self.state == "source":
            self._problem_over()

    async def _connected(self) -> Source:
        source = self._source
        if source is None:
            source = await self._opened()
            self._source = source
            self._source_is(None)
            if self._connections == 1 and await blocks(self._where):
                log.warning("%s", blocks_words(self._where))
        return source

    def _source_at(self, position: Position | None) -> Source:
        return Source(self._where, position, self._check_loop)

    def _check_loop(self, server: int) -> None:
        assert self._info is not None
        if server == far_id(self._info):
            raise loop(self._engine.target, self._where, server)

    async def _open_at(self, position: Position | None) -> Source:
        source = self._source_at(position)
        try:
            await source.open()
        except BaseException:
            await source.close()
            raise
        return source

    async def _opened(self) -> Source:
        sent = self._sent
        source = await self._open_at(sent)
        server = source.server_id
        if sent is None or server == sent.server:
            self._ours = True
            self._seen.begins(server, 0 if sent is None else sent.stream)
            return source
        try:
            if not self._is_my_turn():
                raise another_source(self._engine.target, sent.server, self._where, server)
            stored = 0 if self._unacked else await self._stored_of(server, sent)
        except BaseException:
            await source.close()
            raise
        if not stored:
            self._seen.begins(server, sent.stream)
            return source
        # Another source was in its place; it goes on where it was left.
        await source.close()
        return await self._open_at(Position(sent.stream, server, stored))

    async def _stored_of(self, server: int, end: Position) -> int:
        # The last message of a source that is stored, as far as this bridge can know; or 0. Since
        # it saw one, more may have been stored: by it, unless the answer came, or by another one.
        seen = self._seen.stored_of(server)
        if seen is None:
            return 0
        runs = await runs_from(self._engine, seen.stream, end)
        return max(seen.source, *(run.source_last for run in runs if run.server == server), 0)

    def _is_my_turn(self) -> bool:
        # Whether records of this source may follow those of another one.
        self._ours = self._ours or self._seen.is_quiet(self._mark)
        return self._ours

    async def _drop_source(self) -> None:
        task, self._receiving = self._receiving, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif task is not None:
            self._receiving = task
        source, self._source = self._source, None
        if source is not None:
            self._counts.sources += source.connections
            await source.close()

    @property
    def _connections(self) -> int:
        source = self._source
        return self._counts.sources + (source.connections if source is not None else 0)

    # ---- making records ----

    def _records_of(self, batch: Batch) -> Iterator[Record]:
        source = self._source
        assert source is not None
        server, first, upto = source.server_id, batch.first_id, batch.last_id
        before = self._sent
        yield from self._up_to(server, first)
        if before is not None and before.server != server:
            log.info("%s", restarted_words(self._where, server, first, self._seq(first)))
        try:
            frames = batch.frames()
            number, begin = first, 0
            for count, end in split_frames(frames, first, self._limit(len(frames))):
                body = bytes(frames[begin:end])
                size = int.from_bytes(body[:4], "little")
                if self._plain:
                    body = body[16 : 16 + size]
                if not batch.valid:
                    raise Overwritten(number, upto)
                if len(body) > self._engine.largest:
                    yield self._too_large(server, number, size)
                else:
                    yield self._record(server, number, count, body)
                number, begin = number + count, end
        except Overwritten:
            # The source's lag policy was faster than the engine.
            sent = self._sent
            begin = sent.source + 1 if sent is not None and sent.server == server else first
            if begin <= upto:
                yield self._gap(server, begin, upto - begin + 1, "skipped")

    def _limit(self, size: int) -> int:
        # Of a record, for a batch of this size: what is left behind the last whole record of a
        # batch would cost as much as a record, so all get a little more.
        if self._plain:
            return 1
        pack = self._pack or self._engine.pack
        parts = max(1, round(size / pack))
        return min(size // parts + pack // 8, self._engine.largest)

    def _up_to(self, server: int, first: int) -> Iterator[Record]:
        # What is due before a message: a restart that waited for it, or a hole nobody told of.
        sent = self._sent
        if self._restart is not None:
            self._restart = None
            yield self._unknown(server, first)
        elif sent is not None and sent.server == server and sent.source + 1 < first:
            yield self._gap(server, sent.source + 1, first - sent.source - 1, "evicted")

    def _records_of_gap(self, gap: Gap) -> Iterator[Record]:
        assert self._source is not None
        if gap.last is None or not gap.first:
            if gap.count is None:
                self._restart = gap
            return
        sent, server = self._sent, self._source.server_id
        first = gap.first
        if sent is not None and sent.server == server:
            first = max(first, sent.source + 1)
        yield from self._up_to(server, first)
        if first <= gap.last:
            yield self._gap(server, first, gap.last - first + 1, _KINDS[gap.reason])

    def _record(self, server: int, first: int, count: int, body: bytes) -> Record:
        return Record(self._seq(first), count, server, first, body, plain=self._plain)

    def _gap(self, server: int, first: int, count: int, kind: GapKind) -> Record:
        if count > MOST_LOST:  # a source that began elsewhere: ids are not to run out
            return self._unknown(server, first + count)
        return self._note(Record(self._seq(first), count, server, first, b"", kind, count))

    def _unknown(self, server: int, first: int) -> Record:
        return self._note(Record(self._seq(first), 1, server, first, b"", "restarted", None))

    def _too_large(self, server: int, number: int, size: int) -> Record:
        text = (
            f"message {number} of {size} bytes is too large for a record, which has at most "
            f"{self._engine.largest} bytes with the message's frame: raise the engine's limit"
        )
        if self._on_too_large == "stop":
            raise TooLarge(f"{text}, or take --on-too-large gap")
        log.warning("%s; it is told as a gap", text)
        return self._gap(server, number, 1, "too-large")

    def _seq(self, first: int) -> int:
        return first if self._sent is None else self._sent.stream + 1

    def _note(self, record: Record) -> Record:
        self._counts.note_gap(record.seq, record.lost, record.gap)
        return record

    # ---- asking ----

    def stats(self) -> OutboundStats:
        """All figures, of one moment."""
        counts, source = self._counts, self._source
        return OutboundStats(
            state=self.state,
            problem=self.problem,
            position=self._acked,
            records=counts.records,
            messages=counts.messages,
            bytes=counts.bytes,
            outstanding=len(self._flying),
            outstanding_bytes=sum(len(record.body) for record in tuple(self._unacked)),
            source_lag=source.lag if source is not None else 0,
            ack_age=None if self._last_ack is None else time.monotonic() - self._last_ack,
            source_reconnects=max(0, self._connections - 1),
            engine_reconnects=max(0, counts.engines - 1),
            conflicts=counts.conflicts,
            rewinds=counts.rewinds,
            gaps=dict(counts.gaps),
            lost=counts.lost,
            unknown_gaps=counts.unknown,
        )
