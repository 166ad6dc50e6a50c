# SPDX-License-Identifier: Apache-2.0
"""Servers that lie, met by our client on each path: an error that says so, and no memory for it.

What they say wrong in packets stands in test_hostile.py, and in a log they share in test_shared.py;
here is what needs a row of lengths, a half-open socket, or figures at the end of their range.
"""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support import reference
from support.base import DEADLINE, REFUSES, descriptors, wait_until
from support.reference import BYE, FRAMES, Bye, Fragment, Frame, Message, Welcome
from support.shared import RING, WAKE_PACKET, HandMadeLog, served_by, shake_hands
from support.wire import (
    FIRST_ID,
    HELLO,
    LARGE,
    WELCOME,
    hello_of,
    listening,
    one_connection,
    saying,
    send_all,
)

from jumiks import (
    Client,
    ConnectionLost,
    Delivery,
    Gap,
    JumiksError,
    ProtocolError,
    Refused,
    ServerClosed,
    Timeout,
)

TOP = (1 << 64) - 1
BYE_SIZE = 64

all_ways = pytest.mark.parametrize(
    "delivery", ["classic", "framed", pytest.param("shared", marks=pytest.mark.only_shared)]
)


def received(client: Client, limit: int = 100) -> tuple[list[bytes], Exception]:
    """All messages, and what came behind them; `limit` is more than any server here sends."""
    found: list[bytes] = []
    try:
        while len(found) < limit:
            found.append(client.receive(DEADLINE))
    except Exception as error:
        return found, error
    pytest.fail("it receives without end")


@contextmanager
def met(
    address: str, delivery: Delivery, script: Callable[[socket.socket], object], **options: object
) -> Iterator[Client]:
    """Our client at a server by hand, which runs a script behind the handshake and then closes."""
    with HandMadeLog() as log:

        def serve(connection: socket.socket) -> None:
            if delivery == "shared":
                shake_hands(connection, log)
            elif delivery == "framed":
                saying([])(connection)
            else:
                saying([], HELLO, None)(connection)
            script(connection)

        with listening(address) as listener, one_connection(listener, serve):
            with Client(address, **options) as client:  # type: ignore[call-overload]
                assert repr(client)
                yield client


# ---- the handshake ----


def test_hellos_of_every_length_and_any_bytes_end_in_a_documented_error(address: str) -> None:
    def script(packet: bytes) -> Callable[[socket.socket], None]:
        def hello(connection: socket.socket) -> None:
            connection.send(packet)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(LARGE):
                pass

        return hello

    good = hello_of(capabilities=FRAMES)
    for size in range(1, 72):
        for packet in (good.ljust(size, b"\xff")[:size], os.urandom(size), b"\xff" * size):
            with listening(f"{address}-{size}") as listener:
                with one_connection(listener, script(packet)):
                    try:
                        with Client(f"{address}-{size}") as client:
                            _, error = received(client)
                    except Exception as caught:
                        error = caught
            assert isinstance(error, ProtocolError | ConnectionLost | Refused), (size, packet)
            if size < 6:
                assert isinstance(error, ProtocolError), (size, packet)


@pytest.mark.parametrize(
    "figures",
    [
        {"oldest_id": TOP, "next_id": 0},
        {"oldest_id": 0, "next_id": TOP},
        {"max_lag": 1},
        {"max_lag": TOP},
        {"server_id": 0},
        {"max_message": 1},
        {"max_message": 0, "max_packet": 0},
    ],
)
def test_a_hello_whose_figures_lie_changes_nothing_of_what_is_received(
    address: str, figures: dict[str, int]
) -> None:
    packets = [reference.encode_frames([Frame(FIRST_ID, b"one"), Frame(FIRST_ID + 1, b"two")])]
    with listening(address) as listener:
        with one_connection(listener, saying(packets, hello_of(**figures))):
            with Client(address) as client:
                found, error = received(client)
    assert found == [b"one", b"two"]
    assert isinstance(error, ConnectionLost)


