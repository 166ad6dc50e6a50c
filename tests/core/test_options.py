# SPDX-License-Identifier: Apache-2.0
"""The table of options, and the places that repeat a part of it."""

import argparse
import ast
import inspect
import pydoc
import re
import textwrap
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

import pytest
from support.base import DEADLINE

from jumiks import AddressInUse, AsyncClient, AsyncServer, Client, Server
from jumiks._options import (
    About,
    AsyncClientOptions,
    ClientOptions,
    Options,
    ServerOptions,
    about,
    takes,
)
from jumiks._peer import group_id
from jumiks._server.access import check_allow
from jumiks.cli.parser import make_parser

pytestmark = pytest.mark.no_core

OPTIONS: list[Field[Any]] = list(fields(ServerOptions))
ON_COMMAND_LINE = [
    (command, each)
    for command, table in (("serve", ServerOptions), ("listen", ClientOptions))
    for each in fields(table)
    if about(each).help
]
RENAMED = {"allow": "--anyone", "start": "--from"}


def command_line(name: str) -> dict[str, argparse.Action]:
    """The options of a command, each under its flag."""
    parser = make_parser()
    (commands,) = (each for each in parser._actions if isinstance(each.choices, dict))
    assert isinstance(commands.choices, dict)
    actions: list[argparse.Action] = commands.choices[name]._actions
    return {flag: each for each in actions for flag in each.option_strings}


def flag_of(name: str) -> str:
    return RENAMED.get(name, f"--{name.replace('_', '-')}")


TABLES: list[tuple[type, type[Options]]] = [
    (Server, ServerOptions),
    (AsyncServer, ServerOptions),
    (Client, ClientOptions),
    (AsyncClient, AsyncClientOptions),
]
tables = pytest.mark.parametrize(("kind", "table"), TABLES)


@tables
def test_the_signature_is_the_table(kind: type, table: type[Options]) -> None:
    where, *found = inspect.signature(kind).parameters.values()
    assert where.name == "where"
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in found)
    assert [(each.name, each.annotation, each.default) for each in found] == [
        (each.name, each.type, each.default) for each in fields(table)
    ]


@tables
def test_help_has_the_documentation_of_the_table(kind: type, table: type[Options]) -> None:
    shown = " ".join(pydoc.plain(pydoc.render_doc(kind)).replace(" |  ", " ").split())
    at = 0
    for each in fields(table):
        words = " ".join(f"{each.name}: {about(each).doc}".split())
        assert words.endswith(".")
        assert at <= shown.index(words), each.name
        at = shown.index(words)


@tables
def test_the_documentation_is_indented_as_the_rest_of_a_docstring(
    kind: type, table: type[Options]
) -> None:
    doc = inspect.getdoc(kind) or ""
    arguments = doc.partition("Args:\n")[2].partition("\n\n")[0]
    names = [
        line.partition(":")[0].strip()
        for line in arguments.splitlines()
        if line.startswith("    ") and not line.startswith("     ")
    ]
    assert names == ["where", *(each.name for each in fields(table))]
    assert max(map(len, arguments.splitlines())) <= 96


def test_a_class_without_a_docstring_stays_without() -> None:
    class Bare:
        pass

    assert takes(ServerOptions)(Bare) is Bare
    assert Bare.__doc__ is None


def test_each_default_is_right_and_each_field_has_all_of_an_option() -> None:
    defaults: dict[str, Any] = {each.name: each.default for each in OPTIONS}
    assert ServerOptions() == ServerOptions(**defaults)
    for each in OPTIONS:
        assert isinstance(about(each), About)
        assert about(each).doc[0].islower()


