# SPDX-License-Identifier: Apache-2.0
"""A plain 1.0 client of the standard library alone.

python examples/plain_client.py @ADDRESS

One message a packet, each acked: all that docs/protocol.md asks of the least client.
"""

import socket
import struct
import sys
from collections.abc import Iterator


def messages(address: str) -> Iterator[bytes]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        major, minor = struct.unpack_from("<HH", sock.recv(64))
        if (major, minor) != (1, 0):
            sys.exit(f"the server speaks {major}.{minor}")
        sock.send(struct.pack("<HHH", 1, 0, 0))
        while packet := sock.recv(1 << 18):
            yield packet[8:]
            sock.send(packet[:8])


if __name__ == "__main__":
    for message in messages(sys.argv[1]):
        print(message.decode(errors="replace"), flush=True)
