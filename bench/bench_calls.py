# SPDX-License-Identifier: Apache-2.0
"""System calls of both ends (and of a broker) for a thousand messages of a saturated stream.

Counted from the moment on at which both ends are connected: by perf, which hardly slows anything
down, or else by strace, under which calls are so slow that more messages gather between them.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from .conftest import MISSING, Compare, there
from .harness import Outcome, RunFailed, connect, outcome
from .plan import CALLS, CALLS_RATIOS, EVERYBODY
from .work import Work

WORK = Work(seconds=0.3)
EVENT = "raw_syscalls:sys_enter"


def perf_works() -> bool:
    """It is there, and the kernel lets it count system calls."""
    if shutil.which("perf") is None:
        return False
    words = ["perf", "stat", "-x,", "-e", EVENT, "true"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode == 0 and "not" not in done.stderr


def command(tool: str, processes: Sequence[int], report: Path) -> list[str]:
    if tool == "perf":
        words = ["perf", "stat", "-x,", "-o", str(report), "-e", EVENT]
        return [*words, "-p", ",".join(map(str, processes))]
    words = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(report)]
    return [*words, *(word for process in processes for word in ("-p", str(process)))]


def counters(process: int) -> int:
    """How many counters perf holds open."""
    found = 0
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += "perf_event" in os.readlink(link)
    return found


def attached(tool: str, counter: subprocess.Popen[str], processes: Sequence[int]) -> None:
    """Wait until it counts in all threads."""
    assert counter.stderr is not None
    if tool == "strace":
        for _ in processes:
            counter.stderr.readline()
        return
    threads = sum(len(list(Path(f"/proc/{each}/task").iterdir())) for each in processes)
    while counter.poll() is None and counters(counter.pid) < threads:
        time.sleep(0.001)


def counted(report: Path) -> int:
    numbers = [
        int(found[1])
        for line in report.read_text().splitlines()
        if (found := re.match(r"\s*(\d+)[, ]", line)) and "total" not in line
    ]
    return sum(numbers)


def count(tool: str, name: str) -> Outcome:
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            ends = connect(name, WORK, stack)
            words = command(tool, ends.processes, folder / "report")
            counter = stack.enter_context(
                subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(counter.kill)
            attached(tool, counter, ends.processes)
            found = outcome(*ends.run())
            if counter.poll() is None:
                counter.send_signal(signal.SIGINT)
            counter.wait()
            calls = counted(folder / "report")
    except RunFailed as failed:
        return Outcome({}, 0, failure=str(failed))
    return replace(found, figures={"calls": calls * 1000 / (found.due - found.lost)})


def test_system_calls(compare: Compare, quick: bool) -> None:
    if quick:
        pytest.skip("left out of a quick run")
    tool = "perf" if perf_works() else "strace"
    if shutil.which(tool) is None:
        MISSING.add("system calls were not counted: apt-get install linux-perf, or strace")
        pytest.skip("there is neither perf nor strace")

    def contestant(name: str) -> Callable[[], Outcome]:
        return lambda: count(tool, name)

    contestants = {name: contestant(name) for name in there(EVERYBODY)}
    compare(f"64 B, 1 client, batched, by {tool}", CALLS, contestants, CALLS_RATIOS, 1)
