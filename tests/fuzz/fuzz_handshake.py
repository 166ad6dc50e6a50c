# SPDX-License-Identifier: Apache-2.0
"""Hellos, replies and welcomes of any bytes: only documented errors, and stable round trips.

    python tests/fuzz/fuzz_handshake.py [--seconds 12] [--seed 1] [FILE ...]

Files are inputs to run, and nothing else is done then. Without any, inputs are made for so many
seconds: well-formed packets with a few bytes changed, cut or inserted. `--atheris` lets that
fuzzer make them instead, guided by coverage (`pip install atheris`, by hand), with its own options
behind `--`.
"""

import argparse
import importlib
import random
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FunctionType

from jumiks._wire.handshake import (
    FIRST_ID,
    Capability,
    ClientHandshake,
    ClientHello,
    IllegalEvent,
    Malformed,
    ServerHandshake,
    ServerHello,
    State,
    Status,
    Welcome,
)
from jumiks.errors import ProtocolError, Refused, VersionMismatch

FOUND = Path("build/fuzz/found-handshake")
"""Where an input goes that found something."""

OUTRIGHT = (0, 1, 2, 6, 7, 8, 0xFF, 0xFFFF, FIRST_ID - 1, FIRST_ID, (1 << 32) - 1, (1 << 64) - 1)
"""Numbers that matter somewhere in the protocol."""

Packet = ServerHello | ClientHello | Welcome


def check_round_trip(kind: type[Packet], packet: bytes) -> None:
    """What is read from any packet is written and read again as it is."""
    try:
        value = kind.decode(packet)
    except Malformed:
        return
    again = kind.decode(value.encode())
    if isinstance(value, Welcome) and isinstance(again, Welcome):
        # A text that is no UTF-8, or that is cut, is another one then, and stays that.
        value = replace(value, text=again.text)
    assert again == value
    assert kind.decode(again.encode()) == again


def check_client(packets: list[bytes], capabilities: Capability, start: int) -> None:
    """A client that is told these."""
    client = ClientHandshake(capabilities, start)
    for packet in packets:
        try:
            answer = client.receive(packet)
        except (ProtocolError, Refused, VersionMismatch):
            assert client.state is State.FAILED
        else:
            assert answer == b"" or ClientHello.decode(answer).start in (start, 0)
        if client.state in (State.DONE, State.FAILED):
            break
    assert client.granted & ~client.wishes == Capability(0)
    if client.done:
        try:
            client.receive(packets[0])
        except IllegalEvent:
            return
        raise AssertionError("a handshake that is over went on")


def check_server(hello: bytes, reply: bytes, first_id: int) -> None:
    """A server that says a hello and is answered so."""
    try:
        said = ServerHello.decode(hello)
    except Malformed:
        said = ServerHello(capabilities=Capability(7))
    server = ServerHandshake(said)
    assert ServerHello.decode(server.hello()) == said
    status = server.receive(reply)
    if status is not Status.ACCEPTED:
        assert server.granted == Capability(0)
        welcome = server.refuse(status)
        assert not welcome or Welcome.decode(welcome).status == status
        return
    welcome = server.accept(first_id, first_offset=8)
    assert server.granted & ~said.capabilities == Capability(0)
    if not server.extended:
        assert welcome == b""
        return
    told = Welcome.decode(welcome)
    assert (told.status, told.capabilities, told.first_id) == (status, server.granted, first_id)


def run(data: bytes) -> None:
    """One input: two bytes of wishes, eight of an id, and three packets with their lengths."""
    wishes, number = struct.unpack("<HQ", data[:10].ljust(10, b"\0"))
    rest, packets = data[10:], []
    for _ in range(3):
        packets.append(rest[2 : 2 + int.from_bytes(rest[:2], "little") % 1024])
        rest = rest[2 + len(packets[-1]) :]
    for packet in packets:
        check_round_trip(ServerHello, packet)
        check_round_trip(ClientHello, packet)
        check_round_trip(Welcome, packet)
    start = number if number < 2 or number >= FIRST_ID else 0
    check_client([packets[0], packets[2]], Capability(wishes), start)
    check_server(packets[0], packets[1], number)


def well_formed(chance: random.Random) -> bytes:
    """An input whose packets say something that a peer could."""

    def number(bits: int) -> int:
        return chance.choice((*OUTRIGHT, chance.getrandbits(bits))) & ((1 << bits) - 1)

    capabilities = Capability(chance.choice((0, 1, 3, 4, 7, number(16))))
    version = (1, 0, number(16)) if chance.random() < 0.9 else (number(16), number(16), 0)
    extended = chance.random() < 0.9
    ids = number(64), number(64), number(64)
    sizes = number(64), number(32), number(32)
    hello = ServerHello(version, capabilities, *ids, *sizes, extended=extended)
    reply = ClientHello(version, capabilities, number(64), number(32), extended=extended)
    text = "".join(chr(chance.randrange(32, 0xD7FF)) for _ in range(chance.randrange(300)))
    welcome = Welcome(chance.choice((0, number(16) % 10)), capabilities, number(64), text)
    packets = [hello.encode(), reply.encode(), welcome.encode()]
    parts = [struct.pack("<HQ", chance.choice((0, 1, 3, number(16))), number(64))]
    parts += [struct.pack("<H", len(packet)) + packet for packet in packets]
    return b"".join(parts)


def change(chance: random.Random, data: bytes) -> bytes:
    """The input with one thing changed."""
    at, count = chance.randrange(len(data) + 1), chance.randrange(1, 9)
    move = chance.randrange(4)
    if move == 0:
        return data[:at] + chance.randbytes(count) + data[at + count :]
    if move == 1:
        return data[:at] + data[at + count :]
    if move == 2:
        return data[:at] + chance.randbytes(count) + data[at:]
    word = chance.choice(OUTRIGHT).to_bytes(8, "little")[:count]
    return data[:at] + word + data[at + count :]


def loop(seconds: float, seed: int) -> int:
    """Make and run inputs for so long; how many it were."""
    chance, count, deadline = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = well_formed(chance)
        for _ in range(8):
            try:
                run(data)
            except BaseException:
                FOUND.parent.mkdir(parents=True, exist_ok=True)
                FOUND.write_bytes(data)
                print(f"handshake: input written to {FOUND}", file=sys.stderr)
                raise
            count += 1
            data = change(chance, data)
    return count


def guided(options: list[str]) -> None:
    """Let atheris make the inputs; does not return."""
    atheris = importlib.import_module("atheris")
    for kind in (ServerHello, ClientHello, Welcome, ServerHandshake, ClientHandshake):
        for member in vars(kind).values():
            function = getattr(member, "__func__", member)
            if isinstance(function, FunctionType):
                atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *options], run)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("rest", nargs="*", metavar="FILE")
    options = parser.parse_args()
    if options.atheris:
        guided(options.rest)
    for name in options.rest:
        run(Path(name).read_bytes())
    if not options.rest:
        count = loop(options.seconds, options.seed)
        print(f"handshake: {count} inputs, nothing found")


if __name__ == "__main__":
    main()
