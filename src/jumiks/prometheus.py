# SPDX-License-Identifier: Apache-2.0
"""A server's figures for Prometheus; `pip install prometheus-client`.

::

    prometheus_client.REGISTRY.register(Collector(server))
    prometheus_client.start_http_server(9100)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector as _Collector

from ._metrics import MOST_CLIENTS, metrics
from .errors import Closed

if TYPE_CHECKING:
    from .aio import AsyncServer
    from .server import Server

__all__ = ["Collector"]

_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class Collector(_Collector):
    """Collects the figures of one server, when they are scraped and at no other time.

    Args:
        server: a `Server` or an `AsyncServer`. Once it is closed, there are no figures.
        most_clients: how many clients have figures of their own: those with the largest lag. So the
            labels of one scrape are bounded.
    """

    def __init__(self, server: Server | AsyncServer, *, most_clients: int = MOST_CLIENTS) -> None:
        self._server = server
        self._most_clients = most_clients

    def collect(self) -> Iterable[Family]:
        """All figures of this moment."""
        try:
            found = list(metrics(self._server, self._most_clients))
        except Closed:
            return
        for metric in found:
            family = _FAMILIES[metric.kind](metric.name, metric.text, labels=metric.labels)
            for labels, figure in metric.samples:
                family.add_metric(labels, figure)
            yield family
