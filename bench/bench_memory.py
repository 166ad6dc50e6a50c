# SPDX-License-Identifier: Apache-2.0
"""Memory of a server with many idle clients, which shake hands and then only hold a connection."""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .conftest import NOTES
from .harness import Worker

CLIENTS = 1000


def measure() -> dict[str, float]:
    """Bytes of user memory (PSS): of a server, and what it grows by for each client."""
    with (
        tempfile.TemporaryDirectory(prefix="jumiks-bench-") as folder,
        Worker(sys.executable, "-m", "bench.idle", f"{folder}/socket", CLIENTS) as worker,
    ):
        found: dict[str, float] = json.loads(worker.line())
        return found


@pytest.mark.benchmark(group="memory")
def test_memory_of_idle_clients(benchmark: BenchmarkFixture, quick: bool) -> None:
    found: list[dict[str, float]] = []
    pedantic: Callable[..., object] = benchmark.pedantic
    pedantic(lambda: found.append(measure()), rounds=1 if quick else 3, iterations=1)
    benchmark.extra_info["memory"] = found
    growth = [each["bytes a client"] for each in found]
    whole = statistics.median(each["bytes itself"] for each in found) / (1 << 20)
    NOTES.append(
        f"server memory with {CLIENTS:,} idle clients: {statistics.median(growth):,.0f} bytes a "
        f"client ({min(growth):,.0f} .. {max(growth):,.0f}) beyond the {whole:.1f} MiB of the "
        "process and its log; the kernel's socket buffers are not counted"
    )
