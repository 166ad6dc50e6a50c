# SPDX-License-Identifier: Apache-2.0
"""Every example does what it says."""

import importlib
import io
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import pytest
from support.base import DEADLINE, ROOT, needs, wait_until
from support.command import JUMIKS_IN_SHELL, listens_at
from support.servers import Server
from support.wire import listening

from jumiks import Client
from jumiks.server import SEND_BUFFER

with suppress(ImportError):
    import numpy as np

EXAMPLES = ROOT / "examples"
PIPE = subprocess.PIPE


def run(name: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        stdout=PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # lines of two processes come as wholes
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


def test_every_worker_sees_what_one_of_them_has_changed() -> None:
    assert sorted(run("cache_invalidation.py")) == [
        f"worker {number}: ann is married, bob single" for number in range(4)
    ]


def test_keys_that_cannot_be_told_are_refused_and_the_next_is_told(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    changes = importlib.import_module("cache_invalidation").Changes(address)
    with Client(address) as client:
        for key in (b"", bytes(65537)):
            with pytest.raises(ValueError, match=f"1 to 65536 bytes, and this one {len(key)}"):
                changes.announce(key)
        for key in (b"ann", bytes(65536)):
            changes.announce(key)
            assert client.receive(DEADLINE) == key
    changes.close()


def test_a_worker_does_not_wait_for_a_parent_that_hangs(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    changes = importlib.import_module("cache_invalidation").Changes(address)
    with monkeypatch.context() as hanging:
        stuck = Event()
        hanging.setattr(changes.server, "publish", lambda _: stuck.wait(DEADLINE))
        with pytest.raises(TimeoutError):
            while True:
                changes.announce(bytes(60_000))
        stuck.set()
    changes.close()


@pytest.mark.no_core
@pytest.mark.parametrize("name", ["log_tail.py", "plain_client.py"])
@pytest.mark.parametrize("words", [[], ["a", "b", "c"]])
def test_an_example_with_wrong_arguments_says_what_it_takes(name: str, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *words], stderr=PIPE, text=True, timeout=DEADLINE
    )
    assert done.returncode == 1
    assert f"python examples/{name} " in done.stderr
    assert "Traceback" not in done.stderr


@needs("numpy")
@pytest.mark.usefixtures("large_log")
def test_a_frame_that_is_overwritten_while_a_viewer_looks_is_left_out(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    frames = importlib.import_module("frames")
    with Server(address, on_lag="skip", patience=0, log_size=8 << 20) as server:
        with Client(address) as client:
            server.wait_for_clients(1, DEADLINE)
            frames.publish(server, 3)
            assert frames.newest_brightness(client.receive_many()) == 3
            server.publish(b"no image")
            with pytest.raises(ValueError, match="magic"):
                frames.newest_brightness(client.receive_many())
            if client.delivery != "shared":
                return  # packets are copies
            server.publish(b"no image")
            batch = client.receive_many()
            while batch.valid:
                server.publish(bytes(1 << 20))
            assert frames.newest_brightness(batch) == 0


@needs("numpy")
def test_frames_are_seen_or_known_to_be_skipped() -> None:
    assert run("frames.py") == ["50 frames, brightest=49"]


@needs("numpy")
def test_a_frame_is_a_file_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    frames = importlib.import_module("frames")
    image = np.arange(24, dtype="<u2").reshape(2, 3, 4)
    file = io.BytesIO()
    np.save(file, image)
    assert np.array_equal(frames.image_of(memoryview(file.getvalue())), image)
    message = frames.header((2, 3, 4), "<u2") + image.tobytes()
    assert message == file.getvalue()
    np.save(file := io.BytesIO(), np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="no image"):
        frames.image_of(memoryview(file.getvalue()))


def test_a_log_file_is_followed_and_its_past_is_kept(address: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"before\nhal")
    with started(sys.executable, EXAMPLES / "log_tail.py", file, address):
        wait_until(lambda: listens_at(address))
        with Client(address, start="oldest") as early:
            assert early.receive(DEADLINE) == b"before"
            with file.open("ab") as log:
                log.write(b"f\nlast\n")
            assert [early.receive(DEADLINE) for _ in range(2)] == [b"half", b"last"]
            with Client(address, start="oldest") as late:
                assert late.receive(DEADLINE) == b"before"


ROOM = "1 << 19"
"""How the plain clients write the size of their buffer."""

both_languages = pytest.mark.parametrize("language", ["python", "c"])


def plain_client(folder: Path, language: str, room: str = ROOM) -> list[str]:
    """The command of a plain client, with that much room for a packet."""
    suffix = {"python": "py", "c": "c"}[language]
    text = (EXAMPLES / f"plain_client.{suffix}").read_text()
    assert text.count(ROOM) == 1
    source = folder / f"plain_client.{suffix}"
    source.write_text(text.replace(ROOM, room))
    if language == "python":
        return [sys.executable, os.fspath(source)]
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = os.fspath(folder / "plain_client")
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wconversion"]
    subprocess.run([compiler, *flags, "-o", program, source], check=True)
    return [program]


@both_languages
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
            assert server.clients()[0].delivery == "classic"
            server.close()
            output, _ = client.communicate(timeout=DEADLINE)
    assert output == b"".join(b"%d\n" % number for number in range(1000))
    assert client.returncode == 0


def plain_server(address: str, command: list[str], packets: list[bytes]) -> tuple[int, bytes]:
    """Serve a plain client these packets and go, with its acks unread: its status and output."""
    with listening(address) as listener, started(*command, address) as client:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(DEADLINE)
            connection.send(struct.pack("<HHH", 1, 0, 0))
            assert connection.recv(100) == struct.pack("<HHH", 1, 0, 0)
            for packet in packets:
                connection.send(packet)
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            assert poll.poll(1000 * DEADLINE)  # an ack, or the client has given up
        output, _ = client.communicate(timeout=DEADLINE)
        return client.returncode, output


@both_languages
def test_a_plain_client_reads_on_when_its_server_went_with_acks_unread(
    address: str, tmp_path: Path, language: str
) -> None:
    packets = [struct.pack("<Q", 100000 + number) + b"%d" % number for number in range(5)]
    status, output = plain_server(address, plain_client(tmp_path, language), packets)
    assert (status, output) == (0, b"0\n1\n2\n3\n4\n")


@both_languages
@pytest.mark.parametrize("packet", [bytes(1025), b"short"], ids=["too large", "too short"])
def test_a_plain_client_hands_out_no_part_of_a_packet(
    address: str, tmp_path: Path, language: str, packet: bytes
) -> None:
    command = plain_client(tmp_path, language, "1 << 10")
    fits = struct.pack("<Q", 100000) + b"x" * 1016
    status, output = plain_server(address, command, [fits, packet])
    assert (status, output) == (1, b"x" * 1016 + b"\n")


@both_languages
@pytest.mark.usefixtures("large_log")
def test_a_plain_client_takes_the_largest_packet_that_a_server_sends_by_default(
    address: str, tmp_path: Path, language: str
) -> None:
    with Server(address) as server:
        with started(*plain_client(tmp_path, language), address) as client:
            server.wait_for_clients(1, DEADLINE)
            largest = 2 * SEND_BUFFER - 32 - 8
            server.publish(b"x" * largest)
            assert client.stdout is not None
            output = client.stdout.read(largest + 1)
            server.close()
            rest, _ = client.communicate(timeout=DEADLINE)
    assert (client.returncode, output, rest) == (0, b"x" * largest + b"\n", b"")


# ---- the programs of the README ----


README = (EXAMPLES.parent / "README.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SCRIPT, CLIENT, SERVER, ASYNC, FAITHFUL = PROGRAMS
(SHELL,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)

TELLING = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
"""


@contextmanager
def program(text: str, address: str, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A program of the README, run as it stands there, but for the address and more time."""
    assert '"@ticks"' in text
    text = text.replace("@ticks", address).replace("=1.0)", "=50.0)").replace("=10)", "=50)")
    # Unbuffered: some of them are read line by line.
    with started(sys.executable, "-u", "-W", "error", "-c", before + text) as process:
        yield process


def ended(process: subprocess.Popen[bytes]) -> list[bytes]:
    output, _ = process.communicate(timeout=6 * DEADLINE)
    assert process.returncode == 0
    return output.splitlines()


ALL_THREE = [b"b'one'", b"b'two'", b"b'three'"]


def test_the_first_programs_of_the_readme_work_if_the_server_is_first(address: str) -> None:
    with program(SERVER, address) as server:
        wait_until(lambda: listens_at(address) or server.poll() is not None)
        with program(CLIENT, address) as client:
            assert ended(client) == ALL_THREE
        assert ended(server) == []


def test_the_first_programs_of_the_readme_work_if_the_client_is_first(address: str) -> None:
    with program(CLIENT, address, TELLING) as client:
        assert client.stdout is not None
        assert b"not there yet after 1 try" in client.stdout.readline()
        with program(SERVER, address) as server:
            assert ended(server) == []
        said, *rest = client.stdout.read().splitlines()
        assert b"there after" in said
        assert rest == ALL_THREE
        assert ended(client) == []


def test_the_script_of_the_readme_works(address: str) -> None:
    with program(SCRIPT, address) as script:
        assert ended(script) == ALL_THREE


def test_the_readme_s_commands_work(address: str, tmp_path: Path) -> None:
    jumiks = tmp_path / "jumiks"
    jumiks.write_text(f'#!/bin/sh\nexec {JUMIKS_IN_SHELL} "$@"\n')
    jumiks.chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    commands = SHELL.replace("@log", address).replace("sleep 1;", "")
    output = subprocess.check_output(["bash", "-c", commands], env=path, timeout=6 * DEADLINE)
    assert output.startswith(b"one\ntwo\nusage: jumiks")


def test_the_readme_s_program_for_an_event_loop_works(address: str) -> None:
    with program(ASYNC, address) as both:
        assert ended(both) == ALL_THREE[:2]


def test_the_readme_s_client_goes_on_over_a_restart_and_ends_with_ctrl_c(address: str) -> None:
    with program(FAITHFUL, address, TELLING) as client:
        assert client.stdout is not None
        assert b"not there yet" in client.stdout.readline()
        for message in (b"one", b"two"):
            with Server(address) as server:
                server.wait_for_clients(1, DEADLINE)
                server.publish(message)
                while (line := client.stdout.readline()) != b"%r\n" % message:
                    assert address.encode() in line  # what it logs
        client.send_signal(signal.SIGINT)
        ended(client)
