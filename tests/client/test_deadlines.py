# SPDX-License-Identifier: Apache-2.0
"""Deadlines and signals hold whatever the server sends, and a deadline is one moment a call."""

from __future__ import annotations

import asyncio
import errno
import itertools
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from support import reference
from support.api import Task, descriptor_of, handler, script_process
from support.base import DEADLINE, wait_until
from support.reference import Fragment, Frame
from support.servers import Server
from support.shared import HandMadeLog, shake_hands
from support.wire import hello_of, listening, one_connection, saying

import jumiks
from jumiks import AsyncClient, Client
from jumiks._client.link import Delivery
from jumiks._wire import rights
from jumiks._wire.connect import connecting
from jumiks._wire.handshake import FIRST_ID

FLOOD = 5.0  # seconds, if nobody ends it: less than a test's deadline, and much more than is due


def unknown_frames() -> Iterator[bytes]:
    return itertools.repeat(reference.encode_frame(Frame(1, b"", 0x77)) * 8000)


def fragments_without_end() -> Iterator[bytes]:
    for packet_id in itertools.count(FIRST_ID):
        for offset in range(60000):
            yield reference.encode_fragment(Fragment(packet_id, 65536, offset, b"x", more=True))


def wake_ups() -> Iterator[bytes]:
    return itertools.repeat(reference.encode_frame(Frame(1, b"", 3)))


FLOODS = [unknown_frames, fragments_without_end, wake_ups]


def pour(
    connection: socket.socket, packets: Iterator[bytes], over: threading.Event, pause: float
) -> None:
    end = time.monotonic() + FLOOD
    while not over.wait(pause) and time.monotonic() < end:
        if select.select([], [connection], [], 0.05)[1]:
            with suppress(BlockingIOError):
                for packet in itertools.islice(packets, 1 if pause else 50):
                    connection.send(packet, socket.MSG_DONTWAIT)


@contextmanager
def flooded(address: str, flood: Callable[[], Iterator[bytes]], pause: float = 0) -> Iterator[None]:
    """A server by hand that sends packets without end, and no message in them."""
    over = threading.Event()
    shared = flood is wake_ups

    def script(connection: socket.socket) -> None:
        if shared:
            shake_hands(connection, log)
        else:
            saying([], hello_of(max_packet=131072))(connection)
        pour(connection, flood(), over, pause)

    with HandMadeLog() as log, listening(address) as listener, one_connection(listener, script):
        try:
            yield
        finally:
            over.set()


