# SPDX-License-Identifier: Apache-2.0
"""The packets of the handshake as bytes."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from support import reference
from support.handshake import (
    CLASSIC_OFFER,
    FRAMES,
    OFFER,
    Packet,
    client_hellos,
    packets,
    server_hellos,
    told,
    versions,
    welcomes,
)

from jumiks._wire.handshake import (
    FIRST_ID,
    START_OLDEST,
    Capability,
    ClientHello,
    Malformed,
    ServerHello,
    Status,
    Welcome,
)

pytestmark = pytest.mark.no_core


class Vector(NamedTuple):
    value: Packet
    data: str
    """The packet in hex."""


VECTORS = {
    "a plain 1.0 server": Vector(ServerHello(extended=False), "010000000000"),
    "a server of another version": Vector(ServerHello((2, 1, 7), extended=False), "020001000700"),
    "a server that told everything": Vector(
        ServerHello((1, 0, 2), FRAMES, 1, 2, 3, 4, 5, 6),
        "010000000200 0100 0100000000000000 0200000000000000 0300000000000000 0400000000000000"
        "05000000 06000000",
    ),
    "a server whose numbers are the largest": Vector(
        ServerHello(
            (65535, 65535, 65535),
            Capability(65535),
            2**64 - 1,
            2**64 - 1,
            2**64 - 1,
            2**64 - 1,
            2**32 - 1,
            2**32 - 1,
        ),
        "ff" * 48,
    ),
    "a plain 1.0 client": Vector(ClientHello(extended=False), "010000000000"),
    "a client that wants nothing": Vector(ClientHello(), "010000000000" + "00" * 18),
    "a client that resumes": Vector(
        ClientHello((1, 0, 0), FRAMES, FIRST_ID + 1, 65536),
        "010000000000 0100 a186010000000000 00000100 00000000",
    ),
    "a welcome": Vector(
        Welcome(Status.ACCEPTED, FRAMES, FIRST_ID), "0000 0100 00000000 a086010000000000"
    ),
    "a refusal without words": Vector(Welcome(Status.INTERNAL), "0700" + "00" * 14),
    "a refusal with words": Vector(
        Welcome(Status.NOT_ALLOWED, text="n\N{LATIN SMALL LETTER E WITH ACUTE}"),
        "0200" + "00" * 14 + "6ec3a9",
    ),
    "a refusal that only a later version knows": Vector(
        Welcome(999, text="?"), "e703" + "00" * 14 + "3f"
    ),
}

every_vector = pytest.mark.parametrize(
    ("value", "data"), VECTORS.values(), ids=[name.replace(" ", "-") for name in VECTORS]
)


# ---- codecs ----


@every_vector
def test_a_value_becomes_its_bytes(value: Packet, data: str) -> None:
    assert value.encode() == bytes.fromhex(data)


@every_vector
def test_bytes_become_their_value(value: Packet, data: str) -> None:
    assert type(value).decode(bytes.fromhex(data)) == value


def test_values_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OFFER.next_id = 1  # type: ignore[misc]


@pytest.mark.parametrize("kind", [ServerHello, ClientHello])
@pytest.mark.parametrize("length", range(6))
def test_a_hello_without_a_whole_version_is_malformed(
    kind: type[ServerHello | ClientHello], length: int
) -> None:
    with pytest.raises(Malformed, match=f"{length} bytes"):
        kind.decode(bytes(length))


@pytest.mark.parametrize("length", range(16))
def test_a_welcome_without_its_fixed_part_is_malformed(length: int) -> None:
    with pytest.raises(Malformed, match=f"{length} bytes"):
        Welcome.decode(bytes(length))


@pytest.mark.parametrize("kind", [ServerHello, ClientHello])
def test_a_hello_is_extended_from_eight_bytes_on(kind: type[ServerHello | ClientHello]) -> None:
    packet = OFFER.encode()
    assert [kind.decode(packet[:n]).extended for n in (6, 7, 8, 9)] == [False, False, True, True]


def test_the_odd_seventh_byte_of_a_classic_hello_means_nothing() -> None:
    assert ServerHello.decode(b"\1\0\0\0\0\0\xff") == CLASSIC_OFFER


def test_a_field_that_is_cut_reads_as_zero() -> None:
    packet = OFFER.encode()
    assert ServerHello.decode(packet[:47]).max_message == 0
    assert ServerHello.decode(packet[:47]).max_packet == OFFER.max_packet
    assert ServerHello.decode(packet[:15]) == ServerHello(capabilities=FRAMES)


@pytest.mark.parametrize("length", [16, 23])
def test_a_welcome_to_a_log_without_its_offset_is_malformed(length: int) -> None:
    packet = Welcome(Status.ACCEPTED, FRAMES | Capability.LOG, FIRST_ID).encode()
    with pytest.raises(Malformed, match=f"{length} bytes, where at least 24 are due"):
        Welcome.decode(packet[:length])


def test_what_follows_a_hello_is_ignored() -> None:
    reply = ClientHello(capabilities=FRAMES, start=START_OLDEST)
    assert ServerHello.decode(OFFER.encode() + b"later") == OFFER
    assert ClientHello.decode(reply.encode() + b"later") == reply


def test_what_follows_an_accepting_welcome_is_ignored() -> None:
    welcome = Welcome(Status.ACCEPTED, FRAMES, FIRST_ID)
    assert Welcome.decode(welcome.encode() + b"later") == welcome


def test_an_accepting_welcome_carries_no_text() -> None:
    assert len(Welcome(Status.ACCEPTED, text="hello").encode()) == 16


def test_a_known_status_is_decoded_to_its_name() -> None:
    for status in Status:
        assert Welcome.decode(Welcome(status).encode()).status is status


def test_a_long_text_is_cut_between_characters() -> None:
    packet = Welcome(Status.INTERNAL, text="x" + "\N{EURO SIGN}" * 300).encode()
    assert packet[16:].decode() == "x" + "\N{EURO SIGN}" * 170
    assert len(packet) <= 16 + 512


def test_of_a_text_512_bytes_are_sent_and_read() -> None:
    packet = Welcome(Status.INTERNAL, text="x" * 513).encode()
    assert packet[16:] == b"x" * 512
    assert Welcome.decode(packet + b"x").text == "x" * 512


def test_a_text_that_is_no_utf_8_is_still_read() -> None:
    assert (
        Welcome.decode(Welcome(Status.INTERNAL).encode() + b"a\xffb").text
        == "a\N{REPLACEMENT CHARACTER}b"
    )


def test_a_text_that_cannot_be_utf_8_is_still_sent() -> None:
    assert Welcome.decode(Welcome(Status.INTERNAL, text="a\udcffb").encode()).text == "a?b"


@given(server_hellos)
def test_a_server_hello_is_the_reference_s(hello: ServerHello) -> None:
    values = told(hello)
    assert hello.extended
    assert hello.encode() == reference.encode_server_hello(reference.ServerHello(*values))
    assert ServerHello.decode(hello.encode()) == hello


@given(client_hellos)
def test_a_reply_is_the_reference_s(hello: ClientHello) -> None:
    values = told(hello)
    assert hello.extended
    assert hello.encode() == reference.encode_reply(reference.Reply(*values))
    assert ClientHello.decode(hello.encode()) == hello


@given(versions)
def test_a_classic_hello_is_the_reference_s(version: tuple[int, int, int]) -> None:
    packet = reference.encode_classic_hello(version)
    assert ServerHello(version, FRAMES, 7, extended=False).encode() == packet
    assert ClientHello(version, FRAMES, 7, extended=False).encode() == packet


@given(welcomes)
def test_a_welcome_is_the_reference_s(welcome: Welcome) -> None:
    packet = reference.encode_welcome(reference.Welcome(**dataclasses.asdict(welcome)))
    assert welcome.encode() == packet
    assert Welcome.decode(packet) == welcome


def agree(ours: Callable[[], Packet], theirs: Callable[[], tuple[object, ...]]) -> None:
    """Both read the same, or neither reads anything."""
    try:
        expected = theirs()
    except reference.WireError:
        with pytest.raises(Malformed):
            ours()
    else:
        assert told(ours())[: len(expected)] == expected


@given(packets)
def test_any_bytes_are_read_as_the_reference_reads_them(packet: bytes) -> None:
    agree(lambda: ServerHello.decode(packet), lambda: reference.decode_server_hello(packet))
    agree(lambda: ClientHello.decode(packet), lambda: reference.decode_reply(packet))
    agree(lambda: Welcome.decode(packet), lambda: reference.decode_welcome(packet))
    if len(packet) >= 6:
        extended = reference.is_extended(packet)
        assert ServerHello.decode(packet).extended == extended
        assert ClientHello.decode(packet).extended == extended
