# SPDX-License-Identifier: Apache-2.0
"""A server's figures for OpenTelemetry; `pip install 'jumiks[opentelemetry]'`.

::

    meter = opentelemetry.metrics.get_meter("my-service")
    observe(server, meter)
    observe(another, meter)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ._metrics import MOST_CLIENTS, Metric, check_exported, metrics
from .errors import Closed

if TYPE_CHECKING:
    from .aio import AsyncServer
    from .server import Server

__all__ = ["observe"]


_lock: Final = threading.Lock()

_observed: Final[WeakKeyDictionary[Meter, dict[Server | AsyncServer, int]]] = WeakKeyDictionary()
"""The servers of each meter that has instruments, and how many clients of each have figures."""


def observe(
    server: Server | AsyncServer, meter: Meter, *, most_clients: int = MOST_CLIENTS
) -> None:
    """Have a server's figures looked at when the meter's reader asks.

    There is an instrument for each figure, for all servers of the meter: `address` tells these
    apart. The SDK takes an instrument only once, and drops a second one without a word. So give all
    servers the same `Meter` object: one that was got before the SDK was set up is another than one
    that was got after it, even if they have one name.

    Args:
        server: a `Server` or an `AsyncServer`. Once it is closed, there are no figures of it.
        meter: where the instruments belong.
        most_clients: how many clients have figures of their own: those with the largest lag.

    Raises:
        Closed: the server is closed.
        TypeError, ValueError: an argument is wrong; the text says what would be right.
    """
    check_exported(server, most_clients)
    if not isinstance(meter, Meter):
        raise TypeError(f"meter={meter!r:.100}: it must be a Meter of OpenTelemetry")
    found = list(metrics(server, most_clients))
    with _lock:
        is_new = meter not in _observed
        servers = _observed.setdefault(meter, {})
        servers[server] = most_clients
    if is_new:
        for index, metric in enumerate(found):
            _make_instrument(meter, servers, index, metric)


def _make_instrument(
    meter: Meter, servers: dict[Server | AsyncServer, int], index: int, metric: Metric
) -> None:
    def look(_options: CallbackOptions) -> Iterator[Observation]:
        with _lock:
            now = list(servers.items())
        for server, most_clients in now:
            try:
                figures = list(metrics(server, most_clients))[index]
            except Closed:
                with _lock:
                    servers.pop(server, None)
                continue
            for values, figure in figures.samples:
                yield Observation(figure, dict(zip(figures.labels, values, strict=True)))

    counter = metric.kind == "counter"
    make = meter.create_observable_counter if counter else meter.create_observable_gauge
    make(metric.name, callbacks=[look], description=metric.text)
