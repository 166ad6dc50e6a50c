# SPDX-License-Identifier: Apache-2.0
"""What hostile peers send, and what becomes of them."""

import socket

from jumiks import (
    Client,
)
from support import reference
from support.base import DEADLINE
from support.reference import (
    Fragment,
)
from support.wire import (
    packets_of,
)


def ends(sock: socket.socket) -> bool:
    """Whether the other end closes; what it says before does not matter."""
    for _ in packets_of(sock):
        pass
    return True


def fragment(packet_id: int, total: int, offset: int, part: bytes, more: bool) -> bytes:
    return reference.encode_fragment(Fragment(packet_id, total, offset, part, more))


def received(client: Client) -> tuple[list[bytes], Exception]:
    """All messages, and what came behind them."""
    found: list[bytes] = []
    try:
        while True:
            found.append(client.receive(DEADLINE))
    except Exception as error:
        return found, error
