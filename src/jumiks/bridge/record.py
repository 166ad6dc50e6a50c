# SPDX-License-Identifier: Apache-2.0
"""What an engine stores: records of many messages, and of gaps (docs/bridge.md, "Records").

Bytes in, bytes out: nothing here knows an engine.

Messages have *stream ids* in the engine. They begin with the source's ids and go on when a source
restarts. A record says which ids of which source its stream ids stand for, so the last record of a
stream tells where to go on.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, cast, get_args

from .._native import Gathered, gather, gather_frames
from .._native import split_frames as cut_frames
from .._options import MOST_FIRST_ID
from .._wire.handshake import FIRST_ID

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["GapKind", "Position", "Record", "Unreadable"]

FORMAT: Final = "1"

GapKind: TypeAlias = Literal["evicted", "skipped", "ended", "restarted", "too-large", "unreadable"]
"""Why messages are missing: the source no longer had them; its lag policy skipped them; it ended
first; another source took its place; the engine takes none that large; a record made no sense."""

_KINDS: Final = frozenset(get_args(GapKind))
_HEAD: Final = struct.Struct("<IHHQ")
_DATA: Final = 1
_MOST: Final = 1 << 64
_DIGITS: Final = len(str(_MOST))
_UNKNOWN: Final = "?"

MOST_LOST: Final = 1 << 48
"""Messages that a gap of known size may have: what 9 million per second are in a year."""


class Position(NamedTuple):
    """The end of a stream.

    Args:
        stream: stream id of the last message.
        server: the source's `server_id`.
        source: the source's id of that message. If the last record is a gap of unknown size, or a
            mark, the id before the next message.
    """

    stream: int
    server: int
    source: int


class Unreadable(ValueError):
    """A record that makes no sense.

    Args:
        text: what is wrong with it.
        first: stream id of its first message, as far as that is known; else 0.
        last: of its last one; else 0.
    """

    def __init__(self, text: str, first: int = 0, last: int = 0) -> None:
        super().__init__(text)
        self.first = first
        self.last = last


@dataclass(frozen=True, slots=True)
class Record:
    """Messages that follow each other, or a gap.

    Args:
        seq: stream id of the first message.
        count: stream ids that it takes; 0 in a mark, which only repeats the position.
        server: the source's `server_id`.
        first: the source's id of the first message. In a gap of unknown size, and in a mark, that
            of the message behind it.
        body: frames as docs/protocol.md has them, with the source's ids; or one payload, if
            `plain`; empty in a gap.
        gap: why messages are missing, or "".
        lost: how many of them; None if nobody knows, and then `count` is 1.
        plain: whether the body is one payload.
    """

    seq: int
    count: int
    server: int
    first: int
    body: bytes = b""
    gap: GapKind | Literal[""] = ""
    lost: int | None = 0
    plain: bool = False

    @property
    def last(self) -> int:
        """Stream id of its last message."""
        return self.seq + self.count - 1

    @property
    def end(self) -> Position:
        """Where the stream ends with it."""
        source = self.first - 1 if self.lost is None else self.first + self.count - 1
        return Position(self.last, self.server, source)

    def headers(self) -> dict[str, str]:
        """Return the headers, all of them text."""
        found = {
            "Jumiks-Format": FORMAT,
            "Jumiks-Seq": str(self.seq),
            "Jumiks-Count": str(self.count),
            "Jumiks-Server": str(self.server),
            "Jumiks-First": str(self.first),
        }
        if self.gap:
            found["Jumiks-Gap"] = self.gap
            found["Jumiks-Lost"] = _UNKNOWN if self.lost is None else str(self.lost)
        if self.plain:
            found["Jumiks-Plain"] = "1"
        return found

    @classmethod
    def parse(cls, headers: Mapping[str, str], body: bytes) -> Record:
        """Make a record of what an engine has; the body is looked at later, by `payloads`.

        Raises:
            Unreadable: these headers are of no record.
        """
        form = headers.get("Jumiks-Format")
        if form is None:
            raise Unreadable("a record without the header Jumiks-Format")
        seq, count = _number(headers, "Jumiks-Seq"), _number(headers, "Jumiks-Count")
        if seq + count > _MOST - 1:
            raise Unreadable(f"a record of {count} ids from {seq} on: ids end before")
        about = (seq, seq + count - 1)
        if form != FORMAT:
            raise Unreadable(f"a record of format {form!r}; this version reads {FORMAT}", *about)
        lost = headers.get("Jumiks-Lost", "0")
        gap = headers.get("Jumiks-Gap", "")
        if gap and (gap not in _KINDS or lost not in (_UNKNOWN, str(count)) or body):
            raise Unreadable(f"a gap {gap!r} of {lost} in {count} ids", *about)
        if lost == _UNKNOWN and count != 1:
            raise Unreadable(f"a gap of unknown size that takes {count} ids", *about)
        if not gap and bool(count) != bool(body or headers.get("Jumiks-Plain")):
            raise Unreadable(f"{count} messages in a body of {len(body)} bytes", *about)
        found = cls(
            seq,
            count,
            _number(headers, "Jumiks-Server"),
            _number(headers, "Jumiks-First", least=-_MOST),
            body,
            cast("GapKind", gap),
            (None if lost == _UNKNOWN else count) if gap else 0,
            headers.get("Jumiks-Plain") == "1",
        )
        found._check_ids()
        return found

    def _check_ids(self) -> None:
        # A server must be able to go on with them at either end.
        stream, server, source = self.end
        if not (
            self.seq >= FIRST_ID
            and stream < MOST_FIRST_ID
            and server
            and FIRST_ID <= source + 1 < _MOST
            and (not self.gap or self.count <= MOST_LOST)
        ):
            words = f"{self.count} ids from {self.seq} on, which end at {source} of source {server}"
            raise Unreadable(f"no feed has these: {words}")

    def check(self) -> None:
        """Check the body.

        Raises:
            Unreadable: it is not what the headers say.
        """
        if not self.gap and self.count:
            self._packs(len(self.body))

    def ends(self) -> Sequence[int]:
        """Check the body; return the offsets in it at which its messages end, none for a gap.

        Raises:
            Unreadable: the body is not what the headers say.
        """
        if self.gap or not self.count:
            return ()
        return [end for _, end in self._packs(1)]

    def _packs(self, limit: int) -> Sequence[tuple[int, int]]:
        if self.plain:
            if self.count != 1:
                raise Unreadable(f"{self.count} messages in a plain record", self.seq, self.last)
            return ((1, len(self.body)),)
        try:
            packs = split_frames(self.body, self.first, limit)
        except Unreadable as error:
            raise Unreadable(str(error), self.seq, self.last) from None
        count = sum(count for count, _ in packs)
        if count != self.count:
            words = f"{count} frames, and the headers say {self.count} messages"
            raise Unreadable(words, self.seq, self.last)
        return packs

    def gathered(self) -> Gathered:
        """Return where its messages are, for a server's log; the body was checked."""
        return gather([self.body]) if self.plain else gather_frames(self.body)

    def payloads(self) -> Sequence[bytes]:
        """Return its messages; none for a gap.

        Raises:
            Unreadable: the body is not what the headers say.
        """
        ends = self.ends()
        return (self.body,) if self.plain and ends else _payloads(self.body, ends)


