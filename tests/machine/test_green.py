# SPDX-License-Identifier: Apache-2.0
"""Programs in which gevent or eventlet has patched the standard library."""

import pytest
from support.api import run_script
from support.base import needs

PATCHED = """
import sys, warnings
what, address = sys.argv[1:3]
if what == "eventlet":
    warnings.simplefilter("ignore")  # it warns of itself
    import eventlet
    eventlet.monkey_patch()
    spawn, kill, Out = eventlet.spawn, eventlet.kill, eventlet.Timeout
    def join(green): return green.wait()
else:
    from gevent import monkey
    monkey.patch_all(thread=what != "gevent without threads")
    import gevent
    spawn, Out = gevent.spawn, gevent.Timeout
    def join(green): return green.get()
    def kill(green): green.kill()
import time
time_limit = __import__("faulthandler").dump_traceback_later
time_limit(25, exit=True)

ticks = 0

def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.005)

ticker = spawn(tick)
time.sleep(0.01)

def others_run(call, *args, **options):
    # What it returns; other greenlets have run meanwhile.
    before = ticks
    found = call(*args, **options)
    assert ticks > before, (call, ticks - before)
    return found

def raised(kind, call, *args, **options):
    try:
        call(*args, **options)
    except kind as error:
        return error
    raise AssertionError(f"no {kind}")

class Later:
    # Does something after a while, in another greenlet.
    def __init__(self, action, *args):
        self.green = spawn(self.run, action, args)
    def run(self, action, args):
        time.sleep(0.1)
        return action(*args)
    def __enter__(self): return self
    def __exit__(self, *_): join(self.green)
"""

pytestmark = pytest.mark.slow  # each test starts a Python with gevent or eventlet

KINDS = [
    pytest.param("gevent", marks=needs("gevent")),
    pytest.param("gevent without threads", marks=needs("gevent")),
    pytest.param("eventlet", marks=needs("eventlet")),
]


def run_patched(what: str, address: str, script: str, *arguments: object) -> str:
    """Run a script where the standard library is patched before jumiks is imported."""
    return run_script(script, what, address, *arguments, before=PATCHED)


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("share_log", [True, False], ids=["shared", "framed"])
def test_both_ends_work_in_greenlets_and_other_greenlets_run_meanwhile(
    address: str, what: str, share_log: bool
) -> None:
    run_patched(
        what,
        address,
        """
share = sys.argv[3] == "True"
with jumiks.Server(address, share_log=share) as server:
    with Later(jumiks.Client, address) as later:
        others_run(server.wait_for_clients, 1, 20)
    client = join(later.green)
    with Later(server.publish, b"one"):
        assert others_run(client.receive, 20) == b"one"
    with Later(server.publish_many, [b"two", b"three"]):
        assert [bytes(each) for each in others_run(client.receive_many, 20)] == [b"two", b"three"]
    with Later(client.ack):
        others_run(server.drain, 20)
    raised(jumiks.Timeout, others_run, client.receive, 0.1)
    with Later(client.close):
        raised(jumiks.Closed, others_run, client.receive)
    with jumiks.Monitor(address) as monitor:
        assert monitor.status().address == address
""",
        share_log,
    )


@pytest.mark.parametrize("what", KINDS)
def test_a_publisher_waits_for_a_client_that_is_another_greenlet(address: str, what: str) -> None:
    run_patched(
        what,
        address,
        """
with Server(address, max_lag=4, on_lag="block") as server:
    client = jumiks.Client(address)

    def fill():
        try:
            while True:
                server.publish(b"filler", 0)
        except jumiks.Timeout:
            pass

    def take_all():
        try:
            while True:
                client.receive_many(0)
                client.ack()
        except jumiks.Timeout:
            pass

    def reserve(timeout=20):
        with server.reserve(3, timeout) as view:
            view[:] = b"end"

    for publish in (
        lambda: server.publish(b"end", 20),
        lambda: server.publish_many([b"end"] * 3, 20),
        reserve,
    ):
        fill()
        with Later(take_all):
            others_run(publish)
        take_all()
    fill()
    error = raised(jumiks.Timeout, others_run, server.publish, b"end", 0.1)
    assert "held up by" in str(error) and "0.1 s" in str(error), error
    error = raised(jumiks.Timeout, others_run, server.publish_many, [b"end"], 0.1)
    assert error.published == 0
    raised(jumiks.Timeout, others_run, reserve, 0.1)
    error = raised(jumiks.Timeout, others_run, server.drain, 0.1)
    with Later(server.close, 0):
        raised(jumiks.Closed, others_run, server.publish, b"end")
    client.close()
""",
    )


@pytest.mark.parametrize("what", KINDS)
def test_close_gives_clients_in_other_greenlets_their_time(address: str, what: str) -> None:
    run_patched(
        what,
        address,
        """
server = jumiks.Server(address, share_log=False)
client = jumiks.Client(address)
numbers = [b"%2000d" % number for number in range(1000)]
published = False

def slowly():
    found = []
    while not published:  # else it may have all of them before the server closes
        time.sleep(0.005)
    for message in client:
        found.append(message)
        if len(found) % 100 == 0:
            time.sleep(0.01)
    return found

reader = spawn(slowly)
server.publish_many(numbers)
published = True
others_run(server.close, 20)
assert join(reader) == numbers
client.close()
""",
    )


