# SPDX-License-Identifier: Apache-2.0
"""Messages to receive, and when they have arrived."""

import pytest

from support.base import wait_until
from support.servers import Server

FIVE = [b"zero", b"one", b"two", b"three", b"four"]

both_ways = pytest.mark.parametrize("delivery", ["shared", "classic"])


def all_arrived(server: Server, last_id: int) -> None:
    """Wait until every client's socket has had all up to an id."""
    wait_until(lambda: all(info.sent_id >= last_id for info in server.clients()))
