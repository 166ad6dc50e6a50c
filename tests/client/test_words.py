# SPDX-License-Identifier: Apache-2.0
"""Clients of a shared log that sleep on a word, and what else may stand in these words."""

import functools
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support import reference
from support.api import Task, signal_main_thread
from support.base import DEADLINE, wait_until
from support.reference import BYE
from support.shared import (
    ON_WORD,
    OWNER,
    OWNER_DIED,
    OWNER_WAKES,
    SKIP,
    WAKE_KIND,
    WAKE_PACKET,
    WAKES,
    HandMadeLog,
    futex_requeue,
    futex_wake,
    hand_made_client,
    info_of,
    served_by,
)
from support.wire import FIRST_ID, LARGE, Harassed

from jumiks import Client, Closed, ConnectionLost, Disconnected, Timeout

pytestmark = pytest.mark.only_shared

OF_LATER_DAYS = {OWNER: 77 | OWNER_WAKES}
OF_OLD = {OWNER: 77}
UNKNOWN = {OWNER: 0}


def sleeps(log: HandMadeLog, on_word: bool) -> Callable[[], bool]:
    def found() -> bool:
        assert log.cursor is not None
        number = log.cursor[64]
        return number % 2 == 1 and bool(number & ON_WORD) == on_word

    return found


def wake(log: HandMadeLog) -> None:
    assert log.cursor is not None
    log.cursor[WAKES] += 1
    futex_wake(log.cursor, WAKES)


@contextmanager
def one_that_sleeps(
    address: str, log: HandMadeLog, then: Callable[[socket.socket], object], on_word: bool = True
) -> Iterator[Task[bytes]]:
    """A client of a server by hand, in a receive; `then` runs once it sleeps."""

    def script(connection: socket.socket, log: HandMadeLog) -> None:
        wait_until(receives.is_set)
        wait_until(sleeps(log, on_word))
        then(connection)

    def receive() -> bytes:
        receives.set()
        return client.receive(DEADLINE)

    receives = threading.Event()
    with served_by(address, script, log) as client:
        yield Task(receive)


# ---- who sleeps on what ----


def test_a_client_is_woken_by_the_word_alone(address: str) -> None:
    def publish(connection: socket.socket) -> None:
        log.publish(b"message")
        wake(log)

    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with one_that_sleeps(address, log, publish) as task:
            assert task.result() == b"message"


@pytest.mark.parametrize("words", [OF_OLD, UNKNOWN], ids=["of old", "that tells no owner"])
def test_beside_a_server_without_the_word_a_client_sleeps_on_its_socket(
    address: str, words: dict[int, int]
) -> None:
    def publish(connection: socket.socket) -> None:
        log.publish(b"message")
        connection.send(WAKE_PACKET)

    with HandMadeLog(words=words) as log:
        with one_that_sleeps(address, log, publish, on_word=False) as task:
            assert task.result() == b"message"


def test_the_server_wakes_each_client_where_it_sleeps(address: str) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        client.sleep(1 | ON_WORD)
        for _ in range(3):
            harassed.publish()
        harassed.server.stats()
        assert client.cursor[WAKES] == 1
        assert not client.has_input()
        assert info_of(harassed.server).packets == 0
        client.sleep(3)  # as clients of old do
        harassed.publish()
        harassed.server.stats()
        assert client.cursor[WAKES] == 1
        assert next(client.packets()).kind == WAKE_KIND


def test_the_server_says_that_it_wakes_by_words(address: str) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        wait_until(lambda: client.log[OWNER] & OWNER_WAKES)  # its thread may not have begun yet
        assert not client.log[OWNER] & OWNER_DIED


def test_a_timeout_leaves_a_client_asleep_on_its_socket(address: str) -> None:
    # Its user may poll that next.
    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with served_by(address, lambda connection, log: None, log) as client:
            with pytest.raises(Timeout):
                client.receive(0.02)
            assert sleeps(log, on_word=False)()


def test_what_a_wake_up_says_beside_a_skip_and_an_end(address: str) -> None:
    with Harassed(address, on_lag="skip", max_lag=2, patience=0) as harassed:
        with hand_made_client(harassed.server, address) as client:
            for count in range(1, 4):
                client.sleep(2 * count + 1 | ON_WORD)
                harassed.publish()
                harassed.witness.wait_for(count)
            assert client.control().kind == SKIP
            wait_until(lambda: client.cursor[WAKES] == 3)
            harassed.server.disconnect(info_of(harassed.server))
            assert client.control().kind == BYE
            wait_until(lambda: client.cursor[WAKES] == 4)


# ---- a server that lies, or is unwell ----


def test_a_packet_is_read_by_a_client_that_sleeps_on_a_word(address: str) -> None:
    def say_goodbye(connection: socket.socket) -> None:
        connection.send(reference.encode_bye(reference.Bye(reason=5), FIRST_ID - 1))
        log.words[144] += 1
        wake(log)

    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with one_that_sleeps(address, log, say_goodbye) as task, pytest.raises(Disconnected):
            task.result()


