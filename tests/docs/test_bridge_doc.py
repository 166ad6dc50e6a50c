# SPDX-License-Identifier: Apache-2.0
"""docs/bridge.md: its promises name tests that exist, and its ten minutes work as they stand."""

import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.base import DEADLINE, ROOT, wait_until
from support.command import JUMIKS_IN_SHELL, listens_at
from support.engines import free_port, require

from jumiks.cli.parser import make_parser

PAGE = (ROOT / "docs/bridge.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
LINES = 100


@pytest.mark.no_core
def test_each_promise_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| .* \| (`tests/.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 15
    for row in rows:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row):
            assert f"def {name}(" in (ROOT / path).read_text("utf-8"), name


@pytest.mark.no_core
def test_each_command_is_one_that_there_is() -> None:
    found = [command.partition("jumiks ")[2] for command in COMMANDS if "jumiks " in command]
    assert len(found) >= 5
    for words in found:
        if not words.startswith("["):
            make_parser().parse_args(shlex.split(words))


@pytest.mark.slow
def test_the_ten_minutes_bring_each_line_to_the_other_machine(address: str, tmp_path: Path) -> None:
    require("jetstream")
    port = free_port()

    def here(command: str) -> str:
        for old, new in (
            ("nats-server -js", f"nats-server -a 127.0.0.1 -p {port} -js"),
            ("/tmp/ticks", str(tmp_path)),
            ("127.0.0.1/TICKS", f"127.0.0.1:{port}/TICKS"),
            ("@ticks", address),
            ("@far", f"{address}-far"),
            ("sleep 0.1", "sleep 0.001"),
            ("jumiks ", f"{JUMIKS_IN_SHELL} "),
        ):
            command = command.replace(old, new)
        return command

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    _pip, server, serve, out, inbound, listen, status = COMMANDS
    with ExitStack() as stack:

        def start(command: str) -> subprocess.Popen[str]:
            words = here(command)
            process = subprocess.Popen(
                ["bash", "-c", words if "|" in words else f"exec {words}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PATH": path},
                start_new_session=True,
            )
            stack.callback(process.communicate)
            stack.callback(os.killpg, process.pid, 9)
            return process

        start(server)
        start(serve)
        wait_until(lambda: listens_at(address))
        start(out)
        start(f"{inbound} --wait {DEADLINE:g}")
        wait_until(lambda: listens_at(f"{address}-far"))
        lines = start(listen).stdout
        assert lines is not None
        assert [int(lines.readline()) for _ in range(LINES)] == list(range(1, LINES + 1))
        shown = start(status)
        assert shown.stdout is not None
        assert "NATS" in shown.stdout.readline()
