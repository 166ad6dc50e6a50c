# SPDX-License-Identifier: Apache-2.0
"""What comes before a welcome, between it and its client, and of one that is not read."""

import os
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from support import reference
from support.api import Task
from support.base import DEADLINE, DELIVERIES, SHARE_LOG, descriptors, wait_until
from support.reference import Bye, Reply
from support.servers import Server
from support.wire import (
    FIRST_ID,
    HELLO,
    LARGE,
    REPLY,
    WELCOME,
    dial,
    hello_of,
    listening,
    packets_of,
    raw_client,
)

import jumiks
from jumiks import Backoff, Client, Delivery, EndReason, ServerClosed, Timeout
from jumiks._native import check, ffi, lib
from jumiks._peer import peer_command
from jumiks._server import control
from jumiks._wire.handshake import Status, refusal_text
from jumiks.stats import server_stats

SOON = Backoff(first=0.001, most=0.02)
BOTH = reference.FRAMES | reference.LOG


class Held:
    """Holds each client between its entry and its welcome, until what `strike` did has hit it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server: Server | None = None
        self.strike: Callable[[], object] = lambda: None
        self.until: Callable[[jumiks.ServerStats], bool] = lambda figures: figures.clients == 0
        self.struck = threading.Event()
        monkeypatch.setattr(control, "peer_command", self._between)

    def _between(self, sock: socket.socket, pid: int) -> str:
        # It runs in the control thread. The core counts a client until it ends it.
        server = self.server
        if server is not None and not self.struck.is_set():
            handle = server._handle or server._control._handle
            assert figures_of(handle).clients == 1
            self.strike()
            wait_until(lambda: self.until(figures_of(handle)))
            self.struck.set()
        return peer_command(sock, pid)


def figures_of(handle: object) -> jumiks.ServerStats:
    figures = ffi.new("struct jmk_stats *")
    check(lib.jmk_server_stats(handle, figures), "server")  # type: ignore[arg-type]
    return server_stats(figures, 0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


all_ways = pytest.mark.parametrize("delivery", DELIVERIES)
replies = pytest.mark.parametrize(
    "reply",
    [reference.encode_reply(Reply(capabilities=BOTH)), REPLY, HELLO],
    ids=["shared", "framed", "classic"],
)


@all_ways
def test_a_close_before_the_welcome_is_told_behind_it(
    address: str, held: Held, delivery: Delivery
) -> None:
    server = held.server = Server(address)
    closing = threading.Thread(target=server.close, args=(0,))
    held.strike = closing.start
    try:
        with Client(address, delivery=delivery) as client:
            ending = ServerClosed if delivery != "classic" else jumiks.ConnectionLost
            with pytest.raises(ending):
                client.receive(DEADLINE)
    finally:
        server.close(0)
        closing.join(DEADLINE)


@all_ways
def test_a_client_comes_back_again_if_the_server_closes_just_then(
    address: str, held: Held, delivery: Delivery
) -> None:
    first = Server(address)
    with first, Client(address, reconnect=SOON, delivery=delivery) as client:
        first.close()
        second = held.server = Server(address)
        closing = threading.Thread(target=second.close, args=(0,))
        held.strike = closing.start

        def serve_again() -> None:
            held.struck.wait(DEADLINE)
            closing.join(DEADLINE)
            with Server(address) as third:
                third.wait_for_clients(1, DEADLINE)
                third.publish(b"back")
                third.drain(DEADLINE)

        again = threading.Thread(target=serve_again)
        again.start()
        try:
            assert client.receive(DEADLINE) == b"back"
            with pytest.raises(jumiks.Timeout):
                client.receive(0)  # which acks it
        finally:
            second.close(0)
            again.join(DEADLINE)


@replies
def test_a_broken_rule_before_the_welcome_is_told_behind_it(
    address: str, held: Held, reply: bytes
) -> None:
    gone: list[EndReason] = []
    with Server(address, on_disconnect=lambda _, why: gone.append(why)) as server:
        held.server = server
        with dial(address) as sock:
            sock.recv(LARGE)
            held.strike = lambda: sock.send(b"no")
            sock.send(reply)
            packets = list(packets_of(sock))
        wait_until(lambda: gone)
        assert gone == [EndReason.PROTOCOL]
        if reply == HELLO:
            assert packets == []
            return
        assert reference.decode_welcome(packets[0]).status == 0
        (bye,) = reference.read_framed(iter(packets[1:]))
        assert isinstance(bye, Bye)
        assert bye.reason == 3


def test_a_client_that_leaves_before_its_welcome_was_never_there(address: str, held: Held) -> None:
    seen: list[object] = []
    with Server(
        address, on_connect=seen.append, on_disconnect=lambda *end: seen.append(end)
    ) as server:
        held.server = server
        with dial(address) as sock:
            sock.recv(LARGE)
            held.strike = sock.close
            sock.send(REPLY)
            wait_until(held.struck.is_set)
        wait_until(lambda: not server._control.peers)
        assert seen == []


# ---- coming back, whichever way the end is told ----


def at_once(connection: socket.socket) -> None:
    """Ends before the hello."""


def after_the_hello(connection: socket.socket) -> None:
    connection.send(hello_of())


def with_the_reply_unread(connection: socket.socket) -> None:
    # Its other end finds ECONNRESET.
    connection.send(hello_of())
    poll_for_input(connection)


def after_the_reply(connection: socket.socket) -> None:
    connection.send(hello_of())
    connection.recv(LARGE)


def with_a_refusal(connection: socket.socket) -> None:
    after_the_reply(connection)
    connection.send(reference.encode_welcome(reference.Welcome(5, 0, 0)))


def with_a_refusal_and_the_reply_unread(connection: socket.socket) -> None:
    with_the_reply_unread(connection)
    connection.send(reference.encode_welcome(reference.Welcome(5, 0, 0)))


def poll_for_input(sock: socket.socket) -> None:
    sock.recv(1, socket.MSG_PEEK)


ENDS = [
    at_once,
    after_the_hello,
    with_the_reply_unread,
    after_the_reply,
    with_a_refusal,
    with_a_refusal_and_the_reply_unread,
]


@pytest.mark.parametrize("end", ENDS)
def test_an_end_in_the_handshake_is_no_end_for_a_client_that_comes_back(
    address: str, end: Callable[[socket.socket], object]
) -> None:
    with Server(address):
        client = Client(address, reconnect=SOON)
    done = threading.Event()

    def serve() -> None:
        with listening(address) as listener, listener.accept()[0] as connection:
            end(connection)
        with Server(address) as server:
            server.publish(b"back")
            done.wait(DEADLINE)

    thread = threading.Thread(target=serve)
    with client:
        thread.start()
        try:
            assert client.receive(DEADLINE) == b"back"
        finally:
            done.set()
            thread.join(DEADLINE)


def test_servers_that_close_at_once_are_no_strangers_to_clients_they_let_in(address: str) -> None:
    # Whoever is just being let in, at whatever step, is told so in a way that it understands.
    strange: list[BaseException] = []
    over = threading.Event()

    def come() -> None:
        while not over.is_set():
            try:
                with Client(address, timeout=DEADLINE) as client:
                    client.receive(DEADLINE)
            except (ConnectionRefusedError, ServerClosed, jumiks.ConnectionLost):
                continue
            except jumiks.Refused as error:
                if error.status != Status.CLOSING:
                    strange.append(error)
            except BaseException as error:
                strange.append(error)

    with ExitStack() as stack:
        stack.callback(over.set)
        threads = [threading.Thread(target=come) for _ in range(2)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join, DEADLINE)
        stack.callback(over.set)
        for _ in range(100):
            server = Server(address)
            server.wait_for_clients(1, DEADLINE)
            server.close(0)
    assert strange == []


class Lingering:
    """A server whose close, once it has begun, takes until its client by hand is gone."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.task: Task[None] | None = None

    def close(self) -> None:
        self.task = Task(lambda: self.server.close(2 * DEADLINE))
        wait_until(lambda: self.server._control._closing)


