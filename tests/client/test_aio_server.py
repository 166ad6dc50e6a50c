# SPDX-License-Identifier: Apache-2.0
"""Publishing in an event loop."""

import threading
import time
from collections.abc import Awaitable, Callable

import anyio
import pytest
from anyio import to_thread
from support.aio import Run, numbers, ticking, until
from support.base import DEADLINE
from support.servers import AsyncServer
from support.wire import RawClient

from jumiks import (
    AsyncClient,
    Client,
    ClientInfo,
    Closed,
    ConnectionLost,
    Disconnected,
    EndReason,
    MessageTooLarge,
    Refused,
    ServerClosed,
    Timeout,
)
from jumiks._wire.handshake import FIRST_ID


def _served(address: str) -> bool:
    try:
        Client(address).close()
    except ConnectionRefusedError:
        return False
    except (ConnectionLost, Refused, ServerClosed):
        pass  # it is about to close
    return True


# ---- publishing ----


def test_publish_never_waits_and_publish_wait_leaves_the_loop_running(
    run: Run, address: str
) -> None:
    async def main() -> None:
        async with AsyncServer(address, max_lag=10, on_lag="block") as server, ticking() as ticker:
            with Client(address) as slow:
                for message in numbers(10):
                    server.publish(message)

                def holder() -> object:
                    with pytest.raises(Timeout) as caught:
                        server.publish(b"too much")
                    return caught.value.holder

                # While the core's thread is at work, a publisher that never waits is not told.
                await until(lambda: isinstance(holder(), ClientInfo))
                with pytest.raises(Timeout) as caught:
                    server.publish_many([b"too", b"much"])
                assert caught.value.published == 0
                with pytest.raises(Timeout, match=r"timed out after 0\.02 s"):
                    await server.publish_wait(b"too much", 0.02)
                with pytest.raises(Timeout, match=r"timed out after 0\.02 s"):
                    await server.drain(0.02)
                ids: list[int] = []

                async def publish() -> None:
                    ids.append(await server.publish_wait(b"at last"))

                async with anyio.create_task_group() as group:
                    group.start_soon(publish)
                    before = ticker.count
                    await until(lambda: ticker.count > before + 100)
                    assert ids == []
                    assert [slow.receive(DEADLINE) for _ in range(10)] == numbers(10)
                    slow.ack()
                assert ids == [FIRST_ID + 10]
                assert slow.receive(DEADLINE) == b"at last"

    run(main)


def test_a_batch_that_waits_has_ids_without_holes(run: Run, address: str) -> None:
    async def main() -> None:
        async with AsyncServer(address, max_lag=50, on_lag="block") as server:
            async with AsyncClient(address) as client:
                ranges: list[range] = []
                by_id: dict[int, bytes] = {}
                refused = 0

                async def publish_many(name: bytes) -> None:
                    batch = [b"%s%d" % (name, number) for number in range(1000)]
                    ids = await server.publish_many_wait(batch)
                    ranges.append(ids)
                    by_id.update(zip(ids, batch, strict=True))

                async def publish_singly() -> None:
                    nonlocal refused
                    for number in range(100):
                        message = b"single %d" % number
                        try:
                            by_id[server.publish(message)] = message
                        except Timeout:
                            refused += 1
                            by_id[await server.publish_wait(message, DEADLINE)] = message

                got: dict[int, bytes] = {}
                async with anyio.create_task_group() as group:
                    for name in (b"a", b"b", b"c"):
                        group.start_soon(publish_many, name)
                    group.start_soon(publish_singly)
                    while len(got) < 3100:
                        batch = await client.receive_many(DEADLINE)
                        got.update(enumerate(batch, batch.first_id))
                assert got == by_id
                assert sorted(map(len, ranges)) == [1000] * 3
                assert refused

    run(main)


def test_a_cancelled_publish_wait_has_published_nothing(run: Run, address: str) -> None:
    async def main() -> None:
        async with AsyncServer(address, max_lag=1, on_lag="block") as server:
            async with AsyncClient(address) as client:
                server.publish(b"one")
                with anyio.move_on_after(0.02) as scope:
                    await server.publish_wait(b"two")
                assert scope.cancelled_caught
                assert server.stats().published == 1
                assert await client.receive(DEADLINE) == b"one"
                await client.ack()
                assert await server.publish_wait(b"three", DEADLINE) == FIRST_ID + 1
                assert await client.receive(DEADLINE) == b"three"

    run(main)


def test_a_wait_is_counted_once_however_long_it_is(run: Run, address: str) -> None:
    async def main() -> None:
        async with AsyncServer(address, max_lag=1, on_lag="block") as server:
            with Client(address) as slow:
                server.publish(b"one")
                for count in (1, 2):
                    with pytest.raises(Timeout):
                        await server.publish_wait(b"two", 0.35)
                    assert server.stats().waits == count
                assert slow.receive(DEADLINE) == b"one"

    run(main)


