# SPDX-License-Identifier: Apache-2.0
"""A server's figures under the names that dashboards use; `jumiks.prometheus` exports them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from ._options import check_count
from .aio import AsyncServer
from .server import Server

if TYPE_CHECKING:
    from .stats import ClientInfo

__all__ = ["Metric", "check_exported", "metrics"]

MOST_CLIENTS: Final = 50
"""How many clients, those with the largest lag, have figures of their own by default."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure, or one for each client or reason."""

    name: str
    """Without the unit `_total` that a counter gets in Prometheus."""
    kind: Literal["counter", "gauge"]
    text: str
    """What it is, in one line."""
    labels: tuple[str, ...]
    """Names of its labels."""
    samples: tuple[tuple[tuple[str, ...], float], ...]
    """Values of the labels, and the figure."""


_OF_STATS: Final[tuple[tuple[str, str, Literal["counter", "gauge"], str], ...]] = (
    ("published", "published_messages", "counter", "Messages published"),
    ("published_bytes", "published_bytes", "counter", "Bytes of payload published"),
    ("delivered", "delivered_messages", "counter", "Messages sent or offered to clients"),
    ("delivered_bytes", "delivered_bytes", "counter", "Bytes sent or offered, headers included"),
    ("packets", "packets", "counter", "Packets sent, all clients together"),
    ("skipped", "skipped_messages", "counter", "Messages skipped for clients at their limit"),
    ("rounds", "pump_rounds", "counter", "Times the pump looked for work"),
    ("inline_rounds", "pump_inline_rounds", "counter", "Those in a publisher's own thread"),
    ("waits", "publish_waits", "counter", "Times a publisher had to wait"),
    ("clients", "clients", "gauge", "Clients connected"),
    ("unread", "unread_clients", "gauge", "Clients gone that have not read all they were sent"),
    ("kernel_bytes", "kernel_bytes", "gauge", "Bytes that the sockets of all these hold"),
    ("cursor_pages", "cursor_pages", "gauge", "Cursor pages held by users that have a quota"),
    ("log_size", "log_size_bytes", "gauge", "Size of the log"),
    ("log_used", "log_used_bytes", "gauge", "Bytes of the log that keep messages"),
    ("log_held", "log_held_bytes", "gauge", "Those that some client has not acked"),
)

_OF_CLIENTS: Final[tuple[tuple[str, Literal["counter", "gauge"], str], ...]] = (
    ("lag_messages", "gauge", "Messages offered to a client and not acked"),
    ("lag_bytes", "gauge", "Bytes of the log that a client holds"),
    ("delivered_messages", "counter", "Messages sent to a client, or offered in the shared log"),
    ("acked_messages", "counter", "Messages that a client acked"),
)


def _of_client(info: ClientInfo) -> tuple[float, ...]:
    return info.lag, info.lag_bytes, info.messages, info.messages - info.unacked


def check_exported(server: object, most_clients: object = MOST_CLIENTS) -> None:
    """Check what an exporter was given, when it is made: later nobody would see the error.

    Raises:
        TypeError, ValueError: it is no server, or no number of clients.
    """
    if not isinstance(server, Server | AsyncServer):
        raise TypeError(f"{server!r:.100}: it must be a jumiks.Server or jumiks.AsyncServer")
    check_count("most_clients", most_clients)


def metrics(server: Server | AsyncServer, most_clients: int = MOST_CLIENTS) -> Iterator[Metric]:
    """Yield all figures of a server at one moment; each has the label `address`.

    Args:
        server: a `Server` or an `AsyncServer`; any thread may ask.
        most_clients: how many clients have figures of their own.

    Raises:
        Closed: the server is closed.
    """
    stats, address = server.stats(), server.address
    for field, name, kind, text in _OF_STATS:
        figure = float(getattr(stats, field))
        yield Metric(f"jumiks_{name}", kind, text, ("address",), (((address,), figure),))
    endings = tuple(
        ((address, reason.name.lower()), float(count)) for reason, count in server.endings.items()
    )
    yield Metric(
        "jumiks_disconnects",
        "counter",
        "Connections that ended, by reason",
        ("address", "reason"),
        endings,
    )
    worst = sorted(server.clients(), key=lambda info: info.lag, reverse=True)[:most_clients]
    labels = ("address", "client", "pid", "name")
    for index, (name, kind, text) in enumerate(_OF_CLIENTS):
        samples = tuple(
            ((address, str(info.key), str(info.pid), info.name), float(_of_client(info)[index]))
            for info in worst
        )
        yield Metric(f"jumiks_client_{name}", kind, text, labels, samples)
