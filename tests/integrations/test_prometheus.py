# SPDX-License-Identifier: Apache-2.0
"""Figures for dashboards, scraped as Prometheus scrapes them."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.base import ROOT

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.base import DEADLINE, wait_until
from support.servers import Server

from jumiks import Client, EndReason
from jumiks.prometheus import Collector

DASHBOARD = ROOT / "examples/grafana-dashboard.json"


def scrape(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples by name and labels, but for the address."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset((k, v) for k, v in sample.labels.items() if k != "address")): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def plain(name: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset()


def registry_of(server: Server, **options: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Collector(server, **options))
    return registry


def test_a_scrape_has_the_server_s_figures(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        server.wait_for_clients(1, DEADLINE)  # else nothing was delivered, though it may read
        registry = registry_of(server)
        server.publish_many([b"message"] * 10)
        for _ in range(4):
            client.receive(DEADLINE)
        client.ack()
        wait_until(lambda: server.clients()[0].lag == 6)
        found = scrape(registry)
        stats = server.stats()
        assert found[plain("jumiks_published_messages_total")] == 10
        assert found[plain("jumiks_published_bytes_total")] == 70
        assert found[plain("jumiks_delivered_messages_total")] == 10
        assert found[plain("jumiks_packets_total")] == stats.packets
        assert found[plain("jumiks_log_size_bytes")] == stats.log_size
        assert found[plain("jumiks_log_used_bytes")] == stats.log_used
        assert found[plain("jumiks_clients")] == 1
        (info,) = server.clients()
        pid = str(os.getpid())
        labels = frozenset({("client", str(info.key)), ("pid", pid), ("name", info.name)})
        assert found["jumiks_client_lag_messages", labels] == 6
        assert found["jumiks_client_lag_bytes", labels] == info.lag_bytes
        assert found["jumiks_client_acked_messages_total", labels] == 4


def test_disconnects_are_counted_by_reason(address: str) -> None:
    with Server(address, max_lag=1, patience=0) as server:
        registry = registry_of(server)
        with Client(address):
            server.wait_for_clients(1, DEADLINE)
        with Client(address):
            server.publish(b"one")
            server.publish(b"two")
            wait_until(lambda: server.endings[EndReason.LAGGED] == 1)
        wait_until(lambda: server.endings[EndReason.LEFT] == 1)
        found = scrape(registry)
        by_reason = {
            dict(labels)["reason"]: value
            for (name, labels), value in found.items()
            if name == "jumiks_disconnects_total"
        }
    assert {reason: count for reason, count in by_reason.items() if count} == {
        "lagged": 1,
        "left": 1,
    }
    assert set(by_reason) == {reason.name.lower() for reason in EndReason}


def test_the_labels_are_bounded_to_the_worst_clients(address: str) -> None:
    with Server(address) as server, Client(address) as slow, Client(address) as fast:
        server.publish(b"message")
        fast.receive(DEADLINE)
        fast.ack()
        wait_until(lambda: sum(info.lag for info in server.clients()) == 1)
        found = scrape(registry_of(server, most_clients=1))
        lags = [value for (name, _), value in found.items() if name == "jumiks_client_lag_messages"]
        assert lags == [1]
        assert slow.last_id == 0


def test_a_closed_server_has_no_figures_and_breaks_no_scrape(address: str) -> None:
    with Server(address) as server:
        registry = registry_of(server)
    assert scrape(registry) == {}


def test_several_servers_are_one_family_each_in_openmetrics(address: str) -> None:
    openmetrics = pytest.importorskip("prometheus_client.openmetrics.exposition")
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parsed

    registry = CollectorRegistry()
    others = [f"{address}-{number}" for number in range(2)]
    with Server(address) as first, Server(others[0]) as second:
        registry.register(collector := Collector(first, second))
        second.publish(b"message")

        def published() -> dict[str, float]:
            # Their own parser refuses a family that comes twice.
            families = parsed(openmetrics.generate_latest(registry).decode())  # type: ignore[no-untyped-call]
            (family,) = [each for each in families if each.name == "jumiks_published_messages"]
            return {sample.labels["address"]: sample.value for sample in family.samples}

        assert published() == {address: 0, others[0]: 1}
        second.close()
        assert published() == {address: 0}
        with Server(others[1]) as third:
            collector.add(third)
            assert published() == {address: 0, others[1]: 0}


@pytest.mark.parametrize("describes", [False, True])
def test_a_second_collector_in_a_registry_is_refused_when_it_is_registered(
    address: str, describes: bool
) -> None:
    registry = CollectorRegistry(auto_describe=describes)
    with Server(address) as first, Server(f"{address}-2") as second:
        registry.register(collector := Collector(first))
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            registry.register(Collector(second))
        registry.unregister(collector)
        registry.register(Collector(second))
        assert scrape(registry)


# ---- the dashboard


def queries() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        yield variable["query"]


def test_the_dashboard_asks_for_what_the_collector_has_and_for_all_of_it(address: str) -> None:
    asked = {name for query in queries() for name in re.findall(r"\bjumiks_\w+", query)}
    with Server(address) as server, Client(address):
        server.wait_for_clients(1, DEADLINE)
        had = {name for name, _ in scrape(registry_of(server))}
    assert asked == had


def test_the_dashboard_s_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        places = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not places & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= places


@pytest.mark.parametrize("query", list(queries()))
def test_each_query_has_its_brackets_in_order(query: str) -> None:
    open_ones: list[str] = []
    for sign in query:
        if sign in "([{":
            open_ones.append(sign)
        elif sign in ")]}":
            assert open_ones.pop() + sign in ("()", "[]", "{}")
    assert open_ones == []


@pytest.mark.no_core
@pytest.mark.parametrize("wrong", ["@ticks", None, object()])
def test_a_collector_takes_servers_alone(wrong: Any) -> None:
    for make in (lambda: Collector(wrong), lambda: Collector().add(wrong)):
        with pytest.raises(TypeError, match=r"it must be a jumiks\.Server or jumiks\.AsyncServer"):
            make()


@pytest.mark.no_core
@pytest.mark.parametrize("wrong", ["3", -1, 1.5, True])
def test_a_collector_takes_a_number_of_clients(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="most_clients"):
        Collector(most_clients=wrong)
