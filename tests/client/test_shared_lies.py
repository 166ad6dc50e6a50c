# SPDX-License-Identifier: Apache-2.0
"""What either end of a shared log may find there if the other one lies."""

import fcntl
import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support import reference
from support.api import Task, read_to_end
from support.base import DEADLINE, GUARDED, wait_until
from support.reference import BYE, CRITICAL, DATA, Frame, Welcome
from support.rights import is_held, pipe, send_descriptor
from support.shared import (
    BOTH,
    HELLO,
    MAGIC,
    PAGE,
    RESUME,
    RING,
    SEAL_FUTURE_WRITE,
    SEAL_GROW,
    SEAL_SHRINK,
    SKIP,
    WAKE_KIND,
    WAKE_PACKET,
    HandMadeClient,
    HandMadeLog,
    hand_made_client,
    info_of,
    served_by,
    shake_hands,
)
from support.wire import FIRST_ID, LARGE, Harassed, listening, one_connection

from jumiks import (
    Client,
    ConnectionLost,
    EndReason,
    ProtocolError,
    Timeout,
)

pytestmark = pytest.mark.only_shared


def written(frame: bytes, head: int | None = None) -> Callable[[HandMadeLog], object]:
    def lie(log: HandMadeLog) -> None:
        end = log.write(frame)
        log.head = end if head is None else head

    return lie


def lie_at_the_door(address: str, log: HandMadeLog, *welcome: object, **words: int) -> None:
    """Connect to a server by hand, which lets the client in with these words."""
    descriptors = welcome[0] if welcome else None

    def serve(connection: socket.socket) -> None:
        shake_hands(connection, log, descriptors, **words)  # type: ignore[arg-type]
        while connection.recv(LARGE):
            pass

    with listening(address) as listener, one_connection(listener, serve):
        Client(address).close()


# ---- a server that lies ----


@pytest.mark.parametrize(
    "seals",
    [0, SEAL_GROW | SEAL_FUTURE_WRITE, SEAL_SHRINK | SEAL_FUTURE_WRITE, SEAL_SHRINK | SEAL_GROW],
    ids=["none", "may shrink", "may grow", "anybody may write"],
)
def test_a_log_that_may_change_is_a_protocol_error(address: str, seals: int) -> None:
    with HandMadeLog(seals=seals) as log:
        with pytest.raises(ProtocolError, match="could change or shrink"):
            lie_at_the_door(address, log)


@pytest.mark.parametrize("seals", [0, SEAL_GROW])
def test_a_cursor_page_that_may_shrink_is_a_protocol_error(address: str, seals: int) -> None:
    with HandMadeLog(cursor_seals=seals) as log:
        with pytest.raises(ProtocolError, match="could change or shrink"):
            lie_at_the_door(address, log)


