# SPDX-License-Identifier: Apache-2.0
"""A framed server for one client, written from docs/protocol.md alone.

It publishes `count` messages of sizes that grow, in packets of at most `max_packet` bytes, so that
the larger ones go in parts; then it says BYE. It prints "ready" once it listens, and at the end one
line of JSON: what the client asked for, its last ack, and whether acks only rose.
"""

import argparse
import hashlib
import json
import socket
import struct

FRAMES, DATA, BYE, FRAGMENT, MORE, CLOSING = 1, 1, 2, 1, 2, 2
FIRST_ID = 100000


def frame(kind: int, flags: int, packet_id: int, payload: bytes) -> bytes:
    padding = bytes(-len(payload) % 8)
    return struct.pack("<IHHQ", len(payload), kind, flags, packet_id) + payload + padding


def packets(messages: list[bytes], largest: int) -> list[bytes]:
    """What carries the messages: as many whole frames per packet as fit, or one part."""
    found, room = [b""], (largest - 24) // 8 * 8
    for packet_id, message in enumerate(messages, FIRST_ID):
        whole = frame(DATA, 0, packet_id, message)
        if len(found[-1]) + len(whole) <= largest:
            found[-1] += whole
        elif len(whole) <= largest:
            found.append(whole)
        else:
            for offset in range(0, len(message), room):
                part = message[offset : offset + room]
                more = MORE if offset + room < len(message) else 0
                head = struct.pack("<II", len(message), offset)
                found.append(frame(DATA, FRAGMENT | more, packet_id, head + part))
            found.append(b"")
    return [packet for packet in found if packet]


def serve(connection: socket.socket, messages: list[bytes], largest: int) -> dict[str, object]:
    hello = (1, 0, 0, FRAMES, 7, FIRST_ID, FIRST_ID, 0, largest, 1 << 20)
    connection.send(struct.pack("<4H4Q2I", *hello))
    reply = connection.recv(256)
    wanted, start, theirs = struct.unpack_from("<HQI", reply, 6)
    connection.send(struct.pack("<HHIQ", 0, FRAMES, 0, FIRST_ID))
    for packet in packets(messages, min(largest, theirs or largest)):
        connection.send(packet)
    last, acks = FIRST_ID + len(messages) - 1, [0]
    while acks[-1] < last:
        ack = connection.recv(64)
        if len(ack) != 8:
            break
        acks.append(*struct.unpack("<Q", ack))
    figures = (CLOSING, 0, 0, 0, 0, 0, acks[-1], 0, 0, FIRST_ID)
    connection.send(frame(BYE, 0, last, struct.pack("<HHI7Q", *figures)))
    connection.shutdown(socket.SHUT_WR)
    return {
        "wanted": wanted,
        "start": start,
        "name": reply[24:].partition(b"\0")[0].decode(),
        "acked_id": acks[-1],
        "rising": acks == sorted(acks),
        "sha256": hashlib.sha256(b"".join(messages)).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--max-packet", type=int, default=4096)
    options = parser.parse_args()
    messages = [bytes([number % 251]) * (number * 37) for number in range(options.count)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        address = options.address
        listener.bind("\0" + address[1:] if address.startswith("@") else address)
        listener.listen(1)
        print("ready", flush=True)
        connection, _ = listener.accept()
        with connection:
            report = serve(connection, messages, options.max_packet)
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
