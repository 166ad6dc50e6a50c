# SPDX-License-Identifier: Apache-2.0
"""Descriptors whose close takes long, sent by peers where none are due: nobody waits for that.

The descriptor is a TCP socket that lingers over unsent data before a closed window. A thread that
closes it sleeps for LINGER; what others do meanwhile is bound by SOON, far below that and far above
what it takes on a loaded machine.
"""

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from support import reference
from support.base import DEADLINE, GUARDED, REFUSES, threads, wait_until
from support.reference import Frame
from support.servers import Server
from support.shared import HandMadeLog, hand_made_client, shake_hands
from support.wire import (
    FIRST_ID,
    HELLO,
    LARGE,
    REPLY,
    WELCOME,
    Harassed,
    dial,
    hello_of,
    listening,
    one_connection,
    packets_of,
    raw_client,
    saying,
)

from jumiks import AsyncClient, Client, ConnectionLost, Delivery, EndReason, Monitor, ProtocolError
from jumiks._native import lib
from jumiks._wire import rights
from jumiks._wire.listener import listen

LINGER = 30
SOON = 10.0

all_ways = pytest.mark.parametrize(
    "delivery", ["classic", "framed", pytest.param("shared", marks=pytest.mark.only_shared)]
)
ACK = reference.encode_ack(FIRST_ID)
GOOD = reference.encode_frames([Frame(FIRST_ID, b"fine")])


class Lingering:
    """A TCP socket whose last close takes LINGER seconds, or until `end`."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.create_connection(listener.getsockname())
            self.other, _ = listener.accept()
        self.sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.sock.send(b"x" * 65536)
        linger = struct.pack("ii", 1, LINGER)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.thread: threading.Thread | None = None

    def send_with(self, sock: socket.socket, packet: bytes, count: int = 1) -> bool:
        """Send it with a packet, and let go of it; False if the kernel refuses that."""
        results: list[OSError | None] = []

        def run() -> None:
            try:
                socket.send_fds(sock, [packet], [self.sock.fileno()] * count)
            except OSError as error:
                results.append(error)
                return
            results.append(None)
            self.sock.close()  # where the other end was faster, this is the close that lingers

        self.thread = threading.Thread(target=run)
        self.thread.start()
        wait_until(lambda: results)
        if results[0] is not None and not isinstance(results[0], PermissionError):
            raise results[0]
        return results[0] is None

    def end(self) -> None:
        self.other.close()  # with unread data: that resets the connection
        if self.thread is not None:
            self.thread.join(DEADLINE)
        self.sock.close()


@pytest.fixture
def lingering() -> Iterator[Lingering]:
    found = Lingering()
    try:
        yield found
    finally:
        found.end()
        wait_until(lambda: lib.jmk_dispose_pending() == 0)


@contextmanager
def soon() -> Iterator[None]:
    """Fail a block that took as long as somebody else's close does."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < SOON


def test_the_socket_that_the_tests_send_lingers() -> None:
    lingering, began = Lingering(), threading.Event()

    def close() -> None:
        began.set()
        lingering.sock.close()

    thread = threading.Thread(target=close)
    thread.start()
    began.wait(DEADLINE)
    thread.join(0.2)
    assert thread.is_alive()
    lingering.end()
    thread.join(DEADLINE)
    assert not thread.is_alive()


# ---- a client ----


@contextmanager
def client_by_hand(server: Server, address: str, delivery: Delivery) -> Iterator[socket.socket]:
    if delivery == "shared":
        with hand_made_client(server, address) as client:
            yield client.sock
    else:
        with raw_client(server, address, framed=delivery == "framed") as client:
            yield client.sock


def check_that_it_serves(harassed: Harassed) -> None:
    """Publish, ask and let in, as if nothing was."""
    with soon():
        harassed.publish(20)
        harassed.witness.wait_for(len(harassed.published))
    with soon():
        harassed.server.stats()
        assert len(harassed.server.clients()) >= 1
    with soon(), Client(harassed.address, timeout=SOON) as client:
        harassed.publish()
        client.receive(SOON)


