# SPDX-License-Identifier: Apache-2.0
"""The least client of docs/protocol.md, which speaks plain 1.0, with only the standard library.

python examples/plain_client.py @ADDRESS
"""

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

ROOM = memoryview(bytearray(1 << 19))  # more than any packet that the usual wmem_max allows has


def messages(address: str) -> Iterator[bytes]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        hello = sock.recv(64)
        if len(hello) < 6 or hello[:4] != b"\1\0\0\0":
            sys.exit(f"this is no jumiks 1.0 server: its hello is {hello.hex()!r}")
        sock.send(struct.pack("<HHH", 1, 0, 0))
        while True:
            try:
                size, _, flags, _ = sock.recvmsg_into([ROOM])
            except ConnectionResetError:
                continue  # the server closed with acks unread: its packets can still be read
            if not size:
                return
            if flags & socket.MSG_TRUNC or size < 8:
                sys.exit(f"a packet was larger than {len(ROOM)} bytes, or too short for its id")
            yield bytes(ROOM[8:size])
            with suppress(BrokenPipeError, ConnectionResetError):  # the server closed: read on
                sock.send(ROOM[:8])


if __name__ == "__main__":
    for message in messages(sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__)):
        print(message.decode(errors="replace"), flush=True)
