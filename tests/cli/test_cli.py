# SPDX-License-Identifier: Apache-2.0
"""The command, run as a user runs it."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import termios
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.api import FOREIGN_ENVIRONMENT, SMALL_LOG, Task
from support.base import BEST, DEADLINE, needs, wait_until
from support.command import JUMIKS, PIPE, command, finish, listens_at, run
from support.servers import Server

from jumiks import Client, Lagged, Monitor, ServerClosed
from jumiks._peer import process_name
from jumiks._wire.handshake import FIRST_ID
from jumiks._wire.status import parse_status
from jumiks.cli import _say, main
from jumiks.cli import framing as framings
from jumiks.cli.framing import LENGTH, read_messages, write_messages
from jumiks.cli.pages import commands, man_page
from jumiks.cli.parser import EXAMPLES, make_parser
from jumiks.cli.status import Sample, age, as_ascii, report, short, user_of
from jumiks.stats import share

PRELOADED = [f"{name}={os.environ[name]}" for name in ("LD_PRELOAD",) if name in os.environ]
IN_SHELL = " ".join(["env", *PRELOADED, *JUMIKS])
"""The command as a line of a shell into which no sanitizer may be loaded."""
Split = Callable[[bytes], tuple[list[bytes], bytes]]


# ---- framing


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
        "jumiks: the input ends inside message 2, after 7 bytes of it and its length: "
        "leave out --length-prefixed if no length stands before each message\n"
    )


TOO_LARGE = [
    (
        (),
        b"one\n\n",
        b"x" * 1025 + b"\nend\n",
        (
            "line 3 is larger than the largest message, 1024 bytes: give --max-message a larger "
            "size, or --null or --length-prefixed if newlines do not end the messages"
        ),
    ),
    (
        ("--null",),
        b"one\0\0",
        b"x" * 1025,
        (
            "message 3 is larger than the largest message, 1024 bytes: give --max-message a larger "
            "size, or leave out --null if newlines end the messages"
        ),
    ),
    (
        ("--length-prefixed",),
        b"\3\0\0\0one\0\0\0\0",
        b"text",  # read as a length
        (
            "message 3 has a length of 1954047348 bytes, and is larger than the largest message, "
            "1024 bytes: give --max-message a larger size, or leave out --length-prefixed if no "
            "length stands before each message"
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


@pytest.mark.parametrize("framing", [b"\n", LENGTH])
def test_a_long_message_is_looked_through_once(
    framing: bytes | str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = []

    def counted(split: Split) -> Split:
        def count(data: bytes) -> tuple[list[bytes], bytes]:
            sizes.append(len(data))
            return split(data)

        return count

    by_end = framings._by_end
    monkeypatch.setattr(framings, "CHUNK", 100)
    monkeypatch.setattr(framings, "_by_length", counted(framings._by_length))
    monkeypatch.setattr(framings, "_by_end", lambda end: counted(by_end(end)))
    file = tmp_path / "stream"
    with file.open("wb") as stream:
        write_messages(stream.fileno(), framing, [b"x" * 50_000, b"end"])
    with file.open("rb") as source:
        parts = list(read_messages(source.fileno(), framing, 50_000))
    assert [message for part in parts for message in part] == [b"x" * 50_000, b"end"]
    assert sum(sizes) < 2 * 50_000


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
    assert "--max-message: 5368709120: it must be from 1 to 4294967231 bytes\n" in errors


# ---- serve and listen


@pytest.mark.parametrize("framing", [(), ("--null",), ("--length-prefixed",)])
def test_a_stream_passes_through_unchanged(address: str, framing: Sequence[str]) -> None:
    lines = [b"line %d" % number for number in range(20_000)]
    if framing == ("--length-prefixed",):
        given = b"".join(len(line).to_bytes(4, "little") + line for line in lines)
    else:
        given = b"".join(line + (b"\0" if framing else b"\n") for line in lines)
    with command("serve", address, *framing, "--wait", 2, "--on-lag", "block") as serve:
        wait_until(lambda: listens_at(address))
        with command("listen", address, *framing) as first:
            with command("listen", address, *framing) as second:
                assert serve.stdin is not None
                serve.stdin.write(given)
                serve.stdin.close()
                serve.stdin = None
                other = Task(lambda: finish(second))
                assert finish(first) == (0, given, "")
                assert other.result(3 * DEADLINE) == (0, given, "")
        assert finish(serve) == (0, b"", "")


def test_serve_says_if_no_client_was_there(address: str) -> None:
    status, _, errors = run("serve", address, given=b"1\n2\n3\n")
    assert (status, errors) == (
        0,
        "jumiks: 3 messages published, no client was connected: --wait 1 waits for one\n",
    )
    assert run("serve", address) == (0, b"", "")


def test_a_client_that_lags_is_told_options_of_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _say(Lagged(limit_kind="messages", limit=1, lag=1, first_lost=7, last_lost=9, oldest_kept=5))
    text = capsys.readouterr().err
    assert "connect again with --from 7" in text
    assert "'serve --on-lag block'" in text
    assert "on_lag=" not in text


def test_a_pipeline_of_two_servers(address: str) -> None:
    second = address + "b"
    with command("serve", address, "--wait", 1, "--on-lag", "block") as source:
        wait_until(lambda: listens_at(address))
        relay = f"{' '.join(JUMIKS)} listen {address} | {' '.join(JUMIKS)} serve {second} --wait 1"
        with subprocess.Popen(relay, shell=True) as middle:
            wait_until(lambda: listens_at(second))
            with command("listen", second) as end:
                given = b"".join(b"%d\n" % number for number in range(50_000))
                assert finish(source, given) == (0, b"", "")
                assert finish(end) == (0, given, "")
            assert middle.wait(DEADLINE) == 0


def test_listening_from_the_past_and_a_count(address: str) -> None:
    with Server(address) as server:
        server.publish_many([b"%d" % number for number in range(10)])
        assert run("listen", address, "--from", "oldest", "--count", 3) == (0, b"0\n1\n2\n", "")
        start = FIRST_ID + 8
        assert run("listen", address, "--from", start, "--count", 2) == (0, b"8\n9\n", "")
        status, _, errors = run("listen", address, "--from", FIRST_ID + 11)
        assert status == 3
        assert "lies beyond what was published" in errors


def test_listening_may_begin_before_the_server_is_there(address: str, path: Path) -> None:
    for where in (address, path):
        with command("listen", where, "--wait", 3 * DEADLINE, "--count", 1) as listen:
            with Server(where) as server:
                server.wait_for_clients(1, DEADLINE)
                server.publish(b"here")
                assert finish(listen) == (0, b"here\n", "")


def test_only_what_was_written_is_acked(address: str) -> None:
    gone = []
    with Server(address, on_disconnect=lambda info, _: gone.append(info.acked_id)) as server:
        server.publish_many([b"message"] * 10)
        run("listen", address, "--from", "oldest", "--count", 4)
        wait_until(lambda: gone)
    assert gone == [FIRST_ID + 3]


def test_json_tells_id_length_and_payload(address: str) -> None:
    with Server(address) as server:
        server.publish_many(['"ä"'.encode(), b"\xff\0"])
        _, output, _ = run("listen", address, "--from", "oldest", "--count", 2, "--json")
    assert list(map(json.loads, output.splitlines())) == [
        {"id": FIRST_ID, "length": 4, "payload": '"ä"'},
        {"id": FIRST_ID + 1, "length": 2, "base64": "/wA="},
    ]


def test_a_command_is_run_for_each_message_and_acks_it(address: str) -> None:
    gone = []
    script = 'echo "$JUMIKS_ID $(cat)"; [ "$JUMIKS_ID" != 100002 ]'
    with Server(address, on_disconnect=lambda info, _: gone.append(info.acked_id)) as server:
        server.publish_many([b"a", b"b", b"c", b"d"])
        status, output, errors = run("listen", address, "--from", "oldest", "--exec", script)
        wait_until(lambda: gone)
    assert (status, output) == (5, b"100000 a\n100001 b\n100002 c\n")
    assert "status 1 for message 100002, which is not acked" in errors
    assert gone == [FIRST_ID + 1]


def test_a_gap_is_told_on_standard_error(address: str) -> None:
    with Server(address, log_size=SMALL_LOG) as server:
        server.publish_many([bytes(1000)] * 100)
        oldest = server.stats().oldest_id
        status, _, errors = run("listen", address, "--from", FIRST_ID, "--count", 1)
    assert status == 0
    assert f"messages {FIRST_ID} to {oldest - 1} are lost" in errors


def test_a_path_gets_its_mode(path: Path) -> None:
    with command("serve", path, "--mode", "0620", "--group", str(os.getegid())) as serve:
        wait_until(path.exists)
        wait_until(lambda: path.stat().st_mode & 0o777 == 0o620)
        assert finish(serve) == (0, b"", "")
    assert not path.exists()


# ---- exit status


@pytest.mark.parametrize("name", ["listen", "status", pytest.param("top", marks=needs("rich"))])
def test_nobody_there_is_status_3(address: str, name: str) -> None:
    status, output, errors = run(name, address)
    assert (status, output) == (3, b"")
    assert errors.startswith("jumiks: ")
    assert "start it first" in errors


def test_an_address_in_use_is_status_3_and_names_the_owner(address: str) -> None:
    with Server(address):
        status, _, errors = run("serve", address)
    assert status == 3
    assert f"in use by process {os.getpid()}" in errors


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("serve",),
        ("listen", "@x", "--from", "then"),
        ("listen", "@x", "--count", "0"),
        ("serve", "@x", "--on-lag", "wait"),
        ("serve", "@x", "--null", "--length-prefixed"),
        ("bench", "--self", "@x"),
        ("top", "@x", "--interval", "-1"),
    ],
)
def test_wrong_usage_is_status_2(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: jumiks" in capsys.readouterr().err


def test_a_server_that_dies_is_status_4(address: str) -> None:
    with command("serve", address) as serve:
        wait_until(lambda: listens_at(address))
        with command("listen", address) as listen:
            wait_until(lambda: _clients_of(address) == 1)
            serve.kill()
            status, _, errors = finish(listen)
    assert status == 4
    assert errors.endswith(f"end of stream from '{address}' without a goodbye: the server died\n")


def _clients_of(address: str) -> int:
    with Monitor(address) as monitor:
        return len(monitor.status().clients)


def test_ctrl_c_is_quiet(address: str) -> None:
    with command("serve", address) as serve:
        wait_until(lambda: listens_at(address))
        with command("listen", address) as listen:
            wait_until(lambda: _clients_of(address) == 1)
            listen.send_signal(signal.SIGINT)
            assert finish(listen) == (130, b"", "")
        serve.send_signal(signal.SIGINT)
        assert serve.wait(DEADLINE) == 130
        assert serve.stderr is not None
        assert serve.stderr.read() == b""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_server_in_good_order(address: str, number: int, status: int) -> None:
    with command("serve", address) as serve:
        wait_until(lambda: listens_at(address))
        with Client(address) as client:
            serve.send_signal(number)
            with pytest.raises(ServerClosed):
                client.receive(DEADLINE)
        assert serve.wait(DEADLINE) == status


def test_under_nohup_the_end_of_the_terminal_is_ignored(address: str) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with command("serve", address, preexec_fn=ignore) as serve:
        wait_until(lambda: listens_at(address))
        serve.send_signal(signal.SIGHUP)
        assert finish(serve) == (0, b"", "")


# ---- standard streams


def redirected(arguments: str, redirection: str, **more: str) -> tuple[int, bytes, str]:
    """The command with a stream that the shell closes or redirects."""
    words = f"exec {' '.join(JUMIKS)} {arguments} {redirection}"
    done = subprocess.run(
        ["sh", "-c", words],
        stdin=PIPE,
        capture_output=True,
        check=False,
        env={**os.environ, **more},
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_a_closed_input_is_an_error_before_anything_is_served(address: str) -> None:
    with Server(address):  # or this would be what is said
        status, output, errors = redirected(f"serve {address}", "<&-")
    assert (status, output) == (1, b"")
    assert errors.startswith("jumiks: the standard input is closed: ")
    assert "</dev/null" in errors


@pytest.mark.parametrize(
    "arguments",
    ["listen {} --from oldest", "status {}", "top {}", "bench --self", "man", "completion bash"],
)
def test_a_closed_output_is_an_error_before_anything_is_taken(address: str, arguments: str) -> None:
    gone: list[int | None] = []
    with Server(address, on_disconnect=lambda info, _: gone.append(info.acked_id)) as server:
        server.publish(b"precious")
        status, _, errors = redirected(arguments.format(address), ">&-")
    assert status == 1
    assert errors.startswith("jumiks: the standard output is closed: ")
    assert ">/dev/null" in errors
    assert gone == []


@pytest.mark.parametrize("redirection", ["<&-", ">&-"])
def test_what_needs_no_such_stream_works_without(
    address: str, tmp_path: Path, redirection: str
) -> None:
    with Server(address) as server:
        server.publish_many([b"one", b"two"])
        arguments = f"listen {address} --from oldest --count 2 --exec 'cat >> {tmp_path}/found'"
        assert redirected(arguments, redirection) == (0, b"", "")
    assert (tmp_path / "found").read_text() == "onetwo"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_an_error_that_nobody_can_read_goes_nowhere_else(address: str, redirection: str) -> None:
    assert redirected(f"listen {address}", redirection) == (3, b"", "")


def test_no_connection_gets_the_number_of_a_closed_stream(address: str, tmp_path: Path) -> None:
    with Server(address) as server:
        server.publish(b"one")
        command = f"readlink /proc/$PPID/fd/0 /proc/$PPID/fd/1 > {tmp_path}/found"
        arguments = f"listen {address} --from oldest --count 1 --exec '{command}'"
        assert redirected(arguments, "<&- >&-") == (0, b"", "")
    assert (tmp_path / "found").read_text() == "/dev/null\n/dev/null\n"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_terminal_that_takes_ascii_alone_gets_what_it_can_show(address: str) -> None:
    with Server(f"{address}ä"):
        status, output, errors = redirected(f"status {address}ä", "", **ASCII)
    assert (status, errors) == (0, "")
    assert output.startswith(f"{address}\\xe4  process ".encode())


def test_an_error_repeats_an_argument_as_it_was_given(address: str) -> None:
    status, _, errors = redirected(f"listen {address}ä", "", **ASCII)
    assert status == 3
    assert errors.startswith(f"jumiks: {address}ä: ")


@pytest.mark.parametrize(
    ("keep", "messages", "size"), [("100", 100, 0), ("64K", 0, 65536), ("20m", 0, 20 << 20)]
)
def test_serve_takes_messages_or_bytes_to_keep(keep: str, messages: int, size: int) -> None:
    assert make_parser().parse_args(["serve", "@x", "--keep", keep]).keep == (messages, size)


@pytest.mark.parametrize("keep", ["", "0", "-1", "K", "1.5M", "1T", "x"])
def test_serve_refuses_what_is_no_amount(keep: str) -> None:
    status, _, errors = run("serve", "@x", f"--keep={keep}")
    assert status == 2
    assert "a number of messages, or a number of bytes with a unit: K, M or G" in errors


def test_what_serve_keeps_is_there_for_who_comes_later(address: str) -> None:
    """Also where that is more than the log has by default."""
    with command("serve", address, "--keep", "20M") as serve:
        assert serve.stdin is not None
        line = b"x" * 60_000 + b"\n"
        for _ in range(400):
            serve.stdin.write(line)
        serve.stdin.flush()
        wait_until(lambda: listens_at(address))
        with Monitor(address) as monitor:
            wait_until(lambda: monitor.status().stats.published == 400)
        with Client(address, start="oldest") as client:
            assert client.receive_many(DEADLINE).first_id <= FIRST_ID + 400 - (20 << 20) // 60_016
        assert finish(serve)[0] == 0


def test_listen_comes_back_to_a_server_if_told_so(address: str) -> None:
    with command("listen", address, "--wait", "20", "--reconnect", "--count", "2") as listen:
        for word in (b"first", b"second"):
            wait_until(lambda: not listens_at(address))
            with Server(address, on_lag="block") as server:
                server.wait_for_clients(1, 3 * DEADLINE)
                server.publish(word)
                server.drain(DEADLINE)
        assert finish(listen) == (0, b"first\nsecond\n", "")


def test_an_input_that_does_not_block_is_waited_for(address: str) -> None:
    """Whoever shares it may have made it so."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    with command("serve", address, stdin=ours) as serve:
        os.close(ours)
        wait_until(lambda: listens_at(address) or serve.poll() is not None)
        with Client(address, start="oldest") as client:
            os.write(theirs, b"one\n")
            assert client.receive(DEADLINE) == b"one"
            os.close(theirs)
            with pytest.raises(ServerClosed):
                client.receive(DEADLINE)
        assert finish(serve) == (0, b"", "")


