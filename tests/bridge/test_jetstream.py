# SPDX-License-Identifier: Apache-2.0
"""What a bridge asks of JetStream."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.engines import free_port, running

from jumiks.bridge import EngineError
from jumiks.bridge.engine import Create, Mark, make_engine
from jumiks.bridge.record import Record

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


class _Failing:
    """A client whose calls end with an error where they are cancelled, as those of nats-py may."""

    is_closed = False
    max_payload = 1 << 20
    last_error = None

    async def _fail(self, *_: object, **__: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("no server") from None

    connect = request = _fail

    async def publish(self, *_: object) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def _open(engine: Any) -> None:
    await engine.open()


async def _last(engine: Any) -> None:
    engine._client = _Failing()
    await engine.last()


async def _append(engine: Any) -> None:
    engine._client, engine._inbox, engine.subject = _Failing(), "inbox", "TICKS"
    try:
        await engine.append(Mark(0), Record(100_000, 1, 7, 100_000, b"", "skipped", 1))
    finally:
        engine._ended()


@pytest.mark.parametrize("ask", [_open, _last, _append])
def test_what_fails_as_it_is_cancelled_is_no_error_that_nobody_takes(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[Any], Awaitable[None]]
) -> None:
    jetstream = pytest.importorskip("jumiks.bridge.jetstream", reason="nats-py is not installed")
    monkeypatch.setattr(jetstream, "Client", _Failing)
    told: list[dict[str, Any]] = []

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, about: told.append(about))
        engine: Any = make_engine("nats://127.0.0.1/TICKS")
        engine._flying, engine._pulls, engine._gone = {}, set(), asyncio.Event()
        engine._own, engine._numbers = "own", iter(range(1, 9))
        asked = asyncio.ensure_future(ask(engine))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not asked.done()
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled() or isinstance(asked.exception(), EngineError)
        await asyncio.sleep(0)

    asyncio.run(whole())
    gc.collect()
    assert told == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02T00:00:00Z", 86400.0),
        ("1970-01-01T00:00:01.5Z", 1.5),
        ("1970-01-01T00:00:00.123456789Z", 0.123456789),
    ],
)
def test_a_time_has_parts_of_a_second(text: str, seconds: float) -> None:
    jetstream = pytest.importorskip("jumiks.bridge.jetstream", reason="nats-py is not installed")
    assert jetstream._seconds(text) == seconds
