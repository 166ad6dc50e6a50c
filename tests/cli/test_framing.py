# SPDX-License-Identifier: Apache-2.0
"""How messages stand in a stream of bytes, and how large they may be."""

import os
import signal
import socket
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.api import once_it_sleeps_in
from support.base import DEADLINE, wait_until
from support.command import command, finish, listens_at, run

from jumiks import Client, ServerClosed
from jumiks.cli import framing as framings
from jumiks.cli.framing import LENGTH, TooLong, read_messages, write_messages


@pytest.mark.parametrize("framing", [b"\n", b"\0", LENGTH])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_what_is_written_is_read_again(
    framing: bytes | str, chunk: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("jumiks.cli.framing.CHUNK", chunk)
    messages = [b"one", b"", b"three", b"x" * 1000, b""]
    file = tmp_path / "stream"
    with file.open("wb") as stream:
        write_messages(stream.fileno(), framing, messages)
    with file.open("rb") as stream:
        parts = list(read_messages(stream.fileno(), framing, 1000))
    assert [message for part in parts for message in part] == messages


@pytest.mark.parametrize("framing", [b"\n", LENGTH])
def test_a_message_that_never_ends_is_not_gathered_for_ever(
    framing: bytes | str, tmp_path: Path
) -> None:
    file = tmp_path / "stream"
    file.write_bytes((5000).to_bytes(4, "little") + b"x" * 2000)
    with file.open("rb") as stream, pytest.raises(ValueError, match="largest message, 1000 bytes"):
        list(read_messages(stream.fileno(), framing, 1000))


@given(st.lists(st.binary(max_size=20)), st.integers(1, 50))
def test_any_messages_pass_with_lengths(messages: list[bytes], chunk: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if messages:
            write_messages(ours.fileno(), LENGTH, messages)
        ours.shutdown(socket.SHUT_WR)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jumiks.cli.framing.CHUNK", chunk)
            parts = list(read_messages(theirs.fileno(), LENGTH, 20))
    assert [message for part in parts for message in part] == messages


class Enough(Exception):
    """Raised by a signal's handler."""


def test_a_signal_that_does_not_end_the_system_call_ends_the_read() -> None:
    def handler(number: int, frame: object) -> None:
        raise Enough

    def signal_another_thread() -> None:
        # This one takes it, so the wait goes on, as it would if the signal came just before it.
        signal.raise_signal(signal.SIGUSR1)
        in_time.append(left.wait(DEADLINE))
        os.write(writing, b"line\n")

    reading, writing = os.pipe()
    left = threading.Event()
    in_time: list[bool] = []
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with once_it_sleeps_in("_read", signal_another_thread), pytest.raises(Enough):
            try:
                next(read_messages(reading, b"\n", 1000))
            finally:
                left.set()
        assert in_time == [True]
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(reading)
        os.close(writing)


def test_the_last_line_needs_no_newline(address: str) -> None:
    with command("serve", address, "--wait", 1) as serve:
        wait_until(lambda: listens_at(address))
        with Client(address) as client:
            assert finish(serve, b"one\n\ntwo") == (0, b"", "")
            assert list(client.receive_many(DEADLINE)) == [b"one", b"", b"two"]
            with pytest.raises(ServerClosed):
                client.receive(DEADLINE)


def test_input_that_ends_inside_a_message_is_an_error(address: str) -> None:
    status, _, errors = run("serve", address, "--length-prefixed", given=b"\0\0\0\0\5\0\0\0abc")
    assert status == 1
    assert errors == (
        "jumiks: the input ends inside message 2, of which 7 bytes came, its length included: "
        "leave out --length-prefixed if no length stands before each message\n"
    )


TOO_LARGE = [
    (
        (),
        b"one\n\n",
        b"x" * 1025 + b"\nend\n",
        (
            "line 3 is larger than the largest message, 1024 bytes: give --max-message a larger "
            "size, say --too-long skip or cut, or --null or --length-prefixed if newlines do not "
            "end the messages"
        ),
    ),
    (
        ("--null",),
        b"one\0\0",
        b"x" * 1025,
        (
            "message 3 is larger than the largest message, 1024 bytes: give --max-message a larger "
            "size, say --too-long skip or cut, or leave out --null if newlines end the messages"
        ),
    ),
    (
        ("--length-prefixed",),
        b"\3\0\0\0one\0\0\0\0",
        b"text",  # read as a length
        (
            "message 3 has a length of 1954047348 bytes, and is larger than the largest message, "
            "1024 bytes: give --max-message a larger size, say --too-long skip or cut, or leave "
            "out --length-prefixed if no length stands before each message"
        ),
    ),
]


@pytest.mark.parametrize(
    ("framing", "good", "bad", "words"), TOO_LARGE, ids=["line", "null", "length"]
)
def test_a_message_that_is_too_large_is_told_with_its_place_and_a_way(
    address: str, framing: Sequence[str], good: bytes, bad: bytes, words: str
) -> None:
    with command("serve", address, *framing, "--max-message", "1K", "--wait", 1) as serve:
        wait_until(lambda: listens_at(address))
        with Client(address) as client:
            assert finish(serve, good + bad) == (1, b"", f"jumiks: {words}\n")
            # All that came before it was published.
            assert [client.receive(DEADLINE), client.receive(DEADLINE)] == [b"one", b""]
            with pytest.raises(ServerClosed):
                client.receive(DEADLINE)


@pytest.mark.parametrize("framing", [b"\n", b"\0", LENGTH])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_each_message_of_the_largest_size_passes_and_none_beyond(
    framing: bytes | str, chunk: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("jumiks.cli.framing.CHUNK", chunk)
    messages = [b"", b"x" * 9, b"y" * 10, b"z" * 10, b"", b"w" * 11, b"", b"v"]
    file = tmp_path / "stream"
    with file.open("wb") as stream:
        write_messages(stream.fileno(), framing, messages)
    found: list[bytes] = []
    with (
        file.open("rb") as stream,
        pytest.raises(ValueError, match=r"^(line|message) 6 .* 10 bytes"),
    ):
        for part in read_messages(stream.fileno(), framing, 10):
            found += part
    assert found == messages[:5]


@pytest.mark.parametrize("framing", [b"\n", b"\0", LENGTH])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
@pytest.mark.parametrize("too_long", ["skip", "cut"])
def test_what_is_too_long_is_skipped_or_cut_and_told(
    framing: bytes | str,
    chunk: int,
    too_long: TooLong,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("jumiks.cli.framing.CHUNK", chunk)
    messages = [b"", b"x" * 9, b"y" * 11, b"z" * 10, b"w" * 300, b"", b"v" * 12]
    file = tmp_path / "stream"
    with file.open("wb") as stream:
        write_messages(stream.fileno(), framing, messages)
    told: list[str] = []
    with file.open("rb") as stream:
        parts = list(read_messages(stream.fileno(), framing, 10, too_long, told.append))
    found = [each for part in parts for each in part]
    if too_long == "cut":
        assert found == [each[:10] for each in messages]
    else:
        assert found == [each for each in messages if len(each) <= 10]
    what, done = "line" if framing == b"\n" else "message", {"cut": "cut"}.get(too_long, "skipped")
    assert told == [
        f"{what} {number} is {done}: it has {size} bytes, and the largest message 10"
        for number, size in ((3, 11), (5, 300), (7, 12))
    ]


def test_a_line_without_end_that_is_cut_is_not_gathered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "stream"
    file.write_bytes(b"x" * 50_000_000)
    monkeypatch.setattr("jumiks.cli.framing.CHUNK", 1 << 20)
    tracemalloc.start()
    with file.open("rb") as stream:
        assert [*read_messages(stream.fileno(), b"\n", 1000, "cut")] == [[b"x" * 1000]]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 << 20


@pytest.mark.parametrize("framing", [b"\n", LENGTH])
def test_a_long_message_is_copied_once(
    framing: bytes | str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes: list[int] = []
    add = framings._Messages._add

    def counted(self: framings._Messages, part: bytes) -> None:
        sizes.append(len(part))
        add(self, part)

    monkeypatch.setattr(framings, "CHUNK", 100)
    monkeypatch.setattr(framings._Messages, "_add", counted)
    file = tmp_path / "stream"
    with file.open("wb") as stream:
        write_messages(stream.fileno(), framing, [b"x" * 50_000, b"end"])
    with file.open("rb") as source:
        parts = list(read_messages(source.fileno(), framing, 50_000))
    assert [message for part in parts for message in part] == [b"x" * 50_000, b"end"]
    assert 50_000 <= sum(sizes) <= 50_003


@pytest.mark.parametrize(("too_long", "line"), [("skip", b"b"), ("cut", b"xxxx")])
def test_serve_goes_on_after_a_line_that_is_too_long(
    address: str, too_long: str, line: bytes
) -> None:
    with command(
        "serve", address, "--max-message", 4, "--too-long", too_long, "--wait", 1
    ) as serve:
        wait_until(lambda: listens_at(address))
        with Client(address) as client:
            told = {"skip": "skipped", "cut": "cut"}[too_long]
            words = f"jumiks: line 2 is {told}: it has 5 bytes, and the largest message 4\n"
            assert finish(serve, b"a\nxxxxx\nb\n") == (0, b"", words)
            assert [client.receive(DEADLINE), client.receive(DEADLINE)] == [b"a", line]


@pytest.mark.parametrize("size", ["8388608", "8192k", "8M"])
def test_serve_takes_messages_as_large_as_it_is_told(address: str, size: str) -> None:
    line = b"x" * (8 << 20)
    with command("serve", address, "--max-message", size, "--wait", 1) as serve:
        wait_until(lambda: listens_at(address))
        with Client(address) as client:
            assert finish(serve, line + b"\n") == (0, b"", "")
            assert client.receive(DEADLINE) == line


def test_serve_refuses_a_largest_message_that_no_server_has(address: str) -> None:
    status, _, errors = run("serve", address, "--max-message", "5G")
    assert status == 2
    assert "--max-message: '5G': it must be from 1 to 4294967231 bytes\n" in errors
