# SPDX-License-Identifier: Apache-2.0
"""`jumiks status`: the status of a running server."""

from __future__ import annotations

import argparse
import json
import pwd
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jumiks import errors
from jumiks._peer import process_name
from jumiks._wire.status import ServerStatus
from jumiks.monitor import Monitor
from jumiks.stats import ClientInfo

__all__ = ["run"]

HEAD: Final = (
    *("PID", "COMMAND", "USER", "DELIVERY", "LAG", "SENT", "ACKED", "MSG/S", "BYTES/S", "AGE"),
)
_PLAIN: Final = frozenset(map(chr, range(0x20, 0x7F)))
LEFT: Final = {"COMMAND", "USER", "DELIVERY"}


def run(options: argparse.Namespace) -> int:
    """Print the status once, as a table or as JSON."""
    with Monitor(options.address) as monitor:
        status = monitor.status()
        if options.json:
            print(as_ascii(status.raw))
            return 0
        time.sleep(options.interval)
        for line in report(Sample(monitor.status(), status)):
            print(line)
    return 0


def as_ascii(text: str) -> str:
    """Return an equal JSON text that is safe to print on a terminal.

    What may come in it outside of its strings is ASCII, and of that nothing but white space needs
    to go.
    """
    return "".join(
        char if char in _PLAIN else " " if char in "\t\r\n" else json.dumps(char)[1:-1]
        for char in text
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """A status and an earlier one, for rates."""

    status: ServerStatus
    before: ServerStatus

    @property
    def seconds(self) -> float:
        """The time between the two."""
        return max(self.status.now - self.before.now, 1e-9)

    def rates(self, info: ClientInfo) -> tuple[float, float]:
        """A client's messages/s and bytes/s."""
        past = next((each for each in self.before.clients if each.key == info.key), None)
        messages, size = (past.messages, past.bytes) if past else (0, 0)
        seconds = self.seconds if past else max(self.status.now - info.since, 1e-9)
        return (info.messages - messages) / seconds, (info.bytes - size) / seconds

    @property
    def published(self) -> tuple[float, float]:
        """The server's messages/s and bytes/s."""
        now, past = self.status.stats, self.before.stats
        return (
            (now.published - past.published) / self.seconds,
            (now.published_bytes - past.published_bytes) / self.seconds,
        )


def short(value: float) -> str:
    """Return a number in about four digits."""
    for unit in ("", "k", "M", "G", "T"):
        if value < 9999.5 or unit == "T":
            return f"{value:.0f}{unit}" if value >= 100 or unit == "" else f"{value:.1f}{unit}"
        value /= 1000
    raise AssertionError


def age(seconds: float) -> str:
    """Return a time span in its two largest units."""
    whole = int(seconds)
    for size, unit, part, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part}{small}"
    return f"{seconds:.1f}s"


def program(status: ServerStatus) -> str:
    """Return the server's process and its name, as far as they can be seen from here."""
    if not status.pid:
        return errors.UNSEEN
    return f"process {status.pid} ({process_name(status.pid) or '-'})"


def user_of(uid: int) -> str:
    """Return a user's name, or the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def limit(status: ServerStatus) -> str:
    """Return the lag policy in words."""
    least = f"{status.max_lag} messages" if status.max_lag else "the log's bytes"
    return f"{status.on_lag} at {least}"


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def server_lines(sample: Sample) -> list[str]:
    """Return the lines on the server and its log."""
    status, stats = sample.status, sample.status.stats
    messages, size = sample.published
    count = stats.next_id - stats.oldest_id
    who = f"{program(status)}, up {age(status.now - status.started)}"
    crowd = f"{_several(stats.clients, 'client')}, {_several(status.monitors, 'monitor')}"
    used = f"{short(stats.log_used)}B of {short(stats.log_size)}B used"
    held = f"{short(stats.log_held)}B not acked by all"
    kept = _several(count, "message")
    kept += f", {stats.oldest_id} to {stats.next_id - 1}" if count else ""
    return [
        f"{status.address}  {who}, {crowd}",
        f"log     {kept}; {used}, {held}",
        f"rate    {short(messages)} msg/s, {short(size)}B/s; next id {stats.next_id}",
        f"policy  {limit(status)}",
    ]


def cells(sample: Sample, info: ClientInfo) -> tuple[str, ...]:
    """Return a client's row of the table."""
    messages, size = sample.rates(info)
    return (
        str(info.pid),
        info.command or "-",
        user_of(info.uid),
        info.delivery,
        str(info.lag),
        str(info.sent_id or "-"),
        str(info.acked_id or "-"),
        short(messages),
        short(size),
        age(sample.status.now - info.since),
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text in columns; the first one is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if name in LEFT else text.rjust(width)
            for name, text, width in zip(rows[0], row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def report(sample: Sample) -> list[str]:
    """Return the whole status as lines."""
    clients = sorted(sample.status.clients, key=lambda info: info.lag, reverse=True)
    lines = server_lines(sample)
    if clients:
        lines += ["", *table([HEAD, *(cells(sample, info) for info in clients)])]
    return lines
