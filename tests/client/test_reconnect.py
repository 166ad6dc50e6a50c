# SPDX-License-Identifier: Apache-2.0
"""Coming back to a server that went away, and what is told of the time between."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Literal

import anyio
import pytest
from peers import classic_server
from support.aio import Run, until
from support.api import (
    SMALL_LOG,
    SOON,
    Task,
    break_connection,
    once_it_sleeps_in,
    receive,
    script_process,
    sockaddr,
)
from support.base import DEADLINE, DELIVERIES, SHARE_LOG, wait_until
from support.reference import FRAMES, Frame, Welcome, decode_reply, encode_frame, encode_welcome
from support.servers import Server
from support.wire import LARGE, hello_of, listening, one_connection

from jumiks import (
    AckError,
    AsyncClient,
    Backoff,
    Client,
    Closed,
    ConnectionLost,
    Delivery,
    EndReason,
    Gap,
    GapReason,
    MessagesLost,
    Timeout,
)
from jumiks._wire.handshake import FIRST_ID

SLOT = b"x" * 48

all_ways = pytest.mark.parametrize("delivery", DELIVERIES)


# ---- what becomes of the stream ----


@all_ways
def test_a_server_that_was_started_again_goes_on_without_a_gap(
    address: str, delivery: Delivery
) -> None:
    with Server(address, share_log=SHARE_LOG) as server:
        client = Client(address, reconnect=SOON, delivery=delivery)
        first = server.server_id
        server.publish_many([b"a", b"b", b"c"])
        assert receive(client, 1) == [b"a"]
    with client, Server(address, share_log=SHARE_LOG) as server:
        server.publish_many([b"d", b"e"])
        assert receive(client, 4) == [b"b", b"c", b"d", b"e"]
        assert client.server_id == server.server_id != first
        assert client.last_id == FIRST_ID + 1
        assert client.missed == 0
        server.publish(b"f")
        assert receive(client, 1) == [b"f"]


@all_ways
def test_a_broken_connection_to_the_same_server_loses_and_repeats_nothing(
    address: str, delivery: Delivery
) -> None:
    with Server(address, share_log=SHARE_LOG) as server:
        with Client(address, reconnect=SOON, on_gap="raise", delivery=delivery) as client:
            for number in range(0, 30, 3):
                server.publish_many([b"%d" % (number + index) for index in range(2)])
                assert receive(client, 1) == [b"%d" % number]
                break_connection(client)
                server.publish(b"%d" % (number + 2))
                assert receive(client, 2) == [b"%d" % (number + 1), b"%d" % (number + 2)]
            assert client.last_id == FIRST_ID + 29
            client.ack()
            server.drain(DEADLINE)


def test_a_connection_that_breaks_before_the_first_message_loses_nothing(address: str) -> None:
    with Server(address) as server, Client(address, reconnect=SOON, on_gap="raise") as client:
        break_connection(client)
        wait_until(lambda: server.endings[EndReason.LEFT])
        server.publish(b"first")
        assert client.receive(DEADLINE) == b"first"


def test_a_connection_that_breaks_in_the_middle_of_a_batch_loses_nothing(address: str) -> None:
    with Server(address) as server, Client(address, reconnect=SOON, on_gap="raise") as client:
        server.publish_many([b"%d" % number for number in range(100)])
        got = []
        for message in client:
            got.append(message)
            if len(got) == 50:
                break_connection(client)
                server.publish(b"100")
            if len(got) == 101:
                break
        assert got == [b"%d" % number for number in range(101)]


@all_ways
def test_what_the_server_no_longer_has_is_a_gap_with_both_ends(
    address: str, delivery: Delivery
) -> None:
    gaps: list[Gap] = []
    with Server(address, log_size=SMALL_LOG) as server:
        with Client(address, reconnect=SOON, on_gap=gaps.append, delivery=delivery) as client:
            server.publish(b"first")
            assert receive(client, 1) == [b"first"]
            break_connection(client)
            wait_until(lambda: server.endings[EndReason.LEFT])
            server.publish_many([SLOT] * 5000)
            oldest = server.stats().oldest_id
            assert receive(client, 1) == [SLOT]
            assert gaps == [Gap(FIRST_ID + 1, oldest - 1)]
            assert gaps[0].reason is GapReason.EVICTED
            assert client.last_id == oldest
            assert client.missed == oldest - 1 - FIRST_ID


def test_what_a_new_server_no_longer_has_is_told_by_its_ids(address: str) -> None:
    gaps: list[Gap] = []
    with Server(address) as server:
        client = Client(address, reconnect=SOON, on_gap=gaps.append)
        server.publish(b"old")
    with client, Server(address, log_size=SMALL_LOG) as server:
        server.publish_many([SLOT] * 5000)
        oldest = server.stats().oldest_id
        assert receive(client, 2) == [b"old", SLOT]
        assert gaps == [Gap(FIRST_ID, oldest - 1)]


SERVING = """
import sys, time
server = Server(sys.argv[1], log_size=1 << 20)
print("ready", flush=True)
for line in sys.stdin:
    for number in range(int(line)):
        server.publish(b"%d" % number)
    print(server.stats().next_id, flush=True)
