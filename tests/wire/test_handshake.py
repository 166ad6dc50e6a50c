# SPDX-License-Identifier: Apache-2.0
import dataclasses
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support import reference
from support.handshake import (
    CLASSIC_OFFER,
    FRAMES,
    NEXT_ID,
    NOTHING,
    OFFER,
    client_hellos,
    packets,
    refusal,
    server_hellos,
    welcomes,
)

from jumiks._wire.handshake import (
    FIRST_ID,
    START_NOW,
    START_OLDEST,
    UNTOLD_PACKET,
    VERSION,
    Capability,
    ClientHandshake,
    ClientHello,
    IllegalEvent,
    ServerHandshake,
    ServerHello,
    State,
    Status,
    Welcome,
    refusal_text,
)
from jumiks.errors import ConnectionEnded, ProtocolError, Refused, VersionMismatch

pytestmark = pytest.mark.no_core


def after_hello(hello: ServerHello = OFFER) -> ServerHandshake:
    server = ServerHandshake(hello)
    server.hello()
    return server


# ---- the server's side ----


def test_the_server_speaks_first() -> None:
    server = ServerHandshake(OFFER)
    assert server.hello() == OFFER.encode()
    assert server.state is State.REPLY


def test_an_extended_client_gets_a_welcome() -> None:
    server = after_hello()
    reply = ClientHello(capabilities=FRAMES, max_packet=65536)
    assert server.receive(reply.encode()) is Status.ACCEPTED
    assert server.peer == reply
    assert server.extended
    assert server.granted == FRAMES
    assert Welcome.decode(server.accept(NEXT_ID)) == Welcome(0, FRAMES, NEXT_ID)
    assert server.state is State.DONE


def test_what_is_left_out_before_the_first_message_is_told() -> None:
    server = after_hello()
    assert server.receive(ClientHello(capabilities=FRAMES, start=1).encode()) is Status.ACCEPTED
    packet = server.accept(NEXT_ID, None, 7)
    assert Welcome.decode(packet) == Welcome(0, FRAMES, NEXT_ID, left_out=7)
    assert reference.decode_welcome(packet).left_out == 7


@pytest.mark.parametrize("first_id", [1, FIRST_ID, FIRST_ID + 6])
def test_more_left_out_than_there_can_be_breaks_the_handshake(first_id: int) -> None:
    client = ClientHandshake(FRAMES, START_OLDEST)
    client.receive(ServerHello(capabilities=FRAMES).encode())
    with pytest.raises(ProtocolError, match="leaves 7 messages out before"):
        client.receive(Welcome(0, FRAMES, first_id, left_out=7).encode())


@pytest.mark.parametrize(
    ("told", "wish", "said"),
    [(0, 1 << 22, UNTOLD_PACKET), (0, 0, UNTOLD_PACKET), (0, 4096, 4096), (512, 1 << 22, 1 << 22)],
)
def test_a_client_says_what_it_takes_of_a_server_that_does_not_tell(
    told: int, wish: int, said: int
) -> None:
    hello = ServerHello(capabilities=FRAMES, max_packet=told).encode()
    reply = ClientHello.decode(ClientHandshake(FRAMES, max_packet=wish).receive(hello))
    assert reply.max_packet == said


def test_a_classic_client_gets_no_welcome() -> None:
    server = after_hello()
    assert server.receive(ClientHello(extended=False).encode()) is Status.ACCEPTED
    assert not server.extended
    assert server.granted == NOTHING
    assert server.accept(NEXT_ID) == b""


def test_a_classic_client_gets_no_refusal() -> None:
    server = after_hello()
    server.receive(ClientHello(extended=False).encode())
    assert server.refuse(Status.TOO_MANY_CLIENTS) == b""
    assert server.state is State.FAILED


def test_a_server_that_says_only_1_0_gives_no_welcome() -> None:
    server = after_hello(CLASSIC_OFFER)
    assert server.receive(ClientHello(capabilities=FRAMES, start=7).encode()) is Status.ACCEPTED
    assert server.granted == NOTHING
    assert server.accept(FIRST_ID) == b""