@all_ways
def test_a_descriptor_beside_an_ack_holds_up_nobody(
    address: str, kernel: str, lingering: Lingering, delivery: Delivery
) -> None:
    with Harassed(address) as harassed:
        with client_by_hand(harassed.server, address, delivery) as sock:
            harassed.publish()
            wait_until(lambda: all(info.sent_id for info in harassed.server.clients()))
            sent = lingering.send_with(sock, ACK)
            check_that_it_serves(harassed)
            assert sent == (kernel == GUARDED)
            if sent:
                assert harassed.reasons(2)[0] == EndReason.PROTOCOL
                with soon():
                    harassed.server.drain(DEADLINE)
                    assert all(packet for packet in packets_of(sock))
            else:
                sock.send(ACK)
                wait_until(lambda: min(i.acked_id for i in harassed.server.clients()) >= FIRST_ID)


@all_ways
def test_a_descriptor_that_is_still_unread_when_its_sender_is_cut_holds_up_nobody(
    address: str, kernel: str, lingering: Lingering, delivery: Delivery
) -> None:
    with Harassed(address) as harassed:
        with client_by_hand(harassed.server, address, delivery) as sock:
            harassed.publish()
            sock.send(b"rubbish")
            with suppress(BrokenPipeError, ConnectionResetError):
                lingering.send_with(sock, ACK)
            check_that_it_serves(harassed)
            assert EndReason.PROTOCOL in harassed.reasons(2)


def test_a_descriptor_beside_the_reply_keeps_nobody_out(
    address: str, kernel: str, lingering: Lingering
) -> None:
    with Harassed(address) as harassed, dial(address) as sock:
        sent = lingering.send_with(sock, REPLY)
        check_that_it_serves(harassed)
        assert sent == (kernel == GUARDED)
        if sent:
            assert len(list(packets_of(sock))) == 1  # the hello, and no welcome


def test_a_descriptor_behind_the_reply_keeps_nobody_out(
    address: str, kernel: str, lingering: Lingering
) -> None:
    with Harassed(address) as harassed, dial(address) as sock:
        sock.send(b"none")
        with suppress(BrokenPipeError, ConnectionResetError):
            lingering.send_with(sock, REPLY)
        check_that_it_serves(harassed)


def test_a_descriptor_sent_to_a_server_that_closes_holds_up_nobody(
    address: str, kernel: str, lingering: Lingering
) -> None:
    server = Server(address, handshake_timeout=300)
    with dial(address) as sock:
        assert len(sock.recv(100)) > 8
        lingering.send_with(sock, REPLY[:3])
        with soon():
            server.close(0)
            Server(address).close(0)


def test_a_descriptor_beside_a_monitors_question_holds_up_nobody(
    address: str, kernel: str, lingering: Lingering
) -> None:
    with Harassed(address) as harassed, dial(address) as sock:
        sock.recv(LARGE)
        sock.send(reference.encode_reply(reference.Reply(capabilities=reference.MONITOR)))
        sock.recv(LARGE)
        sent = lingering.send_with(sock, struct.pack("<HHI", 1, 0, 7))
        check_that_it_serves(harassed)
        assert sent == (kernel == GUARDED)
        if sent:
            assert list(packets_of(sock)) == []


def test_a_descriptor_that_waits_in_the_backlog_holds_up_no_close(
    address: str, kernel: str, lingering: Lingering
) -> None:
    listener = listen(address)
    with dial(address) as sock:
        lingering.send_with(sock, REPLY)
        with soon():
            listener.close()
        assert list(packets_of(sock)) == []
    listen(address).close()  # the address is free at once


@pytest.mark.parametrize("end", ["serve", "close"])
def test_a_ready_made_socket_may_have_connections_from_before_it_refused_descriptors(
    address: str, lingering: Lingering, end: str
) -> None:
    with listening(address) as bound:
        ready = bound.dup()
    with dial(address) as sock:
        assert lingering.send_with(sock, REPLY)
        if end == "close":
            with soon():
                listen(ready).close()
        else:
            with Server(ready) as server:
                with soon(), Client(address, timeout=SOON) as client:
                    server.publish(b"hi")
                    assert client.receive(SOON) == b"hi"
                assert len(list(packets_of(sock))) == 1  # the hello, and no welcome


