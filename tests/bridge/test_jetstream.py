# SPDX-License-Identifier: Apache-2.0
"""What a bridge asks of JetStream."""

import asyncio
import signal

import pytest
from support.engines import free_port, running

from jumiks.bridge import EngineError
from jumiks.bridge.engine import Create, make_engine

pytestmark = pytest.mark.no_core


def test_who_waits_for_an_answer_is_told_that_the_connection_ended() -> None:
    async def ask() -> None:
        one = make_engine(engine.url)
        await one.open(Create())
        engine.strike(signal.SIGSTOP)
        asked = asyncio.create_task(one.last())
        await asyncio.sleep(0)
        engine.stop()
        with pytest.raises(EngineError, match="the connection ended"):
            await asked
        await one.close()

    with running("jetstream") as engine:
        asyncio.run(ask())


def test_a_node_that_is_down_ends_no_connection_to_another_one() -> None:
    # A connection that was tried, or left, tells of its end too.
    async def ask() -> None:
        nodes = f"127.0.0.1:{free_port()},127.0.0.1:{engine.port}"
        one = make_engine(f"nats://{nodes}/TICKS")
        try:
            for _ in range(2):
                await one.open(Create())
                assert await one.last()
        finally:
            await one.close()

    with running("jetstream") as engine:
        asyncio.run(ask())
