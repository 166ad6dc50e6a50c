# SPDX-License-Identifier: Apache-2.0
"""Publishing: one message, many, one written in place, from several threads; and draining."""

import array
import gc
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support.api import (
    SMALL_LOG,
    Task,
    receive,
)
from support.base import DEADLINE, log_mappings, wait_until
from support.servers import Server

from jumiks import Busy, Client, ClientInfo, Closed, JumiksError, ServerClosed, Timeout
from jumiks._native import ffi, lib
from jumiks._wire.handshake import FIRST_ID

if TYPE_CHECKING:
    from typing_extensions import Buffer

# ---- publish, publish_many ----


def test_ids_begin_at_the_first_and_rise_by_one_however_messages_are_published(
    server: Server,
) -> None:
    assert server.publish(b"a") == FIRST_ID
    assert server.publish(b"b") == FIRST_ID + 1
    assert server.publish_many([b"c", b"d", b"e"]) == range(FIRST_ID + 2, FIRST_ID + 5)
    reservation = server.reserve(1)
    with reservation as view:
        view[:] = b"f"
    assert reservation.packet_id == FIRST_ID + 5
    assert server.publish(b"g") == FIRST_ID + 6
    with Client(server.address, start="oldest") as client:
        assert receive(client, 7) == [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]


def test_publishing_no_messages_gives_an_empty_range_and_takes_no_id(server: Server) -> None:
    server.publish(b"")
    ids = server.publish_many([])
    assert (len(ids), ids.start) == (0, FIRST_ID + 1)
    assert server.stats().published == 1
    assert server.publish(b"") == FIRST_ID + 1


def test_any_contiguous_buffer_is_a_message(server: Server) -> None:
    numbers = array.array("I", [1, 2, 3])
    table = memoryview(bytes(range(12))).cast("B", (3, 4))
    middle = memoryview(b"0123456789")[3:7]
    buffers: list[bytearray | array.array[int] | memoryview | bytes]
    buffers = [bytearray(b"bytearray"), numbers, table, middle, b""]
    with Client(server.address) as client:
        server.publish_many(buffers)
        for buffer in buffers:
            server.publish(buffer)
        assert receive(client, 10) == 2 * [memoryview(buffer).tobytes() for buffer in buffers]


def test_messages_may_come_from_a_generator(server: Server) -> None:
    ids = server.publish_many(str(number).encode() for number in range(1000))
    assert ids == range(FIRST_ID, FIRST_ID + 1000)
    with Client(server.address, start=ids[-1]) as client:
        assert client.receive(DEADLINE) == b"999"


def test_a_message_is_copied_before_publish_returns(server: Server) -> None:
    text = bytearray(b"before")
    with Client(server.address) as client:
        server.publish(text)
        server.publish_many([text, memoryview(text)])
        text[:] = b"after!"
        text.extend(b"and nobody holds on to it")
        assert receive(client, 3) == 3 * [b"before"]


def test_a_batch_much_larger_than_the_log_is_published_as_one(address: str) -> None:
    messages = [number.to_bytes(4, "little") * 64 for number in range(2000)]
    with Server(address, log_size=SMALL_LOG, on_lag="block") as server, Client(address) as client:
        received = Task(lambda: receive(client, len(messages)))
        ids = server.publish_many(messages, timeout=DEADLINE)
        assert ids == range(FIRST_ID, FIRST_ID + 2000)
        assert received.result() == messages


def test_without_clients_publish_never_waits(address: str) -> None:
    with Server(address, max_lag=1, on_lag="block", log_size=SMALL_LOG) as server:
        for _ in range(100):
            server.publish(bytes(4096), timeout=0)
        assert server.stats().next_id == FIRST_ID + 100
        assert server.stats().waits == 0


def test_a_timeout_names_the_client_in_the_way_as_it_names_itself(address: str) -> None:
    with Server(address, max_lag=1, on_lag="block") as server, Client(address, name="gui"):
        server.publish(b"one")
        with pytest.raises(Timeout, match=rf"by process {os.getpid()} \('gui'\), which is"):
            server.publish(b"two", timeout=0.02)


