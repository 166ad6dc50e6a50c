# SPDX-License-Identifier: Apache-2.0
"""What the command understands; --help, the manual page and completion are made of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Final, NamedTuple, get_args

from jumiks._server.lag import OnLag

from .framing import LENGTH
from .streams import check_output

__all__ = ["make_parser"]

Runner = Callable[[argparse.Namespace], int]

EXAMPLES: Final = {
    "serve": "journalctl -f -o cat | jumiks serve @log --max-lag 10000",
    "listen": "jumiks listen @log --from oldest | grep error",
    "status": "jumiks status @log --json | jq .stats.published",
    "top": "jumiks top @log",
    "bench": "jumiks bench --self --seconds 10",
    "completion": "jumiks completion bash > ~/.local/share/bash-completion/completions/jumiks",
    "man": "jumiks man | man -l -",
}


def _later(module: str) -> Runner:
    # Only what is asked for is imported.
    def run(options: argparse.Namespace) -> int:
        if module not in ("serve", "listen"):  # those two know what they need
            check_output()
        status: int = import_module(f".{module}", __package__).run(options)
        return status

    return run


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _mode(text: str) -> int:
    return int(text, 8)


def _start(text: str) -> str | int:
    return text if text in ("now", "oldest") else int(text)


class Keep(NamedTuple):
    """History that stays, in one of two units; 0 is not told."""

    messages: int = 0
    bytes: int = 0


def _unit(text: str) -> int:
    return "KMG".find(text[-1:].upper()) + 1 if text else 0


def _size(text: str) -> int:
    unit = _unit(text)
    return _count(text[:-1] if unit else text) << 10 * unit


def _keep(text: str) -> Keep:
    return Keep(bytes=_size(text)) if _unit(text) else Keep(messages=_count(text))


_keep.__name__ = "number, or number of bytes with a unit"
_size.__name__ = "number of bytes, with a unit or without"
_positive.__name__ = "number of seconds"
_seconds.__name__ = "number of seconds"
_count.__name__ = "number"
_mode.__name__ = "mode"
_start.__name__ = "start"


def _framing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-0",
        "--null",
        dest="framing",
        action="store_const",
        const=b"\0",
        default=b"\n",
        help="a NUL ends each message, instead of a newline",
    )
    group.add_argument(
        "--length-prefixed",
        dest="framing",
        action="store_const",
        const=LENGTH,
        help="four bytes before each message tell its length (little-endian), and nothing ends it",
    )


def _address(parser: argparse.ArgumentParser, **more: str) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="@name, or a path", **more)  # type: ignore[arg-type]


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        help="@name, a path, or 'systemd' for the socket that systemd has passed",
    )
    _framing(parser)
    parser.add_argument(
        "--max-lag", type=_count, metavar="N", help="messages that a client may be behind"
    )
    parser.add_argument(
        "--on-lag",
        choices=get_args(OnLag),
        default="disconnect",
        help="what to do with a client at that limit: disconnect it (the default), wait for it "
        "(block), or have it miss messages (skip)",
    )
    parser.add_argument(
        "--mode", type=_mode, metavar="MODE", help="permissions of the path, such as 0660"
    )
    parser.add_argument(
        "--keep",
        type=_keep,
        default=Keep(),
        metavar="N[K|M|G]",
        help="messages of history that stay for who comes later (--from), or bytes, with a unit",
    )
    parser.add_argument(
        "--max-message",
        type=_size,
        metavar="N[K|M|G]",
        help="largest message, bytes (default: 4M, or half of what --keep has in bytes if that is "
        "more); the log takes at least four times as much memory",
    )
    parser.add_argument("--group", metavar="GROUP", help="group of the path, a name or a number")
    parser.add_argument(
        "--anyone",
        action="store_true",
        help="let all users connect, also where no permissions of a path stand guard",
    )
    parser.add_argument(
        "--wait",
        type=_count,
        metavar="N",
        help="read no input before so many clients are connected",
    )
    parser.add_argument(
        "--linger",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="time that clients have at the end to take what was published (default: 10)",
    )


def _listen(parser: argparse.ArgumentParser) -> None:
    _address(parser)
    _framing(parser)
    parser.add_argument(
        "--from",
        dest="start",
        type=_start,
        default="now",
        metavar="oldest|now|ID",
        help="where to start: with all that is kept, with what comes (the default), or at an id",
    )
    parser.add_argument("--count", type=_count, metavar="N", help="end after so many messages")
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="give the server so much time to come up, if it is not there",
    )
    parser.add_argument(
        "--reconnect",
        action="store_true",
        help="come back when the server has gone and is there again, instead of ending with it",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help='a JSON object a line: "id", "length", and "payload", or "base64" if it is no UTF-8',
    )
    parser.add_argument(
        "--exec",
        dest="command",
        metavar="CMD",
        help="run a shell command per message: the message is its input, and the id is in "
        "$JUMIKS_ID; the message is acked if it exits 0, and jumiks ends if it does not",
    )


def _status(parser: argparse.ArgumentParser) -> None:
    _address(parser)
    parser.add_argument("--json", action="store_true", help="all of it, as the server gives it")
    parser.add_argument(
        "--interval",
        type=_positive,
        default=0.5,
        metavar="SECONDS",
        help="time over which rates are taken (default: 0.5)",
    )


def _top(parser: argparse.ArgumentParser) -> None:
    _address(parser)
    parser.add_argument(
        "--interval", type=_positive, default=1.0, metavar="SECONDS", help="default: 1"
    )
    parser.add_argument("--count", type=_count, metavar="N", help="end after so many looks")


def _bench(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="count what comes from this server, for the given time",
    )
    which.add_argument(
        "--self", action="store_true", help="measure this machine, with a server of its own"
    )
    parser.add_argument(
        "--seconds", type=_positive, default=50.0, metavar="SECONDS", help="in all (default: 50)"
    )


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "fish", "zsh"))


class Command(NamedTuple):
    """One of the command's words: what it is in short and in full, its arguments, its module."""

    short: str
    long: str
    fill: Callable[[argparse.ArgumentParser], None]
    module: str


