# SPDX-License-Identifier: Apache-2.0
"""Many peers, slow ones, stopped ones: the others go on, and nothing is left behind.

What is linear is counted, in calls or in entries, and not measured in time.
"""

import os
import random
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
from support import reference
from support.api import Task, script_process
from support.base import DEADLINE, DELIVERIES, GUARDED, REFUSES, SHARE_LOG, descriptors, wait_until
from support.servers import Server
from support.wire import HELLO, REPLY, Harassed, dial, has_spares, raw_client

from jumiks import Client, ConnectionLost, Delivery, EndReason, Lagged, OnLag, Timeout
from jumiks._server.newcomers import MAX_JOINING

all_ways = pytest.mark.parametrize(
    "delivery", ["classic", "framed", pytest.param("shared", marks=pytest.mark.only_shared)]
)


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """Raise what this process may have; returns how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if wanted < 4096:
        pytest.skip(f"this process may have {hard} descriptors, and needs 4096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- many ----


def test_thousands_of_half_open_connections_cost_a_bounded_number(
    address: str, many_descriptors: int
) -> None:
    count = 3000
    with Harassed(address, handshake_timeout=60) as harassed, ExitStack() as stack:
        before = len(descriptors())
        for _ in range(count):
            stack.enter_context(dial(address))
        with Client(address) as client:
            harassed.publish()
            assert client.receive(DEADLINE)
            ours = before + count + 1
            # All were accepted by now, as the newcomer came last.
            assert len(harassed.server._control._newcomers._newcomers) <= MAX_JOINING
            assert len(descriptors()) <= ours + MAX_JOINING + 8


class Calls:
    """Counts what the control threads of servers call that are made in the block."""

    def __init__(self) -> None:
        self.count = 0

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and threading.current_thread().name.startswith("jumiks "):
            self.count += 1

    def __enter__(self) -> "Calls":
        threading.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        threading.setprofile(None)


def calls_of_joining(server: Server, address: str, calls: Calls) -> int:
    """What one client's coming and going makes the control thread do, in calls of functions."""
    here = server.stats().clients
    endings = sum(server.endings.values())
    before = calls.count
    with Client(address):
        server.wait_for_clients(here + 1, DEADLINE)
    wait_until(lambda: sum(server.endings.values()) > endings)
    return calls.count - before


def test_letting_a_client_in_is_no_more_work_where_there_are_many(address: str) -> None:
    with Calls() as calls, Server(address) as server, ExitStack() as stack:
        few = min(calls_of_joining(server, address, calls) for _ in range(5))
        for _ in range(100):
            stack.enter_context(Client(address))
            stack.enter_context(dial(address))  # shakes hands as long as it is there
        server.wait_for_clients(100, DEADLINE)
        many = min(calls_of_joining(server, address, calls) for _ in range(5))
        assert few > 0
        assert many < few + 50


def watched() -> int:
    """How many descriptors the epolls of this process watch."""
    count = 0
    for entry in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            count += entry.read_text().count("tfd:")
    return count


def sizes(server: Server) -> list[int]:
    """What a server keeps of its clients, where it keeps something."""
    control = server._control
    clients = (control.peers, control.present, control._let_in_of)
    joining = (control._newcomers._newcomers, control._newcomers._by_user)
    return [*map(len, clients + joining), watched(), len(descriptors())]


def test_thousands_that_came_and_went_leave_nothing_behind(address: str) -> None:
    count = 3000
    with Server(address) as server:
        with raw_client(server, address) as witness:
            wait_until(lambda: has_spares(server))
            before = sizes(server)
            for number in range(count):
                with dial(address) as sock:
                    sock.recv(100)
                    # Some shake hands, some as 1.0 does, and some not at all.
                    if number % 3:
                        sock.send(REPLY if number % 3 == 1 else HELLO)
                        if number % 3 == 1:
                            assert reference.decode_welcome(sock.recv(100)).status == 0
            wait_until(lambda: server.stats().clients == 1)
            wait_until(lambda: sizes(server) == before)
            # The slots were used again and again: an ack is looked for among as few as ever.
            with raw_client(server, address):
                slot = max(info.key for info in server.clients()) & 0xFFFFFFFF
                assert slot < 64
            last = server.publish(b"still here")
            assert witness.read(1)[0].id == last
            witness.ack(last)
            server.drain(DEADLINE)


# ---- replies ----


def outcome_of(sock: socket.socket) -> str:
    """What became of a connection that has replied: let in, refused, or closed without a word."""
    packet = b""
    with suppress(ConnectionResetError):
        packet = sock.recv(1000)
    if not packet:
        return "closed"
    if len(packet) >= 16 and int.from_bytes(packet[:2], "little") == 0:
        return "welcome"
    welcome = reference.decode_welcome(packet)
    assert len(packet) > 16, "a refusal has words"
    return f"status {welcome.status}"


