# SPDX-License-Identifier: Apache-2.0
"""Peers that break the rules: they lose their own connection, and nobody else notices."""

import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from support import reference
from support.base import DEADLINE, GUARDED, descriptors, wait_until
from support.hostile import ends
from support.reference import (
    Message,
    Welcome,
)
from support.rights import is_held, pipe, send_descriptor
from support.servers import Server
from support.shared import HandMadeClient
from support.wire import (
    FIRST_ID,
    HELLO,
    REPLY,
    Harassed,
    RawClient,
    dial,
    packets_of,
    raw_client,
    send_all,
)

from jumiks import Client, EndReason, Refused

both_modes = pytest.mark.parametrize("framed", [True, False], ids=["framed", "classic"])


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


def test_a_late_reply_finds_the_connection_closed_and_delays_nobody(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumiks")
    with Harassed(address, handshake_timeout=0.1) as harassed, dial(address) as sock:
        sock.recv(100)
        harassed.publish()
        with Client(address):
            assert list(packets_of(sock)) == []
        with pytest.raises(BrokenPipeError):
            sock.send(HELLO)
    assert "sent no reply within 0.1 s" in caplog.text


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


@pytest.mark.only_shared
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


# ---- classic clients that do not close ----


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
