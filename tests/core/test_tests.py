# SPDX-License-Identifier: Apache-2.0
"""What holds for every file of tests."""

import os
import re
import subprocess
import sys
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
    *("server/test_shortage.py", "server/test_callbacks.py", "whole/test_bad_input.py"),
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


SKIPPED = """
import pytest

def test_a():
    pytest.skip("there is no cc here")

@pytest.mark.skipif(True, reason="redis is not installed")
def test_b():
    pass

@pytest.mark.skipif(True, reason="this kernel has no such thing")
def test_c():
    pass

@pytest.mark.skipif(True, reason="only root can be several users")
def test_d():
    pass

@pytest.mark.xfail
def test_e():
    raise ValueError
"""


@pytest.mark.slow  # it starts pytest
def test_ci_skips_only_what_nothing_installed_would_help(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(SKIPPED)
    (tmp_path / "test_two.py").write_text("import pytest\npytest.importorskip('no_such_module')")
    options = ["-p", "conftest", "-c", "/dev/null", "--rootdir", ".", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--continue-on-collection-errors", "."],
        cwd=tmp_path,
        env=os.environ | {"CI": "true", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )
    assert "1 failed, 2 skipped, 1 xfailed, 2 errors in" in done.stdout
    assert "nothing is skipped because there is no cc here: install it" in done.stdout
