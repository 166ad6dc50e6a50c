# SPDX-License-Identifier: Apache-2.0
"""One user's connections never keep another user's out."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from support import reference
from support.base import DEADLINE, IS_ROOT, wait_until
from support.servers import Server
from support.wire import REPLY, Harassed, dial, packets_of, raw_client

from jumiks import Client, Monitor, Peer, Refused
from jumiks._server.access import Quota
from jumiks._server.monitors import MOST
from jumiks._server.newcomers import MAX_JOINING
from jumiks._wire.handshake import Status

only_root = pytest.mark.skipif(not IS_ROOT, reason="only root can be several users")

ONE, OTHER = 4321, 4322


@contextmanager
def being(uid: int) -> Iterator[None]:
    """Connect as another user: what counts is who calls `connect`."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def is_open(sock: socket.socket) -> bool:
    """Whether a connection that nothing more is said on has not been closed."""
    sock.setblocking(False)
    with suppress(BlockingIOError):
        return sock.recv(1, socket.MSG_PEEK) != b""
    return True


def test_a_share_is_half_and_at_least_one() -> None:
    assert [Quota.share(most).limit for most in (1, 2, 3, 8)] == [1, 1, 1, 4]


def test_a_share_binds_neither_root_nor_the_servers_own_user() -> None:
    quota = Quota.share(8)
    assert quota.refusal(0, 100) is None
    assert quota.refusal(os.geteuid(), 100) is None
    assert quota.refusal(ONE, 3) is None
    assert quota.refusal(ONE, 4) == "user 4321 has 4 connections, and 4 are the most for one user"


def test_a_number_binds_everybody_and_a_place_is_free_again_after_an_end(address: str) -> None:
    with Harassed(address, max_clients_per_user=2) as harassed:
        with raw_client(harassed.server, address):
            with pytest.raises(Refused, match="2 are the most for one user") as caught:
                Client(address)
            assert caught.value.status == Status.TOO_MANY_CLIENTS
            assert f"user {os.geteuid()} has 2 connections" in str(caught.value)
            assert "max_clients_per_user" in str(caught.value)
        wait_until(lambda: harassed.server.stats().clients == 1)
        with Client(address) as client:
            harassed.publish()
            assert client.receive(DEADLINE)


def test_connections_that_shake_hands_count(address: str) -> None:
    with Server(address, max_clients_per_user=2), ExitStack() as stack:
        silent = [stack.enter_context(dial(address)) for _ in range(2)]
        for sock in silent:
            sock.recv(100)  # its hello: it is counted now
        with pytest.raises(Refused, match="most for one user"):
            Client(address)
        silent[0].close()
        wait_until(lambda: not refused(address))


def refused(address: str) -> bool:
    try:
        Client(address).close()
    except Refused:
        return True
    return False


def test_a_user_that_comes_and_goes_is_never_at_its_limit(address: str) -> None:
    with Server(address, max_clients_per_user=2) as server:
        for _ in range(50):
            with Client(address):
                server.wait_for_clients(1, DEADLINE)
            wait_until(lambda: not server.clients())


@only_root
def test_by_default_half_of_all_places_is_left_to_others(address: str) -> None:
    with Server(address, allow="anyone", max_clients=4), ExitStack() as stack:
        with being(ONE):
            for _ in range(2):
                stack.enter_context(Client(address))
            with pytest.raises(Refused, match=f"user {ONE} has 2 connections") as caught:
                Client(address)
            assert caught.value.status == Status.TOO_MANY_CLIENTS
        with being(OTHER):
            stack.enter_context(Client(address))
        stack.enter_context(Client(address))
        with pytest.raises(Refused, match=r"all \d+ client places are taken"):
            Client(address)


@only_root
def test_the_servers_own_user_may_take_all_places_by_default(address: str) -> None:
    with Server(address, allow="anyone", max_clients=4), ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Client(address))


@only_root
def test_a_number_counts_for_each_user_by_itself(address: str) -> None:
    with Server(address, allow="anyone", max_clients_per_user=1), ExitStack() as stack:
        for uid in (ONE, OTHER, 0):
            with being(uid):
                stack.enter_context(Client(address))
                assert refused(address)


@only_root
def test_what_a_peer_says_of_itself_does_not_change_whose_it_is(address: str) -> None:
    # Two processes share the socket: the one that connected is who counts, not the one that talks.
    with Server(address, allow="anyone", max_clients_per_user=1) as server:
        with being(ONE):
            sock = dial(address)
        with sock:
            sock.recv(100)
            sock.sendmsg(
                [REPLY],
                [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ucred(os.getpid(), OTHER, OTHER))],
            )
            assert reference.decode_welcome(sock.recv(100)).status == 0
            server.wait_for_clients(1, DEADLINE)
            assert server.clients()[0].peer == Peer(os.getpid(), ONE, 0)
            with being(ONE):
                assert refused(address)


def ucred(pid: int, uid: int, gid: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in (pid, uid, gid))


@only_root
def test_a_flood_of_half_open_connections_pushes_out_nobody_elses(address: str) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(address, allow="anyone", handshake_timeout=60))
        with being(OTHER):
            innocent = stack.enter_context(dial(address))
        innocent.recv(100)
        with being(ONE):
            flood = [stack.enter_context(dial(address)) for _ in range(MAX_JOINING + 50)]
        flood[-1].recv(100)
        # It was the first of all, and those of the flood that came before the last 255 are gone.
        assert is_open(innocent)
        for sock in flood[:51]:
            assert list(packets_of(sock))[:-1] == []
        innocent.setblocking(True)
        innocent.send(REPLY)
        assert reference.decode_welcome(innocent.recv(100)).status == 0
        server.wait_for_clients(1, DEADLINE)


@only_root
def test_one_user_cannot_take_all_monitors(address: str) -> None:
    with Server(address, allow="anyone", monitor="anyone"), ExitStack() as stack:
        with being(ONE):
            for _ in range(MOST // 2):
                stack.enter_context(Monitor(address))
            with pytest.raises(Refused, match=f"user {ONE} has 4 monitors") as caught:
                Monitor(address)
            assert caught.value.status == Status.TOO_MANY_CLIENTS
        with being(OTHER):
            stack.enter_context(Monitor(address))
