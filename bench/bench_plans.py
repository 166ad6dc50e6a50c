# SPDX-License-Identifier: Apache-2.0
"""All comparisons of plan.py."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from .conftest import Compare, there
from .harness import Outcome, run
from .plan import C_PLANS, GROWTH_PLANS, PLANS, Plan
from .work import Work

QUICK_ROUNDS = 3


def contestants(
    entries: Mapping[str, tuple[str, Work]], seconds: float, floor: Path | None
) -> dict[str, Callable[[], Outcome]]:
    present = there(sorted({name for name, _work in entries.values()}))

    def contestant(name: str, work: Work) -> Callable[[], Outcome]:
        return lambda: run(name, replace(work, seconds=seconds), floor)

    return {
        label: contestant(name, work) for label, (name, work) in entries.items() if name in present
    }


@pytest.mark.parametrize(
    "plan", [*PLANS, *C_PLANS, *GROWTH_PLANS], ids=lambda plan: f"{plan.group}: {plan.name}"
)
def test_plan(compare: Compare, plan: Plan, quick: bool, floor: Path | None) -> None:
    if quick and not plan.quick:
        pytest.skip("left out of a quick run")
    entries = {
        label: entry for label, entry in plan.entries.items() if not quick or label in plan.quick
    }
    seconds, rounds = (plan.seconds / 2, QUICK_ROUNDS) if quick else (plan.seconds, plan.rounds)
    compare(plan.name, plan.group, contestants(entries, seconds, floor), plan.ratios, rounds)
