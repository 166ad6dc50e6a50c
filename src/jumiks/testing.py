# SPDX-License-Identifier: Apache-2.0
"""Fixtures of pytest for programs that use jumiks.

In `conftest.py`::

    pytest_plugins = ["jumiks.testing"]

A test that takes `jumiks_server` and `jumiks_client` has a server and a client of its own, which
are closed when it ends::

    def test_ticks(jumiks_server, jumiks_client):
        jumiks_server.publish(b"a tick")
        assert jumiks_client.receive(timeout=5) == b"a tick"

A fixture of the name `jumiks_options` says how the server is made, for one test, a class, or all::

    @pytest.fixture
    def jumiks_options():
        return {"max_lag": 10, "on_lag": "skip"}
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping

import pytest

from .client import Client
from .server import Server

__all__ = ["jumiks_address", "jumiks_client", "jumiks_options", "jumiks_server"]


@pytest.fixture
def jumiks_address() -> str:
    """Return an abstract address that no other test has, in whatever process it runs."""
    return f"@jumiks-testing-{os.getpid()}-{uuid.uuid4().hex}"


@pytest.fixture
def jumiks_options() -> Mapping[str, object]:
    """Return the options of `jumiks_server`; redefine it to change them."""
    return {}


@pytest.fixture
def jumiks_server(jumiks_address: str, jumiks_options: Mapping[str, object]) -> Iterator[Server]:
    """Serve `jumiks_address`; closed at the end without waiting for clients."""
    server = Server(jumiks_address, **jumiks_options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.close(linger=0)


@pytest.fixture
def jumiks_client(jumiks_server: Server) -> Iterator[Client[bytes]]:
    """Connect to `jumiks_server`: what the test publishes from now on is received."""
    with Client(jumiks_server.address) as client:
        yield client
