# SPDX-License-Identifier: Apache-2.0
"""Compute what a feed on many machines takes: the formulas of docs/scale.md.

    python -m bench.capacity --rate 100000 --size 64 --machines 200 --clients 8

The costs are seconds of processor time on the machine of docs/scale.md; `python -m bench.scale`
measures those of another one.
"""

import argparse
from dataclasses import dataclass, fields
from typing import Final

FRAME: Final = 16
HEADERS: Final = {"redis": 200, "jetstream": 420}
"""Bytes of a record beside its frames, on the wire."""


@dataclass(frozen=True)
class Costs:
    """Seconds of processor time.

    Args:
        serve_record: the engine, per record and reader.
        append_record: the engine, per record that it stores.
        serve_byte: the engine, per byte and reader.
        out_record: the bridge out, per record.
        out_message: the bridge out, per message.
        in_record: a bridge in, per record.
        in_message: a bridge in, per message.
        client_record: a client, per record.
    """

    serve_record: float
    append_record: float = 250e-6
    serve_byte: float = 0.5e-9
    out_record: float = 650e-6
    out_message: float = 0.15e-6
    in_record: float = 600e-6
    in_message: float = 0.15e-6
    client_record: float = 30e-6


COSTS: Final = {"redis": Costs(25e-6), "jetstream": Costs(80e-6)}
"""Measured as docs/scale.md says, by the engine."""


@dataclass(frozen=True)
class Feed:
    """A feed and those that it goes to.

    Args:
        rate: messages per second.
        size: bytes of a message.
        publishes: calls per second that publish them, of a batch each.
        machines: machines with a bridge in.
        clients: clients on each.
        pack: bytes of a full record.
        replicas: copies that the engine keeps.
        regions: leaf nodes or mirrors that each serve a share of the machines; 1: the engine alone.
        link: bytes per second that a link to the engine carries.
        round_trip: seconds from a bridge to the engine and back.
        outage: seconds of the longest outage that is to pass without a gap.
        engine: which engine's headers are counted.
    """

    rate: float = 100_000
    size: int = 64
    publishes: float = 1000
    machines: int = 100
    clients: int = 8
    pack: int = 128 << 10
    replicas: int = 3
    regions: int = 1
    link: float = 1.25e9
    round_trip: float = 0.0005
    outage: float = 30
    engine: str = "jetstream"

    @property
    def frames(self) -> float:
        """Bytes per second of frames: `rate x (16 + size, rounded up to 8)`."""
        return self.rate * (FRAME + -(-self.size // 8) * 8)

    @property
    def records(self) -> float:
        """Records per second: one per publish, or as many as the bridge out can make."""
        costs = COSTS[self.engine]
        busiest = max(0.0, 1 - self.rate * costs.out_message) / costs.out_record
        return max(min(self.publishes, self.rate, busiest), self.frames / self.pack)

    @property
    def stream(self) -> float:
        """Bytes per second of the stream, headers included."""
        return self.frames + self.records * HEADERS[self.engine]


def compute(feed: Feed) -> dict[str, tuple[float, str]]:
    """Return each figure and its unit, by the name that docs/scale.md has."""
    costs, records, stream = COSTS[feed.engine], feed.records, feed.stream
    readers = feed.machines / feed.regions
    into = records * costs.in_record + feed.rate * costs.in_message
    busy = feed.rate * costs.out_message + records * costs.out_record
    served = records * costs.append_record
    served += readers * (records * costs.serve_record + stream * costs.serve_byte)
    # While a bridge in catches up, its records are full.
    full = feed.pack * feed.rate / feed.frames  # messages in such a record
    fastest = min(feed.link, feed.pack / (costs.in_record + full * costs.in_message))
    behind = feed.outage * stream
    return {
        "stream": (stream / 1e6, "MB/s"),
        "records": (records, "1/s"),
        "bridge out": (busy, "cores"),
        "into the engine": (stream * feed.replicas / 1e6, "MB/s, all replicas"),
        "out of the engine": (readers * stream / 1e6, "MB/s, per region"),
        "between regions": (stream * (feed.regions if feed.regions > 1 else 0) / 1e6, "MB/s"),
        "engine": (served, "cores, per region"),
        "bridge in": (into, "cores, per machine"),
        "clients": (feed.clients * records * costs.client_record, "cores, per machine"),
        "latency": (
            1e3 * (costs.out_record + costs.in_record + costs.client_record + feed.round_trip),
            "ms, without waiting",
        ),
        "keep at the source": (behind / 1e6, "MB"),
        "catching up": (
            behind / (fastest - stream) if fastest > stream else float("inf"),
            "s after the outage",
        ),
    }


def lines(feed: Feed) -> list[str]:
    """Return the figures as a table."""
    return [f"{name:20} {value:10,.2f}  {unit}" for name, (value, unit) in compute(feed).items()]


def main() -> None:
    """Print the figures for the feed of the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for field in fields(Feed):
        default = field.default
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(default), default=default, metavar="N"
        )
    print("\n".join(lines(Feed(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
