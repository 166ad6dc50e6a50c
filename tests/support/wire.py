# SPDX-License-Identifier: Apache-2.0
"""Peers by hand for the tests: a raw client, a server that says what it is told to, a witness.

The raw ones speak through `socket` and `reference` alone, so they can be as wrong as a test wants.
"""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import pytest

import jumiks
from jumiks._server.newcomers import SPARE
from support import reference
from support.base import DEADLINE, wait_until
from support.reference import Bye, Message, Reply, Welcome
from support.servers import Server

FIRST_ID = 100000
LARGE = 1 << 20
"""Bytes, more than any packet has."""

HELLO = reference.encode_classic_hello()
REPLY = reference.encode_reply(Reply(capabilities=reference.FRAMES))


def name_of(address: str) -> str:
    """An address as the kernel takes it."""
    return "\0" + address[1:] if address.startswith("@") else address


def dial(address: str) -> socket.socket:
    """Connect, and do nothing else."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Before there is a timeout: without one, a full backlog is waited for.
        sock.connect(name_of(address))
    except BaseException:
        sock.close()
        raise
    sock.settimeout(DEADLINE)
    return sock


def packets_of(sock: socket.socket) -> Iterator[bytes]:
    """Packet after packet until the end; a reset in between means that there is more to read."""
    while True:
        try:
            packet = sock.recv(LARGE)
        except ConnectionResetError:
            continue
        if not packet:
            return
        yield packet


class RawClient:
    """A client that has shaken hands, and acks only what it is told to.

    Args:
        address: the server's.
        framed: whether it wants frames; otherwise it speaks plain 1.0.
        start: where to start, as in the reply.
        max_packet: the largest packet that it claims to take, bytes.
    """

    def __init__(
        self, address: str, *, framed: bool = True, start: int = 0, max_packet: int = 0
    ) -> None:
        self.sock = dial(address)
        self.framed = framed
        try:
            self.hello = reference.decode_server_hello(self.sock.recv(LARGE))
            self.welcome = self._answer(start, max_packet) if framed else Welcome()
        except BaseException:
            self.sock.close()
            raise
        self._stream = self._read()
        self.was_sent: Callable[[int], object] = lambda packet_id: True

    def _answer(self, start: int, max_packet: int) -> Welcome:
        reply = Reply(capabilities=reference.FRAMES, start=start, max_packet=max_packet)
        self.sock.send(reference.encode_reply(reply))
        return reference.decode_welcome(self.sock.recv(LARGE))

    def _read(self) -> Iterator[Message | Bye]:
        if self.framed:
            yield from reference.read_framed(packets_of(self.sock))
        else:
            for packet in packets_of(self.sock):
                yield reference.decode_classic(packet)

    def read(self, count: int) -> list[Message]:
        """The next messages; fails if something else comes, or nothing."""
        found = []
        for _ in range(count):
            item = next(self._stream, None)
            assert isinstance(item, Message), item
            found.append(item)
        return found

    def rest(self) -> tuple[list[Message], Bye | None]:
        """All that still comes until the end of the connection, and the goodbye if there is one."""
        found = list(self._stream)
        last = found[-1] if found else None
        bye = last if isinstance(last, Bye) else None
        messages = [item for item in found if isinstance(item, Message)]
        assert len(messages) == len(found) - (bye is not None)
        return messages, bye

    def ack_early(self, packet_id: int) -> None:
        self.sock.send(reference.encode_ack(packet_id))

    def ack(self, packet_id: int) -> None:
        # What was published may be on its way yet, and an ack that overtakes it is an error.
        wait_until(lambda: self.was_sent(packet_id))
        self.ack_early(packet_id)

    def has_input(self) -> bool:
        """Whether a packet, or the end, can be read without waiting."""
        with suppress(BlockingIOError):
            self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return True
        return False

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def raw_client(server: Server, address: str, *, framed: bool = True, **options: int) -> RawClient:
    """Connect a raw client and wait until the server has let it in; a classic one is not told."""
    count = server.stats().clients
    client = RawClient(address, framed=framed, **options)
    if not framed:
        client.sock.send(HELLO)
    server.wait_for_clients(count + 1, DEADLINE)
    key = max(info.key for info in server.clients())

    def was_sent(packet_id: int) -> bool:
        mine = [info for info in server.clients() if info.key == key]
        return not mine or mine[0].sent_id >= packet_id

    client.was_sent = was_sent
    return client


class Witness:
    """Our own client, in a thread that takes all it gets until the end, however that comes.

    Args:
        address: the server's.
        options: of `jumiks.Client`.
    """

    def __init__(self, address: str, **options: Any) -> None:
        self.gaps: list[jumiks.Gap] = []
        self.ids: list[int] = []
        self.messages: list[bytes] = []
        self.end: Exception | None = None
        self.client = jumiks.Client(address, on_gap=self.gaps.append, **options)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                batch = self.client.receive_many()
                self.ids.extend(range(batch.first_id, batch.last_id + 1))
                self.messages.extend(batch)
        except Exception as error:
            self.end = error

    def wait_for(self, count: int) -> None:
        """Wait until so many messages have come."""
        wait_until(lambda: len(self.messages) >= count or not self.thread.is_alive())

    def wait_for_end(self) -> Exception:
        self.thread.join(DEADLINE)
        assert self.end is not None
        return self.end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.thread.join(DEADLINE)


def has_spares(server: Server) -> bool:
    """Whether it has let in who came last, and has its spare descriptors again."""
    return len(server._control._newcomers._spare._copies) == SPARE


class Harassed:
    """A server with an innocent client, who must get all that is published in the block, in order.

    Args:
        address: where to serve.
        options: of `jumiks.Server`.
    """

    def __init__(self, address: str, **options: Any) -> None:
        self.address = address
        self.ends: list[tuple[jumiks.ClientInfo, jumiks.EndReason]] = []
        self.published: list[bytes] = []
        self.server = Server(address, on_disconnect=lambda *end: self.ends.append(end), **options)
        try:
            self.witness = Witness(address)
        except BaseException:
            self.server.close()
            raise
        wait_until(lambda: has_spares(self.server))  # for who counts descriptors

    def publish(self, count: int = 1, size: int = 24) -> int:
        """Publish messages that all differ; returns the id of the last one."""
        start = len(self.published)
        new = [b"%0*d" % (size, number) for number in range(start, start + count)]
        ids = self.server.publish_many(new, timeout=DEADLINE)
        self.published += new
        return ids[-1]

    def reasons(self, count: int) -> list[jumiks.EndReason]:
        """Why clients went, once so many are gone."""
        wait_until(lambda: len(self.ends) >= count)
        return [reason for _, reason in self.ends]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.publish()
                self.witness.wait_for(len(self.published))
        finally:
            self.server.close()
            if error is None:
                self.witness.thread.join(DEADLINE)
            self.witness.__exit__()
        if error is None:
            assert isinstance(self.witness.end, jumiks.ServerClosed), self.witness.end
            assert self.witness.messages == self.published
            first = self.witness.ids[0]
            assert self.witness.ids == list(range(first, first + len(self.published)))


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """A listening socket, for a server by hand."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.settimeout(DEADLINE)
        listener.bind(name_of(address))
        listener.listen(16)
        yield listener


