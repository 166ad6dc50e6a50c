# SPDX-License-Identifier: Apache-2.0
"""What bridges and clients cost as they grow in number, on one machine: see docs/scale.md.

    PYTHONPATH=tests python -m bench.scale --engine redis

A source publishes a batch every 10 ms. One bridge out and more and more bridges in carry it, and
each of those has some clients. Costs are seconds of processor time, so other work on the machine
hardly changes them. It needs the engines that the tests need.
"""

import argparse
import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from support.engines import KINDS, RealEngine, running

from jumiks import Client, JumiksError, Server
from jumiks.bridge import Create, Inbound, Outbound

EVERY = 0.01
"""Seconds between two batches."""

SETTLE = 2.0
WIDTH = 20
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Sample:
    """One line of the table. Times are microseconds of processor time.

    Args:
        bridges: bridges in.
        clients: clients of each.
        rate: messages per second.
        records: per second and bridge.
        engine: per record and bridge.
        bridge: per record, for one bridge in.
        client: per record, for one client.
        out: per record, for the bridge out.
    """

    bridges: int
    clients: int
    rate: int
    records: float
    engine: float
    bridge: float
    client: float
    out: float


def cpu_of(process: int) -> float:
    """Seconds of processor time that a process has had."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS


def start(stack: ExitStack, work: Callable[[], object]) -> int:
    """Do it in a process of its own, which has everything loaded by then."""
    process = os.fork()
    if not process:
        with suppress(BaseException):
            work()
        os._exit(0)

    def end() -> None:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)

    stack.callback(end)
    return process


def listen(address: str, clients: int) -> None:
    """Receive with some clients, for ever."""

    def receive() -> None:
        while True:
            with suppress(JumiksError, OSError), Client(address) as client:
                while True:
                    client.receive_many()
            time.sleep(0.05)

    threads = [threading.Thread(target=receive) for _ in range(clients)]
    for thread in threads:
        thread.start()
    threads[0].join()


def carry_in(url: str, address: str, told: int, place: int) -> None:
    """Run a bridge in, and tell again and again how many records it has had."""
    bridge = Inbound(url, address, history=1, wait=60)

    async def run() -> None:
        running = asyncio.create_task(bridge.run())
        while not running.done():
            os.pwrite(told, b"%20d" % bridge.stats().records, WIDTH * place)
            await asyncio.sleep(0.05)

    asyncio.run(run())


def publish(address: str, rate: int, size: int) -> None:
    """Publish a batch every 10 ms."""
    with Server(address, log_size=1 << 26) as server:
        batch, begin = [bytes(size)] * max(1, int(rate * EVERY)), time.monotonic()
        for number in range(1 << 60):
            time.sleep(max(0.0, begin + number * EVERY - time.monotonic()))
            server.publish_many(batch)


def measure(
    engine: RealEngine, bridges: int, clients: int, rate: int, size: int, seconds: float
) -> Sample:
    """Carry a feed to so many bridges, and count."""
    name = f"@jumiks-scale-{os.getpid()}-{bridges}-{rate}"
    assert engine.process is not None
    with ExitStack() as stack:
        told = os.memfd_create("records")
        stack.callback(os.close, told)
        start(stack, lambda: publish(name, rate, size))
        url = f"{engine.url}{bridges}x{rate}"
        out = start(stack, lambda: asyncio.run(Outbound(name, url, create=Create()).run()))
        far = [f"{name}-{number}" for number in range(bridges)]
        ins = [
            start(stack, partial(carry_in, url, each, told, place))
            for place, each in enumerate(far)
        ]
        listeners = [start(stack, partial(listen, each, clients)) for each in far]
        groups = ([engine.process.pid], ins, listeners, [out])
        time.sleep(SETTLE + bridges / 8)

        def look() -> list[float]:
            words = os.pread(told, WIDTH * bridges, 0)
            records = sum(
                int(words[place : place + WIDTH].strip(b"\0 ") or 0)
                for place in range(0, len(words), WIDTH)
            )
            return [records / bridges, *(sum(map(cpu_of, each)) for each in groups)]

        before = look()
        time.sleep(seconds)
        records, *costs = (behind - ahead for behind, ahead in zip(look(), before, strict=True))
    each = [1e6 * cost / max(1.0, records) for cost in costs]
    return Sample(
        bridges,
        clients,
        rate,
        round(records / seconds, 1),
        round(each[0] / bridges, 1),
        round(each[1] / bridges, 1),
        round(each[2] / bridges / clients, 1),
        round(each[3], 1),
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", choices=KINDS, default="redis")
    parser.add_argument("--bridges", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rates", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    words = ("--appendonly", "no") if options.engine == "redis" else ()
    print("bridges  messages/s  records/s  us per record: engine  bridge in  client  bridge out")
    with running(options.engine, *words) as engine:
        for rate in options.rates:
            for count in options.bridges:
                found = measure(engine, count, options.clients, rate, options.size, options.seconds)
                words = f"{count:7}  {rate:10}  {found.records:9}  {found.engine:21}  "
                words += f"{found.bridge:9}  {found.client:6}  {found.out:10}"
                print(words, flush=True)


if __name__ == "__main__":
    main()
