# SPDX-License-Identifier: Apache-2.0
"""NATS over loopback, with a server of its own, and the asyncio client on both sides.

No limit on what is pending for a subscriber, in the server or in the client, so that nobody is cut
or loses anything. The client gathers what is published by itself; a batch ends with a flush.
"""

import asyncio
import socket
import subprocess
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats

from bench.work import Work

from . import CONNECT, SILENCE

SUBJECT = "bench"
READY = "ready"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def settings(port: int) -> str:
    return f"""
listen: "127.0.0.1:{port}"
max_payload: 8MB
max_pending: 4GB
write_deadline: "60s"
"""


class End:
    """A loop, and a connection in it."""

    def __init__(self, path: str) -> None:
        self._loop = asyncio.new_event_loop()
        self.wait: Callable[[Coroutine[Any, Any, Any]], Any] = self._loop.run_until_complete
        port = Path(f"{path}.port").read_text()
        self.nats = self.wait(
            nats.connect(
                f"nats://127.0.0.1:{port}",
                max_reconnect_attempts=int(CONNECT * 100),
                reconnect_time_wait=0.01,
                error_cb=self._ignore,
                pending_size=1 << 20,
            )
        )

    async def _ignore(self, _error: Exception) -> None:
        pass

    def close(self) -> None:
        with suppress(Exception):
            self.wait(self.nats.close())
        self._loop.close()


class Publisher:
    def __init__(self, path: str) -> None:
        port = free_port()
        Path(f"{path}.port").write_text(str(port))
        Path(f"{path}.conf").write_text(settings(port))
        self._server = subprocess.Popen(
            ["nats-server", "-c", f"{path}.conf"], stderr=subprocess.DEVNULL
        )
        self.processes = (self._server.pid,)
        self._end = End(path)
        self._nats = self._end.nats
        self._came = self._end.wait(self._nats.subscribe(READY))
        self._end.wait(self._nats.flush())

    def ready(self, clients: int) -> None:
        for _ in range(clients):
            self._end.wait(self._came.next_msg(CONNECT))

    async def _send(self, message: bytes) -> None:
        await self._nats.publish(SUBJECT, message)
        # Lets the client's own writer have its turn.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def send(self, message: bytes) -> None:
        self._end.wait(self._send(message))

    async def _send_many(self, messages: Sequence[bytes]) -> None:
        publish = self._nats.publish
        for message in messages:
            await publish(SUBJECT, message)
        await self._nats.flush(int(CONNECT))

    def send_many(self, messages: Sequence[bytes]) -> None:
        self._end.wait(self._send_many(messages))

    send_each = send_many

    def close(self) -> None:
        self._end.close()
        self._server.terminate()
        self._server.wait()


class Subscriber:
    def __init__(self, path: str) -> None:
        self._end = End(path)
        self._taken: list[bytes] = []
        self._came = asyncio.Event()
        wait = self._end.wait
        wait(
            self._end.nats.subscribe(
                SUBJECT, cb=self._take, pending_msgs_limit=0, pending_bytes_limit=0
            )
        )
        wait(self._end.nats.flush(int(CONNECT)))
        wait(self._end.nats.publish(READY, b""))
        wait(self._end.nats.flush(int(CONNECT)))

    async def _take(self, message: Any) -> None:
        self._taken.append(message.data)
        self._came.set()

    async def _some(self) -> list[bytes]:
        if not self._taken:
            self._came.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._came.wait(), SILENCE)
        taken, self._taken = self._taken, []
        return taken

    def batches(self) -> Iterator[Sequence[bytes]]:
        while taken := self._end.wait(self._some()):
            yield taken

    def messages(self) -> Iterator[bytes]:
        for taken in self.batches():
            yield from taken

    def close(self) -> None:
        self._end.close()


def publisher(path: str, work: Work) -> Publisher:  # noqa: ARG001
    return Publisher(path)


def subscriber(path: str, work: Work) -> Subscriber:  # noqa: ARG001
    return Subscriber(path)
