# SPDX-License-Identifier: Apache-2.0
"""Everything that jumiks raises on its own account.

::

    Exception
    └── JumiksError
        ├── Closed                              this end was closed already
        ├── Forked                              the object belongs to the parent process
        ├── Busy                                another thread, or an open reserve, is in the way
        ├── Timeout (TimeoutError)              the deadline passed first
        ├── MessageTooLarge (ValueError)        the message is larger than the server allows
        ├── AckError (ValueError)               an ack for a message that was not received
        ├── Overwritten                         a batch was given up by the server while in use
        ├── MessagesLost                        there is a gap in the stream, before what follows
        ├── AddressInUse (OSError)              another server is at that address
        └── ConnectionEnded (ConnectionError)   the connection is over, and why:
            ├── Refused                         the server did not let this client in
            │   └── VersionMismatch             ... as it speaks another protocol version
            ├── ServerClosed                    the server closed in good order
            ├── Disconnected                    the server's user ended it
            ├── Lagged                          this client fell too far behind
            ├── ConnectionLost                  it ended before everything was received
            └── ProtocolError                   the other end broke the protocol

The facts are attributes. What the operating system refuses stays the `OSError` that it is, and a
wrong argument stays a `TypeError` or `ValueError`.
"""

import errno
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal

from ._gap import Gap, in_words

__all__ = [
    "AckError",
    "AddressInUse",
    "Busy",
    "Closed",
    "ConnectionEnded",
    "ConnectionLost",
    "Disconnected",
    "Forked",
    "JumiksError",
    "Lagged",
    "MessageTooLarge",
    "MessagesLost",
    "Overwritten",
    "ProtocolError",
    "Refused",
    "ServerClosed",
    "Timeout",
    "VersionMismatch",
]

REFUSED_VERSION = 1
"""The welcome's status for a version that the server does not speak (docs/protocol.md)."""


