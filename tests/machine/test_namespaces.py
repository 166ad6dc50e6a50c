# SPDX-License-Identifier: Apache-2.0
"""Ends in different pid namespaces, as of containers, and a /proc that hides or lies."""

import errno
import functools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.api import FOREIGN_ENVIRONMENT
from support.base import DEADLINE, IS_ROOT, NOBODY, wait_until
from support.servers import Server, preamble

from jumiks import Client, ConnectionLost, Monitor, ServerClosed, Timeout
from jumiks._wire import rights
from jumiks.cli.status import Sample, report

SERVER = """
import sys
with Server(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
"""


@functools.cache
def may_unshare(*flags: str) -> bool:
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(
        ["unshare", *flags, "true"], capture_output=True, env=FOREIGN_ENVIRONMENT, check=False
    )
    return done.returncode == 0


PID_NAMESPACE = ("--pid", "--fork", "--kill-child")
needs_pid_namespace = pytest.mark.skipif(
    not may_unshare(*PID_NAMESPACE, "--mount-proc"), reason="this user may make no pid namespace"
)


@contextmanager
def elsewhere(
    flags: tuple[str, ...], script: str, *arguments: object
) -> Iterator[subprocess.Popen[str]]:
    """A script in namespaces of its own, once it has printed its first line."""
    pipe = subprocess.PIPE
    command = ["unshare", *flags, sys.executable, "-c", preamble() + script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(DEADLINE)


def first_line(address: str | os.PathLike[str]) -> str:
    with Monitor(address) as monitor:
        status = monitor.status()
    return report(Sample(status, status))[0]


@needs_pid_namespace
def test_the_status_of_a_container_shows_the_process_as_it_is_seen_from_here(path: Path) -> None:
    with elsewhere((*PID_NAMESPACE, "--mount-proc"), SERVER, path) as outer:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        (inner,) = children  # process 1 of its own namespace
        with Monitor(path) as monitor:
            assert monitor.status().pid == int(inner)
        name = Path(f"/proc/{inner}/comm").read_text().strip()
        assert f"process {inner} ({name})" in first_line(path)


@needs_pid_namespace
def test_a_server_outside_of_the_namespace_has_neither_number_nor_name(path: Path) -> None:
    script = """
import sys
from jumiks.cli.status import Sample, report
with jumiks.Monitor(sys.argv[1]) as monitor:
    status = monitor.status()
print("ready", flush=True)
print(status.pid, report(Sample(status, status))[0], flush=True)
"""
    with Server(path):
        with elsewhere((*PID_NAMESPACE, "--mount-proc"), script, path) as looker:
            assert looker.stdout is not None
            assert f"0 {path}  a process that cannot be seen from here, up" in looker.stdout.read()


@needs_pid_namespace
def test_a_proc_of_another_namespace_is_not_asked_for_names(address: str) -> None:
    script = """
import os, sys
from jumiks._peer import process_name
print("ready", flush=True)
print(repr(process_name(os.getpid())), flush=True)
"""
    with elsewhere(PID_NAMESPACE, script) as inside:
        assert inside.stdout is not None
        assert inside.stdout.read() == "''\n"


@pytest.mark.skipif(not IS_ROOT, reason="only root can hide processes")
@pytest.mark.skipif(not may_unshare("--mount"), reason="this user may make no mount namespace")
def test_an_owner_that_proc_hides_is_not_said_to_be_gone(path: Path) -> None:
    script = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2") == 0, os.strerror(ctypes.get_errno())
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
print("ready", flush=True)
assert not os.path.exists("/proc/" + sys.argv[2])
try:
    Server(sys.argv[1])
except jumiks.AddressInUse as error:
    print(error, flush=True)
"""
    path.parent.chmod(0o755)
    with Server(path, mode=0o666):
        with elsewhere(("--mount",), script, path, os.getpid()) as hidden:
            assert hidden.stdout is not None
            said = hidden.stdout.read()
    assert f"in use by process {os.getpid()} of user 0" in said
    assert "gone" not in said


def test_an_owner_that_is_gone_is_said_to_be_gone(address: str) -> None:
    # Its child, forked behind Python's back, has the socket still.
    script = """
import ctypes, os, sys
server = Server(sys.argv[1])
reading, writing = os.pipe()
if ctypes.PyDLL(None).fork() == 0:
    print("ready", flush=True)
    sys.stdin.read()
os._exit(0)
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", preamble() + script, address]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.wait(DEADLINE)
        with pytest.raises(OSError, match=rf"process {process.pid} of user \d+ \(which is gone"):
            Server(address)
        process.stdin.close()
        wait_until(lambda: process.stdout is not None and process.stdout.read() == "")


# ---- a server that dies while its child holds its sockets ----

MORTAL = """
import os, sys
server = jumiks.Server(sys.argv[1], share_log=True)
server.wait_for_clients(1)
server.publish(b"last words")
if os.fork() == 0:
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)
if sys.argv[2] == "exec":
    os.execv("/bin/true", ["true"])
while True:
    os.wait()
"""


@contextmanager
def mortal(address: object, how: str) -> Iterator[subprocess.Popen[str]]:
    """A server that dies once a client is there, and while its child lives."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", preamble() + MORTAL, str(address), how]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.kill()  # a client that never came is an error, and not a wait without an end


def reach(address: str | os.PathLike[str]) -> Client:
    found: list[Client] = []

    def connected() -> bool:
        try:
            found.append(Client(address, start="oldest"))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True

    wait_until(connected)
    return found[0]


@pytest.mark.parametrize("timeout", [None, DEADLINE])
@pytest.mark.parametrize("how", ["kill", "exec"])
def test_a_shared_log_tells_of_the_death_of_its_server_without_any_descriptor(
    address: str, monkeypatch: pytest.MonkeyPatch, how: str, timeout: float | None
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, "no pidfd here")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with mortal(address, how) as process, reach(address) as client:
        assert client.receive(DEADLINE) == b"last words"
        if how == "kill":
            process.kill()
        with pytest.raises(ConnectionLost):
            client.receive(timeout)


CLIENT_ELSEWHERE = """
import asyncio, sys
delivery = sys.argv[3]
async def last():
    async with jumiks.AsyncClient(sys.argv[1], start="oldest", delivery=delivery) as client:
        try:
            print((await client.receive()).decode(), flush=True)
            await client.receive()
        except jumiks.ConnectionLost:
            print("lost", flush=True)
def plain():
    with jumiks.Client(sys.argv[1], start="oldest", delivery=delivery) as client:
        try:
            print(client.receive().decode(), flush=True)
            client.receive()
        except jumiks.ConnectionLost:
            print("lost", flush=True)
if sys.argv[2] == "asyncio":
    asyncio.run(last())
else:
    plain()
"""


def names_processes() -> bool:
    """Whether the kernel names senders by descriptors, and refuses those of peers (Linux 6.16)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, rights.SO_PASSPIDFD, 1)
        except OSError:
            return False
        return rights.refuse(sock)


