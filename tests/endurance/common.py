# SPDX-License-Identifier: Apache-2.0
"""What the endurance runs share: children, memory that outlives them, /proc, results.

Each run is a program of its own, bounded in time: it forks its servers and clients from a process
that has neither, so that each makes its own, and its children die with it whatever happens. What a
child notes in shared memory is still there after it was killed.
"""

import argparse
import ctypes
import json
import mmap
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

FIRST_ID: Final = 100_000
DEADLINE: Final = 20.0
"""Seconds in which whatever is waited for has happened, on a busy machine too."""

Figures: TypeAlias = dict[str, object]

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """The run showed what it must not."""


def require(condition: object, text: str) -> None:
    """Fail the run unless a condition holds."""
    if not condition:
        raise Failed(text)


def wait_for(condition: Callable[[], object], what: str, timeout: float = DEADLINE) -> None:
    """Wait until a condition holds; fail the run if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        require(time.monotonic() < deadline, f"not within {timeout:g} s: {what}")
        time.sleep(0.0005)


# ---- children ----


class Children:
    """Processes forked from this one; all of them are gone at the end of the block."""

    def __init__(self) -> None:
        self.alive: set[int] = set()

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *error: object) -> None:
        for process in tuple(self.alive):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            self.wait(process)

    def fork(self, work: Callable[[], object]) -> int:
        """Do that in a process of its own; returns its id."""
        sys.stdout.flush()
        parent = os.getpid()
        process = os.fork()
        if process:
            self.alive.add(process)
            return process
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            work()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def kill(self, process: int) -> None:
        """SIGKILL, and wait until it is gone. It must have been alive."""
        os.kill(process, signal.SIGKILL)
        status = self.wait(process)
        require(
            os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0,
            f"child {process} had failed by itself before it was killed",
        )

    def wait(self, process: int) -> int:
        """Wait until it is gone; returns its status as waitpid(2) does."""
        status = os.waitpid(process, 0)[1]
        self.alive.remove(process)
        return status

    def end(self, process: int, timeout: float = DEADLINE) -> None:
        """Wait until it has ended by itself, and well."""
        found = [0, 0]

        def ended() -> bool:
            found[:] = os.waitpid(process, os.WNOHANG)
            return found[0] == process

        wait_for(ended, f"the end of child {process}", timeout)
        self.alive.remove(process)
        require(found[1] == 0, f"child {process} failed: status {found[1]}")

    def check(self, processes: Iterable[int] | None = None) -> None:
        """Fail if one of those, by default of all, ended that nobody had told to."""
        for process in tuple(self.alive if processes is None else processes):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                self.alive.remove(process)
                raise Failed(f"child {process} ended by itself: status {status}")

    def reap(self, processes: Iterable[int]) -> list[int]:
        """Those of them that have ended by themselves, which must have been well."""
        ended = []
        for process in processes:
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                self.alive.remove(process)
                ended.append(process)
                require(status == 0, f"child {process} failed: status {status}")
        return ended


class Words:
    """Numbers in memory that forked children share; they survive the death of who wrote them."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, 8 * count)
        self._view = memoryview(self._memory).cast("Q")

    def __getitem__(self, index: int) -> int:
        return self._view[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._view[index] = value

    def read(self, first: int, count: int) -> list[int]:
        """Several of them."""
        return self._view[first : first + count].tolist()


# ---- what the kernel says ----


def status_of(process: int) -> dict[str, int]:
    """The numbers of /proc/PID/status, memory in bytes (proc_pid_status(5))."""
    found = {}
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[-1] == "kB" else 1)
    return found


def descriptors_of(process: int | str = "self") -> list[str]:
    """What its descriptors are."""
    found = []
    for number in os.listdir(f"/proc/{process}/fd"):
        with suppress(FileNotFoundError):  # the one that listed the directory
            found.append(os.readlink(f"/proc/{process}/fd/{number}"))
    return sorted(found)


def log_mappings_of(process: int | str) -> int:
    """How many mappings of logs and cursor pages it has."""
    return Path(f"/proc/{process}/maps").read_text().count("memfd:jumiks")


# ---- figures ----


def quantile(samples: Sequence[float], part: float) -> float:
    """The sample that `part` (0 to 1) of all are below."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def spread(values: Sequence[float]) -> Figures:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def there(address: str) -> bool:
    """Whether somebody serves that address."""
    # A Client leaves a thread for a moment, and a sanitizer's locks outlive no fork beside one.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


@contextmanager
def fresh_address(kind: str = "abstract") -> Iterator[str]:
    """An address that nobody has; a path stands in a folder of its own."""
    if kind == "abstract":
        yield f"@jumiks-endurance-{os.getpid()}-{os.urandom(4).hex()}"
        return
    with tempfile.TemporaryDirectory(prefix="jmk-") as folder:
        yield f"{folder}/socket"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what all runs take."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser


def machine() -> Figures:
    """Where this ran."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
        "python": ".".join(map(str, sys.version_info[:3])),
        "load before": os.getloadavg()[0],
    }


def conclude(name: str, run: Callable[[Figures], object], json_file: Path | None) -> None:
    """Run it, print one line of result, write the figures, and exit: 0 if it held.

    Args:
        name: of the run.
        run: does it, and fills in the figures; raises `Failed` if it did not hold.
        json_file: where the figures go, if anywhere.
    """
    figures: Figures = {"run": name, "command": " ".join(sys.argv[1:]), "machine": machine()}
    begin, verdict = time.monotonic(), "held"
    try:
        run(figures)
    except Failed as failed:
        verdict = "; ".join([f"FAILED: {failed}", *getattr(failed, "__notes__", ())])
    figures |= {"seconds": round(time.monotonic() - begin, 1), "verdict": verdict}
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
    shown = {key: value for key, value in figures.items() if not isinstance(value, dict | list)}
    print(f"{name}: {verdict}; {json.dumps(shown)}", flush=True)
    sys.exit(verdict != "held")
