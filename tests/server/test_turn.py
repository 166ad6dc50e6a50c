# SPDX-License-Identifier: Apache-2.0
"""An exception at any bytecode, as a signal's handler may raise one, leaves the turn to others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from support.api import Task
from support.base import DEADLINE, wait_until
from support.opcodes import needs_bytecodes, raises_at
from support.servers import Server

import jumiks
from jumiks import Client

pytestmark = needs_bytecodes


def reserve(server: Server, timeout: float | None) -> None:
    with server.reserve(3, timeout) as view:
        view[:] = b"new"


def takes_all(server: Server, client: Client) -> bool:
    """Whether the client has handled all there is; packets may still be on their way."""
    with suppress(jumiks.Timeout):
        while True:
            client.receive_many(0)
            client.ack()
    try:
        server.drain(0.01)
    except jumiks.Timeout:
        return False
    return True


CALLS: dict[str, Callable[[Server], object]] = {
    "publish": lambda server: server.publish(b"new", 0),
    "publish_many": lambda server: server.publish_many([b"new"] * 3, 0),
    "reserve": lambda server: reserve(server, 0),
    "drain": lambda server: server.drain(0),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("room", [5000, 1])
def test_an_exception_at_any_bytecode_loses_no_turn(
    address: str, call: Callable[[Server], object], room: int
) -> None:
    # With room for one the second of a batch has to wait, and the wait is over at once.
    with Server(address, on_lag="block", max_lag=room) as server, Client(address) as client:
        number = 0
        while raises_at(number, lambda: call(server)):
            number += 1
            wait_until(lambda: takes_all(server, client))
            assert Task(lambda: server.publish(b"other", 0)).result()
        # What need not wait is published without a bytecode of the package.
        assert number == 0 if call is CALLS["publish"] else number > 10


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_exception_at_any_bytecode_of_a_wait_loses_no_turn(
    address: str, call: Callable[[Server], object]
) -> None:
    with Server(address, on_lag="block", max_lag=2) as server, Client(address) as client:
        server.publish_many([b"old", b"old"])
        number = 0
        while raises_at(number, lambda: call(server)):
            number += 1

            def other() -> None:
                with pytest.raises(jumiks.Timeout) as caught:
                    server.publish(b"other", 0)
                assert caught.value.holder is not None  # the client, and no publisher

            Task(other).result()
        assert number > 10
        assert len(client.receive_many(DEADLINE)) == 2
