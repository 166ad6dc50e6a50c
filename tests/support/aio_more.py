# SPDX-License-Identifier: Apache-2.0
"""Helpers of tests/client/test_aio.py and the files beside it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from support.aio import until


class Ticker:
    """Counts how often the event loop comes round."""

    count = 0


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticker]:
    ticker = Ticker()

    async def tick() -> None:
        while True:
            ticker.count += 1
            await anyio.sleep(0)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await until(lambda: ticker.count)
        yield ticker
        group.cancel_scope.cancel()


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]
