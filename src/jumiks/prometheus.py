# SPDX-License-Identifier: Apache-2.0
"""A server's figures for Prometheus; `pip install 'jumiks[prometheus]'`.

::

    prometheus_client.REGISTRY.register(Collector(server))
    prometheus_client.start_http_server(9100)

A registry takes one collector; give it all servers: `Collector(server, another)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector as _Collector

from ._metrics import MOST_CLIENTS, Metric, check_exported, metrics
from ._options import check_count
from .errors import Closed

if TYPE_CHECKING:
    from .aio import AsyncServer
    from .server import Server

__all__ = ["Collector", "Figures"]

_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class Figures(_Collector):
    """Collects figures when they are scraped, and at no other time.

    Args:
        read: returns all figures of a moment; where it raises `Closed` there are none. Those of one
            name become one family.
    """

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Family]:
        """All figures of this moment."""
        try:
            found = list(self._read())
        except Closed:
            return ()
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for metric in found:
            family = families.get(metric.name)
            if family is None:
                family = _FAMILIES[metric.kind](metric.name, metric.text, labels=metric.labels)
                families[metric.name] = family
            for labels, figure in metric.samples:
                family.add_metric(labels, figure)
        return families.values()

    def describe(self) -> Iterable[Family]:
        """Have `register` refuse a second collector of these names; a scrape would be malformed."""
        return self.collect()


class Collector(Figures):
    """Collects the figures of servers, when they are scraped and at no other time.

    A second one in the same registry raises `ValueError` there: give one collector all servers.

    Args:
        servers: each a `Server` or an `AsyncServer`. Once one is closed, it has no figures.
        most_clients: how many clients of each server have figures of their own: those with the
            largest lag. So the labels of one scrape are bounded.

    Raises:
        TypeError, ValueError: an argument is wrong; the text says what would be right.
    """

    def __init__(self, *servers: Server | AsyncServer, most_clients: int = MOST_CLIENTS) -> None:
        for server in servers:
            check_exported(server)
        check_count("most_clients", most_clients)
        self._servers = dict.fromkeys(servers)
        self._most_clients = most_clients
        super().__init__(self._of_all)

    def add(self, server: Server | AsyncServer) -> None:
        """Collect the figures of another server as well."""
        check_exported(server)
        self._servers[server] = None

    def _of_all(self) -> Iterator[Metric]:
        for server in tuple(self._servers):
            try:
                yield from list(metrics(server, self._most_clients))
            except Closed:
                self._servers.pop(server, None)
