# SPDX-License-Identifier: Apache-2.0
"""A server of plain 1.0 that knows nothing of this package: a socket and the least protocol.

It prints "ready" once it listens. It waits for its clients, publishes, waits for the acks, closes,
and prints one line of JSON: the first and the last id published, a digest of all payloads, and for
each client, in the order they came, the last id it acked, how many acks it sent, whether they named
each of its messages once and in order, and how it ended: "served" (was there until the end),
"left", "lagged", "too large", "refused", or "broken" (an ack that makes no sense).

The lag policy is the bare rule: whoever is more than `--max-lag` messages behind is disconnected.
"""

import argparse
import errno
import hashlib
import json
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

FIRST_ID = 100000
VERSION_SIZE = 6


def rising(index: int) -> int:
    """The id of a message, by its place: one more than the one before."""
    return FIRST_ID + index


def repeated(index: int) -> int:
    """One thread takes the next id and another counts: two messages have the id of the second."""
    return FIRST_ID + (index | 1)


IDS = {"rising": rising, "repeated": repeated}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address", help="@name, or a path")
    parser.add_argument("--clients", type=int, default=1, help="to wait for before publishing")
    parser.add_argument("--count", type=int, default=100, help="messages")
    parser.add_argument("--size", type=int, default=64, help="of a message, bytes")
    parser.add_argument("--file", type=Path, help="publish its lines, each with its end")
    parser.add_argument("--ids", choices=IDS, default="rising", help="what ids are like")
    parser.add_argument("--interval", type=float, default=0, help="seconds between messages")
    parser.add_argument(
        "--window", type=int, help="messages to be ahead of the fastest client at most"
    )
    parser.add_argument("--max-lag", type=int, help="messages")
    parser.add_argument("--linger", type=float, default=10, help="seconds for the last acks")
    parser.add_argument("--major", type=int, default=1, help="of the version to claim")
    parser.add_argument("--minor", type=int, default=0)
    parser.add_argument("--patch", type=int, default=0)
    return parser.parse_args()


def payloads(options: argparse.Namespace) -> list[bytes]:
    if options.file:
        with options.file.open("rb") as lines:
            return list(lines)
    repeats = options.size // 8 + 1
    return [
        (struct.pack("<Q", number) * repeats)[: options.size] for number in range(options.count)
    ]


