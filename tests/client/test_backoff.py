# SPDX-License-Identifier: Apache-2.0
"""When a client tries to come back, and what it logs meanwhile."""

import asyncio
import errno
import gc
import logging
import os
import random
import signal
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.aio import Run
from support.api import SOON, Task, once_it_sleeps_in, sockaddr
from support.base import DEADLINE, descriptors, wait_until
from support.servers import Server
from support.wire import HELLO, LARGE, dial, listening

from jumiks import (
    AsyncClient,
    Backoff,
    Client,
    Closed,
    ConnectionLost,
    Disconnected,
    Lagged,
    Refused,
    ServerClosed,
    Timeout,
)
from jumiks._client.reconnect import Effort, Report, Return
from jumiks._wire.handshake import Status

# ---- when it tries, and when it does not ----


def test_a_server_that_is_waited_for_in_vain_is_named_and_waited_for_again(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=SOON)
    with client:
        for timeout in (0, 0.05):
            with pytest.raises(Timeout, match=f"{address}.*not yet back"):
                client.receive(timeout)
        with Server(address) as server:
            server.publish(b"back")
            assert client.receive(DEADLINE) == b"back"


def test_a_poll_that_never_waits_comes_back_too(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=SOON)
    found: list[bytes] = []

    def poll() -> bool:
        try:
            found.append(client.receive(0))
        except Timeout:
            return False
        return True

    with client, Server(address) as server:
        server.publish(b"back")
        wait_until(poll)
        assert found == [b"back"]


def test_a_way_back_leaves_no_descriptor_for_the_collector(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=SOON)
    gc.disable()
    try:
        with client:
            wait_until(lambda: failed_to_return(client))
            assert client._stream.way is not None
            way = weakref.ref(client._stream.way)
            with Server(address) as server:
                server.publish(b"back")
                assert client.receive(DEADLINE) == b"back"
            assert way() is None
    finally:
        gc.enable()


def failed_to_return(client: Client[bytes]) -> bool:
    with pytest.raises(Timeout):
        client.receive(0)
    return client._stream.way is not None and client._stream.way.failure is not None


def test_after_a_while_it_gives_up_with_the_ending_and_its_last_failure(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=Backoff(first=0.001, give_up=0.05))
    with client:
        before = descriptors()
        with pytest.raises(ServerClosed) as error:
            client.receive(DEADLINE)
        assert isinstance(error.value.__cause__, ConnectionRefusedError)
        assert descriptors() == before


def test_without_it_the_ending_is_raised(address: str) -> None:
    with Server(address):
        client = Client(address)
    with client, Server(address), pytest.raises(ServerClosed):
        client.receive(DEADLINE)


def test_a_server_that_lets_nobody_in_ends_it(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=SOON)
    with client, Server(address, allow=lambda peer: False), pytest.raises(Refused):
        client.receive(DEADLINE)


def test_a_server_that_is_full_is_tried_again(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=SOON)
    with client, Server(address, max_clients=1) as server:
        with Client(address):
            with pytest.raises(Timeout) as error:
                client.receive(0.2)
            assert isinstance(error.value.__cause__, Refused)
        server.publish(b"room")
        assert client.receive(DEADLINE) == b"room"


def test_a_server_that_shakes_no_hands_is_tried_again(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=SOON, timeout=0.05)
    with client:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            silent.bind(sockaddr(address))
            silent.listen()
            with pytest.raises(Timeout) as error:
                client.receive(0.3)
            assert "no hello" in str(error.value.__cause__)
        with Server(address) as server:
            server.publish(b"hello")
            assert client.receive(DEADLINE) == b"hello"


def test_being_cut_for_lag_is_final(address: str) -> None:
    with Server(address, max_lag=2, patience=0) as server:
        with Client(address, reconnect=SOON) as client:
            server.publish_many([b"x"] * 20)
            with pytest.raises(Lagged):
                for _ in range(20):
                    client.receive(DEADLINE)


def test_being_disconnected_by_the_servers_user_is_final(address: str) -> None:
    with Server(address) as server, Client(address, reconnect=SOON) as client:
        server.disconnect(server.clients()[0])
        with pytest.raises(Disconnected):
            client.receive(DEADLINE)


