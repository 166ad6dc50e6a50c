# SPDX-License-Identifier: Apache-2.0
"""Peers that break the rules: they lose their own connection, and nobody else notices."""

import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import reference
from support.api import arenas_of
from support.base import DEADLINE, GUARDED, REFUSES, SHARE_LOG, descriptors, wait_until
from support.reference import (
    BYE,
    CRITICAL,
    DATA,
    FRAGMENT,
    MORE,
    Bye,
    Fragment,
    Frame,
    Message,
    Welcome,
)
from support.rights import is_held, pipe, send_descriptor
from support.shared import HandMadeClient
from support.wire import (
    FIRST_ID,
    HELLO,
    REPLY,
    WELCOME,
    Harassed,
    RawClient,
    dial,
    hello_of,
    listening,
    one_connection,
    packets_of,
    raw_client,
    saying,
    send_all,
)

import jumiks
from jumiks import (
    Client,
    ConnectionLost,
    Delivery,
    EndReason,
    Gap,
    ProtocolError,
    Refused,
    Server,
    Timeout,
)

both_modes = pytest.mark.parametrize("framed", [True, False], ids=["framed", "classic"])


def ends(sock: socket.socket) -> bool:
    """Whether the other end closes; what it says before does not matter."""
    for _ in packets_of(sock):
        pass
    return True


# ---- a server and what its clients say ----


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_reply_without_a_whole_version_ends_the_connection(address: str, size: int) -> None:
    with Harassed(address) as harassed, dial(address) as sock:
        sock.recv(100)
        sock.send(HELLO[:size])
        harassed.publish()
        assert list(packets_of(sock)) == []
        assert harassed.server.stats().clients == 1


def test_an_empty_reply_ends_the_connection(address: str) -> None:
    with Harassed(address), dial(address) as sock:
        sock.recv(100)
        sock.send(b"")
        assert list(packets_of(sock)) == []


@pytest.mark.parametrize("size", [6, 7])
def test_a_reply_of_six_or_seven_bytes_is_classic(address: str, size: int) -> None:
    with Harassed(address) as harassed, dial(address) as sock:
        sock.recv(100)
        sock.send(REPLY[:size])
        harassed.server.wait_for_clients(2, DEADLINE)
        harassed.publish()
        assert sock.recv(100) == reference.encode_classic(Message(FIRST_ID, b"0" * 24))


@pytest.mark.parametrize("size", [8, 15, 16, 19, 20, 24, 25, 5000])
def test_an_extended_reply_of_any_length_is_read_as_far_as_it_goes(address: str, size: int) -> None:
    with Harassed(address) as harassed, dial(address) as sock:
        sock.recv(100)
        sock.send(REPLY.ljust(size, b"\xff")[:size])
        welcome = reference.decode_welcome(sock.recv(100))
        assert welcome == Welcome(0, reference.FRAMES, FIRST_ID)
        harassed.publish()
        (frame,) = reference.decode_frames(sock.recv(100))
        assert frame.id == FIRST_ID


def test_a_late_reply_finds_the_connection_closed_and_delays_nobody(address: str) -> None:
    with Harassed(address, handshake_timeout=0.1) as harassed, dial(address) as sock:
        sock.recv(100)
        harassed.publish()
        with Client(address):
            assert list(packets_of(sock)) == []
        with pytest.raises(BrokenPipeError):
            sock.send(HELLO)


def test_silent_connections_keep_nobody_out(address: str) -> None:
    with Harassed(address, handshake_timeout=60) as harassed, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(dial(address))
        with Client(address) as client:
            harassed.publish()
            assert client.receive(DEADLINE)


def test_more_silent_connections_than_may_shake_hands_drop_the_oldest(address: str) -> None:
    with Harassed(address, handshake_timeout=60) as harassed, ExitStack() as stack:
        socks = [stack.enter_context(dial(address)) for _ in range(300)]
        with Client(address) as client:
            harassed.publish()
            assert client.receive(DEADLINE)
        assert ends(socks[0])


