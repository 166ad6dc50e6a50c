# SPDX-License-Identifier: Apache-2.0
"""Helpers of tests/server/test_server.py and the files beside it."""

from jumiks import (
    Client,
)
from support.base import DEADLINE


def receive(client: Client, count: int) -> list[bytes]:
    return [client.receive(DEADLINE) for _ in range(count)]
