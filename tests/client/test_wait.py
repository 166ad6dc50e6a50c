# SPDX-License-Identifier: Apache-2.0
"""Waiting for a server that is not there yet: what is tried again, how long, and what is not."""

import errno
import logging
import signal
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from support.aio import Run
from support.api import SOON, Task, once_it_sleeps_in
from support.base import DEADLINE, wait_until
from support.command import command, finish
from support.servers import Server

from jumiks import (
    AsyncClient,
    Backoff,
    Client,
    ConnectionLost,
    ProtocolError,
    Refused,
    Timeout,
    VersionMismatch,
)
from jumiks._client.connecting import Wait
from jumiks._client.reconnect import WAITING, wait_for_server
from jumiks._wire.handshake import Status

Time = float | Literal["default"] | None

ABSENT = TimeoutError("nobody is here")

# ---- a server that comes later


@pytest.mark.parametrize(
    "options", [{"wait": DEADLINE}, {"wait": None}, {"reconnect": SOON}, {"reconnect": True}]
)
def test_a_server_that_comes_later_is_waited_for(address: str, options: dict[str, Any]) -> None:
    task = Task(lambda: Client(address, **options))
    task.sleeps_in("in_thread")
    with Server(address) as server, task.result() as client:
        server.publish(b"first")
        assert client.receive(DEADLINE) == b"first"
        assert client.missed == 0


@pytest.mark.parametrize("options", [{"wait": DEADLINE}, {"reconnect": SOON}])
def test_a_server_that_comes_later_is_waited_for_in_an_event_loop(
    run: Run, address: str, options: dict[str, Any]
) -> None:
    async def main() -> None:
        client = AsyncClient(address, **options)
        got: list[bytes] = []

        async def read() -> None:
            async with client:
                got.append(await client.receive(DEADLINE))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.sleep(0.02)
            with Server(address) as server:
                while not server.clients():
                    await anyio.sleep(0.002)
                server.publish(b"first")
                while not got:
                    await anyio.sleep(0.002)

    run(main)


def test_a_folder_that_is_made_with_the_server_is_waited_for(path: Path) -> None:
    where = path.parent / "made" / "later"
    task = Task(lambda: Client(where, wait=DEADLINE))
    task.sleeps_in("in_thread")
    where.parent.mkdir()
    with Server(where), task.result():
        pass


def test_a_socket_file_that_a_dead_server_left_is_waited_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    task = Task(lambda: Client(path, wait=DEADLINE))
    task.sleeps_in("in_thread")
    with Server(path), task.result():
        pass


def test_the_command_waits_for_its_server(address: str) -> None:
    with command("listen", address, "--wait", DEADLINE, "--count", 1) as listen:
        with Server(address) as server:
            server.wait_for_clients(1, DEADLINE)
            server.publish(b"hello")
            assert finish(listen) == (0, b"hello\n", "")


# ---- one that does not


def test_a_server_that_does_not_come_is_an_error_that_says_how_long(address: str) -> None:
    with pytest.raises(ConnectionRefusedError, match=r"start it first.*; tried for \d\.\d s"):
        Client(address, wait=0.02)
    with pytest.raises(FileNotFoundError, match=r"no directory '/nowhere': .*; tried for \d"):
        Client("/nowhere/socket", reconnect=Backoff(first=0.001, most=0.01, give_up=0.02))


def test_what_was_tried_once_was_not_tried_for_a_time(address: str) -> None:
    for options in ({}, {"wait": 0}, {"wait": 0, "reconnect": True}):
        with pytest.raises(ConnectionRefusedError) as caught:
            Client(address, **options)  # type: ignore[call-overload]
        assert "tried" not in str(caught.value)


def test_ctrl_c_ends_the_wait(address: str) -> None:
    interrupt = once_it_sleeps_in("in_thread", lambda: signal.raise_signal(signal.SIGINT))
    with interrupt, pytest.raises(KeyboardInterrupt):
        Client(address, wait=None)


def test_a_wait_in_an_event_loop_can_be_cancelled(run: Run, address: str) -> None:
    async def main() -> None:
        with anyio.move_on_after(0.02) as scope:
            await AsyncClient(address, wait=None)
        assert scope.cancelled_caught

    run(main)


# ---- the rule, without time


def tries(
    *outcomes: Exception | None,
    wait: Time = "default",
    backoff: Backoff | None = None,
    now: list[float] | None = None,
) -> list[float]:
    """The waits between tries that have these outcomes, on a clock that the waits move."""
    clock = now if now is not None else [0.0]
    left = list(outcomes)

    def connect() -> Generator[Wait, None, None]:
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if outcome is not None:
            raise outcome
        yield from ()

    waits = []
    for descriptor, seconds in wait_for_server(connect, "@nobody", wait, backoff):
        assert descriptor == -1
        waits.append(seconds)
        clock[0] += seconds
    return waits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


STEADY = Backoff(first=1.0, most=4.0, jitter=0.0)


