# SPDX-License-Identifier: Apache-2.0
"""Each figure of `ServerStats`, `ClientInfo` and the metrics has the value that it must have.

Traffic is made whose figures are known, and all fields are compared at once: a field that is new
has to be added here.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, replace
from typing import Any, Literal

import pytest
from support.api import But, Task
from support.base import DEADLINE, DELIVERIES, needs, wait_until
from support.servers import Server
from support.shared import WAKE_KIND, hand_made_client
from support.wire import raw_client

from jumiks import Client, ClientInfo, Delivery, EndReason, ServerStats, Timeout
from jumiks._metrics import metrics
from jumiks._native import lib
from jumiks._server import control
from jumiks._wire.handshake import FIRST_ID

SIZE = 100
FRAME = 120
"""Bytes of the log that a message of that size takes: header, payload, padding."""

all_deliveries = pytest.mark.parametrize("delivery", DELIVERIES)

SENT_BYTES = {"shared": FRAME, "framed": FRAME, "classic": SIZE + 8}
"""What counts as sent of each message, headers included."""


def info_after(server: Server, acked: int) -> ClientInfo:
    """The figures of the only client, once its ack of that many messages is seen."""
    wait_until(lambda: server.clients()[0].acked_id == FIRST_ID + acked - 1)
    return server.clients()[0]


@all_deliveries
def test_the_figures_of_a_client(address: str, delivery: Delivery) -> None:
    begin = time.monotonic()
    with (
        Server(address, share_log=True) as server,
        Client(address, delivery=delivery) as client,
    ):
        server.wait_for_clients(1, DEADLINE)
        let_in = time.monotonic()
        server.publish_many([bytes(SIZE)] * 10)
        wait_until(lambda: server.clients()[0].messages == 10)
        assert len(client.receive_many(DEADLINE)) == 10
        before_ack = time.monotonic()
        client.ack(FIRST_ID + 3)
        found = info_after(server, 4)
        assert begin <= found.since <= let_in
        assert found.last_ack is not None
        assert before_ack <= found.last_ack <= time.monotonic()
        # Where the log is shared they are wake-ups, of one that may be asleep or not.
        packets = {"shared": found.packets, "framed": 1, "classic": 10}[delivery]
        assert asdict(found) == {
            "key": found.key,
            "peer": asdict(found.peer),
            "delivery": delivery,
            "lag": 6,
            "lag_bytes": 6 * FRAME,
            "worst_lag": 10,
            "queued": 0,
            "kernel_bytes": 0,
            "unacked": 6,
            "sent_id": FIRST_ID + 9,
            "acked_id": FIRST_ID + 3,
            "messages": 10,
            "bytes": 10 * SENT_BYTES[delivery],
            "packets": packets,
            "skipped": 0,
            "since": found.since,
            "last_ack": found.last_ack,
            "reason": None,
            "limit": 0,
            "limit_kind": "",
            "lost": None,
            "error": "",
        }
        assert (found.pid, found.uid) == (os.getpid(), os.getuid())
        client.ack()
        found = info_after(server, 10)
        assert (found.lag, found.lag_bytes, found.unacked, found.worst_lag) == (0, 0, 0, 10)


@all_deliveries
@pytest.mark.usefixtures("large_log")
def test_the_figures_of_a_server(address: str, delivery: Delivery) -> None:
    """Two clients of which one is gone, with messages that it never took."""
    with Server(address, max_clients_per_user=3, share_log=True) as server:
        with Client(address, delivery=delivery) as gone:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([bytes(SIZE)] * 10)
            wait_until(lambda: server.clients()[0].messages == 10)
            gone.receive(DEADLINE)
        wait_until(lambda: server.endings[EndReason.LEFT] == 1)
        with Client(address, delivery=delivery) as client:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many([bytes(SIZE)] * 20)
            wait_until(lambda: server.clients()[0].messages == 20)
            while client.last_id < FIRST_ID + 10 + 19:
                client.receive_many(DEADLINE)
            client.ack(FIRST_ID + 10 + 17)
            info_after(server, 10 + 18)
            wait_until(lambda: server.stats().unread == 0)
            found = server.stats()
            packets = {"shared": found.packets, "framed": 2, "classic": 30}[delivery]
            assert asdict(found) == {
                "oldest_id": FIRST_ID,
                "next_id": FIRST_ID + 30,
                "log_size": 16 << 20,
                "log_used": 30 * FRAME,
                "log_held": 2 * FRAME,
                "published": 30,
                "published_bytes": 30 * SIZE,
                "delivered": 30,
                "delivered_bytes": 30 * SENT_BYTES[delivery],
                "packets": packets,
                "skipped": 0,
                "clients": 1,
                "unread": 0,
                "kernel_bytes": 0,
                "cursor_pages": int(delivery == "shared"),
                "waits": 0,
                "rounds": found.rounds,
                "inline_rounds": found.inline_rounds,
            }
        wait_until(lambda: server.stats().clients == 0)
        assert server.stats().log_held == 0


@pytest.mark.parametrize("delivery", ["framed", "classic"])
@pytest.mark.usefixtures("large_log")
def test_what_a_full_socket_holds_back_is_queued(address: str, delivery: Delivery) -> None:
    with Server(address) as server, Client(address, delivery=delivery):
        server.wait_for_clients(1, DEADLINE)
        server.publish_many([bytes(10_000)] * 1000)
        wait_until(lambda: server.clients()[0].messages)
        info, stats = server.clients()[0], server.stats()
        assert 0 < info.messages < 1000
        assert info.queued == 1000 - info.messages
        assert info.unacked == info.messages
        assert info.sent_id == FIRST_ID + info.messages - 1
        assert info.lag == 1000
        assert info.lag_bytes == stats.log_held == stats.log_used == 1000 * 10_016
        assert info.kernel_bytes == stats.kernel_bytes > info.messages * 10_000
        assert stats.delivered == info.messages
        assert (info.acked_id, info.last_ack) == (0, None)


def test_a_client_that_is_gone_with_unread_packets_is_counted_as_such(address: str) -> None:
    with Server(address) as server, raw_client(server, address) as client:
        server.publish_many([bytes(10_000)] * 10)
        wait_until(lambda: server.clients()[0].messages == 10)
        server.disconnect(server.clients()[0])
        wait_until(lambda: server.stats().unread == 1)
        assert server.stats().clients == 0
        assert server.stats().kernel_bytes > 10 * 10_000
        client.close()
        wait_until(lambda: server.stats().unread == 0)
        assert server.stats().kernel_bytes == 0


@all_deliveries
def test_each_wait_of_a_publisher_is_counted_once(address: str, delivery: Delivery) -> None:
    with (
        Server(address, on_lag="block", max_lag=5, share_log=True) as server,
        Client(address, delivery=delivery) as client,
    ):
        server.wait_for_clients(1, DEADLINE)
        for _ in range(5):
            server.publish(b"fits")
        assert server.stats().waits == 0
        # The last one comes back again and again within its wait, to look at signals.
        for count, timeout in enumerate((0.01, 0.01, 0.15), 1):
            with pytest.raises(Timeout):
                server.publish(b"does not", timeout)
            assert server.stats().waits == count
        for _ in range(5):
            client.receive(DEADLINE)
        client.ack()
        server.publish(b"fits")
        assert server.stats().published == 6


@all_deliveries
def test_a_publisher_that_finds_room_at_its_second_look_did_not_wait(
    address: str, delivery: Delivery
) -> None:
    with (
        Server(address, max_lag=1, share_log=True) as server,
        Client(address, delivery=delivery) as client,
    ):
        server.wait_for_clients(1, DEADLINE)
        for _ in range(200):
            server.publish(b"message")
            client.receive(DEADLINE)
            client.ack()
        # That the server's thread was at work just then is no wait for a client.
        assert server.stats().waits == 0


@all_deliveries
def test_what_clients_were_made_to_skip_still_counts_once_they_are_gone(
    address: str, delivery: Delivery
) -> None:
    with Server(address, on_lag="skip", max_lag=5, patience=0, share_log=True) as server:
        with Client(address, delivery=delivery) as client:
            server.wait_for_clients(1, DEADLINE)
            for _ in range(20):
                server.publish(b"message")
            (info,) = server.clients()
            assert (info.queued, info.lag, info.lag_bytes) == (0, 5, 0)  # it needs none of the log
            # It misses all but the newest, for all that is known, and that is told while it hangs.
            assert info.skipped == server.stats().skipped == 20 - info.messages - 1
            while client.receive(DEADLINE) and client.last_id < FIRST_ID + 19:
                client.ack()
            client.ack()
            info = info_after(server, 20)
            assert info.skipped == client.missed == 20 - info.messages
            assert 0 < info.skipped < 20
            assert server.stats().skipped == info.skipped
            assert 5 <= info.worst_lag <= 6
        wait_until(lambda: server.stats().clients == 0)
        assert server.stats().skipped == info.skipped
        assert server.stats().delivered == info.messages


@all_deliveries
def test_the_last_figures_of_a_client_that_was_cut(address: str, delivery: Delivery) -> None:
    gone: list[ClientInfo] = []
    with Server(
        address, max_lag=5, patience=0, on_disconnect=lambda info, _: gone.append(info)
    ) as server:
        with Client(address, delivery=delivery) as client:
            server.wait_for_clients(1, DEADLINE)
            server.publish(b"first")
            client.receive(DEADLINE)
            client.ack()
            info_after(server, 1)
            for _ in range(6):
                server.publish(b"message")
            wait_until(lambda: gone)
    (info,) = gone
    assert (info.reason, info.limit, info.limit_kind) == (EndReason.LAGGED, 5, "messages")
    assert (info.lag, info.worst_lag, info.acked_id) == (5, 5, FIRST_ID)
    assert info.error == ""


@pytest.mark.only_shared
def test_a_wake_up_in_the_socket_is_a_packet(address: str) -> None:
    with Server(address) as server, hand_made_client(server, address) as client:
        client.sleep(1)
        server.publish(b"message")
        assert next(client.packets()).kind == WAKE_KIND
        assert (server.clients()[0].packets, server.stats().packets) == (1, 1)


def take(client: Client) -> None:
    """Receive ten messages, and ack them."""
    for _ in range(10):
        client.receive(DEADLINE)
    client.ack()


@all_deliveries
def test_a_lag_that_is_over_before_anybody_looks_is_the_worst(
    address: str, delivery: Delivery
) -> None:
    with (
        Server(address, share_log=True) as server,
        Client(address, delivery=delivery) as client,
    ):
        server.wait_for_clients(1, DEADLINE)
        taking = Task(lambda: take(client))
        taking.sleeps_in("take")
        server.publish_many([b"message"] * 10)
        taking.result()
        info = info_after(server, 10)
        assert (info.lag, info.worst_lag) == (0, 10)


@pytest.mark.only_shared  # here the server takes acks when it needs them
def test_acks_that_the_server_has_not_taken_yet_make_no_lag(server: Server, address: str) -> None:
    with Client(address) as client:
        server.wait_for_clients(1, DEADLINE)
        for _ in range(20):
            server.publish_many([b"message"] * 10)
            take(client)
        assert info_after(server, 200).worst_lag <= 10


@pytest.mark.only_shared
def test_an_ack_of_what_was_not_published_makes_no_lag(address: str) -> None:
    gone: list[ClientInfo] = []
    with (
        Server(address, on_disconnect=lambda info, _: gone.append(info)) as server,
        hand_made_client(server, address) as client,
    ):
        client.ack(FIRST_ID + 1000)
        server.publish(b"message")
        wait_until(lambda: not server.clients())
        wait_until(lambda: gone)
    assert (gone[0].reason, gone[0].worst_lag) == (EndReason.PROTOCOL, 1)


@all_deliveries
def test_a_client_that_is_just_being_let_in_is_behind_what_was_published(
    address: str, monkeypatch: pytest.MonkeyPatch, delivery: Delivery
) -> None:
    def release(*arguments: Any) -> int:
        assert looked.wait(DEADLINE)
        return lib.jmk_server_release(*arguments)

    looked = threading.Event()
    with Server(address, share_log=True) as server:
        monkeypatch.setattr(control, "lib", But(lib, "jmk_server_release", release))
        with Client(address, delivery=delivery) as client:
            server.publish_many([b"message"] * 10)
            lag = server.clients()[0].lag
            looked.set()
            assert lag == 10
            take(client)
            assert info_after(server, 10).lag == 0


@pytest.mark.only_shared  # here an ack is a store, of which nothing tells the server
@pytest.mark.parametrize("way", ["leaves", "is sent away"])
def test_the_last_ack_of_a_client_counts_however_it_ends(address: str, way: str) -> None:
    gone: list[ClientInfo] = []
    with Server(address, on_disconnect=lambda info, _: gone.append(info)) as server:
        with hand_made_client(server, address) as client:
            server.publish_many([b"one", b"two"])
            (info,) = server.clients()
            client.ack(FIRST_ID + 1)
            if way == "leaves":
                client.sock.shutdown(socket.SHUT_RDWR)
            else:
                server.disconnect(info)
            wait_until(lambda: gone)
    assert (gone[0].acked_id, gone[0].lag, gone[0].unacked) == (FIRST_ID + 1, 0, 0)


# ---- metrics

OF_SERVER: dict[str, tuple[str, Literal["counter", "gauge"]]] = {
    "published_messages": ("published", "counter"),
    "published_bytes": ("published_bytes", "counter"),
    "delivered_messages": ("delivered", "counter"),
    "delivered_bytes": ("delivered_bytes", "counter"),
    "packets": ("packets", "counter"),
    "skipped_messages": ("skipped", "counter"),
    "pump_rounds": ("rounds", "counter"),
    "pump_inline_rounds": ("inline_rounds", "counter"),
    "publish_waits": ("waits", "counter"),
    "clients": ("clients", "gauge"),
    "cursor_pages": ("cursor_pages", "gauge"),
    "unread_clients": ("unread", "gauge"),
    "kernel_bytes": ("kernel_bytes", "gauge"),
    "log_size_bytes": ("log_size", "gauge"),
    "log_used_bytes": ("log_used", "gauge"),
    "log_held_bytes": ("log_held", "gauge"),
}
OF_CLIENT: dict[str, Literal["counter", "gauge"]] = {
    "lag_messages": "gauge",
    "lag_bytes": "gauge",
    "delivered_messages": "counter",
    "acked_messages": "counter",
}


def test_each_figure_of_a_server_but_ids_is_a_metric() -> None:
    figures = {each.name for each in fields(ServerStats)} - {"oldest_id", "next_id"}
    assert {field for field, _ in OF_SERVER.values()} == figures


CALLED = "reader"
CLIENTS = {1: (3, 30, 100, 60), 2: (9, 20, 90, 40), 3: (5, 50, 80, 70)}
"""Of each client by its key: lag, bytes of it, messages, those it acked."""

Figures = dict[tuple[str, frozenset[tuple[str, str]]], tuple[str, float]]
"""By name and labels, but for the address: kind and figure."""


@pytest.fixture
def still(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a server whose figures stay as they are, each of another value."""
    stats = ServerStats(**{each.name: 7 + at for at, each in enumerate(fields(ServerStats))})
    with Server(address) as server, Client(address, name=CALLED):
        (like,) = server.clients()
        clients = tuple(
            replace(like, key=key, lag=lag, lag_bytes=size, messages=sent, unacked=sent - acked)
            for key, (lag, size, sent, acked) in CLIENTS.items()
        )
        monkeypatch.setattr(server, "stats", lambda: stats)
        monkeypatch.setattr(server, "clients", lambda: clients)
        monkeypatch.setattr(
            Server, "endings", {reason: 40 + at for at, reason in enumerate(EndReason)}
        )
        yield server


