# SPDX-License-Identifier: Apache-2.0
"""What a client notes of its connections in memory that survives it, and the check of that.

A note is a few words, written before their count goes up, so a client that is killed at any moment
leaves whole notes. `Check` reads on where it stopped, and holds the notes against those of the
servers.
"""

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .common import FIRST_ID, Words, require

COUNT, STATE, ACKED, LAST, LAST_SERVER = range(5)
HEADER: Final = 8
SIZE: Final = 6
CAPACITY: Final = 1 << 14
"""Notes; they go round, and are read at least that often."""

NOW, OLDEST = 0, 1
COMES_BACK: Final = 16
LOST_SIDE: Final = struct.Struct("<QQ")


def payload(packet_id: int, server: int) -> bytes:
    """The message of that id that this server publishes; most are small, some take many pages."""
    size = 30_000 if packet_id % 997 == 0 else packet_id * 2654435761 % 211
    return LOST_SIDE.pack(packet_id, server) + bytes([packet_id % 251]) * size


def server_of(message: bytes) -> int:
    """Which server published it, by what it says."""
    return LOST_SIDE.unpack_from(message)[1] if len(message) >= LOST_SIDE.size else 0


class Note(enum.IntEnum):
    """What a note is of, and what its words are."""

    CONNECTED = 1
    """Mode (and `COMES_BACK`), start asked for, server's random id, current server by number, what
    that had begun."""
    GOT = 2
    """First, last, server by number."""
    GAP = 3
    """First, last (0 if that is unknown), a `Why`."""
    END = 4
    """An `End`, first and last lost, where to resume."""
    WRONG = 5
    """Id: its payload is not that of its id."""


class Why(enum.IntEnum):
    """Why there is a gap: the reasons of `jumiks.GapReason`."""

    SKIPPED = 1
    EVICTED = 2
    ENDED = 3
    RESTARTED = 4


class End(enum.IntEnum):
    """How a connection ended, as the client was told."""

    LOST = 1
    LAGGED = 2
    CLOSED = 3
    LEFT = 4


class Mode(enum.IntEnum):
    """What a client is, by what it reads."""

    CLASSIC = 0
    FRAMED = 1
    SHARED = 2
    PLAIN = 3
    """A plain 1.0 peer that knows nothing of this package."""


class Ledger:
    """A client's notes."""

    def __init__(self) -> None:
        self.words = Words(HEADER + SIZE * CAPACITY)

    def _place(self, number: int) -> int:
        return HEADER + SIZE * (number % CAPACITY)

    def note(self, kind: Note, *words: int) -> None:
        """Write one note."""
        number = self.words[COUNT]
        place = self._place(number)
        for index, word in enumerate((kind, *words)):
            self.words[place + index] = word
        self.words[COUNT] = number + 1

    def got(self, first: int, last: int, server: int) -> None:
        """Messages were handed out; those right behind the last need no note of their own."""
        if server != self.words[LAST_SERVER]:
            self.words[ACKED] = 0
        place = self._place(self.words[COUNT] - 1)
        if self.words.read(place, 4) == [Note.GOT, self.words[place + 1], first - 1, server]:
            self.words[place + 2] = last
        else:
            self.note(Note.GOT, first, last, server)
        self.words[LAST_SERVER] = server
        self.words[LAST] = last

    def gap(self, first: int, last: int | None, why: Why = Why.SKIPPED) -> None:
        """A gap was told of."""
        self.note(Note.GAP, first, last or 0, why)
        self.words[LAST] = last or 0

    def read(self, number: int) -> list[int]:
        """One note, all words."""
        return self.words.read(self._place(number), SIZE)


@dataclass
class ServerNotes:
    """What a server noted, by the number it has in this run."""

    begun: int = 0
    """The last id of the call to publish that was under way, or the last one."""
    done: int = 0
    """The last id whose publish had returned."""
    random_id: int = 0
    """`Server.server_id`."""
    alive: bool = True
    skipped: int = 0
    """Messages that it says its clients were made to skip, all together."""
    settings: str = ""
    """What it is, for messages."""


