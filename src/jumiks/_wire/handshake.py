# SPDX-License-Identifier: Apache-2.0
"""The handshake, without any I/O: it takes packets and gives packets.

The server speaks first (`ServerHello`), the client answers (`ClientHello`). If both hellos were
longer than the six bytes of plain 1.0, the server's `Welcome` follows, and only then messages.
docs/protocol.md has the layouts and the rules.
"""

import enum
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Self, TypeVar

from ..errors import ConnectionEnded, ProtocolError, Refused, VersionMismatch, printable

__all__ = [
    "FIRST_ID",
    "START_NOW",
    "START_OLDEST",
    "VERSION",
    "Capability",
    "ClientHandshake",
    "ClientHello",
    "ClientState",
    "IllegalEvent",
    "Malformed",
    "ServerHandshake",
    "ServerHello",
    "ServerState",
    "Status",
    "Welcome",
    "refusal_text",
]

Version = tuple[int, int, int]

VERSION: Version = (1, 0, 0)
"""Major, minor and patch of the protocol; patch is never compared."""

FIRST_ID = 100_000
"""The packet id of a server's first message."""

START_NOW = 0
"""Start with the next message that is published."""

START_OLDEST = 1
"""Start with the oldest message that the server keeps."""

UNTOLD_PACKET = 262144
"""The largest packet taken from a server whose hello does not tell its own, bytes."""

_START_RULE = (
    f"it must be {START_NOW} (now), {START_OLDEST} (the oldest kept), or a packet id, which is "
    f"{FIRST_ID} or more"
)
_TEXT_LIMIT = 512
_WHOLE_VERSION = 6
_EXTENDED = 8
# Beyond this a first number is no version that will ever be: another protocol was answering.
_PLAUSIBLE = 1000
_STRANGER = "what answered at this address does not speak jumiks"


class Capability(enum.IntFlag):
    """What a connection can do beyond plain 1.0; unknown bits are never granted."""

    FRAMES = 1
    """Many messages a packet, and messages larger than a packet."""
    LOG = 2
    """The server's log itself is shared; only together with FRAMES."""
    MONITOR = 4
    """The connection asks for status and receives no messages; granted alone."""


class Status(enum.IntEnum):
    """What a welcome says: accepted, or why not."""

    ACCEPTED = 0
    VERSION = 1
    NOT_ALLOWED = 2
    TOO_MANY_CLIENTS = 3
    START = 4
    CLOSING = 5
    MALFORMED = 6
    INTERNAL = 7


_NONE = Capability(0)
_KNOWN_BITS = int(Capability.FRAMES | Capability.LOG | Capability.MONITOR)
_STATUSES: Mapping[int, Status] = {status.value: status for status in Status}


class Malformed(ValueError):
    """A packet is too short for what it has to say."""


class IllegalEvent(RuntimeError):
    """A handshake was asked for a step that its state does not allow; nothing changed."""


class _Layout:
    """A packet's fields in order, little-endian and without holes, as `struct` codes."""

    def __init__(self, codes: str) -> None:
        self._whole = struct.Struct("<" + codes)
        self._ends = (0, *accumulate(struct.calcsize("<" + code) for code in codes))

    def pack(self, *fields: int) -> bytes:
        return self._whole.pack(*fields)

    def unpack(self, packet: bytes) -> tuple[int, ...]:
        """Read as far as the packet goes: a field that is not there in full reads as zero."""
        if len(packet) < self._whole.size:
            present = max(end for end in self._ends if end <= len(packet))
            packet = packet[:present].ljust(self._whole.size, b"\0")
        return self._whole.unpack_from(packet)


_VERSION_LAYOUT = _Layout("HHH")
_SERVER_LAYOUT = _Layout("HHHHQQQQII")
_CLIENT_LAYOUT = _Layout("HHHHQII")
_WELCOME_LAYOUT = _Layout("HHIQQ")
_WELCOME_SIZE = 16
_SHARED_WELCOME_SIZE = 24


def _require(packet: bytes, size: int, what: str) -> None:
    if len(packet) < size:
        raise Malformed(f"{what} of {len(packet)} bytes, where at least {size} are due")


