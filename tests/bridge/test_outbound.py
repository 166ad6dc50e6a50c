# SPDX-License-Identifier: Apache-2.0
"""What a bridge out makes of what its source gives it, and of what its engine answers."""

import asyncio
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from support.base import DEADLINE
from support.memory_engine import MemoryEngine, Store

from jumiks import Gap, GapReason
from jumiks.bridge import Outbound, outbound
from jumiks.bridge.engine import LEAST
from jumiks.bridge.errors import Conflict, EngineError, Standby
from jumiks.bridge.record import Position, Record, make_frames

pytestmark = pytest.mark.no_core

A, B = 7, 8
"""Sources."""

HEAD = 16


class Frames:
    """A batch as a bridge sees it, some of which the source may overwrite while it is read.

    Args:
        first: id of its first message.
        messages: their payloads.
        sound: how many of the records made of it are of what was published; None is all.
    """

    def __init__(self, first: int, messages: list[bytes], sound: int | None = None) -> None:
        self.first_id, self.last_id = first, first + len(messages) - 1
        self._frames = make_frames(first, messages)
        self._left = len(messages) if sound is None else sound

    def frames(self) -> bytes:
        return self._frames

    @property
    def valid(self) -> bool:
        self._left -= 1
        return self._left >= 0


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what makes a bridge whose stream ends somewhere, with a source connected."""

    def new(sent: Position | None, server: int = A, **options: Any) -> Any:
        monkeypatch.setattr(outbound, "make_engine", lambda *_: MemoryEngine(Store()))
        bridge: Any = Outbound("@source", "memory://", **options)
        bridge._source = SimpleNamespace(server_id=server, lag=0, connections=0)
        bridge._sent = sent
        return bridge

    return new


def sent(bridge: Any, records: Iterable[Record]) -> list[tuple[Any, ...]]:
    """Take records as the bridge does when it sends them; say what is in them."""
    found: list[tuple[Any, ...]] = []
    for record in records:
        bridge._sent = record.end
        what = record.gap or b"".join(record.payloads())
        found.append((record.seq, record.count, record.server, record.first, what))
        assert record.lost == (record.count if record.gap not in ("", "restarted") else 0) or (
            record.gap == "restarted" and record.lost is None
        )
    return found


MADE: dict[str, tuple[Position | None, list[Gap | Frames], list[tuple[Any, ...]]]] = {
    "an empty stream takes the source's ids": (
        None,
        [Frames(5, [b"a", b"b"])],
        [(5, 2, A, 5, b"ab")],
    ),
    "messages go on": (Position(10, A, 4), [Frames(5, [b"a"])], [(11, 1, A, 5, b"a")]),
    "messages of another source go on": (
        Position(10, B, 4),
        [Frames(7, [b"a"])],
        [(11, 1, A, 7, b"a")],
    ),
    "a hole that nobody told of": (
        Position(10, A, 4),
        [Frames(8, [b"a"])],
        [(11, 3, A, 5, "evicted"), (14, 1, A, 8, b"a")],
    ),
    "a hole of one message": (
        Position(10, A, 4),
        [Frames(6, [b"a"])],
        [(11, 1, A, 5, "evicted"), (12, 1, A, 6, b"a")],
    ),
    "a gap": (Position(10, A, 4), [Gap(5, 9)], [(11, 5, A, 5, "skipped")]),
    "a gap in an empty stream": (None, [Gap(5, 9)], [(5, 5, A, 5, "skipped")]),
    "a gap that would use up the ids": (
        Position(10, B, 4),
        [Gap(7, 1 << 60, GapReason.EVICTED)],
        [(11, 1, A, (1 << 60) + 1, "restarted")],
    ),
    "a gap as long as one may be": (
        Position(10, B, 4),
        [Gap(7, (1 << 48) + 6, GapReason.EVICTED)],
        [(11, 1 << 48, A, 7, "evicted")],
    ),
    "a gap of one": (Position(10, A, 4), [Gap(5, 5)], [(11, 1, A, 5, "skipped")]),
    "a gap that was told in part": (Position(10, A, 7), [Gap(5, 9)], [(11, 2, A, 8, "skipped")]),
    "a gap that was told": (Position(10, A, 9), [Gap(5, 9)], []),
    "a gap behind a hole": (
        Position(10, A, 4),
        [Gap(7, 9)],
        [(11, 2, A, 5, "evicted"), (13, 3, A, 7, "skipped")],
    ),
    "a gap of another source": (Position(10, B, 4), [Gap(7, 9)], [(11, 3, A, 7, "skipped")]),
    "a gap by its reason": (
        Position(10, A, 4),
        [Gap(5, 5, GapReason.ENDED)],
        [(11, 1, A, 5, "ended")],
    ),
    "a gap of unknown size waits for a message": (
        Position(10, B, 4),
        [Gap(5, None, GapReason.RESTARTED)],
        [],
    ),
    "and is told before it": (
        Position(10, B, 4),
        [Gap(5, None, GapReason.RESTARTED), Frames(1, [b"a"]), Frames(2, [b"b"])],
        [(11, 1, A, 1, "restarted"), (12, 1, A, 1, b"a"), (13, 1, A, 2, b"b")],
    ),
    "and before a gap": (
        Position(10, B, 4),
        [Gap(5, None, GapReason.RESTARTED), Gap(1, 3, GapReason.EVICTED)],
        [(11, 1, A, 1, "restarted"), (12, 3, A, 1, "evicted")],
    ),
    "from where, and how many, nobody knows": (
        Position(10, B, 4),
        [Gap(0, None, GapReason.RESTARTED), Frames(1, [b"a"])],
        [(11, 1, A, 1, "restarted"), (12, 1, A, 1, b"a")],
    ),
    "overwritten at once": (
        Position(10, A, 4),
        [Frames(5, [b"a", b"b"], sound=0)],
        [(11, 2, A, 5, "skipped")],
    ),
    "overwritten at once, behind a hole": (
        Position(10, A, 3),
        [Frames(5, [b"a", b"b"], sound=0)],
        [(11, 1, A, 4, "evicted"), (12, 2, A, 5, "skipped")],
    ),
    "overwritten at once, of another source": (
        Position(10, B, 4),
        [Frames(5, [b"a", b"b"], sound=0)],
        [(11, 2, A, 5, "skipped")],
    ),
}


@pytest.mark.parametrize("case", MADE)
def test_the_records_of_what_a_source_gives(
    make: Callable[..., Any], case: str, caplog: pytest.LogCaptureFixture
) -> None:
    position, items, due = MADE[case]
    bridge = make(position)
    found = [
        record
        for item in items
        for record in sent(
            bridge,
            bridge._records_of_gap(item) if isinstance(item, Gap) else bridge._records_of(item),
        )
    ]
    assert found == due
    stats = bridge.stats()
    gaps = [each for each in due if isinstance(each[4], str)]
    unknown = [each for each in gaps if each[4] == "restarted"]
    assert sum(stats.gaps.values()) == len(gaps)
    assert stats.unknown_gaps == len(unknown)
    assert stats.lost == sum(each[1] for each in gaps if each not in unknown)
    for at, count, *_, kind in gaps:
        words = f"{count} message{'s' if count > 1 else ''}"
        if kind == "restarted":
            words = "an unknown number of messages"
        assert f"gap at stream id {at}: {words} lost ({kind})" in caplog.text


@pytest.mark.parametrize("name", ["pack", "window"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("8", TypeError, "is a number, not '8'"),
        (True, TypeError, "is a number, not True"),
        (0, ValueError, "=0: it must be 1 or more"),
    ],
)
def test_a_number_that_is_none_is_refused(
    name: str, value: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{name} ?{text}$"):
        Outbound("@source", "memory://", **{name: value})


def test_a_restart_that_was_to_be_stored_is_forgotten_where_another_bridge_has_stored_it(
    make: Callable[..., Any],
) -> None:
    bridge = make(Position(10, B, 4))
    assert sent(bridge, bridge._records_of_gap(Gap(5, None, GapReason.RESTARTED))) == []
    bridge._start_at(Position(11, A, 4))
    assert sent(bridge, bridge._records_of(Frames(5, [b"a"]))) == [(12, 1, A, 5, b"a")]


def test_what_is_overwritten_behind_some_records_is_a_gap(make: Callable[..., Any]) -> None:
    bridge = make(Position(10, A, 4), plain=True)
    found = sent(bridge, bridge._records_of(Frames(5, [b"a", b"b", b"c", b"d"], sound=2)))
    assert found == [
        (11, 1, A, 5, b"a"),
        (12, 1, A, 6, b"b"),
        (13, 2, A, 7, "skipped"),
    ]


def test_a_message_that_just_fits_is_stored_and_one_beyond_is_a_gap(
    make: Callable[..., Any],
) -> None:
    bridge = make(Position(10, A, 4))
    bridge._engine.store.largest = HEAD + 8
    found = sent(bridge, bridge._records_of(Frames(5, [b"12345678", b"123456789"])))
    assert found == [(11, 1, A, 5, b"12345678"), (12, 1, A, 6, "too-large")]


def test_a_second_conflict_soon_is_another_bridge_and_a_first_is_not(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(outbound, "time", SimpleNamespace(monotonic=lambda: now[0]))
    soon = 2 * LEAST

    async def settle(bridge: Any) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(Conflict("it ends elsewhere"))
        bridge._flying.append(future)
        bridge._unacked.append(Record(11, 1, A, 5, b"", "skipped", 1))
        await bridge._settle_one()

    async def whole() -> None:
        bridge = make(Position(10, A, 4))
        for wait, kind in ((0.0, Conflict), (soon, Conflict), (soon - 0.1, Standby)):
            now[0] += wait
            bridge._ground()
            bridge._unacked.clear()
            with pytest.raises(kind) as caught:
                await settle(bridge)
            assert type(caught.value) is kind
            assert len(bridge._unacked) == 1, "it is not stored"
        assert bridge.stats().conflicts == 3
        assert bridge.stats().records == 0

    asyncio.run(whole())


def test_an_answer_is_waited_for_and_in_the_end_no_more(make: Callable[..., Any]) -> None:
    async def whole() -> None:
        bridge = make(Position(10, A, 4))
        loop = asyncio.get_running_loop()
        bridge._source.ack = lambda *_: asyncio.sleep(0)
        bridge._unacked.extend(Record(11 + n, 1, A, 5 + n, b"", "skipped", 1) for n in range(2))
        bridge._flying.extend(loop.create_future() for _ in range(2))
        bridge._last_sign = time.monotonic()
        loop.call_later(0.01, bridge._flying[0].set_result, None)
        await bridge._settle_one()
        assert bridge.stats().records == 1
        assert bridge.stats().position == Position(11, A, 5)
        bridge._engine.patience.seconds = 0.01
        with pytest.raises(EngineError, match="with 1 records in flight"):
            while True:
                await bridge._settle_one()
        assert (len(bridge._flying), len(bridge._unacked)) == (1, 1)
        bridge._ground()

    asyncio.run(asyncio.wait_for(whole(), DEADLINE))


def test_what_the_engine_has_stored_is_counted_and_acked_at_the_source(
    make: Callable[..., Any],
) -> None:
    acked: list[tuple[int, int]] = []

    async def ack(server: int, number: int) -> None:
        acked.append((server, number))

    async def whole() -> None:
        bridge = make(Position(10, A, 4))
        bridge._source.ack = ack
        bridge._problem(EngineError("it was away"))
        bridge._engine.patience.more()
        waits = [bridge._waits.next() for _ in range(3)]
        frames = make_frames(5, [b"a", b"b", b"c"])
        bridge._unacked.extend(
            (
                Record(11, 3, A, 5, frames),
                Record(14, 2, A, 8, b"", "skipped", 2),
                Record(16, 1, 0, 1, make_frames(1, [b"d"])),  # of no source that is known
            )
        )
        for number in range(3):
            assert bool(bridge.problem) == (number == 0)
            bridge._flying.append(asyncio.get_running_loop().create_future())
            bridge._flying[0].set_result(None)
            await bridge._settle_one()
        stats = bridge.stats()
        assert (stats.records, stats.messages, stats.bytes) == (3, 4, len(frames) + HEAD + 8)
        assert (stats.outstanding, stats.outstanding_bytes) == (0, 0)
        assert stats.position == Position(16, 0, 1)
        assert bridge._acked_mark.number == 3
        assert bridge._stored_at > 0
        assert bridge._waits.next() < waits[1]
        assert bridge._engine.patience.seconds == LEAST
        assert acked == [(A, 7), (A, 9)]

    asyncio.run(whole())


def test_a_bridge_that_stands_by_says_so_and_lets_all_go(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "STANDBY", 0.001)
    closed = []

    async def close() -> None:
        closed.append(True)

    async def whole() -> None:
        bridge = make(Position(10, A, 4))
        await bridge._engine.open()
        bridge._source.close = close
        flying = asyncio.get_running_loop().create_future()
        receiving = bridge._receiving = asyncio.ensure_future(asyncio.Event().wait())
        bridge._flying.append(flying)
        bridge._unacked.append(Record(11, 1, A, 5, b"", "skipped", 1))
        bridge._known, bridge._conflict_at = True, time.monotonic()
        await bridge._stand_by(Standby("another bridge stores"))
        assert "another bridge stores" in bridge.problem
        assert flying.cancelled()
        assert receiving.cancelled()
        assert closed == [True]
        assert not bridge._flying
        assert not bridge._unacked
        assert bridge._source is bridge._receiving is None
        assert not bridge._known
        assert bridge._conflict_at < 0

    asyncio.run(asyncio.wait_for(whole(), DEADLINE))
