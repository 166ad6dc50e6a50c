# SPDX-License-Identifier: Apache-2.0
"""A model of what is promised, and faults as rules: servers and clients that come, go and break.

Each payload says which server published it and under which id. A client's ledger has what it is due
next; whatever it receives must be that, or a report must have told what is missing in between.
"""

import os
import socket
import time
import uuid
from contextlib import suppress
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.api import SMALL_LOG, descriptor_of
from support.base import DEADLINE, DELIVERIES, SHARE_LOG
from support.servers import Server

from jumiks import (
    Backoff,
    Client,
    ConnectionEnded,
    ConnectionLost,
    Delivery,
    Gap,
    GapReason,
    Lagged,
    Overwritten,
    ServerClosed,
    Timeout,
)
from jumiks._wire.handshake import FIRST_ID

MOST_CLIENTS = 5


class Ledger:
    """A client, and what it is due.

    Args:
        client: it reports gaps in its stream.
        generation: of the server it is connected to; they count from 0.
        due: the first id it must get or be told of.
    """

    def __init__(self, client: "Client[bytes | Gap]", generation: int, due: int) -> None:
        self.client = client
        self.generation: int | None = generation
        self.delivery = client.delivery
        self.due: int | None = due
        self.counted = 0

    def message(self, message: bytes) -> None:
        generation, packet_id = (int(word) for word in message.split(b" ", 2)[:2])
        assert packet_id == self.client.last_id
        if generation != self.generation:
            self.moved(generation)
        assert packet_id == self.due
        self.due = packet_id + 1

    @property
    def over(self) -> bool:
        return self.client._stream.handle is None

    def moved(self, generation: int | None) -> None:
        """It was at another server: that one's last message must be accounted for by now."""
        if self.due is not None and self.generation is not None:
            assert self.due == self.ends[self.generation]
        self.generation, self.due = generation, FIRST_ID

    def gap(self, gap: Gap, generation: int) -> None:
        if gap.reason is GapReason.EVICTED and generation != self.generation:
            self.moved(generation)
        elif gap.first != self.due:
            self.moved(None)  # of a server that it met, and got nothing from
        assert gap.first == self.due
        if gap.last is None:
            # Nobody knows.
            assert gap.reason is GapReason.RESTARTED
            assert self.delivery != "shared"  # a log tells, whoever is gone
            self.due = None
            return
        assert gap.first <= gap.last
        self.counted += gap.last - gap.first + 1
        self.due = gap.last + 1
        assert self.client.missed >= self.counted

    ends: dict[int, int]


