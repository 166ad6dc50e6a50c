# SPDX-License-Identifier: Apache-2.0
import errno
import fcntl
import gc
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.base import IS_ROOT

from jumiks import Client, Monitor
from jumiks._peer import Peer
from jumiks._wire import listener as listeners
from jumiks._wire.address import Kind, parse_address, parse_client_address
from jumiks._wire.connect import connecting
from jumiks._wire.listener import Listener, listen
from jumiks.errors import AddressInUse, Timeout

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can change the owner")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def connect(where: object, timeout: float | None = None) -> socket.socket:
    """Connect as a client does, waiting in this thread."""
    for sock, pause in connecting(parse_client_address(where), timeout):
        if sock is not None:
            return sock
        time.sleep(pause)
    raise AssertionError("neither connected nor failed")


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def leave_stale(path: Path, kind: int = socket.SOCK_SEQPACKET) -> int:
    """Make a socket file that nobody listens on; returns its inode."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
    return path.lstat().st_ino


def assert_serves(listener: Listener, where: object) -> None:
    with connect(where, 5.0) as client:
        connection, _ = listener.sock.accept()
        with connection:
            assert Peer.of(connection) == Peer.of(client)


# ---- what the kernel takes


@pytest.mark.parametrize("kind", [Kind.ABSTRACT, Kind.PATH])
def test_the_longest_address_is_one_that_the_kernel_takes(kind: Kind, path: Path) -> None:
    unique = os.urandom(8).hex()
    written = "@" if kind is Kind.ABSTRACT else f"{path.parent}/"
    room = 108 if kind is Kind.ABSTRACT else 107
    written += unique + "x" * (room - len(written) - len(unique))
    with listen(written) as listener:
        assert_serves(listener, written)


# ---- listen: what all kinds have in common


@pytest.fixture(params=["abstract", "path"])
def anywhere(request: pytest.FixtureRequest, address: str, path: Path) -> str:
    return address if request.param == "abstract" else str(path)


def test_a_listener_serves_until_it_is_closed(anywhere: str) -> None:
    listener = listen(anywhere)
    assert listener.fileno() == listener.sock.fileno() >= 0
    assert_serves(listener, anywhere)
    listener.close()
    listener.close()
    assert listener.fileno() == -1
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        connect(anywhere, 1.0)


def test_all_sockets_close_on_exec_and_never_block(anywhere: str) -> None:
    with listen(anywhere) as listener, connect(anywhere) as client:
        for sock in (listener.sock, client):
            assert not sock.get_inheritable()
            assert not sock.getblocking()


def test_a_second_server_is_told_the_owner_of_the_address(anywhere: str) -> None:
    with listen(anywhere) as listener:
        with pytest.raises(AddressInUse) as caught:
            listen(anywhere)
        error = caught.value
        assert (error.address, error.pid, error.uid) == (anywhere, os.getpid(), os.geteuid())
        # The probe is a connection that was closed, and harms nobody.
        connection, _ = listener.sock.accept()
        with connection:
            assert connection.recv(1) == b""
        assert_serves(listener, anywhere)


def files_in(folder: Path) -> dict[str, tuple[int, int, float]]:
    found = {}
    for entry in folder.iterdir():
        about = entry.lstat()
        found[entry.name] = (about.st_ino, about.st_mode, about.st_ctime)
    return found


@pytest.mark.parametrize("obstacle", ["a server", "a stream server", "a full backlog", "a file"])
def test_a_listen_that_fails_leaves_every_file_as_it_was(path: Path, obstacle: str) -> None:
    with ExitStack() as stack:
        if obstacle == "a file":
            path.write_text("kept")
        elif obstacle == "a server":
            stack.enter_context(listen(path))
        else:
            kind = socket.SOCK_STREAM if obstacle == "a stream server" else socket.SOCK_SEQPACKET
            other = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            other.bind(str(path))
            other.listen(0)
            if obstacle == "a full backlog":
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
                waiting.connect(str(path))
        before = files_in(path.parent)
        for _ in range(2):
            with pytest.raises(OSError, match=r"in use|left alone"):
                listen(path)
            assert files_in(path.parent) == before


def test_an_address_whose_backlog_is_full_is_in_use(anywhere: str) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(listen(anywhere, backlog=0))
        stack.enter_context(connect(anywhere, 5.0))
        with pytest.raises(AddressInUse) as caught:
            listen(anywhere)
        assert caught.value.pid is None
        listener.sock.accept()[0].close()


def test_an_address_with_a_socket_of_another_type_is_in_use(anywhere: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(parse_address(anywhere).sockaddr)
        other.listen()
        if anywhere.startswith("@"):
            # Each type has abstract names of its own, so this is not even a conflict.
            listen(anywhere).close()
        else:
            with pytest.raises(AddressInUse, match=r"by a process .its socket is of another type"):
                listen(anywhere)
            assert Path(anywhere).is_socket()


def test_a_tilde_that_nobody_expanded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ways: list[Callable[[str], object]] = [listen, lambda where: connect(where, 5.0)]
    for way in ways:
        with pytest.raises(FileNotFoundError, match=r"'~' stands for .* os\.path\.expanduser"):
            way("~/feed")
    (tmp_path / "~").mkdir()
    listen("~/feed").close()


def test_an_address_is_free_again_after_close(anywhere: str) -> None:
    for _ in range(3):
        with listen(anywhere) as listener:
            assert_serves(listener, anywhere)


# ---- listen: paths


def test_a_stale_socket_file_is_replaced(path: Path) -> None:
    leave_stale(path)
    with listen(path) as listener:
        assert_serves(listener, path)
    assert list(path.parent.iterdir()) == []


def test_the_socket_file_of_a_killed_server_is_replaced(path: Path) -> None:
    script = (
        "import sys; from jumiks._wire.listener import listen; "
        "held = listen(sys.argv[1]); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(AddressInUse) as caught:
            listen(path)
        assert caught.value.pid == child.pid
        child.kill()
    assert path.is_socket()
    with listen(path) as listener:
        assert_serves(listener, path)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda path: path.write_text("precious"), "a file"),
        (lambda path: path.mkdir(), "a directory"),
        (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
        (lambda path: os.mkfifo(path), "no socket"),
    ],
)
def test_what_is_no_socket_is_left_alone(
    make: Callable[[Path], object], name: str, path: Path
) -> None:
    make(path)
    before = path.lstat()
    with pytest.raises(FileExistsError, match=name):
        listen(path)
    assert path.lstat() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_symbolic_link_to_a_live_server_is_left_alone(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    with listen(path) as listener:
        with pytest.raises(FileExistsError, match="symbolic link"):
            listen(link)
        assert_serves(listener, link)


def test_close_leaves_a_file_that_is_not_its_own(path: Path) -> None:
    first = listen(path)
    path.unlink()
    with listen(path) as second:
        first.close()
        assert_serves(second, path)


def test_close_is_content_if_the_file_or_its_directory_is_gone(path: Path) -> None:
    folder = path.parent / "folder"
    folder.mkdir()
    listener = listen(folder / "socket")
    (folder / "socket").unlink()
    folder.rmdir()
    listener.close()


def test_close_finds_a_relative_path_from_another_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with listen("./socket") as listener:
        assert_serves(listener, "./socket")
        monkeypatch.chdir("/")
    assert not path.exists()


def test_a_copy_in_a_forked_child_does_not_remove_the_file(path: Path) -> None:
    script = """
