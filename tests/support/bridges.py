# SPDX-License-Identifier: Apache-2.0
"""Bridges in a process of their own, as users run them, and what their far readers have got."""

import asyncio
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from jumiks import Client, Gap, JumiksError
from jumiks.bridge import Create, Inbound, Outbound

from .base import DEADLINE, wait_until
from .servers import Server

_NUMBER = struct.Struct("<Q")


def message(number: int, size: int = 64) -> bytes:
    """A message that says which it is."""
    return _NUMBER.pack(number).ljust(size, b".")


def number_of(data: bytes) -> int:
    found: int = _NUMBER.unpack_from(data)[0]
    return found


class Reader(threading.Thread):
    """A client of the far feed that notes all it is given.

    Args:
        address: the far feed's.
        start: where it begins.
        note: what to keep for each gap, at the moment that it is told.
    """

    def __init__(
        self,
        address: str,
        start: Literal["oldest"] | int = "oldest",
        note: Callable[[], int] = int,
    ) -> None:
        super().__init__(name="far reader", target=self._go)
        self._address = address
        self._start = start
        self.numbers: list[int] = []
        self.gaps: list[Gap] = []
        self.notes: list[int] = []
        self._note = note
        self.problem: BaseException | None = None
        self._over = threading.Event()
        self._client: Client[bytes | Gap] | None = None

    def _go(self) -> None:
        try:
            self._read()
        except JumiksError as error:
            if not self._over.is_set():
                self.problem = error

    def _read(self) -> None:
        while self._client is None:
            if self._over.is_set():
                return
            with suppress(OSError, JumiksError):
                self._client = Client(
                    self._address,
                    start=self._start,
                    on_gap="yield",
                    reconnect=True,
                )
            time.sleep(0.01)
        while True:
            found = self._client.receive_many()
            if isinstance(found, Gap):
                self.notes.append(self._note())
                self.gaps.append(found)
            else:
                self.numbers.extend(map(number_of, found))

    @property
    def last_id(self) -> int:
        """The id of the last message."""
        assert self._client is not None
        return self._client.last_id

    def has(self, count: int) -> Callable[[], bool]:
        def enough() -> bool:
            if self.problem is not None:
                raise self.problem
            return len(self.numbers) >= count

        return enough

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._client is not None:
            self._client.close()
        self.join()


class Publisher(threading.Thread):
    """Publishes numbered messages at a pace, until it is told to stop.

    Args:
        server: where to.
        rate: messages per second.
        size: bytes of each.
        first: the first number.
    """

    def __init__(self, server: Server, rate: int = 5_000, size: int = 64, first: int = 0) -> None:
        super().__init__(name="publisher", target=self._go)
        self._server = server
        self._rate = rate
        self._size = size
        self._over = threading.Event()
        self.first = first
        self.next = first

    def _go(self) -> None:
        begin, most = time.monotonic(), self._rate
        while not self._over.wait(0.002):
            due = self.first + int((time.monotonic() - begin) * self._rate)
            upto = min(due, self.next + most)
            if upto > self.next:
                self._server.publish_many(
                    [message(each, self._size) for each in range(self.next, upto)]
                )
                self.next = upto

    def __enter__(self) -> "Publisher":
        self.start()
        return self

    def stop(self) -> None:
        """Publish no more; `next` stays as it is then."""
        self._over.set()
        self.join()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Bridge:
    """`jumiks bridge` in a process of its own.

    Args:
        words: its arguments.
    """

    def __init__(self, *words: str) -> None:
        self.words = words
        self.process: subprocess.Popen[bytes] | None = None
        self.errors = b""
        self.log = b""
        """What all its processes have said."""

    def start(self) -> "Bridge":
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jumiks.cli", "bridge", *self.words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        return self

    def stop(self, terminate: bool = True) -> int:
        """End it, in good order or by `kill -9`; returns its exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.terminate() if terminate else process.kill()
        self.errors = process.communicate(timeout=DEADLINE)[1]
        self.log += self.errors
        return process.returncode

    def __enter__(self) -> "Bridge":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def both(source: str, url: str, far: str, *words: str) -> Iterator[tuple[Bridge, Bridge]]:
    """A bridge out and a bridge in."""
    with Bridge("out", source, url, "--create", *words) as out:
        # The bridge in ends if there is no stream at its first look.
        with Bridge("in", url, far, "--wait", "30") as inbound:
            yield out, inbound


def same(reader: Reader, publisher: Publisher) -> None:
    """Wait until all is there; fail unless it is all of it, once, and in order."""
    wait_until(reader.has(publisher.next - publisher.first), 3 * DEADLINE)
    expected = list(range(publisher.first, publisher.next))
    if reader.numbers != expected:
        wrong = (
            next(
                (at, got, due)
                for at, (got, due) in enumerate(zip(reader.numbers, expected, strict=False))
                if got != due
            )
            if reader.numbers[: len(expected)] != expected
            else (len(reader.numbers), len(expected))
        )
        raise AssertionError(f"the ledgers differ: {wrong}, gaps {reader.gaps}")


class Inside:
    """A bridge in a thread of this process.

    Args:
        bridge: made, and not run yet.
    """

    def __init__(self, bridge: Outbound | Inbound) -> None:
        self.bridge = bridge
        self.problem: BaseException | None = None
        self._thread = threading.Thread(target=self._go, name="bridge")

    def _go(self) -> None:
        try:
            asyncio.run(self.bridge.run())
        except BaseException as error:
            self.problem = error

    def __enter__(self) -> "Inside":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bridge.close()
        self._thread.join()

    def join(self) -> BaseException | None:
        """Wait until it has ended by itself; returns what it raised."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return self.problem

    def state(self) -> str:
        return self.bridge.stats().state

    def is_in(self, state: str) -> Callable[[], bool]:
        return lambda: self.state() == state


@contextmanager
def inside(
    source: str, url: str, far: str, *, create: Create | None = None, **options: Any
) -> Iterator[tuple[Outbound, Inbound]]:
    """A bridge out and a bridge in, in threads of this process."""
    outbound = Outbound(source, url, create=create or Create(), **options)
    # It may look before there is a stream, and again much later: then all must still be there.
    inbound = Inbound(url, far, history=1 << 25, wait=DEADLINE, share_log=True)
    with Inside(outbound), Inside(inbound):
        yield outbound, inbound
