# SPDX-License-Identifier: Apache-2.0
"""What is compared, and what is asked of it, as data: a new row is a line here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .adapters import BEFORE, CONTESTANTS, LOG_SIZES, RIVALS
from .harness import BEST, ITSELF, Ratio
from .work import Work

KB, MB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Plan:
    """One comparison.

    Args:
        group: what it is listed with.
        name: the name of the work.
        entries: who does what: a contestant and its work, by the name it has in the table.
        quick: who takes part in a quick run; nobody leaves the comparison out.
        ratios: what is asked of it.
        rounds: how many.
        seconds: of publishing in a run; half of it if quick.
    """

    group: str
    name: str
    entries: Mapping[str, tuple[str, Work]]
    quick: tuple[str, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    rounds: int = 3
    seconds: float = 0.4


def same(
    group: str,
    work: Work,
    names: Iterable[str],
    ratios: Iterable[Ratio] = (),
    quick: tuple[str, ...] = (),
    *,
    name: str = "",
    rounds: int = 3,
    seconds: float = 0.4,
) -> Plan:
    """All contestants do the same work."""
    entries = {each: (each, work) for each in names}
    return Plan(group, name or work.name, entries, quick, tuple(ratios), rounds, seconds)


EVERYBODY = (
    "jumiks",
    "jumiks-framed",
    "jumiks-classic",
    *(name for name in RIVALS if not CONTESTANTS[name].apart),
)
BESIDE_C = ("c-send", "c-sendmmsg", "c-packets", "core-framed", "core-shared")
IN_PLACE = ("jumiks-views", "jumiks-reserve-views", "jumiks-publish-views", "iceoryx2-views")
NOT_CLASSIC = tuple(name for name in (*EVERYBODY, *IN_PLACE) if name != "jumiks-classic")
LOOPS = ("jumiks", "jumiks-asyncio", "jumiks-uvloop")
FEW = ("jumiks", "jumiks-framed", "pyzmq", "socket", "iceoryx2")
WHOLE_BATCHES = ("jumiks-arrays", "jumiks-frames", "jumiks", "pyzmq", "core-shared")
QUICK_C = ("c-send", "c-packets", "core-classic", "core-framed", "core-shared", "c-memcpy")

LOGS = tuple(f"jumiks-log-{size}M" for size in LOG_SIZES)
CORE_LOGS = tuple(f"core-shared-log-{size}M" for size in LOG_SIZES)
CORE_BEFORE = f"core-shared-of-{BEFORE}"
SMALL = ("jumiks", "kickmsg", "subetha", "pyzmq")

BATCHED = "deliveries per second, batched"
AT_ONCE = "deliveries per second, arrays and frames"
SINGLY = "deliveries per second, one by one"
IN_LOOPS = "deliveries per second, in an event loop"
LATENCY = "latency"
C_TO_C = "C to C"
BY_LOG = "deliveries per second, by the size of the log"
GROWTH = "growth"
CALLS = "system calls per thousand messages, both ends"

# "jumiks" reads the shared log; "jumiks-framed" is the same over the socket.
PLANS = (
    same(
        BATCHED,
        Work(64, 1),
        (*EVERYBODY, *BESIDE_C),
        [
            Ratio("jumiks", "pyzmq", target=20.0),
            Ratio("jumiks", "core-shared"),
            Ratio("jumiks-framed", "pyzmq", target=12.0),
            Ratio("jumiks-framed", "socket"),
            Ratio("jumiks-framed", "core-framed"),
        ],
        (*FEW[:4], "jumiks-classic", *BESIDE_C),
        rounds=5,
    ),
    same(
        BATCHED,
        Work(64, 8),
        (*EVERYBODY, *BESIDE_C),
        [
            Ratio("jumiks", "pyzmq", target=18.0),
            Ratio("jumiks", "core-shared"),
            Ratio("jumiks-framed", "pyzmq", target=7.0),
            Ratio("jumiks-framed", "core-framed"),
        ],
        (*FEW[:4], "jumiks-classic", *BESIDE_C),
        rounds=5,
    ),
    same(
        BATCHED,
        Work(64, 64),
        (*EVERYBODY, *BESIDE_C),
        [Ratio("jumiks", BEST), Ratio("jumiks-framed", BEST)],
        rounds=2,
    ),
    same(
        BATCHED,
        Work(KB, 1),
        EVERYBODY,
        [Ratio("jumiks", BEST), Ratio("jumiks-framed", BEST)],
    ),
    same(
        BATCHED,
        Work(KB, 8),
        EVERYBODY,
        [Ratio("jumiks", BEST, target=10.0), Ratio("jumiks-framed", BEST, target=3.0)],
        FEW,
    ),
    same(
        BATCHED,
        Work(64 * KB, 1),
        (*EVERYBODY, *IN_PLACE),
        [
            Ratio("jumiks", BEST, target=1.5),
            Ratio("jumiks-framed", "pyzmq", target=1.8),
            Ratio("jumiks-framed", "socket", target=0.9),
            Ratio("jumiks-views", "iceoryx2-views"),
        ],
        FEW,
    ),
    same(
        BATCHED,
        Work(64 * KB, 8),
        (*EVERYBODY, *IN_PLACE),
        [
            Ratio("jumiks", BEST, target=1.5),
            Ratio("jumiks-reserve-views", BEST, target=5.0),
            Ratio("jumiks-reserve-views", "iceoryx2-views"),
            Ratio("jumiks-reserve-views", "jumiks-publish-views"),
            Ratio("jumiks-framed", "pyzmq", target=1.5),
            Ratio("jumiks-framed", BEST),
        ],
        FEW,
    ),
    same(BATCHED, Work(MB, 1), NOT_CLASSIC, [Ratio("jumiks", BEST)], rounds=2),
    same(
        BATCHED,
        Work(MB, 8),
        NOT_CLASSIC,
        [
            Ratio("jumiks", BEST, target=1.3),
            Ratio("jumiks-reserve-views", "iceoryx2-views", target=1.0),
            Ratio("jumiks-reserve-views", "jumiks-publish-views"),
        ],
        rounds=3,
    ),
    same(
        AT_ONCE,
        Work(64, 1),
        WHOLE_BATCHES,
        [
            Ratio("jumiks-arrays", "pyzmq", target=50.0),
            Ratio("jumiks-arrays", "core-shared", target=0.7),
            Ratio("jumiks-frames", "core-shared", target=0.7),
        ],
        WHOLE_BATCHES,
        name="64 B, 1 client, arrays and frames",
        rounds=5,
    ),
    same(
        AT_ONCE,
        Work(64, 8),
        WHOLE_BATCHES,
        [
            Ratio("jumiks-arrays", "pyzmq", target=50.0),
            Ratio("jumiks-arrays", "core-shared", target=0.6),
            Ratio("jumiks-frames", "core-shared"),
        ],
        WHOLE_BATCHES,
        name="64 B, 8 clients, arrays and frames",
        rounds=5,
    ),
    same(
        SINGLY,
        Work(64, 1, batched=False),
        (*EVERYBODY, "kickmsg"),
        [
            Ratio("jumiks", "pyzmq", target=6.5),
            Ratio("jumiks-framed", "pyzmq", target=2.5),
            Ratio("jumiks-framed", "socket"),
        ],
        FEW[:4],
        rounds=5,
    ),
    same(
        SINGLY,
        Work(64, 8, batched=False),
        (*EVERYBODY, "kickmsg"),
        [
            Ratio("jumiks", "pyzmq", target=4.0),
            Ratio("jumiks", BEST),
            Ratio("jumiks-framed", "pyzmq", target=1.5),
            Ratio("jumiks-framed", BEST),
        ],
        FEW,
    ),
    *(
        same(
            SINGLY,
            Work(52, clients, batched=False),
            SMALL,
            [Ratio("jumiks", name, target=1.0) for name in ("kickmsg", "subetha")],
            rounds=5,
        )
        for clients in (1, 8)
    ),
    same(
        IN_LOOPS,
        Work(64, 1),
        LOOPS,
        [Ratio(name, "jumiks", target=0.9) for name in LOOPS[1:]],
        name="64 B, 1 client, batched, in a loop",
        rounds=5,
    ),
    same(
        IN_LOOPS,
        Work(64, 1, batched=False),
        LOOPS,
        [Ratio(name, "jumiks", target=0.6) for name in LOOPS[1:]],
        name="64 B, 1 client, one by one, in a loop",
        rounds=5,
    ),
    same(
        LATENCY,
        Work(latency=True, pace=1000, messages=800),
        (*EVERYBODY, "kickmsg", "jumiks-spin"),
        [
            Ratio("jumiks", "socket", "p50", 0.8),
            Ratio("jumiks", "socket", "p99", 0.8),
            Ratio("jumiks", "kickmsg", "p50", 1.0),
            Ratio("jumiks", "pyzmq", "p50", 0.4),
            Ratio("jumiks-spin", "socket", "p50", 0.2),
            Ratio("jumiks-framed", "socket", "p50", 1.15),
            Ratio("jumiks-framed", "socket", "p99", 1.3),
            Ratio("jumiks-framed", "pyzmq", "p50", 0.4),
        ],
        (*FEW[:4], "jumiks-spin"),
        rounds=5,
    ),
    same(
        LATENCY,
        Work(latency=True, pace=10_000, messages=4000),
        EVERYBODY,
        [
            Ratio("jumiks", "socket", "p50"),
            Ratio("jumiks", "pyzmq", "p50"),
            Ratio("jumiks-framed", "socket", "p50"),
        ],
        rounds=2,
    ),
    *(
        same(
            BY_LOG,
            Work(size, clients),
            LOGS,
            [
                Ratio("jumiks-log-4M", "jumiks-log-16M"),
                Ratio("jumiks-log-4M", "jumiks-log-16M", "cpu"),
            ],
            name=f"{Work(size, clients).name}, by log",
            rounds=3,
        )
        for size in (64, KB, 64 * KB)
        for clients in (1, 8)
    ),
)

C_MODES = (
    "c-send",
    "c-acked",
    "c-sendmmsg",
    "c-packets",
    "c-memcpy",
    "core-classic",
    "core-classic-many",
    "core-framed",
    "core-shared",
)
C_RATIOS = (
    Ratio("core-classic", "c-send", target=0.9),
    Ratio("core-classic", "c-acked"),
    Ratio("core-classic-many", "c-sendmmsg"),
)
C_PLANS: tuple[Plan, ...] = (
    same(
        C_TO_C,
        Work(64, 1),
        C_MODES,
        [
            *C_RATIOS,
            Ratio("core-framed", "c-packets", target=0.5),
            Ratio("core-shared", "c-memcpy"),
        ],
        QUICK_C,
        name="64 B, 1 client, C to C",
        rounds=5,
        seconds=0.25,
    ),
    same(
        C_TO_C,
        Work(64, 8),
        C_MODES,
        [
            *C_RATIOS,
            Ratio("core-framed", "c-packets"),
            Ratio("core-shared", "c-memcpy", target=0.5),
        ],
        QUICK_C,
        name="64 B, 8 clients, C to C",
        rounds=5,
        seconds=0.25,
    ),
)

C_PLANS += tuple(
    same(
        C_TO_C,
        Work(size, clients),
        ("core-shared", CORE_BEFORE, *CORE_LOGS),
        [
            Ratio("core-shared", CORE_BEFORE, target=target),
            Ratio("core-shared-log-4M", CORE_BEFORE),
        ],
        name=f"{Work(size, clients).name}, C to C, by log",
        rounds=5,
        seconds=0.25,
    )
    for size, clients, target in ((64, 1, None), (64, 8, 1.5), (KB, 1, 3.5), (KB, 8, 4.0))
)

# Growth: the same contestant at more and more of the same.

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
MESSAGES = (100_000, 1_000_000, 10_000_000)


def by_clients(name: str) -> dict[str, tuple[str, Work]]:
    return {
        f"{name}, {count} client{'s' * (count > 1)}": (name, Work(64, count)) for count in CLIENTS
    }


GROWTH_PLANS = (
    Plan(
        GROWTH,
        "64 B, batched, by clients",
        {
            name: entry
            for each in ("jumiks", "jumiks-framed", "pyzmq", "socket")
            for name, entry in by_clients(each).items()
        },
        tuple(
            f"{each}, {count}"
            for each in ("jumiks", "jumiks-framed")
            for count in ("1 client", "64 clients")
        ),
        (
            Ratio("jumiks, 64 clients", "jumiks, 1 client", "server cpu", 1.5),
            Ratio("jumiks, 64 clients", "jumiks, 1 client", "cpu"),
            Ratio("jumiks-framed, 64 clients", "jumiks-framed, 1 client", "cpu", 1.2),
            Ratio("jumiks-framed, 64 clients", "jumiks-framed, 1 client", "server cpu"),
        ),
        rounds=2,
    ),
    Plan(
        GROWTH,
        "64 B, 1 client, batched, by messages",
        {f"jumiks, {count:,} messages": ("jumiks", Work(messages=count)) for count in MESSAGES},
        (),
        tuple(
            Ratio(f"jumiks, {count:,} messages", f"jumiks, {MESSAGES[0]:,} messages", "cpu")
            for count in MESSAGES[1:]
        ),
    ),
)

MEMORY_RATIOS = (
    Ratio("jumiks, 1,000 clients", ITSELF, "bytes per client", 8192),
    Ratio("jumiks, 1,000 clients", "jumiks, 8 clients", "publish", 2.0),
)

CALLS_RATIOS = (
    Ratio("jumiks", ITSELF, "calls", 5.0),
    Ratio("jumiks-framed", ITSELF, "calls"),
)
