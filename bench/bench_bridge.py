# SPDX-License-Identifier: Apache-2.0
"""The legs of a bridge beside what an engine and its client do without one.

Each contestant has processes and an engine of its own, with what the engine has by default on disk.
"""

import asyncio
import csv
import multiprocessing
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import pytest

from jumiks import Client, Server
from jumiks.bridge import Create, Inbound, Outbound
from jumiks.bridge.engine import make_engine
from jumiks.bridge.record import Record, Unreadable

from .conftest import Compare
from .harness import ITSELF, ROOT, Outcome, Ratio

sys.path.insert(0, str(ROOT / "tests"))

from support.engines import KINDS, RealEngine, program, require, running

GROUP = "the bridge"
FORK = multiprocessing.get_context("fork")
PIPELINE = 64
WINDOW = 32
PATIENCE = 60.0
PACE, SENT = 200, 600
MEMORY = 64 << 20
STAMP = struct.Struct("<Q")
T = TypeVar("T")


def count_of(size: int, quick: bool) -> int:
    """Messages of a run."""
    return (40_000_000 if quick else 80_000_000) // (size + 16)


@contextmanager
def engine_of(kind: str) -> Iterator[RealEngine]:
    # Its tests have Redis sync each append, which nobody has by default.
    with running(kind, *(("--appendonly", "no") if kind == "redis" else ())) as engine:
        yield engine


def in_child(work: Callable[[], T]) -> T:
    """Do it in a process of its own."""
    with ProcessPoolExecutor(1, FORK) as pool:
        return pool.submit(work).result(PATIENCE)


def memory() -> float:
    """Anonymous memory of this process now, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def source(size: int, count: int) -> Iterator[str]:
    """A source in a process of its own, with messages in its log."""
    address = f"@jumiks-bench-{os.getpid()}-{time.monotonic_ns()}"
    ready, over = FORK.Event(), FORK.Event()

    def serve() -> None:
        with Server(address, log_size=1 << 28) as server:
            for begin in range(0, count, 1000):
                server.publish_many([bytes(size)] * min(1000, count - begin))
            ready.set()
            over.wait(2 * PATIENCE)

    process = FORK.Process(target=serve)
    process.start()
    try:
        assert ready.wait(PATIENCE)
        yield address
    finally:
        over.set()
        process.join(PATIENCE)


async def watched(bridge: Outbound | Inbound, there: Callable[[], bool]) -> dict[str, float]:
    """Run a bridge until all is there; the time counts from when it runs."""
    running_, most = asyncio.create_task(bridge.run()), memory()
    while bridge.state != "running":
        await asyncio.sleep(0.001)
    begin = time.monotonic()
    while not there() and not running_.done():
        await asyncio.sleep(0.005)
        most = max(most, memory())
    seconds = time.monotonic() - begin
    bridge.close()
    await running_
    return {"seconds": seconds, "memory": most}


def carry_out(address: str, url: str, count: int) -> dict[str, float]:
    bridge = Outbound(address, url, create=Create())
    return asyncio.run(watched(bridge, lambda: bridge.stats().messages >= count))


def follow(url: str, count: int, told: Connection) -> None:
    """Run a bridge in: say when it listens, follow once that is answered, say when it has all."""
    bridge = Inbound(url, f"@jumiks-bench-far-{os.getpid()}", log_size=1 << 28)
    go, read = asyncio.Event(), bridge._engine.read

    async def wait_and_read(start: int) -> AsyncIterator[Record | Unreadable]:
        await go.wait()
        async for record in read(start):
            yield record

    async def run() -> None:
        asyncio.get_running_loop().add_reader(told.fileno(), go.set)
        bridge._engine.read = wait_and_read  # type: ignore[method-assign]
        running_, most = asyncio.create_task(bridge.run()), 0.0
        while not bridge.stats().server_id:
            await asyncio.sleep(0.001)
        told.send("listens")
        await go.wait()
        asyncio.get_running_loop().remove_reader(told.fileno())
        while bridge.stats().messages < count and not running_.done():
            await asyncio.sleep(0.005)
            most = max(most, memory())
        told.send((time.monotonic(), most, bridge.stats().engine_reconnects))
        bridge.close()
        await running_

    asyncio.run(run())


def fill(url: str, size: int, count: int) -> None:
    with source(size, count) as address:
        in_child(partial(carry_out, address, url, count))


def bridge_in(kind: str, size: int, count: int) -> Outcome:
    """It listens and is connected before the stream is filled: what counts is following alone."""
    ours, theirs = FORK.Pipe()
    with engine_of(kind) as engine:
        in_child(partial(make_stream, engine.url))
        process = FORK.Process(target=follow, args=(engine.url, count, theirs))
        process.start()
        try:
            assert ours.poll(PATIENCE)
            ours.recv()
            fill(engine.url, size, count)
            begin = time.monotonic()
            ours.send("go")
            assert ours.poll(PATIENCE)
            end, most, reconnects = ours.recv()
            assert not reconnects, "it lost its connection, which takes time of its own"
        finally:
            process.kill()
            process.join()
    return rate({"seconds": end - begin, "memory": most}, count)


def make_stream(url: str) -> None:
    async def make() -> None:
        engine = make_engine(url)
        await engine.open(Create())
        await engine.close()

    asyncio.run(make())


def fetching(kind: str, size: int, count: int) -> Outcome:
    with engine_of(kind) as engine:
        fill(engine.url, size, count)
        return rate(in_child(partial(fetch, engine.url, count)), count)


def fetch(url: str, count: int) -> dict[str, float]:
    async def run() -> float:
        engine, got = make_engine(url), 0
        await engine.open()
        begin = time.monotonic()
        async for record in engine.read(0):
            got += record.count if isinstance(record, Record) else 0
            if got >= count:
                break
        seconds = time.monotonic() - begin
        await engine.close()
        return seconds

    return {"seconds": asyncio.run(run())}


def rate(found: dict[str, float], count: int) -> Outcome:
    more = {"memory": found["memory"]} if "memory" in found else {}
    return Outcome({"rate": count / found["seconds"], **more}, count)


def bridge_out(kind: str, size: int, count: int) -> Outcome:
    with engine_of(kind) as engine, source(size, count) as address:
        return rate(in_child(partial(carry_out, address, engine.url, count)), count)


def redis_benchmark(size: int, count: int) -> Outcome:
    with engine_of("redis") as engine:
        words = ["redis-benchmark", "-p", str(engine.port), "-n", str(count // 4), "--csv"]
        words += ["-P", str(PIPELINE), "XADD", "bench", "*", "field", "x" * size]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    line = list(csv.reader(done.stdout.splitlines()))[-1]
    return Outcome({"rate": float(line[1])}, count // 4)


def c_client(tool: Path, record: int, size: int, count: int) -> Outcome:
    """What a C client stores per second, in messages of this size: in records, or one by one."""
    packed = record // (size + 16) if record else 1
    records = max(1, count // packed // (1 if record else 8))
    with engine_of("jetstream") as engine:
        engine.make_stream({})
        words = [tool, f"nats://127.0.0.1:{engine.port}", "TICKS", records, record or size, WINDOW]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    return Outcome({"rate": records * packed / float(done.stdout)}, records)


@pytest.fixture(scope="session")
def nats_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C client's program."""
    if (
        shutil.which("cc") is None
        or subprocess.run(["pkg-config", "--exists", "libnats"]).returncode
    ):
        pytest.skip("a C client of NATS is not here: apt-get install libnats-dev pkg-config")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libnats"], capture_output=True, text=True, check=True
    ).stdout.split()
    tool = tmp_path_factory.mktemp("nats") / "publish"
    subprocess.run(["cc", "-O2", "-o", tool, ROOT / "bench/publish_nats.c", *flags], check=True)
    return tool


