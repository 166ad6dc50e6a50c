# SPDX-License-Identifier: Apache-2.0
"""A server's figures for OpenTelemetry; `pip install 'jumiks[opentelemetry]'`.

::

    observe(server, opentelemetry.metrics.get_meter("my-service"))
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ._metrics import MOST_CLIENTS, metrics
from .errors import Closed

if TYPE_CHECKING:
    from .aio import AsyncServer
    from .server import Server

__all__ = ["observe"]


def observe(
    server: Server | AsyncServer, meter: Meter, *, most_clients: int = MOST_CLIENTS
) -> None:
    """Make an instrument for each figure of a server, looked at when the meter's reader asks.

    Args:
        server: a `Server` or an `AsyncServer`. Once it is closed, there are no figures.
        meter: where the instruments belong.
        most_clients: how many clients have figures of their own: those with the largest lag.
    """

    def instrument(index: int, kind: str, name: str, text: str) -> None:
        def look(_options: CallbackOptions) -> Iterable[Observation]:
            try:
                metric = list(metrics(server, most_clients))[index]
            except Closed:
                return
            for values, figure in metric.samples:
                yield Observation(figure, dict(zip(metric.labels, values, strict=True)))

        counter = kind == "counter"
        make = meter.create_observable_counter if counter else meter.create_observable_gauge
        make(name, callbacks=[look], description=text)

    for index, metric in enumerate(metrics(server, most_clients)):
        instrument(index, metric.kind, metric.name, metric.text)