def due(server: Server, most_clients: int) -> Figures:
    """What must be found: those with the largest lag are the worst clients."""
    stats = server.stats()
    found: Figures = {
        (name, frozenset()): (kind, getattr(stats, field))
        for name, (field, kind) in OF_SERVER.items()
    }
    for at, reason in enumerate(EndReason):
        labels = frozenset({("reason", reason.name.lower())})
        found["disconnects", labels] = ("counter", 40 + at)
    for key in (2, 3, 1)[:most_clients]:
        labels = frozenset({("client", str(key)), ("pid", str(os.getpid())), ("name", CALLED)})
        for (name, kind), figure in zip(OF_CLIENT.items(), CLIENTS[key], strict=True):
            found[f"client_{name}", labels] = (kind, figure)
    return found


def labels_of(server: Server, labels: Iterable[tuple[str, object]]) -> frozenset[tuple[str, str]]:
    found = {(name, str(value)) for name, value in labels}
    assert ("address", server.address) in found
    return frozenset(found - {("address", server.address)})


def as_they_are(server: Server, most_clients: int) -> Figures:
    found: Figures = {}
    for metric in metrics(server, most_clients):
        for values, figure in metric.samples:
            labels = labels_of(server, zip(metric.labels, values, strict=True))
            found[metric.name.removeprefix("jumiks_"), labels] = (metric.kind, figure)
    return found


