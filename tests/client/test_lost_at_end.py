# SPDX-License-Identifier: Apache-2.0
"""What the end of a connection has lost is counted, and told in its place: right before the end."""

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.api import SOON, receive
from support.base import DEADLINE, needs
from support.servers import Server

from jumiks import (
    AsyncClient,
    Client,
    ConnectionLost,
    Gap,
    GapReason,
    Lagged,
    MessagesLost,
)
from jumiks._wire.handshake import FIRST_ID

if importlib.util.find_spec("numpy") is not None:
    importlib.import_module("numpy")  # here, as it starts threads

LOST = Gap(FIRST_ID + 5, FIRST_ID + 19)

TAKES: dict[str, Callable[[Any], Any]] = {
    "receive": lambda client: client.receive(DEADLINE),
    "receive_many": lambda client: client.receive_many(DEADLINE),
    "receive_array": lambda client: client.receive_array("S2", DEADLINE),
}
all_takes = pytest.mark.parametrize(
    "take",
    [
        pytest.param(take, id=name, marks=[needs("numpy")] * (name == "receive_array"))
        for name, take in TAKES.items()
    ],
)


def lossy(address: str) -> Server:
    return Server(address, max_lag=5, on_lag="skip", patience=0)


def fill(server: Server) -> None:
    for number in range(20):
        server.publish(b"%02d" % number)


@all_takes
def test_a_function_is_told_before_the_end_is_raised(
    address: str, take: Callable[[Any], Any]
) -> None:
    gaps: list[Gap] = []
    with lossy(address) as server:
        client = Client(address, on_gap=gaps.append)
        fill(server)
        server.close(0)
    with client:
        with pytest.raises(ConnectionLost) as caught:
            while take(client) is not None:
                assert not gaps
        for _ in range(2):
            assert (gaps, client.missed) == ([LOST], 15)
            with pytest.raises(ConnectionLost):
                take(client)
    assert gaps[0].reason is GapReason.ENDED
    assert (caught.value.first_lost, caught.value.last_lost) == (LOST.first, LOST.last)


@all_takes
def test_it_is_received_where_gaps_are(address: str, take: Callable[[Any], Any]) -> None:
    with lossy(address) as server:
        client = Client(address, on_gap="yield")
        fill(server)
        server.close(0)
    with client:
        while not isinstance(found := take(client), Gap):
            pass
        assert found == LOST
        with pytest.raises(ConnectionLost):
            take(client)
        assert client.missed == 15


def test_it_is_raised_where_gaps_are_and_then_comes_the_end(address: str) -> None:
    with lossy(address) as server:
        client = Client(address, on_gap="raise")
        fill(server)
        server.close(0)
    with client:
        receive(client, 5)
        with pytest.raises(MessagesLost) as caught:
            client.receive(DEADLINE)
        assert caught.value.gap == LOST
        with pytest.raises(ConnectionLost):
            client.receive(DEADLINE)


def test_a_loop_has_it_too(address: str) -> None:
    with lossy(address) as server:
        client = Client(address, on_gap="yield")
        fill(server)
        server.close(0)
    found: list[bytes | Gap] = []
    with client, pytest.raises(ConnectionLost):
        found.extend(client)
    assert found[-1] == LOST


@all_takes
def test_an_event_loops_client_has_it_too(
    address: str, take: Callable[[Any], Awaitable[Any]]
) -> None:
    async def received() -> tuple[Gap, int]:
        async with AsyncClient(address, on_gap="yield") as client:
            fill(server)
            server.close(0)
            while not isinstance(found := await take(client), Gap):
                pass
            with pytest.raises(ConnectionLost):
                await take(client)
            return found, client.missed

    with lossy(address) as server:
        assert asyncio.run(received()) == (LOST, 15)


def test_a_client_that_comes_back_is_told_once(address: str) -> None:
    gaps: list[Gap] = []
    with lossy(address) as server:
        client = Client(address, on_gap=gaps.append, reconnect=SOON)
        fill(server)
        server.close(0)
    with client, Server(address) as server:
        server.publish(b"new")
        assert receive(client, 6)[-1] == b"new"
        assert (gaps, client.missed) == ([LOST], 15)


def test_what_a_client_that_lagged_can_still_get_is_not_lost(address: str) -> None:
    with Server(address, max_lag=5, patience=0) as server:
        with Client(address, on_gap="yield") as client:
            fill(server)
            with pytest.raises(Lagged):
                while True:
                    client.receive(DEADLINE)
            assert client.missed == 0
