# SPDX-License-Identifier: Apache-2.0
"""Each option of the command has its effect: one that does nothing fails here.

The table has an entry for each option of `serve`, `listen`, `record`, `replay`, `status`, `top` and
`bench`: something to look at, what is seen without the option, and what is seen with it.
"""

import json
import os
import select
import signal
import termios
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.api import Task, once_it_sleeps_in, signal_main_thread
from support.base import DEADLINE, IS_ROOT, NOBODY, needs, wait_until
from support.command import command, finish, listens_at, run
from support.servers import Server

from jumiks import Client, Refused, ServerClosed
from jumiks._client.connecting import wait_for
from jumiks._native import gather
from jumiks._options import LOG_SIZE, ServerOptions
from jumiks._wire.handshake import FIRST_ID
from jumiks._wire.status import ServerStatus, parse_status
from jumiks.cli import main
from jumiks.cli.listen import _tell
from jumiks.cli.pages import commands
from jumiks.cli.parser import make_parser
from jumiks.cli.status import Sample, report
from jumiks.recording import Pack, Reader
from jumiks.recording.file import Writer


class Scene(NamedTuple):
    """What an entry of the table has at hand."""

    address: str
    path: Path
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]


# ---- what is looked at; each takes the words of the option, or none


def given_to_server(
    scene: Scene, words: Sequence[str], command: Sequence[str] = ("serve",)
) -> dict[str, object]:
    """All that a command has a server do, in a process without input."""
    seen: dict[str, object] = {}
    lingers: list[float] = []

    class Recorded(Server):
        def __init__(self, where: str, **options: Any) -> None:
            seen.update(options)
            super().__init__(where, **options)

        def wait_for_clients(self, count: int, timeout: float | None = None) -> None:
            seen["wait"] = count

        def close(self, linger: float = -1) -> None:
            lingers.append(linger)
            seen["linger"] = min(lingers)
            super().close(0)

    scene.patch.setattr("jumiks.cli.serve.Server", Recorded)
    with open(os.devnull) as nothing:
        scene.patch.setattr("sys.stdin", nothing)
        where = scene.address if "--anyone" in words else str(scene.path)
        assert main([*command, where, *words]) == 0
    return seen


def option_of_server(name: str) -> Callable[[Scene, Sequence[str]], object]:
    return lambda scene, words: given_to_server(scene, words).get(name)


def served_first(text: bytes, scene: Scene, words: Sequence[str]) -> bytes:
    with command("serve", scene.address, "--wait", 1, *words) as process:
        wait_until(lambda: listens_at(scene.address))
        with Client(scene.address) as client:
            assert finish(process, text)[0] == 0
            return client.receive(DEADLINE)


def status_of_a_line(scene: Scene, words: Sequence[str], size: int) -> int:
    file = scene.path.with_name("lines")
    file.write_bytes(bytes(size) + b"\n")
    with file.open("rb") as lines:
        scene.patch.setattr("sys.stdin", lines)
        return main(["serve", scene.address, *words])


def largest_served(scene: Scene, words: Sequence[str]) -> int:
    """The largest of some lines that `serve` takes."""
    sizes = (1 << 10, 4 << 20, 8 << 20)
    return max(size for size in sizes if status_of_a_line(scene, words, size) == 0)


def status_of_a_long_line(scene: Scene, words: Sequence[str]) -> int:
    return status_of_a_line(scene, words, (4 << 20) + 1)


def may_anybody(scene: Scene, words: Sequence[str]) -> bool:
    with command("serve", scene.address, *words):
        wait_until(lambda: listens_at(scene.address))
        os.seteuid(NOBODY)
        try:
            with Client(scene.address):
                return True
        except Refused:
            return False
        finally:
            os.seteuid(0)


