# SPDX-License-Identifier: Apache-2.0
"""A systemd service that publishes the time each second; examples/systemd has similar units.

systemd-socket-activate --seqpacket -l @time python examples/supervised.py
"""

import signal
import sys
import time

import jumiks
from jumiks import systemd

STOP = {signal.SIGTERM}


def main(pause: float) -> None:
    # `sigtimedwait` takes the signal while the loop waits, so no handler interrupts a publish.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    with jumiks.Server(systemd.listen_socket(), max_lag=60, on_lag="skip", patience=0) as server:
        systemd.notify("READY=1")
        while signal.sigtimedwait(STOP, pause) is None:
            server.publish(time.ctime().encode())
            systemd.notify(f"STATUS={len(server.clients())} clients")
        systemd.notify("STOPPING=1")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
