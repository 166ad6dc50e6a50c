# SPDX-License-Identifier: Apache-2.0
"""A forge's workflows run the targets that .ci/run runs, by actions that nobody can exchange."""

import re

import pytest
from support.base import ROOT

pytestmark = pytest.mark.no_core

WORKFLOWS = {path.name: path.read_text("utf-8") for path in (ROOT / ".github/workflows").iterdir()}
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
CI = (ROOT / ".ci/run").read_text("utf-8")
STEPS = set(re.findall(r"^targets=\((.*)\)$", CI, re.MULTILINE)[0].split())
MATRIX = re.findall(r"^        target: \[(.*)\]$", WORKFLOWS["ci.yml"], re.MULTILINE)[0].split(", ")


def test_the_workflow_runs_what_ci_runs() -> None:
    # The matrix of Pythons is what test-pythons is on one machine.
    assert STEPS - set(MATRIX) == {"test-pythons"}
    assert set(MATRIX) <= TARGETS


def test_every_make_in_a_workflow_is_a_target() -> None:
    run = re.compile(r"run: .*(?:make|\.ci/run) ([a-z-]+)")
    made = {name for text in WORKFLOWS.values() for name in run.findall(text)}
    assert made == {"test", "test-pythons", "dist", "wheels-in-images"}
    assert made <= TARGETS


def test_the_workflow_tests_as_root_with_all_that_tests_need() -> None:
    # What CI skips for want of a package, or of a second user, nobody tests.
    runs = re.findall(r"^ +- run: (.*)", WORKFLOWS["ci.yml"], re.MULTILINE)
    assert runs
    assert [run for run in runs if not re.match(r'sudo env "PATH=\$PATH" .*\.ci/run ', run)] == []


def test_the_workflow_tests_every_python_that_is_classified() -> None:
    (pythons,) = re.findall(r"^        python: \[(.*)\]$", WORKFLOWS["ci.yml"], re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert re.findall(r"3\.\d+", pythons) == re.findall(r"Python :: (3\.\d+)", project)


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_every_action_is_named_by_its_hash_and_its_version(name: str) -> None:
    used = re.findall(r"uses: (.*)", WORKFLOWS[name])
    assert used
    pinned = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [each for each in used if not pinned.fullmatch(each)] == []


def test_hooks_run_what_the_environment_has() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    tools = re.findall(r"entry: \.venv/bin/([\w-]+)", hooks)
    assert tools == ["ruff", "ruff", "clang-format", "mypy"]
    assert all(f"{tool}" in MAKEFILE for tool in tools)
    assert "repo: local" in hooks
    assert "repo: http" not in hooks
