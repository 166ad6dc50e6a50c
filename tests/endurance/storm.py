# SPDX-License-Identifier: Apache-2.0
"""A storm of connections: how many a second are let in, and what publishing is like meanwhile.

A server publishes at a steady pace to a few clients. Then programs in C (storm.c) connect, shake
hands and leave as fast as they can. Quiet and storm take turns; between them the same storm goes to
another server, which shows what the machine's being busy does by itself. Each message tells when
it was due: `call` is how long `publish` took, `turn` the time from then until it had returned,
`delivery` until a client had it.
"""

import json
import os
import shutil
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from jumiks import Client, ConnectionEnded, Delivery, Server

from .common import (
    DEADLINE,
    Children,
    Failed,
    Figures,
    Words,
    arguments,
    conclude,
    quantile,
    require,
    spread,
    there,
    wait_for,
)

PHASE, CLIENTS, ENDED = range(3)
OVER: Final = 1 << 32
STAMP: Final = struct.Struct("<QQ")
KINDS: Final = ("quiet", "elsewhere", "here")
FOREIGN: Final = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
"""For programs that are not Python: a sanitizer's runtime is no business of theirs."""
FIGURES: Final = ("call", "turn", "delivery")

DELIVERIES: Final[tuple[Delivery, ...]] = ("shared", "framed")
"""Of its clients."""


def build(folder: Path) -> Path:
    """Compile storm.c."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Failed("there is no C compiler, which the storm needs")
    program = folder / "storm"
    source = Path(__file__).with_suffix(".c")
    words = [compiler, "-std=c11", "-O2", "-Wall", "-o", str(program), str(source)]
    subprocess.run(words, check=True, env=FOREIGN)
    return program


STRANGER: Final = 65533
"""A user that is nobody else's."""


@contextmanager
def storming(
    program: Path, address: str, kind: str, seconds: float, count: int, held: int = 1
) -> Iterator[list[subprocess.Popen[str]]]:
    """The storm's processes, which wait for the line that lets them begin."""
    command = [str(program), address, kind, str(seconds), str(held)]
    pipe = subprocess.PIPE
    # A flood pushes out half-open connections of its own user: let it be another, if it can.
    user = STRANGER if kind == "silent" and os.geteuid() == 0 else None
    program.parent.chmod(0o755)
    with ExitStack() as stack:
        storms = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, text=True, env=FOREIGN, user=user
                )
            )
            for _ in range(count)
        ]
        for storm in storms:
            stack.callback(storm.kill)
        yield storms


def let_loose(storms: Sequence[subprocess.Popen[str]], seconds: float) -> dict[str, int]:
    """Begin, and wait for the end; returns what all of them counted."""
    for storm in storms:
        assert storm.stdin is not None
        storm.stdin.write("\n")
        storm.stdin.flush()
    said = [json.loads(storm.communicate(timeout=seconds + DEADLINE)[0]) for storm in storms]
    return {name: sum(each[name] for each in said) for name in ("through", "failed")}


# ---- the children ----


def serve(address: str, words: Words, pace: float, report: Path) -> None:
    """Publish at a steady pace, and note how long that takes, until all is over."""
    samples: dict[int, list[tuple[float, float]]] = {}
    with Server(address) as server:
        due = time.monotonic_ns()
        while (phase := words[PHASE]) != OVER:
            due = max(due + int(1e9 / pace), time.monotonic_ns() - 1_000_000_000)
            time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
            begin = time.monotonic_ns()
            server.publish(STAMP.pack(due, phase))
            end = time.monotonic_ns()
            samples.setdefault(phase, []).append((end - begin, end - due))
            words[ENDED] = sum(server.endings.values())
    report.write_text(json.dumps(samples))


def follow(address: str, words: Words, index: int, delivery: Delivery, report: Path) -> None:
    """Receive, and note how long each message was under way."""
    samples: dict[int, list[int]] = {}
    with Client(address, delivery=delivery) as client:
        words[CLIENTS + 2 + index] = 1
        try:
            while True:
                due, phase = STAMP.unpack(client.receive())
                samples.setdefault(phase, []).append(time.monotonic_ns() - due)
        except ConnectionEnded:
            report.write_text(json.dumps(samples))


def stand_by(address: str, words: Words) -> None:
    """Be the other server."""
    with Server(address):
        wait_for(lambda: words[PHASE] == OVER, "the end", 3600)


# ---- the run ----


