# SPDX-License-Identifier: Apache-2.0
import gc
import random
import select
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.api import (
    SMALL_LOG,
    Task,
    arenas_of,
    receive,
)
from support.base import BEST, DEADLINE, wait_until
from support.receiving import FIVE, all_arrived, both_ways
from support.servers import Server

from jumiks import AckError, Client, ClientInfo, Delivery, Gap, Refused, Timeout
from jumiks._native import address_of, ffi
from jumiks._wire.handshake import FIRST_ID


class Witness:
    """A server that remembers how its clients ended."""

    def __init__(self, address: str, max_lag: int | None = None) -> None:
        self.ends: list[ClientInfo] = []
        self.server = Server(
            address, max_lag=max_lag, on_disconnect=lambda info, _: self.ends.append(info)
        )

    def acked_at_the_end(self) -> int:
        """The last message that the only client acked, once it is gone."""
        wait_until(lambda: self.ends)
        return self.ends[0].acked_id

    def acked(self) -> int:
        """The same while it is there."""
        (info,) = self.server.clients()
        return info.acked_id


@pytest.fixture
def witness(address: str) -> Iterator[Witness]:
    witness = Witness(address)
    with witness.server:
        yield witness


def has_arrived(client: Client) -> bool:
    return bool(select.select([client.fileno()], [], [], DEADLINE)[0])


def all_acked(client: Client) -> bool:
    client.ack()
    return client.lag == 0


# ---- iteration, run, and what they ack ----


@both_ways
def test_the_message_at_a_break_is_not_acked_and_those_before_it_are(
    witness: Witness, delivery: Delivery
) -> None:
    with Client(witness.server.address, delivery=delivery) as client:
        witness.server.publish_many(FIVE)
        got = []
        for message in client:
            got.append(message)
            if message == b"two":
                break
        assert got == FIVE[:3]
        assert client.last_id == FIRST_ID + 2
    assert witness.acked_at_the_end() == FIRST_ID + 1


def test_after_a_break_the_next_loop_goes_on_behind_it_and_acks_it(witness: Witness) -> None:
    with Client(witness.server.address) as client:
        witness.server.publish_many(FIVE)
        assert next(iter(client)) == b"zero"
        assert next(iter(client)) == b"one"
        for message in client:
            if message == b"four":
                break
        assert client.last_id == FIRST_ID + 4
    assert witness.acked_at_the_end() == FIRST_ID + 3


@both_ways
def test_a_loop_that_waits_for_the_next_message_has_acked_all_others(
    server: Server, delivery: Delivery
) -> None:
    with Client(server.address, delivery=delivery) as client:
        task = Task(lambda: list(client))
        server.publish_many(FIVE)
        server.drain(DEADLINE)
        server.publish(b"five")
        server.drain(DEADLINE)
        client.close()
        assert task.result() == [*FIVE, b"five"]


def test_a_message_that_is_being_handled_is_not_acked_yet(witness: Witness) -> None:
    server = witness.server
    with Client(server.address) as client:
        server.publish_many(FIVE)
        for message in client:
            if message != b"two":
                continue
            with pytest.raises(Timeout) as caught:
                server.drain(0.05)
            assert isinstance(caught.value.holder, ClientInfo)
            assert caught.value.holder.acked_id < FIRST_ID + 2
            break


def test_a_slow_loop_acks_by_time_within_a_batch(witness: Witness) -> None:
    with Client(witness.server.address) as client:
        witness.server.publish_many(FIVE)
        for message in client:
            if message == b"one":
                since = time.monotonic()
                wait_until(lambda: time.monotonic() > since + 0.02)  # noqa: B023
            if message == b"two":
                wait_until(lambda: witness.acked() == FIRST_ID + 1)
                break


def test_a_loop_acks_within_a_batch_before_it_is_half_way_to_max_lag(address: str) -> None:
    witness = Witness(address, max_lag=8)
    with witness.server as server, Client(address) as client:
        # A batch of 8 is the most that goes out before an ack, and nobody may be cut.
        server.publish_many([b"%d" % number for number in range(8)])
        all_arrived(server, FIRST_ID + 7)
        for number, message in enumerate(client):
            assert message == b"%d" % number
            if number >= 3:
                wait_until(lambda: witness.acked() >= FIRST_ID + number - 3)  # noqa: B023
            if number == 7:
                break


