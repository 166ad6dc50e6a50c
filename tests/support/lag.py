# SPDX-License-Identifier: Apache-2.0
"""Servers with small limits, and ways to publish up to them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jumiks import ClientInfo, EndReason, Timeout
from support.base import DEADLINE, wait_until
from support.servers import Server
from support.shared import hand_made_client
from support.wire import raw_client

LOG = 65536
"""The smallest log, bytes."""

SLOT = b"x" * 48
"""A message that takes 64 bytes of the log, so that 1024 of them fill the smallest one."""

SLOTS = LOG // 64

Ends = list[tuple[ClientInfo, EndReason]]

Publish = Callable[..., object]


@contextmanager
def serving(address: str, **options: Any) -> Iterator[tuple[Server, Ends]]:
    """A server, and what it says of those who went."""
    ends: Ends = []
    with Server(address, on_disconnect=lambda *end: ends.append(end), **options) as server:
        yield server, ends


def one_by_one(server: Server, count: int, data: bytes = b"x", timeout: float | None = 5) -> None:
    for _ in range(count):
        server.publish(data, timeout=timeout)


def as_batch(server: Server, count: int, data: bytes = b"x", timeout: float | None = 5) -> None:
    server.publish_many([data] * count, timeout=timeout)


both_modes = pytest.mark.parametrize("framed", [True, False], ids=["framed", "classic"])

both_ways = pytest.mark.parametrize("publish", [one_by_one, as_batch])

all_policies = pytest.mark.parametrize("on_lag", ["disconnect", "block", "skip"])


def acked(server: Server, packet_id: int, clients: int = 1) -> None:
    """Wait until the server has seen so many clients' acks up to a message."""
    wait_until(lambda: sum(info.acked_id >= packet_id for info in server.clients()) >= clients)


@contextmanager
def publishing(server: Server, data: bytes = b"late") -> Iterator[list[int]]:
    """Publish one message in a thread, which has to wait; the list gets its id."""
    ids: list[int] = []
    waits = server.stats().waits
    thread = threading.Thread(target=lambda: ids.append(server.publish(data)))
    thread.start()
    try:
        wait_until(lambda: server.stats().waits > waits)
        yield ids
    finally:
        thread.join(DEADLINE)
    assert ids


def assert_refused(server: Server, publish: Publish = one_by_one) -> None:
    """One message more would have to wait, and nothing is published."""
    next_id = server.stats().next_id
    with pytest.raises(Timeout):
        publish(server, 1, timeout=0)
    assert server.stats().next_id == next_id


Acks = Callable[[int], object]


@contextmanager
def acking_by_hand(server: Server, address: str, path: str, start: int = 0) -> Iterator[Acks]:
    """A client on one of the three paths, which acks what it is told to and nothing else."""
    if path == "shared":
        with hand_made_client(server, address, start) as reader:
            yield reader.ack
    else:
        with raw_client(server, address, framed=path == "framed", start=start) as client:
            yield client.ack


_FRAMES = ["framed", pytest.param("shared", marks=pytest.mark.only_shared)]
all_paths = pytest.mark.parametrize("path", ["classic", *_FRAMES])
paths_of_frames = pytest.mark.parametrize("path", _FRAMES)
"""Those of clients that may start in the past, as plain 1.0 cannot."""

PATIENCE: dict[str, float | None] = {"disconnect": 0, "block": None, "skip": 0}