import os, sys
from jumiks._wire.listener import listen
listener = listen(sys.argv[1])
child = os.fork()
if child == 0:
    listener.close()
    os._exit(0)
os.waitpid(child, 0)
assert os.path.exists(sys.argv[1])
listener.close()
assert not os.path.exists(sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_mode_is_what_the_file_gets_whatever_the_umask(path: Path, mode: int, mask: int) -> None:
    with umask(mask), listen(path, mode=mode):
        assert permissions(path) == mode


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o700), (0o022, 0o755)])
def test_without_a_mode_the_umask_decides(path: Path, mask: int, mode: int) -> None:
    with umask(mask), listen(path):
        assert permissions(path) == mode


@pytest.mark.parametrize("mask", [0, 0o077])
def test_nobody_can_connect_before_the_permissions_are_set(
    path: Path, mask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = socket.socket.listen

    def spy(sock: socket.socket, *args: Any) -> None:
        seen.append(permissions(path))
        real(sock, *args)

    def bound(where: object, mode: int | None, gid: int | None) -> None:
        seen.append(permissions(path) & ~0o640)
        with pytest.raises(ConnectionRefusedError):
            connect(path, 1.0)
        give(where, mode, gid)

    give: Any = listeners._give_path
    monkeypatch.setattr(socket.socket, "listen", spy)
    monkeypatch.setattr(listeners, "_give_path", bound)
    with umask(mask), listen(path, mode=0o640):
        assert seen == [0, 0o640]


@as_root
def test_the_group_gets_the_file_and_may_write_by_default(path: Path) -> None:
    with listen(path, group=4321):
        assert (path.lstat().st_gid, permissions(path)) == (4321, 0o660)
    with listen(path, group="root", mode=0o600):
        assert (path.lstat().st_gid, permissions(path)) == (0, 0o600)


def test_a_group_that_the_user_is_no_member_of_is_refused_and_leaves_nothing(
    path: Path, unprivileged: int
) -> None:
    with shared_folder() as folder:
        with pytest.raises(PermissionError, match="must be a member"):
            listen(folder / "socket", group=4321)
        assert list(folder.iterdir()) == []


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Make a directory as the user that the test runs as."""
    folder = Path("/tmp") / f"jmk-{os.urandom(6).hex()}"
    folder.mkdir(0o755)
    try:
        yield folder
    finally:
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        ({"group": "no such group"}, ValueError, "no group named 'no such group'"),
        ({"group": -1}, ValueError, "no group id"),
        ({"group": 1.0}, TypeError, "the name or number of a group"),
    ],
)
def test_a_wrong_group_is_refused_before_anything_is_made(
    path: Path, wrong: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        listen(path, **wrong)
    assert list(path.parent.iterdir()) == []


def test_mode_and_group_are_refused_where_there_is_no_file(address: str) -> None:
    with pytest.raises(ValueError, match="for the file that a path makes"):
        listen(address, mode=0o600)
    with pytest.raises(ValueError, match="for the file that a path makes"):
        listen(address, group=0)


def test_a_missing_directory_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no directory .*nowhere"):
        listen(path.parent / "nowhere" / "socket")


def test_a_directory_that_takes_no_files_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="nothing can be made in '/proc': take another"):
        listen("/proc/socket")


def test_a_directory_that_is_a_file_is_named(path: Path) -> None:
    path.write_text("")
    with pytest.raises(NotADirectoryError, match="is not a directory"):
        listen(path / "socket")


def test_a_directory_without_permission_is_named(unprivileged: int) -> None:
    with pytest.raises(PermissionError, match="may not make files in '/sys'"):
        listen("/sys/socket")


def test_a_live_server_in_a_directory_without_permission_is_in_use(path: Path) -> None:
    with listen(path, mode=0o666) as listener, read_only(path.parent):
        with pytest.raises(AddressInUse):
            listen(path)
        listener.sock.accept()[0].close()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write from a directory, and from root its right to do so anyway."""
    before = os.geteuid()
    if before == 0 and not IS_ROOT:
        pytest.skip("this root cannot become another user")
    folder.chmod(0o555)
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)
        folder.chmod(0o700)