def test_an_output_that_does_not_block_is_waited_for(address: str) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    with command("man", stdout=theirs) as man:
        os.close(theirs)
        wait_until(lambda: is_full(ours, 4096) or man.poll() is not None)
        with open(ours, "rb") as output:
            page = output.read()
        assert finish(man)[0] == 0
    assert page.decode() == man_page()


def is_full(pipe: int, size: int) -> bool:
    waiting = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return waiting[0] == size


def test_a_broken_pipe_is_quiet(address: str) -> None:
    with Server(address, on_lag="block") as server, command("listen", address) as listen:
        server.wait_for_clients(1, DEADLINE)
        assert listen.stdout is not None
        listen.stdout.close()
        listen.stdout = None
        server.publish(b"nobody reads this")
        status, _, errors = finish(listen)
    assert (status, errors) == (141, "")


# ---- status and top


def test_status_shows_clients_and_log(address: str) -> None:
    with Server(address, max_lag=100) as server, Client(address):
        server.publish_many([b"message"] * 7)
        status, output, errors = run("status", address, "--interval", "0.01")
    assert (status, errors) == (0, "")
    lines = output.decode().splitlines()
    assert lines[0].startswith(f"{address}  process {os.getpid()} ")
    assert f"7 messages, {FIRST_ID} to {FIRST_ID + 6}" in lines[1]
    assert lines[3] == "policy  disconnect at 100 messages"
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
def test_top_shows_a_bar_for_each_client(address: str) -> None:
    with Server(address, max_lag=10) as server, Client(address):
        server.publish_many([b"message"] * 9)
        wide = {**os.environ, "COLUMNS": "120"}
        with command("top", address, "--interval", "0.01", "--count", 2, env=wide) as top:
            status, output, errors = finish(top)
    assert (status, errors) == (0, "")
    assert "LIMIT" in output.decode()
    assert "━" * 16 in output.decode()


