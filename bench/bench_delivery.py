# SPDX-License-Identifier: Apache-2.0
"""Python to Python: throughput and latency."""

from collections.abc import Callable, Mapping

import pytest

from .conftest import Compare
from .harness import Outcome, Ratio, run
from .worker import CYCLE, Work

RIVALS = ("pyzmq", "seqpacket")

# Deliveries a second to expect, in thousands, so that a run takes half a second or so.
BATCHED = {"jumiks": 20_000, "pyzmq": 1700, "seqpacket": 700}
SINGLE = {"jumiks": 6000, "pyzmq": 1700, "seqpacket": 1100}


def runs(
    expected: Mapping[str, int], seconds: float, clients: int, batched: bool
) -> dict[str, Callable[[], Outcome]]:
    def contestant(name: str, thousands: int) -> Callable[[], Outcome]:
        cycles = max(8, int(thousands * 1000 * seconds / clients / CYCLE))
        return lambda: run(name, Work(cycles * CYCLE, clients=clients, batched=batched))

    return {name: contestant(name, thousands) for name, thousands in expected.items()}


@pytest.mark.benchmark(group="throughput, batched")
@pytest.mark.parametrize(("clients", "target"), [(1, 8.0), (8, 5.0)])
def test_64_bytes_in_batches(compare: Compare, quick: bool, clients: int, target: float) -> None:
    compare(
        f"64 B, {clients} client{'s' * (clients > 1)}, batched",
        runs(BATCHED, 0.3 if quick else 0.6, clients, True),
        [Ratio("jumiks", "pyzmq", target=target), Ratio("jumiks", "seqpacket")],
    )


@pytest.mark.benchmark(group="throughput, one by one")
def test_64_bytes_one_by_one(compare: Compare, quick: bool) -> None:
    compare(
        "64 B, 1 client, one by one",
        runs(SINGLE, 0.3 if quick else 0.6, 1, False),
        [Ratio("jumiks", "pyzmq", target=2.0), Ratio("jumiks", "seqpacket")],
    )


@pytest.mark.benchmark(group="latency")
def test_latency_at_1_khz(compare: Compare, quick: bool) -> None:
    work = Work(1000 if quick else 2000, pace=1000)
    names = ("jumiks", *RIVALS)
    compare(
        "64 B, 1 client, 1 kHz",
        {name: lambda name=name: run(name, work) for name in names},  # type: ignore[misc]
        [
            Ratio("jumiks", "seqpacket", "p50", 1.3, "lower"),
            Ratio("jumiks", "seqpacket", "p99", None, "lower"),
            Ratio("jumiks", "pyzmq", "p50", None, "lower"),
            Ratio("jumiks", "pyzmq", "p99", None, "lower"),
        ],
    )
