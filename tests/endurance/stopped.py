# SPDX-License-Identifier: Apache-2.0
"""Clients that are stopped dead in their tracks must not slow the others.

A server publishes as fast as it can. Half of its clients are stopped by SIGSTOP, and the rate at
which the others receive is held against two others: that of the same clients before, and that of a
run in which there were only so many clients from the start. Both kinds of run take turns; each
ratio is taken within its round.
"""

import os
import signal
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from jumiks import Client, ConnectionEnded, Lagged, Server
from jumiks._server.lag import OnLag

from .common import (
    Children,
    Figures,
    Words,
    arguments,
    conclude,
    fresh_address,
    require,
    spread,
    there,
    wait_for,
)

GO, OVER, GONE, SKIPPED, CLIENT = 0, 1, 2, 3, 8
STRIDE: Final = 8
"""Words between two clients' counters: a cache line each."""
BATCH: Final = [bytes(64)] * 256


def serve(address: str, on_lag: OnLag, share_log: bool, log_size: int, words: Words) -> None:
    """Publish as fast as it goes, from the word on."""
    with Server(
        address, on_lag=on_lag, share_log=share_log, log_size=log_size, max_lag=None
    ) as server:
        wait_for(lambda: words[GO], "the word")
        while not words[OVER]:
            server.publish_many(BATCH)
            words[GONE] = sum(server.endings.values())
        words[SKIPPED] = server.stats().skipped


def follow(address: str, words: Words, place: int) -> None:
    """Count what comes; who is cut, as others were faster, comes again."""
    words[place] = 1
    try:
        while True:
            with Client(address) as client, suppress(Lagged):
                words[place + 1] = 1
                while True:
                    words[place] += len(client.receive_many())
    except (ConnectionRefusedError, ConnectionEnded) as end:
        require(words[OVER], f"the server is gone too early: {end}")


class Run:
    """A server and its clients, of which the first are the ones to be measured."""

    def __init__(
        self, children: Children, clients: int, on_lag: OnLag, share_log: bool, log_size: int
    ) -> None:
        self.words = Words(CLIENT + STRIDE * clients)
        self.children = children
        with fresh_address() as address:
            self.server = children.fork(
                partial(serve, address, on_lag, share_log, log_size, self.words)
            )
            wait_for(lambda: there(address), "the server")
            self.places = [CLIENT + STRIDE * index for index in range(clients)]
            self.clients = [
                children.fork(partial(follow, address, self.words, place)) for place in self.places
            ]
        wait_for(lambda: all(self.words[place + 1] for place in self.places), "all clients")
        self.words[GO] = 1
        time.sleep(0.3)  # until it runs at its pace

    def rate(self, measured: int, seconds: float) -> float:
        """Deliveries a second to the first so many clients; all of them must get some."""
        places = self.places[:measured]
        begin, before = time.monotonic(), [self.words[place] for place in places]

        def counts() -> list[int]:
            return [self.words[place] - old for place, old in zip(places, before, strict=True)]

        time.sleep(seconds)
        wait_for(lambda: min(counts()) > 0, f"each of {measured} clients to receive something")
        return sum(counts()) / (time.monotonic() - begin)

    def send(self, number: int, clients: Sequence[int]) -> None:
        """Send a signal to some clients."""
        for process in clients:
            os.kill(process, number)

    def finish(self) -> None:
        """End all; whoever was cut, or has the goodbye, ends well."""
        self.words[OVER] = 1
        self.send(signal.SIGCONT, self.clients)
        for process in (self.server, *self.clients):
            self.children.end(process)


@dataclass
class Setting:
    """What all runs have in common."""

    clients: int
    on_lag: OnLag
    share_log: bool
    log_size: int
    seconds: float

    def alone(self) -> dict[str, float]:
        """Only half of them from the start."""
        half = self.clients // 2
        with Children() as children:
            run = Run(children, half, self.on_lag, self.share_log, self.log_size)
            found = {"alone": run.rate(half, self.seconds)}
            run.finish()
        return found

    def stopped(self) -> dict[str, float]:
        """All of them, of which half are stopped then."""
        half = self.clients // 2
        with Children() as children:
            run = Run(children, self.clients, self.on_lag, self.share_log, self.log_size)
            found = {"before": run.rate(half, self.seconds)}
            gone = run.words[GONE]
            run.send(signal.SIGSTOP, run.clients[half:])
            found["stopped"] = run.rate(half, self.seconds)
            found["cut meanwhile"] = run.words[GONE] - gone
            run.finish()
            found["skipped"] = run.words[SKIPPED]
        return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=64, help="half of them are stopped")
    parser.add_argument("--on-lag", choices=["disconnect", "skip"], default="disconnect")
    parser.add_argument("--share-log", type=int, choices=[0, 1], default=1)
    parser.add_argument("--log-size", type=int, default=256 << 20, help="bytes")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0, help="ratio to half as many alone")
    options = parser.parse_args()
    setting = Setting(
        options.clients,
        options.on_lag,
        bool(options.share_log),
        options.log_size,
        options.seconds,
    )

    def run(figures: Figures) -> None:
        kinds = [setting.alone, setting.stopped]
        rounds: list[dict[str, float]] = []
        for _ in range(options.rounds):
            first, second = kinds
            rounds.append(first() | second())
            kinds.reverse()
        figures["rounds"] = rounds
        for name in rounds[0]:
            figures[name] = round(statistics.median(each[name] for each in rounds))
        for base in ("alone", "before"):
            ratios = [each["stopped"] / each[base] for each in rounds]
            figures[f"ratio to {base}"] = spread(ratios)
            figures[f"median of the ratio to {base}"] = round(statistics.median(ratios), 3)
        ratio = statistics.median(each["stopped"] / each["alone"] for each in rounds)
        require(ratio >= options.least, f"the others received at {ratio:.2f} of their rate alone")

    words = "the log shared" if options.share_log else "packets"
    conclude(f"stopped clients, {options.on_lag}, {words}", run, options.json)


if __name__ == "__main__":
    main()
