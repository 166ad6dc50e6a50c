# SPDX-License-Identifier: Apache-2.0
"""Both ends, whatever bytes the other one sends."""

from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import reference
from support.base import DEADLINE, wait_until
from support.hostile import fragment, received
from support.reference import (
    BYE,
    CRITICAL,
    DATA,
    FRAGMENT,
    MORE,
    Bye,
    Frame,
    Message,
    Welcome,
)
from support.wire import (
    FIRST_ID,
    HELLO,
    REPLY,
    WELCOME,
    Harassed,
    dial,
    hello_of,
    listening,
    one_connection,
    saying,
    send_all,
)

import jumiks
from jumiks import (
    Client,
    ConnectionLost,
    EndReason,
    ProtocolError,
)

DOCUMENTED = (
    ProtocolError,
    ConnectionLost,
    jumiks.ServerClosed,
    jumiks.Disconnected,
    jumiks.Lagged,
)

small = st.integers(0, 40)

near_ids = st.integers(FIRST_ID - 2, FIRST_ID + 8)

a_frame = st.builds(
    Frame,
    near_ids,
    st.binary(max_size=100),
    st.sampled_from([DATA, DATA, DATA, BYE, 0, 3, CRITICAL | 3]),
    st.sampled_from([0, 0, 0, FRAGMENT, FRAGMENT | MORE, MORE, 0xFFFF]),
)

a_fragment = st.builds(
    fragment, near_ids, small, small, st.binary(min_size=1, max_size=40), st.booleans()
)


@st.composite
def spoiled(draw: st.DrawFn, packets: st.SearchStrategy[bytes]) -> bytes:
    """A packet with a byte changed, or its end cut off or added to."""
    packet = bytearray(draw(packets))
    at = draw(st.integers(0, len(packet)))
    how = draw(st.sampled_from(["change", "cut", "add"]))
    if how == "change" and at < len(packet):
        packet[at] = draw(st.integers(0, 255))
    elif how == "cut":
        del packet[at:]
    else:
        packet += draw(st.binary(max_size=20))
    return bytes(packet)


good_packets = st.one_of(
    st.lists(a_frame, min_size=1, max_size=4).map(reference.encode_frames),
    a_fragment,
    st.builds(
        reference.encode_bye,
        st.builds(Bye, st.integers(0, 9), st.integers(0, 3), *[st.integers(0, 2**64 - 1)] * 7),
        near_ids,
    ),
)

any_packets = st.lists(
    st.one_of(good_packets, spoiled(good_packets), st.binary(max_size=80)), max_size=8
)

quickly = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


# ---- anything at all ----


def test_whatever_a_server_says_only_documented_errors_come_out(address: str) -> None:
    with listening(address) as listener:

        @quickly
        @given(any_packets, st.booleans())
        def attack(packets: list[bytes], framed: bool) -> None:
            hello, welcome = (hello_of(), WELCOME) if framed else (HELLO, None)
            with one_connection(listener, saying(packets, hello, welcome)):
                with Client(address) as client:
                    _, error = received(client)
            assert isinstance(error, DOCUMENTED), repr(error)

        attack()


def reference_view(packets: list[bytes]) -> tuple[list[Message], bool]:
    """What the reference makes of framed packets: messages, and whether they broke the rules."""
    found: list[Message] = []
    try:
        found.extend(item for item in reference.read_framed(packets) if isinstance(item, Message))
    except reference.WireError:
        return found, True
    return found, False


def test_client_and_reference_agree_on_what_framed_packets_say(address: str) -> None:
    with listening(address) as listener:

        @quickly
        @given(st.lists(st.one_of(good_packets, spoiled(good_packets)), max_size=6))
        def compare(packets: list[bytes]) -> None:
            # An empty packet looks like the end to whoever does not ask further.
            packets = [packet for packet in packets if packet]
            hello = hello_of(max_message=1 << 31, max_packet=65536)
            welcome = reference.encode_welcome(Welcome(0, reference.FRAMES, 1))
            with one_connection(listener, saying(packets, hello, welcome)):
                with Client(address) as client:
                    found: list[Message] = []
                    try:
                        while True:
                            payload = client.receive(DEADLINE)
                            found.append(Message(client.last_id, payload))
                    except jumiks.ConnectionEnded as caught:
                        error = caught
            expected, broken = reference_view(packets)
            # The client also takes what stands in front of the fault in the same packet.
            assert found[: len(expected)] == expected
            assert found == expected or broken
            told = any(frame.kind == BYE for packet in packets for frame in parsed(packet))
            assert isinstance(error, ProtocolError) == broken or told

        compare()


def parsed(packet: bytes) -> list[Frame]:
    try:
        return reference.decode_frames(packet)
    except reference.WireError:
        return []


any_acks = st.lists(
    st.one_of(
        near_ids.map(reference.encode_ack), st.binary(max_size=24), st.just(b""), st.just(REPLY)
    ),
    max_size=6,
)

any_reply = st.one_of(st.just(REPLY), st.just(HELLO), spoiled(st.just(REPLY)), st.binary())


def test_whatever_a_client_says_the_others_go_on(address: str) -> None:
    with Harassed(address) as harassed:

        @quickly
        @given(any_reply, any_acks, st.booleans(), st.booleans())
        def attack(reply: bytes, acks: list[bytes], reads: bool, publishes: bool) -> None:
            with dial(address) as sock, suppress(BrokenPipeError, ConnectionResetError):
                if reads:
                    sock.recv(100)
                sock.send(reply)
                if publishes:
                    harassed.publish()
                send_all(sock, acks)
            harassed.publish()
            harassed.witness.wait_for(len(harassed.published))
            assert harassed.witness.messages[-1] == harassed.published[-1]

        attack()
        wait_until(lambda: harassed.server.stats().clients == 1)
        allowed = {EndReason.LEFT, EndReason.PROTOCOL}
        assert {reason for _, reason in harassed.ends} <= allowed
