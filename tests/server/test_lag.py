# SPDX-License-Identifier: Apache-2.0
"""The lag policies: who waits, who is cut, who misses what, and what everybody is told."""

import os
import threading
import time
from contextlib import ExitStack, suppress

import pytest
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
    publishing,
    serving,
)
from support.reference import Message
from support.servers import Server
from support.shared import hand_made_client
from support.wire import FIRST_ID, Witness, raw_client

import jumiks
from jumiks import Client, Delivery, EndReason, Gap, Lagged, Timeout
from jumiks._server.lag import Policy


def pass_time(seconds: float) -> None:
    """It is time itself that has to pass."""
    threading.Event().wait(seconds)


# ---- where the limit is ----


@both_modes
@both_ways
@pytest.mark.parametrize("max_lag", [1, 2, 7])
def test_at_max_lag_a_client_stays_and_one_beyond_it_is_cut(
    address: str, framed: bool, publish: Publish, max_lag: int
) -> None:
    with serving(address, max_lag=max_lag, patience=0) as (server, ends):
        with raw_client(server, address, framed=framed) as client:
            publish(server, max_lag)
            wait_until(lambda: [info.lag for info in server.clients()] == [max_lag])
            publish(server, 1)
            assert server.clients() == ()
            assert [message.id for message in client.rest()[0]] == [
                FIRST_ID + number for number in range(max_lag)
            ]
        wait_until(lambda: ends)
    assert [reason for _, reason in ends] == [EndReason.LAGGED]


@both_modes
def test_a_batch_beyond_max_lag_hands_over_no_more_than_max_lag(address: str, framed: bool) -> None:
    with serving(address, max_lag=7, patience=0) as (server, _):
        with raw_client(server, address, framed=framed) as client:
            server.publish_many([b"x"] * 20)
            assert len(client.rest()[0]) == 7


@both_modes
@both_ways
@pytest.mark.parametrize(("max_lag", "half"), [(1, 1), (2, 1), (7, 4), (8, 4)])
def test_one_beyond_max_lag_waits_until_half_of_it_is_worked_off(
    address: str, framed: bool, publish: Publish, max_lag: int, half: int
) -> None:
    with serving(address, max_lag=max_lag, patience=60) as (server, ends):
        with raw_client(server, address, framed=framed) as client:
            publish(server, max_lag)
            for cycle in range(3):
                first = FIRST_ID + cycle * half
                for number in range(half):
                    assert_refused(server, publish)
                    client.ack(first + number)
                    acked(server, first + number)
                publish(server, half, timeout=0)
            assert_refused(server, publish)
            assert len(client.read(max_lag + 3 * half)) == max_lag + 3 * half
            assert not ends