@pytest.mark.parametrize(
    ("wanted", "granted"),
    [
        (NOTHING, NOTHING),
        (FRAMES, FRAMES),
        (Capability.LOG, NOTHING),
        (FRAMES | Capability.LOG, FRAMES),
        (Capability(0xFFFF), FRAMES),
    ],
)
def test_only_what_is_wanted_and_offered_is_granted(
    wanted: Capability, granted: Capability
) -> None:
    server = after_hello()
    server.receive(ClientHello(capabilities=wanted).encode())
    assert server.granted == granted


def test_a_capability_that_nobody_knows_is_never_granted() -> None:
    server = after_hello(ServerHello(capabilities=Capability(0xFFFF)))
    server.receive(ClientHello(capabilities=Capability(0xFFFF)).encode())
    assert server.granted == Capability.MONITOR

    server = after_hello(ServerHello(capabilities=Capability(0xFFFF - Capability.MONITOR)))
    server.receive(ClientHello(capabilities=Capability(0xFFFF)).encode())
    assert server.granted == FRAMES | Capability.LOG


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ((1, 0, 0), Status.ACCEPTED),
        ((1, 0, 9999), Status.ACCEPTED),
        ((1, 1, 0), Status.VERSION),
        ((0, 0, 0), Status.VERSION),
        ((2, 0, 0), Status.VERSION),
    ],
)
@pytest.mark.parametrize("extended", [False, True])
def test_major_and_minor_must_be_equal_and_patch_need_not(
    version: tuple[int, int, int], status: Status, extended: bool
) -> None:
    server = after_hello()
    assert server.receive(ClientHello(version, extended=extended).encode()) is status


def test_a_refusal_for_the_version_names_both() -> None:
    server = after_hello()
    server.receive(ClientHello((2, 3, 4)).encode())
    status, text = refusal(server.refuse(Status.VERSION))
    assert status is Status.VERSION
    assert "1.0.0" in text
    assert "2.3.4" in text


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (START_NOW, Status.ACCEPTED),
        (START_OLDEST, Status.ACCEPTED),
        (2, Status.MALFORMED),
        (FIRST_ID - 1, Status.MALFORMED),
        (FIRST_ID, Status.ACCEPTED),
        (NEXT_ID, Status.ACCEPTED),
        (2**64 - 1, Status.ACCEPTED),
    ],
)
def test_a_start_must_be_now_or_oldest_or_an_id(start: int, status: Status) -> None:
    server = after_hello()
    assert server.receive(ClientHello(start=start).encode()) is status
    if status is not Status.ACCEPTED:
        assert str(start) in refusal(server.refuse(status))[1]


def test_a_start_beyond_what_was_published_is_refused_with_both_ids() -> None:
    server = after_hello()
    server.receive(ClientHello(start=NEXT_ID + 1).encode())
    status, text = refusal(server.refuse(Status.START))
    assert status is Status.START
    assert str(NEXT_ID + 1) in text
    assert f"its next packet id is {NEXT_ID}" in text


@pytest.mark.parametrize("length", range(6))
def test_a_reply_without_a_whole_version_is_malformed(length: int) -> None:
    server = after_hello()
    assert server.receive(bytes(length)) is Status.MALFORMED
    assert server.peer is None
    assert not server.extended
    assert server.state is State.REFUSAL
    assert server.refuse(Status.MALFORMED) == b""


def test_a_bad_reply_grants_nothing_and_cannot_be_accepted() -> None:
    server = after_hello()
    server.receive(ClientHello((2, 0, 0), FRAMES).encode())
    assert server.granted == NOTHING
    with pytest.raises(IllegalEvent, match="to accept is not allowed in state REFUSAL"):
        server.accept(NEXT_ID)
    assert server.state is State.REFUSAL


def test_the_server_may_refuse_before_any_reply() -> None:
    server = after_hello()
    assert server.refuse(Status.CLOSING) == b""


def test_the_server_s_own_words_go_to_the_client() -> None:
    server = after_hello()
    server.receive(ClientHello().encode())
    packet = server.refuse(Status.NOT_ALLOWED, "user 17 is not on the list")
    assert refusal(packet) == (Status.NOT_ALLOWED, "user 17 is not on the list")


def test_a_refusal_cannot_say_accepted() -> None:
    server = after_hello()
    with pytest.raises(ValueError, match="ACCEPTED"):
        server.refuse(Status.ACCEPTED)
    assert server.state is State.REPLY


