# SPDX-License-Identifier: Apache-2.0
"""Pub0 and Sub0 of nng over ipc, with the largest buffers it takes.

A Pub0 drops what does not fit a subscriber's buffer, and cannot be told to wait: what it loses is
shown as lost. There is no call for a batch.
"""

import time
from collections.abc import Iterator, Sequence

import pynng

from bench.work import Work

from . import CONNECT, SILENCE, OneByOne, in_chunks

MOST_BUFFERED = 8192
"""Messages; nng refuses more."""


class Publisher(OneByOne):
    def __init__(self, path: str) -> None:
        self._socket = pynng.Pub0(listen=f"ipc://{path}", send_buffer_size=MOST_BUFFERED)
        self.send = self._socket.send

    def ready(self, clients: int) -> None:
        # Subscribers filter by themselves, so a connected one gets everything.
        deadline = time.monotonic() + CONNECT
        while len(self._socket.pipes) < clients:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self._socket.pipes)} of {clients} subscribers came")
            time.sleep(0.001)

    def close(self) -> None:
        self._socket.close()


class Subscriber:
    def __init__(self, path: str, work: Work) -> None:
        self._work = work
        self._socket = pynng.Sub0(
            topics=[b""], recv_buffer_size=MOST_BUFFERED, recv_timeout=int(SILENCE * 1000)
        )
        self._socket.recv_max_size = 0
        self._socket.dial(f"ipc://{path}", block=True)

    def messages(self) -> Iterator[bytes]:
        try:
            yield from iter(self._socket.recv, None)
        except pynng.Timeout:
            return

    def batches(self) -> Iterator[Sequence[bytes]]:
        return in_chunks(self.messages(), self._work)

    def close(self) -> None:
        self._socket.close()


def publisher(path: str, work: Work) -> Publisher:  # noqa: ARG001
    return Publisher(path)


def subscriber(path: str, work: Work) -> Subscriber:
    return Subscriber(path, work)