def test_waits_are_those_of_the_backoff(clock: list[float]) -> None:
    assert tries(None) == []
    assert tries(ABSENT, ABSENT, None, backoff=STEADY, now=clock) == [1.0, 2.0]
    assert tries(*[ABSENT] * 4, None, backoff=STEADY, now=clock) == [1.0, 2.0, 4.0, 4.0]


def test_the_last_try_is_at_the_end_of_the_wait(clock: list[float]) -> None:
    with pytest.raises(TimeoutError):
        tries(ABSENT, wait=10.0, backoff=STEADY, now=clock)
    assert clock[0] == 10.0
    assert tries(*[ABSENT] * 4, None, wait=10.0, backoff=STEADY, now=[0.0]) == [1.0, 2.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("wait", "give_up", "least", "most"),
    [
        ("default", 7.0, 7.0, 7.0),
        (3.0, 7.0, 3.0, 3.0),
        (9.0, 7.0, 9.0, 9.0),
        (0.0, 7.0, 0.0, 0.0),
        (0, None, 0.0, 0.0),
    ],
)
def test_wait_goes_before_give_up(
    wait: Time, give_up: float | None, least: float, most: float, clock: list[float]
) -> None:
    backoff = Backoff(first=1.0, most=4.0, jitter=0.0, give_up=give_up)
    with pytest.raises(TimeoutError):
        tries(ABSENT, wait=wait, backoff=backoff, now=clock)
    assert least <= clock[0] <= most


@pytest.mark.parametrize("wait", ["default", None])
def test_with_reconnect_there_is_no_limit_by_default(wait: Time, clock: list[float]) -> None:
    assert len(tries(*[ABSENT] * 5000, None, wait=wait, backoff=STEADY, now=clock)) == 5000


def test_without_reconnect_a_server_is_found_soon_after_it_comes(clock: list[float]) -> None:
    waits = tries(*[ABSENT] * 1000, None, wait=None, now=clock)
    assert max(waits) <= WAITING.most == 0.25


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "nobody is here"),
        FileNotFoundError(errno.ENOENT, "no socket"),
        ConnectionLost("the server closed during the handshake"),
        Timeout("no hello"),
        Refused("it is closing", status=Status.CLOSING),
        Refused("all places are taken", status=Status.TOO_MANY_CLIENTS),
        OSError(errno.EMFILE, "too many open files"),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception, clock: list[float]) -> None:
    assert len(tries(error, None, wait=None, now=clock)) == 1


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "this user may not connect"),
        NotADirectoryError(errno.ENOTDIR, "a part of this path is not a directory"),
        ConnectionRefusedError(errno.ENOTSOCK, "this is a file"),
        OSError(errno.EPROTOTYPE, "a socket of another type"),
        OSError(errno.ELOOP, "too many symbolic links"),
        Refused("not you", status=Status.NOT_ALLOWED),
        Refused("beyond", status=Status.START),
        VersionMismatch(ours=(1, 0, 0), theirs=(2, 0, 0)),
        ProtocolError("no jumiks"),
        ValueError("wrong"),
    ],
)
def test_what_will_not_pass_is_an_error_at_once(error: Exception, clock: list[float]) -> None:
    for backoff in (None, STEADY):
        with pytest.raises(type(error)) as caught:
            tries(error, wait=None, backoff=backoff, now=clock)
        assert caught.value is error
    assert clock[0] == 0


def test_what_will_not_pass_ends_a_wait_for_something_else(clock: list[float]) -> None:
    denied = PermissionError(errno.EACCES, "this user may not connect")
    with pytest.raises(PermissionError):
        tries(ABSENT, ABSENT, denied, wait=None, backoff=STEADY, now=clock)
    assert clock[0] == 3.0


def test_what_stands_at_the_path_and_is_no_server_is_an_error_at_once(
    path: Path,
) -> None:
    path.write_text("")
    with pytest.raises(ConnectionRefusedError, match="this is a file, no socket"):
        Client(path, wait=None)
    with pytest.raises(NotADirectoryError):
        Client(path / "socket", reconnect=True)
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="a socket of another type"):
            Client(path, wait=None)


def test_the_wait_is_logged_once_and_so_is_its_end(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumiks")
    tries(*[ABSENT] * 3, None, wait=None, backoff=STEADY, now=clock)
    assert [record.getMessage() for record in caplog.records] == [
        "@nobody: not there yet after 1 try in 0.0 s: nobody is here",
        "@nobody: there after 4 tries in 7.0 s",
    ]
    caplog.clear()
    tries(None)
    assert not caplog.records


def test_a_server_that_is_full_is_waited_for(address: str) -> None:
    with Server(address, max_clients=1) as server:
        first = Client(address)
        task = Task(lambda: Client(address, wait=DEADLINE))
        task.sleeps_in("in_thread")
        first.close()
        with task.result():
            wait_until(lambda: len(server.clients()) == 1)
