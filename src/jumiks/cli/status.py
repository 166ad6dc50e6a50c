# SPDX-License-Identifier: Apache-2.0
"""`jumiks status`: the status of a running server."""

from __future__ import annotations

import argparse
import json
import pwd
import shutil
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from jumiks import errors
from jumiks._peer import process_name
from jumiks._wire.handshake import NAME_SIZE
from jumiks._wire.status import ServerStatus
from jumiks.errors import counted
from jumiks.monitor import Monitor
from jumiks.stats import ClientInfo, share

__all__ = ["run"]

_PLAIN: Final = frozenset(map(chr, range(0x20, 0x7F)))
LEFT: Final = {"NAME", "USER", "DELIVERY", "LATELY"}
"""Columns of words; the others are numbers."""

DROPPED: Final = (
    *("SENT", "ACKED", "BYTES/S", "DELIVERY", "USER", "AGE", "PID", "LATELY", "WORST", "SKIPPED"),
    *("MSG/S", "ACKED/S"),
)
"""Columns that a narrow terminal has no room for, in this order."""

_NAME: Final = 24
"""Columns of a name that no other column takes from it."""

_GAP: Final = 2
_KILO: Final = 1023.5
"""Where `size_of` begins to have a unit."""


def run(options: argparse.Namespace) -> int:
    """Print the status once, as a table or as JSON."""
    with Monitor(options.address) as monitor:
        status = monitor.status()
        if options.json:
            print(as_ascii(status.raw))
            return 0
        time.sleep(options.interval)
        for line in report(Sample(monitor.status(), status), terminal_width()):
            print(line)
    return 0


def terminal_width() -> int:
    """Return how many columns there are for the output: in a pipe none is left out."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def as_ascii(text: str) -> str:
    """Return an equal JSON text that is safe to print on a terminal.

    What may come in it outside of its strings is ASCII, and of that nothing but white space needs
    to go.
    """
    return "".join(
        char if char in _PLAIN else " " if char in "\t\r\n" else json.dumps(char)[1:-1]
        for char in text
    )


@dataclass(frozen=True)
class Sample:
    """A status and an earlier one, for rates."""

    status: ServerStatus
    before: ServerStatus

    @property
    def seconds(self) -> float:
        """The time between the two."""
        return max(self.status.now - self.before.now, 1e-9)

    def rates(self, info: ClientInfo) -> tuple[float, float, float]:
        """Return a client's messages/s, acked messages/s and bytes/s."""
        past = self.past.get(info.key)
        acked = info.messages - info.unacked
        if past is None:
            seconds = max(self.status.now - info.since, 1e-9)
            return info.messages / seconds, acked / seconds, info.bytes / seconds
        return (
            (info.messages - past.messages) / self.seconds,
            (acked - past.messages + past.unacked) / self.seconds,
            (info.bytes - past.bytes) / self.seconds,
        )

    @cached_property
    def past(self) -> dict[int, ClientInfo]:
        """The earlier figures of each client."""
        return {each.key: each for each in self.before.clients}

    def share(self, info: ClientInfo) -> float:
        """Return how far a client is on its way to a limit; 1 is there."""
        return share(info, self.status.max_lag, self.status.stats.log_size)

    @property
    def acked(self) -> float:
        """The acked messages/s of all clients together."""
        return sum(self.rates(info)[1] for info in self.status.clients)

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


def server_lines(sample: Sample) -> list[str]:
    """Return the lines on the server and its log, which agree with the rows on its clients."""
    status, stats, infos = sample.status, sample.status.stats, sample.status.clients
    messages, size = sample.published
    count = stats.next_id - stats.oldest_id
    who = f"{program(status)}, up {age(status.now - status.started)}"
    crowd = f"{counted(len(infos), 'client')}, {counted(status.monitors, 'monitor')}"
    bare = " bytes" * (stats.log_used < _KILO)  # else it would look like messages
    used = f"{size_of(stats.log_used)}{bare} of {size_of(stats.log_size)} used"
    kept = counted(count, "message")
    kept += f", {stats.oldest_id} to {stats.next_id - 1}" if count else ""
    rate = f"{short(messages)} msg/s, {size_of(size)}/s published"
    policy = limit(status)
    if infos:
        rate += f"; {short(sample.acked)} msg/s acked, all clients together"
        worst = worst_first(sample)[0]
        policy += f"; nearest: {100 * sample.share(worst):.0f}%, {worst.lag} messages"
    return [
        f"{status.address}  {who}, {crowd}",
        f"log     {kept}; {used}",
        f"rate    {rate}",
        f"policy  {policy}",
    ]


