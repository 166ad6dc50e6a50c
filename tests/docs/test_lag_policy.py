# SPDX-License-Identifier: Apache-2.0
"""What docs/lag-policy.md says a server costs."""

import gc
import os
import re

from support.base import ROOT, descriptors, threads, wait_until
from support.servers import Server

from jumiks import Client

PAGE = (ROOT / "docs/lag-policy.md").read_text("utf-8")


def costs(what: str) -> tuple[int, int]:
    """The first number of each column of the table of costs."""
    row = re.search(rf"^\| {what}[^|]* \| (\d+)[^|]* \| (\d+)", PAGE, re.MULTILINE)
    assert row is not None
    return int(row[1]), int(row[2])


def held() -> tuple[int, int]:
    """How many threads and descriptors this process has, once that does not change any more."""
    seen: list[tuple[int, int]] = []

    def is_still() -> bool:
        seen.append((len(threads()), len(descriptors())))
        return len(seen) > 2 and len(set(seen[-3:])) == 1

    wait_until(is_still)
    return seen[-1]


def test_a_server_takes_the_threads_and_descriptors_that_the_page_says() -> None:
    gc.collect()  # what earlier tests left
    with Server(f"@jumiks-cost-{os.getpid()}-0", log_size=1 << 16):  # what is made once is there
        none = held()
        with Server(f"@jumiks-cost-{os.getpid()}-1", log_size=1 << 16) as server:
            one = held()
            with Client(server.address):
                both = held()  # our process has the client's end too
    (threads_of_server, of_client), (fds, fds_of_client) = costs("threads"), costs("descriptors")
    assert (one[0] - none[0], both[0] - one[0]) == (threads_of_server, of_client)
    assert one[1] - none[1] <= fds
    assert both[1] - one[1] == fds_of_client + 1