def printable(text: str) -> str:
    """Return a text of the other end without control codes, fit for terminals and logs."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _revive(
    kind: type["JumiksError"], args: tuple[object, ...], facts: dict[str, object]
) -> "JumiksError":
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class JumiksError(Exception):
    """The base of all that jumiks raises on its own account."""

    def __reduce__(self) -> tuple[object, ...]:
        # By default pickle calls the class with `args`, and most of ours take facts instead.
        return _revive, (type(self), self.args, self.__dict__.copy())


class Closed(JumiksError):
    """The server or client was used after it had been closed."""


class Forked(JumiksError):
    """A server or client made before a fork was used in the child; the child must make its own."""


class Busy(JumiksError):
    """A second thread receives on one client, or its `on_gap`; or a `reserve` block publishes."""


class Timeout(JumiksError, TimeoutError):
    """The deadline passed first.

    Args:
        text: what was waited for.
        holder: the client that was waited for, if it was one.
        published: how many messages of a `publish_many` were published before.
    """

    def __init__(
        self, text: str = "timed out", *, holder: object | None = None, published: int = 0
    ) -> None:
        super().__init__(text)
        self.holder = holder
        self.published = published


class MessageTooLarge(JumiksError, ValueError):
    """The message is larger than the server allows; nothing of it was published.

    Args:
        size: the message's, bytes.
        limit: the server's `max_message`, bytes.
        offset: where its frame begins in the buffer of a `publish_frames`, bytes; else None.
    """

    def __init__(self, size: int, limit: int, *, offset: int | None = None) -> None:
        place = f", in the frame at offset {offset}," if offset is not None else ""
        super().__init__(
            f"message of {size} bytes{place} is larger than max_message, {limit} bytes: send it in "
            "parts, or raise the server's max_message, which is at most a quarter of its log_size"
        )
        self.size = size
        self.limit = limit
        self.offset = offset


class AckError(JumiksError, ValueError):
    """An ack for a message that this client has not received (yet)."""


def counted(number: int, what: str) -> str:
    """Return a number and what it counts, in the plural where that is due."""
    return f"{number} {what}{'s' * (number != 1)}"


def _messages(first: int, last: int) -> str:
    count = last - first + 1
    return f"message {first}" if count == 1 else f"messages {first} to {last} ({count} of them)"


class Overwritten(JumiksError):
    """The server gave messages up, by its lag policy, while this client was still using them.

    Only clients that read the server's log itself get it. The next receive reports the gap, or
    raises `Lagged`.

    Args:
        first: the first message of the batch.
        last: the last one, inclusive.
    """

    def __init__(self, first: int, last: int) -> None:
        super().__init__(
            f"{_messages(first, last)} may have been overwritten while in use, as the server "
            "cut this client or had it skip: handle them faster, or copy them at once"
        )
        self.first = first
        self.last = last

    def __reduce__(self) -> tuple[object, ...]:
        return Overwritten, (self.first, self.last)


class MessagesLost(JumiksError):
    """There is a gap in the stream; the next receive has what follows: a message, or the end.

    Raised by clients that were made with `on_gap="raise"`.

    Args:
        gap: which messages, and why.
    """

    def __init__(self, gap: "Gap") -> None:
        super().__init__(
            f"{in_words(gap, 'lost')}: {gap.reason.value}; the next receive has what follows"
        )
        self.gap = gap


class AddressInUse(JumiksError, OSError):
    """Another process serves that address, or another `Server` of this process.

    Args:
        address: as the user gave it.
        pid: the owner's process id, if it could be found out.
        uid: the owner's user id, if it could be found out.
        detail: what else is known about the owner.
    """

    def __init__(
        self, address: str, *, pid: int | None = None, uid: int | None = None, detail: str = ""
    ) -> None:
        owner = "a process" if detail == OTHER_TYPE else UNSEEN
        advice = "stop that one first"
        if detail == OURS:
            owner, advice = f"{OURS}, {pid}", "close() that one first"
        elif pid is not None:
            owner = f"process {pid}"
        if uid is not None and detail != OURS:
            owner += f" of user {uid}"
        text = f"address {address!r} is in use by {owner}"
        if detail not in ("", OURS):
            text += f" ({detail})"
        super().__init__(errno.EADDRINUSE, f"{text}: {advice}, or take another address")
        self.address = address
        self.pid = pid
        self.uid = uid
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        again = partial(AddressInUse, self.address, pid=self.pid, uid=self.uid, detail=self.detail)
        return again, (), self.__dict__.copy()


class ConnectionEnded(JumiksError, ConnectionError):
    """The connection is over; the subclass says why."""


class Refused(ConnectionEnded):
    """The server did not let this client in.

    Args:
        reason: the server's words.
        status: the welcome's status (docs/protocol.md), never 0.
    """

    def __init__(self, reason: str, *, status: int) -> None:
        super().__init__(f"the server refused this client: {reason}")
        self.reason = reason
        self.status = status


class VersionMismatch(Refused):
    """The two ends speak different versions; major and minor must be equal (docs/protocol.md).

    Args:
        ours: major, minor and patch of this end.
        theirs: the same of the other end.
    """

    def __init__(self, *, ours: tuple[int, int, int], theirs: tuple[int, int, int]) -> None:
        def dotted(version: tuple[int, int, int]) -> str:
            return ".".join(map(str, version))

        super().__init__(
            f"it speaks protocol version {dotted(theirs)}, this end {dotted(ours)}; "
            "major and minor must be equal, so upgrade the older end",
            status=REFUSED_VERSION,
        )
        self.ours = ours
        self.theirs = theirs


# What to do against lag, by the kind of limit, in the words of the API and of the command line.
_ADVICE = {
    "messages": "have the server raise max_lag or patience, or use on_lag='block'",
    "bytes": "have the server raise log_size or patience, or use on_lag='block'",
}
_COMMAND_ADVICE = {
    "messages": "use a larger 'serve --max-lag' or 'serve --patience', or 'serve --on-lag block'",
    "bytes": "use a larger 'serve --log-size' or 'serve --patience', or 'serve --on-lag block'",
}


class Lagged(ConnectionEnded):
    """The server cut this client, as it was too far behind.

    Args:
        limit_kind: which limit it exceeded: `"messages"` is the server's `max_lag`, `"bytes"` is
            the size of its log.
        limit: that limit, in messages or bytes.
        lag: messages that were offered and not acked.
        lag_bytes: what they held of the log, bytes.
        last_acked: the last message this client acked; 0 if none.
        first_lost: the first message it did not get; 0 if it got them all.
        last_lost: the last one, inclusive.
        oldest_kept: the oldest message the server could still send; 0 if unknown.
        resume_at: the packet id to go on at, with `Client(..., start=...)`; 0 if unknown.
        name: what the client calls itself, if it was given a name.
    """

    def __init__(
        self,
        *,
        limit_kind: Literal["messages", "bytes"],
        limit: int,
        lag: int,
        lag_bytes: int = 0,
        last_acked: int = 0,
        first_lost: int = 0,
        last_lost: int = 0,
        oldest_kept: int = 0,
        resume_at: int = 0,
        name: str = "",
    ) -> None:
        self.name = name
        self.limit_kind = limit_kind
        self.limit = limit
        self.lag = lag
        self.lag_bytes = lag_bytes
        self.last_acked = last_acked
        self.first_lost = first_lost
        self.last_lost = last_lost
        self.oldest_kept = oldest_kept
        self.resume_at: int = resume_at or first_lost
        super().__init__(self._text(_ADVICE, "start={}"))

    @property
    def command_text(self) -> str:
        """The text with the options of the `jumiks` command."""
        return self._text(_COMMAND_ADVICE, "--from {}")

    def _text(self, advice: Mapping[str, str], start: str) -> str:
        words = f"handle messages faster, or {advice[self.limit_kind]}"
        return f"{self._figures()}; {self._loss()}; {self._remedy(start)}{words}"

    def _figures(self) -> str:
        who = f" ({self.name})" if self.name else ""
        setting = "max_lag" if self.limit_kind == "messages" else "log_size"
        acked = f"the last ack was for {self.last_acked}" if self.last_acked else "it never acked"
        behind = f"{counted(self.lag, 'message')} ({self.lag_bytes} bytes) behind"
        limit = f"{counted(self.limit, self.limit_kind[:-1])} ({setting})"
        half = counted(self.limit - self.limit // 2, self.limit_kind[:-1])
        # Which of the two rules it was is not on the wire.
        return (
            f"the server cut this client{who}, which had been at its limit of {limit}, and was "
            f"{behind} at the end: it did not work off {half} within the server's patience "
            f"(1 s by default), or had no time for that, as another client kept up; {acked}"
        )

    def _loss(self) -> str:
        if not self.first_lost:
            return "nothing that was published by then is lost"
        return f"not received: {_messages(self.first_lost, self.last_lost)}"

    def _remedy(self, start: str) -> str:
        if not self.resume_at or not self.oldest_kept or self.oldest_kept > self.last_lost > 0:
            return ""
        if self.oldest_kept <= self.resume_at:
            again = start.format(self.resume_at)
            return (
                f"to go on, connect again with {again}: it tells what is no longer kept by then; "
            )
        return (
            f"the server kept {self.oldest_kept} and later, so connect again with "
            f"{start.format(self.oldest_kept)} to get those; "
        )


class ServerClosed(ConnectionEnded):
    """The server closed in good order, and this client has got everything."""


class Disconnected(ConnectionEnded):
    """The server's user ended this connection on purpose."""


