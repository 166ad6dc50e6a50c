# SPDX-License-Identifier: Apache-2.0
"""Worker processes that each have a cache, and change records: every change reaches every worker.

Only one process serves an address, so a worker does not publish. It sends the key of the record
that it has changed to its parent, by a socket that it inherits. The parent publishes the key, and
all workers drop that record from their caches: also the one that changed it.

`python cache_invalidation.py` shows it with forked workers. `gunicorn.conf.py` and
`gunicorn_app.py`, beside this file, are the same for gunicorn.
"""

import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory

import jumiks

ADDRESS = "@jumiks-invalidation"
MOST = 65536
"""Bytes of the longest key."""


class Changes:
    """The parent's part. Make it before the workers are forked.

    A worker that does not keep up misses keys, and is told so. So nobody waits for it.
    """

    def __init__(self, address: str = ADDRESS) -> None:
        self.server = jumiks.Server(address, max_lag=10_000, on_lag="skip", patience=0)
        self.inbox, self._outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._outbox.settimeout(1)  # of a worker, should the parent hang
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    def _publish(self) -> None:
        while key := self.inbox.recv(MOST):  # empty once the other end was shut down
            self.server.publish(key)

    def announce(self, key: bytes) -> None:
        """Tell all workers that a record has changed. A worker calls it, after its commit.

        Raises:
            ValueError: the key is empty or too long, so it could not be told.
            TimeoutError: the parent takes no keys any more.
        """
        if not 0 < len(key) <= MOST:
            raise ValueError(f"a key has 1 to {MOST} bytes, and this one {len(key)}")
        self._outbox.send(key)

    def close(self) -> None:
        """End it, in the parent: what was announced is published first."""
        self._outbox.shutdown(socket.SHUT_WR)
        self._thread.join()
        self.server.close()
        self.inbox.close()
        self._outbox.close()


changes: Changes
"""gunicorn.conf.py sets it in the master, and workers inherit it."""


class Cache:
    """A worker's part: make it in the worker, as what it inherits of jumiks raises `Forked`."""

    def __init__(self, load: Callable[[bytes], bytes], address: str = ADDRESS) -> None:
        self._load = load
        self._entries: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        # Connected before anything is read, so no change in between is missed.
        self._client: jumiks.Client[bytes] | None = jumiks.Client(
            address, on_gap=lambda _: self._entries.clear()
        )

    def get(self, key: bytes) -> bytes:
        """Return a record as it is, or was a moment ago."""
        with self._lock:  # a change that comes while a record is read must not be forgotten
            self._drop_changed()
            if key in self._entries:
                return self._entries[key]
            value = self._load(key)
            if self._client is not None:
                self._entries[key] = value
            return value

    def _drop_changed(self) -> None:
        try:
            while self._client is not None:
                for key in self._client.receive_many(timeout=0):
                    self._entries.pop(key, None)
        except jumiks.Timeout:
            pass  # that was all
        except jumiks.ConnectionEnded:
            # Nobody tells of changes any more: read each record from now on.
            self._entries.clear()
            self.close()

    def close(self) -> None:
        """End it."""
        if self._client is not None:
            self._client.close()
            self._client = None


# ---- the same with forked workers, to be run


def work(number: int, changes: Changes, records: Path, together: Barrier) -> None:
    """Read two records. Then worker 0 changes one of them, and all workers see that."""
    cache = Cache(lambda key: (records / key.decode()).read_bytes())  # in place of a database
    cache.get(b"ann"), cache.get(b"bob")
    together.wait()
    if number == 0:
        (records / "ann").write_bytes(b"married")
        changes.announce(b"ann")
    while cache.get(b"ann") != b"married":
        time.sleep(0.001)  # in place of other requests
    ann, bob = cache.get(b"ann").decode(), cache.get(b"bob").decode()
    sys.stdout.write(f"worker {number}: ann is {ann}, bob {bob}\n")  # print would write twice
    cache.close()


def main() -> None:
    """Fork four workers."""
    workers = get_context("fork")
    together = workers.Barrier(4)
    changes = Changes()
    with TemporaryDirectory() as folder:
        records = Path(folder)
        for name in ("ann", "bob"):
            (records / name).write_bytes(b"single")
        children = [
            workers.Process(target=work, args=(number, changes, records, together))
            for number in range(4)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
    changes.close()


if __name__ == "__main__":
    main()
