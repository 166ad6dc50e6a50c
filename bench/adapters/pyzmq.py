# SPDX-License-Identifier: Apache-2.0
"""PUB and SUB of ZeroMQ over ipc, without high-water marks, so that nothing is dropped.

The publishing socket is an XPUB: a PUB that also tells of subscriptions, so the start can wait for
all of them (a PUB drops what it sends before). It sends in the same way. There is no call for a
batch.
"""

from collections.abc import Iterator, Sequence

import zmq

from bench.work import Work

from . import CONNECT, SILENCE, OneByOne, in_chunks


class Publisher(OneByOne):
    def __init__(self, path: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.RCVTIMEO, int(CONNECT * 1000))
        # Each subscription is to be told, not only the first one to the same topic.
        self._socket.set(zmq.XPUB_VERBOSE, 1)
        self._socket.bind(f"ipc://{path}")
        self.send = self._socket.send

    def ready(self, clients: int) -> None:
        for _ in range(clients):
            self._socket.recv()

    def close(self) -> None:
        self._context.destroy(linger=0)


class Subscriber:
    def __init__(self, path: str, work: Work) -> None:
        self._work = work
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.set(zmq.RCVTIMEO, int(SILENCE * 1000))
        self._socket.connect(f"ipc://{path}")
        self._socket.subscribe(b"")

    def messages(self) -> Iterator[bytes]:
        try:
            yield from iter(self._socket.recv, None)
        except zmq.Again:
            return

    def batches(self) -> Iterator[Sequence[bytes]]:
        return in_chunks(self.messages(), self._work)

    def close(self) -> None:
        self._context.destroy(linger=0)


def publisher(path: str, work: Work) -> Publisher:  # noqa: ARG001
    return Publisher(path)


def subscriber(path: str, work: Work) -> Subscriber:
    return Subscriber(path, work)