def test_a_stale_file_that_may_not_be_removed_is_named(path: Path) -> None:
    leave_stale(path)
    path.chmod(0o777)
    lock = path.with_name(".socket.jumiks-lock")
    lock.touch()
    lock.chmod(0o666)
    with read_only(path.parent), pytest.raises(PermissionError, match="remove it"):
        listen(path)
    assert path.is_socket()


def test_a_socket_that_the_user_may_not_ask_is_left_alone(path: Path) -> None:
    if not IS_ROOT:
        pytest.skip("only root can make one that it may not ask afterwards")
    path.parent.chmod(0o777)
    with listen(path, mode=0o600) as listener:
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError, match="cannot be told"):
                listen(path)
        finally:
            os.seteuid(0)
        assert_serves(listener, path)
    assert list(path.parent.iterdir()) == []


def test_a_listen_that_fails_removes_what_it_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(sock: socket.socket, *args: Any) -> None:
        raise OSError(errno.ENOBUFS, "no buffers")

    monkeypatch.setattr(socket.socket, "listen", refuse)
    with pytest.raises(OSError, match="no buffers"):
        listen(path)
    assert list(path.parent.iterdir()) == []


def test_a_lock_file_that_was_left_behind_stops_nobody(path: Path) -> None:
    path.with_name(".socket.jumiks-lock").touch()
    with listen(path) as listener:
        assert_serves(listener, path)
    assert list(path.parent.iterdir()) == []


