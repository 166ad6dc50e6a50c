# SPDX-License-Identifier: Apache-2.0
"""C to C: the core beside plain loops over the kernel's calls (floor.c)."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Compare
from .harness import DEADLINE, Outcome, Ratio

SIZE = 64

# Deliveries a second to expect, in thousands, so that a run takes half a second or so.
EXPECTED = {
    "send": 1000,
    "acked": 500,
    "mmsg": 1500,
    "classic": 700,
    "classic-many": 800,
    "framed-many": 40_000,
}


def run(program: Path, mode: str, clients: int, messages: int) -> Outcome:
    words = [str(program), mode, str(clients), str(messages), str(SIZE)]
    done = subprocess.run(words, stdout=subprocess.PIPE, timeout=DEADLINE, check=True)
    found = json.loads(done.stdout)
    due, count, wrong = (int(found.pop(name)) for name in ("due", "count", "wrong"))
    return Outcome(found, due, due - count, wrong)


@pytest.mark.benchmark(group="C to C")
@pytest.mark.parametrize("clients", [1, 8])
def test_from_c_to_c(compare: Compare, quick: bool, floor: Path, clients: int) -> None:
    def contestant(mode: str, thousands: int) -> Callable[[], Outcome]:
        messages = int(thousands * 1000 * (0.2 if quick else 0.5) / clients)
        return lambda: run(floor, mode, clients, messages)

    compare(
        f"64 B, {clients} client{'s' * (clients > 1)}, C to C",
        {mode: contestant(mode, thousands) for mode, thousands in EXPECTED.items()},
        [
            Ratio("classic", "send", target=0.8),
            Ratio("classic", "acked"),
            Ratio("classic-many", "send"),
            Ratio("classic-many", "mmsg"),
            Ratio("framed-many", "mmsg"),
        ],
    )