WRONG: dict[str, tuple[object, ...]] = {
    "max_lag": (0, -1, "5", 1.5, True),
    "on_lag": ("wait", None, 1),
    "patience": (-1, "long", True, float("nan")),
    "log_size": (0, 65535, None, "64M", 1 << 40),
    "keep": (-1, None, 1.5, (8 << 20) // 16 + 1),
    "keep_bytes": (-1, None, "64K", 16 << 20),
    "first_id": (0, 1, 99999, (1 << 62) + 1, 1 << 64, None, "100000", 1e6, True),
    "server_id": (0, -1, 1 << 64, "1", 1.5, True),
    "history": (None, 5, "one", b"one", bytearray(b"one"), memoryview(b"one")),
    "max_message": (0, -1, "4M", 5 << 20, 1 << 40),
    "max_clients": (0, None, 1 << 21),
    "max_clients_per_user": (0, 1025, "half"),
    "handshake_timeout": (0, -1, None, "soon", float("nan")),
    "mode": (-1, 660, 0o1000, "0660", True),
    "group": ("no such group", -1, 2**32 - 1, 1.5, True),
    "allow": (True, "everyone", -1, [], 1.5, [True], ["root"]),
    "share_log": (None, 1, "yes"),
    "monitor": (True, "everyone", -1, [], 1.5),
    "on_connect": (1, "print"),
    "on_disconnect": (1, "print"),
    "on_lag_warning": (1, "print"),
    "lag_warning": (0, 1.5, None, "half", True),
}


RIGHT = (
    "it must be",
    "takes",
    " is a ",
    " is True",
    " is the name",
    "raise",
    "those",
    "see",
    "give",
)
"""How an error may begin to say what would be right."""


WRONG_OF_CLIENTS: dict[str, tuple[object, ...]] = {
    "start": (
        *("new", None, True, 100000.0, 0, 99999, 1 << 64),
        *((), (7,), (7, 100000, 1), (7, 99999), (7, 1 << 64), (7, -1), (7, True), (7, "now")),
        *((0, 100000), (-1, 100000), (1 << 64, 100000), (True, 100000), ("7", 100000)),
    ),
    "timeout": (-1, "soon", True, float("nan")),
    "name": (1, b"feed", "x" * 65, "\x1b[2J", "two\nlines"),
    "wait": (-1, "long", True, float("nan")),
    "delivery": ("fast", None, True, []),
    "on_gap": ("function", 1, True),
    "ack": ("never", None, 1, []),
    "reconnect": (None, 1, "yes"),
    "spin": (-1, None, "long", True, float("nan")),
}


def test_the_last_ids_that_there_can_be_are_taken() -> None:
    last = (1 << 64) - 1
    assert ServerOptions(server_id=last).server_id == last
    assert ClientOptions(start=(last, last)).start == (last, last)


def test_there_is_a_wrong_value_for_each_option() -> None:
    assert set(WRONG) == {each.name for each in OPTIONS}
    assert set(WRONG_OF_CLIENTS) == {each.name for each in fields(ClientOptions)}


@pytest.mark.parametrize(
    ("table", "name", "wrong"),
    [
        (table, name, wrong)
        for table, names in ((ServerOptions, WRONG), (ClientOptions, WRONG_OF_CLIENTS))
        for name, values in names.items()
        for wrong in values
    ],
)
def test_an_error_names_the_option_the_value_and_what_would_be_right(
    table: type[Options], name: str, wrong: object
) -> None:
    given: dict[str, Any] = {name: wrong}
    with pytest.raises((TypeError, ValueError)) as caught:
        table(**given)
    text = str(caught.value)
    assert text.startswith(name)
    assert wrong == [] or repr(wrong).strip("[]") in text
    assert any(
        word in text
        for word in (
            "it must be",
            "takes",
            " is a",
            " is True",
            "raise",
            "those",
            "see ",
            "give ",
            " is the",
        )
    ), text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": 660}, "mode=660 (0o1224): it must be from 0 to 0o777: did you mean 0o660?"),
        ({"max_message": 16777216}, ("max_message=16777216: it must be from 1 to 4194304 bytes, a "
         "quarter of log_size: raise log_size")),
        ({"handshake_timeout": -1}, "handshake_timeout=-1: it must be 0 seconds or more"),
        ({"patience": -1}, "patience=-1: it must be 0 seconds or more; None is no limit"),
        ({"monitor": True}, ("monitor takes None, False, 'anyone', a user id, a Group, several of "
         "them or a function, not True")),
        ({"max_clients": 10, "max_clients_per_user": 11}, ("max_clients_per_user=11: it must be "
         "from 1 to 10, which is max_clients")),
        ({"log_size": 65536, "keep_bytes": 32769}, ("keep_bytes=32769: at most half of log_size, "
         "32768, is kept, as clients need room too: raise log_size")),
        ({"log_size": 65536, "keep": 2049}, ("keep=2049: half of log_size, 32768 bytes, has room "
         "for 2048 messages at most, as each takes 16 bytes and its own: raise log_size, or keep "
         "fewer")),
    ],
)  # fmt: skip
def test_these_errors_say(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ServerOptions(**options)
    assert str(caught.value) == words


@pytest.mark.parametrize(("size", "what"), [(64, "control characters"), (65, "65 bytes")])
def test_a_name_is_refused_for_what_is_wrong_with_it(size: int, what: str) -> None:
    with pytest.raises(ValueError, match=f"it has {what}: it must be printable"):
        ClientOptions(name="\n" * size)


def test_what_depends_on_other_options_is_worked_out() -> None:
    small = ServerOptions(log_size=65537, keep=10)
    assert (small.log_size, small.largest, small.kept) == (131072, 32768, (10, 65536))
    assert ServerOptions(keep_bytes=100).kept == (1 << 62, 100)
    assert ServerOptions().kept == (0, 0)
    assert ServerOptions(max_clients=8).quota.limit == 4
    assert ServerOptions(max_clients=8, max_clients_per_user=3).quota.limit == 3
    assert ServerOptions(on_lag="block").policy.patience is None
    assert ServerOptions().policy.patience == 1.0
    assert ServerOptions(group="root").group == 0


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        (Client, "max_lag", "Client has no option 'max_lag': it is one of the server"),
        (AsyncClient, "on_lag", "AsyncClient has no option 'on_lag': it is one of the server"),
        (Server, "reconnect", "Server has no option 'reconnect': it is one of the client"),
        (AsyncServer, "spin", "AsyncServer has no option 'spin': it is one of the client"),
        (AsyncClient, "spin", "AsyncClient has no option 'spin': it is one of jumiks.Client alone"),
        (Server, "maxlag", "Server has no option 'maxlag': did you mean 'max_lag'?"),
        (Client, "x", ("Client has no option 'x'; its options: start, timeout, name, wait, "
         "delivery, on_gap, ack, reconnect, spin")),
    ],
)  # fmt: skip
def test_an_unknown_option_is_told_with_whose_it_is(kind: Any, name: str, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        kind("@nobody", **{name: 5})
    assert str(caught.value) == words


@tables
def test_an_option_without_its_name_is_told_how_it_is_written(
    kind: Any, table: type[Options]
) -> None:
    with pytest.raises(TypeError) as caught:
        kind("@nobody", 1000)
    before, _, example = str(caught.value).partition(", for example ")
    assert before == (
        f"{kind.__name__} takes one positional argument, the address: write all else as keywords"
    )
    call = ast.parse(example, mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.unparse(call.func) == kind.__name__
    assert [ast.literal_eval(each) for each in call.args] == ["@nobody"]
    for each in call.keywords:  # it is no wrong value that is shown
        table(**{each.arg or "": ast.literal_eval(each.value)})


@tables
def test_one_whose_constructor_failed_has_a_repr(kind: Any, table: type[Options]) -> None:
    assert table
    with pytest.raises(TypeError) as caught:
        kind("@nobody", no_option=1)
    failed = caught.traceback[1].frame.f_locals["self"]
    assert repr(failed) == f"<jumiks.{kind.__name__}: not made>"


def test_a_server_that_was_refused_its_address_has_a_repr(address: str) -> None:
    with Server(address), pytest.raises(AddressInUse) as caught:
        Server(address)
    failed = caught.traceback[1].frame.f_locals["self"]
    assert repr(failed) == "<jumiks.Server: not made>"


class Number:
    """What some libraries have for a whole number."""

    def __index__(self) -> int:
        return 100_000

    def __repr__(self) -> str:
        return "100000"


class NoNumber:
    """What has the method and no number, as an array has."""

    def __index__(self) -> int:
        raise TypeError("only scalar arrays can be converted")

    def __repr__(self) -> str:
        return "no number"


TAKE_WHOLE_NUMBERS: list[tuple[str, Callable[[Any], object], object]] = [
    ("max_lag", lambda value: ServerOptions(max_lag=value).max_lag, 100_000),
    ("log_size", lambda value: ServerOptions(log_size=value).log_size, 131_072),
    ("keep", lambda value: ServerOptions(keep=value, log_size=1 << 24).keep, 100_000),
    ("first_id", lambda value: ServerOptions(first_id=value).first_id, 100_000),
    ("start", lambda value: ClientOptions(start=value).start, 100_000),
    ("start of a server", lambda value: ClientOptions(start=(value, value)).start, None),
    ("allow", lambda value: check_allow("allow", value), None),
    ("allow several", lambda value: check_allow("allow", [value]), None),
    ("group", group_id, 100_000),
]
"""What takes one, and what it makes of 100,000, if that is easily said."""


@pytest.mark.parametrize(
    ("take", "made"), [row[1:] for row in TAKE_WHOLE_NUMBERS], ids=lambda row: ""
)
def test_whole_numbers_of_other_libraries_are_taken(
    take: Callable[[Any], object], made: object
) -> None:
    found = take(Number())
    assert found == take(100_000)
    if made is not None:
        assert (type(found), found) == (int, made)


@pytest.mark.parametrize("take", [row[1] for row in TAKE_WHOLE_NUMBERS])
@pytest.mark.parametrize("wrong", [True, 1e5, NoNumber()])
def test_what_is_no_whole_number_is_refused(take: Callable[[Any], object], wrong: object) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(repr(wrong))):
        take(wrong)


def test_calls_take_whole_numbers_of_other_libraries(address: str) -> None:
    with Server(address, max_message=200_000, mode=None) as server, Client(address) as client:
        with server.reserve(Number()) as view:  # type: ignore[arg-type]
            assert len(view) == 100_000
        client.receive(DEADLINE)
        client.ack(Number())  # type: ignore[arg-type]
        server.drain(DEADLINE)
        for wrong in (True, 1.0):
            with pytest.raises(TypeError, match=f"size is a number of bytes, not {wrong}"):
                server.reserve(wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=f"packet_id is a number, not {wrong}"):
                client.ack(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("command", "each"), ON_COMMAND_LINE)
def test_the_command_line_has_the_help_of_the_table(command: str, each: Field[Any]) -> None:
    action = command_line(command)[flag_of(each.name)]
    assert action.help == about(each).help
    if each.name not in ("keep", "allow"):
        assert action.default == each.default


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--max-lag 0", "argument --max-lag: '0': it must be from 1 to 9223372036854775807 mess"),
        ("--max-lag x", "argument --max-lag: 'x': it must be a whole number"),
        ("--max-lag 10k", ("--max-lag: '10k': it must be a whole number, with all its digits: "
         "units are for bytes")),
        ("--wait 1K", ("--wait: '1K': it must be a whole number, 1 or more, with all its digits: "
         "units are for bytes")),
        ("--max-message 5G", "--max-message: '5G': it must be from 1 to 4294967231 bytes"),
        ("--mode 999", "--mode: '999': it must be an octal number from 0 to 777, such as 0660"),
        ("--group nosuch", "--group: 'nosuch': there is no group named 'nosuch'"),
        ("--keep 5X", ("--keep: '5X': it must be a number of messages, or a number of bytes with a "
         "unit: K, M or G")),
        ("--linger -1", "--linger: '-1': it must be a number of seconds, 0 or more"),
        ("-0 --wait -1", "--wait: '-1': it must be a whole number, 1 or more"),
        ("--wait 0", "--wait: '0': it must be a whole number, 1 or more"),
        ("--max 5", "unknown option '--max'; did you mean"),
    ],
)  # fmt: skip
def test_the_command_line_says_what_would_be_right(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(["serve", "@x", *arguments.split()])
    assert caught.value.code == 2
    assert words in " ".join(textwrap.dedent(capsys.readouterr().err).split())


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("abc", "argument --from: 'abc': it must be 'now', 'oldest' or a packet id\n"),
        ("5", "argument --from: '5': it must be a packet id from 100000 to 18446744073709551615"),
        (str(1 << 64), f"argument --from: '{1 << 64}': it must be a packet id from 100000 to"),
    ],
)
def test_listen_says_what_a_start_is(
    start: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(["listen", "@x", "--from", start])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("start", ["now", "oldest", 100_000])
def test_listen_leaves_a_start_as_it_is(start: str | int) -> None:
    assert make_parser().parse_args(["listen", "@x", "--from", str(start)]).start == start
