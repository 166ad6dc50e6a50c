# SPDX-License-Identifier: Apache-2.0
"""A feed for any number of web browsers: one `AsyncClient` per process, a queue per websocket.

    uvicorn websocket_fanout:app --workers 4

The client acks as fast as it receives, so no browser makes it lag. A browser that does not keep up
fills its own queue, and its websocket is closed with code 1013 ("try again later"). The others
notice nothing.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

import jumiks

ADDRESS = os.environ.get("FEED", "@ticks")
ROOM = int(os.environ.get("ROOM", "1000"))
"""Messages that a websocket may be behind."""

Queue = asyncio.Queue[bytes | None]  # None: this websocket is too slow


class Hub:
    """Hands what the process receives to all of its websockets."""

    def __init__(self) -> None:
        self.queues: set[Queue] = set()

    async def run(self) -> None:
        """Receive for as long as the process runs; also from the next server, if one ends."""
        async with jumiks.AsyncClient(ADDRESS, reconnect=True) as client:
            while True:
                for message in await client.receive_many():
                    for queue in tuple(self.queues):
                        self._offer(queue, message)

    def _offer(self, queue: Queue, message: bytes) -> None:
        if queue.qsize() < ROOM:
            queue.put_nowait(message)
        else:
            self.queues.discard(queue)
            queue.put_nowait(None)

    @contextmanager
    def subscribed(self) -> Iterator[Queue]:
        """Give a websocket its queue."""
        queue: Queue = asyncio.Queue()
        self.queues.add(queue)
        try:
            yield queue
        finally:
            self.queues.discard(queue)


hub = Hub()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Run the hub beside the application."""
    task = asyncio.create_task(hub.run())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


app = FastAPI(lifespan=lifespan)


@app.get("/websockets")
def count() -> int:
    """Return how many websockets this process has that keep up."""
    return len(hub.queues)


async def send(websocket: WebSocket, queue: Queue) -> None:
    """Send what comes until the websocket is too slow."""
    while (message := await queue.get()) is not None:
        await websocket.send_bytes(message)
    await websocket.close(1013, "too slow")


@app.websocket("/feed")
async def feed(websocket: WebSocket) -> None:
    """Serve one browser, until it goes or is too slow."""
    await websocket.accept()
    with hub.subscribed() as queue:
        sending = asyncio.create_task(send(websocket, queue))
        try:
            while True:
                await websocket.receive_bytes()  # it says nothing, but is noticed when it goes
        except WebSocketDisconnect:
            pass
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sending
