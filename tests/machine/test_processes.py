# SPDX-License-Identifier: Apache-2.0
"""Other processes, however they are started: each makes its own client or server."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support.servers import Server

from jumiks import Client

CHILDREN = """
import multiprocessing, sys
import jumiks

def read(address, results):
    with jumiks.Client(address, start="oldest") as client:
        results.put([client.receive(10) for _ in range(3)])

def serve(address, there, over):
    with jumiks.Server(address) as server:
        there.set()
        server.wait_for_clients(1, 10)
        server.publish(b"from the child")
        over.wait(10)

if __name__ == "__main__":
    method, address = sys.argv[1:]
    context = multiprocessing.get_context(method)
    with jumiks.Server(address) as server:
        server.publish_many([b"one", b"two", b"three"])
        results = context.Queue()
        children = [context.Process(target=read, args=(address, results)) for _ in range(3)]
        for child in children:
            child.start()
        for _ in children:
            assert results.get(timeout=20) == [b"one", b"two", b"three"]
        for child in children:
            child.join()
            assert child.exitcode == 0
    there, over = context.Event(), context.Event()
    child = context.Process(target=serve, args=(address, there, over))
    child.start()
    assert there.wait(20)
    with jumiks.Client(address) as client:
        assert client.receive(10) == b"from the child"
        over.set()
    child.join()
    print("fine")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_every_kind_publish_and_receive(
    address: str, method: str, tmp_path: Path
) -> None:
    # A file, as spawn and forkserver import it again in the child.
    file = tmp_path / "children.py"
    file.write_text(CHILDREN)
    command = [sys.executable, str(file), method, address]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert done.stdout == "fine\n"


def test_neither_can_be_sent_to_another_process(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        with pytest.raises(TypeError, match="a Server stays in its process"):
            pickle.dumps(server)
        with pytest.raises(TypeError, match="a Client stays in its process"):
            pickle.dumps(client)