@dataclass(frozen=True, slots=True)
class ServerHello:
    """The server's first packet (docs/protocol.md, "Hello").

    Args:
        version: major, minor and patch.
        capabilities: what the server offers; bits of `Capability`, and others.
        server_id: random, new each time a server starts.
        oldest_id: the oldest packet id kept.
        next_id: the packet id that the next message gets.
        max_lag: messages; 0 is no limit.
        max_packet: the largest packet it sends, bytes; 0 is not told.
        max_message: the largest message, bytes; 0 is not told.
        extended: whether it goes beyond the six bytes of plain 1.0.
    """

    version: Version = VERSION
    capabilities: int = _NONE
    server_id: int = 0
    oldest_id: int = 0
    next_id: int = 0
    max_lag: int = 0
    max_packet: int = 0
    max_message: int = 0
    extended: bool = True

    def encode(self) -> bytes:
        """The packet: 48 bytes, or the six of plain 1.0."""
        if not self.extended:
            return _VERSION_LAYOUT.pack(*self.version)
        return _SERVER_LAYOUT.pack(
            *self.version,
            self.capabilities,
            self.server_id,
            self.oldest_id,
            self.next_id,
            self.max_lag,
            self.max_packet,
            self.max_message,
        )

    @classmethod
    def decode(cls, packet: bytes) -> Self:
        """Read a packet of any length from six bytes on; `Malformed` if it is shorter."""
        _require(packet, _WHOLE_VERSION, "a hello")
        major, minor, patch, capabilities, *rest = _SERVER_LAYOUT.unpack(packet)
        server_id, oldest_id, next_id, max_lag, max_packet, max_message = rest
        return cls(
            (major, minor, patch),
            capabilities,
            server_id,
            oldest_id,
            next_id,
            max_lag,
            max_packet,
            max_message,
            extended=_is_extended(packet),
        )


