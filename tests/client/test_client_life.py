# SPDX-License-Identifier: Apache-2.0
"""Clients in time: timeouts, threads, closing, the server's end, fork and signals."""

import _thread
import gc
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support import reference
from support.api import (
    Task,
    descriptor_of,
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
from support.base import BEST, DEADLINE, wait_until
from support.receiving import FIVE, all_arrived, both_ways
from support.servers import Server

from jumiks import (
    Busy,
    Client,
    Closed,
    ConnectionLost,
    Delivery,
    Disconnected,
    Gap,
    ServerClosed,
    Timeout,
)
from jumiks._wire.handshake import FIRST_ID

# ---- timeouts ----


@pytest.mark.parametrize("call", [Client.receive, Client.receive_many])
@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_receive_times_out_when_it_should(
    server: Server, call: Callable[[Client, float], object], timeout: float
) -> None:
    with Client(server.address) as client:
        before = time.monotonic()
        with pytest.raises(Timeout, match=f"no message within {timeout:g} s"):
            call(client, timeout)
        assert timeout <= time.monotonic() - before < DEADLINE
        server.publish(b"late")
        assert client.receive(DEADLINE) == b"late"


@both_ways
def test_a_timeout_of_zero_takes_what_is_there(server: Server, delivery: Delivery) -> None:
    with Client(server.address, delivery=delivery) as client:
        server.publish_many(FIVE)
        all_arrived(server, FIRST_ID + 4)
        assert [client.receive(0) for _ in range(5)] == FIVE
        with pytest.raises(Timeout):
            client.receive(0)


def test_a_timeout_may_be_longer_than_a_clock_can_count(server: Server) -> None:
    with Client(server.address) as client:
        server.publish(b"one")
        assert client.receive(float("inf")) == b"one"
        task = Task(lambda: client.receive_many(1e300))
        task.sleeps_in("receive_many")
        server.publish(b"two")
        assert list(task.result()) == [b"two"]


def test_so_may_the_time_to_connect(server: Server) -> None:
    with Client(server.address, timeout=float("inf")) as client:
        assert client.delivery == BEST


# ---- threads ----


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.receive(0),
        lambda client: client.receive_many(),
        lambda client: next(iter(client)),
        lambda client: client.run(print),
        lambda client: client.ack(),
    ],
    ids=["receive", "receive_many", "iter", "run", "ack"],
)
def test_a_second_thread_in_a_receive_is_told_that_the_client_is_busy(
    server: Server, call: Callable[[Client], object]
) -> None:
    with Client(server.address) as client:
        server.publish(b"one")
        client.receive(DEADLINE)
        task = Task(client.receive)
        task.sleeps_in("receive")
        with pytest.raises(Busy, match="give each thread a client of its own"):
            call(client)
        server.publish(b"two")
        assert task.result() == b"two"
        # And not for longer than that.
        server.publish(b"three")
        assert client.receive(DEADLINE) == b"three"


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("call", [Client.receive, Client.receive_many])
@both_ways
def test_close_from_another_thread_wakes_a_receive(
    server: Server,
    call: Callable[[Client, float | None], object],
    timeout: float | None,
    delivery: Delivery,
) -> None:
    client = Client(server.address, delivery=delivery)
    task = Task(lambda: call(client, timeout))
    task.sleeps_in("<lambda>")
    client.close()
    with pytest.raises(Closed, match="this client is closed"):
        task.result()


def test_close_from_another_thread_ends_a_loop(server: Server) -> None:
    client = Client(server.address)
    server.publish_many(FIVE)
    task = Task(lambda: list(client))
    server.drain(DEADLINE)
    client.close()
    assert task.result() == FIVE


# ---- close ----


def test_use_after_close_says_so(server: Server) -> None:
    client = Client(server.address)
    server.publish_many(FIVE)
    all_arrived(server, FIRST_ID + 4)
    client.receive(DEADLINE)
    client.close()
    client.close()
    uses: list[Callable[[], object]] = [
        client.receive,
        client.receive_many,
        lambda: client.receive(0),
        lambda: client.receive_many(0),
        client.ack,
        lambda: client.lag,
        client.fileno,
    ]
    for use in uses:
        with pytest.raises(Closed, match="this client is closed"):
            use()
    assert client.last_id == FIRST_ID
    assert client.server_id == server.server_id


def test_a_loop_over_a_closed_client_is_over_at_once(server: Server) -> None:
    with Client(server.address) as client:
        server.publish_many(FIVE)
        all_arrived(server, FIRST_ID + 4)
        client.receive(DEADLINE)
    assert list(client) == []


