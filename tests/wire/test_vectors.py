# SPDX-License-Identifier: Apache-2.0
"""docs/wire-vectors.json, for those who write a peer: ours read its packets and streams so."""

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
from support import reference
from support.base import ROOT
from support.wire import listening, one_connection

from jumiks import Client, ConnectionLost, JumiksError, ProtocolError, ServerClosed
from jumiks._wire.handshake import ClientHello, Malformed, ServerHello, Welcome

VECTORS = json.loads((ROOT / "docs/wire-vectors.json").read_text("utf-8"))
PACKETS, STREAMS = VECTORS["packets"], VECTORS["streams"]

Fields = dict[str, Any]

OURS: dict[str, Any] = {"server-hello": ServerHello, "reply": ClientHello, "welcome": Welcome}
"""The package's codecs, which have the names of the page; messages are the core's."""

THEIRS: dict[str, Callable[[bytes], Any]] = {
    "server-hello": reference.decode_server_hello,
    "reply": reference.decode_reply,
    "welcome": reference.decode_welcome,
    "classic-message": reference.decode_classic,
    "ack": lambda packet: {"id": reference.decode_ack(packet)},
}


def shown(value: Any) -> Any:
    """A field as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    return value.hex() if isinstance(value, bytes) else value


def by_name(vector: Fields) -> str:
    return f"{vector.get('kind') or vector['delivery']}: {vector['name']}"


@pytest.mark.no_core
@pytest.mark.parametrize("vector", PACKETS, ids=by_name)
def test_the_reference_reads_a_packet_so(vector: Fields) -> None:
    read, packet = THEIRS[vector["kind"]], bytes.fromhex(vector["hex"])
    if "error" in vector:
        with pytest.raises(reference.WireError):
            read(packet)
        return
    found = read(packet)
    fields = found if isinstance(found, dict) else found._asdict()
    assert {name: shown(value) for name, value in fields.items()} == vector["fields"]


@pytest.mark.no_core
@pytest.mark.parametrize("vector", [each for each in PACKETS if each["kind"] in OURS], ids=by_name)
def test_the_package_reads_and_writes_a_packet_so(vector: Fields) -> None:
    kind, packet = OURS[vector["kind"]], bytes.fromhex(vector["hex"])
    if "error" in vector:
        with pytest.raises(Malformed):
            kind.decode(packet)
        return
    found = kind.decode(packet)
    assert {name: shown(getattr(found, name)) for name in vector["fields"]} == vector["fields"]
    if vector.get("canonical", True):
        assert found.encode() == packet


@pytest.mark.no_core
@pytest.mark.parametrize(
    "vector", [each for each in STREAMS if each["delivery"] == "framed"], ids=by_name
)
def test_the_reference_reads_a_stream_so(vector: Fields) -> None:
    found: list[list[Any]] = []
    end = "end"
    try:
        for item in reference.read_framed(map(bytes.fromhex, vector["packets"])):
            if isinstance(item, reference.Bye):
                end = "BYE"
            else:
                found.append([item.id, item.payload.hex()])
    except reference.WireError:
        end = "error"
    assert (found, end) == (vector["messages"], vector["end"])


def serve(vector: Fields, connection: socket.socket) -> None:
    """Be the server of a stream, by hand."""
    framed = vector["delivery"] == "framed"
    hello = reference.ServerHello(
        capabilities=reference.FRAMES, server_id=1, next_id=100000, max_packet=4096, max_message=999
    )
    with connection:
        connection.send(
            reference.encode_server_hello(hello) if framed else reference.encode_classic_hello()
        )
        connection.recv(4096)
        if framed:
            welcome = reference.Welcome(capabilities=reference.FRAMES, first_id=100000)
            connection.send(reference.encode_welcome(welcome))
        for packet in vector["packets"]:
            connection.send(bytes.fromhex(packet))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass  # acks, until the client has gone


ENDS: dict[str, type[JumiksError]] = {
    "BYE": ServerClosed,
    "end": ConnectionLost,
    "error": ProtocolError,
}


@pytest.mark.parametrize("vector", STREAMS, ids=by_name)
def test_a_client_reads_a_stream_so(vector: Fields, address: str) -> None:
    found = []
    with listening(address) as listener:
        with one_connection(listener, lambda connection: serve(vector, connection)):
            with Client(address, delivery="framed") as client:
                with pytest.raises(ENDS[vector["end"]]):
                    while True:
                        message = client.receive()
                        found.append([client.last_id, message.hex()])
    assert [payload for _, payload in found] == [payload for _, payload in vector["messages"]]
    if vector["delivery"] == "framed":  # a plain 1.0 server's are labels, and the client's its own
        assert found == vector["messages"]


def rows_of(page: str, header: str) -> dict[str, str]:
    """The table of another-language.md that begins so: the meaning of each key."""
    _, _, rest = page.partition(f"| {header} | meaning |\n|---|---|\n")
    table, _, _ = rest.partition("\n\n")
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))


@pytest.mark.no_core
@pytest.mark.parametrize(
    ("header", "vectors", "listed"),
    [("key of a packet", PACKETS, ["kind"]), ("key of a stream", STREAMS, ["delivery", "end"])],
)
def test_the_page_lists_the_keys_and_their_words(
    header: str, vectors: list[Fields], listed: list[str]
) -> None:
    rows = rows_of((ROOT / "docs/howto/another-language.md").read_text("utf-8"), header)
    assert set(rows) == {key for vector in vectors for key in vector}
    for key in listed:
        assert set(re.findall(r"`([\w-]+)`", rows[key])) == {vector[key] for vector in vectors}
