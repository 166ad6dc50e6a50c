# SPDX-License-Identifier: Apache-2.0
"""What a client calls itself: where it is shown, and what a hostile one can do with it."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from support.base import DEADLINE, DELIVERIES, wait_until
from support.reference import Reply, encode_reply
from support.servers import Server
from support.wire import dial

from jumiks import Client, ClientInfo, Delivery, Lagged, Monitor
from jumiks._client.link import program_name
from jumiks._metrics import metrics
from jumiks._wire.handshake import (
    ClientHandshake,
    ServerHandshake,
    ServerHello,
    Status,
    decode_name,
    encode_name,
)
from jumiks._wire.status import parse_status


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_the_server_shows_what_a_client_calls_itself(
    address: str, delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumiks")
    seen: list[ClientInfo] = []
    with Server(address, on_connect=seen.append) as server:
        with Client(address, name="größe 1", delivery=delivery), Monitor(address) as monitor:
            wait_until(lambda: seen)
            (info,) = server.clients()
            assert info.name == info.peer.name == seen[0].name == "größe 1"
            assert "('größe 1', process " in str(info)
            assert [each.name for each in monitor.status().clients] == ["größe 1"]
            of_clients = [each for each in metrics(server) if "client_" in each.name]
            assert of_clients
            for metric in of_clients:
                assert metric.labels[-1] == "name"
                assert metric.samples[0][0][-1] == "größe 1"
        wait_until(lambda: not server.clients())
    assert sum("'größe 1'" in record.getMessage() for record in caplog.records) == 2


def test_by_default_it_is_the_program_s_name(address: str, tmp_path: Path) -> None:
    text = "import sys, jumiks\nwith jumiks.Client(sys.argv[1]) as client: client.receive(60)\n"
    (tmp_path / "strategy.py").write_text(text)
    for arguments, name in (
        (["strategy.py"], "strategy.py"),
        (["-m", "strategy"], "strategy"),
        (["-c", text], "python"),
    ):
        with Server(address) as server:
            command = [sys.executable, *arguments, address]
            with subprocess.Popen(command, cwd=tmp_path) as process:
                server.wait_for_clients(1, DEADLINE)
                assert server.clients()[0].name == name
                server.publish(b"end")
                assert process.wait(DEADLINE) == 0


def test_who_gives_no_name_is_called_as_its_program(address: str) -> None:
    with Server(address) as server, Client(address, name=""):
        (info,) = server.clients()
        assert (info.peer.name, info.name) == ("", info.command)
    assert program_name()


def test_a_client_that_was_cut_knows_which_it_was(address: str) -> None:
    with Server(address, max_lag=1, patience=0) as server, Client(address, name="slow") as client:
        server.publish_many([b"a", b"b"])
        client.receive(DEADLINE)
        with pytest.raises(Lagged, match=r"cut this client \(slow\), which had been") as caught:
            client.receive(DEADLINE)
        assert caught.value.name == "slow"


def reply(name: bytes) -> bytes:
    return encode_reply(Reply(capabilities=1)) + name


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"", ""),
        (b"feed", "feed"),
        (b"feed\0and what a later version says", "feed"),
        (b"x" * 4000, "x" * 64),
        ("ä".encode() * 40, "ä" * 32),
        (b"\x1b[2J\nfeed\r\x07\x9b", "?[2J?feed??" + "\N{REPLACEMENT CHARACTER}"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}feed\N{ZERO WIDTH JOINER}".encode(), "?feed?"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"   ", ""),
    ],
)
def test_a_name_is_bounded_and_fit_for_a_terminal(sent: bytes, name: str) -> None:
    handshake = ServerHandshake(ServerHello(capabilities=1))
    handshake.hello()
    assert handshake.receive(reply(sent)) is Status.ACCEPTED
    assert handshake.name == decode_name(reply(sent)) == name


def test_a_name_of_any_length_is_sent_as_far_as_it_goes() -> None:
    assert encode_name("ä" * 100) == "ä".encode() * 32
    assert encode_name("x" + "ä" * 100) == b"x" + "ä".encode() * 31
    assert encode_name("a\nb\udcff") == b"a?b?"


def test_a_plain_server_gets_no_name() -> None:
    client = ClientHandshake(name="feed")
    assert client.receive(ServerHello(extended=False).encode()) == b"\1\0\0\0\0\0"


def test_a_hostile_name_reaches_nobody_s_terminal(address: str) -> None:
    with Server(address) as server, dial(address) as sock:
        sock.recv(100)
        sock.send(reply(b"\x1b]0;owned\x07" + b"\n" * 4000))
        server.wait_for_clients(1, DEADLINE)
        with Monitor(address) as monitor:
            (info,) = monitor.status().clients
            assert info.name == "?]0;owned?" + "?" * 54
            assert info.name.isprintable()


def test_a_hostile_server_s_names_are_bounded_too() -> None:
    text = '{"clients": [{"name": "\\u001b[2J' + "x" * 5000 + '", "command": "\\u0007"}]}'
    (info,) = parse_status(text).clients
    assert info.name == "?[2J" + "x" * 60
    assert info.command == "?"
