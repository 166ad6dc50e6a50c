# SPDX-License-Identifier: Apache-2.0
"""Full load for a long time, while clients of all kinds come and go: does anything grow?

Three servers, one a policy, publish as fast as they can, each to clients of every delivery: some
take batches, some single messages, some look at messages in the log; some leave, some are killed,
some are stopped for a while. Every few seconds a line is written of what each server has: memory,
descriptors, threads, mappings, log, rates. At the end the second half is held against the first.
Clients check that what they get has no hole that was not told.
"""

import csv
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from jumiks import Client, ConnectionLost, Delivery, Gap, Lagged, Overwritten, Server
from jumiks._server.lag import OnLag

from .common import (
    DEADLINE,
    Children,
    Figures,
    Words,
    arguments,
    conclude,
    descriptors_of,
    fresh_address,
    log_mappings_of,
    require,
    status_of,
    wait_for,
)

OVER = 0
STRIDE: Final = 8
NEXT_ID, DELIVERED, LOG_USED, ENDED = range(4)
"""Words of each server, from its base on."""
POLICIES: Final[Sequence[OnLag]] = ("disconnect", "block", "skip")
DELIVERIES: Final[tuple[Delivery, ...]] = ("shared", "framed", "classic")
SHORTEST: Final = 0.2
"""Seconds that a client stays, at least."""
LEAST_SAMPLES: Final = 8
"""Samples of each server that a verdict needs."""
LONGEST: Final = 90.0
"""Seconds after which a run ends though it has fewer."""

COLUMNS: Final = (
    "seconds",
    "policy",
    "anonymous",
    "shared",
    "descriptors",
    "threads",
    "mappings",
    "clients",
    "log used",
    "published a second",
    "delivered a second",
    "gone",
)
FLAT: Final = {"descriptors": 4, "threads": 0, "mappings": 8}
"""What must not grow, and by how much the median of the second half may be above the first's; the
number of clients is not the same at all times. For memory it is an argument."""


# ---- the children ----


def serve(address: str, policy: OnLag, share_log: bool, words: Words, base: int) -> None:
    """Publish as fast as it goes until all is over."""
    sizes = random.Random(policy).choices([16, 64, 64, 256, 1024, 4096], k=1024)
    batch = [bytes(size) for size in sizes]
    # Those that are stopped for longer are cut.
    patience = 0.5 if policy == "block" else 1.0
    with Server(
        address,
        on_lag=policy,
        patience=patience,
        max_lag=50_000,
        log_size=8 << 20,
        share_log=share_log,
    ) as server:
        look = time.monotonic()
        while not words[OVER]:
            first = random.randrange(len(batch) - 64)
            server.publish_many(batch[first : first + random.choice([1, 8, 64])])
            if time.monotonic() >= look:
                look += 0.1
                stats = server.stats()
                words[base + NEXT_ID] = stats.next_id
                words[base + DELIVERED] = stats.delivered
                words[base + LOG_USED] = stats.log_used
                words[base + ENDED] = sum(server.endings.values())
                time.sleep(0)


def follow(address: str, delivery: Delivery, take: str, until: float) -> None:
    """Receive until it is time to leave, or the connection ends; fail on a hole not told of."""
    gaps: list[Gap] = []
    last = 0
    client = Client(address, delivery=delivery, on_gap=gaps.append)
    # A plain 1.0 client is cut without a word.
    cut = ConnectionLost if delivery == "classic" else Lagged
    with client, suppress(cut):
        while time.monotonic() < until:
            if take == "singly":
                client.receive(DEADLINE)
                first, end = client.last_id, client.last_id
            else:
                batch = client.receive_many(DEADLINE)
                first, end = batch.first_id, batch.last_id
                with suppress(Overwritten), batch:
                    list(batch.views() if take == "views" else batch)
            told = sum(gap.count or 0 for gap in gaps)
            gaps.clear()
            require(
                not last or first == last + 1 + told,
                f"{delivery}: {first} came after {last}, and {told} in between were told of",
            )
            last = end


# ---- the run ----