class ConnectionLost(ConnectionEnded):
    """The connection ended before everything was received, or it is not known whether it was.

    The server died, or it closed while this client had messages left to receive, or it is a plain
    1.0 connection, which ends without a reason.

    Args:
        reason: what was seen.
        first_lost: the first message that is known to be lost; 0 if none is known.
        last_lost: the last one, inclusive.
    """

    def __init__(self, reason: str, *, first_lost: int = 0, last_lost: int = 0) -> None:
        text = reason
        if first_lost:
            text += f"; lost: {_messages(first_lost, last_lost)}"
        super().__init__(text)
        self.reason = reason
        self.first_lost = first_lost
        self.last_lost = last_lost


class ProtocolError(ConnectionEnded):
    """The other end broke the protocol, or is no jumiks at all (docs/protocol.md)."""


# ---- what a user's options add to an error of the system ----


def add_time_tried(error: Exception, seconds: float) -> None:
    """Have the error of the last of several tries also say how long they took."""
    if isinstance(error, OSError) and error.strerror:
        error.strerror += f"; tried for {seconds:.1f} s"


# ---- arguments that C finds wrong; it calls these ----


def _which_message(position: int) -> str:
    return "a message" if position < 0 else f"message {position} of the sequence"


def no_message(found: object, position: int, scattered: bool) -> TypeError | BufferError:
    """Make the error for what is no message.

    Args:
        found: what was to be published.
        position: its place in the sequence; -1: it stands alone.
        scattered: it is a buffer, but not in one piece.
    """
    which = _which_message(position)
    if scattered:
        return BufferError(f"{which} is not contiguous in memory: copy it with bytes()")
    advice = ": encode it first" if isinstance(found, str) else ""
    return TypeError(f"{which} must be bytes or another buffer, not {type(found)!r}{advice}")


