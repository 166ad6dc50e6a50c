# SPDX-License-Identifier: Apache-2.0
"""Both ends of a shared log by hand, from docs/protocol.md alone, as wrong as a test wants them."""

import ctypes
import fcntl
import mmap
import os
import platform
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import pytest

import jumiks
from jumiks import Client
from support import reference
from support.base import DEADLINE
from support.reference import Frame, Reply, Welcome
from support.servers import Server
from support.wire import FIRST_ID, LARGE, dial, hello_of, listening, one_connection

PAGE = mmap.PAGESIZE
RING = 1 << 16
"""Bytes of a ring by default."""

CURSOR = 192
"""Bytes of a cursor page, at least."""

MAGIC = 0x0A676F6C736D756A
WAKE_KIND, SKIP, RESUME = 3, 4, 5

SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE, SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16
SEALS = SEAL_SHRINK | SEAL_GROW | SEAL_FUTURE_WRITE

BOTH = reference.FRAMES | reference.LOG
WAKE_PACKET = reference.encode_frame(Frame(FIRST_ID, b"", WAKE_KIND))


class Words:
    """The words of a page that both ends map: each is loaded, and stored, at once."""

    def __init__(self, fd: int, size: int, *, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.map = mmap.mmap(fd, size, mmap.MAP_SHARED, protection)
        self._words = memoryview(self.map).cast("Q")

    def __getitem__(self, at: int) -> int:
        return self._words[at // 8]

    def __setitem__(self, at: int, value: int) -> None:
        self._words[at // 8] = value

    def close(self) -> None:
        self._words.release()
        self.map.close()


class HandMadeLog:
    """A server's log and one cursor page.

    Args:
        size: bytes of the ring.
        file_size: bytes of the file; the header page and the ring by default.
        seals: of the log's memfd.
        cursor_size: bytes of the cursor page.
        cursor_seals: of its memfd.
        words: the header's words that differ from what is right, by where they stand.
        sparse: whether the ring has holes.
    """

    def __init__(
        self,
        size: int = RING,
        *,
        file_size: int | None = None,
        seals: int = SEALS | SEAL_SEAL,
        cursor_size: int = PAGE,
        cursor_seals: int = SEAL_SHRINK | SEAL_GROW,
        words: dict[int, int] | None = None,
        sparse: bool = False,
    ) -> None:
        self.size = size
        whole = PAGE + size if file_size is None else file_size
        self.fd = os.memfd_create("jumiks-hand-made", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.cursor_fd = os.memfd_create("jumiks-hand-made", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, whole)
        if not sparse:
            os.posix_fallocate(self.fd, 0, whole)
        os.ftruncate(self.cursor_fd, cursor_size)
        self.words = Words(self.fd, whole, writable=True)
        # A page of a size that no client may take is not mapped.
        self.cursor = (
            Words(self.cursor_fd, CURSOR, writable=True) if cursor_size >= CURSOR else None
        )
        right = {0: MAGIC, 8: 1, 16: size, 72: FIRST_ID, 136: FIRST_ID}
        for at, value in (right | (words or {})).items():
            self.words[at] = value
        if seals:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        if cursor_seals:
            fcntl.fcntl(self.cursor_fd, fcntl.F_ADD_SEALS, cursor_seals)
        self.next_id = FIRST_ID

    @property
    def head(self) -> int:
        return self.words[64]

    @head.setter
    def head(self, offset: int) -> None:
        self.words[80] += 1
        self.words[64] = offset
        self.words[80] += 1

    def write(self, frame: bytes, offset: int | None = None) -> int:
        """Write a frame without letting anybody see it; returns the offset behind it."""
        start = self.head if offset is None else offset
        for at, byte in enumerate(frame):
            self.words.map[PAGE + (start + at) % self.size] = byte
        return start + len(frame)

    def want(self, packet_id: int) -> None:
        """Ask the client to say so by a packet when it has acked this."""
        assert self.cursor is not None
        self.cursor[128] = packet_id

    def publish(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.head = self.write(reference.encode_frame(Frame(self.next_id, payload)))
            self.next_id += 1

    def close(self) -> None:
        self.words.close()
        if self.cursor is not None:
            self.cursor.close()
        os.close(self.fd)
        os.close(self.cursor_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


HELLO = hello_of(capabilities=BOTH)


def shake_hands(
    connection: socket.socket,
    log: HandMadeLog,
    descriptors: Sequence[int] | None = None,
    **welcome: Any,
) -> Reply:
    """Let a client in, whatever it asked for; returns what that was."""
    connection.send(HELLO)
    reply = reference.decode_reply(connection.recv(LARGE))
    words = {"capabilities": BOTH, "first_id": FIRST_ID} | welcome
    packet = reference.encode_welcome(Welcome(**words))
    given = [log.fd, log.cursor_fd] if descriptors is None else descriptors
    if given:
        socket.send_fds(connection, [packet], given)
    else:
        connection.send(packet)
    return reply


NEXT_ID, TAIL, CONTROL = 72, 128, 144
"""Where words of 8 bytes stand in the log's page."""

OWNER, WAKES = 152, 136
"""Where two words of 4 bytes stand: in the log's page, and in the cursor page."""

OWNER_WAKES, OWNER_DIED = 1 << 31, 1 << 30
ON_WORD = 1 << 63
"""In `sleeping`: the client sleeps on a word."""

_FUTEX = {"x86_64": 202, "aarch64": 98}


def _futex(words: Words, at: int, call: int, wakes: int, moves: int, to: int) -> int:
    number = _FUTEX.get(platform.machine())
    if number is None:
        pytest.skip(f"the system calls of {platform.machine()} are not known here")
    where = [
        ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(words.map, each)))
        for each in (at, to)
    ]
    syscall = ctypes.CDLL(None).syscall
    return int(syscall(number, where[0], call, wakes, ctypes.c_long(moves), where[1], 0))


def futex_wake(words: Words, at: int) -> int:
    """Wake whoever sleeps on the word there; returns how many did."""
    return _futex(words, at, 1, 1000, 0, at)


def futex_requeue(words: Words, at: int, to: int) -> int:
    """Have whoever sleeps on the word there sleep on another one; returns how many did."""
    return _futex(words, at, 3, 0, 1000, to)


Script = Callable[[socket.socket, HandMadeLog], object]


@contextmanager
def served_by(
    address: str,
    script: Script,
    log: HandMadeLog,
    options: dict[str, Any] | None = None,
    /,
    **welcome: Any,
) -> Iterator[Client]:
    """Our client at a server by hand, which runs the script once it has let the client in.

    The connection stays until the client has closed it. `options` are the client's, `welcome` is
    what differs in its welcome.
    """

    def serve(connection: socket.socket) -> None:
        shake_hands(connection, log, **welcome)
        script(connection, log)
        while connection.recv(LARGE):
            pass

    with listening(address) as listener, one_connection(listener, serve):
        with Client(address, **(options or {})) as client:
            yield client


class Control(NamedTuple):
    """A packet of a shared connection, from the server."""

    kind: int
    id: int
    payload: bytes


class HandMadeClient:
    """A client of a shared log that stores in its page what a test wants it to.

    Args:
        address: the server's.
        start: where to start, as in the reply.
    """

    def __init__(self, address: str, start: int = 0) -> None:
        self.sock = dial(address)
        self.descriptors: list[int] = []
        try:
            hello = reference.decode_server_hello(self.sock.recv(LARGE))
            assert hello.capabilities & reference.LOG
            reply = Reply(capabilities=BOTH, start=start)
            self.sock.send(reference.encode_reply(reply))
            packet, self.descriptors, _, _ = socket.recv_fds(self.sock, LARGE, 8)
            self.welcome = reference.decode_welcome(packet)
            assert self.welcome.capabilities == BOTH
            self.log_fd, self.cursor_fd = self.descriptors
            self.size = os.fstat(self.log_fd).st_size - PAGE
            self.log = Words(self.log_fd, PAGE + self.size, writable=False)
            self.cursor = Words(self.cursor_fd, CURSOR, writable=True)
        except BaseException:
            self._give_back()
            raise
        self.offset = self.welcome.first_offset
        self.next_id = self.welcome.first_id

    def read(self) -> list[bytes]:
        """All messages up to the log's end."""
        found = []
        while self.offset < self.log[64]:
            at = PAGE + self.offset % self.size
            ring = self.log.map
            header = bytes(ring[at : at + 16])
            size = int.from_bytes(header[:4], "little")
            assert header == reference.encode_frame(Frame(self.next_id, bytes(size)))[:16]
            start = self.offset + 16
            found.append(bytes(ring[PAGE + (start + place) % self.size] for place in range(size)))
            self.offset += (16 + size + 7) // 8 * 8
            self.next_id += 1
        return found

    def ack(self, packet_id: int) -> None:
        """Store it, and nothing else."""
        self.cursor[0] = packet_id

    def sleep(self, number: int) -> None:
        self.cursor[64] = number

    def packets(self) -> Iterator[Control]:
        """What comes over the socket, to the end."""
        while True:
            try:
                packet = self.sock.recv(LARGE)
            except ConnectionResetError:
                continue
            if not packet:
                return
            (frame,) = reference.decode_frames(packet)
            yield Control(frame.kind, frame.id, frame.payload)

    def control(self) -> Control:
        """The next packet that is no wake-up."""
        return next(each for each in self.packets() if each.kind != WAKE_KIND)

    def has_input(self) -> bool:
        return bool(select.select([self.sock], [], [], 0)[0])

    def _give_back(self) -> None:
        self.sock.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    def close(self) -> None:
        self.log.close()
        self.cursor.close()
        self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def hand_made_client(server: Server, address: str, start: int = 0) -> Iterator[HandMadeClient]:
    """A client by hand, from when the server counts it."""
    count = server.stats().clients
    with HandMadeClient(address, start) as client:
        server.wait_for_clients(count + 1, DEADLINE)
        yield client


def info_of(server: Server) -> jumiks.ClientInfo:
    """The figures of the client that came last."""
    return max(server.clients(), key=lambda info: info.key)
