# SPDX-License-Identifier: Apache-2.0
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.base import IS_ROOT, descriptors, wait_until
from support.servers import Server

from jumiks import Client, ClientInfo
from jumiks._peer import Peer, peer_command
from jumiks._server import access
from jumiks._server.access import Group

SOMEBODY = 4321
PEER = Peer(pid=77, uid=SOMEBODY, gid=SOMEBODY)


def seqpacket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_the_kernel_names_the_process_at_the_other_end() -> None:
    ours, theirs = seqpacket_pair()
    with ours, theirs:
        assert Peer.of(ours) == Peer(os.getpid(), os.geteuid(), os.getegid())


def test_the_peer_is_the_process_that_connected(address: str) -> None:
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "s.connect('\\0' + sys.argv[1]); sys.stdin.read()"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("\0" + address[1:])
        listener.listen()
        command = [sys.executable, "-c", script, address[1:]]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            connection, _ = listener.accept()
            with connection:
                assert Peer.of(connection).pid == child.pid
            child.communicate()


@pytest.mark.parametrize(
    ("uid", "abstract", "allowed"),
    [
        (os.geteuid(), True, True),
        (0, True, True),
        (SOMEBODY, True, False),
        (SOMEBODY, False, True),
    ],
)
def test_by_default_only_an_abstract_address_looks_at_the_user(
    uid: int, abstract: bool, allowed: bool
) -> None:
    reason = access.refusal(access.check_allow("allow", None), Peer(1, uid, 1), abstract)
    assert (reason is None) == allowed


def test_the_default_tells_a_refused_peer_which_users_may_connect() -> None:
    assert access.refusal(None, PEER, True) == (
        "user 4321 may not connect: only the server's own user and root may"
    )


@pytest.mark.parametrize("abstract", [True, False])
@pytest.mark.parametrize(
    ("allow", "allowed"),
    [
        ("anyone", True),
        (SOMEBODY, True),
        ({SOMEBODY, 0}, True),
        ([1, SOMEBODY], True),
        (0, False),
        ({0, 1}, False),
        (lambda peer: peer == PEER, True),
        (lambda peer: False, False),
    ],
)
def test_a_rule_decides_for_every_kind_of_address(
    allow: access.Allow, allowed: bool, abstract: bool
) -> None:
    reason = access.refusal(access.check_allow("allow", allow), PEER, abstract)
    assert (reason is None) == allowed
    assert allowed or "4321" in str(reason)


def test_an_iterator_of_users_is_read_once_and_kept() -> None:
    rule = access.check_allow("allow", iter([1, SOMEBODY]))
    assert [access.refusal(rule, PEER, True) for _ in range(2)] == [None, None]


def test_root_is_not_above_a_list_of_users() -> None:
    assert access.refusal(access.check_allow("allow", {SOMEBODY}), Peer(1, 0, 0), True) is not None


def test_a_function_that_raises_refuses_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken(peer: Peer) -> bool:
        raise RuntimeError("out of order")

    with caplog.at_level(logging.ERROR, "jumiks"):
        assert access.refusal(access.check_allow("allow", broken), PEER, False) is not None
    (record,) = caplog.records
    assert "out of order" in caplog.text
    assert record.name == "jumiks"


@pytest.mark.parametrize("answer", [True, False])
def test_a_function_that_decides_is_not_logged(
    answer: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "jumiks"):
        reason = access.refusal(access.check_allow("allow", lambda peer: answer), PEER, False)
    assert (reason is None) == answer
    assert caplog.records == []


@pytest.mark.parametrize("answer", [None, 1, "yes", object()])
def test_a_function_that_returns_no_bool_refuses_and_is_logged(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "jumiks"):
        assert (
            access.refusal(access.check_allow("allow", lambda peer: answer), PEER, False)
            is not None
        )
    assert "not True or False" in caplog.text


