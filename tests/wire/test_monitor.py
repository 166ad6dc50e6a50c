# SPDX-License-Identifier: Apache-2.0
"""MONITOR connections: what they tell, who may have one, and that they slow nobody."""

import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path

import pytest
from support import reference
from support.api import SMALL_LOG, Task, sockaddr, stranger
from support.base import BEST, DEADLINE, IS_ROOT, ROOT, wait_until
from support.servers import Server
from support.wire import listening, one_connection

from jumiks import (
    Client,
    ClientInfo,
    Closed,
    ConnectionLost,
    Gap,
    Monitor,
    Peer,
    ProtocolError,
    Refused,
    ServerStats,
    ServerStatus,
    Timeout,
)
from jumiks._server.control import Control
from jumiks._server.monitors import MOST, Monitors
from jumiks._wire.handshake import FIRST_ID, Capability, Status
from jumiks._wire.status import parse_status
from jumiks.cli.status import Sample, report
from jumiks.stats import share

HEADER = struct.Struct("<HHI")
ASK = HEADER.pack(1, 0, 7)
DOC = (ROOT / "docs/protocol.md").read_text("utf-8")


@contextmanager
def raw_monitor(address: str, wanted: int = reference.MONITOR) -> Iterator[socket.socket]:
    """A monitor by hand, behind its welcome."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(sockaddr(address))
        sock.recv(4096)
        sock.send(reference.encode_reply(reference.Reply(capabilities=wanted)))
        packet, descriptors, _, _ = socket.recv_fds(sock, 4096, 2)
        assert descriptors == []
        welcome = reference.decode_welcome(packet)
        assert (welcome.status, welcome.capabilities) == (0, reference.MONITOR)
        yield sock


def read_answer(sock: socket.socket) -> tuple[list[int], int, str]:
    """Flags of all packets, the number, and the body."""
    flags, parts = [], []
    while True:
        packet = sock.recv(1 << 18)
        kind, flag, number = HEADER.unpack_from(packet)
        assert kind == 1
        flags.append(flag)
        parts.append(packet[8:])
        if not flag & 1:
            return flags, number, b"".join(parts).decode()


def test_no_max_lag_is_0(address: str) -> None:
    with Server(address), Monitor(address) as monitor:
        assert monitor.status().max_lag == 0


def test_a_monitor_sees_the_server_and_its_clients(address: str) -> None:
    with Server(address, max_lag=50, on_lag="skip") as server, Monitor(address) as monitor:
        assert monitor.status().clients == ()
        with Client(address) as client:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([b"message"] * 10)
            for _ in range(4):
                client.receive(DEADLINE)
            client.ack()
            wait_until(lambda: server.clients()[0].acked_id == FIRST_ID + 3)
            status = monitor.status()
            assert (status.address, status.pid) == (address, os.getpid())
            assert (status.max_lag, status.on_lag) == (50, "skip")
            assert status.server_id == server.server_id
            assert status.monitors == 1
            assert status.started <= status.now
            (info,) = status.clients
            assert info.peer == Peer(os.getpid(), os.geteuid(), os.getegid())
            assert (info.delivery, info.lag, info.acked_id) == (BEST, 6, FIRST_ID + 3)
            assert (status.stats.published, status.stats.clients) == (10, 1)
            assert status.stats.log_used == server.stats().log_used
            assert info == server.clients()[0]
            assert info.command == server.clients()[0].command
            assert info.command in ("", Path("/proc/self/comm").read_text().strip())


def test_a_monitor_gets_neither_messages_nor_the_log_whatever_it_wants(address: str) -> None:
    everything = reference.FRAMES | reference.LOG | reference.MONITOR
    with Server(address) as server, raw_monitor(address, everything) as sock:
        server.publish(b"not for monitors")
        sock.send(ASK)
        _, number, body = read_answer(sock)
        assert (number, json.loads(body)["clients"]) == (7, [])


def test_the_page_names_all_that_a_status_has(address: str) -> None:
    with Server(address), Client(address), Monitor(address) as monitor:
        found = json.loads(monitor.status().raw)
    section = DOC.partition("## Status")[2].partition("\n## ")[0]
    lines = section.partition("`CLOCK_MONOTONIC`.")[2].split("\n* ")[1:]
    own, stats, clients = (set(re.findall(r"`(\w+)`", line.split("\n\n")[0])) for line in lines)
    assert own | {"stats", "clients"} == set(found)
    assert stats - {"stats"} == set(found["stats"])
    assert clients == set(found["clients"][0]) | {"clients"}


def test_a_status_of_many_clients_takes_many_packets(address: str) -> None:
    with Server(address) as server, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Client(address))
        server.wait_for_clients(300, DEADLINE)
        with raw_monitor(address) as sock, Monitor(address) as monitor:
            sock.send(ASK)
            flags, number, body = read_answer(sock)
            assert flags[-1] == 0
            assert set(flags[:-1]) == {1}
            assert number == 7
            assert len(json.loads(body)["clients"]) == 300
            assert len(monitor.status().clients) == 300


def test_monitors_are_no_clients(address: str) -> None:
    came: list[ClientInfo] = []
    with Server(address, max_clients=1, max_lag=1, on_connect=came.append) as server:
        with raw_monitor(address) as sock, Monitor(address) as monitor:
            for _ in range(100):
                server.publish(b"nothing for a monitor", timeout=0)
            assert (server.clients(), server.stats().clients, came) == ((), 0, [])
            assert monitor.status().monitors == 2
            with Client(address):
                server.wait_for_clients(1, DEADLINE)
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)


def test_there_are_only_so_many_monitors(address: str) -> None:
    with Server(address), ExitStack() as stack:
        monitors = [stack.enter_context(Monitor(address)) for _ in range(MOST)]
        with pytest.raises(Refused, match=f"{MOST} monitors already") as caught:
            Monitor(address)
        assert caught.value.status == Status.TOO_MANY_CLIENTS
        monitors[0].close()
        wait_until(lambda: monitors[1].status().monitors == MOST - 1)
        Monitor(address).close()


def test_a_monitor_that_does_not_read_costs_one_answer(address: str) -> None:
    with Server(address) as server, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Client(address))
        server.wait_for_clients(300, DEADLINE)
        with raw_monitor(address) as greedy, Monitor(address) as monitor:
            greedy.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:  # until the server reads no more of it
                    greedy.send(ASK)
            assert len(monitor.status().clients) == 300
            server.publish(b"still", timeout=0)
            greedy.settimeout(DEADLINE)
            for _ in range(3):
                assert len(json.loads(read_answer(greedy)[2])["clients"]) == 300


def test_answers_are_paced(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumiks._server.monitors.LEAST_PAUSE", 3600)
    with Server(address), Monitor(address) as first, Monitor(address, timeout=0.05) as second:
        first.status()
        with pytest.raises(Timeout, match=r"no status within 0\.05 s"):
            second.status()
    with pytest.raises(Closed, match="this monitor is closed"):
        second.status()


@pytest.mark.parametrize("kind", [1, 99])
def test_questions_of_any_kind_are_paced(
    address: str, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    monkeypatch.setattr("jumiks._server.monitors.LEAST_PAUSE", 3600)
    with Server(address), raw_monitor(address) as sock:
        for number in range(2):
            sock.send(HEADER.pack(kind, 0, number))
        assert HEADER.unpack_from(sock.recv(1 << 18))[2] == 0
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1 << 18)


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize(
    ("costs", "seconds", "timeout", "answered"),
    [(time.sleep, 0.5, 5.0, True), (spin, 0.3, 1.0, False)],
)
def test_an_answer_costs_what_it_takes_of_a_processor(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    costs: Callable[[float], None],
    seconds: float,
    timeout: float,
    answered: bool,
) -> None:
    """Where other programs have the processors meanwhile, the next answer does not come later."""
    status = Control._status

    def dear(self: Control) -> Iterator[str]:
        costs(seconds)
        return status(self)

    monkeypatch.setattr(Control, "_status", dear)
    with Server(address), Monitor(address) as first, Monitor(address, timeout=timeout) as second:
        first.status()
        with nullcontext() if answered else pytest.raises(Timeout, match="no status within"):
            second.status()


@pytest.mark.parametrize(
    ("took", "pause"), [(0.0, 0.02), (0.001, 0.02), (0.01, 0.19), (0.1, 1.9), (2.0, 38.0)]
)
def test_monitors_get_a_twentieth_of_the_control_thread(
    monkeypatch: pytest.MonkeyPatch, took: float, pause: float
) -> None:
    now, used = 1000.0, 7.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "thread_time", lambda: used)

    def status() -> Iterator[str]:
        nonlocal used
        used += took
        yield "{}"

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, select.epoll() as epoll:
        ours.setblocking(False)
        epoll.register(ours.fileno(), select.EPOLLIN)
        monitors = Monitors(None, epoll, status)
        monitors.add(ours, Peer.of(ours), 1 << 15)
        theirs.send(ASK)
        monitors.handle(ours.fileno(), select.EPOLLIN)
        assert read_answer(theirs)
        theirs.send(ASK)
        monitors.handle(ours.fileno(), select.EPOLLIN)
        assert monitors.deadline == pytest.approx(1000 + pause)
        now += pause - 1e-6
        monitors.expire(now)
        assert len(list(monitors._waiting())) == 1
        now += 2e-6
        monitors.expire(now)
        assert list(monitors._waiting()) == []
        assert read_answer(theirs)
        monitors.close()


def test_a_monitor_that_asks_without_end_keeps_no_other_from_an_answer(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jumiks._server.monitors.LEAST_PAUSE", 0.2)
    with Server(address), raw_monitor(address) as greedy, raw_monitor(address) as other:
        for _ in range(10):
            greedy.send(ASK)
        other.send(ASK)
        assert read_answer(other)[1] == 7
        greedy.setblocking(False)
        answers = 0
        with suppress(BlockingIOError):
            while greedy.recv(1 << 18):
                answers += 1
        assert answers < 10


def test_an_answer_that_comes_late_is_not_taken_for_another(address: str) -> None:
    with Server(address), Monitor(address) as monitor:
        assert monitor._sock is not None
        monitor._sock.send(ASK)  # number 7, which is none of its own
        assert monitor.status().address == address


def test_a_kind_that_is_not_known_is_answered_so(address: str) -> None:
    with Server(address), raw_monitor(address) as sock:
        sock.send(HEADER.pack(99, 0, 5))
        assert HEADER.unpack(sock.recv(100)) == (99, 2, 5)
        sock.send(ASK)
        assert json.loads(read_answer(sock)[2])["monitors"] == 1


@pytest.mark.parametrize("packet", [b"", b"\1\0\0\0\0\0\0"])
def test_a_packet_that_is_no_request_ends_that_monitor_alone(address: str, packet: bytes) -> None:
    with Server(address), raw_monitor(address) as sock, Monitor(address) as monitor:
        if packet:
            sock.send(packet)
        else:
            sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
        assert monitor.status().monitors == 1


def test_a_monitor_that_hangs_up_while_it_waits_is_let_go(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jumiks._server.monitors.LEAST_PAUSE", 0.2)
    with Server(address), Monitor(address) as monitor:
        with raw_monitor(address) as sock:
            monitor.status()
            sock.send(ASK)
        wait_until(lambda: monitor.status().monitors == 1)


def test_the_server_s_end_is_told(address: str) -> None:
    with Server(address), Monitor(address) as monitor:
        pass
    with Server(address) as server, Monitor(address) as monitor:
        server.close()
        with pytest.raises(ConnectionLost, match="end of stream"):
            monitor.status()


# ---- who may


def test_a_server_may_give_no_status_at_all(address: str) -> None:
    with Server(address, monitor=False) as server:
        with pytest.raises(Refused, match="it gives no status"):
            Monitor(address)
        wait_until(lambda: not server.clients())


def test_a_rule_of_its_own_says_which_users_may_look(address: str) -> None:
    asked: list[tuple[Peer, int]] = []

    def nobody(peer: Peer) -> bool:
        asked.append((peer, threading.get_ident()))
        return False

    with Server(address, monitor=nobody, allow=os.geteuid()):
        with pytest.raises(Refused, match="may not look at its status") as caught:
            Monitor(address)
        assert caught.value.status == Status.NOT_ALLOWED
        Client(address).close()
    assert [peer for peer, _ in asked] == [Peer(os.getpid(), os.geteuid(), os.getegid())]


@pytest.mark.skipif(not IS_ROOT, reason="only root can be somebody else")
def test_by_default_others_may_not_look_even_where_they_may_connect(address: str) -> None:
    def other() -> str:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgid(65533)
                os.setuid(65533)
                Client(address).close()
                Monitor(address)
            except Refused as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        with open(read, "rb") as stream:
            said = stream.read().decode()
        os.waitpid(child, 0)
        return said

    with Server(address, allow="anyone"):
        assert other() == (
            "the server refused this client: user 65533 may not look at its status: only the "
            "server's own user and root may"
        )
    with Server(address, allow="anyone", monitor="anyone"):
        assert other() == ""


def test_a_wrong_rule_is_found_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="monitor='all': the only text it takes is 'anyone'"):
        Server(address, monitor="all")  # type: ignore[arg-type]


# ---- a server that misbehaves


HELLO = reference.encode_server_hello(
    reference.ServerHello(
        (1, 0, 0), reference.FRAMES | reference.MONITOR, 1, FIRST_ID, FIRST_ID, 0, 65536, 65536
    )
)
WELCOME = reference.encode_welcome(reference.Welcome(0, reference.MONITOR, 0))


LYING = b'{"address": "@a", "pid": %s, "server_id": %s, "max_lag": 0, "on_lag": "block"}'
LYING = LYING[:-1] + b', "now": 1, "started": 0, "monitors": 1, "stats": {}, "clients": []}'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HEADER.pack(1, 0, 1) + b"\xff", "cannot be read: JSONDecodeError"),
        (HEADER.pack(1, 0, 1) + b"[]", "cannot be read: AttributeError"),
        (HEADER.pack(1, 0, 1) + b'{"stats": 1}', "cannot be read: AttributeError"),
        (HEADER.pack(1, 0, 1) + b'{"clients": 1}', "cannot be read: TypeError"),
        (HEADER.pack(1, 0, 1) + b'{"pid": null}', "cannot be read: TypeError"),
        (HEADER.pack(1, 2, 1), "does not know what a status is"),
        (HEADER.pack(1, 0, 1) + b"[" * 200_000, "cannot be read: it has too many parts"),
        # Python 3.14 goes as deep as its stack is large, and finds the end missing first.
        (
            HEADER.pack(1, 0, 1) + (b"[" + b" " * 20) * 5000,
            "cannot be read: (RecursionError|JSONDecodeError)",
        ),
        (HEADER.pack(1, 0, 1) + LYING % (b"1e999", b"0"), "cannot be read: TypeError"),
        (HEADER.pack(1, 0, 1) + LYING % (b"1", b"9" * 5000), "cannot be read: ValueError"),
        (b"short", "too short for an answer"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_protocol_error(
    address: str, answer: bytes, words: str
) -> None:
    with stranger(address, HELLO, WELCOME, answer), Monitor(address) as monitor:
        with pytest.raises(ProtocolError, match=words):
            monitor.status()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "18446744073709551616", "1e300", '"1"'])
@pytest.mark.parametrize(
    "name", ["now", "started", "pid", "max_lag", "log_size", "since", "last_ack", "lag", "uid"]
)
def test_a_figure_that_cannot_be_is_a_protocol_error(name: str, value: str) -> None:
    told = json.loads(LYING % (b"1", b"1"))
    client = {"key": 1, "pid": 1, "delivery": "shared", "command": "a"}
    told["clients"] = [client]
    where = told["stats"] if name == "log_size" else told if name in told else client
    parse_status(json.dumps(told))
    where[name] = "here"
    with pytest.raises(ProtocolError, match=f"TypeError.*{name} is"):
        parse_status(json.dumps(told).replace('"here"', value))


@pytest.mark.parametrize("lost", [["\x1b[2J", 3], [1, "\x1b[2J"], [1], [1, 2, 3], [-1, 2]])
def test_ends_of_a_gap_that_cannot_be_are_a_protocol_error(lost: list[object]) -> None:
    told = json.loads(LYING % (b"1", b"1"))
    told["clients"] = [{"delivery": "shared", "lost": [1, 2]}]
    assert parse_status(json.dumps(told)).clients[0].lost == Gap(1, 2)
    told["clients"][0]["lost"] = lost
    with pytest.raises(ProtocolError):
        parse_status(json.dumps(told))


@pytest.mark.parametrize("part", [b"[],", b"{},", b"[[[[1]]]],"])
def test_a_status_of_many_parts_takes_neither_time_nor_memory(part: bytes) -> None:
    body = LYING[:-1] % (b"1", b"1") + b', "more": [' + part * (1 << 18) + b"1]}"
    with pytest.raises(ProtocolError, match="too many parts"):
        parse_status(body.decode())


def test_a_status_of_a_great_many_clients_with_names_of_brackets_can_be_read(address: str) -> None:
    with Server(address) as server, Client(address), Monitor(address) as monitor:
        server.wait_for_clients(1, DEADLINE)
        told = json.loads(monitor.status().raw)
    told["clients"] = 2000 * [told["clients"][0] | {"command": 15 * "[", "lost": [1, 2]}]
    assert len(parse_status(json.dumps(told)).clients) == 2000


def test_an_answer_that_is_too_long_is_a_protocol_error(address: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.send(HELLO)
        connection.recv(100)
        connection.send(WELCOME)
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.send(HEADER.pack(1, 1, 1) + bytes(100_000))

    with listening(address) as listener, one_connection(listener, serve):
        with Monitor(address) as monitor, pytest.raises(ProtocolError, match="longer than 8388608"):
            monitor.status()


def test_names_in_a_status_come_without_control_codes(address: str) -> None:
    client = {"key": 1, "pid": 1, "delivery": "\x1b[31m", "command": "\x1b]0;title\x07"}
    told = json.loads(LYING % (b"1", b"1"))
    told |= {"address": "@\x1b[2J", "on_lag": "\r\n", "clients": [client]}
    answer = HEADER.pack(1, 0, 1) + json.dumps(told).encode()
    with stranger(address, HELLO, WELCOME, answer), Monitor(address) as monitor:
        status = monitor.status()
    (info,) = status.clients
    assert (status.address, status.on_lag) == ("@?[2J", "??")
    assert (info.delivery, info.command) == ("?[31m", "?]0;title?")


@pytest.mark.parametrize("number", [1, 77], ids=["in parts", "to no question"])
def test_an_answer_without_end_is_given_up_in_time(address: str, number: int) -> None:
    part = HEADER.pack(1, 1, number) + b" "

    def trickle(connection: socket.socket) -> None:
        connection.send(HELLO)
        connection.recv(100)
        connection.send(WELCOME)
        connection.settimeout(0.02)
        while True:
            connection.send(part)
            with suppress(TimeoutError):
                if len(connection.recv(100)) == 0:
                    return

    with listening(address) as listener, one_connection(listener, trickle):
        with Monitor(address, timeout=0.3) as monitor:
            with pytest.raises(Timeout, match=r"no status within 0\.3 s"):
                monitor.status()


def test_a_monitors_time_may_be_longer_than_a_clock_can_count(address: str) -> None:
    with Server(address), Monitor(address, timeout=1e300) as monitor:
        assert monitor.status().monitors == 1


def test_a_plain_server_has_no_status(address: str) -> None:
    with stranger(address, struct.pack("<HHH", 1, 0, 0)):
        with pytest.raises(Refused, match="it gives no status"):
            Monitor(address)


def test_a_later_version_may_say_more_and_an_older_one_less(address: str) -> None:
    with Server(address), Client(address), Monitor(address) as monitor:
        found = json.loads(monitor.status().raw)
    found["news"] = found["stats"]["news"] = found["clients"][0]["news"] = 1
    del found["stats"]["waits"], found["clients"][0]["packets"]
    status = parse_status(json.dumps(found))
    assert (status.stats.waits, status.clients[0].packets) == (0, 0)
    found["clients"][0]["packets"] = "many"
    with pytest.raises(ProtocolError, match="packets is 'many'"):
        parse_status(json.dumps(found))


def names_in(
    found: dict[str, object] | list[object], path: tuple[str | int, ...] = ()
) -> Iterator[tuple[str | int, ...]]:
    """Where each name of a status is."""
    for name, value in found.items() if isinstance(found, dict) else enumerate(found):
        if isinstance(name, str):
            yield (*path, name)
        if isinstance(value, dict | list):
            yield from names_in(value, (*path, name))


def test_each_name_that_is_not_there_is_taken_for_0(address: str) -> None:
    with Server(address, max_lag=9), Client(address), Monitor(address) as monitor:
        told = monitor.status()
    whole = json.loads(told.raw)
    for *outer, last in names_in(whole):
        found = json.loads(told.raw)
        holder = found
        for step in outer:
            holder = holder[step]
        del holder[last]
        lines = report(Sample(parse_status(json.dumps(found)), told))
        assert len(lines) == (4 if last == "clients" and not outer else 7), last
    assert parse_status("{}") == ServerStatus(
        address="",
        pid=0,
        server_id=0,
        max_lag=0,
        on_lag="",
        now=0.0,
        started=0.0,
        monitors=0,
        stats=ServerStats(**dict.fromkeys((each.name for each in fields(ServerStats)), 0)),
        clients=(),
        raw="{}",
    )
    (bare,) = parse_status('{"clients": [{}]}').clients
    assert (bare.delivery, bare.command, bare.pid, bare.lag, bare.last_ack) == ("", "", 0, 0, None)
    assert share(bare, 0, 0) == 0.0


def test_jumiks_status_shows_a_server_that_tells_nothing(address: str) -> None:
    answers = (HEADER.pack(1, 0, number) + b'{"clients": [{}]}' for number in (1, 2))
    with stranger(address, HELLO, WELCOME, *answers):
        done = subprocess.run(
            [sys.executable, "-m", "jumiks.cli", "status", "--interval", "0.01", address],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
    assert "log     0 messages; 0 bytes of 0 used" in done.stdout
    assert done.stderr == ""


# ---- it slows nobody


def test_publishing_goes_on_while_a_monitor_asks_without_end(address: str) -> None:
    with Server(address, log_size=SMALL_LOG) as server, Monitor(address) as monitor:
        over = threading.Event()

        def ask() -> int:
            asked = 0
            while not over.is_set():
                monitor.status()
                asked += 1
            return asked

        task = Task(ask)
        while monitor._asked < 5:
            server.publish(b"none of these waits", timeout=0)
        over.set()
        assert task.result() >= 4
        assert server.stats().waits == 0


def test_the_capability_is_offered_only_if_somebody_may_look(address: str) -> None:
    for rule, offered in ((None, True), (False, False)):
        with Server(address, monitor=rule):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(sockaddr(address))
                hello = reference.decode_server_hello(sock.recv(4096))
        assert bool(hello.capabilities & Capability.MONITOR) is offered
