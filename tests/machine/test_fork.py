# SPDX-License-Identifier: Apache-2.0
"""A forked child that lives on has copies of its parent's sockets: it holds nothing up by that."""

import os
from pathlib import Path

import pytest
from support.api import run_script

# The child lives until its pipe is closed, and is reaped.
LIVING_CHILD = """
import multiprocessing, os, socket, sys
import jumiks

def with_child(what):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        what()
    finally:
        os.close(writing)
        os.waitpid(child, 0)

def in_c():
    # Behind Python's back: no hook is called in the child.
    import ctypes
    # PyDLL keeps the interpreter's lock: another thread's would never be given back in the child.
    os.fork = ctypes.PyDLL(None).fork

def refused(address):
    try:
        jumiks.Client(address, timeout=10)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
"""


@pytest.mark.parametrize("kind", ["abstract", "path"])
def test_a_server_can_be_started_again_while_a_child_lives(
    address: str, path: Path, kind: str
) -> None:
    script = """
address = sys.argv[1]
server = Server(address)
def again():
    server.close()
    assert refused(address)
    with Server(address) as second, jumiks.Client(address) as client:
        second.publish(b"again")
        print(client.receive(10))
with_child(again)
"""
    found = run_script(LIVING_CHILD + script, address if kind == "abstract" else path)
    assert found == "b'again'\n"


def test_a_server_can_be_started_again_beside_a_pool_of_workers(address: str) -> None:
    script = """
server = Server(sys.argv[1])
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, 2]) == [1, 2]
    server.close()
    assert refused(sys.argv[1])
    Server(sys.argv[1]).close()
print("again")
"""
    assert run_script(LIVING_CHILD + script, address) == "again\n"


def test_a_closed_server_refuses_at_once_though_a_child_holds_its_listener(address: str) -> None:
    script = """
in_c()
server = Server(sys.argv[1])
def close():
    server.close()
    print(refused(sys.argv[1]))
with_child(close)
"""
    assert run_script(LIVING_CHILD + script, address) == "True\n"


def test_a_child_that_closes_its_copy_does_not_stop_its_parent_from_listening(
    address: str,
) -> None:
    script = """
in_c()
server = Server(sys.argv[1])
child = os.fork()
if child == 0:
    held = set(os.listdir("/proc/self/fd"))
    listener = server._control._newcomers._listener.fileno()
    server.close()
    assert str(listener) in held and str(listener) not in os.listdir("/proc/self/fd")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
with jumiks.Client(sys.argv[1]) as client:
    server.publish(b"still here")
    print(client.receive(10))
server.close()
"""
    assert run_script(LIVING_CHILD + script, address) == "b'still here'\n"


def test_a_child_that_closes_the_server_holds_none_of_its_memory(address: str) -> None:
    script = """
import gc
def files():
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass
server = Server(sys.argv[1])
child = os.fork()
if child == 0:
    server.close()
    gc.collect()
    assert not [name for name in files() if "memfd:jumiks" in name]
    os._exit(0)
print(os.waitpid(child, 0)[1])
server.close()
"""
    assert run_script(LIVING_CHILD + script, address) == "0\n"


def test_a_ready_made_socket_listens_on_for_others_that_have_it(address: str) -> None:
    script = """
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(chr(0) + sys.argv[1][1:])
listener.listen()
managers = os.dup(listener.fileno())
Server(listener).close()
with Server(socket.socket(fileno=managers)) as server, jumiks.Client(sys.argv[1]) as client:
    server.publish(b"activated again")
    print(client.receive(10))
"""
    assert run_script(LIVING_CHILD + script, address) == "b'activated again'\n"


def test_a_peer_that_sends_no_reply_is_dropped_though_a_child_has_its_connection(
    address: str,
) -> None:
    script = """
server = Server(sys.argv[1], handshake_timeout=1)
silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
silent.connect(chr(0) + sys.argv[1][1:])
assert silent.recv(100)
def wait():
    silent.settimeout(10)
    print(silent.recv(100))
with_child(wait)
server.close()
silent.close()
"""
    assert run_script(LIVING_CHILD + script, address) == "b''\n"


def test_a_monitor_that_closes_leaves_its_place_though_a_child_has_its_connection(
    address: str,
) -> None:
    script = """
import time
server = Server(sys.argv[1])
first = jumiks.Monitor(sys.argv[1])
def close():
    first.close()
    with jumiks.Monitor(sys.argv[1]) as second:
        deadline = time.monotonic() + 10
        while (there := second.status().monitors) > 1 and time.monotonic() < deadline:
            pass
        print(there)
with_child(close)
server.close()
"""
    assert run_script(LIVING_CHILD + script, address) == "1\n"


