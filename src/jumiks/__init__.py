# SPDX-License-Identifier: Apache-2.0
"""One-to-many messaging for processes on one Linux machine.

A `Server` publishes; any number of `Client` objects receive every message, in order, or are told
exactly what they missed.
"""

import typing as _typing

from ._client.link import Delivery
from ._client.reconnect import Backoff
from ._gap import Gap, GapReason
from ._peer import Peer
from ._server.access import Allow, Group
from ._server.lag import OnLag
from ._wire.status import ServerStatus
from .aio import AsyncClient, AsyncServer
from .batch import Batch
from .client import Client
from .errors import (
    AckError,
    AddressInUse,
    Busy,
    Closed,
    ConnectionEnded,
    ConnectionLost,
    Disconnected,
    Forked,
    JumiksError,
    Lagged,
    MessagesLost,
    MessageTooLarge,
    Overwritten,
    ProtocolError,
    Refused,
    ServerClosed,
    Timeout,
    VersionMismatch,
)
from .monitor import Monitor
from .server import Server
from .stats import ClientInfo, EndReason, ServerStats

__all__ = [
    "AckError",
    "AddressInUse",
    "Allow",
    "AsyncClient",
    "AsyncServer",
    "Backoff",
    "Batch",
    "Busy",
    "Client",
    "ClientInfo",
    "Closed",
    "ConnectionEnded",
    "ConnectionLost",
    "Delivery",
    "Disconnected",
    "EndReason",
    "Forked",
    "Gap",
    "GapReason",
    "Group",
    "JumiksError",
    "Lagged",
    "MessageTooLarge",
    "MessagesLost",
    "Monitor",
    "OnLag",
    "Overwritten",
    "Peer",
    "ProtocolError",
    "Refused",
    "Server",
    "ServerClosed",
    "ServerStats",
    "ServerStatus",
    "Timeout",
    "VersionMismatch",
]

__version__: str


if not _typing.TYPE_CHECKING:  # to a type checker it would mean that there is every name

    def __getattr__(name: str) -> str:
        """Look the version up once it is asked for: that takes as long as all imports above."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("jumiks")