def scraped_by_prometheus(server: Server, most_clients: int) -> Figures:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    from jumiks.prometheus import Collector

    registry = CollectorRegistry()
    registry.register(Collector(server, most_clients=most_clients))
    found: Figures = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            name = sample.name.removeprefix("jumiks_")
            assert name.endswith("_total") == (family.type == "counter")
            labels = labels_of(server, sample.labels.items())
            found[name.removesuffix("_total"), labels] = (family.type, sample.value)
    return found


def read_by_opentelemetry(server: Server, most_clients: int) -> Figures:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, Sum

    from jumiks.opentelemetry import observe

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    observe(server, provider.get_meter("test"), most_clients=most_clients)
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    found: Figures = {}
    for metric in scope.metrics:
        if isinstance(metric.data, Sum):
            assert metric.data.is_monotonic
            kind = "counter"
        else:
            assert isinstance(metric.data, Gauge)
            kind = "gauge"
        for point in metric.data.data_points:
            labels = labels_of(server, (point.attributes or {}).items())
            found[metric.name.removeprefix("jumiks_"), labels] = (kind, point.value)
    return found


@pytest.mark.parametrize("most_clients", [1, 2, 50])
@pytest.mark.parametrize(
    "read",
    [
        as_they_are,
        pytest.param(scraped_by_prometheus, marks=needs("prometheus_client")),
        pytest.param(read_by_opentelemetry, marks=needs("opentelemetry.sdk")),
    ],
)
def test_each_metric_is_its_figure_and_a_counter_stays_one(
    still: Server, read: Callable[[Server, int], Figures], most_clients: int
) -> None:
    assert read(still, most_clients) == due(still, most_clients)


def test_each_figure_of_a_server_is_a_metric_but_for_a_few() -> None:
    left_out = {"oldest_id", "next_id"}
    assert {field for field, _ in OF_SERVER.values()} | left_out == {
        each.name for each in fields(ServerStats)
    }
