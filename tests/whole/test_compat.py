# SPDX-License-Identifier: Apache-2.0
"""Both ends with peers of plain 1.0 that share nothing with the package, each its own process."""

import hashlib
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import peers
import pytest
from peers import Peer, classic_client, classic_server
from support.api import arenas_of
from support.base import BEST, DEADLINE, wait_until
from support.servers import Server
from support.wire import FIRST_ID, Witness

import jumiks
from jumiks import Client, ConnectionLost, Delivery, EndReason, Refused, VersionMismatch

both_peers = pytest.mark.parametrize("language", ["python", "c"])


@pytest.fixture(scope="module")
def c_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if peers.compiler() is None:
        pytest.skip("no C compiler")
    return peers.build_c_client(tmp_path_factory.mktemp("peers"))


Start = Callable[[str], Peer]


@pytest.fixture
def start(language: str, request: pytest.FixtureRequest) -> Start:
    """Start a plain client of that language, which digests what it receives."""
    if language == "python":
        return lambda address: classic_client(address, "--sha256")
    program = request.getfixturevalue("c_client")
    return lambda address: Peer(program, address)


def digest(language: str, messages: Sequence[bytes]) -> dict[str, str]:
    """What a plain client says of messages that it received."""
    whole = b"".join(messages)
    if language == "python":
        return {"sha256": hashlib.sha256(whole).hexdigest()}
    return {"fnv1a": peers.fnv1a(whole)}


def varied(count: int) -> list[bytes]:
    """Messages of many sizes, the same in each run."""
    source = random.Random(count)
    sizes = [0, 1, 7, 8, 9, 100, 1000, 20_000]
    return [source.randbytes(source.choice(sizes)) for _ in range(count)]


def expected(
    language: str, messages: Sequence[bytes], first_id: int = FIRST_ID
) -> dict[str, object]:
    return {
        "messages": len(messages),
        "first_id": first_id,
        "last_id": first_id + len(messages) - 1,
        "ordered": True,
        **digest(language, messages),
    }


# ---- our server, plain clients ----


@both_peers
@pytest.mark.parametrize("batches", [False, True])
def test_plain_clients_receive_what_our_server_publishes(
    address: str, language: str, start: Start, batches: bool
) -> None:
    messages = varied(300)
    with Server(address, log_size=1 << 20) as server:
        with start(address) as one, start(address) as two, Witness(address) as framed:
            server.wait_for_clients(3, DEADLINE)
            if batches:
                server.publish_many(messages, timeout=DEADLINE)
            else:
                for message in messages:
                    server.publish(message, timeout=DEADLINE)
            server.drain(DEADLINE)
            assert {info.acked_id for info in server.clients()} == {FIRST_ID + 299}
            assert {info.delivery for info in server.clients()} == {"classic", BEST}
            server.close()
            for peer in (one, two):
                report = peer.result()
                assert report.pop("end") in ("eof", "reset")
                assert report == expected(language, messages)
            assert framed.messages == messages


@both_peers
def test_a_plain_client_that_comes_late_starts_from_now(
    address: str, language: str, start: Start
) -> None:
    with Server(address) as server:
        server.publish_many([b"early"] * 5)
        with start(address) as peer:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([b"new"] * 3)
            server.drain(DEADLINE)
            server.close()
            report = peer.result()
    assert report.items() >= expected(language, [b"new"] * 3, FIRST_ID + 5).items()


def test_a_plain_client_leaves_when_it_likes(address: str) -> None:
    ends: list[EndReason] = []
    with Server(address, on_disconnect=lambda _, reason: ends.append(reason)) as server:
        with classic_client(address, "--count", 7) as peer, Witness(address) as witness:
            server.wait_for_clients(2, DEADLINE)
            server.publish_many([b"x"] * 20)
            report = peer.result()
            wait_until(lambda: ends)
            witness.wait_for(20)
            assert len(witness.messages) == 20
    assert (report["messages"], report["end"]) == (7, "count")
    assert ends[0] is EndReason.LEFT


def test_a_plain_client_that_never_acks_gets_max_lag_messages_and_is_cut(address: str) -> None:
    with Server(address, max_lag=10, patience=0) as server:
        with classic_client(address, "--no-ack") as peer:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([b"x"] * 50)
            report = peer.result()
    assert (report["messages"], report["last_id"]) == (10, FIRST_ID + 9)