def test_a_reply_and_acks_before_the_hello_was_read_do_no_harm(address: str) -> None:
    with Harassed(address) as harassed, dial(address) as sock:
        send_all(sock, [REPLY, reference.encode_ack(0), reference.encode_ack(FIRST_ID - 1)])
        harassed.server.wait_for_clients(2, DEADLINE)
        harassed.publish()
        packets = [sock.recv(1000) for _ in range(3)]
        assert reference.decode_welcome(packets[1]).status == 0
        assert reference.decode_frames(packets[2])[0].id == FIRST_ID


BAD_ACKS = {
    "beyond": [reference.encode_ack(FIRST_ID + 2)],
    "far beyond": [reference.encode_ack((1 << 64) - 1)],
    "beyond after a good one": [
        reference.encode_ack(FIRST_ID + 1),
        reference.encode_ack(FIRST_ID + 2),
    ],
    "empty": [b""],
    "short": [reference.encode_ack(FIRST_ID)[:7]],
    "one byte": [b"\0"],
    "long": [reference.encode_ack(FIRST_ID) + b"\0"],
    "two in one": [reference.encode_ack(FIRST_ID) * 2],
    "three in one": [reference.encode_ack(FIRST_ID) * 3],
    "huge": [bytes(100_000)],
    "another hello": [REPLY],
}


@both_modes
@pytest.mark.parametrize("acks", BAD_ACKS.values(), ids=BAD_ACKS.keys())
def test_an_ack_that_cannot_be_ends_the_connection(
    address: str, framed: bool, acks: Sequence[bytes]
) -> None:
    with Harassed(address) as harassed:
        with raw_client(harassed.server, address, framed=framed) as client:
            harassed.publish(2)
            client.read(2)
            send_all(client.sock, acks)
            messages, bye = client.rest()
            assert messages == []
            assert (bye.reason if bye else None) == (3 if framed else None)
            assert harassed.reasons(1) == [EndReason.PROTOCOL]


@both_modes
@pytest.mark.parametrize("packet_id", [FIRST_ID, FIRST_ID + 7])
def test_an_ack_before_anything_was_sent_ends_the_connection(
    address: str, framed: bool, packet_id: int
) -> None:
    with Harassed(address) as harassed:
        with raw_client(harassed.server, address, framed=framed) as client:
            client.sock.send(reference.encode_ack(packet_id))
            assert ends(client.sock)
            assert harassed.reasons(1) == [EndReason.PROTOCOL]


def test_an_ack_for_a_message_sent_in_part_ends_the_connection(address: str) -> None:
    with Harassed(address, log_size=1 << 20) as harassed:
        with raw_client(harassed.server, address, max_packet=512) as client:
            harassed.publish(size=250_000)
            key = max(info.key for info in harassed.server.clients())
            wait_until(
                lambda: any(
                    info.key == key and info.packets > 100 for info in harassed.server.clients()
                )
            )
            client.sock.send(reference.encode_ack(FIRST_ID))
            assert harassed.reasons(1) == [EndReason.PROTOCOL]


@both_modes
def test_lower_and_repeated_acks_are_ignored(address: str, framed: bool) -> None:
    with Harassed(address) as harassed:
        with raw_client(harassed.server, address, framed=framed) as client:
            harassed.publish(3)
            client.read(3)
            for packet_id in (FIRST_ID + 1, FIRST_ID + 1, FIRST_ID, 0, 1, FIRST_ID - 1):
                client.ack(packet_id)
            harassed.publish()
            client.read(1)
            key = max(info.key for info in harassed.server.clients())
            wait_until(
                lambda: any(
                    info.key == key and info.acked_id == FIRST_ID + 1
                    for info in harassed.server.clients()
                )
            )
            client.ack(FIRST_ID + 3)
            harassed.server.drain(DEADLINE)
            assert not harassed.ends


