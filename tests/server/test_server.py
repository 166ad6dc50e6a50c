# SPDX-License-Identifier: Apache-2.0
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.api import (
    SMALL_LOG,
    Task,
    handler,
    interrupted_in,
    often,
    once_it_sleeps_in,
    read_to_end,
    receive,
    run_script,
    script_process,
    signal_main_thread,
)
from support.base import BEST, DEADLINE, SHARE_LOG, threads, wait_until
from support.servers import Server

from jumiks import (
    Client,
    ClientInfo,
    Closed,
    ConnectionLost,
    Disconnected,
    EndReason,
    Peer,
    ServerClosed,
    Timeout,
)
from jumiks._wire.handshake import FIRST_ID

LARGE = bytes(1 << 16)
"""A few dozen of these are more than any socket holds."""


# ---- clients ----


def test_wait_for_clients_waits_for_as_many(server: Server) -> None:
    server.wait_for_clients(0, 0)
    with Client(server.address):
        server.wait_for_clients(1, DEADLINE)
        with pytest.raises(Timeout, match=r"1 of 2 clients connected within 0\.01 s"):
            server.wait_for_clients(2, 0.01)
        task = Task(lambda: server.wait_for_clients(2))
        task.sleeps_in("wait_for_clients")
        with Client(server.address):
            task.result()


def test_wait_for_clients_does_not_count_those_that_left(address: str) -> None:
    gone = threading.Event()
    with Server(address, on_disconnect=lambda *_: gone.set()) as server:
        with Client(address):
            server.wait_for_clients(1, DEADLINE)
        assert gone.wait(DEADLINE)
        with pytest.raises(Timeout, match="0 of 1"):
            server.wait_for_clients(1, 0.01)


def test_a_client_is_described_by_its_figures(server: Server) -> None:
    before = time.monotonic()
    with Client(server.address) as client:
        server.wait_for_clients(1, DEADLINE)
        server.publish_many([b"12345678", b"", b"1"])
        wait_until(lambda: server.clients()[0].sent_id == FIRST_ID + 2)
        (info,) = server.clients()
        assert info.peer == Peer(os.getpid(), os.geteuid(), os.getegid())
        assert (info.pid, info.uid, info.delivery) == (os.getpid(), os.geteuid(), BEST)
        assert before <= info.since <= time.monotonic()
        assert (info.lag, info.queued, info.messages) == (3, 0, 3)
        assert info.bytes == info.lag_bytes == 24 + 16 + 24
        assert SHARE_LOG or info.kernel_bytes > info.bytes
        assert 0 <= info.packets <= 3
        assert (info.acked_id, info.last_ack, info.reason) == (0, None, None)
        receive(client, 3)
        client.ack(FIRST_ID + 1)
        wait_until(lambda: server.clients()[0].acked_id == FIRST_ID + 1)
        (info,) = server.clients()
        assert (info.lag, info.lag_bytes, info.worst_lag) == (1, 24, 3)
        assert SHARE_LOG or info.kernel_bytes == 0
        assert info.last_ack is not None
        assert info.since <= info.last_ack <= time.monotonic()


def test_clients_are_told_apart_by_their_mode_and_key(server: Server) -> None:
    with Client(server.address), Client(server.address, delivery="classic"):
        server.wait_for_clients(2, DEADLINE)
        assert sorted(info.delivery for info in server.clients()) == ["classic", BEST]
        assert len({info.key for info in server.clients()}) == 2


def test_max_clients_is_a_limit_and_a_place_is_free_again_after_an_end(address: str) -> None:
    with Server(address, max_clients=2) as server:
        with Client(address), ExitStack() as stack:
            stack.enter_context(Client(address))
            with pytest.raises(ConnectionError, match="refused this client") as caught:
                Client(address)
            assert "too many" in str(caught.value) or "max_clients" in str(caught.value)
            assert len(server.clients()) == 2
            stack.close()
            wait_until(lambda: len(server.clients()) == 1)
            Client(address).close()


# ---- stats and other figures ----


