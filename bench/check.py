# SPDX-License-Identifier: Apache-2.0
"""What got worse since another commit, as ratios to the plain C floor and to pyzmq of the same run.

    python -m bench.check --before RESULTS... --now RESULTS...

Both are to be run in turn on one machine. A ratio counts as worse if it is so by more than
`TOLERANCE`, and beyond the worse quarter of the rounds before, beside each of the references that
it has: what happens to one of them for a moment is not our doing. Exits with 1 if there is one.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

from . import report
from .harness import Comparison

REFERENCES = ("c-send", "pyzmq")
FIGURES = ("rate", "cpu", "p50")
TOLERANCE = 0.25

Known = Mapping[str, tuple[float, float]]
"""Median and worse quartile of the rounds' ratios, by "group: work | ours | figure | reference"."""


def higher_is_better(key: str) -> bool:
    return key.split(" | ")[2] == "rate"


def worse_quartile(key: str, values: Sequence[float]) -> float:
    # Twice, as one round is enough.
    low, _, high = statistics.quantiles([*values, *values], n=4, method="inclusive")
    return low if higher_is_better(key) else high


def ratios(comparisons: Iterable[Comparison]) -> dict[str, tuple[float, float]]:
    """Ours beside each reference that took part and lost nothing."""
    found = {}
    for each in comparisons:
        ours = [name for name in each.names if name.startswith(("jumiks", "core-"))]
        for name, reference, figure in product(ours, REFERENCES, FIGURES):
            sides = (name, reference)
            if not all(each.whole(side) and each.has(side, figure) for side in sides):
                continue
            values = each.values(name, reference, figure)
            key = f"{each.group}: {each.work} | {name} | {figure} | {reference}"
            found[key] = (statistics.median(values), worse_quartile(key, values))
    return found


def loss(key: str, before: float, now: float) -> float:
    """How much worse it is: 0.25 is a quarter less work done, or a quarter more time taken."""
    return 1 - now / before if higher_is_better(key) else now / before - 1


def worse(before: Known, now: Known) -> list[str]:
    """A line for each figure that is worse beside all its references."""
    gathered: dict[str, dict[str, float]] = defaultdict(dict)
    spared = set()
    for key in before.keys() & now.keys():
        figure, _, reference = key.rpartition(" | ")
        (usual, quartile), (middle, _) = before[key], now[key]
        gathered[figure][reference] = loss(key, usual, middle)
        if gathered[figure][reference] <= TOLERANCE or loss(key, quartile, middle) <= 0:
            spared.add(figure)
    return [
        f"{figure}: worse by "
        + ", ".join(f"{each:.0%} beside {name}" for name, each in sorted(losses.items()))
        for figure, losses in sorted(gathered.items())
        if figure not in spared
    ]


def merged(paths: Iterable[Path]) -> list[Comparison]:
    """The rounds of all files: some figures have two moods, and a run may see one of them only."""
    found: dict[tuple[str, str], Comparison] = {}
    for each in chain.from_iterable(map(report.read, paths)):
        found.setdefault((each.group, each.work), replace(each, rounds=[])).rounds += each.rounds
    return list(found.values())


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__)
    for option in ("--before", "--now"):
        parser.add_argument(option, nargs="+", type=Path, required=True, metavar="RESULTS")
    files = parser.parse_args(words)
    before, now = (ratios(merged(paths)) for paths in (files.before, files.now))
    if not (both := len(before.keys() & now.keys())):
        parser.error("no ratio was measured on both sides")
    found = worse(before, now)
    print("\n".join(found or [f"none of {both} ratios got worse"]))
    if missing := sorted(before.keys() ^ now.keys()):
        print("\n".join(["measured on one side only:", *missing]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