def test_a_reply_of_every_length_has_its_outcome(address: str) -> None:
    with Harassed(address) as harassed:
        for size in range(73):
            with dial(address) as sock:
                sock.recv(100)
                sock.send(REPLY.ljust(size, b"\0")[:size])
                if size in (6, 7):  # it is classic, and told nothing
                    harassed.server.wait_for_clients(2, DEADLINE)
                else:
                    assert outcome_of(sock) == ("closed" if size < 6 else "welcome"), size
            wait_until(lambda: harassed.server.stats().clients == 1)


def test_a_reply_of_any_content_is_let_in_or_refused_in_words_or_closed(address: str) -> None:
    chance = random.Random(1)
    seen = set()
    with Harassed(address) as harassed:
        for size in list(range(8, 65)) * 3:
            noise = bytearray(chance.randbytes(size))
            if chance.random() < 0.7:
                noise[:6] = HELLO
            with dial(address) as sock:
                sock.recv(100)
                sock.send(noise)
                seen.add(outcome_of(sock))
        wait_until(lambda: harassed.server.stats().clients == 1)
    assert seen <= {"welcome", "closed", "status 1", "status 4", "status 6"}
    assert {"welcome", "status 1", "status 4"} <= seen


# ---- descriptors ----


@pytest.mark.parametrize("what", ["many", "its own connection"])
def test_descriptors_beside_acks_never_reach_the_server_however_many_and_whatever_they_are(
    address: str, kernel: str, what: str
) -> None:
    with Harassed(address) as harassed, raw_client(harassed.server, address) as client:
        last = harassed.publish()
        client.read(1)
        wait_until(lambda: has_spares(harassed.server))
        before = len(descriptors())
        given = [client.sock.fileno()] * (200 if what == "many" else 1)
        for _ in range(50):
            try:
                socket.send_fds(client.sock, [reference.encode_ack(last)], given)
            except PermissionError:
                assert kernel == REFUSES
            except OSError:  # it is cut by now
                assert kernel == GUARDED
                break
        if kernel == REFUSES:
            client.ack(last)
            harassed.server.drain(DEADLINE)
            assert not harassed.ends
        else:
            assert harassed.reasons(1) == [EndReason.PROTOCOL]
        wait_until(lambda: len(descriptors()) <= before)


# ---- slow ----


def test_a_client_that_takes_a_byte_of_a_packet_now_and_then_is_cut_alone(address: str) -> None:
    with Harassed(address, log_size=65536) as harassed:
        with raw_client(harassed.server, address) as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            for _ in range(100):
                harassed.publish(20, size=100)
                with suppress(BlockingIOError):
                    client.sock.recv(1, socket.MSG_DONTWAIT)  # and the kernel drops the rest
            assert harassed.reasons(1) == [EndReason.LAGGED]


@all_ways
def test_a_handler_that_does_not_return_is_one_lag_event_and_no_matter_to_another(
    address: str, delivery: Delivery
) -> None:
    release = threading.Event()
    handled: list[bytes] = []

    def slow(message: bytes) -> None:
        handled.append(message)
        release.wait(DEADLINE)

    with Harassed(address, max_lag=100) as harassed:
        slow_client = Client(address, delivery=delivery)
        with slow_client:
            harassed.server.wait_for_clients(2, DEADLINE)
            task = Task(lambda: slow_client.run(slow))
            for _ in range(300):
                harassed.publish()
                harassed.witness.wait_for(len(harassed.published))
            assert harassed.reasons(1) == [EndReason.LAGGED]
            (info, _), *others = harassed.ends
            assert (others, info.lag, info.limit) == ([], 100, 100)
            release.set()
            # Plain 1.0 has no goodbye.
            with pytest.raises(ConnectionLost if delivery == "classic" else Lagged):
                task.result()
            assert handled == harassed.published[: len(handled)]
    assert [reason for _, reason in harassed.ends].count(EndReason.LAGGED) == 1


class Crowd:
    """Clients of every delivery whose handlers all stand still until they are told to go on."""

    def __init__(self, address: str, count: int) -> None:
        self.release = threading.Event()
        self.count = count
        self.clients = [
            Client(address, delivery=each) for each in DELIVERIES if SHARE_LOG or each != "shared"
        ]
        self.tasks = [Task(partial(self._take, client)) for client in self.clients]

    def _take(self, client: Client) -> list[bytes]:
        found: list[bytes] = []
        with client, suppress(ConnectionError):
            for message in client:
                assert self.release.wait(DEADLINE)
                found.append(message)
                if len(found) == self.count:
                    client.ack()
                    break
        return found

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *error: object) -> None:
        self.release.set()
        for client in self.clients:
            client.close()


