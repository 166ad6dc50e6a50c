# SPDX-License-Identifier: Apache-2.0
"""A look at a stream: where it ends, and which stream ids are which ids of which source."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .engine import Credentials, Engine, StreamInfo, make_engine
from .far import far_id
from .record import Position, Record

__all__: list[str] = []


@dataclass(frozen=True, slots=True)
class Run:
    """Stream ids that stand for ids of one source, without a gap of unknown size between.

    Args:
        first: the first stream id.
        last: the last one.
        server: the source's `server_id`.
        source_first: the source's id of the first.
        source_last: that of the last.
        begins: what is before it: `"the oldest kept"`, `"a restart"`, or `"a restart, loss
            unknown"`.
    """

    first: int
    last: int
    server: int
    source_first: int
    source_last: int
    begins: str


@dataclass(frozen=True, slots=True)
class Look:
    """What a stream looks like.

    Args:
        url: where it is, without secrets.
        info: what the engine says.
        position: where it ends; None if it is empty.
        stored: when its last record was stored, seconds since 1970; None if that is not known.
        far_id: the `server_id` of its far feeds.
        runs: stream ids and source ids.
    """

    url: str
    info: StreamInfo
    position: Position | None
    stored: float | None
    far_id: int
    runs: tuple[Run, ...]

    def as_json(self) -> dict[str, object]:
        """Return it for `json.dumps`."""
        found = asdict(self)
        found["position"] = None if self.position is None else self.position._asdict()
        return found


async def look(url: str, credentials: Credentials | None = None) -> Look:
    """Look at a stream.

    Raises:
        EngineError: it cannot be reached, or is not there.
    """
    engine = make_engine(url, credentials)
    try:
        info = await engine.open()
        tail = await engine.last()
        runs = await runs_from(engine, 0, tail.position)
        return Look(str(engine.target), info, tail.position, tail.stored, far_id(info), runs)
    finally:
        await engine.close()


def _mapping(record: Record) -> tuple[int, int]:
    end = record.end
    return end.server, end.source - end.stream


async def runs_from(engine: Engine, stream: int, end: Position | None) -> tuple[Run, ...]:
    """Find the runs of a stream; it takes a few requests for each.

    Args:
        engine: a connection to it.
        stream: a stream id of the first run; 0 is the oldest kept.
        end: where it ends; None if it is empty.

    Raises:
        EngineError: the connection ended.
    """
    first = await engine.around(stream)
    if end is None or first is None:
        return ()
    last = (end.server, end.source - end.stream)
    begins: list[Record] = [first]
    await _split(engine, first, (end.stream, last), begins)
    found = []
    for record, behind in zip(begins, [*begins[1:], None], strict=True):
        server, offset = _mapping(record)
        unknown = record.lost is None
        at = record.seq + unknown
        upto = behind.seq - 1 if behind is not None else end.stream
        why = "the oldest kept" if record is first else "a restart"
        found.append(
            Run(
                at,
                upto,
                server,
                at + offset,
                upto + offset,
                why + (", loss unknown" if unknown else ""),
            )
        )
    return tuple(found)


async def _split(
    engine: Engine, low: Record, high: tuple[int, tuple[int, int]], begins: list[Record]
) -> None:
    # A mapping never comes back once another has followed it, so two records with the same one have
    # no other between.
    before, (stream, mapping) = _mapping(low), high
    if before == mapping:
        return
    left, right = low.last + 1, stream  # the first record of another run begins in here
    while left < right:
        middle = (left + right) // 2
        record = await engine.around(middle)
        if record is None or _mapping(record) != before:
            right = middle
        else:
            left = max(middle, record.last) + 1
    record = await engine.around(left)
    if record is None:
        return
    begins.append(record)
    await _split(engine, record, high, begins)
