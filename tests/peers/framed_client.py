# SPDX-License-Identifier: Apache-2.0
"""A framed client, written from docs/protocol.md alone: many messages per packet, and reasons.

At the end it prints one line of JSON: the ids and a digest of the messages, where it began, and how
it ended: the reason of the BYE, 0 without one, or "refused" with the server's words.
"""

import argparse
import hashlib
import json
import socket
import struct
import sys
from contextlib import suppress

FRAMES = 1
DATA, BYE, CRITICAL = 1, 2, 0x8000
FRAGMENT, MORE = 1, 2
LARGEST_PACKET = 65536


def connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect("\0" + address[1:] if address.startswith("@") else address)
    return connection


class Client:
    def __init__(self, address: str, start: int, name: str) -> None:
        self.connection = connect(address)
        self.start, self.name = start, name.encode()
        self.parts = b""
        self.part_id = 0
        self.ids: list[int] = []
        self.digest = hashlib.sha256()
        self.first_id = 0

    def receive(self) -> bytes:
        """A packet; b"" is the end."""
        while True:
            try:
                packet, _, flags, _ = self.connection.recvmsg(LARGEST_PACKET)
            except ConnectionResetError:
                continue  # there may be more to read
            if flags & socket.MSG_TRUNC:
                sys.exit("a packet larger than agreed")
            return packet

    def shake_hands(self) -> str:
        """The server's words if it refuses, else nothing."""
        hello = self.receive()
        if hello[:4] != bytes([1, 0, 0, 0]):
            sys.exit("another version")
        (offered,) = struct.unpack_from("<H", hello, 6)
        if not offered & FRAMES:
            sys.exit("a server without frames")
        reply = struct.pack("<4HQ2I", 1, 0, 0, FRAMES, self.start, LARGEST_PACKET, 0)
        self.connection.send(reply + self.name)
        welcome = self.receive()
        status, granted, _, self.first_id = struct.unpack_from("<HHIQ", welcome)
        if status:
            return welcome[16:].decode() or f"status {status}"
        if granted != FRAMES:
            sys.exit(f"capabilities {granted} were granted, and {FRAMES} were asked for")
        return ""

    def run(self) -> int:
        """Read to the end; the reason of the BYE, or 0."""
        while packet := self.receive():
            at, reason = 0, 0
            while at < len(packet):
                size, kind, flags, packet_id = struct.unpack_from("<IHHQ", packet, at)
                payload = packet[at + 16 : at + 16 + size]
                at += 16 + (size + 7) // 8 * 8
                if kind == BYE:
                    (reason,) = struct.unpack_from("<H", payload)
                elif kind == DATA:
                    self.take(packet_id, flags, payload)
                elif kind & CRITICAL:
                    sys.exit(f"a critical frame of kind {kind}")
            if reason:
                return int(reason)
            self.ack()
        return 0

    def take(self, packet_id: int, flags: int, payload: bytes) -> None:
        if flags & FRAGMENT:
            total, offset = struct.unpack_from("<II", payload)
            if packet_id != self.part_id:
                self.part_id, self.parts = packet_id, b""
            if offset != len(self.parts):
                sys.exit(f"a part at {offset}, where {len(self.parts)} is due")
            self.parts += payload[8:]
            if flags & MORE:
                return
            payload = self.parts
            if len(payload) != total:
                sys.exit(f"a message of {len(payload)} bytes, where {total} are due")
        self.ids.append(packet_id)
        self.digest.update(payload)

    def ack(self) -> None:
        if self.ids:
            with suppress(BrokenPipeError, ConnectionResetError):  # reading on finds the end
                self.connection.send(struct.pack("<Q", self.ids[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--name", default="")
    options = parser.parse_args()
    client = Client(options.address, options.start, options.name)
    with client.connection:
        refused = client.shake_hands()
        end: object = ["refused", refused] if refused else client.run()
    report = {
        "first_id": client.first_id,
        "ids": client.ids,
        "sha256": client.digest.hexdigest(),
        "end": end,
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