def test_a_plain_client_that_stops_is_cut_and_the_others_are_not(address: str) -> None:
    ends: list[EndReason] = []
    with Server(
        address, max_lag=1000, on_disconnect=lambda _, reason: ends.append(reason)
    ) as server:
        with (
            classic_client(address, "--stall-after", 20) as stopped,
            classic_client(address, "--sha256") as other,
            Witness(address) as witness,
        ):
            server.wait_for_clients(3, DEADLINE)
            messages = [b"%d" % number for number in range(3000)]
            for start_at in range(0, 3000, 100):
                server.publish_many(messages[start_at : start_at + 100], timeout=DEADLINE)
                witness.wait_for(start_at + 100)
                # The witness sets the pace, and the other plain client needs time to keep it. Only
                # the one that has stopped may be behind, and once it was cut nobody.
                last_id = FIRST_ID + start_at + 99

                def all_but_the_stopped(last_id: int = last_id) -> bool:
                    behind = [each for each in server.clients() if each.acked_id < last_id]
                    return not behind or [each.acked_id for each in behind] == [FIRST_ID + 19]

                wait_until(all_but_the_stopped)
            stopped_report = stopped.result()
            server.drain(DEADLINE)
            server.close()
            assert other.result().items() >= expected("python", messages).items()
            assert witness.messages == messages
    assert (stopped_report["messages"], stopped_report["end"]) == (20, "eof")
    assert ends[0] is EndReason.LAGGED


def test_a_slow_plain_client_is_waited_for_under_block(address: str) -> None:
    with Server(address, max_lag=3, on_lag="block") as server:
        with classic_client(address, "--delay", 0.002, "--sha256") as peer:
            server.wait_for_clients(1, DEADLINE)
            messages = varied(60)
            server.publish_many(messages, timeout=DEADLINE)
            server.drain(DEADLINE)
            server.close()
            assert peer.result().items() >= expected("python", messages).items()


def test_a_plain_client_sees_what_was_skipped_as_a_gap_in_the_ids(address: str) -> None:
    with Server(address, max_lag=3, on_lag="skip", patience=0) as server:
        with classic_client(address, "--delay", 0.001) as peer:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([b"x"] * 500)
            wait_until(lambda: server.clients()[0].skipped)
            server.drain(DEADLINE)
            last = server.publish(b"last")
            server.drain(DEADLINE)
            skipped = server.stats().skipped
            server.close()
            report = peer.result()
    assert skipped > 0
    assert report["messages"] == 501 - skipped
    assert report["last_id"] == last
    assert not report["ordered"]


@pytest.mark.usefixtures("large_log")
def test_a_message_that_no_plain_packet_carries_ends_that_connection_only(address: str) -> None:
    ends: list[EndReason] = []
    large = bytes(3_000_000)
    with Server(address, on_disconnect=lambda _, reason: ends.append(reason)) as server:
        with classic_client(address) as peer, Witness(address) as witness:
            server.wait_for_clients(2, DEADLINE)
            server.publish_many([b"before", large, b"after"])
            report = peer.result()
            witness.wait_for(3)
            assert witness.messages == [b"before", large, b"after"]
            wait_until(lambda: ends)
    assert report["messages"] == 1
    assert ends[0] is EndReason.TOO_LARGE


@pytest.mark.parametrize("patch", [1, 65535])
def test_our_server_takes_any_patch(address: str, patch: int) -> None:
    with Server(address) as server:
        with classic_client(address, "--patch", patch, "--count", 3) as peer:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([b"x"] * 3)
            assert peer.result()["messages"] == 3


@pytest.mark.parametrize(("part", "number"), [("--major", 2), ("--major", 0), ("--minor", 1)])
def test_our_server_refuses_another_version(address: str, part: str, number: int) -> None:
    with Server(address) as server, Witness(address) as witness:
        with classic_client(address, part, number) as peer:
            assert peer.result()["end"] == "refused"
        server.publish(b"x")
        witness.wait_for(1)
        assert [info.delivery for info in server.clients()] == [BEST]


# ---- a plain server, our client ----


