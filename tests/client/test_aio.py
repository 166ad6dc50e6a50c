# SPDX-License-Identifier: Apache-2.0
"""The asynchronous twins, on asyncio, uvloop and trio."""

import gc
import os
import select
import socket
import threading
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from support.aio import Run, numbers, ticking, until
from support.api import SMALL_LOG, Task, arenas_of, run_script, sockaddr, stranger
from support.base import ASYNCIO, BEST, DEADLINE, wait_until
from support.servers import AsyncServer, Server
from support.wire import acks_unread

import jumiks._aio.client
import jumiks._loops
from jumiks import (
    AsyncClient,
    Busy,
    ClientInfo,
    Closed,
    Delivery,
    Gap,
    Lagged,
    ProtocolError,
    ServerClosed,
    Timeout,
)
from jumiks._wire.handshake import FIRST_ID, Capability, ServerHello, Status, Welcome

# ---- receiving ----


def test_a_stream_arrives_in_order_until_the_server_closes(run: Run, address: str) -> None:
    total = 20_000
    got: list[bytes] = []

    async def main() -> None:
        there = anyio.Event()

        async def publish() -> None:
            async with AsyncServer(address, on_lag="block", max_lag=500) as server:
                there.set()
                await server.wait_for_clients(1, DEADLINE)
                for message in numbers(total):
                    await server.publish_wait(message)
                await server.drain(DEADLINE)

        async with anyio.create_task_group() as group:
            group.start_soon(publish)
            await there.wait()
            async with AsyncClient(address) as client:
                got.extend([message async for message in client])
                with pytest.raises(ServerClosed):
                    await client.receive()

    run(main)
    assert got == numbers(total)


@pytest.mark.parametrize("delivery", ["shared", "classic"])
def test_ways_of_receiving_may_be_mixed(run: Run, address: str, delivery: Delivery) -> None:
    async def main() -> None:
        with Server(address) as server:
            async with AsyncClient(address, delivery=delivery) as client:
                got: list[bytes] = []
                server.publish_many(numbers(300))
                while len(got) < 250:
                    got.append(await client.receive(DEADLINE))
                    got.extend((await client.receive_many(DEADLINE))[:])
                    if len(got) < 250:
                        async with aclosing(aiter(client)) as messages:
                            got.append(await anext(messages))
                while len(got) < 300:
                    got.append(await client.receive(DEADLINE))
                assert got == numbers(300)
                assert client.last_id == FIRST_ID + 299
                assert client.delivery == (BEST if delivery == "shared" else "classic")
                await client.ack()
                server.drain(DEADLINE)
                assert client.lag == 0

    run(main)


def test_what_is_there_is_returned_without_a_trip_through_the_loop(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumiks._aio.client, "SLICE_TIME", 1 << 60)

    async def main() -> None:
        with Server(address) as server:
            async with AsyncClient(address) as client, ticking() as ticker:
                server.publish(b"first")
                await client.receive()
                last = server.publish_many(numbers(1000))[-1]
                await until(lambda: server.clients()[0].sent_id == last)
                before = ticker.count
                got = [await client.receive() for _ in range(1000)]
                assert ticker.count == before
                assert got == numbers(1000)

    run(main)


def test_a_loop_left_by_break_acks_all_but_the_last(address: str) -> None:
    gone: list[ClientInfo] = []

    async def main() -> None:
        with Server(address, on_disconnect=lambda info, _: gone.append(info)) as server:
            async with AsyncClient(address) as client:
                server.publish_many(numbers(5))
                async for message in client:
                    if message == b"3":
                        break
            await until(lambda: gone)

    anyio.run(main, **ASYNCIO)
    assert gone[0].acked_id == FIRST_ID + 2


