# SPDX-License-Identifier: Apache-2.0
"""What a bridge out says of its source, with an engine in memory."""

import asyncio
import logging
from typing import Literal

import pytest
from support.base import DEADLINE
from support.memory_engine import MemoryEngine, Store
from support.servers import AsyncServer

from jumiks.bridge import Outbound, outbound


@pytest.mark.parametrize(("policy", "warnings"), [("block", 1), ("disconnect", 0), ("skip", 0)])
def test_a_source_that_would_wait_for_the_engine_is_warned_of(
    policy: Literal["block", "disconnect", "skip"],
    warnings: int,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        store = Store()
        monkeypatch.setattr(outbound, "make_engine", lambda *_: MemoryEngine(store))
        limit = 1000 if policy != "disconnect" else None
        async with AsyncServer(address, share_log=True, on_lag=policy, max_lag=limit) as source:
            bridge = Outbound(address, "memory://")
            running = asyncio.create_task(bridge.run())
            source.publish(b"message")
            while not store.records:
                await asyncio.sleep(0.002)
            bridge.close()
            await running

    caplog.set_level(logging.WARNING, "jumiks.bridge")
    asyncio.run(asyncio.wait_for(work(), DEADLINE))
    found = [each for each in caplog.messages if "'block'" in each]
    assert len(found) == warnings
    assert all(each.startswith(f"{address}: ") for each in found)


def test_a_source_that_takes_the_place_of_another_is_told(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    servers = []

    async def work() -> None:
        store = Store()
        monkeypatch.setattr(outbound, "make_engine", lambda *_: MemoryEngine(store))
        bridge = Outbound(address, "memory://")
        running = asyncio.create_task(bridge.run())
        for count in (1, 2):
            async with AsyncServer(address, share_log=True) as source:
                servers.append(source.server_id)
                source.publish(b"message")
                while len(store.records) < count:
                    await asyncio.sleep(0.002)
        bridge.close()
        await running

    caplog.set_level(logging.INFO, "jumiks.bridge")
    asyncio.run(asyncio.wait_for(work(), DEADLINE))
    found = [each for each in caplog.messages if "another source" in each]
    words = f"server_id {servers[1]}: its id 100000 is stream id 100001"
    assert found == [f"{address}: another source, {words}"]
