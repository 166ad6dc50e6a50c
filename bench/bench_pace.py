# SPDX-License-Identifier: Apache-2.0
"""The publisher's pace beside one client that keeps up, and one more that does not.

The promise (docs/guarantees.md): the other lowers the pace by less than half. It is a process of
its own. One acks a message shortly before patience ends; one never reads and comes anew again and
again; one never reads and acks one message without end, under a policy that lets it stay (skip);
one is no client at all and keeps a core busy, as any process may.
"""

import multiprocessing
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.synchronize import Event

from jumiks import Client, OnLag, Server

from .conftest import Compare
from .harness import Outcome
from .plan import Ratio

SECONDS = 5.0
PATIENCE = 1.0
MAX_LAG = 1000
MESSAGE = bytes(64)
REPLY = struct.pack("<4HQ2I", 1, 0, 0, 1, 0, 0, 0)
ADDRESS = "@jumiks-bench-pace"
BUSY = ("a flood of acks", "a busy core")
"""These keep a core busy, so they are compared with each other."""


def joined() -> socket.socket:
    """A framed client by hand, which has its welcome."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect("\0" + ADDRESS[1:])
    sock.recv(4096)
    sock.send(REPLY)
    return sock


def trickles(over: Event) -> None:
    while not over.is_set():
        with joined() as sock:
            (packet_id,) = struct.unpack_from("<Q", sock.recv(4096), 8)
            while not over.wait(0.8 * PATIENCE):
                try:
                    sock.send(struct.pack("<Q", packet_id))
                except OSError:
                    break  # it was cut
                packet_id += 1


def is_silent(over: Event) -> None:
    while not over.is_set():
        with joined():
            over.wait(PATIENCE / 4)


def floods(over: Event) -> None:
    with joined() as sock:
        sock.recv(4096)  # the welcome
        (packet_id,) = struct.unpack_from("<Q", sock.recv(4096), 8)
        sock.settimeout(0.1)
        while not over.is_set():
            with suppress(TimeoutError):
                sock.send(struct.pack("<Q", packet_id))


def spins(over: Event) -> None:
    while not over.is_set():
        pass


def keeps_up(over: Event) -> None:
    with Client(ADDRESS) as client:
        for _ in client:
            if over.is_set():
                return


def pace(other: Callable[[Event], object] | None) -> Outcome:
    fork = multiprocessing.get_context("fork")
    over = fork.Event()
    on_lag: OnLag = "skip" if other is floods else "disconnect"
    with Server(ADDRESS, max_lag=MAX_LAG, patience=PATIENCE, on_lag=on_lag) as server:
        processes = [
            fork.Process(target=each, args=(over,), daemon=True)
            for each in (keeps_up, other)
            if each is not None
        ]
        for process in processes:
            process.start()
        server.wait_for_clients(len(processes) - (other is spins), 10)
        batch, published = [MESSAGE] * 100, 0
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            published += len(server.publish_many(batch))
        over.set()
    for process in processes:
        process.join(10)
    return Outcome({"rate": published / SECONDS}, published)


def test_pace(compare: Compare) -> None:
    others: dict[str, Callable[[Event], object] | None] = {
        "alone": None,
        "a trickling client": trickles,
        "a silent client": is_silent,
        "a flood of acks": floods,
        "a busy core": spins,
    }
    compare(
        "64 B, 1 client that keeps up, and",
        "the publisher's pace",
        {name: (lambda other=other: pace(other)) for name, other in others.items()},
        [
            Ratio(name, "alone", "rate", None if name in BUSY else 0.5)
            for name in others
            if name != "alone"
        ]
        + [Ratio("a flood of acks", "a busy core", "rate", 0.5)],
    )
