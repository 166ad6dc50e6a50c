# SPDX-License-Identifier: Apache-2.0
"""Rounds by pytest-benchmark, and the tables at the end.

Its own table is of no use here, as what it times is a whole round of all contestants (hence
`--benchmark-quiet`); its JSON has all of our figures under `extra_info`.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from . import adapters, report
from .harness import ROOT, Comparison, Outcome, Ratio, orders

COMPARISONS: list[Comparison] = []
MISSING: set[str] = set()
C_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O3", "-pthread", "-fvisibility=hidden")
"""The flags that the package is built with."""

Contestants = Mapping[str, Callable[[], Outcome]]


class Compare(Protocol):
    """What the `compare` fixture is."""

    def __call__(
        self,
        work: str,
        group: str,
        contestants: Contestants,
        ratios: Sequence[Ratio] = (),
        rounds: int = 0,
    ) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jumiks")
    group.addoption("--quick", action="store_true", help="fewer contestants, shorter runs")
    group.addoption("--rounds", type=int, default=0, help="rounds of each comparison")


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--quick"))


@pytest.fixture
def compare(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Compare:
    """Run all contestants, round by round, and keep the figures for the tables."""

    def compare(
        work: str,
        group: str,
        contestants: Contestants,
        ratios: Sequence[Ratio] = (),
        rounds: int = 3,
    ) -> None:
        rounds = int(pytestconfig.getoption("--rounds")) or rounds
        ratios = [
            ratio
            for ratio in ratios
            if ratio.ours in contestants
            and (ratio.theirs in contestants or ratio.theirs in ("best rival", ""))
        ]
        comparison = Comparison(work, group, list(contestants), ratios)
        COMPARISONS.append(comparison)
        turns = orders(comparison.names)

        def one_round() -> None:
            comparison.rounds.append({name: contestants[name]() for name in next(turns)})

        pedantic: Callable[..., object] = benchmark.pedantic
        pedantic(one_round, rounds=rounds, iterations=1)
        benchmark.extra_info["comparison"] = comparison.as_json()
        benchmark.extra_info["machine"] = machine()
        assert not comparison.broken()

    return compare


def there(names: Sequence[str]) -> list[str]:
    """Those that can take part; how to get the others is told at the end."""
    absent = {name: words for name in names if (words := adapters.missing(name))}
    MISSING.update(absent.values())
    return [name for name in names if name not in absent]


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The C program, with the core in it; None without a compiler."""
    if shutil.which("cc") is None:
        return None
    program = tmp_path_factory.mktemp("floor") / "floor"
    core = sorted(path for path in (ROOT / "csrc").glob("*/*.c") if path.parent.name != "python")
    sources = [ROOT / "bench" / "floor.c", *core]
    subprocess.run(["cc", *C_FLAGS, f"-I{ROOT / 'csrc'}", "-o", program, *sources], check=True)
    if adapters.has_commit(adapters.BEFORE):
        build_before(program.with_name(adapters.BEFORE))
    return program


def build_before(program: Path) -> None:
    """The C program of an earlier commit, with the core of that commit."""
    words = ["git", "archive", adapters.BEFORE, "csrc", "bench/floor.c"]
    archive = subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    folder = program.with_name(f"{program.name}-source")
    folder.mkdir()
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    core = sorted(path for path in (folder / "csrc").glob("*.c") if path.name != "objects.c")
    sources = [folder / "bench" / "floor.c", *core]
    subprocess.run(["cc", *C_FLAGS, f"-I{folder / 'csrc'}", "-o", program, *sources], check=True)


def versions() -> list[str]:
    """Of all that takes part."""
    found = {}
    for each in adapters.CONTESTANTS.values():
        if each.imports:
            name = each.imports[1].partition("[")[0]
            try:
                found[name] = f"{name} {version(name)}"
            except PackageNotFoundError:
                continue
        if each.program and each.program[0] != "cc" and (path := shutil.which(each.program[0])):
            said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            words = said.replace("v=", "v").split()
            number = next(word for word in words if word.lstrip("v")[0].isdigit())
            found[each.program[0]] = f"{each.program[0]} {number.strip('v:')}"
    return [f"jumiks {version('jumiks')}", *found.values()]


def machine() -> str:
    """What the figures were measured on and with."""
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
        *versions(),
    ]
    return ", ".join(words)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COMPARISONS:
        return
    terminalreporter.section("jumiks beside others")
    for line in report.full(COMPARISONS):
        terminalreporter.write_line(line)
    terminalreporter.write_line("")
    terminalreporter.write_line(
        "Rates are deliveries per second, all clients together. Figures are medians over the "
        "rounds; a ratio is the median of the rounds' ratios."
    )
    for line in [machine(), *sorted(MISSING)]:
        terminalreporter.write_line(line)
