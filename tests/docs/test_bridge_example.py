# SPDX-License-Identifier: Apache-2.0
"""examples/bridge.py: any part may be killed, and the far reader gets each line once."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.base import DEADLINE, ROOT, wait_until
from support.command import listens_at
from support.engines import free_port, require

from jumiks import Client

pytestmark = pytest.mark.slow


@pytest.fixture
def parts(address: str) -> Iterator[subprocess.Popen[str]]:
    require("jetstream")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = [sys.executable, str(ROOT / "examples/bridge.py"), str(free_port()), address]
    with subprocess.Popen(
        [*words, f"{address}-far"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PATH": path},
    ) as process:
        yield process
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE)


def test_all_parts_end_with_it(parts: subprocess.Popen[str], address: str) -> None:
    assert parts.stdout is not None
    numbers = [int(parts.stdout.readline().split()[1]) for _ in range(4)]
    wait_until(lambda: listens_at(f"{address}-far"))
    parts.terminate()
    parts.wait(DEADLINE)
    assert not [each for each in numbers if Path(f"/proc/{each}").exists()]


def test_each_part_but_the_source_may_be_killed(parts: subprocess.Popen[str], address: str) -> None:
    assert parts.stdout is not None
    numbers = dict(parts.stdout.readline().split() for _ in range(4))
    assert list(numbers) == ["engine", "source", "out", "in"]
    wait_until(lambda: listens_at(f"{address}-far"))
    with Client(f"{address}-far", start="oldest", reconnect=True) as client:
        got = [int(client.receive(DEADLINE))]
        for name in ("out", "in", "engine"):
            os.kill(int(numbers[name]), signal.SIGKILL)
            again, numbers[name] = parts.stdout.readline().split()
            assert again == name
            got += [int(client.receive(DEADLINE)) for _ in range(5)]
        assert got == list(range(got[0], got[0] + len(got)))