def test_stats_count_what_happened(server: Server) -> None:
    assert not server.clients()
    empty = server.stats()
    assert (empty.oldest_id, empty.next_id, empty.published) == (FIRST_ID, FIRST_ID, 0)
    assert (empty.log_used, empty.log_held, empty.clients, empty.delivered) == (0, 0, 0, 0)
    with Client(server.address) as one, Client(server.address) as two:
        server.publish_many([b"12345678", b"1"])
        wait_until(lambda: server.stats().delivered == 4)
        stats = server.stats()
        assert (stats.oldest_id, stats.next_id) == (FIRST_ID, FIRST_ID + 2)
        assert (stats.published, stats.published_bytes) == (2, 9)
        assert (stats.clients, stats.delivered_bytes) == (2, 2 * (24 + 24))
        assert stats.log_used == stats.log_held == 48
        assert 0 < stats.packets <= 4
        assert stats.skipped == stats.waits == 0
        receive(one, 2)
        receive(two, 2)
        one.ack()
        two.ack(FIRST_ID)
        wait_until(lambda: server.stats().log_held == 24)
        assert server.stats().log_used == 48
    wait_until(lambda: server.stats().clients == 0)
    assert server.stats().delivered == 4


def test_stats_tell_a_log_that_forgets(address: str) -> None:
    with Server(address, log_size=SMALL_LOG) as server:
        server.publish_many([bytes(1000)] * 1000)
        stats = server.stats()
        assert stats.log_size == SMALL_LOG
        assert SMALL_LOG - 1016 <= stats.log_used <= SMALL_LOG
        assert stats.next_id == FIRST_ID + 1000
        assert stats.next_id - stats.oldest_id == stats.log_used // 1016
        assert stats.published == 1000


def test_the_size_of_the_log_is_rounded_up_to_a_power_of_two(address: str) -> None:
    with Server(address, log_size=SMALL_LOG + 1) as server:
        assert server.stats().log_size == 2 * SMALL_LOG
        assert server.max_message == SMALL_LOG // 2


def test_a_server_has_an_id_of_its_own_that_its_clients_see(address: str) -> None:
    seen = set()
    for _ in range(2):
        with Server(address) as server, Client(address) as client:
            assert client.server_id == server.server_id
            seen.add(server.server_id)
    assert len(seen) == 2


def test_a_server_says_what_it_is(address: str) -> None:
    with Server(address) as server, Client(address):
        server.wait_for_clients(1, DEADLINE)
        assert server.address == address
        assert repr(server) == f"<jumiks.Server {address} (1 clients)>"
    assert repr(server) == f"<jumiks.Server {address} (closed)>"


class Diary:
    """What the callbacks of a server were told."""

    def __init__(self) -> None:
        self.came: list[ClientInfo] = []
        self.went: list[tuple[ClientInfo, EndReason]] = []
        self.threads: set[str] = set()

    def on_connect(self, info: ClientInfo) -> None:
        self.threads.add(threading.current_thread().name)
        self.came.append(info)

    def on_disconnect(self, info: ClientInfo, reason: EndReason) -> None:
        self.threads.add(threading.current_thread().name)
        self.went.append((info, reason))


# ---- callbacks and disconnect ----


def test_callbacks_tell_which_clients_came_and_went_and_why(address: str) -> None:
    diary = Diary()
    with Server(address, on_connect=diary.on_connect, on_disconnect=diary.on_disconnect) as server:
        with Client(address):
            wait_until(lambda: diary.came)
            (came,) = diary.came
            assert (came.pid, came.reason) == (os.getpid(), None)
            assert came.key == server.clients()[0].key
            assert not diary.went
            server.publish(b"")
            wait_until(lambda: server.clients()[0].sent_id == FIRST_ID)
        wait_until(lambda: diary.went)
        ((went, reason),) = diary.went
        assert (went.key, went.messages, went.lag) == (came.key, 1, 1)
        assert went.reason is reason is EndReason.LEFT
        assert diary.threads == {f"jumiks {address}"}


def test_each_end_is_told_once_when_the_server_closes(address: str) -> None:
    diary = Diary()
    with ExitStack() as stack:
        server = stack.enter_context(
            Server(address, on_connect=diary.on_connect, on_disconnect=diary.on_disconnect)
        )
        for delivery in ("shared", "shared", "classic"):
            stack.enter_context(Client(address, delivery=delivery))
        server.wait_for_clients(3, DEADLINE)
        server.close()
        assert {info.key for info in diary.came} == {info.key for info, _ in diary.went}
        assert [reason for _, reason in diary.went] == 3 * [EndReason.CLOSING]


