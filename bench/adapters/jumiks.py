# SPDX-License-Identifier: Apache-2.0
"""jumiks, with `on_lag="block"`: the setting under which nobody loses anything."""

from collections.abc import Callable, Iterator, Sequence

import jumiks

from . import CONNECT, SILENCE


class Publisher:
    def __init__(self, path: str) -> None:
        self._server = jumiks.Server(path, on_lag="block")
        self.send: Callable[[bytes], object] = self._server.publish
        self.send_many: Callable[[Sequence[bytes]], object] = self._server.publish_many

    def ready(self, clients: int) -> None:
        self._server.wait_for_clients(clients, CONNECT)

    def close(self) -> None:
        self._server.close()


class Subscriber:
    def __init__(self, path: str) -> None:
        self._client = jumiks.Client(path)

    def messages(self) -> Iterator[bytes]:
        return iter(self._client)

    def batches(self) -> Iterator[Sequence[bytes]]:
        try:
            while True:
                yield self._client.receive_many(SILENCE)
        except (jumiks.Timeout, jumiks.ConnectionEnded):
            return

    def close(self) -> None:
        self._client.close()


def publisher(path: str) -> Publisher:
    return Publisher(path)


def subscriber(path: str, largest: int) -> Subscriber:  # noqa: ARG001
    return Subscriber(path)
