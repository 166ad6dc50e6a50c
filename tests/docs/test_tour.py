# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/tour.md, run as they stand there."""

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.base import ROOT
from support.command import JUMIKS_IN_SHELL, PYTHON_IN_SHELL

from jumiks.cli import main

TOUR = (ROOT / "docs/tour.md").read_text("utf-8")
STEPS = re.findall(r"```sh\n(.*?)```\n\n```(text\w*(?: varying)?)\n(.*?)```", TOUR, re.DOTALL)

MORE_TIME = (("--wait 5", "--wait 50"), ("timeout 10", "timeout 50"), ("=1.0", "=50.0"))
"""What is enough for who tries it is not on a busy machine."""

SLEEP = """#!/bin/sh
[ "$1" = 0.1 ] && exec /bin/sleep 0.1
exec timeout 50 sh -c "until [ -e seen ]; do /bin/sleep 0.02; done"
"""
"""A server's input lasts until somebody has looked, and no longer."""


def test_every_command_block_has_its_output() -> None:
    assert len(STEPS) == TOUR.count("```sh\n") > 4


def shape(text: str) -> list[str]:
    """Lines without their figures, names of users, and the blanks that depend on them."""
    return [" ".join(re.sub(r"[\d.]+[kMG]?", "N", line).split()) for line in text.splitlines()]


@pytest.mark.parametrize(("commands", "kind", "output"), STEPS)
def test_the_tour_s_commands_print_what_it_says(
    address: str, tmp_path: Path, commands: str, kind: str, output: str
) -> None:
    for words, package in (("import numpy", "numpy"), ("jumiks top", "rich")):
        if words in commands and find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    programs = {
        "python": f'#!/bin/sh\nexec {PYTHON_IN_SHELL} "$@"\n',
        "jumiks": f'#!/bin/sh\nexec {JUMIKS_IN_SHELL} "$@"\n',
        "sleep": SLEEP,
    }
    for name, program in programs.items():
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    for enough, plenty in MORE_TIME:
        commands = commands.replace(enough, plenty)
    commands = commands.replace("\nwait\n", "\ntouch seen\nwait\n")
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["bash", "-c", commands.replace("@tour", address)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=work,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "COLUMNS": "140"},
        timeout=60,
        check=True,
    )
    found = done.stdout.replace(address, "@tour")
    if kind == "text":
        assert found == output
        return
    found = re.sub(r"(python|jumiks)\d?\S*", "jumiks", found)
    assert [len(line.split()) for line in shape(found)] == [
        len(line.split()) for line in shape(output)
    ]
    assert shape(found)[3:5] == shape(output)[3:5]


def test_bench_measures_what_the_tour_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"^((?:64 .*\n)+)```", TOUR, re.MULTILINE)
    assert found is not None
    shown = found[1].splitlines()
    figures = iter(line[32:] for line in shown)
    for name in ("throughput", "latency"):
        monkeypatch.setattr(f"jumiks.cli.bench.{name}", lambda *_: next(figures))
    assert main(["bench", "--self", "--seconds", "12"]) == 0
    assert capsys.readouterr().out.splitlines() == shown
