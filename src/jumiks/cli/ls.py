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
import stat
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from jumiks._peer import process_name
from jumiks._wire.address import MAX_PATH
from jumiks.errors import JumiksError, Refused, Timeout, counted, printable
from jumiks.monitor import Monitor

from .status import (
    LEFT,
    Sample,
    as_ascii,
    cut,
    short,
    shortened,
    table,
    terminal_width,
    worst_first,
)
from .streams import say

__all__ = ["run"]

SOCKETS: Final = "/proc/net/unix"
MOST: Final = 1000
"""Listening sockets that are asked; others than ours are few of them."""

_AT_A_TIME: Final = 32
_LISTENS: Final = b"00010000"  # __SO_ACCEPTCON
_SEQPACKET: Final = b"0005"
_ADDRESS: Final = 60
_DESCRIPTORS: Final = 1 << 16
"""Descriptors of one process that are looked at."""

UNSEEN: Final = "a relative path, of a process whose working directory cannot be seen from here"
MOVED: Final = "a relative path, and not there in the working directory that its process {pid} has"


class Place(NamedTuple):
    """Where a socket is listened at.

    Args:
        address: as anybody may give it.
        ask: the same as it fits the kernel; "" if it cannot be asked.
        problem: why it cannot.
    """

    address: str
    ask: str
    problem: str = ""


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
    places = list(listening())
    found = ask_all(places[:MOST], options.timeout, options.interval)
    if options.json:
        print(as_ascii(json.dumps([_facts(each) for each in found])))
        return 0
    rows = [_row(each) for each in found]
    if rows:
        width = terminal_width()
        for line in table(shortened([list(HEAD), *rows], "ADDRESS", _ADDRESS, width)):
            print(cut(line, width))
    else:
        say("no server was found that this user may see")
    if len(places) > MOST:
        say(f"not asked, as there are more than {MOST}: {counted(len(places) - MOST, 'socket')}")
    return 0


def listening() -> Iterator[Place]:
    """Yield where sockets of our type are listened at, each place once."""
    try:
        with open(SOCKETS, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise JumiksError(
            f"{SOCKETS}: {error.strerror}: the kernel lists the servers there; mount /proc, "
            "or give `jumiks status` an address"
        ) from None
    relative: list[tuple[str, str]] = []  # inode and path
    seen = set()
    for line in lines:
        parts = line.split(b" ", 6)
        if len(parts) < 7 or parts[3] != _LISTENS or parts[4] != _SEQPACKET:
            continue
        # The inode is padded with blanks, and a name may begin with some.
        inode, _, word = parts[-1].lstrip().partition(b" ")
        name = os.fsdecode(word)
        if name in ("", "@"):
            continue
        if not name.startswith(("@", "/")):
            relative.append((os.fsdecode(inode), name))
        elif name not in seen:
            seen.add(name)
            yield Place(name, name)
    # Two servers may have the same relative path, in two directories.
    owner = owners({inode for inode, _ in relative})
    found = {place_of(name, owner.get(inode, ())) for inode, name in relative}
    yield from sorted(each for each in found if each.address not in seen)


def owners(sockets: Set[str]) -> dict[str, list[str]]:
    """Return the processes that have each socket, by inode, as far as this user may look."""
    found: dict[str, list[str]] = {}
    for pid in filter(str.isdecimal, os.listdir("/proc") if sockets else ()):
        for inode in sockets_of(pid) & sockets:
            found.setdefault(inode, []).append(pid)
    return found


def sockets_of(pid: str) -> Set[str]:
    """Return the inodes of a process's sockets, as far as this user may look."""
    found = set()
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
        for each in islice(descriptors, _DESCRIPTORS):
            with suppress(OSError):
                link = os.readlink(each.path)
                if link.startswith("socket:["):
                    found.add(link[8:-1])
    return found


def place_of(name: str, pids: Sequence[str]) -> Place:
    """Return where a relative path is: in the working directory of a process that has the socket.

    Another one, such as a child, may have gone elsewhere.
    """
    problem = UNSEEN
    for pid in pids:
        folder = f"/proc/{pid}/cwd"
        with suppress(OSError):
            address = os.path.normpath(os.path.join(os.readlink(folder), name))
            problem = MOVED.format(pid=pid)
            is_there = stat.S_ISSOCK(os.stat(f"{folder}/{name}").st_mode)
            for path in (f"{folder}/{name}", address):  # the kernel takes none that is long
                if is_there and len(os.fsencode(path)) <= MAX_PATH:
                    return Place(address, path)
    return Place(name, "", problem)


def ask_all(places: list[Place], timeout: float, interval: float) -> list[Found]:
    """Ask all, many at a time; return those that are servers of ours, or may be, by address."""
    with ThreadPoolExecutor(min(_AT_A_TIME, len(places)) or 1) as pool:
        asked = pool.map(lambda each: ask(each, timeout, interval), places)
        return sorted(filter(None, asked), key=lambda each: each.address)


def ask(place: Place, timeout: float, interval: float) -> Found | None:
    """Ask one server twice, for rates; None if it is none of ours."""
    address = place.address
    if not place.ask:
        return Found(address, None, place.problem)
    with suppress(JumiksError, OSError, ValueError):
        try:
            with Monitor(place.ask, timeout=timeout) as monitor:
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
    address = printable(found.address)
    sample = found.sample
    if sample is None:
        return [address, *["-"] * 6, found.problem]
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
