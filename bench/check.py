# SPDX-License-Identifier: Apache-2.0
"""What got worse since the baseline, as ratios to the plain C floor and to pyzmq of the same run.

    python -m bench.check RESULTS [--write]

A ratio counts as worse if it is so by more than `TOLERANCE` beside each of the references that it
has: what happens to one of them for a moment is not our doing. Leaves with 1 if there is one.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import report
from .harness import Comparison

BASELINE = Path(__file__).with_name("baseline.json")
REFERENCES = ("c-send", "pyzmq")
FIGURES = ("rate", "cpu", "p50")
TOLERANCE = 0.25

Ratios = Mapping[str, float]
"""By "work | ours | figure | reference"."""


def ratios(comparisons: Iterable[Comparison]) -> dict[str, float]:
    """Ours beside each reference that took part."""
    found = {}
    for each in comparisons:
        ours = [name for name in each.names if name.startswith(("jumiks", "core-"))]
        references = [name for name in REFERENCES if each.whole(name)]
        for name in filter(each.whole, ours):
            for reference in references:
                for figure in FIGURES:
                    if not (each.has(name, figure) and each.has(reference, figure)):
                        continue
                    key = f"{each.group}: {each.work} | {name} | {figure} | {reference}"
                    found[key] = statistics.median(each.values(name, reference, figure))
    return found


def loss(key: str, before: float, now: float) -> float:
    """How much worse it is: 0.25 is a quarter less work done, or a quarter more time taken."""
    higher_is_better = key.split(" | ")[2] == "rate"
    return 1 - now / before if higher_is_better else now / before - 1


def worse(before: Ratios, now: Ratios) -> list[str]:
    """A line for each figure that is worse beside all its references."""
    gathered: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for key in before.keys() & now.keys():
        figure, _, reference = key.rpartition(" | ")
        gathered[figure].append((reference, loss(key, before[key], now[key])))
    lines = []
    for figure, losses in sorted(gathered.items()):
        if all(each > TOLERANCE for _reference, each in losses):
            beside = ", ".join(f"{each:.0%} beside {name}" for name, each in sorted(losses))
            lines.append(f"{figure}: worse by {beside}")
    return lines


def main(words: Sequence[str]) -> int:
    now = ratios(report.read(Path(words[0])))
    if "--write" in words:
        rounded = {key: float(f"{value:.4g}") for key, value in sorted(now.items())}
        BASELINE.write_text(json.dumps(rounded, indent=1) + "\n")
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