@dataclass(frozen=True, slots=True)
class ClientHello:
    """The client's reply to the hello (docs/protocol.md, "Reply").

    Args:
        version: major, minor and patch.
        capabilities: what the client wants; bits of `Capability`, and others.
        start: `START_NOW`, `START_OLDEST`, or the packet id to resume at.
        max_packet: the largest packet it takes, bytes; 0 is no wish.
        extended: whether it goes beyond the six bytes of plain 1.0.
    """

    version: Version = VERSION
    capabilities: int = _NONE
    start: int = START_NOW
    max_packet: int = 0
    extended: bool = True

    def encode(self) -> bytes:
        """The packet: 24 bytes, or the six of plain 1.0."""
        if not self.extended:
            return _VERSION_LAYOUT.pack(*self.version)
        return _CLIENT_LAYOUT.pack(*self.version, self.capabilities, self.start, self.max_packet, 0)

    @classmethod
    def decode(cls, packet: bytes) -> Self:
        """Read a packet of any length from six bytes on; `Malformed` if it is shorter."""
        _require(packet, _WHOLE_VERSION, "a reply")
        major, minor, patch, capabilities, start, max_packet, _ = _CLIENT_LAYOUT.unpack(packet)
        return cls(
            (major, minor, patch),
            capabilities,
            start,
            max_packet,
            extended=_is_extended(packet),
        )


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server's verdict, to extended clients only (docs/protocol.md, "Welcome").

    Args:
        status: a `Status`, or a number that only a later version knows.
        capabilities: what the server grants; bits of `Capability`, and others.
        first_id: the first packet id the client will get.
        text: why it was refused, in words; 512 bytes of UTF-8 are sent at most.
        first_offset: with LOG, where the message `first_id` stands, or will stand, in the log.
        left_out: to a client that asked for the oldest: how many messages before `first_id` the
            server keeps and does not give it.
    """

    status: int
    capabilities: int = _NONE
    first_id: int = 0
    text: str = ""
    first_offset: int = 0
    left_out: int = 0

    def encode(self) -> bytes:
        """The packet: 16 bytes, and the text of a refusal or the offset that LOG needs."""
        packet = _WELCOME_LAYOUT.pack(
            self.status, self.capabilities, self.left_out, self.first_id, self.first_offset
        )
        if self.status == Status.ACCEPTED:
            return packet if self.capabilities & Capability.LOG else packet[:_WELCOME_SIZE]
        packet = packet[:_WELCOME_SIZE]
        text = self.text.encode("utf-8", "replace")[:_TEXT_LIMIT]
        # The cut may have gone through a character.
        return packet + text.decode("utf-8", "ignore").encode("utf-8")

    @classmethod
    def decode(cls, packet: bytes) -> Self:
        """Read a packet of 16 bytes or more, of 24 with LOG; `Malformed` if it is shorter."""
        _require(packet, _WELCOME_SIZE, "a welcome")
        number, capabilities, left_out, first_id, first_offset = _WELCOME_LAYOUT.unpack(packet)
        status = _STATUSES.get(number, number)
        if status != Status.ACCEPTED:
            end = _WELCOME_SIZE + _TEXT_LIMIT
            text = packet[_WELCOME_SIZE:end].decode("utf-8", "replace")
            return cls(status, capabilities, first_id, text)
        if not capabilities & Capability.LOG:
            return cls(status, capabilities, first_id, left_out=left_out)
        _require(packet, _SHARED_WELCOME_SIZE, "a welcome with LOG")
        return cls(status, capabilities, first_id, "", first_offset, left_out)


def _is_extended(packet: bytes) -> bool:
    return len(packet) >= _EXTENDED


def _agree(ours: Version, theirs: Version) -> bool:
    return ours[:2] == theirs[:2]


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _is_start(start: int) -> bool:
    return start in (START_NOW, START_OLDEST) or FIRST_ID <= start < 1 << 64


def _known(capabilities: int) -> Capability:
    # An IntFlag keeps each value it was ever made of, and a peer may think of 65,536.
    return Capability(capabilities & _KNOWN_BITS)


@cache  # arithmetic with flags is slow, and there are eight
def _grant(granted: Capability) -> Capability:
    if Capability.MONITOR in granted:
        return Capability.MONITOR
    return granted if Capability.FRAMES in granted else granted & ~Capability.LOG


_REASONS: Mapping[int, str] = {
    Status.VERSION: "the two ends speak different versions of the protocol",
    Status.NOT_ALLOWED: "this user may not connect to it",
    Status.TOO_MANY_CLIENTS: "it has as many clients as it takes (max_clients)",
    Status.START: "the start that was asked for lies beyond what was published",
    Status.CLOSING: "it is closing",
    Status.MALFORMED: "the client's reply to its hello is malformed",
    Status.INTERNAL: "it failed to take the client in",
}


def refusal_text(
    status: int, *, hello: ServerHello | None = None, reply: ClientHello | None = None
) -> str:
    """Say in words why a client is refused; "it" is the server.

    Args:
        status: a `Status` other than `ACCEPTED`, or a number that only a later version knows.
        hello: what the server said, if it is known.
        reply: what the client said, if it is known.
    """
    if hello is None or reply is None:
        return _reason(status)
    if status == Status.VERSION and not _agree(hello.version, reply.version):
        return (
            f"it speaks protocol version {_dotted(hello.version)}, the client "
            f"{_dotted(reply.version)}; major and minor must be equal"
        )
    if status == Status.START and reply.start > hello.next_id:
        return (
            f"start {reply.start} lies beyond what was published; its next packet id is "
            f"{hello.next_id}"
        )
    if status == Status.MALFORMED and not _is_start(reply.start):
        return f"start is {reply.start}; {_START_RULE}"
    return _reason(status)


def _reason(status: int) -> str:
    return _REASONS.get(status, f"it gave status {status} and no words")


_State = TypeVar("_State", bound=enum.Enum)
_Event = TypeVar("_Event", bound=enum.Enum)


def _after(moves: Mapping[tuple[_State, _Event], _State], state: _State, event: _Event) -> _State:
    try:
        return moves[state, event]
    except KeyError:
        raise IllegalEvent(f"{event.name} is not allowed in state {state.name}") from None


class ServerState(enum.Enum):
    """Where a server stands with one client that shakes hands."""

    START = enum.auto()
    """The hello was not made yet."""
    AWAIT_REPLY = enum.auto()
    """The client has the word."""
    DECIDE = enum.auto()
    """The reply is good: the server may accept or refuse."""
    MUST_REFUSE = enum.auto()
    """The reply is not good."""
    ACCEPTED = enum.auto()
    REFUSED = enum.auto()


class _ServerEvent(enum.Enum):
    HELLO = enum.auto()
    GOOD_REPLY = enum.auto()
    BAD_REPLY = enum.auto()
    ACCEPT = enum.auto()
    WITHOUT_LOG = enum.auto()
    REFUSE = enum.auto()


_SERVER_MOVES: Mapping[tuple[ServerState, _ServerEvent], ServerState] = {
    (ServerState.START, _ServerEvent.HELLO): ServerState.AWAIT_REPLY,
    (ServerState.AWAIT_REPLY, _ServerEvent.GOOD_REPLY): ServerState.DECIDE,
    (ServerState.AWAIT_REPLY, _ServerEvent.BAD_REPLY): ServerState.MUST_REFUSE,
    (ServerState.AWAIT_REPLY, _ServerEvent.REFUSE): ServerState.REFUSED,
    (ServerState.DECIDE, _ServerEvent.ACCEPT): ServerState.ACCEPTED,
    (ServerState.ACCEPTED, _ServerEvent.WITHOUT_LOG): ServerState.ACCEPTED,
    (ServerState.DECIDE, _ServerEvent.REFUSE): ServerState.REFUSED,
    (ServerState.MUST_REFUSE, _ServerEvent.REFUSE): ServerState.REFUSED,
}


class ServerHandshake:
    """The server's side of one handshake.

    Args:
        hello: what to tell the client; `hello.capabilities` is what may be granted.

    Each method raises `IllegalEvent`, and changes nothing, where its state does not allow it.
    """

    def __init__(self, hello: ServerHello) -> None:
        self._hello = hello
        self._state = ServerState.START
        self._peer: ClientHello | None = None
        self._granted = _NONE

    @property
    def state(self) -> ServerState:
        """Where it stands."""
        return self._state

    @property
    def peer(self) -> ClientHello | None:
        """What the client said, once it was read."""
        return self._peer

    @property
    def extended(self) -> bool:
        """Whether a welcome is due: both ends said more than plain 1.0 does."""
        return self._hello.extended and self._peer is not None and self._peer.extended

    @property
    def granted(self) -> Capability:
        """What is wanted, offered and known; nothing before a good reply, nor after a bad one.

        LOG comes only together with FRAMES, and MONITOR alone: it is about no messages.
        """
        return self._granted

    def hello(self) -> bytes:
        """The packet to send first."""
        self._state = _after(_SERVER_MOVES, self._state, _ServerEvent.HELLO)
        return self._hello.encode()

    def receive(self, packet: bytes, *, next_id: int | None = None) -> Status:
        """Read the client's reply and say what to do about it: `ACCEPTED`, or why not.

        Args:
            packet: the reply, as received.
            next_id: the packet id that the next message gets by now; the hello's by default.
        """
        await_refusal = _after(_SERVER_MOVES, self._state, _ServerEvent.BAD_REPLY)
        try:
            peer = ClientHello.decode(packet)
        except Malformed:
            self._state = await_refusal
            return Status.MALFORMED
        self._peer = peer
        verdict = self._judge(peer, self._hello.next_id if next_id is None else next_id)
        good = verdict is Status.ACCEPTED
        if good and self.extended:
            self._granted = _grant(_known(peer.capabilities & self._hello.capabilities))
        event = _ServerEvent.GOOD_REPLY if good else _ServerEvent.BAD_REPLY
        self._state = _after(_SERVER_MOVES, self._state, event)
        return verdict

    def _judge(self, peer: ClientHello, next_id: int) -> Status:
        if not _agree(self._hello.version, peer.version):
            return Status.VERSION
        if not self.extended:
            return Status.ACCEPTED
        if not _is_start(peer.start):
            return Status.MALFORMED
        resumes = peer.start >= FIRST_ID
        return Status.START if resumes and peer.start > next_id else Status.ACCEPTED

    def accept(self, first_id: int, first_offset: int | None = None, left_out: int = 0) -> bytes:
        """The welcome to send; empty for a classic client, which is told nothing.

        Args:
            first_id: the first packet id the client will get.
            first_offset: where that stands in the log; None takes LOG back from what is granted.
            left_out: how many older messages, which it asked for, it will not get.
        """
        self._state = _after(_SERVER_MOVES, self._state, _ServerEvent.ACCEPT)
        if not self.extended:
            return b""
        granted = self.granted if first_offset is not None else self.granted & ~Capability.LOG
        return Welcome(Status.ACCEPTED, granted, first_id, "", first_offset or 0, left_out).encode()

    def accept_without_log(self, first_id: int, left_out: int = 0) -> bytes:
        """The welcome in the place of one that grants LOG, and could not be sent."""
        self._state = _after(_SERVER_MOVES, self._state, _ServerEvent.WITHOUT_LOG)
        granted = self.granted & ~Capability.LOG
        return Welcome(Status.ACCEPTED, granted, first_id, left_out=left_out).encode()

    def refuse(self, status: Status, text: str = "") -> bytes:
        """The welcome that refuses; empty for a client that is not known to understand it.

        Args:
            status: why; `ACCEPTED` is a `ValueError`.
            text: why, in words; by default those of `refusal_text`.
        """
        if status is Status.ACCEPTED:
            raise ValueError("a refusal needs a status other than ACCEPTED")
        self._state = _after(_SERVER_MOVES, self._state, _ServerEvent.REFUSE)
        if not self.extended:
            return b""
        text = text or refusal_text(status, hello=self._hello, reply=self._peer)
        return Welcome(status, text=text).encode()


class ClientState(enum.Enum):
    """Where a client stands with its server."""

    AWAIT_HELLO = enum.auto()
    AWAIT_WELCOME = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class _ClientEvent(enum.Enum):
    CLASSIC_HELLO = enum.auto()
    EXTENDED_HELLO = enum.auto()
    WELCOME = enum.auto()
    FAULT = enum.auto()


_CLIENT_MOVES: Mapping[tuple[ClientState, _ClientEvent], ClientState] = {
    (ClientState.AWAIT_HELLO, _ClientEvent.CLASSIC_HELLO): ClientState.DONE,
    (ClientState.AWAIT_HELLO, _ClientEvent.EXTENDED_HELLO): ClientState.AWAIT_WELCOME,
    (ClientState.AWAIT_HELLO, _ClientEvent.FAULT): ClientState.FAILED,
    (ClientState.AWAIT_WELCOME, _ClientEvent.WELCOME): ClientState.DONE,
    (ClientState.AWAIT_WELCOME, _ClientEvent.FAULT): ClientState.FAILED,
}


class ClientHandshake:
    """The client's side of the handshake.

    Args:
        capabilities: what the client wants.
        start: `START_NOW`, `START_OLDEST`, or the packet id to resume at.
        max_packet: the largest packet it takes, bytes; 0 is no wish.
        start_for: chooses the start for the server that says this hello, in the place of `start`.

    Raises:
        ValueError: no server could understand that start or that size.
    """

    def __init__(
        self,
        capabilities: Capability = Capability.FRAMES,
        start: int = START_NOW,
        max_packet: int = 0,
        *,
        start_for: Callable[[ServerHello], int] | None = None,
    ) -> None:
        if not _is_start(start):
            raise ValueError(f"start is {start}; {_START_RULE}")
        if not 0 <= max_packet < 1 << 32:
            raise ValueError(f"max_packet is {max_packet}; it must fit in 32 bits")
        self._wishes = capabilities
        self._reply = ClientHello(VERSION, capabilities, start, max_packet)
        self._start_for = start_for
        self._state = ClientState.AWAIT_HELLO
        self._hello: ServerHello | None = None
        self._welcome: Welcome | None = None

    @property
    def state(self) -> ClientState:
        """Where it stands."""
        return self._state

    @property
    def done(self) -> bool:
        """Whether messages come next."""
        return self._state is ClientState.DONE

    @property
    def wishes(self) -> Capability:
        """What the client wants."""
        return self._wishes

    @property
    def hello(self) -> ServerHello | None:
        """What the server said first, once it was read, whatever came of it."""
        return self._hello

    @property
    def welcome(self) -> Welcome | None:
        """The server's verdict, once it was read; a classic server gives none."""
        return self._welcome

    @property
    def granted(self) -> Capability:
        """What the server granted of what this client knows."""
        if not self.done or self._welcome is None:
            return _NONE
        return _known(self._welcome.capabilities)

    @property
    def framed(self) -> bool:
        """Whether messages come as frames."""
        return Capability.FRAMES in self.granted

    @property
    def shared(self) -> bool:
        """Whether messages are read from the server's log itself."""
        return Capability.LOG in self.granted

    def receive(self, packet: bytes) -> bytes:
        """Read the hello, then the welcome; returns what to send, which may be nothing.

        Args:
            packet: as received, whole.

        Raises:
            VersionMismatch: the server's hello has another major or minor version.
            Refused: the server refuses this client, or cannot start where it was asked to.
            ProtocolError: that is no hello, or no welcome.
            IllegalEvent: the handshake is over.
        """
        failed = _after(_CLIENT_MOVES, self._state, _ClientEvent.FAULT)
        read = self._read_hello if self._hello is None else self._read_welcome
        try:
            event, answer = read(packet)
        except ConnectionEnded:
            self._state = failed
            raise
        self._state = _after(_CLIENT_MOVES, self._state, event)
        return answer

    def _read_hello(self, packet: bytes) -> tuple[_ClientEvent, bytes]:
        try:
            hello = ServerHello.decode(packet)
        except Malformed as error:
            raise ProtocolError(f"{_STRANGER}: {error}") from error
        if max(hello.version[:2]) > _PLAUSIBLE:
            raise ProtocolError(
                f"{_STRANGER}: its first packet, of {len(packet)} bytes, has no version in it"
            )
        self._hello = hello
        if not _agree(VERSION, hello.version):
            raise VersionMismatch(ours=VERSION, theirs=hello.version)
        if self._start_for is not None:
            self._reply = replace(self._reply, start=self._start_for(hello))
        if not hello.max_packet:
            most = min(self._reply.max_packet or UNTOLD_PACKET, UNTOLD_PACKET)
            self._reply = replace(self._reply, max_packet=most)
        if hello.extended:
            return _ClientEvent.EXTENDED_HELLO, self._reply.encode()
        if self._reply.start != START_NOW:
            raise Refused(
                "it speaks plain 1.0 and keeps no messages that it could offer, so a client can "
                "only start from now",
                status=Status.START,
            )
        return _ClientEvent.CLASSIC_HELLO, ClientHello(VERSION, extended=False).encode()

    def _read_welcome(self, packet: bytes) -> tuple[_ClientEvent, bytes]:
        try:
            welcome = Welcome.decode(packet)
        except Malformed as error:
            raise ProtocolError(f"the server broke the handshake: {error}") from error
        self._welcome = welcome
        if welcome.status != Status.ACCEPTED:
            reason = printable(welcome.text) or refusal_text(
                welcome.status, hello=self._hello, reply=self._reply
            )
            raise Refused(reason, status=welcome.status)
        granted = _known(welcome.capabilities)
        if welcome.first_id < self._reply.start and Capability.MONITOR not in granted:
            raise ProtocolError(
                f"the server broke the handshake: it begins at {welcome.first_id}, where "
                f"{self._reply.start} was asked for"
            )
        if welcome.left_out > max(0, welcome.first_id - FIRST_ID):
            raise ProtocolError(
                f"the server broke the handshake: it leaves {welcome.left_out} messages out before "
                f"{welcome.first_id}, where there cannot be so many"
            )
        if granted & ~self._wishes:
            raise ProtocolError("the server broke the handshake: it grants what was not asked for")
        if Capability.LOG in granted and Capability.FRAMES not in granted:
            raise ProtocolError("the server broke the handshake: it grants LOG without FRAMES")
        return _ClientEvent.WELCOME, b""
