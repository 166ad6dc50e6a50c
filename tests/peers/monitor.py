# SPDX-License-Identifier: Apache-2.0
"""A monitor, written from docs/protocol.md alone: it prints the server's status, a line of JSON."""

import socket
import struct
import sys

MONITOR = 4
STATUS, MORE_FOLLOW, UNKNOWN = 1, 1, 2


def main() -> None:
    address = sys.argv[1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect("\0" + address[1:] if address.startswith("@") else address)
        hello = connection.recv(64)
        (offered,) = struct.unpack_from("<H", hello, 6)
        if hello[:4] != bytes([1, 0, 0, 0]) or not offered & MONITOR:
            sys.exit("this server gives no status")
        connection.send(struct.pack("<4HQ2I", 1, 0, 0, MONITOR, 0, 0, 0))
        status, granted, *_ = struct.unpack_from("<HHIQ", connection.recv(1024))
        if status or granted != MONITOR:
            sys.exit(f"refused with status {status}")
        connection.send(struct.pack("<HHI", STATUS, 0, 12))
        body, flags = b"", MORE_FOLLOW
        while flags & MORE_FOLLOW:
            packet = connection.recv(32768)
            kind, flags, number = struct.unpack_from("<HHI", packet)
            if (kind, number) != (STATUS, 12) or flags & UNKNOWN:
                sys.exit("an answer to something else")
            body += packet[8:]
    print(body.decode())


if __name__ == "__main__":
    main()