@pytest.mark.skipif(
    "san.so" in os.environ.get("LD_PRELOAD", ""),
    reason="sanitizers may hold a lock of theirs in a child that C forks beside a thread",
)
def test_a_server_that_lingers_beside_a_child_does_not_spin(address: str) -> None:
    script = """
import time
in_c()
server = Server(sys.argv[1])
client = jumiks.Client(sys.argv[1], delivery="framed")
server.publish_many([bytes(1000)] * 1000)  # more than its socket takes
def close():
    before = time.process_time()
    server.close(2)
    assert time.process_time() - before < 1
with_child(close)
client.close()
print("calm")
"""
    assert run_script(LIVING_CHILD + script, address) == "calm\n"


def test_a_child_has_no_maps_of_the_server_s_and_no_part_in_its_parents_acks(address: str) -> None:
    script = """
import gc

def writable_maps():
    with open("/proc/self/maps") as maps:
        return sum("rw-s" in line and "/memfd:jumiks" in line for line in maps)

server = jumiks.Server(sys.argv[1], share_log=True)
with server.reserve(4) as view:  # the first has another map made
    view[:] = b"zero"
client = jumiks.Client(sys.argv[1])
server.wait_for_clients(1, 10)
server.publish_many([b"one", b"two"])
batch = client.receive_many(10)
views = batch.views()
held = views[0][:]  # the ack of what comes later waits for it
server.publish(b"three")
assert client.receive(10) == b"three"
client.ack()
assert writable_maps() > 1
child = os.fork()
if child == 0:
    assert writable_maps() == 1  # the cursor page of the client
    del views, batch, held
    gc.collect()
    client.close()
    server.close()
    os._exit(0)
print(os.waitpid(child, 0)[1], server.clients()[0].acked_id)
del views, batch, held
server.drain(10)
print(server.clients()[0].acked_id)
client.close()
server.close()
"""
    assert run_script(LIVING_CHILD + script, address) == "0 0\n100003\n"


def test_what_a_loop_has_left_is_the_parents_alone(address: str) -> None:
    script = """
server = jumiks.Server(sys.argv[1], share_log=True)
client = jumiks.Client(sys.argv[1])
server.wait_for_clients(1, 10)
server.publish_many([b"one", b"two"])
messages = iter(client)
assert next(messages) == b"one"
child = os.fork()
if child == 0:
    try:
        next(messages)
    except jumiks.Forked:
        os._exit(3)
    os._exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), next(messages).decode())
client.close()
server.close()
"""
    assert run_script(LIVING_CHILD + script, address) == "3 two\n"


@pytest.mark.parametrize("delivery", ["shared", "framed"])
def test_a_client_that_is_cut_finds_the_end_though_a_child_has_its_connection(
    address: str, delivery: str
) -> None:
    script = """
server = jumiks.Server(sys.argv[1], share_log=True)
client = jumiks.Client(sys.argv[1], delivery=sys.argv[2])
server.wait_for_clients(1, 10)
def cut():
    server.disconnect(server.clients()[0])
    try:
        client.receive(10)
    except jumiks.Disconnected:
        print("cut")
    client.close()
    server.close()
with_child(cut)
"""
    assert run_script(LIVING_CHILD + script, address, delivery) == "cut\n"


def test_a_child_that_closes_a_client_keeps_none_of_what_polls_it(address: str) -> None:
    script = """
import select

def held():
    paths = ["/proc/self/fd/" + each for each in os.listdir("/proc/self/fd")]
    return {path: os.readlink(path) for path in paths if os.path.exists(path)}

in_c()
server = Server(sys.argv[1])
client = jumiks.Client(sys.argv[1])
server.wait_for_clients(1, 10)  # from then on it opens nothing
before = held()
client.fileno()
made = held().items() - before.items()
assert len(made) > 1
child = os.fork()
if child == 0:
    client.close()
    assert not made & held().items(), held()
    os._exit(0)
print(os.waitpid(child, 0)[1])
server.publish(b"1")
assert select.select([client], [], [], 10)[0]
client.close()
server.close()
"""
    assert run_script(LIVING_CHILD + script, address) == "0\n"
