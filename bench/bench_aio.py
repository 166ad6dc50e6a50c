# SPDX-License-Identifier: Apache-2.0
"""The asyncio client beside the sync one."""

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.util import find_spec

import pytest

from .conftest import Compare
from .harness import Outcome, Ratio, Worker
from .worker import CYCLE, Work

KINDS = ("asyncio", "uvloop") if find_spec("uvloop") else ("asyncio",)


def run_kind(kind: str, work: Work) -> Outcome:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jumiks-bench-"))

        def worker(work: Work, module: str, *words: str) -> Worker:
            arguments = (*words, f"{folder}/socket", json.dumps(asdict(work)))
            return stack.enter_context(Worker(sys.executable, "-m", module, *arguments))

        # In batches in any case, so that the publisher is never what is slow.
        publisher = worker(replace(work, batched=True), "bench.worker", "publisher", "jumiks")
        publisher.line()
        subscriber = worker(work, "bench.aio_worker", kind)
        subscriber.line()
        publisher.go()
        begin = json.loads(publisher.line())["begin"]
        end = subscriber.result()
        publisher.result()
    count = int(end["count"])
    figures = {"rate": count / ((end["end"] - begin) / 1e9)}
    return Outcome(figures, work.messages, work.messages - count, int(end["wrong"]))


@pytest.mark.benchmark(group="asyncio")
@pytest.mark.parametrize(
    ("name", "thousands", "batched", "target"),
    [("async for", 4000, False, 0.6), ("receive_many", 20_000, True, 0.9)],
)
def test_64_bytes(
    compare: Compare, quick: bool, name: str, thousands: int, batched: bool, target: float
) -> None:
    cycles = int(thousands * 1000 * (0.5 if quick else 1.0) / CYCLE)
    work = Work(cycles * CYCLE, batched=batched)

    def contestant(kind: str) -> Callable[[], Outcome]:
        return lambda: run_kind(kind, work)

    compare(
        f"64 B, {name}",
        {kind: contestant(kind) for kind in (*KINDS, "sync")},
        [Ratio(kind, "sync", target=target) for kind in KINDS],
    )
