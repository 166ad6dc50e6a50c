# SPDX-License-Identifier: Apache-2.0
"""The outbound bridge against a model: whatever fails, the stream has each message once or a gap.

The three that matter are the source's epoch, the engine's end and the bridge's position. Each may
be lost, in any order.
"""

import asyncio
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.base import DEADLINE
from support.memory_engine import MemoryEngine, Store
from support.servers import AsyncServer

from jumiks.bridge import Outbound, life, outbound
from jumiks.bridge.record import Record

pytestmark = pytest.mark.slow

FIRST = 100_000
LOG = 1 << 20
"""More than is ever published, so that no gap is the log's."""


class Bridges(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.loop = asyncio.new_event_loop()
        self.patch.setattr(life, "FIRST_WAIT", 0.001)
        self.patch.setattr(life, "LONGEST_WAIT", 0.01)
        self.patch.setattr(outbound, "STANDBY", 0.02)
        self.patch.setattr(outbound, "LOOK", 0.01)
        self.address = f"@jumiks-model-{id(self)}"
        self.epoch = 0
        self.epochs: dict[int, int] = {}
        """By the source's server_id."""
        self.source: Any = None
        self.published: dict[int, int] = {}
        """How many messages each epoch has published."""
        self.exact = True
        """Whether nothing has been lost that nobody can know of."""
        self.tasks: list[asyncio.Task[None]] = []
        self.bridges: list[Outbound] = []
        self.store = self.run(self.make())
        self.patch.setattr(outbound, "make_engine", lambda *_: MemoryEngine(self.store))
        self.start_source()
        self.start_bridge()

    def run(self, what: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(what, 3 * DEADLINE))

    async def make(self) -> Store:
        return Store()

    # ---- what is there ----

    def start_source(self) -> None:
        async def start() -> Any:
            return await AsyncServer(self.address, share_log=True, log_size=LOG, on_lag="block")

        self.epoch += 1
        self.published[self.epoch] = 0
        self.source = self.run(start())
        self.epochs[self.source.server_id] = self.epoch

    def start_bridge(self) -> None:
        bridge = Outbound(self.address, "memory://", pack=1000, window=4)
        self.bridges.append(bridge)
        self.tasks.append(self.loop.create_task(bridge.run()))

    def end(self) -> Any:
        last = self.store.records[-1] if self.store.records else None
        assert last is None or isinstance(last, Record)
        return None if last is None else last.end

    def is_there(self) -> bool:
        end, count = self.end(), self.published[self.epoch]
        if not count:
            return True
        return end is not None and end[1:] == (self.source.server_id, FIRST + count - 1)

    def settle(self) -> None:
        async def wait() -> None:
            while not self.is_there():
                for task in self.tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.001)

        assert self.bridges
        self.run(wait())

    # ---- what happens ----

    @rule(count=strategies.integers(1, 60), size=strategies.integers(0, 300))
    def publish(self, count: int, size: int) -> None:
        async def publish() -> None:
            begin = self.published[self.epoch]
            await self.source.publish_many_wait(
                b"%d %d " % (self.epoch, begin + each) + bytes(size) for each in range(count)
            )

        self.run(publish())
        self.published[self.epoch] += count

    @rule()
    def wait_until_all_is_there(self) -> None:
        if self.bridges and not self.store.down:
            self.settle()

    @rule(seconds=strategies.sampled_from([0, 0.002]))
    def a_little_time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(lost=strategies.booleans())
    def the_engine_loses_an_answer_or_an_append(self, lost: bool) -> None:
        async def happen() -> None:
            self.store.lose_appends = lost
            self.store.lose_answers = not lost
            await asyncio.sleep(0.003)
            self.store.lose_appends = self.store.lose_answers = False

        self.run(happen())

    @rule()
    def connections_to_the_engine_end(self) -> None:
        self.store.cut()

    @rule(records=strategies.integers(1, 5), cut=strategies.booleans())
    def the_engine_rolls_back(self, records: int, cut: bool) -> None:
        self.exact = False
        self.store.roll_back(records, cut)

    @rule()
    def the_stream_is_deleted(self) -> None:
        self.exact = False
        self.store.delete()

    @precondition(lambda self: self.bridges)
    @rule()
    def the_bridge_is_killed(self) -> None:
        # As if its process were gone: nothing of it is flushed, and another one begins.
        async def kill() -> None:
            self.store.cut()
            for bridge in self.bridges:
                bridge._engine = MemoryEngine(self.store)  # not open: what it appends is lost
                bridge.close()
            await asyncio.gather(*self.tasks)

        self.run(kill())
        self.bridges.clear()
        self.tasks.clear()

    @precondition(lambda self: len(self.bridges) < 2)
    @rule()
    def a_bridge_starts(self) -> None:
        self.start_bridge()

    @rule()
    def the_source_restarts(self) -> None:
        self.exact = False
        self.run(self.source.close(0))
        self.start_source()

    # ---- what holds ----

    @invariant()
    def the_stream_has_no_hole_and_nothing_twice(self) -> None:
        due, where = 0, (0, -1)  # the stream id, and the epoch and number of the last message
        for record in self.store.records:
            assert isinstance(record, Record)
            assert due in (0, record.seq), "stream ids jump"
            due = record.last + 1
            epoch = self.epochs[record.server]
            told = record.lost is None or (record.gap and record.first < FIRST)
            if epoch != where[0] != 0 and not told:
                assert where[1] == self.published[where[0]] - 1, "the end of a source is missing"
            if record.gap:
                # One that the engine lost, and that nobody has any more, may be of several sources.
                if record.lost is not None and epoch == where[0] and record.first >= FIRST:
                    assert record.first == FIRST + where[1] + 1, "a gap does not begin at its place"
                where = (epoch, record.end.source - FIRST)
            for message in record.payloads():
                assert message.startswith(b"%d " % epoch), "the record names another source"
                number = int(message.split(b" ")[1])
                if epoch == where[0]:
                    assert number == where[1] + 1, "a message came twice, or is missing untold"
                elif where != (0, -1):
                    assert epoch > where[0]
                    assert number == 0, "the beginning of a source is missing untold"
                where = (epoch, number)

    @invariant()
    def nothing_is_lost_unless_somebody_lost_it(self) -> None:
        if self.exact:
            assert [
                each for each in self.store.records if isinstance(each, Record) and each.gap
            ] == []

    def teardown(self) -> None:
        try:
            if not self.bridges:
                self.start_bridge()
            self.settle()
            self.the_stream_has_no_hole_and_nothing_twice()
            self.nothing_is_lost_unless_somebody_lost_it()
        finally:
            for bridge in self.bridges:
                bridge.close()
            self.run(asyncio.gather(*self.tasks, return_exceptions=True))
            self.run(self.source.close(0))
            self.loop.close()
            self.patch.undo()


TestBridges = Bridges.TestCase
TestBridges.settings = hypothesis.settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