@both_modes
@both_ways
@pytest.mark.parametrize("before", [0, 777])
@pytest.mark.parametrize(("size", "count"), [(48, 1024), (1, 2730), (16000, 4)])
def test_a_full_log_passes_and_one_message_beyond_it_is_cut(
    address: str, framed: bool, publish: Publish, before: int, size: int, count: int
) -> None:
    with serving(address, log_size=LOG, patience=0) as (server, ends):
        as_batch(server, before, b"before")
        with raw_client(server, address, framed=framed) as client:
            publish(server, count, b"y" * size)
            wait_until(lambda: [info.lag for info in server.clients()] == [count])
            assert server.clients()[0].lag_bytes == count * (-(-size // 8) * 8 + 16)
            publish(server, 1, b"y" * size)
            client.rest()
        wait_until(lambda: ends)
    ((info, _),) = ends
    assert (info.limit_kind, info.limit, info.lag) == ("bytes", LOG, count)


@all_paths
@all_policies
@pytest.mark.parametrize("max_lag", [1, 5])
def test_the_limit_is_exact_on_each_path_and_for_each_policy(
    address: str, path: str, on_lag: jumiks.OnLag, max_lag: int
) -> None:
    options = {"max_lag": max_lag, "on_lag": on_lag, "patience": PATIENCE[on_lag]}
    with serving(address, **options) as (server, ends):
        with acking_by_hand(server, address, path):
            one_by_one(server, max_lag, timeout=0)
            wait_until(lambda: [info.lag for info in server.clients()] == [max_lag])
            assert (ends, server.stats().waits) == ([], 0)
            if on_lag == "block":
                with pytest.raises(Timeout):
                    server.publish(b"beyond", timeout=0)
            else:
                server.publish(b"beyond", timeout=0)
            if on_lag == "disconnect":
                wait_until(lambda: ends)
                ((info, reason),) = ends
                assert (reason, info.lag) == (EndReason.LAGGED, max_lag)
            else:
                # It has not even been offered what lies beyond.
                assert [info.lag for info in server.clients()] == [max_lag]
                assert ends == []


@all_paths
@all_policies
def test_a_client_that_caught_up_just_before_its_limit_is_left_alone(
    address: str, path: str, on_lag: jumiks.OnLag
) -> None:
    options = {"max_lag": 5, "on_lag": on_lag, "patience": PATIENCE[on_lag]}
    with serving(address, **options) as (server, ends):
        with acking_by_hand(server, address, path) as ack:
            for number in range(20):
                one_by_one(server, 5, timeout=0)
                last = FIRST_ID + 5 * number + 4
                wait_until(lambda: [info.lag for info in server.clients()] == [5])
                ack(last)
                acked(server, last)
            assert (ends, server.stats().skipped) == ([], 0)


@all_policies
def test_no_publisher_ever_gets_beyond_the_limit(address: str, on_lag: jumiks.OnLag) -> None:
    rounds = 100
    with serving(address, max_lag=5, on_lag=on_lag, patience=DEADLINE) as (server, _):
        with raw_client(server, address) as client:
            threads = [threading.Thread(target=one_by_one, args=(server, rounds)) for _ in range(3)]
            for thread in threads:
                thread.start()
            try:
                for number in range(3 * rounds):
                    (message,) = client.read(1)
                    assert message.id == FIRST_ID + number
                    assert server.stats().next_id - 1 - (message.id - 1) <= 5
                    client.ack(message.id)
            finally:
                client.close()
                for thread in threads:
                    thread.join(DEADLINE)


@pytest.mark.parametrize("delivery", ["shared", "classic"])
@pytest.mark.parametrize("max_lag", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("on_lag", ["disconnect", "block"])
def test_our_client_never_reaches_a_small_limit_by_its_own_thrift(
    address: str, delivery: Delivery, max_lag: int, on_lag: jumiks.OnLag
) -> None:
    with serving(address, max_lag=max_lag, on_lag=on_lag) as (server, ends):
        with Witness(address, delivery=delivery) as witness:
            server.publish_many([b"%d" % number for number in range(200)], timeout=DEADLINE)
            witness.wait_for(200)
            assert witness.messages == [b"%d" % number for number in range(200)]
            assert not ends


# ---- who is cut ----


@both_modes
@pytest.mark.parametrize("limit", ["messages", "bytes"])
def test_a_client_at_its_limit_is_cut_at_once_while_another_is_not(
    address: str, framed: bool, limit: str
) -> None:
    max_lag, count = (10, 10) if limit == "messages" else (None, SLOTS)
    with serving(address, max_lag=max_lag, log_size=LOG, patience=60) as (server, ends):
        with (
            raw_client(server, address, framed=framed) as stopped,
            raw_client(server, address, framed=framed) as other,
        ):
            # Half and half: a classic socket does not take as much as the log at once.
            for _ in range(2):
                server.publish_many([SLOT] * (count // 2), timeout=0)
                last = other.read(count // 2)[-1].id
                other.ack(last)
                acked(server, last)
            server.publish(SLOT, timeout=0)
            assert [info.acked_id for info in server.clients()] == [last]
            assert other.read(1) == [Message(last + 1, SLOT)]
            stopped.rest()
        wait_until(lambda: len(ends) == 2)
    cut = [info for info, reason in ends if reason is EndReason.LAGGED]
    assert [(info.limit_kind, info.lag) for info in cut] == [(limit, count)]


def assert_cuts(server: Server, cuts: bool) -> None:
    """Whether one more message costs one of two clients its place at once, or has to wait."""
    if cuts:
        server.publish(SLOT, timeout=0)
    else:
        with pytest.raises(Timeout):
            server.publish(SLOT, timeout=0)
    assert server.stats().clients == (1 if cuts else 2)


@pytest.mark.parametrize(
    ("max_lag", "count", "acks", "cuts"),
    [(10, 10, 4, False), (10, 10, 5, True), (None, SLOTS, 511, False), (None, SLOTS, 512, True)],
)
def test_the_fastest_must_be_within_half_of_its_limit_for_another_to_be_cut_at_once(
    address: str, max_lag: int | None, count: int, acks: int, cuts: bool
) -> None:
    with serving(address, max_lag=max_lag, log_size=LOG, patience=60) as (server, _):
        with raw_client(server, address) as stopped, raw_client(server, address) as other:
            server.publish_many([SLOT] * count)
            other.read(count)  # an ack may not come before its message was sent
            other.ack(FIRST_ID + acks - 1)
            acked(server, FIRST_ID + acks - 1)
            assert_cuts(server, cuts)
            assert not cuts or len(stopped.rest()[0]) == count


def test_a_newcomer_that_has_acked_all_counts_once_it_was_there_for_patience(address: str) -> None:
    with serving(address, max_lag=100, patience=0.3) as (server, _):
        with raw_client(server, address):
            server.publish_many([SLOT] * 100)
            with raw_client(server, address):
                pass_time(0.3)
                server.publish(SLOT, timeout=0)
                assert server.stats().clients == 1


@pytest.mark.parametrize(("count", "cuts"), [(4, False), (5, True)])
def test_a_client_that_came_too_late_to_fall_behind_shows_nothing_by_keeping_up(
    address: str, count: int, cuts: bool
) -> None:
    with serving(address, max_lag=10, patience=60) as (server, _), raw_client(server, address):
        server.publish_many([SLOT] * (10 - count))
        with raw_client(server, address) as newcomer:
            server.publish_many([SLOT] * count)
            newcomer.ack(FIRST_ID + 9)
            acked(server, FIRST_ID + 9)
            assert_cuts(server, cuts)


@pytest.mark.parametrize(("count", "cuts"), [(1, False), (4, False), (5, True)])
def test_a_newcomer_shows_by_half_a_limit_of_acks_that_it_keeps_up(
    address: str, count: int, cuts: bool
) -> None:
    """Each of them is half way at most, as little was published since it came."""
    with serving(address, max_lag=10, patience=60) as (server, _), raw_client(server, address):
        server.publish_many([SLOT] * (5 - count))
        with raw_client(server, address) as newcomer:
            server.publish_many([SLOT] * (5 + count))
            newcomer.ack(FIRST_ID + 4)
            acked(server, FIRST_ID + 4)
            assert_cuts(server, cuts)


def test_a_history_that_was_acked_shows_nothing(address: str) -> None:
    with serving(address, max_lag=10, patience=60) as (server, _), raw_client(server, address):
        server.publish_many([SLOT] * 10)
        with raw_client(server, address, start=FIRST_ID + 4) as newcomer:
            newcomer.ack(FIRST_ID + 9)
            acked(server, FIRST_ID + 9)
            assert_cuts(server, False)


def test_a_client_that_came_before_anything_was_published_shows_nothing(address: str) -> None:
    with serving(address, max_lag=1, patience=60) as (server, _), raw_client(server, address):
        server.publish(SLOT)
        with raw_client(server, address):
            assert_cuts(server, False)


def test_publish_waits_no_longer_for_one_that_comes_while_it_waits(address: str) -> None:
    """One that starts at its limit: with a term of its own, it would add to the wait."""
    with serving(address, max_lag=3, patience=1.0) as (server, _), raw_client(server, address):
        server.publish_many([b"x"] * 3)
        assert_refused(server)
        pass_time(0.5)
        with raw_client(server, address, start=FIRST_ID):
            with suppress(Timeout):
                server.publish(b"x", timeout=0)
            pass_time(0.5)
            server.publish(b"x", timeout=0)


def test_all_at_their_limit_make_publish_wait_for_patience_and_then_are_cut(address: str) -> None:
    with serving(address, max_lag=3, patience=0.2) as (server, ends):
        with raw_client(server, address), raw_client(server, address, framed=False):
            server.publish_many([b"x"] * 3)
            start = time.monotonic()
            server.publish(b"late")
            waited = time.monotonic() - start
            wait_until(lambda: len(ends) == 2)
    assert 0.2 <= waited < DEADLINE
    assert {reason for _, reason in ends} == {EndReason.LAGGED}


def test_patience_is_a_second_by_default_and_endless_where_the_slowest_sets_the_pace() -> None:
    assert [
        Policy.of(on_lag, 1, "default").patience for on_lag in ("disconnect", "skip", "block")
    ] == [
        1.0,
        1.0,
        None,
    ]


def test_without_patience_all_at_their_limit_are_cut_at_once(address: str) -> None:
    with serving(address, max_lag=3, patience=0) as (server, ends):
        with raw_client(server, address), raw_client(server, address, framed=False):
            server.publish_many([b"x"] * 3)
            server.publish(b"late", timeout=0)
            wait_until(lambda: len(ends) == 2)


def test_endless_patience_cuts_nobody(address: str) -> None:
    with serving(address, max_lag=3, patience=None) as (server, ends):
        with raw_client(server, address) as client:
            server.publish_many([b"x"] * 3)
            with pytest.raises(Timeout):
                server.publish(b"late", timeout=0.05)
            client.ack(FIRST_ID + 1)
            assert server.publish(b"late", timeout=DEADLINE) == FIRST_ID + 3
            assert not ends


@all_policies
@all_paths
def test_acks_short_of_half_the_limit_do_not_renew_patience(
    address: str, path: str, on_lag: jumiks.OnLag
) -> None:
    """One ack now and then, each well within patience: the least that a client can do."""
    with serving(address, max_lag=100, on_lag=on_lag, patience=1.0) as (server, _):
        with acking_by_hand(server, address, path) as ack:
            server.publish_many([b"x"] * 100)
            start, published = time.monotonic(), 0
            for number in range(1000):
                with suppress(Timeout):
                    server.publish(b"more", timeout=0.1)
                    published += 1
                if server.stats().clients == 0 or server.stats().log_held == 0:
                    break
                with suppress(OSError):
                    ack(FIRST_ID + number // 2)
            assert 1.0 <= time.monotonic() - start < DEADLINE
            # Under block each ack makes room for one message.
            assert published <= (number if on_lag == "block" else 1)
            if on_lag == "skip":
                assert server.stats().clients == 1
            else:
                wait_until(lambda: server.endings[EndReason.LAGGED] == 1)


@pytest.mark.parametrize("on_lag", ["disconnect", "block", "skip"])
def test_half_of_the_limit_within_patience_keeps_a_place_for_ever(
    address: str, on_lag: jumiks.OnLag
) -> None:
    with serving(address, max_lag=10, on_lag=on_lag, patience=DEADLINE) as (server, ends):
        with raw_client(server, address) as client:
            server.publish_many([b"x"] * 10)
            for cycle in range(50):
                assert_refused(server)
                client.ack(FIRST_ID + 10 * cycle + 5)
                acked(server, FIRST_ID + 10 * cycle + 5)
                server.publish_many([b"x"] * 6, timeout=DEADLINE)
                client.ack(FIRST_ID + 10 * cycle + 9)
                acked(server, FIRST_ID + 10 * cycle + 9)
                server.publish_many([b"x"] * 4, timeout=DEADLINE)
            assert server.stats().skipped == 0
            assert not ends


def test_block_gives_each_client_its_own_patience(address: str) -> None:
    with serving(address, max_lag=5, on_lag="block", patience=0.3) as (server, ends):
        with raw_client(server, address) as stopped, raw_client(server, address) as other:
            server.publish_many([b"x"] * 5)
            other.ack(FIRST_ID + 4)
            acked(server, FIRST_ID + 4)
            start = time.monotonic()
            server.publish(b"late")
            assert 0.3 <= time.monotonic() - start < DEADLINE
            assert len(stopped.rest()[0]) == 5
            assert other.read(6)[-1].payload == b"late"
            wait_until(lambda: ends)
            assert [reason for _, reason in ends] == [EndReason.LAGGED]
            assert server.stats().clients == 1


def test_the_clock_of_a_client_that_caught_up_starts_anew(address: str) -> None:
    with serving(address, max_lag=5, on_lag="block", patience=1.5) as (server, ends):
        with raw_client(server, address) as client:
            server.publish_many([b"x"] * 5)
            with publishing(server):
                pass_time(0.75)
                client.ack(FIRST_ID + 4)
            server.publish_many([b"x"] * 4, timeout=0)
            start = time.monotonic()
            server.publish(b"x")
            assert time.monotonic() - start >= 1.0
            wait_until(lambda: ends)


@all_policies
def test_a_publisher_that_looks_in_now_and_then_is_not_held_up_for_longer(
    address: str, on_lag: jumiks.OnLag
) -> None:
    with serving(address, max_lag=3, on_lag=on_lag, patience=0.2) as (server, _):
        with raw_client(server, address):
            server.publish_many([b"x"] * 3)
            assert_refused(server)
            pass_time(0.25)
            server.publish(b"x", timeout=0)


@all_policies
def test_a_client_that_caught_up_while_the_publisher_was_away_starts_anew(
    address: str, on_lag: jumiks.OnLag
) -> None:
    with serving(address, max_lag=3, on_lag=on_lag, patience=0.5) as (server, ends):
        with raw_client(server, address) as client:
            for cycle in range(3):
                server.publish_many([b"x"] * 3, timeout=0)
                if cycle < 2:
                    assert_refused(server)
                    client.ack(FIRST_ID + 3 * cycle + 2)
                    acked(server, FIRST_ID + 3 * cycle + 2)
                    pass_time(0.5)
            start = time.monotonic()
            server.publish(b"x")
            assert time.monotonic() - start >= 0.4
            assert server.stats().skipped == 0 or on_lag == "skip"
            wait_until(lambda: ends or on_lag == "skip")


@pytest.mark.parametrize("on_lag", ["disconnect", "block"])
def test_a_publisher_that_comes_back_within_patience_has_waited_on(
    address: str, on_lag: jumiks.OnLag
) -> None:
    with serving(address, max_lag=3, on_lag=on_lag, patience=0.5) as (server, ends):
        with raw_client(server, address):
            server.publish_many([b"x"] * 3)

            def is_cut() -> bool:
                with suppress(Timeout):
                    server.publish(b"x", timeout=0)
                return bool(ends)

            wait_until(is_cut)


def test_the_clock_of_being_outrun_starts_when_all_are(address: str) -> None:
    with serving(address, max_lag=10, patience=0.2) as (server, _):
        with raw_client(server, address), raw_client(server, address) as other:
            server.publish_many([b"x"] * 10)
            other.ack(FIRST_ID + 9)
            acked(server, FIRST_ID + 9)
            pass_time(0.25)
            server.publish(b"x", timeout=0)
            assert server.stats().clients == 1
            server.publish_many([b"x"] * 9)
            with pytest.raises(Timeout):  # its last ack is older than patience
                server.publish(b"x", timeout=0)
            assert server.stats().clients == 1


def test_the_clock_of_a_client_starts_when_it_is_in_the_way(address: str) -> None:
    with serving(address, max_lag=10, on_lag="block", patience=0.2) as (server, _):
        with raw_client(server, address) as slow, raw_client(server, address) as other:
            server.publish_many([b"x"] * 10)
            other.ack(FIRST_ID + 4)
            acked(server, FIRST_ID + 4)
            pass_time(0.25)
            assert_cuts(server, False)  # because of the slow one
            slow.ack(FIRST_ID + 4)
            acked(server, FIRST_ID + 4, 2)
            server.publish_many([b"x"] * 5)
            assert_cuts(server, False)  # because of both, and the other's last ack is an old one


@pytest.mark.only_shared
@pytest.mark.parametrize(("on_lag", "asked"), [("block", [True, False]), ("skip", [False, True])])
def test_the_client_that_sets_the_pace_is_asked_to_report(
    address: str, on_lag: jumiks.OnLag, asked: list[bool]
) -> None:
    with serving(address, log_size=LOG, on_lag=on_lag, patience=60) as (server, _):
        with hand_made_client(server, address) as slow, hand_made_client(server, address) as fast:
            server.publish_many([SLOT] * SLOTS)
            fast.ack(FIRST_ID + 4)
            with pytest.raises(Timeout):
                server.publish(SLOT * 100, timeout=0)  # more than both have acked
            assert [client.cursor[128] > 0 for client in (slow, fast)] == asked


# ---- what a client that was cut is told ----


@pytest.mark.parametrize("limit", ["messages", "bytes"])
@pytest.mark.parametrize("acks", [0, 100])
def test_a_client_that_was_cut_is_told_its_figures(address: str, limit: str, acks: int) -> None:
    # 104 bytes and a header: 120 bytes of the log; more than a socket takes.
    size, log_size = 120, 1 << 20
    lag = 7000 if limit == "messages" else log_size // size
    max_lag = lag if limit == "messages" else None
    with serving(address, max_lag=max_lag, log_size=log_size, patience=0) as (server, ends):
        with Client(address, delivery="framed") as client:
            server.wait_for_clients(1, DEADLINE)
            as_batch(server, acks, bytes(104))
            for _ in range(acks):
                client.receive(DEADLINE)
            if acks:
                client.ack()
                acked(server, FIRST_ID + acks - 1)
            as_batch(server, lag + 500, bytes(104))
            with pytest.raises(Lagged) as caught:
                while True:
                    client.receive(DEADLINE)
            said = caught.value
            wait_until(lambda: ends)
            ((info, reason),) = ends
            oldest = server.stats().oldest_id
    published = FIRST_ID + acks + lag - 1  # by the time it was cut
    assert reason is EndReason.LAGGED
    assert (said.limit_kind, said.limit) == (limit, max_lag or log_size)
    assert (said.lag, said.lag_bytes) == (lag, lag * size)
    assert (said.first_lost, said.last_lost) == (client.last_id + 1, published)
    assert FIRST_ID <= said.oldest_kept <= min(oldest, FIRST_ID + acks)
    assert (info.limit_kind, info.limit) == (said.limit_kind, said.limit)
    assert (info.lag, info.lag_bytes) == (said.lag, said.lag_bytes)
    assert info.lost == Gap(said.first_lost, said.last_lost)
    assert info.sent_id == client.last_id
    assert info.queued == info.lost.count
    assert info.worst_lag == lag
    assert said.last_acked == info.acked_id == (FIRST_ID + acks - 1 if acks else 0)
    assert ("never acked" in str(said)) == (acks == 0)


@both_modes
def test_a_client_can_be_cut_in_the_middle_of_a_message(address: str, framed: bool) -> None:
    with serving(address, max_lag=1, log_size=1 << 20, patience=0) as (server, ends):
        with raw_client(server, address, max_packet=512) as client:
            server.publish(bytes(250_000))
            wait_until(lambda: server.clients()[0].packets > 100)
            server.publish(b"then")
            messages, bye = client.rest()
        wait_until(lambda: ends)
    assert messages == []
    assert bye is not None
    assert (bye.reason, bye.first_lost, bye.last_lost) == (1, FIRST_ID, FIRST_ID)


def cut_client(server: Server, address: str, count: int) -> Lagged:
    """What a client of ours, which did not read in time, is told in the end."""
    with Client(address, delivery="framed") as client:
        server.publish_many([b"%0104d" % number for number in range(count)])
        with pytest.raises(Lagged) as caught:
            while True:
                client.receive_many(DEADLINE)
    return caught.value


def test_resuming_at_the_first_message_lost_gives_exactly_what_was_lost(address: str) -> None:
    with serving(address, max_lag=6000, log_size=1 << 20, patience=0) as (server, _):
        said = cut_client(server, address, 8000)
        assert said.oldest_kept <= said.first_lost
        assert f"start={said.first_lost}" in str(said)
        with Witness(address, start=said.first_lost) as witness:
            server.publish(b"then")
            count = FIRST_ID + 8000 - said.first_lost + 1
            witness.wait_for(count)
    assert witness.ids == list(range(said.first_lost, FIRST_ID + 8001))
    lost = range(said.first_lost - FIRST_ID, 8000)
    assert witness.messages == [*(b"%0104d" % number for number in lost), b"then"]
    assert witness.gaps == []


def test_resuming_at_a_message_no_longer_kept_tells_the_gap(address: str) -> None:
    with serving(address, max_lag=6000, log_size=1 << 20, patience=0) as (server, _):
        said = cut_client(server, address, 8000)
        server.publish_many([bytes(1000)] * 900)
        oldest = server.stats().oldest_id
        assert oldest > said.first_lost
        with Witness(address, start=said.first_lost) as witness:
            witness.wait_for(server.stats().next_id - oldest)
            assert witness.client.missed == oldest - said.first_lost
    assert witness.gaps == [Gap(said.first_lost, oldest - 1)]
    assert witness.ids[0] == oldest


# ---- what the server is told ----


def test_each_cut_is_told_once_with_its_whole_account(address: str) -> None:
    count = 12
    with ExitStack() as stack:
        server, ends = stack.enter_context(serving(address, max_lag=5))
        witness = stack.enter_context(Witness(address))
        server.wait_for_clients(1, DEADLINE)
        (kept,) = server.clients()
        for number in range(count):
            stack.enter_context(raw_client(server, address, framed=number % 2 == 0))
        keys = {info.key: info.delivery for info in server.clients() if info.key != kept.key}
        for _ in range(5):
            server.publish(b"x" * 10)
        acked(server, FIRST_ID + 4)
        server.publish(b"x" * 10, timeout=0)
        wait_until(lambda: len(ends) == count)
        witness.wait_for(6)
        cut, seen = list(ends), server.clients()
    assert [info.key for info in seen] == [kept.key]
    assert {info.key: info.delivery for info, _ in cut} == keys
    for info, reason in cut:
        assert reason is info.reason is EndReason.LAGGED
        assert (info.limit_kind, info.limit) == ("messages", 5)
        assert (info.lag, info.worst_lag, info.messages) == (5, 5, 5)
        assert info.sent_id == FIRST_ID + 4
        assert info.lag_bytes == 5 * 32
        assert info.pid == os.getpid()
        assert info.last_ack is None
        assert info.bytes == (5 * 32 if info.delivery == "framed" else 5 * 18)
    # The witness closes just before the server does, and either may be seen first.
    assert [reason in (EndReason.LEFT, EndReason.CLOSING) for _, reason in ends[count:]] == [True]
