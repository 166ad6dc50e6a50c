# SPDX-License-Identifier: Apache-2.0
"""Who waits is woken by the one event that it waits for, and nothing else happens.

Each wait looks again by itself after a moment, but not in the build of `make delays`: there a
wake-up that is missing lets a test here fail.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.api import SMALL_LOG, Task
from support.base import DEADLINE, SHARE_LOG, wait_until
from support.servers import Server

from jumiks import Client, Closed, Delivery

DELIVERIES: list[Delivery] = ["shared" if SHARE_LOG else "framed", "classic"]


@contextmanager
def beside(repeated: Callable[[], object]) -> Iterator[None]:
    """Something is called again and again in another thread."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(0.0001):
            repeated()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_publishers_in_place_give_the_turn_to_one_another(server: Server) -> None:
    def publish() -> None:
        for _ in range(100):
            with server.reserve(8, timeout=DEADLINE) as view:
                view[:] = bytes(8)

    with ThreadPoolExecutor(3) as pool:
        for publisher in [pool.submit(publish) for _ in range(3)]:
            publisher.result()
    assert server.stats().published == 300


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_what_is_published_while_the_clients_are_looked_at_is_sent(
    server: Server, address: str, delivery: Delivery
) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(address, delivery=delivery)) for _ in range(2)]
        server.wait_for_clients(2, DEADLINE)
        stack.enter_context(beside(server.clients))
        for number in range(300):
            server.publish(b"%d" % number)
            for client in clients:
                assert client.receive(DEADLINE) == b"%d" % number


@pytest.mark.parametrize("delivery", ["framed", "classic"])
def test_what_is_published_in_the_last_look_at_the_clients_is_sent(
    server: Server, address: str, delivery: Delivery
) -> None:
    # That look holds the lock, so the publisher cannot send; and nobody looks again.
    def look(begun: threading.Event, over: threading.Event) -> None:
        begun.set()
        while not over.is_set():
            server.clients()

    with Client(address, delivery=delivery) as client, ThreadPoolExecutor(1) as pool:
        server.wait_for_clients(1, DEADLINE)
        for number in range(200):
            begun, over = threading.Event(), threading.Event()
            looker = pool.submit(look, begun, over)
            assert begun.wait(DEADLINE)
            server.publish(b"%d" % number)
            over.set()
            assert client.receive(DEADLINE) == b"%d" % number
            client.ack()  # before the next round, in which it would wake the thread
            looker.result()


@pytest.mark.parametrize("delivery", ["framed", "classic"])
def test_what_is_published_right_behind_another_message_is_sent(
    server: Server, address: str, delivery: Delivery
) -> None:
    # That one is left to the thread, which sleeps.
    with Client(address, delivery=delivery) as client:
        server.wait_for_clients(1, DEADLINE)
        for _ in range(100):
            server.publish(b"1")
            server.publish(b"2")
            assert client.receive(DEADLINE) == b"1"
            assert client.receive(DEADLINE) == b"2"
            client.ack()


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_each_ack_lets_a_waiting_publisher_go_on(address: str, delivery: Delivery) -> None:
    def receive(client: Client) -> None:
        for number in range(300):
            assert client.receive(DEADLINE) == b"%d" % number
            client.ack()

    with ExitStack() as stack:
        server = stack.enter_context(Server(address, max_lag=1, on_lag="block", log_size=SMALL_LOG))
        client = stack.enter_context(Client(address, delivery=delivery))
        server.wait_for_clients(1, DEADLINE)
        with ThreadPoolExecutor(1) as pool, beside(server.clients):
            received = pool.submit(receive, client)
            for number in range(300):
                server.publish(b"%d" % number, timeout=DEADLINE)
            received.result()


@pytest.mark.parametrize("end", ["close", "leave"])
def test_the_end_of_what_a_publisher_waits_for_is_told(address: str, end: str) -> None:
    for _ in range(10):
        with Server(address, max_lag=1, on_lag="block") as server, Client(address) as client:
            server.wait_for_clients(1, DEADLINE)
            server.publish(b"1")
            with ThreadPoolExecutor(1) as pool:
                publisher = pool.submit(server.publish, b"2")
                wait_until(lambda: server.stats().waits)
                server.close(0) if end == "close" else client.close()
                if end == "close":
                    with pytest.raises(Closed):
                        publisher.result(DEADLINE)
                else:
                    publisher.result(DEADLINE)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_close_ends_the_receive_of_its_own_client(
    server: Server, address: str, delivery: Delivery
) -> None:
    with Client(address, delivery=delivery) as client:
        receiver = Task(lambda: client.receive())
        receiver.sleeps_in("<lambda>")
        client.close()
        with pytest.raises(Closed):
            receiver.result()


def test_a_close_tells_who_waits_at_once_and_not_once_its_clients_have_all(address: str) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(address, max_lag=1, on_lag="block", log_size=4 << 20))
        client = stack.enter_context(Client(address, delivery="framed"))
        server.wait_for_clients(1, DEADLINE)
        server.publish(bytes(1 << 20))  # which its socket has no room for
        with ThreadPoolExecutor(3) as pool:
            waits: list[Future[Any]] = [
                pool.submit(server.wait_for_clients, 2),
                pool.submit(server.publish, b"2"),
            ]
            wait_until(lambda: server.stats().waits)
            closing = pool.submit(server.close, 4 * DEADLINE)
            try:
                for wait in waits:
                    assert isinstance(wait.exception(DEADLINE), Closed)
            finally:
                client.close()
            closing.result(DEADLINE)
