# SPDX-License-Identifier: Apache-2.0
"""The endurance runs (tests/endurance), each for a moment; and that they notice what is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from endurance.bridge import HELD, lagged
from endurance.common import FIRST_ID, Failed
from endurance.ledger import COMES_BACK, NOW, Check, End, Ledger, Mode, Note, ServerNotes, payload
from endurance.soak import judge
from support.base import ROOT, SHARE_LOG

from jumiks import Gap

SHARED = "1" if SHARE_LOG else "0"
SANITIZED = "LD_PRELOAD" in os.environ
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def figures_of(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run it; returns its figures. It must have held."""
    file = folder / "figures.json"
    command = [sys.executable, "-m", f"endurance.{name}", "--json", str(file), *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT / "tests",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["verdict"] == "held"
    return found


def test_what_survives_kills_has_everything_and_nothing_is_left(tmp_path: Path) -> None:
    found = figures_of("kills", tmp_path, "--rounds", "5", "--share-log", SHARED)
    assert found["clients killed"]
    assert found["servers killed"]
    assert found["messages"] > 0


@pytest.mark.slow
def test_the_others_receive_while_half_of_the_clients_are_stopped(tmp_path: Path) -> None:
    size = ("--clients", "8", "--rounds", "1", "--seconds", "0.3", "--log-size", str(16 << 20))
    for on_lag in ("disconnect", "skip"):
        found = figures_of("stopped", tmp_path, *size, "--on-lag", on_lag, "--share-log", SHARED)
        assert found["stopped"] > 0


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "kind", ["classic", "framed", pytest.param("shared", marks=pytest.mark.only_shared)]
)
def test_a_storm_of_connections_is_let_in_while_messages_go_on(tmp_path: Path, kind: str) -> None:
    found = figures_of("storm", tmp_path, "--rounds", "1", "--seconds", "0.3", "--kind", kind)
    assert found["connections a second"]["median"] > 0


@pytest.mark.slow
@needs_compiler
def test_newcomers_get_in_beside_all_the_half_open_connections_there_can_be(tmp_path: Path) -> None:
    found = figures_of("halfopen", tmp_path, "--seconds", "0.3", "--goal", "0")
    assert found["half-open"] > 200
    assert found["replaced a second"] > 0


@pytest.mark.slow
def test_nothing_grows_while_clients_come_and_go(tmp_path: Path) -> None:
    samples = tmp_path / "samples.csv"
    size = ("--seconds", "4", "--every", "0.25", "--longest", "1", "--clients", "3")
    # A sanitizer keeps what was freed, to see whether it is used again.
    growth = str(1 << 30 if SANITIZED else 1 << 20)
    more = ("--csv", str(samples), "--most-growth", growth, "--share-log", SHARED)
    found = figures_of("soak", tmp_path, *size, *more)
    assert found["clients that came"] > 9
    assert len(samples.read_text().splitlines()) > 24


# ---- that they would notice ----

SERVERS = {
    1: ServerNotes(begun=FIRST_ID + 99, done=FIRST_ID + 98, random_id=77),
    2: ServerNotes(begun=FIRST_ID + 9, done=FIRST_ID + 9, random_id=78, alive=False),
}


def ledger(mode: int = Mode.SHARED, random_id: int = 77, begun: int = FIRST_ID + 9) -> Ledger:
    """Of a client that has connected."""
    made = Ledger()
    made.note(Note.CONNECTED, mode, NOW, random_id, 1, begun)
    return made


def check(made: Ledger) -> Check:
    found = Check(made, "a client")
    found.go_on(SERVERS)
    return found


def test_a_ledger_of_all_that_was_published_is_right() -> None:
    made = ledger()
    made.got(FIRST_ID, FIRST_ID + 19, 1)
    found = check(made)
    made.got(FIRST_ID + 20, FIRST_ID + 29, 1)
    made.gap(FIRST_ID + 30, FIRST_ID + 39)
    made.got(FIRST_ID + 40, FIRST_ID + 98, 1)
    made.note(Note.END, End.CLOSED)
    found.go_on(SERVERS)
    assert found.counts["messages"] == 89
    assert found.counts["missed"] == 10


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (FIRST_ID + 21, "1 are lost without a report"),
        (FIRST_ID + 19, "came again, or out of order"),
        (FIRST_ID, "came again, or out of order"),
    ],
)
def test_a_loss_and_a_repetition_are_noticed(first: int, words: str) -> None:
    made = ledger()
    made.got(FIRST_ID, FIRST_ID + 19, 1)
    found = check(made)
    made.got(first, FIRST_ID + 30, 1)
    with pytest.raises(Failed, match=words):
        found.go_on(SERVERS)


def test_a_slow_joiner_s_loss_is_noticed() -> None:
    made = ledger()
    made.got(FIRST_ID + 11, FIRST_ID + 19, 1)
    with pytest.raises(Failed, match="it had connected before 100010 was published"):
        check(made)


