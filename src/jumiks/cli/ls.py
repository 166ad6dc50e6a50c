# SPDX-License-Identifier: Apache-2.0
"""`jumiks ls`: the servers on this machine that this user may see.

The kernel lists all sockets that are listened at (proc_pid_net(5)). Anybody may listen at one, with
any name, and say anything or nothing. So each is asked in a thread of its own, for a limited time,
and what it says is cut and cleaned before it is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from jumiks._peer import process_name
from jumiks.errors import JumiksError, Refused, Timeout, counted, printable
from jumiks.monitor import Monitor

from .status import LEFT, Sample, as_ascii, cut, short, table, terminal_width, worst_first
from .streams import say

__all__ = ["run"]

SOCKETS: Final = "/proc/net/unix"
MOST: Final = 1000
"""Listening sockets that are asked; others than ours are few of them."""

_AT_A_TIME: Final = 32
_LISTENS: Final = b"00010000"  # __SO_ACCEPTCON
_SEQPACKET: Final = b"0005"
_ADDRESS: Final = 60


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a server."""

    address: str
    sample: Sample | None
    """None if it gave no status."""
    problem: str = ""
    """Why not."""


def run(options: argparse.Namespace) -> int:
    """Print the servers, as a table or as JSON."""
    addresses = list(listening())
    found = ask_all(addresses[:MOST], options.timeout, options.interval)
    if options.json:
        print(as_ascii(json.dumps([_facts(each) for each in found])))
        return 0
    rows = [_row(each) for each in found]
    if rows:
        for line in table([list(HEAD), *rows]):
            print(cut(line, terminal_width()))
    else:
        say("no server was found that this user may see")
    if len(addresses) > MOST:
        say(f"not asked, as there are more than {MOST}: {counted(len(addresses) - MOST, 'socket')}")
    return 0


def listening() -> Iterator[str]:
    """Yield the addresses that sockets of our type are listened at, each once."""
    try:
        with open(SOCKETS, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise JumiksError(
            f"{SOCKETS}: {error.strerror}: the kernel lists the servers there; mount /proc, "
            "or give `jumiks status` an address"
        ) from None
    seen = set()
    for line in lines:
        parts = line.split(b" ", 6)
        if len(parts) < 7 or parts[3] != _LISTENS or parts[4] != _SEQPACKET:
            continue
        # The inode is padded with blanks, and a name may begin with some.
        name = parts[-1].lstrip().partition(b" ")[2]
        # A relative path would be looked for in another directory than its server's.
        if name.startswith((b"@", b"/")) and len(name) > 1 and name not in seen:
            seen.add(name)
            yield os.fsdecode(name)


def ask_all(addresses: list[str], timeout: float, interval: float) -> list[Found]:
    """Ask all, many at a time; return those that are servers of ours, or may be, by address."""
    with ThreadPoolExecutor(min(_AT_A_TIME, len(addresses)) or 1) as pool:
        asked = pool.map(lambda each: ask(each, timeout, interval), addresses)
        return sorted(filter(None, asked), key=lambda each: each.address)


def ask(address: str, timeout: float, interval: float) -> Found | None:
    """Ask one server twice, for rates; None if it is none of ours."""
    with suppress(JumiksError, OSError, ValueError):
        try:
            with Monitor(address, timeout=timeout) as monitor:
                before = monitor.status()
                time.sleep(interval)
                return Found(address, Sample(monitor.status(), before))
        except Refused as error:
            return Found(address, None, printable(error.reason))
        except Timeout:
            return Found(address, None, f"no answer within {timeout:g} s")
    return None


HEAD: Final = ("ADDRESS", "PID", "PROGRAM", "CLIENTS", "MSG/S", "LAG", "LIMIT", "POLICY")
LEFT.update({"ADDRESS", "PROGRAM", "POLICY"})


def _row(found: Found) -> list[str]:
    address = cut(printable(found.address), _ADDRESS)
    sample = found.sample
    if sample is None:
        return [address, *["-"] * 6, cut(found.problem, _ADDRESS)]
    status = sample.status
    worst = worst_first(sample)[:1]
    return [
        address,
        str(status.pid or "-"),
        process_name(status.pid) or "-",
        str(len(status.clients)),
        short(sample.published[0]),
        *(str(info.lag) for info in worst),
        *(f"{100 * sample.share(info):.0f}%" for info in worst),
        *["-"] * (2 - 2 * len(worst)),
        cut(status.on_lag, 12),
    ]


def _facts(found: Found) -> dict[str, object]:
    sample = found.sample
    if sample is None:
        return {"address": found.address, "problem": found.problem}
    status, worst = sample.status, worst_first(sample)[:1]
    return {
        "address": found.address,
        "pid": status.pid,
        "program": process_name(status.pid),
        "clients": len(status.clients),
        "messages_per_second": sample.published[0],
        "worst_lag": worst[0].lag if worst else 0,
        "worst_share": sample.share(worst[0]) if worst else 0.0,
        "on_lag": status.on_lag,
        "max_lag": status.max_lag,
    }
