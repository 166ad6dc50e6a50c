# SPDX-License-Identifier: Apache-2.0
"""Event loops that tests run in."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio

from support.base import DEADLINE

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(DEADLINE):
        while not condition():
            await anyio.sleep(0.002)


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