@pytest.mark.parametrize(
    ("allow", "words"),
    [
        ("root", "'anyone'"),
        (-1, "no user id"),
        (2**32 - 1, "no user id"),
        ([], "nobody could connect"),
        ([0, 2**40], "no user id"),
    ],
)
def test_a_wrong_value_is_found_at_once(allow: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        access.check_allow("allow", allow)


async def too_late(peer: Peer) -> bool:
    return True


@pytest.mark.parametrize(
    ("allow", "words"),
    [
        (True, "a user id, a Group, several of them or a function, not True"),
        (1.5, "not 1.5"),
        (b"anyone", "not b'anyone'"),
        (["root"], "user ids as numbers"),
        ([True], "user ids as numbers"),
        (too_late, "plain function"),
    ],
)
def test_a_wrong_type_is_found_at_once(allow: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        access.check_allow("allow", allow)


# ---- groups


def test_a_group_is_matched_by_the_effective_and_the_supplementary_ones() -> None:
    rule = access.check_allow("allow", [SOMEBODY + 1, Group(50)])
    assert access.refusal(rule, PEER, abstract=True) == f"user {SOMEBODY} may not connect"
    for member in (
        Peer(1, 2, 50),
        Peer(1, 2, 3, frozenset({49, 50})),
        Peer(1, SOMEBODY + 1, 3),
    ):
        assert access.refusal(rule, member, abstract=True) is None


def test_the_kernel_tells_the_groups_of_a_peer() -> None:
    ours, theirs = seqpacket_pair()
    with ours, theirs:
        assert Peer.of(ours).groups == frozenset(os.getgroups())


@pytest.mark.skipif(not IS_ROOT, reason="only root can have other groups")
@pytest.mark.parametrize("count", [1, 256, 257])
def test_a_peer_may_be_in_many_groups(address: str, count: int) -> None:
    if count > os.sysconf("SC_NGROUPS_MAX"):
        pytest.skip("this C library lets Python have fewer groups")  # musl: 32
    script = (
        "import os, sys, jumiks; os.setgroups(range(70000, 70000 + int(sys.argv[2])));"
        "os.setgid(60000); jumiks.Client(sys.argv[1]).close()"
    )

    def connect() -> str:
        command = [sys.executable, "-c", script, address, str(count)]
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False).stderr

    with Server(address, allow=Group(70000 + count - 1)):
        assert ("may not connect" in connect()) is (count > 256)
    with Server(address, allow=Group(70000 + count)):
        assert "may not connect" in connect()
    with Server(address, allow=Group(60000)):
        assert connect() == ""


def can_tell_programs() -> bool:
    ours, theirs = seqpacket_pair()
    with ours, theirs:
        return peer_command(ours, os.getpid()) != ""


knows_pidfd = pytest.mark.skipif(
    not can_tell_programs(), reason="this kernel has no SO_PEERPIDFD (Linux 6.5)"
)

CONNECT = """
import ctypes, socket, sys
name = sys.argv[2].encode().decode("unicode_escape").encode("latin-1")
if name:
    ctypes.CDLL(None).prctl(15, name)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect("\\0" + sys.argv[1])
sys.stdin.read()
"""


@contextmanager
def connected(
    address: str, name: str = ""
) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """A connection from another process, which may give itself a name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("\0" + address[1:])
        listener.listen()
        command = [sys.executable, "-c", CONNECT, address[1:], name]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            connection, _ = listener.accept()
            with connection:
                yield connection, child


@knows_pidfd
def test_the_peers_program_is_told_and_no_descriptor_is_kept() -> None:
    ours, theirs = seqpacket_pair()
    with ours, theirs:
        before = descriptors()
        assert peer_command(ours, os.getpid()) == Path("/proc/self/comm").read_text().strip()
        assert descriptors() == before


@knows_pidfd
def test_a_clients_program_is_told_wherever_the_client_is(address: str) -> None:
    infos: list[ClientInfo] = []
    with Server(
        address, on_connect=infos.append, on_disconnect=lambda info, _: infos.append(info)
    ) as server:
        with Client(address):
            wait_until(lambda: infos)
            infos += server.clients()
        wait_until(lambda: len(infos) == 3)
    name = Path("/proc/self/comm").read_text().strip()
    assert [info.command for info in infos] == [name] * 3


@knows_pidfd
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (r"\x1b[31mred\x07", "?[31mred?"),
        (r"two\nlines\n", "two?lines"),
        (r"\xff\xfe", "\ufffd\ufffd"),
        (r"((( )", "((( )"),
    ],
)
def test_a_program_that_names_itself_cannot_write_to_the_readers_terminal(
    address: str, name: str, shown: str
) -> None:
    with connected(address, name) as (connection, child):
        assert peer_command(connection, child.pid) == shown


def test_the_program_of_a_dead_peer_is_not_told(address: str) -> None:
    with connected(address) as (connection, child):
        child.communicate()
        assert peer_command(connection, child.pid) == ""


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def may_choose_pids() -> bool:
    # Its mode may let everybody write: the kernel looks at capabilities.
    try:
        LAST_PID.write_text(LAST_PID.read_text())
    except OSError:
        return False
    return True


@pytest.mark.skipif(not may_choose_pids(), reason="only root can choose a process id")
def test_another_process_of_the_same_id_is_not_taken_for_the_peer(address: str) -> None:
    with connected(address) as (connection, child):
        child.communicate()
        for _ in range(50):
            LAST_PID.write_text(str(child.pid - 1))
            with subprocess.Popen(["sleep", "60"]) as other:
                try:
                    if other.pid == child.pid:
                        wait_until(lambda: name_of(child.pid) == "sleep\n")
                        assert peer_command(connection, child.pid) == ""
                        return
                finally:
                    other.kill()
        pytest.skip("the process id was never given out again")


def test_a_group_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="there is no group named 'no such group'"):
        Group("no such group")
    with pytest.raises(ValueError, match="group=-1: it is no group id"):
        Group(-1)
    with pytest.raises(TypeError, match="group is the name or number of a group, not"):
        Group(1.5)  # type: ignore[arg-type]
    assert access.check_allow("allow", Group("root")) == access.Some(frozenset(), frozenset({0}))