def test_each_refusal_has_its_own_words() -> None:
    texts = [refusal_text(status) for status in Status if status is not Status.ACCEPTED]
    assert all(texts)
    assert len(set(texts)) == len(texts)
    assert "4711" in refusal_text(4711)


def test_a_refusal_says_nothing_that_the_hellos_do_not_bear_out() -> None:
    for status in Status:
        if status is not Status.ACCEPTED:
            assert refusal_text(status, hello=OFFER, reply=ClientHello()) == refusal_text(status)


# ---- the client's side ----


def test_a_client_answers_an_extended_server_in_full() -> None:
    client = ClientHandshake(FRAMES, FIRST_ID + 3, 65536)
    answer = client.receive(OFFER.encode())
    assert len(answer) == 24
    assert ClientHello.decode(answer) == ClientHello(VERSION, FRAMES, FIRST_ID + 3, 65536)
    assert client.hello == OFFER
    assert not client.done


def test_a_client_is_done_with_the_welcome() -> None:
    client = ClientHandshake()
    client.receive(OFFER.encode())
    assert client.receive(Welcome(Status.ACCEPTED, FRAMES, NEXT_ID).encode()) == b""
    assert client.done
    assert client.framed
    assert client.welcome == Welcome(Status.ACCEPTED, FRAMES, NEXT_ID)


def test_a_client_is_done_with_a_classic_hello() -> None:
    client = ClientHandshake()
    assert client.receive(CLASSIC_OFFER.encode()) == bytes.fromhex("010000000000")
    assert client.done
    assert not client.framed
    assert client.welcome is None


def test_without_frames_granted_the_connection_is_not_framed() -> None:
    client = ClientHandshake()
    client.receive(OFFER.encode())
    client.receive(Welcome(Status.ACCEPTED, NOTHING, NEXT_ID).encode())
    assert client.done
    assert not client.framed


def test_another_patch_is_fine() -> None:
    client = ClientHandshake()
    client.receive(ServerHello((1, 0, 77), extended=False).encode())
    assert client.done


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("version", [(0, 0, 0), (1, 1, 0), (2, 0, 5)])
def test_another_version_is_told_with_both_numbers(
    version: tuple[int, int, int], extended: bool
) -> None:
    client = ClientHandshake()
    with pytest.raises(VersionMismatch) as caught:
        client.receive(ServerHello(version, extended=extended).encode())
    assert caught.value.ours == (1, 0, 0)
    assert caught.value.theirs == version
    assert client.state is State.FAILED
    assert client.hello is not None


@pytest.mark.parametrize("start", [START_OLDEST, FIRST_ID])
def test_a_classic_server_can_start_only_from_now(start: int) -> None:
    client = ClientHandshake(start=start)
    with pytest.raises(Refused, match="start from now") as caught:
        client.receive(CLASSIC_OFFER.encode())
    assert caught.value.status == Status.START
    assert client.state is State.FAILED


@pytest.mark.parametrize(
    "packet", [b"", b"\1", b"hello", b"HTTP/1.1 400 Bad Request", b"220 mail\r\n", b"\xff" * 48]
)
def test_what_is_no_jumiks_is_told_so(packet: bytes) -> None:
    client = ClientHandshake()
    with pytest.raises(ProtocolError, match="does not speak jumiks"):
        client.receive(packet)
    assert client.state is State.FAILED


@pytest.mark.parametrize("version", [(1000, 0, 0), (0, 1000, 0), (2, 0, 65535)])
def test_a_version_that_may_be_one_day_is_a_mismatch(version: tuple[int, int, int]) -> None:
    with pytest.raises(VersionMismatch):
        ClientHandshake().receive(ServerHello(version).encode())


@pytest.mark.parametrize("version", [(1001, 0, 0), (1, 1001, 0)])
def test_a_version_that_will_never_be_is_another_protocol(version: tuple[int, int, int]) -> None:
    with pytest.raises(ProtocolError, match="has no version in it"):
        ClientHandshake().receive(ServerHello(version).encode())


def test_a_refused_client_reads_why() -> None:
    client = ClientHandshake()
    client.receive(OFFER.encode())
    with pytest.raises(Refused) as caught:
        client.receive(Welcome(Status.NOT_ALLOWED, text="not today").encode())
    assert caught.value.reason == "not today"
    assert caught.value.status == Status.NOT_ALLOWED
    assert client.state is State.FAILED
    assert client.welcome is not None