@pytest.mark.parametrize("first_id", [0, 1, FIRST_ID - 1, FIRST_ID + 49])
def test_a_welcome_before_the_start_that_was_asked_for_is_a_protocol_error(
    address: str, first_id: int
) -> None:
    # It would hand out messages twice, as who resumes has had them.
    welcome = reference.encode_welcome(Welcome(0, FRAMES, first_id))
    with listening(address) as listener, one_connection(listener, saying([], welcome=welcome)):
        with pytest.raises(ProtocolError, match=f"begins at {first_id}, where 100050 was asked"):
            Client(address, start=FIRST_ID + 50)


def test_a_welcome_far_behind_the_start_is_one_gap(address: str) -> None:
    gaps: list[Gap] = []
    welcome = reference.encode_welcome(Welcome(0, FRAMES, TOP))
    with listening(address) as listener, one_connection(listener, saying([], welcome=welcome)):
        with Client(address, start=FIRST_ID, on_gap=gaps.append) as client:
            assert gaps == [Gap(FIRST_ID, TOP - 1)]
            assert client.missed == TOP - FIRST_ID
            assert isinstance(received(client)[1], ConnectionLost)


@pytest.mark.parametrize("size", range(16))
def test_a_welcome_of_every_short_length_is_a_protocol_error(address: str, size: int) -> None:
    with listening(address) as listener:
        with one_connection(listener, saying([], welcome=WELCOME[:size])):
            with pytest.raises(ProtocolError if size else ConnectionLost):
                Client(address)


@pytest.mark.parametrize("delivery", ["framed", "shared"])
@pytest.mark.parametrize("moment", ["hello", "welcome"])
def test_descriptors_in_the_handshake_that_nobody_asked_for_break_the_protocol(
    address: str, kernel: str, moment: str, delivery: Delivery
) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def script(connection: socket.socket) -> None:
        many = [writing] * 100
        with suppress(OSError):
            socket.send_fds(connection, [hello_of()], many if moment == "hello" else [])
            connection.recv(LARGE)
            socket.send_fds(connection, [WELCOME], many if moment == "welcome" else [])
            connection.recv(LARGE)
        os.close(writing)

    # The kernel refuses them at a server that is not to send any.
    refused = kernel == REFUSES and delivery == "framed"
    try:
        with listening(address) as listener, one_connection(listener, script):
            before = len(descriptors())
            with pytest.raises(ConnectionLost if refused else ProtocolError):
                Client(address, delivery=delivery)
            wait_until(lambda: os.read(reading, 1) == b"" if is_over(reading) else False)
            assert len(descriptors()) <= before + 2
    finally:
        os.close(reading)


def is_over(reading: int) -> bool:
    """Whether nobody has the writing end of a pipe any more."""
    try:
        return os.read(reading, 1) == b""
    except BlockingIOError:
        return False


# ---- the goodbye ----


@pytest.mark.parametrize(
    "delivery", ["framed", pytest.param("shared", marks=pytest.mark.only_shared)]
)
def test_a_bye_of_every_length_is_an_end_or_a_protocol_error(
    address: str, delivery: Delivery
) -> None:
    payload = reference.encode_bye(Bye(2), FIRST_ID - 1)[16:]
    for size in range(101):
        bye = reference.encode_frame(Frame(FIRST_ID - 1, payload.ljust(size, b"\xff")[:size], BYE))
        with met(f"{address}-{size}", delivery, lambda sock, bye=bye: sock.send(bye)) as client:  # type: ignore[misc]
            found, error = received(client)
        assert found == []
        assert isinstance(error, ServerClosed if size >= BYE_SIZE else ProtocolError), size
        if size < BYE_SIZE:
            assert "sent a BYE of" in str(error)