@both_ways
def test_run_acks_what_its_handler_returned_from(witness: Witness, delivery: Delivery) -> None:
    server = witness.server
    with Client(server.address, delivery=delivery) as client:
        server.publish_many(FIVE)
        got: list[bytes] = []
        task = Task(lambda: client.run(got.append))
        server.drain(DEADLINE)
        client.close()
        task.result()
        assert got == FIVE
    assert witness.acked_at_the_end() == FIRST_ID + 4


@both_ways
def test_run_leaves_the_message_unacked_for_which_its_handler_raised(
    witness: Witness, delivery: Delivery
) -> None:
    got: list[bytes] = []

    def handle(message: bytes) -> None:
        if message == b"two" and len(got) == 2:
            raise KeyError("no such thing")
        got.append(message)

    with Client(witness.server.address, delivery=delivery) as client:
        witness.server.publish_many(FIVE)
        with pytest.raises(KeyError, match="no such thing"):
            client.run(handle)
        assert got == FIVE[:2]
        position = client.position
    assert witness.acked_at_the_end() == FIRST_ID + 1
    with Client(witness.server.address, start=position) as again:
        assert receive(again, 3) == FIVE[2:]


@both_ways
def test_another_run_goes_on_behind_the_message_that_failed(
    witness: Witness, delivery: Delivery
) -> None:
    got: list[bytes] = []
    with Client(witness.server.address, delivery=delivery) as client:
        witness.server.publish_many(FIVE)
        with pytest.raises(ZeroDivisionError):
            client.run(lambda _: 1 // 0)
        for message in FIVE[1:]:
            assert client.receive(DEADLINE) == message
        assert got == []


async def never_awaited(_message: bytes) -> None:
    raise AssertionError


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (5, "handler is a function that takes a message, not 5"),
        (None, "handler is a function that takes a message, not None"),
        (
            never_awaited,
            "handler is a plain function, as only AsyncClient awaits what <function never_",
        ),
    ],
)
def test_run_refuses_at_once_what_handles_nothing(server: Server, wrong: Any, words: str) -> None:
    with Client(server.address) as client, pytest.raises(TypeError, match=words):
        client.run(wrong)


# ---- receive, receive_many, ack ----


@both_ways
def test_what_receive_handed_out_is_acked_when_it_is_called_again(
    witness: Witness, delivery: Delivery
) -> None:
    with Client(witness.server.address, delivery=delivery) as client:
        witness.server.publish_many(FIVE[:2])
        assert receive(client, 2) == FIVE[:2]
        task = Task(client.receive)
        witness.server.drain(DEADLINE)
        witness.server.publish(b"two")
        assert task.result() == b"two"
    assert witness.acked_at_the_end() == FIRST_ID + 1


def test_what_receive_handed_out_last_is_not_acked_by_close(witness: Witness) -> None:
    with Client(witness.server.address) as client:
        witness.server.publish_many(FIVE)
        assert receive(client, 3) == FIVE[:3]
    assert witness.acked_at_the_end() == FIRST_ID + 1


def test_a_batch_is_acked_as_a_whole_when_receive_many_is_called_again(witness: Witness) -> None:
    with Client(witness.server.address) as client:
        witness.server.publish_many(FIVE)
        all_arrived(witness.server, FIRST_ID + 4)
        assert list(client.receive_many(DEADLINE)) == FIVE
        with pytest.raises(Timeout):
            witness.server.drain(0.01)
        with pytest.raises(Timeout):
            client.receive_many(0)
        witness.server.drain(DEADLINE)


def test_a_batch_that_was_the_last_is_not_acked_by_close(witness: Witness) -> None:
    with Client(witness.server.address) as client:
        witness.server.publish_many(FIVE[:2])
        assert receive(client, 2) == FIVE[:2]
        witness.server.publish_many(FIVE[2:])
        assert client.receive_many(DEADLINE).first_id == FIRST_ID + 2
    assert witness.acked_at_the_end() == FIRST_ID + 1


