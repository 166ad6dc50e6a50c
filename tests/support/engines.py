# SPDX-License-Identifier: Apache-2.0
"""Real engines, each in a process and a folder of its own, on a free port of this machine."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .base import wait_until

NAMES = {"jetstream": ("nats", "tls", "TICKS"), "redis": ("redis", "rediss", "ticks")}
"""The schemes of an engine's URLs, without TLS and with it, and the name of its stream."""

KINDS = tuple(NAMES)


def program(kind: str) -> str | None:
    """Where the program of an engine is, beside this Python or on the path; None: nowhere."""
    name = {"jetstream": "nats-server", "redis": "redis-server"}[kind]
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def client_of(kind: str) -> str:
    """The package that speaks with an engine."""
    return {"jetstream": "nats", "redis": "redis"}[kind]


def require(kind: str) -> None:
    """Skip the test, and say why, where the engine or its client is missing."""
    if program(kind) is None:
        pytest.skip(f"there is no {'nats' if kind == 'jetstream' else 'redis'}-server here")
    pytest.importorskip(client_of(kind), reason=f"the client of {kind} is not installed")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def headers_of(first: int, count: int, server: int) -> dict[str, str]:
    """A record's headers; its stream ids are those of its source."""
    return {
        "Jumiks-Format": "1",
        "Jumiks-Seq": str(first),
        "Jumiks-Count": str(count),
        "Jumiks-Server": str(server),
        "Jumiks-First": str(first),
    }


