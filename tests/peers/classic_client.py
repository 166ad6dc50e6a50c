# SPDX-License-Identifier: Apache-2.0
"""A client of plain 1.0 that knows nothing of this package: a socket and the least protocol.

At the end it prints one line of JSON: how many messages came, the first and the last id (0 for
none), whether each id was one more than the one before, a digest of all payloads, and how it
ended: "count" (had what it wanted), "eof", "reset" (the same, after a reset in between), or
"refused".
"""

import argparse
import hashlib
import json
import select
import socket
import struct
import sys
import time

LARGEST_PACKET = 8 << 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address", help="@name, or a path")
    parser.add_argument("--count", type=int, help="messages to receive, then leave")
    parser.add_argument("--sha256", action="store_true", help="digest all payloads in a row")
    parser.add_argument("--delay", type=float, default=0, help="seconds to spend on each message")
    parser.add_argument("--major", type=int, default=1, help="of the version to claim")
    parser.add_argument("--minor", type=int, default=0)
    parser.add_argument("--patch", type=int, default=0)
    parser.add_argument("--no-ack", action="store_true", help="never ack")
    parser.add_argument(
        "--stall-after", type=int, help="messages to read, then none until the server hangs up"
    )
    return parser.parse_args()


def connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect("\0" + address[1:] if address.startswith("@") else address)
    return connection


class Client:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.messages = self.first_id = self.last_id = 0
        self.ordered = True
        self.reset = False
        self.digest = hashlib.sha256()
        self.buffer = memoryview(bytearray(LARGEST_PACKET))
        self.connection = connect(options.address)

    def run(self) -> str:
        if not self.shake_hands():
            return "refused"
        while self.messages != self.options.count:
            if self.messages == self.options.stall_after:
                self.wait_for_hangup()
                return "eof"
            length = self.read()
            if length == 0:
                return self.end()
            self.take(self.buffer[:length])
        return "count"

    def shake_hands(self) -> bool:
        # Six bytes are all that plain 1.0 reads; the kernel drops whatever else the packet has.
        hello = self.connection.recv(6)
        if len(hello) < 6 or struct.unpack("<3H", hello)[:2] != (1, 0):
            return False
        ours = (self.options.major, self.options.minor, self.options.patch)
        self.connection.send(struct.pack("<3H", *ours))
        return True

    def read(self) -> int:
        """Read a packet into the buffer; 0 is the end."""
        while True:
            try:
                return self.connection.recv_into(self.buffer)
            except ConnectionResetError:
                # The server closed before it had read all acks; what it sent is still here.
                self.reset = True

    def take(self, packet: memoryview) -> None:
        if len(packet) < 8:
            sys.exit(f"a packet of {len(packet)} bytes has no id")
        (packet_id,) = struct.unpack_from("<Q", packet)
        if self.messages == 0:
            self.first_id = packet_id
        elif packet_id != self.last_id + 1:
            self.ordered = False
        self.last_id = packet_id
        self.messages += 1
        if self.options.sha256:
            self.digest.update(packet[8:])
        if self.options.delay:
            time.sleep(self.options.delay)
        if not self.options.no_ack:
            self.ack(packet_id)

    def ack(self, packet_id: int) -> None:
        try:
            self.connection.send(struct.pack("<Q", packet_id))
        except BrokenPipeError:
            pass  # reading on finds the end
        except ConnectionResetError:
            self.reset = True

    def wait_for_hangup(self) -> None:
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP)
        poll.poll()

    def end(self) -> str:
        if self.messages == 0 and (self.options.major, self.options.minor) != (1, 0):
            return "refused"
        return "reset" if self.reset else "eof"

    def report(self, end: str) -> dict[str, object]:
        return {
            "messages": self.messages,
            "first_id": self.first_id,
            "last_id": self.last_id,
            "sha256": self.digest.hexdigest() if self.options.sha256 else None,
            "ordered": self.ordered,
            "end": end,
        }


def main() -> None:
    client = Client(arguments())
    with client.connection:
        end = client.run()
    print(json.dumps(client.report(end)), flush=True)


if __name__ == "__main__":
    main()