@contextmanager
def one_connection(
    listener: socket.socket, script: Callable[[socket.socket], object]
) -> Iterator[None]:
    """Serve one connection by a script, in a thread; a client that closes ends it."""

    def run() -> None:
        connection, _ = listener.accept()
        with connection, suppress(BrokenPipeError, ConnectionResetError):
            connection.settimeout(DEADLINE)
            script(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(2 * DEADLINE)
        if thread.is_alive():
            pytest.fail("the server by hand hangs")


@contextmanager
def acks_unread(address: str, count: int) -> Iterator[tuple[threading.Event, list[bytes]]]:
    """A plain 1.0 server with so many messages that a socket has no room for all their acks.

    Yields an event, and the acks that it reads once that is set.
    """
    read = threading.Event()
    acks: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.send(reference.encode_classic_hello())
        connection.recv(LARGE)
        for number in range(count):
            connection.send(reference.encode_classic(Message(FIRST_ID + number, b"")))
        assert read.wait(DEADLINE)
        while ack := connection.recv(16):  # until the client closes
            acks.append(ack)

    with listening(address) as listener, one_connection(listener, serve):
        yield read, acks


def hello_of(**fields: Any) -> bytes:
    """A server's hello that offers frames."""
    defaults: dict[str, Any] = {
        "capabilities": reference.FRAMES,
        "server_id": 42,
        "oldest_id": FIRST_ID,
        "next_id": FIRST_ID,
        "max_packet": 4096,
        "max_message": 65536,
    }
    return reference.encode_server_hello(reference.ServerHello(**(defaults | fields)))


WELCOME = reference.encode_welcome(Welcome(0, reference.FRAMES, FIRST_ID))


def saying(
    packets: Sequence[bytes], hello: bytes | None = None, welcome: bytes | None = WELCOME
) -> Callable[[socket.socket], None]:
    """A script: shake hands, send packets, close."""

    def script(connection: socket.socket) -> None:
        connection.send(hello_of() if hello is None else hello)
        connection.recv(LARGE)
        if welcome is not None:
            connection.send(welcome)
        send_all(connection, packets)

    return script


def send_all(connection: socket.socket, packets: Iterable[bytes]) -> None:
    for packet in packets:
        connection.send(packet)