def test_a_callback_that_raises_is_logged_and_nothing_else_happens(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[object] = []

    def fail(*_: object) -> None:
        calls.append(_)
        raise RuntimeError("the user's own fault")

    with Server(address, on_connect=fail, on_disconnect=fail) as server:
        for turn in range(2):
            with Client(address) as client:
                wait_until(lambda: len(calls) == 2 * turn + 1)  # noqa: B023
                server.publish(b"still here")
                assert client.receive(DEADLINE) == b"still here"
            wait_until(lambda: len(calls) == 2 * turn + 2)  # noqa: B023
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 4
    assert all(record.exc_info is not None for record in errors)
    assert "the user's own fault" in str(errors[0].exc_info)


def test_a_callback_may_publish_and_look_at_the_clients(address: str) -> None:
    seen: list[int] = []

    def greet(info: ClientInfo) -> None:
        seen.append(len(host.clients()))
        host.publish(b"welcome")

    with Server(address, on_connect=greet) as host, Client(address) as client:
        assert client.receive(DEADLINE) == b"welcome"
        assert seen == [1]


@pytest.mark.parametrize("moment", ["connect", "disconnect"])
def test_a_callback_may_close_the_server(address: str, moment: str) -> None:
    closed = threading.Event()

    def close(*_: object) -> None:
        host.close()
        closed.set()

    if moment == "connect":
        host = Server(address, on_connect=close)
        with Client(address) as client, pytest.raises(ServerClosed):
            client.receive(DEADLINE)
    else:
        host = Server(address, on_disconnect=close)
        with Client(address):
            host.wait_for_clients(1, DEADLINE)
    assert closed.wait(DEADLINE)
    with pytest.raises(Closed):
        host.publish(b"")
    # It waits for what the callback began.
    host.close()
    with pytest.raises(ConnectionRefusedError):
        Client(address)


def test_a_disconnected_client_gets_all_that_was_sent_and_then_the_reason(address: str) -> None:
    diary = Diary()
    with (
        Server(address, on_disconnect=diary.on_disconnect) as server,
        Client(address) as out,
        Client(address) as other,
    ):
        server.wait_for_clients(2, DEADLINE)
        server.publish_many([b"one", b"two"])
        wait_until(lambda: all(info.queued == 0 for info in server.clients()))
        first = min(server.clients(), key=lambda info: info.since)
        server.disconnect(first)
        server.disconnect(first)
        server.publish(b"three")
        assert receive(out, 2) == [b"one", b"two"]
        for _ in range(2):
            with pytest.raises(Disconnected, match="the server's user ended this connection"):
                out.receive(DEADLINE)
        assert receive(other, 3) == [b"one", b"two", b"three"]
        wait_until(lambda: diary.went)
        ((info, reason),) = diary.went
        assert (info.key, reason) == (first.key, EndReason.DISCONNECTED)
        server.disconnect(info)


# ---- close ----


def test_close_ends_everything_and_frees_the_address(path: Path) -> None:
    server = Server(path)
    assert path.is_socket()
    running = {name for name in threads() if "jumiks" in name}
    assert running
    server.close()
    assert list(path.parent.iterdir()) == []
    assert not running & threads()
    with Server(path), Client(path):
        pass


def test_a_closed_server_writes_to_no_descriptor_that_is_anothers_by_now(address: str) -> None:
    # Its thread may be through before who closes it has woken it: who does so has the handle.
    server = Server(address)
    control, handle = server._control, server._handle
    assert handle is not None
    server.close()
    others = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(50)]
    try:
        control.close(handle)
        for other in others:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
    finally:
        for other in others:
            os.close(other)


def test_the_context_manager_closes_also_after_an_exception(address: str) -> None:
    with pytest.raises(KeyError), Server(address) as server:
        raise KeyError
    with pytest.raises(Closed):
        server.publish(b"")
    with pytest.raises(ConnectionRefusedError):
        Client(address)


def test_close_twice_is_fine(server: Server) -> None:
    server.close()
    server.close()
    server.close(0)


