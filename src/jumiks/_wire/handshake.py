# SPDX-License-Identifier: Apache-2.0
"""The handshake, without any I/O: it takes packets and gives packets.

The server speaks first (`ServerHello`), the client answers (`ClientHello`). If both hellos were
longer than the six bytes of plain 1.0, the server's `Welcome` follows, and only then messages.
docs/protocol.md has the layouts and the rules.
"""

import enum
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final, Self

from .. import errors
from ..errors import ProtocolError, Refused, VersionMismatch, printable

__all__ = [
    "FIRST_ID",
    "START_NOW",
    "START_OLDEST",
    "VERSION",
    "Capability",
    "ClientHandshake",
    "ClientHello",
    "IllegalEvent",
    "Malformed",
    "ServerHandshake",
    "ServerHello",
    "State",
    "Status",
    "Welcome",
    "refusal_text",
]

Version = tuple[int, int, int]

VERSION: Version = (1, 0, 0)
"""Major, minor and patch of the protocol; patch is never compared."""

FIRST_ID = 100_000
"""The least packet id, and that of a server's first message unless it continues a feed."""

START_NOW = 0
"""Start with the next message that is published."""

START_OLDEST = 1
"""Start with the oldest message that the server keeps."""

UNTOLD_PACKET = 262144
"""The largest packet taken from a server whose hello does not name one, bytes."""

_START_RULE = (
    f"start is {{}}; it must be {START_NOW} (now), {START_OLDEST} (the oldest kept), or a packet "
    f"id, which is {FIRST_ID} or more"
)
_TEXT_LIMIT = 512
_WHOLE_VERSION = 6
_EXTENDED = 8
_REPLY_SIZE = 24
_WELCOME_SIZE = 16
_SHARED_WELCOME_SIZE = 24
# Beyond this a first number is no version that will ever be: another protocol was answering.
_PLAUSIBLE = 1000


class Capability(enum.IntFlag):
    """What a connection can do beyond plain 1.0; unknown bits are never granted."""

    FRAMES = 1
    """Many messages per packet, and messages larger than a packet."""
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


# A field of a packet has its code of `struct` with it.
_U16: Final = {"code": "H"}
_U32: Final = {"code": "I"}
_U64: Final = {"code": "Q"}


class _Layout:
    """A packet's fields in order, little-endian and without holes.

    Args:
        kind: the packet's class.
        before: codes of what stands before the fields.
        behind: codes of what stands behind them, and is not used.
    """

    def __init__(self, kind: type[Any], before: str = "", behind: str = "") -> None:
        coded = {each.name: each.metadata["code"] for each in fields(kind) if each.metadata}
        self.names = tuple(coded)
        self._values = attrgetter(*coded)
        codes = before + "".join(coded.values())
        self._whole = struct.Struct(f"<{codes}{behind}")
        self._ends = (0, *accumulate(struct.calcsize("<" + code) for code in codes))

    def encode(self, packet: object, *before: int) -> bytes:
        return self._whole.pack(*before, *self._values(packet))

    def decode(self, packet: bytes) -> tuple[int, ...]:
        """Read as far as the packet goes: a field that is not there in full reads as zero."""
        if len(packet) < self._whole.size:
            present = max(end for end in self._ends if end <= len(packet))
            packet = packet[:present].ljust(self._whole.size, b"\0")
        return self._whole.unpack_from(packet)


def _require(packet: bytes, size: int, what: str) -> None:
    if len(packet) < size:
        raise Malformed(f"{what} of {len(packet)} bytes, where at least {size} are due")


@dataclass(frozen=True, slots=True)
class _Hello:
    """The two packets that are six bytes long in plain 1.0, and longer beyond it."""

    version: Version = VERSION
    capabilities: int = field(default=_NONE, metadata=_U16)
    """What the server offers, or what the client wants: bits of `Capability`, and others."""
    extended: bool = field(default=True, kw_only=True)
    """Whether it goes beyond the six bytes of plain 1.0."""

    def encode(self) -> bytes:
        """Return the packet: in full, or the six bytes of plain 1.0."""
        packet = _LAYOUTS[type(self)].encode(self, *self.version)
        return packet if self.extended else packet[:_WHOLE_VERSION]

    @classmethod
    def decode(cls, packet: bytes) -> Self:
        """Read a packet of any length from six bytes on; `Malformed` if it is shorter."""
        _require(packet, _WHOLE_VERSION, "a hello")
        major, minor, patch, *values = _LAYOUTS[cls].decode(packet)
        return cls((major, minor, patch), *values, extended=len(packet) >= _EXTENDED)


