# SPDX-License-Identifier: Apache-2.0
"""The ids of a plain 1.0 server: labels, which are shown and acked, and count for nothing."""

import contextlib
import json
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio
import pytest
from support import reference
from support.base import DEADLINE, wait_until
from support.reference import Message, Welcome
from support.wire import FIRST_ID, HELLO, LARGE, hello_of, listening, one_connection, send_all

from jumiks import (
    AckError,
    AsyncClient,
    Backoff,
    Client,
    ConnectionLost,
    Gap,
    GapReason,
    ProtocolError,
    Timeout,
)
from jumiks._client.labels import MOST, Labels

TOP = (1 << 64) - 1
RUNS = 4096
"""How many runs of ids that are not acked yet a client keeps."""

WAYS = {
    "rising": list(range(FIRST_ID, FIRST_ID + 300)),
    "as Go sends them": [FIRST_ID + (index | 1) for index in range(300)],
    "always the same": [7] * 200,
    "falling": list(range(300, 0, -1)),
    "jumping": [3 * index + 1 for index in range(300)],
    "up and down": [FIRST_ID + index % 5 for index in range(301)],
    "lower, then on": [500, 501, 502, 7, 8, 9, 9, 10, 502, 503],
    "zero": [0, 0, 1, 2, 0],
    "the highest": [TOP, TOP, TOP - 1, TOP, 0, 1, TOP],
    "around the middle": [(1 << 63) - 1, 1 << 63, (1 << 63) + 1, 1 << 63],
}

ways = pytest.mark.parametrize("ids", WAYS.values(), ids=WAYS.keys())


def payloads(ids: Sequence[int]) -> list[bytes]:
    return [b"m%d" % place for place in range(len(ids))]


def packets(ids: Sequence[int]) -> list[bytes]:
    return [
        reference.encode_classic(Message(label, payload))
        for label, payload in zip(ids, payloads(ids), strict=True)
    ]


