# SPDX-License-Identifier: Apache-2.0
"""Whole batches as frames: `Batch.frames` and `publish_frames`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from support import reference
from support.api import SMALL_LOG, Task, receive
from support.base import DEADLINE
from support.reference import DATA, FRAGMENT, Frame, WireError, decode_frames, encode_frames
from support.servers import AsyncServer, Server

from jumiks import Batch, Client, Closed, Delivery, MessageTooLarge, Timeout
from jumiks._native import gather_frames
from jumiks._wire.handshake import FIRST_ID

every_delivery = pytest.mark.parametrize("delivery", ["shared", "framed", "classic"])

PAYLOADS = [bytes([65 + size]) * size for size in range(18)]


def framed(payloads: list[bytes], first_id: int = FIRST_ID) -> bytes:
    return encode_frames(Frame(first_id + at, payload) for at, payload in enumerate(payloads))


def batches(client: Client, count: int) -> list[Batch]:
    found: list[Batch] = []
    while sum(map(len, found)) < count:
        found.append(client.receive_many(DEADLINE))
    return found


# ---- Batch.frames ----


@every_delivery
def test_frames_of_a_batch_are_those_of_the_protocol(address: str, delivery: Delivery) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish_many(PAYLOADS)
        got = b""
        while client.last_id < FIRST_ID + len(PAYLOADS) - 1:
            batch = client.receive_many(DEADLINE)
            frames = batch.frames()
            assert (frames.readonly, frames.ndim, frames.format) == (True, 1, "B")
            assert bytes(frames) == framed(list(batch), batch.first_id)
            got += bytes(frames)
        assert got == framed(PAYLOADS)


@pytest.mark.parametrize("delivery", ["shared", "framed"])
@pytest.mark.usefixtures("large_log")
def test_a_message_in_fragments_is_one_frame(address: str, delivery: Delivery) -> None:
    message = bytes(range(256)) * 1200
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish(message)
        assert bytes(client.receive_many(DEADLINE).frames()) == framed([message])


LOOKS: list[Callable[[Client, Batch], object]] = [
    lambda client, batch: None,
    lambda client, batch: list(batch),
    lambda client, batch: batch.views(),
    lambda client, batch: batch.frames(),
    lambda client, batch: (batch.frames(), list(batch), batch.views()),
]


@every_delivery
@pytest.mark.parametrize("look", LOOKS)
def test_frames_views_and_messages_may_be_asked_for_in_any_order(
    address: str, delivery: Delivery, look: Callable[[Client, Batch], object]
) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish_many(PAYLOADS)
        batch = client.receive_many(DEADLINE)
        look(client, batch)
        count = len(batch)
        assert bytes(batch.frames()) == framed(PAYLOADS[:count])
        assert [bytes(view) for view in batch.views()] == PAYLOADS[:count]
        assert list(batch) == PAYLOADS[:count]


@pytest.mark.parametrize("ack", ["after", "before"])
def test_frames_of_messages_that_were_received_one_by_one_before(address: str, ack: Any) -> None:
    with Server(address) as server, Client(address, ack=ack) as client:
        server.publish_many(PAYLOADS)
        assert client.receive(DEADLINE) == b""
        rest = client.receive_many(DEADLINE)
        assert bytes(rest.frames()) == framed(list(rest), FIRST_ID + 1)


def test_a_batch_of_a_shared_log_is_one_stretch_also_where_the_log_ends(address: str) -> None:
    # Each round ends elsewhere in the log, and many batches lie across its end.
    with (
        Server(address, log_size=SMALL_LOG, share_log=True) as server,
        Client(address) as client,
    ):
        assert client.delivery == "shared"
        for round_ in range(40):
            payloads = [bytes([at]) * (7 * (round_ * 20 + at) % 2000) for at in range(20)]
            server.publish_many(payloads)
            for batch in batches(client, len(payloads)):
                frames = batch.frames()
                found = decode_frames(bytes(frames))
                assert [frame.id for frame in found] == list(
                    range(batch.first_id, batch.last_id + 1)
                )
                assert [frame.payload for frame in found] == list(batch)
        assert server.stats().published_bytes > 4 * SMALL_LOG


def test_frames_of_a_shared_log_are_not_copied_and_end_with_their_batch(address: str) -> None:
    with Server(address, share_log=True) as server, Client(address) as client:
        server.publish(b"first")
        batch = client.receive_many(DEADLINE)
        frames, part = batch.frames(), batch.frames()[16:21]
        server.publish(b"second")
        assert client.receive(DEADLINE) == b"second"
        with pytest.raises(ValueError, match="released"):
            bytes(frames)
        assert (bytes(part), batch.valid) == (b"first", True)
        client.ack()
        assert server.clients()[0].acked_id < FIRST_ID  # a part that lives on holds acks back
        del part
        assert server.clients()[0].acked_id == FIRST_ID + 1
        with pytest.raises(ValueError, match="this batch was released"):
            batch.frames()


@pytest.mark.parametrize("delivery", ["framed", "classic"])
def test_frames_of_packets_are_a_copy_that_stays(address: str, delivery: Delivery) -> None:
    with Server(address) as server, Client(address, delivery=delivery) as client:
        server.publish(b"first")
        with client.receive_many(DEADLINE) as batch:
            frames = batch.frames()
        server.publish(b"other")
        assert client.receive(DEADLINE) == b"other"
        assert bytes(frames) == framed([b"first"])


# ---- publish_frames ----


@every_delivery
def test_what_frames_returns_can_be_published(address: str, delivery: Delivery) -> None:
    with (
        Server(address) as server,
        Client(address, delivery=delivery) as client,
        Server(address + "-copy") as other,
        Client(address + "-copy") as reader,
    ):
        other.publish(b"one more, so that ids differ")
        server.publish_many(PAYLOADS)
        ids: list[int] = []
        for batch in batches(client, len(PAYLOADS)):
            with batch:
                ids += other.publish_frames(batch.frames())
        assert ids == list(range(FIRST_ID + 1, FIRST_ID + 1 + len(PAYLOADS)))
        assert receive(reader, 1 + len(PAYLOADS))[1:] == PAYLOADS


def test_frames_are_copied_before_publish_frames_returns_whatever_their_ids(
    server: Server,
) -> None:
    frames = bytearray(framed([b"one", b"two"], first_id=3))
    with Client(server.address) as client:
        assert server.publish_frames(memoryview(frames)) == range(FIRST_ID, FIRST_ID + 2)
        frames[:] = bytes(len(frames))
        frames.extend(b"and nobody holds on to it")
        assert receive(client, 2) == [b"one", b"two"]


def test_no_frames_are_no_messages(server: Server) -> None:
    assert server.publish_frames(b"") == range(FIRST_ID, FIRST_ID)
    assert server.stats().published == 0


def frame(payload: bytes = b"payload", kind: int = DATA, flags: int = 0) -> bytes:
    return encode_frames([Frame(1, payload, kind, flags)])


GOOD = frame(b"good")  # 24 bytes

WRONG: list[tuple[bytes, str]] = [
    (b"x", "24 of the buffer: 1 bytes are left, and a frame begins with a header of 16 bytes"),
    (frame()[:15], "24 of the buffer: 15 bytes are left"),
    (
        frame()[:-1],
        "24 of the buffer: its payload of 7 bytes, with the padding, goes beyond the end",
    ),
    (
        frame()[:16],
        "24 of the buffer: its payload of 7 bytes, with the padding, goes beyond the end",
    ),
    (b"\xff" * 4 + frame()[4:], "24 of the buffer: its payload of 4294967295 bytes, with the"),
    (frame(kind=2), "24 of the buffer: its kind is 2, and only DATA, which is 1, can be published"),
    (bytes(64), "24 of the buffer: its kind is 0, and only DATA"),
    (frame(flags=FRAGMENT), "24 of the buffer: its flags are 1, and must be 0: a fragment"),
    (frame(flags=0x8000), "24 of the buffer: its flags are 32768, and must be 0"),
    (frame()[:-1] + b"x", "24 of the buffer: behind its payload of 7 bytes there must be zeros"),
    (frame() + GOOD[8:], "48 of the buffer: its "),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_publish_frames_names_the_offset_of_what_is_wrong_and_publishes_nothing(
    server: Server, wrong: bytes, words: str
) -> None:
    buffer = bytearray(GOOD + wrong)
    with pytest.raises(ValueError, match="no frame at offset " + re.escape(words)):
        server.publish_frames(buffer)
    buffer.append(1)  # it is free again
    assert server.stats().published == 0


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        ([GOOD], TypeError, "takes one buffer of frames, .*, not <class 'list'>: use publish_many"),
        ("text", TypeError, "takes one buffer of frames, .*, not <class 'str'>"),
        (None, TypeError, "takes one buffer of frames, .*, not <class 'NoneType'>"),
        (memoryview(GOOD)[::2], BufferError, "not contiguous in memory: copy them with bytes"),
    ],
)
def test_publish_frames_takes_one_contiguous_buffer(
    server: Server, wrong: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        server.publish_frames(wrong)


def test_a_frame_that_is_too_large_is_named_by_its_offset(address: str) -> None:
    with Server(address, max_message=100) as server:
        with pytest.raises(MessageTooLarge, match="in the frame at offset 24, is larger") as caught:
            server.publish_frames(framed([b"good", bytes(101), b"good"]))
        assert (caught.value.size, caught.value.limit, caught.value.offset) == (101, 100, 24)
        with pytest.raises(MessageTooLarge, match="in the frame at offset 0, is larger"):
            server.publish_frames(framed([bytes(101)] * 3))
        with pytest.raises(MessageTooLarge, match="in the frame at offset 24, is larger"):
            server.publish_frames(framed([b"good", bytes(101), bytes(101)]))
        with pytest.raises(MessageTooLarge, match=r"101 bytes is larger") as caught:
            server.publish_many([bytes(101)])
        assert caught.value.offset is None
        assert server.stats().published == 0


def test_publish_frames_waits_and_times_out_as_publish_many_does(address: str) -> None:
    payloads = [b"%d" % number for number in range(5)]
    with Server(address, max_lag=3, on_lag="block") as server, Client(address) as client:
        with pytest.raises(Timeout, match="3 of 5 messages were published") as caught:
            server.publish_frames(framed(payloads), timeout=0.02)
        assert caught.value.published == 3
        assert receive(client, 3) == payloads[:3]
        client.ack()
        task = Task(lambda: server.publish_frames(framed(payloads), DEADLINE))
        assert receive(client, 5) == payloads
        assert task.result() == range(FIRST_ID + 3, FIRST_ID + 8)
        waiting = Task(lambda: server.publish_frames(framed(payloads)))
        waiting.sleeps_in("publish_frames")
        server.close()
        with pytest.raises(Closed):
            waiting.result()


def test_many_times_the_log_of_frames_is_published_as_one(address: str) -> None:
    payloads = [number.to_bytes(4, "little") * 64 for number in range(1000)]
    with Server(address, log_size=SMALL_LOG, on_lag="block") as server, Client(address) as client:
        received = Task(lambda: receive(client, len(payloads)))
        assert len(server.publish_frames(framed(payloads), timeout=DEADLINE)) == len(payloads)
        assert received.result() == payloads


def test_a_buffer_that_changes_after_the_check_changes_no_size(server: Server) -> None:
    # As a shared log does whose server is hostile: what was checked is what is copied.
    frames = bytearray(framed([b"one", b"two"]))
    with Client(server.address) as client:
        found = gather_frames(frames)
        frames[0:4] = frames[24:28] = b"\xff" * 4
        frames[16:19] = b"ONE"
        assert server._turns().append_many(found, 0, 0)[:2] == (0, 2)
        assert receive(client, 2) == [b"ONE", b"two"]


def reference_says(data: bytes) -> list[bytes] | None:
    """The messages in a buffer of frames; None: it is none."""
    try:
        found = decode_frames(data)
    except WireError:
        return None
    if encode_frames(found) != data or any(each.kind != DATA or each.flags for each in found):
        return None
    return [each.payload for each in found]


FRAMES = st.builds(
    lambda size, kind, flags, payload, more: (
        size.to_bytes(4, "little") + bytes([kind, 0, flags, 0]) + bytes(8) + payload + more
    ),
    st.integers(0, 9) | st.just(2**32 - 1),
    st.sampled_from([1, 1, 1, 1, 2, 3]),
    st.sampled_from([0, 0, 0, 0, 1, 2]),
    st.binary(max_size=9),
    st.binary(max_size=1) | st.just(bytes(7)),
)


def test_any_bytes_are_published_as_the_protocol_reads_them_or_not_at_all(address: str) -> None:
    @hypothesis.settings(max_examples=150)
    @hypothesis.given(
        data=st.binary(max_size=64)
        | st.lists(FRAMES, max_size=4).map(b"".join)
        | st.lists(st.binary(max_size=9), max_size=5).map(framed)
    )
    def publish(data: bytes) -> None:
        due = reference_says(data)
        before = server.stats().published
        if due is None:
            with pytest.raises(ValueError, match="no frame at offset"):
                server.publish_frames(data)
            assert server.stats().published == before
        else:
            assert len(server.publish_frames(data)) == len(due)
            assert receive(client, len(due)) == due

    with Server(address) as server, Client(address) as client:
        publish()


# ---- in an event loop ----


def test_an_async_server_publishes_frames_at_once_or_as_the_policy_lets_it(address: str) -> None:
    payloads = [b"%d" % number for number in range(5)]

    async def main() -> None:
        async with AsyncServer(address, max_lag=3, on_lag="block") as server:
            with Client(address) as client:
                assert server.publish_frames(framed([b"at once"])) == range(FIRST_ID, FIRST_ID + 1)
                with pytest.raises(Timeout):
                    server.publish_frames(framed(payloads))
                assert receive(client, 3) == [b"at once", b"0", b"1"]
                client.ack()
                waiting = asyncio.create_task(server.publish_frames_wait(framed(payloads)))
                got = await asyncio.to_thread(receive, client, 5)
                assert got == payloads
                assert await waiting == range(FIRST_ID + 3, FIRST_ID + 8)
                with pytest.raises(ValueError, match="at offset 0"):
                    await server.publish_frames_wait(bytes(16))
                with pytest.raises(Timeout, match=r"of 5 messages were published"):
                    client.ack()
                    await server.publish_frames_wait(framed(payloads), 0.02)

    asyncio.run(main())


def test_publish_frames_beside_a_batch_that_waits_says_so(address: str) -> None:
    async def main() -> None:
        async with AsyncServer(address, max_lag=1, on_lag="block") as server:
            with Client(address) as client:
                waiting = asyncio.create_task(server.publish_frames_wait(framed([b"1", b"2"])))
                while server.stats().published < 1:
                    await asyncio.sleep(0)
                with pytest.raises(Timeout, match="await publish_frames_wait instead"):
                    server.publish_frames(framed([b"3"]))
                assert await asyncio.to_thread(receive, client, 2) == [b"1", b"2"]
                await waiting

    asyncio.run(main())


def test_the_reference_of_this_module_reads_what_it_writes() -> None:
    assert reference_says(framed(PAYLOADS)) == PAYLOADS
    assert reference_says(frame(flags=FRAGMENT)) is None
    assert reference.FRAME_HEADER == 16
