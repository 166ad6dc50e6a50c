# SPDX-License-Identifier: Apache-2.0
"""The `socket` module with SOCK_SEQPACKET, blocking: the plainest thing that works.

One message a packet, sent to one client after another, without acks: a slow client slows all. The
send buffer is raised where a message would not fit it (root may go beyond the system's maximum).
"""

import socket
from collections.abc import Iterator, Sequence

from bench.work import Work

from . import CONNECT, OneByOne, in_chunks

SO_SNDBUFFORCE = 32  # asm-generic/socket.h; the socket module has no name for it
OVERHEAD = 4096


class Publisher(OneByOne):
    def __init__(self, path: str, size: int) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(CONNECT)
        self._listener.bind(path)
        self._listener.listen(128)
        self._clients: list[socket.socket] = []
        self._size = size
        self.send = self._send

    def ready(self, clients: int) -> None:
        for _ in range(clients):
            client, _address = self._listener.accept()
            client.settimeout(None)
            self._make_room(client)
            self._clients.append(client)
        if clients == 1:
            self.send = self._clients[0].send

    def _make_room(self, client: socket.socket) -> None:
        needed = self._size + OVERHEAD
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < needed:
            client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, needed)

    def _send(self, message: bytes) -> None:
        for client in self._clients:
            client.send(message)

    def close(self) -> None:
        for sock in (self._listener, *self._clients):
            sock.close()


class Subscriber:
    def __init__(self, path: str, work: Work) -> None:
        self._work = work
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)
        self._largest = work.size

    def messages(self) -> Iterator[bytes]:
        recv, largest = self._socket.recv, self._largest
        while message := recv(largest):
            yield message

    def batches(self) -> Iterator[Sequence[bytes]]:
        return in_chunks(self.messages(), self._work)

    def close(self) -> None:
        self._socket.close()


def publisher(path: str, work: Work) -> Publisher:
    return Publisher(path, work.size)


def subscriber(path: str, work: Work) -> Subscriber:
    return Subscriber(path, work)
