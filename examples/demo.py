# SPDX-License-Identifier: Apache-2.0
"""Publish every line of Python's standard library to five very different clients.

Each client is a process of its own:

* two that read as fast as they can: one reads the server's log in shared memory, one gets packets;
* one that speaks plain 1.0 and uses only the standard `socket` module (see `plain`);
* one that is slow: the publisher waits for it, because of `on_lag="block"`;
* one that stops: the server disconnects it after a second without enough acks, and it reads why
  when it goes on, long after.

Then it publishes ten million ticks as arrays of numpy, to two clients that receive arrays and add
up a column. (Without numpy it leaves this out.)

The exit status is 0 if the first four received exactly the bytes that were published, the last one
was told what it lost, and both sums are right.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import jumiks

MAX_LAG = 20_000
"""How many messages a client may be behind. A fast client handles these in well under a second, so
the slow client makes the publisher wait. The log (16 MiB by default) is never the limit."""

PATIENCE = 1.0
"""How many seconds a client may hold up the publisher before it is disconnected."""

SLEEP = 4.0
"""Seconds that the slow client sleeps in all."""

NAP_EVERY = 5_000
"""Messages between two of its naps."""

STOP_AFTER = 10_000
"""Messages that the stopped client receives before it stops."""

DEADLINE = 30.0
"""Seconds for all clients to connect, and later for the last of them to finish."""

FIRST_ID = 100_000

TICK = [("time", "<i8"), ("price", "<f8"), ("size", "<u4"), ("flags", "<u4")]
TICKS, TICKS_AT_ONCE = 10_000_000, 10_000

CLEAR = "\r\x1b[K"
"""Clears the terminal's current line."""


@dataclass
class Report:
    """What a client reports at its end."""

    messages: int = 0
    sha256: str = ""
    seconds: float = 0.0
    end: str = ""
    facts: dict[str, int | str] = field(default_factory=dict)


class Tally:
    """Counts and hashes the messages received."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()
        self._first = self._last = 0.0

    def add(self, message: bytes | memoryview) -> None:
        self._last = time.monotonic()
        if not self.count:
            self._first = self._last
        self.count += 1
        self._hash.update(message)

    def report(self, end: str, **facts: int | str) -> Report:
        return Report(self.count, self._hash.hexdigest(), self._last - self._first, end, facts)


# ---- the clients ----


def fast(address: str, delivery: jumiks.Delivery = "shared") -> Report:
    import jumiks

    tally = Tally()
    try:
        with jumiks.Client(address, delivery=delivery) as client:
            for message in client:
                tally.add(message)
    except jumiks.ConnectionEnded as error:
        return tally.report(type(error).__name__, text=str(error))
    return tally.report("server closed")


def slow(address: str, nap: float) -> Report:
    import jumiks

    tally = Tally()
    try:
        with jumiks.Client(address) as client:
            for message in client:
                tally.add(message)
                if tally.count % NAP_EVERY == 0:
                    time.sleep(nap)
    except jumiks.ConnectionEnded as error:
        return tally.report(type(error).__name__, text=str(error))
    return tally.report("server closed")


def stopped(address: str) -> Report:
    import jumiks

    tally = Tally()
    try:
        with jumiks.Client(address) as client:
            for message in client:
                tally.add(message)
                if tally.count == STOP_AFTER:
                    os.kill(os.getpid(), signal.SIGSTOP)
    except jumiks.Lagged as error:
        facts = {
            name: getattr(error, name)
            for name in ("limit", "limit_kind", "lag", "last_acked", "first_lost", "last_lost")
        }
        return tally.report("Lagged", text=str(error), **facts)
    return tally.report("server closed")


def plain(address: str) -> Report:
    """A complete plain 1.0 client: handshake, then an ack with the id of each message."""
    tally = Tally()
    id_size = 8
    # One buffer for all packets: a new one of this size costs ten times what the system call does.
    room = memoryview(bytearray(1 << 18))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(address.replace("@", "\0", 1))
        major, minor, _patch = struct.unpack("<HHH", sock.recv(6))
        if (major, minor) != (1, 0):
            return tally.report(f"the server speaks {major}.{minor}")
        sock.send(struct.pack("<HHH", 1, 0, 0))
        while True:
            try:
                size = sock.recv_into(room)
            except ConnectionResetError:
                continue  # the server closed with acks unread; its packets can still be read
            if not size:
                break
            tally.add(room[id_size:size])
            with suppress(ConnectionError):
                sock.send(room[:id_size])
    assert "jumiks" not in sys.modules
    return tally.report("end of stream")


def ticks(address: str) -> Report:
    """Add up a column of ticks that come as arrays."""
    import jumiks

    count, total, begin = 0, 0, 0.0
    with jumiks.Client(address) as client:
        while count < TICKS:
            found = client.receive_array(TICK, DEADLINE)
            begin = begin or time.monotonic()
            total += int(found["size"].sum())
            count += len(found)
    return Report(count, seconds=time.monotonic() - begin, facts={"total": total})


class Client:
    """A client's process, which prints its report. Leaving the `with` block kills it."""

    def __init__(self, name: str, role: str, *arguments: object) -> None:
        self.name = name
        # A process group of its own: Ctrl-C reaches only the demo, which then ends its clients.
        # If the demo is killed, the kernel sends SIGHUP and SIGCONT to a group that has a stopped
        # process and no parent left, so that a stopped client ends too.
        self.process = subprocess.Popen(
            [sys.executable, __file__, role, *map(str, arguments)],
            stdout=subprocess.PIPE,
            process_group=0,
        )

    def report(self) -> Report:
        output, _ = self.process.communicate(timeout=DEADLINE)
        if self.process.returncode != 0:
            return Report(end=f"failed with status {self.process.returncode}")
        return Report(**json.loads(output))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()


