# SPDX-License-Identifier: Apache-2.0
"""The programs of docs/recipes.md; those in examples/ are in test_examples.py."""

import asyncio
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import enumerate as enumerate_threads
from types import SimpleNamespace
from typing import Any

import pytest
from support.base import DEADLINE, ROOT, needs, wait_until
from support.servers import Server

from jumiks import Client

with suppress(ImportError):
    import numpy as np

PAGE = (ROOT / "docs/recipes.md").read_text("utf-8")
GUNICORN, APPLICATION, WEBSOCKET, IMAGES, TYPED = re.findall(
    r"```python\n(.*?)```", PAGE, re.DOTALL
)


class Browser:
    """A websocket that leaves when it has got enough, or when it is told to."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.left = asyncio.Event()
        self.closed = 0

    async def send_bytes(self, message: bytes) -> None:
        self.got.append(message)

    async def close(self, code: int, _reason: str) -> None:
        self.closed = code

    async def receive(self) -> dict[str, str]:
        await self.left.wait()
        return {"type": "websocket.disconnect"}


@pytest.mark.no_core
@pytest.mark.parametrize("slow", [False, True])
def test_a_websocket_ends_when_its_browser_leaves_or_is_too_slow(slow: bool) -> None:
    found: dict[str, Any] = {}
    exec(WEBSOCKET, found)

    async def main() -> None:
        browser, queue = Browser(), asyncio.Queue[bytes | None]()
        queue.put_nowait(b"one")
        task = asyncio.create_task(found["feed"](browser, queue))
        while not browser.got:
            await asyncio.sleep(0)
        queue.put_nowait(None) if slow else browser.left.set()
        await asyncio.wait_for(task, DEADLINE)
        assert (browser.got, browser.closed) == ([b"one"], 1013 if slow else 0)

    asyncio.run(main())


def test_what_goes_where_in_gunicorn_tells_a_worker_of_a_change(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    shared = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "shared", shared)
    exec(GUNICORN.replace("@changes", address), found)
    exec(APPLICATION, found)
    arbiter = SimpleNamespace()
    found["on_starting"](arbiter)
    with arbiter.changes:
        found["post_fork"](arbiter, None)
        with shared.changed:
            for key in (b"", bytes(65537)):  # the first would end the publisher's thread
                with pytest.raises(ValueError, match=f"this one {len(key)}"):
                    shared.announce(key)
            shared.announce(b"ann")
            assert shared.changed.receive(DEADLINE) == b"ann"
            check_cache(found["get"], arbiter.changes, shared)
        with arbiter.outbox:
            arbiter.outbox.shutdown(socket.SHUT_WR)
            wait_until(lambda: not any("(publish)" in each.name for each in enumerate_threads()))


def check_cache(get: Any, server: Server, shared: Any) -> None:
    """What a change, a gap, other threads and the server's end do to the application's part."""
    loads: list[bytes] = []

    def load(key: bytes) -> int:
        loads.append(key)
        return len(loads)

    assert [get(b"ann", load), get(b"ann", load)] == [1, 1]
    server.publish(b"ann")
    assert get(b"ann", load) == 2
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: get(b"ann", load), range(400))) == {2}
    while not server.stats().skipped:
        server.publish_many([b"another"] * 1000)
    wait_until(lambda: get(b"ann", load) == 3)
    assert shared.changed.missed
    server.close(linger=0)
    assert [get(b"ann", load), get(b"ann", load)] == [4, 5]


@needs("msgspec")
def test_typed_messages_come_back_as_what_they_were(address: str) -> None:
    program = TYPED.replace("@recipe", address)
    words = [sys.executable, "-W", "error", "-c", program]
    assert subprocess.check_output(words, text=True, timeout=DEADLINE).splitlines() == [
        "Quote(time=1, symbol='ACME', bid=100.25, ask=100.5)",
        "Quote(time=2, symbol='HOOLI', bid=7.5, ask=8.0)",
    ]


@needs("numpy")
@pytest.mark.usefixtures("large_log")
def test_images_of_one_shape_are_one_array(address: str) -> None:
    images = np.arange(3, dtype=np.uint8).repeat(480 * 640 * 3).reshape(3, 480, 640, 3)
    program = IMAGES.replace("    del images", "    found.append(images.copy())\n    del images")
    found: list[np.ndarray] = []
    with Server(address) as server, Client(address) as client:
        server.publish_many(images)
        while sum(map(len, found)) < len(images):
            exec(program, {"np": np, "client": client, "found": found})
    assert np.array_equal(np.concatenate(found), images)
