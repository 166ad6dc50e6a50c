# SPDX-License-Identifier: Apache-2.0
"""Helpers of tests/client/test_reconnect.py and the files beside it."""

from jumiks import (
    Backoff,
    Client,
)
from support.base import DEADLINE

SOON = Backoff(first=0.001, most=0.02)


def receive(client: Client[bytes], count: int) -> list[bytes]:
    return [client.receive(DEADLINE) for _ in range(count)]