def no_bytes(found: object, position: int) -> TypeError:
    """Make the error for a buffer that shows addresses of this process; as in `no_message`."""
    which = _which_message(position)
    return TypeError(
        f"{which}, {type(found)!r}, has Python objects or pointers in it, which mean nothing to "
        "another process: publish what they stand for"
    )


def no_sequence(found: object) -> TypeError:
    """Make the error for what is no sequence of messages, and no array of them."""
    text = (
        f"publish_many takes a sequence of messages, or an array of rows or records, not "
        f"{type(found)!r}"
    )
    return TypeError(text + _instead_of_sequence(found))


def _instead_of_sequence(found: object) -> str:
    if isinstance(found, Mapping):
        return ": publish its values() or its keys()"
    if isinstance(found, str):
        return ": use publish for one, and encode it first"
    try:
        dimensions = memoryview(found).ndim  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        return ""  # no message either
    if dimensions != 1:
        return ": use publish for one"
    rows = ".reshape(count, size)"
    if not hasattr(found, "reshape"):
        rows = "memoryview(...).cast('B', (count, size))"
    return f": use publish for one; bytes that are many messages of one size become rows by {rows}"


def no_rows(found: object, pointers: str | None) -> TypeError | BufferError:
    """Make the error for an array whose rows are no messages.

    Args:
        found: the array.
        pointers: its format, if that has Python objects or pointers; else its rows are scattered.
    """
    if pointers is not None:
        return TypeError(
            f"the items of this {type(found)!r} have Python objects or pointers in them (format "
            f"{pointers!r}), which mean nothing to another process: publish what they stand for"
        )
    return BufferError(
        f"a row of this {type(found)!r} is not contiguous in memory: copy it, such as with "
        "numpy.ascontiguousarray"
    )


def no_frames(found: object, scattered: bool) -> TypeError | BufferError:
    """Make the error for what is no buffer of frames; the arguments are those of `no_message`."""
    if scattered:
        return BufferError("the frames are not contiguous in memory: copy them with bytes()")
    return TypeError(
        f"publish_frames takes one buffer of frames, as Batch.frames() returns it, not "
        f"{type(found)!r}: use publish_many for messages"
    )


FRAME_FAULTS: Final[dict[str, str]] = {
    "short": "{found} bytes are left, and a frame begins with a header of 16 bytes",
    "kind": "its kind is {found}, and only DATA, which is 1, can be published",
    "flags": (
        "its flags are {found}, and must be 0: a fragment (1) is part of a message, and only whole "
        "messages can be published"
    ),
    "size": "its payload of {found} bytes, with the padding, goes beyond the end of the buffer",
    "padding": (
        "behind its payload of {found} bytes there must be zeros, up to a multiple of 8 bytes"
    ),
}
"""What is wrong with a frame, for each code of `enum jmk_frame_fault` in csrc/jumiks.h."""


