# SPDX-License-Identifier: Apache-2.0
"""Bridges behind a link on which a record, or a whole answer, takes longer than it may at first."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import pytest
from support.base import DEADLINE
from support.engines import NAMES, RealEngine, running
from support.servers import Server

from jumiks.bridge import EngineError, Outbound
from jumiks.bridge.engine import Create, make_engine
from jumiks.bridge.record import Record, make_frames

pytestmark = [pytest.mark.slow, pytest.mark.no_core]

FIRST, COUNT, SIZE = 100_000, 6, 1 << 18
PACE = 1 << 20
"""Bytes per second: a quarter of a second for a record, and a second for the fewest at first."""
CHUNK = 1 << 14
TOO_SHORT = 0.1
"""Seconds; a record takes more."""


async def stored(engine: RealEngine) -> None:
    one = make_engine(engine.url)
    await one.open(Create())
    mark = (await one.last()).mark
    for seq in range(FIRST, FIRST + COUNT):
        record = Record(seq, 1, 1, seq, make_frames(seq, [bytes(SIZE - 16)]))
        await (await one.append(mark, record))
        mark = one.after(mark, record)
    await one.close()


async def moved(reader: StreamReader, writer: StreamWriter, pace: float) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(len(data) / pace)
    writer.close()


@asynccontextmanager
async def link_to(engine: RealEngine, there: float, back: float) -> AsyncIterator[str]:
    """The stream's URL behind a link with these bytes per second in each direction."""

    links: set[asyncio.Task[None] | None] = set()

    async def link(reader: StreamReader, writer: StreamWriter) -> None:
        links.add(asyncio.current_task())
        ends = [writer]
        # A server's own callback takes a task that ends by its cancellation for a failure.
        with suppress(OSError, asyncio.CancelledError):
            behind, to = await asyncio.open_connection("127.0.0.1", engine.port)
            ends.append(to)
            await asyncio.gather(moved(reader, to, there), moved(behind, writer, back))
        for end in ends:
            end.close()
            with suppress(OSError):
                await end.wait_closed()

    proxy = await asyncio.start_server(link, "127.0.0.1", 0)
    scheme, _, name = NAMES[engine.kind]
    try:
        yield f"{scheme}://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/{name}"
    finally:
        proxy.close()
        open_ones = [each for each in links if each is not None]
        for each in open_ones:
            each.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


async def read_over_it(engine: RealEngine) -> list[int]:
    """The stream ids that are read, in the order in which they come."""
    found: list[int] = []
    async with link_to(engine, float("inf"), PACE) as url:
        one = make_engine(url)
        while len(found) < COUNT:
            with suppress(EngineError):
                await one.open()
                async with aclosing(one.read(FIRST + len(found))) as records:  # type: ignore[type-var]
                    async for record in records:
                        assert isinstance(record, Record)
                        found.append(record.seq)
                        if len(found) == COUNT:
                            break
        await one.close()
    return found


def test_an_answer_that_is_too_much_for_a_link_is_asked_for_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running("redis") as engine:
        asyncio.run(stored(engine))
        monkeypatch.setattr("jumiks.bridge.engine.LEAST", 0.6)
        monkeypatch.setattr("jumiks.bridge.engine.Patience.more", lambda _: None)
        found = asyncio.run(asyncio.wait_for(read_over_it(engine), DEADLINE))
    assert found == list(range(FIRST, FIRST + COUNT))


def test_a_record_that_takes_long_on_a_link_is_waited_for(
    engine: RealEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(stored(engine))
    monkeypatch.setattr("jumiks.bridge.engine.LEAST", TOO_SHORT)
    found = asyncio.run(asyncio.wait_for(read_over_it(engine), DEADLINE))
    assert found == list(range(FIRST, FIRST + COUNT))


def test_a_record_that_takes_long_to_an_engine_is_stored(
    engine: RealEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jumiks.bridge.engine.LEAST", TOO_SHORT)

    async def carry() -> int:
        async with link_to(engine, PACE, float("inf")) as url:
            bridge = Outbound(address, url, create=Create())
            task = asyncio.create_task(bridge.run())
            while bridge.stats().messages < 2 and not task.done():
                await asyncio.sleep(0.01)
            bridge.close()
            await task
            return bridge.stats().engine_reconnects

    with Server(address) as source:
        source.publish_many([bytes(SIZE), bytes(SIZE)])
        assert asyncio.run(asyncio.wait_for(carry(), DEADLINE)) > 0
