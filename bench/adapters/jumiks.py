# SPDX-License-Identifier: Apache-2.0
"""jumiks, with `on_lag="block"`: the setting under which nobody loses anything.

Options beyond the package's own: `reserve` has each message written in place; `singly` publishes
the messages of a batch one by one, as `reserve` does; `views` receives batches without a copy;
`loop` names the module of the event loop that `AsyncClient` receives in.
`at_once` is "arrays" or "frames": whole batches as records of numpy, or as frames.
"""

import asyncio
import importlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jumiks
from bench.work import AtOnce, Work, cycle_length

from . import CONNECT, SILENCE, OneByOne


class Publisher(OneByOne):
    def __init__(
        self, path: str, reserve: bool = False, singly: bool = False, **options: Any
    ) -> None:
        self._server = jumiks.Server(path, on_lag="block", **options)
        self.send = self._server.publish
        if reserve:
            self.send = self._write_in_place
        elif not singly:
            self.send_many = self._server.publish_many  # type: ignore[method-assign,assignment]

    def _write_in_place(self, message: bytes) -> None:
        with self._server.reserve(len(message)) as view:
            view[:] = message

    def ready(self, clients: int) -> None:
        self._server.wait_for_clients(clients, CONNECT)

    def close(self) -> None:
        self._server.close()


class AtOncePublisher(Publisher):
    """Has a batch in memory as one before it is published: as records, or as frames."""

    def __init__(self, path: str, at_once: str, **options: Any) -> None:
        super().__init__(path, **options)
        importlib.import_module("numpy")  # not while it is measured
        self._make = records_of if at_once == "arrays" else frames_of
        self._publish: Callable[[Any], object] = (
            self._server.publish_many if at_once == "arrays" else self._server.publish_frames
        )
        self._made: dict[int, Any] = {}
        self.send_many = self._send_at_once  # type: ignore[method-assign]

    def _send_at_once(self, messages: Sequence[bytes]) -> None:
        made = self._made.get(id(messages))
        if made is None:
            made = self._made[id(messages)] = self._make(messages)
        self._publish(made)


def record(size: int) -> Any:
    """The dtype of a message: its number, and the rest."""
    return importlib.import_module("numpy").dtype([("number", "<u8"), ("rest", f"V{size - 8}")])


def records_of(messages: Sequence[bytes]) -> Any:
    array = importlib.import_module("numpy")
    return array.frombuffer(b"".join(messages), record(len(messages[0])))


def frames_of(messages: Sequence[bytes]) -> bytes:
    """As docs/protocol.md has them; the messages get their ids when they are published."""
    return b"".join(
        struct.pack("<I2HQ", len(each), 1, 0, 0) + each + bytes(-len(each) % 8) for each in messages
    )


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


class AtOnceSubscriber(Subscriber):
    """Receives batches as arrays of records, or as frames."""

    def __init__(self, path: str, work: Work, at_once: str, **options: Any) -> None:
        super().__init__(path, **options)
        self._dtype = record(work.size)
        self._receive = self._array if at_once == "arrays" else self._frames

    def batches(self) -> Iterator[AtOnce]:  # type: ignore[override]
        try:
            while True:
                yield self._receive()
        except (jumiks.Timeout, jumiks.ConnectionEnded):
            return

    def _array(self) -> AtOnce:
        array = self._client.receive_array(self._dtype, SILENCE)
        return AtOnce(array["number"], lambda place: array[place].tobytes())

    def _frames(self) -> AtOnce:
        batch = self._client.receive_many(SILENCE)
        frames, count, size = batch.frames(), len(batch), self._dtype.itemsize
        whole, array = 16 + size + -size % 8, importlib.import_module("numpy").ndarray
        sizes = array(count, "<u4", frames, 0, whole)
        if len(frames) != count * whole or (sizes != size).any():
            raise ValueError("a frame is not as large as what was published")
        numbers = array(count, "<u8", frames, 16, whole)
        return AtOnce(numbers, lambda place: bytes(frames[place * whole + 16 :][:size]))


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
    if "at_once" in options:
        return AtOncePublisher(path, **options)
    return Publisher(path, **options)


def subscriber(path: str, work: Work, **options: Any) -> Subscriber | LoopSubscriber:
    if "at_once" in options:
        return AtOnceSubscriber(path, work, **options)
    if "loop" in options:
        return LoopSubscriber(path, **options)
    return Subscriber(path, **options)
