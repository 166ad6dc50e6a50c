# SPDX-License-Identifier: Apache-2.0
"""Event loops for the tests of clients."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from support.aio import Run
from support.base import DEADLINE, LOOPS


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine function in an event loop, for a limited time."""

    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            with anyio.fail_after(3 * DEADLINE):
                await main()

        anyio.run(limited, **request.param)

    return run
