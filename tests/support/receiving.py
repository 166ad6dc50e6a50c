# SPDX-License-Identifier: Apache-2.0
"""Helpers of tests/client/test_client.py and the files beside it."""

import pytest

from jumiks import (
    Client,
    Server,
)
from support.base import DEADLINE, wait_until

FIVE = [b"zero", b"one", b"two", b"three", b"four"]

both_ways = pytest.mark.parametrize("delivery", ["shared", "classic"])


def all_arrived(server: Server, last_id: int) -> None:
    """Wait until every client's socket has had all up to an id."""
    wait_until(lambda: all(info.sent_id >= last_id for info in server.clients()))


def receive(client: Client, count: int) -> list[bytes]:
    return [client.receive(DEADLINE) for _ in range(count)]