def listened(scene: Scene, words: Sequence[str], *, start: str = "oldest") -> tuple[int, bytes]:
    """Status and output of `listen` where three messages are, and one comes before the end."""
    words = [*words, "--from", start] if start else words
    with Server(scene.address) as server:
        server.publish_many([b"a", b"b", b"c"])
        with command("listen", scene.address, *words) as process:
            wait_until(lambda: server.stats().clients or process.poll() is not None)
            server.drain(DEADLINE)
            server.publish(b"d")
            server.close(DEADLINE)
            status, output, _ = finish(process)
    return status, output


def option_of_client(
    name: str, command: str = "listen"
) -> Callable[[Scene, Sequence[str]], object]:
    def look(scene: Scene, words: Sequence[str]) -> object:
        seen: dict[str, object] = {}

        def record(address: str, **options: object) -> Client[bytes]:
            seen.update(options)
            raise ConnectionRefusedError

        file = [str(scene.path)] * (command == "record")
        scene.patch.setattr(f"jumiks.cli.{command}.Client", record)
        assert main([command, scene.address, *file, *words]) == 3
        return seen[name]

    return look


def listened_before_it_was_served(scene: Scene, words: Sequence[str]) -> tuple[int, str]:
    """Status and output of `listen` if the server starts when it was looked for once."""
    servers: list[Server] = []

    def start(wait: tuple[int, float]) -> None:
        if servers:
            wait_for(wait)  # for its hello
            return
        servers.append(Server(scene.address))
        servers[0].publish(b"here")

    scene.patch.setattr("jumiks._client.connecting.wait_for", start)
    arguments = ["listen", scene.address, "--from", "oldest", "--count", "1"]
    try:
        status = main([*arguments, *words])
    finally:
        for server in servers:
            server.close()
    return status, scene.capture.readouterr().out


def recorded(scene: Scene, words: Sequence[str]) -> tuple[int, bytes]:
    """Status of `record` and what it has, where two messages are, and two come before the end."""
    file = scene.path.with_name("recorded")
    file.unlink(missing_ok=True)
    with Server(scene.address) as server:
        server.publish_many([b"a", b"b"])

        def go_on() -> None:
            wait_until(lambda: server.stats().clients)
            server.publish_many([b"c", b"d"])
            server.close(DEADLINE)

        task = Task(go_on)
        status = main(["record", scene.address, str(file), *words])
        task.result(DEADLINE)
    with Reader(file) as found:
        packs = [item for item in found if isinstance(item, Pack)]
    return status, b"".join(message for pack in packs for message in pack.messages())


def compression_of_a_record(scene: Scene, words: Sequence[str]) -> str:
    from mcap.reader import make_reader

    assert recorded(scene, words)[0] == 0
    with scene.path.with_name("recorded").open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    return summary.chunk_indexes[0].compression


def option_of_recorder(name: str, scene: Scene, words: Sequence[str]) -> object:
    seen: dict[str, object] = {}

    def record(*_: object, **options: object) -> None:
        seen.update(options)
        raise KeyboardInterrupt

    scene.patch.setattr("jumiks.cli.record.Recorder", record)
    with Server(scene.address):
        assert main(["record", scene.address, str(scene.path), *words]) == 130
    return seen[name]


def status_over_a_file(scene: Scene, words: Sequence[str]) -> int:
    scene.path.write_bytes(b"old")
    with Server(scene.address) as server:
        server.publish(b"a")
        line = ["record", scene.address, str(scene.path), "--from", "oldest", "--count", "1"]
        return main([*line, *words])


def recording(scene: Scene, *topics: str, step: int = 1) -> str:
    """A recording with a message of 100 s after the first one, or with several feeds."""
    from mcap.writer import Writer as McapWriter

    file = scene.path.with_name("recording")
    frames = [gather([b"x"]).frames(FIRST_ID + number) for number in (5, 5 + step)]
    if not topics:
        writer = Writer(file, "@ticks", 7, overwrite=True)
        for number, data in enumerate(frames):
            writer.write(Pack(10**9 + number * 10**11, 7, FIRST_ID + 5 + step * number, data))
        writer.close()
        return str(file)
    with file.open("wb") as stream:
        several = McapWriter(stream)
        several.start()
        for topic in topics:
            channel = several.register_channel(topic, "jumiks.frames", 0, {"server_id": "7"})
            several.add_message(channel, 1, frames[0], 1)
        several.finish()  # type: ignore[no-untyped-call]
    return str(file)


