# SPDX-License-Identifier: Apache-2.0
"""The command line; --help, the manual page and completion are made from it."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from jumiks._client.link import Delivery
from jumiks._options import AsyncClientOptions, Options, ServerOptions, about, help_of
from jumiks._server.lag import OnLag
from jumiks._wire.address import parse_address

from .framing import LENGTH, TooLong
from .streams import check_output
from .usage import EXIT_STATUS, WIDTH, Parser, Size, has_unit, size_text

__all__ = ["make_parser"]

Runner = Callable[[argparse.Namespace], int]

EXAMPLES: Final = {
    "serve": "journalctl -f -o cat | jumiks serve @log --max-lag 10000",
    "listen": "jumiks listen @log --from oldest | grep error",
    "record": "jumiks record @ticks ticks.mcap --reconnect",
    "replay": "jumiks replay ticks.mcap @ticks --speed 10 --wait 1",
    "status": "jumiks status @log --json | jq .stats.published",
    "top": "jumiks top @log",
    "ls": "jumiks ls --json | jq '.[] | select(.worst_share > 0.5)'",
    "bridge out": "jumiks bridge out @ticks nats://host/TICKS --create --max-bytes 10G",
    "bridge in": "jumiks bridge in nats://host/TICKS @ticks",
    "bridge status": "jumiks bridge status redis://host/ticks",
    "bench": "jumiks bench --self --seconds 10",
    "completion": "jumiks completion bash > ~/.local/share/bash-completion/completions/jumiks",
    "man": "jumiks man | man -l -",
}


def _later(module: str) -> Runner:
    # Only what is asked for is imported.
    def run(options: argparse.Namespace) -> int:
        if module not in ("serve", "listen", "bridge", "record"):  # those know what they need
            check_output()
        status: int = import_module(f".{module}", __package__).run(options)
        return status

    return run


def _wrong(text: str, what: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r}: it must be {what}")


def _no_count(text: str, what: str) -> argparse.ArgumentTypeError:
    with suppress(ValueError):
        if Size.of(text) and has_unit(text):  # 10k messages may be 10000 or 10240
            return _wrong(text, f"{what}, with all its digits: units are for bytes")
    return _wrong(text, what)


def _number(text: str, above: bool, or_none: bool = False) -> float:
    with suppress(ValueError):
        value = float(text)
        if 0 <= value < inf and not (above and value == 0):
            return value
    what = f"a number of seconds, {'above 0' if above else '0 or more'}"
    raise _wrong(text, what + ", or 'none' for no limit" * or_none)


def _positive(text: str) -> float:
    return _number(text, above=True)


def _seconds(text: str) -> float:
    return _number(text, above=False)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _no_count(text, "a whole number") from None


def _count(text: str) -> int:
    with suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise _no_count(text, "a whole number, 1 or more")


def _mode(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (value := int(text, 8)) <= 0o777:
            return value
    raise _wrong(text, "an octal number from 0 to 777, such as 0660")


def _start(text: str) -> str | int:
    try:
        return int(text)
    except ValueError:
        return text


class Keep(NamedTuple):
    """How much history to keep, in one of two units; 0 if that one is not given."""

    messages: int = 0
    bytes: int = 0


def _size(text: str, what: str = "a number of bytes, with a unit (K, M, G) or without") -> Size:
    try:
        return Size.of(text)
    except ValueError:
        raise _wrong(text, what) from None


def _keep(text: str) -> Keep:
    value = _size(text, "a number of messages, or a number of bytes with a unit: K, M or G")
    return Keep(bytes=value) if has_unit(text) else Keep(messages=value)


def _patience(text: str) -> float | None:
    return None if text == "none" else _number(text, above=False, or_none=True)


def _where(text: str) -> str:
    try:
        parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _where_to_serve(text: str) -> str:
    return text if text == "systemd" else _where(text)


def _group(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _from_table(
    parser: argparse.ArgumentParser,
    table: type[Options],
    name: str,
    parse: Callable[[str], object] | None = None,
    *,
    flag: str = "",
    **more: Any,
) -> None:
    """Add an option that has the default, the check and the help of a table.

    Args:
        parser: gets the option.
        table: where the option stands.
        name: its name there.
        parse: makes a value of the text; a value is then checked as the table says.
        flag: its name on the command line; by default the same.
        more: what else `add_argument` takes.
    """
    (one,) = (each for each in fields(table) if each.name == name)

    def checked(text: str) -> object:
        assert parse is not None
        if text == one.default:  # argparse asks about that one as well
            return text
        value = parse(text)
        try:
            about(one).check(name, value)
        except (TypeError, ValueError) as error:
            # argparse says which option; None and a pair cannot be given here.
            words = re.split("; None is|; a pair", str(error))[0]
            words = words.replace(f"{name}={value}", repr(text), 1).removeprefix(f"{name}=")
            if isinstance(value, Size):
                words = re.sub(
                    r"\b\d{4,}(?=[^']*$)", lambda number: size_text(int(number[0])), words
                )
            raise argparse.ArgumentTypeError(words) from None
        return value

    if parse is not None:
        more["type"] = checked
    flag = flag or f"--{name.replace('_', '-')}"
    more.setdefault("help", about(one).help)
    parser.add_argument(flag, dest=name, default=one.default, **more)


def _framing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-0",
        "--null",
        dest="framing",
        action="store_const",
        const=b"\0",
        default=b"\n",
        help="end each message with a NUL instead of a newline",
    )
    group.add_argument(
        "--length-prefixed",
        dest="framing",
        action="store_const",
        const=LENGTH,
        help="each message has its length before it, in four bytes (little-endian)",
    )

    # Else "--wait -1" would have no value, as -1 looks like an option such as -0.
    parser._has_negative_number_optionals.clear()


def _address(parser: argparse.ArgumentParser, parse: Callable[[str], str] | None = None) -> None:
    parser.add_argument("address", type=parse or _where, metavar="ADDRESS", help="@name, or a path")


def _serve_log(parser: argparse.ArgumentParser) -> None:
    option = partial(_from_table, parser, ServerOptions)
    option("log_size", _size, metavar="N[K|M|G]")
    parser.add_argument(
        "--keep",
        type=_keep,
        default=Keep(),
        metavar="N[K|M|G]",
        help=help_of(ServerOptions, "keep"),
    )
    option("max_message", _size, metavar="N[K|M|G]")


def _where_served(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        type=_where_to_serve,
        metavar="ADDRESS",
        help="@name, a path, or 'systemd' for the socket that systemd has passed",
    )


def _serve(parser: argparse.ArgumentParser) -> None:
    _where_served(parser)
    _framing(parser)
    option = partial(_from_table, parser, ServerOptions)
    option("max_lag", _integer, metavar="N")
    option("on_lag", choices=get_args(OnLag))
    option("patience", _patience, metavar="SECONDS|none")
    _serve_log(parser)
    parser.add_argument(
        "--too-long",
        choices=get_args(TooLong),
        default="fail",
        help="what to do with a message that is larger: end there (the default), skip it, or cut "
        "it; what is skipped or cut is told with its line number",
    )
    _serve_whom(parser, "reading input")


def _serve_whom(parser: argparse.ArgumentParser, before: str) -> None:
    option = partial(_from_table, parser, ServerOptions)
    option("mode", _mode, metavar="MODE")
    option("group", _group, metavar="GROUP")
    parser.add_argument("--anyone", action="store_true", help=help_of(ServerOptions, "allow"))
    parser.add_argument(
        "--wait", type=_count, metavar="N", help=f"wait for N clients before {before}"
    )
    parser.add_argument(
        "--linger",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long clients have at the end to receive what was published (default: 10)",
    )


def _listen(parser: argparse.ArgumentParser) -> None:
    _address(parser)
    _framing(parser)
    option = partial(_from_table, parser, AsyncClientOptions)
    option("start", _start, flag="--from", metavar="oldest|now|ID")
    parser.add_argument("--count", type=_count, metavar="N", help="end after N messages")
    option("wait", _seconds, metavar="SECONDS")
    option("name", str, metavar="NAME")
    option("delivery", choices=get_args(Delivery))
    option("reconnect", action="store_true")
    parser.add_argument(
        "--on-gap",
        choices=("tell", "write", "fail"),
        default="tell",
        help="where messages are missing: tell on the standard error (the default), write a line "
        'with "gap" among the messages (with --json), or end with status 6',
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help='one JSON object per line: "id", "length", and "payload", or "base64" if that is '
        "no UTF-8",
    )
    parser.add_argument(
        "--exec",
        dest="command",
        metavar="CMD",
        help="run CMD in a shell per message: message on the standard input, id in $JUMIKS_ID; "
        "acked when it exits 0, otherwise jumiks ends",
    )


def _speed(text: str) -> float:
    if text == "max":
        return inf
    with suppress(argparse.ArgumentTypeError):
        return _positive(text)
    raise _wrong(text, "a number above 0 (1: as recorded, 10: ten times as fast), or 'max'")


def _recorded(text: str) -> str:
    if text.endswith(".mcap"):
        raise _wrong(text, "an address, such as @ticks: the file comes behind it")
    return _where(text)


def _file(text: str) -> Path:
    if text.startswith("@"):
        raise _wrong(text, f"a file; are the two swapped? A file of that name is ./{text}")
    if text == "-":
        raise _wrong(text, "a file; 'jumiks listen' and 'jumiks serve' take the standard streams")
    return Path(text)


def _record(parser: argparse.ArgumentParser) -> None:
    _address(parser, _recorded)
    parser.add_argument("file", type=_file, metavar="FILE", help="an MCAP file, to be made")
    option = partial(_from_table, parser, AsyncClientOptions)
    option("start", _start, flag="--from", metavar="oldest|now|ID")
    parser.add_argument(
        "--count", type=_count, metavar="N", help="end once N messages are recorded"
    )
    option("wait", _seconds, metavar="SECONDS")
    option("name", str, metavar="NAME")
    option("reconnect", action="store_true")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the file if it is there already"
    )
    parser.add_argument(
        "--compression",
        choices=("zstd", "lz4", "none"),
        default="lz4",
        help="of the file (default: lz4); zstd makes it smaller, and costs more",
    )
    parser.add_argument(
        "--buffer",
        type=_size,
        default=64 << 20,
        metavar="N[K|M|G]",
        help="bytes of messages that may wait for the disk; beyond that the recorder lags "
        "(default: 64M)",
    )


def _replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=_file, metavar="FILE", help="what 'jumiks record' has written")
    _where_served(parser)
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="N|max",
        help="how many times as fast as it was recorded (default: 1); max: without pauses",
    )
    parser.add_argument("--topic", metavar="TOPIC", help="which feed, if the file has several")
    parser.add_argument(
        "--renumber",
        action="store_true",
        help="number messages from 100000 on, without gaps, so that clients need no --reconnect",
    )
    option = partial(_from_table, parser, ServerOptions)
    option("max_lag", _integer, metavar="N")
    parser.add_argument(
        "--on-lag",
        choices=get_args(OnLag),
        default="block",
        help="what to do with a client that is too far behind: wait for it (default), disconnect "
        "it, or skip messages",
    )
    option(
        "patience",
        _patience,
        metavar="SECONDS|none",
        help="how long a client at that limit has to work off half of it, while the replay waits "
        "(default: none, which is no limit; with another --on-lag than block: 1)",
    )
    _serve_log(parser)
    _serve_whom(parser, "the first message")


def _status(parser: argparse.ArgumentParser) -> None:
    _address(parser)
    parser.add_argument("--json", action="store_true", help="print all of the status as JSON")
    parser.add_argument(
        "--interval",
        type=_positive,
        default=0.5,
        metavar="SECONDS",
        help="seconds between the two measurements of rates (default: 0.5)",
    )


def _ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    for name, default, what in (
        ("interval", 0.5, "seconds between the two measurements of rates"),
        ("timeout", 1.0, "seconds that each server has for an answer"),
    ):
        parser.add_argument(
            f"--{name}",
            type=_positive,
            default=default,
            metavar="SECONDS",
            help=f"{what} (default: {default:g})",
        )


def _top(parser: argparse.ArgumentParser) -> None:
    _address(parser)
    parser.add_argument(
        "--interval",
        type=_positive,
        default=1.0,
        metavar="SECONDS",
        help="seconds between two updates (default: 1)",
    )
    parser.add_argument("--count", type=_count, metavar="N", help="end after N updates")


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if port.isdecimal() and int(port) < 1 << 16:
        return host.strip("[]") or "127.0.0.1", int(port)
    raise _wrong(text, "an address and a port, such as 127.0.0.1:9101")


def _url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url", metavar="URL", help="the stream: nats://HOST/STREAM or redis://HOST/KEY"
    )


def _credentials(parser: argparse.ArgumentParser) -> None:
    for name, what in (
        ("creds", "file with a JWT and its seed (NATS)"),
        ("nkey", "file with an nkey seed (NATS)"),
        ("tls-ca", "certificates to trust, instead of the system's"),
        ("tls-cert", "certificate of this end"),
        ("tls-key", "key of that certificate"),
        ("password-file", "file with the password; by default $JUMIKS_BRIDGE_PASSWORD has it"),
    ):
        parser.add_argument(f"--{name}", metavar="FILE", help=what)


def _metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics",
        type=_endpoint,
        metavar="HOST:PORT",
        help="serve figures for Prometheus there; needs prometheus-client",
    )


def _records(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--pack",
        type=_size,
        metavar="N[K|M|G]",
        help="bytes of messages in one record (default: 128K with NATS, 256K with Redis)",
    )
    how.add_argument(
        "--plain",
        action="store_true",
        help="one record per message, its payload alone; slow",
    )
    parser.add_argument(
        "--window",
        type=_count,
        default=32,
        metavar="N",
        help="records sent and not acked, at most (default: 32)",
    )


def _bridge_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address", type=_where, metavar="SOURCE", help="the feed's address: @name, or a path"
    )
    _url(parser)
    parser.add_argument(
        "--subject", metavar="S", help="subject of the records (NATS; default: the stream's)"
    )
    parser.add_argument("--create", action="store_true", help="make the stream if it is not there")
    parser.add_argument(
        "--max-bytes",
        type=_size,
        metavar="N[K|M|G]",
        help="bytes that the stream keeps, with --create; the oldest go first",
    )
    parser.add_argument(
        "--replicas", type=_count, metavar="N", help="copies in a cluster, with --create (NATS)"
    )
    _records(parser)
    parser.add_argument(
        "--on-too-large",
        choices=("gap", "stop"),
        default="gap",
        help="at a message that the engine does not take: tell a gap (default), or end",
    )
    _metrics(parser)
    _credentials(parser)


def _bridge_in(parser: argparse.ArgumentParser) -> None:
    _url(parser)
    parser.add_argument(
        "address", type=_where, metavar="ADDRESS", help="where to serve: @name, or a path"
    )
    parser.add_argument(
        "--history",
        type=_size,
        metavar="N[K|M|G]",
        help="bytes that are in the log before anybody can connect (default: half of --log-size, "
        "if that is given, else 64M)",
    )
    _from_table(
        parser,
        ServerOptions,
        "log_size",
        _size,
        metavar="N[K|M|G]",
        help="bytes of memory for messages, which are also a limit for each client (default: "
        "twice --history, and 16M at least)",
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for a stream that is not there yet (default: 0, and then the "
        "command fails; an engine that is away is waited for in any case)",
    )
    option = partial(_from_table, parser, ServerOptions)
    option("max_lag", _integer, metavar="N")
    option("on_lag", choices=get_args(OnLag))
    option("patience", _patience, metavar="SECONDS|none")
    option("mode", _mode, metavar="MODE")
    option("group", _group, metavar="GROUP")
    parser.add_argument("--anyone", action="store_true", help=help_of(ServerOptions, "allow"))
    _metrics(parser)
    _credentials(parser)


def _bridge_status(parser: argparse.ArgumentParser) -> None:
    _url(parser)
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    _credentials(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "address",
        nargs="?",
        type=_where,
        metavar="ADDRESS",
        help="count the messages of this server, for the given time",
    )
    which.add_argument(
        "--self", action="store_true", help="measure this machine, with a server of its own"
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=50.0,
        metavar="SECONDS",
        help="how long to measure, in all (default: 50)",
    )


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "fish", "zsh"))


class Command(NamedTuple):
    """A command: its description in short and in full, its arguments, its module."""

    short: str
    long: str
    fill: Callable[[argparse.ArgumentParser], None]
    module: str


COMMANDS: Final = {
    "serve": Command(
        "publish the standard input",
        "Publish the standard input, one message per line, to all clients of an address.",
        _serve,
        "serve",
    ),
    "listen": Command(
        "write a server's messages to the standard output",
        "Write the messages of a server to the standard output, one message per line. A message is "
        "acked once it is written.",
        _listen,
        "listen",
    ),
    "record": Command(
        "write a server's messages to an MCAP file",
        "Write the messages of a server to an MCAP file, with their ids, when they came, and what "
        "is missing, until the server closes or Ctrl-C. docs/recording.md says what is in the "
        "file. Needs mcap: pip install 'jumiks[record]'.",
        _record,
        "record",
    ),
    "replay": Command(
        "publish what 'jumiks record' has written",
        "Publish a recording again, as fast as it came, faster, or without pauses, with its ids. "
        "If it has gaps, give clients --reconnect, or give --renumber here: at a gap the server "
        "closes and another follows, so 'jumiks listen' without --reconnect ends there, with "
        "status 0. Clients with --reconnect are told the gap. Needs "
        "mcap: pip install 'jumiks[record]'.",
        _replay,
        "record",
    ),
    "status": Command(
        "show a running server, its log and its clients",
        "Show how a running server, its log and its clients are. Only its own user and root may "
        "ask, unless the server says otherwise.",
        _status,
        "status",
    ),
    "top": Command(
        "show the status live",
        "Show the status live, with the history of each client's lag. Keys: q ends, s sorts, r "
        "reverses, h helps. Needs rich: pip install 'jumiks[cli]'.",
        _top,
        "top",
    ),
    "ls": Command(
        "list the servers on this machine",
        "List the servers on this machine that this user may see: address, process, program, "
        "clients, rate, and the client nearest to its limit. A server that does not let this user "
        "look, or does not answer, has the reason in its row.",
        _ls,
        "ls",
    ),
    "bridge out": Command(
        "append a local feed to a stream of an engine",
        "Append a local feed to a stream of NATS JetStream or to a key of Redis, exactly once, "
        "with its gaps. A stream is for one feed. Needs the engine's client: pip install "
        "'jumiks[nats]' or 'jumiks[redis]'.",
        _bridge_out,
        "bridge",
    ),
    "bridge in": Command(
        "serve a stream of an engine as a local feed",
        "Serve a stream that 'jumiks bridge out' fills as a local feed, with the same ids on each "
        "machine. Clients reconnect (listen --reconnect), as another server follows at each gap. "
        "Needs the engine's client: pip install 'jumiks[nats]' or 'jumiks[redis]'.",
        _bridge_in,
        "bridge",
    ),
    "bridge status": Command(
        "show a stream of an engine, and what its ids stand for",
        "Show a stream that 'jumiks bridge out' fills: where it ends, and which of its ids stand "
        "for which ids of which source.",
        _bridge_status,
        "bridge",
    ),
    "bench": Command(
        "measure this machine or a server",
        "Measure quickly how fast this machine is, or how much a server sends.",
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


GROUPS: Final = {"bridge": "carry a local feed to other machines, by an engine"}
"""Commands that have commands of their own."""


OF_THE_SERVER: Final = {
    f"--{each.name.replace('_', '-')}": "jumiks serve"
    for each in fields(ServerOptions)
    if about(each).help
}
"""What clients do not say, since it is the server's."""


