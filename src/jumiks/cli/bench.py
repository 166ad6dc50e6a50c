# SPDX-License-Identifier: Apache-2.0
"""`jumiks bench`: a quick measurement of this machine, or of what a server sends.

    python -m jumiks.cli.bench ADDRESS COUNT [rows]

is a client of the first: it prints "connected", receives COUNT messages, and prints its figures as
JSON. With "rows" it takes each batch as one object, and not as a list of messages.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from jumiks.client import Client
from jumiks.errors import ServerClosed, Timeout
from jumiks.server import Server

from .status import short

__all__ = ["run"]

BATCH: Final = 1024
LATENCY_RATE: Final = 1000
_STAMP: Final = struct.Struct("<Q")


def run(options: argparse.Namespace) -> int:
    """Measure, and print the figures."""
    if options.self:
        measure_self(options.seconds)
    else:
        measure_server(options.address, options.seconds)
    return 0


def measure_server(address: str, seconds: float) -> None:
    """Count what a server sends."""
    with Client(address) as client:
        begin = time.monotonic()
        end, messages, size = begin + seconds, 0, 0
        try:
            while (left := end - time.monotonic()) > 0:
                batch = client.receive_many(left)
                messages += len(batch)
                size += sum(map(len, batch))
        except (Timeout, ServerClosed):
            pass
        took = time.monotonic() - begin
        print(
            f"{messages} messages in {took:.1f} s: {short(messages / took)} msg/s, "
            f"{short(size / took)}B/s, missed {client.missed}"
        )


def measure_self(seconds: float) -> None:
    """Run each kind of work for a part of the time."""
    works: list[tuple[str, Callable[[float], str]]] = [
        ("64 B, in batches, 1 client", lambda share: throughput(64, 1, True, share)),
        ("64 B, in batches, 4 clients", lambda share: throughput(64, 4, True, share)),
        ("64 B, as arrays, 1 client", lambda share: throughput(64, 1, True, share, True)),
        ("64 B, one by one, 1 client", lambda share: throughput(64, 1, False, share)),
        ("64 KiB, in batches, 1 client", lambda share: throughput(65536, 1, True, share)),
        (f"64 B, {LATENCY_RATE} per second, latency", latency),
    ]
    for name, work in works:
        print(f"{name:32}", end="", flush=True)
        print(work(seconds / len(works)), flush=True)


@contextmanager
def clients(
    address: str, count: int, messages: int, *how: str
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start client processes and yield them connected; kill those that still run at the end."""
    command = [sys.executable, "-m", "jumiks.cli.bench", address, str(messages), *how]
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            found.append(process)
        for process in found:
            assert process.stdout is not None
            process.stdout.readline()
        yield found


def _figures(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdout is not None
    found: dict[str, float] = json.loads(process.stdout.read())
    return found


def throughput(size: int, count: int, batched: bool, seconds: float, rows: bool = False) -> str:
    """Publish for a while; return deliveries/s of all clients together."""
    address = f"@jumiks-bench-{os.getpid()}"
    many = BATCH if size < 4096 else 16
    messages = [bytes(size)] * many
    array = memoryview(bytes(size * many)).cast("B", (many, size))
    how = ["rows"] * rows
    with Server(address, on_lag="block") as server, clients(address, count, 0, *how) as processes:
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if batched:
                server.publish_many(array if rows else messages)
            else:
                for message in messages:
                    server.publish(message)
        published = server.stats().published
        server.close(60)
        ends = [_figures(process) for process in processes]
    took = max(end["end"] for end in ends) - begin
    due = published * count
    got = sum(int(end["count"]) for end in ends)
    rate = got / took
    lost = "" if got == due else f", LOST {due - got} of {due}"
    return f"{short(rate)} msg/s, {short(rate * size)}B/s{lost}"


def latency(seconds: float) -> str:
    """Publish at an even pace; return the time from `publish` to the user's loop."""
    address = f"@jumiks-bench-{os.getpid()}"
    total = max(10, int(seconds * LATENCY_RATE))
    with Server(address, on_lag="block") as server, clients(address, 1, total) as (process,):
        begin = time.monotonic_ns()
        for number in range(total):
            left = begin + number * 1_000_000_000 // LATENCY_RATE - time.monotonic_ns()
            if left > 0:
                time.sleep(left / 1e9)
            server.publish(_STAMP.pack(time.monotonic_ns()) + bytes(56))
        found = _figures(process)
    return f"p50 {found['p50']:.0f} us, p99 {found['p99']:.0f} us"


def client_end(address: str, total: int, how: str = "") -> None:
    """Receive all messages, or `total` with their latency, and print figures."""
    with Client(address) as client:
        print("connected", flush=True)
        if total:
            samples = []
            for message in client:
                samples.append((time.monotonic_ns() - _STAMP.unpack_from(message)[0]) / 1000)
                if len(samples) == total:
                    break
            samples.sort()
            found = {"p50": samples[total // 2], "p99": samples[total * 99 // 100]}
        else:
            count = 0
            try:
                while how == "rows":
                    with client.receive_many() as batch:
                        count += len(batch.rows())
                while True:
                    count += len(list(client.receive_many()))
            except ServerClosed:
                found = {"count": count, "end": time.monotonic()}
    print(json.dumps(found))


if __name__ == "__main__":
    client_end(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