@both_ways
def test_ack_by_hand_acks_at_once_and_all_before(witness: Witness, delivery: Delivery) -> None:
    with Client(witness.server.address, delivery=delivery) as client:
        witness.server.publish_many(FIVE)
        receive(client, 4)
        client.ack(FIRST_ID + 1)
        # More than that only if the messages came in more than one read.
        wait_until(lambda: FIRST_ID + 1 <= witness.acked() <= FIRST_ID + 2)
        assert client.lag >= 1
        client.ack(FIRST_ID)
        client.ack(FIRST_ID + 1)
        client.ack()
        wait_until(lambda: witness.acked() == FIRST_ID + 3)
        client.receive(DEADLINE)
        client.ack()
        witness.server.drain(DEADLINE)
        assert client.lag == 0
    assert witness.acked_at_the_end() == FIRST_ID + 4


def test_ack_before_the_first_message_is_nothing(server: Server) -> None:
    with Client(server.address) as client:
        client.ack()
        assert (client.last_id, client.lag) == (0, 0)
        server.publish(b"")
        assert client.receive(DEADLINE) == b""


def test_an_ack_for_what_was_not_handed_out_is_refused_and_harms_nothing(
    witness: Witness,
) -> None:
    with Client(witness.server.address) as client:
        with pytest.raises(AckError, match=r"100000 was not handed out; the last one was none"):
            client.ack(FIRST_ID)
        witness.server.publish_many(FIVE)
        receive(client, 2)
        for wrong in (FIRST_ID + 2, 1 << 64, -1):
            with pytest.raises(AckError, match=f"{wrong} was not .* the last one was 100001"):
                client.ack(wrong)
        assert receive(client, 3) == FIVE[2:]
    assert witness.acked_at_the_end() == FIRST_ID + 3


def test_last_id_and_lag_follow_what_was_handed_out_and_acked(server: Server) -> None:
    with Client(server.address) as client:
        assert (client.last_id, client.lag) == (0, 0)
        server.publish_many(FIVE)
        all_arrived(server, FIRST_ID + 4)
        client.receive(DEADLINE)
        assert client.last_id == FIRST_ID
        assert client.lag == 5
        client.ack()
        assert client.lag == 4
        assert client.receive_many(DEADLINE).last_id == client.last_id == FIRST_ID + 4
        client.ack()
        assert client.lag == 0


@both_ways
def test_a_client_says_what_it_is(server: Server, delivery: Delivery) -> None:
    with Client(server.address, delivery=delivery) as client:
        assert client.delivery == (BEST if delivery == "shared" else "classic")
        assert client.server_id == server.server_id != 0
        server.publish(b"")
        client.receive(DEADLINE)
        assert repr(client) == f"<jumiks.Client {server.address} (last 100000)>"
    assert repr(client) == f"<jumiks.Client {server.address} (closed)>"


def test_fileno_is_readable_when_a_message_is_there(server: Server) -> None:
    with Client(server.address) as client:
        assert select.select([client.fileno()], [], [], 0)[0] == []
        server.publish(b"")
        assert has_arrived(client)
        assert client.receive(0) == b""
        assert select.select([client.fileno()], [], [], 0)[0] == []


def test_an_ack_takes_views_of_the_log_back_and_is_not_held_up_by_them(server: Server) -> None:
    with Client(server.address, delivery="shared") as client:
        server.publish_many([b"one", b"two", b"three"])
        batch = client.receive_many(DEADLINE)
        views = batch.views()
        client.ack(batch.first_id)
        assert [bytes(view) for view in views] == [b"one", b"two", b"three"]
        client.ack()
        assert client.lag == 0
        if client.delivery == "shared":
            with pytest.raises(ValueError, match="released"):
                bytes(views[0])


# ---- start ----


def test_a_start_now_gets_what_is_published_from_now_on(server: Server) -> None:
    server.publish(b"before")
    with Client(server.address, start="now") as client:
        server.publish(b"after")
        assert client.receive(DEADLINE) == b"after"
        assert (client.last_id, client.missed) == (FIRST_ID + 1, 0)


