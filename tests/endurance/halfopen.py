# SPDX-License-Identifier: Apache-2.0
"""Half-open connections up to the limit, and how fast newcomers are let in beside them.

Peers in C (storm.c) connect and never reply, until the server has as many half-open connections as
it holds. Newcomers connect one after another; each is timed from the start of `Client(...)` until
its first message is there. Then the same while the silent ones are replaced as fast as they can be,
so that newcomers share the server's time and its backlog with thousands of others a second.
"""

import resource
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

from jumiks import Client, Delivery, Server
from jumiks._server.newcomers import MAX_JOINING

from .common import (
    Children,
    Figures,
    Words,
    arguments,
    conclude,
    descriptors_of,
    quantile,
    require,
    there,
    wait_for,
)
from .storm import build, let_loose, storming

OVER = 0
GOAL = 0.1
"""Seconds for a newcomer."""


def serve(address: str, words: Words) -> None:
    """Keep one message, so that a newcomer has one to get at once."""
    with Server(address, handshake_timeout=3600.0) as server:
        server.publish(b"the first")
        wait_for(lambda: words[OVER], "the end", 3600)


def join(address: str, delivery: Delivery) -> float:
    """Seconds until a newcomer has a message."""
    begin = time.monotonic()
    with Client(address, start="oldest", delivery=delivery) as client:
        client.receive(5.0)
        return time.monotonic() - begin


class Silent:
    """Connections that never reply to the hello, as many as the server holds."""

    def __init__(self, address: str, count: int) -> None:
        self.address = address
        self.count = count
        self.held: deque[socket.socket] = deque()

    def __enter__(self) -> Self:
        for _ in range(self.count):
            self.add()
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self.held:
            connection.close()

    def add(self) -> None:
        """One more; the oldest is the one that the server drops for it."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect("\0" + self.address[1:])
        self.held.append(connection)
        if len(self.held) > self.count:
            self.held.popleft().close()


def times(address: str, seconds: float, before: Callable[[], object] = int) -> list[float]:
    """One newcomer after another for so long, each after something else was done."""
    found: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before()
        found.append(join(address, "framed" if len(found) % 2 else "shared"))
        time.sleep(0.002)
    return found


def held() -> int:
    """How many connections a peer holds: those that the server accepts are to be open still."""
    backlog = int(Path("/proc/sys/net/core/somaxconn").read_text())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return min(MAX_JOINING + backlog, most - 64)


def settled(server: int) -> int:
    """How many descriptors it has once it has given back what it is giving back."""
    found = [0, 1]

    def twice_the_same() -> bool:
        time.sleep(0.05)
        found[:] = found[1], len(descriptors_of(server))
        return found[0] == found[1]

    wait_for(twice_the_same, "the server to be idle")
    return found[1]


def tell(figures: Figures, name: str, found: list[float]) -> None:
    """The distribution, ms."""
    for part in (0.5, 0.99):
        figures[f"{name}, p{100 * part:g}, ms"] = round(1000 * quantile(found, part), 2)
    figures[f"{name}, worst, ms"] = round(1000 * max(found), 2)
    figures[f"{name}, newcomers"] = len(found)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of the three phases")
    parser.add_argument("--peers", type=int, default=2, help="processes that replace them")
    parser.add_argument("--goal", type=float, default=GOAL, help="of the p99, s; 0 asks for none")
    options = parser.parse_args()

    def run(figures: Figures) -> None:
        words = Words(1)
        with tempfile.TemporaryDirectory(prefix="jmk-half-") as folder, Children() as children:
            address = f"@{Path(folder).name}"
            program = build(Path(folder))
            server = children.fork(partial(serve, address, words))
            wait_for(partial(there, address), "the server")
            join(address, "shared")
            idle = settled(server)
            found = {"alone": times(address, options.seconds)}
            with Silent(address, MAX_JOINING) as silent:
                full = idle + MAX_JOINING
                wait_for(lambda: len(descriptors_of(server)) == full, "the limit to be reached")
                # A newcomer is one too many: a silent one takes the place of what it cost.
                found["half-open at the limit"] = times(address, options.seconds, silent.add)
                figures["half-open"] = len(descriptors_of(server)) - idle
            storm = (program, address, "silent", options.seconds + 1, options.peers, held())
            with storming(*storm) as storms, ThreadPoolExecutor(1) as pool:
                replaced = pool.submit(let_loose, storms, options.seconds + 1)
                wait_for(lambda: len(descriptors_of(server)) > idle + MAX_JOINING // 2, "a storm")
                found["half-open and replaced"] = times(address, options.seconds)
                figures["replaced a second"] = round(
                    replaced.result()["through"] / (options.seconds + 1)
                )
            wait_for(lambda: len(descriptors_of(server)) == idle, "all descriptors given back")
            words[OVER] = 1
            children.end(server)
        for name, some in found.items():
            tell(figures, name, some)
            worst = quantile(some, 0.99)
            require(
                not options.goal or worst < options.goal,
                f"{name}: one newcomer in a hundred took {worst:.3f} s or more",
            )

    conclude("half-open connections", run, options.json)


if __name__ == "__main__":
    main()
