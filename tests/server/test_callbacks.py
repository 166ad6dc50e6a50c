# SPDX-License-Identifier: Apache-2.0
"""What a callback may do in the control thread: anything but wait for clients there."""

import logging
import subprocess
import sys
import threading
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from support.api import Task
from support.base import DEADLINE, wait_until
from support.servers import Server
from support.wire import FIRST_ID, raw_client

from jumiks import Client, ClientInfo, Closed, Monitor, Timeout

ADVICE = "in the server's control thread, which lets clients in and must not wait: call it from"

CALLS: dict[str, Callable[[Server], object]] = {
    "publish": lambda server: server.publish(b"snapshot"),
    "publish with a timeout": lambda server: server.publish(b"snapshot", timeout=DEADLINE),
    "publish_many": lambda server: server.publish_many([b"a", b"b"]),
    "reserve": lambda server: server.reserve(8).__enter__(),
    "drain": lambda server: server.drain(),
}


@contextmanager
def at_its_limit(address: str, **callbacks: object) -> Iterator[Server]:
    """A server that waits for its only client, which has handled nothing."""
    options = {"on_lag": "block", "max_lag": 3, **callbacks}
    with Server(address, **options) as server:  # type: ignore[arg-type]
        with raw_client(server, address):
            server.publish_many([b"x"] * 3)
            yield server
            server.close(0)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("when", ["on_connect", "on_disconnect", "on_lag_warning"])
def test_what_would_wait_in_a_callback_raises_and_everybody_is_let_in(
    address: str, when: str, call: Callable[[Server], object]
) -> None:
    raised: list[tuple[str, object]] = []

    def callback(*_: object) -> None:
        with suppress(Closed):  # the last ones go when the server does
            try:
                call(server)
            except Timeout as error:
                raised.append((str(error), error.holder))  # itself it would keep the server

    with at_its_limit(address, **{when: callback}) as server:
        raised.clear()  # of the first client, which came before there was anything to wait for
        with Client(address, timeout=DEADLINE), Monitor(address, timeout=DEADLINE) as monitor:
            assert monitor.status().stats.clients == 2
        wait_until(lambda: raised)
        assert server.stats().next_id == FIRST_ID + 3
    text, holder = raised[0]
    assert ADVICE in text
    assert holder is not None


def test_a_callback_may_publish_where_nothing_has_to_wait(address: str) -> None:
    with Server(address, on_connect=lambda _: server.publish(b"snapshot")) as server:
        with Client(address) as client:
            assert client.receive(DEADLINE) == b"snapshot"


def test_waiting_for_clients_in_a_callback_raises_unless_they_are_there(address: str) -> None:
    said: list[object] = []

    def callback(_: ClientInfo) -> None:
        server.wait_for_clients(1)
        said.append("there is one")
        try:
            server.wait_for_clients(2)
        except Timeout as error:
            said.append(str(error))

    with Server(address, on_connect=callback) as server, Client(address):
        wait_until(lambda: len(said) == 2)
    assert said[0] == "there is one"
    assert str(said[1]).startswith(
        "1 of 2 clients are connected; wait_for_clients would have to wait"
    )


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, CancelledError])
def test_whatever_a_callback_raises_the_next_client_is_let_in(
    address: str, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A future that was cancelled raises no Exception, nor does `sys.exit`."""

    def callback(_info: ClientInfo) -> None:
        raise kind

    with Server(address, on_connect=callback) as server:
        for _ in range(2):
            with Client(address, timeout=DEADLINE) as client:
                server.publish(b"still here")
                assert client.receive(DEADLINE) == b"still here"
    assert sum("raised" in record.message for record in caplog.records) == 2


def test_a_logging_handler_that_publishes_does_not_stop_the_control_thread(address: str) -> None:
    raised: list[str] = []

    class Publishing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                server.publish(record.getMessage().encode())
            except Timeout as error:
                raised.append(str(error))

    log, handler = logging.getLogger("jumiks"), Publishing()
    level = log.level
    with at_its_limit(address) as server:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            with Client(address, timeout=DEADLINE):
                wait_until(lambda: raised)
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
    assert ADVICE in raised[0]


WAITS: dict[str, Callable[[Server], object]] = {
    "wait_for_clients": lambda server: server.wait_for_clients(2),
    "publish": lambda server: server.publish(b"x"),
    "drain": lambda server: server.drain(),
    "reserve": lambda server: server.reserve(8).__enter__(),
}


def let_look_once_more(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have waiters look when the thread was told to end, as they may, and sleep again by then."""
    control = server._control
    close = control.close

    def slowly(handle: Any) -> None:
        close(handle)
        wait_until(lambda: all(each.locked() for each in control.changes._waiters))

    monkeypatch.setattr(control, "close", slowly)


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_a_close_ends_each_wait_though_a_callback_is_not_through(
    address: str, wait: Callable[[Server], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The control thread stands still, so it is the close itself that has to end the wait.
    called, through = threading.Event(), threading.Event()

    def callback(*_: object) -> None:
        called.set()
        through.wait()

    options = {"on_lag": "block", "max_lag": 1}
    with Server(address, on_connect=callback, **options) as server:  # type: ignore[arg-type]
        with raw_client(server, address):
            assert called.wait(DEADLINE)
            server.publish(b"x")
            waiter = Task(lambda: wait(server))
            waiter.sleeps_in("<lambda>")
            let_look_once_more(server, monkeypatch)
            closer = Task(server.close)
            try:
                with pytest.raises(Closed):
                    waiter.result()
                assert not closer.done
            finally:
                through.set()
            closer.result()


PROGRAM = """
import logging, sys, jumiks
if sys.argv[2] == "configured":
    logging.basicConfig()
options = dict(max_lag=1, on_lag="skip", patience=0, on_connect=lambda info: 1 / 0)
with jumiks.Server(sys.argv[1], **options) as server, jumiks.Client(sys.argv[1]) as client:
    server.publish_many([b""] * 3)
    for _ in range(2):
        client.receive()
"""


@pytest.mark.parametrize("how", ["configured", "as it is"])
def test_a_program_sees_once_what_went_wrong_whether_it_configured_logging_or_not(
    address: str, how: str
) -> None:
    words = [sys.executable, "-c", PROGRAM, address, how]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=DEADLINE, check=True)
    assert done.stderr.count("ZeroDivisionError: division by zero\n") == 1
    assert done.stderr.count(": message 100001 is lost: given up by the server") == 1
    assert "skipped" not in done.stderr  # which is at INFO, ...
    assert "connected" not in done.stderr  # ... as this is