def cells(sample: Sample, info: ClientInfo) -> dict[str, str]:
    """Return a client's row of the table, by column."""
    messages, acked, size = sample.rates(info)
    return {
        "NAME": cut(info.name or "-", NAME_SIZE),
        "PID": str(info.pid),
        "USER": user_of(info.uid),
        "DELIVERY": info.delivery,
        "LAG": str(info.lag),
        "LIMIT": f"{100 * sample.share(info):.0f}%",
        "WORST": str(info.worst_lag),
        "SKIPPED": str(info.skipped),
        "MSG/S": short(messages),
        "ACKED/S": short(acked),
        "BYTES/S": size_of(size),
        "SENT": str(info.sent_id or "-"),
        "ACKED": str(info.acked_id or "-"),
        "AGE": age(sample.status.now - info.since),
    }


def size_of(value: float) -> str:
    """Return a number of bytes in about four digits, with the units that options take."""
    for unit in ("", "K", "M", "G", "T"):
        if value < _KILO or unit == "T":
            whole = value >= 99.95 or value == int(value)
            return f"{value:.0f}{unit}" if whole else f"{value:.1f}{unit}"
        value /= 1024
    raise AssertionError


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def cut(text: str, width: int) -> str:
    """Return a text that takes no more columns; what is missing is marked."""
    if width_of(text) <= width:
        return text
    while width_of(text) >= width:
        text = text[:-1]
    return f"{text}…"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text in columns; the first one is the head."""
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    return [
        (" " * _GAP)
        .join(
            text + " " * (width - width_of(text))
            if name in LEFT
            else " " * (width - width_of(text)) + text
            for name, text, width in zip(rows[0], row, widths, strict=True)
        )
        .rstrip()
        for row in rows
    ]


def fitting(rows: Sequence[Mapping[str, str]], width: int) -> list[list[str]]:
    """Return the head and the rows, without the columns that there is no room for.

    Args:
        rows: each with a text for each column; one at least.
        width: of the terminal.
    """
    widths = {
        name: max(len(name), *(width_of(row[name]) for row in rows)) + _GAP for name in rows[0]
    }
    widths["NAME"] = min(widths["NAME"], _NAME + _GAP)  # names get what is left, and this at least
    for name in DROPPED:
        if sum(widths.values()) - _GAP <= width:
            break
        widths.pop(name, None)
    lines = [list(widths), *([row[name] for name in widths] for row in rows)]
    return shortened(lines, "NAME", _NAME, width)


def shortened(lines: Sequence[Sequence[str]], name: str, least: int, width: int) -> list[list[str]]:
    """Return lines of a table with one column cut, as far as the others leave no room for it.

    Args:
        lines: the table's; the first one is the head.
        name: of the column.
        least: columns of the terminal that it keeps.
        width: of the terminal.
    """
    at = lines[0].index(name)
    widths = [max(map(width_of, column)) + _GAP for column in zip(*lines, strict=True)]
    room = max(least, widths[at] - _GAP - max(0, sum(widths) - _GAP - width))
    return [[*line[:at], cut(line[at], room), *line[at + 1 :]] for line in lines]


def worst_first(sample: Sample) -> list[ClientInfo]:
    """Return the clients, the one nearest to a limit first."""
    return sorted(
        sample.status.clients, key=lambda info: (sample.share(info), info.lag), reverse=True
    )


def report(sample: Sample, width: int = sys.maxsize) -> list[str]:
    """Return the whole status as lines, cut to a terminal's width in columns."""
    lines = [cut(line, width) for line in server_lines(sample)]
    rows = [cells(sample, info) for info in worst_first(sample)]
    if rows:
        lines += ["", *(cut(line, width) for line in table(fitting(rows, width)))]
    return lines
