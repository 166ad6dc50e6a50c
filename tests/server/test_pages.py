# SPDX-License-Identifier: Apache-2.0
"""Cursor pages that are kept by clients that have left."""

import errno
import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace

import pytest
from support import reference
from support.base import DEADLINE, wait_until
from support.reference import Reply
from support.servers import Server
from support.shared import CURSOR
from support.wire import LARGE, dial

from jumiks import Client
from jumiks._native import lib
from jumiks._server import pages

pytestmark = pytest.mark.only_shared


@contextmanager
def a_page(address: str) -> Iterator[int]:
    """What is left of a client that has come and gone: its cursor page, or nothing."""
    with dial(address) as sock:
        sock.recv(LARGE)
        sock.send(reference.encode_reply(Reply(capabilities=reference.FRAMES | reference.LOG)))
        _, descriptors, _, _ = socket.recv_fds(sock, LARGE, 2)
    log_fd, page_fd = descriptors
    os.close(log_fd)
    try:
        yield page_fd
    finally:
        with suppress(OSError):
            os.close(page_fd)


def delivery_of_a_newcomer(address: str) -> str:
    with Client(address, timeout=DEADLINE) as client:
        return client.delivery


def all_left(server: Server, pages: int) -> None:
    wait_until(lambda: not server.stats().clients and server.stats().cursor_pages == pages)


def test_a_user_that_keeps_many_pages_gets_packets_until_it_gives_them_back(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(address, max_clients_per_user=2) as server, ExitStack() as stack:
        pages = []
        for held in range(1, 5):
            pages.append(stack.enter_context(a_page(address)))
            all_left(server, held)
        assert delivery_of_a_newcomer(address) == "framed"
        assert "gets packets" in caplog.text
        assert "its user holds 4 cursor pages, and 4 are the most" in caplog.text
        with mmap.mmap(pages[0], CURSOR):
            # Its number stays taken: it is closed once more at the end.
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), pages[0], inheritable=False)
            all_left(server, 4)  # it is mapped still
            assert delivery_of_a_newcomer(address) == "framed"
        all_left(server, 3)
        assert delivery_of_a_newcomer(address) == "shared"
        all_left(server, 3)


def test_a_user_that_gives_its_pages_back_may_come_as_often_as_it_likes(address: str) -> None:
    with Server(address, max_clients_per_user=1) as server:
        for _ in range(20):
            assert delivery_of_a_newcomer(address) == "shared"
            all_left(server, 0)


def test_pages_of_users_that_no_quota_binds_are_not_watched(address: str) -> None:
    with Server(address) as server, a_page(address):
        assert server.stats().cursor_pages == 0
        assert server._control.pages.fileno() == -1


@pytest.mark.parametrize("missing", ["jmk_page_watch_new", "jmk_page_watch"])
def test_pages_that_cannot_be_watched_count_until_the_end(
    address: str, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    poor = SimpleNamespace(
        jmk_page_watch_new=lib.jmk_page_watch_new, jmk_page_watch=lib.jmk_page_watch
    )
    setattr(poor, missing, lambda *_: -errno.EMFILE)
    monkeypatch.setattr(pages, "lib", poor)
    with Server(address, max_clients_per_user=1) as server:
        deliveries = []
        for held in (1, 2, 2):
            deliveries.append(delivery_of_a_newcomer(address))
            all_left(server, held)
        assert deliveries == ["shared", "shared", "framed"]