@both_ways
def test_closing_within_a_loop_ends_it(server: Server, delivery: Delivery) -> None:
    client = Client(server.address, delivery=delivery)
    server.publish_many(FIVE)
    all_arrived(server, FIRST_ID + 4)
    got = []
    for message in client:
        got.append(message)
        if message == b"one":
            client.close()
    assert got == FIVE[:2]


def test_the_context_manager_closes_also_after_an_exception(server: Server) -> None:
    with pytest.raises(KeyError), Client(server.address) as client:
        raise KeyError
    with pytest.raises(Closed):
        client.receive(0)
    wait_until(lambda: not server.clients())


def test_a_closed_client_gives_its_descriptor_back_while_it_lives(server: Server) -> None:
    client = Client(server.address)
    descriptor = descriptor_of(client)
    place = os.readlink(f"/proc/self/fd/{descriptor}")
    client.close()

    def is_closed() -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}") != place
        except FileNotFoundError:
            return True

    wait_until(is_closed)  # a thread of its own may close it
    assert client.last_id == 0


def test_a_client_that_is_dropped_unclosed_warns_and_closes(server: Server) -> None:
    def drop() -> None:
        Client(server.address)
        gc.collect()

    with pytest.warns(ResourceWarning, match=f"{server.address}.* was not closed"):
        drop()
    wait_until(lambda: not server.clients())


# ---- the server's end ----


@pytest.mark.usefixtures("large_log")
def test_a_server_that_closes_in_good_order_ends_a_loop_after_everything(address: str) -> None:
    messages = [b"%d" % number for number in range(50_000)]
    server = Server(address)
    with Client(address) as client:
        server.publish_many(messages)
        task = Task(lambda: server.close(DEADLINE))
        assert list(client) == messages
        task.result()


def test_a_plain_connection_has_everything_too_when_the_server_closes(address: str) -> None:
    messages = [b"%d" % number for number in range(5000)]
    server = Server(address)
    with Client(address, delivery="classic") as client:
        server.publish_many(messages)
        task = Task(lambda: server.close(DEADLINE))
        got, end = read_to_end(client)
        task.result()
        assert got == messages
        assert isinstance(end, ConnectionLost)
        assert "a plain 1.0 connection gives no reason" in str(end)


