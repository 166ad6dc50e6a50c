# SPDX-License-Identifier: Apache-2.0
"""What a bridge in makes of the records it is given, with an engine in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.base import DEADLINE
from support.memory_engine import MemoryEngine, Store

from jumiks import AsyncClient, Gap
from jumiks._options import LOG_SIZE
from jumiks._server import returning
from jumiks.bridge import Inbound, inbound, life
from jumiks.bridge.far import Far
from jumiks.bridge.record import Record, Unreadable, make_frames

FIRST = 100_000
A, B = 7, 8
"""Sources."""


def data(seq: int, count: int, server: int = A, first: int = 0, mark: bytes = b"") -> Record:
    """A record of messages that say their stream ids."""
    first = first or seq
    words = [b"%d%b" % (each, mark) for each in range(seq, seq + count)]
    return Record(seq, count, server, first, make_frames(first, words))


class Scene:
    """A bridge in that runs, and a client of it that notes what it is given."""

    history = 1
    reconnect = True

    def __init__(self, address: str, store: Store) -> None:
        self.store = store
        self.bridge = Inbound(
            "redis://here/ticks", address, history=self.history, share_log=True, on_lag="block"
        )
        self.address = address
        self.got: list[bytes | Gap] = []

    def add(self, *records: Record | Unreadable) -> None:
        self.store.records.extend(records)
        self.store.names.extend("" for _ in records)
        self.store.change()

    async def read(self) -> None:
        while not self.bridge.stats().server_id:
            await asyncio.sleep(0.002)
        async with AsyncClient(
            self.address, start="oldest", on_gap="yield", reconnect=self.reconnect
        ) as client:
            async for item in client:
                self.got.append(item)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.002)

    def messages(self) -> list[int]:
        return [int(each) for each in self.got if isinstance(each, bytes)]

    def gaps(self) -> list[tuple[int, int | None]]:
        return [(each.first, each.last) for each in self.got if isinstance(each, Gap)]


@pytest.fixture
def play(address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what runs a scene, with the records that are there before it."""
    pytest.importorskip("redis", reason="a URL needs a client, though no engine is asked")
    monkeypatch.setattr(life, "FIRST_WAIT", 0.001)

    def run(work: Callable[[Scene], Awaitable[object]], *before: Record | Unreadable) -> Scene:
        async def whole() -> Scene:
            store = Store()
            monkeypatch.setattr(inbound, "make_engine", lambda *_: MemoryEngine(store))
            scene = Scene(address, store)
            scene.add(*before)
            running = asyncio.create_task(scene.bridge.run())
            reading = asyncio.create_task(scene.read())
            try:
                await work(scene)
            finally:
                reading.cancel()
                scene.bridge.close()
                await asyncio.gather(running, reading, return_exceptions=True)
            return scene

        return asyncio.run(asyncio.wait_for(whole(), DEADLINE))

    return run


def test_before_it_serves_it_is_no_server_of_anybody(play: Any) -> None:
    async def work(scene: Scene) -> None:
        assert scene.bridge.stats().server_id == 0
        assert scene.bridge.stats().clients == 0
        await scene.until(lambda: scene.bridge.stats().server_id)
        assert scene.bridge.stats().server_id > 1

    play(work, data(FIRST, 5))


def test_a_hole_in_the_ids_is_a_gap(play: Any) -> None:
    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        scene.add(data(FIRST + 8, 2))
        await scene.until(lambda: len(scene.messages()) == 7)

    scene = play(work, data(FIRST, 5))
    assert scene.messages() == [*range(FIRST, FIRST + 5), FIRST + 8, FIRST + 9]
    assert scene.gaps() == [(FIRST + 5, FIRST + 7)]
    assert scene.bridge.stats().gaps == {"evicted": 1}
    assert scene.bridge.stats().lost == 3


def test_several_gaps_in_a_row_lose_nothing_between_them(
    play: Any, caplog: pytest.LogCaptureFixture
) -> None:
    begins = [FIRST + 10 * n for n in range(1, 6)]

    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        scene.add(*(data(first, 2) for first in begins))
        await scene.until(lambda: begins[-1] + 1 in scene.messages())

    scene = play(work, data(FIRST, 5))
    assert scene.messages() == [
        *range(FIRST, FIRST + 5),
        *(each for first in begins for each in (first, first + 1)),
    ]
    assert scene.gaps() == [
        (FIRST + 5, FIRST + 9),
        *((first + 2, first + 9) for first in begins[:-1]),
    ]
    assert returning.not_back("reconnect") not in caplog.text