class Model(RuleBasedStateMachine):
    """Real sockets and threads, so what it finds may not come again; what it says always holds."""

    ledgers = Bundle("ledgers")

    @initialize(
        on_lag=st.sampled_from(["disconnect", "block", "skip"]),
        max_lag=st.sampled_from([None, 1, 3, 20]),
        keep=st.sampled_from([0, 30]),
    )
    def begin(
        self, on_lag: Literal["disconnect", "block", "skip"], max_lag: int | None, keep: int
    ) -> None:
        self.address = f"@jumiks-model-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.options: dict[str, Any] = {
            "on_lag": on_lag,
            "max_lag": max_lag,
            "keep": keep,
            "patience": None if on_lag == "block" else 0,
            "log_size": SMALL_LOG,
            "share_log": SHARE_LOG,
        }
        self.keep = keep
        self.generations: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.next_id = FIRST_ID
        self.all: list[Ledger] = []
        self.serve()

    def serve(self) -> None:
        self.server = Server(self.address, **self.options)
        self.generation = len(self.generations)
        self.generations[self.server.server_id] = self.generation
        self.next_id = FIRST_ID
        self.sizes: list[int] = []

    # ---- rules ----

    @rule(count=st.integers(1, 40), size=st.sampled_from([0, 10, 8000]))
    def publish(self, count: int, size: int) -> None:
        with suppress(Timeout):
            for _ in range(count):
                words = b"%d %d " % (self.generation, self.next_id)
                assert self.server.publish(words + b"x" * size, timeout=0) == self.next_id
                self.next_id += 1
                self.sizes.append(len(words) + size)

    @rule(count=st.integers(1, 40))
    def publish_many(self, count: int) -> None:
        messages = [b"%d %d " % (self.generation, self.next_id + index) for index in range(count)]
        try:
            ids = self.server.publish_many(messages, timeout=0)
            assert ids == range(self.next_id, self.next_id + count)
            published = count
        except Timeout as error:
            published = error.published
        self.next_id += published
        self.sizes += [len(message) for message in messages[:published]]

    @precondition(lambda self: len(self.all) < MOST_CLIENTS)
    @rule(
        target=ledgers,
        delivery=st.sampled_from(DELIVERIES),
        start=st.sampled_from(["now", "oldest"]),
    )
    def connect(self, delivery: Delivery, start: Literal["now", "oldest"]) -> Ledger:
        return self.client(start, delivery)

    @rule(
        target=ledgers,
        gone=consumes(ledgers),
        delivery=st.sampled_from(DELIVERIES),
    )
    def go_on_in_another_client(self, gone: Ledger, delivery: Delivery) -> Ledger:
        """As a process that was started again would, from what it had noted."""
        at, generation = gone.client.resume_at, gone.generation
        gone.client.close()
        self.all.remove(gone)
        if generation != self.generation or gone.client.server_id != self.server.server_id:
            return self.client("oldest", delivery)
        again = self.client(at, delivery)
        again.due = at
        return again

    def client(self, start: Literal["now", "oldest"] | int, delivery: Delivery) -> Ledger:
        client = Client(
            self.address,
            start=start,
            on_gap="yield",
            reconnect=Backoff(first=0.001, most=0.01),
            delivery=delivery,
        )
        assert client.server_id == self.server.server_id
        due = client.resume_at - client.missed  # what was left out at the oldest is told first
        if start == "now":
            assert due == self.next_id
        ledger = Ledger(client, self.generation, due)
        ledger.ends = self.ends
        self.all.append(ledger)
        return ledger

    @rule(ledger=ledgers, count=st.integers(1, 30))
    def receive(self, ledger: Ledger, count: int) -> None:
        with suppress(Timeout):
            for _ in range(count):
                if ledger.over or not self.take(ledger, 0):
                    break

    @rule(ledger=ledgers)
    def receive_a_batch(self, ledger: Ledger) -> None:
        if ledger.over:
            return
        try:
            batch = ledger.client.receive_many(0)
        except Timeout:
            return
        except ConnectionEnded as error:
            self.ended(ledger, error)
            return
        if isinstance(batch, Gap):
            self.told(ledger, batch)
            return
        try:
            messages = list(batch)
        except Overwritten:
            # The lag policy gave it up before it was looked at; it is handed out all the same.
            generation = self.generations[ledger.client.server_id]
            if generation != ledger.generation:
                ledger.moved(generation)
            assert batch.first_id == ledger.due
            ledger.due = batch.last_id + 1
            return
        for packet_id, message in enumerate(messages, batch.first_id):
            generation, said = (int(word) for word in message.split(b" ", 2)[:2])
            if generation != ledger.generation:
                ledger.moved(generation)
            assert packet_id == said == ledger.due
            ledger.due = packet_id + 1

    @rule(ledger=ledgers)
    def ack(self, ledger: Ledger) -> None:
        if not ledger.over:
            ledger.client.ack()

    @rule(ledger=ledgers)
    def break_connection(self, ledger: Ledger) -> None:
        if not ledger.over:
            with (
                socket.socket(fileno=os.dup(descriptor_of(ledger.client))) as sock,
                suppress(OSError),
            ):
                sock.shutdown(socket.SHUT_RDWR)

    @rule(ledger=consumes(ledgers))
    def close(self, ledger: Ledger) -> None:
        ledger.client.close()
        self.all.remove(ledger)

    @rule()
    def disconnect_somebody(self) -> None:
        for info in self.server.clients()[3:4]:
            self.server.disconnect(info)

    @rule(linger=st.sampled_from([0, 0.02]))
    def start_the_server_again(self, linger: float) -> None:
        if self.next_id < FIRST_ID + 20:
            return  # this one has work to do first
        self.ends[self.generation] = self.next_id
        self.server.close(linger)
        self.serve()

    # ---- what must hold ----

    def take(self, ledger: Ledger, timeout: float) -> bool:
        """One item; False once the connection is over for good."""
        try:
            item = ledger.client.receive(timeout)
        except ConnectionEnded as error:
            self.ended(ledger, error)
            return False
        if isinstance(item, Gap):
            self.told(ledger, item)
        else:
            ledger.message(item)
        return True

    def told(self, ledger: Ledger, gap: Gap) -> None:
        ledger.gap(gap, self.generations[ledger.client.server_id])

    def ended(self, ledger: Ledger, error: ConnectionEnded) -> None:
        """It ends for good only where it should, and says what it did not get."""
        assert not isinstance(error, ServerClosed)
        if ledger.client.delivery == "classic":
            assert isinstance(error, ConnectionLost)  # a plain connection is told no reason
        if isinstance(error, Lagged) and error.first_lost:
            generation = self.generations[ledger.client.server_id]
            if generation != ledger.generation and ledger.due is not None:
                ledger.moved(generation)  # cut by a server that it got nothing from
            assert ledger.due in (error.first_lost, None)
            assert error.first_lost <= error.last_lost
        ledger.client.close()

    @invariant()
    def the_server_keeps_what_it_said(self) -> None:
        stats = self.server.stats()
        assert stats.next_id == self.next_id
        assert stats.log_used <= stats.log_size
        assert stats.oldest_id <= max(FIRST_ID, self.next_id - self.kept())
        for info in self.server.clients():
            assert info.acked_id <= info.sent_id < self.next_id
            if self.options["on_lag"] != "skip" and info.acked_id:
                assert stats.oldest_id <= info.acked_id + 1

    def kept(self) -> int:
        """How many of the last messages must be there: those that half of the log has room for."""
        room, count = SMALL_LOG // 2, 0
        for size in self.sizes[-self.keep :][::-1] if self.keep else ():
            room -= 16 + (size + 7) // 8 * 8
            count += room >= 0
        return count

    def teardown(self) -> None:
        """Everybody who is still there gets all there is."""
        if not hasattr(self, "server"):
            return
        try:
            began = time.monotonic()
            while waiting := [each for each in self.all if not self.has_all(each)]:
                assert time.monotonic() < began + 3 * DEADLINE, (
                    [vars(each) for each in waiting],
                    self.next_id,
                    self.server.clients(),
                )
                took = [self.takes_something(each) for each in waiting]
                if not any(took):
                    # A skip, and a server that has published nothing, show with what follows.
                    for each in self.all:
                        self.ack(each)
                    with suppress(Timeout):
                        self.server.drain(0.1)
                    self.publish(1, 0)
            for each in self.all:
                assert each.over or each.client.missed == each.counted
        finally:
            for each in self.all:
                each.client.close()
            self.server.close(0)

    def has_all(self, ledger: Ledger) -> bool:
        return ledger.over or (ledger.generation == self.generation and ledger.due == self.next_id)

    def takes_something(self, ledger: Ledger) -> bool:
        try:
            return self.take(ledger, 0.01)
        except Timeout:
            return False


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=int(os.environ.get("JUMIKS_TEST_EXAMPLES", "40")),
    stateful_step_count=50,
    deadline=None,
    phases=[Phase.generate],  # nothing is gained by making smaller what may not come again
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(600)
