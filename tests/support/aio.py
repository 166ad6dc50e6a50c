# SPDX-License-Identifier: Apache-2.0
"""Event loops that tests run in."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio

from support.base import DEADLINE

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(DEADLINE):
        while not condition():
            await anyio.sleep(0.002)
