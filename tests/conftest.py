# SPDX-License-Identifier: Apache-2.0
"""What all tests share: fresh addresses, and a look at what each test leaves behind.

A test whose servers share their log by default means another thing where they do not. A run with
the log shared notes which tests these are, however they are written; `--not-again` leaves all
others out of the run that follows. A test that is new, or that failed, is never left out, unless
it asks for each delivery by itself.
"""

import gc
import importlib.util
import itertools
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import hypothesis
import pytest
from support import servers
from support.base import (
    DEADLINE,
    GUARDED,
    IS_ROOT,
    NOBODY,
    REFUSES,
    ROOT,
    SHARE_LOG,
    USE_UVLOOP,
    needs,
    possessions,
)
from support.servers import Server, default_taken, defaults
from support.skips import NoSkips
from support.times import Times

from jumiks._options import LOG_SIZE
from jumiks._wire import rights

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

LEAK_DEADLINE = min(DEADLINE, 20.0)
"""Seconds for what is ending already: a thread that was told to, a child that is being reaped."""

COUNTS = ROOT / "build/coverage/python"
"""Where `make coverage` counts lines."""

_numbers = itertools.count(1)


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
    parser.addoption(
        "--processor-time",
        action="store_true",
        help="show which files and tests use most of the processor, their children's time included",
    )


@pytest.fixture(scope="session", autouse=True)
def first_loop() -> None:
    """Run one uvloop, if there is one: it keeps a pipe for the whole process."""
    if importlib.util.find_spec("uvloop"):
        anyio.run(anyio.sleep, 0, backend_options={"use_uvloop": True})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if USE_UVLOOP:
        for item in items:
            item.add_marker(needs("uvloop"))
    again = not config.getoption("--not-again")
    names = set() if again else set(config.cache.get(NOTES, []))
    left_out = {
        item
        for item in items
        if item.nodeid in names
        or (not SHARE_LOG and item.get_closest_marker("only_shared"))
        or not (again or SHARE_LOG or not names_its_delivery(item))
    }
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def names_its_delivery(item: pytest.Item) -> bool:
    """Is it one of a test's tries of each delivery, which a run with the log shared has all of?"""
    return "delivery" in getattr(getattr(item, "callspec", None), "params", {})


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
    if os.environ.get("CI", "") not in ("", "0", "false"):
        config.pluginmanager.register(NoSkips())
    if config.getoption("--processor-time"):
        config.pluginmanager.register(Times())
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
    default_taken[0] = bool(defaults)
    before = possessions()
    yield
    if not default_taken[0]:
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
def server(address: str) -> Iterator[Server]:
    """Return a server with all defaults."""
    with Server(address) as server:
        yield server


@pytest.fixture
def large_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give servers the log that they have for users, where a test makes use of its size."""
    monkeypatch.setattr(servers, "LOG_SIZE", LOG_SIZE)


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
    if "coverage" in sys.modules:  # it writes down what the test ran, as that user
        COUNTS.chmod(0o777)
        for file in COUNTS.glob("data.*"):
            with suppress(FileNotFoundError):  # another process is through with its own
                file.chmod(0o666)
    os.seteuid(NOBODY)
    try:
        yield NOBODY
    finally:
        os.seteuid(0)


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