COMMANDS: Final = {
    "serve": Command(
        "publish the standard input",
        "Publish the standard input, a message a line, to all who listen at an address.",
        _serve,
        "serve",
    ),
    "listen": Command(
        "write what comes to the standard output",
        "Write the messages of a server to the standard output, a message a line. A message is "
        "acked once it is written.",
        _listen,
        "listen",
    ),
    "status": Command(
        "show a running server, its log and its clients",
        "Show how a running server, its log and its clients are. Only its own user and root may "
        "ask, unless the server says otherwise.",
        _status,
        "status",
    ),
    "top": Command(
        "the same, live",
        "Show the same, live, with a bar per client: its lag as a share of its limit. Needs rich: "
        "pip install rich.",
        _top,
        "top",
    ),
    "bench": Command(
        "a quick measurement",
        "Measure quickly: what this machine can do, or what comes from a server.",
        _bench,
        "bench",
    ),
    "completion": Command(
        "print a script that completes the command's arguments",
        "Print a script for a shell that completes the command's arguments.",
        _completion,
        "pages",
    ),
    "man": Command(
        "print the manual page", "Print the manual page, in roff.", lambda _: None, "pages"
    ),
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command; what it parses has `run`, to be called with it."""
    parser = argparse.ArgumentParser(
        prog="jumiks", description="One-to-many messaging for processes on one Linux machine."
    )
    parser.add_argument("--version", action="version", version=f"jumiks {version('jumiks')}")
    commands = parser.add_subparsers(dest="command_name", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.short,
            description=command.long,
            epilog=f"example:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.fill(one)
        one.set_defaults(run=_later(command.module))
    return parser