@both_modes
def test_a_flood_of_acks_disturbs_nobody(address: str, framed: bool) -> None:
    with Harassed(address) as harassed:
        with raw_client(harassed.server, address, framed=framed) as client:
            harassed.publish()
            client.read(1)
            stop = threading.Event()

            def flood() -> None:
                # Its socket fills up: a server reads acks when they matter. The shutdown wakes it.
                with suppress(BrokenPipeError):
                    while not stop.is_set():
                        client.sock.send(reference.encode_ack(FIRST_ID))

            thread = threading.Thread(target=flood)
            thread.start()
            try:
                for _ in range(200):
                    last = harassed.publish()
                harassed.witness.wait_for(201)
                assert harassed.witness.ids[-1] == last
                assert not harassed.ends
            finally:
                stop.set()
                client.sock.shutdown(socket.SHUT_RDWR)
                thread.join(DEADLINE)


IDLE_ACKS = 10000
"""Acks that tell nothing new."""
READ_AT_ONCE = 64 + 63
"""How many of them a server reads before it looks at its clock."""
FLOOD_TIME = 0.01
QUEUED = 1024
"""More packets than a socket holds that nobody reads."""


def most_read(seconds: float) -> float:
    """How many idle acks of one client a server reads in that time: two such lots in FLOOD_TIME."""
    return 2 * READ_AT_ONCE * (seconds / FLOOD_TIME + 1)


def ack_idly(client: RawClient) -> None:
    """Ack one message, and that again until the socket is full: nobody reads it for a while."""
    ack = reference.encode_ack(FIRST_ID)
    with suppress(BlockingIOError):
        for _ in range(IDLE_ACKS):
            client.sock.send(ack, socket.MSG_DONTWAIT)


@both_modes
def test_acks_that_tell_nothing_new_are_read_at_a_bounded_pace(address: str, framed: bool) -> None:
    with (
        Harassed(address) as harassed,
        raw_client(harassed.server, address, framed=framed) as client,
    ):
        harassed.publish()
        client.read(1)
        start = time.monotonic()
        for _ in range(IDLE_ACKS):
            client.sock.send(reference.encode_ack(FIRST_ID))
        assert most_read(time.monotonic() - start) + QUEUED >= IDLE_ACKS
        assert not harassed.ends  # to repeat an ack is no error


@pytest.mark.skipif(not SHARE_LOG, reason="the log is not shared in this run")
def test_idle_acks_of_one_that_shares_the_log_are_read_at_a_bounded_pace(address: str) -> None:
    with Harassed(address) as harassed, HandMadeClient(address) as client:
        harassed.publish()
        client.read()
        client.ack(FIRST_ID)
        start = time.monotonic()
        for _ in range(IDLE_ACKS):
            client.sock.send(reference.encode_ack(FIRST_ID))
        assert most_read(time.monotonic() - start) + QUEUED >= IDLE_ACKS
        assert not harassed.ends


@both_modes
def test_an_ack_behind_a_flood_of_others_is_read(address: str, framed: bool) -> None:
    """Nobody publishes, so the server's thread has to come back to it by itself."""
    with (
        Harassed(address) as harassed,
        raw_client(harassed.server, address, framed=framed) as client,
    ):
        harassed.publish(2)
        client.read(2)
        ack_idly(client)
        client.ack_early(FIRST_ID + 1)
        harassed.server.drain(DEADLINE)


@both_modes
def test_the_end_of_a_client_is_noticed_behind_a_flood_of_acks(address: str, framed: bool) -> None:
    with Harassed(address) as harassed:
        with raw_client(harassed.server, address, framed=framed) as client:
            harassed.publish()
            client.read(1)
            ack_idly(client)
        assert harassed.reasons(1) == [EndReason.LEFT]


