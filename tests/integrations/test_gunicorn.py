# SPDX-License-Identifier: Apache-2.0
"""The example for gunicorn: every worker sees what any worker has changed, over reloads as well."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from socket import AF_UNIX, socket

import pytest
from support.base import DEADLINE, ROOT, accepts, needs, wait_until

pytestmark = [needs("gunicorn"), pytest.mark.slow]

EXAMPLES = ("cache_invalidation.py", "gunicorn.conf.py", "gunicorn_app.py")
WORKERS = 3


class Site:
    """The web site that gunicorn serves."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, method: str, key: str, body: str | None = None) -> tuple[str, str]:
        """Return what a worker answers, and which one that was."""
        connection = HTTPConnection("here", timeout=DEADLINE)
        connection.sock = socket(AF_UNIX)
        try:
            connection.sock.connect(os.fspath(self._path))
            connection.request(method, f"/{key}", body)
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text
            return text, answer.headers["Worker"]
        finally:
            connection.close()

    def answers(self, key: str) -> dict[str, str]:
        """What each worker answers last."""
        found: dict[str, str] = {}
        for _ in range(20 * WORKERS):
            text, worker = self.ask("GET", key)
            found[worker] = text
        return found

    def all_say(self, key: str, value: str) -> bool:
        found = self.answers(key)
        return len(found) == WORKERS and set(found.values()) == {value}


@contextmanager
def gunicorn(
    folder: Path, address: str, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], Site]]:
    for name in EXAMPLES:
        text = (ROOT / "examples" / name).read_text()
        (folder / name).write_text(text.replace("@jumiks-invalidation", address))
    records = folder / "records"
    records.mkdir()
    path = folder / "s"
    words = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{path}", "--log-level", "warning"]
    words += options
    environment = {**os.environ, "RECORDS": os.fspath(records)}
    with subprocess.Popen(words, cwd=folder, env=environment) as process:
        try:
            wait_until(lambda: accepts(path) or process.poll() is not None)
            yield process, Site(path)
        finally:
            process.terminate()
            process.wait(DEADLINE)


def test_every_worker_sees_a_change_of_any_worker_over_reloads(address: str, path: Path) -> None:
    with gunicorn(path.parent, address) as (process, site):
        site.ask("PUT", "ann", "0")
        wait_until(lambda: site.all_say("ann", "0"))
        before = set(site.answers("ann"))
        changers = set()
        for number in range(1, 7):
            changers.add(site.ask("PUT", "ann", str(number))[1])
            wait_until(lambda n=number: site.all_say("ann", str(n)))  # type: ignore[misc]
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: not before & set(site.answers("ann")))
        wait_until(lambda: site.all_say("ann", "6"))
        for number in range(7, 10):
            changers.add(site.ask("PUT", "ann", str(number))[1])
            wait_until(lambda n=number: site.all_say("ann", str(n)))  # type: ignore[misc]
        assert changers - before  # a worker that came with the reload has changed it
    assert process.returncode == 0


def test_threads_of_a_worker_share_a_cache(address: str, path: Path) -> None:
    with gunicorn(path.parent, address, "-k", "gthread", "--threads", "4") as (_, site):
        for value in ("0", "1"):
            site.ask("PUT", "ann", value)
            wait_until(lambda v=value: site.all_say("ann", v))  # type: ignore[misc]
            with ThreadPoolExecutor(4 * WORKERS) as threads:
                asked = [threads.submit(site.ask, "GET", "ann") for _ in range(300)]
            assert {each.result()[0] for each in asked} == {value}


def test_a_worker_that_is_killed_is_followed_by_one_that_sees_changes(
    address: str, path: Path
) -> None:
    with gunicorn(path.parent, address) as (_, site):
        site.ask("PUT", "ann", "0")
        wait_until(lambda: site.all_say("ann", "0"))
        victim = site.ask("GET", "ann")[1]
        os.kill(int(victim), signal.SIGKILL)
        wait_until(lambda: victim not in (found := site.answers("ann")) and len(found) == WORKERS)
        site.ask("PUT", "ann", "1")
        wait_until(lambda: site.all_say("ann", "1"))
