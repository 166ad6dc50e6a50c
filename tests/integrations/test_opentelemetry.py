# SPDX-License-Identifier: Apache-2.0
"""Figures for OpenTelemetry, read as an exporter would."""

import pytest

pytest.importorskip("opentelemetry.sdk.metrics", reason="opentelemetry-sdk is not installed")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from support.servers import Server

from jumiks import Client, Closed, EndReason
from jumiks._metrics import metrics
from jumiks.opentelemetry import observe


def read(reader: InMemoryMetricReader) -> dict[str, list[NumberDataPoint]]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: [
            point for point in metric.data.data_points if isinstance(point, NumberDataPoint)
        ]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_a_reader_finds_the_figures_of_the_moment_and_none_of_a_closed_server(
    address: str,
) -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    with Server(address) as server, Client(address), Client(address):
        observe(server, meter, most_clients=1)
        server.publish_many([b"message"] * 3)
        found = read(reader)
        assert set(found) == {metric.name for metric in metrics(server)}
        (published,) = found["jumiks_published_messages"]
        assert (published.value, dict(published.attributes or {})) == (3, {"address": address})
        assert len(found["jumiks_client_lag_messages"]) == 1
        assert len(found["jumiks_disconnects"]) == len(EndReason)
        server.publish(b"message")
        (published,) = read(reader)["jumiks_published_messages"]
        assert published.value == 4
    assert not any(read(reader).values())


def published(reader: InMemoryMetricReader) -> dict[object, float]:
    points = read(reader).get("jumiks_published_messages", [])
    return {(point.attributes or {})["address"]: point.value for point in points}


@pytest.mark.parametrize("meter_of", ["one meter", "two of a name"])
def test_servers_of_one_meter_are_told_apart_and_one_may_close(
    address: str, meter_of: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    meters = [provider.get_meter("test")] * 2
    if meter_of == "two of a name":
        meters = [provider.get_meter("test") for _ in range(2)]
    with Server(address) as first, Server(f"{address}-2") as second, Client(second.address):
        observe(first, meters[0])
        observe(second, meters[1], most_clients=0)
        first.publish(b"message")
        second.publish_many([b"message"] * 2)
        assert published(reader) == {first.address: 1, second.address: 2}
        assert read(reader).get("jumiks_client_lag_messages", []) == []
        observe(second, meters[1])  # once more, as it should be
        assert len(read(reader)["jumiks_client_lag_messages"]) == 1
        first.close()
        assert published(reader) == {second.address: 2}
        with Server(address) as third:
            observe(third, meters[0])
            assert published(reader) == {second.address: 2, third.address: 0}
    assert not any(read(reader).values())
    with pytest.raises(Closed):
        observe(first, meters[0])
    assert not caplog.records


def test_swapped_arguments_are_told(address: str) -> None:
    meter = MeterProvider().get_meter("test")
    with Server(address) as server:
        with pytest.raises(TypeError, match=r"it must be a jumiks\.Server"):
            observe(meter, server)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="it must be a Meter of OpenTelemetry"):
            observe(server, "meter")  # type: ignore[arg-type]
