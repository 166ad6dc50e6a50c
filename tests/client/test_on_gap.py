# SPDX-License-Identifier: Apache-2.0
"""A function that is told of gaps, and what it may do to the client that tells it."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
from support.api import SOON
from support.base import DEADLINE
from support.servers import Server

from jumiks import Busy, Client, ConnectionLost, Delivery, Gap
from jumiks._wire.handshake import FIRST_ID

LOST = Gap(FIRST_ID + 5, FIRST_ID + 19)

TAKES: dict[str, Callable[[Client], object]] = {
    "receive": lambda client: client.receive(0),
    "receive_many": lambda client: client.receive_many(0),
    "for": lambda client: next(iter(client)),
}


@pytest.mark.parametrize("delivery", ["shared", "framed"])
@pytest.mark.parametrize("place", ["within", "at the end", "behind a restart"])
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_it_cannot_receive_and_is_told_once(
    address: str, delivery: Delivery, place: str, take: Callable[[Client], object]
) -> None:
    gaps: list[Gap] = []

    def on_gap(gap: Gap) -> None:
        gaps.append(gap)
        with pytest.raises(Busy, match="receive once it has returned"):
            take(client)

    back = SOON if place == "behind a restart" else False
    with ExitStack() as stack:
        server = stack.enter_context(Server(address, max_lag=5, on_lag="skip", patience=0))
        client = Client(address, on_gap=on_gap, delivery=delivery, reconnect=back)
        stack.enter_context(client)
        for number in range(20):
            server.publish(b"%02d" % number)
        if place != "within":
            server.close(0)
        if place == "behind a restart":
            server = stack.enter_context(Server(address))
        assert [client.receive(DEADLINE) for _ in range(5)] == [b"%02d" % n for n in range(5)]
        if place == "at the end":
            with pytest.raises(ConnectionLost):
                client.receive(DEADLINE)
        else:
            client.ack()
            server.publish(b"new")
            while client.receive(DEADLINE) != b"new":
                pass  # the newest one may have been kept
        assert [gap.first for gap in gaps] == [LOST.first]
        assert client.missed == gaps[0].count


@pytest.mark.parametrize("delivery", ["shared", "framed"])
def test_it_may_close_the_client(address: str, delivery: Delivery) -> None:
    gaps: list[Gap] = []

    def on_gap(gap: Gap) -> None:
        gaps.append(gap)
        client.close()

    with Server(address, max_lag=5, on_lag="skip", patience=0) as server:
        client = Client(address, on_gap=on_gap, delivery=delivery)
        for number in range(20):
            server.publish(b"%02d" % number)
        server.close(0)
        assert len(list(client)) == 5
        assert (gaps, client.missed) == ([LOST], 15)
