# SPDX-License-Identifier: Apache-2.0
"""Tail a log file once, for any number of readers.

python examples/log_tail.py FILE @ADDRESS

A reader that comes late can begin with the lines that the server still has
(`jumiks listen @ADDRESS --from oldest`). A reader that is too slow misses lines, and is told which.
"""

import sys
import time

import jumiks


def follow(path: str, address: str) -> None:
    # With the usual patience: while it waits a second for readers, the file keeps what comes.
    with open(path, "rb") as file, jumiks.Server(address, max_lag=10_000, on_lag="skip") as server:
        rest = b""
        while True:
            chunk = file.read(1 << 16)
            if not chunk:
                time.sleep(0.1)
                continue
            *lines, rest = (rest + chunk).split(b"\n")
            server.publish_many(lines)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        follow(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
