# SPDX-License-Identifier: Apache-2.0
"""A client's descriptor, as event loops use it: readable whenever a receive would not wait."""

import asyncio
import ctypes.util
import importlib.util
import os
import select
import selectors
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.api import (
    SOON,
    Task,
    break_connection,
    descriptor_of,
    run_script,
    script_process,
)
from support.base import DEADLINE, DELIVERIES, descriptors, needs, wait_until
from support.servers import Server

import jumiks
from jumiks import Client, Closed, ConnectionEnded, Delivery, Gap, MessagesLost, Timeout

if importlib.util.find_spec("numpy") is not None:
    importlib.import_module("numpy")  # here, as it starts threads

pytestmark = pytest.mark.parametrize("delivery", DELIVERIES)

GLIB_IN = 1
"""G_IO_IN."""

Ready = Callable[[float], bool]
"""Waits up to that many seconds, and tells whether the descriptor was readable."""


def by_select(fd: int) -> Iterator[Ready]:
    yield lambda seconds: bool(select.select([fd], [], [], seconds)[0])


def by_poll(fd: int) -> Iterator[Ready]:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    yield lambda seconds: bool(poll.poll(seconds * 1000))


def by_epoll(fd: int) -> Iterator[Ready]:
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN)
        yield lambda seconds: bool(epoll.poll(seconds))


def by_selector(fd: int) -> Iterator[Ready]:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        yield lambda seconds: bool(selector.select(seconds))


def by_two_epolls(fd: int) -> Iterator[Ready]:
    # A loop within another's.
    with select.epoll() as inner, select.epoll() as outer:
        inner.register(fd, select.EPOLLIN)
        outer.register(inner.fileno(), select.EPOLLIN)
        yield lambda seconds: bool(outer.poll(seconds))


WAYS = (by_select, by_poll, by_epoll, by_selector, by_two_epolls)


def is_readable(client: Client[Any]) -> bool:
    return bool(select.select([client], [], [], 0)[0])


def has_come(client: Client[Any]) -> bool:
    return bool(select.select([client], [], [], DEADLINE)[0])


def settle(client: Client[Any]) -> None:
    """Take the wake-ups that come behind messages that were taken already."""

    def is_quiet() -> bool:
        with pytest.raises(Timeout):
            client.receive(0)
        return not is_readable(client)

    wait_until(is_quiet)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__[3:])
def test_it_is_readable_until_the_last_message_is_taken(
    address: str, delivery: Delivery, way: Callable[[int], Iterator[Ready]]
) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        for ready in way(client.fileno()):
            assert not ready(0)
            for number in range(20):
                server.publish(b"%d" % number)
                assert ready(DEADLINE)
                assert client.receive(0) == b"%d" % number
            server.publish_many([b"a", b"b", b"c"])
            for message in (b"a", b"b", b"c"):
                assert ready(DEADLINE)
                assert client.receive(0) == message
            settle(client)
            assert not ready(0)


def take_one(client: Client) -> list[bytes]:
    return [client.receive(0)]


def take_many(client: Client) -> list[bytes]:
    return list(client.receive_many(0))


def take_views(client: Client) -> list[bytes]:
    return [bytes(view) for view in client.receive_many(0).views()]


def take_by_loop(client: Client) -> list[bytes]:
    for message in client:
        return [message]
    raise AssertionError


def take_array(client: Client) -> list[bytes]:
    return [item.tobytes() for item in client.receive_array("V4", 0)]


TAKERS = (
    *((take, "after") for take in (take_one, take_many, take_views, take_by_loop)),
    pytest.param(take_array, "after", marks=needs("numpy")),
    *((take, ack) for take in (take_one, take_many) for ack in ("before", "manual")),
)


@pytest.mark.parametrize(("take", "ack"), TAKERS)
def test_it_is_exact_however_messages_are_taken(
    address: str, delivery: Delivery, take: Callable[[Client], list[bytes]], ack: Any
) -> None:
    with Server(address) as server, Client(address, delivery=delivery, ack=ack) as client:
        client.fileno()
        published = [b"%04d" % number for number in range(40)]
        taken: list[bytes] = []
        for start in range(0, 40, 4):
            server.publish_many(published[start : start + 4])
            while len(taken) < start + 4:
                assert has_come(client)
                taken += take(client)
        assert taken == published
        if ack == "manual":
            client.ack()
        settle(client)
        # Once more, with nothing else under way: no look in between makes it right.
        server.publish(b"last")
        assert has_come(client)
        assert take(client) == [b"last"]
        if client.delivery == "shared":
            settle(client)  # a wake-up may come late
        assert not is_readable(client)


