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

SECONDS = {True: 0.2, False: 0.4}
"""Of publishing in a run, if quick or not."""

ROUNDS = {True: 3, False: 3}
C_ROUNDS = 5


def contestants(
    entries: Mapping[str, tuple[str, Work]], quick: bool, floor: Path | None
) -> dict[str, Callable[[], Outcome]]:
    present = there(sorted({name for name, _work in entries.values()}))

    def contestant(name: str, work: Work) -> Callable[[], Outcome]:
        return lambda: run(name, replace(work, seconds=SECONDS[quick]), floor)

    return {
        label: contestant(name, work) for label, (name, work) in entries.items() if name in present
    }


def do(compare: Compare, plan: Plan, quick: bool, floor: Path | None, rounds: int) -> None:
    if quick and not plan.quick:
        pytest.skip("left out of a quick run")
    entries = {
        label: entry for label, entry in plan.entries.items() if not quick or label in plan.quick
    }
    compare(plan.name, plan.group, contestants(entries, quick, floor), plan.ratios, rounds)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_python_to_python(compare: Compare, plan: Plan, quick: bool, floor: Path | None) -> None:
    do(compare, plan, quick, floor, ROUNDS[quick])


@pytest.mark.parametrize("plan", C_PLANS, ids=lambda plan: plan.name)
def test_c_to_c(compare: Compare, plan: Plan, quick: bool, floor: Path | None) -> None:
    do(compare, plan, quick, floor, C_ROUNDS)


@pytest.mark.parametrize("plan", GROWTH_PLANS, ids=lambda plan: plan.name)
def test_growth(compare: Compare, plan: Plan, quick: bool, floor: Path | None) -> None:
    do(compare, plan, quick, floor, ROUNDS[quick])