def test_a_start_that_waits_in_vain_for_another_one_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "LOCK_PATIENCE", 0.05)
    lock = path.with_name(".socket.jumiks-lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AddressInUse, match="stayed locked for"):
            listen(path)
    assert list(path.parent.iterdir()) == [lock]


def test_a_start_waits_for_another_one(path: Path) -> None:
    lock = path.with_name(".socket.jumiks-lock")
    with ThreadPoolExecutor(1) as pool:
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            starting = pool.submit(listen, path)
            with pytest.raises(TimeoutError):
                starting.result(0.1)
            assert not path.exists()
        with starting.result(10.0) as listener:
            assert_serves(listener, path)


@pytest.mark.skipif(not IS_ROOT, reason="only root can leave another user's file")
@pytest.mark.parametrize("folder_mode", [0o777, 0o1777])
@pytest.mark.parametrize("lock_mode", [0o600, 0o644])
def test_a_lock_file_that_another_user_left_behind_stops_nobody(
    path: Path, folder_mode: int, lock_mode: int
) -> None:
    lock = path.with_name(".socket.jumiks-lock")
    lock.touch()
    lock.chmod(lock_mode)
    os.utime(lock, (time.time() - 60,) * 2)
    path.parent.chmod(folder_mode)
    os.seteuid(65534)
    try:
        begin = time.monotonic()
        with listen(path) as listener:
            assert_serves(listener, path)
        assert time.monotonic() - begin < listeners.LOCK_PATIENCE / 2
    finally:
        os.seteuid(0)


def test_a_lock_file_can_be_opened_by_everybody(path: Path) -> None:
    with umask(0o077), listeners._start_lock(parse_address(path)):
        assert permissions(path.with_name(".socket.jumiks-lock")) == 0o644


def test_a_lock_on_the_directory_is_somebody_elses_affair(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        listener = listen(path)
        assert path.is_socket()
        listener.close()
        assert not path.exists()
    finally:
        os.close(descriptor)


# ---- two servers at once


def reaches(listener: Listener, word: bytes) -> bool:
    """Look for a client's word among all that connected; the others are probes."""
    while True:
        try:
            connection, _ = listener.sock.accept()
        except BlockingIOError:
            return False
        with connection:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                if connection.recv(100) == word:
                    return True


def start_together(count: int, where: object) -> tuple[list[Listener], list[BaseException]]:
    barrier = threading.Barrier(count)

    def start() -> Listener:
        barrier.wait(10.0)
        return listen(where)

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(start) for _ in range(count)]
    errors = [future.exception() for future in futures]
    return (
        [future.result() for future in futures if not future.exception()],
        [error for error in errors if error is not None],
    )


@pytest.mark.parametrize("stale", [True, False])
def test_of_servers_that_start_at_once_one_wins(path: Path, stale: bool) -> None:
    for _ in range(40):
        if stale:
            leave_stale(path)
        winners, errors = start_together(8, path)
        assert len(winners) == 1
        assert all(isinstance(error, AddressInUse) for error in errors), errors
        with connect(path, 5.0):
            winners[0].close()
        assert list(path.parent.iterdir()) == []


def test_of_processes_that_start_at_once_one_wins(path: Path) -> None:
    script = """
import sys
from jumiks._wire.listener import listen
from jumiks.errors import AddressInUse
print("ready", flush=True)
sys.stdin.readline()
try:
    listener = listen(sys.argv[1])
    print("won", flush=True)
except AddressInUse:
    print("in use", flush=True)
sys.stdin.readline()
"""
    leave_stale(path)
    command = [sys.executable, "-W", "ignore", "-c", script, str(path)]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        group = [
            stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
            for _ in range(6)
        ]

        def hear() -> list[str]:
            return [child.stdout.readline().strip() for child in group if child.stdout]

        def tell() -> None:
            for child in group:
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()

        hear()
        tell()
        assert sorted(hear()) == ["in use"] * 5 + ["won"]
        connect(path, 5.0).close()
        tell()


def test_starts_and_stops_at_once_never_leave_a_server_without_its_file(path: Path) -> None:
    def come_and_go(_: int) -> int:
        wins = 0
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            try:
                # Room for the probes of all the others, who ask without a pause.
                listener = listen(path, backlog=4096)
            except AddressInUse:
                continue
            wins += 1
            with listener, connect(path, 5.0) as client:
                client.send(b"%d" % id(listener))
                assert reaches(listener, b"%d" % id(listener))
        return wins

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(come_and_go, range(4))) > 0
    assert list(path.parent.iterdir()) == []


