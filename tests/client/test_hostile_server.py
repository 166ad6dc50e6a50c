# SPDX-License-Identifier: Apache-2.0
"""What a client makes of a server that breaks the protocol."""

import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from support import reference
from support.api import arenas_of
from support.base import DEADLINE, REFUSES, wait_until
from support.hostile import ends, fragment, received
from support.reference import (
    BYE,
    CRITICAL,
    DATA,
    FRAGMENT,
    Bye,
    Frame,
    Message,
    Welcome,
)
from support.rights import is_held, pipe, send_descriptor
from support.wire import (
    FIRST_ID,
    HELLO,
    WELCOME,
    hello_of,
    listening,
    one_connection,
    saying,
    send_all,
)

import jumiks
from jumiks import (
    Client,
    ConnectionLost,
    Delivery,
    Gap,
    ProtocolError,
    Timeout,
)


def data(packet_id: int, payload: bytes = b"fine") -> Frame:
    return Frame(packet_id, payload)


def frames(*items: Frame) -> bytes:
    return reference.encode_frames(items)


def header(size: int, kind: int = DATA, flags: int = 0, packet_id: int = FIRST_ID + 2) -> bytes:
    return struct.pack("<I2HQ", size, kind, flags, packet_id)


GOOD = frames(data(FIRST_ID), data(FIRST_ID + 1))
"""What is received before the fault."""

NEXT = FIRST_ID + 2

PART = b"p" * 16

FAULTS: dict[str, tuple[list[bytes], str]] = {
    "rubbish": ([b"\xff" * 64], "a frame that does not fit"),
    "text": ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "a frame that does not fit"),
    "too short for a header": ([b"\0" * 15], "a frame that does not fit"),
    "one byte": ([b"\0"], "a frame that does not fit"),
    "a frame longer than its packet": ([header(9) + bytes(8)], "a frame that does not fit"),
    "a frame of almost 4 GiB": ([header(0xFFFFFFFF) + bytes(8)], "a frame that does not fit"),
    "no padding": ([header(1) + b"x"], "a frame that does not fit"),
    "trailing bytes": ([frames(data(NEXT)) + b"\0" * 7], "a frame that does not fit"),
    "a second frame that is cut": (
        [frames(data(NEXT)) + header(100, packet_id=NEXT + 1)],
        "a frame that does not fit",
    ),
    "the same id again": ([frames(data(FIRST_ID + 1))], "go backwards"),
    "a lower id": ([frames(data(FIRST_ID - 7))], "go backwards"),
    "id 0": ([frames(data(0))], "go backwards"),
    "backwards within a packet": ([frames(data(NEXT), data(NEXT))], "go backwards"),
    "an unknown critical kind": (
        [frames(Frame(NEXT, b"", CRITICAL | 77))],
        "critical frame of the unknown kind",
    ),
    "a critical DATA": ([frames(Frame(NEXT, b"", CRITICAL | DATA))], "critical frame"),
    "a short BYE": ([frames(Frame(FIRST_ID + 1, bytes(63), BYE))], "sent a BYE of"),
    "an empty BYE": ([frames(Frame(FIRST_ID + 1, b"", BYE))], "sent a BYE of"),
    "an empty packet": ([b"", frames(data(NEXT))], "an empty packet"),
    "a packet that is too large": ([frames(data(NEXT, bytes(5000)))], "are agreed at most"),
    "a fragment without figures": (
        [header(0, DATA, FRAGMENT, NEXT)],
        "sizes contradict each other",
    ),
    "a fragment without a slice": (
        [fragment(NEXT, 100, 0, b"", True)],
        "sizes contradict each other",
    ),
    "a fragment beyond its total": (
        [fragment(NEXT, 10, 0, PART, False)],
        "sizes contradict each other",
    ),
    "a last fragment that is not the end": (
        [fragment(NEXT, 100, 0, PART, False)],
        "sizes contradict each other",
    ),
    "a fragment with more to come that is the end": (
        [fragment(NEXT, 16, 0, PART, True)],
        "sizes contradict each other",
    ),
    "figures that would overflow": (
        [fragment(NEXT, 8, 0xFFFFFFF8, PART, False)],
        "sizes contradict each other",
    ),
    "a fragment that begins in the middle": (
        [fragment(NEXT, 100, 16, PART, True)],
        "does not continue what came before",
    ),
    "fragments with a hole": (
        [fragment(NEXT, 100, 0, PART, True), fragment(NEXT, 100, 32, PART, True)],
        "does not continue what came before",
    ),
    "a fragment twice": (
        [fragment(NEXT, 100, 0, PART, True)] * 2,
        "does not continue what came before",
    ),
    "a message in fragments twice": (
        [fragment(NEXT, 4, 0, b"fine", False)] * 2,
        "go backwards",
    ),
    "fragments that change their total": (
        [fragment(NEXT, 100, 0, PART, True), fragment(NEXT, 99, 16, PART, True)],
        "does not continue what came before",
    ),
    "a fragment of another message": (
        [fragment(NEXT, 100, 0, PART, True), fragment(NEXT + 1, 100, 16, PART, True)],
        "does not continue what came before",
    ),
    "a fragment of an earlier message": (
        [fragment(NEXT, 100, 0, PART, True), fragment(FIRST_ID, 100, 0, PART, True)],
        "go backwards",
    ),
    "a fragment that beside another frame in one packet": (
        [fragment(NEXT, 100, 0, PART, True) + frames(data(NEXT + 1))],
        "beside another frame in one packet",
    ),
    "a fragment behind a message": (
        [frames(data(NEXT)) + fragment(NEXT + 1, 100, 0, PART, True)],
        "beside another frame in one packet",
    ),
    "a whole message within its own fragments": (
        [fragment(NEXT, 100, 0, PART, True), frames(data(NEXT))],
        "before the last fragment of message",
    ),
    "an earlier message within fragments": (
        [fragment(NEXT, 100, 0, PART, True), frames(data(FIRST_ID))],
        "before the last fragment of message",
    ),
    "a message larger than the largest": (
        [fragment(NEXT, 65537, 0, PART, True)],
        "larger than the max_message it announced, 65536 bytes",
    ),
    "a message of almost 4 GiB": (
        [fragment(NEXT, 0xFFFFFFFF, 0, PART, True)],
        "larger than the max_message it announced, 65536 bytes",
    ),
    "a fragment in a packet that is too large": (
        [fragment(NEXT, 60000, 0, PART, True), fragment(NEXT, 60000, 16, bytes(8000), True)],
        "are agreed at most",
    ),
    "an empty packet within fragments": (
        [fragment(NEXT, 100, 0, PART, True), b"", b"x"],
        "an empty packet",
    ),
    "rubbish within fragments": (
        [fragment(NEXT, 100, 0, PART, True), b"rubbish"],
        "a frame that does not fit",
    ),
}