@pytest.mark.parametrize(
    "delivery", ["framed", pytest.param("shared", marks=pytest.mark.only_shared)]
)
def test_a_bye_of_any_figures_is_a_documented_end(address: str, delivery: Delivery) -> None:
    rounds = 60
    for number in range(rounds):
        noise = os.urandom(BYE_SIZE) if number % 3 else b"\xff" * BYE_SIZE
        payload = struct.pack("<H", number % 8) + noise[2:]
        frame_id = (FIRST_ID, 0, TOP)[number % 3]
        bye = reference.encode_frame(Frame(frame_id, payload, BYE))
        with met(f"{address}-{number}", delivery, lambda sock, bye=bye: sock.send(bye)) as client:  # type: ignore[misc]
            found, error = received(client)
        assert found == []
        assert isinstance(error, JumiksError)
        assert isinstance(error, ConnectionError)
        assert str(error)


# ---- packets ----


@all_ways
def test_an_empty_packet_is_a_protocol_error(address: str, delivery: Delivery) -> None:
    def script(connection: socket.socket) -> None:
        connection.send(b"")
        while connection.recv(LARGE):
            pass

    with met(address, delivery, script) as client:
        found, error = received(client)
    assert found == []
    assert isinstance(error, ProtocolError)
    assert "an empty packet" in str(error)


@pytest.mark.parametrize(
    "delivery", ["framed", pytest.param("shared", marks=pytest.mark.only_shared)]
)
@pytest.mark.parametrize("size", [100, 70_000, 212_000])
def test_rubbish_of_any_size_is_a_protocol_error(
    address: str, delivery: Delivery, size: int
) -> None:
    def script(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        connection.send(bytes(8) + b"\xff" * (size - 8))
        while connection.recv(LARGE):
            pass

    with met(address, delivery, script) as client:
        found, error = received(client)
    assert found == []
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    ("ids", "count"),
    [
        ([0], 0),
        ([TOP], 0),
        ([FIRST_ID - 1], 0),
        ([FIRST_ID, FIRST_ID], 1),
        ([FIRST_ID + 1, FIRST_ID], 1),
        ([TOP - 1, TOP], 1),
    ],
)
def test_classic_ids_that_cannot_be_are_a_protocol_error(
    address: str, ids: list[int], count: int
) -> None:
    welcome = reference.encode_welcome(Welcome(0, 0, FIRST_ID))

    def script(connection: socket.socket) -> None:
        saying([], hello_of(), welcome)(connection)
        send_all(connection, [reference.encode_classic(Message(number, b"x")) for number in ids])
        while connection.recv(LARGE):
            pass

    with listening(address) as listener, one_connection(listener, script):
        with Client(address, delivery="classic") as client:
            found, error = received(client)
    assert found == [b"x"] * count
    assert isinstance(error, ProtocolError)


def resident_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Rss:")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers keep memory")
def test_a_message_that_claims_4_gib_takes_no_more_memory_than_came_of_it(address: str) -> None:
    total = 0xFFFFFFFF

    def script(connection: socket.socket) -> None:
        for number in range(20):
            # Each is given up for the next, and 2000 bytes of it came.
            slice_ = Fragment(FIRST_ID + number, total, 0, bytes(2000), True)
            connection.send(reference.encode_fragment(slice_))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(LARGE):
            pass

    hello = hello_of(max_message=total)

    def serve(connection: socket.socket) -> None:
        saying([], hello)(connection)
        script(connection)

    with listening(address) as listener, one_connection(listener, serve):
        with Client(address) as client:
            before = resident_bytes()
            with pytest.raises((ProtocolError, ConnectionLost)):
                client.receive(DEADLINE)
            assert resident_bytes() - before < 4 << 20