class Session:
    """One client."""

    def __init__(self, connection: socket.socket, id_of: Callable[[int], int]) -> None:
        self.connection = connection
        self.id_of = id_of
        self.greeted = False
        self.first_index = self.next_index = 0
        self.acked_id = 0
        self.acks = 0
        self.in_order = True
        self.end = ""

    def start(self, index: int) -> None:
        self.greeted = True
        self.first_index = self.next_index = index
        self.acked_id = FIRST_ID + index - 1

    @property
    def sent_id(self) -> int:
        return self.id_of(self.next_index - 1) if self.next_index else FIRST_ID - 1

    def owes(self, published: int) -> bool:
        """Whether more acks are due."""
        if self.in_order:
            return self.acks < published - self.first_index
        return self.acked_id < self.id_of(published - 1)

    def read_ack(self) -> None:
        try:
            packet = self.connection.recv(64)
        except (BlockingIOError, ConnectionResetError):
            return  # after a reset, what the client sent before is still here, and then the end
        if not packet:
            self.end = "left"
            return
        (packet_id,) = struct.unpack("<Q", packet) if len(packet) == 8 else (0,)
        if not 0 < packet_id <= self.sent_id:
            self.end = "broken"
            return
        self.in_order = self.in_order and packet_id == self.id_of(self.first_index + self.acks)
        self.acks += 1
        self.acked_id = max(self.acked_id, packet_id)

    def send(self, messages: Sequence[bytes], published: int) -> None:
        """Send what is published, as far as the socket takes it."""
        while self.next_index < published and not self.end:
            head = struct.pack("<Q", self.id_of(self.next_index))
            try:
                self.connection.send(head + messages[self.next_index])
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                return  # reading finds the end
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                self.end = "too large"
                return
            self.next_index += 1

    def report(self) -> dict[str, object]:
        return {
            "acked_id": self.acked_id if self.acks else 0,
            "acks": self.acks,
            "each_in_order": self.in_order,
            "end": self.end,
        }


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.version = (options.major, options.minor, options.patch)
        self.messages = payloads(options)
        self.published = 0
        self.sessions: list[Session] = []
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        address = options.address
        self.listener.bind("\0" + address[1:] if address.startswith("@") else address)
        self.listener.listen(128)
        self.selector.register(self.listener, selectors.EVENT_READ)

    def run(self) -> None:
        print("ready", flush=True)
        while self.welcomed() < self.options.clients:
            self.turn(None)
        while self.published < len(self.messages):
            self.published += 1
            self.turn(0)
            self.turns_until(time.monotonic() + self.options.interval)
            while self.is_ahead():
                self.turn(None)
        deadline = time.monotonic() + self.options.linger
        while self.waits_for_acks() and (left := deadline - time.monotonic()) > 0:
            self.turn(left)
        for session in self.live():
            self.finish(session, "served")

    def live(self) -> list[Session]:
        return [session for session in self.sessions if not session.end]

    def welcomed(self) -> int:
        """How many have shaken hands, whatever became of them."""
        return sum(session.greeted for session in self.sessions)

    def is_ahead(self) -> bool:
        """Whether even the fastest client has as much to ack as the window allows."""
        acked = [session.acked_id for session in self.live() if session.greeted]
        if self.options.window is None or not acked:
            return False
        lead: int = FIRST_ID + self.published - 1 - max(acked)
        return lead >= int(self.options.window)

    def waits_for_acks(self) -> bool:
        return any(session.greeted and session.owes(self.published) for session in self.live())

    def turns_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            self.turn(left)

    def turn(self, timeout: float | None) -> None:
        """Send what can be sent, then handle what comes within `timeout` seconds."""
        for session in self.live():
            if session.greeted:
                session.send(self.messages, self.published)
            self.settle(session)
        for key, _ in self.selector.select(timeout):
            if key.fileobj is self.listener:
                self.accept()
            else:
                self.hear(key.data)

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.setblocking(False)
        with suppress(BrokenPipeError, ConnectionResetError):  # reading finds the end
            connection.send(struct.pack("<3H", *self.version))
        session = Session(connection, IDS[self.options.ids])
        self.sessions.append(session)
        self.selector.register(connection, selectors.EVENT_READ, session)

    def hear(self, session: Session) -> None:
        if session.greeted:
            session.read_ack()
        else:
            self.shake_hands(session)
        self.settle(session)

    def shake_hands(self, session: Session) -> None:
        # Six bytes are all that plain 1.0 reads; the kernel drops whatever else the packet has.
        try:
            reply = session.connection.recv(VERSION_SIZE)
        except ConnectionResetError:
            reply = b""
        if len(reply) < VERSION_SIZE:
            session.end = "left"
        elif struct.unpack("<3H", reply)[:2] != self.version[:2]:
            session.end = "refused"
        else:
            session.start(self.published)

    def settle(self, session: Session) -> None:
        """Draw the consequences of what just happened to a client."""
        limit = self.options.max_lag
        if session.greeted and not session.end and limit is not None:
            lag = FIRST_ID + self.published - 1 - session.acked_id
            if lag > limit:
                session.end = "lagged"
        if session.end:
            self.finish(session, session.end)
        else:
            self.watch(session)

    def watch(self, session: Session) -> None:
        wanted = selectors.EVENT_READ
        if session.greeted and session.next_index < self.published:
            wanted |= selectors.EVENT_WRITE
        if self.selector.get_key(session.connection).events != wanted:
            self.selector.modify(session.connection, wanted, session)

    def finish(self, session: Session, end: str) -> None:
        session.end = end
        self.selector.unregister(session.connection)
        session.connection.close()

    def close(self) -> None:
        for session in self.live():
            self.finish(session, "left")
        self.selector.close()
        self.listener.close()
        if not self.options.address.startswith("@"):
            Path(self.options.address).unlink()

    def report(self) -> dict[str, object]:
        sent = self.messages[: self.published]
        return {
            "first_id": FIRST_ID if sent else 0,
            "last_id": FIRST_ID + len(sent) - 1 if sent else 0,
            "sha256": hashlib.sha256(b"".join(sent)).hexdigest(),
            "clients": [session.report() for session in self.sessions],
        }


def main() -> None:
    server = Server(arguments())
    try:
        server.run()
    finally:
        server.close()
    print(json.dumps(server.report()), flush=True)


if __name__ == "__main__":
    main()
