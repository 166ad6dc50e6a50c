# SPDX-License-Identifier: Apache-2.0
"""Sandboxes and older kernels that refuse a system call: what has another way takes that."""

import errno
import itertools
import os
import platform

import pytest
from support.api import run_script
from support.base import BEST

NUMBERS = {
    "x86_64": {
        "sendmmsg": 307,
        "recvmmsg": 299,
        "epoll_pwait2": 441,
        "pidfd_open": 434,
        "memfd_create": 319,
        "futex_waitv": 449,
        "set_robust_list": 273,
        "getsockopt": 55,
        "setsockopt": 54,
        "seccomp": 317,
    },
    "aarch64": {
        "sendmmsg": 269,
        "recvmmsg": 243,
        "epoll_pwait2": 441,
        "pidfd_open": 434,
        "memfd_create": 279,
        "futex_waitv": 449,
        "set_robust_list": 99,
        "getsockopt": 209,
        "setsockopt": 208,
        "seccomp": 277,
    },
}

CONFINE = """
import asyncio, ctypes, logging, os, signal, struct, sys, threading

logging.getLogger("jumiks").setLevel(logging.CRITICAL)  # it warns of what there is not

address, seccomp = sys.argv[1], int(sys.argv[2])

def refuse(number, error, option=None):
    # From now on, in all threads; `option` is the third argument that it is refused for.
    LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
    allowed = (RETURN, 0, 0, 0x7FFF0000)
    program = [(LOAD, 0, 0, 0), (EQUAL, 1, 0, number), allowed]
    if option is not None:
        program += [(LOAD, 0, 0, 32), (EQUAL, 1, 0, option), allowed]
    program += [(RETURN, 0, 0, 0x00050000 | error)]
    code = b"".join(struct.pack("=HBBI", *each) for each in program)
    memory = ctypes.create_string_buffer(code)
    filter = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(memory)))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0
    assert libc.syscall(seccomp, 1, 1, filter) == 0, os.strerror(ctypes.get_errno())
    assert libc.syscall(number, -1, 0, option or 0, 0, 0) == -1 and ctypes.get_errno() == error
"""

ALL_WAYS = """
refuse(int(sys.argv[3]), int(sys.argv[4]))
large = bytes(range(256)) * 4096

async def one():
    async with jumiks.AsyncClient(address, start="oldest") as client:
        return await client.receive(10)

with Server(address, on_lag="block", max_lag=100) as server:
    with (
        jumiks.Client(address) as shared,
        jumiks.Client(address, delivery="framed") as framed,
        jumiks.Client(address, delivery="classic") as classic,
    ):
        clients = shared, framed, classic
        for first in range(0, 2000, 50):
            numbers = [b"%d" % number for number in range(first, first + 50)]
            server.publish_many(numbers)
            for client in clients:
                assert [client.receive(10) for _ in numbers] == numbers
                client.ack()
        server.drain(10)
        server.publish(large[:100_000])
        assert all(client.receive(10) == large[:100_000] for client in clients)
        server.publish(large)
        assert shared.receive(10) == framed.receive(10) == large
        print(*(client.delivery for client in clients))
        assert asyncio.run(one()) == b"0"
        # Here they sleep, and are woken.
        for client, other in ((shared, framed), (framed, shared)):
            waiter = threading.Timer(0.02, server.publish, [b"woken"])
            waiter.start()
            assert client.receive(10) == b"woken"
            waiter.join()
            assert other.receive(10) == b"woken"
    # A wait that is refused would return at once, again and again.
    server.wait_for_clients(0, 10)
    before = server.stats().rounds
    signal.sigtimedwait([], 0.5)
    assert server.stats().rounds - before < 100, server.stats().rounds - before
"""


def numbers() -> dict[str, int]:
    found = NUMBERS.get(platform.machine())
    if found is None:
        pytest.skip(f"the system calls of {platform.machine()} are not known here")
    return found


CALLS = ["sendmmsg", "recvmmsg", "epoll_pwait2", "memfd_create", "futex_waitv", "set_robust_list"]
REFUSED = [
    *itertools.product(CALLS, [errno.EPERM, errno.ENOSYS]),
    *itertools.product(CALLS[2:], [errno.EACCES]),
]