def test_a_message_that_was_not_published_and_one_of_another_server_are_noticed() -> None:
    made = ledger()
    made.got(FIRST_ID, FIRST_ID + 100, 1)
    with pytest.raises(Failed, match="message 100100 came, and server 1 was at 100099"):
        check(made)
    made = ledger()
    made.got(FIRST_ID, FIRST_ID, 2)
    with pytest.raises(Failed, match="a message of server 2 came from server 1"):
        check(made)


def test_a_wrong_payload_is_noticed() -> None:
    assert payload(FIRST_ID, 1) != payload(FIRST_ID, 2)
    assert payload(FIRST_ID, 1) != payload(FIRST_ID + 1, 1)
    made = ledger()
    made.note(Note.WRONG, FIRST_ID)
    with pytest.raises(Failed, match="message 100000 was not what it is"):
        check(made)


def test_an_end_that_is_not_as_it_was_told_is_noticed() -> None:
    made = ledger()
    made.got(FIRST_ID, FIRST_ID + 19, 1)
    made.note(Note.END, End.CLOSED)
    with pytest.raises(Failed, match="told that it had all, at 100019, of 100098 published"):
        check(made)
    made = ledger()
    made.got(FIRST_ID, FIRST_ID + 19, 1)
    made.note(Note.END, End.LOST)
    with pytest.raises(Failed, match="its connection was lost, and the server lives"):
        check(made)
    made = ledger()
    made.got(FIRST_ID, FIRST_ID + 19, 1)
    made.note(Note.END, End.LAGGED, FIRST_ID + 25, FIRST_ID + 30, FIRST_ID + 20)
    with pytest.raises(Failed, match="a loss from 100025 where 100020 was due"):
        check(made)


def test_what_a_dead_server_s_log_still_had_must_have_been_read() -> None:
    made = ledger(random_id=78)
    made.got(FIRST_ID, FIRST_ID + 8, 2)
    made.note(Note.END, End.LOST)
    with pytest.raises(Failed, match="100008 out of the log, and 100009 was there"):
        check(made)


def test_going_on_elsewhere_than_where_it_was_is_noticed() -> None:
    made = ledger()
    made.got(FIRST_ID, FIRST_ID + 19, 1)
    made.note(Note.END, End.LAGGED, FIRST_ID + 20, FIRST_ID + 30, FIRST_ID + 20)
    made.note(Note.CONNECTED, Mode.SHARED, FIRST_ID + 20, 77, 1, FIRST_ID + 50)
    made.got(FIRST_ID + 22, FIRST_ID + 60, 1)
    with pytest.raises(Failed, match="message 100022 where 100020 was due"):
        check(made)


def test_one_that_the_next_server_cuts_at_once_has_moved() -> None:
    made = ledger(Mode.SHARED | COMES_BACK, random_id=78)
    made.got(FIRST_ID, FIRST_ID + 9, 2)
    made.note(Note.END, End.LAGGED, FIRST_ID, FIRST_ID + 30, FIRST_ID)
    assert check(made).counts["moved"] == 1
    made = ledger(Mode.SHARED | COMES_BACK, random_id=78)
    made.got(FIRST_ID, FIRST_ID + 8, 2)
    made.note(Note.END, End.LAGGED, FIRST_ID, FIRST_ID + 30, FIRST_ID)
    with pytest.raises(Failed, match="it went on at the next server, at 100008 of the 100009"):
        check(made)


def test_growth_is_noticed() -> None:
    flat = {"descriptors": 9, "threads": 3, "mappings": 2, "log used": 1}
    rates = {"published a second": 1, "delivered a second": 1}
    samples = [
        {"policy": policy, "anonymous": step << 20, **flat, **rates}
        for step in range(16)
        for policy in ("disconnect", "block", "skip")
    ]
    with pytest.raises(Failed, match=r"disconnect: anonymous grew .* skip: anonymous grew"):
        judge(samples, {}, 1 << 20)
    judge(samples, {}, 16 << 20)


@pytest.mark.no_core
@pytest.mark.parametrize(
    ("published", "told", "count"),
    [
        (HELD + 300, {(FIRST_ID + 100, 200)}, 200),
        (HELD, {(FIRST_ID + 100, 200)}, 200),
        (HELD // 2, {(FIRST_ID + 100, 200)}, 0),  # the source still had it
        (HELD + 300, {(FIRST_ID + 100, 199)}, 0),  # the bridge out told another one
        (HELD + 300, set(), 0),
    ],
)
def test_a_gap_of_a_bridge_is_lag_only_if_the_source_had_it_no_more_and_the_bridge_said_so(
    published: int, told: set[tuple[int, int]], count: int
) -> None:
    assert lagged(Gap(FIRST_ID + 100, FIRST_ID + 299), published, told) == count
    assert not lagged(Gap(FIRST_ID + 100, None), published, told)