def test_acks_after_a_goodbye_are_read_at_a_bounded_pace(address: str) -> None:
    """A plain 1.0 client has a second in which its acks are read; it may use that for a flood."""
    with (
        Harassed(address) as harassed,
        raw_client(harassed.server, address, framed=False) as client,
    ):
        harassed.publish()
        client.read(1)
        (kicked,) = [one for one in harassed.server.clients() if one.delivery == "classic"]
        start = time.monotonic()
        harassed.server.disconnect(kicked)
        sent = 0
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < start + DEADLINE:
                client.sock.send(reference.encode_ack(FIRST_ID))
                sent += 1
        seconds = time.monotonic() - start
        assert seconds < DEADLINE
        assert sent <= most_read(seconds) + QUEUED


@both_modes
def test_a_client_that_shuts_its_sending_side_has_left(address: str, framed: bool) -> None:
    with Harassed(address) as harassed:
        with raw_client(harassed.server, address, framed=framed) as client:
            harassed.publish()
            client.sock.shutdown(socket.SHUT_WR)
            assert harassed.reasons(1) == [EndReason.LEFT]
            client.rest()


@both_modes
def test_a_client_that_shuts_its_receiving_side_has_left(address: str, framed: bool) -> None:
    with Harassed(address) as harassed:
        with raw_client(harassed.server, address, framed=framed) as client:
            client.sock.shutdown(socket.SHUT_RD)
            harassed.publish()
            assert harassed.reasons(1) == [EndReason.LEFT]


def leave_unread(sock: socket.socket) -> None:
    """Close with input that was not read, which the other end sees as a reset."""
    poll_deadline = time.monotonic() + DEADLINE
    while time.monotonic() < poll_deadline:
        with suppress(BlockingIOError):
            sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            break
    sock.close()


def leave_before_the_hello(address: str) -> None:
    dial(address).close()


def leave_with_the_hello_unread(address: str) -> None:
    leave_unread(dial(address))


def leave_without_a_reply(address: str) -> None:
    with dial(address) as sock:
        sock.recv(100)


def leave_after_the_reply(address: str) -> None:
    with dial(address) as sock:
        sock.recv(100)
        sock.send(REPLY)


def leave_with_the_welcome_unread(address: str) -> None:
    with dial(address) as sock:
        sock.recv(100)
        sock.send(REPLY)
        leave_unread(sock)


def leave_with_the_reply_in_one_go(address: str) -> None:
    with dial(address) as sock:
        sock.send(REPLY)


def leave_after_the_welcome(address: str) -> None:
    RawClient(address).close()


def leave_as_classic(address: str) -> None:
    with dial(address) as sock:
        sock.recv(100)
        sock.send(HELLO)


@pytest.mark.parametrize(
    "leave",
    [
        leave_before_the_hello,
        leave_with_the_hello_unread,
        leave_without_a_reply,
        leave_after_the_reply,
        leave_with_the_welcome_unread,
        leave_with_the_reply_in_one_go,
        leave_after_the_welcome,
        leave_as_classic,
    ],
)
def test_a_client_may_leave_at_any_moment_of_the_handshake(
    address: str, leave: Callable[[str], None]
) -> None:
    with Harassed(address) as harassed:
        for _ in range(5):
            leave(address)
            harassed.publish()
        wait_until(lambda: harassed.server.stats().clients == 1)
        with Client(address) as client:
            harassed.publish()
            assert client.receive(DEADLINE)


