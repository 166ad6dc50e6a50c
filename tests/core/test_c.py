# SPDX-License-Identifier: Apache-2.0
"""The C core's own tests, each a program: compiled with all warnings and run under sanitizers."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support.base import ROOT
from support.c import COMPILE_DEADLINE, CORE, ENVIRONMENT, FLAGS, Build, links, run

pytestmark = [pytest.mark.no_core, pytest.mark.slow]  # it compiles the core

TESTS = sorted((ROOT / "tests" / "c").glob("test_*.c"))
CANNOT_FAIL = {
    *("clock_gettime", "sched_yield", "strerror", "sysconf", "sigfillset", "pthread_sigmask"),
    *("snprintf", "memcpy", "memmove", "memset", "memcmp", "pthread_join", "pthread_once"),
    *("pthread_mutex_init", "pthread_mutex_destroy", "pthread_mutex_lock"),
    *("pthread_mutex_trylock", "pthread_mutex_unlock"),
    *("pthread_attr_init", "pthread_attr_destroy", "pthread_detach"),
    *("pthread_attr_setdetachstate", "pthread_attr_setstacksize"),
    *("strnlen", "memchr"),
    # These two can, but nothing depends on the first, and nobody could be told of the second.
    *("pthread_setname_np", "pthread_atfork"),
}
"""What the core calls besides what tests/c/faults.h makes fail."""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(tmp_path_factory, "core")


def test_there_are_tests() -> None:
    assert {path.stem for path in TESTS} >= {"test_frame", "test_log", "test_client"}


@pytest.mark.parametrize(
    "source",
    TESTS,
    ids=lambda path: path.stem,
)
def test_the_program_finds_nothing_wrong(source: Path, build: Build, tmp_path: Path) -> None:
    run(build.program(tmp_path / source.stem, source))


@pytest.fixture(scope="module")
def faults(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("objdump") and shutil.which("addr2line") and shutil.which("nm")):
        pytest.skip("no binutils")
    source = ROOT / "tests" / "c" / "test_faults.c"
    return build.program(tmp_path_factory.mktemp("faults") / "faults", source)


def said_by(*command: object, given: str = "") -> list[str]:
    """Return the lines that a program says."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        input=given,
        text=True,
        capture_output=True,
        timeout=COMPILE_DEADLINE,
        check=True,
        env=ENVIRONMENT,
    )
    return done.stdout.splitlines()


def lines_of(program: Path, returns: Iterable[int]) -> set[str]:
    """Return the source lines of calls, given the addresses they return to."""
    given = "\n".join(f"{address - 1:#x}" for address in returns)
    found = said_by("addr2line", "--basenames", "-e", program, given=given)
    return {line.partition(" ")[0] for line in found}


def calls_that_can_fail(program: Path) -> Iterator[int]:
    """Yield where each call of the core to a wrapper of tests/c/faults.h returns to."""
    name = ""
    for line in said_by("objdump", "--disassemble", "--no-show-raw-insn", program):
        if name:
            yield int(line.split(":")[0], 16)
        found = re.search(r"\s(?:call|bl)\s.*<__wrap_(\w+)>", line)
        name = found[1] if found and found[1] not in ("free", "munmap") else ""


@pytest.mark.slow
def test_each_call_of_the_core_that_can_fail_is_made_to(faults: Path) -> None:
    hit = lines_of(faults, (int(line, 16) for line in said_by(faults, "-s")))
    calls = lines_of(faults, calls_that_can_fail(faults))
    assert len(calls) > 50
    assert calls - hit == set(), "no scenario of tests/c/test_faults.c comes to these"


def test_whatever_the_core_calls_can_be_made_to_fail_or_cannot_fail(build: Build) -> None:
    wrapped = set(re.findall(r"--wrap=(\w+)", (ROOT / "tests/c/test_faults.flags").read_text()))
    listed = said_by("nm", "--undefined-only", "--format=posix", *build.objects)
    called = {line.split()[0] for line in listed if " U" in line}
    called = {name for name in called if not name.startswith(("jmk_", "_"))}
    assert called - wrapped <= CANNOT_FAIL


@pytest.mark.slow
@pytest.mark.parametrize("name", ["threads", "order"])
def test_threads_do_not_race(name: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    flags = [*FLAGS, "-fsanitize=thread"]
    if not links(compiler, flags, tmp_path):
        pytest.skip("the compiler has no thread sanitizer here")
    program = tmp_path / name
    run(compiler, *flags, ROOT / "tests" / "c" / f"test_{name}.c", *CORE, "-o", program)
    run(program)