USES: list[Callable[[Server], object]] = [
    lambda server: server.publish(b""),
    lambda server: server.publish(LARGE),
    lambda server: server.publish_many([b""]),
    lambda server: server.publish_many([]),
    lambda server: server.reserve(1).__enter__(),
    lambda server: server.drain(),
    lambda server: server.wait_for_clients(0),
    lambda server: server.clients(),
    lambda server: server.stats(),
]


@pytest.mark.parametrize("use", USES)
def test_use_after_close_says_so(server: Server, use: Callable[[Server], object]) -> None:
    server.close()
    with pytest.raises(Closed, match="this server is closed"):
        use(server)


def test_disconnect_after_close_says_so(server: Server) -> None:
    with Client(server.address):
        server.wait_for_clients(1, DEADLINE)
        (info,) = server.clients()
        server.close()
        with pytest.raises(Closed, match="this server is closed"):
            server.disconnect(info)


@pytest.mark.parametrize("wrong", ["x", 1, None])
def test_disconnect_takes_a_client_info_alone(server: Server, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"client is a ClientInfo, .*, not {wrong!r}"):
        server.disconnect(wrong)


@pytest.mark.parametrize(
    "wait",
    [
        lambda server: server.publish(b"three"),
        lambda server: server.publish_many([b"three", b"four"]),
        lambda server: server.reserve(5).__enter__(),
        lambda server: server.drain(),
        lambda server: server.wait_for_clients(2),
    ],
    ids=["publish", "publish_many", "reserve", "drain", "wait_for_clients"],
)
@pytest.mark.parametrize("waiters", [1, 3])
def test_close_wakes_all_that_wait(
    blocked: tuple[Server, Client],
    wait: Callable[[Server], object],
    waiters: int,
) -> None:
    server, _ = blocked
    tasks = [Task(lambda: wait(server)) for _ in range(waiters)]
    for task in tasks:
        task.sleeps_in("<lambda>")
    server.close()
    for task in tasks:
        with pytest.raises(Closed, match="this server is closed"):
            task.result()


def test_close_wakes_a_publisher_that_waits_for_a_reserve(server: Server) -> None:
    with pytest.raises(Closed):
        with server.reserve(1):
            task = Task(lambda: server.publish(b""))
            task.sleeps_in("_publish_slowly")
            server.close()
            with pytest.raises(Closed):
                task.result()


@pytest.mark.usefixtures("large_log")
def test_close_from_two_threads_returns_to_both_when_it_is_through(address: str) -> None:
    server = Server(address, share_log=False)
    with Client(address) as client:
        server.publish_many([LARGE] * 20)
        first = Task(lambda: server.close(DEADLINE))
        first.sleeps_in("close")
        second = Task(lambda: server.close(DEADLINE))
        second.sleeps_in("close")
        assert receive(client, 20) == [LARGE] * 20
        first.result()
        second.result()
        with pytest.raises(ServerClosed):
            client.receive(DEADLINE)


@pytest.mark.usefixtures("large_log")
def test_close_gives_clients_time_to_take_what_was_published(address: str) -> None:
    server = Server(address)
    with Client(address) as client:
        ids = server.publish_many([LARGE] * 60)
        task = Task(lambda: server.close(DEADLINE))
        assert [message == LARGE for message in client] == [True] * 60
        assert client.last_id == ids[-1]
        task.result()


@pytest.mark.usefixtures("large_log")
def test_close_without_linger_tells_a_client_what_it_lost(address: str) -> None:
    server = Server(address, share_log=False)
    with Client(address) as client:
        server.wait_for_clients(1, DEADLINE)
        ids = server.publish_many([LARGE] * 100)
        server.close(linger=0)
        messages, end = read_to_end(client)
        assert isinstance(end, ConnectionLost)
        assert "before this client had received everything" in str(end)
        assert 0 < len(messages) < 100
        assert (end.first_lost, end.last_lost) == (FIRST_ID + len(messages), ids[-1])
        assert client.last_id == end.first_lost - 1


@pytest.mark.usefixtures("large_log")
def test_close_waits_no_longer_than_linger_for_a_client_that_does_not_read(address: str) -> None:
    server = Server(address, share_log=False)
    with Client(address):
        server.publish_many([LARGE] * 100)
        before = time.monotonic()
        server.close(linger=0.1)
        assert 0.1 <= time.monotonic() - before < DEADLINE


