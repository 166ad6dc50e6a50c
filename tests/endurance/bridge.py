# SPDX-License-Identifier: Apache-2.0
"""Kills the bridge out, the bridge in and the engine at random moments, under load.

    PYTHONPATH=tests python -m endurance.bridge --rounds 30

A ledger says whether the far reader got each message of the source once and in order. Where the
bridge out gets no processor time for as long as the source's log lasts, the log has gone on without
it. That is a gap which the bridge tells, and no fault: such gaps are counted apart, as "lagged".
"""

import os
import random
import re
import time
from typing import Any

from support.bridges import Bridge, Publisher, Reader, both, message
from support.engines import KINDS, RealEngine, running
from support.servers import Server

from jumiks import Gap
from jumiks._wire.handshake import FIRST_ID

from .common import Figures, arguments, conclude, require, wait_for

LOG = 1 << 25
"""Bytes of the source's log: 20 s of messages, as starting takes seconds on a busy machine."""
SIZE = 64
HELD = LOG // (16 + SIZE)
"""Messages that the source's log holds."""
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


def told_as_lag(out: Bridge) -> set[tuple[int, int]]:
    """Gaps that the bridge out found at the source: first id, and how many messages."""
    words = r"gap at stream id (\d+): (\d+) messages? lost \((?:evicted|skipped)\)"
    return {(int(first), int(count)) for first, count in re.findall(words, out.log.decode())}


def lagged(gap: Gap, published: int, told: set[tuple[int, int]]) -> int:
    """How many messages are in a gap that a bridge out without processor time may tell.

    Args:
        gap: as the far reader was told it.
        published: messages that the source had published by then.
        told: what `told_as_lag` found.

    Returns:
        0 if it is a fault: the bridge out did not tell it, or the source's log still had them.
    """
    count, last = gap.count, gap.last
    if count is None or last is None or (gap.first, count) not in told:
        return 0
    behind = published - (last + 1 - FIRST_ID)
    return count if behind >= 0.95 * HELD else 0


def check(where: str, reader: Reader, out: Bridge, published: int) -> int:
    """Compare the ledgers; returns how many messages are in gaps of lag."""
    told, lost, due = told_as_lag(out), 0, set(range(published))
    for gap, by_then in zip(reader.gaps, reader.notes, strict=True):
        count = lagged(gap, by_then, told)
        require(count, f"{where}: {gap} at {by_then} messages; the bridge out told {told}")
        lost += count
        assert gap.last is not None
        due -= set(range(gap.first - FIRST_ID, gap.last + 1 - FIRST_ID))
    require(reader.numbers == sorted(due), f"{where}: {difference(reader.numbers, sorted(due))}")
    return lost


def difference(got: list[int], due: list[int]) -> str:
    """Where two ledgers part."""
    at = next((at for at, (a, b) in enumerate(zip(got, due, strict=False)) if a != b), len(due))
    here, there = got[at : at + 3], due[at : at + 3]
    return f"the ledgers part at entry {at} of {len(due)}: {here} came, {there} were due"


def kills(kind: str, victim: str, rounds: int, chance: random.Random) -> Figures:
    """Kill one victim again and again, until the log has wrapped too; returns what came of it."""
    address = f"@jumiks-bridge-kills-{os.getpid()}"
    far = f"{address}-far"
    with running(kind) as engine, Server(address, log_size=LOG) as source:
        reader = Reader(far, note=lambda: source.stats().published)
        with both(address, engine.url, far) as (out, inbound), reader:
            source.publish(message(0, SIZE))
            wait_for(reader.has(1), "the first message", PATIENCE)  # both have started
            with Publisher(source, RATE, SIZE, first=1) as publisher:
                done = 0
                while done < rounds or wraps(source) < 1:
                    done += 1
                    time.sleep(chance.uniform(0, LONGEST))
                    strike(victim, out, inbound, engine)
                    before = len(reader.numbers)
                    wait_for(reader.has(before + 1), "messages behind a kill", PATIENCE)
                publisher.stop()
                end = publisher.next - 1
                wait_for(lambda: end in reader.numbers[-1:], "the end", PATIENCE)
        wrapped = wraps(source)
        lost = check(f"{kind}, {victim}", reader, out, publisher.next)
    found = {"kills": done, "messages": publisher.next, "log wrapped": round(wrapped, 1)}
    return {**found, **({"lagged": lost} if lost else {})}


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