def test_a_ready_made_socket_refuses_descriptors_once_it_is_served(address: str) -> None:
    with listening(address) as ready, Server(ready.dup()) as server:
        if not rights.refuse(ready):
            pytest.skip("this kernel cannot refuse descriptors")
        server.publish(b"hi")
        with dial(address) as sock, open(os.devnull) as file:
            with pytest.raises(PermissionError):
                socket.send_fds(sock, [REPLY], [file.fileno()])


@all_ways
def test_a_client_that_sends_its_own_connection_and_goes_keeps_no_place(
    address: str, kernel: str, delivery: Delivery
) -> None:
    with Harassed(address) as harassed:
        with client_by_hand(harassed.server, address, delivery) as sock:
            harassed.publish()
            wait_until(lambda: all(info.sent_id for info in harassed.server.clients()))
            with suppress(PermissionError):
                socket.send_fds(sock, [ACK], [sock.fileno()])
        # Nobody can read what it was sent any more, and only we could ever close it.
        harassed.reasons(1)
        wait_until(lambda: harassed.server.stats().unread == 0)


# ---- a server ----


def serve_by_hand(delivery: Delivery, log: HandMadeLog | None) -> Callable[[socket.socket], None]:
    if delivery == "shared":
        assert log is not None

        def share(connection: socket.socket) -> None:
            shake_hands(connection, log)

        return share
    return saying([], HELLO, None) if delivery == "classic" else saying([])


def until_end(connection: socket.socket) -> None:
    with suppress(ConnectionResetError):
        while connection.recv(LARGE):
            pass


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("moment", ["hello", "behind it", "welcome"])
def test_a_descriptor_in_the_handshake_is_an_error_at_once(
    address: str, kernel: str, lingering: Lingering, moment: str, asks: bool
) -> None:
    sent: list[bool] = []

    def script(connection: socket.socket) -> None:
        if moment == "hello":
            sent.append(lingering.send_with(connection, hello_of()))
        else:
            connection.send(b"no" if moment == "behind it" else hello_of())
        if moment == "behind it":
            with suppress(BrokenPipeError):
                lingering.send_with(connection, WELCOME)
        elif moment == "welcome":
            connection.recv(LARGE)
            sent.append(lingering.send_with(connection, WELCOME, 3))

    with listening(address) as listener, one_connection(listener, script):
        with soon(), pytest.raises((ProtocolError, ConnectionLost)) as caught:
            Client(address, delivery="shared" if asks else "framed", timeout=SOON)
    if moment != "behind it":
        wait_until(lambda: sent)
        assert sent == [asks or kernel == GUARDED]
        assert isinstance(caught.value, ProtocolError) == sent[0]


@pytest.mark.only_shared
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_descriptor_in_place_of_the_log_is_an_error_at_once(
    address: str, kernel: str, lingering: Lingering, place: int
) -> None:
    def script(connection: socket.socket) -> None:
        given = [log.fd, log.cursor_fd]
        given[place:] = [lingering.sock.fileno(), *given[place + 1 :]]
        shake_hands(connection, log, given)
        lingering.sock.close()
        until_end(connection)

    with HandMadeLog() as log, listening(address) as listener, one_connection(listener, script):
        with soon(), pytest.raises(ProtocolError):
            Client(address, timeout=SOON)


@all_ways
@pytest.mark.parametrize("timeout", [None, SOON])
def test_a_descriptor_beside_a_message_is_an_error_at_once(
    address: str, kernel: str, lingering: Lingering, delivery: Delivery, timeout: float | None
) -> None:
    sent: list[bool] = []
    told = threading.Event()

    def script(connection: socket.socket) -> None:
        serve_by_hand(delivery, log)(connection)
        told.wait(DEADLINE)
        sent.append(lingering.send_with(connection, GOOD if delivery != "classic" else ACK))

    with HandMadeLog() as log, listening(address) as listener, one_connection(listener, script):
        # As if the server had asked for nothing but packets, or for the log.
        with Client(address, timeout=SOON, delivery=delivery) as c:
            told.set()
            with soon(), pytest.raises((ProtocolError, ConnectionLost)) as caught:
                c.receive(timeout)
            wait_until(lambda: sent)
            if sent[0]:
                assert isinstance(caught.value, ProtocolError)
                assert "descriptors that nobody asked for" in str(caught.value)
            with soon():
                c.close()
    assert kernel == REFUSES or sent == [True]


