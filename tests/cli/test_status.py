# SPDX-License-Identifier: Apache-2.0
"""The commands status and top."""

import json
import os
import subprocess
import sys

import pytest
from support.api import FOREIGN_ENVIRONMENT
from support.base import BEST, DEADLINE, needs, wait_until
from support.command import PIPE, command, finish, run
from support.servers import Server

from jumiks import Client, Monitor
from jumiks._peer import process_name
from jumiks._wire.handshake import FIRST_ID
from jumiks._wire.status import parse_status
from jumiks.cli.status import (
    Sample,
    age,
    as_ascii,
    cut,
    report,
    short,
    size_of,
    table,
    user_of,
    width_of,
)
from jumiks.stats import share


def test_status_shows_clients_and_log(address: str) -> None:
    with Server(address, max_lag=100) as server, Client(address):
        server.publish_many([b"message"] * 7)
        status, output, errors = run("status", address, "--interval", "0.01")
    assert (status, errors) == (0, "")
    lines = output.decode().splitlines()
    assert lines[0].startswith(f"{address}  process {os.getpid()} ")
    assert f"7 messages, {FIRST_ID} to {FIRST_ID + 6}" in lines[1]
    assert lines[3] == "policy  disconnect at 100 messages; nearest: 7%, 7 messages"
    head, row = (line.split() for line in lines[5:7])
    found = dict(zip(head, row, strict=True))
    assert (found["PID"], found["DELIVERY"], found["LAG"]) == (str(os.getpid()), BEST, "7")
    assert (found["SENT"], found["ACKED"]) == (str(FIRST_ID + 6), "-")


def test_status_as_json_is_what_the_server_gave(address: str) -> None:
    with Server(address), Client(address):
        _, output, _ = run("status", address, "--json")
    assert len(json.loads(output)["clients"]) == 1


def test_status_as_json_does_nothing_to_a_terminal() -> None:
    text = '{"a":\r"\x9b2J\u202e\x7f\U000e0041 \\u001b", "b":\t1}\n'
    shown = as_ascii(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert json.loads(shown) == json.loads(text)


def test_a_log_of_no_size_divides_nothing() -> None:
    told = {"address": "@a", "on_lag": "skip", "stats": {}, "clients": [{"delivery": "shared"}]}
    status = parse_status(json.dumps(told))
    assert share(status.clients[0], status.max_lag, status.stats.log_size) == 0
    assert report(Sample(status, status))


def test_rates_are_taken_between_two_looks(address: str) -> None:
    with Server(address) as server, Client(address) as client, Monitor(address) as monitor:
        before = monitor.status()
        server.publish_many([b"message"] * 1000)
        client.receive(DEADLINE)
        wait_until(lambda: server.clients()[0].messages == 1000)
        look = Sample(monitor.status(), before)
        seconds = look.status.now - before.now
        assert look.published[0] == pytest.approx(1000 / seconds)
        assert look.rates(look.status.clients[0])[0] == pytest.approx(1000 / seconds)
        assert any(str(os.getpid()) in line for line in report(look))


@needs("rich")
def test_top_shows_how_near_to_its_limit_each_client_is_and_was(address: str) -> None:
    with Server(address, max_lag=10) as server, Client(address):
        server.publish_many([b"message"] * 9)
        wide = {**os.environ, "COLUMNS": "120"}
        with command("top", address, "--interval", "0.01", "--count", 2, env=wide) as top:
            status, output, errors = finish(top)
    assert (status, errors) == (0, "")
    assert output.endswith(b"q: end\n")
    assert "LATELY" in output.decode()
    assert " 90% " in output.decode()
    assert "██" in output.decode()


def test_without_rich_top_says_how_to_get_it_and_status_works(address: str) -> None:
    script = "import sys; sys.modules['rich'] = None; from jumiks.cli import main; sys.exit(main())"
    python = [sys.executable, "-c", script]
    with Server(address):
        done = subprocess.run(
            [*python, "top", address], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr == (
            "jumiks: top needs rich, which is not installed: pip install 'jumiks[cli]'\n"
        )
        subprocess.run([*python, "status", address], stdout=PIPE, check=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9999, "9999"),
        (10_000, "10.0k"),
        (123_456, "123k"),
        (5e6, "5000k"),
        (2e13, "20.0T"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2s"), (61, "1m1s"), (3600, "1h0m"), (90_000, "1d1h"), (86400 * 400, "400d0h")],
)
def test_ages_have_two_units(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_a_process_that_cannot_be_seen_from_here_has_a_dash_or_a_number() -> None:
    process = subprocess.Popen(["true"], env=FOREIGN_ENVIRONMENT)
    process.wait()
    assert process_name(process.pid) == ""
    assert user_of(2**32 - 2) == str(2**32 - 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1000, "1000"), (1024, "1K"), (24_000, "23.4K"), (1 << 24, "16M"), (5e12, "4.5T")],
)
def test_sizes_have_the_units_of_the_options(value: float, text: str) -> None:
    assert size_of(value) == text


def test_names_take_the_columns_that_a_terminal_gives_them() -> None:
    assert (width_of("abc"), width_of("遅い"), width_of("e\N{COMBINING ACUTE ACCENT}")) == (3, 4, 1)
    assert cut("遅い遅い", 5) == "遅い…"
    assert table([["NAME", "LAG"], ["遅い", "5"]]) == ["NAME  LAG", "遅い    5"]


def test_names_are_cut_where_the_width_needs_it_alone() -> None:
    names = [f"strategy-momentum-eu-equities-{number}" for number in (1, 2)]
    clients = [{"delivery": "shared", "name": each} for each in names]
    told = {"address": "@a", "on_lag": "skip", "stats": {}, "clients": clients}
    status = parse_status(json.dumps(told))
    look = Sample(status, status)

    def shown(width: int) -> list[str]:
        return [line.split()[0] for line in report(look, width)[-2:]]

    whole = report(look)
    assert [line.split()[0] for line in whole[-2:]] == names
    width = max(map(len, whole[-3:]))
    assert shown(width) == names
    assert shown(width - 1) == [f"{names[0][:-2]}…"] * 2
    assert shown(width - 7) == [f"{names[0][:23]}…"] * 2
    assert 24 <= len(shown(40)[0]) <= 28
