# SPDX-License-Identifier: Apache-2.0
"""`jumiks top`: a running server, live."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from jumiks.errors import JumiksError
from jumiks.monitor import Monitor
from jumiks.stats import ClientInfo

from .status import Sample, cells, cut, fitting, server_lines, table, terminal_width

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text
except ImportError as _error:
    raise JumiksError(
        "top needs rich, which is not installed: pip install 'jumiks[cli]'"
    ) from _error

__all__ = ["run"]

STEPS: Final = "▁▂▃▄▅▆▇█"
LATELY: Final = 10
"""How many updates the history of a client's lag shows."""

_WIDE: Final = 10_000
"""Columns of a pipe: more than a line has."""

_HELP: Final = (
    "q       end",
    "s       sort by the next column: LIMIT, LAG, ACKED/S, SKIPPED, NAME",
    "r       sort the other way round",
    "h, ?    this help; any key ends it",
    "",
    "LIMIT   lag as a share of the nearest limit: max_lag, or the log's bytes",
    "LATELY  LIMIT in the last updates, the newest on the right",
    "WORST   the largest lag that was seen, messages",
    "MSG/S   messages sent, or offered in the shared log",
    "ACKED/S messages that it has handled",
    "SKIPPED messages that it missed; while these rise, LIMIT and LATELY may fall",
)

SORTS: Final[dict[str, Callable[[Sample, ClientInfo], tuple[float, str]]]] = {
    "LIMIT": lambda sample, info: (-sample.share(info), info.name),
    "LAG": lambda _, info: (-info.lag, info.name),
    "ACKED/S": lambda sample, info: (-sample.rates(info)[1], info.name),
    "SKIPPED": lambda _, info: (-info.skipped, info.name),
    "NAME": lambda _, info: (0, info.name),
}


class View:
    """What is shown, and what was seen of each client lately."""

    def __init__(self) -> None:
        self.sort: str = "LIMIT"
        self.backwards: bool = False
        self.help: bool = False
        self.ended: bool = False
        self._lately: dict[int, deque[float]] = {}

    def press(self, key: str) -> None:
        """Do what a key says."""
        names = list(SORTS)
        if self.help:
            self.help = False
        elif key == "q":
            self.ended = True
        elif key == "s":
            self.sort = names[(names.index(self.sort) + 1) % len(names)]
        elif key == "r":
            self.backwards = not self.backwards
        elif key in ("h", "?"):
            self.help = True

    def note(self, sample: Sample) -> None:
        """Remember how near to its limit each client is; forget those that are gone."""
        before, self._lately = self._lately, {}
        for info in sample.status.clients:
            seen = self._lately[info.key] = before.get(info.key) or deque(maxlen=LATELY)
            seen.append(sample.share(info))

    def _history(self, info: ClientInfo) -> str:
        seen = self._lately.get(info.key, ())
        return "".join(STEPS[min(len(STEPS) - 1, int(part * len(STEPS)))] for part in seen)

    def lines(self, sample: Sample, width: int, height: int) -> Iterator[Text]:
        """Return the lines of a screen of this width (columns) and height (lines)."""
        if self.help:
            yield from (Text(cut(line, width)) for line in _HELP)
            return
        head = server_lines(sample)
        yield from (Text(cut(line, width)) for line in head)
        infos = sorted(
            sample.status.clients,
            key=lambda info: SORTS[self.sort](sample, info),
            reverse=self.backwards,
        )
        room = max(1, height - len(head) - 4)
        rows = [{**cells(sample, info), "LATELY": self._history(info)} for info in infos[:room]]
        yield Text("")
        if rows:
            titles, *shown = table(fitting(rows, width))
            yield Text(cut(titles, width), style="bold")
            for line, info in zip(shown, infos, strict=False):
                yield Text(cut(line, width), style=_colour(sample.share(info)))
        if len(infos) > room:
            yield Text(f"and {len(infos) - room} more")
        yield Text(
            cut(f"by {self.sort}   s: sort  r: reverse  h: help  q: end", width), style="dim"
        )


def _colour(part: float) -> str:
    return "red" if part > 0.8 else "yellow" if part > 0.5 else "green"


def run(options: argparse.Namespace) -> int:
    """Show the status again and again, until `q`, Ctrl-C or `--count`."""
    left: int = sys.maxsize if options.count is None else options.count
    console, view = Console(), View()
    if not console.is_terminal:
        console.width = _WIDE  # rich cuts lines where it takes a pipe for 80 columns
    with Monitor(options.address) as monitor, _keys() as keys:
        sample = Sample(*[monitor.status()] * 2)
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while left and not view.ended:
                for key in keys(options.interval):
                    view.press(key)
                    if key == "q":
                        break
                    live.update(_picture(view, sample), refresh=True)
                sample = Sample(monitor.status(), sample.status)
                view.note(sample)
                live.update(_picture(view, sample), refresh=True)
                left -= 1
        if not console.is_terminal:  # the last picture stays, and has no end of line
            console.print()
    return 0


def _picture(view: View, sample: Sample) -> Group:
    lines = list(view.lines(sample, terminal_width(), shutil.get_terminal_size().lines))
    for line in lines:
        line.no_wrap = True
        line.overflow = "ignore"
    return Group(*lines)


@contextmanager
def _keys() -> Iterator[Callable[[float], Iterator[str]]]:
    """Yield a function: it yields the keys pressed within a number of seconds, at a terminal."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        yield _wait
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _wait(seconds: float) -> Iterator[str]:
    time.sleep(seconds)
    yield from ()


def _pressed(seconds: float) -> Iterator[str]:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            keys = os.read(sys.stdin.fileno(), 64).decode("latin-1")
            if not keys:
                raise KeyboardInterrupt  # the terminal is gone
            if not keys.startswith("\x1b"):  # an arrow is no letter
                yield from keys