@dataclass(frozen=True, slots=True)
class ServerHello(_Hello):
    """The server's first packet (docs/protocol.md, "Hello")."""

    server_id: int = field(default=0, metadata=_U64)
    """Random, new each time a server starts, unless it continues another one's feed."""
    oldest_id: int = field(default=0, metadata=_U64)
    """The oldest packet id that the server keeps."""
    next_id: int = field(default=0, metadata=_U64)
    """The packet id that the next message gets."""
    max_lag: int = field(default=0, metadata=_U64)
    """Messages; 0 is no limit."""
    max_packet: int = field(default=0, metadata=_U32)
    """The largest packet that the server sends, bytes; 0 if it does not say."""
    max_message: int = field(default=0, metadata=_U32)
    """The largest message, bytes; 0 if the server does not say."""


@dataclass(frozen=True, slots=True)
class ClientHello(_Hello):
    """The client's reply to the hello (docs/protocol.md, "Reply")."""

    start: int = field(default=START_NOW, metadata=_U64)
    """`START_NOW`, `START_OLDEST`, or the packet id to resume at."""
    max_packet: int = field(default=0, metadata=_U32)
    """The largest packet that the client takes, bytes; 0 if it takes any."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server's verdict, to extended clients only (docs/protocol.md, "Welcome")."""

    status: int = field(metadata=_U16)
    """A `Status`, or a number that only a later version knows."""
    capabilities: int = field(default=_NONE, metadata=_U16)
    """What the server grants: bits of `Capability`, and others."""
    left_out: int = field(default=0, metadata=_U32, kw_only=True)
    """To a client that asked for the oldest: how many messages before `first_id` the server keeps
    and does not give it."""
    first_id: int = field(default=0, metadata=_U64)
    """The first packet id that the client will get."""
    first_offset: int = field(default=0, metadata=_U64, kw_only=True)
    """With LOG, where the message `first_id` stands, or will stand, in the log."""
    text: str = ""
    """Why the client was refused, in words; at most 512 bytes of UTF-8 are sent."""

    def encode(self) -> bytes:
        """Return the packet: 16 bytes, and the text of a refusal or the offset that LOG needs."""
        packet = _LAYOUTS[Welcome].encode(self)
        if self.status == Status.ACCEPTED and self.capabilities & Capability.LOG:
            return packet
        packet = packet[:_WELCOME_SIZE]
        if self.status == Status.ACCEPTED:
            return packet
        text = self.text.encode("utf-8", "replace")[:_TEXT_LIMIT]
        # The cut may have gone through a character.
        return packet + text.decode("utf-8", "ignore").encode("utf-8")

    @classmethod
    def decode(cls, packet: bytes) -> Self:
        """Read a packet of 16 bytes or more, of 24 with LOG; `Malformed` if it is shorter."""
        _require(packet, _WELCOME_SIZE, "a welcome")
        layout = _LAYOUTS[Welcome]
        found: dict[str, Any] = dict(zip(layout.names, layout.decode(packet), strict=True))
        found["status"] = _STATUSES.get(found["status"], found["status"])
        if found["status"] != Status.ACCEPTED:
            text = packet[_WELCOME_SIZE : _WELCOME_SIZE + _TEXT_LIMIT].decode("utf-8", "replace")
            return cls(found["status"], found["capabilities"], found["first_id"], text)
        if found["capabilities"] & Capability.LOG:
            _require(packet, _SHARED_WELCOME_SIZE, "a welcome with LOG")
        else:
            found["first_offset"] = 0
        return cls(**found)


NAME_SIZE: Final = 64
"""Bytes of a client's name."""


def encode_name(name: str) -> bytes:
    """Return what a client says of its name behind the fields of its reply."""
    raw = printable(name).encode("utf-8", "replace")[:NAME_SIZE]
    return raw.decode("utf-8", "ignore").encode()  # the cut may have gone through a character


def decode_name(reply: bytes) -> str:
    """Return the name in a client's reply, fit for terminals and logs; "" if it gives none."""
    raw = reply[_REPLY_SIZE:].partition(b"\0")[0][:NAME_SIZE]
    return printable(raw.decode("utf-8", "replace")).strip()[:NAME_SIZE]