def test_words_of_a_refusal_come_without_control_codes() -> None:
    handshake = ClientHandshake()
    handshake.receive(ServerHello().encode())
    with pytest.raises(Refused) as caught:
        handshake.receive(Welcome(Status.CLOSING, text="\x1b[2Jgo\nhome \u202eöß").encode())
    assert caught.value.reason == "?[2Jgo?home ?öß"


@pytest.mark.parametrize(
    ("wishes", "offset", "granted"),
    [
        (FRAMES | Capability.LOG, 4096, FRAMES | Capability.LOG),
        (FRAMES | Capability.LOG, 0, FRAMES | Capability.LOG),
        (FRAMES | Capability.LOG, None, FRAMES),
        (FRAMES, 4096, FRAMES),
    ],
)
def test_the_log_is_granted_with_an_offset_and_taken_back_without(
    wishes: Capability, offset: int | None, granted: Capability
) -> None:
    server = ServerHandshake(dataclasses.replace(OFFER, capabilities=FRAMES | Capability.LOG))
    server.hello()
    server.receive(ClientHello(capabilities=wishes).encode())
    welcome = Welcome.decode(server.accept(NEXT_ID, offset))
    there = offset or 0 if Capability.LOG in granted else 0
    assert welcome == Welcome(Status.ACCEPTED, granted, NEXT_ID, first_offset=there)


def test_a_welcome_that_could_not_be_sent_is_followed_by_one_without_the_log() -> None:
    server = ServerHandshake(dataclasses.replace(OFFER, capabilities=FRAMES | Capability.LOG))
    server.hello()
    server.receive(ClientHello(capabilities=FRAMES | Capability.LOG, start=1).encode())
    first = Welcome.decode(server.accept(NEXT_ID, 64, 3))
    assert first.capabilities == FRAMES | Capability.LOG
    again = Welcome.decode(server.accept(NEXT_ID, None, 3))
    assert again == Welcome(Status.ACCEPTED, FRAMES, NEXT_ID, left_out=3)
    with pytest.raises(IllegalEvent, match="to refuse is not allowed in state DONE"):
        server.refuse(Status.CLOSING)


def test_a_start_at_the_next_message_is_not_said_to_lie_beyond_it() -> None:
    reply = ClientHello(start=NEXT_ID)
    assert refusal_text(Status.START, hello=OFFER, reply=reply) == refusal_text(Status.START)


@pytest.mark.parametrize("status", [*range(1, 8), 4711])
def test_a_refusal_needs_both_hellos_to_go_into_detail(status: int) -> None:
    plain = refusal_text(status)
    assert refusal_text(status, hello=OFFER) == plain
    assert refusal_text(status, reply=ClientHello((2, 0, 0), start=2)) == plain


@pytest.mark.parametrize("status", [*range(1, 8), 4711])
def test_a_refusal_without_words_is_put_into_words(status: int) -> None:
    client = ClientHandshake(start=FIRST_ID)
    client.receive(OFFER.encode())
    with pytest.raises(Refused) as caught:
        client.receive(Welcome(status).encode())
    assert caught.value.reason == refusal_text(
        status, hello=OFFER, reply=ClientHello(capabilities=FRAMES, start=FIRST_ID)
    )
    assert caught.value.status == status


def test_a_welcome_that_is_too_short_breaks_the_protocol() -> None:
    client = ClientHandshake()
    client.receive(OFFER.encode())
    with pytest.raises(ProtocolError, match="15 bytes"):
        client.receive(bytes(15))


def test_a_grant_that_was_not_wanted_breaks_the_protocol() -> None:
    client = ClientHandshake(NOTHING)
    client.receive(OFFER.encode())
    with pytest.raises(ProtocolError, match="not asked"):
        client.receive(Welcome(Status.ACCEPTED, FRAMES, NEXT_ID).encode())
    assert not client.framed


def test_a_client_wants_frames_from_now_and_any_packet_unless_told_otherwise() -> None:
    client = ClientHandshake()
    assert client.wishes == FRAMES
    assert ClientHello.decode(client.receive(OFFER.encode())) == ClientHello(capabilities=FRAMES)