def test_its_first_use_may_come_in_the_middle(address: str, delivery: Delivery) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish_many([b"one", b"two", b"three"])
        loop = iter(client)
        assert next(loop) == b"one"
        assert has_come(client)
        assert next(loop) == b"two"
        assert has_come(client)
        assert next(loop) == b"three"
        settle(client)
        server.publish(b"four")
        assert has_come(client)
        assert next(loop) == b"four"


def test_a_batch_takes_the_rest_of_what_was_taken_singly(address: str, delivery: Delivery) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        client.fileno()
        server.publish_many([b"one", b"two", b"three"])
        assert has_come(client)
        assert client.receive(0) == b"one"
        taken: list[bytes] = []
        while len(taken) < 2:  # packets may come one by one
            assert has_come(client)
            taken += client.receive_many(0)
        assert taken == [b"two", b"three"]
        settle(client)


def test_a_loop_that_is_edge_triggered_gets_all(address: str, delivery: Delivery) -> None:
    with (
        Server(address) as server,
        Client(address, delivery=delivery) as client,
        select.epoll() as epoll,
    ):
        epoll.register(client, select.EPOLLIN | select.EPOLLET)
        for number in range(100):
            server.publish_many([b"%d" % number] * (number % 3 + 1))
            taken: list[bytes] = []
            while len(taken) < number % 3 + 1:
                assert epoll.poll(DEADLINE)
                while True:
                    try:
                        taken.append(client.receive(0))
                    except Timeout:
                        break
            assert taken == [b"%d" % number] * (number % 3 + 1)


def test_a_main_loop_of_glib_gets_all(address: str, delivery: Delivery) -> None:
    # As a program with GTK has it, by GLib's own functions.
    name = ctypes.util.find_library("glib-2.0") or "libglib-2.0.so.0"
    try:
        glib = ctypes.CDLL(name)
    except OSError:
        pytest.skip("GLib is not installed")
    for function in ("g_main_context_new", "g_main_loop_new", "g_unix_fd_source_new"):
        getattr(glib, function).restype = ctypes.c_void_p
    context = ctypes.c_void_p(glib.g_main_context_new())
    loop = ctypes.c_void_p(glib.g_main_loop_new(context, 0))
    taken: list[bytes] = []
    with Server(address) as server, Client(address, delivery=delivery) as client:

        def readable(_descriptor: int, _condition: int, _data: object) -> int:
            with suppress(Timeout):
                taken.append(client.receive(0))  # one only: it is level-triggered
            if len(taken) == 300:
                glib.g_main_loop_quit(loop)
            return 1  # again

        source = ctypes.c_void_p(glib.g_unix_fd_source_new(client.fileno(), GLIB_IN))
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
        callback = kind(readable)
        glib.g_source_set_callback(source, callback, None, None)
        glib.g_source_attach(source, context)
        running = Task(lambda: glib.g_main_loop_run(loop))
        for number in range(100):
            server.publish_many([b"%d" % number] * 3)
        try:
            running.result(DEADLINE)
        finally:
            glib.g_main_loop_quit(loop)
            running.result(DEADLINE)
            glib.g_source_destroy(source)
            glib.g_source_unref(source)
            glib.g_main_loop_unref(loop)
            glib.g_main_context_unref(context)
    assert taken == [b"%d" % number for number in range(100) for _ in range(3)]


def test_a_reader_of_asyncio_gets_all(address: str, delivery: Delivery) -> None:
    count = 200
    with Server(address) as server, Client(address, delivery=delivery) as client:

        async def main() -> list[bytes]:
            taken: list[bytes] = []
            loop, done = asyncio.get_running_loop(), asyncio.Event()

            def on_readable() -> None:
                try:
                    taken.append(client.receive(0))
                except Timeout:
                    return
                if len(taken) == count:
                    done.set()

            loop.add_reader(client, on_readable)
            for number in range(count):
                server.publish(b"%d" % number)
                if number % 7 == 0:
                    await asyncio.sleep(0)
            await asyncio.wait_for(done.wait(), DEADLINE)
            loop.remove_reader(client)
            return taken

        assert asyncio.run(main()) == [b"%d" % number for number in range(count)]


