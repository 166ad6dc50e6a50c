# SPDX-License-Identifier: Apache-2.0
"""Where the sentences stand that users read: docs/design.md, "To change X, open Y"."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest
from support.base import ROOT

from jumiks import errors

pytestmark = pytest.mark.no_core

PACKAGE = ROOT / "src/jumiks"
FILES = sorted(PACKAGE.rglob("*.py"))
OTHERS = [
    path for path in FILES if path.name != "errors.py" and path.parent.name != "cli"
]  # the command's own errors are few
TREES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
CONSTANTS = {
    name: text
    for name, text in vars(errors).items()
    if name.isupper() and isinstance(text, str) and not name.startswith("_")
}
A_SENTENCE = 4
"""Words. Fewer are a name or a fragment, which may stand in several places."""


def is_text(node: ast.AST) -> bool:
    """Whether this is a text, or part of one: more than a word."""
    if isinstance(node, ast.JoinedStr):
        return True
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_exception_of_ours_gets_a_text_outside_errors(path: Path) -> None:
    found = [
        f"{path.name}:{call.lineno}: {ast.unparse(call)}"
        for call in ast.walk(TREES[path])
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in errors.__all__
        and any(map(is_text, [*call.args, *(each.value for each in call.keywords)]))
    ]
    assert found == []


def uses() -> Iterator[tuple[str, set[str] | None]]:
    """Yield each use of a text of errors.py: its name, and the facts that it gets."""
    for tree in TREES.values():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=text, attr="format")):
                    yield ast.unparse(text), {each.arg or "" for each in node.keywords}
                case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
                    yield name, None


def test_each_text_of_errors_is_used_and_gets_the_facts_that_it_has_places_for() -> None:
    unused = set(CONSTANTS)
    for use, facts in uses():
        name = use.removeprefix("errors.")
        if name in CONSTANTS:
            unused.discard(name)
            places = {place for _, place, _, _ in Formatter().parse(CONSTANTS[name]) if place}
            assert facts in (None, places), name
    assert unused == set()


def texts_of(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of a module, each with its facts left out; not what documents it."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        if isinstance(node, ast.JoinedStr):
            skipped |= {each for each in ast.walk(node) if each is not node}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(each.value) if isinstance(each, ast.Constant) else "{}" for each in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\{.*?\}", "{}", node.value)


def test_no_sentence_stands_twice() -> None:
    found = Counter(text for tree in TREES.values() for text in texts_of(tree))
    twice = {text for text, count in found.items() if count > 1}
    assert {text for text in twice if len(text.split()) >= A_SENTENCE} == set()