def wrong_frame(fault: str, offset: int, found: int) -> ValueError:
    """Make the error for a frame that cannot be published.

    Args:
        fault: a key of `FRAME_FAULTS`.
        offset: where it begins in the buffer, bytes.
        found: a figure, which the sentence names.
    """
    text = FRAME_FAULTS[fault].format(found=found)
    return ValueError(
        f'no frame at offset {offset} of the buffer: {text} (docs/protocol.md, "Framed messages"); '
        "nothing was published"
    )


# ---- what jumiks' own exceptions say; no other module has a text for them ----

CLOSED: Final = "this {what} is closed"
NOT_CLOSED: Final = "{it!r} was not closed"
NOT_THERE: Final = "this {kind} is not there yet: await it, or enter it by 'async with'"
NOT_AGAIN: Final = "this one's start is under way, or has failed: make a new one"
OTHER_LOOP: Final = (
    "this client was made in another event loop, which it stays with: make a new one in the loop "
    "that runs now"
)
NOT_FOR: Final = "use 'async for message in ...': this client belongs to an event loop"
NOT_WITH: Final = "use 'async with {kind}(...)': it belongs to an event loop, as its methods do"
ENTERED_TWICE: Final = "a reservation is entered once: call reserve() again"
ONE_CONSUMER: Final = (
    "another {other} is receiving on this client: one client is for one consumer, so give each "
    "{other} a client of its own"
)
IN_ON_GAP: Final = (
    "this client's on_gap is being called, and what it is told of comes first: receive once it has "
    "returned"
)
NOT_HANDED_OUT: Final = "packet id {packet_id} was not handed out; the last one was {last}"

# mypy looks into a plain Final, and does not know that there was a timeout.
NO_MESSAGE: Final[str] = "no message within {timeout:g} s"
NOT_BACK: Final = "no message in time: {address!r} is gone, and not yet back"
NO_HANDSHAKE: Final[str] = (
    "{address!r} sent {what} within {timeout:g} s: its server is stuck, or it is no jumiks server"
)
NO_PLACE: Final[str] = (
    "no place in the backlog of the server at {address!r} within {timeout:g} s: it is stuck, or "
    "flooded with connections"
)
NO_ANSWER: Final[str] = "{address!r} gave no status within {timeout:g} s"
BATCH_UNDER_WAY: Final = "a publish_many_wait is under way: await {instead} instead"
BATCH_ALL_THE_TIME: Final = "another task's publish_many_wait was under way all the time"
TOO_FEW_CLIENTS: Final[str] = "{present} of {count} clients connected within {timeout:g} s"
TOO_FEW_NOW: Final = "{present} of {count} clients are connected; {why}"
TIMED_OUT: Final = "{what} timed out after {timeout:g} s"
WOULD_WAIT: Final = (
    "{what} would have to wait in the server's control thread, which lets clients in and must not "
    "wait: call it from another thread"
)
HELD_UP: Final = "{why}, held up by {holder}{published}"
HOLDER: Final = "{process}, which is {lag} behind"
OTHER_PUBLISHER: Final = "another publisher, whose turn it is"
PUBLISHED: Final = "; {published} of {count} messages were published"
UNSEEN: Final = "a process that cannot be seen from here"

HUNG_UP: Final = "{address!r} closed the connection during the handshake"
SERVER_DIED: Final = "the server of {address!r} died"
NO_GOODBYE: Final = "end of stream from {address!r} without a goodbye: {why}"
NO_REASON: Final = "a plain 1.0 connection gives no reason"
OR_TOO_LARGE: Final = (
    "; if the server is there still, message {due} may be larger than one packet of it carries, "
    "{most} bytes: take delivery='framed' or the default, or have smaller messages published"
)
DIED: Final = "the server died"
GONE: Final = "end of stream from {address!r}: the server is gone"
CLOSED_EARLY: Final = "the server closed in good order before this client had received everything"
CLOSED_ALL: Final = "the server closed, and all it published was received"
UNKNOWN_REASON: Final = "the server gave reason {reason}, which this version does not know"
BLAMED: Final = "the server says that this client broke the protocol"
KICKED: Final = "the server's user ended this connection"

