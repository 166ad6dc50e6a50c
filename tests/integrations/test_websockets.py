# SPDX-License-Identifier: Apache-2.0
"""The example that hands a feed to web browsers, one of which is slow."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from socket import AF_UNIX, socket

import pytest
from support.base import DEADLINE, ROOT, accepts, needs, wait_until
from support.servers import Server

from jumiks import EndReason

pytestmark = [needs("fastapi"), needs("uvicorn"), needs("websockets"), pytest.mark.slow]

MESSAGES = [b"%d" % number + bytes(10_000) for number in range(3000)]
"""Far more than the buffers of a TCP or Unix connection, and than a queue may have."""


@contextmanager
def uvicorn(path: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "uvicorn", "websocket_fanout:app", "--uds", os.fspath(path)]
    environment = {**os.environ, "FEED": address, "ROOM": "500"}
    with subprocess.Popen(
        [*words, "--log-level", "warning"], cwd=ROOT / "examples", env=environment
    ) as process:
        try:
            wait_until(lambda: accepts(path) or process.poll() is not None)
            yield process
        finally:
            process.terminate()
            process.wait(DEADLINE)


def websockets_of(path: Path) -> int:
    connection = HTTPConnection("here", timeout=DEADLINE)
    connection.sock = socket(AF_UNIX)
    try:
        connection.sock.connect(os.fspath(path))
        connection.request("GET", "/websockets")
        return int(connection.getresponse().read())
    finally:
        connection.close()


def test_a_slow_websocket_is_closed_and_the_others_get_all(address: str, path: Path) -> None:
    from websockets.sync.client import unix_connect

    where = os.fspath(path), "ws://here/feed"
    with Server(address, max_lag=1000) as server, uvicorn(path, address):
        server.wait_for_clients(1, DEADLINE)
        with unix_connect(*where) as good, unix_connect(*where, max_queue=1) as slow:
            wait_until(lambda: websockets_of(path) == 2)
            for begin in range(0, len(MESSAGES), 100):
                server.publish_many(MESSAGES[begin : begin + 100])
                got = [good.recv(DEADLINE) for _ in range(100)]
                assert got == MESSAGES[begin : begin + 100]
            wait_until(lambda: websockets_of(path) == 1)
            slow.protocol.fail(1000)  # nobody reads what is still on the way
            server.close()
            with Server(address) as another:
                another.wait_for_clients(1, DEADLINE)
                another.publish(b"again")
                assert good.recv(DEADLINE) == b"again"
        wait_until(lambda: websockets_of(path) == 0)


def test_a_process_that_is_cut_closes_its_websockets_and_comes_back(
    address: str, path: Path
) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import unix_connect

    where = os.fspath(path), "ws://here/feed"
    with Server(address, max_lag=100, patience=0) as server, uvicorn(path, address) as process:
        server.wait_for_clients(1, DEADLINE)
        with unix_connect(*where) as cut:
            wait_until(lambda: websockets_of(path) == 1)
            process.send_signal(signal.SIGSTOP)  # as a request does that blocks the event loop
            while not server.endings[EndReason.LAGGED]:
                server.publish_many([b"x"] * 100)
            process.send_signal(signal.SIGCONT)
            with pytest.raises(ConnectionClosed, match="1013"):
                while True:
                    cut.recv(DEADLINE)
        server.wait_for_clients(1, DEADLINE)
        with unix_connect(*where) as again:
            wait_until(lambda: websockets_of(path) == 1)
            server.publish(b"again")
            assert again.recv(DEADLINE) == b"again"


def test_what_a_browser_says_is_ignored(address: str, path: Path) -> None:
    from websockets.sync.client import unix_connect

    with Server(address) as server, uvicorn(path, address):
        server.wait_for_clients(1, DEADLINE)
        with unix_connect(os.fspath(path), "ws://here/feed") as browser:
            for said in ("text", b"bytes"):
                browser.send(said)
                browser.ping().wait(DEADLINE)  # the answer comes behind what was said
            wait_until(lambda: websockets_of(path) == 1)
            server.publish(b"still here")
            assert browser.recv(DEADLINE) == b"still here"