def test_without_rich_top_says_how_to_get_it_and_status_works(address: str) -> None:
    script = "import sys; sys.modules['rich'] = None; from jumiks.cli import main; sys.exit(main())"
    python = [sys.executable, "-c", script]
    with Server(address):
        done = subprocess.run(
            [*python, "top", address], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr == "jumiks: top needs rich, which is not installed: pip install rich\n"
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


def test_who_cannot_be_seen_from_here_has_a_dash_or_a_number() -> None:
    process = subprocess.Popen(["true"], env=FOREIGN_ENVIRONMENT)
    process.wait()
    assert process_name(process.pid) == ""
    assert user_of(2**32 - 2) == str(2**32 - 2)


# ---- bench, pages


def test_bench_measures_this_machine_and_loses_nothing() -> None:
    status, output, errors = run("bench", "--self", "--seconds", "1")
    assert (status, errors) == (0, "")
    lines = output.decode().splitlines()
    assert len(lines) == 5
    assert all("msg/s" in line and "LOST" not in line for line in lines[:4])
    assert "p50" in lines[4]


def test_bench_counts_what_comes_from_a_server(address: str) -> None:
    with Server(address) as server, command("bench", address, "--seconds", "100") as bench:
        server.wait_for_clients(1, DEADLINE)
        server.publish_many([b"message"] * 100)
        server.drain(DEADLINE)
        server.close()
        status, output, _ = finish(bench)
    assert status == 0
    assert output.startswith(b"100 messages in ")


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  {EXAMPLES[name]}" in capsys.readouterr().out


def test_there_is_an_example_for_each_command() -> None:
    assert set(EXAMPLES) == set(commands())


def test_the_manual_page_has_all_commands_options_and_exit_statuses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["man"])
    page = capsys.readouterr().out.replace("\\-", "-").replace("\\&", "")
    for name, parser in commands().items():
        assert f".SS jumiks {name}" in page
        assert EXAMPLES[name].replace("\\", "\\e") in page
        for action in parser._actions:
            for option in action.option_strings:
                assert option in page or action.dest == "help"
    for status in (0, 1, 2, 3, 4, 5, 129, 130, 141):
        assert f".B {status}\n" in page


