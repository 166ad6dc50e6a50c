# SPDX-License-Identifier: Apache-2.0
"""Options of a command that do not go together, or are for nothing without another one.

Without these rows one of the two would silently do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Final

__all__ = ["APART", "NEEDS", "wrong_pair"]

_OUTPUT: Final = "--exec hands each message to CMD, and writes none to the standard output"
_LINES: Final = "with --json each message is a line, whatever is in it"
_MAKING: Final = "it says how to make a stream"
_PART: Final = "a certificate and its key are used together"

APART: Final[Mapping[str, tuple[tuple[str, str, str], ...]]] = {
    "listen": (
        ("--exec", "--json", _OUTPUT),
        ("--exec", "--null", _OUTPUT),
        ("--exec", "--length-prefixed", _OUTPUT),
        ("--json", "--null", _LINES),
        ("--json", "--length-prefixed", _LINES),
    ),
    "status": (("--json", "--interval", "there are no rates in it, which need two measurements"),),
    **dict.fromkeys(
        ("bridge out", "bridge in", "bridge status"),
        (("--creds", "--nkey", "each is a way to log in, and one of them is used"),),
    ),
}
"""By command: two options, and why only one of them can be meant."""

NEEDS: Final[Mapping[str, tuple[tuple[str, str, str], ...]]] = {
    **dict.fromkeys(
        ("bridge in", "bridge status"),
        (("--tls-key", "--tls-cert", _PART),),
    ),
    "bridge out": (
        ("--tls-key", "--tls-cert", _PART),
        ("--max-bytes", "--create", _MAKING),
        ("--replicas", "--create", _MAKING),
    ),
}
"""By command: an option, the one that it is for, and why."""


def wrong_pair(command: str, given: Set[str]) -> str:
    """Return what is wrong with the options that were given together; "" if nothing is.

    Args:
        command: its name.
        given: the options' long names.
    """
    for one, other, why in APART.get(command, ()):
        if {one, other} <= given:
            return f"{one} and {other}: {why}: leave one of the two out"
    for one, other, why in NEEDS.get(command, ()):
        if one in given and other not in given:
            return f"{one} without {other}: {why}: give both, or neither"
    return ""
