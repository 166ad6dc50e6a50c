# SPDX-License-Identifier: Apache-2.0
"""Every example does what it says."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import wait_until
from support_api import DEADLINE

from jumiks import Client, Server

EXAMPLES = Path(__file__).parent.parent / "examples"
PIPE = subprocess.PIPE


def run(name: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        stdout=PIPE,
        text=True,
        check=True,
        timeout=6 * DEADLINE,
    )
    return done.stdout.splitlines()


@contextmanager
def started(*command: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([str(word) for word in command], stdout=PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_hello() -> None:
    assert run("hello.py") == ["hello 0", "hello 1", "hello 2"]


def test_market_data_reaches_every_strategy() -> None:
    assert run("market_data.py") == [
        f"strategy {number}: 30000 quotes, best bid 104.99" for number in range(3)
    ]


def test_every_worker_drops_what_has_changed() -> None:
    assert sorted(run("cache_invalidation.py")) == [
        f"worker {number} still has 8 entries" for number in range(4)
    ]


def test_frames_are_seen_or_known_to_be_skipped() -> None:
    assert run("frames.py") == ["50 frames, brightest=49, 1048576 bytes each"]


def test_a_log_file_is_followed_and_its_past_is_kept(address: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"before\nhal")
    with started(sys.executable, EXAMPLES / "log_tail.py", file, address):
        wait_until(lambda: f" {address}\n" in Path("/proc/net/unix").read_text())
        with Client(address, start="oldest") as early:
            assert early.receive(DEADLINE) == b"before"
            with file.open("ab") as log:
                log.write(b"f\nlast\n")
            assert [early.receive(DEADLINE) for _ in range(2)] == [b"half", b"last"]
            with Client(address, start="oldest") as late:
                assert late.receive(DEADLINE) == b"before"


def plain_client(folder: Path, language: str) -> list[str]:
    if language == "python":
        return [sys.executable, os.fspath(EXAMPLES / "plain_client.py")]
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = os.fspath(folder / "plain_client")
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wconversion"]
    source = os.fspath(EXAMPLES / "plain_client.c")
    subprocess.run([compiler, *flags, "-o", program, source], check=True)
    return [program]


@pytest.mark.parametrize("language", ["python", "c"])
@pytest.mark.parametrize("abstract", [True, False])
def test_a_plain_client_in_under_40_lines_gets_all(
    address: str, path: Path, tmp_path: Path, language: str, abstract: bool
) -> None:
    where = address if abstract else os.fspath(path)
    suffix = {"python": "py", "c": "c"}[language]
    assert len((EXAMPLES / f"plain_client.{suffix}").read_text().splitlines()) < 40
    command = plain_client(tmp_path, language)
    with Server(where, max_lag=100, on_lag="block") as server:
        with started(*command, where) as client:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([b"%d" % number for number in range(1000)])
            server.drain(DEADLINE)
            assert server.clients[0].mode == "classic"
            server.close()
            output, _ = client.communicate(timeout=DEADLINE)
    assert output == b"".join(b"%d\n" % number for number in range(1000))
    assert client.returncode == 0