def test_after_the_end_every_receive_says_so_again(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish(b"last")
        server.close()
        assert client.receive(DEADLINE) == b"last"
        for _ in range(3):
            with pytest.raises(ServerClosed, match="all it published was received"):
                client.receive()
            with pytest.raises(ServerClosed):
                client.receive_many(0)
        assert list(client) == []
        client.run(print)
        client.ack()
        assert client.last_id == FIRST_ID


KILLED = """
import sys, time
import jumiks

count, size = int(sys.argv[2]), int(sys.argv[3])
server = Server(sys.argv[1], log_size=1 << 26)
server.wait_for_clients(1, 10)
server.publish_many([b"%08d" % number + bytes(size) for number in range(count)])
deadline = time.monotonic() + 10
sent = 0
while sent != count:
    sent, before = server.clients()[0].sent_id - 99999, sent
    if before == sent > 0 or time.monotonic() > deadline:
        break  # the socket is full
print(sent, flush=True)
sys.stdin.read()
"""


@both_ways
@pytest.mark.parametrize(("count", "size"), [(1000, 0), (20_000, 1000)])
def test_of_a_killed_server_all_that_reached_the_socket_is_read(
    address: str, delivery: Delivery, count: int, size: int
) -> None:
    with script_process(KILLED, address, count, size) as process:
        client = connect_to(address, delivery)
        with client:
            assert process.stdout is not None
            sent = int(process.stdout.readline())
            process.kill()
            process.wait(DEADLINE)
            got, end = read_to_end(client)
            assert type(end) is ConnectionLost
            assert ("the server died" in str(end)) == (delivery == "shared")
            assert 0 < sent <= len(got) <= count
            assert got == [b"%08d" % number + bytes(size) for number in range(len(got))]
            assert client.last_id == FIRST_ID + len(got) - 1


def connect_to(address: str, delivery: Delivery = "shared") -> Client:
    """Connect to a server that is being started."""
    found: list[Client] = []

    def connected() -> bool:
        try:
            found.append(Client(address, delivery=delivery))
        except ConnectionRefusedError:
            return False
        return True

    wait_until(connected)
    return found[0]


def test_a_client_whose_end_was_handled_is_gone_without_the_collector(server: Server) -> None:
    client = Client(server.address)
    server.disconnect(server.clients()[0])
    there = weakref.ref(client)
    gc.disable()
    try:
        with client, suppress(Disconnected):
            client.receive(DEADLINE)
        del client
        assert there() is None
    finally:
        gc.enable()


def test_a_killed_server_wakes_a_loop_that_waits_and_the_loop_says_so(address: str) -> None:
    with script_process(KILLED, address, 1, 0) as process, connect_to(address) as client:
        got: list[bytes] = []
        task = Task(lambda: client.run(got.append))
        wait_until(lambda: got == [b"00000000"])
        process.kill()
        with pytest.raises(ConnectionLost, match="without a goodbye"):
            task.result()


def test_a_message_of_which_a_killed_server_sent_a_part_is_not_handed_out(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("\0" + address[1:])
        listener.listen()
        task = Task(lambda: Client(address))
        connection, _ = listener.accept()
        with connection:
            hello = reference.ServerHello((1, 0, 0), reference.FRAMES, 1, FIRST_ID, FIRST_ID)
            connection.send(reference.encode_server_hello(hello._replace(max_packet=4096)))
            connection.recv(100)
            welcome = reference.Welcome(0, reference.FRAMES, FIRST_ID)
            connection.send(reference.encode_welcome(welcome))
            client = task.result()
            connection.send(reference.encode_frame(reference.Frame(FIRST_ID, b"whole")))
            message = reference.Message(FIRST_ID + 1, bytes(10_000))
            connection.send(next(reference.fragment_packets(message, 4096)))
    with client:
        got, end = read_to_end(client)
        assert got == [b"whole"]
        assert type(end) is ConnectionLost
        assert client.last_id == FIRST_ID


# ---- fork ----


def test_a_forked_child_may_not_use_the_client_and_harms_nothing(path: Path) -> None:
    output = run_script(
        """
import gc, os, sys
import jumiks

with Server(sys.argv[1]) as server, jumiks.Client(sys.argv[1]) as client:
    server.publish(b"one")
    one = client.receive(10)
    child = os.fork()
    if child == 0:
        uses = [
            lambda: client.receive(1),
            lambda: client.receive_many(1),
            lambda: next(iter(client)),
            lambda: client.run(print),
            lambda: client.ack(),
            lambda: client.lag,
            lambda: client.fileno(),
        ]
        for number, use in enumerate(uses):
            try:
                use()
            except jumiks.Forked as error:
                assert "make a new client in the child" in str(error), error
            else:
                os.write(2, b"no error from use %d" % number)
                os._exit(1)
        client.close()
        del client, use, uses
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    server.publish(b"two")
    print(one, client.receive(10))
    client.ack()
    server.drain(10)
""",
        path,
    )
    assert output == "b'one' b'two'\n"


def test_a_forked_child_does_not_get_the_rest_of_its_parents_batch(address: str) -> None:
    output = run_script(
        """
import os, sys
import jumiks

with Server(sys.argv[1]) as server, jumiks.Client(sys.argv[1]) as client:
    server.publish_many([b"one", b"two", b"three"])
    client.receive(10)
    child = os.fork()
    if child == 0:
        for use in (client.receive, client.receive_many, iter(client).__next__):
            try:
                print(use(), flush=True)
            except jumiks.Forked:
                print("forked", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
""",
        address,
    )
    assert output == "forked\n" * 3


def test_a_server_sees_a_client_leave_though_a_forked_child_lives_on(address: str) -> None:
    output = run_script(
        """
import os, sys
import jumiks

server = Server(sys.argv[1], on_disconnect=lambda info, reason: print(reason.name))
client = jumiks.Client(sys.argv[1])
server.wait_for_clients(1, 10)
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    os.close(writing)
    os.read(reading, 1)
    os._exit(0)
client.close()
server.publish(b"")
server.drain(10)
server.close()
os.close(writing)
os.waitpid(child, 0)
""",
        address,
    )
    assert output == "LEFT\n"


def test_a_forked_child_can_make_a_client_of_its_own(address: str) -> None:
    output = run_script(
        """
import os, sys
import jumiks

with Server(sys.argv[1]) as server, jumiks.Client(sys.argv[1]) as client:
    child = os.fork()
    if child == 0:
        with jumiks.Client(sys.argv[1]) as mine:
            print(mine.receive(10), flush=True)
            mine.ack()
        os._exit(0)
    server.wait_for_clients(2, 10)
    server.publish(b"for both")
    assert client.receive(10) == b"for both"
    assert os.waitpid(child, 0)[1] == 0
""",
        address,
    )
    assert output == "b'for both'\n"


# ---- signals ----


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.receive(),
        lambda client: client.receive(60),
        lambda client: client.receive_many(),
        lambda client: next(iter(client)),
        lambda client: client.run(print),
    ],
    ids=["receive", "receive with timeout", "receive_many", "iter", "run"],
)
@both_ways
def test_ctrl_c_ends_a_receive_and_nothing_is_lost(
    server: Server, call: Callable[[Client], object], delivery: Delivery
) -> None:
    with Client(server.address, delivery=delivery) as client:
        server.publish(b"zero")
        assert client.receive(DEADLINE) == b"zero"
        with pytest.raises(KeyboardInterrupt), interrupted_in("<lambda>"):
            call(client)
        server.publish_many(FIVE)
        assert receive(client, 5) == FIVE
        assert client.last_id == FIRST_ID + 5