def test_an_iteration_goes_on_over_many_servers_and_ends_with_close(address: str) -> None:
    got: list[bytes] = []

    def listen() -> None:
        got.extend(client)  # one by one

    with ExitStack() as stack:
        server = stack.enter_context(Server(address))
        client = stack.enter_context(Client(address, reconnect=SOON))
        task = Task(listen)
        for number in range(5):
            server.publish(b"%d" % number)
            wait_until(lambda number=number: len(got) > number)  # type: ignore[misc]
            server.close()
            server = stack.enter_context(Server(address))
        client.close()
        task.result()
    assert got == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("listening", [False, True])
def test_close_wakes_a_receive_that_waits_for_the_server_to_come_back(
    address: str, listening: bool
) -> None:
    with Server(address):
        client = Client(address, reconnect=Backoff(first=0.001 if listening else 60, most=60))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        if listening:
            silent.bind(sockaddr(address))
            silent.listen()
        with once_it_sleeps_in("wait_for", client.close), pytest.raises(Closed):
            client.receive()


def test_ctrl_c_while_it_waits_leaves_it_on_its_way(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=SOON)

    def press() -> None:
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGINT)

    with client:
        with once_it_sleeps_in("wait_for", press), pytest.raises(KeyboardInterrupt):
            client.receive(DEADLINE)
        with Server(address) as server:
            server.publish(b"back")
            assert client.receive(DEADLINE) == b"back"


def test_a_wait_that_is_over_has_nothing_left(address: str) -> None:
    with Server(address), Client(address) as client:
        way = Return(client._stream, ServerClosed("it closed"), Effort(Backoff()))
        assert way.due() == (-1, 0.0)  # trio refuses to wait for less


# ---- what is logged ----


def test_each_kind_of_failure_is_logged_once_and_then_at_growing_intervals() -> None:
    now = 0.0
    report = Report(lambda: now)
    told = []
    for now in range(200):
        absent = report.failed(FileNotFoundError(errno.ENOENT, f"not there at {now}"))
        if absent:
            told.append(now)
            assert absent.endswith(f" s: not there at {now}")
        if now == 3:
            other = report.failed(ConnectionRefusedError(errno.ECONNREFUSED, "not listening"))
            assert other == "not back yet after 5 tries in 3.0 s: not listening"
            full = Refused("full", status=Status.TOO_MANY_CLIENTS)
            closing = Refused("closing", status=Status.CLOSING)
            assert report.failed(full)
            assert report.failed(closing)
            assert report.failed(full) is None
    assert told == [0, 10, 30, 70, 150]
    assert report.succeeded() == "back after 205 tries in 199.0 s"


def test_the_intervals_grow_to_an_hour() -> None:
    now = 0.0
    report = Report(lambda: now)
    told: list[float] = []
    for now in range(0, 40_000, 10):
        words = report.failed(ConnectionRefusedError(errno.ECONNREFUSED, "not listening"))
        told += [now] if words else []
    gaps = [after - before for before, after in pairwise(told)]
    assert gaps[:4] == [10, 20, 40, 80]
    assert set(gaps[9:]) == {3600}


def lines_of(caplog: pytest.LogCaptureFixture, where: str | Path) -> list[str]:
    """What a client of this address logged of its way, at INFO alone."""
    found = [
        record
        for record in caplog.records
        if record.message.startswith(f"{where}: ") and "client.missed" not in record.message
    ]
    assert {record.levelno for record in found} == {logging.INFO}
    return [record.message for record in found]