@pytest.mark.parametrize("what", KINDS)
def test_a_greenlet_that_is_stopped_while_it_waits_loses_nothing(address: str, what: str) -> None:
    run_patched(
        what,
        address,
        """
with Server(address, on_lag="block", max_lag=2) as server, jumiks.Client(address) as client:
    for number in range(20):
        receiver = spawn(client.receive)
        time.sleep(0.002)
        error = raised(jumiks.Busy, client.receive, 1)
        kill(receiver)
        server.publish(b"%d" % number, 20)
        assert client.receive(20) == b"%d" % number
        client.ack()
    server.publish(b"a")
    server.publish(b"b")
    publisher = spawn(server.publish, b"c")
    time.sleep(0.01)
    kill(publisher)
    assert client.receive(20) == b"a" and client.receive(20) == b"b"
    client.ack()
    server.publish(b"d", 20)
    assert client.receive(20) == b"d"
    try:
        with Out(0.05):
            client.receive()
    except Out:
        pass
    server.publish(b"e", 20)
    assert client.receive(20) == b"e"
""",
    )


@pytest.mark.parametrize("what", KINDS)
def test_a_stream_that_never_ends_lets_other_greenlets_run(address: str, what: str) -> None:
    run_patched(
        what,
        address,
        """
with Server(address) as server, jumiks.Client(address) as client:
    before, end = ticks, time.monotonic() + 0.5
    while time.monotonic() < end:
        server.publish(b"x")
        client.receive(20)
    assert ticks - before > 1, ticks - before
""",
    )


@pytest.mark.parametrize("what", KINDS)
def test_callbacks_and_log_handlers_run_in_the_real_control_thread(address: str, what: str) -> None:
    run_patched(
        what,
        address,
        """
import logging, threading
get_native_id = threading.get_native_id
threads, lines = set(), []

class Handler(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

logger = logging.getLogger("jumiks")
logger.addHandler(Handler())
logger.setLevel(logging.INFO)

def came(info):
    threads.add(get_native_id())

with Server(address, on_connect=came, allow=lambda peer: True) as server:
    for number in range(20):
        with jumiks.Client(address, delivery=("shared", "framed")[number % 2]) as client:
            logger.info("from a greenlet")
            server.publish(b"%d" % number)
            assert client.receive(20) == b"%d" % number
assert len(threads) == 1 and get_native_id() not in threads, threads
assert sum("connected" in line for line in lines) == 20, lines
""",
    )


@pytest.mark.parametrize("what", KINDS)
def test_a_client_comes_back_while_other_greenlets_run(address: str, what: str) -> None:
    run_patched(
        what,
        address,
        """
client_of = lambda: jumiks.Client(address, reconnect=jumiks.Backoff(first=0.05, most=0.1))
server = Server(address)
client = client_of()
server.close()
servers = []

def again():
    servers.append(Server(address))
    servers[0].publish(b"again")

with Later(again):
    assert others_run(client.receive, 20) == b"again"
servers[0].close()
with Later(client.close):
    raised(jumiks.Closed, others_run, client.receive)
""",
    )


@pytest.mark.parametrize("what", KINDS)
def test_a_patched_socket_is_taken_for_a_ready_made_one(address: str, what: str) -> None:
    run_patched(
        what,
        address,
        """
import socket
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind(chr(0) + address[1:])
sock.listen()
with Server(sock) as server, jumiks.Client(address) as client:
    assert raised(jumiks.AddressInUse, jumiks.Server, address)
    server.publish(b"one")
    assert client.receive(20) == b"one"
assert sock.fileno() == -1
raised(ConnectionRefusedError, jumiks.Client, address)
""",
    )


@pytest.mark.parametrize("what", KINDS)
def test_the_patch_may_come_after_the_import(address: str, what: str) -> None:
    run_script(
        PATCHED
        + """
server = Server(address)
with Later(jumiks.Client, address) as later:
    others_run(server.wait_for_clients, 1, 20)
client = join(later.green)
server.publish(b"one")
assert client.receive(20) == b"one"
with Later(client.ack):
    others_run(server.drain, 20)
client.close()
server.close()
""",
        what,
        address,
    )


def test_neither_package_is_imported_by_ours(address: str) -> None:
    run_script(
        """
import sys
with Server(sys.argv[1]) as server, jumiks.Client(sys.argv[1]) as client:
    server.publish(b"one")
    client.receive(20)
assert not {"gevent", "eventlet", "greenlet"} & set(sys.modules)
""",
        address,
    )


@pytest.mark.parametrize("what", [KINDS[0], KINDS[2]])
def test_asyncio_works_where_the_standard_library_is_patched(address: str, what: str) -> None:
    # With asyncio's own loop, whose select is the patched one.
    script = """
import asyncio, sys
import jumiks

async def main():
    async with AsyncServer(sys.argv[2], max_lag=10, on_lag="block") as server:
        async with jumiks.AsyncClient(sys.argv[2]) as client:
            async def publish():
                for number in range(100):
                    await server.publish_wait(b"%d" % number)
            task = asyncio.ensure_future(publish())
            taken = [await client.receive(timeout=20) for _ in range(100)]
            await task
            await client.ack()
            await server.drain(timeout=20)
            assert taken == [b"%d" % number for number in range(100)]

asyncio.run(main())
print("all")
"""
    assert run_patched(what, address, script) == "all\n"