def test_a_log_full_behind_a_gap_loses_nothing(play: Any) -> None:
    size, count = 1 << 14, 2 * LOG_SIZE >> 14

    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        for seq in range(FIRST + 6, FIRST + 6 + count):
            words = [b"%d" % seq + b" " * size]
            scene.add(Record(seq, 1, A, seq, make_frames(seq, words)))
        await scene.until(lambda: FIRST + 5 + count in scene.messages())

    scene = play(work, data(FIRST, 5))
    assert scene.messages() == [*range(FIRST, FIRST + 5), *range(FIRST + 6, FIRST + 6 + count)]
    assert scene.gaps() == [(FIRST + 5, FIRST + 5)]


def test_who_has_gone_for_good_is_waited_for_once(
    play: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(returning, "PATIENCE", 0.2)
    monkeypatch.setattr(Scene, "reconnect", False)

    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        scene.add(*(data(FIRST + 10 * n, 2) for n in range(1, 6)))
        await scene.until(lambda: scene.bridge.stats().next_id == FIRST + 52)

    play(work, data(FIRST, 5))
    assert caplog.text.count("not all clients came back") == 1


def test_messages_that_come_again_are_dropped_by_their_ids(play: Any) -> None:
    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        # The engine went back, and was filled again in other packs.
        scene.store.roll_back(1)
        scene.add(data(FIRST, 3), data(FIRST + 3, 4))
        await scene.until(lambda: len(scene.messages()) == 7)

    scene = play(work, data(FIRST, 5))
    assert scene.messages() == list(range(FIRST, FIRST + 7))
    assert scene.gaps() == []
    assert scene.bridge.stats().restarts == 0


def test_the_same_ids_of_another_source_are_another_feed(play: Any) -> None:
    servers = []

    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        servers.append(scene.bridge.stats().server_id)
        scene.store.roll_back(1)
        scene.add(data(FIRST, 2), Record(FIRST + 2, 1, B, FIRST, b"", "restarted", None))
        scene.add(data(FIRST + 3, 4, B, FIRST))
        await scene.until(lambda: FIRST + 6 in scene.messages())
        servers.append(scene.bridge.stats().server_id)

    scene = play(work, data(FIRST, 5))
    # Ids 100003 and 100004 were messages of A that are lost now; those of B must not be taken for
    # them.
    assert servers[0] != servers[1]
    assert scene.messages()[-4:] == [FIRST + 3, FIRST + 4, FIRST + 5, FIRST + 6]
    assert scene.bridge.stats().restarts == 1


def test_a_gap_of_unknown_size_takes_one_id_and_a_mark_none(play: Any) -> None:
    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        scene.add(Record(FIRST + 5, 0, A, FIRST + 5))
        scene.add(Record(FIRST + 5, 1, B, FIRST, b"", "restarted", None))
        scene.add(Record(FIRST + 6, 0, B, FIRST), data(FIRST + 6, 3, B, FIRST))
        await scene.until(lambda: len(scene.messages()) == 8)

    scene = play(work, data(FIRST, 5))
    assert scene.gaps() == [(FIRST + 5, FIRST + 5)]
    assert scene.bridge.stats().unknown_gaps == 1
    assert scene.bridge.stats().gaps == {"restarted": 1}


def test_a_record_without_headers_is_counted_and_its_ids_are_told(play: Any) -> None:
    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        scene.add(Unreadable("nonsense"), data(FIRST + 7, 2))
        await scene.until(lambda: len(scene.messages()) == 7)

    scene = play(work, data(FIRST, 5))
    assert scene.gaps() == [(FIRST + 5, FIRST + 6)]
    assert scene.bridge.stats().gaps == {"unreadable": 1, "evicted": 1}


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(Unreadable("nonsense"), id="nonsense"),
        pytest.param(data(FIRST + 1, 2), id="ids that were here"),
        pytest.param(Record(FIRST, 3, A, FIRST, b"", "evicted", 3), id="a gap that was here"),
        pytest.param(Record(FIRST + 5, 0, A, FIRST + 5), id="a mark"),
    ],
)
@pytest.mark.parametrize("before", [True, False], ids=["in the history", "later"])
def test_a_record_of_somebody_else_takes_nothing_away(
    play: Any, hostile: Record | Unreadable, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def back(_: MemoryEngine, __: int) -> int:
        return 0

    monkeypatch.setattr(MemoryEngine, "back", back)

    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == (7 if before else 5))
        if not before:
            scene.add(hostile, data(FIRST + 5, 2))
        scene.add(data(FIRST + 7, 2))
        await scene.until(lambda: FIRST + 8 in scene.messages())

    first = [data(FIRST, 5), *([hostile, data(FIRST + 5, 2)] if before else [])]
    scene = play(work, *first)
    assert scene.messages() == list(range(FIRST, FIRST + 9))
    assert scene.bridge.stats().restarts == 0