class _ShowVersion(argparse.Action):
    """Look the version up if it is asked for: that takes a third of a start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import jumiks

        print(f"jumiks {jumiks.__version__}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; what it returns has `run`, to be called with it."""
    parser = Parser(
        prog="jumiks",
        description=_described(
            "One-to-many messaging for processes on one Linux machine: one serves, any number "
            "listen.",
            "jumiks serve @log < lines & jumiks listen @log --wait 5",
        ),
        epilog="'jumiks COMMAND --help' has more.\n\nexit status:\n"
        + "\n".join(
            textwrap.fill(
                f"{status:5}{words}", WIDTH - 2, initial_indent="  ", subsequent_indent=" " * 7
            )
            for status, words in EXIT_STATUS
        ),
    )
    parser.add_argument(
        "-v", "--version", action=_ShowVersion, nargs=0, help="show the version and exit"
    )
    commands = parser.add_subparsers(dest="command_name", metavar="COMMAND", required=True)
    groups: dict[str, Any] = {}
    for name, command in COMMANDS.items():
        group, _, own = name.rpartition(" ")
        if group and group not in groups:
            above = commands.add_parser(group, help=GROUPS[group], description=GROUPS[group])
            groups[group] = above.add_subparsers(dest=group, metavar="COMMAND", required=True)
        one = (groups[group] if group else commands).add_parser(
            own, help=command.short, description=_described(command.long, EXAMPLES[name])
        )
        command.fill(one)
        one.set_defaults(run=_later(command.module), parser=one)
        one.command = name
        one.others = OF_THE_SERVER if name in ("listen", "record") else {}
    return parser


def _described(text: str, example: str) -> str:
    return f"{textwrap.fill(text, WIDTH - 2)}\n\nexample:\n  {example}"
