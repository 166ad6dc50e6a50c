# SPDX-License-Identifier: Apache-2.0
"""Peers of every other role, written from docs/protocol.md alone, against the package."""

import hashlib

import pytest
from peers import extended
from support.base import DEADLINE, wait_until
from support.servers import Server

from jumiks import Client, Delivery, ServerClosed

FIRST_ID = 100000
ONE = 1 << 20
"""Bytes of a message that goes in many parts."""


def digest(messages: list[bytes]) -> str:
    return hashlib.sha256(b"".join(messages)).hexdigest()


@pytest.mark.usefixtures("large_log")
def test_a_framed_client_gets_all_whole_and_in_parts(address: str) -> None:
    messages = [b"", b"one", bytes(range(256)) * 1000, b"x" * ONE, b"last"]
    with Server(address) as server, extended("framed_client", address, "--name", "peer") as peer:
        server.wait_for_clients(1, DEADLINE)
        server.publish_many(messages)
        server.drain(DEADLINE)
        (info,) = server.clients()
        assert (info.delivery, info.name) == ("framed", "peer")
        server.close()
        report = peer.result()
    assert report == {
        "first_id": FIRST_ID,
        "ids": [*range(FIRST_ID, FIRST_ID + len(messages))],
        "sha256": digest(messages),
        "end": 2,  # CLOSING
    }


def test_a_framed_client_begins_with_the_oldest_and_reads_why_it_is_refused(address: str) -> None:
    with Server(address, keep=100) as server:
        server.publish_many([b"a", b"b", b"c"])
        with extended("framed_client", address, "--start", 1) as peer:
            server.wait_for_clients(1, DEADLINE)
            server.drain(DEADLINE)
            server.disconnect(server.clients()[0])
            report = peer.result()
        assert (report["first_id"], report["sha256"]) == (FIRST_ID, digest([b"a", b"b", b"c"]))
        assert report["end"] == 5  # KICKED
        with extended("framed_client", address, "--start", FIRST_ID + 50) as peer:
            refused, words = peer.result()["end"]
        assert refused == "refused"
        assert words


@pytest.mark.parametrize("delivery", ["framed", "shared"])
def test_a_framed_server_serves_our_client(address: str, delivery: Delivery) -> None:
    with extended("framed_server", address) as peer:
        assert peer.line() == "ready"
        found = []
        with Client(address, delivery=delivery, name="ours") as client:
            with pytest.raises(ServerClosed):
                while True:
                    found.append(client.receive(DEADLINE))
            assert client.delivery == "framed"
        report = peer.result()
    assert [len(message) for message in found] == [37 * number for number in range(100)]
    assert report["sha256"] == digest(found)
    assert (report["acked_id"], report["rising"]) == (FIRST_ID + 99, True)
    assert (report["start"], report["name"]) == (0, "ours")


def test_a_monitor_reads_the_status(address: str) -> None:
    with Server(address, max_lag=7) as server, Client(address, name="watched"):
        server.publish_many([b"one", b"two"])
        wait_until(lambda: server.clients()[0].lag == 2)
        with extended("monitor", address) as peer:
            status = peer.result()
    assert (status["address"], status["max_lag"], status["monitors"]) == (address, 7, 1)
    assert status["stats"]["published"] == 2
    assert [(each["name"], each["lag"]) for each in status["clients"]] == [("watched", 2)]