@contextmanager
def lingering(address: str) -> Iterator[Lingering]:
    with Server(address, handshake_timeout=2 * DEADLINE) as server, raw_client(server, address):
        server.publish_many([bytes(10_000)] * 50)  # more than that client's socket takes
        found = Lingering(server)
        yield found
        assert found.task is not None
        assert not found.task.done
    found.task.result()


def refuses(address: str) -> bool:
    try:
        dial(address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_connection_that_has_not_replied_ends_as_the_server_begins_to_close(
    address: str,
) -> None:
    with lingering(address) as host, dial(address) as late:
        late.recv(LARGE)
        host.close()
        assert list(packets_of(late)) == []
        wait_until(lambda: refuses(address))  # and nobody comes after it


def test_a_client_that_replies_as_the_server_begins_to_close_is_told_so(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lingering(address) as host, dial(address) as late, dial(address) as before:

        def meanwhile(sock: socket.socket, pid: int) -> str:
            # In the control thread, which finds the reply before it finds that the server closes.
            late.send(REPLY)
            host.close()
            return ""

        late.recv(LARGE)
        before.recv(LARGE)
        monkeypatch.setattr(control, "peer_command", meanwhile)
        before.send(REPLY)
        welcome = reference.decode_welcome(late.recv(LARGE))
        assert (welcome.status, welcome.text) == (Status.CLOSING, refusal_text(Status.CLOSING))
        assert list(packets_of(late)) == []


def test_a_client_that_has_left_ends_no_wait_for_clients(address: str) -> None:
    called = threading.Event()
    with Server(address, on_disconnect=lambda *_: called.wait(DEADLINE)) as server:
        clients = [Client(address) for _ in range(2)]
        server.wait_for_clients(2, DEADLINE)
        for client in clients:
            client.close()
        wait_until(lambda: not server.clients())
        try:  # the end of one of them, at least, waits for the callback of the other
            with pytest.raises(Timeout, match="0 of 1"):
                server.wait_for_clients(1, 0.01)
        finally:
            called.set()


def test_a_wait_for_clients_ends_as_the_server_begins_to_close(address: str) -> None:
    with lingering(address) as host:
        task = Task(lambda: host.server.wait_for_clients(2))
        task.sleeps_in("wait_for_clients")
        host.close()
        with pytest.raises(jumiks.Closed):
            task.result()


# ---- a welcome that is not read ----


def join_without_reading(address: str) -> socket.socket:
    """Ask for the log, and leave the welcome in the socket."""
    sock = dial(address)
    sock.recv(LARGE)
    sock.send(reference.encode_reply(Reply(capabilities=BOTH)))
    poll_for_input(sock)
    return sock


def refused(address: str) -> bool:
    with suppress(jumiks.Refused):
        Client(address).close()
        return False
    return True


def test_a_client_that_leaves_and_does_not_read_keeps_its_place(address: str) -> None:
    with Server(address, max_clients_per_user=3) as server, ExitStack() as stack:
        left = [stack.enter_context(join_without_reading(address)) for _ in range(3)]
        for sock in left:
            sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.stats().unread == 3)
        figures = server.stats()
        assert figures.clients == 0
        assert figures.kernel_bytes >= 3 * len(WELCOME)
        assert refused(address)
        sock = left[0]
        while sock.recv(LARGE):  # the welcome, and perhaps a goodbye
            pass
        wait_until(lambda: server.stats().unread == 2)
        assert not refused(address)
        left[1].close()
        wait_until(lambda: server.stats().unread == 1)
        assert server.stats().kernel_bytes >= len(WELCOME)
        left[2].close()
        wait_until(lambda: server.stats().unread == 0)
        assert server.stats().kernel_bytes == 0
        wait_until(lambda: not server._control.peers)
        assert not server._control._let_in_of


def test_what_is_looked_at_and_left_in_the_socket_is_not_read(address: str) -> None:
    # MSG_PEEK gives copies of the descriptors, and the welcome stays in flight.
    with Server(address) as server, join_without_reading(address) as sock:
        _, notes, _, _ = sock.recvmsg(LARGE, socket.CMSG_SPACE(8), socket.MSG_PEEK)
        for _, _, data in notes:
            for (descriptor,) in struct.iter_unpack("i", data):
                os.close(descriptor)
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.stats().clients == 0)
        assert server.stats().unread == 1
        sock.recv(LARGE)
        wait_until(lambda: server.stats().unread == 0)


