# SPDX-License-Identifier: Apache-2.0
"""Forked workers that each have a cache: the parent tells them all which records have changed.

The parent serves and forks. A worker makes its client after the fork, because objects that it
inherits belong to the parent and raise `Forked`. A worker that missed messages empties its whole
cache, because it cannot know which keys they named.
"""

import os
import sys

import jumiks

ADDRESS = "@jumiks-invalidation"
WORKERS = 4


class Cache:
    """A worker's cache, and a client that receives the keys of changed records."""

    def __init__(self) -> None:
        self.entries = {b"user:%d" % number: b"a record" for number in range(10)}
        self.client = jumiks.Client(ADDRESS, on_gap=lambda _: self.entries.clear())

    def refresh(self, timeout: float | None = 0) -> None:
        """Drop changed records. By default it never waits: call it before each web request."""
        try:
            while True:
                for key in self.client.receive_many(timeout):
                    self.entries.pop(key, None)
        except jumiks.Timeout:
            pass


def work(number: int) -> None:
    cache = Cache()
    try:
        cache.refresh(timeout=None)  # this example waits until the server closes
    except jumiks.ServerClosed:
        sys.stdout.write(f"worker {number} still has {len(cache.entries)} entries\n")
        sys.stdout.flush()
    finally:
        cache.client.close()


def main() -> None:
    with jumiks.Server(ADDRESS, max_lag=1000, on_lag="skip") as server:
        children = []
        for number in range(WORKERS):
            child = os.fork()
            if child == 0:
                work(number)
                os._exit(0)
            children.append(child)
        server.wait_for_clients(WORKERS, timeout=30)
        server.publish(b"user:3")
        server.publish(b"user:7")
        server.drain(timeout=10)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
    sys.exit()
