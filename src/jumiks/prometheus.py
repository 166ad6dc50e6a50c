# SPDX-License-Identifier: Apache-2.0
"""A server's figures for Prometheus; `pip install 'jumiks[prometheus]'`.

::

    prometheus_client.REGISTRY.register(Collector(server))
    prometheus_client.start_http_server(9100)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector as _Collector

from ._metrics import MOST_CLIENTS, Metric, metrics
from .errors import Closed

if TYPE_CHECKING:
    from .aio import AsyncServer
    from .server import Server

__all__ = ["Collector", "Figures"]

_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class Figures(_Collector):
    """Collects figures when they are scraped, and at no other time.

    Args:
        read: returns all figures of a moment; where it raises `Closed` there are none.
    """

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Family]:
        """All figures of this moment."""
        try:
            found = list(self._read())
        except Closed:
            return
        for metric in found:
            family = _FAMILIES[metric.kind](metric.name, metric.text, labels=metric.labels)
            for labels, figure in metric.samples:
                family.add_metric(labels, figure)
            yield family


class Collector(Figures):
    """Collects the figures of one server, when they are scraped and at no other time.

    Args:
        server: a `Server` or an `AsyncServer`. Once it is closed, there are no figures.
        most_clients: how many clients have figures of their own: those with the largest lag. So the
            labels of one scrape are bounded.
    """

    def __init__(self, server: Server | AsyncServer, *, most_clients: int = MOST_CLIENTS) -> None:
        super().__init__(lambda: metrics(server, most_clients))