STATUS_REFUSED: Final = "it gives no status"
ONLY_NOW: Final = (
    "it speaks plain 1.0 and keeps no messages that it could offer, so a client can only start "
    "from now"
)
ALL_TAKEN: Final = "all {count} client places are taken (max_clients)"
BEYOND: Final = "the start that was asked for lies beyond what was published"

OURS: Final = "another Server of this process"
TAKEN_AGAIN: Final = "it was taken again at once"
STAYED_LOCKED: Final = "{path!r} stayed locked for {seconds:g} s"
OTHER_TYPE: Final = (
    "its socket is of another type than SOCK_SEQPACKET, so it is no jumiks server, and the kernel "
    "does not say whose it is"
)
OWNER_GONE: Final = (
    "which is gone; another that has its socket is not, such as a child that it forked"
)

STRANGER: Final = "what answered at this address does not speak jumiks: {why}"
NO_VERSION: Final = "its first packet, of {size} bytes, has no version in it"
BROKEN_HANDSHAKE: Final = "the server broke the handshake: {fault}"
BROKEN_PROTOCOL: Final = "the server broke the protocol: {fault}"
UNINVITED: Final = "it sent descriptors that nobody asked for"
DESCRIPTORS_DUE: Final = "{count} descriptors came with the log it shares, where 2 are due"
WRONG_START: Final = "it begins at {first}, where {start} was asked for"
LEFT_OUT: Final = "it leaves {count} messages out before {first}, which are more than there can be"
NOT_ASKED_FOR: Final = "it grants what was not asked for"
LOG_WITHOUT_FRAMES: Final = "it grants LOG without FRAMES"
SHORT_ANSWER: Final = "it sent a packet too short for an answer"
NO_STATUS_KNOWN: Final = "it does not know what a status is"
LONG_STATUS: Final = "its status is longer than {most} bytes"
BAD_STATUS: Final = "the server's status cannot be read: {why}"
MANY_PARTS: Final = "it has too many parts"


# ---- arrays of what was received ----


def no_library(folder: str) -> ImportError:
    """Make the error for a copy of the package without its compiled part."""
    text = (
        f"jumiks has no compiled library for this Python in {folder}: sources alone have none, "
        "another Python's does not fit, and from a zip file none can be loaded; install jumiks "
        "with this Python's pip, into a folder"
    )
    return ImportError(text, name="jumiks._core")


def no_numpy() -> ImportError:
    """Make the error for an array that is asked for where there is no numpy."""
    text = "arrays need numpy, which is not installed: pip install 'jumiks[numpy]'"
    return ImportError(text, name="numpy")


def no_dtype(found: object, why: object) -> TypeError:
    """Make the error for what numpy takes for no dtype, and says why."""
    return TypeError(
        f"{found!r:.100} is no dtype ({why}): take one such as '<f8', or, for records, "
        "[('time', '<i8'), ('price', '<f8')]"
    )


def dtype_of_objects(dtype: object) -> TypeError:
    """Make the error for a dtype that no message can have."""
    return TypeError(f"{dtype!r} has Python objects in it, which no message has")


def uneven(first_id: int, size: int, other_id: int, other_size: int) -> ValueError:
    """Make the error for a batch that is no rows: messages of two sizes, in bytes."""
    return ValueError(
        f"message {other_id} has {other_size} bytes, and message {first_id} has {size}: rows are "
        "messages of one size; frames(), views() or the batch itself take any, and so "
        "do receive() and receive_many(), which get past these"
    )


def wrong_dtype(dtype: object, item_size: int, size: int) -> ValueError:
    """Make the error for a dtype whose items are not as large as the messages, in bytes."""
    advice = "" if item_size else f", as with {f'S{size}'!r}"
    return ValueError(
        f"an item of {dtype!r} has {item_size} bytes, and the messages have {size}: they must be "
        f"equal{advice}"
    )


# ---- what the core's codes mean; the core itself makes no sentences ----