@pytest.mark.parametrize("bound", ["SLICE_TIME", "SLICE_MESSAGES"])
@pytest.mark.parametrize("way", ["receive", "receive_many", "for"])
@pytest.mark.usefixtures("large_log")
def test_a_busy_feed_leaves_the_loop_its_turns(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch, bound: str, way: str
) -> None:
    bounds = {"SLICE_TIME": 1 << 60, "SLICE_MESSAGES": 1 << 60, bound: 0}
    for name, value in bounds.items():
        monkeypatch.setattr(jumiks._aio.client, name, value)

    async def main() -> None:
        with Server(address) as server:
            # Batches of a single message, so that each is one look at the bounds.
            with arenas_of(4096):
                client = await AsyncClient(address)
            async with client, ticking() as ticker:
                server.publish(b"first")
                await client.receive()
                server.publish_many([bytes(300_000)] * 20)
                before = ticker.count
                if way == "for":
                    async with aclosing(aiter(client)) as messages:
                        while client.last_id < FIRST_ID + 20:
                            await anext(messages)
                else:
                    while client.last_id < FIRST_ID + 20:
                        await getattr(client, way)()
                assert ticker.count >= before + 10

    run(main)


def test_what_belongs_to_an_event_loop_says_so(run: Run, address: str) -> None:
    server: Any = AsyncServer(address)
    client: Any = AsyncClient(address)
    for kind, it in (("AsyncServer", server), ("AsyncClient", client)):
        with pytest.raises(TypeError, match=rf"use 'async with {kind}\(...\)'"), it:
            pass
    with pytest.raises(TypeError, match=r"use 'async for message in \.\.\.'"):
        iter(client)

    async def main() -> None:
        async with AsyncServer(address), AsyncClient(address) as there:
            with pytest.raises(TypeError, match="handler is a function that takes a message"):
                await there.run(5)  # type: ignore[arg-type]

    run(main)


def test_a_timeout_passes_and_the_next_receive_goes_on(run: Run, address: str) -> None:
    async def main() -> None:
        with Server(address) as server:
            async with AsyncClient(address) as client:
                for timeout in (0, 0.02):
                    with pytest.raises(Timeout, match="no message within"):
                        await client.receive(timeout)
                with pytest.raises(ValueError, match="timeout=-1: it must be 0 seconds or more"):
                    await client.receive_many(-1)
                server.publish(b"late")
                assert await client.receive(DEADLINE) == b"late"

    run(main)


def test_a_cancelled_receive_loses_no_message(run: Run, address: str) -> None:
    total = 400
    got: list[bytes] = []
    cancelled = 0

    async def main() -> None:
        nonlocal cancelled
        with Server(address) as server:
            async with AsyncClient(address) as client, anyio.create_task_group() as group:

                async def publish() -> None:
                    for number in range(total):
                        server.publish(b"%d" % number)
                        await anyio.sleep(0.0005 * (number % 3))

                group.start_soon(publish)
                number = 0
                while len(got) < total:
                    number += 1
                    with anyio.move_on_after(0.0003 * (number % 4)) as scope:
                        got.append(await client.receive())
                    cancelled += scope.cancelled_caught

    run(main)
    assert got == numbers(total)
    assert cancelled


def test_a_message_that_came_as_its_receive_was_cancelled_is_kept(run: Run, address: str) -> None:
    async def main() -> None:
        with Server(address) as server:
            async with AsyncClient(address) as client:
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:

                        async def disturb() -> None:
                            await until(lambda: client._receiving)
                            server.publish(b"kept")
                            scope.cancel()

                        group.start_soon(disturb)
                        await client.receive()
                assert scope.cancelled_caught
                assert await client.receive(DEADLINE) == b"kept"

    run(main)


