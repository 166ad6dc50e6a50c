# SPDX-License-Identifier: Apache-2.0
"""When the system has no more of what is asked for: whoever asks is told, and all others go on.

What the core itself asks for is made to fail in tests/c/test_faults.c. Here it is what Python asks
for: by real limits where there are such, else by an object in the place of a socket or an epoll.
"""

import errno
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from support.api import But, Task
from support.base import DEADLINE, IS_ROOT, wait_until
from support.servers import Server
from support.wire import REPLY, dial

from jumiks import Client, Delivery, JumiksError, Monitor, Refused, Timeout
from jumiks._server import control
from jumiks._wire.handshake import Status

POOR = """
import os, resource, sys, time
import jumiks

address = sys.argv[1]
most = resource.getrlimit(resource.RLIMIT_NOFILE)

def count():
    return len(os.listdir("/proc/self/fd"))

def settles_at(before):
    # A server that could not be made has its thread close the last ones.
    deadline = time.monotonic() + 30
    while count() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    return count() == before

def make_with(spare, make):
    # Try with so many descriptors left: whether it could be made, and without a trace if not.
    before = count()
    # The list of descriptors has one of its own while it is read.
    resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + spare, most[1]))
    try:
        made = make()
    except OSError as error:
        made = None
        assert error.errno == 24, repr(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    if made is not None:
        made.close()
    assert settles_at(before), f"{spare} spare: {count()} descriptors, not {before}"
    return made is not None
"""


