# SPDX-License-Identifier: Apache-2.0
"""Peers that share nothing with the package, each a process of its own, one per role.

They were written from docs/protocol.md. This module only starts them and reads what they report.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent
DEADLINE = 60.0
"""Seconds for a peer to come to its end."""


class Peer:
    """A peer's process; leaving the `with` block ends it if it still runs.

    Args:
        command: the program, and its arguments.
    """

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def result(self) -> dict[str, Any]:
        """Wait for its end; what it reports."""
        output, errors = self.process.communicate(timeout=DEADLINE)
        if self.process.returncode != 0 or errors:
            raise AssertionError(f"{self.process.args!r} failed:\n{errors.decode()}")
        report: dict[str, Any] = json.loads(output.decode().splitlines()[-1])
        return report

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()


def classic_client(address: object, *options: object) -> Peer:
    """Start the Python client; its options are described in classic_client.py."""
    return Peer(sys.executable, HERE / "classic_client.py", address, *options)


def classic_server(address: object, *options: object) -> Peer:
    """Start the Python server, and wait until it listens; for options see classic_server.py."""
    peer = Peer(sys.executable, HERE / "classic_server.py", address, *options)
    if peer.line() != "ready":
        with peer:
            peer.result()
    return peer


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which("cc")


def build_c_client(folder: Path) -> Path:
    """Compile the C client; returns the program, which takes an address and perhaps a count."""
    program = folder / "classic_client"
    subprocess.run(
        [
            compiler() or "cc",
            *("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"),
            *("-o", program, HERE / "classic_client.c"),
        ],
        check=True,
    )
    return program


def fnv1a(data: bytes) -> str:
    """The digest that the C client reports."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{value:016x}"


def extended(name: str, *arguments: object) -> Peer:
    """Start one of the peers that speak more than plain 1.0: framed_client and its neighbours."""
    return Peer(sys.executable, HERE / f"{name}.py", *arguments)
