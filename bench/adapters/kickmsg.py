# SPDX-License-Identifier: Apache-2.0
"""kickmsg: publish and subscribe in shared memory, woken by futex.

A subscriber whose ring is full loses the oldest messages; `lost` counts them, and no call waits for
room. So its rings take as many messages as a run has, and it is given no more than that.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kickmsg

from bench.work import Work

from . import CONNECT, SILENCE, OneByOne, in_chunks

MOST = 1 << 20
"""Messages in a ring at most."""

POOL_BYTES = 1 << 28
"""Memory for the messages of all rings at most."""


def name_of(path: str) -> str:
    return f"/{Path(path).parent.name}"


class Publisher(OneByOne):
    def __init__(self, path: str, work: Work) -> None:
        config = kickmsg.Config()
        config.max_subscribers = work.clients
        config.max_payload_size = work.size
        config.sub_ring_capacity = MOST
        config.pool_size = min(2 * MOST, POOL_BYTES // work.size)
        self._region = kickmsg.SharedRegion.create(
            name_of(path), kickmsg.ChannelType.PubSub, config
        )
        with Path(f"/dev/shm{name_of(path)}").open("r+b") as memory:  # not while it is measured
            os.posix_fallocate(memory.fileno(), 0, memory.seek(0, os.SEEK_END))
        self._publisher = kickmsg.Publisher(self._region)
        self.send = self._publisher.send

    def ready(self, clients: int) -> None:
        deadline = time.monotonic() + CONNECT
        while self._region.stats().live_rings < clients:
            if time.monotonic() > deadline:
                raise TimeoutError("not all subscribers came")
            time.sleep(0.001)
        self._region.unlink()  # nobody needs the name any more, and a killed run leaves nothing

    def close(self) -> None:
        return


class Subscriber:
    def __init__(self, path: str, work: Work) -> None:
        self._work = work
        self._region = kickmsg.SharedRegion.open(name_of(path))
        self._subscriber = kickmsg.Subscriber(self._region)

    def messages(self) -> Iterator[bytes]:
        at_once, wait = self._subscriber.try_receive, self._subscriber.receive
        while (message := at_once() or wait(SILENCE)) is not None:
            yield message

    def batches(self) -> Iterator[Sequence[bytes]]:
        return in_chunks(self.messages(), self._work)

    def close(self) -> None:
        del self._subscriber


def publisher(path: str, work: Work, **_: Any) -> Publisher:
    return Publisher(path, work)


def subscriber(path: str, work: Work, **_: Any) -> Subscriber:
    return Subscriber(path, work)
