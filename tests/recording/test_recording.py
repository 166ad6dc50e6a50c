# SPDX-License-Identifier: Apache-2.0
"""Recordings: what is in the file, read back by us and by the tools of MCAP; docs/recording.md."""

import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.base import DEADLINE, needs, wait_until
from support.servers import Server

from jumiks import Client, Gap, GapReason, Lagged
from jumiks._native import gather
from jumiks._wire.handshake import FIRST_ID
from jumiks.recording import (
    COMPRESSIONS,
    Compression,
    End,
    Lost,
    Pack,
    Reader,
    Recorder,
    RecordingError,
    file,
)
from jumiks.recording.file import Item, Writer

pytestmark = needs("mcap")

SECOND = 1_000_000_000


def read(path: Path, topic: str | None = None) -> list[Item]:
    with Reader(path, topic) as recording:
        return list(recording)


def messages(items: list[Item]) -> list[tuple[int, bytes]]:
    """The messages of a recording, with their ids."""
    return [
        pair
        for item in items
        if isinstance(item, Pack)
        for pair in enumerate(item.messages(), item.first_id)
    ]


def gaps(items: list[Item]) -> list[Gap]:
    return [item.gap for item in items if isinstance(item, Lost)]


def pack(first_id: int, *payloads: bytes, at: int = SECOND, server_id: int = 7) -> Pack:
    return Pack(at, server_id, first_id, gather(payloads).frames(first_id))


def write(path: Path, *items: Item, topic: str = "@ticks") -> Path:
    writer = Writer(path, topic, 7)
    for item in items:
        writer.write(item)
        writer.flush()
    writer.close()
    return path


@contextmanager
def recording(
    address: str, path: Path, count: int | None = None, **options: object
) -> Iterator[tuple[Recorder, list[BaseException]]]:
    """A recorder that runs in a thread, until the block ends and it does."""
    failures: list[BaseException] = []
    with Client(address, on_gap="yield", **options) as client:  # type: ignore[call-overload]
        one = Recorder(client, path, "@ticks")

        def run() -> None:
            try:
                one.run(count)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield one, failures
        finally:
            thread.join(DEADLINE)
            assert not thread.is_alive()


# ---- what is in it


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_all_messages_are_there_with_their_ids_and_times(
    address: str, tmp_path: Path, compression: Compression
) -> None:
    path = tmp_path / "ticks.mcap"
    sent = [b"%d" % number * (number % 5) for number in range(40_000)]
    with Server(address, first_id=1 << 40, on_lag="block") as server:
        with Client(address, on_gap="yield") as client:
            one = Recorder(client, path, "@ticks", compression=compression)
            thread = threading.Thread(target=one.run)
            thread.start()
            server.publish_many(sent)
            server.close(DEADLINE)
            thread.join(DEADLINE)
        server_id = server.server_id
    items = read(path)
    assert messages(items) == list(enumerate(sent, 1 << 40))
    assert {item.server_id for item in items} == {server_id}
    times = [item.time for item in items]
    assert times == sorted(times)
    assert isinstance(items[-1], End)
    assert items[-1].reason == "closed"
    assert one.messages == len(sent)


def test_the_tools_of_mcap_read_it(address: str, tmp_path: Path) -> None:
    from mcap.reader import make_reader

    path = tmp_path / "ticks.mcap"
    with Server(address) as server:
        with recording(address, path, count=2):
            server.publish_many([b"one", b"two"])
    with path.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics is not None
        topics = {channel.topic: channel for channel in summary.channels.values()}
        assert set(topics) == {"@ticks", "@ticks/events"}
        assert topics["@ticks"].message_encoding == "jumiks.frames"
        assert topics["@ticks"].metadata == {"server_id": str(server.server_id)}
        schema = summary.schemas[topics["@ticks"].schema_id]
        assert (schema.name, schema.encoding) == ("jumiks.Frames", "text")
        assert b"u64  id of the message" in schema.data
        found = [(channel.topic, message) for _, channel, message in reader.iter_messages()]
    assert json.loads(found[-1][1].data)["event"] == "end"
    assert found[-1][0] == "@ticks/events"
    assert found[0][1].data == gather([b"one", b"two"]).frames(FIRST_ID)
    assert [message.sequence for _, message in found] == list(range(1, len(found) + 1))