def run_poor(program: str, *arguments: object) -> None:
    """Run a program that begins with POOR, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", POOR + textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_server_that_finds_too_few_descriptors_says_so_and_leaves_nothing(path: Any) -> None:
    run_poor(
        """
        def make():
            return jumiks.Server(address)

        fates = []
        while True not in fates:
            fates.append(make_with(len(fates), make))
            assert not os.path.exists(address)
        assert len(fates) > 5, fates
        """,
        path,
    )


@pytest.mark.parametrize("delivery", ["shared", "framed"])
def test_a_client_that_finds_too_few_descriptors_says_so_and_leaves_nothing(
    address: str, delivery: Delivery
) -> None:
    with Server(address) as server:
        run_poor(
            """
            def make():
                return jumiks.Client(address, delivery=sys.argv[2])

            fates = []
            while True not in fates:
                fates.append(make_with(len(fates), make))
            assert fates[0] is False
            """,
            address,
            delivery,
        )
        wait_until(lambda: not server.clients())
        with Client(address) as client:
            server.publish(b"then")
            assert client.receive(DEADLINE) == b"then"


@pytest.mark.skipif(not IS_ROOT, reason="only root can become a user with no other threads")
@pytest.mark.parametrize("threads", [1, 2], ids=["the core's", "the control plane's"])
def test_a_server_that_may_start_no_thread_says_so_and_leaves_nothing(
    address: str, threads: int
) -> None:
    run_poor(
        """
        os.setresuid(61234, 61234, 61234)
        before, most = count(), int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_NPROC, (most, 100))
        try:
            jumiks.Server(address)
        except OSError as error:
            said = str(error)
        assert "thread" in said and "temporarily" in said, said
        assert settles_at(before)
        resource.setrlimit(resource.RLIMIT_NPROC, (100, 100))
        with jumiks.Server(address) as server, jumiks.Client(address) as client:
            server.publish(b"then")
            assert client.receive(5) == b"then"
        """,
        address,
        threads,
    )


class Faulty:
    """What it stands for, but for one method that fails once, the nth time it is called."""

    def __init__(self, real: Any, call: str, error: int, nth: int = 1) -> None:
        self._real = real
        self._call = call
        self._error = error
        self.left = nth

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name == self._call:
            return lambda *arguments: self._fail(found, arguments)
        return found

    def _fail(self, found: Any, arguments: tuple[Any, ...]) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(self._error, os.strerror(self._error))
        return found(*arguments)


class FaultyListener(Faulty):
    """A listening socket whose next connection is faulty."""

    def __init__(self, real: Any, call: str, error: int, nth: int) -> None:
        super().__init__(real, "accept", 0, 0)
        self._one = (call, error, nth)
        self.accepted: Faulty | None = None

    def _fail(self, found: Any, arguments: tuple[Any, ...]) -> Any:
        sock, where = found(*arguments)
        if self.accepted is None:
            sock = self.accepted = Faulty(sock, *self._one)
        return sock, where


def newcomers_of(server: Server) -> Any:
    return server._control._newcomers


def check_that_all_is_well(server: Server, innocent: Client, address: str) -> None:
    """Those who were there get what is published, and others can come."""
    with Client(address, timeout=DEADLINE) as newcomer:
        server.publish(b"then")
        assert newcomer.receive(DEADLINE) == b"then"
        assert innocent.receive(DEADLINE) == b"then"


@pytest.mark.parametrize(
    "error",
    ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "ECONNABORTED", "EPERM", "EPROTO", "ENETDOWN"],
)
def test_an_accept_that_fails_is_tried_again(
    address: str, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    with Server(address) as server, Client(address) as innocent:
        listener = newcomers_of(server)._listener
        listener.sock = faulty = Faulty(listener.sock, "accept", getattr(errno, error))
        check_that_all_is_well(server, innocent, address)
        assert faulty.left <= 0
    # What lasts would be tried again at once, so the server waits; for EMFILE it has one to spare.
    waits = error in {"ENFILE", "ENOMEM", "ENOBUFS"}
    assert ("; trying again every 0.1 s" in caplog.text) == waits


@pytest.mark.parametrize("error", ["ENOMEM", "ENOBUFS", "EPIPE", "ECONNRESET", "ENOTCONN"])
@pytest.mark.parametrize(
    ("call", "nth"), [("send", 1), ("send", 2), ("recv", 1), ("sendmsg", 1), ("getsockopt", 2)]
)
def test_a_call_that_fails_in_the_handshake_costs_that_connection_alone(
    address: str, call: str, nth: int, error: str
) -> None:
    # The log shared: the welcome goes out by sendmsg. Else it is the second send.
    with (
        Server(address, share_log=call == "sendmsg") as server,
        Client(address) as innocent,
    ):
        listener = newcomers_of(server)._listener
        listener.sock = faulty = FaultyListener(listener.sock, call, getattr(errno, error), nth)
        with (
            pytest.raises((JumiksError, OSError)) as caught,
            Client(address, timeout=DEADLINE),
        ):
            pass
        assert not isinstance(caught.value, Timeout), "it waits for what will not come"
        assert faulty.accepted is not None
        assert faulty.accepted.left == 0
        wait_until(lambda: len(server.clients()) == 1)
        check_that_all_is_well(server, innocent, address)


@pytest.mark.parametrize("share_log", [True, False], ids=["shared", "packets"])
@pytest.mark.parametrize("call", ["dup", "jmk_server_attach"])
def test_a_client_that_the_last_step_finds_no_descriptor_for_reads_so(
    address: str, monkeypatch: pytest.MonkeyPatch, call: str, share_log: bool
) -> None:
    def fail(*arguments: object) -> int:
        if call == "dup":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return -errno.EMFILE

    module = "os" if call == "dup" else "lib"
    with Server(address, share_log=share_log) as server, Client(address) as innocent:
        with monkeypatch.context() as patch:
            patch.setattr(control, module, But(getattr(control, module), call, fail))
            with pytest.raises(Refused, match=r"ulimit -n") as caught:
                Client(address, timeout=DEADLINE)
        assert caught.value.status is Status.TOO_MANY_CLIENTS
        check_that_all_is_well(server, innocent, address)


def test_no_peer_can_block_the_thread_that_shakes_hands(address: str) -> None:
    with Server(address) as server, dial(address):
        wait_until(lambda: newcomers_of(server)._newcomers)
        (newcomer,) = newcomers_of(server)._newcomers.values()
        assert not newcomer.sock.getblocking()


def test_a_client_whose_descriptors_cannot_be_in_flight_gets_packets(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """unix(7): the kernel refuses more descriptors in flight than a user may have open."""
    with Server(address, share_log=True) as server, Client(address) as innocent:
        listener = newcomers_of(server)._listener
        listener.sock = FaultyListener(listener.sock, "sendmsg", errno.ETOOMANYREFS, 1)
        with Client(address, timeout=DEADLINE) as client:
            listener.sock = listener.sock._real
            assert client.delivery == "framed"
            assert "gets packets, as it cannot be given the log: " in caplog.text
            server.publish_many([b"1", b"2"])
            assert [client.receive(DEADLINE), client.receive(DEADLINE)] == [b"1", b"2"]
            client.ack()
            wait_until(lambda: server.clients()[1].lag == 0)
        assert [innocent.receive(DEADLINE), innocent.receive(DEADLINE)] == [b"1", b"2"]
        check_that_all_is_well(server, innocent, address)


@pytest.mark.parametrize("error", ["ENOSPC", "ENOMEM"])
def test_a_connection_that_cannot_be_watched_is_closed(address: str, error: str) -> None:
    with Server(address) as server, Client(address) as innocent:
        newcomers = newcomers_of(server)
        newcomers._epoll = Faulty(newcomers._epoll, "register", getattr(errno, error))
        # A reply that nobody reads any more makes the end a reset.
        with dial(address) as sock, suppress(ConnectionResetError, BrokenPipeError):
            sock.settimeout(DEADLINE)
            while sock.recv(4096):
                sock.send(REPLY)
        check_that_all_is_well(server, innocent, address)


@pytest.mark.parametrize("error", ["ENOSPC", "ENOMEM"])
def test_newcomers_are_let_in_also_if_the_listener_cannot_be_watched_at_once(
    address: str, error: str
) -> None:
    with Server(address) as server, Client(address) as innocent:
        newcomers = newcomers_of(server)
        newcomers._epoll = watched = Faulty(newcomers._epoll, "register", getattr(errno, error))
        newcomers._listener.sock = Faulty(newcomers._listener.sock, "accept", errno.ENFILE)
        check_that_all_is_well(server, innocent, address)
        assert watched.left < 0


FEW = """
import resource, sys, time
from jumiks import Server