def test_publish_times_out_with_the_client_that_held_it_and_appends_nothing(
    blocked: tuple[Server, Client],
) -> None:
    server, client = blocked
    before = time.monotonic()
    with pytest.raises(Timeout, match=r"publish timed out after 0\.05 s, held up by") as caught:
        server.publish(b"three", timeout=0.05)
    assert time.monotonic() - before >= 0.05
    holder = caught.value.holder
    assert isinstance(holder, ClientInfo)
    assert (holder.pid, holder.lag, holder.acked_id) == (os.getpid(), 2, 0)
    assert f"held up by process {os.getpid()}" in str(caught.value)
    assert str(caught.value).endswith(", which is 2 messages behind")
    assert server.stats().next_id == FIRST_ID + 2
    assert receive(client, 2) == [b"one", b"two"]
    client.ack()
    assert server.publish(b"three", timeout=DEADLINE) == FIRST_ID + 2


def test_a_timeout_of_zero_does_not_wait(blocked: tuple[Server, Client]) -> None:
    with pytest.raises(Timeout):
        blocked[0].publish(b"three", timeout=0)


def test_publish_many_that_times_out_says_how_many_went_in(address: str) -> None:
    with Server(address, max_lag=3, on_lag="block") as server, Client(address) as client:
        with pytest.raises(Timeout) as caught:
            server.publish_many([b"%d" % number for number in range(5)], timeout=0.02)
        assert caught.value.published == 3
        assert server.stats().next_id == FIRST_ID + 3
        assert receive(client, 3) == [b"0", b"1", b"2"]
        client.ack()
        # Nobody keeps the turn that the batch had.
        assert Task(lambda: server.publish(b"next", DEADLINE)).result() == FIRST_ID + 3


# ---- reserve ----


def test_what_is_written_into_a_reserve_is_published_on_leaving(server: Server) -> None:
    with Client(server.address) as client:
        reservation = server.reserve(10)
        with reservation as view:
            assert (view.nbytes, view.readonly) == (10, False)
            view[:] = b"0123456789"
            with pytest.raises(Timeout):
                client.receive(0)
        assert client.receive(DEADLINE) == b"0123456789"
        assert reservation.packet_id == client.last_id == FIRST_ID
        with pytest.raises(ValueError, match="released"):
            view[0] = 1


def test_a_reserve_of_no_bytes_is_a_message(server: Server) -> None:
    with Client(server.address) as client:
        with server.reserve(0) as view:
            assert view.nbytes == 0
        assert client.receive(DEADLINE) == b""


def test_an_exception_in_a_reserve_discards_it_and_its_id_goes_to_the_next(server: Server) -> None:
    reservation = server.reserve(3)
    with pytest.raises(KeyError, match="mine"):
        with reservation as view:
            view[:] = b"bad"
            raise KeyError("mine")
    assert reservation.packet_id is None
    assert server.stats().published == 0
    assert server.publish(b"good") == FIRST_ID
    with Client(server.address, start="oldest") as client:
        assert client.receive(DEADLINE) == b"good"


@pytest.mark.parametrize(
    "publish",
    [
        lambda server: server.publish(b"mine"),
        lambda server: server.publish_many([b"mine"]),
        lambda server: server.reserve(1).__enter__(),
    ],
)
def test_publishing_within_ones_own_reserve_is_an_error_and_not_a_deadlock(
    server: Server, publish: Callable[[Server], object]
) -> None:
    with server.reserve(2) as view:
        with pytest.raises(Busy, match=r"reserve\(\) open: leave that block"):
            publish(server)
        view[:] = b"ok"
    with Client(server.address, start="oldest") as client:
        assert client.receive(DEADLINE) == b"ok"
        assert server.stats().published == 1


