# SPDX-License-Identifier: Apache-2.0
"""Kills the bridge out, the bridge in and the engine at random moments, under load.

    PYTHONPATH=tests python -m endurance.bridge --rounds 30

A ledger says whether the far reader got each message of the source once and in order.
"""

import os
import random
import time
from typing import Any

from support.bridges import Bridge, Publisher, Reader, both
from support.engines import KINDS, RealEngine, running
from support.servers import Server

from .common import Figures, arguments, conclude, require, wait_for

LOG = 1 << 25
"""Bytes of the source's log: 20 s of messages, as starting takes seconds on a busy machine."""
RATE = 20_000
LONGEST = 0.6
"""Seconds until a kill, at most."""
PATIENCE = 120.0
VICTIMS = ("out", "in", "engine")


def strike(victim: str, out: Bridge, inbound: Bridge, engine: RealEngine) -> None:
    """Kill one of the three, and start it again."""
    if victim == "engine":
        engine.stop()
        engine.start()
        return
    bridge = out if victim == "out" else inbound
    bridge.stop(terminate=False)
    bridge.start()


def wraps(source: Server) -> float:
    """How often the source has filled its log."""
    stats = source.stats()
    return (stats.published_bytes + 16 * stats.published) / LOG


def kills(kind: str, victim: str, rounds: int, chance: random.Random) -> Figures:
    """Kill one victim again and again, until the log has wrapped too; returns what came of it."""
    address = f"@jumiks-bridge-kills-{os.getpid()}"
    far = f"{address}-far"
    with running(kind) as engine, Server(address, log_size=LOG) as source:
        with both(address, engine.url, far) as (out, inbound), Reader(far) as reader:
            with Publisher(source, RATE) as publisher:
                wait_for(reader.has(1), "the first message", PATIENCE)
                done = 0
                while done < rounds or wraps(source) < 1:
                    done += 1
                    time.sleep(chance.uniform(0, LONGEST))
                    strike(victim, out, inbound, engine)
                    before = len(reader.numbers)
                    wait_for(reader.has(before + 1), "messages behind a kill", PATIENCE)
                publisher.stop()
                end = publisher.next - 1
                wait_for(lambda: reader.gaps or end in reader.numbers[-1:], "the end", PATIENCE)
                require(not reader.gaps, f"{kind}, {victim}: gaps {reader.gaps}")
        wrapped = wraps(source)
        require(
            reader.numbers == list(range(publisher.next)),
            f"{kind}, {victim}: the ledgers differ",
        )
    return {"kills": done, "messages": publisher.next, "log wrapped": round(wrapped, 1)}


def run(options: Any, figures: Figures) -> None:
    """Kill each leg with each engine."""
    chance = random.Random(options.seed)
    for kind in options.engines:
        for victim in options.victims:
            figures[f"{kind}, {victim}"] = found = kills(kind, victim, options.rounds, chance)
            print(f"{kind}, {victim}: {found}", flush=True)


def main() -> None:
    """Run it as the arguments say."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="kills of each victim, at least")
    parser.add_argument("--engines", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    conclude("bridge", lambda figures: run(options, figures), options.json)


if __name__ == "__main__":
    main()