def test_the_way_back_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Server(path):
        client = Client(path, reconnect=SOON)
    caplog.set_level(logging.INFO, "jumiks")
    with client:
        for _ in range(3):  # the same failure many times
            with pytest.raises(Timeout):
                client.receive(0.1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left_behind:
            left_behind.bind(os.fspath(path))
        with pytest.raises(Timeout):
            client.receive(0.1)
        with Server(path) as server:
            server.publish(b"back")
            assert client.receive(DEADLINE) == b"back"
    ended, absent, no_server, back = lines_of(caplog, path)
    assert "the server closed" in ended
    assert ended.endswith("; coming back to it")
    assert ": there is no socket at this path" in absent
    assert "no server listens on this socket file" in no_server
    assert f"{path}: back after " in back


def test_the_way_back_is_logged_in_an_event_loop(
    run: Run, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with Server(address):
            client = await AsyncClient(address, reconnect=SOON)
        caplog.set_level(logging.INFO, "jumiks")
        async with client:
            for _ in range(3):
                with pytest.raises(Timeout):
                    await client.receive(0.1)
            with Server(address) as server:
                server.publish(b"back")
                assert await client.receive(DEADLINE) == b"back"

    run(main)
    ended, absent, back = lines_of(caplog, address)
    assert "the server closed" in ended
    assert ": no server listens at this address" in absent
    assert "back after " in back


def test_a_log_handler_may_use_the_client(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=SOON)

    class Closing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            closing = Task(client.close)
            closing.result()

    handler, logger = Closing(), logging.getLogger("jumiks")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(Closed):
            client.receive(DEADLINE)
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


# ---- when it tries ----


def test_waits_grow_up_to_a_limit_and_chance_shortens_them() -> None:
    def some(backoff: Backoff) -> list[float]:
        waits = backoff.waits()
        return [next(waits) for _ in range(8)]

    exact = some(Backoff(first=1, most=10, factor=2, jitter=0))
    assert exact == [1, 2, 4, 8, 10, 10, 10, 10]
    for _ in range(100):
        for wait, most in zip(some(Backoff(first=1, most=10, jitter=0.25)), exact, strict=True):
            assert 0.75 * most <= wait <= most
    assert some(Backoff(jitter=1)) != some(Backoff(jitter=1))


def drop_at_once(effort: Effort, clock: list[float], last_id: int = 7) -> list[float | str]:
    """Come back to a server that drops the connection at once: the wait, and what is said."""
    effort.resume(last_id)
    ended = effort.report.ended(ConnectionLost("it died"))
    wait = next(effort.waits)
    clock[0] += wait
    effort.entered(last_id)
    said = (ended, effort.report.succeeded())
    return [wait, *(words for words in said if words)]


def test_connections_that_are_dropped_at_once_are_tries_like_others() -> None:
    clock = [0.0]
    effort = Effort(Backoff(first=1, most=8, jitter=0, give_up=150), lambda: clock[0])
    found = [drop_at_once(effort, clock) for _ in range(20)]
    assert [each[0] for each in found] == [1, 2, 4] + [8] * 17
    assert effort.left() == 150 - clock[0]
    told = {number: each[1:] for number, each in enumerate(found) if each[1:]}
    again = "it died; coming back to it again, after"
    assert told == {
        0: ["it died; coming back to it", "back after 1 try in 1.0 s"],
        4: [f"{again} 4 tries in 15.0 s", "back after 5 tries in 23.0 s"],
        7: [f"{again} 7 tries in 39.0 s", "back after 8 tries in 47.0 s"],
        12: [f"{again} 12 tries in 79.0 s", "back after 13 tries in 87.0 s"],
    }


FIRST_TIME = [1, "it died; coming back to it", "back after 1 try in 1.0 s"]
"""What `drop_at_once` returns of a first try."""


@pytest.mark.parametrize(
    ("lasted", "last_id", "wait"),
    [(8, 7, 1), (0, 8, 1), (7.9, 7, 4)],
    ids=["lasted", "handed out a message", "neither"],
)
def test_after_a_connection_that_was_of_use_tries_begin_anew(
    lasted: float, last_id: int, wait: int
) -> None:
    clock = [0.0]
    effort = Effort(Backoff(first=1, most=8, jitter=0, give_up=150), lambda: clock[0])
    assert drop_at_once(effort, clock) == FIRST_TIME
    assert drop_at_once(effort, clock)[0] == 2
    clock[0] += lasted
    found = drop_at_once(effort, clock, last_id)
    assert found[0] == wait
    assert (found == FIRST_TIME) == (effort.left() == 149) == (wait == 1)


def test_waits_of_nothing_give_up_as_well() -> None:
    clock = [0.0]
    effort = Effort(Backoff(first=0, most=0, give_up=5), lambda: clock[0])
    for _ in range(10):
        drop_at_once(effort, clock)
        clock[0] += 0.5
    assert effort.left() == 0


def test_the_way_back_after_one_that_was_given_up_is_a_new_one() -> None:
    clock = [0.0]
    effort = Effort(Backoff(first=1, most=8, jitter=0), lambda: clock[0])
    for _ in range(2):
        assert drop_at_once(effort, clock) == FIRST_TIME
        effort.end()


class Dropping:
    """A server that lets a client in and drops it at once."""

    def __init__(self, address: str, listener: socket.socket) -> None:
        self.connections = 0
        self._address = address
        self._listener = listener
        self._task = Task(self._run)

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, suppress(BrokenPipeError, ConnectionResetError):
                connection.settimeout(DEADLINE)
                connection.send(HELLO)
                if connection.recv(LARGE) == b"stop":
                    return
                self.connections += 1

    def stop(self) -> None:
        with dial(self._address) as last:
            last.send(b"stop")
            self._task.result()


@pytest.fixture
def dropping(address: str) -> Iterator[Dropping]:
    with listening(address) as listener:
        server = Dropping(address, listener)
        yield server
        server.stop()


SECOND_TRY_NEVER = Backoff(first=0.001, factor=1e6, most=1000, jitter=0)


def test_a_server_that_drops_at_once_is_come_back_to_with_growing_waits(
    address: str, dropping: Dropping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumiks")
    with Client(address, reconnect=SECOND_TRY_NEVER) as client:
        with pytest.raises(Timeout):
            client.receive(0.5)
    assert dropping.connections <= 2
    assert len(lines_of(caplog, address)) <= 2


def test_a_server_that_drops_at_once_is_come_back_to_with_growing_waits_in_an_event_loop(
    run: Run, address: str, dropping: Dropping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumiks")

    async def main() -> None:
        async with AsyncClient(address, reconnect=SECOND_TRY_NEVER) as client:
            with pytest.raises(Timeout):
                await client.receive(0.5)

    run(main)
    assert dropping.connections <= 2
    assert len(lines_of(caplog, address)) <= 2


@pytest.mark.usefixtures("dropping")
def test_a_server_that_drops_at_once_is_given_up(address: str) -> None:
    with Client(address, reconnect=Backoff(first=0.001, most=0.02, give_up=0.1)) as client:
        for _ in range(2):  # and then tried once more
            with pytest.raises(ConnectionLost):
                client.receive(DEADLINE)


@pytest.mark.usefixtures("dropping")
def test_a_server_that_drops_at_once_is_given_up_in_an_event_loop(run: Run, address: str) -> None:
    async def main() -> None:
        backoff = Backoff(first=0.001, most=0.02, give_up=0.1)
        async with AsyncClient(address, reconnect=backoff) as client:
            for _ in range(2):
                with pytest.raises(ConnectionLost):
                    await client.receive(DEADLINE)

    run(main)


def test_it_does_not_wait_longer_than_until_it_gives_up(address: str) -> None:
    with Server(address):
        client = Client(address, reconnect=Backoff(first=1000, most=1000, jitter=0, give_up=0.05))
    with client, pytest.raises(ServerClosed):
        client.receive(DEADLINE)


def test_what_a_signal_s_handler_raises_does_not_end_the_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted() -> float:
        monkeypatch.undo()
        raise InterruptedError

    waits = Backoff(first=1, most=8, jitter=0).waits()
    monkeypatch.setattr(random, "random", interrupted)
    with pytest.raises(InterruptedError):
        next(waits)
    assert [next(waits), next(waits)] == [2, 4]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"first": -1}, ValueError, "first=-1: it must be 0 seconds or more$"),
        ({"first": 3}, ValueError, "most=2.0: it must be 3"),
        ({"factor": 0.5}, ValueError, "factor=0.5: it must be 1 or more"),
        ({"jitter": 1.5}, ValueError, "jitter=1.5: it must be from 0 to 1"),
        ({"give_up": 10**400}, ValueError, "give_up is a number of 1329 bits"),
        ({"most": 10**400}, ValueError, "most is a number of 1329 bits"),
        ({"give_up": -1}, ValueError, "give_up=-1: it must be 0 seconds or more; None is no"),
        ({"most": None}, TypeError, "most is a number"),
        ({"first": "1"}, TypeError, "number of seconds"),
    ],
)
def test_a_backoff_that_cannot_be_is_refused(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Backoff(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"reconnect": 1}, TypeError, "reconnect is True, False or a Backoff"),
        ({"ack": "never"}, ValueError, "'after', 'before' or 'manual'"),
        ({"on_gap": "ignore"}, TypeError, "on_gap is 'raise', 'yield', a function or None"),
        ({"on_gap": asyncio.sleep}, TypeError, "on_gap is a plain function, as nobody awaits"),
    ],
)
def test_wrong_arguments_are_refused(
    address: str, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Client(address, **arguments)