class RealEngine:
    """An engine that a test starts, kills and starts again.

    Args:
        kind: one of `KINDS`.
        folder: where its data is.
        words: further arguments of its program.
        tls: whether it speaks TLS alone.
    """

    def __init__(
        self, kind: str, folder: Path, words: tuple[str, ...] = (), *, tls: bool = False
    ) -> None:
        self.tls = tls
        require(kind)
        self.kind = kind
        self.folder = folder
        self.words = words
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of its stream."""
        plain, secure, name = NAMES[self.kind]
        scheme = secure if self.tls else plain
        return f"{scheme}://127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        port, found = str(self.port), program(self.kind)
        assert found is not None
        if self.kind == "jetstream":
            words = [found, "-a", "127.0.0.1", "-p", port, "-js", "-sd", str(self.folder)]
        else:
            words = [found, "--bind", "127.0.0.1", "--dir", str(self.folder)]
            words += ["--port", "0", "--tls-port", port] if self.tls else ["--port", port]
            words += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([*words, *self.words], stdout=log, stderr=log)
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"{self.kind} ended: {(self.folder / 'log').read_text()[-2000:]}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                if self.kind == "jetstream":
                    return sock.recv(4) == b"INFO"
                if self.tls:
                    return True
                sock.sendall(b"PING\r\n")
                return sock.recv(5) in (b"+PONG", b"-NOAU")
        except OSError:
            return False

    def _speak(self, *commands: tuple[object, ...]) -> None:
        """Send commands to Redis."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            for words in commands:
                parts = [each if isinstance(each, bytes) else str(each).encode() for each in words]
                lines = [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
                sock.sendall(b"*%d\r\n" % len(parts) + b"".join(lines))
                answer = sock.recv(4096)
                assert not answer.startswith(b"-"), answer

    def _ask(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
        """Send a request to NATS, and return the answer."""

        async def ask() -> bytes:
            client = await nats.connect(f"nats://127.0.0.1:{self.port}")
            try:
                return bytes((await client.request(subject, body, 5, headers=headers)).data)
            finally:
                await client.close()

        import nats

        answer = asyncio.run(ask())
        assert b'"error"' not in answer, answer
        return answer

    def delete_stream(self) -> None:
        """Delete the stream, as its admin does."""
        if self.kind == "jetstream":
            self._ask("$JS.API.STREAM.DELETE.TICKS", b"")
        else:
            self._speak(("DEL", "ticks", "{ticks}:at"))

    def delete_last_record(self, stream: int) -> None:
        """Delete the last record by hand.

        Args:
            stream: the stream id of its last message.
        """
        if self.kind == "jetstream":
            state = json.loads(self._ask("$JS.API.STREAM.INFO.TICKS", b""))["state"]
            words = json.dumps({"seq": state["last_seq"]})
            self._ask("$JS.API.STREAM.MSG.DELETE.TICKS", words.encode())
        else:
            self._speak(("XDEL", "ticks", f"{stream}-0"))

    def delete_consumers(self) -> int:
        """Delete all consumers of JetStream, as an admin may; returns how many there were."""
        found = json.loads(self._ask("$JS.API.CONSUMER.NAMES.TICKS", b""))["consumers"] or []
        for each in found:
            self._ask(f"$JS.API.CONSUMER.DELETE.TICKS.{each}", b"")
        return len(found)

    def make_stream(self, config: dict[str, object]) -> None:
        """Make the stream of JetStream, as its admin does."""
        whole = {"name": "TICKS", "subjects": ["TICKS"], "storage": "file", **config}
        self._ask("$JS.API.STREAM.CREATE.TICKS", json.dumps(whole).encode())

    def make_room(self) -> None:
        """Let the engine take more."""
        if self.kind == "jetstream":
            whole = {"name": "TICKS", "subjects": ["TICKS"], "storage": "file", "max_bytes": -1}
            whole["discard"] = "new"
            self._ask("$JS.API.STREAM.UPDATE.TICKS", json.dumps(whole).encode())
        else:
            self._speak(("CONFIG", "SET", "maxmemory", "0"))

    def store_something_else(self) -> None:
        """Store what no bridge has made under the stream's name."""
        if self.kind == "jetstream":
            self.make_stream({})
            self._ask("TICKS", b"not a record")
        else:
            self._speak(("XADD", "ticks", "*", "field", "value"))

    def leader_of_stream(self) -> int:
        """Which node of a cluster leads the stream."""
        found = json.loads(self._ask("$JS.API.STREAM.INFO.TICKS", b""))
        return int(found["cluster"]["leader"].removeprefix("node"))

    def store_gap(self, first: int, count: int, server: int) -> None:
        """Store a gap of any length, as somebody else may."""
        lost = {"Jumiks-Gap": "evicted", "Jumiks-Lost": str(count)}
        headers = headers_of(first, count, server) | lost
        if self.kind == "jetstream":
            self._ask("TICKS", b"", headers)
            return
        fields = [word for pair in headers.items() for word in pair]
        self._speak(("XADD", "ticks", f"{first + count - 1}-0", *fields, "Body", b""))

    def remove_gap(self, first: int, count: int) -> None:
        """Take it away, as a bridge's error says."""
        self.delete_last_record(first + count - 1)
        if self.kind == "redis":
            self._speak(("XSETID", "ticks", f"{first - 1}-0"))

    def poison(self, first: int, count: int, server: int) -> None:
        """Append a record whose body is not what its headers say."""
        last = first + count - 1
        headers = headers_of(first, count, server)
        if self.kind == "jetstream":
            self._ask("TICKS", b"nonsense", headers)
            return
        fields = [word for pair in headers.items() for word in pair]
        self._speak(
            ("XADD", "ticks", f"{last}-0", *fields, "Body", "nonsense"),
            ("HSET", "{ticks}:at", "stream", last, "source", last),
        )

    def strike(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it, by default as a crash does; its data stays."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait()


@contextmanager
def running(kind: str, *words: str, tls: bool = False) -> Iterator[RealEngine]:
    """An engine that runs, and is gone at the end with all its data."""
    with tempfile.TemporaryDirectory(prefix="jmk-engine-") as folder:
        engine = RealEngine(kind, Path(folder), words, tls=tls)
        try:
            engine.start()
            yield engine
        finally:
            engine.stop()