@needs_pid_namespace
@pytest.mark.parametrize("delivery", ["shared", "framed"])
@pytest.mark.parametrize("kind", ["asyncio", "plain"])
def test_a_client_in_another_pid_namespace_notices_that_its_server_died(
    path: Path, kind: str, delivery: str
) -> None:
    if delivery == "framed" and not names_processes():
        pytest.skip("this kernel cannot tell a client of packets (Linux 6.16)")
    with mortal(path, "kill") as process:
        wait_until(path.exists)
        command = ["unshare", *PID_NAMESPACE, "--mount-proc", sys.executable, "-c"]
        command += [preamble() + CLIENT_ELSEWHERE, str(path), kind, delivery]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "last words\n"
            process.kill()
            process.wait(DEADLINE)
            assert client.communicate(timeout=DEADLINE)[0] == "lost\n"


def test_the_death_of_a_child_is_not_taken_for_its_parents(address: str) -> None:
    script = """
import os, sys
server = jumiks.Server(sys.argv[1], share_log=True)
server.wait_for_clients(1)
for _ in range(3):
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
print("ready", flush=True)
sys.stdin.read(1)
server.publish(b"alive")
server.close()
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", preamble() + script, address]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        with reach(address) as client:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(Timeout):
                client.receive(1.5)  # it has looked once by then
            process.communicate("x")
            assert client.receive(DEADLINE) == b"alive"
            with pytest.raises(ServerClosed):
                client.receive(DEADLINE)
