# SPDX-License-Identifier: Apache-2.0
"""How the command line is read: what is wrong with it is told with what would be right.

Each error is that of the command it is about, whose usage is printed with it; the exit status is 2.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Final, NoReturn

from .pairs import wrong_pair

__all__ = ["EXIT_STATUS", "Parser", "Size", "UsageError", "size_text"]

WIDTH: Final = 80
"""Columns that help takes at most."""

EXIT_STATUS: Final = (
    ("0", "All was done, or the stream ended in good order."),
    ("1", "Something failed, permissions of a path too; the standard error says what."),
    ("2", "Wrong usage: arguments that are wrong, or do not go together."),
    ("3", "No server or directory is at the address, something else is, or the server refused."),
    ("4", "The connection ended before its time: this client lagged, or the server is gone."),
    ("5", "The command of --exec failed; its message is not acked."),
    ("6", "Messages are lost, and --on-gap is fail."),
    ("129", "The terminal is gone (SIGHUP)."),
    ("130", "Ctrl-C."),
    ("141", "Nobody reads the output any more."),
)

_UNITS: Final = "KMGT"
_SIZE: Final = re.compile(rf"(\d+(?:\.\d+)?)([{_UNITS}]?)(?:i?B)?", re.IGNORECASE)


class UsageError(Exception):
    """Arguments that do not go together; `main` reports it as the parser reports others."""


class Size(int):
    """A number of bytes that a user typed, as it was typed."""

    text: str

    @classmethod
    def of(cls, text: str) -> Size:
        """Read a number of bytes, 1 or more, with a unit or without: 4096, 64K, 1.5GiB.

        Raises:
            ValueError: it is none.
        """
        found = _SIZE.fullmatch(text)
        value = 0
        if found is not None:
            value = int(float(found[1]) * (1 << 10 * (_UNITS.find(found[2].upper()) + 1)))
            if not found[2]:
                value = int(found[1]) if found[1].isdecimal() else 0
        if value < 1:
            raise ValueError(text)
        size = cls(value)
        size.text = text
        return size


def has_unit(text: str) -> bool:
    """Whether a size has a unit."""
    return bool(text) and text.rstrip("bB").rstrip("iI")[-1:].upper() in _UNITS


def size_text(value: int) -> str:
    """Return a number of bytes as a user would type it: 4M where that is exact, else all digits."""
    for power, unit in reversed(list(enumerate(_UNITS, 1))):
        if value and not value % (1 << 10 * power):
            return f"{value >> 10 * power}{unit}"
    return str(value)


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(WIDTH, shutil.get_terminal_size().columns) - 1)


_ELSEWHERE: Final = {
    **dict.fromkeys(("pub", "publish", "send", "server"), "serve"),
    **dict.fromkeys(("sub", "subscribe", "recv", "receive", "client", "tail"), "listen"),
    **dict.fromkeys(("list", "servers"), "ls"),
    "stats": "status",
    "version": "--version",
}
"""What users of other tools type, and what that is here."""


def _meant(word: str, words: Iterable[str]) -> str:
    words = list(words)
    near = (
        [_ELSEWHERE[word]] if _ELSEWHERE.get(word) in words else get_close_matches(word, words, 1)
    )
    return f"; did you mean {near[0]!r}?" if near else ""


class Parser(argparse.ArgumentParser):
    """A parser of the whole line, or of one command's arguments."""

    others: Mapping[str, str] = {}
    """Options that another command has, each with its name."""

    command: str = ""
    """The command's name; "" if this one is of commands."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**{**more, "formatter_class": _Help, "allow_abbrev": False})
        self._given: set[str] = set()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what is left over is an error of this command, and not of the one above."""
        if self._subparsers is None:
            # First of all: the value of an unknown option would be taken for an address.
            for word in itertools.takewhile("--".__ne__, args or ()):
                if word.startswith("--"):
                    self._check_option(word.partition("=")[0])
        self._given = set()
        found, rest = super().parse_known_args(args, namespace)
        for word in rest:
            self._check_option(word.partition("=")[0])
            self.error(f"unexpected argument {word!r}")
        if wrong := wrong_pair(self.command, self._given):
            self.error(wrong)
        return found, rest

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Called for what was given alone: a default's value says nothing of that.
        self._given.update(action.option_strings)
        return super()._get_values(action, arg_strings)

    def _check_option(self, name: str) -> None:
        if name.startswith("-") and name not in self._option_string_actions:
            here = self._option_string_actions
            whose = f": it is one of {self.others[name]!r}" if name in self.others else ""
            self.error(f"unknown option {name!r}{whose or _meant(name, here)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            words = [str(each) for each in action.choices]
            text = f"{value!r}: it must be one of {', '.join(words)}"
            near = [*words, "--help", "--version"] if action.nargs == argparse.PARSER else words
            raise argparse.ArgumentError(action, text + _meant(str(value), near))

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and end."""
        with suppress(OSError):
            super().error(message)
        raise SystemExit(2)