def test_a_wrong_linger_leaves_the_server_open(server: Server) -> None:
    with pytest.raises(ValueError, match="linger=-1: it must be 0 seconds or more"):
        server.close(-1)
    assert server.publish(b"") == FIRST_ID


def test_a_server_that_is_dropped_unclosed_warns_and_closes(address: str) -> None:
    def drop() -> None:
        Server(address)
        gc.collect()

    with pytest.warns(ResourceWarning, match=f"{address}.* was not closed"):
        drop()
    with pytest.raises(ConnectionRefusedError):
        Client(address)


def test_the_collector_may_come_while_a_lock_is_held_that_a_callback_takes(address: str) -> None:
    """A log handler's, for one: whoever logs holds it, and the server's thread logs too."""
    lock, called = threading.Lock(), threading.Event()

    def callback(_info: ClientInfo, _reason: EndReason) -> None:
        called.set()
        with lock:
            pass

    def drop() -> None:
        server = Server(address, on_disconnect=callback)
        with Client(address):
            server.wait_for_clients(1, DEADLINE)
            with lock:
                del server
                gc.collect()
                assert called.wait(DEADLINE)

    with pytest.warns(ResourceWarning, match=f"{address}.* was not closed"):
        Task(drop).result()
    wait_until(lambda: f"jumiks {address}" not in {each.name for each in threading.enumerate()})


# ---- fork ----


def test_a_forked_child_may_not_use_the_server_and_harms_nothing(path: Path) -> None:
    output = run_script(
        """
import gc, os, sys
import jumiks

path = sys.argv[1]
server = Server(path, on_lag="block", max_lag=5)
client = jumiks.Client(path)
server.wait_for_clients(1, 10)
server.publish(b"before")
child = os.fork()
if child == 0:
    uses = [
        lambda: server.publish(b"child"),
        lambda: server.publish_many([b"child"]),
        lambda: server.publish_frames(b""),
        lambda: server.reserve(5).__enter__(),
        lambda: server.drain(1),
        lambda: server.wait_for_clients(0, 1),
        lambda: server.clients(),
        lambda: server.stats(),
    ]
    for use in uses:
        try:
            use()
        except jumiks.Forked as error:
            assert "make a new server in the child" in str(error), error
        else:
            os.write(2, b"no error")
            os._exit(1)
    server.close()
    client.close()
    del server, client, use, uses
    gc.collect()
    sys.exit(0)  # with all that an interpreter does at its end
assert os.waitpid(child, 0)[1] == 0
assert os.path.exists(path)
server.publish(b"after")
assert [client.receive(10), client.receive(10)] == [b"before", b"after"]
client.ack()
server.drain(10)
with jumiks.Client(path) as late:
    server.publish(b"late")
    assert late.receive(10) == client.receive(10) == b"late"
server.close()
try:
    client.receive(10)
except jumiks.ServerClosed:
    print("closed in good order")
client.close()
assert not os.path.exists(path)
""",
        path,
    )
    assert output == "closed in good order\n"


def test_a_child_that_lives_on_keeps_no_client_from_seeing_the_end(path: Path) -> None:
    output = run_script(
        """
import os, sys
import jumiks

server = Server(sys.argv[1])
client = jumiks.Client(sys.argv[1])
server.wait_for_clients(1, 10)
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    os.close(writing)
    os.read(reading, 1)
    os._exit(0)
server.publish(b"one")
server.close()
print(list(client))
client.close()
os.close(writing)
os.waitpid(child, 0)
""",
        path,
    )
    assert output == "[b'one']\n"


@pytest.mark.skipif(
    "tsan.so" in os.environ.get("LD_PRELOAD", ""),
    reason="in a forked child TSan still counts the parent's threads, and their ids come again",
)
def test_a_forked_child_can_make_a_server_of_its_own(path: Path) -> None:
    output = run_script(
        """
import os, sys
import jumiks

with Server(sys.argv[1]) as server:
    child = os.fork()
    if child == 0:
        with Server(sys.argv[1] + "2") as mine, jumiks.Client(sys.argv[1] + "2") as client:
            mine.publish(b"child's own")
            print(client.receive(10), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert server.publish(b"parent's") == 100000
""",
        path,
    )
    assert output == 'b"child\'s own"\n'