@both_ways
def test_a_start_at_the_oldest_gets_all_that_is_kept(server: Server, delivery: Delivery) -> None:
    server.publish_many(FIVE)
    with Client(server.address, start="oldest", delivery=delivery) as client:
        server.publish(b"five")
        assert receive(client, 6) == [*FIVE, b"five"]
        assert client.last_id == FIRST_ID + 5


@pytest.mark.parametrize("skip", range(6))
def test_a_start_at_an_id_begins_with_it(server: Server, skip: int) -> None:
    server.publish_many(FIVE)
    gaps: list[Gap] = []
    with Client(server.address, start=FIRST_ID + skip, on_gap=gaps.append) as client:
        server.publish(b"five")
        assert receive(client, 6 - skip) == [*FIVE, b"five"][skip:]
        assert (gaps, client.missed) == ([], 0)


@pytest.mark.parametrize("start", ["oldest", FIRST_ID])
def test_a_start_in_an_empty_log_gets_the_first_message(
    server: Server, start: Literal["oldest"] | int
) -> None:
    with Client(server.address, start=start) as client:
        server.publish(b"first")
        assert client.receive(DEADLINE) == b"first"


@both_ways
def test_a_start_that_is_not_kept_any_more_is_clamped_and_the_gap_is_told(
    address: str, delivery: Delivery
) -> None:
    with Server(address, log_size=SMALL_LOG) as server:
        ids = server.publish_many([b"%04d" % number * 25 for number in range(2000)])
        oldest = server.stats().oldest_id
        assert oldest > FIRST_ID + 10
        gaps: list[Gap] = []
        with Client(address, start=FIRST_ID + 10, on_gap=gaps.append, delivery=delivery) as client:
            assert gaps == [Gap(FIRST_ID + 10, oldest - 1)]
            assert client.missed == oldest - FIRST_ID - 10
            assert client.receive(DEADLINE) == b"%04d" % (oldest - FIRST_ID) * 25
            assert client.last_id == oldest
            assert len(receive(client, ids[-1] - oldest)) == ids[-1] - oldest
            assert (len(gaps), client.last_id) == (1, ids[-1])


def test_a_start_at_the_oldest_tells_no_gap(address: str) -> None:
    with Server(address, log_size=SMALL_LOG) as server:
        server.publish_many([bytes(1000)] * 1000)
        gaps: list[Gap] = []
        with Client(address, start="oldest", on_gap=gaps.append) as client:
            client.receive(DEADLINE)
            assert client.last_id == server.stats().oldest_id > FIRST_ID
            assert (gaps, client.missed) == ([], 0)


def test_a_start_beyond_what_was_published_is_refused(server: Server) -> None:
    server.publish_many(FIVE)
    with pytest.raises(Refused, match=r"start 100006 lies beyond.* next packet id is 100005"):
        Client(server.address, start=FIRST_ID + 6)
    assert server.clients() == ()


def test_a_restarted_server_is_told_by_its_id_and_refuses_a_start_it_does_not_know(
    address: str,
) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish_many(FIVE)
        receive(client, 5)
        place, known = client.last_id + 1, client.server_id
    with Server(address) as server:
        with pytest.raises(Refused):
            Client(address, start=place)
        with Client(address) as client:
            assert client.server_id != known


def test_an_on_gap_that_raises_while_connecting_leaves_nothing(address: str) -> None:
    def fail(gap: Gap) -> None:
        raise KeyError(gap.first)

    with Server(address, log_size=SMALL_LOG) as server:
        server.publish_many([bytes(1000)] * 1000)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(KeyError, match=str(FIRST_ID)):
                Client(address, start=FIRST_ID, on_gap=fail)
            gc.collect()
        assert [str(warning.message) for warning in caught] == []
        wait_until(lambda: not server.clients())


