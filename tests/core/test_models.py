# SPDX-License-Identifier: Apache-2.0
"""What the heads of the models say of the code (docs/models): the models run with `make model`."""

import re
from pathlib import Path

import pytest
from support.base import ROOT
from support.c import c_functions

pytestmark = pytest.mark.no_core

SOURCES = {path.name: path for path in (ROOT / "csrc").rglob("*.[ch]")}
MODELS = sorted((ROOT / "docs" / "models").glob("*.pml"))
WEAK = [path for path in MODELS if '#include "weak.h"' in path.read_text()]

STEP = re.compile(r"^ \*   ([A-Z]) (\S+) (\w+) `(.*)`$", re.MULTILINE)
ORDERING = re.compile(r"memory_order_(?:acquire|release|acq_rel|seq_cst)|jmk_\w*fence\(\)")


def functions(name: str) -> dict[str, str]:
    """Return the bodies of a source file's functions, each on one line."""
    return {
        function: " ".join(body.split()) for function, body in c_functions(SOURCES[name]).items()
    }


def steps(model: Path) -> list[tuple[str, str, str, str]]:
    return [(found[1], found[2], found[3], found[4]) for found in STEP.finditer(model.read_text())]


def test_there_are_models() -> None:
    assert {path.stem for path in WEAK} >= {"log_end", "tail", "acks", "sleep", "handover"}


@pytest.mark.parametrize("model", WEAK, ids=[path.stem for path in WEAK])
def test_each_step_of_a_model_stands_in_the_code(model: Path) -> None:
    gone = [
        (letter, name, function, code)
        for letter, name, function, code in steps(model)
        if name not in SOURCES or code not in functions(name).get(function, "")
    ]
    assert gone == [], "the code has changed: see whether the model still says what it does"


@pytest.mark.parametrize("model", WEAK, ids=[path.stem for path in WEAK])
def test_each_step_of_the_head_is_marked_in_the_model(model: Path) -> None:
    body = model.read_text().partition("#include")[2]
    marked = set(re.findall(r"\b([A-Z])\b", " ".join(re.findall(r"/\*(.*?)\*/", body))))
    assert {letter for letter, *_ in steps(model)} <= marked


def test_each_ordering_in_the_code_is_a_step_of_a_model() -> None:
    shown = {(name, function, code) for model in WEAK for _, name, function, code in steps(model)}
    missing = []
    for name in SOURCES:
        for function, body in functions(name).items():
            for statement in re.split(r"[;{}]", body):
                covered = any(
                    name == step[0] and function == step[1] and step[2].rstrip(";") in statement
                    for step in shown
                )
                if ORDERING.search(statement) and not covered:
                    missing.append((name, function, statement.strip()))
    # The two fences themselves.
    assert [each for each in missing if each[0] != "page.h"] == []
