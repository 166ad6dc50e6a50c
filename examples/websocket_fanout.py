# SPDX-License-Identifier: Apache-2.0
"""A feed for any number of web browsers: one `AsyncClient` per process, a queue per websocket.

    uvicorn websocket_fanout:app --workers 4

The client acks as fast as it receives, so no browser makes it lag. A browser that does not keep up
fills its own queue, and its websocket is closed with code 1013 ("try again later"). The others
notice nothing.

If the client itself ends, for example because this process was busy for too long, all websockets
of the process are closed with that code, and the next client connects. So no browser waits for
messages that do not come.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from fastapi import FastAPI, WebSocket

import jumiks

ADDRESS = os.environ.get("FEED", "@ticks")
ROOM = int(os.environ.get("ROOM", "1000"))
"""Messages that a websocket may be behind."""

Queue = asyncio.Queue[bytes | None]  # None: close this websocket

logger = logging.getLogger("uvicorn.error")  # what uvicorn prints


class Hub:
    """Hands what the process receives to all of its websockets."""

    def __init__(self) -> None:
        self.queues: set[Queue] = set()

    async def run(self) -> None:
        """Receive for as long as the process runs; also from the next server, if one ends."""
        while True:
            try:
                await self._receive()
            except (jumiks.JumiksError, OSError) as error:  # cut for its lag, not let in, ...
                logger.error("the feed ended, and %d websockets with it: %s", self._end(), error)
            await asyncio.sleep(1)

    async def _receive(self) -> None:
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

    def _end(self) -> int:
        ended = len(self.queues)
        while self.queues:
            self.queues.pop().put_nowait(None)
        return ended

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
    """Send what comes, until the websocket is to be closed."""
    while (message := await queue.get()) is not None:
        await websocket.send_bytes(message)
    await websocket.close(1013, "try again later")


async def watch(websocket: WebSocket) -> None:
    """Return once the browser has left; what it says is ignored."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


@app.websocket("/feed")
async def feed(websocket: WebSocket) -> None:
    """Serve one browser, until it leaves or is to be closed."""
    await websocket.accept()
    with hub.subscribed() as queue:
        tasks = [asyncio.create_task(part) for part in (send(websocket, queue), watch(websocket))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