_LAYOUTS: Final[Mapping[type[Any], _Layout]] = {
    ServerHello: _Layout(ServerHello, before="HHH"),
    ClientHello: _Layout(ClientHello, before="HHH", behind="4x"),
    Welcome: _Layout(Welcome),
}


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
    Status.TOO_MANY_CLIENTS: errors.ALL_TAKEN.format(count="its"),
    Status.START: errors.BEYOND,
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
        return _START_RULE.format(reply.start)
    return _reason(status)


def _reason(status: int) -> str:
    return _REASONS.get(status, f"it gave status {status} and no words")


class State(enum.Enum):
    """Where an end stands: which packet comes next."""

    HELLO = enum.auto()
    """The server's."""
    REPLY = enum.auto()
    """The client's."""
    WELCOME = enum.auto()
    """The server's, which may accept or refuse."""
    REFUSAL = enum.auto()
    """The server's, which has to refuse: the reply was not good."""
    DONE = enum.auto()
    """Messages."""
    FAILED = enum.auto()
    """None: the client is refused, or an end broke the protocol."""


_RECEIVE = "receive from the server"
_ALLOWED: Mapping[str, frozenset[State]] = {
    "hello": frozenset((State.HELLO,)),
    "receive the reply": frozenset((State.REPLY,)),
    "accept": frozenset((State.WELCOME, State.DONE)),
    "refuse": frozenset((State.REPLY, State.WELCOME, State.REFUSAL)),
    _RECEIVE: frozenset((State.HELLO, State.WELCOME)),
}
"""What an end may do in which states."""


def _require_allowed(event: str, state: State) -> None:
    if state not in _ALLOWED[event]:
        raise IllegalEvent(f"to {event} is not allowed in state {state.name}")


class ServerHandshake:
    """The server's side of one handshake.

    Args:
        hello: the packet to send first; `hello.capabilities` is what may be granted.

    Each method raises `IllegalEvent`, and changes nothing, where its state does not allow it.
    """

    def __init__(self, hello: ServerHello) -> None:
        self._hello = hello
        self.state = State.HELLO
        self.peer: ClientHello | None = None
        """What the client said, once it was read."""
        self.name = ""
        """What the client calls itself; it may be anything."""
        self.granted = _NONE
        """What is wanted, offered and known; nothing before a good reply, nor after a bad one.

        LOG comes only together with FRAMES, and MONITOR alone: it is about no messages.
        """

    @property
    def extended(self) -> bool:
        """Whether a welcome is due: both ends said more than plain 1.0 does."""
        return self._hello.extended and self.peer is not None and self.peer.extended

    def hello(self) -> bytes:
        """Return the packet to send first."""
        _require_allowed("hello", self.state)
        self.state = State.REPLY
        return self._hello.encode()

    def receive(self, packet: bytes) -> Status:
        """Read the client's reply and say what to do about it: `ACCEPTED`, or why not.

        The core alone knows whether it can begin at the start that is asked for.
        """
        _require_allowed("receive the reply", self.state)
        self.state = State.REFUSAL
        try:
            self.peer = ClientHello.decode(packet)
        except Malformed:
            return Status.MALFORMED
        if not _agree(self._hello.version, self.peer.version):
            return Status.VERSION
        if self.extended:
            self.name = decode_name(packet)
            if not _is_start(self.peer.start):
                return Status.MALFORMED
            self.granted = _grant(_known(self.peer.capabilities & self._hello.capabilities))
        self.state = State.WELCOME
        return Status.ACCEPTED

    def accept(self, first_id: int, first_offset: int | None = None, left_out: int = 0) -> bytes:
        """Return the welcome; empty for a classic client, which gets none.

        It may be called again where that welcome could not be sent.

        Args:
            first_id: the first packet id the client will get.
            first_offset: where that stands in the log; None takes LOG back from what is granted.
            left_out: how many older messages, which it asked for, it will not get.
        """
        _require_allowed("accept", self.state)
        self.state = State.DONE
        if not self.extended:
            return b""
        granted = self.granted if first_offset is not None else self.granted & ~Capability.LOG
        return Welcome(
            Status.ACCEPTED, granted, first_id, first_offset=first_offset or 0, left_out=left_out
        ).encode()

    def refuse(self, status: Status, text: str = "") -> bytes:
        """Return the welcome that refuses; empty for a client that may not understand it.

        Args:
            status: why; `ACCEPTED` is a `ValueError`.
            text: why, in words; by default those of `refusal_text`.
        """
        if status is Status.ACCEPTED:
            raise ValueError("a refusal needs a status other than ACCEPTED")
        _require_allowed("refuse", self.state)
        self.state = State.FAILED
        if not self.extended:
            return b""
        text = text or refusal_text(status, hello=self._hello, reply=self.peer)
        return Welcome(status, text=text).encode()