@pytest.mark.parametrize(("error", "times"), [(KeyError, 1), (KeyboardInterrupt, 2)])
def test_a_gap_is_told_once_though_on_gap_raised_and_again_after_a_ctrl_c(
    address: str, error: type[BaseException], times: int
) -> None:
    gaps: list[Gap] = []

    def fail_once(gap: Gap) -> None:
        gaps.append(gap)
        if len(gaps) == 1:
            raise error(gap.first)

    with (
        Server(address, max_lag=4, on_lag="skip", patience=0) as server,
        Client(address, on_gap=fail_once) as slow,
        Client(address) as fast,
    ):
        for number in range(8):
            server.publish(b"%d" % number)
            assert fast.receive(DEADLINE) == b"%d" % number
            fast.ack()
        assert receive(slow, 4) == [b"0", b"1", b"2", b"3"]
        with pytest.raises(error):
            slow.receive(DEADLINE)
        assert slow.receive(DEADLINE) == b"7"
        assert gaps == [Gap(FIRST_ID + 4, FIRST_ID + 6)] * times
        assert slow.missed == 3


def test_the_log_has_the_first_gap_that_nothing_else_tells(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Gap] = []
    for on_gap in (None, told.append):
        with (
            Server(address, max_lag=1, on_lag="skip", patience=0) as server,
            Client(address, on_gap=on_gap) as client,
        ):
            for _ in range(2):
                server.publish_many([b""] * 3)
                assert len(receive(client, 2)) == 2
                client.ack()
            assert client.missed == 2
    assert len(told) == 2
    found = [record for record in caplog.records if " is lost" in record.getMessage()]
    assert [(record.name, record.levelname) for record in found] == [("jumiks", "WARNING")]
    words = f"{address}: message {FIRST_ID + 1} is lost: given up by the server"
    assert found[0].getMessage().startswith(words)


# ---- batches ----


def test_a_batch_is_a_sequence_of_bytes_with_the_ids_of_its_ends(server: Server) -> None:
    server.publish(b"before")
    with Client(server.address) as client:
        server.publish_many(FIVE)
        all_arrived(server, FIRST_ID + 5)
        batch = client.receive_many(DEADLINE)
        assert (batch.first_id, batch.last_id) == (FIRST_ID + 1, FIRST_ID + 5)
        assert (len(batch), batch[0], batch[-1]) == (5, b"zero", b"four")
        assert (batch[1:3], list(batch), list(reversed(batch))) == (FIVE[1:3], FIVE, FIVE[::-1])
        assert b"two" in batch
        assert (batch.index(b"two"), batch.count(b"six")) == (2, 0)
        with pytest.raises(IndexError):
            batch[5]
        assert repr(batch) == "<jumiks.Batch of 5 messages from 100001>"
        assert isinstance(batch[0], bytes)


def test_a_batch_that_was_not_looked_at_stays_right_after_the_next_receive(
    server: Server,
) -> None:
    with Client(server.address) as client:
        batches = []
        for number in range(20):
            server.publish_many([b"%d %d" % (number, place) for place in range(10)])
            all_arrived(server, FIRST_ID + 10 * number + 9)
            batches.append(client.receive_many(DEADLINE))
    for number, batch in enumerate(batches):
        assert batch.first_id == FIRST_ID + 10 * number
        assert list(batch) == [b"%d %d" % (number, place) for place in range(10)]


@pytest.mark.parametrize(
    "how", [Client.receive, Client.receive_many, lambda client: next(iter(client))]
)
def test_a_batch_stays_right_whatever_is_called_next(
    server: Server, how: Callable[[Client], object]
) -> None:
    with Client(server.address) as client:
        server.publish_many(FIVE)
        all_arrived(server, FIRST_ID + 4)
        batch = client.receive_many(DEADLINE)
        server.publish(b"x" * 100)
        how(client)
        assert list(batch) == FIVE


def test_a_batch_outlives_its_client(server: Server) -> None:
    client = Client(server.address)
    server.publish_many(FIVE)
    all_arrived(server, FIRST_ID + 4)
    batch = client.receive_many(DEADLINE)
    client.close()
    del client
    gc.collect()
    assert list(batch) == FIVE
    assert [bytes(view) for view in batch.views()] == FIVE


