# SPDX-License-Identifier: Apache-2.0
"""A service of systemd that publishes the time each second; examples/systemd has units like it.

systemd-socket-activate --seqpacket -l @time python examples/supervised.py
"""

import signal
import sys
import threading
import time

import jumiks
from jumiks import systemd


def main(pause: float) -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    with jumiks.Server(systemd.listen_socket(), max_lag=60, on_lag="skip") as server:
        systemd.notify("READY=1")
        while not over.wait(pause):
            server.publish(time.ctime().encode())
            systemd.notify(f"STATUS={len(server.clients)} clients")
        systemd.notify("STOPPING=1")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
