# SPDX-License-Identifier: Apache-2.0
"""Bridges between a local feed and an engine: NATS JetStream or Redis Streams (docs/bridge.md).

`Outbound` appends a local feed to a stream of the engine. `Inbound`, on any other machine, serves
that stream as a local feed. Each engine needs its client: `pip install 'jumiks[nats]'` or
`'jumiks[redis]'`.
"""

from .engine import Create, Credentials
from .errors import EngineError
from .inbound import Inbound, InboundStats
from .outbound import Outbound, OutboundStats

__all__ = [
    "Create",
    "Credentials",
    "EngineError",
    "Inbound",
    "InboundStats",
    "Outbound",
    "OutboundStats",
]