@dataclass
class Served:
    """One server, and the clients it has."""

    policy: OnLag
    address: str
    base: int
    process: int
    clients: dict[int, float]
    """When each leaves, by its process."""
    before: tuple[float, int, int] = (0.0, 0, 0)
    """When the last sample was taken, and what was published and delivered by then."""


class Soak:
    """Three servers with their clients, and the samples."""

    def __init__(
        self, children: Children, clients: int, longest: float, share_log: bool, seed: int
    ) -> None:
        self.longest = longest
        self.children = children
        self.words = Words(STRIDE * (len(POLICIES) + 1))
        self.random = random.Random(seed)
        self.count = clients
        self.stopped: list[tuple[float, int]] = []
        self.came = self.killed = 0
        self.begin = time.monotonic()
        self.samples: list[dict[str, float | str]] = []
        self.servers = []
        for index, policy in enumerate(POLICIES):
            with fresh_address() as address:
                base = STRIDE * (index + 1)
                work = partial(serve, address, policy, share_log, self.words, base)
                process = children.fork(work)
            self.servers.append(Served(policy, address, base, process, {}))
            wait_for(lambda base=base: self.words[base + NEXT_ID], "a server")  # type: ignore[misc]

    def go_on(self, seconds: float, every: float) -> None:
        """Clients come and go; a sample every so often, and no end before there are enough."""
        due = self.begin + every
        while (now := time.monotonic()) < self.begin + seconds or not self._has_enough(now):
            self.children.check(server.process for server in self.servers)
            for server in self.servers:
                self._reap(server)
                while len(server.clients) < self.count:
                    self._add(server)
            self._disturb(now)
            if now >= due:
                due += every
                for server in self.servers:
                    self._sample(server, now)
            time.sleep(0.01)

    def _has_enough(self, now: float) -> bool:
        # On a machine that is busy with other things, rounds are few.
        return len(self.samples) >= LEAST_SAMPLES * len(POLICIES) or now > self.begin + LONGEST

    def _add(self, server: Served) -> None:
        delivery = self.random.choice(DELIVERIES)
        take = self.random.choice(["batches", "batches", "views", "singly"])
        until = time.monotonic() + self.random.uniform(SHORTEST, self.longest)
        work = partial(follow, server.address, delivery, take, until)
        server.clients[self.children.fork(work)] = until
        self.came += 1

    def _reap(self, server: Served) -> None:
        for process in self.children.reap(server.clients):
            del server.clients[process]

    def _disturb(self, now: float) -> None:
        # Stop one for a while, or kill one; whoever is stopped goes on in time.
        for due, process in list(self.stopped):
            if now >= due:
                self.stopped.remove((due, process))
                if process in self.children.alive:
                    os.kill(process, signal.SIGCONT)
        server = self.random.choice(self.servers)
        if not server.clients or self.random.random() > 0.02:
            return
        victim = self.random.choice(list(server.clients))
        if self.random.random() < 0.5:
            os.kill(victim, signal.SIGSTOP)
            self.stopped.append((now + self.random.uniform(0.05, 1.5), victim))
        else:
            self.children.kill(victim)
            del server.clients[victim]
            self.killed += 1

    def _sample(self, server: Served, now: float) -> None:
        status = status_of(server.process)
        published, delivered = (self.words[server.base + at] for at in (NEXT_ID, DELIVERED))
        since, *counts = server.before
        server.before = now, published, delivered
        if not since:
            return  # rates need two
        found: Mapping[str, float | str] = {
            "seconds": round(now - self.begin, 1),
            "policy": server.policy,
            "anonymous": status["RssAnon"],
            "shared": status["RssShmem"],
            "descriptors": len(descriptors_of(server.process)),
            "threads": status["Threads"],
            "mappings": log_mappings_of(server.process),
            "clients": len(server.clients),
            "log used": self.words[server.base + LOG_USED],
            "published a second": round((published - counts[0]) / (now - since)),
            "delivered a second": round((delivered - counts[1]) / (now - since)),
            "gone": self.words[server.base + ENDED],
        }
        self.samples.append(dict(found))

    def finish(self) -> None:
        """Everybody leaves, and must end well."""
        for _, process in self.stopped:
            if process in self.children.alive:
                os.kill(process, signal.SIGCONT)
        for server in self.servers:
            for process in server.clients:
                self.children.end(process, self.longest + DEADLINE)
        self.words[OVER] = 1
        for server in self.servers:
            self.children.end(server.process)