class Run:
    """A server, its steady clients, the other server, and one phase after another."""

    def __init__(self, children: Children, program: Path, folder: Path, pace: float) -> None:
        self.program = program
        self.folder = folder
        self.words = Words(16)
        self.phases: list[str] = []
        self.rates: list[float] = []
        self.failed = 0
        self.addresses = [f"@{folder.name}-here", f"@{folder.name}-elsewhere"]
        here, elsewhere = self.addresses
        self.children = children
        self.server = children.fork(partial(serve, here, self.words, pace, folder / "server.json"))
        self.other = children.fork(partial(stand_by, elsewhere, self.words))
        self.clients = []
        wait_for(lambda: there(here) and there(elsewhere), "both servers")
        for index, delivery in enumerate(DELIVERIES):
            work = partial(
                follow, here, self.words, index, delivery, folder / f"client-{index}.json"
            )
            self.clients.append(children.fork(work))
            wait_for(partial(self.words.__getitem__, CLIENTS + 2 + index), "a client")

    def phase(self, where: str, kind: str, seconds: float, count: int) -> None:
        """Let a storm loose, or none, and count."""
        address = self.addresses[where == "elsewhere"]
        with storming(self.program, address, kind, seconds, count) as storms:
            self.phases.append(where)
            before, begin = self.words[ENDED], time.monotonic()
            self.words[PHASE] = len(self.phases)
            if where == "quiet":
                time.sleep(seconds)
            else:
                counts = let_loose(storms, seconds)
                self.failed += counts["failed"]
            if where == "here":
                through = counts["through"]
                if kind != "classic":  # one of those may be gone before it was let in
                    wait_for(lambda: self.words[ENDED] - before >= through, "the end of the last")
                self.rates.append(through / (time.monotonic() - begin))
            self.words[PHASE] = 0
            self.children.check()

    def finish(self) -> dict[str, dict[int, list[float]]]:
        """End all; returns the samples by what they are of and phase, us."""
        self.words[PHASE] = OVER
        for process in (self.server, *self.clients, self.other):
            self.children.end(process)
        found = {}
        server = json.loads((self.folder / "server.json").read_text())
        for index, name in enumerate(("call", "turn")):
            found[name] = {
                int(phase): [each[index] / 1000 for each in some] for phase, some in server.items()
            }
        found["delivery"] = {}
        for index in range(len(self.clients)):
            client = json.loads((self.folder / f"client-{index}.json").read_text())
            for phase, some in client.items():
                found["delivery"].setdefault(int(phase), []).extend(each / 1000 for each in some)
        return found


def tell(run: Run, samples: dict[str, dict[int, list[float]]], rounds: int) -> Figures:
    """The figures: medians of the rounds, and of the rounds' ratios."""
    figures: Figures = {}
    turns = [[3 * turn + 1 + place for turn in range(rounds)] for place in range(3)]
    for name in FIGURES:
        p99 = [[quantile(samples[name][phase], 0.99) for phase in some] for some in turns]
        for where, values in zip(KINDS, p99, strict=True):
            figures[f"{name} p99 {where}, us"] = round(statistics.median(values), 1)
        for base, place in (("quiet", 0), ("elsewhere", 1)):
            ratios = [here / there for here, there in zip(p99[2], p99[place], strict=True)]
            figures[f"{name} p99 here / {base}"] = spread(ratios)
    figures["connections a second"] = spread(run.rates)
    return figures


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=int, default=3, help="processes that make the storm")
    parser.add_argument("--kind", choices=["classic", "framed", "shared"], default="framed")
    parser.add_argument("--pace", type=float, default=1000, help="messages a second")
    parser.add_argument("--least-rate", type=float, default=0, help="connections a second")
    parser.add_argument("--most-ratio", type=float, default=0, help="of the calls' p99s")
    options = parser.parse_args()

    def run(figures: Figures) -> None:
        with tempfile.TemporaryDirectory(prefix="jmk-storm-") as name, Children() as children:
            folder = Path(name)
            storm = Run(children, build(folder), folder, options.pace)
            for _ in range(options.rounds):
                for where in KINDS:
                    storm.phase(where, options.kind, options.seconds, options.peers)
            samples = storm.finish()
        told = tell(storm, samples, options.rounds)
        figures.update(told)
        figures["connections that failed"] = storm.failed
        require(not storm.failed, f"{storm.failed} connections failed before their welcome")
        rate = statistics.median(storm.rates)
        require(rate >= options.least_rate, f"{rate:.0f} connections a second were let in")
        ratio = statistics.median(
            quantile(samples["call"][3 * turn + 3], 0.99)
            / quantile(samples["call"][3 * turn + 1], 0.99)
            for turn in range(options.rounds)
        )
        most = options.most_ratio or ratio
        require(ratio <= most, f"publishing took {ratio:.1f} times as long at its p99")

    conclude(f"storm of {options.kind} peers", run, options.json)


if __name__ == "__main__":
    main()
