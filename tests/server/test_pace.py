# SPDX-License-Identifier: Apache-2.0
"""No client sets the pace: a publisher, one client that keeps up, and another that does not.

The publisher has a pace of its own, well within what the client that keeps up can take. So its pace
without the other is known, and what is missing of it is the other's doing.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from support.base import DEADLINE, SHARE_LOG
from support.servers import Server
from support.shared import HandMadeClient
from support.wire import FIRST_ID, RawClient, Witness

import jumiks
from jumiks import Timeout

MAX_LAG = 50
PATIENCE = 0.3
SECONDS = 5 * PATIENCE
RATE = 1000
"""Messages a second: a client that takes none is at its limit after a twentieth of one."""
TRIES = 4


class Other:
    """A client that misbehaves, and comes back whenever it was cut.

    Args:
        address: the server's.
    """

    start = 0

    def __init__(self, address: str) -> None:
        self.address = address
        self.stop = threading.Event()
        self.came = 0
        self.sock: socket.socket | None = None

    def run(self) -> None:
        while not self.stop.is_set():
            with suppress(OSError, AssertionError), self.connected() as client:
                self.came += 1
                self.sock = client.sock
                self.misbehave(client)

    def connected(self) -> RawClient | HandMadeClient:
        return RawClient(self.address, start=self.start)

    def misbehave(self, client: Any) -> None:
        raise NotImplementedError

    def end(self) -> None:
        self.stop.set()
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)  # it may be reading


class Silent(Other):
    """It never reads, and never acks, and comes anew at times, as it cannot know if it was cut."""

    def misbehave(self, client: RawClient) -> None:
        self.stop.wait(PATIENCE / 2)


class Trickling(Other):
    """It acks one message shortly before patience ends, again and again."""

    def misbehave(self, client: RawClient) -> None:
        for message in iter(lambda: client.read(1)[0], None):
            self.stop.wait(0.8 * PATIENCE)
            client.ack_early(message.id)


class TricklingFromThePast(Trickling):
    """The same, with a history to read first."""

    start = 1


class HalfALimit(Other):
    """It works off half a limit just in time, and then nothing for as long as it may."""

    def misbehave(self, client: RawClient) -> None:
        for messages in iter(lambda: client.read(MAX_LAG // 2), None):
            self.stop.wait(0.9 * PATIENCE)
            client.ack_early(messages[-1].id)


class AckingTooLate(Other):
    """It acks at once, but always the message that lies as far back as its limit allows."""

    def misbehave(self, client: RawClient) -> None:
        for message in iter(lambda: client.read(1)[0], None):
            client.ack_early(max(FIRST_ID, message.id - MAX_LAG + 1))


class TricklingInThePage(Other):
    """It stores one ack in its page now and then, and reads nothing of the log."""

    def connected(self) -> HandMadeClient:
        return HandMadeClient(self.address)

    def misbehave(self, client: HandMadeClient) -> None:
        while not self.stop.wait(0.8 * PATIENCE) and not client.has_input():
            client.ack(client.next_id)
            client.next_id += 1


class AckingOnce(Other):
    """It acks its first message, and then nothing until it is cut."""

    def misbehave(self, client: RawClient) -> None:
        client.ack_early(client.read(1)[0].id)
        client.rest()


class FastThenStill(Other):
    """It acks each message at once, twice its limit of them, and then nothing until it is cut."""

    def misbehave(self, client: RawClient) -> None:
        for _ in range(2 * MAX_LAG):
            client.ack_early(client.read(1)[0].id)
        client.rest()


OTHERS = [
    Silent,
    Trickling,
    TricklingFromThePast,
    HalfALimit,
    AckingTooLate,
    AckingOnce,
    FastThenStill,
]
if SHARE_LOG:
    OTHERS.append(TricklingInThePage)


@contextmanager
def beside(other: Other) -> Iterator[None]:
    thread = threading.Thread(target=other.run)
    thread.start()
    try:
        yield
    finally:
        other.end()
        thread.join(DEADLINE)


def published_in(server: Server, seconds: float) -> int:
    """How many messages go out at RATE; what is late is caught up with."""
    start, done = time.monotonic(), 0
    while (now := time.monotonic()) < start + seconds:
        if done < RATE * (now - start):
            server.publish(b"x" * 100)
            done += 1
        else:
            threading.Event().wait(1 / RATE)
    return done


def pace_beside(other: Other, address: str, on_lag: jumiks.OnLag, *, first: bool) -> float:
    """Messages a second that go out while it misbehaves beside a client that keeps up."""
    with Server(address, max_lag=MAX_LAG, patience=PATIENCE, on_lag=on_lag) as server:
        if first:
            with beside(other):
                server.wait_for_clients(1, DEADLINE)
                with suppress(Timeout):
                    server.publish_many([b"x" * 100] * 2 * MAX_LAG, timeout=0)
                with Witness(address):
                    published = published_in(server, SECONDS)
        else:
            with Witness(address), beside(other):
                published = published_in(server, SECONDS)
    assert other.came
    return published / SECONDS


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(True, id="there first"),
        pytest.param(False, id="there later", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("on_lag", ["disconnect", "skip"])
@pytest.mark.parametrize("kind", OTHERS)
def test_beside_a_client_that_keeps_up_no_other_sets_the_pace(
    address: str, kind: type[Other], on_lag: jumiks.OnLag, first: bool
) -> None:
    # A client that sets the pace does so each time, and by far. A machine that is busy with other
    # things does not.
    tries = (pace_beside(kind(address), address, on_lag, first=first) for _ in range(TRIES))
    assert any(pace >= RATE / 2 for pace in tries)
