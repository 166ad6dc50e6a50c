# SPDX-License-Identifier: Apache-2.0
"""The client in plain C, written from the protocol's page: it stands for everybody's own."""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peers
import pytest
from support.api import Task, script_process
from support.base import DEADLINE, ROOT
from support.servers import Server
from support.wire import FIRST_ID

pytestmark = pytest.mark.only_shared

EXAMPLES = ROOT / "examples"
SMALL = 1 << 16
"""Bytes of the smallest log."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if peers.compiler() is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("examples") / "shared_client"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
    source = EXAMPLES / "shared_client.c"
    subprocess.run([peers.compiler() or "cc", *flags, source, "-o", program], check=True)
    return program


Output = tuple[list[bytes], str, int]


@contextmanager
def running(program: Path, address: str) -> Iterator[Task[Output]]:
    """The client; the task gives its lines, what it says beside them, and its exit status."""
    pipe = subprocess.PIPE
    with subprocess.Popen([program, address], stdout=pipe, stderr=pipe) as process:

        def result() -> Output:
            output, errors = process.communicate()
            return output.splitlines(), errors.decode(), process.returncode

        task = Task(result)
        try:
            yield task
        finally:
            process.kill()
            task.thread.join()


def wait_for_it(server: Server) -> None:
    server.wait_for_clients(1, DEADLINE)
    assert [info.delivery for info in server.clients()] == ["shared"]


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "shared_client.c").read_text().splitlines()) < 200


def test_it_takes_part_in_a_saturated_stream(address: str, program: Path) -> None:
    noise = random.Random(3)
    lines = [b"%d " % number + b"x" * noise.randrange(3000) for number in range(20_000)]
    with Server(address, on_lag="block", log_size=SMALL) as server:
        with running(program, address) as task:
            wait_for_it(server)
            for start in range(0, len(lines), 100):
                server.publish_many(lines[start : start + 100], timeout=DEADLINE)
            server.drain(DEADLINE)
            server.close()
            assert task.result() == (lines, "it ended, reason 2\n", 0)


def test_it_wakes_for_each_message_of_a_slow_stream(address: str, program: Path) -> None:
    with Server(address) as server:
        with running(program, address) as task:
            wait_for_it(server)
            for number in range(200):
                server.publish(b"%d" % number)
                server.drain(DEADLINE)
            rings = server.clients()[0].packets
            server.close()
            lines, said, _ = task.result()
            assert lines == [b"%d" % number for number in range(200)]
            assert said == "it ended, reason 2\n"
            assert 0 < rings <= 200


def test_it_skips_when_told_to_and_says_what_it_missed(address: str, program: Path) -> None:
    with Server(address, on_lag="skip", max_lag=5, patience=0) as server:
        with running(program, address) as task:
            wait_for_it(server)
            published = 0
            while not server.stats().skipped:
                server.publish_many([b"%d" % number for number in range(published, published + 50)])
                published += 50
            server.drain(DEADLINE)
            skipped = server.stats().skipped
            server.publish(b"last")
            server.close()
            lines, said, status = task.result()
            missed = [line.split() for line in said.splitlines() if line.startswith("missed")]
            assert sum(int(words[1]) for words in missed) == skipped
            lost = {
                number
                for words in missed
                for number in range(int(words[4]), int(words[4]) + int(words[1]))
            }
            kept = [n for n in range(published) if FIRST_ID + n not in lost]
            assert lines == [b"%d" % number for number in kept] + [b"last"]
            assert status == 0


DIES = """
import os, signal, sys
import jumiks

server = Server(sys.argv[1])
print("ready", flush=True)
server.wait_for_clients(1)
server.publish_many([b"%d" % number for number in range(1000)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_reads_all_that_a_server_published_before_it_died(address: str, program: Path) -> None:
    with script_process(DIES, address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with running(program, address) as task:
            lines = [b"%d" % number for number in range(1000)]
            assert task.result() == (lines, "the server died\n", 1)


def test_it_says_why_it_cannot_begin(address: str, program: Path) -> None:
    with running(program, address) as task:
        lines, said, status = task.result()
        assert (lines, status) == ([], 1)
        assert "nobody serves that address" in said
    with Server(address, share_log=False), running(program, address) as task:
        assert "does not share its log" in task.result()[1]