@pytest.mark.parametrize("on_lag", ["disconnect", "block", "skip"])
def test_while_every_client_is_slow_at_once_nobody_is_cut_within_patience(
    address: str, on_lag: OnLag
) -> None:
    with Server(address, max_lag=10, on_lag=on_lag, patience=DEADLINE) as server:
        with Crowd(address, 10) as crowd:
            server.wait_for_clients(len(crowd.clients), DEADLINE)
            server.publish_many([b"x"] * 10, timeout=0)
            with pytest.raises(Timeout):
                server.publish(b"one too many", timeout=0.05)
            assert (len(server.clients()), server.stats().skipped) == (len(crowd.clients), 0)
            crowd.release.set()
            for task in crowd.tasks:
                assert task.result() == [b"x"] * 10


def test_when_every_client_is_slow_at_once_and_waited_for_nothing_is_lost(address: str) -> None:
    messages = [b"%d" % number for number in range(50)]
    with Server(address, max_lag=10, on_lag="block") as server:
        with Crowd(address, len(messages)) as crowd:
            server.wait_for_clients(len(crowd.clients), DEADLINE)
            with pytest.raises(Timeout) as caught:
                server.publish_many(messages, timeout=0.05)
            assert caught.value.published == 10
            crowd.release.set()
            server.publish_many(messages[10:], timeout=DEADLINE)
            for task in crowd.tasks:
                assert task.result() == messages


# ---- stopped ----

STOPPED = """
import sys
import jumiks

try:
    with jumiks.Client(sys.argv[1], delivery=sys.argv[2]) as client:
        print("ready", flush=True)
        for message in client:
            pass
except jumiks.Lagged as error:
    print("Lagged", error.limit, flush=True)
"""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(
            lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        )
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@all_ways
def test_a_stopped_process_is_cut_alone_and_reads_why_when_it_goes_on(
    address: str, delivery: Delivery
) -> None:
    with Harassed(address, max_lag=200) as harassed:
        with script_process(STOPPED, address, delivery) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            harassed.server.wait_for_clients(2, DEADLINE)
            with stopped(process.pid):
                for _ in range(30):
                    harassed.publish(20)
                    harassed.witness.wait_for(len(harassed.published))
                assert harassed.reasons(1) == [EndReason.LAGGED]
                assert harassed.ends[0][0].pid == process.pid
            if delivery != "classic":  # plain 1.0 has no goodbye
                assert process.stdout.readline() == "Lagged 200\n"


def test_a_stopped_server_is_a_timeout_for_its_clients_and_goes_on_where_it_was(
    address: str,
) -> None:
    serve = """
import sys
import jumiks

with Server(sys.argv[1]) as server:
    print("ready", flush=True)
    for line in sys.stdin:
        server.publish(line.encode())
"""
    with script_process(serve, address) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        with Client(address) as client:
            with stopped(process.pid):
                with pytest.raises(Timeout):
                    client.receive(0.05)
                with pytest.raises(Timeout, match="no hello"):
                    Client(address, timeout=0.05)
            process.stdin.write("on\n")
            process.stdin.flush()
            assert client.receive(DEADLINE) == b"on\n"


# ---- killed ----

KILLED = """
import os, signal, sys
import jumiks

where, what, number = sys.argv[1], sys.argv[2], int(sys.argv[3])

def until(frame, event, argument):
    # Every line of our own modules, in this thread, is one step nearer to the end.
    global number
    if "jumiks" not in frame.f_code.co_filename:
        return None
    if event == "line":
        number -= 1
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return until

if what == "server":
    make = lambda: Server(where)
else:
    make = lambda: jumiks.Client(where, delivery=what)
sys.settrace(until)
made = make()
sys.settrace(None)
made.close()
print("through", flush=True)
"""


STEP = 61
"""Steps between two that are tried. Each run begins at another one, so in time all are tried."""


def killed_at(where: object, what: str, step: int) -> bool:
    """Run a constructor up to a step, where its process is killed; False if it got through."""
    with script_process(KILLED, where, what, step) as process:
        said, _ = process.communicate(timeout=DEADLINE)
        if said == "through\n":
            return False
        assert process.returncode == -signal.SIGKILL
        return True


@pytest.mark.slow
def test_a_server_killed_at_any_step_of_its_making_leaves_an_address_that_can_be_had(
    path: Path,
) -> None:
    step = random.randint(1, STEP)
    while killed_at(path, "server", step):
        with Server(path) as server, Client(path) as client:
            server.publish(b"%d" % step)
            assert client.receive(DEADLINE) == b"%d" % step
        assert not path.exists()
        step += STEP
    assert step > 100


@pytest.mark.slow
@pytest.mark.parametrize("what", ["framed", pytest.param("shared", marks=pytest.mark.only_shared)])
def test_a_client_killed_at_any_step_of_its_making_disturbs_nobody(address: str, what: str) -> None:
    step = random.randint(1, STEP)
    with Harassed(address) as harassed:
        before = len(descriptors())
        while killed_at(address, what, step):
            harassed.publish()
            harassed.witness.wait_for(len(harassed.published))
            wait_until(lambda: harassed.server.stats().clients == 1)
            wait_until(lambda: len(descriptors()) <= before)
            step += STEP
        assert step > 100
        assert {reason for _, reason in harassed.ends} <= {EndReason.LEFT}
