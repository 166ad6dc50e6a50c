# SPDX-License-Identifier: Apache-2.0
"""The C core's own tests, each a program: compiled with all warnings and run under sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_core

ROOT = Path(__file__).parent.parent
CORE = sorted(path for path in (ROOT / "csrc").glob("*.c") if path.name != "objects.c")
TESTS = sorted((ROOT / "tests" / "c").glob("test_*.c"))
FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-DJMK_POINTS", "-g", "-O1", "-pthread"),
    *("-Wall", "-Wextra", "-Werror", "-Wconversion"),
    f"-I{ROOT / 'csrc'}",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
DEADLINE = 60.0
"""Seconds for a compiler or a test that takes a few at most."""

# A preloaded sanitizer is there for the interpreter, not for compilers and programs of their own.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def run(*command: object) -> None:
    """Run a program; show what it says if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
        env=ENVIRONMENT,
    )
    if done.returncode != 0:
        words = " ".join(str(word) for word in command)
        pytest.fail(f"{words}\ngave {done.returncode}:\n{done.stdout.decode(errors='replace')}")


def links(compiler: str, flags: list[str], folder: Path) -> bool:
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [compiler, *flags, str(source), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True, env=ENVIRONMENT).returncode == 0


class Build:
    """The core, compiled once for all tests."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        self.command = [compiler, *FLAGS]
        if links(compiler, SANITIZERS, folder):
            self.command += SANITIZERS
        self.objects = [folder / f"{source.stem}.o" for source in CORE]
        compilers = [
            subprocess.Popen(
                [*self.command, "-c", str(source), "-o", str(built)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
            )
            for source, built in zip(CORE, self.objects, strict=True)
        ]
        said = [each.communicate(timeout=DEADLINE)[0].decode() for each in compilers]
        if any(each.returncode for each in compilers):
            pytest.fail("the core does not compile:\n" + "\n".join(said))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(tmp_path_factory.mktemp("core"))


def test_there_are_tests() -> None:
    assert {path.stem for path in TESTS} >= {"test_error", "test_frame", "test_log", "test_client"}


@pytest.mark.parametrize("source", TESTS, ids=[path.stem for path in TESTS])
def test_the_program_finds_nothing_wrong(source: Path, build: Build, tmp_path: Path) -> None:
    program = tmp_path / source.stem
    run(*build.command, source, *build.objects, "-o", program)
    run(program)


def test_threads_do_not_race(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or "cc"
    flags = [*FLAGS, "-fsanitize=thread"]
    if not links(compiler, flags, tmp_path):
        pytest.skip("the compiler has no thread sanitizer here")
    program = tmp_path / "threads"
    run(compiler, *flags, ROOT / "tests" / "c" / "test_threads.c", *CORE, "-o", program)
    run(program)
