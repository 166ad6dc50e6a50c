# SPDX-License-Identifier: Apache-2.0
"""What holds for every file of tests."""

import re
from pathlib import Path

import pytest
from support.base import ROOT

pytestmark = pytest.mark.no_core

TESTS = ROOT / "tests"
FILES = sorted(
    {*TESTS.rglob("test_*.py"), *TESTS.rglob("conftest.py"), *TESTS.glob("support/*.py")}
)

MOST_LINES = 800
"""Of a file; one that has more is about more than one subject."""

DIRECT = re.compile(
    r"""^from \s jumiks[.\w]* \s import \s (?:\( [^)]* | [^(\n]*) \b(?:Async)?Server\b
    | \bjumiks\.(?:Async)?Server\( (?! .* share_log)""",
    re.MULTILINE | re.VERBOSE,
)
"""A server whose delivery is not the run's."""

ALLOWED = {
    # They look at the classes and make no server.
    *("core/test_faces.py", "core/test_options.py"),
    # Their scripts are about processes and limits, not deliveries.
    *("machine/test_processes.py", "machine/test_subinterpreters.py", "server/test_hostile.py"),
    *("server/test_shortage.py", "whole/test_bad_input.py"),
}


def test_no_two_files_have_one_name() -> None:
    """In one run pytest would not collect the second."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted({*names})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_servers_have_the_delivery_of_the_run(path: Path) -> None:
    found = DIRECT.findall(path.read_text("utf-8"))
    if str(path.relative_to(TESTS)) in ALLOWED:
        assert found, "it need not be in ALLOWED"
    else:
        assert not found, "import Server and AsyncServer from support.servers"


def test_no_file_is_about_too_much() -> None:
    files = [path for path in TESTS.rglob("*.*") if path.suffix in (".c", ".h", ".py")]
    lines = {path: path.read_bytes().count(b"\n") for path in files}
    assert {path.name: count for path, count in lines.items() if count >= MOST_LINES} == {}


def test_no_two_files_have_the_same_name() -> None:
    """Else pytest cannot import both: the folders are no packages."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
