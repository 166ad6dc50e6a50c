# SPDX-License-Identifier: Apache-2.0
"""Tables of a run's figures (`python -m bench.report RESULTS [PART]`).

What was asked for comes first, then all there is. PART is one of these: `summary` (in Markdown, how
ours does beside the best rival), `targets`, `tables`, `losses`. docs/performance.md has all four.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .harness import BEST, ITSELF, Comparison, Ratio
from .plan import CALLS, GROWTH, LATENCY

HEAD = ("work", "ours", "its figure", "beside", "its figure", "ratio", "min .. max", "target")
RIGHT = (False, False, True, False, True, True, True, False)

LABELS = {
    "rate": "deliveries per second",
    "cpu": "CPU of both ends, us per delivery",
    "server cpu": "CPU of the publishing end (and a broker), us per published message",
    "p50": "p50, us",
    "p99": "p99, us",
    "p99.9": "p99.9, us",
    "calls": "system calls of both ends per thousand messages",
    "publish": "CPU of the server, us per client and batch",
    "bytes per client": "user memory per client, bytes",
    "memory": "anonymous memory of a bridge at most, bytes",
}
"""What the figures are, in the order of the tables."""


PROFILED = (GROWTH, CALLS)
"""Groups whose comparisons have little in common, so each is a table of its own."""

SHOWN = ("jumiks-arrays", "jumiks")
"""Ours in a summary: the first of these that took part."""

DULL = {(LATENCY, "server cpu")}


def number(value: float, figure: str = "rate") -> str:
    """Three digits."""
    if figure != "rate":
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    for unit, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{sign}"
    return f"{value:.3g}"


def shown(value: float, figure: str) -> str:
    unit = {"rate": "/s", "calls": "", "bytes per client": " B", "memory": " B"}.get(figure, " us")
    return f"{number(value, figure)}{unit}"


def cell(comparison: Comparison, name: str, figure: str) -> str:
    if not comparison.runs(name):
        return "-"
    return comparison.trouble(name) or shown(comparison.median(name, figure), figure)


def goal(ratio: Ratio, value: float) -> str:
    if ratio.target is None:
        return ""
    sign = ">=" if ratio.better == "higher" else "<="
    unit = "" if ratio.theirs == ITSELF else "x"
    return f"{sign} {ratio.target:g}{unit}{'' if ratio.met(value) else ' MISSED'}"


def row(comparison: Comparison, ratio: Ratio) -> tuple[str, ...]:
    work = comparison.work if ratio.figure == "rate" else f"{comparison.work}, {ratio.figure}"
    ours = (work, ratio.ours, cell(comparison, ratio.ours, ratio.figure))
    theirs = comparison.theirs(ratio)
    if theirs is None:
        there = ratio.theirs in comparison.names
        beside = cell(comparison, ratio.theirs, ratio.figure) if there else "-"
        return (*ours, ratio.theirs, beside, "-", "-", "no figure")
    values = comparison.values(ratio.ours, theirs, ratio.figure)
    middle = statistics.median(values)
    aim = goal(ratio, middle)
    if theirs == ITSELF:
        spread = f"{number(min(values), ratio.figure)} .. {number(max(values), ratio.figure)}"
        return (*ours, "", "", "", spread, aim)
    beside = cell(comparison, theirs, ratio.figure)
    spread = f"{min(values):.2f} .. {max(values):.2f}"
    if ratio.theirs == BEST:
        theirs += ", the best"
    return (*ours, theirs, beside, f"{middle:.2f}x", spread, aim)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in rows
    ]


def target_table(comparisons: Iterable[Comparison]) -> list[str]:
    """A line for each ratio that is asked for."""
    rows: list[tuple[str, ...]] = [HEAD]
    rows += [row(each, ratio) for each in comparisons if each.rounds for ratio in each.ratios]
    return aligned(rows, RIGHT)


def entry(comparison: Comparison, name: str, figure: str) -> str:
    """A figure in a table of many."""
    if comparison.whole(name):
        has = comparison.has(name, figure)
        return number(comparison.median(name, figure), figure) if has else "-"
    if not comparison.runs(name):
        return "-"
    return "lost some" if comparison.trouble(name).startswith("lost") else "failed"


def short_names(works: Sequence[str]) -> list[str]:
    """Without the words at the end that all of them have."""
    parts = [work.split(", ") for work in works]
    while len(parts) > 1 and len({part[-1] for part in parts}) == 1 and len(parts[0]) > 2:
        parts = [part[:-1] for part in parts]
    return [", ".join(part) for part in parts]


def matrix(comparisons: Sequence[Comparison], figure: str) -> list[str]:
    """Contestants down, work across."""
    having = [each for each in comparisons if any(each.has(name, figure) for name in each.names)]
    if not having:
        return []
    names = dict.fromkeys(name for each in having for name in each.names)
    head = ("", *short_names([each.work for each in having]))
    rows = [head, *((name, *(entry(each, name, figure) for each in having)) for name in names)]
    right = (False, *(True for _ in having))
    return ["", f"{having[0].group}: {LABELS[figure]}", *aligned(rows, right)]


def profile(comparison: Comparison) -> list[str]:
    """Contestants down, figures across."""
    names = comparison.names
    having = [figure for figure in LABELS if any(comparison.has(name, figure) for name in names)]
    rows = [("", *having)]
    rows += [(name, *(entry(comparison, name, figure) for figure in having)) for name in names]
    right = (False, *(True for _ in having))
    return ["", f"{comparison.group}: {comparison.work}", *aligned(rows, right)]


def losses(comparisons: Iterable[Comparison]) -> list[str]:
    """What was lost, in full."""
    return [
        f"{each.work}: {name} {trouble}"
        for each in comparisons
        for name in each.names
        if (trouble := each.trouble(name))
    ]


def summary(comparisons: Iterable[Comparison]) -> list[str]:
    """A line of Markdown for each work that rivals do too: ours beside the best of them."""
    lines = ["| work | jumiks | best rival that lost nothing | ratio | min .. max |"]
    lines.append("|---|---|---|---|---|")
    for each in comparisons:
        ours = next((name for name in SHOWN if each.whole(name)), None)
        figure = "p50" if each.group == LATENCY else "rate"
        theirs = each.best_rival(figure)
        if ours is None or theirs is None:
            continue
        values = each.values(ours, theirs, figure)
        work = each.work if figure == "rate" else f"{each.work}, {figure}"
        lines.append(
            f"| {work} | {cell(each, ours, figure)} | {theirs}, {cell(each, theirs, figure)} "
            f"| {statistics.median(values):.3g}x | {min(values):.2f} .. {max(values):.2f} |"
        )
    return lines


def tables(comparisons: Sequence[Comparison]) -> list[str]:
    """All figures there are."""
    lines: list[str] = []
    for group in dict.fromkeys(each.group for each in comparisons):
        members = [each for each in comparisons if each.group == group]
        if group in PROFILED:
            lines += [line for each in members for line in profile(each)]
            continue
        for figure in LABELS:
            lines += matrix(members, figure) if (group, figure) not in DULL else []
    return lines


def full(comparisons: Sequence[Comparison]) -> list[str]:
    """All tables."""
    comparisons = [each for each in comparisons if each.rounds]
    lines = [*target_table(comparisons), *tables(comparisons)]
    lost = losses(comparisons)
    return [*lines, "", *lost] if lost else lines


PARTS = {"summary": summary, "targets": target_table, "tables": tables, "losses": losses}


def read(path: Path) -> list[Comparison]:
    """The comparisons of a results file."""
    found = json.loads(path.read_text())
    return [
        Comparison.from_json(each["extra_info"]["comparison"])
        for each in found["benchmarks"]
        if "comparison" in each["extra_info"]
    ]


if __name__ == "__main__":
    show = PARTS[sys.argv[2]] if len(sys.argv) > 2 else full
    print("\n".join(show(read(Path(sys.argv[1])))))
