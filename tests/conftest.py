# SPDX-License-Identifier: Apache-2.0
"""What all tests share: fresh addresses, and a look at what each test leaves behind.

A test whose servers share their log by default means another thing where they do not. A run with
the log shared notes which tests these are, however they are written; `--not-again` leaves all
others out of the run that follows. A test that is new, or that failed, is never left out.
"""

import functools
import gc
import importlib.util
import itertools
import mmap
import os
import signal
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from jumiks import AsyncServer, Server
from jumiks._wire import rights

SHARE_LOG = os.environ.get("JUMIKS_TEST_SHARE_LOG", "1") != "0"
"""Whether servers share their log by default, as they do for users; `make test` tries both."""

MODE = "shared" if SHARE_LOG else "framed"
"""What a client of ours is then, unless a test says otherwise."""

USE_UVLOOP = os.environ.get("JUMIKS_TEST_UVLOOP", "0") != "0"

ASYNCIO: dict[str, Any] = {"backend": "asyncio", "backend_options": {"use_uvloop": USE_UVLOOP}}
"""For `anyio.run`: asyncio's own loop, or uvloop in its place as `make test-uvloop` has it."""


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test where a package that it tries is not installed."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


LOOPS = (
    pytest.param(ASYNCIO, id="asyncio"),
    pytest.param(
        {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
        id="uvloop",
        marks=needs("uvloop"),
    ),
    pytest.param({"backend": "trio"}, id="trio", marks=needs("trio")),
)
"""Also for `anyio.run`: the event loops that are tried."""

_meant = mmap.mmap(-1, 1)
"""Not zero once the default was taken, here or in a forked child: memory that they share."""

_servers: weakref.WeakSet[Server | AsyncServer] = weakref.WeakSet()
"""All that took the default and are still there."""


def _note(initialize: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(initialize)
    def noted(self: Any, *args: Any, **options: Any) -> None:
        if "share_log" not in options:
            _meant[0] = 1
            _servers.add(self)
            options["share_log"] = SHARE_LOG
        initialize(self, *args, **options)

    return noted


for kind in (Server, AsyncServer):
    kind.__init__ = _note(kind.__init__)  # type: ignore[method-assign]


def preamble() -> str:
    """What a script begins with, so that its servers share their log as ours do."""
    _meant[0] = 1
    return (
        "import jumiks\n"
        "for kind in jumiks.Server, jumiks.AsyncServer:\n"
        f"    kind.__init__.__kwdefaults__['share_log'] = {SHARE_LOG}\n"
    )


hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

LEAK_DEADLINE = 20.0
"""Seconds for what is ending already: a thread that was told to, a child that is being reaped."""

NOBODY = 65533
"""The user without rights that root becomes in a test, and nobody else is."""


def may_be_others() -> bool:
    """Whether we are a root that can become other users: in a user namespace it may be alone."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    known = any(0 <= NOBODY + 1 - int(first) < int(count) for first, _, count in ranges)
    return os.geteuid() == 0 and known


IS_ROOT = may_be_others()

_numbers = itertools.count(1)


def wait_until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Wait until a condition holds; fail the test if it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {condition}")
        pause.wait(0.002)


def descriptors() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        # The one that listed the directory is closed by now.
        try:
            found.add(f"descriptor {number} -> {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:
            continue
    return found


def threads() -> set[str]:
    found = set()
    for task in os.listdir("/proc/self/task"):
        try:
            name = Path(f"/proc/self/task/{task}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if not name.startswith("Trio thread"):  # those that trio keeps for the next one who asks
            found.add(f"thread {task} ({name})")
    return found


def children() -> set[str]:
    found: set[str] = set()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return found  # none at all, which is quickly told
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        # The name stands in brackets, and may have blanks and brackets of its own.
        name, _, rest = stat.partition("(")[2].rpartition(")")
        if int(rest.split()[1]) == os.getpid():
            found.add(f"child {entry} ({name})")
    return found


def log_mappings() -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {f"mapping {line}" for line in lines if "memfd:jumiks" in line}


def possessions() -> set[str]:
    return descriptors() | threads() | children() | log_mappings()


NOT_SO = "means the same with packets"
"""What a test is noted as that no server's default had a part in."""

NOTES = "jumiks/the-same-with-packets"
"""Where pytest's cache has their names."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--not-again",
        action="store_true",
        help="leave out what passed with the log shared and means the same without",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if USE_UVLOOP:
        for item in items:
            item.add_marker(needs("uvloop"))
    if not config.getoption("--not-again"):
        return
    names = set(config.cache.get(NOTES, []))
    again = [item for item in items if item.nodeid not in names]
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in names])
    items[:] = again


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # A few tests that were asked for may all be the same.
    if session.config.getoption("--not-again") and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


def pytest_collection_finish() -> None:
    # Each test ends with a look for garbage, and what was imported is none.
    gc.collect()
    gc.freeze()


class Notes:
    """Writes down, where all tests come together, which of them were noted."""

    def __init__(self, cache: pytest.Cache) -> None:
        self.cache = cache
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown" and report.passed and (NOT_SO, True) in report.user_properties:
            self.names.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.cache.set(NOTES, self.names)


def pytest_configure(config: pytest.Config) -> None:
    # A shell has what it starts in the background ignore these, and children inherit that.
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
    is_worker = hasattr(config, "workerinput")
    if SHARE_LOG and not is_worker and config.pluginmanager.has_plugin("cacheprovider"):
        config.pluginmanager.register(Notes(config.cache))


@pytest.fixture(scope="session", autouse=True)
def first_thread() -> None:
    """Start one thread: a sanitizer's runtime adds one of its own to the first, and keeps it."""
    first = threading.Thread(target=int)
    first.start()
    first.join()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a descriptor, thread, child process or mapping of a log behind."""
    _meant[0] = bool(_servers)
    before = possessions()
    yield
    if not _meant[0]:
        request.node.user_properties.append((NOT_SO, True))
    gc.collect()
    deadline = time.monotonic() + LEAK_DEADLINE
    pause = threading.Event()
    while left := possessions() - before:
        if time.monotonic() > deadline:
            pytest.fail("left behind:\n  " + "\n  ".join(sorted(left)))
        pause.wait(0.005)
        gc.collect()


@pytest.fixture
def address() -> str:
    """Return an abstract address that nobody has."""
    return f"@jumiks-test-{os.getpid()}-{next(_numbers)}-{os.urandom(4).hex()}"


@pytest.fixture
def path() -> Iterator[Path]:
    """Return a path for a socket in a directory of its own, short enough for the kernel."""
    with tempfile.TemporaryDirectory(prefix="jmk-") as folder:
        yield Path(folder) / "socket"


@pytest.fixture
def unprivileged() -> Iterator[int]:
    """Run the test as a user whom file permissions bind; returns its id."""
    if os.geteuid() != 0:
        yield os.geteuid()
        return
    if not IS_ROOT:
        pytest.skip("this root cannot become another user")
    os.seteuid(NOBODY)
    try:
        yield NOBODY
    finally:
        os.seteuid(0)


REFUSES, GUARDED = "refuses descriptors", "does not"


@pytest.fixture(params=[REFUSES, GUARDED])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test where the kernel refuses descriptors at the sender (Linux 6.16), and without."""
    kind: str = request.param
    if kind == GUARDED:
        monkeypatch.setattr(rights, "SO_PASSRIGHTS", 9999)  # an option that no kernel knows
        return kind
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        if not rights.refuse(sock):
            pytest.skip("this kernel cannot refuse descriptors")
    return kind