@all_ways
def test_a_descriptor_that_is_unread_when_a_client_closes_holds_up_nobody(
    address: str, kernel: str, lingering: Lingering, delivery: Delivery
) -> None:
    sent = threading.Event()

    def script(connection: socket.socket) -> None:
        serve_by_hand(delivery, log)(connection)
        lingering.send_with(connection, GOOD)
        sent.set()
        until_end(connection)

    with HandMadeLog() as log, listening(address) as listener, one_connection(listener, script):
        client = Client(
            address, timeout=SOON, delivery="classic" if delivery == "classic" else "shared"
        )
        sent.wait(DEADLINE)
        with soon():
            client.close()
            del client


@pytest.mark.only_shared
def test_where_the_kernel_refuses_them_none_can_come_once_a_client_has_its_log(
    address: str,
) -> None:
    sent: list[bool] = []

    def script(connection: socket.socket) -> None:
        shake_hands(connection, log)
        wait_until(lambda: log.cursor is not None and log.cursor[64] % 2)  # it has mapped it
        with open(os.devnull) as file, suppress(PermissionError):
            socket.send_fds(connection, [GOOD], [file.fileno()])
            sent.append(True)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        if not rights.refuse(sock):
            pytest.skip("this kernel cannot refuse descriptors")
    with HandMadeLog() as log, listening(address) as listener, one_connection(listener, script):
        with Client(address) as client, pytest.raises(ConnectionLost):
            client.receive(DEADLINE)
    assert not sent


def test_a_descriptor_in_a_monitors_answer_is_an_error_at_once(
    address: str, kernel: str, lingering: Lingering
) -> None:
    welcome = reference.encode_welcome(reference.Welcome(0, reference.MONITOR, FIRST_ID))
    sent: list[bool] = []

    def script(connection: socket.socket) -> None:
        saying([], hello_of(capabilities=reference.MONITOR), welcome)(connection)
        question = connection.recv(LARGE)
        sent.append(lingering.send_with(connection, question))

    with listening(address) as listener, one_connection(listener, script):
        with soon(), pytest.raises((ProtocolError, ConnectionLost)) as caught:
            with Monitor(address, timeout=SOON) as monitor:
                monitor.status()
    assert sent == [kernel == GUARDED]
    assert isinstance(caught.value, ProtocolError) == sent[0]


def test_a_descriptor_holds_up_no_event_loop(
    address: str, kernel: str, lingering: Lingering
) -> None:
    def script(connection: socket.socket) -> None:
        saying([])(connection)
        lingering.send_with(connection, GOOD)

    async def main() -> None:
        async with AsyncClient(address, timeout=SOON) as client:
            with soon(), pytest.raises((ProtocolError, ConnectionLost)):
                await client.receive(SOON)

    with listening(address) as listener, one_connection(listener, script):
        asyncio.run(main())


# ---- where closes pile up ----


def test_while_too_many_closes_are_under_way_no_connection_is_made(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Harassed(address) as harassed, monkeypatch.context() as patch:
        patch.setattr(rights, "crowded", lambda: True)
        with pytest.raises(OSError, match="still being closed"):
            Client(address)
        with dial(address) as sock:
            sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                sock.recv(100)
            harassed.publish()
            patch.undo()
            sock.settimeout(DEADLINE)
            assert sock.recv(100)


def test_peers_that_use_up_all_threads_hold_up_nobody_else(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "SO_PASSRIGHTS", 9999)
    many = [Lingering() for _ in range(40)]
    try:
        with Harassed(address) as harassed, ExitStack() as sockets:
            with monkeypatch.context() as patch:
                patch.setattr(rights, "crowded", lambda: True)  # so that all of them wait there
                for each in many:
                    sock = sockets.enter_context(dial(address))
                    each.send_with(sock, REPLY)
                    assert each.thread is not None
                    each.thread.join(DEADLINE)
            wait_until(lambda: lib.jmk_dispose_pending() >= len(many))
            assert sum("jumiks close" in name for name in threads()) == 32
            check_that_it_serves(harassed)
    finally:
        for each in many:
            each.end()
    wait_until(lambda: lib.jmk_dispose_pending() == 0)
