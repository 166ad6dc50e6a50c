# SPDX-License-Identifier: Apache-2.0
"""A server's memory and its cost of publishing as clients come: prints both as JSON.

    python -m bench.idle PATH CLIENTS...

The clients are bare connections in another process, which answer the hello as a framed client
does, and only take what came for them when they are told to. Growth is that of the server's
proportional set size (proc_pid_smaps(5)) from the first number of clients on, so that what any
first client needs is not counted. The cost of publishing is CPU time of the server, for `BATCHES`
batches of `BATCH` messages, each batch a packet a client.
"""

import gc
import json
import resource
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import jumiks

BATCH = 100
BATCHES = 16
"""As many as a socket takes that nobody reads."""

REPEATS = 3
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


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(path)
    sock.recv(4096)
    sock.send(struct.pack("<HHHHQII", 1, 0, 0, 1, 0, 0, 0))
    if sock.recv(4096)[:2] != bytes(2):
        raise RuntimeError("refused")
    sock.setblocking(False)
    return sock


def be_clients(path: str) -> None:
    """Each line of the input says how many more are to connect; all take what has come then."""
    raise_descriptor_limit()
    connections: list[socket.socket] = []
    for line in sys.stdin:
        connections += [connect(path) for _ in range(int(line))]
        for sock in connections:
            with suppress(BlockingIOError):
                while sock.recv(1 << 18):
                    pass
        print("done", flush=True)


class Clients:
    """The other process."""

    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.idle", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def more(self, count: int) -> None:
        """That many more connect, and all take what has come."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(count, file=self.process.stdin, flush=True)
        if not self.process.stdout.readline():
            raise RuntimeError("the clients' process ended early")

    def close(self) -> None:
        self.process.communicate()


def publish(server: jumiks.Server) -> None:
    for _ in range(BATCHES):
        server.publish_many([bytes(64)] * BATCH)
    deadline = time.monotonic() + TIMEOUT
    while any(client.queued for client in server.clients()):
        if time.monotonic() > deadline:
            raise RuntimeError("the clients' sockets are full")
        time.sleep(0.02)


def cost(server: jumiks.Server, clients: Clients, count: int) -> float:
    """CPU time for one batch and client, us: the least of a few times."""
    found = []
    for _ in range(REPEATS):
        cpu = time.process_time()
        publish(server)
        found.append((time.process_time() - cpu) * 1e6 / (BATCHES * count))
        clients.more(0)
    return min(found)


def main(path: str, counts: list[int]) -> None:
    raise_descriptor_limit()
    with jumiks.Server(path, max_clients=max(counts)) as server:
        clients = Clients(path)
        before, memory, figures = 0, 0, {}
        for count in counts:
            clients.more(count - before)
            server.wait_for_clients(count, TIMEOUT)
            publishing = cost(server, clients, count)
            now = own_memory()
            figures[count] = {"publish": publishing, "bytes itself": float(now)}
            if before:
                figures[count]["bytes per client"] = (now - memory) / (count - before)
            before, memory = count, now
        print(json.dumps(list(figures.items())), flush=True)
        clients.close()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        be_clients(sys.argv[1])
    else:
        main(sys.argv[1], [int(word) for word in sys.argv[2:]])