def test_bridge_out_redis(compare: Compare, quick: bool) -> None:
    require("redis")
    if shutil.which("redis-benchmark") is None:
        pytest.skip("redis-benchmark is not here: apt-get install redis-tools")
    count = count_of(64, quick)
    compare(
        "bridge out, Redis, 64 B",
        GROUP,
        {
            "jumiks bridge": partial(bridge_out, "redis", 64, count),
            "redis-benchmark": partial(redis_benchmark, 64, count),
        },
        [
            Ratio("jumiks bridge", "redis-benchmark", target=8.0),
            Ratio("jumiks bridge", ITSELF, "memory", MEMORY),
        ],
    )


@pytest.mark.parametrize(("size", "target"), [(64, 0.5), (1000, 0.6)])
def test_bridge_out_jetstream(
    size: int, target: float, compare: Compare, quick: bool, nats_c: Path
) -> None:
    require("jetstream")
    count = count_of(size, quick)
    compare(
        f"bridge out, JetStream, {size} B",
        GROUP,
        {
            "jumiks bridge": partial(bridge_out, "jetstream", size, count),
            "C, records of 128 KB": partial(c_client, nats_c, 128 << 10, size, count),
            "C, one by one": partial(c_client, nats_c, 0, size, count),
        },
        [
            Ratio("jumiks bridge", "C, records of 128 KB", target=target),
            Ratio("jumiks bridge", "C, one by one", target=15.0 if size == 64 else None),
            Ratio("jumiks bridge", ITSELF, "memory", MEMORY),
        ],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bridge_in(kind: str, compare: Compare, quick: bool) -> None:
    require(kind)
    count = count_of(64, quick)
    compare(
        f"bridge in, {kind}, 64 B",
        GROUP,
        {
            "jumiks bridge": partial(bridge_in, kind, 64, count),
            "fetching alone": partial(fetching, kind, 64, count),
        },
        [
            Ratio("jumiks bridge", "fetching alone", target=0.7),
            Ratio("jumiks bridge", ITSELF, "memory", MEMORY),
        ],
    )


def one_way(kind: str) -> Outcome:
    """Publish at a pace, and receive behind both legs; the stamps are of one clock."""
    address = f"@jumiks-bench-way-{os.getpid()}-{time.monotonic_ns()}"
    far = f"{address}-far"
    took = []
    with engine_of(kind) as engine, ExitStack() as stack:
        # These fork, so the server's threads come later.
        def start(make: Callable[[], Outbound | Inbound]) -> None:
            process = FORK.Process(target=lambda: asyncio.run(make().run()))
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)

        start(lambda: Outbound(address, engine.url, create=Create()))
        start(lambda: Inbound(engine.url, far, history=1, wait=PATIENCE))
        with Server(address) as server:
            server.publish(STAMP.pack(0))
            client = connected(far)
            stack.callback(client.close)
            for _ in range(SENT):
                sent = time.monotonic_ns()
                server.publish(STAMP.pack(sent))
                # The one before all others may be the first that arrives here, or may have passed.
                while STAMP.unpack(client.receive(PATIENCE)) != (sent,):
                    pass
                took.append((time.monotonic_ns() - sent) / 1e3)
                time.sleep(1 / PACE)
    return Outcome({"p50": statistics.median(took)}, SENT)


def connected(address: str) -> Client[bytes]:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return Client(address, reconnect=True)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_bridge_one_way(kind: str, compare: Compare) -> None:
    require(kind)
    assert program(kind)
    compare(
        f"one way through both legs, {kind}, {PACE}/s",
        GROUP,
        {"jumiks bridge": partial(one_way, kind)},
        [Ratio("jumiks bridge", ITSELF, "p50", 3000.0)],
    )
