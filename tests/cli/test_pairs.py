# SPDX-License-Identifier: Apache-2.0
"""Two options of which one would do nothing are refused, and so is what an engine cannot have."""

import pytest
from support.base import needs
from support.command import usage_error

from jumiks.bridge import Credentials
from jumiks.cli.pages import commands
from jumiks.cli.pairs import APART, NEEDS
from jumiks.cli.parser import make_parser

pytestmark = pytest.mark.no_core

NATS, REDIS = "nats://host/TICKS", "redis://host/ticks"
TWICE = [
    (f"bridge out @x {NATS} --creds a --nkey b", "--creds and --nkey: each is a way to log in"),
    (f"bridge in {NATS} @x --creds a --nkey b", "--creds and --nkey: "),
    (f"bridge status {NATS} --creds a --nkey b", "--creds and --nkey: "),
    (f"bridge status {NATS} --tls-key a", "--tls-key without --tls-cert: "),
    (f"bridge in {NATS} @x --tls-key a", "--tls-key without --tls-cert: "),
    (f"bridge out @x {NATS} --tls-key a", "--tls-key without --tls-cert: "),
    (f"bridge out @x {NATS} --max-bytes 1M", "--max-bytes without --create: it says how to make"),
    (f"bridge out @x {NATS} --replicas 3", "--replicas without --create: it says how to make"),
    ("listen @x --exec cat --json", "--exec and --json: --exec hands each message to CMD"),
    ("listen @x --json --exec cat", "leave one of the two out"),
    ("listen @x --exec cat --null", "--exec and --null: "),
    ("listen @x --exec cat -0", "--exec and --null: "),
    ("listen @x --exec cat --length-prefixed", "--exec and --length-prefixed: "),
    ("listen @x --json --null", "--json and --null: with --json each message is a line"),
    ("listen @x --json --length-prefixed", "--json and --length-prefixed: "),
    ("status @x --json --interval 0.5", "--json and --interval: there are no rates in it"),
]
ENGINES = [
    (f"bridge in {NATS} @x --mode 660", "--mode and --group are for the file"),
    (f"bridge in {NATS} @x --history 2M --log-size 1M", "--history 2M: it goes into the log"),
    (f"bridge out @x {NATS} --create --replicas 6", "replicas=6: NATS makes from 1 to 5 copies"),
    (f"bridge out @x {NATS} --subject a..b", "no record of NATS can have the subject 'a..b'"),
    (f"bridge out @x {NATS} --subject a.*", "no record of NATS can have the subject 'a.*'"),
    (f"bridge out @x {NATS}?subject=a", "a URL of this engine has no option 'subject'"),
    (f"bridge out @x {REDIS}?database=1", "has no option 'database': it may have db"),
    (f"bridge out @x {REDIS}?db=one", "db='one': it must be a number"),
    (f"bridge out @x {REDIS} --subject a", "subject='a' is for NATS"),
    (f"bridge out @x {REDIS} --creds a", "creds='a' is for NATS"),
    (f"bridge in {REDIS} @x --nkey a", "nkey='a' is for NATS"),
    (f"bridge status {REDIS} --nkey a", "nkey='a' is for NATS"),
    (f"bridge out @x {REDIS} --create --replicas 3", "replicas=3 is for NATS"),
]
NAMES = ["bad.name", "bad%20name", "bad*", "bad>", "bad%5Cname", "bad%09name", "x" * 256]


ENGINES_ARE_HERE = (needs("nats"), needs("redis"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [*TWICE, *(pytest.param(*row, marks=ENGINES_ARE_HERE) for row in ENGINES)],
)
def test_what_would_do_nothing_is_refused(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in usage_error(arguments, capsys)


def test_each_pair_of_the_tables_is_tried() -> None:
    for table, word in ((APART, "and"), (NEEDS, "without")):
        for name, rows in table.items():
            options = {each for one in commands()[name]._actions for each in one.option_strings}
            for one, other, _ in rows:
                assert {one, other} <= options
                assert any(
                    arguments.startswith(name) and words.startswith(f"{one} {word} {other}: ")
                    for arguments, words in TWICE
                )


@pytest.mark.parametrize(
    "arguments",
    [
        "listen @x --exec cat --count 2 --on-gap fail",
        "listen @x --json --on-gap write",
        "status @x --interval 2",
        f"bridge out @x {NATS} --create --max-bytes 1M --replicas 3",
        f"bridge out @x {NATS} --tls-cert a",
    ],
)
def test_what_goes_together_is_taken(arguments: str) -> None:
    assert make_parser().parse_args(arguments.split()).run


def test_a_parser_forgets_what_was_given_before(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser()
    parser.parse_args(["listen", "@x", "--json"])
    parser.parse_args(["listen", "@x", "--exec", "cat"])
    assert capsys.readouterr().err == ""


@needs("nats")
@pytest.mark.parametrize("leg", ["out @x {}", "in {} @x", "status {}"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_stream_can_have_is_refused_at_once(
    leg: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = usage_error("bridge " + leg.format(f"nats://127.0.0.1:1/{name}"), capsys)
    assert "no stream of NATS can have the name " in errors


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"creds": "a", "nkey": "b"}, "two ways to log in: leave one of them out"),
        ({"tls_key": "a"}, "give tls_cert too"),
    ],
)
def test_credentials_of_which_one_would_do_nothing_are_refused(
    given: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Credentials(**given)
