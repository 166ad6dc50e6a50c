# SPDX-License-Identifier: Apache-2.0
"""docs/security.md: each thing that a peer can try is held by a test that exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs/security.md").read_text("utf-8")
TRIES = DOC.partition("## What a peer can try")[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TRIES.splitlines()
    if re.match(r"\| (?!what is tried)", line)
]
LEAST = 100


@cache
def names_in(path: Path) -> set[str]:
    """The names of a file's tests: Python's by their name, C's by their shape."""
    text = path.read_text("utf-8")
    if path.suffix == ".c":
        return set(re.findall(r"^static void (\w+)\(", text, re.MULTILINE))
    found = ast.walk(ast.parse(text))
    return {
        node.name
        for node in found
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_there_are_as_many_rows_as_promised_and_none_twice() -> None:
    assert len(ROWS) >= LEAST
    for section in TRIES.split("\n### ")[1:]:
        tries = [line.split("|")[1].strip() for line in section.splitlines() if line[:1] == "|"]
        assert len(tries) == len(set(tries))


def test_each_row_says_what_happens_and_names_tests_that_exist() -> None:
    for attempt, outcome, tests in ROWS:
        assert attempt
        assert outcome, attempt
        named = re.findall(r"`(tests/[\w/]+\.(?:py|c))::(\w+)`", tests)
        assert named, attempt
        assert ", ".join(f"`{path}::{name}`" for path, name in named) == tests
        for path, name in named:
            assert name in names_in(ROOT / path), f"{attempt}: there is no {path}::{name}"


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/security.md", "README.md"])
def test_the_pages_refer_to_files_that_exist(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
