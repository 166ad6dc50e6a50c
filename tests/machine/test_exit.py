# SPDX-License-Identifier: Apache-2.0
"""The end of a program that left things open: it waits for no thread, on any Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.base import DEADLINE, wait_until
from support.servers import preamble

from jumiks import Client, ConnectionEnded

# Python's threads stand still once it ends, and who joins one then waits for ever. (From 3.13 on;
# before that it depends on where they stood, so each test has a join count as a fault.) It is
# executed apart, or it would keep the script's own names alive.
WATCH = """
import os, sys, threading
join = threading.Thread.join
def watched(self, timeout=None):
    if sys.is_finalizing():
        print(f"it joins {self.name}", file=sys.stderr, flush=True)
        os._exit(7)
    join(self, timeout)
threading.Thread.join = watched
"""
WATCHED = f"import sys, threading\nexec({WATCH!r}, {{}})\n"


def end_of(script: str, *arguments: object, before: str = WATCHED) -> str:
    """Run a script to its end; what it said on stderr."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", before + preamble() + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


LEFT_OPEN = {
    "a server": "s = Server(a)",
    "both ends": "s = Server(a); c = jumiks.Client(a); s.publish(b'x'); c.receive()",
    "a monitor": "s = Server(a); m = jumiks.Monitor(a); m.status()",
    "a reservation": "s = Server(a); r = s.reserve(8); v = r.__enter__()",
    "views": "s = Server(a); c = jumiks.Client(a); s.publish(b'x')\n"
    "b = c.receive_many(); v = b.views()",
    "a server in a generator": "def g():\n    with Server(a) as s:\n        yield s\n"
    "x = g(); next(x)",
    "a server that its owner closes at the very end": "class Owner:\n"
    "    def __init__(self): self.server = Server(a)\n"
    "    def __del__(self): self.server.close()\n"
    "o = Owner()",
    "a publisher that waits": "s = Server(a, max_lag=1, on_lag='block')\n"
    "c = jumiks.Client(a); s.publish(b'x')\n"
    "threading.Thread(target=s.publish, args=(b'y',), daemon=True).start()\n"
    "while not s.stats().waits: pass",
    "a client that receives": "s = Server(a); c = jumiks.Client(a)\n"
    "threading.Thread(target=c.receive, daemon=True).start()",
    "a client on its way back": "s = Server(a); c = jumiks.Client(a, reconnect=True)\n"
    "threading.Thread(target=c.receive, daemon=True).start(); s.close()\n"
    "while c._stream.way is None: pass",
    "a callback that never returns": "came, never = threading.Event(), threading.Event()\n"
    "s = Server(a, on_connect=lambda info: (came.set(), never.wait()))\n"
    "c = jumiks.Client(a); came.wait()",
    "an event loop's": "import asyncio\n"
    "async def main():\n"
    "    global s, c\n"
    "    s = await AsyncServer(a); c = await jumiks.AsyncClient(a)\n"
    "asyncio.run(main())",
}


@pytest.mark.parametrize("what", LEFT_OPEN)
def test_exit_waits_for_no_thread_whatever_is_open(address: str, what: str) -> None:
    end_of(f"a = sys.argv[1]\n{LEFT_OPEN[what]}", address)


def test_exit_takes_no_lock_that_a_thread_may_hold(address: str) -> None:
    script = '''
server = Server(sys.argv[1])
client = jumiks.Client(sys.argv[1])
held, never = threading.Event(), threading.Event()
names = {}  # of its own: the thread's frame would keep the script's alive
exec("""
def hold(lock, held, never):
    with lock:
        held.set()
        never.wait()
""", names)
threading.Thread(target=names["hold"], args=(client._stream.lock, held, never), daemon=True).start()
held.wait()
'''
    end_of(script, address)


def test_exit_does_not_wait_for_what_an_event_loop_left_in_a_thread() -> None:
    script = """
import asyncio
from jumiks._loops import current
began, never = threading.Event(), threading.Event()
def wait():
    began.set()
    never.wait()
async def main():
    task = asyncio.ensure_future(current().in_thread(wait))
    while not began.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
asyncio.run(main())
"""
    end_of(script, before="import threading\n")


def test_what_is_open_at_exit_is_warned_of(address: str) -> None:
    said = end_of("server = Server(sys.argv[1])\n", address)
    assert f"ResourceWarning: <jumiks.Server {address} (0 clients)> was not closed" in said


def test_a_server_that_is_open_at_exit_leaves_no_file(path: Path) -> None:
    end_of("server = Server(sys.argv[1])\n", path)
    assert os.listdir(path.parent) == []


def test_clients_of_a_server_that_is_open_at_exit_are_not_left_waiting(address: str) -> None:
    script = "server = Server(sys.argv[1]); server.wait_for_clients(1); server.publish(b'x')"
    command = [sys.executable, "-c", preamble() + f"import sys\n{script}\n", address]
    with subprocess.Popen(command) as process:
        found: list[Client] = []

        def connected() -> bool:
            try:
                found.append(Client(address, start="oldest"))
            except ConnectionRefusedError:
                return False
            return True

        wait_until(connected)
        with found[0] as client:
            assert client.receive(DEADLINE) == b"x"
            with pytest.raises(ConnectionEnded):
                client.receive(DEADLINE)
        assert process.wait(DEADLINE) == 0


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="Python 3.11 ends no subinterpreter that has a thread"
)
def test_a_subinterpreter_may_end_with_a_server_open(address: str) -> None:
    script = f"""{preamble()}
server, client = Server({address!r}), jumiks.Client({address!r})
server.publish(b"x")
assert client.receive() == b"x"
"""
    assert "was not closed" in end_of(f"{in_interpreter(script)}\ni.destroy(n)\n", before="")


LEFT = ["imported", "server closed"]
if sys.version_info >= (3, 13):
    LEFT.append(
        "server open"
    )  # 3.12 ends a subinterpreter that has other threads with a fatal error


@pytest.mark.parametrize("what", LEFT)
def test_a_subinterpreter_may_be_left_to_the_end_of_the_process(address: str, what: str) -> None:
    script = preamble()
    if what != "imported":
        script += f"\nserver = Server({address!r}); client = jumiks.Client({address!r})\n"
    if what == "server closed":
        script += "client.close(); server.close()\n"
    assert ("was not closed" in end_of(in_interpreter(script), before="")) == (
        what == "server open"
    )


def in_interpreter(script: str) -> str:
    """Return what runs a script in an interpreter beside the main one, which is `n`."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("Python 3.14t has a cffi that loads in no subinterpreter")
    if sys.version_info >= (3, 13):
        return (
            f"import _interpreters as i; n = i.create('legacy'); assert not i.exec(n, {script!r})"
        )
    return (
        f"import _xxsubinterpreters as i; n = i.create(isolated=False)\ni.run_string(n, {script!r})"
    )
