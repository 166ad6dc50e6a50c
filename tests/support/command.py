# SPDX-License-Identifier: Apache-2.0
"""The command in a process of its own, as a user runs it."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jumiks.cli import main
from support.base import DEADLINE

JUMIKS = (sys.executable, "-m", "jumiks.cli")
# For a shell: the path may have spaces.
PYTHON_IN_SHELL, JUMIKS_IN_SHELL = shlex.quote(sys.executable), shlex.join(JUMIKS)
PIPE = subprocess.PIPE


@contextmanager
def command(*arguments: object, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process of its own, with pipes; it is killed at the end."""
    words = [*JUMIKS, *map(str, arguments)]
    streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **more}
    with subprocess.Popen(words, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[bytes], given: bytes | None = None) -> tuple[int, bytes, str]:
    """Wait for its end: status, output, errors."""
    output, errors = process.communicate(given, timeout=5 * DEADLINE)
    return process.returncode, output, errors.decode()


def run(*arguments: object, given: bytes = b"") -> tuple[int, bytes, str]:
    with command(*arguments) as process:
        return finish(process, given)


def usage_error(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What it says, in this process, where it was called wrongly: status 2 and no output."""
    with open(os.devnull) as nothing, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", nothing)
        with pytest.raises(SystemExit) as caught:
            main(arguments.split())
    output, errors = capsys.readouterr()
    assert (caught.value.code, output) == (2, "")
    assert errors.startswith("usage: jumiks ")
    return errors


def listens_at(address: str) -> bool:
    # What is bound and does not listen yet is there too; the flags tell.
    words = f"00010000 0005 01 \\d+ {re.escape(address)}\n"
    return re.search(words, Path("/proc/net/unix").read_text()) is not None