def test_the_loop_stands_still_while_there_is_a_message_and_nobody_receives(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    ready = jumiks._loops._Asyncio._ready

    def look(self: Any) -> None:
        looks.append(self)
        ready(self)

    monkeypatch.setattr(jumiks._loops._Asyncio, "_ready", look)

    async def main() -> None:
        with Server(address) as server:
            async with AsyncClient(address, delivery="framed") as client:
                with pytest.raises(Timeout):
                    await client.receive(0.01)
                server.publish(b"unwanted")
                await anyio.sleep(0.05)
                assert await client.receive(DEADLINE) == b"unwanted"

    run(main)
    assert len(looks) < 10  # one that does not stand still looks as often as it can


def test_closing_wakes_a_task_that_receives(run: Run, address: str) -> None:
    async def main() -> None:
        with Server(address):
            client = await AsyncClient(address)
            async with anyio.create_task_group() as group:

                async def close() -> None:
                    await until(lambda: client._receiving)
                    await client.close()

                group.start_soon(close)
                with pytest.raises(Closed, match="this client is closed"):
                    await client.receive()
            await client.close()

    run(main)


def test_closing_ends_a_loop_that_waits(run: Run, address: str) -> None:
    async def main() -> None:
        with Server(address):
            client = await AsyncClient(address)
            async with anyio.create_task_group() as group:

                async def close() -> None:
                    await until(lambda: client._receiving)
                    await client.close()

                group.start_soon(close)
                assert [message async for message in client] == []

    run(main)


def test_a_second_task_that_receives_gets_an_error(run: Run, address: str) -> None:
    async def main() -> None:
        with Server(address) as server:
            async with AsyncClient(address) as client, anyio.create_task_group() as group:
                got = []

                async def receive() -> None:
                    got.append(await client.receive())

                group.start_soon(receive)
                await until(lambda: client._receiving)
                with pytest.raises(Busy, match="give each task a client of its own"):
                    await client.receive()
                server.publish(b"for the first")
                await until(lambda: got)
                assert got == [b"for the first"]

    run(main)


def test_acks_go_out_while_the_loop_waits(run: Run, address: str) -> None:
    async def main() -> None:
        async with AsyncServer(address) as server, AsyncClient(address) as client:
            server.publish_many(numbers(10))

            async def consume() -> None:
                async for _ in client:
                    pass

            async with anyio.create_task_group() as group:
                group.start_soon(consume)
                await server.drain(DEADLINE)
                (info,) = server.clients()
                assert (info.lag, info.acked_id) == (0, FIRST_ID + 9)
                group.cancel_scope.cancel()

    run(main)


def test_a_handler_may_be_plain_or_awaited(run: Run, address: str) -> None:
    got: list[bytes] = []

    async def main() -> None:
        async def later(message: bytes) -> None:
            await anyio.sleep(0)
            got.append(message)

        async with AsyncServer(address) as server:
            server.publish_many(numbers(3))
            async with AsyncClient(address, start="oldest") as client:
                async with anyio.create_task_group() as group:
                    group.start_soon(client.run, later)
                    await server.drain(DEADLINE)
                    group.cancel_scope.cancel()
            async with AsyncClient(address, start="oldest") as client:
                async with anyio.create_task_group() as group:
                    group.start_soon(client.run, got.append)
                    await server.drain(DEADLINE)
                    group.cancel_scope.cancel()

    run(main)
    assert got == numbers(3) * 2


def test_a_client_that_is_cut_reads_why(run: Run, address: str) -> None:
    async def main() -> None:
        with Server(address, max_lag=5, patience=0) as server:
            async with AsyncClient(address) as client:
                for message in numbers(20):
                    server.publish(message)
                with pytest.raises(Lagged) as caught:
                    while True:
                        await client.receive(DEADLINE)
                assert (caught.value.limit, caught.value.limit_kind) == (5, "messages")

    run(main)


def test_a_gap_is_told(run: Run, address: str) -> None:
    gaps: list[Gap] = []

    async def main() -> None:
        with Server(address, log_size=SMALL_LOG) as server:
            server.publish_many([bytes(1000)] * 200)
            async with AsyncClient(address, start=FIRST_ID, on_gap=gaps.append) as client:
                await client.receive(DEADLINE)
                assert client.missed == client.last_id - FIRST_ID

    run(main)
    (gap,) = gaps
    assert gap.first == FIRST_ID


def test_its_descriptor_is_readable_once_there_is_something_and_quiet_again(
    run: Run, address: str
) -> None:
    async def main() -> None:
        with Server(address) as server:
            async with AsyncClient(address) as client:
                for _ in range(3):
                    with pytest.raises(Timeout):
                        await client.receive(0)
                    assert not is_readable(client)
                    server.publish_many([b"one", b"two"])
                    await until(lambda: is_readable(client))
                    for message in (b"one", b"two"):
                        assert await client.receive(DEADLINE) == message

    run(main)


def is_readable(client: AsyncClient) -> bool:
    return bool(select.select([client.fileno()], [], [], 0)[0])


@pytest.mark.parametrize("ack", ["after", "manual"])
def test_an_ack_that_the_socket_refused_is_sent_again_while_the_loop_waits(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch, ack: Literal["after", "manual"]
) -> None:
    monkeypatch.setattr(jumiks._aio.client, "_ACK_TRIES", 1)
    count = 1000
    last = FIRST_ID + count - 1

    async def main(read: threading.Event) -> None:
        async with AsyncClient(address, delivery="classic", ack=ack) as client:
            stream = client._stream
            stream.watched = False  # so no look for its server's death does the same
            for _ in range(count):
                await client.receive(DEADLINE)
            if ack == "manual":
                await client.ack()
            async with anyio.create_task_group() as group:
                group.start_soon(client.run, print)
                await until(lambda: client._receiving)
                assert not stream.is_acked(last)
                read.set()
                await until(lambda: stream.is_acked(last))
                group.cancel_scope.cancel()

    with acks_unread(address, count) as (read, _):
        run(partial(main, read))


@pytest.mark.parametrize("way", ["receive", "ack", "with", "close"])
def test_views_hold_nothing_back_once_they_are_handled(run: Run, address: str, way: str) -> None:
    gone: list[ClientInfo] = []

    async def main() -> None:
        with Server(address, on_disconnect=lambda info, _: gone.append(info)) as server:
            async with AsyncClient(address) as client:
                server.wait_for_clients(1, DEADLINE)
                server.publish_many(numbers(10))
                batch = await client.receive_many(DEADLINE)
                views = batch.views()
                assert list(map(bytes, views)) == numbers(10)
                assert server.clients()[0].acked_id == 0
                if way == "receive":
                    with pytest.raises(Timeout):
                        await client.receive(0)
                elif way == "ack":
                    await client.ack()
                elif way == "with":
                    with batch:
                        pass
                    with pytest.raises(Timeout):
                        await client.receive(0)
                else:
                    server.publish(b"more")
                    await client.receive(DEADLINE)
                    await client.close()
                    await until(lambda: gone)
                    assert gone[0].acked_id == FIRST_ID + 9
                    return
                await until(lambda: server.clients()[0].lag == 0)
                if BEST == "shared":
                    with pytest.raises(ValueError, match="released"):
                        bytes(views[0])

    run(main)


@pytest.mark.only_shared  # what was sent cannot be given up
def test_what_the_server_gave_up_while_it_was_there_is_a_gap_and_no_timeout(
    run: Run, address: str
) -> None:
    gaps: list[Gap] = []

    async def main() -> None:
        with Server(address, log_size=SMALL_LOG, max_lag=1, on_lag="skip", patience=0) as server:
            async with AsyncClient(address, on_gap=gaps.append) as client:
                server.publish(b"first")
                # As a receive finds it that is cancelled before it can hand it out.
                assert client._look()
                server.publish_many([bytes(1000)] * 200)

                async def more() -> None:
                    while True:
                        server.publish(b"more")
                        await anyio.sleep(0.002)

                async with anyio.create_task_group() as group:
                    group.start_soon(more)
                    assert await client.receive() in (bytes(1000), b"more")
                    group.cancel_scope.cancel()
                assert gaps[0].first == FIRST_ID

    run(main)


def test_an_async_client_that_is_dropped_unclosed_warns_and_closes(run: Run, address: str) -> None:
    async def drop() -> None:
        await AsyncClient(address)
        gc.collect()

    with Server(address) as server:
        with pytest.warns(ResourceWarning, match=f"AsyncClient: {address}.* was not closed"):
            run(drop)
        wait_until(lambda: not server.clients())


# ---- connecting ----


@pytest.mark.parametrize("side", ["server", "client"])
def test_either_side_may_do_without_the_shared_log(run: Run, address: str, side: str) -> None:
    async def main() -> None:
        async with AsyncServer(address, share_log=side != "server") as server:
            async with AsyncClient(
                address, delivery="framed" if side == "client" else "shared"
            ) as client:
                assert client.delivery == server.clients()[0].delivery == "framed"
            async with AsyncClient(address) as client:
                assert client.delivery == ("framed" if side == "server" else "shared")

    run(main)


def test_share_log_is_yes_or_no(run: Run, address: str) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="share_log is True or False, not 'yes'"):
            await AsyncServer(address, share_log="yes")  # type: ignore[arg-type]

    run(main)


