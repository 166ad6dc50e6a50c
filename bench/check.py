# SPDX-License-Identifier: Apache-2.0
"""What got worse since the baseline, as ratios to the plain C floor and to pyzmq of the same run.

    python -m bench.check RESULTS... [--write]

A ratio counts as worse if it is so by more than `TOLERANCE`, and beyond the worse quarter of the
baseline's rounds, beside each of the references that it has: what happens to one of them for a
moment is not our doing. Leaves with 1 if there is one.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

from . import report
from .harness import Comparison

BASELINE = Path(__file__).with_name("baseline.json")
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


def main(words: Sequence[str]) -> int:
    now = ratios(merged(Path(word) for word in words if word != "--write"))
    if "--write" in words:
        lines = [f"{json.dumps(key)}: [{a:.4g}, {b:.4g}]" for key, (a, b) in sorted(now.items())]
        BASELINE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{BASELINE}: {len(now)} ratios")
        return 0
    before = json.loads(BASELINE.read_text())
    found = worse(before, now)
    print("\n".join(found or [f"none of {len(before.keys() & now.keys())} ratios got worse"]))
    if missing := sorted(before.keys() - now.keys()):
        print("\n".join(["not measured in this run:", *missing]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
