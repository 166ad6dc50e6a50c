# SPDX-License-Identifier: Apache-2.0
"""What all tests share: how this run is set up, waiting, and what a process holds."""

import importlib.util
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jumiks import Delivery

ROOT = Path(__file__).parent.parent.parent
"""The project's folder."""

DEADLINE = float(os.environ.get("JUMIKS_TEST_DEADLINE", "30"))
"""Seconds in which whatever a test waits for has happened, on a busy machine too."""

SHARE_LOG = os.environ.get("JUMIKS_TEST_SHARE_LOG", "1") != "0"
"""Whether servers share their log by default, as for users; `make test-packets` has them not."""

BEST = "shared" if SHARE_LOG else "framed"
"""A client's best delivery then, unless a test says otherwise."""

DELIVERIES: tuple[Delivery, ...] = ("shared", "framed", "classic")
"""All that a client may ask for."""

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

REFUSES, GUARDED = "refuses descriptors", "does not"
"""Kernels that a test of descriptors is run on: see the fixture `kernel`."""

NOBODY = 65533
"""The user without rights that root becomes in a test, and nobody else is."""


def may_be_others() -> bool:
    """Whether we are a root that can become other users: in a user namespace it may be alone."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    known = any(0 <= NOBODY + 1 - int(first) < int(count) for first, _, count in ranges)
    return os.geteuid() == 0 and known


IS_ROOT = may_be_others()


def accepts(path: Path) -> bool:
    """Does a stream server listen there? The file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(os.fspath(path)) == 0


def wait_until(condition: Callable[[], object], timeout: float = DEADLINE) -> None:
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
