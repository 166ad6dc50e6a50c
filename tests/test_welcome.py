# SPDX-License-Identifier: Apache-2.0
"""What comes before a welcome, between it and its client, and of one that is not read."""

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import reference
from conftest import wait_until
from reference import Bye, Reply
from support_wire import (
    DEADLINE,
    HELLO,
    LARGE,
    REPLY,
    dial,
    hello_of,
    listening,
    packets_of,
)

import jumiks.control
from jumiks import Backoff, Client, EndReason, Server, ServerClosed
from jumiks._native import check, ffi, lib
from jumiks.access import command_of
from jumiks.stats import server_stats

SOON = Backoff(first=0.001, most=0.02)
BOTH = reference.FRAMES | reference.LOG


class Held:
    """Holds each client between its entry and its welcome, until what `strike` did has hit it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server: Server | None = None
        self.strike: Callable[[], object] = lambda: None
        self.struck = threading.Event()
        monkeypatch.setattr(jumiks.control, "command_of", self._between)

    def _between(self, sock: socket.socket, pid: int) -> str:
        # It runs in the control thread. The core counts a client until it ends it.
        server = self.server
        if server is not None and not self.struck.is_set():
            handle = server._handle or server._control._handle
            assert figures_of(handle).clients == 1
            self.strike()
            wait_until(lambda: figures_of(handle).clients == 0)
            self.struck.set()
        return command_of(sock, pid)


def figures_of(handle: object) -> jumiks.ServerStats:
    figures = ffi.new("struct jmk_stats *")
    check(lib.jmk_server_stats(handle, figures), "server")  # type: ignore[arg-type]
    return server_stats(figures)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


modes = pytest.mark.parametrize(
    "options", [{}, {"share_log": False}, {"framed": False}], ids=["shared", "framed", "classic"]
)
replies = pytest.mark.parametrize(
    "reply",
    [reference.encode_reply(Reply(capabilities=BOTH)), REPLY, HELLO],
    ids=["shared", "framed", "classic"],
)


@modes
def test_a_close_before_the_welcome_is_told_behind_it(
    address: str, held: Held, options: dict[str, Any]
) -> None:
    server = held.server = Server(address)
    closing = threading.Thread(target=server.close, args=(0,))
    held.strike = closing.start
    try:
        with Client(address, **options) as client:
            ending = ServerClosed if options.get("framed", True) else jumiks.ConnectionLost
            with pytest.raises(ending):
                client.receive(DEADLINE)
    finally:
        server.close(0)
        closing.join(DEADLINE)


@modes
def test_who_comes_back_to_a_server_that_closes_just_then_comes_back_again(
    address: str, held: Held, options: dict[str, Any]
) -> None:
    first = Server(address)
    with first, Client(address, reconnect=SOON, **options) as client:
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


def test_who_leaves_before_its_welcome_is_gone_and_was_never_there(
    address: str, held: Held
) -> None:
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
def test_an_end_in_the_handshake_is_no_end_for_who_comes_back(
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


def test_servers_that_close_at_once_leave_no_stranger_to_whom_they_let_in(address: str) -> None:
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
                if error.status != jumiks.handshake.Status.CLOSING:
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
