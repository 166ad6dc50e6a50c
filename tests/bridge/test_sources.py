# SPDX-License-Identifier: Apache-2.0
"""What the figures and the state of a bridge say while one of its ends is away."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from itertools import groupby
from typing import Any

import pytest
from support.base import DEADLINE, ROOT
from support.memory_engine import MemoryEngine, Store
from support.servers import AsyncServer

from jumiks import JumiksError
from jumiks._wire.handshake import FIRST_ID
from jumiks.bridge import Inbound, Outbound, inbound, life, outbound
from jumiks.bridge import source as source_end
from jumiks.bridge.figures import metrics
from jumiks.bridge.record import Record, make_frames


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """What both bridges have for an engine; they look again soon."""
    found = Store()
    for leg in (outbound, inbound):
        monkeypatch.setattr(leg, "make_engine", lambda *_: MemoryEngine(found))
    monkeypatch.setattr(life, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(outbound, "LOOK", 0.02)
    monkeypatch.setattr(source_end, "TOLD_AFTER", 0.01)
    return found


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def play(bridge: Outbound | Inbound, work: Callable[[], Awaitable[None]]) -> None:
    """Run a bridge while something happens."""

    async def whole() -> None:
        running = asyncio.create_task(bridge.run())
        await work()
        bridge.close()
        await running

    asyncio.run(asyncio.wait_for(whole(), DEADLINE))


def figure(bridge: Outbound | Inbound, name: str, **labels: str) -> float:
    (found,) = (each for each in metrics(bridge) if each.name == name)
    wanted = tuple({"stream": bridge.stream, **labels}.values())
    return dict(found.samples)[wanted]


def test_the_sources_lag_counts_what_the_bridge_has_not_received_yet(
    address: str, store: Store
) -> None:
    bridge = Outbound(address, "memory://")

    async def work() -> None:
        async with AsyncServer(address, share_log=True) as source:
            source.publish(b"before")
            await until(lambda: store.records and not bridge.stats().outstanding)
            await until(lambda: bridge.stats().source_lag == 0)
            store.down = True
            store.cut()
            for _ in range(10):
                source.publish_many([b"message"] * 100)
                await asyncio.sleep(0.002)
            await until(lambda: bridge.stats().state == "unreachable")
            assert figure(bridge, "jumiks_bridge_out_source_lag_messages") == 1000
            store.down = False
            await until(lambda: bridge.stats().messages == 1001)
            await until(lambda: bridge.stats().source_lag == 0)

    play(bridge, work)


def test_a_source_that_is_gone_is_told_and_its_return_is_counted(
    address: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumiks.bridge")
    bridge = Outbound(address, "memory://")

    async def work() -> None:
        for times in (1, 2):
            async with AsyncServer(address, share_log=True) as source:
                source.publish(b"message")
                await until(lambda: len(store.records) == times)  # noqa: B023
                await until(lambda: bridge.stats().state == "running")
                back = figure(bridge, "jumiks_bridge_out_reconnects", side="source")
                assert back == times - 1
            await until(lambda: "no server listens at this address" in bridge.stats().problem)
            assert bridge.stats().state == "source"
            assert figure(bridge, "jumiks_bridge_out_running") == 0

    play(bridge, work)
    told = [each.split(":")[0] for each in caplog.messages if "another source" not in each]
    waits = "waiting for the source"
    assert [each for each, _ in groupby(told)][-3:] == [waits, "running again", waits]
    assert f"{waits}: {address}: no server listens at this address" in caplog.messages[-1]


def test_a_source_that_is_back_and_silent_is_no_problem(address: str, store: Store) -> None:
    bridge = Outbound(address, "memory://")

    async def work() -> None:
        await until(lambda: bridge.stats().state == "source")
        async with AsyncServer(address, share_log=True):
            await until(lambda: bridge.stats().state == "running")
        await until(lambda: bridge.stats().state == "source")
        async with AsyncServer(address, share_log=True):
            await until(lambda: bridge.stats().state == "running")

    play(bridge, work)
    assert not store.records


def test_an_engine_that_went_back_is_told_of_the_loss_while_the_source_is_gone(
    address: str, store: Store
) -> None:
    bridge = Outbound(address, "memory://")

    async def work() -> None:
        async with AsyncServer(address, share_log=True) as source:
            for number in range(1, 5):
                source.publish(b"message")
                await until(lambda: bridge.stats().records == number)  # noqa: B023
        await until(lambda: bridge.stats().state == "source")
        store.roll_back(2)
        await until(lambda: bridge.stats().rewinds and len(store.records) == 3)

    play(bridge, work)
    assert [(each.seq, each.gap, each.lost) for each in store.records[2:]] == [  # type: ignore[union-attr]
        (FIRST_ID + 2, "evicted", 2)
    ]


def stored(store: Store) -> list[bytes]:
    records = [each for each in store.records if isinstance(each, Record)]
    return [each for record in records for each in record.payloads()]


async def together(*bridges: Outbound | Inbound, work: Callable[[], Awaitable[None]]) -> None:
    running = [asyncio.create_task(bridge.run()) for bridge in bridges]
    try:
        await work()
    finally:
        for bridge in bridges:
            bridge.close()
        await asyncio.gather(*running)


@pytest.mark.parametrize("later", [False, True], ids=["at the start", "later"])
def test_the_far_feed_of_a_stream_is_no_source_of_it(
    address: str, store: Store, later: bool
) -> None:
    inside = Inbound("memory://", address, share_log=True)
    bridge = Outbound(address, "memory://")
    store.records.append(Record(FIRST_ID, 1, 7, FIRST_ID, make_frames(FIRST_ID, [b"message"])))
    store.names.append("")

    async def whole() -> None:
        if later:
            async with AsyncServer(address, server_id=7, first_id=FIRST_ID + 1, share_log=True):
                running = asyncio.create_task(bridge.run())
                await until(lambda: bridge.stats().state == "running")

        async def serve() -> None:
            await until(lambda: inside.stats().server_id)
            server = inside.stats().server_id
            text = rf"^{address} \(server_id {server}\) is the far feed of memory://here/TICKS"
            with pytest.raises(JumiksError, match=text):
                await (running if later else bridge.run())

        await together(inside, work=serve)

    asyncio.run(asyncio.wait_for(whole(), DEADLINE))
    assert len(store.records) == 1


def test_another_source_waits_while_a_bridge_appends(
    address: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "STANDBY", 0.1)
    other_address = f"{address}-other"
    right, other = Outbound(address, "memory://"), Outbound(other_address, "memory://")

    async def work() -> None:
        async with (
            AsyncServer(address, share_log=True) as source,
            AsyncServer(other_address, share_log=True) as wrong,
        ):
            wrong.publish(b"wrong")
            source.publish(b"right")
            await until(lambda: store.records)
            running, looks = asyncio.create_task(other.run()), 0
            try:
                while looks < 8 or other.stats().state != "standby":
                    source.publish(b"right")
                    await asyncio.sleep(0.005)
                    looks += other.stats().state == "standby"
                assert wrong.server_id != source.server_id
                words = f"of source {source.server_id}, and {other_address} is {wrong.server_id}"
                assert words in other.stats().problem
                begin = len(store.records)
                while len(store.records) < begin + 100:
                    source.publish(b"right")
                    await asyncio.sleep(0.005)
                assert set(stored(store)) == {b"right"}
                await until(lambda: b"wrong" in stored(store))  # it is silent now
            finally:
                other.close()
                await running

    play(right, work)


def test_a_bridge_without_messages_sees_that_another_one_appends(
    address: str, store: Store
) -> None:
    bridge = Outbound(address, "memory://")

    async def work() -> None:
        async with AsyncServer(address, share_log=True) as source:
            source.publish(b"one")
            await until(lambda: bridge.stats().messages == 1)
            seq = store.records[-1].seq + 1  # type: ignore[union-attr]
            frames = make_frames(FIRST_ID, [b"of another source"])
            store.records.append(Record(seq, 1, source.server_id + 1, FIRST_ID, frames))
            store.names.append("")
            await until(lambda: bridge.stats().state == "standby")

    play(bridge, work)


def test_a_bridge_that_gets_its_stream_back_stores_nothing_twice(
    address: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "STANDBY", 0.02)
    other_address = f"{address}-other"
    right, other = Outbound(address, "memory://"), Outbound(other_address, "memory://")
    due: list[bytes] = []

    async def work() -> None:
        async with (
            AsyncServer(address, share_log=True) as source,
            AsyncServer(other_address, share_log=True) as wrong,
        ):
            for times in range(3):
                for name, server in ((b"right", source), (b"wrong", wrong)):
                    messages = [b"%b %d" % (name, 5 * times + n) for n in range(5)]
                    server.publish_many(messages)
                    due.extend(messages)
                    await until(lambda: len(stored(store)) >= len(due))

    asyncio.run(asyncio.wait_for(together(right, other, work=work), DEADLINE))
    assert stored(store) == due
    # What the right one may have had more was not known to the other one, once.
    assert (right.stats().gaps, other.stats().gaps) == ({}, {"restarted": 1})


@pytest.mark.parametrize("before", [0, 3], ids=["the first ones", "later ones"])
def test_a_bridge_that_heard_no_answer_before_it_lost_its_stream_stores_nothing_twice(
    address: str, store: Store, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr(outbound, "STANDBY", 0.02)
    other_address = f"{address}-other"
    right, other = Outbound(address, "memory://"), Outbound(other_address, "memory://")
    go_on, engine = asyncio.Event(), right._engine
    go_on.set()
    open_engine = engine.open

    async def opened(*words: Any) -> Any:
        await go_on.wait()  # the network is back
        return await open_engine(*words)

    monkeypatch.setattr(engine, "open", opened)

    async def work() -> None:
        async with (
            AsyncServer(address, share_log=True) as source,
            AsyncServer(other_address, share_log=True) as wrong,
        ):
            await until(lambda: right.stats().state == "running")
            source.publish_many([b"right"] * before)
            await until(lambda: right.stats().messages == before)
            store.lose_answers = True
            go_on.clear()
            source.publish(b"unheard")
            await until(lambda: b"unheard" in stored(store))
            store.lose_answers = False
            wrong.publish(b"wrong")
            running = asyncio.create_task(other.run())
            try:
                await until(lambda: b"wrong" in stored(store))
                go_on.set()
                source.publish(b"last")
                await until(lambda: b"last" in stored(store))
            finally:
                other.close()
                await running

    play(right, work)
    assert stored(store) == [*[b"right"] * before, b"unheard", b"wrong", b"last"]
    assert right.stats().gaps == {}


def test_a_bridge_that_was_paused_while_others_stored_its_source_stores_nothing_twice(
    address: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "STANDBY", 0.02)
    other_address = f"{address}-other"
    paused, twin, other = (
        Outbound(where, "memory://") for where in (address, address, other_address)
    )
    go_on = asyncio.Event()

    def pause(name: str) -> None:
        call = getattr(paused._engine, name)

        async def later(*words: Any) -> Any:
            await go_on.wait()
            return await call(*words)

        monkeypatch.setattr(paused._engine, name, later)

    async def work() -> None:
        async with (
            AsyncServer(address, share_log=True) as source,
            AsyncServer(other_address, share_log=True) as wrong,
        ):
            source.publish(b"0")
            await until(lambda: paused.stats().messages == 1)
            pause("last")
            pause("append")
            for bridge, server, message in (
                (twin, source, b"1"),
                (other, wrong, b"wrong"),
            ):
                server.publish(message)
                running = asyncio.create_task(bridge.run())
                await until(lambda: message in stored(store))  # noqa: B023
                bridge.close()
                await running
            go_on.set()
            source.publish(b"2")
            await until(lambda: b"2" in stored(store))

    play(paused, work)
    assert stored(store) == [b"0", b"1", b"wrong", b"2"]
    assert paused.stats().gaps == {}


def test_a_bridge_goes_on_at_once_where_its_source_restarts(
    address: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "STANDBY", 10 * DEADLINE)
    bridge = Outbound(address, "memory://")

    async def work() -> None:
        for times in range(1, 4):
            async with AsyncServer(address, share_log=True) as source:
                if times != 2:  # nothing came of the second one
                    source.publish(b"%d" % times)
                await until(lambda: bridge.stats().state == "running")
                await until(lambda: len(stored(store)) == (times + 1) // 2)  # noqa: B023
            await until(lambda: bridge.stats().state == "source")

    play(bridge, work)


def test_what_is_wrong_with_the_engine_is_told_before_the_source(store: Store) -> None:
    bridge: Any = Outbound("@nowhere", "memory://")
    for state, problem in (("unreachable", "gone"), ("standby", "another bridge")):
        bridge.state, bridge.problem = state, problem
        for away in (OSError("no server"), None):
            bridge._source_is(away)
            assert (bridge.state, bridge.problem) == (state, problem)


def test_a_bridge_in_runs_once_it_listens(address: str, store: Store) -> None:
    bridge: Any = Inbound("memory://", address, history=1, share_log=True)
    listen, go_on = bridge._far.listen, asyncio.Event()

    async def late(*words: Any) -> None:
        await go_on.wait()
        await listen(*words)

    bridge._far.listen = late

    async def work() -> None:
        await until(lambda: store.connections and bridge.state == "running")
        assert bridge.stats().state == "filling"
        assert figure(bridge, "jumiks_bridge_in_running") == 0
        go_on.set()
        await until(lambda: bridge.stats().server_id)
        assert bridge.stats().state == "running"

    play(bridge, work)


def test_the_page_has_all_figures_and_no_others(store: Store) -> None:
    page = (ROOT / "docs" / "bridge.md").read_text()
    for leg, bridge in (
        ("out", Outbound("@nowhere", "memory://")),
        ("in", Inbound("memory://", "@nowhere")),
    ):
        prefix = f"jumiks_bridge_{leg}_"
        rows = page.partition(f"| figure, after `{prefix}` |")[2].partition("\n\n")[0]
        first = " ".join(row.split("|")[1] for row in rows.splitlines() if row)
        told = re.findall("`([a-z_]+)", first)
        figures = list(metrics(bridge))
        names = {each.name + "_total" * (each.kind == "counter") for each in figures}
        assert {prefix + each for each in told} == names
