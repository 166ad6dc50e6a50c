# SPDX-License-Identifier: Apache-2.0
"""Gaps of a single message, wherever a client may meet one: none is too small to be told."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import pytest
from support.api import SOON
from support.base import DEADLINE
from support.reference import (
    FRAMES,
    Bye,
    Frame,
    Welcome,
    encode_bye,
    encode_frame,
    encode_welcome,
)
from support.servers import Server
from support.shared import CONTROL, NEXT_ID, TAIL, HandMadeLog, served_by
from support.wire import LARGE, hello_of, listening, one_connection, raw_client, saying

from jumiks import Client, ClientInfo, ConnectionLost, Gap, GapReason
from jumiks._wire.handshake import FIRST_ID

SAME, OTHER = 42, 43
CLOSING = 2
FIRST, SECOND, THIRD = FIRST_ID, FIRST_ID + 1, FIRST_ID + 2


def data(packet_id: int) -> bytes:
    return encode_frame(Frame(packet_id, b"%d" % packet_id))


def bye(lost: int) -> bytes:
    """As a closing server says it whose last message did not get through."""
    return encode_bye(Bye(CLOSING, first_lost=lost, last_lost=lost), lost - 1)


def bye_behind(packet_id: int) -> bytes:
    """The same of a server that takes the message for sent."""
    return encode_bye(Bye(CLOSING), packet_id)


class Life(NamedTuple):
    """One connection: of which server, the first message that it begins with, its packets."""

    server_id: int
    first_id: int
    packets: list[bytes]
    left_out: int = 0


def welcome_of(life: Life) -> bytes:
    return encode_welcome(Welcome(0, FRAMES, life.first_id, left_out=life.left_out))


@contextmanager
def served(address: str, *lives: Life) -> Iterator[None]:
    """Serve one connection after the other; the last one stays until its client closes it."""

    def serve(connection: socket.socket) -> None:
        for life in lives:
            peer = connection if life is lives[0] else listener.accept()[0]
            with peer:
                peer.settimeout(DEADLINE)
                saying(life.packets, hello_of(server_id=life.server_id), welcome_of(life))(peer)
                while life is lives[-1] and peer.recv(LARGE):
                    pass

    with listening(address) as listener, one_connection(listener, serve):
        yield


@pytest.mark.parametrize(
    ("lives", "lost", "reason"),
    [
        pytest.param(
            [Life(SAME, FIRST, [data(FIRST), bye(SECOND)]), Life(OTHER, FIRST, [data(FIRST)])],
            SECOND,
            GapReason.ENDED,
            id="the last of a server that closed",
        ),
        pytest.param(
            [
                Life(SAME, FIRST, [data(FIRST), bye_behind(SECOND)]),
                Life(OTHER, FIRST, [data(FIRST)]),
            ],
            SECOND,
            GapReason.ENDED,
            id="the last, which it thought it had sent",
        ),
        pytest.param(
            [Life(SAME, FIRST, [data(FIRST)]), Life(SAME, THIRD, [data(THIRD)])],
            SECOND,
            GapReason.EVICTED,
            id="what it no longer has",
        ),
        pytest.param(
            [
                Life(SAME, FIRST, [data(FIRST), bye_behind(FIRST)]),
                Life(OTHER, SECOND, [data(SECOND)]),
            ],
            FIRST,
            GapReason.EVICTED,
            id="the first of the next server",
        ),
        pytest.param(
            [Life(SAME, FIRST, [data(FIRST), data(THIRD)])],
            SECOND,
            GapReason.SKIPPED,
            id="skipped",
        ),
    ],
)
def test_one_lost_message_is_a_gap(
    address: str, lives: list[Life], lost: int, reason: GapReason
) -> None:
    gaps: list[Gap] = []
    with served(address, *lives):
        with Client(address, delivery="framed", reconnect=SOON, on_gap=gaps.append) as client:
            assert client.receive(DEADLINE) == b"%d" % FIRST
            assert client.receive(DEADLINE)
            assert gaps == [Gap(lost, lost)]
            assert gaps[0].reason is reason
            assert client.missed == 1


@pytest.mark.parametrize("start", ["oldest", FIRST, (SAME, FIRST)])
def test_one_message_before_the_first_is_a_gap(
    address: str, start: Literal["oldest"] | int | tuple[int, int]
) -> None:
    gaps: list[Gap] = []
    with served(address, Life(SAME, SECOND, [data(SECOND)], left_out=start == "oldest")):
        with Client(address, delivery="framed", start=start, on_gap=gaps.append) as client:
            assert client.receive(DEADLINE) == b"%d" % SECOND
            assert gaps == [Gap(FIRST, FIRST)]
            assert gaps[0].reason is GapReason.EVICTED


@pytest.mark.parametrize("delivery", ["framed", "shared"])
def test_an_end_tells_of_one_lost_message(
    address: str, delivery: Literal["framed", "shared"]
) -> None:
    """It was skipped, and nothing came behind it."""
    gone: list[ClientInfo] = []
    with Server(
        address,
        share_log=True,
        max_lag=1,
        on_lag="skip",
        patience=0,
        on_disconnect=lambda info, _: gone.append(info),
    ) as server:
        with raw_client(server, address) as quick:
            with Client(address, delivery=delivery, name="slow") as client:
                server.wait_for_clients(2, DEADLINE)
                server.publish(b"first")
                quick.ack(FIRST)
                server.publish(b"second")
                server.close(0)
                assert client.receive(DEADLINE) == b"first"
                with pytest.raises(ConnectionLost) as caught:
                    client.receive(DEADLINE)
                assert (caught.value.first_lost, caught.value.last_lost) == (SECOND, SECOND)
        assert [info.lost for info in gone if info.name == "slow"] == [Gap(SECOND, SECOND)]


@pytest.mark.parametrize("delivery", ["framed", "shared"])
def test_one_skipped_message_counts_at_both_ends(
    address: str, delivery: Literal["framed", "shared"]
) -> None:
    gaps: list[Gap] = []
    with Server(address, share_log=True, max_lag=1, on_lag="skip", patience=0) as server:
        with raw_client(server, address) as quick:
            with Client(address, delivery=delivery, on_gap=gaps.append) as client:
                server.wait_for_clients(2, DEADLINE)
                for number in range(3):
                    server.publish(b"%d" % number)
                    quick.ack(FIRST + number)
                assert [client.receive(DEADLINE), client.receive(DEADLINE)] == [b"0", b"2"]
                assert gaps == [Gap(SECOND, SECOND)]
                assert server.stats().skipped == 1


@pytest.mark.parametrize("goodbye", [True, False])
def test_an_end_tells_of_one_overwritten_message(address: str, goodbye: bool) -> None:
    """The server was about to cut this client."""

    def overwrite(connection: socket.socket, log: HandMadeLog) -> None:
        log.publish(b"gone")
        log.words[NEXT_ID], log.words[TAIL] = SECOND, log.head
        if goodbye:
            connection.send(bye_behind(FIRST))
            log.words[CONTROL] += 1
        connection.shutdown(socket.SHUT_RDWR)

    with HandMadeLog() as log, served_by(address, overwrite, log) as client:
        with pytest.raises(ConnectionLost) as caught:
            client.receive(DEADLINE)
        assert (caught.value.first_lost, caught.value.last_lost) == (FIRST, FIRST)
