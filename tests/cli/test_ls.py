# SPDX-License-Identifier: Apache-2.0
"""The command ls: which servers it finds, and what a hostile listener can do to it."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.api import Task, sockaddr
from support.base import DEADLINE, ROOT, wait_until
from support.command import command
from support.servers import Server

from jumiks import Client
from jumiks.cli import ls, main


@pytest.fixture(autouse=True)
def only_ours(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it see no server of another test."""

    def listening() -> Iterator[ls.Place]:
        return (each for each in found() if address in each.address)

    found = ls.listening
    monkeypatch.setattr(ls, "listening", listening)


def listed(capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    assert main(["ls", "--interval", "0.01", "--timeout", "0.3", *more]) == 0
    return capsys.readouterr().out.splitlines()


@contextmanager
def listener(address: str, kind: int = socket.SOCK_SEQPACKET) -> Iterator[socket.socket]:
    """Somebody else's, that says nothing."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(sockaddr(address))
        sock.listen()
        yield sock


def test_a_server_is_listed_with_its_clients_and_the_worst_of_them(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(address, max_lag=10) as server, Client(address) as client, Client(address):
        server.publish_many([b"message"] * 5)
        client.receive(DEADLINE)
        head, row = listed(capsys)
        (facts,) = json.loads(listed(capsys, "--json")[0])
    assert head.split() == list(ls.HEAD)
    found = dict(zip(head.split(), row.split(), strict=True))
    assert (found["ADDRESS"], found["PID"]) == (address, str(os.getpid()))
    assert (found["CLIENTS"], found["LAG"], found["LIMIT"]) == ("2", "5", "50%")
    assert found["POLICY"] == "disconnect"
    assert (facts["address"], facts["pid"], facts["clients"]) == (address, os.getpid(), 2)
    assert (facts["worst_lag"], facts["worst_share"], facts["max_lag"]) == (5, 0.5, 10)
    page = " ".join((ROOT / "docs/tour.md").read_text("utf-8").split())
    listing = page.partition("`jumiks ls --json` is a list of objects with ")[2].partition(".")[0]
    assert set(facts) | {"problem"} == set(re.findall(r"`(\w+)`", listing))


def test_who_may_not_look_is_told_so(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(address, monitor=False):
        _, row = listed(capsys)
        (facts,) = json.loads(listed(capsys, "--json")[0])
    assert row.split()[:2] == [address, "-"]
    assert "status" in row
    assert facts["problem"]


def test_none_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--interval", "0.01"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "jumiks: no server was found that this user may see\n"


def test_silent_listeners_take_a_bounded_time_together(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        for number in range(32):
            stack.enter_context(listener(f"{address}-{number:02}"))
        begin = time.monotonic()
        _, *rows = listed(capsys)
        assert time.monotonic() - begin < 32 * 0.3
    assert len(rows) == 32
    assert all(row.endswith("no answer within 0.3 s") for row in rows)


def test_what_is_no_server_of_ours_is_left_out(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with listener(f"{address}-stream", socket.SOCK_STREAM), listener(f"{address}-other") as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.send(b"220 mail.example ESMTP")

        task = Task(answer)
        with Server(f"{address}-ours"):
            _, *rows = listed(capsys)
        task.result()
    assert [row.split()[0] for row in rows] == [f"{address}-ours"]


def test_a_name_cannot_write_to_the_terminal(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(f"{address}\x1b[2J\x07 ä" + "x" * 30):
        _, row = listed(capsys)
        (line,) = listed(capsys, "--json")
    assert row.startswith(f"{address}?[2J? äx")
    assert row.isprintable()
    assert line.isascii()
    assert json.loads(line)[0]["address"].startswith(f"{address}\x1b[2J")


def test_a_terminal_gets_no_longer_lines(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ls, "terminal_width", lambda: 40)
    with Server(address):
        assert max(map(len, listed(capsys))) <= 40


def test_the_kernel_s_list_is_read_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    head = "Num       RefCount Protocol Flags    Type St Inode Path\n"
    lines = [
        "0000000000000000: 00000002 00000000 00010000 0005 01 68753792 @ticks",
        "0000000000000000: 00000002 00000000 00010000 0005 01    12 /run/a b",
        "0000000000000000: 00000002 00000000 00010000 0005 01 68753793 @ticks",
        "0000000000000000: 00000002 00000000 00010000 0001 01 68753794 @stream",
        "0000000000000000: 00000002 00000000 00000000 0005 03 68753795 @connected",
        "0000000000000000: 00000002 00000000 00010000 0005 01 68753796 relative",
        "0000000000000000: 00000002 00000000 00010000 0005 01 68753797",
        "0000000000000000: 00000002 00000000 00010000 0005 01 68753798 @two",
        "0000000000000000: 00000002 00000000 00010000 0005 01 none ./forged",
        "lines",
    ]
    file = tmp_path / "unix"
    file.write_text(head + "\n".join(lines) + "\n")
    monkeypatch.setattr(ls, "SOCKETS", str(file))
    monkeypatch.setattr(ls, "sockets_of", lambda _: set())
    absolute = [ls.Place(each, each) for each in ("@ticks", "/run/a b", "@two")]
    relative = [ls.Place(each, "", ls.UNSEEN) for each in ("./forged", "relative")]
    assert list(ls.listening()) == [*absolute, *relative]


@pytest.mark.parametrize("size", [1, 80])
def test_servers_at_relative_paths_are_listed_with_their_own_directories(
    address: str, path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    folders = [path.parent / f"{address}{name * size}" for name in "ab"]
    with ExitStack() as stack:
        for folder in folders:
            folder.mkdir()
            stack.enter_context(command("serve", "./feed", "--max-lag", 7, cwd=folder))
        wait_until(lambda: all((folder / "feed").exists() for folder in folders))
        wait_until(lambda: len(listed(capsys)) == 3)
        _, *rows = listed(capsys)
        facts = json.loads(listed(capsys, "--json")[0])
    where = [str(folder / "feed") for folder in folders]
    assert [row.split()[0] for row in rows] == where
    assert [each["address"] for each in facts] == where
    assert [each["max_lag"] for each in facts] == [7, 7]
    assert len({each["pid"] for each in facts}) == 2


def test_a_relative_path_that_cannot_be_found_has_a_row_that_says_so(
    address: str,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(path.parent)
    with Server(f"./{address}"):
        _, row = listed(capsys)
        assert row.split()[0] == str(path.parent / address)
        monkeypatch.chdir("/")
        _, row = listed(capsys)
        assert row.split()[:2] == [f"./{address}", "-"]
        assert row.endswith(
            f"not there in the working directory that its process {os.getpid()} has"
        )
        monkeypatch.setattr(ls, "sockets_of", lambda _: set())
        (facts,) = json.loads(listed(capsys, "--json")[0])
        monkeypatch.chdir(path.parent)
    assert facts == {
        "address": f"./{address}",
        "problem": "a relative path, of a process whose working directory cannot be seen from here",
    }


def test_a_child_that_has_the_socket_too_may_be_elsewhere(
    address: str,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(path.parent)
    with listener(f"./{address}") as sock:
        child = ["sleep", "60"]
        with subprocess.Popen(child, cwd="/", pass_fds=[sock.fileno()], close_fds=True) as other:
            try:
                _, row = listed(capsys)
            finally:
                other.kill()
    assert row.split()[0] == str(path.parent / address)
    assert row.endswith("no answer within 0.3 s")


def test_a_pipe_gets_whole_addresses_and_reasons(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = f"{address}-" + "x" * (90 - len(address))
    with Server(long):
        _, row = listed(capsys)
        assert row.split()[0] == long
        monkeypatch.setattr(ls, "terminal_width", lambda: 100)
        _, row = listed(capsys)
        assert row.split()[0] == f"{long[:59]}…"


def test_where_the_kernel_lists_none_it_says_what_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ls, "SOCKETS", str(tmp_path / "none"))
    assert main(["ls"]) == 1
    assert "No such file or directory: the kernel lists the servers there; mount /proc" in (
        capsys.readouterr().err
    )


def test_no_more_than_some_are_asked(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ls, "MOST", 1)
    with Server(f"{address}-a"), Server(f"{address}-b"):
        wait_until(lambda: len(list(ls.listening())) == 2)
        assert main(["ls", "--interval", "0.01"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err == "jumiks: not asked, as there are more than 1: 1 socket\n"