class ClientHandshake:
    """The client's side of the handshake.

    Args:
        capabilities: what the client wants.
        start: `START_NOW`, `START_OLDEST`, or the packet id to resume at.
        max_packet: the largest packet it takes, bytes; 0 is no wish.
        start_for: chooses the start by the server's hello, instead of `start`.
        name: what it calls itself; at most `NAME_SIZE` bytes are sent.

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
        name: str = "",
    ) -> None:
        if not _is_start(start):
            raise ValueError(_START_RULE.format(start))
        if not 0 <= max_packet < 1 << 32:
            raise ValueError(f"max_packet is {max_packet}; it must fit in 32 bits")
        self.wishes = capabilities
        """What the client wants."""
        self.state = State.HELLO
        self.hello: ServerHello | None = None
        """What the server said first, once it was read, whatever came of it."""
        self.welcome: Welcome | None = None
        """The server's verdict, once it was read; a classic server gives none."""
        self._reply = ClientHello(VERSION, capabilities, start, max_packet)
        self._start_for = start_for
        self._name = encode_name(name)

    @property
    def done(self) -> bool:
        """Whether messages come next."""
        return self.state is State.DONE

    @property
    def granted(self) -> Capability:
        """What the server granted of what this client knows."""
        if not self.done or self.welcome is None:
            return _NONE
        return _known(self.welcome.capabilities)

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
        _require_allowed(_RECEIVE, self.state)
        read = self._read_hello if self.state is State.HELLO else self._read_welcome
        self.state = State.FAILED
        self.state, answer = read(packet)
        return answer

    def _read_hello(self, packet: bytes) -> tuple[State, bytes]:
        try:
            hello = ServerHello.decode(packet)
        except Malformed as error:
            raise ProtocolError(errors.STRANGER.format(why=error)) from None
        if max(hello.version[:2]) > _PLAUSIBLE:
            why = errors.NO_VERSION.format(size=len(packet))
            raise ProtocolError(errors.STRANGER.format(why=why))
        self.hello = hello
        if not _agree(VERSION, hello.version):
            raise VersionMismatch(ours=VERSION, theirs=hello.version)
        if self._start_for is not None:
            self._reply = replace(self._reply, start=self._start_for(hello))
        if not hello.max_packet:
            most = min(self._reply.max_packet or UNTOLD_PACKET, UNTOLD_PACKET)
            self._reply = replace(self._reply, max_packet=most)
        if hello.extended:
            return State.WELCOME, self._reply.encode() + self._name
        if self._reply.start != START_NOW:
            raise Refused(errors.ONLY_NOW, status=Status.START)
        return State.DONE, ClientHello(VERSION, extended=False).encode()

    def _read_welcome(self, packet: bytes) -> tuple[State, bytes]:
        try:
            welcome = Welcome.decode(packet)
        except Malformed as error:
            raise ProtocolError(errors.BROKEN_HANDSHAKE.format(fault=error)) from None
        self.welcome = welcome
        if welcome.status != Status.ACCEPTED:
            reason = printable(welcome.text) or refusal_text(
                welcome.status, hello=self.hello, reply=self._reply
            )
            raise Refused(reason, status=welcome.status)
        granted = _known(welcome.capabilities)
        if welcome.first_id < self._reply.start and Capability.MONITOR not in granted:
            fault = errors.WRONG_START.format(first=welcome.first_id, start=self._reply.start)
            raise ProtocolError(errors.BROKEN_HANDSHAKE.format(fault=fault))
        if welcome.left_out > max(0, welcome.first_id - FIRST_ID):
            fault = errors.LEFT_OUT.format(count=welcome.left_out, first=welcome.first_id)
            raise ProtocolError(errors.BROKEN_HANDSHAKE.format(fault=fault))
        if granted & ~self.wishes:
            raise ProtocolError(errors.BROKEN_HANDSHAKE.format(fault=errors.NOT_ASKED_FOR))
        if Capability.LOG in granted and Capability.FRAMES not in granted:
            raise ProtocolError(errors.BROKEN_HANDSHAKE.format(fault=errors.LOG_WITHOUT_FRAMES))
        return State.DONE, b""
