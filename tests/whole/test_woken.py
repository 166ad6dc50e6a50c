# SPDX-License-Identifier: Apache-2.0
"""Who waits is woken by the one event that it waits for, and nothing else happens.

Each wait looks again by itself after a moment, but not in the build of `make delays`: there a
wake-up that is missing lets a test here fail. A wait that has a time limit looks once more at its
end, so it is late then, and right.
"""

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
from support.api import SMALL_LOG, Task, often, script_process
from support.base import DEADLINE, DELIVERIES, wait_until
from support.servers import Server
from support.wire import raw_client

from jumiks import AddressInUse, Client, Closed, ConnectionEnded, ConnectionLost, Delivery

ROUNDS = 300
"""Where a wake-up is needed at one moment alone, which not every try meets."""

TRIES = 5
"""Where it is always needed, but for what a thread that seems to sleep may do first."""


@contextmanager
def soon() -> Iterator[None]:
    """What is done meanwhile may take as long as DEADLINE, and must not."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < DEADLINE, "nobody woke it"


def asleep_in_publish(server: Server) -> Task[int]:
    """A publisher in another thread, which waits for room or for the turn."""
    publisher = Task(lambda: server.publish(b""))
    publisher.sleeps_in("for_room")
    return publisher


def asleep_in_receive(client: Client) -> Task[bytes]:
    """What a client receives in another thread, in which it waits."""
    receiver = Task(lambda: client.receive())
    receiver.sleeps_in("<lambda>")
    return receiver


@contextmanager
def server_elsewhere(address: str) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own."""
    script = """
import sys
with Server(sys.argv[1]) as server:
    print("ready", flush=True)
    sys.stdin.read()
"""
    with script_process(script, address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


# ---- the turn, and the lock ----


@pytest.mark.parametrize("how", ["commit", "discard"])
def test_the_end_of_a_reservation_lets_another_publisher_go_on(server: Server, how: str) -> None:
    for _ in range(TRIES):
        with ExitStack() as stack:
            if how == "discard":
                stack.enter_context(pytest.raises(KeyError))
            with server.reserve(0):
                publisher = asleep_in_publish(server)
                if how == "discard":
                    raise KeyError
        publisher.result()


def test_the_end_of_a_batch_lets_another_publisher_go_on(server: Server) -> None:
    def publish() -> None:
        for _ in range(10):
            server.publish_many([b""] * 10_000)  # more than go in at once

    for publisher in [Task(publish) for _ in range(3)]:
        publisher.result()
    assert server.stats().published == 300_000


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("beside", [0, 3])
def test_each_ack_lets_a_waiting_publisher_go_on(
    address: str, delivery: Delivery, beside: int
) -> None:
    # Those beside it have the lock most of the time, so the publisher misses it.
    def receive(client: Client) -> None:
        for number in range(ROUNDS):
            assert client.receive() == b"%d" % number
            client.ack()

    with ExitStack() as stack:
        server = stack.enter_context(Server(address, max_lag=1, on_lag="block", log_size=SMALL_LOG))
        client = stack.enter_context(Client(address, delivery=delivery))
        server.wait_for_clients(1, DEADLINE)
        for _ in range(beside):
            stack.enter_context(often(server.clients, 0.00001))
        receiver = Task(lambda: receive(client))
        for number in range(ROUNDS):
            with soon():
                server.publish(b"%d" % number, timeout=DEADLINE)
        receiver.result()


# ---- what is published ----


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_what_is_published_as_its_client_falls_asleep_is_received(
    server: Server, address: str, delivery: Delivery
) -> None:
    handled = threading.Semaphore(0)

    def receive(client: Client) -> None:
        for number in range(10 * ROUNDS):
            assert client.receive() == b"%d" % number
            handled.release()

    with Client(address, delivery=delivery) as client:
        server.wait_for_clients(1, DEADLINE)
        receiver = Task(lambda: receive(client))
        for number in range(10 * ROUNDS):
            server.publish(b"%d" % number)
            assert handled.acquire(timeout=DEADLINE), "nobody woke it"
        receiver.result()


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_what_is_published_while_the_clients_are_looked_at_is_sent(
    server: Server, address: str, delivery: Delivery
) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(address, delivery=delivery)) for _ in range(2)]
        server.wait_for_clients(2, DEADLINE)
        stack.enter_context(often(server.clients, 0.0001))
        for number in range(ROUNDS):
            server.publish(b"%d" % number)
            for client in clients:
                with soon():
                    assert client.receive(DEADLINE) == b"%d" % number


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_what_is_published_is_told_to_one_that_polls(
    server: Server, address: str, delivery: Delivery
) -> None:
    # The next message comes as it makes sure that there is none.
    wanted = threading.Semaphore(1)

    def publish() -> None:
        for number in range(ROUNDS):
            assert wanted.acquire(timeout=2 * DEADLINE)
            server.publish(b"%d" % number)

    with Client(address, delivery=delivery) as client:
        server.wait_for_clients(1, DEADLINE)
        poll = select.poll()
        poll.register(client.fileno(), select.POLLIN)
        publisher = Task(publish)
        for number in range(ROUNDS):
            assert poll.poll(DEADLINE * 1000), "nobody woke it"
            wanted.release()
            assert client.receive(0) == b"%d" % number
        publisher.result()


