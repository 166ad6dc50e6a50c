# SPDX-License-Identifier: Apache-2.0
"""One-to-many messaging for processes on one Linux machine.

A `Server` publishes; any number of `Client` objects receive every message, in order, or are told
exactly what they missed.
"""

import logging as _logging
from importlib.metadata import version as _version

from .access import Allow, Group, Peer
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
from .lag import OnLag
from .monitor import Monitor, ServerStatus
from .reconnect import Backoff
from .server import Server
from .stats import ClientInfo, EndReason, Gap, GapReason, ServerStats

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

_logging.getLogger("jumiks").addHandler(_logging.NullHandler())

__version__ = _version("jumiks")
