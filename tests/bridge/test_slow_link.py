# SPDX-License-Identifier: Apache-2.0
"""A bridge in behind a link on which a whole answer of Redis takes longer than it may."""

import asyncio
from asyncio import StreamReader, StreamWriter
from contextlib import aclosing, suppress

import pytest
from support.base import DEADLINE
from support.engines import RealEngine, running

from jumiks.bridge import EngineError
from jumiks.bridge.engine import Create, make_engine
from jumiks.bridge.record import Record, make_frames

pytestmark = [pytest.mark.slow, pytest.mark.no_core]

FIRST, COUNT, SIZE = 100_000, 6, 1 << 18
PACE = 1 << 20
"""Bytes per second: a quarter of a second for a record, and a second for the fewest at first."""
CHUNK = 1 << 16


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


async def read_over_it(engine: RealEngine) -> list[int]:
    """The stream ids that are read, in the order in which they come."""

    async def link(reader: StreamReader, writer: StreamWriter) -> None:
        behind, to = await asyncio.open_connection("127.0.0.1", engine.port)
        await asyncio.gather(moved(reader, to, float("inf")), moved(behind, writer, PACE))

    proxy = await asyncio.start_server(link, "127.0.0.1", 0)
    one = make_engine(f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/ticks")
    found: list[int] = []
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
    proxy.close()
    await proxy.wait_closed()
    return found


def test_an_answer_that_is_too_much_for_a_link_is_asked_for_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running("redis") as engine:
        asyncio.run(stored(engine))
        monkeypatch.setattr("jumiks.bridge.redis_streams.TIMEOUT", 0.6)
        found = asyncio.run(asyncio.wait_for(read_over_it(engine), DEADLINE))
    assert found == list(range(FIRST, FIRST + COUNT))
