# SPDX-License-Identifier: Apache-2.0
"""Sandboxes that refuse a system call: what has another way takes that."""

import platform

import pytest
from support.api import run_script

NUMBERS = {
    "x86_64": {"sendmmsg": 307, "recvmmsg": 299, "epoll_pwait2": 441, "pidfd_open": 434},
    "aarch64": {"sendmmsg": 269, "recvmmsg": 243, "epoll_pwait2": 441, "pidfd_open": 434},
}

CONFINED = """
import asyncio, ctypes, os, struct, sys

address, number, error = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
program = [
    (LOAD, 0, 0, 0), (EQUAL, 0, 1, number),
    (RETURN, 0, 0, 0x00050000 | error), (RETURN, 0, 0, 0x7FFF0000),
]
code = b"".join(struct.pack("=HBBI", *each) for each in program)
memory = ctypes.create_string_buffer(code)
filter = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(memory)))
libc = ctypes.CDLL(None, use_errno=True)
zero = ctypes.c_ulong(0)
assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0
assert libc.prctl(22, ctypes.c_ulong(2), filter, zero, zero) == 0, os.strerror(ctypes.get_errno())
assert libc.syscall(number, -1, 0, 0, 0, 0) == -1 and ctypes.get_errno() == error

large = bytes(range(256)) * 4096

async def one():
    async with jumiks.AsyncClient(address, start="oldest") as client:
        return await client.receive(10)

with jumiks.Server(address, on_lag="block", max_lag=100) as server:
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
"""


@pytest.mark.parametrize("error", [1, 38], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize("call", NUMBERS["x86_64"])
def test_a_call_that_is_refused_has_another_way(address: str, call: str, error: int) -> None:
    numbers = NUMBERS.get(platform.machine())
    if numbers is None:
        pytest.skip(f"the system calls of {platform.machine()} are not known here")
    said = run_script(CONFINED, address, numbers[call], error)
    assert said.split()[1:] == ["framed", "classic"]
