# SPDX-License-Identifier: Apache-2.0
"""A bridge's figures under the names that dashboards use; `jumiks.prometheus` exports them."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from typing import Final, Literal

from .._metrics import Metric
from .inbound import Inbound
from .outbound import Outbound

__all__: list[str] = []

_Rows = tuple[tuple[str, str, Literal["counter", "gauge"], str], ...]

_LOSSES: Final[_Rows] = (
    ("lost", "lost_messages", "counter", "Messages in gaps of known size"),
    ("unknown_gaps", "unknown_gaps", "counter", "Gaps of unknown size"),
)
_OUT: Final[_Rows] = (
    ("records", "records", "counter", "Records that the engine has acked"),
    ("messages", "messages", "counter", "Messages in them"),
    ("bytes", "bytes", "counter", "Bytes of their bodies"),
    ("outstanding", "outstanding_records", "gauge", "Records in flight"),
    ("outstanding_bytes", "outstanding_bytes", "gauge", "Bytes made and not acked by the engine"),
    (
        "source_lag",
        "source_lag_messages",
        "gauge",
        "Messages published by the source and not acked by the engine",
    ),
    ("ack_age", "ack_age_seconds", "gauge", "Seconds since the last ack of the engine"),
    ("conflicts", "conflicts", "counter", "Appends that found another end of the stream"),
    ("rewinds", "rewinds", "counter", "Times that the engine had lost what it had acked"),
    *_LOSSES,
)
_IN: Final[_Rows] = (
    ("records", "records", "counter", "Records read, those that came again included"),
    ("messages", "messages", "counter", "Messages published"),
    ("bytes", "bytes", "counter", "Bytes of them"),
    ("clients", "clients", "gauge", "Clients of the far feed"),
    ("record_age", "record_age_seconds", "gauge", "Seconds since the last record came"),
    ("repeated", "repeated_records", "counter", "Records that came again and were dropped"),
    ("restarts", "restarts", "counter", "Times that the stream was another one"),
    *_LOSSES,
)


def metrics(bridge: Outbound | Inbound) -> Iterator[Metric]:
    """Yield all figures of a bridge at one moment; each has the label `stream`.

    Args:
        bridge: either; any thread may ask.
    """
    stats, stream = bridge.stats(), bridge.stream
    out = isinstance(bridge, Outbound)
    prefix = "jumiks_bridge_out" if out else "jumiks_bridge_in"
    for field, name, kind, text in _OUT if out else _IN:
        value = getattr(stats, field)
        figure = nan if value is None else float(value)
        yield Metric(f"{prefix}_{name}", kind, text, ("stream",), (((stream,), figure),))
    running = (((stream,), float(stats.state == "running")),)
    yield Metric(f"{prefix}_running", "gauge", "1 while it runs, else 0", ("stream",), running)
    reconnects = [("engine", stats.engine_reconnects)]
    if out:
        reconnects.append(("source", getattr(stats, "source_reconnects")))  # noqa: B009
    yield Metric(
        f"{prefix}_reconnects",
        "counter",
        "Connections beyond the first, by side",
        ("stream", "side"),
        tuple(((stream, side), float(count)) for side, count in reconnects),
    )
    yield Metric(
        f"{prefix}_gaps",
        "counter",
        "Gaps, by reason",
        ("stream", "reason"),
        tuple(((stream, reason), float(count)) for reason, count in sorted(stats.gaps.items())),
    )
