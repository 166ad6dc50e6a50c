# SPDX-License-Identifier: Apache-2.0
"""What is over leaves nothing behind: no object, and no reference that keeps one.

Each step is done many times. Then Python has as many blocks of memory as before, and as many
references to our types, each of which is that of an object.
"""

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from typing import Any

import pytest
from support.base import DEADLINE, DELIVERIES
from support.servers import AsyncServer, Server

from jumiks import AsyncClient, Client, Delivery, Timeout, _objects
from jumiks._client.stream import STREAMS

pytestmark = pytest.mark.skipif("coverage" in sys.modules, reason="coverage.py keeps its counts")

TIMES = 200
ROUNDS = 3
"""What Python keeps for later comes in one of them alone; what is left behind, in each."""

MORE_TIMES = 1000
"""In an event loop, which keeps up to a hundred timers that were cancelled."""

ALLOWED = 1 / 2
"""What may be more for other reasons, for each time; one is too many."""

TYPES = [each for each in vars(_objects).values() if isinstance(each, type)]
TYPES += [Server, AsyncServer, *STREAMS.values()]  # subclasses of two of them

MESSAGES = [b"%d" % number + bytes(500) for number in range(3)]

Step = Callable[[Server, Client[Any]], object]


class Growth:
    """Blocks and references that have come in a round, at least, for each time."""

    def __init__(self) -> None:
        self.least = inf

    def rounds(self, times: int) -> Iterator[int]:
        """Number what is to be done so many times in each round."""
        for _ in range(ROUNDS):
            before = self._now()
            yield from range(times)
            self.least = min(self.least, (self._now() - before) / times)

    @staticmethod
    def _now() -> int:
        gc.collect()
        return sys.getallocatedblocks() + sum(map(sys.getrefcount, TYPES))


def growth(step: Callable[[], object]) -> float:
    grown = Growth()
    for _ in grown.rounds(TIMES):
        step()
    return grown.least


def take(client: Client[Any], count: int = len(MESSAGES)) -> None:
    while count:
        count -= len(client.receive_many(DEADLINE))


# ---- publishing: what is published is received as well


def a_message(server: Server, client: Client[Any]) -> None:
    server.publish(MESSAGES[0])
    client.receive(DEADLINE)


def a_buffer(server: Server, client: Client[Any]) -> None:
    server.publish(memoryview(bytearray(MESSAGES[0])))
    client.receive(DEADLINE)


def an_iterator(server: Server, client: Client[Any]) -> None:
    server.publish_many(map(bytearray, MESSAGES))
    take(client)


def what_cannot_be_published(server: Server, client: Client[Any]) -> None:
    wrong: list[Any] = [[1], 2, [memoryview(b"1234")[::2]], iter([None]), [bytes(1 << 26)]]
    for each in wrong:
        with pytest.raises((TypeError, ValueError, BufferError)):
            server.publish_many(each)
    with pytest.raises(TypeError):
        server.publish(wrong)  # type: ignore[arg-type]


def in_place(server: Server, client: Client[Any]) -> None:
    with server.reserve(600) as view:
        view[:] = bytes(600)
    client.receive(DEADLINE)
    with suppress(KeyError), server.reserve(600):
        raise KeyError
    server.reserve(600)  # and it is not entered


def frames(server: Server, client: Client[Any]) -> None:
    server.publish_many(MESSAGES)
    batch = client.receive_many(DEADLINE)
    server.publish_frames(batch.frames())
    take(client)  # the rest of those before, and as many of these


# ---- receiving


def one_by_one(server: Server, client: Client[Any]) -> None:
    server.publish_many(MESSAGES)
    for _ in MESSAGES:
        client.receive(DEADLINE)
    with pytest.raises(Timeout):
        client.receive(0)


def a_loop(server: Server, client: Client[Any]) -> None:
    server.publish_many(MESSAGES)
    messages = iter(client)
    for _ in MESSAGES:
        next(messages)
    iter(client)


def batches(server: Server, client: Client[Any]) -> None:
    server.publish_many([MESSAGES[0]] * 3)
    count = 0
    while count < 3:
        batch = client.receive_many(DEADLINE)
        count += len(batch)
        views = [*batch.views(), batch.frames(), batch.rows()]
        assert len(list(batch)) == len(batch[:]) == len(views) - 2
        assert views[-1][0, 0] == MESSAGES[0][0]


def the_end(server: Server, client: Client[Any]) -> None:
    with Client(server.address, delivery=client.delivery) as another:
        server.publish(MESSAGES[0])
        another.receive(DEADLINE)
        iter(another)
    client.receive(DEADLINE)


STEPS: list[Step] = [a_message, a_buffer, an_iterator, what_cannot_be_published, in_place, frames]
STEPS += [one_by_one, a_loop, batches, the_end]


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_step_leaves_nothing_behind(address: str, delivery: Delivery, step: Step) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.wait_for_clients(1, DEADLINE)
        assert growth(lambda: step(server, client)) < ALLOWED


def test_a_server_leaves_nothing_behind(address: str) -> None:
    def step() -> None:
        with Server(address) as server:
            server.publish(MESSAGES[0])

    assert growth(step) < ALLOWED


# ---- event loops

AsyncStep = Callable[[AsyncServer, AsyncClient[Any]], Any]


async def awaited(server: AsyncServer, client: AsyncClient[Any]) -> None:
    await server.publish_wait(MESSAGES[0])
    await server.publish_many_wait(MESSAGES[1:])
    for _ in MESSAGES:
        await client.receive(DEADLINE)
    with pytest.raises(Timeout):
        await client.receive(0)


async def an_async_loop(server: AsyncServer, client: AsyncClient[Any]) -> None:
    messages = aiter(client)
    for message in MESSAGES:
        waiting = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        server.publish(message)
        await waiting
    server.publish_many(MESSAGES)
    for _ in MESSAGES:
        await anext(messages)


async def given_up(server: AsyncServer, client: AsyncClient[Any]) -> None:
    for what in (anext(aiter(client)), client.receive()):
        waiting = asyncio.ensure_future(what)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    step: Any = anext(aiter(client))
    step.send(None)
    step.close()
    anext(aiter(client))  # and it is not awaited


@pytest.mark.parametrize("step", [awaited, an_async_loop, given_up], ids=lambda step: step.__name__)
def test_an_awaited_step_leaves_nothing_behind(address: str, step: AsyncStep) -> None:
    async def main() -> float:
        async with AsyncServer(address) as server, AsyncClient(address) as client:
            await server.wait_for_clients(1, DEADLINE)
            grown = Growth()
            for _ in grown.rounds(MORE_TIMES):
                await step(server, client)
            return grown.least

    assert asyncio.run(main()) < ALLOWED