def test_ids_that_jump_back_are_told(play: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        scene.add(data(FIRST + 2, 2), data(FIRST + 5, 1))
        await scene.until(lambda: len(scene.messages()) == 6)

    scene = play(work, data(FIRST, 5))
    assert scene.messages() == list(range(FIRST, FIRST + 6))
    assert "stream ids 100002 to 100003 come behind 100004" in caplog.text


def test_a_message_that_the_far_log_does_not_take_is_a_gap(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(scene: Scene) -> None:
        await scene.until(lambda: len(scene.messages()) == 5)
        words = [b"%d" % (FIRST + 5), bytes(LOG_SIZE), b"%d" % (FIRST + 7)]
        scene.add(Record(FIRST + 5, 3, A, FIRST + 5, make_frames(FIRST + 5, words)))
        await scene.until(lambda: len(scene.messages()) == 7)

    scene = play(work, data(FIRST, 5))
    assert scene.messages() == [*range(FIRST, FIRST + 6), FIRST + 7]
    assert scene.gaps() == [(FIRST + 6, FIRST + 6)]
    assert scene.bridge.stats().gaps == {"too-large": 1}


MARK = Record(FIRST + 3, 0, A, FIRST + 3)
GAP = Record(FIRST + 3, 2, A, FIRST + 3, b"", "evicted", 2)
THREE = data(FIRST, 3)

BEGUN: dict[str, tuple[list[Record | Unreadable], int, int]] = {
    "nothing": ([], FIRST, FIRST),
    "one message": ([data(FIRST, 1)], FIRST, FIRST + 1),
    "all records, and the last has one message": ([THREE, data(FIRST + 3, 1)], FIRST, FIRST + 4),
    "a mark alone": ([MARK], FIRST + 3, FIRST + 3),
    "a mark behind": ([THREE, MARK], FIRST, FIRST + 3),
    "a mark before": ([MARK, data(FIRST + 3, 1)], FIRST + 3, FIRST + 4),
    "a mark between": ([THREE, MARK, data(FIRST + 3, 1)], FIRST, FIRST + 4),
    "a gap alone": ([GAP], FIRST + 5, FIRST + 5),
    "a gap behind": ([THREE, GAP], FIRST + 5, FIRST + 5),
    "a gap, and one message": ([THREE, GAP, data(FIRST + 5, 1)], FIRST + 5, FIRST + 6),
    "a hole, and one message": ([THREE, data(FIRST + 4, 1)], FIRST + 4, FIRST + 5),
    "a hole, and two records": (
        [THREE, data(FIRST + 4, 1), data(FIRST + 5, 1)],
        FIRST + 4,
        FIRST + 6,
    ),
    "an unreadable one, and one message": (
        [THREE, Unreadable("nonsense", FIRST + 3, FIRST + 3), data(FIRST + 4, 1)],
        FIRST + 4,
        FIRST + 5,
    ),
}


@pytest.mark.parametrize("case", BEGUN)
def test_what_is_there_is_in_the_log_before_anybody_can_connect(
    play: Any, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    records, first, end = BEGUN[case]
    begun: list[tuple[int, int]] = []
    listen = Far.listen

    async def noted(far: Far, server_id: int, first_id: int, history: Any) -> None:
        await listen(far, server_id, first_id, history)
        begun.append((first_id, far.next_id))

    async def work(scene: Scene) -> None:
        await scene.until(lambda: begun)

    monkeypatch.setattr(Far, "listen", noted)
    monkeypatch.setattr(Scene, "history", 1 << 20)
    scene = play(work, *records)
    assert begun == [(first, end)]
    assert scene.bridge.stats().messages == end - first
    assert scene.bridge.stats().lost == 0
