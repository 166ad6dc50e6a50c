# SPDX-License-Identifier: Apache-2.0
"""libjumiks, for programs in C: what it installs, and what it makes of servers of every kind."""

import array
import errno
import os
import runpy
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI
from support import reference
from support.api import Task
from support.base import DEADLINE, ROOT, descriptors, wait_until
from support.c import ENVIRONMENT, folder_of_the_run, made_once, run
from support.reference import Welcome
from support.servers import Server
from support.shared import HandMadeLog
from support.wire import FIRST_ID, hello_of, listening

# What a run with packets would change, the tests ask for by themselves.
pytestmark = [pytest.mark.only_shared, pytest.mark.slow]  # it compiles the core

SHARED = reference.FRAMES | reference.LOG
LINES = [b"%d" % number for number in range(1000)]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make install-c` has installed the library, once for all workers."""
    if not (shutil.which("cc") and shutil.which("make")):
        pytest.skip("no C compiler, or no make")
    folder = folder_of_the_run(tmp_path_factory) / "libjumiks"
    with made_once(folder) as to_be_made:
        if to_be_made:
            words = [f"PREFIX={folder}", f"C_LIB={folder}.build", "CFLAGS=-O0"]
            run("make", "--silent", "-C", ROOT, "install-c", *words)
    return folder


# ---- a program in C ----


@pytest.fixture
def program(prefix: Path, tmp_path: Path) -> Path:
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config")
    program = tmp_path / "client"
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "jumiks"],
        env=ENVIRONMENT | {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wconversion"]
    run("cc", *strict, ROOT / "examples/client.c", "-o", program, *flags)
    return program


def test_a_program_in_c_gets_all_that_a_server_publishes_in_each_delivery(
    address: str, program: Path, prefix: Path
) -> None:
    environment = ENVIRONMENT | {"LD_LIBRARY_PATH": str(prefix / "lib")}
    for delivery in ("shared", "framed", "classic"):
        with Server(address, share_log=True) as server:
            pipe = subprocess.PIPE
            command = [str(program), address, delivery]
            with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe) as client:
                server.wait_for_clients(1, DEADLINE)
                assert [info.delivery for info in server.clients()] == [delivery]
                server.publish_many(LINES, timeout=DEADLINE)
                server.drain(DEADLINE)
                server.close()
                output, said = client.communicate(timeout=DEADLINE)
        assert output.splitlines() == LINES
        # A classic connection has no BYE.
        end = b"code 13" if delivery == "classic" else b"reason 2"
        assert said == b"it ended, " + end + b"\n"


def test_only_functions_of_the_header_are_exported_and_each_has_its_version(prefix: Path) -> None:
    if not shutil.which("nm"):
        pytest.skip("no binutils")
    found = subprocess.run(
        ["nm", "-D", "--defined-only", prefix / "lib/libjumiks.so"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[-1] for line in found.stdout.splitlines()} - {"JUMIKS_1"}
    assert "jmk_connect@@JUMIKS_1" in names
    assert [n for n in names if not (n.startswith("jmk_") and n.endswith("@@JUMIKS_1"))] == []


# ---- jmk_connect ----


class Library:
    """The installed library, by the declarations of its header."""

    def __init__(self, prefix: Path) -> None:
        header = (ROOT / "csrc/jumiks.h").read_text("utf-8")
        cut = runpy.run_path(str(ROOT / "csrc/build_core.py"))["cut_cdef"]
        self.ffi = FFI()
        self.ffi.cdef(cut(header))
        self.ffi.cdef(header.partition("/* cdef: end */")[2].partition("#ifdef")[0])
        self.lib: Any = self.ffi.dlopen(str(prefix / "lib/libjumiks.so.1"))

    def connect(
        self, address: str, *, delivery: int = 2, timeout: float = DEADLINE, **options: int
    ) -> tuple[int, Any]:
        """Connect and close again; the code, and what was said."""
        text = self.ffi.new("char[]", address.encode())
        more = {"delivery": delivery, "timeout": int(timeout * 1e9), **options}
        given = self.ffi.new("struct jmk_connect_options *", {"address": text, **more})
        out, facts = self.ffi.new("jmk_client **"), self.ffi.new("struct jmk_connected *")
        code = self.lib.jmk_connect(out, given, facts)
        assert (out[0] != self.ffi.NULL) == (code == 0)
        self.lib.jmk_client_free(out[0])
        return code, facts


@pytest.fixture(scope="module")
def library(prefix: Path) -> Library:
    return Library(prefix)


def send_with(connection: socket.socket, packet: bytes, given: list[int]) -> None:
    notes = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))] if given else []
    connection.sendmsg([packet], notes)


Script = Callable[[socket.socket], object]


@contextmanager
def serving(address: str, script: Script) -> Iterator[None]:
    """Serve each connection by a script, and keep it open until all is over."""
    stop = threading.Event()

    def run_all(listener: socket.socket) -> None:
        kept = []
        listener.settimeout(0.02)
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            kept.append(connection)
            connection.settimeout(DEADLINE)
            if script(connection) == "close":
                connection.close()
        for connection in kept:
            connection.close()

    with listening(address) as listener:
        task = Task(lambda: run_all(listener))
        try:
            yield
        finally:
            stop.set()
            task.result()


def saying(
    welcome: bytes | None, *, hello: bytes | None = None, given: int = 0, close: bool = False
) -> Script:
    """Say hello, read the reply, and send a welcome with that many descriptors."""

    def script(connection: socket.socket) -> str:
        connection.send(hello_of(capabilities=7) if hello is None else hello)
        if welcome is not None:
            connection.recv(64)
            send_with(connection, welcome, [0] * given)
        elif close:
            connection.recv(64)
        return "close" if close else ""

    return script


def welcome_of(*fields: Any, **more: Any) -> bytes:
    return reference.encode_welcome(Welcome(*fields, **more))


WELCOME = welcome_of(0, SHARED, FIRST_ID, first_offset=0)
PLAIN = welcome_of(0, reference.FRAMES, FIRST_ID)
PROTOCOL, LOST, LOG, TIMEOUT, REFUSED, VERSION = 14, 13, 16, 1, 100, 101
HELLO_, WELCOME_, DESCRIPTORS, START, LEFT_OUT, GRANT = range(1, 7)

BROKEN = {
    "a hello that is cut": (saying(None, hello=b"\1\0\0\0\0"), PROTOCOL, (HELLO_, 5, 6)),
    "a welcome that is cut": (saying(PLAIN[:15]), PROTOCOL, (WELCOME_, 15, 16)),
    "no offset": (saying(WELCOME[:23], given=2), PROTOCOL, (WELCOME_, 23, 24)),
    "no descriptors": (saying(WELCOME), PROTOCOL, (DESCRIPTORS, 0, 2)),
    "one descriptor": (saying(WELCOME, given=1), PROTOCOL, (DESCRIPTORS, 1, 2)),
    "three descriptors": (saying(WELCOME, given=3), PROTOCOL, (DESCRIPTORS, 3, 2)),
    "200 descriptors": (saying(WELCOME, given=200), PROTOCOL, (DESCRIPTORS, 3, 2)),
    "descriptors without a log": (saying(PLAIN, given=2), PROTOCOL, (DESCRIPTORS, 2, 0)),
    "not a log": (saying(WELCOME, given=2), LOG, (0, 0, 0)),
    "a monitor": (saying(welcome_of(0, 4, FIRST_ID)), PROTOCOL, (GRANT, 4, 3)),
    "a log alone": (saying(welcome_of(0, 2, FIRST_ID), given=2), PROTOCOL, (GRANT, 2, 3)),
    "more left out than there was": (
        saying(welcome_of(0, 1, FIRST_ID + 3, left_out=4)),
        PROTOCOL,
        (LEFT_OUT, 4, FIRST_ID + 3),
    ),
    "the end at once": (saying(None, close=True, hello=b"\1\0\0\0\0\0\0\0"), LOST, (0, 0, 0)),
    "an empty packet": (saying(b""), LOST, (0, 0, 0)),
    "another version": (saying(None, hello=struct.pack("<3H", 1, 1, 0)), VERSION, (0, 0, 0)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_server_that_breaks_the_handshake_is_told_from_its_facts(
    address: str, library: Library, name: str
) -> None:
    script, code, facts = BROKEN[name]
    before = descriptors()
    with serving(address, script):
        found, said = library.connect(address)
    assert (found, (said.fault, said.found, said.due)) == (code, facts)
    wait_until(lambda: descriptors() <= before)


def test_a_start_before_what_was_asked_for_breaks_the_handshake(
    address: str, library: Library
) -> None:
    with serving(address, saying(PLAIN)):
        code, said = library.connect(address, start=FIRST_ID + 5)
    assert (code, said.fault, said.found, said.due) == (PROTOCOL, START, FIRST_ID, FIRST_ID + 5)


def test_descriptors_with_the_hello_are_not_read(address: str, library: Library) -> None:
    def script(connection: socket.socket) -> None:
        send_with(connection, hello_of(), [0])

    with serving(address, script):
        code, said = library.connect(address)
    assert (code, said.fault, said.found, said.due) == (PROTOCOL, DESCRIPTORS, 1, 0)


@pytest.mark.parametrize("script", [lambda _: None, saying(None)], ids=["hello", "welcome"])
def test_silence_ends_at_the_deadline(address: str, library: Library, script: Script) -> None:
    with serving(address, script):
        assert library.connect(address, timeout=0.05)[0] == TIMEOUT


def test_a_full_backlog_ends_at_the_deadline(address: str, library: Library) -> None:
    with listening(address) as listener:
        listener.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
            first.connect("\0" + address[1:])
            assert library.connect(address, timeout=0.05)[0] == TIMEOUT


def test_a_refusal_has_its_words_without_control_characters(address: str, library: Library) -> None:
    words = b"no\x1b[2J \xc2\x9b\x7f \xe2\x82\xac" + b"x" * 600
    refusal = struct.pack("<HHIQ", 999, 0, 0, 0) + words
    with serving(address, saying(refusal)):
        code, said = library.connect(address)
    shown = library.ffi.string(said.reason)
    assert (code, said.status) == (REFUSED, 999)
    assert shown == (b"no?[2J ??? \xe2\x82\xac" + b"x" * 600)[:512]


def test_a_log_of_a_later_layout_is_left_and_packets_are_asked_for(
    address: str, library: Library
) -> None:
    replies = []
    with HandMadeLog(words={8: 2}) as log:

        def script(connection: socket.socket) -> None:
            connection.send(hello_of(capabilities=3))
            replies.append(connection.recv(64)[6])
            given = [log.fd, log.cursor_fd] if replies[-1] & reference.LOG else []
            send_with(connection, WELCOME if given else PLAIN, given)

        with serving(address, script):
            code, said = library.connect(address)
    assert (code, said.delivery, replies) == (0, 1, [SHARED, reference.FRAMES])


@pytest.mark.parametrize("start", [0, 1])
def test_a_plain_server_can_only_begin_now(address: str, library: Library, start: int) -> None:
    with serving(address, saying(None, hello=b"\1\0\0\0\7\0")):
        code, said = library.connect(address, start=start)
    assert (code, said.status, list(said.version)) == (
        (REFUSED, 4, [1, 0, 7]) if start else (0, 0, [1, 0, 7])
    )


def test_a_client_resumes_on_the_same_feed_and_takes_the_oldest_of_another(
    address: str, library: Library
) -> None:
    with Server(address) as server:
        server.publish_many(LINES, timeout=DEADLINE)
        code, said = library.connect(address, start=FIRST_ID + 500, server_id=1)
        assert (code, said.first_id, said.next_id) == (0, FIRST_ID, FIRST_ID + 1000)
        same = int(said.server_id)
        code, said = library.connect(address, start=FIRST_ID + 500, server_id=same)
        assert (code, said.first_id, said.server_id) == (0, FIRST_ID + 500, same)
        code, said = library.connect(address, start=FIRST_ID + 5000)
        assert (code, said.status) == (REFUSED, 4)
        assert b"1" in library.ffi.string(said.reason)


@pytest.mark.parametrize(
    ("where", "options", "code"),
    [
        ("", {}, "EINVAL"),
        ("@", {}, "EINVAL"),
        ("name", {}, "EINVAL"),
        ("@" + "x" * 108, {}, "ENAMETOOLONG"),
        ("/" + "x" * 107, {}, "ENAMETOOLONG"),
        ("@" + "x" * 107, {}, "ECONNREFUSED"),
        ("/nowhere/at/all", {}, "ENOENT"),
        ("@nobody-listens", {"start": 2}, "EINVAL"),
        ("@nobody-listens", {"delivery": 3}, "EINVAL"),
    ],
)
def test_options_that_lead_nowhere_are_told(
    library: Library, where: str, options: dict[str, int], code: str
) -> None:
    assert library.connect(where, **options)[0] == -getattr(errno, code)


def test_a_socket_of_another_type_is_told(path: Path, library: Library) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        assert library.connect(os.fspath(path))[0] == -errno.EPROTOTYPE
