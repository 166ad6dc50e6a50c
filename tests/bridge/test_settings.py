# SPDX-License-Identifier: Apache-2.0
"""What a bridge out is told of records, sizes and streams, with real engines."""

import asyncio
from contextlib import aclosing

import pytest
from support.base import DEADLINE, wait_until
from support.bridges import Inside, Reader, message
from support.engines import RealEngine, running
from support.servers import Server

from jumiks import JumiksError
from jumiks.bridge import Create, Inbound, Outbound
from jumiks.bridge.engine import StreamInfo, make_engine
from jumiks.bridge.look import Look, look
from jumiks.bridge.record import Record

pytestmark = pytest.mark.slow

FIRST = 100_000


def looked_at(engine: RealEngine) -> Look:
    return asyncio.run(look(engine.url))


def stored(engine: RealEngine, count: int) -> list[Record]:
    """The first records of the stream."""

    async def read() -> list[Record]:
        found: list[Record] = []
        one = make_engine(engine.url)
        await one.open()
        try:
            async with aclosing(one.read(0)) as records:  # type: ignore[type-var]
                async for record in records:
                    assert isinstance(record, Record)
                    found.append(record)
                    if len(found) == count:
                        break
        finally:
            await one.close()
        return found

    return asyncio.run(asyncio.wait_for(read(), DEADLINE))


def test_plain_records_are_payloads_that_anybody_reads(engine: RealEngine, address: str) -> None:
    messages = [message(0), b"", message(1, 9), message(2, 1000)]
    with Server(address, share_log=True) as source:
        source.publish_many(messages)
        out = Outbound(address, engine.url, create=Create(), plain=True)
        with Inside(out):
            wait_until(lambda: out.stats().messages == len(messages))
            assert out.stats().records == len(messages)
        records = stored(engine, len(messages))
        assert [record.body for record in records] == messages
        assert [record.seq for record in records] == list(range(FIRST, FIRST + len(messages)))
        with Inside(Inbound(engine.url, f"{address}-far", share_log=True)) as bridge:
            wait_until(lambda: bridge.bridge.stats().messages == len(messages))


def test_a_message_that_is_too_large_may_end_the_bridge(
    engine: RealEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(address, share_log=True, max_message=1 << 21) as source:
        source.publish_many([message(0), bytes((1 << 20) + 1), message(1)])
        out = Outbound(address, engine.url, create=Create(), on_too_large="stop")
        monkeypatch.setattr(type(out._engine), "largest", 1 << 20)
        with Inside(out) as bridge:
            problem = bridge.join()
        assert isinstance(problem, JumiksError)
        assert f"message {FIRST + 1} of {(1 << 20) + 1} bytes is too large" in str(problem)
        # What was before it is stored, and nothing behind it.
        position = looked_at(engine).position
        assert position is not None
        assert position.stream == FIRST


def test_marks_keep_the_position_while_a_source_is_silent(address: str) -> None:
    second = 1_000_000_000
    with running("jetstream") as engine, Server(address, share_log=True) as source:
        engine.make_stream({"max_age": second, "duplicate_window": second})
        source.publish_many([message(each) for each in range(10)])
        out = Outbound(address, engine.url)
        with Inside(out):
            # The messages are too old by now, so the stream has marks alone.
            wait_until(lambda: out.stats().records > 4)
        assert out.stats().messages == 10
        assert stored(engine, 1)[0].count == 0
        source.publish_many([message(each) for each in range(10, 20)])
        again = Outbound(address, engine.url)
        with Inside(again):
            wait_until(lambda: again.stats().messages)
        assert again.stats().messages == 10
        assert again.stats().gaps == {}
        position = looked_at(engine).position
        assert position is not None
        assert position.stream == FIRST + 19


def has_stored(out: Outbound, number: int) -> bool:
    position = out.stats().position
    return position is not None and position.stream == number


def bytes_of(info: StreamInfo) -> int:
    assert info.records
    return info.bytes


def test_the_oldest_records_go_where_max_bytes_says_so(engine: RealEngine, address: str) -> None:
    count, size, limit = 8000, 1000, 1 << 20
    with Server(address, share_log=True) as source:
        source.publish_many([message(each, size) for each in range(count // 2)])
        # Without a limit first: what is there by then counts too.
        out = Outbound(address, engine.url, create=Create(max_bytes=0))
        if engine.kind == "jetstream":
            out = Outbound(address, engine.url, create=Create(max_bytes=limit))
        with Inside(out):
            wait_until(lambda: has_stored(out, FIRST + count // 2 - 1))
        source.publish_many([message(each, size) for each in range(count // 2, count)])
        out = Outbound(address, engine.url, create=Create(max_bytes=limit))
        with Inside(out):
            wait_until(lambda: has_stored(out, FIRST + count - 1))
        assert out.stats().gaps == {}
        assert limit // 2 < bytes_of(looked_at(engine).info) < 1.5 * limit
        far = f"{address}-far"
        with Inside(Inbound(engine.url, far, share_log=True)), Reader(far) as reader:
            wait_until(lambda: reader.numbers[-1:] == [count - 1])
            assert reader.numbers == list(range(count - len(reader.numbers), count))
            assert limit // 2 < len(reader.numbers) * size < limit
