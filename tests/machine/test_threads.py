# SPDX-License-Identifier: Apache-2.0
"""Threads that use one object at once, on a free-threaded Python too: it stays whole."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from support.base import DEADLINE, wait_until
from support.servers import Server

from jumiks import Busy, Client, Closed, JumiksError, Timeout
from jumiks._objects import Window

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


@pytest.mark.no_core
@pytest.mark.skipif(HAS_GIL, reason="Python 3.14 and later have builds without a GIL")
def test_it_has_no_python_take_its_gil_back() -> None:
    script = "import jumiks, sys; sys.exit(sys._is_gil_enabled())"
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=DEADLINE)


@contextmanager
def threads(*tasks: Callable[[], object]) -> Iterator[None]:
    """Run each in a thread of its own, all at once; what one raises is raised at the end."""
    barrier = threading.Barrier(len(tasks))
    raised: list[BaseException] = []

    def run(task: Callable[[], object]) -> None:
        barrier.wait(DEADLINE)
        try:
            task()
        except BaseException as error:
            raised.append(error)

    started = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        for thread in started:
            thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in started)
    if raised:
        raise raised[0]


def test_buffers_that_threads_open_and_close_are_counted() -> None:
    window = Window(None, 0, 0, True)

    def open_and_close() -> None:
        for _ in range(3000):
            memoryview(window).release()

    with threads(*[open_and_close] * 4):
        pass
    assert window.exports == 0


def test_a_reservation_that_two_threads_enter_is_one_threads(address: str) -> None:
    entered: list[memoryview] = []
    refused: list[str] = []

    with Server(address) as server:
        reservation = server.reserve(3)

        def enter() -> None:
            try:
                with reservation as view:
                    entered.append(view)
                    view[:] = b"abc"
            except JumiksError as error:
                refused.append(str(error))

        with ExitStack() as turn:
            turn.enter_context(server.reserve(1))
            with threads(enter, enter):
                wait_until(lambda: len(refused) == 1)
                assert entered == []
                turn.close()
    assert len(entered) == 1
    assert "entered once" in refused[0]


def test_threads_share_both_ends_until_these_are_closed(address: str) -> None:
    """Everything that comes is a whole message of the right place, whoever gets it."""
    sent: set[bytes] = set()
    got: list[bytes] = []

    def publish(number: int) -> Callable[[], None]:
        def task() -> None:
            with suppress(Closed):
                for count in range(10**9):
                    message = b"%d %d" % (number, count)
                    sent.add(message)
                    server.publish(message)
                    with suppress(Busy), server.reserve(8) as view:
                        view[:] = b"reserved"
                    server.publish_many([message, message])

        return task

    def receive() -> None:
        while True:
            try:
                got.append(client.receive(0.1))
            except Closed:
                return
            except (Busy, Timeout):
                pass

    def receive_all() -> None:
        while True:
            try:
                got.extend(client)
            except Busy:
                continue
            return

    def ask() -> None:
        with suppress(Closed):
            while True:
                assert client.lag >= 0
                assert client.missed == 0
                assert client.resume_at >= 0

    with (
        Server(address, on_lag="block") as server,
        Client(address) as client,
        threads(publish(1), publish(2), publish(3), receive, receive_all, ask),
    ):
        wait_until(lambda: len(got) >= 2000)
        client.close()
        server.close()
    assert {bytes(each) for each in got} <= sent | {b"reserved"}
