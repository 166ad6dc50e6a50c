# SPDX-License-Identifier: Apache-2.0
"""Servers in a state that several tests begin with."""

from collections.abc import Iterator

import pytest
from support.servers import Server

from jumiks import Client


@pytest.fixture
def blocked(address: str) -> Iterator[tuple[Server, Client]]:
    """A server that has to wait: with `block`, and a client that is at its limit of 2."""
    with Server(address, max_lag=2, on_lag="block") as server, Client(address) as client:
        server.publish_many([b"one", b"two"])
        yield server, client
