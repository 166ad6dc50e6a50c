# SPDX-License-Identifier: Apache-2.0
"""`jumiks bridge`, as a user runs it."""

import json
import socket
import subprocess
import sys
from urllib.request import urlopen

import pytest
from support.base import DEADLINE, wait_until
from support.bridges import Bridge, message
from support.command import run
from support.engines import free_port, running
from support.servers import Server

from jumiks import JumiksError
from jumiks.bridge import Inbound, Outbound
from jumiks.bridge.engine import Target
from jumiks.cli import main

FIRST = 100_000


def has_acked(source: Server, number: int) -> bool:
    """Whether the bridge has, which it does behind the engine."""
    return any(each.acked_id == number for each in source.clients())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jetstream", "redis"])
def test_status_says_what_the_stream_ids_stand_for(kind: str, address: str) -> None:
    servers = []
    with running(kind) as engine:
        for _ in range(2):
            with Server(address, share_log=True) as source:
                servers.append(source.server_id)
                source.publish_many([message(each) for each in range(100)])
                with Bridge("out", address, engine.url, "--create") as out:
                    wait_until(lambda: has_acked(source, FIRST + 99))
                assert engine.url in out.errors.decode()
        status, output, errors = run("bridge", "status", engine.url, "--json")
        assert (status, errors) == (0, "")
        found = json.loads(output)
        assert found["position"] == {
            "stream": FIRST + 200,
            "server": servers[1],
            "source": FIRST + 99,
        }
        assert [(each["first"], each["last"], each["server"]) for each in found["runs"]] == [
            (FIRST, FIRST + 99, servers[0]),
            (FIRST + 101, FIRST + 200, servers[1]),
        ]
        assert found["runs"][1]["begins"] == "a restart, loss unknown"
        status, output, _ = run("bridge", "status", engine.url)
        lines = output.decode().splitlines()
        assert lines[-1].split()[:3] == [
            f"{FIRST + 101}-{FIRST + 200}",
            f"{FIRST}-{FIRST + 99}",
            str(servers[1]),
        ]
        assert engine.url in lines[0]


@pytest.mark.slow
def test_sigterm_ends_a_bridge_in_good_order_and_metrics_say_what_it_did(address: str) -> None:
    pytest.importorskip("prometheus_client")
    port = free_port()
    with running("redis") as engine, Server(address, share_log=True) as source:
        source.publish_many([message(each) for each in range(100)])
        words = ("--create", "--metrics", f"127.0.0.1:{port}")
        with Bridge("out", address, engine.url, *words) as out:
            wait_until(lambda: has_acked(source, FIRST + 99))
            text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE).read().decode()
            assert f'jumiks_bridge_out_messages_total{{stream="{engine.url}"}} 100.0' in text
            assert f'jumiks_bridge_out_running{{stream="{engine.url}"}} 1.0' in text
            assert out.stop() == 0
        _, output, _ = run("bridge", "status", engine.url, "--json")
        assert json.loads(output)["position"]["stream"] == FIRST + 99


def test_metrics_whose_port_is_taken_say_which(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prometheus_client")
    pytest.importorskip("redis")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["bridge", "out", address, "redis://nowhere/ticks", "--metrics", where]) == 1
    words = f"--metrics {where}: Address already in use: it must be a free port of this machine"
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nats://user:secret@host/TICKS", "--password-file"),
        ("http://host/TICKS", "nats://"),
        ("nats://host", "must name one stream"),
        ("redis://host/a/b", "must name one stream"),
    ],
)
def test_a_url_that_names_no_stream_or_tells_a_secret_is_refused(
    url: str, words: str, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["status", url], ["out", address, url], ["in", url, address]):
        with pytest.raises(SystemExit, match="2"):
            main(["bridge", *arguments])
        errors = capsys.readouterr().err
        assert words in errors
        assert "secret" not in errors


def test_hosts_of_a_cluster_and_a_user_are_read_from_the_url_and_no_user_is_shown() -> None:
    target = Target.parse("tls://me@[::1]:4223,other/TICKS")
    assert target.hosts == (("::1", 4223), ("other", None))
    assert target.user == "me"
    assert str(target) == "tls://[::1]:4223,other/TICKS"


@pytest.mark.parametrize("url", ["nats://host/TICKS", "redis://host/ticks"])
def test_an_engine_whose_client_is_missing_says_which_extra_it_needs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nats", "redis"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(JumiksError, match=r"pip install 'jumiks\[(nats|redis)\]'"):
        Outbound("@a", url)


def test_import_jumiks_imports_no_bridge() -> None:
    code = "import sys, jumiks; print([x for x in sys.modules if 'bridge' in x or x == 'asyncio'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "bridge" not in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pack": 0}, "pack=0"),
        ({"window": 0}, "window=0"),
        ({"on_too_large": "drop"}, "on_too_large='drop'"),
    ],
)
def test_a_wrong_option_of_a_bridge_says_what_would_be_right(
    options: dict[str, object], words: str
) -> None:
    pytest.importorskip("redis")
    with pytest.raises(ValueError, match=words):
        Outbound("@a", "redis://host/ticks", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="history=-1"):
        Inbound("redis://host/ticks", "@a", history=-1)


@pytest.mark.parametrize(
    ("address", "kind", "words"),
    [
        (object(), TypeError, "an address is '@name'.* a path .*, not object"),
        ("ticks", ValueError, "write '@ticks'"),
    ],
)
def test_a_wrong_address_is_refused_as_a_bridge_is_made(
    address: str, kind: type[Exception], words: str
) -> None:
    pytest.importorskip("redis")
    with pytest.raises(kind, match=words):
        Outbound(address, "redis://host/ticks")
    with pytest.raises(kind, match=words):
        Inbound("redis://host/ticks", address)