def test_times_do_not_go_back_with_the_clock(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([5 * SECOND, 3 * SECOND, 4 * SECOND, 7 * SECOND])
    monkeypatch.setattr("jumiks.recording.recorder.time.time_ns", lambda: next(clock))
    path = tmp_path / "ticks.mcap"
    with Server(address) as server, recording(address, path, count=3) as (one, _):
        for number in range(3):
            server.publish(b"x")
            wait_until(lambda n=number: one.messages == n + 1)  # type: ignore[misc]
    assert [item.time // SECOND for item in read(path)] == [5, 5, 5, 7]


def test_it_ends_after_a_number_of_messages_and_not_one_more(address: str, tmp_path: Path) -> None:
    path = tmp_path / "ticks.mcap"
    with Server(address) as server:
        with recording(address, path, count=7):
            server.publish_many([b"%d" % number for number in range(10)])
        items = read(path)
    assert [message for _, message in messages(items)] == [b"%d" % each for each in range(7)]
    assert items[-1].reason == "stopped"  # type: ignore[union-attr]


def test_messages_and_gaps_are_all_that_was_published(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The disk is so slow that the recorder's buffer is full and the server skips it.
    path = tmp_path / "ticks.mcap"
    hold = threading.Event()
    really = Writer.write

    def slow(self: Writer, item: Item) -> int:
        assert hold.wait(DEADLINE)
        return really(self, item)

    monkeypatch.setattr(Writer, "write", slow)
    with Server(address, max_lag=10, on_lag="skip", patience=0) as server:
        with Client(address, on_gap="yield") as client:
            one = Recorder(client, path, "@ticks", buffer=1)
            thread = threading.Thread(target=one.run)
            thread.start()
            for number in range(1000):
                server.publish(b"%d" % number)
            hold.set()
            server.drain(DEADLINE)
            server.close(DEADLINE)
            thread.join(DEADLINE)
    items = read(path)
    there = {packet_id for packet_id, _ in messages(items)}
    told = [range(gap.first, (gap.last or 0) + 1) for gap in gaps(items)]
    missing = {packet_id for each in told for packet_id in each}
    assert one.gaps == len(told) >= 1
    assert one.lost == sum(map(len, told)) == len(missing)
    assert not there & missing
    assert there | missing == set(range(FIRST_ID, FIRST_ID + 1000))


def test_a_gap_takes_room_in_the_buffer_as_messages_do(address: str, tmp_path: Path) -> None:
    with Server(address), Client(address, on_gap="yield") as client:
        one = Recorder(client, tmp_path / "ticks.mcap", "@ticks", buffer=4 * file.AROUND)
        try:
            for number in range(4):
                one._lose(
                    number, client.server_id, Gap(FIRST_ID + 2 * number, FIRST_ID + 2 * number)
                )
            one._failure = OSError("full")  # so that what has no room does not wait for it
            one._lose(5, client.server_id, Gap(FIRST_ID + 9, FIRST_ID + 9))
            assert one._waiting.qsize() == 4
        finally:
            one._failure = None
            one._writer.close()


def test_a_waiting_item_takes_about_as_much_memory_as_is_counted() -> None:
    waiting: list[Item] = []
    for make in (
        lambda number: Pack(SECOND + number, 7, FIRST_ID + number, bytes(32)),
        lambda number: Lost(SECOND + number, 7, Gap(FIRST_ID + number, FIRST_ID + number + 5)),
    ):
        waiting.clear()
        tracemalloc.start()
        try:
            waiting.extend(map(make, range(1000)))
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert 0.5 < taken / sum(map(file.size_in_memory, waiting)) <= 1


def test_a_recorder_that_is_cut_finishes_its_file_and_raises(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ticks.mcap"
    monkeypatch.setattr(Recorder, "_put", lambda *_: wait_until(lambda: not server.clients()))
    with Server(address, max_lag=1, patience=0) as server:
        with recording(address, path) as (_, failures):
            for number in range(100):
                server.publish(b"%d" % number)
    assert [type(failure) for failure in failures] == [Lagged]
    (end,) = read(path)
    assert isinstance(end, End)
    assert end.reason == "Lagged"
    assert end.text == str(failures[0])


def test_a_recorder_that_comes_back_has_the_gap_and_both_servers(
    address: str, tmp_path: Path
) -> None:
    path = tmp_path / "ticks.mcap"
    ids = []
    with Server(address, keep=1) as server:
        with recording(address, path, count=2, reconnect=True) as (one, _):
            server.publish(b"first")
            wait_until(lambda: one.messages == 1)
            server.close()
            ids.append(server.server_id)
            with Server(address, first_id=FIRST_ID + 5) as another:
                another.wait_for_clients(1, DEADLINE)
                another.publish(b"second")
                ids.append(another.server_id)
                wait_until(lambda: one.messages == 2)
    first, lost, second, _ = read(path)
    assert isinstance(first, Pack)
    assert isinstance(second, Pack)
    assert isinstance(lost, Lost)
    assert [first.server_id, second.server_id] == ids
    assert lost.server_id == ids[1]
    assert lost.gap == Gap(FIRST_ID, FIRST_ID + 4)
    assert lost.gap.reason is GapReason.EVICTED


# ---- files that cannot be read


def test_a_file_that_was_cut_anywhere_is_read_up_to_its_last_chunk_or_refused(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "whole", *(pack(FIRST_ID + 2 * n, b"a", b"b") for n in range(3)))
    whole = path.read_bytes()
    all_of_it = messages(read(path))
    assert len(all_of_it) == 6
    cut = tmp_path / "cut"
    seen, refused = set(), set()
    for size in range(0, len(whole), 29):
        cut.write_bytes(whole[:size])
        try:
            with Reader(cut) as recording:
                found = messages(list(recording))
                seen.add((len(found), recording.is_cut_off))
        except RecordingError as error:
            refused.add(str(error).removeprefix(f"{cut}: it "))
            continue
        assert found == all_of_it[: len(found)]
    # The last one lacks a part of its summary alone.
    assert seen == {(2, True), (4, True), (6, True), (6, False)}
    assert refused == {"is no MCAP file", "has nothing: it was cut off before its first chunk"}


def test_any_byte_that_changes_is_an_error_or_harms_no_message(tmp_path: Path) -> None:
    path = write(tmp_path / "whole", pack(FIRST_ID, b"a" * 50, b"b"), pack(FIRST_ID + 2, b"c"))
    whole = path.read_bytes()
    good = messages(read(path))
    for place in range(8, len(whole), 19):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = messages(read(path))
        except RecordingError:
            continue
        assert found == good[: len(found)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no MCAP file"),
        (b"\x89MCAP", "no MCAP file"),
        (b"# a page of text, which is no MCAP file\n", "no MCAP file"),
        (b"\x89MCAP0\r\n", "cut off before its first chunk"),
        (b"\x89MCAP0\r\n\x06" + b"\xff" * 8 + bytes(100), "cut off before its first chunk"),
    ],
    ids=["empty", "short", "text", "magic", "a record longer than the file"],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=words):
        read(path)


@pytest.mark.parametrize(
    ("frames", "at"),
    [
        ([(FIRST_ID, b"one"), (FIRST_ID + 2, b"two")], 24),
        ([(FIRST_ID, b"one"), (FIRST_ID, b"two")], 24),
        ([(FIRST_ID, b"one"), (FIRST_ID + 1, b"12345678"), (5, b"")], 48),
    ],
    ids=["a hole", "twice", "backwards"],
)
def test_a_pack_whose_ids_do_not_rise_by_one_is_damage(
    tmp_path: Path, frames: list[tuple[int, bytes]], at: int
) -> None:
    data = b"".join(gather([payload]).frames(packet_id) for packet_id, payload in frames)
    path = write(tmp_path / "wrong.mcap", pack(FIRST_ID - 1, b"good"), Pack(1, 7, FIRST_ID, data))
    words = f"begins with message {FIRST_ID} has no frame of the next message at its byte {at},"
    with Reader(path) as reader:
        found = iter(reader)
        assert isinstance(next(found), Pack)
        with pytest.raises(RecordingError, match=f"damaged: the pack of @ticks that {words}"):
            next(found)


def test_a_pipe_is_no_recording_and_nobody_waits_for_its_other_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    words = r"pipe: this is a pipe \(FIFO\), and a recording is a file, .*: give a file$"
    with pytest.raises(RecordingError, match=words):
        Reader(path)
    with pytest.raises(RecordingError, match=words):
        Writer(path, "@ticks", 7, overwrite=True)


def test_a_file_of_another_program_is_refused_with_its_topics(tmp_path: Path) -> None:
    from mcap.writer import Writer as McapWriter

    path = tmp_path / "robot.mcap"
    with path.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start()
        writer.add_message(writer.register_channel("/imu", "cdr", 0), 1, b"x", 1)
        writer.finish()  # type: ignore[no-untyped-call]
    with pytest.raises(RecordingError, match=r"no recording of a feed .*'/imu'"):
        Reader(path)
    path.write_bytes(path.read_bytes()[:-50])  # no summary: it has to be read
    with pytest.raises(RecordingError, match=r"no recording of a feed .*'/imu'"):
        read(path)


@contextmanager
def in_little_memory() -> Iterator[None]:
    """Fail if Python takes as much as 16 MiB at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_chunk_that_is_a_bomb_is_not_unpacked(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcap.data_stream import RecordBuilder
    from mcap.records import Chunk

    pack = importlib.import_module({"lz4": "lz4.frame"}.get(compression, "zstandard")).compress
    bomb = pack(bytes(64 << 20))
    out = RecordBuilder()
    Chunk(compression, bomb, 0, 0, uncompressed_crc=0, uncompressed_size=100).write(out)
    path = tmp_path / "bomb.mcap"
    path.write_bytes(b"\x89MCAP0\r\n" + out.end())  # type: ignore[no-untyped-call]
    with (
        in_little_memory(),
        pytest.raises(RecordingError, match="a chunk of 100 bytes has 101 or more"),
    ):
        read(path)


def test_a_summary_is_read_within_a_bound(tmp_path: Path) -> None:
    """It may have records of any size, chunks among them; only those of channels are read."""
    path = write(tmp_path / "feed.mcap", pack(FIRST_ID, b"one"))
    content = path.read_bytes()
    end = struct.unpack_from("<Q", content, len(content) - 28)[0]  # where its summary begins
    with path.open("wb") as stream:
        stream.write(content[:end] + struct.pack("<BQ", 200, 1 << 28))
        stream.seek(1 << 28, os.SEEK_CUR)
        stream.write(content[end:])
    with in_little_memory():
        assert messages(read(path)) == [(FIRST_ID, b"one")]


def test_a_summary_that_goes_on_without_end_is_left(tmp_path: Path) -> None:
    path = write(tmp_path / "feed.mcap", pack(FIRST_ID, b"one"))
    content = path.read_bytes()
    end = struct.unpack_from("<Q", content, len(content) - 28)[0]
    with path.open("wb") as stream:
        stream.write(content[:end])
        stream.seek(1 << 36, os.SEEK_CUR)  # zeros are records with nothing in them
        stream.write(content[end:])
    assert messages(read(path)) == [(FIRST_ID, b"one")]


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"event": "gap", "server_id": "7", "first_id": 1e999, "last_id": 2, "reason": "skipped"}',
        b'{"event": "gap", "server_id": "7", "first_id": 1, "last_id": 2, "reason": 5}',
        b'{"event": "end", "server_id": 1e999, "reason": "", "text": ""}',
    ],
)
def test_an_event_that_is_none_is_damage(tmp_path: Path, text: bytes) -> None:
    from mcap.writer import Writer as McapWriter

    path = tmp_path / "wrong.mcap"
    with path.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start()
        channel = writer.register_channel("@a", "jumiks.frames", 0, {"server_id": "7"})
        writer.add_message(channel, 1, gather([b"one"]).frames(FIRST_ID), 1)
        events = writer.register_channel("@a/events", "json", 0)
        writer.add_message(events, 2, text, 2)
        writer.finish()  # type: ignore[no-untyped-call]
    with pytest.raises(RecordingError, match="damaged: a message of @a/events cannot be read"):
        read(path)


def test_a_chunk_of_unknown_compression_is_damage(tmp_path: Path) -> None:
    from mcap.data_stream import RecordBuilder
    from mcap.records import Chunk

    out = RecordBuilder()
    Chunk("bz2", b"", 0, 0, uncompressed_crc=0, uncompressed_size=0).write(out)
    path = tmp_path / "strange.mcap"
    path.write_bytes(b"\x89MCAP0\r\n" + out.end())  # type: ignore[no-untyped-call]
    with pytest.raises(RecordingError, match="a chunk compressed by 'bz2': not by lz4 or zstd"):
        read(path)


def test_one_feed_of_several_is_asked_for(tmp_path: Path) -> None:
    from mcap.writer import Writer as McapWriter

    path = tmp_path / "both.mcap"
    with path.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start()
        for name in ("@a", "@b"):
            channel = writer.register_channel(name, "jumiks.frames", 0, {"server_id": "7"})
            writer.add_message(channel, 1, gather([name.encode()]).frames(FIRST_ID), 1)
        writer.finish()  # type: ignore[no-untyped-call]
    with pytest.raises(RecordingError, match="more than one feed, '@a' and '@b'"):
        Reader(path)
    assert messages(read(path, "@b")) == [(FIRST_ID, b"@b")]
    with pytest.raises(RecordingError, match=r"no feed '@c'; its topics: '@a', '@b'"):
        Reader(path, "@c")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcap", None)
    with pytest.raises(RecordingError, match=r"pip install 'jumiks\[record\]'"):
        file.needed()


def test_a_file_that_is_there_is_left_alone(address: str, tmp_path: Path) -> None:
    path = tmp_path / "ticks.mcap"
    path.write_bytes(b"dear")
    with pytest.raises(FileExistsError):
        Writer(path, "@ticks", 7)
    assert path.read_bytes() == b"dear"
    Writer(path, "@ticks", 7, overwrite=True).close()
    assert read(path) == []


# ---- what comes between


PROGRAM = """
import resource, sys
from jumiks import Client
from jumiks.recording import Recorder, recorder
recorder.FLUSH_EVERY = 0.05
address, path, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
with Client(address, on_gap="yield") as client:
    Recorder(client, path, "@ticks").run()
"""


@contextmanager
def program(address: str, path: Path, limit: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-c", PROGRAM, address, os.fspath(path), str(limit)]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_recorder_that_is_killed_leaves_a_file_that_is_read(address: str, tmp_path: Path) -> None:
    path = tmp_path / "ticks.mcap"
    sent = [b"%d" % number for number in range(1000)]
    with Server(address) as server:
        with program(address, path) as process:
            server.wait_for_clients(1, DEADLINE)
            server.publish_many(sent)
            wait_until(lambda: path.exists() and path.stat().st_size > 100)
            process.kill()
            process.wait(DEADLINE)
    with Reader(path) as recording:
        items = list(recording)
        assert recording.is_cut_off
    assert [message for _, message in messages(items)] == sent


def test_a_full_disk_ends_it_with_a_file_that_is_read(address: str, tmp_path: Path) -> None:
    # A limit of the file's size, which is no signal for Python. The feed falls silent behind it.
    path = tmp_path / "ticks.mcap"
    with Server(address) as server:
        with program(address, path, limit=2_500_000) as process:
            server.wait_for_clients(1, DEADLINE)
            for number in range(4):
                server.publish_many([os.urandom(1000) for _ in range(1000)])
                if number == 0:  # else the first chunk may be all of it, which finds no room
                    wait_until(lambda: path.exists() and path.stat().st_size > 500_000)
            _, errors = process.communicate(timeout=DEADLINE)
            assert process.returncode == 1
    assert b"File too large; it is readable up to its last whole chunk" in errors
    assert path.name in errors.decode()
    with Reader(path) as recording:
        found = messages(list(recording))
        assert recording.is_cut_off
    assert len(found) >= 500
    assert [packet_id for packet_id, _ in found] == [*range(FIRST_ID, FIRST_ID + len(found))]
    assert path.stat().st_size <= 2_500_000


def test_ctrl_c_finishes_the_file(address: str, tmp_path: Path) -> None:
    path = tmp_path / "ticks.mcap"
    with Server(address) as server:
        with program(address, path) as process:
            server.wait_for_clients(1, DEADLINE)
            server.publish(b"one")
            wait_until(lambda: path.exists() and path.stat().st_size > 100)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE)
    with Reader(path) as recording:
        *_, end = recording
        assert not recording.is_cut_off
    assert isinstance(end, End)
    assert end.reason == "stopped"


@pytest.mark.parametrize(
    ("ours", "next_id", "theirs", "gap", "told", "following"),
    [
        (7, 10, 7, Gap(5, 9), None, 10),
        (7, 10, 7, Gap(5, 10), Gap(10, 10), 11),
        (7, 10, 7, Gap(5, 12), Gap(10, 12), 13),
        (7, 10, 7, Gap(10, 12), Gap(10, 12), 13),
        (7, 10, 7, Gap(12, 12), Gap(12, 12), 13),
        (7, 10, 8, Gap(5, 9), Gap(5, 9), 10),
        (7, 10, 7, Gap(5, None), Gap(5, None), 10),
        (0, 10, 0, Gap(5, 9), Gap(5, 9), 10),  # plain servers have no id, so it may be another
    ],
)
def test_what_is_lost_is_told_once(
    address: str,
    tmp_path: Path,
    ours: int,
    next_id: int,
    theirs: int,
    gap: Gap,
    told: Gap | None,
    following: int,
) -> None:
    lost: list[Any] = []
    with Server(address), Client(address, on_gap="yield") as client:
        one: Any = Recorder(client, tmp_path / "ticks.mcap", "@ticks")
        one._put = lost.append
        one._server_id, one._next_id = ours, next_id
        one._lose(1, theirs, gap)
        one._writer.close()
    assert lost == ([] if told is None else [Lost(1, theirs, told)])
    assert one.gaps == len(lost)
    assert one.lost == sum(each.gap.count or 0 for each in lost)
    assert one._next_id == following
