# SPDX-License-Identifier: Apache-2.0
"""Messages of one size as arrays: `rows`, `array`, `receive_array`, and arrays to publish.

`make test` has numpy (extra `dev`); `make sanitize` and `make test-pythons` have none (`test`).
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from support.api import SMALL_LOG, Task, receive
from support.base import DEADLINE
from support.servers import AsyncServer, Server

from jumiks import AsyncClient, Batch, Client, Delivery, Gap, Lagged, MessageTooLarge, Timeout
from jumiks._wire.handshake import FIRST_ID

np: Any = None
with suppress(ImportError):
    np = importlib.import_module("numpy")  # here, as it starts threads

needs_numpy = pytest.mark.skipif(np is None, reason="numpy is not installed")
every_delivery = pytest.mark.parametrize("delivery", ["shared", "framed", "classic"])

FIELDS = [("time", "<i8"), ("price", "<f8"), ("size", "<i4")]  # 20 bytes: frames have padding


def ticks(count: int, first: int = 0) -> Any:
    made = np.zeros(count, FIELDS)
    made["time"] = range(first, first + count)
    made["price"] = made["time"] / 2
    return made


def batch_of(client: Client, count: int) -> Batch:
    """A batch of so many messages, which are there; a classic one may come in parts."""
    batch = client.receive_many(DEADLINE)
    assert len(batch) == count
    return batch


# ---- how much one call takes ----


@pytest.mark.only_shared
@pytest.mark.parametrize("log_size", [65536, 4 << 20])
@pytest.mark.parametrize("size", [0, 8, 3000, 11_992])
def test_a_batch_is_as_large_as_documented_and_more_of_them_end_with_the_newest(
    address: str, log_size: int, size: int
) -> None:
    frame = 16 + size
    most = -(-min(256 << 10, log_size // 8) // frame)  # the last one goes beyond
    count = (log_size - 4096) // frame
    server = Server(address, log_size=log_size, max_message=log_size // 4)
    with server, Client(address) as client:
        server.publish_many([bytes(size)] * count)
        batches = [client.receive_many(DEADLINE)]
        with suppress(Timeout):
            while True:
                batches.append(client.receive_many(0))
        assert client.last_id == FIRST_ID + count - 1
        assert {len(each) for each in batches[:-1]} == {most}
        assert len(batches[-1]) <= most


# ---- rows ----


@every_delivery
@pytest.mark.parametrize("size", [0, 1, 7, 8, 20, 300])
def test_rows_are_messages_by_bytes(address: str, delivery: Delivery, size: int) -> None:
    messages = [bytes([number]) * size for number in range(5)]
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish_many(messages)
        got: list[bytes] = []
        while len(got) < 5:
            batch = client.receive_many(DEADLINE)
            rows = batch.rows()
            assert (rows.ndim, rows.format, rows.readonly) == (2, "B", True)
            assert rows.shape == (len(batch), size)
            if client.delivery == "shared":  # in the log, behind each other's header and padding
                assert rows.strides == (16 + -(-size // 8) * 8, 1)
            flat = rows.tobytes()
            got += [flat[at * size : (at + 1) * size] for at in range(len(batch))]
            assert list(batch) == got[-len(batch) :]
        assert got == messages


def test_rows_of_messages_of_several_sizes_name_the_first_that_differs(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish_many([b"12", b"34", b"567", b"8"])
        batch = batch_of(client, 4)
        asks: list[Callable[[], object]] = [batch.rows, lambda: list(batch) and batch.rows()]
        for ask in asks:
            with pytest.raises(
                ValueError, match="message 100002 has 3 bytes, and message 100000 has 2: rows are"
            ):
                ask()
        assert list(batch) == [b"12", b"34", b"567", b"8"]


def test_rows_go_through_the_end_of_the_log(address: str) -> None:
    with (
        Server(address, log_size=SMALL_LOG, share_log=True) as server,
        Client(address) as client,
    ):
        for number in range(60):
            rows = memoryview(bytes([number]) * 7000).cast("B", (100, 70))
            server.publish_many(rows)
            due = client.last_id + 100 if client.last_id else FIRST_ID + 99
            while client.last_id < due:
                with client.receive_many(DEADLINE) as batch:
                    rows = batch.rows()
                    assert rows.shape == (len(batch), 70)
                    assert rows.tobytes() == bytes([number]) * rows.nbytes


def test_rows_end_with_their_batch_and_a_slice_holds_acks_back(address: str) -> None:
    with Server(address, share_log=True) as server, Client(address) as client:
        server.publish_many([b"first", b"other"])
        batch = batch_of(client, 2)
        rows, part = batch.rows(), batch.rows()[1:]
        server.publish(b"later")
        assert client.receive(DEADLINE) == b"later"
        with pytest.raises(ValueError, match="released"):
            rows.tobytes()
        client.ack()
        assert part.tobytes() == b"other"
        assert server.clients()[0].acked_id < FIRST_ID
        del part
        assert server.clients()[0].acked_id == FIRST_ID + 2


# ---- arrays ----


@needs_numpy
@every_delivery
def test_an_array_has_an_item_per_message(address: str, delivery: Delivery) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish_many(ticks(10))
        got: list[float] = []
        while len(got) < 10:
            batch = client.receive_many(DEADLINE)
            found = batch.array(FIELDS)
            assert (found.ndim, found.flags.writeable, found.dtype) == (1, False, np.dtype(FIELDS))
            assert [item.tobytes() for item in found] == list(batch)
            assert (batch.array(FIELDS) == found).all()
            got += found["price"].tolist()
        assert got == [number / 2 for number in range(10)]


@needs_numpy
@every_delivery
def test_receive_array_is_a_copy_of_ones_own(address: str, delivery: Delivery) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish_many(ticks(10))
        found = [client.receive_array(FIELDS, DEADLINE)]
        while client.last_id < FIRST_ID + 9:
            found.append(client.receive_array(FIELDS, DEADLINE))
        client.ack()
        assert server.clients()[0].acked_id == FIRST_ID + 9  # it holds no acks back
        whole = np.concatenate(found)
        assert (whole == ticks(10)).all()
        found[0]["price"] = 7
        with pytest.raises(Timeout):
            client.receive_array(FIELDS, 0)


@needs_numpy
def test_a_loop_over_arrays_is_acked_as_it_goes_even_if_the_last_one_lives(address: str) -> None:
    # The publisher may be one message ahead: it would wait for ever for an ack that an array holds.
    with Server(address, max_lag=1, on_lag="block") as server, Client(address) as client:
        publishing = Task(lambda: server.publish_many(ticks(50), DEADLINE))
        got = 0
        while got < 50:
            found = client.receive_array(FIELDS, DEADLINE)
            assert found["time"].tolist() == list(range(got, got + len(found)))
            got += len(found)
        publishing.result()


@needs_numpy
def test_any_dtype_of_the_right_size_will_do(address: str) -> None:
    with Server(address) as server, Client(address, start=FIRST_ID) as client:
        server.publish_many(np.arange(8, dtype="<f8").reshape(4, 2))
        batch = batch_of(client, 4)
        assert batch.array("<c16").tolist() == [0 + 1j, 2 + 3j, 4 + 5j, 6 + 7j]
        assert batch.array("S16").dtype == "S16"
        assert batch.array((np.float64, (2,))).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
        assert batch.array(">i8, >i8").shape == (4,)
        assert batch.array("V16").itemsize == 16


@needs_numpy
def test_a_dtype_that_does_not_fit_is_an_error_and_loses_nothing(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish_many([bytes(8), bytes(8), b"short"])
        with pytest.raises(ValueError, match="message 100002 has 5 bytes, and message 100000 has"):
            client.receive_array("<f8", DEADLINE)
        assert client.receive(DEADLINE) == bytes(8)
        with pytest.raises(ValueError, match="message 100002 has 5 bytes, and message 100001 has"):
            client.receive_array("<f8", DEADLINE)
        assert receive(client, 2) == [bytes(8), b"short"]
        server.publish(bytes(8))
        with pytest.raises(ValueError, match=r"dtype\('float32'\) has 4 bytes, and .* have 8"):
            client.receive_array("<f4", DEADLINE)
        with pytest.raises(TypeError, match="has Python objects in it, which no message has"):
            client.receive_array(object, DEADLINE)
        with pytest.raises(TypeError, match="not understood"):
            client.receive_array("no such type", DEADLINE)
        assert client.receive_array("<f8", DEADLINE).tolist() == [0]


@needs_numpy
@pytest.mark.parametrize(
    ("dtype", "kind", "words"),
    [
        ("f9", TypeError, r"'f9' is no dtype \(.*\): take one such as '<f8', or, for records, \["),
        (None, TypeError, "None is no dtype"),
        ([("price",)], TypeError, r"is no dtype \(.*tuples.*\): take one such as"),
        ("S", ValueError, r"dtype\('S'\) has 0 bytes, and the messages have 8: .* as with 'S8'"),
    ],
)
def test_a_dtype_that_is_none_is_told_with_what_would_be_one(
    address: str, dtype: Any, kind: type[Exception], words: str
) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish(bytes(8))
        with pytest.raises(kind, match=words):
            client.receive_array(dtype, DEADLINE)
        with pytest.raises(kind, match=words):
            client.receive_many(DEADLINE).array(dtype)


@needs_numpy
@pytest.mark.parametrize(
    ("array", "words"),
    [
        (lambda: np.zeros(6, "u1"), r"one size become rows by \.reshape\(count, size\)$"),
        (lambda: np.array([b"a", b"b"]), r"become rows by \.reshape\(count, size\)$"),
        (lambda: np.zeros(()), "use publish for one$"),
        (lambda: "text", "use publish for one, and encode it first$"),
        (lambda: b"bytes", r"become rows by memoryview\(\.\.\.\)\.cast\('B', \(count, size\)\)$"),
    ],
)
def test_what_is_no_array_of_messages_is_told_with_what_makes_one(
    address: str, array: Callable[[], Any], words: str
) -> None:
    with Server(address) as server:
        with pytest.raises(TypeError, match=words):
            server.publish_many(array())
        assert server.stats().published == 0


@needs_numpy
@pytest.mark.parametrize("ack", ["after", "before"])
def test_an_array_of_what_other_calls_have_left(address: str, ack: Any) -> None:
    with Server(address) as server, Client(address, ack=ack) as client:
        server.publish_many(np.arange(4, dtype="<i8"))
        assert client.receive(DEADLINE) == bytes(8)
        assert client.receive_array("<i8", DEADLINE).tolist() == [1, 2, 3]
        assert client.last_id == FIRST_ID + 3


@needs_numpy
@pytest.mark.parametrize("moment", ["nothing", "next receive", "release", "close"])
def test_an_array_that_outlives_its_batch_is_what_it_was_or_the_batch_says_so(
    address: str, moment: str
) -> None:
    policy: Any = {"on_lag": "skip", "patience": 0}
    with (
        Server(address, log_size=1 << 17, share_log=True, **policy) as server,
        Client(address) as client,
    ):
        server.publish(bytes(1 << 14))
        batch = client.receive_many(DEADLINE)
        found = batch.array("S16384")[:1]
        if moment == "next receive":
            server.publish(bytes([255]) * (1 << 14))
            client.receive_many(DEADLINE)
        elif moment == "release":
            batch.release()
        elif moment == "close":
            client.close()
        assert batch.valid
        assert found.tobytes() == bytes(1 << 14)
        for number in range(1, 12):
            server.publish(bytes([number]) * (1 << 14))
        assert (batch.valid, found.tobytes() == bytes(1 << 14)) == (False, False)
        del found
        assert not batch.valid


@needs_numpy
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "as a batch"])
@pytest.mark.parametrize("on_lag", ["skip", "disconnect"])
def test_what_is_given_up_before_it_is_copied_is_never_received(
    address: str, on_lag: Any, direct: bool
) -> None:
    # It was received, and the policy gives it up right then: the array is of what comes behind.
    with (
        Server(address, log_size=1 << 17, share_log=True, on_lag=on_lag, patience=0) as server,
        Client(address, on_gap="yield") as client,
    ):
        server.publish(bytes(1 << 14))
        stream: Any = client._stream
        assert stream.peek() == 0
        for number in range(1, 12):
            server.publish(bytes([number]) * (1 << 14))
        assert stream.direct
        stream.direct = direct
        if on_lag == "disconnect":
            with pytest.raises(Lagged) as caught:
                client.receive_array("S16384", DEADLINE)
            assert caught.value.first_lost == FIRST_ID
            return
        gap = client.receive_array("S16384", DEADLINE)
        assert isinstance(gap, Gap)
        assert gap.first == FIRST_ID
        found = client.receive_array("S16384", DEADLINE)
        assert not isinstance(found, Gap)
        assert found.tobytes()[-1] == 11


def test_without_numpy_all_but_arrays_works(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with Server(address) as server, Client(address) as client:
        server.publish_many(memoryview(b"12345678").cast("B", (2, 4)))
        with pytest.raises(ImportError, match=r"not installed: pip install 'jumiks\[numpy\]'"):
            client.receive_array("<f4", DEADLINE)
        with client.receive_many(DEADLINE) as batch:
            assert bytes(batch.frames())[16:20] == b"1234"
            assert batch.rows().shape == (2, 4)
            with pytest.raises(ImportError, match=r"not installed: pip install 'jumiks\[numpy\]'"):
                batch.array("<f4")
            assert list(batch) == [b"1234", b"5678"]


@needs_numpy
def test_an_async_client_receives_arrays(address: str) -> None:
    async def main() -> None:
        async with AsyncServer(address) as server, AsyncClient(address) as client:
            with pytest.raises(Timeout):
                await client.receive_array(FIELDS, 0)
            with pytest.raises(TypeError, match="Python objects"):
                await client.receive_array(object)
            waiting = asyncio.create_task(client.receive_array(FIELDS, DEADLINE))
            await asyncio.sleep(0)
            assert server.publish_many(ticks(3)) == range(FIRST_ID, FIRST_ID + 3)
            assert ((await waiting) == ticks(3)).all()
            await server.publish_many_wait(ticks(3)[:2])
            with pytest.raises(ValueError, match="has 8 bytes, and the messages have 20"):
                await client.receive_array("f8", DEADLINE)
            with await client.receive_many(DEADLINE) as batch:
                assert len(batch.array(FIELDS)) == 2

    asyncio.run(main())


# ---- arrays to publish ----


class Tick(ctypes.Structure):
    _fields_ = (("time", ctypes.c_int64), ("price", ctypes.c_double))


def rows_of(*shape: int, code: Any = "B") -> memoryview:
    size = memoryview(bytes(8)).cast(code).itemsize
    count = 1
    for each in shape:
        count *= each
    flat = bytes(number % 251 for number in range(count * size))
    return memoryview(flat).cast("B").cast(code, shape)


ARRAYS: list[tuple[Any, list[bytes]]] = [
    (rows_of(3, 4), [b"\0\1\2\3", b"\4\5\6\7", b"\x08\x09\x0a\x0b"]),
    (rows_of(2, 3, 2), [bytes(range(6)), bytes(range(6, 12))]),
    (rows_of(2, 1, code="H"), [b"\0\1", b"\2\3"]),
    (array.array("I", [1, 2, 3]), [n.to_bytes(4, sys.byteorder) for n in (1, 2, 3)]),
    ((Tick * 2)(Tick(1, 2.0), Tick(3, 4.0)), [bytes(Tick(1, 2.0)), bytes(Tick(3, 4.0))]),
    ((ctypes.c_char * 3 * 2).from_buffer_copy(b"abcdef"), [b"abc", b"def"]),
    (array.array("I", []), []),
]


@pytest.mark.parametrize(("rows", "messages"), ARRAYS, ids=lambda value: type(value).__name__)
def test_each_item_of_an_array_is_a_message(
    server: Server, rows: Any, messages: list[bytes]
) -> None:
    with Client(server.address) as client:
        ids = server.publish_many(rows)
        assert ids == range(FIRST_ID, FIRST_ID + len(messages))
        assert receive(client, len(messages)) == messages


def numpy_arrays() -> list[Callable[[], Any]]:
    return [
        lambda: ticks(5),
        lambda: ticks(5)[::-1],
        lambda: ticks(9)[1::3],
        lambda: ticks(5)["price"],
        lambda: np.arange(24.0).reshape(4, 3, 2),
        lambda: np.arange(24.0).reshape(4, 6)[::2],
        lambda: np.arange(24.0).reshape(4, 6)[:, 2:4],
        lambda: np.arange(24.0).reshape(6, 4)[::-2, 1:3],
        lambda: np.broadcast_to(np.arange(3, dtype="u1"), (4, 3)),
        lambda: np.zeros((3, 0)),
        lambda: np.zeros((0, 3)),
        lambda: np.zeros(3, "V0"),
        lambda: np.array(["ab", "c"], "S5"),
        lambda: np.array([1, 2], "<M8[ns]"),
        lambda: np.array([(1, 2, 3)] * 3, [("when", "<M8[ns]"), ("P", "<f8"), ("O", "u1")]),
        lambda: np.array([(1,), (2,)], [("byte", "u1")]),
        lambda: np.arange(6, dtype="c16"),
    ]


@needs_numpy
@pytest.mark.parametrize("number", range(len(numpy_arrays())))
def test_numpy_arrays_are_published_item_by_item(server: Server, number: int) -> None:
    rows = numpy_arrays()[number]()
    with Client(server.address) as client:
        assert len(server.publish_many(rows)) == len(rows)
        assert receive(client, len(rows)) == [
            rows[at : at + 1].tobytes() for at in range(len(rows))
        ]


@needs_numpy
def test_a_column_of_records_is_strided_and_still_items(server: Server) -> None:
    with Client(server.address) as client:
        server.publish_many(ticks(4)["price"])
        assert client.receive_array("<f8", DEADLINE).tolist() == [0, 0.5, 1, 1.5]


class Pointers(ctypes.Structure):
    _fields_ = (("O", ctypes.c_int), ("next", ctypes.c_void_p))


NO_MESSAGES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: b"bytes", TypeError, r"use publish for one; bytes that are many messages of one size"),
    (lambda: memoryview(bytes(4)).cast("b"), TypeError, "use publish for one"),
    (lambda: array.array("b", [1]), TypeError, "use publish for one"),
    (lambda: (ctypes.c_char * 4)(), TypeError, "use publish for one"),
    (lambda: ctypes.c_double(1), TypeError, "use publish for one"),
    (lambda: (ctypes.py_object * 2)(), TypeError, "Python objects or pointers .*O"),
    (
        lambda: (Pointers * 2)(),
        TypeError,
        r"Python objects or pointers in them \(format 'T{.*P:next",
    ),
    (lambda: (ctypes.c_char_p * 2)(), TypeError, "Python objects or pointers .*z"),
    (lambda: (ctypes.c_wchar_p * 2)(), TypeError, "Python objects or pointers .*Z"),
    (lambda: (ctypes.POINTER(ctypes.c_int) * 2)(), TypeError, "Python objects or pointers .*&"),
    (lambda: (ctypes.CFUNCTYPE(None) * 2)(), TypeError, "Python objects or pointers .*X"),
]


@pytest.mark.parametrize("number", range(len(NO_MESSAGES)))
def test_what_has_no_messages_for_items_is_refused(server: Server, number: int) -> None:
    make, kind, words = NO_MESSAGES[number]
    with pytest.raises(kind, match=words):
        server.publish_many(make())
    assert server.stats().published == 0


@needs_numpy
def test_numpy_arrays_without_messages_are_refused(server: Server) -> None:
    for wrong, kind, words in [
        (np.array([{}, None]), TypeError, "Python objects or pointers"),
        (np.array([(1, "x")], [("a", "i4"), ("b", object)]), TypeError, "objects or pointers"),
        (np.array([(1, "x")], [("a", "M8[s]"), ("b", object)]), ValueError, "dtype 'M'"),
        (np.zeros((4, 4), order="F"), BufferError, "a row of this .* is not contiguous"),
        (np.zeros((4, 4))[:, ::2], BufferError, "a row of this .* is not contiguous in memory"),
        (np.zeros((4, 4))[:, ::-1], BufferError, "numpy.ascontiguousarray"),
        (np.zeros((2, 2, 2)).transpose(0, 2, 1), BufferError, "a row of this"),
        (np.zeros(4, "u1"), TypeError, "use publish for one"),
        (np.zeros(4, "?"), TypeError, "use publish for one"),
        (np.float64(1), TypeError, "use publish for one"),
    ]:
        with pytest.raises(kind, match=words):
            server.publish_many(wrong)
    assert server.stats().published == 0
    server.publish_many([np.zeros(2), np.float64(1)])  # in a sequence each is a message


def addresses() -> list[Any]:
    """Buffers of bytes that are addresses in this process."""
    found: list[Any] = [(ctypes.py_object * 2)(), (ctypes.c_void_p * 2)(), (Pointers * 2)()]
    if np is not None:
        objects = np.array(["secret"], object)
        times = np.array([(0, "x")], [("a", "M8[s]"), ("b", object)])  # has no format
        found += [objects, memoryview(objects), times, np.array(["x"], np.dtypes.StringDType())]
    return found


def test_addresses_are_no_message(server: Server) -> None:
    """They told what lies where in the publisher's memory, and nothing else."""
    for wrong in addresses():
        with pytest.raises(TypeError, match=r"^a message, .* has Python objects or pointers"):
            server.publish(wrong)
        with pytest.raises(TypeError, match=r"^message 1 of the sequence, .* publish what they st"):
            server.publish_many([b"fine", wrong])
    assert server.stats().published == 0