@pytest.mark.skipif(shutil.which("man") is None, reason="there is no man to format it")
def test_the_manual_page_is_sound_roff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["man"])
    file = tmp_path / "jumiks.1"
    file.write_text(capsys.readouterr().out)
    done = subprocess.run(
        ["man", "--warnings", "-l", file],
        capture_output=True,
        text=True,
        check=True,
        env=FOREIGN_ENVIRONMENT,
    )
    assert done.stderr == ""
    assert "EXIT STATUS" in done.stdout


completions = pytest.mark.parametrize(
    ("words", "found"),
    [
        (("jumiks", "sta"), {"status"}),
        (("jumiks", "serve", "--max-l"), {"--max-lag"}),
        (("jumiks", "serve", "@x", "--on-lag", ""), {"disconnect", "block", "skip"}),
        (("jumiks", "completion", "z"), {"zsh"}),
    ],
)


def has(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"there is no {shell} here")


def shell_says(shell: str, script: str, folder: Path) -> set[str]:
    """The words that a script prints, in an empty folder."""
    done = subprocess.run(
        [shell, "/dev/stdin"],
        input=script,
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**FOREIGN_ENVIRONMENT, "HOME": str(folder)},
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def ask_as_bash_does(words: Sequence[str]) -> str:
    return f"""
    COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
    _jumiks; printf '%s\\n' "${{COMPREPLY[@]}}"
    """


