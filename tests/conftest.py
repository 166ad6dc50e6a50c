# SPDX-License-Identifier: Apache-2.0
"""What all tests share: fresh addresses, and a look at what each test leaves behind."""

import gc
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jumiks import AsyncServer, Server

SHARE_LOG = os.environ.get("JUMIKS_TEST_SHARE_LOG", "1") != "0"
"""Whether servers share their log by default, as they do for users; `make test` tries both."""

MODE = "shared" if SHARE_LOG else "framed"
"""What a client of ours is then, unless a test says otherwise."""

if not SHARE_LOG:
    for initializer in (Server.__init__, AsyncServer.__init__):
        assert initializer.__kwdefaults__ is not None
        initializer.__kwdefaults__["share_log"] = False

LEAK_DEADLINE = 5.0
"""Seconds for what is ending already: a thread that was told to, a child that is being reaped."""

NOBODY = 65534
"""The user without rights that root becomes in a test, and nobody else is."""

_numbers = itertools.count(1)


def wait_until(condition: Callable[[], object], timeout: float = 10.0) -> None:
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
    found = set()
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


@pytest.fixture(scope="session", autouse=True)
def first_thread() -> None:
    """Start one thread: a sanitizer's runtime adds one of its own to the first, and keeps it."""
    first = threading.Thread(target=int)
    first.start()
    first.join()


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a descriptor, thread, child process or mapping of a log behind."""
    before = possessions()
    yield
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
    os.seteuid(NOBODY)
    try:
        yield NOBODY
    finally:
        os.seteuid(0)