@both_ways
def test_ctrl_c_amid_a_stream_loses_nothing_that_last_id_does_not_count(
    address: str, delivery: Delivery
) -> None:
    total, interrupts, armed = 20_000, 0, threading.Event()
    gaps: list[Gap] = []

    def stop() -> None:
        if armed.is_set():
            armed.clear()
            raise InterruptedError

    def publish() -> None:
        for number in range(total):
            source.publish(b"%d" % number, DEADLINE)

    with (
        Server(address, max_lag=50, on_lag="block") as source,
        Client(address, delivery=delivery, on_gap=gaps.append) as client,
        handler(signal.SIGUSR1, stop),
    ):
        publisher = Task(publish)
        with often(lambda: signal_main_thread(signal.SIGUSR1), 0.002):
            while client.last_id < FIRST_ID + total - 1:
                expected = client.last_id + 1 if client.last_id else FIRST_ID
                try:
                    armed.set()
                    batch = client.receive_many(5.0)
                    armed.clear()
                except InterruptedError:
                    interrupts += 1
                else:
                    assert batch.first_id == expected
        publisher.result()
        assert gaps == []
    assert interrupts > 0


def test_a_signal_whose_handler_returns_does_not_end_a_receive(server: Server) -> None:
    handled: list[int] = []

    def signal_often_and_then_publish() -> None:
        for count in range(1, 6):
            signal_main_thread(signal.SIGUSR1)
            wait_until(lambda: len(handled) == count)  # noqa: B023
        server.publish(b"at last")

    with handler(signal.SIGUSR1, lambda: handled.append(1)), Client(server.address) as client:
        for timeout in (None, DEADLINE):
            handled.clear()
            with once_it_sleeps_in("receive", signal_often_and_then_publish):
                assert client.receive(timeout) == b"at last"
            assert len(handled) == 5


@both_ways
@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_a_signal_that_ends_no_wait_is_noticed_within_a_second(
    server: Server, timeout: float | None, delivery: Delivery
) -> None:
    # One that another thread takes, or that comes right before the wait.
    def stop() -> None:
        raise InterruptedError

    with (
        Client(server.address, delivery=delivery) as client,
        handler(signal.SIGUSR1, stop),
        once_it_sleeps_in("receive", lambda: _thread.interrupt_main(signal.SIGUSR1)),
    ):
        with pytest.raises(InterruptedError):
            client.receive(timeout)
        server.publish(b"later")
        assert client.receive(DEADLINE) == b"later"


def test_signals_do_not_put_a_deadline_off(server: Server) -> None:
    with (
        Client(server.address) as client,
        handler(signal.SIGUSR1, lambda: None),
        often(lambda: signal_main_thread(signal.SIGUSR1), 0.01),
    ):
        before = time.monotonic()
        for call in (client.receive, client.receive_many):
            with pytest.raises(Timeout):
                call(0.1)
        assert 0.2 <= time.monotonic() - before < DEADLINE


def test_a_signal_handler_may_close_the_client_that_waits(server: Server) -> None:
    client = Client(server.address)
    with (
        handler(signal.SIGUSR1, client.close),
        once_it_sleeps_in("receive", lambda: signal_main_thread(signal.SIGUSR1)),
        pytest.raises(Closed),
    ):
        client.receive()


def test_ctrl_c_ends_a_program_that_loops(server: Server) -> None:
    script = """
import sys
import jumiks

with jumiks.Client(sys.argv[1]) as client:
    for message in client:
        print(message, flush=True)
"""
    with script_process(script, server.address) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        server.wait_for_clients(1, DEADLINE)
        server.publish(b"hello")
        assert process.stdout.readline() == "b'hello'\n"
        state = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "S")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == -signal.SIGINT
        errors = process.stderr.read()
    assert errors.splitlines()[-1].startswith("KeyboardInterrupt")
    assert "was not closed" not in errors
