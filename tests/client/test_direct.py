# SPDX-License-Identifier: Apache-2.0
"""Messages that are handed out in C: what Python's own iterators promise holds for them too."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any, Literal

import pytest
from support.api import Task, receive
from support.base import DEADLINE, DELIVERIES, wait_until
from support.servers import Server

import jumiks._aio.client
from jumiks import AsyncClient, Busy, Client, Closed, Delivery, MessagesLost, Timeout
from jumiks._native import Handout, Messages

COUNT = 700
"""More messages than are made into objects at a time."""


def numbers(count: int = COUNT) -> list[bytes]:
    return [b"number %d" % number for number in range(count)]


def is_direct(client: Client) -> bool:
    return client._stream.direct


def publish_and_wait(server: Server, count: int) -> None:
    """Publish `numbers`, and wait until all of them are in the log or in the socket."""
    server.publish_many(numbers(count))
    wait_until(lambda: server.clients()[0].queued == 0)


@contextmanager
def filled(address: str, count: int = COUNT) -> Iterator[tuple[Server, Client]]:
    """A server that has published `numbers`, and a client that has received none of them."""
    with Server(address) as server, Client(address) as client:
        publish_and_wait(server, count)
        yield server, client


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_loop_and_receive_hand_out_one_stream(address: str, delivery: Delivery) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish_many(numbers())

        got: list[bytes] = []
        loop = iter(client)
        while len(got) < COUNT:
            if len(got) == 100:
                got += client.receive_many(DEADLINE)
            else:
                got.append(client.receive(DEADLINE) if len(got) % 3 else next(loop))
        assert got == numbers()


def test_a_client_is_direct_unless_python_has_to_look(address: str) -> None:
    """Nobody pays for `fileno` who does not use it."""
    with filled(address) as (server, client):
        assert is_direct(client)
        client.receive_many(DEADLINE)
        assert not is_direct(client)  # the next receive gives the batch's memory back
        server.publish_many([b"a", b"b"])
        assert client.receive() == b"a"
        assert is_direct(client)
        client.fileno()
        assert not is_direct(client)
        assert client.receive() == b"b"
        assert not is_direct(client)


def test_a_loop_that_has_ended_stays_ended(address: str) -> None:
    with filled(address, 2) as (server, client):
        loop = iter(client)
        assert next(loop) == b"number 0"
        server.close()
        assert list(loop) == [b"number 1"]
        assert next(loop, None) is None
        assert next(iter(client), None) is None


def test_a_loop_that_raised_has_ended_and_another_goes_on(address: str) -> None:
    with Server(address, max_lag=4, on_lag="skip", patience=0.01) as server:
        with Client(address, on_gap="raise") as client:
            server.publish_many(numbers(100))
            loop = iter(client)
            with pytest.raises(MessagesLost):
                deque(loop, maxlen=0)
            assert next(loop, None) is None
            server.publish(b"on")
            assert b"on" in receive_until(client, b"on")


def receive_until(client: Client, last: bytes) -> list[bytes]:
    got = []
    for message in client:
        got.append(message)
        if message == last:
            break
    return got


def test_a_closed_client_hands_out_nothing_that_it_had_taken(address: str) -> None:
    with filled(address) as (_, client):
        loop = iter(client)
        assert next(loop) == b"number 0"
        client.close()
        assert list(loop) == []
        with pytest.raises(Closed):
            client.receive(0)
        with pytest.raises(Closed):
            client.receive()


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("way", ["for", "receive"])
def test_an_ack_before_each_message_is_of_no_later_one(
    address: str, delivery: Delivery, way: str
) -> None:
    with Server(address) as server, Client(address, ack="before", delivery=delivery) as client:
        last = server.publish_many(numbers(20))[-1]
        wait_until(lambda: server.clients()[0].sent_id == last)
        loop = iter(client)
        for number in range(20):
            assert is_direct(client)
            got = next(loop) if way == "for" else client.receive()
            assert got == b"number %d" % number
            assert client._stream.is_acked(client.last_id)
            assert client.resume_at == client.last_id + 1
            assert client.lag == client._stream.ahead - client.last_id


class Rang(Exception):
    """What the handler raises."""


def test_ctrl_c_ends_a_loop_in_c_over_a_stream_without_end(address: str) -> None:
    """As itertools' own loops are not to be ended: nothing in it runs a bytecode."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Rang

    over = threading.Event()
    with Server(address, on_lag="block") as server, Client(address) as client:

        def publish() -> None:
            while not over.is_set():
                server.publish_many([b"x"] * 500, DEADLINE)

        before = signal.signal(signal.SIGALRM, ring)
        feed = Task(publish)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Rang):
                deque(client, maxlen=0)
            assert client.receive(DEADLINE) == b"x"
        finally:
            over.set()
            signal.signal(signal.SIGALRM, before)
            client.close()
        feed.result()


