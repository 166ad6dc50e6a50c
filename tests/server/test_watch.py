# SPDX-License-Identifier: Apache-2.0
"""Logs that cannot be flooded, and warnings of lag."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import anyio
import pytest
from support.api import SMALL_LOG
from support.base import ASYNCIO, DEADLINE, wait_until
from support.servers import AsyncServer, Server

from jumiks import Client, ClientInfo, Peer, Refused
from jumiks._server.journal import LOG_BURST, LOG_WINDOW, Journal
from jumiks._server.lag_watch import LagWatch
from jumiks.stats import share

INFO = ClientInfo(
    key=1,
    peer=Peer(1, 2, 3),
    since=0.0,
    last_ack=None,
    reason=None,
    limit_kind="",
    delivery="framed",
    lost=None,
    error="",
    **dict.fromkeys(
        (
            *("lag", "lag_bytes", "worst_lag", "queued", "kernel_bytes", "unacked", "sent_id"),
            *("acked_id", "messages", "bytes", "packets", "skipped", "limit"),
        ),
        0,
    ),
)


# ---- the log


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_lines_beyond_a_burst_are_counted(caplog: pytest.LogCaptureFixture, level: int) -> None:
    now = 0.0
    journal = Journal(logging.getLogger("jumiks"), lambda: now)
    caplog.set_level(logging.INFO, "jumiks")
    for number in range(LOG_BURST + 5):
        journal.log(level, "peer %d came", number)
    journal.log(logging.INFO, "another kind")
    journal.log(logging.ERROR, "peer %d came", 0)
    assert len(caplog.records) == LOG_BURST + 2
    assert journal.deadline == LOG_WINDOW
    caplog.clear()
    now = LOG_WINDOW + 1
    journal.expire()
    (record,) = caplog.records
    assert record.getMessage() == "5 more lines like 'peer %d came' in 11.0 s"
    assert record.levelno == level
    assert [journal.deadline] == [None]
    journal.log(level, "peer %d came", 1)
    assert len(caplog.records) == 2


def test_a_storm_of_refused_peers_does_not_flood_the_log(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumiks")
    with Server(address, allow=lambda _: False):
        for _ in range(3 * LOG_BURST):
            with pytest.raises(Refused):
                Client(address)
    lines = [record for record in caplog.records if "refused" in record.message]
    assert len(lines) == LOG_BURST + 1
    assert "NOT_ALLOWED" in lines[0].message
    assert lines[-1].message.startswith(f"{2 * LOG_BURST} more lines like")
    assert {line.levelno for line in lines} == {logging.INFO}


# ---- lag


@pytest.mark.parametrize(
    ("lag", "lag_bytes", "max_lag", "part"),
    [(5, 0, 10, 0.5), (5, 750, 10, 0.75), (5, 0, 0, 0.0), (0, 1000, 0, 1.0)],
)
def test_the_nearer_of_two_limits_counts(
    lag: int, lag_bytes: int, max_lag: int, part: float
) -> None:
    assert share(replace(INFO, lag=lag, lag_bytes=lag_bytes), max_lag, 1000) == part


def test_a_client_is_told_of_once_until_it_is_well_away_again() -> None:
    watch = LagWatch(0.8, 100, 1 << 30)
    told = [
        bool(watch.newly_near([replace(INFO, lag=lag)])) for lag in (79, 80, 99, 79, 41, 85, 40, 80)
    ]
    assert told == [False, True, False, False, False, False, False, True]


def test_a_key_that_is_gone_is_forgotten() -> None:
    watch = LagWatch(0.5, 10, 1 << 30)
    slow, other = replace(INFO, lag=9), replace(INFO, key=2, lag=9)
    assert watch.newly_near([slow]) == [slow]
    assert watch.newly_near([slow, other]) == [other]
    assert watch.newly_near([]) == []
    assert watch._told == set()


def test_a_server_warns_of_a_client_that_falls_behind(address: str) -> None:
    warned: list[ClientInfo] = []
    with Server(address, max_lag=10, on_lag_warning=warned.append) as server:
        with Client(address) as client:
            for _ in range(2):
                server.publish_many([b"message"] * 8)
                wait_until(lambda: warned)
                (info,) = warned
                assert info.lag == 8
                warned.clear()
                while client.last_id < server.stats().next_id - 1:
                    client.receive(DEADLINE)
                client.ack()
                wait_until(lambda: not server._control._lag_watch._told)


def test_a_warning_may_be_about_bytes(address: str) -> None:
    warned: list[ClientInfo] = []
    with Server(
        address, log_size=SMALL_LOG, on_lag_warning=warned.append, lag_warning=0.25
    ) as server:
        with Client(address):
            server.publish_many([bytes(1000)] * 20)
            wait_until(lambda: warned)
            assert warned[0].lag_bytes >= SMALL_LOG // 4


def test_what_is_kept_for_others_is_no_part_of_that_limit(address: str) -> None:
    warned: list[ClientInfo] = []
    with Server(address, log_size=SMALL_LOG, keep=1000, on_lag_warning=warned.append) as server:
        with Client(address):
            # More than half of what is not kept, and less than half of all.
            server.publish_many([bytes(1000)] * (SMALL_LOG // 3 // 1016))
            wait_until(lambda: warned)


def test_a_callback_that_raises_is_logged_and_harms_nobody(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(info: ClientInfo) -> None:
        raise RuntimeError("the user's own")

    with Server(address, max_lag=4, on_lag_warning=fail) as server, Client(address) as client:
        server.publish_many([b"message"] * 3)
        wait_until(lambda: "the user's own" in caplog.text)
        assert len(list(client.receive_many(DEADLINE))) >= 1


def test_an_event_loop_is_warned_too(address: str) -> None:
    warned: list[ClientInfo] = []

    async def main() -> None:
        async with AsyncServer(address, max_lag=4, on_lag_warning=warned.append) as server:
            with Client(address):
                server.publish_many([b"message"] * 3)
                with anyio.fail_after(DEADLINE):
                    while not warned:
                        await anyio.sleep(0.002)

    anyio.run(main, **ASYNCIO)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"lag_warning": 0}, ValueError, "above 0, and 1 at most"),
        ({"lag_warning": 1.5}, ValueError, "above 0, and 1 at most"),
        ({"lag_warning": "half"}, TypeError, "a part of the limit, such as 0.5"),
        ({"on_lag_warning": 1}, TypeError, "on_lag_warning is a function or None"),
    ],
)
def test_wrong_settings_are_named(
    address: str, wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Server(address, **wrong)


@pytest.mark.parametrize("name", ["on_connect", "on_disconnect", "on_lag_warning"])
@pytest.mark.parametrize("kind", [Server, AsyncServer])
def test_a_coroutine_function_is_no_callback(address: str, name: str, kind: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} is a plain function, as nobody awaits"):
        kind(address, **{name: asyncio.sleep})