# ---- signals ----


@pytest.mark.parametrize(
    "wait",
    [
        lambda server: server.publish(b"three"),
        lambda server: server.publish(b"three", timeout=60),
        lambda server: server.publish_many([b"three", b"four"]),
        lambda server: server.reserve(5).__enter__(),
        lambda server: server.drain(),
        lambda server: server.drain(timeout=60),
        lambda server: server.wait_for_clients(9),
    ],
)
def test_ctrl_c_ends_a_wait_and_the_server_goes_on(
    blocked: tuple[Server, Client], wait: Callable[[Server], object]
) -> None:
    server, client = blocked
    with pytest.raises(KeyboardInterrupt), interrupted_in("<lambda>"):
        wait(server)
    assert server.stats().next_id == FIRST_ID + 2
    assert receive(client, 2) == [b"one", b"two"]
    client.ack()
    # Another thread can publish, so nobody kept the turn.
    assert Task(lambda: server.publish(b"three", DEADLINE)).result() == FIRST_ID + 2
    assert client.receive(DEADLINE) == b"three"


@pytest.mark.usefixtures("large_log")
def test_ctrl_c_in_close_gives_up_lingering_and_nothing_else(address: str) -> None:
    server = Server(address, share_log=False)
    with Client(address) as client:
        server.publish_many([LARGE] * 100)
        before = time.monotonic()
        with pytest.raises(KeyboardInterrupt), interrupted_in("close"):
            server.close(linger=60)
        assert time.monotonic() - before < DEADLINE
        with pytest.raises(Closed):
            server.publish(b"")
        _, end = read_to_end(client)
        assert isinstance(end, ConnectionLost)
        assert end.last_lost == FIRST_ID + 99
    with Server(address):
        pass


@pytest.mark.parametrize(
    "wait",
    [lambda server: server.publish(b"three", DEADLINE), lambda server: server.drain(DEADLINE)],
)
def test_a_signal_whose_handler_returns_does_not_end_a_wait(
    blocked: tuple[Server, Client], wait: Callable[[Server], object]
) -> None:
    server, client = blocked
    handled: list[int] = []

    def signal_often_and_then_ack() -> None:
        for count in range(1, 6):
            signal_main_thread(signal.SIGUSR1)
            wait_until(lambda: len(handled) == count)  # noqa: B023
        receive(client, 2)
        client.ack()

    with (
        handler(signal.SIGUSR1, lambda: handled.append(1)),
        once_it_sleeps_in("<lambda>", signal_often_and_then_ack),
    ):
        wait(server)
    assert len(handled) == 5


def test_signals_do_not_put_a_deadline_off(blocked: tuple[Server, Client]) -> None:
    server, _ = blocked
    waits: list[Callable[[float], object]]
    waits = [server.drain, lambda limit: server.publish(b"three", limit)]
    with (
        handler(signal.SIGUSR1, lambda: None),
        often(lambda: signal_main_thread(signal.SIGUSR1), 0.01),
    ):
        before = time.monotonic()
        for wait in waits:
            with pytest.raises(Timeout):
                wait(0.1)
        assert 0.2 <= time.monotonic() - before < DEADLINE


def test_a_signal_handler_may_close_the_server_that_waits(blocked: tuple[Server, Client]) -> None:
    server, _ = blocked
    with (
        handler(signal.SIGUSR1, lambda: server.close(0)),
        once_it_sleeps_in("_publish_slowly", lambda: signal_main_thread(signal.SIGUSR1)),
        pytest.raises(Closed),
    ):
        server.publish(b"three")


def test_ctrl_c_ends_a_program_whose_publish_waits(address: str) -> None:
    script = """
import sys
import jumiks

with (
    Server(sys.argv[1], max_lag=1, on_lag="block") as server,
    jumiks.Client(sys.argv[1]) as client,
):
    server.publish(b"")
    print("ready", flush=True)
    server.publish(b"")
"""
    with script_process(script, address) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        state = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "S")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == -signal.SIGINT
        errors = process.stderr.read()
    assert errors.splitlines()[-1].startswith("KeyboardInterrupt")
    assert "was not closed" not in errors