@contextmanager
def lied_to(
    address: str,
    packets: Sequence[bytes],
    *,
    framed: bool = True,
    stays: bool = False,
    **options: Any,
) -> Iterator[Client]:
    """A client of a server that says these packets, and then closes unless it stays."""
    gone = threading.Event()
    hello, welcome = (None, WELCOME) if framed else (HELLO, None)
    say = saying(packets, hello, welcome)

    def script(connection: socket.socket) -> None:
        say(connection)
        if stays:
            gone.wait(DEADLINE)

    with listening(address) as listener, one_connection(listener, script):
        try:
            with Client(address, **options) as client:
                yield client
        finally:
            gone.set()


# ---- a client and what its server says ----


@pytest.mark.parametrize("in_one_go", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize(("packets", "text"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_the_server_is_named_and_what_came_before_it_is_delivered(
    address: str, packets: list[bytes], text: str, in_one_go: bool
) -> None:
    first_read = threading.Event()

    def script(connection: socket.socket) -> None:
        saying([GOOD])(connection)
        if not in_one_go:
            first_read.wait(DEADLINE)
        send_all(connection, packets)
        # The client is the one that ends it.
        assert ends(connection)

    with listening(address) as listener, one_connection(listener, script):
        with Client(address) as client:
            found = []
            if not in_one_go:
                found = [client.receive(DEADLINE), client.receive(DEADLINE)]
                first_read.set()
            rest, error = received(client)
            # It is over for good, and says the same again.
            assert type(received(client)[1]) is type(error)
    found += rest
    assert found[:2] == [b"fine"] * 2
    assert set(found) == {b"fine"}
    assert isinstance(error, ProtocolError), error
    assert pytest.raises(ProtocolError, match=text).matches(error)


def test_classic_packets_too_short_for_an_id_are_a_fault(address: str) -> None:
    good = reference.encode_classic(Message(7, b"fine"))
    with lied_to(address, [good, bytes(7)], framed=False) as client:
        found, error = received(client)
    assert found == [b"fine"]
    assert isinstance(error, ProtocolError)
    assert "too short for a packet id" in str(error)


def test_a_classic_packet_larger_than_the_arena_is_a_fault(address: str) -> None:
    packets = [reference.encode_classic(Message(7, bytes(size))) for size in (4088, 4089)]
    with arenas_of(4096), lied_to(address, packets[:1], framed=False) as client:
        found, error = received(client)
    assert (len(found), type(error)) == (1, ConnectionLost)
    packets[1] = reference.encode_classic(Message(8, bytes(4089)))
    with arenas_of(4096), lied_to(address + "b", packets, framed=False) as client:
        found, error = received(client)
    assert len(found) == 1
    assert isinstance(error, ProtocolError)
    assert "are agreed at most" in str(error)


def test_a_first_id_below_the_welcome_is_a_fault(address: str) -> None:
    with lied_to(address, [frames(data(FIRST_ID - 1))]) as client:
        found, error = received(client)
    assert found == []
    assert isinstance(error, ProtocolError)


def test_frames_of_unknown_kind_unknown_flags_and_dirty_padding_are_no_fault(
    address: str,
) -> None:
    packets = [
        frames(Frame(5, b"what", 77), data(FIRST_ID), Frame(0, bytes(9), 0), data(FIRST_ID + 1)),
        frames(Frame(NEXT, b"fine", DATA, 0xFFF0)),
        header(4, packet_id=NEXT + 1) + b"fine\xff\xff\xff\xff",
        fragment(NEXT + 2, 20, 0, b"f" * 16, True),
        frames(Frame(1, b"", 0x7FFF)),
        fragment(NEXT + 2, 20, 16, b"fine", False),
        reference.encode_bye(Bye(reason=2), NEXT + 2)[:16] + bytes.fromhex("0200") + bytes(62),
    ]
    with lied_to(address, packets) as client:
        found, error = received(client)
    assert found == [b"fine"] * 4 + [b"f" * 16 + b"fine"]
    assert isinstance(error, jumiks.ServerClosed)


def test_a_longer_bye_is_read_as_far_as_it_is_known(address: str) -> None:
    payload = reference.encode_bye(Bye(1, 2, 10, 11, 12, 13, 14, 15, 16), FIRST_ID + 1)[16:]
    with lied_to(address, [GOOD, frames(Frame(FIRST_ID + 1, payload + b"more", BYE))]) as client:
        found, error = received(client)
    assert len(found) == 2
    assert isinstance(error, jumiks.Lagged)
    assert (error.limit_kind, error.limit, error.lag, error.lag_bytes) == ("bytes", 10, 11, 12)
    assert (error.last_acked, error.first_lost, error.last_lost, error.oldest_kept) == (
        13,
        14,
        15,
        16,
    )


@pytest.mark.parametrize("reason", [0, 4, 6, 7, 99, 65535])
def test_a_goodbye_for_an_unknown_reason_is_a_loss_that_says_so(address: str, reason: int) -> None:
    with lied_to(address, [reference.encode_bye(Bye(reason), 0)]) as client:
        _, error = received(client)
    assert isinstance(error, ConnectionLost)
    assert f"reason {reason}" in str(error)


@pytest.mark.parametrize(
    ("reason", "kind"), [(2, jumiks.ServerClosed), (3, ProtocolError), (5, jumiks.Disconnected)]
)
def test_a_goodbye_says_why(address: str, reason: int, kind: type[Exception]) -> None:
    with lied_to(address, [reference.encode_bye(Bye(reason), 0)]) as client:
        assert type(received(client)[1]) is kind


def test_fragments_that_never_end_are_a_loss(address: str) -> None:
    with lied_to(address, [GOOD, fragment(NEXT, 100, 0, PART, True)]) as client:
        found, error = received(client)
    assert found == [b"fine"] * 2
    assert isinstance(error, ConnectionLost)


def test_fragments_that_stop_are_a_timeout(address: str) -> None:
    with lied_to(address, [fragment(FIRST_ID, 100, 0, PART, True)], stays=True) as client:
        with pytest.raises(Timeout):
            client.receive(0.05)


def test_a_later_message_gives_up_the_fragments_before_it(address: str) -> None:
    gaps: list[Gap] = []
    packets = [
        fragment(FIRST_ID, 100, 0, PART, True),
        fragment(FIRST_ID + 3, 100, 0, PART, True),
        frames(data(FIRST_ID + 5)),
        fragment(FIRST_ID + 6, 24, 0, b"f" * 16, True),
        fragment(FIRST_ID + 6, 24, 16, b"g" * 8, False),
    ]
    with lied_to(address, packets, on_gap=gaps.append) as client:
        found, error = received(client)
    assert found == [b"fine", b"f" * 16 + b"g" * 8]
    assert gaps == [Gap(FIRST_ID, FIRST_ID + 4)]
    assert isinstance(error, ConnectionLost)


def test_a_jump_to_the_last_id_there_is_does_no_harm(address: str) -> None:
    gaps: list[Gap] = []
    top = (1 << 64) - 1
    with lied_to(address, [frames(data(top - 1))], on_gap=gaps.append) as client:
        found, _ = received(client)
    assert found == [b"fine"]
    assert gaps == [Gap(FIRST_ID, top - 2)]


@pytest.mark.parametrize("packet", [b"x", b"\0" * 5, b"SSH-2.0-OpenSSH\r\n", b"\xff" * 48])
def test_a_hello_that_is_none_is_a_protocol_error(address: str, packet: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.send(packet)
        ends(connection)

    with listening(address) as listener, one_connection(listener, script):
        with pytest.raises(ProtocolError, match="does not speak jumiks"):
            Client(address)


@pytest.mark.parametrize("size", [1, 15])
def test_a_short_welcome_is_a_protocol_error(address: str, size: int) -> None:
    with listening(address) as listener:
        with one_connection(listener, saying([], welcome=WELCOME[:size])):
            with pytest.raises(ProtocolError, match="welcome"):
                Client(address)


def test_a_welcome_that_grants_what_was_not_asked_for_is_a_protocol_error(address: str) -> None:
    welcome = reference.encode_welcome(Welcome(0, reference.FRAMES | reference.LOG, FIRST_ID))
    with listening(address) as listener, one_connection(listener, saying([], welcome=welcome)):
        with pytest.raises(ProtocolError, match="not asked for"):
            Client(address, delivery="framed")


def test_a_log_without_its_descriptors_is_a_protocol_error(address: str) -> None:
    welcome = reference.encode_welcome(Welcome(0, reference.FRAMES | reference.LOG, FIRST_ID))
    with listening(address) as listener, one_connection(listener, saying([], welcome=welcome)):
        with pytest.raises(ProtocolError, match="0 descriptors"):
            Client(address)


@pytest.mark.parametrize("hello", [b"", HELLO[:0], None])
def test_a_server_that_hangs_up_in_the_handshake_is_a_loss(
    address: str, hello: bytes | None
) -> None:
    def script(connection: socket.socket) -> None:
        if hello is None:
            connection.send(hello_of())
            connection.recv(100)

    with listening(address) as listener, one_connection(listener, script):
        with pytest.raises(ConnectionLost, match="during the handshake"):
            Client(address)


@pytest.mark.parametrize("greets", [False, True])
def test_a_silent_server_is_a_timeout(address: str, greets: bool) -> None:
    def script(connection: socket.socket) -> None:
        if greets:
            connection.send(hello_of())
        ends(connection)

    with listening(address) as listener, one_connection(listener, script):
        with pytest.raises(Timeout, match="no welcome" if greets else "no hello"):
            Client(address, timeout=0.05)


@pytest.mark.parametrize("figure", [1, 8, 23, 24, 511, 0xFFFFFFFF])
def test_a_server_that_claims_absurd_packet_sizes_crashes_nobody(address: str, figure: int) -> None:
    hello = hello_of(max_packet=figure, max_message=0xFFFFFFFF, max_lag=(1 << 64) - 1)
    packets = [
        GOOD,
        fragment(NEXT, 40, 0, b"x" * 16, True),
        fragment(NEXT, 40, 16, b"y" * 24, False),
    ]
    with listening(address) as listener, one_connection(listener, saying(packets, hello)):
        try:
            with arenas_of(65536), Client(address) as client:
                _, error = received(client)
        except ProtocolError:
            return
    assert isinstance(error, (ProtocolError, ConnectionLost))


@pytest.mark.parametrize("delivery", ["framed", "shared"])
def test_a_server_that_sends_descriptors_with_messages_breaks_the_protocol(
    address: str, kernel: str, delivery: Delivery
) -> None:
    refused = []
    with pipe() as (reading, writing):

        def script(connection: socket.socket) -> None:
            saying([GOOD])(connection)
            if not send_descriptor(connection, GOOD, writing):
                refused.append(True)
            os.close(writing)

        with listening(address) as listener, one_connection(listener, script):
            with Client(address, delivery=delivery) as client:
                messages, error = received(client)
                kind, words = type(error), str(error)
                del error  # its frames have the connection, which has the descriptor unread
            wait_until(lambda: not is_held(reading))
    assert messages == [b"fine"] * 2
    # One that asked for a log takes descriptors until its welcome has come.
    assert bool(refused) == (kernel == REFUSES) or delivery == "shared"
    if refused:
        assert kind is ConnectionLost
    else:
        assert kind is ProtocolError
        assert "descriptors that nobody asked for" in words
