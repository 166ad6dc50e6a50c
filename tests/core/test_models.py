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

RELAXED = re.compile(r"atomic_\w+_explicit\([^,;]*?(\w+)\)?,[^;]*?memory_order_relaxed")

NEED_NO_ORDER = {
    "log_lock covers it, and whoever writes it holds that": [
        ("log.c", "evict", "mark_tail"),
        ("log.c", "evict", "oldest_id"),
        ("publish.c", "admitted", "closing"),
        ("publish.c", "admitted", "admit_id"),
        ("publish.c", "admitted", "admit_offset"),
        ("publish.c", "open_frame", "admit_offset"),
        ("publish.c", "append_run", "admit_offset"),
        ("publish.c", "append_run", "admit_id"),
    ],
    "it is a figure, or a guess at the stream's pace": [
        ("publish.c", "jmk_server_kick", "last_inline"),
        ("pump.c", "jmk_pump_inline", "inline_rounds"),
        ("pump.c", "jmk_pump_run", "rounds"),
        ("lag.c", "count_wait", "waits"),
        ("lag.c", "jmk_server_wait_room", "waits"),
        ("send_shared.c", "note_lag", "acked_id"),
    ],
    "it says nothing about any other word": [
        ("log.c", "relaxed", "word"),
        ("os.h", "jmk_refused", "refused"),
        ("os.h", "jmk_sendmmsg", "jmk_no_sendmmsg"),
        ("os.h", "jmk_recvmmsg", "jmk_no_recvmmsg"),
        ("receive_shared.c", "has_word", "jmk_no_futex_waitv"),
        ("os.c", "after_fork_in_child", "process"),
        ("os.c", "jmk_process", "process"),
        ("receive_packets.c", "add_message", "last_id"),
    ],
}
"""Accesses in no order, by the reason why they need none: file, function, word."""


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


def not_in_a_model(pattern: re.Pattern[str]) -> list[tuple[str, str, str]]:
    """Return the statements that have a pattern and are no step: file, function, text."""
    shown = [step[1:] for model in WEAK for step in steps(model)]
    return [
        (name, function, statement.strip())
        for name in SOURCES
        for function, body in functions(name).items()
        for statement in re.split(r"[;{}]", body)
        if pattern.search(statement)
        and not any(
            (name, function) == step[:2] and step[2].rstrip(";") in statement for step in shown
        )
    ]


def test_each_ordering_in_the_code_is_a_step_of_a_model() -> None:
    missing = [each for each in not_in_a_model(ORDERING) if each[0] != "page.h"]
    assert missing == []


def test_the_fences_are_what_the_models_take_them_for() -> None:
    fences = [each for each in not_in_a_model(ORDERING) if each[0] == "page.h"]
    assert fences == [
        ("page.h", "jmk_fence", "atomic_thread_fence(memory_order_seq_cst)"),
        ("page.h", "jmk_acquire_fence", "atomic_thread_fence(memory_order_acquire)"),
    ]


def test_what_asks_for_no_order_is_known_to_need_none() -> None:
    # Everything else is sequentially consistent, or has an ordering that a model needs.
    found = {
        (name, function, word)
        for name, function, statement in not_in_a_model(RELAXED)
        for word in RELAXED.findall(statement)
    }
    assert found == {(*place, word) for words in NEED_NO_ORDER.values() for *place, word in words}