def replayed(name: str) -> Callable[[Scene, Sequence[str]], object]:
    """An option of the server of `replay`."""

    def look(scene: Scene, words: Sequence[str]) -> object:
        # With a gap, at which another server begins.
        step = 2 if name == "linger" else 1
        line = ["replay", recording(scene, step=step), "--speed", "max"]
        return given_to_server(scene, words, line).get(name)

    return look


def first_pause_of_a_replay(scene: Scene, words: Sequence[str]) -> int | None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        raise KeyboardInterrupt

    scene.patch.setattr("time.sleep", sleep)
    line = ["replay", recording(scene), scene.address, "--linger", "0"]
    assert main([*line, *words]) == (130 if pauses else 0)
    scene.patch.undo()
    return round(pauses[0]) if pauses else None


def status_of_a_replay_of_two(scene: Scene, words: Sequence[str]) -> int:
    return main(["replay", recording(scene, "@a", "@b"), scene.address, *words])


def output_begins(name: str, scene: Scene, words: Sequence[str]) -> str:
    with Server(scene.address):
        quick = () if "--json" in words else ("--interval", "0.01")
        return run(name, scene.address, *quick, *words)[1].decode()[:2]


def sleeps(name: str, scene: Scene, words: Sequence[str]) -> list[float]:
    """The first sleeps, three at most."""
    found: list[float] = []

    def sleep(seconds: float) -> None:
        found.append(seconds)
        if len(found) == 3:
            raise KeyboardInterrupt

    with Server(scene.address):
        scene.patch.setattr("time.sleep", sleep)
        main([name, scene.address, *words])
        scene.patch.undo()
    return found


def seconds_of_bench(scene: Scene, words: Sequence[str]) -> float:
    if not words:  # that takes long
        seconds: float = make_parser().parse_args(["bench", scene.address]).seconds
        return seconds
    with Server(scene.address):
        status, output, _ = run("bench", scene.address, *words)
    assert status == 0
    return float(output.split()[3])


def seconds_of_bench_itself(scene: Scene, words: Sequence[str]) -> float:
    shares: list[float] = []

    def record(*arguments: float) -> str:
        # `latency` takes the time alone, `throughput` has it fourth.
        shares.append(arguments[min(3, len(arguments) - 1)])
        return ""

    scene.patch.setattr("jumiks.cli.bench.throughput", record)
    scene.patch.setattr("jumiks.cli.bench.latency", record)
    assert main(["bench", "--self", *words]) == 0
    return round(sum(shares), 6)


def lines_of_bench(scene: Scene, words: Sequence[str]) -> int:
    with Server(scene.address):
        return len(run("bench", "--seconds", "0.5", *(words or [scene.address]))[1].splitlines())


# ---- the table


class Effect(NamedTuple):
    """An entry: a command, one of its options with its value, and what is looked at."""

    command: str
    words: Sequence[str]
    look: Callable[[Scene, Sequence[str]], object]
    without: object
    with_it: object
    needs: Sequence[pytest.MarkDecorator] = ()


root = pytest.mark.skipif(not IS_ROOT, reason="this user cannot become another")
LENGTHS = b"\1\0\0\0a\1\0\0\0b\1\0\0\0c\1\0\0\0d"
JSON = "".join(
    json.dumps({"id": FIRST_ID + at, "length": 1, "payload": "abcd"[at]}) + "\n" for at in range(4)
).encode()
ALL = (0, b"a\nb\nc\nd\n")
past = partial(listened, start="")
buffer_of_a_record = partial(option_of_recorder, "buffer")
mcap = (needs("mcap"),)