@contextmanager
def taking(least: float, most: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < most


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_flood_without_messages_moves_no_deadline(
    address: str, flood: Callable[[], Iterator[bytes]], timeout: float
) -> None:
    with flooded(address, flood), Client(address) as client:
        for receive in (client.receive, client.receive_many):
            with taking(timeout, timeout + 1.5), pytest.raises(jumiks.Timeout):
                receive(timeout)


@pytest.mark.parametrize("flood", FLOODS)
def test_a_drip_without_messages_moves_no_deadline(
    address: str, flood: Callable[[], Iterator[bytes]]
) -> None:
    with flooded(address, flood, pause=0.02), Client(address) as client:
        with taking(0.3, 1.8), pytest.raises(jumiks.Timeout):
            client.receive(0.3)


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_signal_comes_through_a_flood_without_messages(
    address: str, flood: Callable[[], Iterator[bytes]], timeout: float | None
) -> None:
    class AlarmError(Exception):
        pass

    def give_up() -> None:
        raise AlarmError

    with flooded(address, flood), Client(address) as client, handler(signal.SIGALRM, give_up):
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with taking(0.3, 3), pytest.raises(AlarmError):
            client.receive(timeout)


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_without_messages_leaves_the_event_loop_to_others(
    address: str, flood: Callable[[], Iterator[bytes]]
) -> None:
    async def main() -> float:
        longest, last = 0.0, time.monotonic()

        async def tick() -> None:
            nonlocal longest, last
            while True:
                await asyncio.sleep(0)
                now = time.monotonic()
                longest, last = max(longest, now - last), now

        async with AsyncClient(address) as client:
            ticking = asyncio.create_task(tick())
            for receive in (client.receive, client.receive_many):
                with taking(0.5, 4), pytest.raises(jumiks.Timeout):
                    await receive(0.5)
            ticking.cancel()
        return longest

    with flooded(address, flood):
        assert asyncio.run(main()) < 1.5


@pytest.mark.parametrize("delivery", ["shared", "framed", "classic"])
def test_a_receive_with_no_time_looks_though_the_last_one_had_to_wait(
    address: str, delivery: Delivery
) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        waits = Task(client.receive)
        waits.sleeps_in("receive")
        server.publish(b"one")
        assert waits.result() == b"one"
        server.publish(b"two")
        wait_until(lambda: server.stats().delivered == 2)
        if delivery != "shared":
            assert select.select([descriptor_of(client)], [], [], DEADLINE)[0]
        assert client.receive(0) == b"two"


@pytest.mark.parametrize("delivery", ["shared", "framed", "classic"])
def test_a_receive_that_waits_sleeps(address: str, delivery: Delivery) -> None:
    with Server(address, share_log=True), Client(address, delivery=delivery) as client:
        for timeout in (0.3, 1.3):
            before = time.thread_time()
            with pytest.raises(jumiks.Timeout):
                client.receive(timeout)
            assert time.thread_time() - before < timeout / 5


def test_a_timeout_above_a_second_is_no_longer_than_it_says(address: str) -> None:
    with Server(address), Client(address) as client:
        for receive in (client.receive, client.receive_many):
            with taking(1.5, 2.3), pytest.raises(jumiks.Timeout):
                receive(1.5)


def test_a_timeout_above_a_second_is_no_longer_than_it_says_in_a_loop(address: str) -> None:
    async def main() -> None:
        async with AsyncClient(address) as client:
            for receive in (client.receive, client.receive_many):
                with taking(1.5, 2.3), pytest.raises(jumiks.Timeout):
                    await receive(1.5)

    with Server(address):
        asyncio.run(main())


def test_a_signal_does_not_start_the_time_anew(address: str) -> None:
    with (
        Server(address, on_lag="block", max_lag=1) as server,
        Client(address) as client,
        Client(address) as stuck,
        handler(signal.SIGALRM, lambda: None),
    ):
        waits: list[Callable[[], object]] = [
            lambda: client.receive(1.0),
            lambda: client.receive_many(1.0),
        ]
        for wait in waits:
            signal.setitimer(signal.ITIMER_REAL, 0.9)
            with taking(1.0, 1.75), pytest.raises(jumiks.Timeout):
                wait()
        server.publish(b"never acked")
        server_waits: list[Callable[[], object]] = [
            lambda: server.publish(b"m", 1.0),
            lambda: server.publish_many([b"m"], 1.0),
            lambda: server.reserve(1, 1.0).__enter__(),
            lambda: server.drain(1.0),
            lambda: server.wait_for_clients(3, 1.0),
        ]
        for wait in server_waits:
            signal.setitimer(signal.ITIMER_REAL, 0.9)
            with taking(1.0, 1.75), pytest.raises(jumiks.Timeout):
                wait()
        assert stuck.receive(DEADLINE) == b"never acked"


def test_signals_without_end_do_not_move_a_deadline(address: str) -> None:
    with Server(address), Client(address) as client, handler(signal.SIGALRM, lambda: None):
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            with taking(0.5, 1.5), pytest.raises(jumiks.Timeout):
                client.receive(0.5)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


FLOODER = """
import socket, struct, sys, time
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1].replace("@", chr(0)))
listener.listen()
print(flush=True)
connection, _ = listener.accept()
connection.send(struct.pack("<HHHHQQQQII", 1, 0, 0, 1, 5, 100000, 100000, 0, 131072, 1 << 20))
connection.recv(4096)
connection.send(struct.pack("<HHIQ", 0, 1, 0, 100000))
packet, end = struct.pack("<IHHQ", 0, 0x77, 0, 1) * 8192, time.monotonic() + 10
try:
    while time.monotonic() < end:
        connection.send(packet)
except OSError:
    pass
"""


def test_a_flood_that_is_faster_than_its_reader_moves_no_deadline(address: str) -> None:
    with script_process(FLOODER, address) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with Client(address) as client, taking(0.3, 3), pytest.raises(jumiks.Timeout):
            client.receive(0.3)
        process.wait(DEADLINE)


@pytest.mark.parametrize(
    ("is_closing", "error", "timeout", "comes"),
    [
        (True, errno.EMFILE, None, True),
        (True, errno.EMFILE, DEADLINE, True),
        (True, errno.EMFILE, 0.0, False),
        (False, errno.EMFILE, DEADLINE, False),
        (True, errno.EACCES, DEADLINE, False),
    ],
)
def test_without_a_descriptor_it_tries_again_while_some_are_being_closed(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    is_closing: bool,
    error: int,
    timeout: float | None,
    comes: bool,
) -> None:
    tries = []

    def short(*arguments: Any, **options: Any) -> Any:
        tries.append(arguments)
        if len(tries) < 3:
            raise OSError(error, "not now")
        return connecting(*arguments, **options)

    monkeypatch.setattr("jumiks._client.connecting.connecting", short)
    monkeypatch.setattr(rights, "closing", lambda: is_closing)
    with Server(address):
        if comes:
            Client(address, timeout=timeout).close()
        else:
            with pytest.raises(OSError, match="not now"):
                Client(address, timeout=timeout)
    assert len(tries) == (3 if comes else 1)


def test_a_full_backlog_is_tried_with_pauses(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def refuse(*arguments: object) -> None:
        tries.append(arguments)
        raise BlockingIOError

    monkeypatch.setattr("jumiks._wire.connect._try_connect", refuse)
    with pytest.raises(jumiks.Timeout, match="no place"):
        Client(address, timeout=0.1)
    assert 1 < len(tries) < 30