@pytest.mark.parametrize(
    "publish",
    [
        lambda server: server.publish(b"second"),
        lambda server: server.publish_many([b"second"])[0],
    ],
)
def test_other_publishers_wait_for_the_end_of_a_reserve(
    server: Server, publish: Callable[[Server], int]
) -> None:
    with server.reserve(5) as view:
        task = Task(lambda: publish(server))
        task.sleeps_in("<lambda>")
        assert server.stats().published == 0
        view[:] = b"first"
    assert task.result() == FIRST_ID + 1
    with Client(server.address, start="oldest") as client:
        assert receive(client, 2) == [b"first", b"second"]


def test_a_publisher_that_waits_for_a_reserve_times_out_saying_so(server: Server) -> None:
    with server.reserve(5):
        task = Task(lambda: server.publish(b"", timeout=0.01))
        with pytest.raises(Timeout, match="another publisher, whose turn it is") as caught:
            task.result()
    assert caught.value.holder is None


def test_who_held_a_publisher_up_before_is_not_named_once_it_waits_for_another(
    address: str,
) -> None:
    holder = ffi.new("struct jmk_account *")
    with Server(address, on_lag="block", max_lag=1) as server, Client(address) as client:
        room = partial(lib.jmk_server_wait_room, server._open(), 1, 0, holder, ffi.NULL)
        server.publish(b"1")
        assert room() == lib.JMK_E_TIMEOUT
        assert holder.key != 0
        assert receive(client, 1) == [b"1"]
        client.ack()
        server.drain(DEADLINE)
        with server.reserve(1):
            assert Task(room).result() == lib.JMK_E_TIMEOUT
        assert holder.key == 0


def test_a_reserve_waits_for_the_end_of_another(server: Server) -> None:
    def reserve() -> int | None:
        reservation = server.reserve(1)
        with reservation:
            pass
        return reservation.packet_id

    with server.reserve(1):
        task = Task(reserve)
        task.sleeps_in("reserve")
        assert server.stats().published == 0
    assert task.result() == FIRST_ID + 1


def test_what_outlives_a_reserve_keeps_its_bytes_and_never_reaches_the_log(server: Server) -> None:
    with Client(server.address) as client:
        kept = []
        for number in range(3):
            with server.reserve(10000) as view:
                part = view[2:9000]
                part[:] = bytes([number]) * len(part)
                kept.append(part)
            part[0] = 255  # as if an array was written to once more
            message = client.receive(DEADLINE)
            assert message == bytes(2) + bytes([number]) * 8998 + bytes(1000)
        server.publish_many([bytes([7]) * 10000] * 4)
        kept[0][:] = bytes([9]) * 8998
        assert [client.receive(DEADLINE) for _ in range(4)] == [bytes([7]) * 10000] * 4
    assert [bytes(part) for part in kept] == [
        bytes([9]) * 8998,
        *(bytes([255]) + bytes([number]) * 8997 for number in (1, 2)),
    ]


def test_what_outlives_a_reserve_holds_no_memory_of_the_log(address: str) -> None:
    with Server(address) as server, server.reserve(100) as view:
        escaped = view[:]
    del server, view
    gc.collect()
    wait_until(lambda: not log_mappings())
    assert bytes(escaped) == bytes(100)


def test_the_exception_of_the_block_is_not_hidden_by_an_escaped_view(server: Server) -> None:
    with pytest.raises(KeyError):
        with server.reserve(10) as view:
            escaped = view[2:4]
            raise KeyError
    assert server.publish(b"next") == FIRST_ID
    escaped.release()


def test_a_reservation_is_entered_once(server: Server) -> None:
    reservation = server.reserve(1)
    with reservation, pytest.raises(JumiksError, match="entered once"):
        reservation.__enter__()
    with pytest.raises(JumiksError, match="entered once"):
        reservation.__enter__()
    assert server.stats().published == 1


def test_closing_within_a_reserve_publishes_nothing_and_harms_nothing(server: Server) -> None:
    with Client(server.address) as client:
        with pytest.raises(Closed):
            with server.reserve(4) as view:
                server.close()
                view[:] = b"late"
        with pytest.raises(ServerClosed):
            client.receive(DEADLINE)


