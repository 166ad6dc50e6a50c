# SPDX-License-Identifier: Apache-2.0
"""The lag policies block and skip, what nobody waits for, and clients that start in the past."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import reference
from support.api import arenas_of
from support.base import DEADLINE, wait_until
from support.lag import (
    LOG,
    PATIENCE,
    SLOT,
    SLOTS,
    Publish,
    acked,
    acking_by_hand,
    all_paths,
    all_policies,
    as_batch,
    assert_refused,
    both_modes,
    both_ways,
    one_by_one,
    paths_of_frames,
    publishing,
    serving,
)
from support.reference import Message
from support.wire import FIRST_ID, Witness, packets_of, raw_client

import jumiks
from jumiks import Client, ClientInfo, Delivery, EndReason, Gap, Timeout

# ---- block ----


@both_modes
def test_block_waits_until_the_slowest_has_acked(address: str, framed: bool) -> None:
    with serving(address, max_lag=4, on_lag="block") as (server, ends):
        with (
            raw_client(server, address, framed=framed) as slow,
            raw_client(server, address) as fast,
        ):
            server.publish_many([b"x"] * 4)
            fast.ack(FIRST_ID + 3)
            acked(server, FIRST_ID + 3)
            with publishing(server) as ids:
                assert not ids
                slow.ack(FIRST_ID)
            assert ids == [FIRST_ID + 4]
            assert slow.read(5)[-1] == fast.read(5)[-1] == Message(FIRST_ID + 4, b"late")
            assert not ends


@both_modes
def test_a_timeout_names_the_client_that_held_it_up_and_has_published_nothing(
    address: str, framed: bool
) -> None:
    with serving(address, max_lag=4, on_lag="block") as (server, _):
        with (
            raw_client(server, address, framed=framed) as slow,
            raw_client(server, address) as fast,
        ):
            slow_key = min(info.key for info in server.clients())
            server.publish_many([b"x"] * 4)
            fast.ack(FIRST_ID + 1)
            acked(server, FIRST_ID + 1)
            with pytest.raises(Timeout) as caught:
                server.publish(b"never", timeout=0.02)
            holder = caught.value.holder
            assert isinstance(holder, ClientInfo)
            assert (holder.key, holder.pid, holder.lag) == (slow_key, os.getpid(), 4)
            assert (holder.queued, holder.sent_id) == (0, FIRST_ID + 3)
            assert holder.kernel_bytes > 0
            assert holder.delivery == ("framed" if framed else "classic")
            assert f"process {os.getpid()}" in str(caught.value)
            assert "4 messages behind" in str(caught.value)
            assert caught.value.published == 0
            slow.ack(FIRST_ID + 3)
            assert server.publish(b"then", timeout=DEADLINE) == FIRST_ID + 4
            assert slow.read(5)[-1].payload == b"then"


def test_a_timeout_of_a_batch_says_how_many_went_in(address: str) -> None:
    with serving(address, max_lag=4, on_lag="block") as (server, _):
        with raw_client(server, address) as client:
            batch = [b"%d" % number for number in range(10)]
            with pytest.raises(Timeout, match="; 4 of 10 messages were published") as caught:
                server.publish_many(batch, timeout=0.02)
            assert caught.value.published == 4
            assert client.read(4)[-1] == Message(FIRST_ID + 3, b"3")
            client.ack(FIRST_ID + 3)
            acked(server, FIRST_ID + 3)
            with pytest.raises(Timeout) as caught:
                server.publish_many(batch[4:], timeout=0.02)
            assert caught.value.published == 4
            client.ack(FIRST_ID + 7)
            assert server.publish_many(batch[8:], timeout=DEADLINE) == range(
                FIRST_ID + 8, FIRST_ID + 10
            )
            assert [message.payload for message in client.read(6)] == batch[4:]


def test_a_timeout_tells_what_is_queued_behind_a_full_socket(address: str) -> None:
    with serving(address, on_lag="block", log_size=1 << 20) as (server, _):
        with raw_client(server, address):
            with pytest.raises(Timeout) as caught:
                server.publish_many([bytes(1000)] * 2000, timeout=0.02)
            holder = caught.value.holder
            assert isinstance(holder, ClientInfo)
            assert holder.lag == caught.value.published == (1 << 20) // 1016
            assert holder.queued > 0
            assert holder.queued + holder.sent_id == FIRST_ID + holder.lag - 1


def test_a_client_that_leaves_lets_a_blocked_publisher_go_on(address: str) -> None:
    with serving(address, max_lag=4, on_lag="block") as (server, _):
        with raw_client(server, address) as client:
            server.publish_many([b"x"] * 4)
            with publishing(server):
                client.close()


# ---- skip ----


@both_modes
@both_ways
def test_a_client_that_was_skipped_goes_on_once_it_has_acked_all_it_was_sent(
    address: str, framed: bool, publish: Publish
) -> None:
    with serving(address, max_lag=10, on_lag="skip", patience=0) as (server, ends):
        with raw_client(server, address, framed=framed) as client:
            publish(server, 15)
            client.ack(FIRST_ID + 4)
            acked(server, FIRST_ID + 4)
            publish(server, 5)
            client.ack(FIRST_ID + 9)
            wait_until(lambda: server.clients()[0].skipped)
            publish(server, 3, b"again")
            found = client.read(14)
            assert [message.id - FIRST_ID for message in found] == [*range(10), 19, 20, 21, 22]
            assert found[-1].payload == b"again"
            assert server.clients()[0].skipped == server.stats().skipped == 9
            assert not ends


@all_paths
@pytest.mark.parametrize("max_lag", [1, 10])
def test_a_reader_of_states_ends_with_the_last_state_when_the_publisher_falls_silent(
    address: str, path: Delivery, max_lag: int
) -> None:
    gaps: list[Gap] = []
    with serving(address, max_lag=max_lag, on_lag="skip", patience=0) as (server, ends):
        with Client(address, on_gap=gaps.append, delivery=path) as client:
            server.wait_for_clients(1, DEADLINE)
            for number in range(100):
                server.publish(b"%d" % number)
            seen = [client.receive(DEADLINE)]
            while seen[-1] != b"99":
                seen.append(client.receive(DEADLINE))
            assert seen == [b"%d" % number for number in range(max_lag)] + [b"99"]
            assert gaps == [Gap(FIRST_ID + max_lag, FIRST_ID + 98)]
            assert client.missed == server.stats().skipped == 99 - max_lag
            client.ack()
            acked(server, FIRST_ID + 99)
            server.publish(b"next")
            assert client.receive(DEADLINE) == b"next"
            assert len(gaps) == 1
            assert not ends


@pytest.mark.parametrize("delivery", ["shared", "classic"])
def test_our_client_is_told_of_each_gap(address: str, delivery: Delivery) -> None:
    gaps: list[Gap] = []
    with serving(address, max_lag=10, on_lag="skip", patience=0) as (server, _):
        with Client(address, delivery=delivery, on_gap=gaps.append) as client:
            server.wait_for_clients(1, DEADLINE)
            for cycle in range(3):
                start = server.stats().next_id
                server.publish_many([b"x"] * (15 + cycle))
                # The tenth is handled once its receiver comes back for more, and gets the newest.
                assert [client.receive(DEADLINE) for _ in range(11)] == [b"x"] * 11
                assert gaps[cycle:] == [Gap(start + 10, start + 13 + cycle)]
                client.ack()
                acked(server, start + 14 + cycle)
            assert client.missed == server.stats().skipped == 4 + 5 + 6


def test_skip_leaves_the_others_alone(address: str) -> None:
    with serving(address, max_lag=10, on_lag="skip", patience=60) as (server, ends):
        with raw_client(server, address) as stopped, Witness(address) as witness:
            for number in range(200):
                server.publish(b"%d" % number, timeout=DEADLINE)
            witness.wait_for(200)
            assert witness.messages == [b"%d" % number for number in range(200)]
            assert witness.gaps == []
            assert len(stopped.read(10)) == 10
            assert not ends


def test_skip_waits_for_patience_while_all_are_at_their_limit(address: str) -> None:
    with serving(address, max_lag=3, on_lag="skip", patience=0.2) as (server, ends):
        with raw_client(server, address) as client:
            server.publish_many([b"x"] * 3)
            start = time.monotonic()
            server.publish(b"missed")
            assert 0.2 <= time.monotonic() - start < DEADLINE
            server.publish(b"newest")
            client.ack(FIRST_ID + 2)
            wait_until(lambda: server.clients()[0].skipped == 1)
            assert client.read(4)[-1] == Message(FIRST_ID + 4, b"newest")
            assert not ends


@both_modes
def test_skip_by_bytes_frees_the_log_and_drops_what_was_queued(address: str, framed: bool) -> None:
    count = 5 * SLOTS
    with serving(address, log_size=LOG, on_lag="skip", patience=0) as (server, ends):
        with raw_client(server, address, framed=framed) as client:
            as_batch(server, count, SLOT)
            sent = server.clients()[0].sent_id
            assert server.stats().log_held == server.clients()[0].lag_bytes == 0
            client.read(sent - FIRST_ID + 1)
            client.ack(sent)
            wait_until(lambda: server.clients()[0].skipped)
            assert server.publish(b"then") == FIRST_ID + count
            newest = Message(FIRST_ID + count - 1, SLOT)
            assert client.read(2) == [newest, Message(FIRST_ID + count, b"then")]
            assert server.stats().skipped == FIRST_ID + count - 2 - sent
            assert not ends


def test_drain_does_not_wait_for_what_was_skipped(address: str) -> None:
    with serving(address, max_lag=3, on_lag="skip", patience=0) as (server, _):
        with raw_client(server, address) as client:
            server.publish_many([b"x"] * 9)
            with pytest.raises(Timeout):
                server.drain(timeout=0.02)
            client.ack(FIRST_ID + 2)
            with pytest.raises(Timeout):  # it went on with the newest
                server.drain(timeout=0.02)
            client.ack(FIRST_ID + 8)
            server.drain(timeout=DEADLINE)


def test_a_message_partly_sent_is_given_up_when_its_client_is_skipped(address: str) -> None:
    large = os.urandom(250_000)
    options: dict[str, Any] = {"max_lag": 1, "on_lag": "skip", "patience": 0}
    with serving(address, log_size=1 << 20, **options) as (server, ends):
        with raw_client(server, address, max_packet=512) as client:
            server.publish(large)
            wait_until(lambda: server.clients()[0].packets > 100)
            server.publish(b"then")
            packets = []
            for packet in packets_of(client.sock):
                packets.append(packet)
                (frame,) = reference.decode_frames(packet)
                if frame.payload == b"then":
                    break
            assert len(packets) > 100
            assert sum(map(len, packets)) < len(large)
            assert list(reference.read_framed(packets)) == [Message(FIRST_ID + 1, b"then")]
            assert server.stats().skipped == 1
            assert not ends


def test_a_large_message_after_one_that_was_given_up_comes_from_its_beginning(
    address: str,
) -> None:
    later = os.urandom(250_000)
    options: dict[str, Any] = {"max_lag": 1, "on_lag": "skip", "patience": 0}
    with serving(address, log_size=1 << 20, **options) as (server, _):
        with raw_client(server, address, max_packet=512) as client:
            server.publish(bytes(250_000))
            wait_until(lambda: server.clients()[0].packets > 100)
            server.publish(later)
            assert client.read(1) == [Message(FIRST_ID + 1, later)]


def test_our_client_takes_a_message_that_was_given_up_for_a_gap(address: str) -> None:
    gaps: list[Gap] = []
    options: dict[str, Any] = {"max_lag": 1, "on_lag": "skip", "patience": 0}
    with serving(address, log_size=1 << 20, **options) as (server, _):
        with arenas_of(4096), Client(address, delivery="framed", on_gap=gaps.append) as client:
            server.wait_for_clients(1, DEADLINE)
            server.publish(bytes(250_000))
            wait_until(lambda: server.clients()[0].packets > 10)
            server.publish(b"then")
            assert client.receive(DEADLINE) == b"then"
            assert gaps == [Gap(FIRST_ID, FIRST_ID)]
            client.ack()
            acked(server, FIRST_ID + 1)
            large = os.urandom(250_000)
            server.publish(large)
            assert client.receive(DEADLINE) == large


# ---- what nobody waits for ----


@all_policies
def test_publish_never_waits_without_clients(address: str, on_lag: jumiks.OnLag) -> None:
    with serving(address, max_lag=1, log_size=LOG, on_lag=on_lag) as (server, _):
        one_by_one(server, 3000, timeout=0)
        server.publish_many([SLOT] * 5000, timeout=0)
        with raw_client(server, address) as client:
            server.publish(b"x", timeout=0)
            client.close()
            wait_until(lambda: not server.stats().clients)
        one_by_one(server, 100, timeout=0)
        assert server.stats().waits == 0


@both_modes
def test_a_client_that_never_reads_is_cut_and_harms_nobody(address: str, framed: bool) -> None:
    with serving(address, log_size=LOG) as (server, ends):
        with raw_client(server, address, framed=framed), Witness(address) as witness:
            for _ in range(50):
                server.publish_many([SLOT] * 100, timeout=DEADLINE)
            witness.wait_for(5000)
            assert len(witness.messages) == 5000
            wait_until(lambda: ends)
            assert [reason for _, reason in ends] == [EndReason.LAGGED]


@both_modes
def test_a_client_that_reads_but_never_acks_is_cut_too(address: str, framed: bool) -> None:
    with serving(address, max_lag=20) as (server, ends):
        with raw_client(server, address, framed=framed) as client, Witness(address) as witness:
            found: list[Message] = []
            reader = threading.Thread(target=lambda: found.extend(client.rest()[0]))
            reader.start()
            for _ in range(100):
                server.publish(b"x", timeout=DEADLINE)
            reader.join(DEADLINE)
            witness.wait_for(100)
            assert len(witness.messages) == 100
            wait_until(lambda: ends)
    assert [message.id for message in found] == [FIRST_ID + number for number in range(20)]
    assert ends[0][1] is EndReason.LAGGED


def resident_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Rss:")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers keep memory")
@pytest.mark.parametrize("on_lag", ["disconnect", "skip"])
def test_a_stopped_client_does_not_make_the_server_grow(address: str, on_lag: jumiks.OnLag) -> None:
    batch = [bytes(1000)] * 1000
    with serving(address, log_size=1 << 20, on_lag=on_lag, patience=0) as (server, _):
        with raw_client(server, address), raw_client(server, address, framed=False):
            for _ in range(5):
                server.publish_many(batch)
            before = resident_bytes()
            for _ in range(100):
                server.publish_many(batch)
            assert resident_bytes() - before < 2 << 20


# ---- those who start in the past ----


@both_ways
def test_a_late_joiner_is_not_cut_while_it_replays_a_long_history(
    address: str, publish: Publish
) -> None:
    with serving(address, max_lag=10) as (server, ends):
        as_batch(server, 5000)
        with Witness(address, start="oldest") as witness:
            # It is behind by far more than max_lag.
            publish(server, 200, b"new", timeout=DEADLINE)
            witness.wait_for(5200)
            assert witness.ids == list(range(FIRST_ID, FIRST_ID + 5200))
            assert not ends


def test_a_late_joiner_that_stops_has_no_more_than_max_lag_in_flight(address: str) -> None:
    with serving(address, max_lag=10, patience=0) as (server, ends):
        as_batch(server, 5000)
        with raw_client(server, address, start=1) as client:
            assert client.welcome.first_id == FIRST_ID
            as_batch(server, 10, timeout=0)
            assert len(client.read(10)) == 10
            assert server.clients()[0].sent_id == FIRST_ID + 9
            client.ack(FIRST_ID + 2)
            assert client.read(3)[-1].id == FIRST_ID + 12
            assert server.clients()[0].sent_id == FIRST_ID + 12
            assert not ends


@pytest.mark.parametrize("delivery", ["framed", "classic"])
def test_the_past_goes_out_as_far_as_max_lag_and_on_with_each_ack(
    address: str, delivery: Delivery
) -> None:
    with serving(address, max_lag=2, patience=0) as (server, ends):
        as_batch(server, 50)
        with Client(address, delivery=delivery, start="oldest", ack="manual") as client:
            server.wait_for_clients(1, DEADLINE)
            for last in range(FIRST_ID + 1, FIRST_ID + 6):
                wait_until(lambda due=last: server.clients()[0].sent_id >= due)  # type: ignore[misc]
                assert server.clients()[0].sent_id == last
                client.receive(DEADLINE)
                client.ack()
                assert not ends


@paths_of_frames
@all_policies
@pytest.mark.parametrize("behind", [1, 5])
def test_the_limit_of_one_that_starts_within_it_is_exact_at_once(
    address: str, path: str, on_lag: jumiks.OnLag, behind: int
) -> None:
    with serving(address, max_lag=5, on_lag=on_lag, patience=PATIENCE[on_lag]) as (server, ends):
        as_batch(server, 100)
        with acking_by_hand(server, address, path, start=FIRST_ID + 100 - behind):
            one_by_one(server, 5 - behind, timeout=0)
            if on_lag == "block":
                assert_refused(server)
            server_stats = server.stats()
            assert (server_stats.clients, server_stats.log_held) == (1, 5 * 24)
            assert not ends
            if on_lag != "block":
                one_by_one(server, 1, timeout=0)
                assert server.stats().log_held == 0


@paths_of_frames
@all_policies
def test_one_that_starts_in_the_past_may_fall_behind_by_its_limit_more(
    address: str, path: str, on_lag: jumiks.OnLag
) -> None:
    with serving(address, max_lag=5, on_lag=on_lag, patience=PATIENCE[on_lag]) as (server, ends):
        as_batch(server, 100)
        with acking_by_hand(server, address, path, start=FIRST_ID) as ack:
            one_by_one(server, 5, timeout=0)
            assert server.stats().log_held == 105 * 24
            # Within its limit for the first time: from here on it has that and no more.
            for number in (4, 9, 14, 19, *range(20, 100)):
                ack(FIRST_ID + number)
                acked(server, FIRST_ID + number)
            assert (server.stats().log_held, ends) == (5 * 24, [])
            if on_lag == "block":
                assert_refused(server)
            else:
                one_by_one(server, 1, timeout=0)
                assert server.stats().log_held == 0


def test_a_late_joiner_that_caught_up_counts_like_any_other(address: str) -> None:
    with serving(address, max_lag=10, patience=0) as (server, ends):
        as_batch(server, 100)
        with raw_client(server, address, start=1) as client:
            for number in range(95):
                client.read(1)
                client.ack(FIRST_ID + number)
            acked(server, FIRST_ID + 94)
            as_batch(server, 5)
            assert not ends
            as_batch(server, 1)
            wait_until(lambda: ends)
            assert len(client.rest()[0]) == 10


def test_a_late_joiner_that_stops_is_cut_by_the_size_of_the_log(address: str) -> None:
    with serving(address, max_lag=10, log_size=LOG, patience=0) as (server, ends):
        as_batch(server, SLOTS - 1, SLOT)
        with raw_client(server, address, start=1) as client:
            as_batch(server, 1, SLOT)
            assert not ends
            as_batch(server, 1, SLOT)
            messages, bye = client.rest()
        wait_until(lambda: ends)
    assert len(messages) == 10
    assert bye is not None
    assert (bye.limit_kind, bye.limit) == (2, LOG)
    assert (bye.first_lost, bye.last_lost) == (FIRST_ID + 10, FIRST_ID + SLOTS - 1)
