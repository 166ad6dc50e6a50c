# SPDX-License-Identifier: Apache-2.0
"""The receiving end of bench_aio: the same loop over `Client`, or `AsyncClient` in an event loop.

    python -m bench.aio_worker sync|asyncio|uvloop PATH WORK

It prints "connected", and its figures as JSON once it has got as many messages as were published.
"""

import asyncio
import gc
import json
import sys
import time

import jumiks

from .worker import CYCLE, Checker, Figures, Work


def sync_end(path: str, work: Work, checker: Checker) -> None:
    with jumiks.Client(path) as client:
        print("connected", flush=True)
        gc.disable()
        if work.batched:
            while checker.count < work.messages:
                checker.take(client.receive_many())
            return
        taken: list[bytes] = []
        for message in client:
            taken.append(message)
            if len(taken) == CYCLE:
                checker.take(taken)
                taken.clear()
                if checker.count == work.messages:
                    return


async def async_end(path: str, work: Work, checker: Checker) -> None:
    async with jumiks.AsyncClient(path) as client:
        print("connected", flush=True)
        gc.disable()
        if work.batched:
            while checker.count < work.messages:
                checker.take(await client.receive_many())
            return
        taken: list[bytes] = []
        async for message in client:
            taken.append(message)
            if len(taken) == CYCLE:
                checker.take(taken)
                taken.clear()
                if checker.count == work.messages:
                    return


def main() -> None:
    kind, path, words = sys.argv[1:]
    work = Work(**json.loads(words))
    checker = Checker(work.size)
    if kind == "sync":
        sync_end(path, work, checker)
    elif kind == "asyncio":
        asyncio.run(async_end(path, work, checker))
    else:
        import uvloop

        uvloop.run(async_end(path, work, checker))
    figures: Figures = {"count": checker.count, "wrong": checker.wrong, "end": time.monotonic_ns()}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
