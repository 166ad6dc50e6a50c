# SPDX-License-Identifier: Apache-2.0
"""What the pages say is held by tests that exist, and what they refer to is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from support.base import ROOT

DOC = (ROOT / "docs/security.md").read_text("utf-8")
TRIES = DOC.partition("## What a peer can try")[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TRIES.splitlines()
    if re.match(r"\| (?!what is tried)", line)
]
LEAST = 100
PROMISES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/guarantees.md").read_text("utf-8").splitlines()
    if re.match(r"\| (?!promise)", line)
]


@cache
def names_in(path: Path) -> set[str]:
    """The names of a file's functions."""
    text = path.read_text("utf-8")
    if path.suffix == ".c":
        return set(re.findall(r"^static \w+ (\w+)\(", text, re.MULTILINE))
    found = ast.walk(ast.parse(text))
    return {node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_there_are_as_many_rows_as_promised_and_none_twice() -> None:
    assert len(ROWS) >= LEAST
    for section in TRIES.split("\n### ")[1:]:
        tries = [line.split("|")[1].strip() for line in section.splitlines() if line[:1] == "|"]
        assert len(tries) == len(set(tries))


def check_names(tests: str, row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.(?:py|c))::(\w+)`", tests)
    assert named, row
    assert ", ".join(f"`{path}::{name}`" for path, name in named) == tests
    for path, name in named:
        assert name in names_in(ROOT / path), f"{row}: there is no {path}::{name}"


def test_each_row_says_what_happens_and_names_tests_that_exist() -> None:
    for attempt, outcome, tests in ROWS:
        assert attempt
        assert outcome, attempt
        check_names(tests, attempt)


def test_each_promise_names_tests_that_exist() -> None:
    assert len(PROMISES) >= 30
    for promise, tests in PROMISES:
        check_names(tests, promise)


UNLINKED = {"docs/coverage.md"}
"""For who works on jumiks; docs/guarantees.md leads to it."""

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_the_pages_refer_to_files_and_headings_that_exist(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text("utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in titles}
            assert heading in anchors, heading


@every_page
def test_the_pages_name_tests_that_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for path, name in re.findall(r"\b(tests/[\w/]+\.(?:py|c))(?:::(\w+))?", text):
        assert (ROOT / path).exists(), path
        assert not name or name in names_in(ROOT / path), f"there is no {path}::{name}"


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", readme))
    assert linked >= {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} - UNLINKED