EFFECTS = [
    Effect("serve", ["--max-lag", "7"], option_of_server("max_lag"), None, 7),
    Effect("serve", ["--on-lag", "skip"], option_of_server("on_lag"), "disconnect", "skip"),
    Effect("serve", ["--patience", "2.5"], option_of_server("patience"), "default", 2.5),
    Effect("serve", ["--patience", "none"], option_of_server("patience"), "default", None),
    Effect("serve", ["--log-size", "64K"], option_of_server("log_size"), LOG_SIZE, 1 << 16),
    Effect("serve", ["--too-long", "skip"], status_of_a_long_line, 1, 0),
    Effect("serve", ["--keep", "50"], option_of_server("keep"), 0, 50),
    Effect("serve", ["--keep", "64K"], option_of_server("keep_bytes"), 0, 1 << 16),
    Effect("serve", ["--keep", "20M"], option_of_server("log_size"), LOG_SIZE, 40 << 20),
    Effect("serve", ["--max-message", "8M"], option_of_server("log_size"), LOG_SIZE, 32 << 20),
    Effect("serve", ["--max-message", "8M"], largest_served, 4 << 20, 8 << 20),
    Effect("serve", ["--max-message", "1K"], largest_served, 4 << 20, 1 << 10),
    Effect("serve", ["--mode", "0620"], option_of_server("mode"), None, 0o620),
    Effect("serve", ["--group", "0"], option_of_server("group"), None, 0, (root,)),
    Effect("serve", ["--anyone"], option_of_server("allow"), None, "anyone"),
    Effect("serve", ["--anyone"], may_anybody, False, True, (root,)),
    Effect("serve", ["--wait", "1"], option_of_server("wait"), None, 1),
    Effect("serve", ["--linger", "2.5"], option_of_server("linger"), 10.0, 2.5),
    Effect("serve", ["--null"], partial(served_first, b"a\n\0b\n"), b"a", b"a\n"),
    Effect("serve", ["--length-prefixed"], partial(served_first, LENGTHS), LENGTHS, b"a"),
    Effect("listen", ["--null"], listened, ALL, (0, b"a\0b\0c\0d\0")),
    Effect("listen", ["--length-prefixed"], listened, ALL, (0, LENGTHS)),
    Effect("listen", ["--from", "oldest"], past, (0, b"d\n"), ALL),
    Effect("listen", ["--from", str(FIRST_ID + 2)], past, (0, b"d\n"), (0, b"c\nd\n")),
    Effect("listen", ["--count", "2"], listened, ALL, (0, b"a\nb\n")),
    Effect("listen", ["--json"], listened, ALL, (0, JSON)),
    Effect("listen", ["--exec", "cat"], listened, ALL, (0, b"abcd")),
    Effect("listen", ["--exec", "cat", "--count", "2"], listened, ALL, (0, b"ab")),
    Effect("listen", ["--name", "tail"], option_of_client("name"), None, "tail"),
    Effect("listen", ["--delivery", "framed"], option_of_client("delivery"), "shared", "framed"),
    Effect("listen", ["--on-gap", "fail"], option_of_client("on_gap"), _tell, "raise"),
    Effect("listen", ["--reconnect"], option_of_client("reconnect"), False, True),
    Effect("listen", ["--wait", "30"], listened_before_it_was_served, (3, ""), (0, "here\n")),
    Effect("record", ["--from", "oldest"], recorded, (0, b"cd"), (0, b"abcd"), mcap),
    Effect("record", ["--count", "1"], recorded, (0, b"cd"), (0, b"c"), mcap),
    Effect("record", ["--wait", "30"], option_of_client("wait", "record"), "default", 30, mcap),
    Effect("record", ["--name", "disk"], option_of_client("name", "record"), None, "disk", mcap),
    Effect("record", ["--reconnect"], option_of_client("reconnect", "record"), False, True, mcap),
    Effect("record", ["--overwrite"], status_over_a_file, 1, 0, mcap),
    Effect("record", ["--compression", "zstd"], compression_of_a_record, "lz4", "zstd", mcap),
    Effect("record", ["--compression", "none"], compression_of_a_record, "lz4", "", mcap),
    Effect("record", ["--buffer", "1M"], buffer_of_a_record, 64 << 20, 1 << 20, mcap),
    Effect("replay", ["--speed", "10"], first_pause_of_a_replay, 100, 10, mcap),
    Effect("replay", ["--speed", "max"], first_pause_of_a_replay, 100, None, mcap),
    Effect("replay", ["--topic", "@b"], status_of_a_replay_of_two, 1, 0, mcap),
    Effect("replay", ["--renumber"], replayed("first_id"), FIRST_ID + 5, FIRST_ID, mcap),
    Effect("replay", ["--max-lag", "7"], replayed("max_lag"), None, 7, mcap),
    Effect("replay", ["--on-lag", "skip"], replayed("on_lag"), "block", "skip", mcap),
    Effect("replay", ["--patience", "2.5"], replayed("patience"), "default", 2.5, mcap),
    Effect("replay", ["--log-size", "64K"], replayed("log_size"), LOG_SIZE, 1 << 16, mcap),
    Effect("replay", ["--keep", "50"], replayed("keep"), 0, 50, mcap),
    Effect("replay", ["--keep", "64K"], replayed("keep_bytes"), 0, 1 << 16, mcap),
    Effect("replay", ["--max-message", "8M"], replayed("log_size"), LOG_SIZE, 32 << 20, mcap),
    Effect("replay", ["--mode", "0620"], replayed("mode"), None, 0o620, mcap),
    Effect("replay", ["--group", "0"], replayed("group"), None, 0, (root, *mcap)),
    Effect("replay", ["--anyone"], replayed("allow"), None, "anyone", mcap),
    Effect("replay", ["--wait", "1"], replayed("wait"), None, 1, mcap),
    Effect("replay", ["--linger", "2.5"], replayed("linger"), 10.0, 2.5, mcap),
    Effect("status", ["--json"], partial(output_begins, "status"), "@j", '{"'),
    Effect("status", ["--interval", "7"], partial(sleeps, "status"), [0.5], [7]),
    Effect("top", ["--interval", "7"], partial(sleeps, "top"), [1] * 3, [7] * 3, (needs("rich"),)),
    Effect("top", ["--count", "2"], partial(sleeps, "top"), [1] * 3, [1] * 2, (needs("rich"),)),
    Effect("bench", ["--seconds", "0.3"], seconds_of_bench, 50.0, 0.3),
    Effect("bench", ["--seconds", "7"], seconds_of_bench_itself, 50.0, 7.0),
    Effect("bench", ["--self"], lines_of_bench, 1, 6, [pytest.mark.slow]),
]


