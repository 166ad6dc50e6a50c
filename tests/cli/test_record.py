# SPDX-License-Identifier: Apache-2.0
"""The commands record and replay: docs/recording.md."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.api import Task
from support.base import DEADLINE, needs
from support.command import command, finish
from support.servers import Server

from jumiks import Client, Gap
from jumiks._native import gather
from jumiks._wire.handshake import FIRST_ID
from jumiks.cli import main
from jumiks.recording import Pack, Reader
from jumiks.recording.file import Writer

pytestmark = needs("mcap")


def write(path: Path, *packs: tuple[float, int, Sequence[bytes]], server_id: int = 7) -> Path:
    """Make a recording: a time in seconds, the first id, and messages."""
    writer = Writer(path, "@ticks", server_id)
    for seconds, first_id, payloads in packs:
        frames = gather(payloads).frames(first_id)
        writer.write(Pack(int(seconds * 1e9), server_id, first_id, frames))
    writer.close()
    return path


Items = list[tuple[int, object, float]]


def listen(address: str, count: int, **options: object) -> Task[Items]:
    """Receive so many items of a server that is about to come: each with its id and its time."""

    def receive() -> Items:
        found = []
        with Client(address, wait=DEADLINE, **options) as client:  # type: ignore[call-overload]
            for _ in range(count):
                item = client.receive(DEADLINE)
                found.append((client.last_id, item, time.monotonic()))
        return found

    return Task(receive)


def items(task: Task[Items]) -> list[tuple[int, object]]:
    return [(packet_id, item) for packet_id, item, _ in task.result(DEADLINE)]


def test_what_is_recorded_is_replayed_with_its_ids(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ticks.mcap"
    with Server(address, first_id=FIRST_ID + 5) as server:
        server.publish_many([b"one", b"", b"three"])
        assert main(["record", address, str(path), "--from", "oldest", "--count", "3"]) == 0
        source = server.server_id
    assert capsys.readouterr().err == f"jumiks: 3 messages in {path}\n"
    task = listen(address, 3)
    assert main(["replay", str(path), address, "--wait", "1", "--speed", "max"]) == 0
    assert items(task) == list(enumerate([b"one", b"", b"three"], FIRST_ID + 5))
    assert capsys.readouterr().err == "jumiks: 3 messages published\n"
    with Reader(path) as recording:
        assert {item.server_id for item in recording} == {source}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_recording_in_good_order(address: str, tmp_path: Path, number: int) -> None:
    path = tmp_path / "ticks.mcap"
    with Server(address) as server:
        with command("record", address, path) as record:
            server.wait_for_clients(1, DEADLINE)
            server.publish(b"one")
            server.drain(DEADLINE)
            record.send_signal(number)
            assert finish(record) == (0, b"", f"jumiks: 1 message in {path}\n")
    with Reader(path) as recording:
        assert len(list(recording)) == 2
        assert not recording.is_cut_off


def test_a_gap_is_one_for_clients_that_come_back(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "ticks.mcap", (1, FIRST_ID, [b"a"]), (1, FIRST_ID + 9, [b"b"]))
    task = listen(address, 3, reconnect=True, on_gap="yield")
    assert main(["replay", str(path), address, "--wait", "1"]) == 0
    (first, a), (_, gap), (last, b) = items(task)
    assert (first, a, last, b) == (FIRST_ID, b"a", FIRST_ID + 9, b"b")
    assert gap == Gap(FIRST_ID + 1, FIRST_ID + 8)


def test_a_replay_that_nobody_hears_says_so_once(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "ticks.mcap", (1, FIRST_ID, [b"a", b"b"]))
    assert main(["replay", str(path), address, "--speed", "max"]) == 0
    heard = "no client was connected: --wait 1 waits for one"
    assert capsys.readouterr().err == f"jumiks: 2 messages published, {heard}\n"
    path = write(tmp_path / "gap.mcap", (1, FIRST_ID, [b"a", b"b"]), (1, FIRST_ID + 9, [b"c"]))
    assert main(["replay", str(path), address, "--speed", "max"]) == 0
    last, whole = capsys.readouterr().err.splitlines()
    assert (last, whole) == (
        f"jumiks: 1 message published, {heard}",
        "jumiks: 3 messages published",
    )


def test_renumbered_messages_have_no_gaps(address: str, tmp_path: Path) -> None:
    path = write(tmp_path / "ticks.mcap", (1, FIRST_ID + 3, [b"a"]), (1, FIRST_ID + 9, [b"b"]))
    task = listen(address, 2)
    assert main(["replay", str(path), address, "--wait", "1", "--renumber"]) == 0
    assert items(task) == [(FIRST_ID, b"a"), (FIRST_ID + 1, b"b")]


def test_another_recorded_server_is_another_one_here(address: str, tmp_path: Path) -> None:
    path = tmp_path / "ticks.mcap"
    writer = Writer(path, "@ticks", 7)
    for server_id in (7, 8):
        frames = gather([b"%d" % server_id]).frames(FIRST_ID)
        writer.write(Pack(1, server_id, FIRST_ID, frames))
    writer.close()
    task = listen(address, 2, reconnect=True, on_gap="yield")
    assert main(["replay", str(path), address, "--wait", "1"]) == 0
    assert items(task) == [(FIRST_ID, b"7"), (FIRST_ID, b"8")]


@pytest.mark.parametrize(("speed", "least"), [("1", 0.4), ("4", 0.1)])
def test_it_takes_as_long_as_it_took(
    address: str, tmp_path: Path, speed: str, least: float
) -> None:
    packs = [(1 + 0.2 * n, FIRST_ID + n, [b"x"]) for n in range(3)]
    path = write(tmp_path / "ticks.mcap", *packs)
    task = listen(address, 3)
    before = time.monotonic()
    assert main(["replay", str(path), address, "--wait", "1", "--speed", speed]) == 0
    assert time.monotonic() - before >= least
    items(task)


def test_at_most_speed_an_hour_takes_no_time(address: str, tmp_path: Path) -> None:
    path = write(tmp_path / "ticks.mcap", (1, FIRST_ID, [b"a"]), (3601, FIRST_ID + 1, [b"b"]))
    task = listen(address, 2)
    assert main(["replay", str(path), address, "--wait", "1", "--speed", "max"]) == 0
    assert items(task) == [(FIRST_ID, b"a"), (FIRST_ID + 1, b"b")]


def test_a_file_that_was_cut_off_is_replayed_as_far_as_it_goes(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ticks.mcap"
    writer = Writer(path, "@ticks", 7)
    writer.write(Pack(1, 7, FIRST_ID, gather([b"a"]).frames(FIRST_ID)))
    writer.flush()
    writer.give_up()
    task = listen(address, 1)
    assert main(["replay", str(path), address, "--wait", "1"]) == 0
    assert items(task) == [(FIRST_ID, b"a")]
    said = capsys.readouterr().err
    assert f"{path}: it was cut off; what was before that is published" in said


def test_a_message_too_large_for_the_log_says_which_option(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "ticks.mcap", (1, FIRST_ID, [bytes(5 << 20)]))
    assert main(["replay", str(path), address]) == 1
    assert "--max-message" in capsys.readouterr().err
    assert main(["replay", str(path), address, "--max-message", "5M"]) == 0
    said = capsys.readouterr().err
    assert "1 message published, no client was connected: --wait 1 waits for one" in said


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["record", "@nobody", "{here}"], 1, "{here}: it is there already: take another name"),
        (["record", "@nobody", "{here}/x/y"], 3, "no server listens"),
        (["replay", "{here}", "@nobody"], 1, "{here}: it is no MCAP file"),
        (["replay", "{here}x", "@nobody"], 1, "{here}x: No such file or directory"),
        (["replay", "/", "@nobody"], 1, "/: Is a directory"),
        (["replay", "{pipe}", "@nobody"], 1, "{pipe}: this is a pipe (FIFO), and a recording is"),
        (["record", "@nobody", "{pipe}"], 1, "{pipe}: this is a pipe (FIFO), and a recording is"),
    ],
)
def test_what_cannot_be_done_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    status: int,
    words: str,
) -> None:
    here = tmp_path / "file"
    here.write_text("not a recording")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main([word.format(here=here, pipe=pipe) for word in arguments]) == status
    assert words.format(here=here, pipe=pipe) in capsys.readouterr().err
    assert here.read_text() == "not a recording"


def test_a_directory_that_is_missing_is_no_missing_server(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "no" / "ticks.mcap"
    with Server(address):
        assert main(["record", address, str(path)]) == 1
    assert capsys.readouterr().err == f"jumiks: {path}: No such file or directory\n"


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unprivileged: int
) -> None:
    path = Path("/proc/1/mem") if os.geteuid() else tmp_path
    assert main(["replay", str(path), "@nobody"]) == 1
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["replay", "x", "@y", "--speed", "0"], "'0': it must be a number above 0"),
        (["replay", "x", "@y", "--speed", "fast"], "or 'max'"),
        (["record", "@y", "-"], "'jumiks listen'"),
        (["record", "@y", "x", "--buffer", "lots"], "a number of bytes"),
    ],
)
def test_wrong_usage_says_what_is_right(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
