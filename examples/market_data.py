# SPDX-License-Identifier: Apache-2.0
"""A feed of quotes, packed by `struct`, for several strategies, each in a process of its own.

A strategy unpacks a whole batch at a time. If it is 50,000 quotes behind, the server disconnects it
instead of letting it trade on old prices.
"""

import struct
from multiprocessing import get_context
from multiprocessing.connection import Connection

import jumiks

QUOTE = struct.Struct("<Q8sdd")
"""Time in ns, symbol, bid, ask."""

ADDRESS = "@jumiks-quotes"
SYMBOLS = (b"ACME", b"INITECH", b"HOOLI")
TOTAL = 30_000


def strategy(number: int, report: Connection) -> None:
    best: dict[bytes, float] = {}
    count = 0
    with jumiks.Client(ADDRESS) as client:
        report.send("ready")
        try:
            while True:
                quotes = b"".join(client.receive_many())
                for _, symbol, bid, _ in QUOTE.iter_unpack(quotes):
                    best[symbol] = max(bid, best.get(symbol, 0.0))
                    count += 1
        except jumiks.ServerClosed:
            pass
    report.send((number, count, max(best.values())))


def main() -> None:
    context = get_context("spawn")
    with jumiks.Server(ADDRESS, max_lag=50_000) as server:
        pipes = [context.Pipe(duplex=False) for _ in range(3)]
        processes = [
            context.Process(target=strategy, args=(number, pipe[1]))
            for number, pipe in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for ours, _ in pipes:
            ours.recv()
        quotes = [
            QUOTE.pack(number, SYMBOLS[number % 3], 100 + number % 500 / 100, 100.5)
            for number in range(TOTAL)
        ]
        for begin in range(0, TOTAL, 500):
            server.publish_many(quotes[begin : begin + 500])
    for ours, _ in pipes:
        number, count, best = ours.recv()
        print(f"strategy {number}: {count} quotes, best bid {best:.2f}")
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
