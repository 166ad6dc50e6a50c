# SPDX-License-Identifier: Apache-2.0
"""The commands of CONTRIBUTING.md are targets, and take what `make` says that they take."""

import re

import pytest
from support.base import ROOT

pytestmark = pytest.mark.no_core

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
CI = (ROOT / ".ci/run").read_text("utf-8")

TARGETS = dict(re.findall(r"^([a-z-]+):.*## (\d+ (?:s|min)): \S", MAKEFILE, re.MULTILINE))
ROWS = re.findall(r"^\| .* \| `make ([a-z-]+)` \| (.*) \|$", PAGE, re.MULTILINE)


def test_every_target_that_is_listed_says_how_long_it_takes() -> None:
    assert list(TARGETS) == re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)


def test_the_page_says_of_a_command_what_make_says() -> None:
    assert len(ROWS) > 10
    assert [row for row in ROWS if TARGETS.get(row[0]) != row[1]] == []


def test_ci_begins_with_make_test_and_runs_targets_that_there_are() -> None:
    names = re.findall(r"^targets=\((.*)\)$", CI, re.MULTILINE)[0].split()
    assert names[0] == "test"
    assert {"test-slow", "lint", "sanitize", "fuzz"} <= {*names} <= {*TARGETS}
