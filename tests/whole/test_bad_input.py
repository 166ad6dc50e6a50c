# SPDX-License-Identifier: Apache-2.0
"""Bad input gets an error that names the fault and the remedy, and everything else goes on."""

import errno
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from support import reference
from support.api import SMALL_LOG, sockaddr, stranger
from support.base import DEADLINE, possessions, wait_until
from support.servers import Server

from jumiks import (
    AddressInUse,
    Client,
    ConnectionLost,
    MessageTooLarge,
    Monitor,
    ProtocolError,
    Refused,
    Timeout,
    VersionMismatch,
)
from jumiks._wire.handshake import FIRST_ID

GOOD_HELLO = reference.encode_server_hello(
    reference.ServerHello((1, 0, 0), reference.FRAMES, 7, FIRST_ID, FIRST_ID, 0, 65536, 65536)
)


@pytest.fixture(params=["abstract", "path"])
def anywhere(request: pytest.FixtureRequest, address: str, path: Path) -> str:
    return address if request.param == "abstract" else str(path)


def assert_serves(server: Server) -> None:
    """Whatever happened, the next client gets the next message."""
    with Client(server.address) as client:
        server.publish(b"as ever")
        assert client.receive(DEADLINE) == b"as ever"


# ---- messages


NO_BUFFERS = [
    ("text", TypeError, "must be bytes or another buffer, not <class 'str'>: encode it first"),
    (None, TypeError, "must be bytes or another buffer, not <class 'NoneType'>"),
    (7, TypeError, "must be bytes or another buffer, not <class 'int'>"),
    ([1, 2], TypeError, "must be bytes or another buffer, not <class 'list'>"),
    (memoryview(b"0123")[::2], BufferError, "is not contiguous in memory: copy it with bytes()"),
]