# ---- the publisher ----


def sources() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    foreign = {library / "site-packages", library / "dist-packages"}
    return sorted(path for path in library.rglob("*.py") if foreign.isdisjoint(path.parents))


def lines(paths: list[Path]) -> Iterator[list[bytes]]:
    for path in paths:
        yield path.read_bytes().splitlines(keepends=True)


class Progress:
    """Shows progress: one line that changes on a terminal, a few lines elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._begin = self._told = time.monotonic()
        self._live = sys.stdout.isatty()

    def show(self, server: jumiks.Server, done: int) -> None:
        now = time.monotonic()
        if now - self._told < (0.1 if self._live else 2.5):
            return
        self._told = now
        clients = server.clients()
        behind = max((client.lag for client in clients), default=0)
        text = (
            f"{now - self._begin:4.1f} s: {done:,} of {self._total:,} lines published, "
            f"{len(clients)} clients, the last is {behind:,} behind"
        )
        print(f"{CLEAR}{text}" if self._live else text, end="" if self._live else "\n", flush=True)

    def note(self, text: str) -> None:
        """Print a line of its own."""
        now = time.monotonic() - self._begin
        print(f"{CLEAR if self._live else ''}{now:4.1f} s: {text}", flush=True)

    def clear(self) -> None:
        if self._live:
            print(CLEAR, end="", flush=True)


def publish(server: jumiks.Server, paths: list[Path], progress: Progress) -> Report:
    """Publish all lines, and wait until the clients that are left have handled them."""
    digest, done, begin = hashlib.sha256(), 0, time.monotonic()
    try:
        for batch in lines(paths):
            server.publish_many(batch)
            for line in batch:
                digest.update(line)
            done += len(batch)
            progress.show(server, done)
        server.drain(DEADLINE)
    finally:
        progress.clear()
    return Report(done, digest.hexdigest(), time.monotonic() - begin)


def figures(report: Report, lag: str) -> tuple[str, ...]:
    rate = report.messages / max(report.seconds, 1e-9)
    seconds = f"{report.seconds:.1f} s"
    return f"{report.messages:,}", lag, seconds, f"{rate:,.0f}/s", report.sha256[:16] + "..."


def table(
    published: Report, reports: dict[Client, Report], seen: dict[int, jumiks.ClientInfo]
) -> str:
    rows: list[tuple[str, ...]] = [
        ("", "delivery", "messages", "lag at worst", "time", "rate", "SHA-256", "end")
    ]
    rows.append(("publisher", "", *figures(published, ""), ""))
    for client, report in reports.items():
        info = seen.get(client.process.pid)
        delivery, lag = (info.delivery, f"{info.worst_lag:,}") if info is not None else ("?", "?")
        rows.append((client.name, delivery, *figures(report, lag), report.end))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (False, False, True, True, True, True, False, False)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )


def faults(published: Report, reports: dict[Client, Report], paths: list[Path]) -> list[str]:
    found = []
    for client, report in reports.items():
        if client.name == "stopped":
            prefix = hashlib.sha256()
            for line in islice((line for batch in lines(paths) for line in batch), report.messages):
                prefix.update(line)
            if report.end != "Lagged":
                found.append(f"{client.name} was not told that it lagged: {report.end}")
            elif report.facts["first_lost"] != FIRST_ID + report.messages:
                found.append(f"{client.name} was told another loss than it had: {report.facts}")
            elif report.sha256 != prefix.hexdigest():
                found.append(f"what {client.name} got is not the beginning of what was published")
        elif (report.messages, report.sha256) != (published.messages, published.sha256):
            found.append(f"{client.name} did not receive what was published: {report.end}")
    return found


def demo_of_arrays() -> list[str]:
    """Publish ticks as arrays, and tell how fast they arrived; returns what went wrong."""
    import jumiks

    try:
        import numpy as np
    except ImportError:
        print("\nArrays are left out: pip install 'jumiks[numpy]'")
        return []
    address = f"@jumiks-demo-{os.getpid()}-arrays"
    some = np.zeros(TICKS_AT_ONCE, TICK)
    some["size"] = range(TICKS_AT_ONCE)
    due = TICKS // TICKS_AT_ONCE * int(some["size"].sum())
    with ExitStack() as stack:
        server = stack.enter_context(jumiks.Server(address, on_lag="block"))
        clients = [
            stack.enter_context(Client(f"arrays {number}", "ticks", address)) for number in (1, 2)
        ]
        server.wait_for_clients(len(clients), DEADLINE)
        for _ in range(TICKS // TICKS_AT_ONCE):
            server.publish_many(some)
        reports = {client.name: client.report() for client in clients}
    print(f"\n{TICKS:,} ticks of {some.itemsize} bytes, as arrays of numpy:")
    for name, report in reports.items():
        rate = report.messages / max(report.seconds, 1e-9) / 1e6
        sums = f"the sizes add up to {report.facts.get('total', 0):,}"
        print(
            f"{name}  {report.messages:,} in {report.seconds:.1f} s, {rate:.1f} million/s; {sums}"
        )
    return [
        f"{name} received other ticks: {report.end}"
        for name, report in reports.items()
        if (report.messages, report.facts.get("total")) != (TICKS, due)
    ]


def demo() -> int:
    import jumiks

    paths = sources()
    total = sum(map(len, lines(paths)))
    print(
        f"{total:,} lines of {len(paths):,} files in {sysconfig.get_path('stdlib')}, each a message"
    )
    address = f"@jumiks-demo-{os.getpid()}"
    seen: dict[int, jumiks.ClientInfo] = {}  # last figures of each client, by process id
    # `gone` reports a client that is disconnected. A log line would break the progress line.
    logging.getLogger("jumiks").addHandler(logging.NullHandler())
    progress = Progress(total)

    def gone(client: jumiks.ClientInfo, reason: jumiks.EndReason) -> None:
        seen[client.pid] = client
        if reason is jumiks.EndReason.LAGGED:
            progress.note(f"cut: {client}")

    with ExitStack() as stack:
        server = jumiks.Server(
            address, max_lag=MAX_LAG, on_lag="block", patience=PATIENCE, on_disconnect=gone
        )
        stack.callback(server.close, 0.0)
        clients = [
            stack.enter_context(client)
            for client in (
                Client("fast 1", "fast", address),
                Client("fast 2", "framed", address),
                Client("plain 1.0", "plain", address),
                Client("slow", "slow", address, SLEEP * NAP_EVERY / total),
                Client("stopped", "stopped", address),
            )
        ]
        server.wait_for_clients(len(clients), DEADLINE)
        published = publish(server, paths, progress)
        server.close()
        for client in clients:
            client.process.send_signal(signal.SIGCONT)
        reports = {client: client.report() for client in clients}

    print(table(published, reports, seen))
    for client, report in reports.items():
        if "text" in report.facts:
            print(f"\n{client.name} says: {report.facts['text']}.")
    found = faults(published, reports, paths) + demo_of_arrays()
    for fault in found:
        print(f"FAULT: {fault}")
    return 1 if found else 0


def main() -> int:
    if len(sys.argv) == 1:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            return demo()
        except KeyboardInterrupt:
            print("interrupted")
            return 128 + signal.SIGINT
    role, address, *rest = sys.argv[1:]
    if role == "slow":
        report = slow(address, float(rest[0]))
    else:
        roles = {
            "fast": fast,
            "framed": partial(fast, delivery="framed"),
            "plain": plain,
            "stopped": stopped,
            "ticks": ticks,
        }
        report = roles[role](address)
    with suppress(BrokenPipeError):  # the demo was killed, so nothing reads the report
        os.write(sys.stdout.fileno(), json.dumps(asdict(report)).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