# ---- ready-made sockets


def ready_made(where: str, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(parse_address(where).sockaddr)
    return sock


@pytest.mark.parametrize("listening", [True, False])
def test_a_bound_socket_serves_and_its_file_is_left_alone(anywhere: str, listening: bool) -> None:
    sock = ready_made(anywhere)
    sock.set_inheritable(True)
    if listening:
        sock.listen()
    parsed = parse_address(sock)
    assert parsed.kind is Kind.SOCKET
    assert parsed.text == anywhere
    assert parsed.abstract == anywhere.startswith("@")
    with listen(sock) as listener:
        assert listener.sock is sock
        assert not sock.get_inheritable()
        assert_serves(listener, anywhere)
    assert sock.fileno() == -1
    if not anywhere.startswith("@"):
        assert Path(anywhere).is_socket()


def test_a_socket_of_the_wrong_type_is_refused(address: str) -> None:
    with ready_made(address, socket.SOCK_STREAM) as sock:
        with pytest.raises(
            ValueError, match=r"not AF_UNIX and SOCK_STREAM.*by ListenSequentialPacket="
        ):
            listen(sock)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        with pytest.raises(ValueError, match="not AF_INET and SOCK_STREAM"):
            listen(sock)


def test_a_socket_that_is_not_bound_or_closed_or_connected_is_refused(address: str) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sock, pytest.raises(ValueError, match="not bound"):
        listen(sock)
    with pytest.raises(ValueError, match="closed"):
        listen(sock)
    with listen(address), ready_made(address + "2") as sock:
        sock.connect(parse_address(address).sockaddr)
        with pytest.raises(ValueError, match="cannot listen"):
            listen(sock)


def test_a_ready_made_socket_takes_no_mode_and_is_no_address_to_connect_to(address: str) -> None:
    with ready_made(address) as sock:
        with pytest.raises(ValueError, match="for the file that a path makes"):
            listen(sock, mode=0o600)
        with pytest.raises(TypeError, match="for a server"):
            connect(sock)


# ---- connect


def test_connecting_where_nobody_is_says_so(address: str, path: Path) -> None:
    with pytest.raises(ConnectionRefusedError, match="no server listens"):
        connect(address)
    with pytest.raises(FileNotFoundError, match="start the server first, or check the path: "):
        connect(path)
    with pytest.raises(FileNotFoundError, match=r"there is no directory '/nowhere': start the"):
        connect("/nowhere/ticks")
    leave_stale(path)
    with pytest.raises(ConnectionRefusedError, match="its server is gone"):
        connect(path)
    assert path.is_socket()


def test_connecting_to_what_is_no_socket_says_so(path: Path) -> None:
    path.write_text("")
    with pytest.raises(ConnectionRefusedError, match="this is a file, no socket"):
        connect(path)
    with pytest.raises(NotADirectoryError, match="not a directory"):
        connect(path / "socket")


def test_an_error_that_is_explained_has_one_traceback(address: str, path: Path) -> None:
    path.write_text("")
    wrong: list[Callable[[], object]] = [
        partial(connect, address),
        partial(connect, path),
        partial(connect, "/nowhere/ticks"),
        partial(Client, address, wait=0.05),
        partial(Monitor, address),
        partial(listen, path / "socket"),
        partial(listen, path.parent / "nowhere" / "socket"),
    ]
    for each in wrong:
        with pytest.raises(OSError) as caught:  # noqa: PT011  the numbers are tested above
            each()
        assert caught.value.errno
        assert "".join(traceback.format_exception(caught.value)).count("Traceback") == 1


def test_connecting_to_a_stream_socket_says_so(path: Path) -> None:
    with ready_made(str(path), socket.SOCK_STREAM) as other:
        other.listen()
        with pytest.raises(OSError, match="a socket of another type") as caught:
            connect(path)
    assert caught.value.errno == errno.EPROTOTYPE


def test_connecting_without_permission_says_what_it_takes(path: Path) -> None:
    path.parent.chmod(0o755)
    with listen(path, mode=0o400), read_only(path.parent):
        with pytest.raises(PermissionError, match="write permission on the socket file"):
            connect(path)


def test_a_full_backlog_is_waited_for_until_the_deadline(anywhere: str) -> None:
    with listen(anywhere, backlog=0) as listener, connect(anywhere) as first:
        begin = time.monotonic()
        with pytest.raises(Timeout, match=r"no place in the backlog .* within 0.2 s"):
            connect(anywhere, 0.2)
        assert time.monotonic() - begin >= 0.2
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(connect, anywhere, 10.0)
            with pytest.raises(TimeoutError):
                second.result(0.1)
            listener.sock.accept()[0].close()
            second.result(10.0).close()
        assert first.fileno() >= 0


def test_the_backlog_is_as_long_as_the_system_allows(anywhere: str) -> None:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    wanted = min(most, 300)  # more than the 128 that many programs ask for
    with listen(anywhere) as listener, ExitStack() as stack:
        for _ in range(wanted):
            stack.enter_context(connect(anywhere, 0))
        for _ in range(wanted):
            listener.sock.accept()[0].close()


def test_no_failure_leaves_a_descriptor(address: str, path: Path) -> None:
    path.write_text("")
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    for attempt in (lambda: connect(address), lambda: listen(path), lambda: connect(path)):
        with pytest.raises((ConnectionRefusedError, FileExistsError)):
            attempt()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("where", [5, b"@name", None])
def test_a_client_is_not_told_to_take_a_socket(where: object) -> None:
    with pytest.raises(TypeError, match=r"'@name' or a path \(str or os.PathLike\), not"):
        parse_client_address(where)