def _number(headers: Mapping[str, str], name: str, least: int = 0) -> int:
    text = headers.get(name, "")
    digits = text[1:] if text[:1] == "-" else text
    if not (
        len(digits) <= _DIGITS
        and digits.isascii()
        and digits.isdecimal()
        and least <= int(text) < _MOST
    ):
        raise Unreadable(f"a record with {name}: {text[:40]!r}")
    return int(text)


# ---- frames


def split_frames(frames: Buffer, first: int, limit: int) -> Sequence[tuple[int, int]]:
    """Check frames, and cut them into packs; return how many frames each has, and where it ends.

    Args:
        frames: whole frames of messages, with ids that rise by one.
        first: the id of the first one.
        limit: bytes of a pack. A frame that is larger is alone in its pack.

    Raises:
        Unreadable: they are something else.
    """
    if not 0 <= first < _MOST:
        raise Unreadable(f"a message with the id {first}")
    packs = cut_frames(frames, first, limit)
    if not packs or isinstance(packs, int):
        raise Unreadable(f"no frame of message {first} or a later one at byte {packs or 0}")
    return packs


def _payloads(frames: bytes, ends: Sequence[int]) -> list[bytes]:
    begin, found = 0, []
    sizes = memoryview(frames).cast("I")
    head = _HEAD.size
    for end in ends:
        at = begin + head
        found.append(frames[at : at + sizes[begin // 4]])
        begin = end
    return found


def make_frames(first: int, messages: Sequence[bytes]) -> bytes:
    """Make frames of messages, as a server has them in its log.

    Args:
        first: the id of the first one.
        messages: their payloads.
    """
    pack = _HEAD.pack
    parts: list[bytes] = []
    for number, message in enumerate(messages, first):
        parts += (pack(len(message), _DATA, 0, number), message, bytes(-len(message) % 8))
    return b"".join(parts)
