# SPDX-License-Identifier: Apache-2.0
"""The `socket` module with SOCK_SEQPACKET, blocking: the plainest thing that works.

One message a packet, sent to one client after another, without acks: a slow client slows all.
"""

import socket
from collections.abc import Callable, Iterator, Sequence

from . import CONNECT, in_chunks


class Publisher:
    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(CONNECT)
        self._listener.bind(path)
        self._listener.listen(128)
        self._clients: list[socket.socket] = []
        self.send: Callable[[bytes], object] = self._send

    def ready(self, clients: int) -> None:
        for _ in range(clients):
            client, _address = self._listener.accept()
            client.settimeout(None)
            self._clients.append(client)
        if clients == 1:
            self.send = self._clients[0].send

    def _send(self, message: bytes) -> None:
        for client in self._clients:
            client.send(message)

    def send_many(self, messages: Sequence[bytes]) -> None:
        send = self.send
        for message in messages:
            send(message)

    def close(self) -> None:
        for sock in (self._listener, *self._clients):
            sock.close()


class Subscriber:
    def __init__(self, path: str, largest: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)
        self._largest = largest

    def messages(self) -> Iterator[bytes]:
        recv, largest = self._socket.recv, self._largest
        while message := recv(largest):
            yield message

    def batches(self) -> Iterator[Sequence[bytes]]:
        return in_chunks(self.messages())

    def close(self) -> None:
        self._socket.close()


def publisher(path: str) -> Publisher:
    return Publisher(path)


def subscriber(path: str, largest: int) -> Subscriber:
    return Subscriber(path, largest)
