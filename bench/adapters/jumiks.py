# SPDX-License-Identifier: Apache-2.0
"""jumiks, with `on_lag="block"`: the setting under which nobody loses anything.

Options beyond the package's own: `reserve` has each message written in place, `views` has batches
received without a copy, `loop` names the module of the event loop that `AsyncClient` receives in.
`as_arrays` has records of numpy published and received, `as_frames` has whole batches as frames.
"""

import asyncio
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jumiks
from bench.work import Work, cycle_length

from . import CONNECT, SILENCE, OneByOne


class Publisher(OneByOne):
    def __init__(self, path: str, reserve: bool = False, **options: Any) -> None:
        self._server = jumiks.Server(path, on_lag="block", **options)
        self.send = self._server.publish
        if reserve:
            self.send = self._write_in_place
        else:
            self.send_many = self._server.publish_many  # type: ignore[method-assign,assignment]

    def _write_in_place(self, message: bytes) -> None:
        with self._server.reserve(len(message)) as view:
            view[:] = message

    def ready(self, clients: int) -> None:
        self._server.wait_for_clients(clients, CONNECT)

    def close(self) -> None:
        self._server.close()


class Subscriber:
    def __init__(self, path: str, views: bool = False, **options: Any) -> None:
        self._client = jumiks.Client(path, **options)
        self._views = views

    def messages(self) -> Iterator[bytes]:
        return iter(self._client)

    def batches(self) -> Iterator[Sequence[bytes]]:
        receive_many = self._client.receive_many
        try:
            while True:
                batch = receive_many(SILENCE)
                yield batch.views() if self._views else batch  # type: ignore[misc]
        except (jumiks.Timeout, jumiks.ConnectionEnded):
            return

    def close(self) -> None:
        self._client.close()


class LoopSubscriber:
    def __init__(self, path: str, loop: str, **options: Any) -> None:
        self._loop = asyncio.Runner(loop_factory=importlib.import_module(loop).new_event_loop)
        self._loop.run(self._connect(path, options))

    async def _connect(self, path: str, options: dict[str, Any]) -> None:
        self._client = await jumiks.AsyncClient(path, **options)

    def drive(self, work: Work, take: Callable[[Sequence[bytes]], bool]) -> None:
        coroutine = self._batches(take) if work.batched else self._messages(work, take)
        self._loop.run(coroutine)

    async def _batches(self, take: Callable[[Sequence[bytes]], bool]) -> None:
        try:
            while not take(await self._client.receive_many(SILENCE)):
                continue
        except (jumiks.Timeout, jumiks.ConnectionEnded):
            return

    async def _messages(self, work: Work, take: Callable[[Sequence[bytes]], bool]) -> None:
        most, taken = cycle_length(work.size), list[bytes]()
        async for message in self._client:
            taken.append(message)
            if len(taken) == most:
                if take(taken):
                    return
                taken = []

    def close(self) -> None:
        self._loop.run(self._client.close())
        self._loop.close()


def publisher(path: str, work: Work, **options: Any) -> Publisher:  # noqa: ARG001
    return Publisher(path, **options)


def subscriber(path: str, work: Work, **options: Any) -> Subscriber | LoopSubscriber:  # noqa: ARG001
    if "loop" in options:
        return LoopSubscriber(path, **options)
    return Subscriber(path, **options)