CONDITIONS: Final[dict[str, tuple[type[JumiksError], str]]] = {
    "JMK_E_TIMEOUT": (Timeout, "timed out"),
    "JMK_E_CLOSED": (Closed, CLOSED),
    "JMK_E_FORKED": (
        Forked,
        (
            "this {what} was made before a fork and belongs to the parent process: "
            "make a new {what} in the child"
        ),
    ),
    "JMK_E_FULL": (JumiksError, "the log has no room for the message yet: try again later"),
    "JMK_E_TURN": (
        Busy,
        "another thread is publishing a batch or has a reserve() open: try again later",
    ),
    "JMK_E_MINE": (
        Busy,
        "this thread has a reserve() open: leave that block before publishing",
    ),
    "JMK_E_TOO_LARGE": (JumiksError, "the message is larger than max_message"),
    "JMK_E_NO_SLOT": (JumiksError, ALL_TAKEN.format(count="its")),
    "JMK_E_START": (JumiksError, BEYOND),
    "JMK_E_GONE": (JumiksError, "the client has gone"),
    "JMK_E_BUSY": (
        Busy,
        ONE_CONSUMER.format(other="thread"),
    ),
    "JMK_E_END": (ConnectionEnded, "the server ended the connection, and said why"),
    "JMK_E_LOST": (ConnectionLost, "the connection ended, and the server did not say why"),
    "JMK_E_PROTOCOL": (ProtocolError, "the other end broke the protocol"),
    "JMK_E_ACK": (AckError, "the ack is for a message that this client has not received"),
    "JMK_E_LOG": (
        ProtocolError,
        BROKEN_HANDSHAKE.format(fault="the log it shares could change or shrink while it is read"),
    ),
    "JMK_E_SHAPE": (
        ProtocolError,
        BROKEN_HANDSHAKE.format(fault="what it shares is no log, or another than it says"),
    ),
}
"""What to raise for each condition of `enum jmk_error` in csrc/jumiks.h."""

FAULTS: Final[dict[str, str]] = {
    "JMK_FAULT_DESCRIPTORS": UNINVITED,
    "JMK_FAULT_EMPTY_PACKET": "it sent an empty packet",
    "JMK_FAULT_PACKET_SIZE": "it sent a packet of {found} bytes, where {due} are agreed at most",
    "JMK_FAULT_NO_ID": (
        "it sent a packet of {found} bytes, which is too short for a packet id of {due}"
    ),
    "JMK_FAULT_FRAME": "it sent a packet of {found} bytes with a frame that does not fit into it",
    "JMK_FAULT_KIND": "it sent a critical frame of the unknown kind {found:#06x}",
    "JMK_FAULT_BYE": "it sent a BYE of {found} bytes, where {due} are due",
    "JMK_FAULT_ID": "it sent the packet id {found}, which no message can have",
    "JMK_FAULT_BACKWARDS": (
        "its packet ids go backwards: it sent {found}, where {due} is the least that can come"
    ),
    "JMK_FAULT_MESSAGE_SIZE": (
        "it sent a message of {found} bytes, larger than the max_message it announced, {due} bytes"
    ),
    "JMK_FAULT_FRAGMENT": "it sent a fragment of message {found} whose sizes contradict each other",
    "JMK_FAULT_CONTINUATION": (
        "it sent a fragment of message {found} that does not continue what came before"
    ),
    "JMK_FAULT_COMPANY": "it sent a fragment of message {found} beside another frame in one packet",
    "JMK_FAULT_INTERRUPTED": "it sent message {found} before the last fragment of message {due}",
    "JMK_FAULT_RESUME": "it said to go on with message {found} at a place that it cannot be at",
    "JMK_FAULT_DATA": "it sent message {found} in a packet, though it shares its log",
    "JMK_FAULT_LOG_END": "its log ends at offset {found}, which cannot be for a reader at {due}",
    "JMK_FAULT_LOG_FRAME": (
        "its log, from message {found} on, has something that is not the message due there"
    ),
}
"""What the server did, for each code of `enum jmk_fault_kind` in csrc/jumiks.h."""


def protocol_error(name: str, found: int, due: int) -> ProtocolError:
    """Make the error for a fault of the server's; the arguments are those of `struct jmk_fault`."""
    fault = FAULTS[name].format(found=found, due=due)
    return ProtocolError(BROKEN_PROTOCOL.format(fault=fault))
