# SPDX-License-Identifier: Apache-2.0
"""Each option of `jumiks bridge` has its effect: one that does nothing fails here.

tests/bridge has what a bridge makes of what it is given.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from jumiks.bridge import Create
from jumiks.bridge.engine import StreamInfo
from jumiks.bridge.look import Look
from jumiks.cli import main
from jumiks.cli.pages import commands

pytestmark = pytest.mark.no_core

URL = "redis://host/ticks"
PLACES = {"out": ["@here", URL], "in": [URL, "./here"], "status": [URL]}
EMPTY = Look(URL, StreamInfo("Redis 7", "ticks", "now", 0, 0), None, None, 1, ())


class Seen(Exception):
    """What a bridge was given is noted by now."""


Given = dict[str, Any]


def given(leg: str, words: Sequence[str], patch: pytest.MonkeyPatch) -> Given:
    """What a command gives to its bridge, or to its look at the stream."""
    seen: Given = {"metrics": None}

    def note_and_end(*_: object, **options: object) -> None:
        seen.update(options)
        if "--metrics" not in words:
            raise Seen

    def note_metrics(_stack: object, _bridge: object, *where: object) -> None:
        seen["metrics"] = where
        raise Seen

    def note_credentials(_url: str, credentials: object) -> None:
        seen["credentials"] = credentials
        raise Seen

    patch.setattr("jumiks.cli.bridge.Outbound", note_and_end)
    patch.setattr("jumiks.cli.bridge.Inbound", note_and_end)
    patch.setattr("jumiks.cli.bridge._serve_metrics", note_metrics)
    patch.setattr("jumiks.cli.bridge.look", note_credentials)
    with pytest.raises(Seen):
        main(["bridge", leg, *(PLACES[leg] if "--anyone" not in words else [URL, "@here"]), *words])
    return seen


def option(name: str) -> Callable[[Given], object]:
    return lambda seen: seen[name]


def login(name: str) -> Callable[[Given], object]:
    return lambda seen: getattr(seen["credentials"], name)


class Row(NamedTuple):
    leg: str
    words: list[str]
    look: Callable[[Given], object]
    without: object
    with_it: object


BESIDE = {"tls_key": ["--tls-cert", "certificate"]}
"""What an option is for nothing without."""

LOGINS = [
    Row(
        leg,
        [f"--{name.replace('_', '-')}", "file", *BESIDE.get(name, ())],
        login(name),
        None,
        "file",
    )
    for leg in PLACES
    for name in ("creds", "nkey", "tls_ca", "tls_cert", "tls_key", "password_file")
]
METRICS = [
    Row(leg, ["--metrics", "127.0.0.1:9101"], option("metrics"), None, ("127.0.0.1", 9101))
    for leg in ("out", "in")
]
ROWS = [
    Row("out", ["--subject", "s"], option("subject"), None, "s"),
    Row("out", ["--create"], option("create"), None, Create()),
    Row("out", ["--max-bytes", "2K", "--create"], option("create"), None, Create(max_bytes=2048)),
    Row("out", ["--replicas", "3", "--create"], option("create"), None, Create(replicas=3)),
    Row("out", ["--pack", "64K"], option("pack"), None, 65536),
    Row("out", ["--plain"], option("plain"), False, True),
    Row("out", ["--window", "7"], option("window"), 32, 7),
    Row("out", ["--on-too-large", "stop"], option("on_too_large"), "gap", "stop"),
    Row("in", ["--history", "2K"], option("history"), 64 << 20, 2048),
    Row("in", ["--log-size", "1M"], option("log_size"), None, 1 << 20),
    Row("in", ["--log-size", "1M"], option("history"), 64 << 20, 1 << 19),
    Row("in", ["--wait", "7"], option("wait"), 0.0, 7.0),
    Row("in", ["--max-lag", "7"], option("max_lag"), None, 7),
    Row("in", ["--on-lag", "skip", "--max-lag", "7"], option("on_lag"), "disconnect", "skip"),
    Row("in", ["--patience", "7"], option("patience"), "default", 7.0),
    Row("in", ["--mode", "660"], option("mode"), None, 0o660),
    Row("in", ["--group", "0"], option("group"), None, 0),
    Row("in", ["--anyone"], option("allow"), None, "anyone"),
    *METRICS,
    *LOGINS,
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join([row.leg, *row.words]))
def test_each_option_of_a_bridge_has_its_effect(row: Row) -> None:
    seen = []
    for words in ([], row.words):
        with pytest.MonkeyPatch.context() as patch:
            seen.append(row.look(given(row.leg, words, patch)))
    assert seen == [row.without, row.with_it]


def test_json_has_the_status_printed_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def find(*_: object) -> Look:
        return EMPTY

    monkeypatch.setattr("jumiks.cli.bridge.look", find)
    main(["bridge", "status", URL])
    assert capsys.readouterr().out.startswith(URL)
    main(["bridge", "status", URL, "--json"])
    assert json.loads(capsys.readouterr().out)["url"] == URL


def test_each_option_of_a_bridge_is_in_the_table() -> None:
    there = {
        (leg, max(action.option_strings, key=len))
        for leg in PLACES
        for action in commands()[f"bridge {leg}"]._actions
        if action.option_strings and action.dest != "help"
    }
    assert {(row.leg, row.words[0]) for row in ROWS} | {("status", "--json")} == there
