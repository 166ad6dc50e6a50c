# SPDX-License-Identifier: Apache-2.0
"""The peers of plain 1.0 against each other: what they prove later is worth what they are."""

import hashlib
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import peers
import pytest
from peers import Peer, classic_client, classic_server

pytestmark = pytest.mark.no_core

FIRST_ID = 100000
HELLO = bytes.fromhex("010000000000")
LONG_HELLO = HELLO + bytes(range(42))


def message(packet_id: int, payload: bytes) -> bytes:
    return struct.pack("<Q", packet_id) + payload


def ack(packet_id: int) -> bytes:
    return struct.pack("<Q", packet_id)


@pytest.fixture(scope="module")
def c_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if peers.compiler() is None:
        pytest.skip("no C compiler")
    return peers.build_c_client(tmp_path_factory.mktemp("peers"))


Start = Callable[..., Peer]


@pytest.fixture(params=["python", "c"])
def any_client(request: pytest.FixtureRequest) -> Start:
    """Start either client: its address, and perhaps how many messages to receive."""
    if request.param == "python":
        return lambda address, count=None: classic_client(
            address, *(() if count is None else ("--count", count))
        )
    program = request.getfixturevalue("c_client")
    return lambda address, *count: Peer(program, address, *count)


@contextmanager
def plain_server(address: str) -> Iterator[socket.socket]:
    """One bare connection, whose other end is a client that is to be started."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("\0" + address[1:])
        listener.listen()
        listener.settimeout(peers.DEADLINE)
        yield listener


def plain_client(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(peers.DEADLINE)
    connection.connect("\0" + address[1:])
    return connection


def test_two_clients_receive_and_ack_everything(address: str) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(classic_server(address, "--clients", 2, "--count", 2000))
        clients = [stack.enter_context(classic_client(address, "--sha256")) for _ in range(2)]
        reports = [client.result() for client in clients]
        served = server.result()
    for report in reports:
        assert report == {
            "messages": 2000,
            "first_id": FIRST_ID,
            "last_id": FIRST_ID + 1999,
            "sha256": served["sha256"],
            "ordered": True,
            "end": "eof",
        }
    assert served["clients"] == 2 * [
        {"acked_id": FIRST_ID + 1999, "acks": 2000, "each_in_order": True, "end": "served"}
    ]


def test_the_lines_of_a_file_arrive_as_they_are(path: Path, tmp_path: Path) -> None:
    book = tmp_path / "book"
    book.write_bytes(b"one\n\nthree\r\n\xff\x00\nno end")
    with (
        classic_server(path, "--file", book) as server,
        classic_client(path, "--sha256") as client,
    ):
        report = client.result()
        served = server.result()
    assert report["messages"] == 5
    assert report["sha256"] == served["sha256"] == hashlib.sha256(book.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_messages_of_any_size_arrive(address: str, size: int) -> None:
    with (
        classic_server(address, "--count", 20, "--size", size) as server,
        classic_client(address, "--sha256") as client,
    ):
        report = client.result()
        assert report["sha256"] == server.result()["sha256"]
    assert report["messages"] == 20


def test_the_c_client_receives_what_the_server_sends(
    address: str, c_client: Path, tmp_path: Path
) -> None:
    book = tmp_path / "book"
    book.write_bytes(b"".join(b"line %d\n" % number for number in range(500)))
    with (
        classic_server(address, "--file", book) as server,
        Peer(c_client, address) as client,
    ):
        assert client.result() == {
            "messages": 500,
            "first_id": FIRST_ID,
            "last_id": FIRST_ID + 499,
            "fnv1a": peers.fnv1a(book.read_bytes()),
            "ordered": True,
            "end": "eof",
        }
        (served,) = server.result()["clients"]
    assert served["acks"] == 500
    assert served["each_in_order"]


def test_the_c_client_connects_to_a_path_too(path: Path, c_client: Path) -> None:
    with classic_server(path, "--count", 3) as server, Peer(c_client, path) as client:
        assert client.result()["messages"] == 3
        server.result()


def test_a_client_leaves_after_its_count(address: str, any_client: Start) -> None:
    with classic_server(address) as server, any_client(address, 7) as client:
        report = client.result()
        (served,) = server.result()["clients"]
    assert (report["messages"], report["end"]) == (7, "count")
    assert (served["acks"], served["end"]) == (7, "left")


def test_another_patch_is_accepted(address: str) -> None:
    with (
        classic_server(address, "--patch", 3, "--count", 5) as server,
        classic_client(address, "--patch", 8) as client,
    ):
        assert client.result()["messages"] == 5
        server.result()


@pytest.mark.parametrize("part", ["--major", "--minor"])
def test_a_server_refuses_another_version(address: str, part: str) -> None:
    with classic_server(address, "--count", 1) as server:
        with classic_client(address, part, 7) as client:
            assert client.result()["end"] == "refused"
        with classic_client(address) as client:
            assert client.result()["end"] == "eof"
        ends = [served["end"] for served in server.result()["clients"]]
    assert ends == ["refused", "served"]


@pytest.mark.parametrize("part", ["--major", "--minor"])
def test_a_client_refuses_another_version(address: str, part: str, any_client: Start) -> None:
    with classic_server(address, part, 7), any_client(address) as client:
        assert client.result()["end"] == "refused"


def test_a_stalled_client_is_disconnected_and_the_other_is_not(address: str) -> None:
    options = ("--clients", 2, "--count", 400, "--max-lag", 100, "--window", 50)
    with (
        classic_server(address, *options) as server,
        classic_client(address) as client,
        classic_client(address, "--stall-after", 10) as stalled,
    ):
        assert client.result()["messages"] == 400
        assert stalled.result()["messages"] == 10
        ends = {served["end"]: served["acks"] for served in server.result()["clients"]}
    # How many of its ten acks were in time depends on who was faster.
    assert ends.keys() == {"served", "lagged"}
    assert ends["served"] == 400
    assert ends["lagged"] <= 10


def test_a_client_that_never_acks_is_disconnected(address: str) -> None:
    with (
        classic_server(address, "--count", 50, "--max-lag", 10) as server,
        classic_client(address, "--no-ack") as client,
    ):
        report = client.result()
        (served,) = server.result()["clients"]
    assert report["messages"] == 11
    assert served == {"acked_id": 0, "acks": 0, "each_in_order": True, "end": "lagged"}


def test_a_slow_client_gets_everything_without_a_limit(address: str) -> None:
    with (
        classic_server(address, "--count", 20) as server,
        classic_client(address, "--delay", 0.001) as client,
    ):
        assert client.result()["messages"] == 20
        server.result()


def test_a_message_that_fits_no_packet_ends_the_connection(address: str) -> None:
    with (
        classic_server(address, "--count", 1, "--size", 4 << 20) as server,
        classic_client(address) as client,
    ):
        assert client.result()["messages"] == 0
        (served,) = server.result()["clients"]
    assert served["end"] == "too large"


@pytest.mark.parametrize("acks", [ack(FIRST_ID + 9), b"short", bytes(9), bytes(8)])
def test_the_server_ends_a_connection_with_an_ack_that_makes_no_sense(
    address: str, acks: bytes
) -> None:
    with (
        classic_server(address, "--count", 1) as server,
        plain_client(address) as client,
    ):
        assert client.recv(100) == HELLO
        client.send(HELLO)
        client.recv(100)
        client.send(acks)
        (served,) = server.result()["clients"]
    assert served["end"] == "broken"


def test_the_server_notices_acks_that_are_left_out(address: str) -> None:
    with (
        classic_server(address, "--count", 2) as server,
        plain_client(address) as client,
    ):
        client.recv(100)
        client.send(HELLO)
        client.recv(100)
        client.recv(100)
        client.send(ack(FIRST_ID + 1))
        (served,) = server.result()["clients"]
    assert served == {
        "acked_id": FIRST_ID + 1,
        "acks": 1,
        "each_in_order": False,
        "end": "served",
    }


def test_a_client_reads_six_bytes_of_a_longer_hello(address: str, any_client: Start) -> None:
    with plain_server(address) as listener, any_client(address, 1) as client:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(peers.DEADLINE)
            connection.send(LONG_HELLO)
            assert connection.recv(100) == HELLO
            connection.send(message(FIRST_ID, b""))
            assert connection.recv(100) == ack(FIRST_ID)
            assert client.result()["end"] == "count"


def test_the_server_reads_six_bytes_of_a_longer_hello(address: str) -> None:
    with classic_server(address, "--count", 1) as server, plain_client(address) as client:
        client.recv(100)
        client.send(LONG_HELLO)
        assert client.recv(100)[:8] == ack(FIRST_ID)
        client.send(ack(FIRST_ID))
        (served,) = server.result()["clients"]
    assert served["end"] == "served"


def test_a_client_notices_a_gap_in_the_ids(address: str, any_client: Start) -> None:
    with plain_server(address) as listener, any_client(address) as client:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(peers.DEADLINE)
            connection.send(HELLO)
            connection.recv(100)
            for packet_id in (FIRST_ID, FIRST_ID + 5):
                connection.send(message(packet_id, b"x"))
                assert connection.recv(100) == ack(packet_id)
        report = client.result()
    assert report["messages"] == 2
    assert report["last_id"] == FIRST_ID + 5
    assert not report["ordered"]
    assert report["end"] == "eof"


def test_a_client_reads_on_after_a_reset(address: str, any_client: Start) -> None:
    with plain_server(address) as listener, any_client(address) as client:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(peers.DEADLINE)
            connection.send(HELLO)
            connection.recv(100)
            for packet_id in range(FIRST_ID, FIRST_ID + 10):
                connection.send(message(packet_id, b"x"))
            # An ack that is there and not read is what makes the reset.
            connection.recv(100, socket.MSG_PEEK)
        report = client.result()
    assert report["messages"] == 10
    assert report["end"] == "reset"
