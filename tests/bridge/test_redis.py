# SPDX-License-Identifier: Apache-2.0
"""What a bridge asks of Redis, and what others do to its stream."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest
from support.base import wait_until
from support.engines import RealEngine, running
from support.servers import Server

from jumiks.bridge import EngineError, Outbound
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


def test_no_connection_is_silent_while_the_source_is(redis: RealEngine) -> None:
    # Redis ends one that is silent for longer than its setting `timeout`.
    async def look() -> set[str]:
        async with opened(redis.url) as one:
            await append(one, [FIRST])
            await one.last()
            clients = said(redis, "CLIENT LIST").decode()
            return set(re.findall(r"name=jumiks-bridge .* cmd=(\w+)", clients))

    assert asyncio.run(look()) == {"hmget", "ping"}


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


async def carried(bridge: Outbound, then: Callable[[], bool]) -> None:
    """Run a bridge until something is so."""
    task = asyncio.create_task(bridge.run())
    while not (task.done() or then()):
        await asyncio.sleep(0.01)
    bridge.close()
    await task


def test_an_entry_of_somebody_else_is_a_state_that_says_what_to_do(
    redis: RealEngine, address: str
) -> None:
    async def run() -> list[int]:
        bridge = Outbound(address, redis.url, create=Create())
        done: list[str] = []

        def is_done() -> bool:
            stats = bridge.stats()
            if stats.messages == 1 and not done:
                done.append("entry")
                said(redis, f"XADD ticks {FIRST + 1000}-0 field value")
                source.publish(b"two")
            if stats.state == "unfit stream" and len(done) == 1:
                done.append("told")
                assert "XDEL" in stats.problem
                assert "XSETID" in stats.problem
                said(redis, f"XDEL ticks {FIRST + 1000}-0")
                assert said(redis, f"XSETID ticks {FIRST}-0") == b"+OK\r\n"
            return stats.messages == 2

        await asyncio.wait_for(carried(bridge, is_done), 20)
        async with opened(redis.url) as one:
            return await read(one, FIRST + 1)

    with Server(address, first_id=FIRST) as source:
        source.publish(b"one")
        assert asyncio.run(run()) == [FIRST, FIRST + 1]


@pytest.mark.parametrize("field", ["stream", "server", "source"])
def test_a_position_that_is_no_number_is_told(redis: RealEngine, field: str) -> None:
    async def run() -> None:
        async with opened(redis.url) as one:
            await append(one, [FIRST])
            said(redis, "HSET", "{ticks}:at", field, "nan")
            with pytest.raises(EngineError, match=r"at has .*'nan'.* for its three numbers"):
                await one.last()

    asyncio.run(run())


def test_a_bridge_out_goes_to_the_primary_wherever_that_is(redis: RealEngine, address: str) -> None:
    async def run(url: str, other: RealEngine) -> int:
        bridge = Outbound(address, url)
        done: list[str] = []

        def is_done() -> bool:
            stats = bridge.stats()
            if stats.messages == 1 and not done:
                done.append("taken over")
                # The other one takes over, and this one follows it.
                said(other, "REPLICAOF NO ONE")
                said(redis, f"REPLICAOF 127.0.0.1 {other.port}")
                source.publish(b"two")
            return stats.messages >= 2

        await asyncio.wait_for(carried(bridge, is_done), 20)
        async with opened(other.url) as one:
            return (await one.info()).records

    with running("redis") as other, Server(address, first_id=FIRST) as source:
        source.publish(b"one")
        asyncio.run(made(redis.url))
        said(other, f"REPLICAOF 127.0.0.1 {redis.port}")
        wait_until(lambda: b"master_link_status:up" in said(other, "INFO replication"))
        url = f"redis://127.0.0.1:{redis.port},127.0.0.1:{other.port}/ticks"
        assert asyncio.run(run(url, other)) >= 1


async def made(url: str) -> None:
    async with opened(url):
        pass
