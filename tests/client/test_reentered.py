# SPDX-License-Identifier: Apache-2.0
"""A `close` at any bytecode of another call in the same thread, as a signal's handler may do it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
from support.api import Task
from support.base import DEADLINE, wait_until
from support.opcodes import PACKAGE, happens_at, needs_bytecodes, numbers
from support.servers import Server

from jumiks import Backoff, Client, Delivery

pytestmark = needs_bytecodes

AT_ONCE = Backoff(first=0, most=0)

CLIENT_CALLS: dict[str, Callable[[Client], object]] = {
    "receive": lambda client: [client.receive(DEADLINE) for _ in range(3)],
    "for": lambda client: list(zip(range(3), client, strict=False)),
    "receive_many": lambda client: list(client.receive_many(DEADLINE)),
    "views": lambda client: list(client.receive_many(DEADLINE).views()),
    "frames": lambda client: client.receive_many(DEADLINE).frames(),
    "rows": lambda client: client.receive_many(DEADLINE).rows(),
    "close": lambda client: client.close(),
}


def reserve(server: Server) -> None:
    with server.reserve(7) as view:
        view[:] = b"message"


def disconnect_all(server: Server) -> None:
    for client in server.clients():
        server.disconnect(client)


SERVER_CALLS: dict[str, Callable[[Server], object]] = {
    "publish": lambda server: server.publish(b"message"),
    "publish_many": lambda server: server.publish_many([b"message"]),
    "reserve": reserve,
    "drain": lambda server: server.drain(DEADLINE),
    "wait_for_clients": lambda server: server.wait_for_clients(1, DEADLINE),
    "clients": lambda server: server.clients(),
    "stats": lambda server: server.stats(),
    "disconnect": disconnect_all,
    "close": lambda server: server.close(0),
}


def closed_at(
    number: int,
    call: Callable[[], object],
    close: Callable[[], object],
    within: tuple[str, ...] = (PACKAGE,),
) -> bool:
    """`happens_at`, in a thread of its own, so that one that stands still for ever is found."""
    return Task(lambda: happens_at(number, call, lambda _: close(), within=within)).result()


@pytest.mark.parametrize("delivery", ["shared", "framed"])
@pytest.mark.parametrize("call", CLIENT_CALLS.values(), ids=CLIENT_CALLS)
def test_a_client_is_closed_at_any_bytecode(
    address: str, call: Callable[[Client], object], delivery: Delivery
) -> None:
    with Server(address) as server:
        for number in numbers(29):
            client = Client(address, delivery=delivery)
            server.publish_many([b"message"] * 3)
            was_closed = closed_at(number, partial(call, client), client.close)
            assert not was_closed or repr(client).endswith("(closed)>")
            client.close()
            wait_until(lambda: not server.clients())
            if not was_closed:
                break


@pytest.mark.slow
def test_a_client_is_closed_at_any_bytecode_of_its_way_back(address: str) -> None:
    for number in numbers(61):
        with Server(address):
            client = Client(address, reconnect=AT_ONCE)
        with Server(address) as server:
            server.publish(b"message")
            was_closed = closed_at(number, lambda: client.receive(DEADLINE), client.close)  # noqa: B023
            assert not was_closed or repr(client).endswith("(closed)>")
            client.close()
            wait_until(lambda: not server.clients())
        if not was_closed:
            break


def server_is_closed_at(
    number: int,
    address: str,
    call: Callable[[Server], object],
    within: tuple[str, ...] = (PACKAGE,),
) -> bool:
    server = Server(address)
    with Client(address):
        server.wait_for_clients(1, DEADLINE)
        was_closed = closed_at(number, partial(call, server), partial(server.close, 0), within)
        assert not was_closed or repr(server).endswith("(closed)>")
        server.close(0)
    Server(address).close()  # so the address was given back
    return was_closed


@pytest.mark.slow
@pytest.mark.parametrize("call", SERVER_CALLS.values(), ids=SERVER_CALLS)
def test_a_server_is_closed_at_any_bytecode(address: str, call: Callable[[Server], object]) -> None:
    for number in numbers(17):
        if not server_is_closed_at(number, address, call):
            break


@pytest.mark.slow
def test_a_server_is_closed_at_any_bytecode_of_a_join(address: str) -> None:
    """Where the standard library holds a lock for an instant."""
    for number in numbers(17):
        within = PACKAGE, threading.__file__
        if not server_is_closed_at(number, address, lambda server: server.close(0), within):
            break
