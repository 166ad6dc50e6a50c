# SPDX-License-Identifier: Apache-2.0
"""`Server` and `Client` for asyncio (uvloop, anyio) and trio: the same core, with awaited waits.

Nothing here runs once per message: a client takes batches as the sync one does, and goes to the
event loop only where it has to wait, or has kept the loop from others for long enough. It is used
from the loop's own thread; only `Server` and `Client` may be shared between threads.
"""

from ._aio.client import AsyncClient
from ._aio.server import AsyncServer

__all__ = ["AsyncClient", "AsyncServer"]
