# SPDX-License-Identifier: Apache-2.0
"""An exception at any bytecode, as a signal's handler may raise one, loses and doubles nothing."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Literal

import pytest
from support.base import DEADLINE, DELIVERIES, wait_until
from support.opcodes import Alarm, needs_bytecodes, numbers, raises_at
from support.servers import AsyncServer, Server

from jumiks import (
    AddressInUse,
    AsyncClient,
    Backoff,
    Batch,
    Client,
    ConnectionLost,
    Delivery,
    Disconnected,
    Monitor,
    ServerClosed,
)

pytestmark = needs_bytecodes


COUNT = 3
"""Messages that a call is tried on."""


class Enough(Exception):
    """What ends `run`."""


Received = list[bytes | Batch]


def receive(client: Client, into: Received) -> None:
    for _ in range(COUNT):
        into.append(client.receive(DEADLINE))


def iterate(client: Client, into: Received) -> None:
    for message in client:
        into.append(message)
        if len(into) == COUNT:
            break


def run(client: Client, into: Received) -> None:
    def handler(message: bytes) -> None:
        into.append(message)
        if len(into) == COUNT:
            raise Enough

    with suppress(Enough):
        client.run(handler)


def receive_many(client: Client, into: Received) -> None:
    into.append(client.receive_many(DEADLINE))


def receive_one_then_many(client: Client, into: Received) -> None:
    into.append(client.receive(DEADLINE))
    into.append(client.receive_many(DEADLINE))


def look(client: Client, into: Received) -> None:
    into.append(batch := client.receive_many(DEADLINE))
    batch.views()


def look_and_read(client: Client, into: Received) -> None:
    into.append(batch := client.receive_many(DEADLINE))
    batch.views()
    assert list(batch)


def look_at_rows_and_read(client: Client, into: Received) -> None:
    into.append(batch := client.receive_many(DEADLINE))
    if len({len(message) for message in batch.views()}) == 1:
        batch.rows()
    batch.frames()
    assert list(batch)


def receive_array(client: Client, into: Received) -> None:
    into += client.receive_array(SIX_BYTES, DEADLINE).tolist()


def receive_and_ack(client: Client, into: Received) -> None:
    receive(client, into)
    client.ack()


CALLS: dict[str, Callable[[Client, Received], None]] = {
    "receive": receive,
    "for": iterate,
    "run": run,
    "receive_many": receive_many,
    "one then many": receive_one_then_many,
    "views": look,
    "views and bytes": look_and_read,
    "rows, frames and bytes": look_at_rows_and_read,
    "ack": receive_and_ack,
}
SIX_BYTES: Any = None
with suppress(ImportError):
    SIX_BYTES = importlib.import_module("numpy").dtype("S6")  # as large as an id
    CALLS["receive_array"] = receive_array


def ids_of(received: Received) -> list[int]:
    found = []
    for each in received:
        if isinstance(each, bytes):
            found.append(int(each))
        else:
            ids = [int(message) for message in each]
            assert ids == list(range(each.first_id, each.last_id + 1))
            found += ids
    return found


def rest(client: Client, last: int) -> list[int]:
    """What it receives up to the message with the id `last`."""
    found = []
    while client.last_id < last:
        found.append(int(client.receive(DEADLINE)))
        assert client.last_id == found[-1]
    return found


@pytest.mark.parametrize("ack", ["after", "before"])
@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_exception_at_any_bytecode_loses_and_doubles_no_message(
    address: str,
    call: Callable[[Client, Received], None],
    delivery: Delivery,
    ack: Literal["after", "before"],
) -> None:
    number = -1
    with (
        Server(address, on_lag="block") as server,
        Client(address, ack=ack, delivery=delivery) as client,
    ):
        raised = True
        while raised:
            number += 1
            first = server.stats().next_id
            ids = range(first, first + COUNT)
            assert server.publish_many([b"%d" % each for each in ids]) == ids
            received: Received = []
            alarm = Alarm()
            raised = raises_at(number, lambda: call(client, received), alarm)  # noqa: B023
            last, resume_at = client.last_id, client.resume_at
            got = ids_of(received)
            received.clear()
            got += rest(client, ids[-1])
            assert got == sorted(set(got))
            lost = sorted(set(ids) - set(got))
            if lost:
                # It was being handed out, and no signal is handled there.
                assert raised
                assert alarm.at_the_very_end, (alarm.function, alarm.opcode, lost)
                assert lost[-1] == last
                assert resume_at == (lost[0] if ack == "after" else last + 1)
            client.ack()
            server.drain(DEADLINE)  # nothing holds an ack back
    assert number > 5
    if ack == "after" and (
        call in (iterate, run) or (call is receive and client.delivery == "shared")
    ):
        # What is there takes no more Python than these calls themselves; run looks at its handler.
        assert number < 15 * COUNT + 20 * (call is run)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_after_an_exception_at_any_bytecode_of_close_it_can_be_closed(
    address: str, delivery: Delivery
) -> None:
    with Server(address) as server:
        number = -1
        raised = True
        while raised:
            number += 1
            client = Client(address, delivery=delivery)
            server.publish(b"message")
            assert client.receive(DEADLINE) == b"message"
            raised = raises_at(number, client.close)
            client.close()
            wait_until(lambda: not server.clients())  # it has left, and its lock is free
    assert number > 10


QUESTIONS: dict[str, Callable[[Server], object]] = {
    "stats": lambda server: server.stats(),
    "clients": lambda server: server.clients(),
    "wait_for_clients": lambda server: server.wait_for_clients(1, DEADLINE),
    "disconnect": lambda server: server.disconnect(server.clients()[0]),
    "endings": lambda server: server.endings,
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_after_an_exception_at_any_bytecode_of_a_question_the_server_goes_on(
    address: str, question: Callable[[Server], object]
) -> None:
    with Server(address) as server:
        number = -1
        raised = True
        while raised:
            number += 1
            with Client(address) as client:
                server.wait_for_clients(1, DEADLINE)
                raised = raises_at(number, lambda: question(server))
                server.publish(b"message")
                with suppress(Disconnected):
                    assert client.receive(DEADLINE) == b"message"
            wait_until(lambda: not server.clients())
    assert number > 3


@pytest.mark.slow
def test_after_an_exception_at_any_bytecode_of_a_server_s_close_it_can_be_closed(
    address: str,
) -> None:
    for number in numbers(5):
        server = Server(address)
        with Client(address) as client:
            raised = raises_at(number, partial(server.close, 0))
            server.close(0)  # it gives the address back, and all that it had
            with pytest.raises((ServerClosed, ConnectionLost)):
                client.receive(DEADLINE)
        if not raised:
            break
    assert number > 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["address", "path"])
def test_an_exception_at_any_bytecode_of_a_server_s_making_leaves_nothing(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """At some of them, as there are thousands: `nothing_is_left_behind` looks."""
    address = request.getfixturevalue(kind)
    made = False

    def make() -> None:
        nonlocal made
        with Server(address):
            made = True
            sys.settrace(None)

    for number in numbers(61):
        raises_at(number, make)
        if made:
            break
        gc.collect()
        Server(address).close()  # so the address was given back
    assert number > 1000


def nobody_is_left(server: Server) -> bool:
    """Whether it has no client and no monitor, but for the one that asks."""
    with Monitor(server.address) as monitor:
        return not server.clients() and monitor.status().monitors == 1


MAKINGS: dict[str, Callable[[str], AbstractContextManager[object]]] = {
    **{delivery: partial(Client, delivery=delivery) for delivery in DELIVERIES},
    "monitor": Monitor,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("making", MAKINGS.values(), ids=MAKINGS)
def test_an_exception_at_any_bytecode_of_a_client_s_making_leaves_nothing(
    address: str, making: Callable[[str], AbstractContextManager[object]]
) -> None:
    made = False

    def make() -> None:
        nonlocal made
        with making(address):
            made = True
            sys.settrace(None)

    with Server(address) as server:
        for number in numbers(53):
            raises_at(number, make)
            if made:
                break
            gc.collect()
            wait_until(lambda: nobody_is_left(server))
    assert number > 1000


def is_free(address: str) -> bool:
    try:
        Server(address).close()
    except AddressInUse:
        return False
    return True


not_awaited = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


async def enter_client(address: str, delivery: Delivery) -> None:
    async with AsyncClient(address, delivery=delivery):
        pass


@pytest.mark.slow
@not_awaited
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_an_exception_at_any_bytecode_of_an_async_client_s_life_leaves_nothing(
    address: str, delivery: Delivery
) -> None:
    with Server(address) as server:
        for number in numbers(53):
            raised = raises_at(number, lambda: asyncio.run(enter_client(address, delivery)))
            if not raised:
                break
            gc.collect()
            wait_until(lambda: nobody_is_left(server))
    assert number > 1000


@pytest.mark.slow
@not_awaited
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_exception_at_any_bytecode_of_an_async_server_s_life_leaves_nothing(
    address: str,
) -> None:
    """In the loop's own thread; the server's making is in another, where no signal is handled."""

    async def enter_server() -> None:
        async with AsyncServer(address):
            pass

    for number in numbers(23):
        if not raises_at(number, lambda: asyncio.run(enter_server())):
            break
        gc.collect()
        wait_until(lambda: is_free(address))  # the thread that made it may not be through
    assert number > 300


def test_an_exception_at_any_bytecode_of_a_reserve_leaves_no_half_of_a_message(
    address: str,
) -> None:
    """`test_turn.py` has the turn; this is what is published, and what the block had."""
    kept: list[memoryview] = []

    def fill() -> None:
        with server.reserve(COUNT) as view:
            kept.append(view[:])
            view[:] = b"x" * COUNT

    with Server(address, on_lag="block") as server, Client(address) as client:
        number = -1
        raised = True
        while raised:
            number += 1
            raised = raises_at(number, fill)
            kept.clear()
            server.publish(b"next", DEADLINE)
            got = client.receive(DEADLINE)
            if got != b"next":
                assert got == b"x" * COUNT
                assert client.receive(DEADLINE) == b"next"
            client.ack()
            server.drain(DEADLINE)
    assert number > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_an_exception_at_any_bytecode_of_a_way_back_leaves_one_connection(
    address: str, delivery: Delivery
) -> None:
    """A way back that was cut short is gone on with by the next receive."""
    # A server that closes waits a second for a client that gets one message a packet.
    for number in numbers(701 if delivery == "classic" else 151):
        with Server(address) as server:
            client = Client(address, reconnect=Backoff(first=0, most=0), delivery=delivery)
        with client, Server(address) as server:
            server.publish(b"0")
            got: list[bytes] = []
            raised = raises_at(number, lambda: got.append(client.receive(DEADLINE)))  # noqa: B023
            server.publish(b"1")
            while got[-1:] != [b"1"]:
                got.append(client.receive(DEADLINE))
            wait_until(lambda: len(server.clients()) == 1)
            client.close()
            wait_until(lambda: nobody_is_left(server))
        if not raised:
            break
    assert number > 1000
