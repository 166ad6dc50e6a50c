# SPDX-License-Identifier: Apache-2.0
"""The server's memory as clients come: prints the growth a client as JSON.

    python -m bench.idle PATH CLIENTS

The clients are bare connections in another process, which answer the hello as a framed client
does. Growth is that of the server's proportional set size (proc_pid_smaps(5)) from `WARM` clients
on, so that what any first client needs is not counted. Each client has been sent `SENT` messages by
then, which stay unread in its socket: that is the kernel's memory, and bounded by SO_SNDBUF.
"""

import gc
import json
import resource
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import jumiks

WARM = 10
SENT = 100
TIMEOUT = 30.0


def own_memory() -> int:
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss in smaps_rollup")


def raise_descriptor_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connect(path: str) -> None:
    """Make as many connections as each line of the input says, and keep them until it ends."""
    raise_descriptor_limit()
    connections = []
    for line in sys.stdin:
        for _ in range(int(line)):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(path)
            sock.recv(4096)
            sock.send(struct.pack("<HHHHQII", 1, 0, 0, 1, 0, 0, 0))
            if sock.recv(4096)[:2] != bytes(2):
                raise RuntimeError("refused")
            connections.append(sock)


def main(path: str, clients: int) -> None:
    raise_descriptor_limit()
    with (
        jumiks.Server(path, max_clients=clients) as server,
        subprocess.Popen(
            [sys.executable, "-m", "bench.idle", path], stdin=subprocess.PIPE, text=True
        ) as other,
    ):
        assert other.stdin is not None

        def more(count: int, total: int) -> int:
            assert other.stdin is not None
            print(count, file=other.stdin, flush=True)
            server.wait_for_clients(total, TIMEOUT)
            server.publish_many([bytes(64)] * SENT)
            while any(client.queued for client in server.clients):
                time.sleep(0.01)
            return own_memory()

        before = more(WARM, WARM)
        after = more(clients - WARM, clients)
        growth = (after - before) / (clients - WARM)
        print(json.dumps({"bytes a client": growth, "bytes itself": before}), flush=True)
        other.stdin.close()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        connect(sys.argv[1])
    else:
        main(sys.argv[1], int(sys.argv[2]))
