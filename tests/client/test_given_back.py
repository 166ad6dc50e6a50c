# SPDX-License-Identifier: Apache-2.0
"""Messages of a shared log that were found, and are overwritten before they are copied.

None of the copies is handed out. The client gives the batch back: to its server, and to itself, it
is as if those messages had never been found. The server is by hand, so each step comes in its turn.
"""

import importlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from support.base import DEADLINE, needs, wait_until
from support.reference import Frame, decode_ack, encode_frame
from support.shared import (
    CONTROL,
    RESUME,
    SKIP,
    TAIL,
    HandMadeLog,
    served_by,
)
from support.wire import FIRST_ID, LARGE

from jumiks import Client, Gap
from jumiks.batch import Batch

np: Any = None
with suppress(ImportError):
    np = importlib.import_module("numpy")  # here, as it starts threads

pytestmark = pytest.mark.only_shared

FRAME = 24
"""Bytes of the log that a message of up to 8 bytes takes."""


class Overwriting:
    """A server by hand: publishes, waits, gives up the first message, and skips to the second.

    Args:
        count: messages that it publishes at first; the second one may come later.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.go_on = threading.Event()
        self.overwritten = threading.Event()
        self.answer = 0
        self.lag = -1
        self.client: Client | None = None

    def __call__(self, connection: socket.socket, log: HandMadeLog) -> None:
        log.publish(*(b"%d" % number for number in range(self.count)))
        assert self.go_on.wait(DEADLINE)
        # SKIP is sent before any frame is given up.
        self._tell(connection, log, Frame(FIRST_ID + self.count - 1, b"", SKIP))
        log.words[TAIL] = FRAME
        self.overwritten.set()
        words = connection.recv(LARGE)
        assert words[8:] == bytes(8)
        self.answer = decode_ack(words[:8])
        assert self.client is not None
        self.lag = self.client.lag
        self._tell(connection, log, Frame(FIRST_ID + 1, FRAME.to_bytes(8, "little"), RESUME))
        if self.count == 1:
            log.publish(b"1")

    @staticmethod
    def _tell(connection: socket.socket, log: HandMadeLog, frame: Frame) -> None:
        connection.send(encode_frame(frame))
        log.words[CONTROL] += 1

    def overwrite(self) -> None:
        self.go_on.set()
        assert self.overwritten.wait(DEADLINE)


Receive = Callable[[Client], bytes]


def by_receive(client: Client) -> bytes:
    return client.receive(DEADLINE)


def by_a_loop(client: Client) -> bytes:
    return next(iter(client))


@contextmanager
def overwritten(address: str, count: int, **options: Any) -> Iterator[tuple[Client, Overwriting]]:
    """A client, and its server, which must then have seen it give all back."""
    gaps: list[Gap] = []
    script = Overwriting(count)
    with HandMadeLog() as log:
        with served_by(address, script, log, {"on_gap": gaps.append, **options}) as client:
            script.client = client
            yield client, script
            assert gaps == [Gap(FIRST_ID, FIRST_ID)]
            assert client.missed == 1
    assert (script.answer, script.lag) == (FIRST_ID - 1, 0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("receive", [by_receive, by_a_loop])
@pytest.mark.parametrize("ack", ["after", "before"])
def test_what_was_found_and_then_overwritten_is_a_gap(
    address: str, count: int, receive: Receive, ack: str
) -> None:
    with overwritten(address, count, ack=ack) as (client, script):
        wait_until(lambda: client._stream.peek() == 0)
        script.overwrite()
        assert receive(client) == b"1"


@needs("numpy")
def test_what_is_overwritten_before_an_array_is_made_of_it_is_a_gap(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with overwritten(address, 3) as (client, script):
        stream: Any = client._stream
        stream.direct = False  # else C makes the array as it finds the batch
        row_copy = Batch._row_copy

        def late_copy(batch: Batch) -> bytearray:
            script.overwrite()
            return row_copy(batch)

        monkeypatch.setattr(Batch, "_row_copy", late_copy)
        assert bytes(client.receive_array(np.dtype("V1"), DEADLINE)[0]) == b"1"
