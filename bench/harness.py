# SPDX-License-Identifier: Apache-2.0
"""Runs, rounds and ratios.

A *run* is one contestant doing one piece of work, in fresh processes. A *round* is one run of each
contestant, one after another, in turning order. The figure of a comparison is the median of the
rounds' ratios: what slows the machine down for a while then slows both sides of a ratio.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .worker import Work

ROOT = Path(__file__).parent.parent

DEADLINE = 60.0
"""Seconds for one end of a run to finish."""


@dataclass(frozen=True)
class Outcome:
    """What one run gave.

    Args:
        figures: by name, such as "rate" (deliveries/s), "p50" (us), "publisher cpu" (s).
        due: messages that should have arrived, all clients together.
        lost: those of them that did not.
        wrong: messages that were not what was published.
    """

    figures: Mapping[str, float]
    due: int
    lost: int = 0
    wrong: int = 0


class Worker:
    """A process of one run; leaving the `with` block ends it."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended early")
        return line

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, float]:
        """Close its input and wait for its figures."""
        output, _ = self.process.communicate(timeout=DEADLINE)
        if self.process.returncode:
            raise RuntimeError(f"{self.process.args!r} failed")
        figures: dict[str, float] = json.loads(output.splitlines()[-1])
        return figures

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def run(adapter: str, work: Work) -> Outcome:
    """One run, Python to Python."""

    def worker(role: str) -> Worker:
        words = (adapter, f"{folder}/socket", json.dumps(asdict(work)))
        return stack.enter_context(Worker(sys.executable, "-m", "bench.worker", role, *words))

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jumiks-bench-"))
        publisher = worker("publisher")
        publisher.line()
        subscribers = [worker("subscriber") for _ in range(work.clients)]
        for subscriber in subscribers:
            subscriber.line()
        publisher.go()
        begin = json.loads(publisher.line())["begin"]
        ends = [subscriber.result() for subscriber in subscribers]
        cost = publisher.result()["cpu"]

    due = work.messages * work.clients
    got = sum(int(end["count"]) for end in ends)
    seconds = (max(end["end"] for end in ends) - begin) / 1e9
    figures = {
        "rate": got / seconds,
        "publisher cpu": cost,
        "subscriber cpu": sum(end["cpu"] for end in ends),
    }
    if work.pace:
        figures = {name: ends[0][name] for name in ("p50", "p99", "p99.9")}
    return Outcome(figures, due, due - got, sum(int(end["wrong"]) for end in ends))


@dataclass(frozen=True)
class Ratio:
    """One line of the table: ours beside theirs.

    Args:
        ours: a contestant.
        theirs: another.
        figure: which figure of theirs is compared.
        target: what the ratio should be; None if nothing was promised.
        better: whether a higher or a lower ratio is better.
    """

    ours: str
    theirs: str
    figure: str = "rate"
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"


@dataclass
class Comparison:
    """All rounds of one piece of work."""

    work: str
    ratios: Sequence[Ratio]
    rounds: list[dict[str, Outcome]] = field(default_factory=list)

    def add(self, order: Sequence[str], contestants: Mapping[str, Callable[[], Outcome]]) -> None:
        """Do one round."""
        done = {name: contestants[name]() for name in order}
        self.rounds.append(done)

    def values(self, ratio: Ratio) -> list[float]:
        """The ratio in each round."""
        return [
            round_[ratio.ours].figures[ratio.figure] / round_[ratio.theirs].figures[ratio.figure]
            for round_ in self.rounds
        ]

    def median(self, contestant: str, figure: str) -> float:
        return statistics.median(round_[contestant].figures[figure] for round_ in self.rounds)

    def loss(self, contestant: str) -> tuple[int, int]:
        """Messages lost, and due, all rounds together."""
        runs = [round_[contestant] for round_ in self.rounds]
        return sum(run.lost for run in runs), sum(run.due for run in runs)

    def as_json(self) -> dict[str, Any]:
        """All of it, for the results file."""
        return {
            "work": self.work,
            "ratios": [
                {**asdict(ratio), "values": self.values(ratio)}
                for ratio in self.ratios
                if not self.loss(ratio.theirs)[0]
            ],
            "rounds": [
                {name: asdict(outcome) for name, outcome in round_.items()}
                for round_ in self.rounds
            ],
        }


def orders(names: Sequence[str]) -> Iterator[list[str]]:
    """Each round begins with another contestant."""
    turn = 0
    while True:
        yield [*names[turn:], *names[:turn]]
        turn = (turn + 1) % len(names)


# ---- the table ----


def shown(value: float, figure: str) -> str:
    if figure == "rate":
        return f"{value / 1e6:.2f} M/s" if value < 1e7 else f"{value / 1e6:.1f} M/s"
    return f"{value:.1f} us"


def cell(comparison: Comparison, contestant: str, figure: str) -> str:
    lost, due = comparison.loss(contestant)
    if lost:
        return f"lost {lost:,} of {due:,}"
    return shown(comparison.median(contestant, figure), figure)


def row(comparison: Comparison, ratio: Ratio) -> tuple[str, ...]:
    work = comparison.work if ratio.ours == "jumiks" else f"{comparison.work}, {ratio.ours}"
    if ratio.figure != "rate":
        work += f", {ratio.figure}"
    cells = (
        work,
        cell(comparison, ratio.ours, ratio.figure),
        ratio.theirs,
        cell(comparison, ratio.theirs, ratio.figure),
    )
    if comparison.loss(ratio.ours)[0] or comparison.loss(ratio.theirs)[0]:
        return (*cells, "-", "-", "-")
    values = comparison.values(ratio)
    middle = statistics.median(values)
    goal = ""
    if ratio.target is not None:
        met = middle >= ratio.target if ratio.better == "higher" else middle <= ratio.target
        sign = ">=" if ratio.better == "higher" else "<="
        goal = f"{sign} {ratio.target:g}x{'' if met else ' MISSED'}"
    return (*cells, f"{middle:.2f}x", f"{min(values):.2f} .. {max(values):.2f}", goal)


HEAD = ("work", "jumiks", "beside", "its figure", "ratio", "min .. max", "target")
RIGHT = (False, True, False, True, True, True, False)


def table(comparisons: Sequence[Comparison]) -> list[str]:
    rows: list[tuple[str, ...]] = [HEAD]
    rows += [row(each, ratio) for each in comparisons if each.rounds for ratio in each.ratios]
    widths = [max(len(line[column]) for line in rows) for column in range(len(HEAD))]
    return [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, RIGHT, strict=True)
        ).rstrip()
        for line in rows
    ]
