# SPDX-License-Identifier: Apache-2.0
"""Figures for OpenTelemetry, read as an exporter would."""

import pytest

pytest.importorskip("opentelemetry.sdk.metrics", reason="opentelemetry-sdk is not installed")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from support.servers import Server

from jumiks import Client, EndReason
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
