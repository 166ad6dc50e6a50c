# SPDX-License-Identifier: Apache-2.0
"""An end of any kind shuts the connection down at once, though the user keeps the client."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import pytest
from support import reference
from support.base import DEADLINE
from support.reference import Frame, Message, Welcome
from support.wire import (
    FIRST_ID,
    HELLO,
    LARGE,
    hello_of,
    listening,
    one_connection,
    saying,
)

from jumiks import (
    AsyncClient,
    Client,
    ConnectionLost,
    Disconnected,
    JumiksError,
    Lagged,
    Monitor,
    ProtocolError,
    Refused,
    ServerClosed,
    VersionMismatch,
)


def bye(reason: int) -> list[bytes]:
    return [reference.encode_bye(reference.Bye(reason), FIRST_ID - 1)]


CRITICAL = [reference.encode_frame(Frame(FIRST_ID, b"", 0x8077))]
SHORT = [b"short"]
FRAMED: dict[str, Any] = {"hello": hello_of()}
PLAIN: dict[str, Any] = {"hello": HELLO, "welcome": None}
LISTENER = struct.Struct("<HHI")

ENDS = pytest.mark.parametrize(
    ("error", "packets", "way"),
    [
        pytest.param(ProtocolError, CRITICAL, FRAMED, id="ProtocolError"),
        pytest.param(ProtocolError, SHORT, PLAIN, id="plain"),
        pytest.param(ProtocolError, bye(3), FRAMED, id="blamed"),
        pytest.param(Lagged, bye(1), FRAMED, id="Lagged"),
        pytest.param(ServerClosed, bye(2), FRAMED, id="ServerClosed"),
        pytest.param(Disconnected, bye(5), FRAMED, id="Disconnected"),
        pytest.param(ConnectionLost, bye(77), FRAMED, id="unknown"),
    ],
)


class Blocking:
    """A server by hand whose writes block: what it does until its client is gone.

    Args:
        script: what comes first.
        packet: what it writes after that, again and again; None has it read alone.
    """

    def __init__(
        self, script: Callable[[socket.socket], object], packet: bytes | None = b"12345678more"
    ) -> None:
        self.script, self.packet = script, packet
        self.read: list[bytes] = []
        self.gone = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        self.script(connection)
        connection.settimeout(DEADLINE)
        with suppress(BrokenPipeError, ConnectionResetError):
            while self.packet is not None:
                connection.send(self.packet)
        with suppress(ConnectionResetError):
            while packet := connection.recv(LARGE):
                self.read.append(packet)
        self.gone.set()


@contextmanager
def serving(address: str, server: Blocking) -> Iterator[Blocking]:
    with listening(address) as listener, one_connection(listener, server):
        yield server


@ENDS
@pytest.mark.parametrize("packet", [b"12345678more", None], ids=["writes", "reads"])
def test_an_end_shuts_the_connection_down_though_the_client_is_kept(
    address: str,
    error: type[JumiksError],
    packets: list[bytes],
    way: dict[str, Any],
    packet: bytes | None,
) -> None:
    with (
        serving(address, Blocking(saying(packets, **way), packet)) as server,
        Client(address) as client,
    ):
        with pytest.raises(error):
            client.receive(DEADLINE)
        assert server.gone.wait(DEADLINE)
        with pytest.raises(error):
            client.receive_many(0)


@ENDS
def test_an_end_shuts_the_connection_of_an_async_client_down(
    address: str, error: type[JumiksError], packets: list[bytes], way: dict[str, Any]
) -> None:
    async def main() -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(error):
                await client.receive(DEADLINE)
            assert await anyio.to_thread.run_sync(server.gone.wait, DEADLINE)

    with serving(address, Blocking(saying(packets, **way))) as server:
        anyio.run(main)


def test_the_end_of_the_stream_shuts_the_other_direction_too(address: str) -> None:
    def script(connection: socket.socket) -> None:
        saying([], HELLO, None)(connection)
        connection.shutdown(socket.SHUT_WR)

    with serving(address, Blocking(script, None)) as server, Client(address) as client:
        with pytest.raises(ConnectionLost):
            client.receive(DEADLINE)
        assert server.gone.wait(DEADLINE)


def test_what_was_received_before_the_end_is_acked_before_it_is_told(address: str) -> None:
    messages = [reference.encode_frames([Frame(FIRST_ID + i, b"x")]) for i in range(3)]
    server = Blocking(saying([*messages, *bye(5)], hello_of()), None)
    with serving(address, server), Client(address) as client:
        for _ in messages:
            client.receive(DEADLINE)
        with pytest.raises(Disconnected):
            client.receive(DEADLINE)
        assert server.gone.wait(DEADLINE)
    assert server.read[-1] == reference.encode_ack(FIRST_ID + 2)


def test_a_plain_server_gets_an_ack_for_each_message_before_the_end(address: str) -> None:
    packets = [reference.encode_classic(Message(FIRST_ID + i, b"x")) for i in range(3)]
    server = Blocking(saying([*packets, *SHORT], HELLO, None), None)
    with serving(address, server), Client(address) as client:
        with pytest.raises(ProtocolError):
            for _ in client:
                pass
        assert server.gone.wait(DEADLINE)
    assert server.read == [reference.encode_ack(FIRST_ID + i) for i in range(3)]


@pytest.mark.parametrize(
    ("error", "hello", "welcome"),
    [
        (VersionMismatch, reference.encode_classic_hello()[:2] + b"\x07\0\0\0", None),
        (ProtocolError, b"hi", None),
        (ProtocolError, hello_of(), b"short"),
        (Refused, hello_of(), reference.encode_welcome(Welcome(5, text="it is closing"))),
    ],
    ids=["version", "hello", "welcome", "refused"],
)
def test_a_failed_handshake_closes_the_connection_though_the_error_is_kept(
    address: str, error: type[JumiksError], hello: bytes, welcome: bytes | None
) -> None:
    def script(connection: socket.socket) -> None:
        connection.send(hello)
        if welcome is not None:
            connection.recv(LARGE)
            connection.send(welcome)

    with serving(address, Blocking(script)) as server:
        with pytest.raises(error) as kept:
            Client(address)
        assert server.gone.wait(DEADLINE)
        del kept


def a_status(body: bytes, kind: int = 1) -> bytes:
    return LISTENER.pack(kind, 0, 1) + body


@pytest.mark.parametrize(
    "answer",
    [b"short", a_status(b"", 77), a_status(b"no JSON"), a_status(json.dumps([]).encode())],
    ids=["short", "unknown", "no JSON", "no status"],
)
def test_a_fault_ends_a_monitors_connection_though_it_is_kept(address: str, answer: bytes) -> None:
    welcome = reference.encode_welcome(Welcome(0, reference.MONITOR, 0))

    def script(connection: socket.socket) -> None:
        saying([], hello_of(capabilities=reference.MONITOR), welcome)(connection)
        connection.recv(LARGE)
        connection.send(answer)

    with serving(address, Blocking(script)) as server, Monitor(address) as monitor:
        with pytest.raises(ProtocolError):
            monitor.status()
        assert server.gone.wait(DEADLINE)
        with pytest.raises(ConnectionLost):
            monitor.status()
