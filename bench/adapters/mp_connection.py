# SPDX-License-Identifier: Apache-2.0
"""`multiprocessing.connection`, one connection a client, blocking: nothing is lost."""

from collections.abc import Iterator, Sequence
from multiprocessing.connection import Client, Connection, Listener

from bench.work import Work

from . import OneByOne, in_chunks


class Publisher(OneByOne):
    def __init__(self, path: str) -> None:
        self._listener = Listener(path, "AF_UNIX", backlog=128)
        self._clients: list[Connection] = []
        self.send = self._send

    def ready(self, clients: int) -> None:
        self._clients = [self._listener.accept() for _ in range(clients)]
        if clients == 1:
            self.send = self._clients[0].send_bytes

    def _send(self, message: bytes) -> None:
        for client in self._clients:
            client.send_bytes(message)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._listener.close()


class Subscriber:
    def __init__(self, path: str, work: Work) -> None:
        self._work = work
        self._connection = Client(path, "AF_UNIX")

    def messages(self) -> Iterator[bytes]:
        try:
            yield from iter(self._connection.recv_bytes, None)
        except EOFError:
            return

    def batches(self) -> Iterator[Sequence[bytes]]:
        return in_chunks(self.messages(), self._work)

    def close(self) -> None:
        self._connection.close()


def publisher(path: str, work: Work) -> Publisher:  # noqa: ARG001
    return Publisher(path)


def subscriber(path: str, work: Work) -> Subscriber:
    return Subscriber(path, work)
