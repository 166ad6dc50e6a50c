# SPDX-License-Identifier: Apache-2.0
"""The protocol once more, written from docs/protocol.md alone, slowly and in `struct`.

It shares no line with the package or its C core, so that the tests can hold them against it.
What breaks the protocol raises `WireError`.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

Version = tuple[int, int, int]

FRAMES, LOG, MONITOR = 1, 2, 4
DATA, BYE, CRITICAL = 1, 2, 0x8000
FRAGMENT, MORE = 1, 2

FRAME_HEADER = 16
FRAGMENT_HEADER = 24


class WireError(Exception):
    """A packet that the protocol does not allow."""


class ServerHello(NamedTuple):
    version: Version = (1, 0, 0)
    capabilities: int = 0
    server_id: int = 0
    oldest_id: int = 0
    next_id: int = 0
    max_lag: int = 0
    max_packet: int = 0
    max_message: int = 0


class Reply(NamedTuple):
    version: Version = (1, 0, 0)
    capabilities: int = 0
    start: int = 0
    max_packet: int = 0


class Welcome(NamedTuple):
    status: int = 0
    capabilities: int = 0
    first_id: int = 0
    text: str = ""
    first_offset: int = 0
    left_out: int = 0


class Frame(NamedTuple):
    id: int
    payload: bytes = b""
    kind: int = DATA
    flags: int = 0


class Fragment(NamedTuple):
    id: int
    total: int
    offset: int
    slice: bytes
    more: bool


class Bye(NamedTuple):
    reason: int
    limit_kind: int = 0
    limit: int = 0
    lag: int = 0
    lag_bytes: int = 0
    acked_id: int = 0
    first_lost: int = 0
    last_lost: int = 0
    oldest_id: int = 0


class Message(NamedTuple):
    id: int
    payload: bytes


# ---- hello, reply, welcome ----


def number(packet: bytes, offset: int, size: int) -> int:
    """A field; zero if the packet ends before the field does."""
    field = packet[offset : offset + size]
    return int.from_bytes(field, "little") if len(field) == size else 0


def version_of(packet: bytes) -> Version:
    if len(packet) < 6:
        raise WireError(f"no version in {len(packet)} bytes")
    return number(packet, 0, 2), number(packet, 2, 2), number(packet, 4, 2)


def is_extended(packet: bytes) -> bool:
    """Whether a hello or a reply goes beyond plain 1.0."""
    return len(packet) >= 8


def encode_classic_hello(version: Version = (1, 0, 0)) -> bytes:
    return struct.pack("<3H", *version)


def encode_server_hello(hello: ServerHello) -> bytes:
    return struct.pack("<4H4Q2I", *hello.version, *hello[1:])


def decode_server_hello(packet: bytes) -> ServerHello:
    return ServerHello(
        version_of(packet),
        capabilities=number(packet, 6, 2),
        server_id=number(packet, 8, 8),
        oldest_id=number(packet, 16, 8),
        next_id=number(packet, 24, 8),
        max_lag=number(packet, 32, 8),
        max_packet=number(packet, 40, 4),
        max_message=number(packet, 44, 4),
    )


def encode_reply(reply: Reply) -> bytes:
    return struct.pack("<4HQ2I", *reply.version, *reply[1:], 0)


def decode_reply(packet: bytes) -> Reply:
    return Reply(
        version_of(packet),
        capabilities=number(packet, 6, 2),
        start=number(packet, 8, 8),
        max_packet=number(packet, 16, 4),
    )


def encode_welcome(welcome: Welcome) -> bytes:
    fixed = struct.pack(
        "<2HIQ", welcome.status, welcome.capabilities, welcome.left_out, welcome.first_id
    )
    if welcome.status:
        return fixed + welcome.text.encode()
    return fixed + (struct.pack("<Q", welcome.first_offset) if welcome.capabilities & LOG else b"")


def decode_welcome(packet: bytes) -> Welcome:
    if len(packet) < 16:
        raise WireError(f"a welcome of {len(packet)} bytes")
    status, capabilities, left_out, first_id = struct.unpack_from("<2HIQ", packet)
    if status:
        text = packet[16 : 16 + 512].decode(errors="replace")
        return Welcome(status, capabilities, first_id, text)
    if not capabilities & LOG:
        return Welcome(status, capabilities, first_id, left_out=left_out)
    if len(packet) < 24:
        raise WireError(f"a welcome with LOG of {len(packet)} bytes")
    return Welcome(status, capabilities, first_id, "", number(packet, 16, 8), left_out)


# ---- classic messages, acks ----


def encode_classic(message: Message) -> bytes:
    return struct.pack("<Q", message.id) + message.payload


def decode_classic(packet: bytes) -> Message:
    if len(packet) < 8:
        raise WireError(f"a message of {len(packet)} bytes")
    return Message(number(packet, 0, 8), packet[8:])


def encode_ack(packet_id: int) -> bytes:
    return struct.pack("<Q", packet_id)


def decode_ack(packet: bytes) -> int:
    if len(packet) != 8:
        raise WireError(f"an ack of {len(packet)} bytes")
    return number(packet, 0, 8)


# ---- frames ----


def encode_frame(frame: Frame) -> bytes:
    header = struct.pack("<I2HQ", len(frame.payload), frame.kind, frame.flags, frame.id)
    padding = -(FRAME_HEADER + len(frame.payload)) % 8
    return header + frame.payload + bytes(padding)


def encode_frames(frames: Iterable[Frame]) -> bytes:
    """One packet."""
    return b"".join(map(encode_frame, frames))


def decode_frames(packet: bytes) -> list[Frame]:
    """Every frame of a packet, of whatever kind."""
    frames = []
    while packet:
        if len(packet) < FRAME_HEADER:
            raise WireError(f"{len(packet)} bytes left, too few for a frame")
        size, kind, flags, packet_id = struct.unpack_from("<I2HQ", packet)
        whole = FRAME_HEADER + size
        whole += -whole % 8
        if whole > len(packet):
            raise WireError(f"a frame of {whole} bytes in {len(packet)}")
        payload = packet[FRAME_HEADER : FRAME_HEADER + size]
        frames.append(Frame(packet_id, payload, kind, flags))
        packet = packet[whole:]
    return frames


def encode_fragment(fragment: Fragment) -> bytes:
    payload = struct.pack("<2I", fragment.total, fragment.offset) + fragment.slice
    flags = FRAGMENT | MORE if fragment.more else FRAGMENT
    return encode_frame(Frame(fragment.id, payload, DATA, flags))


def decode_fragment(frame: Frame) -> Fragment:
    """What a frame with the flag `FRAGMENT` says."""
    if len(frame.payload) <= 8:
        raise WireError("a fragment without a slice")
    total, offset = number(frame.payload, 0, 4), number(frame.payload, 4, 4)
    fragment = Fragment(frame.id, total, offset, frame.payload[8:], bool(frame.flags & MORE))
    end = offset + len(fragment.slice)
    if (end >= total) if fragment.more else (end != total):
        raise WireError(f"a fragment that ends at {end} of {total}")
    return fragment


def fragment_packets(message: Message, max_packet: int) -> Iterator[bytes]:
    """The packets that carry a message in parts."""
    room = (max_packet - FRAGMENT_HEADER) // 8 * 8
    total = len(message.payload)
    for offset in range(0, total, room):
        part = message.payload[offset : offset + room]
        more = offset + room < total
        yield encode_fragment(Fragment(message.id, total, offset, part, more))


def encode_bye(bye: Bye, packet_id: int) -> bytes:
    payload = struct.pack("<2HI7Q", *bye[:2], 0, *bye[2:])
    return encode_frame(Frame(packet_id, payload, BYE))


def decode_bye(frame: Frame) -> Bye:
    if len(frame.payload) < 64:
        raise WireError(f"a BYE of {len(frame.payload)} bytes")
    reason, limit_kind, _, *rest = struct.unpack_from("<2HI7Q", frame.payload)
    return Bye(reason, limit_kind, *rest)


def read_framed(packets: Iterable[bytes]) -> Iterator[Message | Bye]:
    """What a framed client makes of the packets it receives: messages, at most one BYE, the end."""
    last_id = 0
    parts: list[Fragment] = []  # of one message; dropped if the server goes on with a later one
    for packet in packets:
        frames = decode_frames(packet)
        for frame in frames:
            if frame.kind == BYE:
                yield decode_bye(frame)
                return
            if frame.kind != DATA:
                if frame.kind & CRITICAL:
                    raise WireError(f"a frame of unknown critical kind {frame.kind:#x}")
                continue
            if frame.id <= last_id:
                raise WireError(f"id {frame.id} after {last_id}")
            if parts and frame.id < parts[0].id:
                raise WireError(f"id {frame.id} within the fragments of {parts[0].id}")
            if parts and frame.id > parts[0].id:
                parts = []
            if not frame.flags & FRAGMENT:
                if parts:
                    raise WireError(f"a whole message {frame.id} within its own fragments")
                last_id = frame.id
                yield Message(frame.id, frame.payload)
                continue
            if len(frames) > 1:
                raise WireError("a fragment that is not alone in its packet")
            fragment = decode_fragment(frame)
            parts.append(fragment)
            _check_sequence(parts)
            if not fragment.more:
                last_id = frame.id
                yield Message(frame.id, b"".join(part.slice for part in parts))
                parts = []


def _check_sequence(parts: list[Fragment]) -> None:
    first, last = parts[0], parts[-1]
    have = sum(len(part.slice) for part in parts[:-1])
    if (last.id, last.total, last.offset) != (first.id, first.total, have):
        raise WireError(f"fragment at {last.offset} of {last.id} where {have} of {first.id} is due")
