# SPDX-License-Identifier: Apache-2.0
"""Each await of `AsyncClient` and `AsyncServer`, cancelled at each point where it waits.

Early is before what it waits for has come; late is after that, before it could go on. Nothing is
lost by it, nothing stays busy, and the next `close` finishes what a cancelled one began.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import pytest
from support.aio import until
from support.base import DEADLINE
from support.servers import AsyncServer, Server
from support.wire import listening

from jumiks import AsyncClient, ConnectionLost, Delivery, ServerClosed, Timeout
from jumiks._wire.handshake import FIRST_ID

BUSY_FOR = 5.0
"""Seconds after which a server that was left busy is given up; else it answers at once."""


class CancelledAt:
    """Await a coroutine, and cancel it where it waits for the given time, the first being 1."""

    def __init__(self, coroutine: Awaitable[object], number: int, late: bool) -> None:
        self._coroutine = coroutine
        self._number = number
        self._late = late
        self.reached = False

    def __await__(self) -> Generator[object, None, object]:
        steps = self._coroutine.__await__()
        count = 0
        try:
            waits_for = next(steps)
            while True:
                count += 1
                if count == self._number and not self._late:
                    break
                yield waits_for
                if count == self._number:
                    break
                waits_for = steps.send(None)
        except StopIteration as end:
            return end.value
        self.reached = True
        if isinstance(waits_for, asyncio.Future):
            waits_for.cancel()
        # Whoever closes something may wait once more.
        with suppress(StopIteration):
            waits_for = steps.throw(asyncio.CancelledError())
            while True:
                yield waits_for
                waits_for = steps.send(None)
        raise AssertionError("it went on as if nothing had happened")


class Scene(NamedTuple):
    """What is there at the start of an entry."""

    address: str
    delivery: Delivery
    late: bool
    cancelled: list[bool]
    """True once what was to be cancelled was."""


Case = Callable[[Scene], Any]


async def cancel(what: Awaitable[object], number: int, late: bool) -> bool:
    """Whether it waited so many times, and was cancelled then."""
    attempt = CancelledAt(what, number, late)
    with suppress(asyncio.CancelledError):
        await asyncio.wait_for(_as_coroutine(attempt), DEADLINE)
    return attempt.reached


async def _as_coroutine(what: Awaitable[object]) -> object:
    return await what


# ---- what is cancelled: each yields it, and checks what is left behind it


@asynccontextmanager
async def start_of_a_client(scene: Scene) -> AsyncIterator[Awaitable[object]]:
    with Server(scene.address, share_log=True) as server:
        server.publish(b"0")
        client = AsyncClient(scene.address, delivery=scene.delivery)
        yield client
        await client.close()
        await until(lambda: server.stats().clients == 0)
        async with AsyncClient(scene.address, delivery=scene.delivery, start="oldest") as client:
            assert await client.receive(DEADLINE) == b"0"


@asynccontextmanager
async def start_at_a_silent_server(scene: Scene) -> AsyncIterator[Awaitable[object]]:
    with listening(scene.address):
        client = AsyncClient(scene.address, delivery=scene.delivery, timeout=0.05)
        with suppress(ConnectionLost, Timeout):
            yield client
        await client.close()


def receiving(
    way: Callable[[AsyncClient[bytes]], Awaitable[object]], *, handles: bool = False
) -> Case:
    @asynccontextmanager
    async def case(scene: Scene) -> AsyncIterator[Awaitable[object]]:
        with Server(scene.address, share_log=True) as server:
            async with AsyncClient(scene.address, delivery=scene.delivery) as client:
                await until(lambda: server.stats().clients)
                asyncio.get_running_loop().call_later(0.02, server.publish_many, [b"0", b"1"])
                yield way(client)
                had = client.last_id - FIRST_ID + 1 if client.last_id else 0
                if scene.cancelled:
                    assert handles or had == 0
                    assert client.resume_at == FIRST_ID + max(had - 1, 0)
                for number in range(had, 2):
                    assert await client.receive(DEADLINE) == b"%d" % number
                await client.ack()
                await until(lambda: server.clients()[0].acked_id == FIRST_ID + 1)

    return case


async def handled_slowly(_message: bytes) -> None:
    await asyncio.sleep(0.01)


@asynccontextmanager
async def start_of_a_server(scene: Scene) -> AsyncIterator[Awaitable[object]]:
    server = AsyncServer(scene.address)
    yield server
    await server.close()
    # What was cancelled may be about to make it still, in a thread that ends once it is closed.
    await until(lambda: all(each.name != "jumiks waits" for each in threading.enumerate()))
    Server(scene.address).close()


def at_a_full_server(
    way: Callable[[AsyncServer], Awaitable[object]],
    first: Callable[[AsyncServer], Coroutine[Any, Any, object]] | None = None,
) -> Case:
    """At a server that waits for its client, with what another task publishes meanwhile."""

    @asynccontextmanager
    async def case(scene: Scene) -> AsyncIterator[Awaitable[object]]:
        async with (
            AsyncServer(scene.address, on_lag="block", max_lag=2, share_log=True) as server,
            AsyncClient(scene.address, delivery=scene.delivery) as client,
        ):
            await server.wait_for_clients(1, DEADLINE)
            server.publish_many([b"0", b"1"])
            other = asyncio.create_task(first(server)) if first else None
            await asyncio.sleep(0)
            yield way(server)
            published = server.stats().published - 2
            if other is None:
                assert published == 0
            for number in range(2 + (3 if first else 0)):
                assert await client.receive(DEADLINE) == b"%d" % number
                await client.ack()
            if other is not None:
                await asyncio.wait_for(other, DEADLINE)
            await asyncio.wait_for(server.publish_many_wait([b"a", b"b"]), BUSY_FOR)
            assert await client.receive(DEADLINE) == b"a"
            assert await client.receive(DEADLINE) == b"b"
            await client.ack()
            await server.drain(DEADLINE)
            server.publish(b"not busy")

    return case


@asynccontextmanager
async def close_of_a_server(scene: Scene) -> AsyncIterator[Awaitable[object]]:
    server = await AsyncServer(scene.address, on_lag="block", share_log=True)
    async with AsyncClient(scene.address, delivery=scene.delivery) as client:
        await server.wait_for_clients(1, DEADLINE)
        server.publish(b"0")
        # Cancelled, it gives its client no more time, though that takes nothing.
        yield server.close(0.1 if scene.late else 3 * BUSY_FOR)
        await asyncio.wait_for(server.close(DEADLINE), BUSY_FOR)
        Server(scene.address).close()  # nobody has the address
        with pytest.raises(ServerClosed):
            while True:
                await client.receive(DEADLINE)


MANY = [b"2", b"3", b"4"]

CASES: dict[str, Case] = {
    "AsyncClient": start_of_a_client,
    "AsyncClient at a silent server": start_at_a_silent_server,
    "AsyncClient.receive": receiving(lambda client: client.receive(DEADLINE)),
    "AsyncClient.receive_many": receiving(lambda client: client.receive_many(DEADLINE)),
    "AsyncClient.__aiter__": receiving(lambda client: anext(aiter(client))),
    "AsyncClient.run": receiving(lambda client: client.run(handled_slowly), handles=True),
    "AsyncServer": start_of_a_server,
    "AsyncServer.publish_wait": at_a_full_server(lambda server: server.publish_wait(b"x")),
    "AsyncServer.publish_many_wait": at_a_full_server(
        lambda server: server.publish_many_wait(MANY)
    ),
    "AsyncServer.drain": at_a_full_server(lambda server: server.drain(DEADLINE)),
    "AsyncServer.wait_for_clients": at_a_full_server(
        lambda server: server.wait_for_clients(2, DEADLINE)
    ),
    "AsyncServer.publish_wait behind a batch": at_a_full_server(
        lambda server: server.publish_wait(b"x"), lambda server: server.publish_many_wait(MANY)
    ),
    "AsyncServer.publish_many_wait behind a batch": at_a_full_server(
        lambda server: server.publish_many_wait([b"x"]),
        lambda server: server.publish_many_wait(MANY),
    ),
    "AsyncServer.close": close_of_a_server,
}

POINTS = 3
"""Points at which each is cancelled: those that wait again and again would have no end of them."""


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize(
    ("name", "delivery"),
    [
        (name, delivery)
        for name in CASES
        for delivery in (("shared", "framed") if name.startswith("AsyncClient") else ("shared",))
    ],
)
def test_a_cancelled_wait_leaves_all_in_order(
    address: str, name: str, delivery: Delivery, late: bool
) -> None:
    async def main(number: int) -> bool:
        cancelled: list[bool] = []
        async with CASES[name](Scene(address, delivery, late, cancelled)) as what:
            if await cancel(what, number, late):
                cancelled.append(True)
        return bool(cancelled)

    points = 1 if CASES[name] is close_of_a_server else POINTS
    reached = [asyncio.run(main(number)) for number in range(1, points + 1)]
    # A server may have said all before its client waits for that.
    assert reached[0] or CASES[name] is start_of_a_client, "it does not wait, so this tries nothing"
