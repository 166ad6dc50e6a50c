# SPDX-License-Identifier: Apache-2.0
"""What a bridge asks of Redis, and what others do to its stream."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest
from support.base import wait_until
from support.engines import RealEngine, running

from jumiks.bridge.engine import Create, Engine, Mark, make_engine
from jumiks.bridge.record import Record, make_frames

pytestmark = pytest.mark.no_core

FIRST = 100_000
SIZE = 1 << 12


@pytest.fixture
def redis() -> Iterator[RealEngine]:
    with running("redis") as found:
        yield found


def said(engine: RealEngine, *words: object) -> bytes:
    """What Redis answers to a command, by a connection of our own."""
    with socket.create_connection(("127.0.0.1", engine.port), 5) as sock:
        sock.sendall(" ".join(map(str, words)).encode() + b"\r\n")
        return sock.recv(1 << 16)


@asynccontextmanager
async def opened(url: str, max_bytes: int = 0) -> AsyncIterator[Engine]:
    one = make_engine(url)
    await one.open(Create(max_bytes=max_bytes))
    try:
        yield one
    finally:
        await one.close()


async def append(one: Engine, seqs: Sequence[int]) -> None:
    mark: Mark = (await one.last()).mark
    for seq in seqs:
        record = Record(seq, 1, 1, seq, make_frames(seq, [bytes(SIZE - 16)]))
        await (await one.append(mark, record))
        mark = one.after(mark, record)


async def read(one: Engine, upto: int) -> list[int]:
    found = []
    async with aclosing(one.read(0)) as records:  # type: ignore[type-var]
        async for record in records:
            assert isinstance(record, Record)
            found.append(record.seq)
            if record.seq == upto:
                return found
    raise AssertionError(found)


def test_more_is_asked_for_before_what_came_is_used(redis: RealEngine) -> None:
    async def use() -> None:
        async with opened(redis.url) as one:
            await append(one, range(FIRST, FIRST + 3))
            async with aclosing(one.read(0)) as records:  # type: ignore[type-var]
                await anext(records)
                # The event loop does nothing meanwhile.
                wait_until(lambda: b"cmdstat_xread:" in said(redis, "INFO commandstats"))

    asyncio.run(use())


def test_a_stream_is_not_walked_through_to_know_its_size(redis: RealEngine) -> None:
    async def look() -> tuple[int, int]:
        async with opened(redis.url) as one:
            await append(one, range(FIRST, FIRST + 5))
            info = await one.info()
            return info.records, info.bytes

    assert asyncio.run(look()) == (5, 5 * SIZE)
    assert b"cmdstat_memory" not in said(redis, "INFO commandstats")


def test_a_stream_that_somebody_has_trimmed_keeps_its_bytes_from_then_on(
    redis: RealEngine,
) -> None:
    async def trim() -> list[int]:
        async with opened(redis.url, 8 * SIZE) as one:
            await append(one, range(FIRST, FIRST + 8))
            assert said(redis, "XTRIM ticks MAXLEN 2") == b":6\r\n"
            await append(one, range(FIRST + 8, FIRST + 20))
            return await read(one, FIRST + 19)

    assert asyncio.run(trim()) == list(range(FIRST + 12, FIRST + 20))


def test_a_stream_whose_records_somebody_has_all_deleted_goes_on(redis: RealEngine) -> None:
    async def trim() -> list[int]:
        async with opened(redis.url, 4 * SIZE) as one:
            await append(one, range(FIRST, FIRST + 3))
            assert said(redis, "XTRIM ticks MAXLEN 0") == b":3\r\n"
            await append(one, range(FIRST + 3, FIRST + 9))
            assert (await one.info()).bytes == 4 * SIZE
            return await read(one, FIRST + 8)

    assert asyncio.run(trim()) == list(range(FIRST + 5, FIRST + 9))