def test_a_log_with_too_few_descriptors_is_a_protocol_error_and_none_is_kept(
    run: Run, address: str
) -> None:
    hello = ServerHello(
        capabilities=Capability.FRAMES | Capability.LOG, next_id=FIRST_ID, max_packet=65536
    )
    welcome = Welcome(Status.ACCEPTED, hello.capabilities, FIRST_ID)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, open(os.devnull) as file:
            connection.send(hello.encode())
            connection.recv(100)
            socket.send_fds(connection, [welcome.encode()], [file.fileno()])
            connection.recv(100)

    async def main() -> None:
        with pytest.raises(ProtocolError, match="1 descriptors came"):
            await AsyncClient(address)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(sockaddr(address))
        listener.listen()
        task = Task(serve)
        run(main)
        task.result()


NO_ROOM = """
import asyncio, logging, os, sys
import jumiks

logging.basicConfig(format="%(message)s", stream=sys.stdout)

async def main():
    found = []
    try:
        while True:
            found.append(os.dup(0))
    except OSError:
        os.close(found.pop())  # room for a socket, and for nothing that comes with the welcome
    async with jumiks.AsyncClient(sys.argv[1]) as client:
        os.close(found.pop())
        print(client.delivery, await client.receive(10))

asyncio.run(main())
"""