@pytest.mark.parametrize("on_lag", ["block", "skip"])
@pytest.mark.parametrize("take", [take_one, take_many])
def test_a_user_who_takes_once_per_event_never_holds_up_the_server(
    address: str, delivery: Delivery, on_lag: Any, take: Callable[[Client], list[bytes]]
) -> None:
    # What was handed out is acked by the next receive, so there has to be one.
    with (
        Server(address, max_lag=2, on_lag=on_lag) as server,
        Client(address, delivery=delivery) as client,
    ):
        published, last, events = 0, b"", 0
        while last != b"49":
            while published < 50:
                try:
                    server.publish(b"%d" % published, timeout=0)
                except Timeout:
                    break
                published += 1
            assert has_come(client), (published, last)
            events += 1
            try:
                last = take(client)[-1]
            except Timeout:
                continue
        assert events < 2000


def test_a_gap_is_something_to_receive(address: str, delivery: Delivery) -> None:
    with (
        Server(address, max_lag=1, on_lag="skip", patience=0) as server,
        Client(address, delivery=delivery, on_gap="raise") as client,
    ):
        client.fileno()
        for number in range(20):
            server.publish(b"%d" % number)
        lost = 0
        last = b""
        while last != b"19":
            assert has_come(client)
            try:
                last = client.receive(0)
            except MessagesLost as error:
                lost += error.gap.count or 0
                assert has_come(client)  # what is behind the gap
            except Timeout:
                continue
        assert lost == client.missed > 0
        settle(client)


def test_a_gap_at_the_start_alone_is_told_and_then_it_is_quiet(
    address: str, delivery: Delivery
) -> None:
    with Server(address, log_size=1 << 16, keep=4) as server:
        for number in range(2000):
            server.publish(b"%064d" % number)
        with Client(address, delivery=delivery, start=100_000, on_gap="yield") as client:
            assert has_come(client)
            gap = client.receive(0)
            assert isinstance(gap, Gap)
            assert has_come(client)
            client.receive(0)
            assert (gap.first, gap.last) == (100_000, client.last_id - 1)
            while client.last_id < server.stats().next_id - 1:
                assert has_come(client)
                with suppress(Timeout):
                    client.receive(0)
            settle(client)


def test_what_waits_behind_a_gap_keeps_it_readable(address: str, delivery: Delivery) -> None:
    options: dict[str, Any] = {"delivery": delivery, "on_gap": "yield"}
    with (
        Server(address, on_lag="skip", max_lag=4, patience=0) as server,
        Client(address, **options) as client,
    ):
        server.wait_for_clients(1, DEADLINE)
        client.fileno()
        for number in range(20):
            server.publish(b"%d" % number)
        while not isinstance(client.receive(DEADLINE), Gap):
            pass
        assert select.select([client], [], [], 0)[0]
        assert client.receive(0) == b"19"


@pytest.mark.parametrize("how", ["closes", "breaks"])
def test_an_end_is_readable_and_stays_so(address: str, delivery: Delivery, how: str) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        assert not is_readable(client)
        server.publish(b"last")
        assert has_come(client)
        if how == "closes":
            server.close()
        else:
            break_connection(client)
        assert client.receive(0) == b"last"
        assert has_come(client)
        for _ in range(2):
            with pytest.raises(ConnectionEnded):
                client.receive(0)
            assert is_readable(client)


KILLED = """
import sys
import jumiks

server = Server(sys.argv[1])
server.wait_for_clients(1)
if __import__("os").fork() == 0:
    # It holds the server's sockets, so no stream ends.
    sys.stdin.read()
    __import__("os")._exit(0)
print("ready", flush=True)
__import__("signal").pause()
"""


def test_a_server_that_died_is_readable_though_its_child_has_the_socket(
    address: str, delivery: Delivery
) -> None:
    with script_process(KILLED, address) as process:
        client = Client(address, delivery=delivery, wait=DEADLINE)
        with client:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert not is_readable(client)
            process.kill()
            ended = None
            while ended is None:
                assert has_come(client)
                try:
                    client.receive(0)
                except Timeout:
                    continue
                except jumiks.ConnectionLost as error:
                    ended = error
            process.stdin.close() if process.stdin else None


def test_its_number_stays_while_the_client_comes_back(address: str, delivery: Delivery) -> None:
    server = Server(address)
    with (
        Client(address, delivery=delivery, reconnect=SOON) as client,
        select.epoll() as epoll,
    ):
        epoll.register(client, select.EPOLLIN)
        number, events = client.fileno(), 0
        for turn in range(3):
            # On the way back it has all that is published from then on.
            server.publish(b"%d" % turn)
            taken = b""
            while taken != b"%d" % turn:
                assert epoll.poll(DEADLINE)
                events += 1
                try:
                    taken = client.receive(0)
                except Timeout:
                    continue
            server.close()
            server = Server(address)
        server.close()
        assert client.fileno() == number
        assert events < 500


