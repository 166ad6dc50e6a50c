# SPDX-License-Identifier: Apache-2.0
"""Rounds by pytest-benchmark, and one table of ratios at the end.

Its own table is of no use here, as what it times is a whole round of all contestants (hence
`--benchmark-quiet`); its JSON has all of our figures under `extra_info`.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from . import adapters
from .harness import ROOT, Comparison, Outcome, Ratio, orders, table

COMPARISONS: list[Comparison] = []
NOTES: list[str] = []
MISSING: set[str] = set()
C_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O3", "-pthread", "-fvisibility=hidden")
"""The flags that the package is built with."""


class Compare(Protocol):
    """What the `compare` fixture is."""

    def __call__(
        self,
        work: str,
        contestants: Mapping[str, Callable[[], Outcome]],
        ratios: Sequence[Ratio],
    ) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jumiks")
    group.addoption("--quick", action="store_true", help="fewer and shorter rounds")
    group.addoption("--rounds", type=int, default=0, help="rounds of each comparison")


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--quick"))


@pytest.fixture
def compare(benchmark: BenchmarkFixture, quick: bool, pytestconfig: pytest.Config) -> Compare:
    """Run all contestants, round by round, and keep the figures for the table."""
    rounds = int(pytestconfig.getoption("--rounds")) or (3 if quick else 5)

    def compare(
        work: str,
        contestants: Mapping[str, Callable[[], Outcome]],
        ratios: Sequence[Ratio],
    ) -> None:
        absent = {name: words for name in contestants if (words := adapters.missing(name))}
        MISSING.update(absent.values())
        names = [name for name in contestants if name not in absent]
        ratios = [ratio for ratio in ratios if ratio.theirs not in absent]
        comparison = Comparison(work, ratios)
        COMPARISONS.append(comparison)
        turns = orders(names)

        def setup() -> tuple[tuple[object, ...], dict[str, object]]:
            return (next(turns), contestants), {}

        pedantic: Callable[..., object] = benchmark.pedantic
        pedantic(comparison.add, setup=setup, rounds=rounds, iterations=1)
        benchmark.extra_info["comparison"] = comparison.as_json()
        ours = {ratio.ours for ratio in ratios}
        for round_ in comparison.rounds:
            for name in ours & round_.keys():
                assert (round_[name].lost, round_[name].wrong) == (0, 0), f"{name} lost messages"

    return compare


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program of the comparisons from C to C, with the core in it."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    program = tmp_path_factory.mktemp("floor") / "floor"
    core = sorted(path for path in (ROOT / "csrc").glob("*.c") if path.name != "objects.c")
    sources = [ROOT / "bench" / "floor.c", *core]
    subprocess.run(["cc", *C_FLAGS, f"-I{ROOT / 'csrc'}", "-o", program, *sources], check=True)
    return program


def machine() -> str:
    """What the figures were measured on and with."""
    packages = {name: version(name) for name in ("jumiks", "pyzmq") if not adapters.missing(name)}
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    words = [
        f"{len(os.sched_getaffinity(0))} cores of {model}",
        f"{platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}",
        *(f"{name} {number}" for name, number in packages.items()),
    ]
    return ", ".join(words)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COMPARISONS and not NOTES:
        return
    terminalreporter.section("jumiks beside others")
    for line in table(COMPARISONS):
        terminalreporter.write_line(line)
    terminalreporter.write_line("")
    terminalreporter.write_line(
        "rates are deliveries a second, all clients together; figures are medians over the rounds, "
        "the ratio is the median of the rounds' ratios"
    )
    for line in [*NOTES, machine(), *sorted(MISSING)]:
        terminalreporter.write_line(line)