without: dict[Callable[[Scene, Sequence[str]], object], object] = {}
"""What several entries look at, without any of their options: it is looked at once."""


@pytest.mark.parametrize(
    "effect",
    [
        pytest.param(each, marks=each.needs, id=" ".join([each.command, *each.words]))
        for each in EFFECTS
    ],
)
def test_each_option_has_its_effect(
    effect: Effect, address: str, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for words in ([], effect.words):
        with pytest.MonkeyPatch.context() as patch:
            scene = Scene(address, path, patch, capfd)
            if not words and effect.look in without:
                seen.append(without[effect.look])
            else:
                seen.append(effect.look(scene, words))
    without[effect.look] = seen[0]
    assert seen == [effect.without, effect.with_it]


def test_each_option_of_a_command_is_in_the_table() -> None:
    names = {effect.command for effect in EFFECTS}
    there = {
        (name, max(action.option_strings, key=len))
        for name in names
        for action in commands()[name]._actions
        if action.option_strings and action.dest != "help"
    }
    assert {(effect.command, effect.words[0]) for effect in EFFECTS} == there
    assert names == {"serve", "listen", "record", "replay", "status", "top", "bench"}


# ---- signals


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_closes_the_server_before_the_command_returns(
    path: Path, number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when Python ends, which closes what is open then."""
    ours, theirs = os.pipe()
    with open(ours) as source, open(theirs, "w"), ExitStack() as stack:
        monkeypatch.setattr("sys.stdin", source)

        clients: list[Client[bytes]] = []

        def come_and_end() -> None:
            clients.append(stack.enter_context(Client(path, start="oldest")))
            signal_main_thread(number)

        stack.enter_context(once_it_sleeps_in("_read", come_and_end))
        try:
            found: object = main(["serve", str(path)])
        except SystemExit as error:
            found = error.code
        assert found == status
        assert not path.exists()
        with pytest.raises(ServerClosed):
            clients[0].receive(DEADLINE)


# ---- what is shown


def told(**more: Any) -> ServerStatus:
    return parse_status(json.dumps({"address": "@a", "pid": 0, "on_lag": "skip", **more}))


STATS = {
    "oldest_id": 100100,
    "next_id": 100500,
    "log_size": 65536,
    "log_used": 5000,
    "log_held": 4000,
    "published": 500,
    "published_bytes": 90_000,
    "clients": 3,
}
CLIENTS = [
    {
        "key": key,
        "pid": 0,
        "uid": 0,
        "name": f"program{key}",
        "delivery": "framed",
        "lag": lag,
        "worst_lag": {1: 7, 2: 95, 3: 20}[key],
        "skipped": 6 if key == 2 else 0,
        "lag_bytes": 60_000 // key,
        "sent_id": 100200 + key,
        "acked_id": acked,
        "messages": 300 + key,
        "unacked": {1: 100, 2: 50, 3: 143}[key],
        "bytes": 70_000 * key,
        "since": 10.0 * key,
    }
    for key, lag, acked in ((1, 5, 0), (2, 90, 100150), (3, 20, 100160))
]
BEFORE = told(
    now=100.0,
    stats={"published": 100, "published_bytes": 10_000},
    clients=[
        {"key": 1, "messages": 101, "unacked": 10, "bytes": 20_000},
        {"key": 2, "messages": 102, "bytes": 40_000},
    ],
)
NOW = told(now=110.0, started=10.0, max_lag=100, monitors=2, stats=STATS, clients=CLIENTS)
"""Ten seconds later; the third client is new, and was let in 80 s ago by its own word."""

HEAD = [
    *("NAME", "PID", "USER", "DELIVERY", "LAG", "LIMIT", "WORST", "SKIPPED"),
    *("MSG/S", "ACKED/S", "BYTES/S", "SENT", "ACKED", "AGE"),
]
ROWS = [
    [f"program{number}", "0", "root", "framed", *figures]
    for number, figures in (
        (1, ["5", "92%", "7", "0", "20", "11", "4.9K", "100201", "-", "1m40s"]),
        (2, ["90", "90%", "95", "6", "20", "15", "9.8K", "100202", "100150", "1m30s"]),
        (3, ["20", "31%", "20", "0", "4", "2", "2.6K", "100203", "100160", "1m20s"]),
    )
]


def test_status_shows_each_figure_in_its_place_and_the_nearest_to_a_limit_first() -> None:
    address, log, rate, policy, nothing, *table = report(Sample(NOW, BEFORE))
    assert address == "@a  a process that cannot be seen from here, up 1m40s, 3 clients, 2 monitors"
    assert log == "log     400 messages, 100100 to 100499; 4.9K of 64K used"
    assert rate == "rate    40 msg/s, 7.8K/s published; 28 msg/s acked, all clients together"
    assert policy == "policy  skip at 100 messages; nearest: 92%, 5 messages"
    assert nothing == ""
    assert [line.split() for line in table] == [HEAD, *ROWS]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 140])
def test_a_narrow_terminal_gets_fewer_columns_and_no_broken_line(width: int) -> None:
    lines = report(Sample(NOW, BEFORE), width)
    assert max(map(len, lines)) <= width
    titles = lines[5].split()
    assert titles == [name for name in HEAD if name in titles]
    assert titles[0] == "NAME"
    assert "LIMIT" in titles
    assert (titles == HEAD) == (width >= 140)
    for line, row in zip(lines[6:], ROWS, strict=True):
        found = dict(zip(HEAD, row, strict=True))
        assert line.split() == [found[name] for name in titles]


def shown(view: Any, width: int = 200, height: int = 40) -> list[str]:
    return [str(line) for line in view.lines(Sample(NOW, BEFORE), width, height)]


MOST_KEPT = ServerOptions(log_size=1 << 20).most_kept
"""Messages."""


@pytest.mark.parametrize(
    ("name", "most", "more"),
    [
        ("--keep", "512K", "513K"),
        ("--keep", str(MOST_KEPT), str(MOST_KEPT + 1)),
        ("--max-message", "256K", "257K"),
    ],
)
def test_what_a_log_just_has_room_for_is_taken_and_no_more(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    most: str,
    more: str,
) -> None:
    scene = Scene("", path, monkeypatch, capsys)
    assert given_to_server(scene, ["--log-size", "1M", name, most])["log_size"] == 1 << 20
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        with pytest.raises(SystemExit):
            main(["serve", str(path), "--log-size", "1M", name, more])
    assert f"{name} {more}: " in capsys.readouterr().err


@needs("rich")
def test_top_shows_the_same_and_what_was_lately() -> None:
    from jumiks.cli.top import View

    view = View()
    for _ in range(12):
        view.note(Sample(NOW, BEFORE))
    *head, nothing, titles, first, second, third, keys = shown(view)
    assert head == report(Sample(NOW, BEFORE))[:4]
    assert nothing == ""
    assert titles.split() == [*HEAD, "LATELY"]
    for line, row, step in zip((first, second, third), ROWS, "██▃", strict=True):
        assert line.split() == [*row, step * 10]
    assert keys.startswith("by LIMIT ")
    colours = [str(line.style) for line in view.lines(Sample(NOW, BEFORE), 200, 40)][6:9]
    assert colours == ["red", "red", "green"]


@needs("rich")
def test_top_leaves_no_column_out_in_a_pipe(address: str) -> None:
    with Server(address), Client(address, name="one"):
        status, output, _ = run("top", address, "--count", "1", "--interval", "0.01")
    assert status == 0
    assert [line.split() for line in output.decode().splitlines()][5] == [*HEAD, "LATELY"]


@needs("rich")
def test_the_keys_of_top_sort_help_and_end() -> None:
    from jumiks.cli.top import SORTS, View

    view = View()
    order = []
    for name in SORTS:
        assert view.sort == name
        order.append([line.split()[0][-1] for line in shown(view)[6:9]])
        view.press("s")
    assert order == [[*"123"], [*"231"], [*"213"], [*"213"], [*"123"]]
    view.press("r")
    assert [line.split()[0][-1] for line in shown(view)[6:9]] == ["3", "2", "1"]
    view.press("h")
    assert shown(view)[0].startswith("q  ")
    assert all(len(line) <= 30 for line in shown(view, 30))
    view.press("q")
    assert not view.ended
    assert len(shown(view, height=11)) == 10
    assert "and 1 more" in shown(view, height=10)
    view.press("q")
    assert view.ended


@needs("rich")
def test_top_ends_with_q_and_leaves_the_terminal_as_it_was(address: str) -> None:
    ours, theirs = os.openpty()
    try:
        before = termios.tcgetattr(theirs)
        with Server(address), command("top", address, stdin=theirs, stdout=theirs) as top:
            seen = b""
            while b"policy" not in seen:
                seen += os.read(ours, 4096)
            assert termios.tcgetattr(theirs) != before
            os.write(ours, b"q")
            while top.poll() is None:
                if select.select([ours], [], [], 0.01)[0]:
                    os.read(ours, 4096)
            assert top.returncode == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)