def test_the_start_may_be_chosen_for_the_server_that_answers() -> None:
    client = ClientHandshake(start_for=lambda hello: hello.next_id - 1)
    reply = ClientHello.decode(client.receive(OFFER.encode()))
    assert reply == ClientHello(capabilities=FRAMES, start=NEXT_ID - 1)


def welcomed_at(first_id: int, start: int, capabilities: Capability = FRAMES) -> ClientHandshake:
    client = ClientHandshake(capabilities, start)
    client.receive(OFFER.encode())
    client.receive(Welcome(Status.ACCEPTED, capabilities, first_id).encode())
    return client


def test_a_welcome_may_begin_where_it_was_asked_to_or_later() -> None:
    assert welcomed_at(NEXT_ID, NEXT_ID).done
    assert welcomed_at(NEXT_ID + 1, NEXT_ID).done


def test_a_welcome_that_begins_earlier_breaks_the_protocol() -> None:
    with pytest.raises(ProtocolError, match=f"begins at {NEXT_ID - 1}, where {NEXT_ID} was"):
        welcomed_at(NEXT_ID - 1, NEXT_ID)


def test_a_monitor_begins_nowhere() -> None:
    assert welcomed_at(0, START_OLDEST, Capability.MONITOR).done


def test_a_log_without_frames_breaks_the_protocol() -> None:
    client = ClientHandshake(FRAMES | Capability.LOG)
    client.receive(OFFER.encode())
    with pytest.raises(ProtocolError, match="LOG without FRAMES"):
        client.receive(Welcome(Status.ACCEPTED, Capability.LOG, NEXT_ID).encode())
    assert client.state is State.FAILED


def test_a_grant_that_nobody_knows_is_ignored() -> None:
    client = ClientHandshake()
    client.receive(OFFER.encode())
    client.receive(Welcome(Status.ACCEPTED, FRAMES | Capability(0x8000), NEXT_ID).encode())
    assert client.granted == FRAMES


@pytest.mark.parametrize("start", [-1, 2, FIRST_ID - 1, 2**64])
def test_a_start_that_no_server_understands_is_an_error_at_once(start: int) -> None:
    with pytest.raises(ValueError, match="start"):
        ClientHandshake(start=start)


@pytest.mark.parametrize("max_packet", [-1, 2**32])
def test_a_packet_size_that_no_server_understands_is_an_error_at_once(max_packet: int) -> None:
    with pytest.raises(ValueError, match="max_packet"):
        ClientHandshake(max_packet=max_packet)


@given(packets, packets)
def test_a_client_makes_only_documented_errors_of_any_bytes(first: bytes, second: bytes) -> None:
    client = ClientHandshake()
    for packet in (first, second):
        try:
            client.receive(packet)
        except ConnectionEnded:
            assert client.state is State.FAILED
        if client.state in (State.DONE, State.FAILED):
            return


@given(packets)
def test_a_client_makes_only_documented_errors_of_any_welcome(packet: bytes) -> None:
    client = ClientHandshake()
    client.receive(OFFER.encode())
    try:
        client.receive(packet)
    except (Refused, ProtocolError):
        assert client.state is State.FAILED
    else:
        assert client.done


@given(packets)
def test_a_server_has_a_status_for_any_reply(packet: bytes) -> None:
    server = after_hello()
    status = server.receive(packet)
    if status is Status.ACCEPTED:
        server.accept(NEXT_ID)
    else:
        answer = server.refuse(status)
        assert bool(answer) == reference.is_extended(packet)


# ---- both, and every order of events ----


@given(server_hellos, client_hellos)
def test_both_ends_agree_on_how_messages_come(offer: ServerHello, wish: ClientHello) -> None:
    server = ServerHandshake(dataclasses.replace(offer, version=VERSION))
    client = ClientHandshake(Capability(wish.capabilities), START_OLDEST, wish.max_packet)
    assert server.receive(client.receive(server.hello())) is Status.ACCEPTED
    client.receive(server.accept(FIRST_ID, 0))
    assert client.done
    assert client.granted == server.granted
    assert client.framed == (FRAMES in server.granted)
    assert client.shared == (Capability.LOG in server.granted)
    assert client.framed >= client.shared


