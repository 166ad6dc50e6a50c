# SPDX-License-Identifier: Apache-2.0
"""What the pages say is held by tests that exist, and what they refer to is there."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias

import pytest
from support.base import ROOT

pytestmark = pytest.mark.no_core

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


Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class Part(NamedTuple):
    """Something that a Python file defines: whether it asserts something, and what it uses."""

    asserts: bool
    words: frozenset[str]

    @classmethod
    def of(cls, tree: ast.AST) -> Self:
        nodes = list(ast.walk(tree))
        words = {node.id for node in nodes if isinstance(node, ast.Name)}
        words |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        asserts = any(isinstance(node, ast.Assert) for node in nodes)
        return cls(asserts or bool(words & {"raises", "fail", "warns"}), frozenset(words))


@cache
def known_in(path: Path) -> dict[str, Part]:
    """The functions and classes of a Python file, whatever they stand in, and what it assigns."""
    found: dict[str, Part] = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, Function | ast.ClassDef):
            found[node.name] = Part.of(node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = Part.of(node.value)
    return found


@cache
def names_in(path: Path) -> set[str]:
    """The names of a file's tests: those that a run of it calls."""
    text = path.read_text("utf-8")
    if path.suffix == ".c":
        defined = set(re.findall(r"^static \w+ (\w+)\(", text, re.MULTILINE))
        return {name for name in defined if len(re.findall(rf"\b{name}\b", text)) > 1}
    tree = ast.parse(text)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    methods = {node.name for each in classes for node in each.body if isinstance(node, Function)}
    tests = {
        node.name
        for node in tree.body
        if isinstance(node, Function) and (node.name.startswith("test_") or is_everywhere(node))
    }
    return tests | methods | {name for name in assigned if name.startswith("test_")}


def is_everywhere(function: Function) -> bool:
    """Whether it is a fixture of all tests."""
    return any("autouse" in ast.dump(each) for each in function.decorator_list)


HELPERS = {
    name: part
    for path in sorted(ROOT.glob("tests/support/*.py"))
    for name, part in known_in(path).items()
}


def compares(path: Path, name: str) -> bool:
    """Whether a test, or what it uses, asserts something."""
    known = known_in(path)
    left, seen = [name], {name}
    while left:
        part = known.get(one := left.pop()) or HELPERS[one]
        if part.asserts:
            return True
        more = {word for word in part.words - seen if word in known or word in HELPERS}
        seen |= more
        left += more
    return False


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
        assert path.endswith(".c") or compares(ROOT / path, name), f"{path}::{name} asserts nothing"


def test_each_row_says_what_happens_and_names_tests_that_exist() -> None:
    for attempt, outcome, tests in ROWS:
        assert attempt
        assert outcome, attempt
        check_names(tests, attempt)


def test_each_promise_names_tests_that_exist() -> None:
    assert len(PROMISES) >= 30
    for promise, tests in PROMISES:
        check_names(tests, promise)


EMPTY = """
def test_nothing():
    run()

def test_something():
    helper()

def helper():
    assert 1

class Model:
    def test_within(self): ...
"""
C = """
static void test_called(void) {}
static void test_forgotten(void) {}
int main() { test_called(); }
"""


def test_a_test_that_is_not_run_or_cannot_fail_is_none(tmp_path: Path) -> None:
    python, c = tmp_path / "test_a.py", tmp_path / "test_a.c"
    python.write_text(EMPTY)
    c.write_text(C)
    assert names_in(python) == {"test_nothing", "test_something", "test_within"}
    assert [compares(python, each) for each in ("test_nothing", "test_something")] == [False, True]
    assert names_in(c) == {"test_called"}


UNLINKED = {"docs/coverage.md", "docs/index.md"}
"""For those who work on jumiks (docs/guarantees.md leads there); the site's own first page."""

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
