# SPDX-License-Identifier: Apache-2.0
"""Runs, rounds and ratios.

A *run* is one contestant doing one piece of work, in fresh processes. A *round* is one run of each
contestant, one after another, in turning order. The figure of a comparison is the median of the
rounds' ratios: what slows the machine down for a while then slows both sides of a ratio.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .adapters import CONTESTANTS, RIVALS, Contestant
from .work import QUANTILE_NAMES, Work

ROOT = Path(__file__).parent.parent

DEADLINE = 20.0
"""Seconds for a run, after which it has failed."""

FRAME_HEADER = 16
PACKET = 65536


@dataclass(frozen=True)
class Outcome:
    """What one run gave.

    Args:
        figures: by name: "rate" (deliveries/s), "publisher cpu", "subscriber cpu" and their sum
            "cpu" (CPU seconds a million deliveries, which is us per delivery), "server cpu" (of the
            publishing end, us per published message), "p50" and so on (us).
        due: messages that should have arrived, all clients together.
        lost: those of them that did not.
        wrong: messages that were not what was published.
        failure: why there are no figures, if so.
    """

    figures: Mapping[str, float]
    due: int
    lost: int = 0
    wrong: int = 0
    failure: str = ""

    @property
    def whole(self) -> bool:
        """All arrived as it was published."""
        return not (self.lost or self.wrong or self.failure)


class RunFailed(Exception):
    """One end of a run ended early, or not in time."""


class Worker:
    """A process of one run, with a group of its own; leaving the `with` block ends all of it."""

    def __init__(self, *command: object) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def _failed(self) -> RunFailed:
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        return RunFailed(said[-1] if said else "it did not finish in time")

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise self._failed()
        return line

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Close its input, wait for its end, and return the last line."""
        output, _ = self.process.communicate()
        if self.process.returncode or not output:
            raise self._failed()
        return output.splitlines()[-1]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.communicate()
        self._errors.close()


@contextmanager
def deadline(seconds: float, *workers: Worker) -> Iterator[None]:
    """Kill them at a deadline: whoever waits for them then reads an end of file."""

    def kill() -> None:
        for worker in workers:
            worker.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@dataclass
