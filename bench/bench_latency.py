# SPDX-License-Identifier: Apache-2.0
"""Latency at half of the rate at which each contestant is saturated, which is measured first."""

from collections.abc import Callable

import pytest

from .conftest import Compare, there
from .harness import Outcome, Ratio, run
from .plan import EVERYBODY, LATENCY
from .work import Work

PROBE = 5000
"""Messages to find the rate of saturation with, roughly."""

SECONDS = 0.3
RATIOS = (Ratio("jumiks", "socket", "p50"), Ratio("jumiks", "pyzmq", "p50", 1.0))


def half_of_saturation(name: str) -> Callable[[], Outcome]:
    rates: list[float] = []

    def saturate(messages: int) -> Outcome:
        return run(name, Work(latency=True, messages=messages))

    def contestant() -> Outcome:
        if not rates:
            probed = saturate(PROBE)
            if probed.whole:
                probed = saturate(max(PROBE, int(probed.figures["rate"] * SECONDS)))
            if not probed.whole:
                return probed
            rates.append(probed.figures["rate"])
        pace = rates[0] / 2
        return run(name, Work(latency=True, pace=pace, messages=int(pace * SECONDS) + 1))

    return contestant


def test_at_half_of_saturation(compare: Compare, quick: bool) -> None:
    if quick:
        pytest.skip("left out of a quick run")
    names = there(EVERYBODY)
    work = "64 B, 1 client, half of its own saturation"
    compare(work, LATENCY, {name: half_of_saturation(name) for name in names}, RATIOS, 2)