COUNTS: Final = (
    "messages",
    "gaps",
    "missed",
    "lagged",
    "lost",
    "rest lost",
    "closed",
    "moved",
)


class Check:
    """Holds one client's notes against the servers', from where it stopped before."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self.ledger = ledger
        self.name = name
        self.comes_back = False  # by itself, to the next server
        self.told_rest = False  # that it lost the last ones of the server before
        self.number = 0
        self.upto = 0  # of the last note, if that may still grow
        self.mode = Mode.CLASSIC
        self.expected = 0  # the next id of this connection; 0 until one is known
        self.first_by = 0  # where the first one must be, at the latest
        self.start = NOW
        self.server = 0
        self.resume = (0, 0)  # random id of the server, and where to go on at
        self.cut_in_silence: dict[int, int] = {}  # by server: without a word, while it lived
        self.jumped: dict[int, int] = {}  # by server: ids that did not come, and nothing said so
        self.last_rest = ""
        self.counts = dict.fromkeys(COUNTS, 0)

    def go_on(self, servers: Mapping[int, ServerNotes]) -> None:
        """Check what was noted since."""
        count = self.ledger.words[COUNT]
        require(count - self.number < CAPACITY, f"{self.name}: more notes than there is room for")
        while self.number < count:
            kind, *words = self.ledger.read(self.number)
            {
                Note.CONNECTED: self._connected,
                Note.GOT: self._got,
                Note.GAP: self._gap,
                Note.END: self._end,
                Note.WRONG: self._wrong,
            }[Note(kind)](words, servers)
            if self.number == count - 1 and kind == Note.GOT:
                return  # it may grow yet
            self.number += 1
            self.upto = 0

    def _connected(self, words: list[int], servers: Mapping[int, ServerNotes]) -> None:
        mode, self.start, random_id, current, begun = words
        self.mode = Mode(mode & ~COMES_BACK)
        self.comes_back, self.told_rest = bool(mode & COMES_BACK), False
        by_id = [number for number, server in servers.items() if server.random_id == random_id]
        self.server = by_id[0] if random_id and by_id else 0
        self.expected = 0
        # All that was published after it had connected must come; but to which server it did,
        # plain 1.0 does not say.
        self.first_by = begun + 1 if self.server and self.server == current and begun else 0
        if self.start >= FIRST_ID:
            self.expected = self.start
            if random_id == self.resume[0]:
                require(self.start == self.resume[1], f"{self.name}: it resumed at another message")
        self.random_id = random_id

    def _at(self, first: int, what: str) -> None:
        if self.expected:
            gap = first - self.expected
            kind = "are lost without a report" if gap > 0 else "came again, or out of order"
            require(
                first == self.expected,
                f"{self.name} ({self.mode.name}, server {self.server}): {what} {first} where "
                f"{self.expected} was due: {abs(gap)} {kind}",
            )
        elif self.first_by:
            require(
                first <= self.first_by,
                f"{self.name} ({self.mode.name}): {what} {first} came first, though it had "
                f"connected before {self.first_by} was published",
            )

    def _got(self, words: list[int], servers: Mapping[int, ServerNotes]) -> None:
        first, last, server, *_ = words
        if self.upto:
            first = self.upto + 1
        if first > last:
            return
        if self.comes_back and server != self.server:
            self._move(servers)
        self._at(first, "message")
        require(
            server in servers and self.server in (0, server),
            f"{self.name}: a message of server {server} came from server {self.server}",
        )
        require(
            last <= servers[server].begun,
            f"{self.name}: message {last} came, and server {server} was at {servers[server].begun}",
        )
        self.server = server
        self.expected, self.upto = last + 1, last
        self.counts["messages"] += last - first + 1

    def _move(self, servers: Mapping[int, ServerNotes]) -> None:
        # To the next server, all of which comes, behind a gap if the last one's rest was lost.
        before = servers.get(self.server)
        if before is not None:
            # One that got nothing was due what was published once it had connected.
            last = (self.expected or self.first_by or before.done + 1) - 1
            require(not before.alive, f"{self.name}: it left server {self.server}, which lives")
            require(
                self.told_rest or last >= before.done,
                f"{self.name} ({self.mode.name}): it went on at the next server, at {last} of the "
                f"{before.done} that the last one had published ({before.settings})",
            )
            self.counts["moved"] += 1
            self.expected = FIRST_ID
        self.server = 0
        self.told_rest = False

    def _gap(self, words: list[int], servers: Mapping[int, ServerNotes]) -> None:
        first, last, number, *_ = words
        why = Why(number)
        self.counts["gaps"] += 1
        # A start at the oldest may leave out what no later client has room for: no move.
        server = servers.get(self.server)
        began = self.start == OLDEST and not self.expected and server is not None and server.alive
        at_first = first == FIRST_ID != self.expected
        if why == Why.EVICTED and self.comes_back and at_first and not began:
            self._move(servers)
        if self.expected or self.server:
            self._at(first, "a gap from")
        if why in (Why.ENDED, Why.RESTARTED):
            self._lost_rest(why, last, servers)
            return
        require(first <= last, f"{self.name}: a gap from {first} to {last}")
        self.expected = last + 1
        self.counts["missed"] += last - first + 1
        if self.mode == Mode.PLAIN:
            # All that plain 1.0 sees of being skipped is a jump of ids; the server knows more.
            self.jumped[self.server] = self.jumped.get(self.server, 0) + last - first + 1

    def _lost_rest(self, why: Why, last: int, servers: Mapping[int, ServerNotes]) -> None:
        server = servers.get(self.server)
        require(self.comes_back, f"{self.name}: told of a restart, and had not asked to come back")
        require(
            why == Why.ENDED or self.mode != Mode.SHARED,
            f"{self.name}: nobody knows how many are lost, and the log was there",
        )
        if server is not None and why == Why.ENDED:
            require(
                server.done <= last <= server.begun,
                f"{self.name}: told that all up to {last} is lost; {server.done} was published",
            )
        if server is not None:
            require(not server.alive, f"{self.name}: told that server {self.server} is gone")
        # What was published by one that it got nothing from cannot be told apart from here on.
        self.server, self.expected, self.told_rest = 0, 0, True

    def _wrong(self, words: list[int], _servers: Mapping[int, ServerNotes]) -> None:
        require(False, f"{self.name} ({self.mode.name}): message {words[0]} was not what it is")

    def _end(self, words: list[int], servers: Mapping[int, ServerNotes]) -> None:
        kind, first_lost, last_lost, resume, _ = words
        if first_lost == FIRST_ID != self.expected and self.comes_back:
            self._move(servers)  # cut by the next server before it had anything of that
        server = servers.get(self.server)
        last = self.expected - 1
        if first_lost:
            self._at(first_lost, "a loss from")
            require(
                server is None or last_lost <= server.begun,
                f"{self.name}: {last_lost} was told as lost, and was not published",
            )
        self.resume = (self.random_id, resume) if resume else (0, 0)
        if kind == End.LOST:
            self._lost(server, last, first_lost)
        elif kind == End.CLOSED and server is not None and self.expected:
            self.counts["closed"] += 1
            require(
                last == server.done,
                f"{self.name}: told that it had all, at {last}, of {server.done} published",
            )
        elif kind == End.LAGGED:
            self.counts["lagged"] += 1

    def _lost(self, server: ServerNotes | None, last: int, first_lost: int) -> None:
        self.counts["lost"] += 1
        if first_lost:
            self.counts["rest lost"] += 1
            self.last_rest = f"{self.name}, from {first_lost} on ({server and server.settings})"
        if server is None or first_lost:
            return
        if server.alive:
            require(
                self.mode in (Mode.CLASSIC, Mode.PLAIN),
                f"{self.name} ({self.mode.name}): its connection was lost, and the server lives",
            )
            self.cut_in_silence[self.server] = self.cut_in_silence.get(self.server, 0) + 1
        elif self.mode == Mode.SHARED and self.expected:
            require(
                last >= server.done,
                f"{self.name}: it got all to {last} out of the log, and {server.done} was there "
                f"({server.settings})",
            )