@pytest.mark.slow
def test_the_end_of_the_socket_is_noticed_by_a_client_that_sleeps_on_a_word(address: str) -> None:
    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with one_that_sleeps(address, log, lambda sock: sock.shutdown(socket.SHUT_RDWR)) as task:
            with pytest.raises(ConnectionLost):
                task.result()


def test_a_word_that_says_that_the_server_died_ends_the_connection(address: str) -> None:
    def die(connection: socket.socket) -> None:
        log.words[OWNER] = OWNER_WAKES | OWNER_DIED
        futex_wake(log.words, OWNER)
        connection.recv(LARGE)  # it stays open

    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with one_that_sleeps(address, log, die) as task, pytest.raises(ConnectionLost):
            task.result()


def test_a_client_that_another_one_wakes_for_nothing_sleeps_on_its_socket(address: str) -> None:
    # Every client may do that to the word that all of them have.
    def disturb(connection: socket.socket) -> None:
        def woken() -> bool:
            futex_wake(log.words, OWNER)
            return sleeps(log, on_word=False)()

        wait_until(woken)
        log.publish(b"message")
        connection.send(WAKE_PACKET)

    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with one_that_sleeps(address, log, disturb) as task:
            assert task.result() == b"message"


def test_a_client_cannot_steal_the_sleep_of_others(address: str) -> None:
    # Its map of the log is read-only, which is enough for that.
    def steal(connection: socket.socket) -> None:
        moved = 0

        def has_moved() -> bool:
            nonlocal moved
            moved += futex_requeue(log.words, OWNER, OWNER + 64)
            return moved > 0

        wait_until(has_moved)
        log.publish(b"message")
        wake(log)

    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with one_that_sleeps(address, log, steal) as task:
            assert task.result() == b"message"


class Noise:
    """Anything in both words, and wake-ups, until it is told to stop."""

    def __init__(self, log: HandMadeLog) -> None:
        self._over = threading.Event()
        self._log = log
        self._task = Task(self._run)

    def _run(self) -> None:
        numbers, log = random.Random(5), self._log
        assert log.cursor is not None
        while not self._over.is_set():
            log.words[OWNER] = numbers.choice([0, 77, 77 | OWNER_WAKES, numbers.getrandbits(30)])
            log.cursor[WAKES] = numbers.getrandbits(64)
            futex_wake(log.cursor, WAKES)
            futex_wake(log.words, OWNER)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._task.result()


def test_among_words_that_lie_a_wait_ends_at_its_deadline(address: str) -> None:
    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with served_by(address, lambda connection, log: None, log) as client, Noise(log):
            for timeout in (0.0, 0.03):
                before = time.monotonic()
                with pytest.raises(Timeout):
                    client.receive(timeout)
                assert time.monotonic() - before < 5


def test_among_words_that_lie_a_message_is_one(address: str) -> None:
    def publish(connection: socket.socket) -> None:
        with Noise(log):
            log.publish(b"message")
            connection.send(WAKE_PACKET)
            received.wait(DEADLINE)

    received = threading.Event()
    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with one_that_sleeps(address, log, publish) as task:
            assert task.result() == b"message"
            received.set()


# ---- what ends a wait ----


def test_a_close_wakes_a_client_that_sleeps_on_a_word(address: str) -> None:
    # Its server does not even look. On a busy machine one of the times is short enough.
    def seconds_to_close() -> float:
        with HandMadeLog(words=OF_LATER_DAYS) as log:
            with served_by(address, lambda connection, log: None, log) as client:
                task = Task(client.receive)
                wait_until(sleeps(log, on_word=True))
                before = time.monotonic()
                client.close()
                with pytest.raises(Closed):
                    task.result()
                return time.monotonic() - before

    # Without a wake-up it looks after a second.
    assert any(seconds_to_close() < 0.8 for _ in range(5))


def test_ctrl_c_ends_a_sleep_on_a_word(address: str) -> None:
    def interrupt(connection: socket.socket, log: HandMadeLog) -> None:
        wait_until(sleeps(log, on_word=True))
        signal_main_thread(signal.SIGINT)

    with HandMadeLog(words=OF_LATER_DAYS) as log:
        with served_by(address, interrupt, log) as client:
            with pytest.raises(KeyboardInterrupt):
                client.receive()
            log.publish(b"message")
            assert client.receive(DEADLINE) == b"message"


def receive_twenty(client: Client) -> list[bytes]:
    return [client.receive(DEADLINE) for _ in range(20)]


def test_clients_in_one_process_are_each_woken(address: str) -> None:
    with Harassed(address) as harassed:
        clients = [Client(address) for _ in range(4)]
        try:
            tasks = [Task(functools.partial(receive_twenty, client)) for client in clients]
            for _ in range(20):
                harassed.publish()
            assert [task.result() for task in tasks] == [harassed.published] * 4
        finally:
            for client in clients:
                client.close()