class Ends:
    """Both ends of a run, connected."""

    publisher: Worker
    subscribers: Worker
    processes: list[int]

    def run(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Let it go; returns the publisher's figures and the subscribers'."""
        self.subscribers.go()
        self.publisher.go()
        figures = json.loads(self.publisher.line())
        ends = json.loads(self.subscribers.line())
        return {**figures, **json.loads(self.publisher.end())}, ends


def connect(name: str, work: Work, stack: ExitStack) -> Ends:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jumiks-bench-"))

    def worker(role: str) -> Worker:
        words = (name, f"{folder}/socket", json.dumps(asdict(work)))
        return stack.enter_context(Worker(sys.executable, "-m", "bench.worker", role, *words))

    publisher, subscribers = worker("publisher"), worker("subscribers")
    stack.enter_context(deadline(DEADLINE, publisher, subscribers))
    processes = json.loads(publisher.line())
    subscribers.line()
    subscribers.go()
    processes += json.loads(subscribers.line())
    return Ends(publisher, subscribers, processes)


def run(name: str, work: Work, program: Path | None = None) -> Outcome:
    """One run of a contestant; `program` is the C one (floor.c)."""
    try:
        if CONTESTANTS[name].module == "floor":
            return run_in_c(CONTESTANTS[name], work, program)
        with ExitStack() as stack:
            published, ends = connect(name, work, stack).run()
    except RunFailed as failed:
        return Outcome({}, 0, failure=str(failed))
    if len(ends) < work.clients:
        return Outcome({}, 0, failure=f"{work.clients - len(ends)} subscribers failed")
    return outcome(published, ends)


def outcome(published: Mapping[str, float], ends: Sequence[Mapping[str, float]]) -> Outcome:
    due = int(published["count"]) * len(ends)
    got = sum(int(end["count"]) for end in ends)
    seconds = (max(end["end"] for end in ends) - published["begin"]) / 1e9
    figures = {name: value for name, value in ends[0].items() if name in QUANTILE_NAMES}
    if got:
        subscribers = sum(end["cpu"] for end in ends)
        figures |= rates(got, len(ends), seconds, published["cpu"], subscribers)
    return Outcome(figures, due, due - got, sum(int(end["wrong"]) for end in ends))


def rates(
    got: int, clients: int, seconds: float, publisher: float, subscribers: float
) -> dict[str, float]:
    millions = got / 1e6
    return {
        "rate": got / seconds,
        "publisher cpu": publisher / millions,
        "subscriber cpu": subscribers / millions,
        "cpu": (publisher + subscribers) / millions,
        "server cpu": publisher / millions * clients,
    }


COSTS = {
    "send": (900, 0.3),
    "acked": (1500, 0.4),
    "mmsg": (700, 0.3),
    "packets": (900, 0.3),
    "memcpy": (4, 0.1),
    "classic": (1300, 0.4),
    "classic-many": (1100, 0.4),
    "framed-many": (20, 0.4),
    "shared-many": (12, 0.05),
}
"""About what a delivery takes in C, ns, and each byte of it: for runs of the length asked for."""


def run_in_c(contestant: Contestant, work: Work, program: Path | None) -> Outcome:
    assert program is not None
    mode, *log_size = contestant.words
    if contestant.core:
        program = program.with_name(contestant.core)
    size = PACKET - 8 if mode == "packets" else work.size
    call, byte = COSTS[mode]
    messages = int(work.seconds * 1e9 / (work.clients * (call + byte * size))) + 1
    words = [str(program), mode, str(work.clients), str(messages), str(size), *log_size]
    with Worker(*words) as worker, deadline(DEADLINE, worker):
        found = json.loads(worker.end())
    due, count, wrong = (int(found.pop(name)) for name in ("due", "count", "wrong"))
    seconds = count / found["rate"]
    cpu = found["publisher cpu"], found["subscriber cpu"]
    figures = rates(count, work.clients, seconds, *cpu)
    if mode == "packets":
        # As if each packet were full of frames of the messages asked for.
        frames = PACKET / (FRAME_HEADER + -(-work.size // 8) * 8)
        figures = {name: value / frames for name, value in figures.items()}
        figures["rate"] *= frames * frames
    return Outcome(figures, due, due - count, wrong)


# ---- comparisons ----

Better = Literal["higher", "lower"]
BEST = "best rival"
ITSELF = ""


@dataclass(frozen=True)
class Ratio:
    """What is asked of one comparison: ours beside theirs.

    Args:
        ours: a contestant of the comparison.
        theirs: another; `BEST` for the rival with the best median, of those that lost nothing; or
            `ITSELF`, which asks for the figure and not for a ratio.
        figure: which figure of theirs is compared.
        target: what the ratio should be at least, or at most if lower is better; None if nothing
            was promised.
    """

    ours: str
    theirs: str
    figure: str = "rate"
    target: float | None = None

    @property
    def better(self) -> Better:
        return "higher" if self.figure == "rate" else "lower"

    def met(self, value: float) -> bool:
        if self.target is None:
            return True
        return value >= self.target if self.better == "higher" else value <= self.target


@dataclass
class Comparison:
    """All rounds of one piece of work.

    Args:
        work: its name.
        group: what it is listed with.
        names: who takes part.
        ratios: what is asked of it.
        rounds: the outcomes by name, round by round.
    """

    work: str
    group: str
    names: Sequence[str]
    ratios: Sequence[Ratio] = ()
    rounds: list[dict[str, Outcome]] = field(default_factory=list)

    def runs(self, name: str) -> list[Outcome]:
        return [round_[name] for round_ in self.rounds if name in round_]

    def whole(self, name: str) -> bool:
        """It took part, and lost nothing in any round."""
        runs = self.runs(name)
        return bool(runs) and all(run.whole for run in runs)

    def has(self, name: str, figure: str) -> bool:
        return any(figure in run.figures for run in self.runs(name))

    def trouble(self, name: str) -> str:
        """What went wrong, in a few words; empty if nothing did."""
        runs = self.runs(name)
        if failures := [run.failure for run in runs if run.failure]:
            return f"failed: {failures[0][:60]}"
        if lost := sum(run.lost for run in runs):
            return f"lost {lost:,} of {sum(run.due for run in runs):,}"
        wrong = sum(run.wrong for run in runs)
        return f"{wrong:,} were wrong" if wrong else ""

    def median(self, name: str, figure: str = "rate") -> float:
        return statistics.median(run.figures[figure] for run in self.runs(name))

    def best_rival(self, figure: str = "rate") -> str | None:
        whole = [
            name
            for name in self.names
            if name in RIVALS and self.whole(name) and self.has(name, figure)
        ]
        pick = max if figure == "rate" else min
        return pick(whole, key=lambda name: self.median(name, figure), default=None)

    def theirs(self, ratio: Ratio) -> str | None:
        """Whom a ratio is taken to; None if one of the two has no whole figures."""
        name = self.best_rival(ratio.figure) if ratio.theirs == BEST else ratio.theirs
        if name is None or not self.whole(ratio.ours):
            return None
        return name if name == ITSELF or self.whole(name) else None

    def values(self, ours: str, theirs: str, figure: str = "rate") -> list[float]:
        """The ratio in each round, or the figure if there is nobody to compare with."""
        found = []
        for round_ in self.rounds:
            value = round_[ours].figures[figure]
            found.append(value / round_[theirs].figures[figure] if theirs else value)
        return found

    def broken(self) -> list[str]:
        """Which of ours lost something, or failed: that is a bug, whatever the speed."""
        return [
            f"{name} {trouble}"
            for name in self.names
            if name.startswith(("jumiks", "core-")) and (trouble := self.trouble(name))
        ]

    def as_json(self) -> dict[str, Any]:
        """All of it, for the results file."""
        return asdict(self)

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Comparison":
        rounds = [
            {name: Outcome(**each) for name, each in round_.items()} for round_ in found["rounds"]
        ]
        ratios = [Ratio(**each) for each in found["ratios"]]
        return Comparison(found["work"], found["group"], found["names"], ratios, rounds)


def orders(names: Sequence[str]) -> Iterator[list[str]]:
    """Each round begins with another contestant."""
    turn = 0
    while True:
        yield [*names[turn:], *names[:turn]]
        turn = (turn + 1) % len(names)