def test_its_first_use_may_come_while_the_server_is_away(address: str, delivery: Delivery) -> None:
    with Server(address) as server:
        client = Client(address, delivery=delivery, reconnect=SOON)
        server.close()
        with suppress(Timeout):
            client.receive(0.01)
    with client:
        assert client._stream.way is not None
        client.fileno()
        with Server(address) as server:
            taken = b""
            while taken != b"there":
                assert has_come(client)  # time for the next try, and in the end a message
                with suppress(Timeout):
                    taken = client.receive(0)
                if server.clients() and not server.stats().published:
                    server.publish(b"there")


def test_a_client_whose_server_is_away_is_not_readable_all_the_time(
    address: str, delivery: Delivery
) -> None:
    backoff = jumiks.Backoff(first=30, most=30, jitter=0)
    with Server(address) as server:
        client = Client(address, delivery=delivery, reconnect=backoff)
        with client:
            client.fileno()
            server.close()
            for _ in range(20):
                if not select.select([client], [], [], 0)[0]:
                    break
                with pytest.raises(Timeout):
                    client.receive(0)
            assert not select.select([client], [], [], 0.05)[0]


def polls(thread: threading.Thread) -> bool:
    """Whether a thread is in poll(2): before, the closed descriptor's number may be another's."""
    call = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0]
    return call in {"7", "73"}  # poll on x86_64, ppoll on aarch64


def test_closing_wakes_who_waits_and_gives_all_descriptors_back(
    address: str, delivery: Delivery
) -> None:
    with Server(address) as server:
        before = len(descriptors())
        client = Client(address, delivery=delivery)
        poll = select.poll()
        poll.register(client, select.POLLIN)
        task = Task(lambda: poll.poll(DEADLINE * 1000))
        wait_until(lambda: polls(task.thread))
        client.close()
        assert task.result()
        with pytest.raises(Closed):
            client.fileno()
        wait_until(lambda: not server.clients())
        wait_until(lambda: len(descriptors()) == before)


FORKS = """
import os, select, sys
import jumiks

with Server(sys.argv[1]) as server:
    client = jumiks.Client(sys.argv[1], delivery=sys.argv[2])
    client.fileno()
    child = os.fork()
    if child == 0:
        for call in (client.fileno, lambda: client.receive(0)):
            try:
                call()
            except jumiks.Forked:
                pass
            else:
                os._exit(1)
        client.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not select.select([client], [], [], 0)[0]  # the child has woken nobody
    server.publish(b"one")
    assert select.select([client], [], [], 30)[0]
    assert client.receive(0) == b"one"
    client.close()
"""


def test_a_forked_child_leaves_the_parents_alone(address: str, delivery: Delivery) -> None:
    assert run_script(FORKS, address, delivery) == ""


def test_it_is_not_the_connections_own_descriptor(address: str, delivery: Delivery) -> None:
    # A program that reads it, or shuts it down, does no harm.
    with Server(address) as server, Client(address, delivery=delivery) as client:
        assert client.fileno() == client.fileno() != descriptor_of(client)
        assert "eventpoll" in os.readlink(f"/proc/self/fd/{client.fileno()}")
        assert "socket" in os.readlink(f"/proc/self/fd/{descriptor_of(client)}")
        server.publish(b"one")
        assert client.receive(DEADLINE) == b"one"


def test_a_client_that_is_never_polled_makes_no_such_descriptor(
    address: str, delivery: Delivery
) -> None:
    def epolls() -> int:
        return sum("eventpoll" in each for each in descriptors())

    with Server(address) as server:
        before = epolls()
        with Client(address, delivery=delivery) as client:
            server.publish(b"one")
            assert client.receive(DEADLINE) == b"one"
            assert epolls() == before
            client.fileno()
            assert epolls() == before + 1


def test_the_servers_end_is_read_behind_all_messages(address: str, delivery: Delivery) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        client.fileno()
        server.publish_many([b"%d" % number for number in range(10)])
        server.close()
        taken = []
        while True:
            assert has_come(client)
            try:
                taken.append(client.receive(0))
            except ConnectionEnded:
                break
            except Timeout:
                continue
        assert len(taken) == 10
