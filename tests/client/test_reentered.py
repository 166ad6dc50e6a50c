# SPDX-License-Identifier: Apache-2.0
"""A `close` at any bytecode of another call in the same thread, as a signal's handler may do it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from support.api import Task
from support.base import DEADLINE, wait_until
from support.opcodes import happens_at, needs_bytecodes, numbers

from jumiks import Backoff, Client, Delivery, Server

pytestmark = needs_bytecodes

AT_ONCE = Backoff(first=0, most=0)

CLIENT_CALLS: dict[str, Callable[[Client], object]] = {
    "receive": lambda client: [client.receive(DEADLINE) for _ in range(3)],
    "for": lambda client: list(zip(range(3), client, strict=False)),
    "receive_many": lambda client: list(client.receive_many(DEADLINE)),
    "views": lambda client: list(client.receive_many(DEADLINE).views()),
    "close": lambda client: client.close(),
}


def closed_at(number: int, call: Callable[[], object], close: Callable[[], object]) -> bool:
    """`happens_at`, in a thread of its own, so that one that stands still for ever is found."""
    return Task(lambda: happens_at(number, call, lambda _: close())).result()


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
