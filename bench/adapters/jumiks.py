# SPDX-License-Identifier: Apache-2.0
"""jumiks, with `on_lag="block"`: the setting under which nobody loses anything.

Options beyond the package's own: `reserve` has each message written in place, `views` has batches
received without a copy.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jumiks
from bench.work import Work

from . import CONNECT, SILENCE, OneByOne


class Publisher(OneByOne):
    def __init__(self, path: str, reserve: bool = False, **options: Any) -> None:
        self._server = jumiks.Server(path, on_lag="block", **options)
        self.send = self._server.publish
        if reserve:
            self.send = self._write_in_place
        else:
            self.send_many = self._server.publish_many  # type: ignore[method-assign,assignment]

    def _write_in_place(self, message: bytes) -> None:
        with self._server.reserve(len(message)) as view:
            view[:] = message

    def ready(self, clients: int) -> None:
        self._server.wait_for_clients(clients, CONNECT)

    def close(self) -> None:
        self._server.close()


class Subscriber:
    def __init__(self, path: str, views: bool = False, **options: Any) -> None:
        self._client = jumiks.Client(path, **options)
        self._views = views

    def messages(self) -> Iterator[bytes]:
        return iter(self._client)

    def batches(self) -> Iterator[Sequence[bytes]]:
        receive_many = self._client.receive_many
        try:
            while True:
                batch = receive_many(SILENCE)
                yield batch.views() if self._views else batch  # type: ignore[misc]
        except (jumiks.Timeout, jumiks.ConnectionEnded):
            return

    def close(self) -> None:
        self._client.close()


def publisher(path: str, work: Work, **options: Any) -> Publisher:  # noqa: ARG001
    return Publisher(path, **options)


def subscriber(path: str, work: Work, **options: Any) -> Subscriber:  # noqa: ARG001
    return Subscriber(path, **options)
