# SPDX-License-Identifier: Apache-2.0
"""What packets of the handshake are made of, for tests of their bytes and of their order."""

import dataclasses
from typing import Any

from hypothesis import strategies as st

from jumiks._wire.handshake import (
    FIRST_ID,
    Capability,
    ClientHello,
    ServerHello,
    Welcome,
)
from support import reference

FRAMES = Capability.FRAMES

NOTHING = Capability(0)

NEXT_ID = FIRST_ID + 500

OFFER = ServerHello(
    capabilities=FRAMES,
    server_id=0xFEDC_BA98_7654_3210,
    oldest_id=FIRST_ID,
    next_id=NEXT_ID,
    max_lag=1000,
    max_packet=131072,
    max_message=1 << 22,
)

CLASSIC_OFFER = ServerHello(extended=False)

Packet = ServerHello | ClientHello | Welcome


def told(packet: Packet) -> tuple[Any, ...]:
    """A packet's fields in the order of the reference."""
    values = dataclasses.asdict(packet)
    values.pop("extended", None)
    if isinstance(packet, Welcome):
        values = {name: values[name] for name in reference.Welcome._fields}
    return tuple(values.values())


u16 = st.integers(0, 2**16 - 1)

u32 = st.integers(0, 2**32 - 1)

u64 = st.integers(0, 2**64 - 1)

versions = st.tuples(u16, u16, u16)

capabilities = st.builds(Capability, u16)

server_hellos = st.builds(
    ServerHello, versions, capabilities, u64, u64, u64, u64, u32, u32, extended=st.just(True)
)

client_hellos = st.builds(ClientHello, versions, capabilities, u64, u32, extended=st.just(True))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=128)

no_log = capabilities.map(lambda bits: bits & ~Capability.LOG)

welcomes = (
    st.builds(Welcome, u16.filter(bool), capabilities, u64, texts)
    | st.builds(Welcome, st.just(0), no_log, u64)
    | st.builds(
        Welcome,
        st.just(0),
        no_log.map(lambda bits: bits | Capability.LOG),
        u64,
        first_offset=u64,
    )
)

packets = st.binary(max_size=80)
"""Anything a peer could send: bytes of any kind and length."""


def refusal(packet: bytes) -> tuple[int, str]:
    welcome = Welcome.decode(packet)
    assert welcome.capabilities == NOTHING
    assert welcome.first_id == 0
    return welcome.status, welcome.text