address, spare = sys.argv[1], int(sys.argv[2])
server = Server(address)
used = len(__import__("os").listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, used + spare))
print(used + spare, flush=True)
sys.stdin.read()
server.close()
"""


@contextmanager
def few_descriptors(address: str, spare: int) -> Iterator[int]:
    """A server in a process with so many descriptors left; its limit."""
    command = [sys.executable, "-c", FEW, address, str(spare)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 0


def as_many_as_fit(address: str, stack: ExitStack, **options: Any) -> tuple[list[Client], Refused]:
    clients: list[Client] = []
    while True:
        try:
            client = Client(address, timeout=DEADLINE, **options)
        except Refused as refused:
            return clients, refused
        clients.append(stack.enter_context(client))


@pytest.mark.parametrize("delivery", ["shared", "framed"])
def test_a_peer_that_there_is_no_descriptor_for_reads_so(address: str, delivery: Delivery) -> None:
    with few_descriptors(address, 6) as limit, ExitStack() as stack:
        clients, refused = as_many_as_fit(address, stack, delivery=delivery)
        assert 4 <= len(clients) <= 6
        # Again and again: each gives back what it had.
        for _ in range(20):
            assert refused.status is Status.TOO_MANY_CLIENTS
            assert f"all {limit} descriptors" in str(refused)
            assert "ulimit -n" in str(refused)
            more, refused = as_many_as_fit(address, stack, delivery=delivery)
            clients += more  # a thread that closes descriptors may have been late
            assert len(clients) <= 6
        more = []
        clients.pop().close()
        # Its descriptor is closed when the server has seen the end.
        deadline = time.monotonic() + DEADLINE
        while not more and time.monotonic() < deadline:
            more, refused = as_many_as_fit(address, stack, delivery=delivery)
        assert more
        assert refused.status is Status.TOO_MANY_CLIENTS


def test_many_at_once_that_there_is_no_descriptor_for_read_so(address: str) -> None:
    with few_descriptors(address, 6), ExitStack() as stack:
        as_many_as_fit(address, stack)
        tasks = [Task(lambda: as_many_as_fit(address, stack)) for _ in range(20)]
        for task in tasks:
            _, refused = task.result()
            assert refused.status is Status.TOO_MANY_CLIENTS


def test_a_monitor_that_there_is_no_descriptor_for_reads_so(address: str) -> None:
    with few_descriptors(address, 6), ExitStack() as stack:
        as_many_as_fit(address, stack)
        with pytest.raises(Refused, match="descriptors"):
            Monitor(address, timeout=DEADLINE)


def test_a_plain_client_that_there_is_no_descriptor_for_finds_the_end(address: str) -> None:
    with few_descriptors(address, 6), ExitStack() as stack:
        as_many_as_fit(address, stack)
        with dial(address) as sock:
            assert sock.recv(4096)
            sock.send(bytes.fromhex("010000000000"))
            with suppress(ConnectionResetError):
                assert sock.recv(4096) == b""


def test_one_that_says_nothing_does_not_keep_the_last_descriptor(address: str) -> None:
    with few_descriptors(address, 6), ExitStack() as stack:
        as_many_as_fit(address, stack)
        for _ in range(3):
            silent = stack.enter_context(dial(address))
            assert silent.recv(4096)
            _, refused = as_many_as_fit(address, stack)
            assert refused.status is Status.TOO_MANY_CLIENTS
            while silent.recv(4096):
                pass


def test_a_server_whose_thread_cannot_start_leaves_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    server = Server.__new__(Server)
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        with pytest.raises(BlockingIOError, match="cannot start the server's thread"):
            server.__init__(address)  # type: ignore[misc]
    Task(server.close).result()
    with Server(address), Client(address):  # the address was given back
        pass