@pytest.mark.parametrize("count", [1, 3, COUNT])
def test_a_message_is_its_receiver_s_alone(address: str, count: int) -> None:
    with filled(address, count) as (_, client):
        message = client.receive(DEADLINE)
        receive(client, count - 1)
        with pytest.raises(Timeout):
            client.receive(0)  # the list of the last ones goes here
    assert sys.getrefcount(message) == 2


def test_a_loop_that_its_client_keeps_is_collected(address: str) -> None:
    with filled(address) as (_, client):
        loop = iter(client)
        assert next(loop) == b"number 0"
        client.loop = loop  # type: ignore[attr-defined]
        gone = weakref.ref(client._stream)
    del client, loop
    gc.collect()
    assert gone() is None


def test_a_subclass_s_instances_give_their_class_back(address: str) -> None:
    class Mine(Client):
        pass

    with Server(address):
        Mine(address).close()
        before = sys.getrefcount(Mine)
        for _ in range(5):
            with Mine(address):
                pass
        gc.collect()
        assert sys.getrefcount(Mine) == before


def test_a_loop_may_receive_within_itself(address: str) -> None:
    """What waits is the client's; it may come to its end while it is called by the loop."""
    stream, seen = Handout(), list[object]()

    def wait() -> object:
        seen.append(len(seen))
        if len(seen) == 1:
            assert next(loop, "over") == "over"  # which gives this function up
        return None

    loop = Messages(stream, wait)
    del wait
    assert next(loop, "over") == "over"
    assert seen == [0, 1]


def test_a_collector_that_receives_takes_nothing_twice(address: str) -> None:
    """A list is made for each batch, and the collector may run then."""
    inner: list[bytes] = []
    outer: list[bytes] = []
    with filled(address, 900) as (_, client):

        def collect(phase: str, info: dict[str, int]) -> None:
            if phase == "start" and len(inner) < 200:
                with suppress(Timeout, Busy):  # nothing has come yet, or the loop itself waits
                    inner.append(client.receive(0))

        before = gc.get_threshold()
        gc.callbacks.append(collect)
        gc.set_threshold(1, 1000, 1000)
        try:
            for message in client:
                outer.append(message)
                if len(inner) + len(outer) == 900:
                    break
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(collect)
    assert sorted(inner + outer, key=lambda each: int(each[7:])) == numbers(900)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("receiver", 1),
        ("taken", None),
        ("taken", (1, 2)),
        ("taken", (1, 2, (b"",))),
        ("out", -1),
        ("out", "1"),
        ("quarter", 1 << 64),
    ],
)
def test_what_is_in_c_takes_no_wrong_value(name: str, value: object) -> None:
    stream = Handout()
    with pytest.raises((TypeError, OverflowError)):
        setattr(stream, name, value)
    with pytest.raises(TypeError):
        delattr(stream, name)
    assert stream[None] is None


def test_messages_taken_that_are_not_there_are_an_error_and_no_crash(address: str) -> None:
    with filled(address) as (_, client):
        client._stream.taken = 1, 1 << 63, []
        with pytest.raises(IndexError):
            client.receive()


# ---- in an event loop ----


@asynccontextmanager
async def filled_async(
    address: str, count: int = COUNT
) -> AsyncIterator[tuple[Server, AsyncClient]]:
    """The same for `AsyncClient`; all that was published is there, and a slice has begun."""
    with Server(address) as server:
        async with AsyncClient(address) as client:
            server.publish(b"first")
            assert await client.receive() == b"first"
            publish_and_wait(server, count)
            yield server, client


def run_for_long(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it, with slices that do not end by themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jumiks._aio.client, "SLICE_TIME", 1 << 60)
        asyncio.run(asyncio.wait_for(main(), DEADLINE))


def one_by_one(client: Client[Any], how: str) -> Callable[[], object]:
    loop = iter(client)
    return {
        "loop": lambda: next(loop),
        "receive": client.receive,
        "a receive that never waits": lambda: client.receive(0),
        "a receive with a timeout": lambda: client.receive(DEADLINE),
    }[how]


WAYS = ("loop", "receive", "a receive that never waits", "a receive with a timeout")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("on_gap", ["raise", "yield"])
def test_a_slow_user_acks_long_before_the_limit(
    address: str, how: str, on_gap: Literal["raise", "yield"]
) -> None:
    with Server(address, max_lag=80) as server:
        with Client(address, on_gap=on_gap) as client:
            publish_and_wait(server, 60)
            step = one_by_one(client, how)
            for _ in range(21):  # it came back for more after a quarter of the limit
                step()
            assert client.lag <= 60 - 20