@pytest.mark.slow  # each begins another Python
@pytest.mark.parametrize(("call", "error"), REFUSED)
def test_a_call_that_is_refused_has_another_way(address: str, call: str, error: int) -> None:
    script = CONFINE + ALL_WAYS
    said = run_script(script, address, numbers()["seccomp"], numbers()[call], error)
    best = "framed" if call == "memfd_create" else BEST
    assert said.split() == [best, "framed", "classic"]


APART = """
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    server = Server(address)
    os.write(writing, b"1")
    server.wait_for_clients(1, 20)
    server.publish(b"from another process")
    signal.pause()
try:
    os.read(reading, 1)
    refuse(int(sys.argv[3]), int(sys.argv[4]))
    {use}
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""

UNTIL_ITS_DEATH = """
    with jumiks.Client(address) as client:
        print(client.receive(10))
        os.kill(child, signal.SIGKILL)
        try:
            client.receive(20)
        except jumiks.ConnectionLost as error:
            print("the server died" in str(error))
"""

AFTER_ITS_DEATH = """
    try:
        jumiks.Client(address)
    except jumiks.ConnectionLost as error:
        print(error)
"""


def run_apart(address: str, use: str, error: int) -> str:
    """What a client prints whose server is another process, and where pidfd_open fails."""
    script = CONFINE + APART.format(use=use.strip())
    return run_script(script, address, numbers()["seccomp"], numbers()["pidfd_open"], error)


@pytest.mark.parametrize(
    "error", [errno.EPERM, errno.ENOSYS, errno.EMFILE], ids=errno.errorcode.get
)
def test_without_a_pidfd_a_server_s_death_is_told_by_its_socket(address: str, error: int) -> None:
    assert run_apart(address, UNTIL_ITS_DEATH, error) == "b'from another process'\nTrue\n"


def test_a_server_that_is_dead_before_it_can_be_watched_is_told(address: str) -> None:
    said = run_apart(address, AFTER_ITS_DEATH, errno.ESRCH)
    assert said == f"the server of {address!r} died\n"


NO_NAME = """
with Server(address) as server:
    refuse(int(sys.argv[3]), int(sys.argv[4]), 77)
    with jumiks.Client(address) as client:
        server.wait_for_clients(1, 10)
        server.publish(b"message")
        print(client.receive(10), repr(server.clients()[0].command), server.clients()[0].pid > 0)
"""


def test_where_the_kernel_has_no_pidfd_of_a_peer_it_has_no_name(address: str) -> None:
    found = numbers()
    arguments = found["seccomp"], found["getsockopt"], errno.ENOPROTOOPT
    assert run_script(CONFINE + NO_NAME, address, *arguments) == "b'message' '' True\n"


NO_PIDFD = """
with Server(address) as server:
    refuse(int(sys.argv[3]), int(sys.argv[4]), 76)
    with jumiks.Client(address, delivery="framed") as client:
        server.wait_for_clients(1, 10)
        server.publish(b"message")
        print(client.receive(10))
"""


def test_where_the_kernel_sends_no_pidfd_of_a_server_a_client_does_without(address: str) -> None:
    found = numbers()
    arguments = found["seccomp"], found["setsockopt"], errno.ENOPROTOOPT
    assert run_script(CONFINE + NO_PIDFD, address, *arguments) == "b'message'\n"


NO_PAGE = """
with jumiks.Server(address, share_log=True) as server, jumiks.Client(address) as before:
    refuse(int(sys.argv[3]), int(sys.argv[4]))
    logging.getLogger("jumiks").setLevel(logging.WARNING)
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    with jumiks.Client(address) as after:
        server.wait_for_clients(2, 10)
        server.publish(b"message")
        print(before.delivery, before.receive(10), after.delivery, after.receive(10))
"""


@pytest.mark.parametrize(
    "error", [errno.EPERM, errno.ENOMEM, errno.EMFILE], ids=errno.errorcode.get
)
def test_a_client_that_there_is_no_cursor_page_for_gets_packets(address: str, error: int) -> None:
    found = numbers()
    said = run_script(CONFINE + NO_PAGE, address, found["seccomp"], found["memfd_create"], error)
    warning, result = said.splitlines()
    assert f"gets packets, as it cannot be given the log: {os.strerror(error)}" in warning
    assert result == "shared b'message' framed b'message'"
