# SPDX-License-Identifier: Apache-2.0
"""The C core's own tests, each a program: compiled with all warnings and run under sanitizers."""

import shutil
from pathlib import Path

import pytest
from support_c import CORE, FLAGS, ROOT, Build, links, run

pytestmark = pytest.mark.no_core

TESTS = sorted((ROOT / "tests" / "c").glob("test_*.c"))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(tmp_path_factory.mktemp("core"))


def test_there_are_tests() -> None:
    assert {path.stem for path in TESTS} >= {"test_error", "test_frame", "test_log", "test_client"}


@pytest.mark.parametrize("source", TESTS, ids=[path.stem for path in TESTS])
def test_the_program_finds_nothing_wrong(source: Path, build: Build, tmp_path: Path) -> None:
    run(build.program(tmp_path / source.stem, source))


def test_threads_do_not_race(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or "cc"
    flags = [*FLAGS, "-fsanitize=thread"]
    if not links(compiler, flags, tmp_path):
        pytest.skip("the compiler has no thread sanitizer here")
    program = tmp_path / "threads"
    run(compiler, *flags, ROOT / "tests" / "c" / "test_threads.c", *CORE, "-o", program)
    run(program)
