# SPDX-License-Identifier: Apache-2.0
"""A message too large for one packet of plain 1.0: a client says so, or goes on behind it."""

import asyncio
import logging
import re
from contextlib import suppress

import pytest
from support.api import SOON, Task
from support.base import DEADLINE, wait_until
from support.servers import Server

from jumiks import (
    AsyncClient,
    Backoff,
    Client,
    ConnectionLost,
    EndReason,
    Gap,
    GapReason,
    MessagesLost,
)
from jumiks._wire.handshake import FIRST_ID

pytestmark = pytest.mark.usefixtures("large_log")

LARGE = bytes(1 << 20)
MOST = 262_136


def test_without_reconnect_the_end_says_what_is_likely_and_what_helps(address: str) -> None:
    with Server(address) as server, Client(address, delivery="classic") as client:
        server.publish_many([b"first", bytes(MOST), LARGE])
        assert client.receive(DEADLINE) == b"first"
        assert client.receive(DEADLINE) == bytes(MOST)
        with pytest.raises(ConnectionLost) as caught:
            client.receive(DEADLINE)
    assert f"message {FIRST_ID + 2} may be larger" in str(caught.value)
    assert f" {MOST} bytes" in str(caught.value)
    assert "delivery='framed'" in str(caught.value)


def test_a_server_whose_messages_all_fit_is_not_suspected(address: str) -> None:
    with Server(address, max_message=MOST) as server:
        with Client(address, delivery="classic") as client:
            server.close()
            with pytest.raises(ConnectionLost) as caught:
                client.receive(DEADLINE)
    assert "larger" not in str(caught.value)


def test_with_reconnect_it_is_a_gap_of_that_message_alone(address: str) -> None:
    gaps: list[Gap] = []
    with (
        Server(address, keep=10) as server,
        Client(address, delivery="classic", reconnect=SOON, on_gap=gaps.append) as client,
    ):
        server.publish_many([b"first", LARGE, b"after", LARGE, LARGE, b"later"])
        assert [client.receive(DEADLINE) for _ in range(3)] == [b"first", b"after", b"later"]
        assert gaps == [Gap(FIRST_ID + each, FIRST_ID + each) for each in (1, 3, 4)]
        assert {gap.reason for gap in gaps} == {GapReason.TOO_LARGE}
        assert (client.missed, client.last_id) == (3, FIRST_ID + 5)
        server.publish(b"new")
        assert client.receive(DEADLINE) == b"new"
        # The first one came while it was connected, which may have ended for another reason.
        wait_until(lambda: server.endings[EndReason.TOO_LARGE] == 1 + 9)


def test_many_in_a_row_do_not_count_to_giving_up(address: str) -> None:
    backoff = Backoff(first=0.02, most=0.02, jitter=0, give_up=0.3)
    with (
        Server(address, log_size=1 << 25) as server,
        Client(address, delivery="classic", reconnect=backoff) as client,
    ):
        server.publish_many([*[LARGE] * 12, b"after"])
        assert client.receive(DEADLINE) == b"after"
        assert client.missed == 12


def test_giving_up_before_it_is_sure_tells_the_same_text(address: str) -> None:
    backoff = Backoff(first=0, most=0, give_up=0)
    with (
        Server(address) as server,
        Client(address, delivery="classic", wait=0, reconnect=backoff) as client,
    ):
        server.publish(LARGE)
        with pytest.raises(ConnectionLost, match=f"message {FIRST_ID} may be larger"):
            client.receive(DEADLINE)


def test_raised_as_a_gap_it_has_its_reason(address: str) -> None:
    with (
        Server(address, keep=10) as server,
        Client(address, delivery="classic", reconnect=SOON, on_gap="raise") as client,
    ):
        server.publish_many([LARGE, b"after"])
        with pytest.raises(MessagesLost, match="is lost: it seems to be too large"):
            client.receive(DEADLINE)
        assert client.receive(DEADLINE) == b"after"


def test_an_event_loops_client_goes_on_behind_it_too(address: str) -> None:
    async def received() -> tuple[list[bytes | Gap], int]:
        async with AsyncClient(
            address, delivery="classic", reconnect=SOON, on_gap="yield"
        ) as client:
            server.publish_many([b"first", LARGE, b"after"])
            return [await client.receive(DEADLINE) for _ in range(3)], client.missed

    with Server(address, keep=10) as server:
        found, missed = asyncio.run(received())
    assert found == [b"first", Gap(FIRST_ID + 1, FIRST_ID + 1), b"after"]
    assert missed == 1


def test_a_feed_that_is_idle_while_its_server_starts_again_and_again_loses_nothing(
    address: str,
) -> None:
    """The feed is the same one, and nothing was published at the position."""
    gaps: list[Gap] = []
    server = Server(address, server_id=7)
    client = Client(address, delivery="classic", reconnect=SOON, on_gap=gaps.append)
    with client:
        for _ in range(6):
            closing = Task(server.close)
            with pytest.raises(TimeoutError, match="not yet back"):
                client.receive(0.1)
            closing.result()
            server = Server(address, server_id=7)
            with pytest.raises(TimeoutError, match="no message within"):
                client.receive(0.1)
        with server:
            server.wait_for_clients(1, DEADLINE)
            server.publish(b"first")
            assert client.receive(DEADLINE) == b"first"
            assert client.missed == len(gaps) == 0


@pytest.mark.parametrize("restarts", [False, True], ids=["disconnected", "restarted"])
def test_what_came_once_connections_had_ended_for_other_reasons_is_not_lost(
    address: str, restarts: bool
) -> None:
    gaps: list[Gap] = []
    server = Server(address, server_id=7)

    def is_back() -> bool:
        with suppress(TimeoutError):
            client.receive(0.02)
        return bool(server.clients())

    with Client(address, delivery="classic", reconnect=SOON, on_gap=gaps.append) as client:
        for _ in range(4):
            wait_until(is_back)
            if restarts:
                server.close(0)
                server = Server(address, server_id=7)
            else:
                server.disconnect(server.clients()[0])
                wait_until(lambda: not server.clients())  # noqa: B023
        with server:
            server.publish(b"first")
            assert client.receive(DEADLINE) == b"first"
            assert client.missed == len(gaps) == 0


def test_the_server_logs_the_sizes_as_a_warning(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(address) as server, Client(address, delivery="classic"):
        server.publish(LARGE)
        wait_until(lambda: server.endings[EndReason.TOO_LARGE])
    (line,) = [each for each in caplog.records if "TOO_LARGE" in each.getMessage()]
    assert line.levelno == logging.WARNING
    assert re.search(
        rf"message {FIRST_ID} has {len(LARGE)} bytes, and {MOST} are the most", line.getMessage()
    )