@pytest.mark.parametrize("delivery", ["shared", "classic"])
@pytest.mark.parametrize("size", [0, 64, 50_000])
def test_our_clients_receive_and_ack_what_a_plain_server_publishes(
    address: str, delivery: Delivery, size: int
) -> None:
    count = 500 if size < 1000 else 30
    options = ("--clients", 2, "--count", count, "--size", size)
    with classic_server(address, *options) as server, ExitStack() as stack:
        witnesses = [stack.enter_context(Witness(address, delivery=delivery)) for _ in range(2)]
        report = server.result()
        for witness in witnesses:
            assert isinstance(witness.wait_for_end(), ConnectionLost)
            assert witness.ids == list(range(FIRST_ID, FIRST_ID + count))
            whole = hashlib.sha256(b"".join(witness.messages)).hexdigest()
            assert whole == report["sha256"]
            assert witness.client.delivery == "classic"
            assert witness.client.server_id == 0
    assert report["clients"] == 2 * [
        {"acked_id": FIRST_ID + count - 1, "acks": count, "each_in_order": True, "end": "served"}
    ]


def test_ids_that_repeat_and_jump_are_each_a_message_and_acked_as_they_are(address: str) -> None:
    count = 3000
    options = ("--clients", 2, "--count", count, "--ids", "repeated")
    with classic_server(address, *options) as server, ExitStack() as stack:
        witnesses = [
            stack.enter_context(Witness(address, delivery=delivery))
            for delivery in ("classic", "shared")
        ]
        report = server.result()
        for witness in witnesses:
            assert isinstance(witness.wait_for_end(), ConnectionLost)
            assert witness.ids == [FIRST_ID + (index | 1) for index in range(count)]
            assert hashlib.sha256(b"".join(witness.messages)).hexdigest() == report["sha256"]
            assert (witness.client.missed, witness.gaps) == (0, [])
    assert report["clients"] == 2 * [
        {"acked_id": FIRST_ID + count - 1, "acks": count, "each_in_order": True, "end": "served"}
    ]


def test_our_client_acks_every_message_by_hand_too(address: str) -> None:
    with classic_server(address, "--count", 20) as server, Client(address) as client:
        for _ in range(20):
            client.receive(DEADLINE)
        client.ack()
        (served,) = server.result()["clients"]
    assert (served["acks"], served["each_in_order"], served["end"]) == (20, True, "served")


def test_running_a_handler_over_a_plain_server_acks_each_message(address: str) -> None:
    found: list[bytes] = []
    with classic_server(address, "--count", 50) as server, Client(address) as client:
        with pytest.raises(ConnectionLost, match=r"plain 1\.0"):
            client.run(found.append)
        (served,) = server.result()["clients"]
    assert len(found) == served["acks"] == 50
    assert served["each_in_order"]


def test_our_client_that_stops_is_cut_by_a_plain_server_and_reads_what_was_sent(
    address: str,
) -> None:
    with classic_server(address, "--count", 30, "--max-lag", 10) as server:
        with Client(address) as client:
            (served,) = server.result()["clients"]
            found = []
            with pytest.raises(ConnectionLost):
                while True:
                    found.append(client.receive(DEADLINE))
    assert served["end"] == "lagged"
    assert 10 <= len(found) <= 11


def test_a_message_larger_than_the_arena_is_named(address: str) -> None:
    with classic_server(address, "--count", 1, "--size", 10_000) as server:
        with arenas_of(4096), Client(address) as client:
            with pytest.raises(jumiks.ProtocolError, match="are agreed at most"):
                client.receive(DEADLINE)
            client.close()
            server.result()


def test_our_client_takes_any_patch(address: str) -> None:
    with classic_server(address, "--patch", 9, "--count", 3) as server:
        with Client(address) as client:
            assert len([client.receive(DEADLINE) for _ in range(3)]) == 3
            client.ack()
            server.result()


@pytest.mark.parametrize(("part", "number"), [("--major", 2), ("--major", 0), ("--minor", 1)])
def test_our_client_refuses_another_version(address: str, part: str, number: int) -> None:
    with classic_server(address, part, number):
        with pytest.raises(VersionMismatch) as caught:
            Client(address)
    theirs = (number, 0, 0) if part == "--major" else (1, number, 0)
    assert caught.value.theirs == theirs
    assert caught.value.ours == (1, 0, 0)
    assert ".".join(map(str, theirs)) in str(caught.value)


@pytest.mark.parametrize("start_at", ["oldest", FIRST_ID + 5])
def test_a_plain_server_keeps_nothing_to_start_at(address: str, start_at: int) -> None:
    with classic_server(address, "--clients", 9):
        with pytest.raises(Refused, match=r"plain 1\.0"):
            Client(address, start=start_at)
