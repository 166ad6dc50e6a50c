# SPDX-License-Identifier: Apache-2.0
"""Peers that may not connect, or whose user nobody knows: what they are told, and what not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support import reference
from support.base import IS_ROOT, wait_until
from support.reference import Reply
from support.servers import Server
from support.wire import FIRST_ID, HELLO, LARGE, REPLY, dial, packets_of

from jumiks import Client, Group, Monitor, Peer, Refused, _peer
from jumiks._peer import OVERFLOW_GID, OVERFLOW_UID
from jumiks._server import access
from jumiks._server.access import Quota, Some
from jumiks._wire.handshake import Status

only_root = pytest.mark.skipif(not IS_ROOT, reason="only root can be several users")

STRANGER = 4321
UNMAPPED = Peer(0, OVERFLOW_UID, OVERFLOW_GID, frozenset((OVERFLOW_GID,)))


@contextmanager
def being(uid: int) -> Iterator[None]:
    """As another user: what counts is who calls `connect`, and who makes the server."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


# ---- the user that stands for all that are not mapped ----


def test_the_overflow_ids_are_the_kernels() -> None:
    with open("/proc/sys/kernel/overflowuid", encoding="ascii") as file:
        assert int(file.read()) == OVERFLOW_UID
    with open("/proc/sys/kernel/overflowgid", encoding="ascii") as file:
        assert int(file.read()) == OVERFLOW_GID
    assert _peer._overflow("nothing") == 65534


def test_an_unmapped_user_is_not_the_servers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OVERFLOW_UID)
    reason = access.refusal(None, UNMAPPED, abstract=True)
    assert reason is not None
    assert f"user {OVERFLOW_UID} may not connect" in reason
    assert "does not map" in reason
    assert "run the client as another user" in reason
    assert access.refusal(None, Peer(1, 0, 0), abstract=True) is None
    assert access.refusal(None, UNMAPPED, abstract=False) is None  # the file's permissions decided
    assert not Quota.share(8).binds(0)
    assert Quota.share(8).binds(OVERFLOW_UID)
    assert Quota.share(8).refusal(OVERFLOW_UID, 4) is not None


def test_no_list_of_users_and_groups_means_an_unmapped_one() -> None:
    users = Some(frozenset((OVERFLOW_UID,)), frozenset())
    reason = access.refusal(users, UNMAPPED, abstract=True)
    assert reason is not None
    assert "does not map" in reason
    groups = Some(frozenset(), frozenset((OVERFLOW_GID,)))
    assert access.refusal(groups, UNMAPPED, abstract=True) is not None
    assert access.refusal(groups, Peer(1, STRANGER, OVERFLOW_GID), abstract=True) is not None
    for text, allow in (("user", OVERFLOW_UID), ("group", [1000, Group(OVERFLOW_GID)])):
        words = f"{text} 6.* identifies none of them: name another {text}"
        with pytest.raises(ValueError, match=words):
            access.check_allow("allow", allow)


def test_anyone_and_a_function_may_let_an_unmapped_user_in() -> None:
    assert access.refusal("anyone", UNMAPPED, abstract=True) is None
    assert access.refusal(lambda peer: peer.uid == OVERFLOW_UID, UNMAPPED, abstract=True) is None


@only_root
@pytest.mark.parametrize("own", [False, True], ids=["a-server-of-root", "a-server-of-nobody"])
def test_a_peer_that_comes_as_nobody_is_let_in_by_no_default(address: str, own: bool) -> None:
    with being(OVERFLOW_UID if own else 0), Server(address) as server:
        with being(OVERFLOW_UID):
            with pytest.raises(Refused, match="does not map") as caught:
                Client(address)
            assert caught.value.status == Status.NOT_ALLOWED
            with pytest.raises(Refused, match=r"may not look at its status.*does not map"):
                Monitor(address)
        with being(0), Client(address), Monitor(address) as monitor:
            assert monitor.status().stats.clients == 1
        wait_until(lambda: not server.clients())


# ---- what a stranger is told ----


class Asked:
    """A rule that lets nobody in, or everybody, and counts."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer
        self.count = 0

    def __call__(self, peer: Peer) -> bool:
        self.count += 1
        return self.answer


def test_a_refused_peer_learns_why_and_nothing_else(address: str) -> None:
    asked = Asked(False)
    with Server(address, allow=asked, max_lag=77, monitor=False) as server:
        for _ in range(5):
            server.publish(b"x")
        with dial(address) as sock:
            hello = reference.decode_server_hello(sock.recv(LARGE))
            assert asked.count == 1
            figures = (hello.server_id, hello.oldest_id, hello.next_id, hello.max_lag)
            assert figures == (0, 0, 0, 0)
            assert (hello.max_packet, hello.max_message) == (0, 0)
            sock.send(REPLY)
            welcome = reference.decode_welcome(sock.recv(LARGE))
            assert welcome.status == Status.NOT_ALLOWED
            assert f"user {os.geteuid()}" in welcome.text
            assert list(packets_of(sock)) == []
        assert asked.count == 1


@pytest.mark.parametrize(
    "reply",
    [
        reference.encode_reply(Reply(version=(2, 0, 0), capabilities=1)),
        reference.encode_reply(Reply(capabilities=1, start=2)),
        reference.encode_reply(Reply(capabilities=1, start=FIRST_ID + 1000)),
        reference.encode_reply(Reply(capabilities=1, max_packet=1)),
        reference.encode_reply(Reply(capabilities=7)),
    ],
    ids=["version", "start", "far-start", "packet", "monitor"],
)
def test_whatever_a_refused_peer_says_it_is_refused(address: str, reply: bytes) -> None:
    with Server(address, allow=lambda _: False, monitor=lambda _: False), dial(address) as sock:
        sock.recv(LARGE)
        sock.send(reply)
        welcome = reference.decode_welcome(sock.recv(LARGE))
        assert welcome.status == Status.NOT_ALLOWED
        assert str(FIRST_ID) not in welcome.text


def test_a_refused_plain_peer_just_sees_the_end(address: str) -> None:
    with Server(address, allow=lambda _: False), dial(address) as sock:
        sock.recv(LARGE)
        sock.send(HELLO)
        assert list(packets_of(sock)) == []


def test_rules_are_asked_once_a_connection(address: str) -> None:
    clients, monitors = Asked(True), Asked(True)
    with Server(address, allow=clients, monitor=monitors):
        with Client(address):
            assert (clients.count, monitors.count) == (1, 0)
        with Monitor(address) as monitor:
            monitor.status()
            assert (clients.count, monitors.count) == (2, 1)


def test_a_peer_that_may_only_look_is_told_of_the_server_and_may_look(address: str) -> None:
    clients, monitors = Asked(False), Asked(True)
    with Server(address, allow=clients, monitor=monitors) as server:
        with Monitor(address) as monitor:
            assert monitor.status().server_id == server._id
        assert (clients.count, monitors.count) == (1, 1)
        with dial(address) as sock:
            assert reference.decode_server_hello(sock.recv(LARGE)).server_id == server._id
        with pytest.raises(Refused, match="may not connect"):
            Client(address)


@only_root
def test_by_default_another_user_learns_nothing_of_an_abstract_server(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server is in this process, whose user changes for a moment; its own is root.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with Server(address), being(STRANGER), dial(address) as sock:
        assert reference.decode_server_hello(sock.recv(LARGE)).server_id == 0
        sock.send(REPLY)
        assert "only the server's own user" in reference.decode_welcome(sock.recv(LARGE)).text