@both_modes
@pytest.mark.parametrize("size", [10, 250_000])
@pytest.mark.parametrize("count", [1, 30])
def test_a_client_may_leave_with_messages_unread(
    address: str, framed: bool, size: int, count: int
) -> None:
    with Harassed(address, log_size=1 << 20) as harassed:
        client = raw_client(harassed.server, address, framed=framed)
        harassed.publish(min(count, 1 << 20 // size), size)
        with suppress(ConnectionError):
            leave_unread(client.sock)
        harassed.publish()
        (reason,) = harassed.reasons(1)
        assert reason in (EndReason.LEFT, EndReason.LAGGED) or not framed
        client.close()


@both_modes
def test_a_client_that_never_reads_is_cut_and_nobody_else(address: str, framed: bool) -> None:
    with Harassed(address, log_size=65536) as harassed:
        with raw_client(harassed.server, address, framed=framed):
            for _ in range(100):
                harassed.publish(20, size=100)
            assert harassed.reasons(1) == [EndReason.LAGGED]


def test_a_storm_of_connections_disturbs_nobody(address: str) -> None:
    with Harassed(address) as harassed:
        leaves = [leave_before_the_hello, leave_after_the_reply, leave_with_the_welcome_unread]

        def storm() -> None:
            for number in range(100):
                with suppress(ConnectionError, BlockingIOError):
                    leaves[number % 3](address)

        threads = [threading.Thread(target=storm) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            harassed.publish()
        for thread in threads:
            thread.join(DEADLINE)
        wait_until(lambda: harassed.server.stats().clients == 1)
        with Client(address) as client:
            harassed.publish()
            assert client.receive(DEADLINE)


@pytest.mark.parametrize("moment", ["reply", "ack", "bad ack"])
def test_a_client_that_sends_a_descriptor_is_refused_or_cut(
    address: str, kernel: str, moment: str
) -> None:
    with Harassed(address) as harassed, pipe() as (reading, writing), dial(address) as sock:
        before = len(descriptors())
        sock.recv(100)
        if moment == "reply":
            sent = send_descriptor(sock, REPLY, writing)
        else:
            sock.send(REPLY)
            assert reference.decode_welcome(sock.recv(100)).status == 0
            harassed.publish()
            sock.recv(100)
            packet = b"rubbish" if moment == "bad ack" else reference.encode_ack(FIRST_ID)
            sent = send_descriptor(sock, packet, writing)
        os.close(writing)
        assert sent == (kernel == GUARDED)
        rest = list(packets_of(sock)) if sent else []
        wait_until(lambda: not is_held(reading))
        assert len(descriptors()) <= before
        if not sent or moment == "reply":
            assert not harassed.ends
            assert not rest
        else:
            assert len(rest) == 1  # the goodbye
            assert harassed.reasons(1) == [EndReason.PROTOCOL]


def test_too_many_clients_are_refused_and_the_next_may_come_once_one_has_left(
    address: str,
) -> None:
    with Harassed(address, max_clients=2) as harassed:
        with raw_client(harassed.server, address):
            with pytest.raises(
                Refused, match=r"all 2 client places are taken \(max_clients\)"
            ) as caught:
                Client(address)
            assert caught.value.status == 3
            with dial(address) as sock:
                sock.recv(100)
                sock.send(HELLO)
                harassed.publish()
                assert list(packets_of(sock)) == []
        wait_until(lambda: harassed.server.stats().clients == 1)
        with Client(address) as client:
            harassed.publish()
            assert client.receive(DEADLINE)


POOR_SERVER = """
import resource, sys
import jumiks

address, limit = sys.argv[1], int(sys.argv[2])
with jumiks.Server(address) as server:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    print("ready", flush=True)
    for line in sys.stdin:
        print(server.publish(line.encode()), flush=True)
"""


class PoorServer:
    """A server in a process of its own that may have few descriptors."""

    def __init__(self, address: str, limit: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", POOR_SERVER, address, str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def publish(self, text: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return int(self.line())

    def __enter__(self) -> "PoorServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0


@pytest.mark.parametrize("spare", range(6))
def test_newcomers_are_let_in_again_after_descriptors_ran_out(address: str, spare: int) -> None:
    # The limits differ so that each step of letting a client in gets to be the one that fails.
    with PoorServer(address, 24 + spare) as server, Client(address) as innocent:
        with ExitStack() as stack:
            socks = [stack.enter_context(dial(address)) for _ in range(40)]
            for sock in socks:
                with suppress(BrokenPipeError):
                    sock.send(REPLY)
            server.publish("meanwhile")
            assert innocent.receive(DEADLINE) == b"meanwhile\n"

        def is_let_in() -> bool:
            # The server has the descriptors back once it has seen that the others are gone.
            with suppress(Refused):
                newcomers.append(Client(address, timeout=DEADLINE))
            return bool(newcomers)

        newcomers: list[Client] = []
        wait_until(is_let_in)
        with newcomers[0] as newcomer:
            server.publish("then")
            assert newcomer.receive(DEADLINE) == b"then\n"
            assert innocent.receive(DEADLINE) == b"then\n"


def test_silent_connections_that_use_up_all_descriptors_make_room(address: str) -> None:
    # Six times what the server has descriptors for, and each would have its five seconds.
    with PoorServer(address, 32) as server, ExitStack() as stack:
        innocent = stack.enter_context(Client(address))
        silent = [stack.enter_context(dial(address)) for _ in range(120)]  # as the backlog takes
        newcomer = stack.enter_context(Client(address, timeout=DEADLINE))
        server.publish("for both")
        assert newcomer.receive(DEADLINE) == innocent.receive(DEADLINE) == b"for both\n"
        assert ends(silent[0])


# ---- a client and what its server says ----


def data(packet_id: int, payload: bytes = b"fine") -> Frame:
    return Frame(packet_id, payload)


def frames(*items: Frame) -> bytes:
    return reference.encode_frames(items)


def fragment(packet_id: int, total: int, offset: int, part: bytes, more: bool) -> bytes:
    return reference.encode_fragment(Fragment(packet_id, total, offset, part, more))


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
        "go backwards|does not continue",
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


def received(client: Client) -> tuple[list[bytes], Exception]:
    """All messages, and what came behind them."""
    found: list[bytes] = []
    try:
        while True:
            found.append(client.receive(DEADLINE))
    except Exception as error:
        return found, error


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


# ---- anything at all ----

DOCUMENTED = (
    ProtocolError,
    ConnectionLost,
    jumiks.ServerClosed,
    jumiks.Disconnected,
    jumiks.Lagged,
)

small = st.integers(0, 40)
near_ids = st.integers(FIRST_ID - 2, FIRST_ID + 8)
a_frame = st.builds(
    Frame,
    near_ids,
    st.binary(max_size=100),
    st.sampled_from([DATA, DATA, DATA, BYE, 0, 3, CRITICAL | 3]),
    st.sampled_from([0, 0, 0, FRAGMENT, FRAGMENT | MORE, MORE, 0xFFFF]),
)
a_fragment = st.builds(
    fragment, near_ids, small, small, st.binary(min_size=1, max_size=40), st.booleans()
)


@st.composite
def spoiled(draw: st.DrawFn, packets: st.SearchStrategy[bytes]) -> bytes:
    """A packet with a byte changed, or its end cut off or added to."""
    packet = bytearray(draw(packets))
    at = draw(st.integers(0, len(packet)))
    how = draw(st.sampled_from(["change", "cut", "add"]))
    if how == "change" and at < len(packet):
        packet[at] = draw(st.integers(0, 255))
    elif how == "cut":
        del packet[at:]
    else:
        packet += draw(st.binary(max_size=20))
    return bytes(packet)


good_packets = st.one_of(
    st.lists(a_frame, min_size=1, max_size=4).map(reference.encode_frames),
    a_fragment,
    st.builds(
        reference.encode_bye,
        st.builds(Bye, st.integers(0, 9), st.integers(0, 3), *[st.integers(0, 2**64 - 1)] * 7),
        near_ids,
    ),
)
any_packets = st.lists(
    st.one_of(good_packets, spoiled(good_packets), st.binary(max_size=80)), max_size=8
)
quickly = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


def test_whatever_a_server_says_only_documented_errors_come_out(address: str) -> None:
    with listening(address) as listener:

        @quickly
        @given(any_packets, st.booleans())
        def attack(packets: list[bytes], framed: bool) -> None:
            hello, welcome = (hello_of(), WELCOME) if framed else (HELLO, None)
            with one_connection(listener, saying(packets, hello, welcome)):
                with Client(address) as client:
                    _, error = received(client)
            assert isinstance(error, DOCUMENTED), repr(error)

        attack()


def reference_view(packets: list[bytes]) -> tuple[list[Message], bool]:
    """What the reference makes of framed packets: messages, and whether they broke the rules."""
    found: list[Message] = []
    try:
        found.extend(item for item in reference.read_framed(packets) if isinstance(item, Message))
    except reference.WireError:
        return found, True
    return found, False


def test_client_and_reference_agree_on_what_framed_packets_say(address: str) -> None:
    with listening(address) as listener:

        @quickly
        @given(st.lists(st.one_of(good_packets, spoiled(good_packets)), max_size=6))
        def compare(packets: list[bytes]) -> None:
            # An empty packet looks like the end to whoever does not ask further.
            packets = [packet for packet in packets if packet]
            hello = hello_of(max_message=1 << 31, max_packet=65536)
            welcome = reference.encode_welcome(Welcome(0, reference.FRAMES, 1))
            with one_connection(listener, saying(packets, hello, welcome)):
                with Client(address) as client:
                    found: list[Message] = []
                    try:
                        while True:
                            payload = client.receive(DEADLINE)
                            found.append(Message(client.last_id, payload))
                    except jumiks.ConnectionEnded as caught:
                        error = caught
            expected, broken = reference_view(packets)
            # The client also takes what stands in front of the fault in the same packet.
            assert found[: len(expected)] == expected
            assert found == expected or broken
            told = any(frame.kind == BYE for packet in packets for frame in parsed(packet))
            assert isinstance(error, ProtocolError) == broken or told

        compare()


def parsed(packet: bytes) -> list[Frame]:
    try:
        return reference.decode_frames(packet)
    except reference.WireError:
        return []


any_acks = st.lists(
    st.one_of(
        near_ids.map(reference.encode_ack), st.binary(max_size=24), st.just(b""), st.just(REPLY)
    ),
    max_size=6,
)
any_reply = st.one_of(st.just(REPLY), st.just(HELLO), spoiled(st.just(REPLY)), st.binary())


def test_whatever_a_client_says_the_others_go_on(address: str) -> None:
    with Harassed(address) as harassed:

        @quickly
        @given(any_reply, any_acks, st.booleans(), st.booleans())
        def attack(reply: bytes, acks: list[bytes], reads: bool, publishes: bool) -> None:
            with dial(address) as sock, suppress(BrokenPipeError, ConnectionResetError):
                if reads:
                    sock.recv(100)
                sock.send(reply)
                if publishes:
                    harassed.publish()
                send_all(sock, acks)
            harassed.publish()
            harassed.witness.wait_for(len(harassed.published))
            assert harassed.witness.messages[-1] == harassed.published[-1]

        attack()
        wait_until(lambda: harassed.server.stats().clients == 1)
        allowed = {EndReason.LEFT, EndReason.PROTOCOL}
        assert {reason for _, reason in harassed.ends} <= allowed


# ---- classic clients that do not close ----


def hung_up(sock: socket.socket) -> bool:
    """Whether the other end has closed its descriptor, and not only stopped sending."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def pump_sleeps() -> bool:
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text() == "jumiks pump\n":
            return (task / "stat").read_text().rpartition(")")[2].split()[0] == "S"
    return False


@pytest.mark.parametrize("end", ["disconnect", "lag", "a broken ack"])
def test_a_classic_client_that_does_not_close_is_closed_in_the_end(address: str, end: str) -> None:
    # Its end is caused while the thread is asleep without a deadline.
    lagging = end == "lag"
    with (
        Server(address, max_lag=1 if lagging else None, patience=0) as server,
        dial(address) as sock,
    ):
        sock.recv(4096)
        sock.send(HELLO)
        server.wait_for_clients(1, DEADLINE)
        wait_until(pump_sleeps)
        if end == "disconnect":
            server.disconnect(server.clients()[0])
        elif lagging:
            server.publish_many([b"one", b"two", b"three"])
        else:
            sock.send(b"no ack")
        wait_until(lambda: hung_up(sock))
