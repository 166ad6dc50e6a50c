# SPDX-License-Identifier: Apache-2.0
"""How a listener of log records is stopped, whoever does it and when, and what does not end it."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
import threading
from collections.abc import Callable

import pytest
from support.api import Task
from support.base import DEADLINE, wait_until
from support.servers import Server

from jumiks import Delivery
from jumiks.logging import Listener, record_to_json


class Enough(Exception):
    """What a signal's handler raises."""


class Gate(logging.Handler):
    """Keeps the texts of records, and holds each up until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.opened = threading.Event()
        self.then: Callable[[], object] = list

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        assert self.opened.wait(DEADLINE)
        self.then()


@pytest.fixture
def gate() -> Gate:
    return Gate()


def numbers(count: int) -> list[str]:
    return [str(each) for each in range(count)]


def publish(server: Server, texts: list[str]) -> None:
    records = (logging.LogRecord("a", 20, "b", 1, each, None, None) for each in texts)
    server.publish_many([record_to_json(each) for each in records])


def held_up(server: Server, gate: Gate, listener: Listener, count: int) -> None:
    """Start a listener, and publish for it; its handler has the first record."""
    listener.start()
    server.wait_for_clients(1, DEADLINE)
    publish(server, numbers(count))
    wait_until(lambda: gate.texts)


def test_a_handler_may_stop_its_listener(
    address: str, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(address) as server:
        listener = Listener(address, gate)
        gate.then = listener.stop
        held_up(server, gate, listener, 10)
        gate.opened.set()
        wait_until(lambda: not server.clients())
        listener.stop()
    assert gate.texts == numbers(10)
    assert capsys.readouterr().err == ""


def test_each_stop_returns_once_the_thread_has_ended(address: str, gate: Gate) -> None:
    with Server(address) as server:
        listener = Listener(address, gate)
        held_up(server, gate, listener, 10)
        stops = [Task(listener.stop)]
        wait_until(lambda: listener._stopping)
        stops.append(Task(listener.stop))
        with pytest.raises(RuntimeError, match="was started already"):
            listener.start()
        assert not any(task.done for task in stops)
        gate.opened.set()
        for task in stops:
            task.result()
        assert gate.texts == numbers(10)
        listener.start()
        server.wait_for_clients(1, DEADLINE)
        listener.stop()


@pytest.mark.parametrize("raises", [False, True], ids=["stops", "raises"])
def test_a_signal_s_handler_may_end_a_stop_or_stop_too(
    address: str, gate: Gate, raises: bool
) -> None:
    listener = Listener(address, gate)
    main = threading.main_thread().ident
    assert main is not None

    def struck(*_: object) -> None:
        if raises:
            raise Enough
        gate.opened.set()
        listener.stop()

    def strike() -> None:
        wait_until(lambda: listener._stopping)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, struck)
    try:
        with Server(address) as server:
            held_up(server, gate, listener, 10)
            task = Task(strike)
            if raises:
                with pytest.raises(Enough):
                    listener.stop()
                assert gate.texts == numbers(1)
                gate.opened.set()
            listener.stop()
            assert gate.texts == numbers(10)
            task.result()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("delivery", ["shared", "framed", "classic"])
def test_a_stop_of_a_listener_that_was_cut_hands_on_what_the_server_has(
    address: str, gate: Gate, delivery: Delivery
) -> None:
    with Server(address, max_lag=4, patience=0) as server:
        listener = Listener(address, gate, options={"delivery": delivery})
        held_up(server, gate, listener, 1)
        for number in range(1, 300):
            publish(server, [str(number)])
        wait_until(lambda: not server.clients())
        task = Task(listener.stop)
        wait_until(lambda: listener._stopping)
        gate.opened.set()
        task.result()
    assert [text for text in gate.texts if text.isdigit()] == numbers(300)
    assert (listener.lost, listener.error) == (0, None)


@pytest.mark.usefixtures("large_log")
def test_a_stop_waits_for_a_connection_that_comes_back(address: str, gate: Gate) -> None:
    """It does so a few times at a message that is too large for a packet of plain 1.0."""
    with Server(address, keep=10) as server:
        listener = Listener(address, gate, options={"delivery": "classic"})
        held_up(server, gate, listener, 1)
        publish(server, ["x" * 300_000, "1", "2"])
        task = Task(listener.stop)
        wait_until(lambda: listener._stopping)
        gate.opened.set()
        task.result()
    assert [text for text in gate.texts if text.isdigit()] == numbers(3)
    assert (listener.lost, listener.error) == (1, None)


def test_a_first_server_that_hangs_does_not_end_a_listener(address: str, gate: Gate) -> None:
    gate.opened.set()
    hangs = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with hangs, Listener(address, gate, options={"timeout": 0.05}) as listener:
        hangs.bind("\0" + address[1:])
        hangs.listen()
        hangs.settimeout(DEADLINE)
        kept = [hangs.accept()[0] for _ in range(10)]  # in more time than a client waits for
        for sock in (hangs, *kept):
            sock.close()
        with Server(address) as server:
            server.wait_for_clients(1, DEADLINE)
            publish(server, numbers(3))
            wait_until(lambda: gate.texts == numbers(3))
    assert listener.error is None


def test_what_a_handler_ends_the_thread_with_is_told(address: str, gate: Gate) -> None:
    gate.opened.set()

    def leave() -> None:
        gate.then = list
        raise SystemExit

    gate.then = leave
    gone: list[object] = []
    with (
        Server(address, on_disconnect=lambda *each: gone.append(each)) as server,
        Listener(address, gate) as listener,
    ):
        server.wait_for_clients(1, DEADLINE)
        publish(server, numbers(1))
        wait_until(lambda: listener.error is not None)
        listener.stop()
        assert isinstance(listener.error, SystemExit)
        assert f"no more records come from {address}: SystemExit;" in gate.texts[-1]
        wait_until(lambda: gone)
        listener.start()
        server.wait_for_clients(1, DEADLINE)
        publish(server, ["more"])
        wait_until(lambda: gate.texts[-1] == "more")


def test_a_forked_child_may_start_it_for_itself(address: str, gate: Gate) -> None:
    gate.opened.set()

    def child() -> None:
        listener.start()
        wait_until(lambda: gate.texts[-1:] == ["for both"])
        listener.stop()

    with Server(address) as server, Listener(address, gate) as listener:
        server.wait_for_clients(1, DEADLINE)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        server.wait_for_clients(2, DEADLINE)
        publish(server, ["for both"])
        process.join(DEADLINE)
        assert process.exitcode == 0
        wait_until(lambda: gate.texts == ["for both"])