@pytest.mark.parametrize(("wrong", "kind", "words"), NO_BUFFERS)
def test_publish_refuses_what_is_no_contiguous_buffer(
    server: Server, wrong: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        server.publish(wrong)
    assert str(caught.value) == f"a message {words}"
    assert server.stats().published == 0
    assert_serves(server)


@pytest.mark.parametrize(("wrong", "kind", "words"), NO_BUFFERS)
def test_publish_many_names_the_wrong_one_and_publishes_none(
    server: Server, wrong: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        server.publish_many([b"good", bytearray(b"good"), wrong, b"good"])
    assert str(caught.value) == f"message 2 of the sequence {words}"
    assert server.stats().published == 0
    assert_serves(server)


def test_a_buffer_of_a_publish_many_that_failed_is_free_again(server: Server) -> None:
    buffer = bytearray(b"good")
    with pytest.raises(TypeError):
        server.publish_many([buffer, None])  # type: ignore[list-item]
    buffer.append(1)


@pytest.mark.parametrize("wrong", [b"one message", "text", bytearray(3), memoryview(b"abc")])
def test_publish_many_refuses_one_message_and_says_what_takes_it(
    server: Server, wrong: Any
) -> None:
    with pytest.raises(TypeError, match=r"takes a sequence of messages, .* use publish for one"):
        server.publish_many(wrong)
    assert server.stats().published == 0


@pytest.mark.parametrize("wrong", [None, 7])
def test_publish_many_refuses_what_cannot_be_iterated(server: Server, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"takes a sequence of messages, .*not {type(wrong)!r}$"):
        server.publish_many(wrong)


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
def test_publish_many_refuses_a_mapping_which_may_mean_keys_or_values(
    server: Server, kind: Any
) -> None:
    wrong = kind({b"key": b"value"})
    with pytest.raises(TypeError, match=r": publish its values\(\) or its keys\(\)$"):
        server.publish_many(wrong)
    assert server.stats().published == 0
    assert len(server.publish_many(wrong.values())) == 1


def test_what_an_iterable_raises_comes_out_of_publish_many_and_nothing_is_published(
    server: Server,
) -> None:
    def messages() -> Iterator[bytes]:
        yield b"good"
        raise KeyError("from the generator")

    with pytest.raises(KeyError, match="from the generator"):
        server.publish_many(messages())
    assert server.stats().published == 0


@pytest.mark.parametrize(
    "publish",
    [
        lambda server, size: server.publish(bytes(size)),
        lambda server, size: server.publish_many([b"", bytes(size), b""]),
        lambda server, size: server.reserve(size).__enter__(),
    ],
    ids=["publish", "publish_many", "reserve"],
)
@pytest.mark.parametrize("max_message", [None, 1000])
def test_a_message_that_is_too_large_is_refused_with_size_and_limit(
    address: str, publish: Callable[[Server, int], object], max_message: int | None
) -> None:
    limit = max_message or SMALL_LOG // 4
    with Server(address, log_size=SMALL_LOG, max_message=max_message) as server:
        assert server.max_message == limit
        with pytest.raises(MessageTooLarge) as caught:
            publish(server, limit + 1)
        assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
        for words in (f"{limit + 1} bytes", f"max_message, {limit} bytes", "raise the server's"):
            assert words in str(caught.value)
        assert server.stats().published == 0
        with Client(address) as client:
            server.publish(bytes(limit))
            assert client.receive(DEADLINE) == bytes(limit)


@pytest.mark.parametrize(
    ("size", "kind", "words"),
    [
        (-1, ValueError, "size=-1: it must be 0 bytes or more"),
        ("3", TypeError, "size is a number of bytes, not '3'"),
        (3.0, TypeError, "size is a number of bytes, not 3.0"),
        (True, TypeError, "size is a number of bytes, not True"),
        (None, TypeError, "size is a number of bytes, not None"),
    ],
)
def test_reserve_refuses_a_wrong_size(
    server: Server, size: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        server.reserve(size)
    assert_serves(server)


# ---- times

WRONG_TIMES = [
    (-1, ValueError, "timeout=-1: it must be 0 seconds or more; None is no limit"),
    (-0.001, ValueError, "timeout=-0.001: it must be 0 seconds or more"),
    (float("nan"), ValueError, "timeout=nan: it must be 0 seconds or more"),
    pytest.param(10**400, ValueError, "timeout is a number of 1329 bits: it must be", id="10**400"),
    pytest.param(10**5000, ValueError, "timeout is a number of 16610 bits", id="more than str has"),
    ("1", TypeError, "timeout is a number of seconds or None, not '1'"),
    (True, TypeError, "timeout is a number of seconds or None, not True"),
]


@pytest.mark.parametrize(("wrong", "kind", "words"), WRONG_TIMES)
@pytest.mark.parametrize(
    "call",
    [
        lambda server, wrong: server.publish(b"", wrong),
        lambda server, wrong: server.publish_many([b""], wrong),
        lambda server, wrong: server.reserve(1, wrong),
        lambda server, wrong: server.drain(wrong),
        lambda server, wrong: server.wait_for_clients(0, wrong),
        lambda server, wrong: server.close(wrong),
    ],
    ids=["publish", "publish_many", "reserve", "drain", "wait_for_clients", "close"],
)
def test_a_server_refuses_a_wrong_time_whether_it_has_to_wait_or_not(
    server: Server,
    call: Callable[[Server, Any], object],
    wrong: Any,
    kind: type[Exception],
    words: str,
) -> None:
    with pytest.raises(kind, match=words.replace("timeout", "(timeout|linger)")):
        call(server, wrong)
    assert server.stats().published == 0
    assert_serves(server)


@pytest.mark.parametrize(("wrong", "kind", "words"), WRONG_TIMES)
def test_a_client_refuses_a_wrong_time_whether_it_has_to_wait_or_not(
    server: Server, wrong: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        Client(server.address, timeout=wrong)
    with pytest.raises(kind, match=words):
        Monitor(server.address, timeout=wrong)
    with Client(server.address) as client:
        server.publish_many([b"one", b"two"])
        wait_until(lambda: server.clients()[0].queued == 0)
        with pytest.raises(kind, match=words):
            client.receive(wrong)
        with pytest.raises(kind, match=words):
            client.receive_many(wrong)
        assert client.receive(0) == b"one"
        with pytest.raises(kind, match=words):
            client.receive(wrong)
        assert list(client.receive_many(0)) == [b"two"]


@pytest.mark.parametrize(
    ("count", "kind", "words"),
    [
        ("2", TypeError, "'2'"),
        (True, TypeError, "True"),
        (1.5, TypeError, "1.5"),
        (-1, ValueError, "-1"),
    ],
)
def test_wait_for_clients_refuses_a_wrong_count(
    server: Server, count: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=rf"count.*{words}"):
        server.wait_for_clients(count, 0)


# ---- settings of a server

NUMBER = "a whole number, not"
NO_FILE = "mode and group are for the file that a path makes, .* use allow"
HUGE = (1 << 63) - 1


@pytest.mark.parametrize(
    ("setting", "wrong", "kind", "words"),
    [
        ("max_lag", 0, ValueError, "max_lag=0: it must be from 1 to"),
        ("max_lag", -5, ValueError, "max_lag=-5: it must be from 1 to .* None is no limit"),
        ("max_lag", HUGE + 1, ValueError, f"max_lag={HUGE + 1}: it must be from 1 to {HUGE}"),
        ("max_lag", 10**30, ValueError, "it must be from 1 to"),
        ("max_lag", True, TypeError, "max_lag is a number of messages or None, not True"),
        ("max_lag", 1.5, TypeError, "max_lag is a number of messages or None, not 1.5"),
        ("max_lag", float("inf"), TypeError, "not inf"),
        ("max_lag", "10", TypeError, "not '10'"),
        ("on_lag", "drop", ValueError, "on_lag='drop': .* 'disconnect', 'block' or 'skip'"),
        ("on_lag", None, ValueError, "on_lag=None: .* 'disconnect', 'block' or 'skip'"),
        ("on_lag", ["block"], ValueError, "on_lag=.*'disconnect', 'block' or 'skip'"),
        ("patience", 10**400, ValueError, "patience is a number of 1329 bits"),
        ("handshake_timeout", 10**400, ValueError, "handshake_timeout is a number of 1329 bits"),
        ("patience", -1, ValueError, "patience=-1: it must be 0 seconds or more; None is no limit"),
        ("patience", "1", TypeError, "a number of seconds or None, not '1'"),
        ("log_size", 4096, ValueError, "log_size=4096: it must be from 65536 to 17179869184 bytes"),
        ("log_size", SMALL_LOG - 1, ValueError, "log_size=65535: it must be from 65536"),
        ("log_size", 0, ValueError, "log_size=0"),
        ("log_size", -SMALL_LOG, ValueError, "log_size=-65536"),
        ("log_size", (1 << 34) + 1, ValueError, "log_size=17179869185"),
        ("log_size", 1e6, TypeError, "log_size is a number of bytes, not 1000000.0"),
        ("log_size", None, TypeError, "log_size is a number of bytes, not None"),
        ("log_size", True, TypeError, "log_size is a number of bytes, not True"),
        ("max_message", 0, ValueError, "max_message=0: it must be from 1 to 4294967231 bytes"),
        ("max_message", (4 << 20) + 1, ValueError, "max_message=4194305: .* from 1 to 4194304"),
        ("max_message", "1", TypeError, "max_message is a number of bytes or None, not '1'"),
        ("max_message", 1.0, TypeError, "max_message is a number of bytes or None, not 1.0"),
        ("max_clients", 0, ValueError, "max_clients=0: it must be from 1 to"),
        ("max_clients", 1 << 21, ValueError, "max_clients=2097152: it must be from 1 to 1048576"),
        ("max_clients", None, TypeError, f"max_clients is {NUMBER} None"),
        ("max_clients", True, TypeError, f"max_clients is {NUMBER} True"),
        (
            "max_clients_per_user",
            0,
            ValueError,
            "max_clients_per_user=0: it must be from 1 to",
        ),
        ("max_clients_per_user", 1025, ValueError, "it must be from 1 to 1024"),
        (
            "max_clients_per_user",
            "half",
            TypeError,
            "max_clients_per_user is a whole number or None, not 'half'",
        ),
        (
            "handshake_timeout",
            -1,
            ValueError,
            "handshake_timeout=-1: it must be 0 seconds or more$",
        ),
        ("handshake_timeout", "soon", TypeError, "handshake_timeout is a number of seconds, not"),
        (
            "handshake_timeout",
            None,
            TypeError,
            "handshake_timeout is a number of seconds, not None",
        ),
        ("handshake_timeout", 0, ValueError, "handshake_timeout=0: it must be above 0"),
        (
            "mode",
            0o660,
            ValueError,
            NO_FILE,
        ),
        (
            "group",
            "root",
            ValueError,
            NO_FILE,
        ),
        ("allow", "everyone", ValueError, "the only text it takes is 'anyone'"),
        ("allow", [], ValueError, "allow is empty: nobody could connect"),
        ("allow", 1.5, TypeError, "allow takes None, 'anyone', a user id"),
    ],
)
def test_a_server_refuses_a_wrong_setting_and_leaves_nothing(
    address: str, setting: str, wrong: object, kind: type[Exception], words: str
) -> None:
    settings: dict[str, Any] = {setting: wrong}
    before = possessions()
    with pytest.raises(kind, match=words):
        Server(address, **settings)
    assert possessions() <= before
    with Server(address):
        pass


@pytest.mark.parametrize("setting", ["on_connect", "on_disconnect"])
def test_a_server_refuses_a_callback_that_cannot_be_called(address: str, setting: str) -> None:
    settings: dict[str, Any] = {setting: "function"}
    with pytest.raises(TypeError, match=f"{setting}.*'function'"):
        Server(address, **settings).close()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(-1, "mode=-1 .*: it must be from 0 to 0o777"), (0o7777, r"mode=4095 \(0o7777\)")],
)
def test_a_server_refuses_a_wrong_mode_of_its_path(path: Path, wrong: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Server(path, mode=wrong)
    assert list(path.parent.iterdir()) == []


def test_a_group_that_does_not_exist_is_named(path: Path) -> None:
    with pytest.raises(ValueError, match="no group named 'no-such-group-here'"):
        Server(path, group="no-such-group-here")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("max_lag", [1, HUGE])
def test_the_least_and_the_largest_max_lag_work(address: str, max_lag: int) -> None:
    with Server(address, max_lag=max_lag, on_lag="block") as server, Client(address) as client:
        for number in range(10):
            server.publish(b"%d" % number, DEADLINE)
            assert client.receive(DEADLINE) == b"%d" % number
            client.ack()


@pytest.mark.parametrize("seconds", [1e9, 1e300, float("inf")])
def test_the_time_to_reply_may_be_longer_than_a_clock_can_count(
    address: str, seconds: float
) -> None:
    with Server(address, handshake_timeout=seconds) as server:
        with Client(address) as client:
            server.publish(b"fine")
            assert client.receive(DEADLINE) == b"fine"


def test_patience_may_be_without_end(address: str) -> None:
    for patience in (None, 0, 1e30, float("inf")):
        with Server(address, max_lag=2, patience=patience) as server:
            assert_serves(server)


def test_more_memory_than_there_is_for_a_log_is_an_error_that_says_so(address: str) -> None:
    script = """
import resource, sys
import jumiks

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    jumiks.Server(sys.argv[1], log_size=1 << 24)
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, address], capture_output=True, text=True, check=False
    )
    assert "cannot make a log of 16777216 bytes (log_size) in a memfd" in done.stdout, done


# ---- settings of a client


@pytest.mark.parametrize(
    ("setting", "wrong", "kind", "words"),
    [
        ("start", "new", ValueError, "'now', 'oldest' or a packet id; a pair .server_id"),
        ("start", None, ValueError, "start=None: it must be 'now', 'oldest' or a packet id"),
        ("start", True, ValueError, "start=True: it must be 'now'"),
        ("start", 100000.0, ValueError, "start=100000.0: it must be 'now'"),
        ("start", 0, ValueError, "start=0: it must be a packet id from 100000 to"),
        ("start", FIRST_ID - 1, ValueError, "start=99999: it must be a packet id from 100000"),
        ("start", -1, ValueError, "start=-1: it must be a packet id from 100000"),
        (
            "start",
            1 << 64,
            ValueError,
            f"start={1 << 64}: it must be a packet id from 100000 to {(1 << 64) - 1}",
        ),
        ("start", 1 << 64, ValueError, "start=18446744073709551616"),
        (
            "delivery",
            "fast",
            ValueError,
            "delivery='fast': it must be 'shared'",
        ),
        ("delivery", None, ValueError, "delivery=None: it must be 'shared', 'framed' or 'classic'"),
        ("delivery", True, ValueError, "delivery=True: it must be"),
        ("delivery", [], ValueError, r"delivery=\[\]: it must be"),
        ("spin", None, TypeError, "spin is a number of seconds, not None"),
    ],
)
def test_a_client_refuses_a_wrong_setting_and_leaves_nothing(
    server: Server, setting: str, wrong: object, kind: type[Exception], words: str
) -> None:
    settings: dict[str, Any] = {setting: wrong}
    before = possessions()
    with pytest.raises(kind, match=words):
        Client(server.address, **settings)
    assert possessions() <= before
    assert_serves(server)


def test_a_client_refuses_a_callback_that_cannot_be_called(server: Server) -> None:
    with pytest.raises(TypeError, match=r"on_gap.*'function'"):
        Client(server.address, on_gap="function").close()  # type: ignore[call-overload]


@pytest.mark.parametrize("wrong", ["100000", 1.5, True, [100000]])
def test_ack_refuses_what_is_no_id(server: Server, wrong: Any) -> None:
    with Client(server.address) as client:
        server.publish(b"")
        client.receive(DEADLINE)
        with pytest.raises(TypeError, match="packet_id is a number, not"):
            client.ack(wrong)
        client.ack()


# ---- addresses


@pytest.mark.parametrize("make", [Server, Client])
@pytest.mark.parametrize("wrong", [None, 7, b"@ticks", ["@ticks"]])
def test_an_address_of_a_wrong_type_is_refused(make: Callable[[Any], object], wrong: Any) -> None:
    socket = "a bound socket" if make is Server else "os.PathLike)"
    words = rf"an address is '@name'.*{re.escape(socket)}, not {type(wrong).__name__}$"
    with pytest.raises(TypeError, match=words):
        make(wrong)


@pytest.mark.parametrize("make", [Server, Client])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("", "the address is empty: write '@name' or a path"),
        ("@", "has no name: write '@name'"),
        ("@a\0b", "NUL byte"),
        ("\0ticks", "an abstract address is written '@name'"),
        ("ticks", "write '@ticks' for an abstract address, or './ticks' for a socket file"),
        ("\x1b[2J", r"address '\x1b[2J' is neither a name nor a path: write '@name' for"),
        ("@" + "n" * 108, "too long: 108 bytes after the '@', and the kernel takes 107"),
        ("/tmp/" + "p" * 103, "too long: 108 bytes, and the kernel takes 107; take a shorter path"),
    ],
)
def test_an_address_that_cannot_be_is_refused(
    make: Callable[[str], object], wrong: str, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make(wrong)


def test_a_path_object_is_a_path_for_both_ends_whatever_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with Server(Path("@here")) as server, Client(Path("@here")) as client:
        assert (path.parent / "@here").is_socket()
        server.publish(b"found")
        assert client.receive(DEADLINE) == b"found"


def test_an_address_that_is_served_is_refused_with_its_owner(anywhere: str) -> None:
    with Server(anywhere) as server:
        with pytest.raises(AddressInUse) as caught:
            Server(anywhere)
        assert (caught.value.errno, caught.value.pid) == (errno.EADDRINUSE, os.getpid())
        ours = f"by another Server of this process, {os.getpid()}: close() that one first, or take"
        assert ours in str(caught.value)
        assert anywhere in str(caught.value)
        assert_serves(server)


def test_an_address_served_by_another_process_is_refused_with_its_id(anywhere: str) -> None:
    script = """
import sys
import jumiks
with jumiks.Server(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script, anywhere]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(AddressInUse, match=f"in use by process {process.pid}") as caught:
            Server(anywhere)
        assert caught.value.pid == process.pid
        assert f"of user {os.geteuid()}: stop that one first, or take" in str(caught.value)
        process.kill()
        process.wait(DEADLINE)
    # What a killed server leaves behind is stale, and replaced.
    with Server(anywhere) as server:
        assert_serves(server)


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="there is a file already, which is left alone"):
        Server(path)
    assert path.read_text() == "precious"
    with pytest.raises(ConnectionRefusedError, match="this is a file, no socket: check the path"):
        Client(path)


def test_a_missing_directory_is_named(path: Path) -> None:
    where = path.parent / "missing" / "socket"
    with pytest.raises(FileNotFoundError) as caught:
        Server(where)
    assert f"no directory '{where.parent}': make it first" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="start the server first, or check the path"):
        Client(where)


def test_a_directory_without_permission_is_named(
    path: Path, request: pytest.FixtureRequest
) -> None:
    path.parent.chmod(0o555)
    request.getfixturevalue("unprivileged")
    with pytest.raises(PermissionError) as caught:
        Server(path)
    assert f"may not make files in '{path.parent}'" in str(caught.value)
    assert "have its permissions changed" in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_a_directory_that_may_not_be_searched_is_named(
    path: Path, request: pytest.FixtureRequest
) -> None:
    path.parent.chmod(0o000)
    request.getfixturevalue("unprivileged")
    text = ""
    try:
        Server(path).close()
    except PermissionError as error:
        text = str(error)
    finally:
        os.seteuid(os.getuid())
        path.parent.chmod(0o700)
    assert str(path.parent) in text
    assert "there is a socket" not in text


def test_a_socket_without_permission_says_what_it_takes(
    path: Path, request: pytest.FixtureRequest
) -> None:
    path.parent.chmod(0o711)
    with Server(path, mode=0) as server:
        request.getfixturevalue("unprivileged")
        with pytest.raises(PermissionError, match="takes write permission on the socket file"):
            Client(path)
        assert len(server.clients()) == 0


def test_an_address_that_nobody_serves_says_so(address: str, path: Path) -> None:
    with pytest.raises(ConnectionRefusedError, match="no server listens at this address: start it"):
        Client(address)
    with pytest.raises(FileNotFoundError, match="no socket at this path: start the server first"):
        Client(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(path))
    with pytest.raises(ConnectionRefusedError, match="its server is gone, so start it again"):
        Client(path)


def test_a_socket_is_an_address_for_a_server_only(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
        bound.bind(sockaddr(address))
        with pytest.raises(TypeError, match="a ready-made socket is for a server"):
            Client(bound)  # type: ignore[call-overload]
        with Server(bound) as server:
            assert server.address == address
            assert_serves(server)


def test_a_socket_of_the_wrong_type_is_refused(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(sockaddr(address))
        with pytest.raises(ValueError, match=r"must be AF_UNIX and SOCK_SEQPACKET, not .*STREAM"):
            Server(stream)


# ---- connecting to something that is not jumiks


def test_a_listener_that_stays_silent_is_given_up(anywhere: str) -> None:
    with stranger(anywhere):
        before = time.monotonic()
        with pytest.raises(Timeout) as caught:
            Client(anywhere, timeout=0.1)
        assert 0.1 <= time.monotonic() - before < DEADLINE
    assert str(caught.value) == (
        f"{anywhere!r} sent no hello within 0.1 s: its server is stuck, or it is no jumiks server"
    )


def test_a_listener_that_never_accepts_is_given_up(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(sockaddr(address))
        listener.listen()
        with pytest.raises(Timeout, match=r"no hello within 0\.05 s"):
            Client(address, timeout=0.05)


def test_a_full_backlog_is_given_up(address: str) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first,
    ):
        listener.bind(sockaddr(address))
        listener.listen(0)
        first.connect(sockaddr(address))
        with pytest.raises(Timeout, match=r"no place in the backlog .* within 0\.05 s"):
            Client(address, timeout=0.05)


def test_a_server_that_says_hello_and_nothing_more_is_given_up(address: str) -> None:
    with stranger(address, GOOD_HELLO):
        with pytest.raises(Timeout, match=r"sent no welcome within 0\.1 s: its server is stuck"):
            Client(address, timeout=0.1)


@pytest.mark.parametrize(
    ("rubbish", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "its first packet, of 28 bytes, has no version"),
        (b"\0", "1 byte"),
        (b"hello", "5 bytes"),
        (bytes(range(200, 255)), "has no version"),
        (b"\xff" * 4096, "has no version"),
    ],
)
def test_a_listener_that_talks_rubbish_is_no_jumiks(
    address: str, rubbish: bytes, words: str
) -> None:
    with stranger(address, rubbish):
        with pytest.raises(ProtocolError) as caught:
            Client(address)
    assert "does not speak jumiks" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("rubbish", [b"x", bytes(15)])
def test_a_server_whose_welcome_is_rubbish_broke_the_handshake(
    address: str, rubbish: bytes
) -> None:
    with stranger(address, GOOD_HELLO, rubbish):
        with pytest.raises(ProtocolError, match="the server broke the handshake"):
            Client(address)


@pytest.mark.parametrize("packets", [(), (b"",), (GOOD_HELLO,)])
def test_a_listener_that_hangs_up_during_the_handshake_is_told(
    anywhere: str, packets: tuple[bytes, ...]
) -> None:
    with stranger(anywhere, *packets, hang_up=True):
        with pytest.raises(ConnectionLost, match="closed the connection during the handshake"):
            Client(anywhere)


def test_a_stream_socket_is_no_jumiks(path: Path) -> None:
    with stranger(path, b"220 ready\r\n", kind=socket.SOCK_STREAM):
        with pytest.raises(OSError, match="is SOCK_SEQPACKET: check the address") as caught:
            Client(path)
    assert caught.value.errno == errno.EPROTOTYPE
    assert str(path) in str(caught.value)


def test_a_refusal_has_the_servers_own_words(address: str) -> None:
    welcome = reference.Welcome(2, text="not on Sundays")
    with stranger(address, GOOD_HELLO, reference.encode_welcome(welcome)):
        with pytest.raises(Refused, match="the server refused this client: not on Sundays") as why:
            Client(address)
    assert (why.value.status, why.value.reason) == (2, "not on Sundays")


def test_a_plain_server_cannot_be_asked_for_the_past(address: str) -> None:
    with stranger(address, reference.encode_classic_hello()):
        with pytest.raises(Refused, match=r"speaks plain 1\.0 .* can only start from now"):
            Client(address, start="oldest")


# ---- versions


@pytest.mark.parametrize("theirs", [(2, 0, 0), (1, 1, 0), (0, 0, 0), (0, 9, 3), (1, 999, 7)])
@pytest.mark.parametrize("extended", [True, False])
def test_a_client_names_both_versions_when_the_servers_is_another(
    address: str, theirs: tuple[int, int, int], extended: bool
) -> None:
    hello = struct.pack("<3H", *theirs) + GOOD_HELLO[6:] * extended
    with stranger(address, hello):
        with pytest.raises(VersionMismatch) as caught:
            Client(address)
    assert (caught.value.theirs, caught.value.ours) == (theirs, (1, 0, 0))
    dotted = ".".join(map(str, theirs))
    assert f"it speaks protocol version {dotted}, this end 1.0.0" in str(caught.value)
    assert "upgrade the older end" in str(caught.value)


@pytest.mark.parametrize("theirs", [(2, 0, 0), (1, 1, 0), (0, 0, 0), (1, 65535, 7)])
@pytest.mark.parametrize("extended", [True, False])
def test_a_server_names_both_versions_when_the_clients_is_another(
    server: Server, theirs: tuple[int, int, int], extended: bool
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(DEADLINE)
        peer.connect(sockaddr(server.address))
        assert reference.decode_server_hello(peer.recv(100)).version == (1, 0, 0)
        if extended:
            peer.send(reference.encode_reply(reference.Reply(theirs, reference.FRAMES)))
            welcome = reference.decode_welcome(peer.recv(1000))
            assert welcome.status == 1
            for version in (theirs, (1, 0, 0)):
                assert ".".join(map(str, version)) in welcome.text
        else:
            peer.send(reference.encode_classic_hello(theirs))
        assert peer.recv(100) == b""
    assert len(server.clients()) == 0
    assert_serves(server)


def test_another_patch_is_no_other_version_for_the_server(server: Server) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(DEADLINE)
        peer.connect(sockaddr(server.address))
        peer.recv(100)
        peer.send(reference.encode_reply(reference.Reply((1, 0, 77), reference.FRAMES)))
        assert reference.decode_welcome(peer.recv(1000)).status == 0
        server.publish(b"hi")
        assert reference.decode_frames(peer.recv(1000)) == [reference.Frame(FIRST_ID, b"hi")]


@pytest.mark.parametrize("extended", [True, False])
def test_another_patch_is_no_other_version_for_the_client(address: str, extended: bool) -> None:
    hello = struct.pack("<3H", 1, 0, 77) + GOOD_HELLO[6:] * extended
    if extended:
        welcome = reference.Welcome(0, reference.FRAMES, FIRST_ID)
        packets = [reference.encode_welcome(welcome)]
        packets.append(reference.encode_frame(reference.Frame(FIRST_ID, b"hi")))
    else:
        packets = [reference.encode_classic(reference.Message(FIRST_ID, b"hi"))]
    with stranger(address, hello, *packets), Client(address) as client:
        assert client.delivery == ("framed" if extended else "classic")
        assert client.receive(DEADLINE) == b"hi"