@has("bash")
@completions
def test_bash_completes(words: Sequence[str], found: set[str], tmp_path: Path) -> None:
    script = f'eval "$({IN_SHELL} completion bash)"'
    assert shell_says("bash", script + ask_as_bash_does(words), tmp_path) == found


@has("zsh")
@completions
def test_zsh_completes(words: Sequence[str], found: set[str], tmp_path: Path) -> None:
    # zsh itself leaves out the words that do not begin as the last one does.
    script = f"""
    autoload -U compinit; compinit -D -u
    eval "$({IN_SHELL} completion zsh)"
    [[ $_comps[jumiks] == *_jumiks* ]] || exit 1
    emulate sh
    """
    said = shell_says("zsh", script + ask_as_bash_does(words), tmp_path)
    assert {word for word in said if word.startswith(words[-1])} == found


@has("fish")
@completions
def test_fish_completes(words: Sequence[str], found: set[str], tmp_path: Path) -> None:
    script = f"""
    {IN_SHELL} completion fish | source
    complete -C '{" ".join(words)}'
    """
    assert shell_says("fish", script, tmp_path) == found


def test_bash_completes_the_addresses_that_are_served(address: str, tmp_path: Path) -> None:
    script = f"""
    eval "$({IN_SHELL} completion bash)"
    COMP_WORDS=(jumiks listen '{address[:-2]}'); COMP_CWORD=2
    _jumiks; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    with Server(address):
        done = subprocess.run(
            ["bash", "-c", script], stdout=PIPE, text=True, check=True, cwd=tmp_path
        )
    assert done.stdout.split() == [address]


@pytest.mark.parametrize("shell", ["fish", "zsh"])
def test_the_other_shells_have_all_words(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", shell])
    script = capsys.readouterr().out
    for name in commands():
        assert name in script
    assert "on-lag" in script