def test_a_client_that_has_gone_and_not_read_counts_against_all_places(address: str) -> None:
    with Server(address, max_clients=2) as server, join_without_reading(address) as sock:
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.stats().unread == 1)
        with Client(address):
            with pytest.raises(
                jumiks.Refused, match=r"all 2 client places are taken \(max_clients\)"
            ):
                Client(address)
            sock.close()
            wait_until(lambda: server.stats().unread == 0)
            Client(address).close()


def test_a_client_that_was_cut_counts_until_it_has_read_why(address: str) -> None:
    with Server(address, max_lag=10, patience=0) as server:
        with raw_client(server, address) as client:
            server.publish_many([b"x" * 1000] * 12)
            wait_until(lambda: server.stats().unread == 1)
            assert server.stats().kernel_bytes > 10000
            _, bye = client.rest()
            assert bye is not None
            wait_until(lambda: server.stats().unread == 0)


def test_a_client_that_has_not_read_does_not_hold_up_a_close(address: str) -> None:
    with Server(address) as server, join_without_reading(address) as sock:
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.stats().unread == 1)
        server.close(10 * DEADLINE)
        assert not server._control.thread.is_alive()


@pytest.fixture
def no_descriptor_can_be_sent(unprivileged: int) -> Iterator[None]:
    """So many are in flight already, of this user, as its limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(descriptors()) + 100
    ours, theirs = socket.socketpair()
    with ours, theirs:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        try:
            for _ in range(few // 100 + 1):
                socket.send_fds(ours, [b"x"], [ours.fileno()] * 100)
            with pytest.raises(OSError, match="Too many references"):
                socket.send_fds(ours, [b"x"], [ours.fileno()])
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("no_descriptor_can_be_sent")
def test_where_no_descriptor_can_be_sent_packets_are(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(address) as server:
        server.publish(b"early")
        with Client(address, start="oldest") as client:
            assert client.receive(DEADLINE) == b"early"
            assert client.delivery == "framed"
            server.publish(b"late")
            assert client.receive(DEADLINE) == b"late"
            assert [info.delivery for info in server.clients()] == ["framed"]
            with pytest.raises(jumiks.Timeout):
                client.receive(0)  # which acks it
            server.drain(DEADLINE)
            client.close()
            wait_until(lambda: not server._control.peers)
    if SHARE_LOG:
        assert "gets packets, as it cannot be given the log: Too many references" in caplog.text


@pytest.mark.only_shared
@pytest.mark.usefixtures("no_descriptor_can_be_sent")
def test_an_ack_before_packets_take_the_place_of_the_log_breaks_the_rules(
    address: str, held: Held
) -> None:
    gone: list[EndReason] = []
    with Server(address, on_disconnect=lambda _, why: gone.append(why)) as server:
        server.publish(b"early")
        with dial(address) as sock:
            sock.recv(LARGE)
            held.server, held.strike = server, lambda: sock.send(reference.encode_ack(FIRST_ID))
            held.until = lambda figures: figures.log_held == 0
            sock.send(reference.encode_reply(Reply(capabilities=BOTH, start=1)))
            packets = list(packets_of(sock))
        assert reference.decode_welcome(packets[0]).capabilities == reference.FRAMES
        (bye,) = reference.read_framed(iter(packets[1:]))
        assert isinstance(bye, Bye)
        assert bye.reason == 3
        wait_until(lambda: gone == [EndReason.PROTOCOL])
