# SPDX-License-Identifier: Apache-2.0
"""A server with many idle clients: its memory, and what publishing to each of them costs it."""

import json
import sys
import tempfile
from collections.abc import Callable

from .conftest import Compare
from .harness import Outcome, Worker, deadline
from .plan import GROWTH, MEMORY_RATIOS

CLIENTS = (8, 1000)
DEADLINE = 60.0


def measure() -> dict[int, dict[str, float]]:
    """Figures by the number of clients."""
    with (
        tempfile.TemporaryDirectory(prefix="jumiks-bench-") as folder,
        Worker(sys.executable, "-m", "bench.idle", f"{folder}/socket", *CLIENTS) as worker,
        deadline(DEADLINE, worker),
    ):
        return dict(json.loads(worker.line()))


def test_many_idle_clients(compare: Compare, quick: bool) -> None:
    found: dict[int, dict[str, float]] = {}

    def outcome(clients: int) -> Callable[[], Outcome]:
        def contestant() -> Outcome:
            # One server has both in turn, so one measurement is the round of both.
            if clients not in found:
                found.update(measure())
            return Outcome(found.pop(clients), due=0)

        return contestant

    contestants = {f"jumiks, {clients:,} clients": outcome(clients) for clients in CLIENTS}
    compare("idle clients", GROWTH, contestants, MEMORY_RATIOS, 1 if quick else 3)