class Plain:
    """A plain 1.0 server by hand: sends messages with these ids, and notes the acks.

    Args:
        ids: of its messages, in order.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.acks: list[int] = []
        self.finish = threading.Event()
        """It closes once that is set, if not all were acked before."""

    def __call__(self, connection: socket.socket) -> None:
        connection.send(HELLO)
        connection.recv(LARGE)
        sender = threading.Thread(target=self.send, args=(connection,))
        sender.start()
        connection.settimeout(0.01)
        while len(self.acks) < len(self.ids) and not self.finish.is_set():
            with contextlib.suppress(TimeoutError):
                packet = connection.recv(LARGE)
                if not packet:
                    break
                self.acks.append(int.from_bytes(packet, "little"))
        sender.join()

    def send(self, connection: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for packet in packets(self.ids):
                while True:
                    with contextlib.suppress(TimeoutError):
                        connection.send(packet)
                        break

    def has_acks(self, expected: Sequence[int]) -> None:
        wait_until(lambda: len(self.acks) >= len(expected))
        assert self.acks == list(expected)


@contextmanager
def plain(address: str, ids: Sequence[int]) -> Iterator[Plain]:
    server = Plain(ids)
    with listening(address) as listener, one_connection(listener, server):
        try:
            yield server
        finally:
            server.finish.set()


@ways
@pytest.mark.parametrize("ack", ["after", "before"])
def test_each_packet_is_a_message_and_acked_with_its_own_id(
    address: str, ids: list[int], ack: str
) -> None:
    with plain(address, ids) as server:
        found: list[bytes] = []
        with Client(address, on_gap="raise", ack=ack) as client:  # type: ignore[call-overload]
            with pytest.raises(ConnectionLost):
                found.extend(client)
            assert client.missed == 0
    assert found == payloads(ids)
    assert server.acks == ids


@ways
def test_a_receive_says_the_id_that_its_packet_carried(address: str, ids: list[int]) -> None:
    with plain(address, ids), Client(address) as client:
        for label, payload in zip(ids, payloads(ids), strict=True):
            assert client.receive(DEADLINE) == payload
            assert client.last_id == label
            assert f"last {label}" in repr(client)
            assert client.resume_at == label
    assert client.last_id == ids[-1]


@ways
def test_a_batch_ends_where_ids_stop_being_consecutive(address: str, ids: list[int]) -> None:
    labels: list[int] = []
    found: list[bytes] = []
    with plain(address, ids), Client(address) as client:
        while len(found) < len(ids):
            found.append(client.receive(DEADLINE))
            labels.append(client.last_id)
            with contextlib.suppress(Timeout, ConnectionLost):
                batch = client.receive_many(0)
                assert batch.last_id - batch.first_id == len(batch) - 1
                assert client.last_id == batch.last_id
                labels.extend(range(batch.first_id, batch.last_id + 1))
                found.extend(batch)
        assert client.missed == 0
    assert (labels, found) == (ids, payloads(ids))


@ways
def test_an_async_client_has_them_as_they_are(address: str, ids: list[int]) -> None:
    found: list[tuple[int, bytes]] = []

    async def main() -> None:
        async with AsyncClient(address, on_gap="raise") as client:
            with pytest.raises(ConnectionLost):
                await client.run(lambda message: found.append((client.last_id, message)))
            assert client.missed == 0

    with plain(address, ids) as server:
        anyio.run(main)
    assert found == list(zip(ids, payloads(ids), strict=True))
    assert server.acks == ids


def test_an_ack_by_hand_is_of_the_last_message_with_that_id(address: str) -> None:
    ids = [11, 11, 5, 13, 11]
    with plain(address, ids) as server, Client(address) as client:
        client.ack()
        client.ack(0)
        with pytest.raises(AckError, match="the last one was none"):
            client.ack(11)
        client.receive(DEADLINE)
        client.ack(11)
        server.has_acks([11])
        for _ in range(3):
            client.receive(DEADLINE)
        client.ack(11)
        server.has_acks([11, 11, 5])  # 5 went out as 13 was received
        for label in (12, 14, 1, TOP, -1, 1 << 64):
            with pytest.raises(AckError, match=f"packet id {label} was not handed out"):
                client.ack(label)
        assert client.resume_at == 13
        client.ack(13)
        assert client.resume_at == 14
        server.has_acks([11, 11, 5, 13])
        client.receive(DEADLINE)
        assert client.last_id == 11
        client.ack(11)
        server.has_acks(ids)


def test_an_ack_within_a_batch_goes_no_further(address: str) -> None:
    ids = [21, 22, 23, 24, 22]

    with plain(address, ids) as server, Client(address) as client:
        client.receive(DEADLINE)
        client.ack(21)
        server.has_acks([21])
        batch = client.receive_many(DEADLINE)
        while client.last_id != 24:
            batch = client.receive_many(DEADLINE)
        client.ack(batch.last_id)
        server.has_acks([21, 22, 23, 24])
        assert client.lag == 0


def test_a_client_that_comes_back_begins_anew(address: str) -> None:
    gaps: list[Gap] = []
    with listening(address) as listener:
        client = Client.__new__(Client)
        first = Plain([50, 50])
        with one_connection(listener, first):
            client.__init__(  # type: ignore[misc]
                address, reconnect=Backoff(first=0, most=0.01), on_gap=gaps.append
            )
            assert [client.receive(DEADLINE) for _ in range(2)] == [b"m0", b"m1"]
            client.ack()
        second = Plain([3, 3, 50])
        with one_connection(listener, second), client:
            found = []
            for label in second.ids:
                found.append(client.receive(DEADLINE))
                assert client.last_id == label
            client.ack()
    assert (first.acks, second.acks) == ([50, 50], [3, 3, 50])
    assert found == [b"m0", b"m1", b"m2"]
    assert gaps == [Gap(51, None, GapReason.RESTARTED)]
    assert client.missed == 0


def test_the_command_prints_the_ids_as_they_came(address: str) -> None:
    ids = [9, 9, 4, 5]
    with plain(address, ids):
        done = subprocess.run(
            [sys.executable, "-m", "jumiks.cli", "listen", "--json", "--count", "4", address],
            capture_output=True,
            check=True,
            timeout=DEADLINE,
        )
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ids


# ---- more jumps than a client keeps in mind ----


def acks_when_full(ids: Sequence[int], acks: list[int]) -> Callable[[socket.socket], None]:
    """A server that reads an ack only when it can send nothing more."""

    def read(connection: socket.socket) -> None:
        readable, _, _ = select.select([connection], [], [], DEADLINE)
        assert readable
        acks.append(int.from_bytes(connection.recv(LARGE), "little"))

    def script(connection: socket.socket) -> None:
        connection.send(HELLO)
        connection.recv(LARGE)
        connection.setblocking(False)
        for packet in packets(ids):
            while True:
                try:
                    connection.send(packet)
                    break
                except BlockingIOError:
                    read(connection)
        while len(acks) < len(ids):
            read(connection)

    return script


def test_more_jumps_than_are_kept_wait_until_the_server_has_read_acks(address: str) -> None:
    ids = [FIRST_ID + (index | 1) for index in range(4 * RUNS)]
    acks: list[int] = []
    with listening(address) as listener, one_connection(listener, acks_when_full(ids, acks)):
        with Client(address, on_gap="raise") as client:
            found: list[bytes] = []
            with pytest.raises(ConnectionLost):
                found.extend(client)
    assert found == payloads(ids)
    assert acks == ids


def test_a_server_that_reads_no_acks_is_waited_for_with_a_deadline(address: str) -> None:
    over = threading.Event()
    ids = [5] * (RUNS + 2000)

    def script(connection: socket.socket) -> None:
        connection.send(HELLO)
        connection.recv(LARGE)
        connection.settimeout(0.01)
        for packet in packets(ids):
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection.send(packet)
                    break
        assert over.wait(DEADLINE)

    with listening(address) as listener, one_connection(listener, script):
        with Client(address) as client:
            count = 0
            try:
                with pytest.raises(Timeout):
                    while True:
                        client.receive(2.0)
                        count += 1
            finally:
                over.set()
            assert RUNS <= count < len(ids)
            assert client.lag > RUNS - 64


def test_what_was_acked_long_ago_may_be_acked_again() -> None:
    labels = Labels()
    for number in range(1, 2 * MOST):
        labels.note(number, 2 * number)
    newest = 2 * MOST - 1
    assert labels.of(newest) == 3 * newest
    assert labels.find(3 * newest, newest) == newest
    assert labels.find(3 * newest, newest - 1) == -1
    assert 0 <= labels.find(3, newest) < newest - MOST // 2
    assert labels.find(1, newest) == labels.find(3 * newest + 1, newest) == -1


# ---- a server that has an extended hello ----


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("ids", [[FIRST_ID, FIRST_ID], [FIRST_ID + 1, FIRST_ID]])
def test_an_extended_server_is_held_to_its_ids(address: str, framed: bool, ids: list[int]) -> None:
    def script(connection: socket.socket) -> None:
        connection.send(hello_of())
        connection.recv(LARGE)
        granted = reference.FRAMES if framed else 0
        connection.send(reference.encode_welcome(Welcome(0, granted, FIRST_ID)))
        frames = [reference.encode_frame(reference.Frame(label, b"m")) for label in ids]
        send_all(connection, frames if framed else packets(ids))
        while connection.recv(LARGE):
            pass

    with listening(address) as listener, one_connection(listener, script):
        with Client(address, delivery="shared" if framed else "classic") as client:
            client.receive(DEADLINE)
            with pytest.raises(ProtocolError, match="go backwards"):
                client.receive(DEADLINE)
            assert client.missed == ids[0] - FIRST_ID
