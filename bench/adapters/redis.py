# SPDX-License-Identifier: Apache-2.0
"""Publish and subscribe of Redis over a Unix socket, with a server of its own.

The server does not cut a slow subscriber (no limit on its output buffer) and saves nothing. A batch
is a pipeline.
"""

import subprocess
import time
from collections.abc import Iterator, Sequence

import redis

from bench.work import Work

from . import CONNECT, SILENCE, OneByOne, in_chunks

CHANNEL = "bench"
SETTINGS = {
    "port": "0",
    "save": "",
    "appendonly": "no",
    "maxclients": "1000",
    "client-output-buffer-limit": "pubsub 0 0 0",
}


class Publisher(OneByOne):
    def __init__(self, path: str) -> None:
        words = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
        self._server = subprocess.Popen(
            ["redis-server", "--unixsocket", path, *words], stdout=subprocess.DEVNULL
        )
        self.processes = (self._server.pid,)
        self._redis = redis.Redis(unix_socket_path=path)
        self._wait_for_server()
        self.send = self._send

    def _wait_for_server(self) -> None:
        deadline = time.monotonic() + CONNECT
        while True:
            try:
                self._redis.ping()
                return
            except redis.ConnectionError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def ready(self, clients: int) -> None:
        deadline = time.monotonic() + CONNECT
        while self._redis.pubsub_numsub(CHANNEL)[0][1] < clients:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all of {clients} subscribers came")
            time.sleep(0.001)

    def _send(self, message: bytes) -> None:
        self._redis.publish(CHANNEL, message)

    def send_many(self, messages: Sequence[bytes]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for message in messages:
            pipeline.publish(CHANNEL, message)
        pipeline.execute()

    def close(self) -> None:
        self._redis.close()
        self._server.terminate()
        self._server.wait()


class Subscriber:
    def __init__(self, path: str, work: Work) -> None:
        self._work = work
        self._redis = redis.Redis(unix_socket_path=path)
        self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(CHANNEL)
        # The reply to it.
        self._pubsub.get_message(timeout=CONNECT)

    def messages(self) -> Iterator[bytes]:
        get_message = self._pubsub.get_message
        while (message := get_message(timeout=SILENCE)) is not None:
            yield message["data"]

    def batches(self) -> Iterator[Sequence[bytes]]:
        return in_chunks(self.messages(), self._work)

    def close(self) -> None:
        self._pubsub.close()
        self._redis.close()


def publisher(path: str, work: Work) -> Publisher:  # noqa: ARG001
    return Publisher(path)


def subscriber(path: str, work: Work) -> Subscriber:
    return Subscriber(path, work)