def test_an_array_that_was_refused_or_published_is_free_again(server: Server) -> None:
    numbers = array.array("I", [1, 2])
    server.publish_many(numbers)
    numbers.append(3)
    single = array.array("b", [1, 2])
    with pytest.raises(TypeError):
        server.publish_many(single)
    single.append(3)


def test_rows_that_are_too_large_are_refused(address: str) -> None:
    with Server(address, max_message=100) as server:
        with pytest.raises(MessageTooLarge) as caught:
            server.publish_many(rows_of(3, 101))
        assert (caught.value.size, caught.value.limit, caught.value.offset) == (101, 100, None)
        assert len(server.publish_many(rows_of(3, 100))) == 3


def test_an_array_waits_and_times_out_as_a_sequence_does(address: str) -> None:
    rows = memoryview(b"0123456789").cast("B", (5, 2))
    with Server(address, max_lag=3, on_lag="block") as server, Client(address) as client:
        with pytest.raises(Timeout, match="3 of 5 messages were published") as caught:
            server.publish_many(rows, timeout=0.02)
        assert caught.value.published == 3
        assert receive(client, 3) == [b"01", b"23", b"45"]
        client.ack()
        task = Task(lambda: server.publish_many(rows, DEADLINE))
        assert receive(client, 5) == [b"01", b"23", b"45", b"67", b"89"]
        assert task.result() == range(FIRST_ID + 3, FIRST_ID + 8)


def test_an_async_server_publishes_an_array_as_the_policy_lets_it(address: str) -> None:
    rows = memoryview(b"0123456789").cast("B", (5, 2))

    async def main() -> None:
        async with AsyncServer(address, max_lag=2, on_lag="block") as server:
            with Client(address) as client:
                waiting = asyncio.create_task(server.publish_many_wait(rows))
                got = await asyncio.to_thread(receive, client, 5)
                assert got == [b"01", b"23", b"45", b"67", b"89"]
                assert await waiting == range(FIRST_ID, FIRST_ID + 5)

    asyncio.run(main())
