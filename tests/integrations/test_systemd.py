# SPDX-License-Identifier: Apache-2.0
"""Sockets that a service manager passes, and what it is told."""

import configparser
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.api import FOREIGN_ENVIRONMENT, run_script, sockaddr
from support.base import DEADLINE, ROOT, wait_until
from support.command import listens_at

from jumiks import Client, ServerClosed, systemd

ACTIVATE = shutil.which("systemd-socket-activate")
SERVE = (sys.executable, "-m", "jumiks.cli", "serve", "systemd")

# What a manager does between fork and exec: the sockets at 3 and up, and who they are for.
LAUNCHER = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"""


def bound(address: str | Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(sockaddr(os.fspath(address)))
    sock.listen()
    return sock


@contextmanager
def launched(
    *command: str, passed: list[socket.socket], notify: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A command as a manager would start it."""
    environment = {**os.environ, "LISTEN_FDS": str(len(passed)), "NOTIFY_SOCKET": notify}
    copies = "; ".join(f"os.dup2({sock.fileno()}, {3 + i})" for i, sock in enumerate(passed))
    with subprocess.Popen(
        [sys.executable, "-c", f"import os; {copies or 'pass'}\n{LAUNCHER}", *command],
        env=environment,
        pass_fds=[sock.fileno() for sock in passed],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_serve_takes_the_socket_that_is_passed_and_tells_its_manager(
    address: str, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, bound(address) as passed:
        manager.bind(os.fspath(path))
        manager.settimeout(DEADLINE)
        with launched(*SERVE, passed=[passed], notify=os.fspath(path)) as serve:
            assert manager.recv(100) == b"READY=1"
            with Client(address, timeout=DEADLINE) as client:
                assert serve.stdin is not None
                serve.stdin.write(b"line\n")
                serve.stdin.close()
                assert client.receive(DEADLINE) == b"line"
                with pytest.raises(ServerClosed):
                    client.receive(DEADLINE)
            assert manager.recv(100) == b"STOPPING=1"
            assert serve.wait(DEADLINE) == 0


@pytest.mark.parametrize("count", [0, 2])
def test_it_takes_one_socket(address: str, count: int) -> None:
    sockets = [bound(f"{address}{number}") for number in range(count)]
    with launched(*SERVE, passed=sockets) as serve:
        _, errors = serve.communicate(timeout=DEADLINE)
    for sock in sockets:
        sock.close()
    assert serve.returncode == 1
    assert f"{count} sockets were passed" in errors.decode()
    assert "ListenSequentialPacket=" in errors.decode()


def test_the_path_of_a_passed_socket_is_not_removed(path: Path) -> None:
    with bound(path) as passed, launched(*SERVE, passed=[passed]) as serve:
        with Client(path, timeout=DEADLINE):
            pass
        serve.communicate(b"", timeout=DEADLINE)
        assert serve.returncode == 0
        assert path.is_socket()


@pytest.mark.skipif(ACTIVATE is None, reason="there is no systemd-socket-activate")
def test_with_the_program_of_systemd_itself(address: str) -> None:
    assert ACTIVATE is not None
    # It hands on little of its environment.
    wanted = ("LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "PYTHONMALLOC")
    kept = [f"--setenv={name}={os.environ[name]}" for name in wanted if name in os.environ]
    command = [ACTIVATE, "--seqpacket", *kept, "-l", address, sys.executable]
    with subprocess.Popen(
        [*command, str(ROOT / "examples/supervised.py"), "0.01"],
        stderr=subprocess.PIPE,
        env=FOREIGN_ENVIRONMENT,
    ) as process:
        try:
            wait_until(lambda: listens_at(address))
            # This connection is what starts it.
            with Client(address, timeout=DEADLINE) as client:
                assert len(client.receive(DEADLINE)) == 24
                process.terminate()
                with pytest.raises(ServerClosed):
                    while True:
                        client.receive(DEADLINE)
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()


# ---- the parts


PARTS = """
import os, socket
from jumiks import systemd
def look():
    return {name: [sock.detach() for sock in socks]
            for name, socks in systemd.listen_sockets().items()}
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.dup2(sock.fileno(), 20)
sock.close()
os.dup2(20, 3)
os.dup2(20, 4)
os.environ |= {"LISTEN_FDS": "2", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a:b"}
assert look() == {}, "they are for another process"
os.environ |= {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "a:b"}
assert look() == {"a": [3], "b": [4]}
assert not os.get_inheritable(3)
assert "LISTEN_FDS" not in os.environ
assert look() == {}
os.environ |= {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())}
assert look() == {"unknown": [3, 4]}
print("fine")
"""


def test_sockets_are_taken_once_by_name_and_only_by_the_process_they_are_for() -> None:
    assert run_script(PARTS) == "fine\n"


@pytest.mark.parametrize("abstract", [True, False])
def test_notify_reaches_paths_and_abstract_names(
    address: str, path: Path, abstract: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not systemd.notify("READY=1")
    where = address if abstract else os.fspath(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(sockaddr(where))
        monkeypatch.setenv("NOTIFY_SOCKET", where)
        assert systemd.notify("READY=1\nSTATUS=fine")
        assert manager.recv(100) == b"READY=1\nSTATUS=fine"


def test_the_unit_files_say_what_the_code_needs() -> None:
    units = {}
    for kind in ("socket", "service"):
        units[kind] = configparser.ConfigParser(interpolation=None)
        units[kind].read(ROOT / f"examples/systemd/jumiks-log.{kind}")
    assert units["socket"]["Socket"]["ListenSequentialPacket"].startswith("/run/")
    assert units["service"]["Service"]["Type"] == "notify"
    assert "jumiks serve systemd" in units["service"]["Service"]["ExecStart"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    for kind in ("socket", "service"):
        text = (ROOT / f"examples/systemd/jumiks-log.{kind}").read_text()
        (tmp_path / f"jumiks-log.{kind}").write_text(
            text.replace("/usr/local/bin/jumiks", sys.executable)
        )
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "jumiks-log.socket"],
        env=FOREIGN_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "jumiks-log" not in done.stderr