@pytest.mark.parametrize(
    "delivery", ["framed", pytest.param("shared", marks=pytest.mark.only_shared)]
)
def test_a_server_that_sends_without_end_what_is_skipped_is_a_timeout(
    address: str, delivery: Delivery
) -> None:
    # Frames of kinds that nobody knows are no message, and do not put the deadline off.
    unknown = reference.encode_frame(Frame(1, bytes(8), 0x77))
    stop = False

    def script(connection: socket.socket) -> None:
        connection.settimeout(0.01)
        while not stop:
            try:
                connection.send(unknown)
            except TimeoutError:
                continue

    with met(address, delivery, script) as client:
        try:
            with pytest.raises(Timeout):
                client.receive(0.1)
        finally:
            stop = True


# ---- sockets closed on one side ----


@all_ways
def test_a_server_that_shuts_its_sending_side_is_lost(address: str, delivery: Delivery) -> None:
    def script(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(LARGE):  # it still reads, and stays
            pass

    with met(address, delivery, script) as client:
        found, error = received(client)
        assert (found, type(error)) == ([], ConnectionLost)


@pytest.mark.parametrize("delivery", ["classic", "framed"])
def test_what_a_server_sends_is_read_though_it_takes_no_acks(
    address: str, delivery: Delivery
) -> None:
    messages = [Message(FIRST_ID + number, b"%d" % number) for number in range(50)]

    def script(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RD)
        for message in messages:
            frame = Frame(message.id, message.payload)
            framed = delivery == "framed"
            packet = reference.encode_frame(frame) if framed else reference.encode_classic(message)
            connection.send(packet)

    with met(address, delivery, script) as client:
        found, error = received(client)
        assert found == [message.payload for message in messages]
        assert isinstance(error, ConnectionLost)


# ---- the log that is shared ----


@pytest.mark.only_shared
@pytest.mark.parametrize("first", [TOP, TOP - 1])
def test_ids_in_a_log_that_begin_anew_are_a_protocol_error(address: str, first: int) -> None:
    def script(connection: socket.socket, log: HandMadeLog) -> None:
        end = 0
        for number in range(first, first + 4):
            end = log.write(reference.encode_frame(Frame(number % (1 << 64), b"x")), end)
        log.head = end
        connection.send(WAKE_PACKET)

    with HandMadeLog(words={72: first, 136: first}) as log:
        with served_by(address, script, log, first_id=first) as client:
            found, error = received(client)
    assert found == []
    assert isinstance(error, ProtocolError)


@pytest.mark.only_shared
@pytest.mark.parametrize("back", [8, 32, 4096, RING, 1 << 63])
def test_a_log_whose_offsets_would_overflow_is_a_protocol_error(address: str, back: int) -> None:
    start = (1 << 64) - back

    def script(connection: socket.socket, log: HandMadeLog) -> None:
        end = log.write(reference.encode_frame(Frame(FIRST_ID, b"x")), start)
        log.head = end % (1 << 64)
        connection.send(WAKE_PACKET)

    with HandMadeLog(words={64: start, 128: start}) as log:
        with served_by(address, script, log, first_offset=start) as client:
            found, error = received(client)
    assert found == []
    assert isinstance(error, ProtocolError)
    assert "which cannot be for a reader at" in str(error)


@pytest.mark.only_shared
def test_a_log_that_changes_while_it_is_read_ends_in_a_documented_error(address: str) -> None:
    # Its frames, its end and its tail jump about under the reader, which never leaves the log.
    def script(connection: socket.socket, log: HandMadeLog) -> None:
        frame = reference.encode_frame(Frame(FIRST_ID, b"x" * 100))
        noise = os.urandom(len(frame))
        for number in range(2000):
            log.write(frame if number % 2 else noise, 0)
            log.words[128] = (0, RING, 1 << 40)[number % 3]
            log.head = (len(frame), 0, 1 << 40, 8)[number % 4]
        connection.shutdown(socket.SHUT_WR)

    for number in range(5):
        with HandMadeLog() as log, served_by(f"{address}-{number}", script, log) as client:
            found, error = received(client)
        assert isinstance(error, ProtocolError | ConnectionLost)
        assert all(len(message) <= RING for message in found)