def test_a_client_without_room_for_the_log_has_messages_sent(address: str) -> None:
    with Server(address, share_log=True) as server:
        script = Task(lambda: run_script(NO_ROOM, address))
        wait_until(
            lambda: script.done or [info.delivery for info in server.clients()] == ["framed"]
        )
        server.publish(b"sent")
        said = script.result(3 * DEADLINE).splitlines()
    assert said[0].startswith(f"{address}: cannot read its log, so it has to send: ")
    assert said[1:] == ["framed b'sent'"]


def test_nobody_serves_there(run: Run, address: str, path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError, match="start it first"):
            await AsyncClient(address)
        with pytest.raises(FileNotFoundError):
            await AsyncClient(path)

    run(main)


def test_a_silent_server_makes_connecting_time_out_and_the_loop_runs_on(
    run: Run, address: str
) -> None:
    ended = False

    async def connect() -> None:
        nonlocal ended
        with suppress(Timeout):
            await AsyncClient(address, timeout=DEADLINE)
        ended = True

    async def main() -> None:
        with stranger(address):
            client = AsyncClient(address, timeout=0.05)
            with pytest.raises(Timeout, match=r"no hello within 0\.05 s"):
                await client
            with pytest.raises(Closed, match="make a new one"):
                await client
        with stranger(address):
            async with ticking() as ticker, anyio.create_task_group() as group:
                before = ticker.count
                group.start_soon(connect)
                while ticker.count < before + 3:
                    await anyio.sleep(0.001)
                assert not ended
                group.cancel_scope.cancel()

    run(main)


def test_connecting_can_be_cancelled(run: Run, address: str) -> None:
    async def main() -> None:
        with stranger(address):
            with anyio.move_on_after(0.02) as scope:
                await AsyncClient(address, timeout=None)
            assert scope.cancelled_caught

    run(main)


def test_they_are_not_there_before_they_are_awaited(run: Run, address: str) -> None:
    async def main() -> None:
        client, server = AsyncClient(address), AsyncServer(address)
        with pytest.raises(Closed, match="AsyncClient is not there yet: await it"):
            await client.receive()
        with pytest.raises(Closed, match="AsyncServer is not there yet: await it"):
            server.publish(b"")
        assert "not there yet" in repr(client)
        await client.close()
        await server.close()

    run(main)