@pytest.mark.parametrize("how", WAYS)
def test_a_slow_user_acks_in_time(address: str, how: str) -> None:
    with filled(address, 200) as (_, client):
        step = one_by_one(client, how)
        step()
        before = client.lag
        wait_until(lambda: step() and client.lag < before)


@pytest.mark.parametrize("how", ["loop", "receive"])
def test_a_slow_task_acks_long_before_the_limit(address: str, how: str) -> None:
    async def main() -> None:
        with Server(address, max_lag=80) as server:
            async with AsyncClient(address) as client:
                publish_and_wait(server, 60)
                loop = aiter(client)
                for _ in range(21):
                    await (anext(loop) if how == "loop" else client.receive())
                assert client.lag <= 60 - 20

    run_for_long(main)


def test_what_is_there_needs_no_coroutine(address: str) -> None:
    waits: list[int] = []

    async def main() -> None:
        async with filled_async(address) as (_, client):
            slowly = client._next_slowly

            def counted() -> Coroutine[Any, Any, bytes]:
                waits.append(client.last_id)
                return slowly()

            client._next_slowly = counted  # type: ignore[method-assign]
            got: list[bytes] = []
            async for message in client:
                got.append(message)
                if len(got) == COUNT:
                    break
            assert got == numbers()
            assert len(waits) < 10

    run_for_long(main)


def test_a_step_that_is_not_awaited_takes_nothing(address: str) -> None:
    async def main() -> None:
        async with filled_async(address) as (_, client):
            loop = aiter(client)
            given_up, again = anext(loop), anext(loop)
            del given_up
            assert await again == b"number 0"
            with pytest.raises(RuntimeError, match="awaited already"):
                await again
            assert await anext(loop) == b"number 1"

    run_for_long(main)


@pytest.mark.parametrize("there", [True, False])
def test_a_step_that_is_cancelled_loses_nothing(address: str, there: bool) -> None:
    async def main() -> None:
        async with filled_async(address, 2 * there) as (server, client):
            loop = aiter(client)

            async def step() -> bytes:
                return await anext(loop)

            for pauses in range(4):
                task = asyncio.create_task(step())
                for _ in range(pauses):
                    await asyncio.sleep(0)
                if task.done():
                    break
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            server.publish(b"last")
            got = [task.result()] if task.done() and not task.cancelled() else []
            while got[-1:] != [b"last"]:
                got.append(await anext(loop))
            assert got == [*numbers(2 * there), b"last"]

    run_for_long(main)


def test_a_loop_that_is_closed_has_ended(address: str) -> None:
    async def main() -> None:
        async with filled_async(address) as (_, client):
            async with aclosing(aiter(client)) as loop:
                assert await anext(loop) == b"number 0"
            assert await anext(loop, b"over") == b"over"
            assert await client.receive() == b"number 1"

    run_for_long(main)


def test_a_step_is_a_coroutine_s_equal(address: str) -> None:
    """By hand: what `await` does, and what a debugger or another event loop may do."""

    async def main() -> None:
        async with filled_async(address, 3) as (server, client):
            loop = aiter(client)
            for go_on in (lambda step: step.send(None), next):
                step: Any = anext(loop)
                with pytest.raises(StopIteration) as stopped:
                    go_on(step)
                assert stopped.value.value.startswith(b"number")
            step = anext(loop)
            step.close()
            with pytest.raises(RuntimeError, match="awaited already"):
                step.send(None)
            step = anext(loop)
            with pytest.raises(KeyError):
                step.throw(KeyError("x"))
            with pytest.raises(RuntimeError, match="nothing is awaited"):
                step.throw(KeyError("x"))
            assert await client.receive() == b"number 2"
            waiting: Any = anext(loop)
            assert waiting.send(None) is not None  # it waits for the loop's future
            with pytest.raises(asyncio.CancelledError):
                waiting.throw(asyncio.CancelledError())
            assert waiting.close() is None
            waiting = anext(loop)
            waiting.send(None)
            waiting.close()
            server.publish(b"3")  # and the client is not busy
            assert await client.receive(DEADLINE) == b"3"

    run_for_long(main)


def test_two_tasks_do_not_share_a_stream(address: str) -> None:
    async def main() -> None:
        async with filled_async(address, 0) as (server, client):
            first = asyncio.create_task(client.receive())
            await asyncio.sleep(0)
            server.publish_many(numbers(3))
            with pytest.raises(Busy):
                await client.receive()
            with pytest.raises(Busy):
                await anext(aiter(client))
            assert await first == b"number 0"
            assert await client.receive() == b"number 1"

    run_for_long(main)