class ServerEvents(RuleBasedStateMachine):
    """Any call in any order, beside a model that knows what is allowed when."""

    @initialize(hello=st.sampled_from([OFFER, CLASSIC_OFFER]))
    def begin(self, hello: ServerHello) -> None:
        self.offer = hello
        self.server = ServerHandshake(hello)
        self.allowed = {"hello"}
        self.verdict: Status | None = None

    def attempt(self, name: str, call: Callable[[], bytes | Status]) -> bytes | Status | None:
        """Make a call; where it is not allowed, see that it changes nothing."""
        if name in self.allowed:
            return call()
        before = vars(self.server).copy()
        with pytest.raises(IllegalEvent):
            call()
        assert vars(self.server) == before
        return None

    @rule()
    def hello(self) -> None:
        if self.attempt("hello", self.server.hello) is not None:
            self.allowed = {"receive", "refuse"}

    @rule(
        packet=packets
        | client_hellos.map(ClientHello.encode)
        | st.sampled_from(
            [
                ClientHello(extended=False).encode(),
                ClientHello(capabilities=FRAMES).encode(),
                ClientHello(start=NEXT_ID + 1).encode(),
            ]
        )
    )
    def receive(self, packet: bytes) -> None:
        status = self.attempt("receive", lambda: self.server.receive(packet))
        if isinstance(status, Status):
            self.verdict = status
            self.allowed = {"refuse", "accept"} if status is Status.ACCEPTED else {"refuse"}

    @rule()
    def accept(self) -> None:
        packet = self.attempt("accept", lambda: self.server.accept(NEXT_ID))
        if isinstance(packet, bytes):
            assert bool(packet) == self.server.extended
            self.allowed = {"accept"}

    @rule(status=st.sampled_from([status for status in Status if status]))
    def refuse(self, status: Status) -> None:
        packet = self.attempt("refuse", lambda: self.server.refuse(status))
        if isinstance(packet, bytes):
            assert bool(packet) == self.server.extended
            self.allowed = set()

    @precondition(lambda self: self.verdict not in (None, Status.ACCEPTED))
    @rule()
    def a_bad_reply_grants_nothing(self) -> None:
        assert self.server.granted == NOTHING


class ClientEvents(RuleBasedStateMachine):
    """Packets of any kind in any order: only documented errors, and nothing after the end."""

    @initialize(
        wanted=st.sampled_from([NOTHING, FRAMES]),
        start=st.sampled_from([START_NOW, START_OLDEST, FIRST_ID]),
    )
    def begin(self, wanted: Capability, start: int) -> None:
        self.client = ClientHandshake(wanted, start)
        self.over = False

    @rule(
        packet=packets
        | welcomes.map(Welcome.encode)
        | st.sampled_from(
            [
                OFFER.encode(),
                CLASSIC_OFFER.encode(),
                Welcome(Status.ACCEPTED, NOTHING, NEXT_ID).encode(),
                Welcome(Status.ACCEPTED, FRAMES, NEXT_ID).encode(),
            ]
        )
    )
    def receive(self, packet: bytes) -> None:
        if self.over:
            before = vars(self.client).copy()
            with pytest.raises(IllegalEvent):
                self.client.receive(packet)
            assert vars(self.client) == before
            return
        expected = self.client.state
        try:
            answer = self.client.receive(packet)
        except (Refused, ProtocolError):
            assert self.client.state is State.FAILED
            self.over = True
            return
        if expected is State.HELLO:
            assert len(answer) == (24 if reference.is_extended(packet) else 6)
        else:
            assert answer == b""
        self.over = self.client.done


TestServerEvents = ServerEvents.TestCase

TestClientEvents = ClientEvents.TestCase


def test_no_number_of_a_peer_is_kept_for_ever() -> None:
    # An IntFlag remembers each value it was made of.
    def remembered() -> int:
        return len(Capability._value2member_map_)

    for bits in range(8):
        Capability(bits)
    before = remembered()
    for bits in range(8, 1 << 16, 7):
        server = after_hello(ServerHello(capabilities=Capability(7)))
        server.receive(ClientHello(capabilities=bits).encode())
        assert server.peer is not None
        assert server.peer.capabilities == bits
        assert server.granted & ~7 == 0
        client = ClientHandshake()
        client.receive(ServerHello(capabilities=bits).encode())
        assert client.hello is not None
        assert client.hello.capabilities == bits
        with suppress(ProtocolError):  # some grant what was not asked for
            client.receive(Welcome(0, bits, FIRST_ID).encode().ljust(24, b"\0"))
    assert remembered() == before