@pytest.mark.usefixtures("large_log")
def test_a_server_closed_while_another_thread_has_a_reserve_lets_that_one_find_out(
    server: Server,
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def reserve() -> None:
        with server.reserve(1 << 20) as view:
            inside.set()
            go_on.wait(DEADLINE)
            view[:] = bytes(1 << 20)

    task = Task(reserve)
    assert inside.wait(DEADLINE)
    server.close()
    go_on.set()
    with pytest.raises(Closed):
        task.result()


def test_a_reserve_waits_under_block(blocked: tuple[Server, Client]) -> None:
    server, client = blocked
    with pytest.raises(Timeout):
        server.reserve(1, timeout=0.01).__enter__()

    def reserve() -> None:
        with server.reserve(5) as view:
            view[:] = b"three"

    task = Task(reserve)
    task.sleeps_in("reserve")
    assert receive(client, 2) == [b"one", b"two"]
    client.ack()
    task.result()
    assert client.receive(DEADLINE) == b"three"


def publish_in_all_ways(server: Server, writer: int, rounds: int) -> list[range]:
    """Publish batches of one writer: one by one, together, and in place; their ids."""
    sent, number = [], 0

    def text(number: int) -> bytes:
        return b"%d %d" % (writer, number)

    for turn in range(rounds):
        batch = [text(number + place) for place in range(turn % 23)]
        sent.append(server.publish_many(batch, DEADLINE))
        number += len(batch)
        packet_id = server.publish(text(number), DEADLINE)
        sent.append(range(packet_id, packet_id + 1))
        number += 1
        reservation = server.reserve(len(text(number)), DEADLINE)
        with reservation as view:
            view[:] = text(number)
        assert reservation.packet_id is not None
        sent.append(range(reservation.packet_id, reservation.packet_id + 1))
        number += 1
    return sent


# ---- several threads publishing ----


@pytest.mark.parametrize("max_lag", [None, 7])
def test_threads_that_publish_share_the_ids_without_holes_and_keep_their_order(
    address: str, max_lag: int | None
) -> None:
    writers, rounds = 4, 100
    per_writer = sum(turn % 23 + 2 for turn in range(rounds))
    total = writers * per_writer
    with Server(address, max_lag=max_lag, on_lag="block") as server, Client(address) as client:

        def work(writer: int) -> Callable[[], list[range]]:
            return lambda: publish_in_all_ways(server, writer, rounds)

        tasks = [Task(work(writer)) for writer in range(writers)]
        messages = [client.receive(DEADLINE).split() for _ in range(total)]
        assert client.last_id == FIRST_ID + total - 1
        for writer, task in enumerate(tasks):
            # So each batch is contiguous, as its messages stand at the ids of its range.
            ids = [packet_id for batch in task.result() for packet_id in batch]
            assert ids == sorted(ids)
            assert [messages[packet_id - FIRST_ID] for packet_id in ids] == [
                [b"%d" % writer, b"%d" % number] for number in range(per_writer)
            ]


# ---- drain ----


def test_drain_returns_once_all_is_acked(server: Server) -> None:
    with Client(server.address) as client:
        server.publish_many([b"one", b"two"])
        task = Task(lambda: server.drain(DEADLINE))
        task.sleeps_in("drain")
        assert receive(client, 2) == [b"one", b"two"]
        client.ack(FIRST_ID)
        with pytest.raises(Timeout, match=r"drain timed out after 0\.01 s, held up by") as caught:
            server.drain(0.01)
        holder = caught.value.holder
        assert isinstance(holder, ClientInfo)
        assert (holder.acked_id, holder.lag) == (FIRST_ID, 1)
        assert not task.done
        client.ack()
        task.result()


def test_drain_is_over_at_once_without_clients_or_messages(server: Server) -> None:
    server.drain(0)
    server.publish(b"")
    server.drain(0)
    with Client(server.address):
        server.drain(0)


def test_drain_does_not_wait_for_a_client_that_left(server: Server) -> None:
    with Client(server.address):
        server.publish(b"")
        task = Task(lambda: server.drain(DEADLINE))
        task.sleeps_in("drain")
    task.result()


def test_drain_does_not_wait_for_what_is_published_later(server: Server) -> None:
    with Client(server.address) as client:
        server.publish(b"one")
        task = Task(lambda: server.drain(DEADLINE))
        task.sleeps_in("drain")
        server.publish(b"two")
        receive(client, 2)
        client.ack(FIRST_ID)
        task.result()


def test_drain_names_the_client_that_is_furthest_behind(server: Server) -> None:
    with Client(server.address) as ahead, Client(server.address):
        server.wait_for_clients(2, DEADLINE)
        server.publish(b"")
        ahead.receive(DEADLINE)
        ahead.ack()
        behind = server.clients()[1]
        with pytest.raises(Timeout) as caught:
            server.drain(0)
        assert isinstance(caught.value.holder, ClientInfo)
        assert caught.value.holder.key == behind.key


@pytest.mark.parametrize(
    ("args", "named", "words"),
    [
        ((), {}, "missing required argument 'data'"),
        ((), {"timeout": 0}, "missing required argument 'data'"),
        ((b"x", 0, 0), {}, "at most 2 arguments"),
        ((b"x", 0), {"timeout": 0}, "(at most 2 arguments|multiple values|given by name)"),
        ((b"x",), {"data": b"y"}, "(at most 2 arguments|multiple values|given by name)"),
        ((b"x",), {"timout": 0}, "keyword argument.*timout|timout.*keyword argument"),
        ((b"x",), {"timeout": True}, "timeout is a number of seconds or None, not True"),
        ((b"x",), {"timeout": "1"}, "timeout is a number of seconds or None, not '1'"),
    ],
)
def test_a_wrong_call_publishes_nothing_and_says_so(
    server: Server, args: tuple[Any, ...], named: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        server.publish(*args, **named)
    assert server.stats().published == 0


@pytest.mark.parametrize("timeout", [-1, -1e-9, float("nan"), -(1 << 70), 1 << 1030])
def test_a_timeout_that_is_none_publishes_nothing(server: Server, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        server.publish(b"x", timeout)
    assert server.stats().published == 0


def test_all_forms_of_a_call_publish(address: str) -> None:
    class Loud(Server):
        def publish(self, data: "Buffer", timeout: float | None = None) -> int:
            return super().publish(bytes(data).upper(), timeout)

    with Loud(address) as server, Client(address) as client:
        server.publish(b"positional", 1)
        server.publish(b"a", timeout=0.5)
        server.publish(data=b"b")
        server.publish(timeout=1 << 80, data=b"c")
        Server.publish(server, bytearray(b"d"), float("inf"))
        got = [client.receive(DEADLINE) for _ in range(5)]
    assert got == [b"POSITIONAL", b"A", b"B", b"C", b"d"]


def test_publish_keeps_nothing_that_it_was_given(server: Server) -> None:
    """Whatever the way that it takes: by bytes, by a buffer, by Python, and with an error."""
    data, other, timeout = b"x" * 100, bytearray(b"y"), 1e3
    things = data, other, timeout
    before = [sys.getrefcount(each) for each in things]
    for _ in range(100):
        server.publish(data, timeout)
        server.publish(data=other, timeout=timeout)
        with pytest.raises(TypeError):
            server.publish(other, timeout=data)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            server.publish(timeout, timeout)  # type: ignore[arg-type]
    assert [sys.getrefcount(each) for each in things] == before
    other.append(0)  # none of its buffers is held


def test_help_shows_how_publish_is_called() -> None:
    assert str(inspect.signature(Server.publish)) == "(self, /, data, timeout=None)"
    assert "holder" in (inspect.getdoc(Server.publish) or "")