# ---- what came of it ----


def halves(samples: Sequence[Mapping[str, float | str]], name: str) -> tuple[float, float]:
    """The medians of the first half, without its first quarter, and of the second."""
    values = [float(each[name]) for each in samples]
    quarter, half = len(values) // 8, len(values) // 2
    return statistics.median(values[quarter:half]), statistics.median(values[half:])


def judge(samples: Sequence[Mapping[str, float | str]], figures: Figures, most: int) -> None:
    """Say what grew; fail if something did that must not, memory by more than so many bytes."""
    grown = []
    flat = {"anonymous": most, **FLAT}
    for policy in POLICIES:
        ours = [each for each in samples if each["policy"] == policy]
        require(len(ours) >= LEAST_SAMPLES, f"{policy}: {len(ours)} samples are too few")
        for name in ("anonymous", "descriptors", "threads", "mappings", "log used"):
            before, after = halves(ours, name)
            figures[f"{policy}, {name}"] = {"first half": before, "second half": after}
            if name in flat and after > before + flat[name]:
                grown.append(f"{policy}: {name} grew from {before:,.0f} to {after:,.0f}")
        for name in ("published a second", "delivered a second"):
            before, after = halves(ours, name)
            figures[f"{policy}, {name}"] = {"first half": before, "second half": after}
            if not before or not after:
                grown.append(f"{policy}: {name}: none")
    require(not grown, "; ".join(grown))


def write_csv(samples: Sequence[Mapping[str, float | str]], file: Path) -> None:
    """All samples."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(samples)


def plot(samples: Sequence[Mapping[str, float | str]], file: Path) -> None:
    """What must be flat, over time; needs the `bench` extra."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    shown: Sequence[tuple[str, str, Callable[[float], float]]] = (
        ("anonymous", "anonymous memory, MB", lambda value: value / 1e6),
        ("descriptors", "descriptors", float),
        ("log used", "log, MB", lambda value: value / 1e6),
        ("published a second", "published a second", float),
        ("delivered a second", "delivered a second", float),
        ("gone", "clients gone by then", float),
    )
    figure, grid = plt.subplots(2, 3, figsize=(12, 6), sharex=True)
    for axes, (name, title, scale) in zip(grid.flat, shown, strict=True):
        for policy, style in zip(POLICIES, ("-", "--", ":"), strict=True):
            ours = [each for each in samples if each["policy"] == policy]
            minutes = [float(each["seconds"]) / 60 for each in ours]
            values = [scale(float(each[name])) for each in ours]
            axes.plot(minutes, values, style, label=policy, linewidth=1)
        axes.set(title=title, ylim=(0, None))
        axes.grid(color="#dddddd")
    for axes in grid[1]:
        axes.set_xlabel("minutes")
    grid[0][0].legend(title="on_lag", loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=60)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--clients", type=int, default=6, help="of each server at a time")
    parser.add_argument("--longest", type=float, default=8.0, help="seconds that a client stays")
    parser.add_argument("--most-growth", type=int, default=1 << 20, help="of memory, bytes")
    parser.add_argument("--share-log", type=int, choices=[0, 1], default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="file for the samples")
    parser.add_argument("--png", type=Path, help="file for a plot of them")
    options = parser.parse_args()

    def run(figures: Figures) -> None:
        with Children() as children:
            soak = Soak(
                children,
                options.clients,
                options.longest,
                bool(options.share_log),
                options.seed,
            )
            try:
                soak.go_on(options.seconds, options.every)
            finally:
                if options.csv:
                    write_csv(soak.samples, options.csv)
            soak.finish()
            figures |= {"clients that came": soak.came, "of them killed": soak.killed}
        if options.png:
            plot(soak.samples, options.png)
        judge(soak.samples, figures, options.most_growth)

    conclude("soak", run, options.json)


if __name__ == "__main__":
    main()