@pytest.mark.parametrize("delivery", ["framed", "classic"])
def test_what_is_published_in_the_last_look_at_the_clients_is_sent(
    server: Server, address: str, delivery: Delivery
) -> None:
    # That look holds the lock, so the publisher cannot send; and nobody looks again.
    def look(begun: threading.Event, over: threading.Event) -> None:
        begun.set()
        while not over.is_set():
            server.clients()

    with Client(address, delivery=delivery) as client:
        server.wait_for_clients(1, DEADLINE)
        for number in range(ROUNDS):
            begun, over = threading.Event(), threading.Event()
            looker = Task(partial(look, begun, over))
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
        for _ in range(ROUNDS):
            server.publish(b"1")
            server.publish(b"2")
            assert client.receive(DEADLINE) == b"1"
            assert client.receive(DEADLINE) == b"2"
            client.ack()


@pytest.mark.parametrize("framed", [True, False])
def test_an_ack_has_a_full_socket_tried_again(address: str, framed: bool) -> None:
    # The kernel says that there is room only once most of the socket is empty.
    with (
        Server(address, log_size=4 << 20) as server,
        raw_client(server, address, framed=framed) as client,
    ):
        while not server.clients()[0].queued:
            server.publish(bytes(50_000))
        sent = server.clients()[0].sent_id
        client.ack(client.read(1)[0].id)
        wait_until(lambda: server.clients()[0].sent_id > sent)


# ---- ends ----


@pytest.mark.parametrize("end", ["close", "leave"])
def test_the_end_of_what_a_publisher_waits_for_is_told(address: str, end: str) -> None:
    for _ in range(TRIES):
        with Server(address, max_lag=1, on_lag="block") as server, Client(address) as client:
            server.wait_for_clients(1, DEADLINE)
            server.publish(b"1")
            publisher = asleep_in_publish(server)
            if end == "close":
                server.close(0)
                with pytest.raises(Closed):
                    publisher.result()
            else:
                client.close()
                publisher.result()


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_the_end_of_a_client_that_skips_ends_a_drain(address: str, delivery: Delivery) -> None:
    # The others are not held up by it, so its end makes no room.
    for _ in range(TRIES):
        with (
            Server(address, max_lag=2, on_lag="skip", patience=0) as server,
            Client(address, delivery=delivery) as slow,
            Client(address) as fast,
        ):
            server.wait_for_clients(2, DEADLINE)
            for _ in range(5):
                server.publish(b"", timeout=DEADLINE)
                fast.receive(DEADLINE)
                fast.ack()
            drain = Task(server.drain)
            drain.sleeps_in("drain")
            slow.close()
            drain.result()


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_close_ends_the_receive_of_its_own_client(address: str, delivery: Delivery) -> None:
    # The server would wake it too, if it could.
    with ExitStack() as stack:
        process = stack.enter_context(server_elsewhere(address))
        clients = [stack.enter_context(Client(address, delivery=delivery)) for _ in range(TRIES)]
        receivers = [asleep_in_receive(client) for client in clients]
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        for client, receiver in zip(clients, receivers, strict=True):
            client.close()
            with pytest.raises(Closed):
                receiver.result()


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_client_that_is_sent_away_is_told(
    server: Server, address: str, delivery: Delivery
) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(address, delivery=delivery)) for _ in range(TRIES)]
        server.wait_for_clients(TRIES, DEADLINE)
        receivers = [asleep_in_receive(client) for client in clients]
        for info in server.clients():
            server.disconnect(info)
        for receiver in receivers:
            with pytest.raises(ConnectionEnded):
                receiver.result()


@pytest.mark.only_shared
def test_a_client_that_is_skipped_in_its_sleep_is_told(address: str) -> None:
    for _ in range(TRIES):
        with (
            Server(address, max_lag=2, on_lag="skip", patience=0) as server,
            Client(address) as slow,
            Client(address) as fast,
        ):
            server.wait_for_clients(2, DEADLINE)
            server.publish_many([b"1", b"2"])
            held = slow.receive_many(DEADLINE).views()[0][:]  # which holds its ack back
            receiver = asleep_in_receive(slow)
            assert len(fast.receive_many(DEADLINE)) == 2
            fast.ack()
            server.publish(b"3", timeout=DEADLINE)
            assert receiver.result() == b"3"
            assert held.tobytes() == b"1"


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_the_death_of_a_server_ends_the_receive_of_each_client(
    address: str, delivery: Delivery
) -> None:
    with ExitStack() as stack:
        process = stack.enter_context(server_elsewhere(address))
        clients = [stack.enter_context(Client(address, delivery=delivery)) for _ in range(TRIES)]
        receivers = [asleep_in_receive(client) for client in clients]
        process.kill()
        for receiver in receivers:
            with pytest.raises(ConnectionLost):
                receiver.result()


def test_a_server_that_nobody_uses_closes_at_once(address: str) -> None:
    for _ in range(TRIES):
        Task(Server(address).close).result()


def test_a_server_that_cannot_start_is_given_up_at_once(
    server: Server, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jumiks.server._EXIT_PATIENCE", DEADLINE)
    for _ in range(ROUNDS // 10):
        with soon(), pytest.raises(AddressInUse):
            Server(address)


def test_a_close_tells_who_waits_at_once_and_not_once_its_clients_have_all(address: str) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(address, max_lag=1, on_lag="block", log_size=4 << 20))
        client = stack.enter_context(Client(address, delivery="framed"))
        server.wait_for_clients(1, DEADLINE)
        server.publish(bytes(1 << 20))  # which its socket has no room for
        clients = Task(lambda: server.wait_for_clients(2))
        clients.sleeps_in("wait_for_clients")
        publisher = asleep_in_publish(server)
        closing = Task(lambda: server.close(4 * DEADLINE))
        with pytest.raises(Closed):
            clients.result()
        with pytest.raises(Closed):
            publisher.result()
        client.close()
        closing.result()
