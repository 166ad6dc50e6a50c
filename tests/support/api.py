# SPDX-License-Identifier: Apache-2.0
"""Shared by tests of `Server` and `Client`: work in the background, signals, other processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

from jumiks import AsyncClient, Backoff, Client, ConnectionEnded
from jumiks._client import link
from support.base import DEADLINE, wait_until
from support.servers import preamble

SMALL_LOG = 1 << 16
"""The smallest log."""

FOREIGN_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
"""For programs that are not Python: a sanitizer's runtime is no business of theirs."""

SOON = Backoff(first=0.001, most=0.02)
"""For a client that comes back as soon as it may."""

T = TypeVar("T")


class Task(Generic[T]):
    """A function that runs in a thread of its own."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._outcome: Future[T] = Future()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._outcome.set_result(self._function())
        except BaseException as error:
            self._outcome.set_exception(error)

    @property
    def done(self) -> bool:
        return self._outcome.done()

    def result(self, timeout: float = DEADLINE) -> T:
        """What the function returned; raises what it raised."""
        try:
            return self._outcome.result(timeout)
        finally:
            if self._outcome.done():
                self.thread.join()

    def sleeps_in(self, name: str) -> None:
        """Wait until the thread sleeps within a function of this name."""
        wait_until(lambda: self.done or sleeps_in(self.thread, name))
        assert not self.done, f"it did not wait: {self._outcome.exception()!r}"


def sleeps_in(thread: threading.Thread, name: str) -> bool:
    """Whether a thread is within a function of this name, and has nothing to do."""
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    if frame is None:
        return False
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


def descriptor_of(client: Client[Any] | AsyncClient[Any]) -> int:
    """Its connection's own; `fileno` is another, for its user to poll."""
    return client._stream.descriptor


def break_connection(client: Client[Any] | AsyncClient[Any]) -> None:
    """As if the kernel had lost it; the server sees that the client left."""
    with socket.socket(fileno=os.dup(descriptor_of(client))) as sock:
        sock.shutdown(socket.SHUT_RDWR)


def receive(client: Client, count: int) -> list[bytes]:
    return [client.receive(DEADLINE) for _ in range(count)]


def read_to_end(client: Client) -> tuple[list[bytes], ConnectionEnded]:
    """All that a client still receives, and how its connection ended."""
    messages = []
    while True:
        try:
            messages.append(client.receive(DEADLINE))
        except ConnectionEnded as end:
            return messages, end


@contextmanager
def once_it_sleeps_in(name: str, action: Callable[[], object]) -> Iterator[None]:
    """Do something in another thread once this one sleeps within a function of this name."""
    caller = threading.current_thread()

    def act() -> None:
        wait_until(lambda: sleeps_in(caller, name))
        action()

    task = Task(act)
    try:
        yield
    finally:
        task.result()


class But:
    """What it stands for, but for one function."""

    def __init__(self, real: Any, name: str, other: Any) -> None:
        self._real = real
        setattr(self, name, other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def signal_main_thread(number: int = signal.SIGINT) -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, number)


def interrupted_in(name: str) -> AbstractContextManager[None]:
    """Press Ctrl-C once this thread, the main one, sleeps within a function of this name."""
    return once_it_sleeps_in(name, signal_main_thread)


@contextmanager
def arenas_of(size: int) -> Iterator[None]:
    """Have the clients that are made meanwhile receive into arenas of this size, bytes."""
    before = link.ARENA_SIZE
    link.ARENA_SIZE = size  # type: ignore[misc]
    try:
        yield
    finally:
        link.ARENA_SIZE = before  # type: ignore[misc]


@contextmanager
def handler(number: int, function: Callable[[], object]) -> Iterator[None]:
    """Handle a signal with a function for a while."""
    before = signal.signal(number, lambda *_: function())
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def often(action: Callable[[], object], pause: float) -> Iterator[None]:
    """Do something again and again in another thread, every `pause` seconds."""
    over = threading.Event()

    def act() -> None:
        while not over.wait(pause):
            action()

    task = Task(act)
    try:
        yield
    finally:
        over.set()
        task.result()


def run_script(script: str, *arguments: object, before: str = "") -> str:
    """Run a script in a process of its own; what it prints. It fails the test if it fails.

    Args:
        script: finds `jumiks` imported.
        arguments: are its `sys.argv[1:]`.
        before: is run before that import.
    """
    # A fork beside threads, which later versions of Python warn of, is what some are about.
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        before + preamble() + script,
    ]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@contextmanager
def script_process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A script in a process of its own, with pipes; it is killed at the end if it still runs."""
    command = [sys.executable, "-c", preamble() + script, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def sockaddr(address: str | os.PathLike[str]) -> str:
    """An address as the `socket` module takes it."""
    text = os.fspath(address)
    return "\0" + text[1:] if text.startswith("@") else text


@contextmanager
def stranger(
    address: str | os.PathLike[str],
    *packets: bytes,
    hang_up: bool = False,
    kind: int = socket.SOCK_SEQPACKET,
) -> Iterator[None]:
    """Something at an address that sends these packets to who connects first, whatever that says.

    It hangs up then, or stays silent to the end.
    """
    over = threading.Event()

    def serve() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # nobody came
        with connection:
            for packet in packets:
                connection.send(packet)
            if not hang_up:
                over.wait(DEADLINE)

    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(sockaddr(address))
        listener.listen()
        task = Task(serve)
        try:
            yield
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            task.result()