"""


def tell(process: subprocess.Popen[str], count: int) -> None:
    """Have the other process publish."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    assert int(process.stdout.readline()) > FIRST_ID


@contextmanager
def serving(address: str) -> Iterator[subprocess.Popen[str]]:
    with script_process(SERVING, address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


@all_ways
def test_a_killed_server_is_told_from_one_that_closed(address: str, delivery: Delivery) -> None:
    """Whoever reads its log has all that it published; others cannot know that they have."""
    gaps: list[Gap] = []
    with serving(address) as process:
        client = Client(address, reconnect=SOON, on_gap=gaps.append, delivery=delivery)
        shared = client.delivery == "shared"
        tell(process, 10)
        assert receive(client, 10) == [b"%d" % number for number in range(10)]
        process.kill()
    with client, serving(address) as process:
        tell(process, 3)
        assert receive(client, 3) == [b"0", b"1", b"2"]
        assert gaps == ([] if shared else [Gap(FIRST_ID + 10, None)])
        assert client.missed == 0
        if gaps:
            assert gaps[0].reason is GapReason.RESTARTED
            assert gaps[0].count is None
            assert str(FIRST_ID + 10) in str(gaps[0])


def test_a_plain_server_may_take_the_place_of_one_that_was_killed(address: str) -> None:
    """It does not say who it is, so no process is watched, least of all the dead one."""
    with serving(address) as process:
        client = Client(address, reconnect=SOON)
        tell(process, 1)
        assert client.receive(DEADLINE) == b"0"
        process.kill()
    with client, classic_server(address, "--count", "3") as server:
        received = [client.receive(DEADLINE) for _ in range(3)]
        assert client.delivery == "classic"
        client.ack()
        report = server.result()
    assert (report["last_id"], len(set(received))) == (FIRST_ID + 2, 3)


def test_what_a_server_that_closed_could_not_deliver_is_a_gap_with_both_ends(address: str) -> None:
    gaps: list[Gap] = []
    with Server(address, max_lag=10, on_lag="block") as server:
        client = Client(
            address, reconnect=SOON, on_gap=gaps.append, delivery="classic", start="now"
        )
        server.publish_many([b"x" * 60_000] * 9)
        server.close(0)
    with client, Server(address) as server:
        server.publish(b"new")
        got = []
        while b"new" not in got:
            got += receive(client, 1)
        lost = 9 - (len(got) - 1)
        # A plain connection is told no reason, so what it did not get is unknown.
        assert gaps == ([Gap(FIRST_ID + 9 - lost, None)])


@pytest.mark.parametrize("is_broken", [True, False])
@all_ways
def test_nothing_is_told_in_two_gaps(address: str, delivery: Delivery, is_broken: bool) -> None:
    """What stood behind a gap that was told may be gone too before it is received."""
    with (
        Server(address, on_lag="skip", patience=0, max_lag=1, log_size=SMALL_LOG) as server,
        Client(address, on_gap="yield", reconnect=SOON, delivery=delivery) as client,
    ):
        told: list[int] = []

        def take() -> bool:
            item = client.receive(DEADLINE)
            first, last = (item.first, item.last) if isinstance(item, Gap) else 2 * [client.last_id]
            assert last is not None
            assert first == FIRST_ID + len(told)
            told.extend(range(first, last + 1))
            return isinstance(item, Gap)

        for _ in range(3):
            for _ in range(SMALL_LOG // 4096):  # twice what the log has room for
                server.publish(b"x" * 8192)
            while not take():
                pass
            if is_broken:
                break_connection(client)
        server.publish(b"the last one")
        last = server.stats().next_id - 1
        while client.last_id < last:
            take()
        assert client.missed + client.last_id - FIRST_ID + 1 >= len(told)
        assert told[-1] == last


def test_a_client_that_comes_back_twice_before_a_message_goes_on_behind_the_gap(
    address: str,
) -> None:
    starts: list[int] = []

    def serve(first: int, *ids: int) -> Callable[[socket.socket], None]:
        def script(connection: socket.socket) -> None:
            connection.send(hello_of())
            starts.append(decode_reply(connection.recv(LARGE)).start)
            connection.send(encode_welcome(Welcome(0, FRAMES, first)))
            for packet_id in ids:
                connection.send(encode_frame(Frame(packet_id, b"%d" % packet_id)))

        return script

    items: list[bytes | Gap] = []
    with listening(address) as listener:
        with one_connection(listener, serve(FIRST_ID, FIRST_ID)):
            client = Client(address, on_gap="yield", reconnect=SOON)
        with client:
            items.append(client.receive(DEADLINE))
            for script in serve(FIRST_ID + 5), serve(FIRST_ID + 8, FIRST_ID + 8):
                with one_connection(listener, script):
                    items.append(client.receive(DEADLINE))
            items.append(client.receive(DEADLINE))
            assert client.missed == 7
    assert starts[1:] == [FIRST_ID + 1, FIRST_ID + 5]
    assert items == [
        b"%d" % FIRST_ID,
        Gap(FIRST_ID + 1, FIRST_ID + 4),
        Gap(FIRST_ID + 5, FIRST_ID + 7),
        b"%d" % (FIRST_ID + 8),
    ]


@contextmanager
def returning_with_a_gap(address: str, **options: Any) -> Iterator[tuple[Any, int]]:
    """A client that finds, behind its first message, that some were given up."""
    with Server(address, log_size=SMALL_LOG) as server:
        with Client(address, reconnect=SOON, **options) as client:
            server.publish(b"first")
            assert client.receive(DEADLINE) == b"first"
            break_connection(client)
            wait_until(lambda: server.endings[EndReason.LEFT])
            server.publish_many([SLOT] * 5000)
            yield client, server.stats().oldest_id


# ---- how a gap is told ----


def test_a_gap_that_is_yielded_comes_in_its_place(address: str) -> None:
    with returning_with_a_gap(address, on_gap="yield") as (client, oldest):
        stream = iter(client)
        assert next(stream) == Gap(FIRST_ID + 1, oldest - 1)
        assert client.last_id == FIRST_ID
        assert next(stream) == SLOT
        assert client.last_id == oldest


def test_a_gap_that_is_yielded_is_received(address: str) -> None:
    with returning_with_a_gap(address, on_gap="yield") as (client, oldest):
        assert client.receive(DEADLINE) == Gap(FIRST_ID + 1, oldest - 1)
        assert client.receive(DEADLINE) == SLOT


def test_a_gap_that_is_yielded_stands_for_a_batch(address: str) -> None:
    with returning_with_a_gap(address, on_gap="yield") as (client, oldest):
        assert client.receive_many(DEADLINE) == Gap(FIRST_ID + 1, oldest - 1)
        assert client.receive_many(DEADLINE).first_id == oldest


@pytest.mark.parametrize("way", ["receive", "receive_many"])
def test_a_gap_that_is_raised_is_raised_once(address: str, way: str) -> None:
    with returning_with_a_gap(address, on_gap="raise") as (client, oldest):
        with pytest.raises(MessagesLost, match="not kept by the server") as error:
            getattr(client, way)(DEADLINE)
        assert error.value.gap == Gap(FIRST_ID + 1, oldest - 1)
        getattr(client, way)(DEADLINE)
        assert client.last_id >= oldest


@pytest.mark.parametrize("on_gap", ["raise", "yield"])
@all_ways
def test_a_skip_is_told_in_the_same_ways(
    address: str, delivery: Delivery, on_gap: Literal["raise", "yield"]
) -> None:
    with Server(address, on_lag="skip", max_lag=4, patience=0) as server:
        with Client(address, on_gap=on_gap, delivery=delivery) as client:
            server.publish_many([b"%d" % number for number in range(20)])
            got: list[object] = [client.receive(DEADLINE) for _ in range(4)]
            lost = Gap(FIRST_ID + 4, FIRST_ID + 18)
            if on_gap == "yield":
                got.append(client.receive(DEADLINE))
                assert got[-1] == lost
            else:
                with pytest.raises(MessagesLost) as error:
                    client.receive(DEADLINE)
                assert error.value.gap == lost
                assert error.value.gap.reason is GapReason.SKIPPED
            assert client.receive(DEADLINE) == b"19"
            assert client.missed == 15


def test_a_gap_at_the_start_is_told_by_the_first_receive(address: str) -> None:
    with Server(address, log_size=SMALL_LOG) as server:
        server.publish_many([SLOT] * 5000)
        oldest = server.stats().oldest_id
        with Client(address, start=FIRST_ID, on_gap="yield") as client:
            assert client.missed == oldest - FIRST_ID
            assert client.receive(0) == Gap(FIRST_ID, oldest - 1)
            assert client.receive(DEADLINE) == SLOT
        with Client(address, start=FIRST_ID, on_gap="raise") as strict:
            with pytest.raises(MessagesLost):
                strict.receive(0)
            assert strict.receive(DEADLINE) == SLOT


# ---- what counts as handled ----


@all_ways
@pytest.mark.parametrize("way", ["receive", "receive_many", "iterate"])
@pytest.mark.parametrize("ack", ["after", "before"])
def test_a_message_counts_as_handled_before_or_after_it_is(
    address: str, delivery: Delivery, way: str, ack: Literal["after", "before"]
) -> None:
    with Server(address) as server, Client(address, ack=ack, delivery=delivery) as client:
        assert client.resume_at == FIRST_ID
        server.publish_many([b"a", b"b"])
        wait_until(lambda: server.clients()[0].sent_id == FIRST_ID + 1)
        if way == "receive":
            client.receive(DEADLINE)
        elif way == "receive_many":
            client.receive_many(DEADLINE)
        else:
            next(iter(client))
        handed_out = client.last_id
        handled = handed_out if ack == "before" else FIRST_ID - 1
        assert client.resume_at == handled + 1
        if ack == "before":
            wait_until(lambda: server.clients()[0].acked_id == handled)
        client.close()
        wait_until(lambda: not server.clients())
        with Client(address, start=client.resume_at, delivery=delivery) as again:
            server.publish(b"c")
            following = [b"b", b"c"][handed_out - FIRST_ID]
            assert again.receive(DEADLINE) == (following if ack == "before" else b"a")


@all_ways
@pytest.mark.parametrize("way", ["receive", "receive_many", "iterate"])
def test_once_the_user_has_come_back_for_more_all_counts_as_handled(
    address: str, delivery: Delivery, way: str
) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish_many([b"a", b"b"])
        wait_until(lambda: server.clients()[0].sent_id == FIRST_ID + 1)
        if way == "receive":
            receive(client, 2)
        elif way == "receive_many":
            while client.last_id <= FIRST_ID:
                client.receive_many(DEADLINE)
        else:
            closing = Task(server.close)
            if delivery == "classic":
                with pytest.raises(ConnectionLost):  # it is not told of a good end
                    list(client)
            else:
                assert list(client) == [b"a", b"b"]
            closing.result()
            assert client.resume_at == client.last_id + 1
            return
        assert client.resume_at <= client.last_id
        with pytest.raises(Timeout):
            client.receive(0)
        assert client.resume_at == client.last_id + 1


@pytest.mark.parametrize("wrong", [1, FIRST_ID - 1])
def test_an_id_below_all_that_there_are_was_not_handed_out(address: str, wrong: int) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish(b"a")
        receive(client, 1)
        with pytest.raises(AckError, match=f"{wrong} was not handed out"):
            client.ack(wrong)


def test_what_was_acked_by_hand_counts_as_handled(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish_many([b"a", b"b", b"c"])
        receive(client, 2)
        client.ack(FIRST_ID)
        assert client.resume_at == FIRST_ID + 1
        client.ack()
        assert client.resume_at == FIRST_ID + 2
        receive(client, 1)
        assert client.resume_at == FIRST_ID + 2


DYING = """
import os, signal, sys
from jumiks import Client
with Client(sys.argv[1], ack=sys.argv[2], delivery=sys.argv[3]) as client:
    for number, message in enumerate(client):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("delivery", ["shared", "framed"])
@pytest.mark.parametrize("ack", ["after", "before"])
def test_the_server_knows_where_a_client_that_died_in_a_message_goes_on(
    address: str, ack: str, delivery: Delivery
) -> None:
    """At least once, or at most once."""
    gone: list[int] = []
    with Server(address, on_disconnect=lambda info, _: gone.append(info.acked_id)) as server:
        with script_process(DYING, address, ack, delivery) as process:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([b"x"] * 10)
            assert process.wait(DEADLINE) == -signal.SIGKILL
        wait_until(lambda: gone)
    # After: by time, or with the next receive, so the one in work is not among them.
    assert gone[0] == FIRST_ID + 5 if ack == "before" else gone[0] < FIRST_ID + 5


@all_ways
@pytest.mark.parametrize("way", ["receive", "receive_many"])
@pytest.mark.parametrize("at", ["at once", "from within a batch"])
def test_ctrl_c_in_the_ack_before_a_message_leaves_that_to_the_next_receive(
    address: str,
    delivery: Delivery,
    way: str,
    at: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Server(address) as server, Client(address, ack="before", delivery=delivery) as client:
        client._stream.hand_out_by_python()  # in C's own acks no signal is handled
        server.publish_many([b"a", b"b", b"c"])
        got = [client.receive(DEADLINE)] if at == "from within a batch" else []
        with monkeypatch.context() as patch:

            def press() -> None:
                raise KeyboardInterrupt

            patch.setattr(client._stream, "open", press)
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    getattr(client, way)(DEADLINE)
        while len(got) < 3:
            found = getattr(client, way)(DEADLINE)
            got += [found] if way == "receive" else found
            assert client.last_id == FIRST_ID + len(got) - 1
        assert got == [b"a", b"b", b"c"]


def test_a_batch_that_counts_as_handled_is_out_of_the_log(address: str) -> None:
    """What was acked may be overwritten, so it is copied before."""
    with Server(address, log_size=SMALL_LOG) as server, Client(address, ack="before") as client:
        server.publish_many([b"%48d" % number for number in range(100)])
        batch = client.receive_many(DEADLINE)
        server.publish_many([SLOT] * 900)
        client.receive_many(DEADLINE)
        server.publish_many([SLOT] * 900)
        assert batch.valid
        assert [int(message) for message in batch] == list(range(len(batch)))


SOON_ENOUGH = 10.0
"""Seconds in which a death is noticed on a busy machine; it takes about one on an idle one."""


@contextmanager
def survived_by_a_child(address: str) -> Iterator[Callable[[], None]]:
    """A server; gives what has it fork, and then kills it alone.

    So the child has copies of all its sockets, also of those of clients that have come by then.
    """
    script = (
        "import os, sys\n"
        "server = Server(sys.argv[1])\n"
        "server.publish_many([b'one', b'two'])\n"
        "print('ready', flush=True)\n"
        "os.read(0, 1)\n"
        "if not os.fork():\n"
        "    print('forked', flush=True)\n"  # and it has let go of what is not its own
        "    os.read(0, 1)\n"
        "    os._exit(0)\n"
        "os.read(0, 1)\n"
    )
    with script_process(script, address) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"

        def kill() -> None:
            assert process.stdout is not None
            assert process.stdin is not None
            process.stdin.write("f")
            process.stdin.flush()
            assert process.stdout.readline() == "forked\n"
            process.kill()
            process.wait()

        yield kill
        process.stdin.close()
        process.stdin = None
        process.stdout.read()  # until the child is gone as well


# ---- a dead server whose sockets live on ----


@all_ways
@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_a_dead_server_is_noticed_though_a_child_holds_its_sockets(
    address: str, delivery: Delivery, timeout: float | None
) -> None:
    with survived_by_a_child(address) as kill:
        with Client(address, start="oldest", delivery=delivery) as client:
            client.receive(DEADLINE)
            kill()
            assert client.receive(DEADLINE) == b"two"
            before = time.monotonic()
            with pytest.raises(ConnectionLost):
                client.receive(timeout)
            assert time.monotonic() - before < SOON_ENOUGH


def test_the_address_of_a_dead_server_is_free_though_its_child_lives(address: str) -> None:
    with survived_by_a_child(address) as kill:
        kill()
        Server(address).close()


@all_ways
def test_a_dead_server_is_noticed_by_a_client_that_only_polls(
    address: str, delivery: Delivery
) -> None:
    with survived_by_a_child(address) as kill, Client(address, delivery=delivery) as client:
        kill()

        def over() -> bool:
            try:
                client.receive(0)
            except Timeout:
                return False
            except ConnectionLost:
                return True
            return False

        wait_until(over)


@pytest.mark.parametrize("delivery", ["shared", "framed"])
def test_a_dead_server_is_noticed_in_an_event_loop(
    run: Run, address: str, delivery: Delivery
) -> None:
    me = "test_a_dead_server_is_noticed_in_an_event_loop"

    async def main() -> None:
        with survived_by_a_child(address) as kill:
            async with AsyncClient(address, delivery=delivery) as client:
                before = time.monotonic()
                with once_it_sleeps_in(me, kill), pytest.raises(ConnectionLost):
                    await client.receive()
                assert time.monotonic() - before < SOON_ENOUGH

    run(main)


# ---- in an event loop ----


def test_an_async_client_comes_back(run: Run, address: str) -> None:
    async def main() -> None:
        server = Server(address)
        async with AsyncClient(address, reconnect=SOON) as client:
            for number in range(4):
                server.publish(b"%d" % number)
                assert await client.receive(DEADLINE) == b"%d" % number
                server.close()
                server = Server(address)
            server.close()
            with pytest.raises(Timeout, match="not yet back"):
                await client.receive(0.05)
            with Server(address) as server:
                server.publish(b"last")
                async with aclosing(client.__aiter__()) as stream:
                    assert await anext(stream) == b"last"

    run(main)


def test_an_async_client_finds_gaps_in_its_stream(run: Run, address: str) -> None:
    async def main() -> None:
        with Server(address, log_size=SMALL_LOG) as server:
            async with AsyncClient(address, reconnect=SOON, on_gap="yield") as client:
                server.publish(b"first")
                assert await client.receive(DEADLINE) == b"first"
                break_connection(client)
                await until(lambda: server.endings[EndReason.LEFT])
                server.publish_many([SLOT] * 5000)
                oldest = server.stats().oldest_id
                async with aclosing(client.__aiter__()) as stream:
                    assert await anext(stream) == Gap(FIRST_ID + 1, oldest - 1)
                    assert await anext(stream) == SLOT
                assert client.last_id == oldest

    run(main)


@pytest.mark.parametrize("listening", [False, True])
def test_closing_wakes_a_task_that_waits_for_the_server_to_come_back(
    run: Run, address: str, listening: bool
) -> None:
    async def main() -> None:
        with Server(address):
            backoff = Backoff(first=0.001 if listening else 60, most=60)
            client = await AsyncClient(address, reconnect=backoff)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            if listening:
                silent.bind(sockaddr(address))
                silent.listen()
            began = time.monotonic()

            async def receive() -> None:
                with pytest.raises(Closed):
                    await client.receive()

            async with anyio.create_task_group() as group:
                group.start_soon(receive)
                stream = client._stream
                await until(lambda: stream.way and stream.way.due()[1] > 1)
                await client.close()
            assert time.monotonic() - began < 60

    run(main)


def test_an_async_client_acks_before_if_told_so(run: Run, address: str) -> None:
    async def main() -> None:
        with Server(address) as server:
            async with AsyncClient(address, ack="before") as client:
                server.publish_many([b"a", b"b"])
                async with aclosing(client.__aiter__()) as stream:
                    assert await anext(stream) == b"a"
                    await until(lambda: server.clients()[0].acked_id == FIRST_ID)
                assert await client.receive(DEADLINE) == b"b"
                await until(lambda: server.clients()[0].acked_id == FIRST_ID + 1)

    run(main)
