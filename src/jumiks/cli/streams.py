# SPDX-License-Identifier: Apache-2.0
"""The command's standard streams. Each may be closed, full, or able to show ASCII alone."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO

from .framing import write_all

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["check_output", "prepare_streams", "say", "standard_input"]

_ERRORS: Final = "jumiks"


def prepare_streams() -> None:
    """Make it safe to open descriptors and to print."""
    # A socket must not get the number of a closed stream: others would write into it.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:  # print would take the standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    codecs.register_error(_ERRORS, _as_far_as_it_goes)
    for stream, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
        if stream is original and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _written_by(_Patient, sys.stdout)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _written_by(_Losing, sys.stderr)


class _Patient(io.FileIO):
    """A file that is written whole, even if another process made it non-blocking."""

    def write(self, data: Buffer, /) -> int:
        view = memoryview(data).cast("B")
        write_all(self.fileno(), view)
        return len(view)


class _Losing(io.FileIO):
    """A file that loses what it has no room for.

    Otherwise Python tries once more at its end, and its exit status for that replaces ours.
    """

    def write(self, data: Buffer, /) -> int:
        with suppress(OSError):
            written = super().write(data)
            if written is not None:
                return written
        return memoryview(data).nbytes


def _written_by(kind: type[io.FileIO], stream: io.TextIOWrapper) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        # With PYTHONUNBUFFERED a stream has no buffer of its own; ours has one.
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _as_far_as_it_goes(error: UnicodeError) -> tuple[bytes, int]:
    # Bytes of an argument that could not be decoded go out as they came in. What the stream's
    # encoding has no character for is escaped.
    assert isinstance(error, UnicodeEncodeError)
    words = error.object[error.start : error.end]
    return b"".join(map(_encoded, words)), error.end


def _encoded(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":
        return character.encode("utf-8", "surrogateescape")
    return character.encode("ascii", "backslashreplace")


def standard_input() -> int:
    """Return the descriptor of the standard input.

    Raises:
        OSError: it is closed.
    """
    _check(sys.stdin, "input is closed: there is nothing to read; take </dev/null")
    return sys.stdin.fileno()


def check_output() -> None:
    """Check that there is a standard output, before anything is done that needs it.

    Raises:
        OSError: it is closed.
    """
    _check(sys.stdout, "output is closed: there is nowhere to write; take >/dev/null")


def _check(stream: TextIO | None, words: str) -> None:
    if stream is None:
        raise OSError(errno.EBADF, f"the standard {words} if that is what you want")


def say(words: str) -> None:
    """Print a line on the standard error, if that works."""
    with suppress(OSError):
        print(f"jumiks: {words}", file=sys.stderr)