def test_closing_wakes_tasks_that_wait(run: Run, address: str) -> None:
    async def main() -> None:
        server = await AsyncServer(address, max_lag=1, on_lag="block")
        woken = []

        async def expect(wait: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(Closed):
                await wait()
            woken.append(wait)

        with Client(address):
            server.publish(b"one")
            async with anyio.create_task_group() as group:
                group.start_soon(expect, lambda: server.publish_wait(b"two"))
                group.start_soon(expect, lambda: server.publish_many_wait([b"two"]))
                group.start_soon(expect, lambda: server.publish_wait(b"behind the batch"))
                group.start_soon(expect, server.drain)
                group.start_soon(expect, lambda: server.wait_for_clients(2))
                # Where the batch is first, the others wait for its end, and not for the client.
                await until(lambda: server.stats().waits)
                await server.close(linger=0)
        assert len(woken) == 5
        with pytest.raises(Closed):
            server.publish(b"late")
        await server.close()

    run(main)


def test_wrong_messages_are_errors_before_anything_is_published(run: Run, address: str) -> None:
    async def main() -> None:
        async with AsyncServer(address, max_message=10) as server:
            with pytest.raises(MessageTooLarge):
                await server.publish_wait(bytes(11))
            with pytest.raises(MessageTooLarge) as caught:
                await server.publish_many_wait([b"", bytes(12)])
            assert caught.value.size == 12
            with pytest.raises(TypeError):
                await server.publish_wait("text")  # type: ignore[arg-type]
            assert await server.publish_many_wait([]) == range(FIRST_ID, FIRST_ID)
            with server.reserve(3) as view:
                view[:] = b"abc"
            assert server.stats().published == 1
            assert server.max_message == 10

    run(main)


def test_waiting_for_clients_and_callbacks_in_the_loop(run: Run, address: str) -> None:
    seen: list[tuple[str, int, EndReason | None]] = []

    def came(client: ClientInfo) -> None:
        seen.append(("came", threading.get_ident(), None))

    def went(client: ClientInfo, reason: EndReason) -> None:
        seen.append(("went", threading.get_ident(), reason))

    async def main() -> None:
        async with AsyncServer(address, on_connect=came, on_disconnect=went) as server:
            with pytest.raises(Timeout, match=r"0 of 1 clients connected within 0\.02 s"):
                await server.wait_for_clients(1, 0.02)
            client = AsyncClient(address)
            async with anyio.create_task_group() as group:
                group.start_soon(server.wait_for_clients, 1, DEADLINE)
                await client
            await until(lambda: len(seen) == 1)
            assert client.server_id == server.server_id
            assert server.address == address
            await client.close()
            await until(lambda: len(seen) == 2)

    run(main)
    here = threading.get_ident()
    assert seen == [("came", here, None), ("went", here, EndReason.LEFT)]


def test_a_server_in_the_loop_shows_and_ends_its_clients(run: Run, address: str) -> None:
    async def main() -> None:
        async with AsyncServer(address) as server, AsyncClient(address) as client:
            await server.wait_for_clients(1, DEADLINE)
            server.disconnect(server.clients()[0])
            with pytest.raises(Disconnected):
                await client.receive(DEADLINE)
            await until(lambda: server.endings.get(EndReason.DISCONNECTED))

    run(main)


def test_a_batch_that_is_under_way_is_not_cut_in_by_another(run: Run, address: str) -> None:
    async def main() -> None:
        async with AsyncServer(address, max_lag=5, on_lag="block") as server:
            with Client(address) as slow:
                await server.wait_for_clients(1, DEADLINE)
                async with anyio.create_task_group() as group:
                    group.start_soon(server.publish_many_wait, numbers(10))
                    await until(lambda: server._in_batch)
                    with pytest.raises(Timeout, match="await publish_many_wait instead"):
                        server.publish_many([b"another"])
                    with pytest.raises(Timeout, match="under way all the time"):
                        await server.publish_many_wait([b"another"], 0)
                    got: list[bytes] = []

                    def receive() -> None:
                        while len(got) < 10:
                            got.append(slow.receive(DEADLINE))
                            slow.ack()

                    await to_thread.run_sync(receive)
                assert got == numbers(10)

    run(main)


def test_a_cancelled_start_leaves_nothing_behind(run: Run, address: str) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await AsyncServer(address)
        await until(lambda: not _served(address))

    run(main)


def test_a_close_that_is_cancelled_gives_clients_no_more_time(run: Run, address: str) -> None:
    async def main() -> None:
        server = await AsyncServer(address)
        inside = server._open()
        with RawClient(address):
            await server.wait_for_clients(1, DEADLINE)
            server.publish_many([bytes(10_000)] * 50)  # more than its socket takes
            async with anyio.create_task_group() as group:
                group.start_soon(server.close, 2 * DEADLINE)
                await until(lambda: inside._control._closing)
                before = time.monotonic()
                group.cancel_scope.cancel()
            assert not inside._control.thread.is_alive()
            assert time.monotonic() - before < DEADLINE

    run(main)