def test_views_outlive_later_receives_and_the_client(server: Server) -> None:
    client = Client(server.address, delivery="framed")
    kept = []
    for number in range(30):
        server.publish_many([b"%d %d" % (number, place) * 50 for place in range(10)])
        all_arrived(server, FIRST_ID + 10 * number + 9)
        kept.append(client.receive_many(DEADLINE).views())
    client.close()
    del client
    gc.collect()
    for number, views in enumerate(kept):
        assert views == [b"%d %d" % (number, place) * 50 for place in range(10)]


def test_views_show_the_packet_itself(server: Server) -> None:
    with Client(server.address) as client:
        server.publish_many([b"12345678"] * 10)
        all_arrived(server, FIRST_ID + 9)
        views = client.receive_many(DEADLINE).views()
        places = [address_of(ffi.from_buffer(view)) for view in views]
    # They lie side by side, as they came: a header of 16 bytes before each.
    assert [place - places[0] for place in places] == [24 * number for number in range(10)]


def test_a_single_view_keeps_its_memory(server: Server) -> None:
    with Client(server.address) as client:
        server.publish_many(FIVE)
        all_arrived(server, FIRST_ID + 4)
        view = client.receive_many(DEADLINE).views()[2]
        part = view[1:]
        del view
        gc.collect()
        for _ in range(20):
            server.publish_many([b"x" * 10] * 5)
            client.receive_many(DEADLINE)
        assert bytes(part) == b"wo"


def test_views_are_read_only(server: Server) -> None:
    with Client(server.address) as client:
        server.publish_many([b"message", b""])
        all_arrived(server, FIRST_ID + 1)
        batch = client.receive_many(DEADLINE)
        view, empty = batch.views()
        assert view.readonly
        assert (view.nbytes, empty.nbytes) == (7, 0)
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 1
        assert list(batch) == [b"message", b""]


def test_views_may_be_asked_for_after_the_bytes_and_again(server: Server) -> None:
    with Client(server.address) as client:
        server.publish_many(FIVE)
        all_arrived(server, FIRST_ID + 4)
        batch = client.receive_many(DEADLINE)
        assert list(batch) == FIVE
        assert batch.views() == batch.views() == FIVE
        server.publish(b"rest")
        assert next(iter(client)) == b"rest"


# ---- all ways of receiving together ----


@both_ways
@pytest.mark.parametrize("seed", range(4))
def test_ways_of_receiving_may_be_mixed_and_lose_nothing(
    address: str, delivery: Delivery, seed: int
) -> None:
    total = 3000
    choice = random.Random(seed)
    messages = [b"%d" % number * choice.choice((0, 1, 40)) for number in range(total)]
    parts = [messages[start : start + 70] for start in range(0, total, 70)]
    got: list[bytes] = []

    def one() -> None:
        got.append(client.receive(DEADLINE))

    def many() -> None:
        batch = client.receive_many(DEADLINE)
        assert batch.first_id == FIRST_ID + len(got)
        got.extend(batch)

    def views() -> None:
        got.extend(map(bytes, client.receive_many(DEADLINE).views()))

    def loop() -> None:
        end = choice.randrange(1, 50)
        for number, message in enumerate(client):
            got.append(message)
            if number == end or len(got) == total:
                break

    with Server(address, max_lag=500, on_lag="block") as server:
        with Client(address, delivery=delivery) as client:
            task = Task(lambda: [server.publish_many(part) for part in parts])
            while len(got) < total:
                choice.choice((one, one, many, views, loop))()
                assert client.last_id == FIRST_ID + len(got) - 1
            task.result()
            # The socket takes a few hundred acks of a plain client, so again until all are out.
            wait_until(lambda: all_acked(client))
            server.drain(DEADLINE)
    assert got == messages


SIZES = [
    *(0, 1, 7, 8, 9, 4095, 4096),
    *(65519, 65520, 65521, 65536),
    *(131047, 131048, 131049, 131055, 131056, 131057, 131072),
    *(262144, 1 << 20, (1 << 20) + 1, 4 << 20),
]


def pattern(size: int) -> bytes:
    """Bytes of which no two stretches are alike."""
    return random.Random(size).randbytes(size)


# ---- sizes ----


