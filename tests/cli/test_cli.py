# SPDX-License-Identifier: Apache-2.0
"""The command, run as a user runs it: serve and listen."""

import fcntl
import json
import os
import re
import select
import signal
import subprocess
import termios
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.api import SMALL_LOG, Task
from support.base import DEADLINE, needs, wait_until
from support.command import (
    JUMIKS,
    JUMIKS_IN_SHELL,
    PIPE,
    command,
    finish,
    listens_at,
    run,
    usage_error,
)
from support.servers import Server

from jumiks import Client, Lagged, Monitor, ServerClosed
from jumiks._wire.handshake import FIRST_ID
from jumiks.cli import _say, bench, main
from jumiks.cli.pages import man_page
from jumiks.cli.parser import make_parser

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


@pytest.mark.parametrize("where", ["no-such-folder/feed", "./file"])
def test_an_address_where_nothing_can_be_served_has_one_status(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert run("serve", where)[0] == 3


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
        relay = f"{JUMIKS_IN_SHELL} listen {address} | {JUMIKS_IN_SHELL} serve {second} --wait 1"
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


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_gap_is_told_when_it_happens(address: str, unbuffered: str) -> None:
    with Server(address, log_size=SMALL_LOG) as server:
        server.publish_many([bytes(1000)] * 100)
        with subprocess.Popen(
            [*JUMIKS, "listen", address, "--from", str(FIRST_ID)],
            stdout=subprocess.DEVNULL,
            stderr=PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        ) as listen:
            assert listen.stderr is not None
            found, _, _ = select.select([listen.stderr], [], [], DEADLINE)
            listen.kill()
            assert found
            assert f"messages {FIRST_ID} to " in listen.stderr.readline().decode()


def test_a_gap_is_a_line_among_the_messages_or_the_end(
    address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Server(address, log_size=SMALL_LOG) as server:
        server.publish_many([bytes(1000)] * 100)
        oldest = server.stats().oldest_id
        words = ["listen", address, "--from", str(FIRST_ID), "--count", "1"]
        assert main([*words, "--json", "--on-gap", "write"]) == 0
        gap, message = map(json.loads, capfd.readouterr().out.splitlines())
        assert main([*words, "--on-gap", "fail"]) == 6
        output, errors = capfd.readouterr()
    facts = {"first": FIRST_ID, "last": oldest - 1, "count": oldest - FIRST_ID, "reason": "EVICTED"}
    assert gap == {"gap": facts}
    assert message["id"] == oldest
    assert output == ""
    lost = f"jumiks: messages {FIRST_ID} to {oldest - 1} are lost, {oldest - FIRST_ID} in all: "
    assert errors.startswith(lost)


@pytest.mark.parametrize("more", [(), ("--exec", "true")])
def test_a_gap_is_a_line_only_where_there_are_lines_of_json(
    address: str, capsys: pytest.CaptureFixture[str], more: Sequence[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["listen", address, "--on-gap", "write", *more])
    assert caught.value.code == 2
    assert "give --json, and no --exec" in capsys.readouterr().err


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
        ("serve", "@"),
        ("status", "x" * 200),
    ],
)
def test_wrong_usage_is_status_2(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: jumiks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("lisen @x", "jumiks: error: argument COMMAND: 'lisen': it must be one of serve, listen, "),
        ("lisen @x", "; did you mean 'listen'?"),
        ("publish @x", "; did you mean 'serve'?"),
        ("pub @x", "; did you mean 'serve'?"),
        ("subscribe @x", "; did you mean 'listen'?"),
        ("version", "; did you mean '--version'?"),
        ("serve @x --keep 1T", "--keep 1T: at most 8G can be kept, half of the largest log"),
        ("help", "; did you mean '--help'?"),
        ("listen @x --max-lag 5", "unknown option '--max-lag': it is one of 'jumiks serve'"),
        ("listen @x --max-lga 5", "unknown option '--max-lga'\n"),
        ("nothing-like-it", "completion, man\n"),
        ("listen ticks", "jumiks listen: error: argument ADDRESS: address 'ticks' is neither a"),
        ("listen ticks", "write '@ticks' for an abstract address, or './ticks' for a socket file"),
        ("serve --max-lagg 5 @x", "jumiks serve: error: unknown option '--max-lagg'; did you mean"),
        ("serve @x --no-such=1", "jumiks serve: error: unknown option '--no-such'\n"),
        ("listen @x -q", "jumiks listen: error: unknown option '-q'"),
        ("listen @x @y", "jumiks listen: error: unexpected argument '@y'\n"),
        ("serve @x --on-lag skp", "one of disconnect, block, skip; did you mean 'skip'?"),
        ("serve @x --max-message 5G", "'5G': it must be from 1 to 4294967231 bytes\n"),
        ("serve @x --log-size 1K", "'1K': it must be from 64K to 16G bytes\n"),
        ("serve @x --log-size 1M --keep 600k", "--keep 600k: at most half of --log-size 1M is"),
        ("serve @x --log-size 1M --max-message 1M", "at most a quarter of --log-size 1M"),
        ("serve @x --mode 0660", "'@x' makes none: give a path, or --anyone"),
        ("serve @x --mode 0660 --anyone", "'@x' makes none: --anyone is all it needs"),
        ("serve ./x --anyone", "'./x' is a path, whose file has permissions: give --mode 0666"),
        (
            "serve systemd --mode 0660",
            "makes none: SocketMode= and SocketGroup= of the socket unit",
        ),
        ("serve systemd --group 0", "'systemd' makes none: "),
        ("serve @x --patience soon", "a number of seconds, 0 or more, or 'none' for no limit"),
    ],
)
def test_wrong_usage_says_what_would_be_right(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = usage_error(arguments, capsys)
    assert words in errors
    name = arguments.split()[0]
    assert errors.startswith(f"usage: jumiks {name if name in ('serve', 'listen') else '[-h]'}")


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
    words = f"exec {JUMIKS_IN_SHELL} {arguments} {redirection}"
    done = subprocess.run(
        ["sh", "-c", words],
        stdin=PIPE,
        capture_output=True,
        check=False,
        # Users have no PYTHONUNBUFFERED, which hides what a full stream does.
        env={**os.environ, "PYTHONUNBUFFERED": "", **more},
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
    ("keep", "messages", "size"),
    [("100", 100, 0), ("64K", 0, 65536), ("20m", 0, 20 << 20), ("1.5MiB", 0, 3 << 19)],
)
def test_serve_takes_messages_or_bytes_to_keep(keep: str, messages: int, size: int) -> None:
    assert make_parser().parse_args(["serve", "@x", "--keep", keep]).keep == (messages, size)


@pytest.mark.parametrize("keep", ["", "0", "-1", "K", "1.5", "1X", "x", "1e3", "inf"])
def test_serve_refuses_what_is_no_amount(keep: str, capsys: pytest.CaptureFixture[str]) -> None:
    errors = usage_error(f"serve @x --keep={keep}", capsys)
    assert "a number of messages, or a number of bytes with a unit: K, M or G" in errors


def test_serve_refuses_to_keep_more_messages_than_there_can_be(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = usage_error(f"serve {address} --keep 2049 --log-size 64K", capsys)
    assert "--keep 2049: half of --log-size 64K is kept, which has room for 2048" in errors
    errors = usage_error(f"serve {address} --keep 600000", capsys)
    assert "--keep 600000: half of a log of 16M is kept, which has room for 524288" in errors
    assert "give a --log-size for them\n" in errors


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("replay @ticks x.mcap", "FILE: '@ticks': it must be a file; are the two swapped?"),
        ("record ./a @ticks", "FILE: '@ticks': it must be a file; are the two swapped? A file"),
        ("record x.mcap @ticks", "ADDRESS: 'x.mcap': it must be an address, such as @ticks: the"),
    ],
)
def test_swapped_arguments_are_told(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in usage_error(line, capsys)


def test_what_serve_keeps_is_there_for_later_clients(address: str) -> None:
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


@pytest.mark.parametrize("how", [(64, 2, True, 0.01), (64, 1, True, 0.01, True)])
def test_what_bench_measures_is_said_with_its_units(how: tuple[Any, ...]) -> None:
    said = re.fullmatch(r"([\d.]+)([kMG]?) msg/s, ([\d.]+)([kMG]?)B/s", bench.throughput(*how))
    assert said, "nothing is lost, and that is all"
    units = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
    messages, data = (float(said[at]) * units[said[at + 1]] for at in (1, 3))
    assert data == pytest.approx(how[0] * messages, rel=0.1)
    assert data > 0


def test_bench_says_how_long_messages_took() -> None:
    said = re.fullmatch(r"p50 (\d+) us, p99 (\d+) us", bench.latency(0.001))
    assert said
    assert 0 < int(said[1]) <= int(said[2])


def test_bench_measures_what_each_line_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "throughput", lambda *how: json.dumps(how))
    monkeypatch.setattr(bench, "latency", lambda seconds: f"for {seconds:g} s")
    bench.measure_self(12)
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.split() == f"64 B, {bench.LATENCY_RATE} per second, latency for 2 s".split()
    for line in lines:
        said = re.fullmatch(r"64 (B|KiB), (in|as|one) \w.*, (\d) clients? +(\[.*\])", line)
        assert said
        size, count, batched, seconds, *rows = json.loads(said[4])
        assert size == 64 * {"B": 1, "KiB": 1024}[said[1]]
        assert (batched, rows) == (said[2] != "one", [True] * (said[2] == "as"))
        assert (count, seconds) == (int(said[3]), 2)
    assert len(lines) == 5