@pytest.mark.parametrize(
    "options",
    [
        {"words": {0: MAGIC + 1}},
        {"words": {0: 0}},
        {"words": {16: RING // 2}},
        {"words": {16: RING * 2}},
        {"words": {16: 0}},
        {"file_size": PAGE + RING + PAGE},
        {"file_size": PAGE + RING - 8},
        {"file_size": PAGE},
        {"cursor_size": 191},
        {"cursor_size": 0},
    ],
    ids=str,
)
def test_a_log_that_is_none_is_a_protocol_error(address: str, options: dict[str, int]) -> None:
    with HandMadeLog(**options) as log:  # type: ignore[arg-type]
        with pytest.raises(ProtocolError, match="no log, or another than it says"):
            lie_at_the_door(address, log)


def test_a_log_with_holes_is_a_protocol_error(address: str) -> None:
    with HandMadeLog(sparse=True) as log:
        log.publish(b"hi")
        with pytest.raises(ProtocolError, match="no log, or another than it says"):
            lie_at_the_door(address, log)


def test_a_cursor_page_of_huge_pages_is_a_protocol_error(address: str) -> None:
    # A hole that its server cuts into it could not be filled: SIGBUS.
    try:
        huge = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError:
        pytest.skip("this kernel has no huge pages")
    try:
        os.ftruncate(huge, 1 << 30)
        fcntl.fcntl(huge, fcntl.F_ADD_SEALS, SEAL_SHRINK | SEAL_GROW)
        with HandMadeLog() as log, pytest.raises(ProtocolError, match="could change or shrink"):
            lie_at_the_door(address, log, [log.fd, huge])
    finally:
        os.close(huge)


@pytest.mark.parametrize("words", [{"first_offset": 4}, {"first_id": FIRST_ID - 1}], ids=str)
def test_a_welcome_to_a_place_that_cannot_be_is_a_protocol_error(
    address: str, words: dict[str, int]
) -> None:
    with HandMadeLog() as log:
        with pytest.raises(ProtocolError, match="no log, or another than it says"):
            lie_at_the_door(address, log, **words)


@pytest.mark.parametrize("offset", [8, RING, 1 << 63, (1 << 64) - 8])
def test_a_start_behind_the_end_of_the_log_is_a_protocol_error(address: str, offset: int) -> None:
    def serve(connection: socket.socket) -> None:
        shake_hands(connection, log, first_offset=offset)
        while connection.recv(LARGE):
            pass

    with HandMadeLog() as log, listening(address) as listener, one_connection(listener, serve):
        with Client(address) as client:
            with pytest.raises(ProtocolError, match="which cannot be for a reader at"):
                client.receive(DEADLINE)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_another_number_of_descriptors_than_two_is_a_protocol_error(
    address: str, count: int
) -> None:
    with HandMadeLog() as log:
        descriptors = [log.fd, log.cursor_fd, log.fd, log.fd][:count]
        number = count if count < 3 else "more than 2"
        with pytest.raises(ProtocolError, match=f"{number} descriptors came .* 2 are due"):
            lie_at_the_door(address, log, descriptors)


def test_descriptors_that_stand_for_something_else_are_a_protocol_error(
    address: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(PAGE + RING))
    with HandMadeLog() as log, pipe() as (reading, writing), file.open() as opened:
        try:
            for given in (
                [reading, log.cursor_fd],
                [opened.fileno(), log.cursor_fd],
                [log.fd, reading],
                [log.fd, opened.fileno()],
                [log.cursor_fd, log.fd],
            ):
                with pytest.raises(ProtocolError, match="could change or shrink"):
                    lie_at_the_door(address, log, given)
        finally:
            os.close(writing)


def test_a_welcome_with_log_that_ends_early_is_a_protocol_error(address: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.send(HELLO)
        connection.recv(LARGE)
        welcome = reference.encode_welcome(Welcome(0, BOTH, FIRST_ID))
        socket.send_fds(connection, [welcome[:23]], [log.fd, log.cursor_fd])
        connection.recv(LARGE)

    with HandMadeLog() as log, listening(address) as listener, one_connection(listener, serve):
        with pytest.raises(ProtocolError, match="welcome with LOG of 23 bytes"):
            Client(address)


@pytest.mark.parametrize("words", [{8: 2}, {8: 2, 16: 12345}], ids=["alike", "another shape"])
def test_a_layout_of_later_days_makes_the_client_do_without_the_log(
    address: str, words: dict[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    message = Frame(FIRST_ID, b"by packet")

    def serve(connection: socket.socket) -> None:
        connection.send(HELLO)
        reply = reference.decode_reply(connection.recv(LARGE))
        if reply.capabilities & reference.LOG:
            welcome = reference.encode_welcome(Welcome(0, BOTH, FIRST_ID))
            socket.send_fds(connection, [welcome], [log.fd, log.cursor_fd])
        else:
            welcome = reference.encode_welcome(Welcome(0, reference.FRAMES, FIRST_ID))
            connection.send(welcome)
            connection.send(reference.encode_frame(message))
        while connection.recv(LARGE):
            pass

    with HandMadeLog(words=words) as log, listening(address) as listener:
        with one_connection(listener, serve), one_connection(listener, serve):
            with Client(address) as client:
                assert client.delivery == "framed"
                assert client.receive(DEADLINE) == b"by packet"
    assert "cannot read its log" in caplog.text


def frame_of(kind: int = DATA, packet_id: int = FIRST_ID, payload: bytes = b"x" * 8) -> bytes:
    return reference.encode_frame(Frame(packet_id, payload, kind))


NO_FRAME = "something that is not the message due there"

LOG_LIES = {
    "a BYE": (written(frame_of(BYE)), NO_FRAME),
    "an unknown kind": (written(frame_of(9)), NO_FRAME),
    "a lower id": (written(frame_of(packet_id=FIRST_ID - 1)), NO_FRAME),
    "a higher id": (written(frame_of(packet_id=FIRST_ID + 1)), NO_FRAME),
    "nothing": (written(bytes(64)), NO_FRAME),
    "a frame beyond the end": (written(frame_of(), 16), NO_FRAME),
    "half a header": (written(frame_of(), 8), NO_FRAME),
    "a huge frame": (written(b"\xff\xff\xff\xff" + frame_of()[4:]), NO_FRAME),
    "an end beyond the ring": (written(frame_of(), RING + 8), "which cannot be for a reader at"),
    "an end far beyond": (written(frame_of(), (1 << 64) - 8), "which cannot be for a reader at"),
}


@pytest.mark.parametrize(("lie", "fault"), LOG_LIES.values(), ids=LOG_LIES.keys())
def test_a_log_that_lies_is_a_protocol_error(
    address: str, lie: Callable[[HandMadeLog], object], fault: str
) -> None:
    def script(connection: socket.socket, log: HandMadeLog) -> None:
        lie(log)
        connection.send(WAKE_PACKET)

    with HandMadeLog() as log, served_by(address, script, log) as client:
        for _ in range(2):
            with pytest.raises(ProtocolError, match=fault):
                client.receive(DEADLINE)
        assert client.last_id == 0


@pytest.mark.parametrize(
    ("first_id", "first_offset"), [(FIRST_ID, (1 << 64) - 256), ((1 << 64) - 1, 0)]
)
def test_numbers_that_are_about_to_wrap_are_a_protocol_error(
    address: str, first_id: int, first_offset: int
) -> None:
    def script(connection: socket.socket, log: HandMadeLog) -> None:
        log.words[128] = first_offset
        log.head = log.write(frame_of(packet_id=first_id), first_offset)
        connection.send(WAKE_PACKET)

    welcome = {"first_id": first_id, "first_offset": first_offset}
    with HandMadeLog() as log, served_by(address, script, log, **welcome) as client:
        with pytest.raises(ProtocolError, match="which cannot be for a reader at"):
            client.receive(DEADLINE)


GOOD = [b"one", b"two", b"three"]


def after_three(
    log: HandMadeLog, action: Callable[[socket.socket], object]
) -> Callable[[socket.socket, HandMadeLog], None]:
    """A script: three good messages, and something else once the client has acked them."""
    log.want(FIRST_ID + 2)

    def script(connection: socket.socket, log: HandMadeLog) -> None:
        log.publish(*GOOD)
        connection.send(WAKE_PACKET)
        assert connection.recv(LARGE) == reference.encode_ack(FIRST_ID + 2)
        action(connection)

    return script


@pytest.mark.parametrize("head", [0, 24, 71])
def test_a_log_whose_end_goes_back_is_a_protocol_error(address: str, head: int) -> None:
    def lie(connection: socket.socket) -> None:
        log.head = head
        connection.send(WAKE_PACKET)

    with HandMadeLog() as log, served_by(address, after_three(log, lie), log) as client:
        assert [client.receive(DEADLINE) for _ in GOOD] == GOOD
        with pytest.raises(ProtocolError, match="which cannot be for a reader at"):
            client.receive(DEADLINE)


def resume(packet_id: int, offset: int, size: int = 8) -> bytes:
    payload = offset.to_bytes(8, "little")[:size]
    return reference.encode_frame(Frame(packet_id, payload, RESUME))


END = FIRST_ID + 2

PLACE = "a place that it cannot be at"

PACKET_LIES = {
    "a message": (frame_of(packet_id=END + 1), "in a packet, though it shares its log"),
    "a short BYE": (reference.encode_frame(Frame(END, bytes(63), BYE)), "sent a BYE of"),
    "an empty BYE": (reference.encode_frame(Frame(END, b"", BYE)), "sent a BYE of"),
    "a large packet": (frame_of(WAKE_KIND, payload=bytes(300)), "are agreed at most"),
    "a huge packet": (frame_of(WAKE_KIND, payload=bytes(60000)), "are agreed at most"),
    "half a header": (WAKE_PACKET[:8], "a frame that does not fit"),
    "a frame cut off": (frame_of(BYE, payload=bytes(64))[:32], "a frame that does not fit"),
    "an empty packet": (b"", "an empty packet"),
    "a critical kind": (frame_of(CRITICAL | 7), "critical frame of the unknown kind"),
    "a RESUME that nobody asked for": (resume(END + 1, 72), PLACE),
}


@pytest.mark.parametrize(("packet", "fault"), PACKET_LIES.values(), ids=PACKET_LIES.keys())
def test_a_packet_that_cannot_be_is_a_protocol_error(
    address: str, packet: bytes, fault: str
) -> None:
    def lie(connection: socket.socket) -> None:
        connection.send(packet)

    with HandMadeLog() as log, served_by(address, after_three(log, lie), log) as client:
        assert [client.receive(DEADLINE) for _ in GOOD] == GOOD
        for _ in range(2):
            with pytest.raises(ProtocolError, match=fault):
                client.receive(DEADLINE)


@pytest.mark.parametrize("kind", [9, 0x7FFF])
def test_a_packet_of_an_unknown_kind_is_skipped(address: str, kind: int) -> None:
    def say(connection: socket.socket) -> None:
        connection.send(frame_of(kind))
        log.publish(b"four")
        connection.send(WAKE_PACKET)

    with HandMadeLog() as log, served_by(address, after_three(log, say), log) as client:
        assert [client.receive(DEADLINE) for _ in range(4)] == [*GOOD, b"four"]


def skipping(log: HandMadeLog, packet: bytes) -> Callable[[socket.socket], None]:
    def say(connection: socket.socket) -> None:
        connection.send(reference.encode_frame(Frame(END, b"", SKIP)))
        assert connection.recv(LARGE) == reference.encode_ack(END) + bytes(8)
        log.write(frame_of(packet_id=END + 11), 80)
        log.head = 104
        log.words[144] += 1
        connection.send(packet)

    return say


RESUMES = {
    "to before what was read": resume(END + 11, 64),
    "to a lower id": resume(END, 80),
    "to between two words": resume(END + 11, 84),
    "beyond the end": resume(END + 11, 112),
    "far beyond": resume(END + 11, (1 << 64) - 8),
    "without a place": resume(END + 11, 80, 0),
    "with half a place": resume(END + 11, 80, 7),
}


@pytest.mark.parametrize("packet", RESUMES.values(), ids=RESUMES.keys())
def test_a_resume_to_where_it_cannot_be_is_a_protocol_error(address: str, packet: bytes) -> None:
    with HandMadeLog() as log:
        with served_by(address, after_three(log, skipping(log, packet)), log) as client:
            assert [client.receive(DEADLINE) for _ in GOOD] == GOOD
            with pytest.raises(ProtocolError, match=PLACE):
                client.receive(DEADLINE)


def test_a_resume_that_is_right_goes_on_behind_the_gap(address: str) -> None:
    with HandMadeLog() as log:
        script = after_three(log, skipping(log, resume(END + 11, 80)))
        with served_by(address, script, log) as client:
            assert [client.receive(DEADLINE) for _ in GOOD] == GOOD
            assert client.receive(DEADLINE) == b"x" * 8
            assert (client.last_id, client.missed) == (END + 11, 10)


def test_a_resume_that_is_read_too_late_is_followed_by_another(address: str) -> None:
    """A slow client may be told to skip again before it has read where it could go on."""

    def say(connection: socket.socket) -> None:
        connection.send(reference.encode_frame(Frame(END, b"", SKIP)))
        assert connection.recv(LARGE) == reference.encode_ack(END) + bytes(8)
        place = 80 + 3 * RING
        log.write(frame_of(packet_id=END + 9000), place)
        log.words[128] = place
        log.head = place + 24
        connection.send(resume(END + 11, 80))
        connection.send(reference.encode_frame(Frame(END + 30, b"", SKIP)))
        log.words[144] += 2
        assert connection.recv(LARGE) == reference.encode_ack(END + 10) + bytes(8)
        connection.send(resume(END + 9000, place))

    with HandMadeLog() as log, served_by(address, after_three(log, say), log) as client:
        assert [client.receive(DEADLINE) for _ in GOOD] == GOOD
        assert client.receive(DEADLINE) == b"x" * 8
        assert client.missed == 8999


@pytest.mark.parametrize("asleep", [False, True])
def test_the_end_without_a_word_is_a_loss_after_all_that_was_published(
    address: str, asleep: bool
) -> None:
    def script(connection: socket.socket, log: HandMadeLog) -> None:
        assert log.cursor is not None
        if asleep:
            wait_until(lambda: log.cursor and log.cursor[64] % 2)
        log.publish(*GOOD)
        log.write(frame_of(packet_id=log.next_id)[:20])  # one that it did not come to the end of
        connection.shutdown(socket.SHUT_RDWR)

    with HandMadeLog() as log, served_by(address, script, log) as client:
        messages, end = read_to_end(client)
        assert messages == GOOD
        assert type(end) is ConnectionLost


def test_the_end_in_the_middle_of_a_skip_is_a_loss(address: str) -> None:
    def leave(connection: socket.socket) -> None:
        connection.send(reference.encode_frame(Frame(END, b"", SKIP)))
        connection.recv(LARGE)
        connection.shutdown(socket.SHUT_RDWR)

    with HandMadeLog() as log, served_by(address, after_three(log, leave), log) as client:
        messages, end = read_to_end(client)
        assert messages == GOOD
        assert type(end) is ConnectionLost


def test_a_tail_that_lies_hands_out_nothing(address: str) -> None:
    def script(connection: socket.socket, log: HandMadeLog) -> None:
        log.words[128] = 8
        log.publish(*GOOD)
        connection.send(WAKE_PACKET)

    with HandMadeLog() as log, served_by(address, script, log) as client:
        with pytest.raises(Timeout):
            client.receive(0.1)
        assert client.last_id == 0


def ends_with_protocol(client: HandMadeClient, harassed: Harassed) -> None:
    """The server ends a connection for its client's fault, and says so."""

    def is_gone() -> bool:
        return bool(harassed.server.clients() and harassed.ends)  # asking makes it look

    wait_until(is_gone)
    assert [reason for _, reason in harassed.ends] == [EndReason.PROTOCOL]
    last = list(client.packets())[-1]
    assert last.kind == BYE
    assert reference.decode_bye(Frame(last.id, last.payload, BYE)).reason == 3


# ---- a client that lies ----


@pytest.mark.parametrize("acked", [FIRST_ID + 2, FIRST_ID + 3, (1 << 63), (1 << 64) - 1])
def test_an_ack_stored_beyond_what_was_published_ends_that_connection(
    address: str, acked: int
) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        harassed.publish(2)
        client.ack(acked)
        ends_with_protocol(client, harassed)


@pytest.mark.parametrize("lower", [0, 1, FIRST_ID, FIRST_ID + 1])
def test_an_ack_stored_that_falls_ends_that_connection(address: str, lower: int) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        harassed.publish(3)
        client.ack(FIRST_ID + 2)
        wait_until(lambda: info_of(harassed.server).acked_id == FIRST_ID + 2)
        client.ack(lower)
        ends_with_protocol(client, harassed)


def test_an_ack_stored_below_the_start_is_no_harm(address: str) -> None:
    with Harassed(address) as harassed:
        harassed.publish(5)
        with hand_made_client(harassed.server, address) as client:
            client.ack(3)
            harassed.publish()
            assert info_of(harassed.server).acked_id == 0
            assert client.read() == harassed.published[-1:]
            client.ack(client.next_id - 1)
            harassed.server.drain(DEADLINE)
        wait_until(lambda: harassed.reasons(1) == [EndReason.LEFT])


class Meddler:
    """A thread that does something all the time until it is told to stop."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._over = threading.Event()
        self._action = action
        self._task = Task(self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            self._action()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._task.result()


def test_a_cursor_page_full_of_noise_harms_nobody_else(address: str) -> None:
    noise = random.Random(4)
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:

        def spoil() -> None:
            for at in range(0, 192, 8):
                client.cursor[at] = noise.choice([0, 1, FIRST_ID + 7, noise.getrandbits(64)])

        with Meddler(spoil):
            for _ in range(300):
                harassed.publish(7)
            wait_until(lambda: harassed.server.clients() and harassed.ends)
        assert [reason for _, reason in harassed.ends] == [EndReason.PROTOCOL]


def test_a_client_that_never_stops_falling_asleep_is_woken_once_per_message_at_most(
    address: str,
) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        number = 1

        def fall_asleep() -> None:
            nonlocal number
            client.sleep(number)
            number += 2

        with Meddler(fall_asleep):
            for _ in range(3000):
                harassed.publish()
            harassed.witness.wait_for(3000)
        assert not harassed.ends
        assert 0 < info_of(harassed.server).packets <= 3000


def test_a_socket_full_of_rings_has_room_for_the_word_to_skip(address: str) -> None:
    with Harassed(address, on_lag="skip", max_lag=2000, patience=0) as harassed:
        with hand_made_client(harassed.server, address) as client:
            for number in range(1, 4000, 2):
                client.sleep(number)
                harassed.publish()
                harassed.witness.wait_for(len(harassed.published))
            assert info_of(harassed.server).skipped == 0
            assert not harassed.ends
            harassed.publish()
            harassed.witness.wait_for(len(harassed.published))
            assert not harassed.ends
            assert client.control().kind == SKIP
            client.sock.send(reference.encode_ack(FIRST_ID - 1) + bytes(8))
            wait_until(lambda: info_of(harassed.server).skipped == 2000)
            assert client.control().kind == RESUME


def test_a_client_that_is_awake_is_not_woken(address: str) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        for number in (0, 2, 1 << 63):
            client.sleep(number)
            harassed.publish()
            harassed.server.stats()
        assert info_of(harassed.server).packets == 0
        assert not client.has_input()


def test_a_sleep_is_ended_once(address: str) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        client.sleep(7)
        for _ in range(10):
            harassed.publish()
        harassed.server.stats()
        assert info_of(harassed.server).packets == 1
        assert next(client.packets()).kind == WAKE_KIND
        assert not client.has_input()


@pytest.mark.parametrize(
    "packet",
    [
        reference.encode_ack(FIRST_ID) + bytes(8),
        b"\xff" * 16,
        bytes(16),
        b"",
        b"x",
        bytes(7),
        bytes(9),
        bytes(15),
        bytes(17),
        bytes(24),
        bytes(25),
        bytes(60000),
        reference.encode_ack(FIRST_ID + 1),
        HELLO,
    ],
    ids=lambda packet: f"{len(packet)}-{packet[:3].hex()}",
)
def test_a_packet_that_cannot_be_ends_that_connection(address: str, packet: bytes) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        harassed.publish()
        client.sock.send(packet)
        ends_with_protocol(client, harassed)


def test_an_ack_by_packet_that_nobody_asked_for_is_an_ack(address: str) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        last = harassed.publish(3)
        client.sock.send(reference.encode_ack(last))
        client.sock.send(reference.encode_ack(FIRST_ID))
        harassed.server.drain(DEADLINE)
        assert info_of(harassed.server).acked_id == last
        assert not harassed.ends


def test_a_client_that_sends_a_descriptor_beside_the_log_is_refused_or_cut(
    address: str, kernel: str
) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        with pipe() as (reading, writing):
            last = harassed.publish()
            sent = send_descriptor(client.sock, reference.encode_ack(last), writing)
            os.close(writing)
            assert sent == (kernel == GUARDED)
            if sent:
                assert harassed.reasons(1) == [EndReason.PROTOCOL]
                assert client.control().kind == reference.BYE
            wait_until(lambda: harassed.server.clients() and not is_held(reading))
            if not sent:
                client.ack(last)
                harassed.server.drain(DEADLINE)
                assert not harassed.ends


@pytest.mark.parametrize("answer", [FIRST_ID - 1, FIRST_ID + 12, FIRST_ID + 50, (1 << 64) - 1])
def test_an_answer_that_cannot_be_ends_that_connection(address: str, answer: int) -> None:
    with Harassed(address, on_lag="skip", max_lag=10, patience=0) as harassed:
        with hand_made_client(harassed.server, address) as client:
            client.ack(FIRST_ID)
            for _ in range(12):
                harassed.publish()
                harassed.witness.wait_for(len(harassed.published))
            assert client.control().kind == SKIP
            assert harassed.server.stats().next_id == FIRST_ID + 12
            client.sock.send(reference.encode_ack(answer) + bytes(8))
            ends_with_protocol(client, harassed)


def test_a_client_that_has_read_nothing_answers_with_the_id_before_its_first(address: str) -> None:
    with Harassed(address, on_lag="skip", max_lag=10, patience=0) as harassed:
        with hand_made_client(harassed.server, address) as client:
            for _ in range(12):
                harassed.publish()
                harassed.witness.wait_for(len(harassed.published))
            assert client.control().kind == SKIP
            client.sock.send(reference.encode_ack(FIRST_ID - 1) + bytes(8))
            resume = client.control()
            assert resume.kind == RESUME
            last = harassed.publish()
            assert FIRST_ID < resume.id <= last
            client.sock.send(reference.encode_ack(last))  # an ack is told apart by its length
            harassed.server.drain(DEADLINE)
            assert not harassed.ends


def test_a_second_answer_ends_that_connection(address: str) -> None:
    with Harassed(address, on_lag="skip", max_lag=10, patience=0) as harassed:
        with hand_made_client(harassed.server, address) as client:
            for _ in range(11):
                harassed.publish()
                harassed.witness.wait_for(len(harassed.published))
            assert client.control().kind == SKIP
            client.sock.send(reference.encode_ack(FIRST_ID + 3) + bytes(8))
            wait_until(lambda: info_of(harassed.server).skipped == 6)
            assert client.control().kind == RESUME
            client.sock.send(reference.encode_ack(FIRST_ID + 3) + bytes(8))
            ends_with_protocol(client, harassed)