@pytest.mark.parametrize("arena_size", [4096, 65536, 4 << 20])
@pytest.mark.usefixtures("large_log")
def test_messages_of_all_sizes_arrive_in_whichever_packets(address: str, arena_size: int) -> None:
    messages = [message for size in SIZES for message in (pattern(size), b"small")]
    with Server(address, on_lag="block") as server:
        with arenas_of(arena_size), Client(address) as client:
            task = Task(lambda: server.publish_many(messages, DEADLINE))
            for number, message in enumerate(messages):
                # No == in the assertion: a difference of megabytes takes long to show.
                same = client.receive(DEADLINE) == message
                assert same, len(message)
                assert client.last_id == FIRST_ID + number
            task.result()


@pytest.mark.parametrize("size", [131072, 1 << 20, 4 << 20])
@pytest.mark.usefixtures("large_log")
def test_a_large_message_arrives_however_it_is_received(address: str, size: int) -> None:
    message = pattern(size)
    with Server(address, on_lag="block") as server, Client(address) as client:
        server.publish(message, DEADLINE)
        assert (client.receive(DEADLINE) == message) is True
        server.publish(message, DEADLINE)
        batch = client.receive_many(DEADLINE)
        assert (len(batch), batch.first_id) == (1, FIRST_ID + 1)
        assert (batch[0] == message) is True
        server.publish(message, DEADLINE)
        (view,) = client.receive_many(DEADLINE).views()
        assert (view == message) is True
        del view
        server.publish(message, DEADLINE)
        assert (next(iter(client)) == message) is True
        assert client.last_id == FIRST_ID + 3


@pytest.mark.usefixtures("large_log")
def test_views_of_large_messages_outlive_later_ones(address: str) -> None:
    with Server(address, on_lag="block") as server, Client(address, delivery="framed") as client:
        task = Task(
            lambda: [server.publish(pattern(300_000 + number), DEADLINE) for number in range(10)]
        )
        views = [client.receive_many(DEADLINE).views()[0] for _ in range(10)]
        task.result()
    assert [view == pattern(300_000 + number) for number, view in enumerate(views)] == [True] * 10


@pytest.mark.usefixtures("large_log")
def test_a_large_message_waits_for_its_rest_no_longer_than_the_timeout(address: str) -> None:
    with Server(address, on_lag="block") as server, Client(address) as client:
        with server.reserve(4 << 20) as view:
            view[:] = pattern(4 << 20)
            with pytest.raises(Timeout):
                client.receive(0.01)
        message = b""
        while not message:
            try:
                message = client.receive(0)
            except Timeout:
                assert has_arrived(client)
        assert (message == pattern(4 << 20)) is True


@both_ways
@pytest.mark.usefixtures("large_log")
def test_whatever_is_published_arrives_as_it_is(address: str, delivery: Delivery) -> None:
    largest = 300_000 if delivery == "shared" else 200_000
    size = st.one_of(st.integers(0, 64), st.integers(0, largest), st.sampled_from([65520, 131056]))
    content = st.one_of(st.binary(max_size=40), size.map(pattern))
    with Server(address, on_lag="block") as server:
        with Client(address, delivery=delivery) as client:

            @settings(max_examples=60, deadline=None, database=None)
            @given(messages=st.lists(content, max_size=12), together=st.booleans())
            def round_trip(messages: list[bytes], together: bool) -> None:
                if together:
                    ids = list(server.publish_many(messages, DEADLINE))
                else:
                    ids = [server.publish(message, DEADLINE) for message in messages]
                got: list[bytes] = []
                got_ids: list[int] = []
                while len(got) < len(messages):
                    batch = client.receive_many(DEADLINE)
                    got.extend(batch)
                    got_ids.extend(range(batch.first_id, batch.last_id + 1))
                assert (got == messages, got_ids) == (True, ids)

            round_trip()


def test_many_empty_messages_arrive_and_are_counted(server: Server) -> None:
    with Client(server.address) as client:
        ids = server.publish_many([b""] * 40_000)
        count = 0
        while count < 40_000:
            batch = client.receive_many(DEADLINE)
            assert batch.first_id == FIRST_ID + count
            assert not any(batch)
            count += len(batch)
        assert client.last_id == ids[-1]
