# SPDX-License-Identifier: Apache-2.0
"""Publish and subscribe of iceoryx2, in shared memory.

Safe overflow is off, and a full subscriber makes the publisher wait, so nothing is lost.

As its event example has it, each subscriber sleeps on an event that the publisher raises: for each
message when they go one by one, once for part of a batch (less than fills a subscriber) otherwise.
Messages are written into loaned memory; received ones are copied out, or, with `views`, looked at
where they are and given back after each batch.
"""

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import iceoryx2 as iox

from bench.work import Work

from . import CHUNK, SILENCE, OneByOne

ROOM = 16 << 20
"""Bytes a subscriber may be behind: what jumiks has in its log."""

MOST_BUFFERED = 1024
MOST_LISTENERS = 128


def buffered(work: Work) -> int:
    """Messages a subscriber may be behind."""
    return max(8, min(MOST_BUFFERED, ROOM // work.size))


def make_node(path: str) -> "iox.Node":
    iox.set_log_level(iox.LogLevel.Error)
    config = iox.config.default()
    config.global_cfg.root_path = iox.Path.new(str(Path(path).parent / "iceoryx2"))
    return iox.NodeBuilder.new().config(config).create(iox.ServiceType.Ipc)


class Publisher(OneByOne):
    def __init__(self, path: str, work: Work) -> None:
        self._node = make_node(path)
        name = iox.ServiceName.new("bench")
        most = work.clients
        self._service = (
            self._node.service_builder(name)
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(most)
            .max_nodes(most + 1)
            .subscriber_max_buffer_size(buffered(work))
            .subscriber_max_borrowed_samples(CHUNK)
            .create()
        )
        event = (
            self._node.service_builder(name)
            .event()
            .max_listeners(most)
            .max_nodes(most + 1)
            .create()
        )
        self._publisher = (
            self._service.publisher_builder()
            .initial_max_slice_len(work.size)
            .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        self._notifier = event.notifier_builder().create()
        self._event = event
        self._part = max(1, buffered(work) // 2)
        self.send = self._send

    def ready(self, clients: int) -> None:
        # A subscriber's listener comes before its subscription.
        while self._service.dynamic_config.number_of_subscribers < clients:
            pass
        self._publisher.update_connections()

    def _put(self, message: bytes) -> None:
        sample = self._publisher.loan_slice_uninit(len(message))
        ctypes.memmove(sample.payload_ptr, message, len(message))
        sample.assume_init().send()

    def _send(self, message: bytes) -> None:
        self._put(message)
        self._notifier.notify()

    def send_many(self, messages: Sequence[bytes]) -> None:
        put, notify = self._put, self._notifier.notify
        for number, message in enumerate(messages, 1):
            put(message)
            if number % self._part == 0:
                notify()
        notify()

    def close(self) -> None:
        self._publisher.delete()


class Subscriber:
    def __init__(self, path: str, work: Work, views: bool = False) -> None:
        self._node = make_node(path)
        name = iox.ServiceName.new("bench")
        event = self._node.service_builder(name).event().open()
        self._listener = event.listener_builder().create()
        service = (
            self._node.service_builder(name)
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .open()
        )
        self._subscriber = service.subscriber_builder().buffer_size(buffered(work)).create()
        self._size = work.size
        self._views = views

    def _wait(self) -> bool:
        # Also returns without an event, where one that came before told of its message.
        silence, deadline = (
            iox.Duration.from_millis(int(SILENCE * 1000)),
            time.monotonic() + SILENCE,
        )
        while not self._listener.timed_wait(silence):
            if time.monotonic() > deadline:
                return False
        return True

    def messages(self) -> Iterator[bytes]:
        receive, size, copy = self._subscriber.receive, self._size, ctypes.string_at
        while True:
            while (sample := receive()) is not None:
                message = copy(sample.payload_ptr, size)
                sample.delete()
                yield message
            if not self._wait():
                return

    def _borrow(self) -> Iterator[Sequence[bytes]]:
        receive = self._subscriber.receive
        while True:
            samples: list[iox.Sample] = []
            while len(samples) < CHUNK and (sample := receive()) is not None:
                samples.append(sample)
            if samples:
                yield [each.payload().as_memory_view() for each in samples]
                for each in samples:
                    each.delete()
            elif not self._wait():
                return

    def batches(self) -> Iterator[Sequence[bytes]]:
        return self._borrow() if self._views else self._copy()

    def _copy(self) -> Iterator[Sequence[bytes]]:
        receive, size, copy = self._subscriber.receive, self._size, ctypes.string_at
        while True:
            taken: list[bytes] = []
            while len(taken) < CHUNK and (sample := receive()) is not None:
                taken.append(copy(sample.payload_ptr, size))
                sample.delete()
            if taken:
                yield taken
            elif not self._wait():
                return

    def close(self) -> None:
        with suppress(Exception):
            self._subscriber.delete()


def publisher(path: str, work: Work) -> Publisher:
    return Publisher(path, work)


def subscriber(path: str, work: Work, views: bool = False) -> Subscriber:
    return Subscriber(path, work, views)
