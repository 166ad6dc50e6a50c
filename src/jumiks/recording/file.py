# SPDX-License-Identifier: Apache-2.0
"""What is in a recording, and writing and reading it: docs/recording.md.

An MCAP message per jumiks message would take Python some microseconds each. So one MCAP message
is a *pack*: all messages that one receive found, as frames.
"""

from __future__ import annotations

import io
import json
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from .._closing import Closing
from .._gap import Gap, GapReason
from .._native import split_frames
from ..errors import JumiksError

if TYPE_CHECKING:
    from mcap.records import Channel, Chunk, McapRecord, Message
    from mcap.writer import Writer as McapWriter

__all__ = ["COMPRESSIONS", "Compression", "End", "Lost", "Pack", "Reader", "RecordingError"]

Compression: TypeAlias = Literal["zstd", "lz4", "none"]
COMPRESSIONS: Final[tuple[Compression, ...]] = get_args(Compression)

PACK_ENCODING: Final = "jumiks.frames"
EVENT_SUFFIX: Final = "/events"
LIBRARY: Final = "jumiks"

PACK_SCHEMA: Final = b"""\
Each MCAP message is a pack of frames, one behind the other, to its end. All numbers are
little-endian. A frame is

    u32  size of the payload, bytes
    u16  1
    u16  0
    u64  id of the message
    the payload, and then zeros up to a multiple of 8 bytes

Ids rise by one from frame to frame. log_time is when the recorder received the pack. The channel's
metadata has the number of the server that the ids belong to, as server_id.
"""

EVENT_SCHEMA: Final[dict[str, object]] = {
    "title": "jumiks.Event",
    "description": "messages that the recorder did not get, or the end of the recording",
    "type": "object",
    "properties": {
        "event": {"enum": ["gap", "end"]},
        "server_id": {"type": "string", "description": "whose ids these are"},
        "first_id": {"type": "integer", "description": "gap: the first message lost"},
        "last_id": {"type": ["integer", "null"], "description": "gap: the last; null: unknown"},
        "reason": {"type": "string"},
        "text": {"type": "string", "description": "the same in words"},
    },
    "required": ["event", "server_id", "reason", "text"],
}

LARGEST_RECORD: Final = 1 << 30
"""Bytes of a record that is read; more is damage, or an attack."""

_MAGIC: Final = b"\x89MCAP0\r\n"
_FRAME: Final = struct.Struct("<IHHQ")
_RECORD: Final = struct.Struct("<BQ")
_FOOTER: Final = struct.Struct("<BQQQI8s")
"""The last record, whose third field says where the summary begins, and the magic behind it."""
_MESSAGE_HEAD: Final = 31
"""Bytes of an MCAP message before its data."""
_FOOTER_KIND: Final = 2
_CHANNEL_KIND: Final = 4

_MOST_IN_SUMMARY: Final = 10_000
"""Records. A longer summary is not needed: all of it stands before it, too."""
_LARGEST_CHANNEL: Final = 1 << 20
"""Bytes."""


AROUND: Final = 256
"""Bytes of memory that an item takes beside its frames, in the queue of a recorder."""

_WRONG: Final = (
    *(ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError),
    struct.error,
)
"""What reading a message of a damaged file raises."""


class RecordingError(JumiksError):
    """A file is no recording, or is damaged, or cannot be written; the text says more."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Messages that one receive found, whose ids have no holes.

    Args:
        time: when they were received, nanoseconds since 1970.
        server_id: the server's number; 0 of a plain 1.0 server.
        first_id: the id of the first of them.
        frames: all of them, as `Server.publish_frames` takes them.
    """

    time: int
    server_id: int
    first_id: int
    frames: bytes

    def messages(self) -> Iterator[bytes]:
        """Yield the messages."""
        offset, frames = 0, self.frames
        while offset < len(frames):
            size = _FRAME.unpack_from(frames, offset)[0]
            offset += _FRAME.size
            yield frames[offset : offset + size]
            offset += (size + 7) // 8 * 8


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages that the recorder did not get.

    Args:
        time: when it was told so, nanoseconds since 1970.
        server_id: whose ids those in the gap are.
        gap: which messages.
    """

    time: int
    server_id: int
    gap: Gap


@dataclass(frozen=True, slots=True)
class End:
    """Why a recording ends.

    Args:
        time: when it ended, nanoseconds since 1970.
        server_id: the server's number.
        reason: `"stopped"`, by its user; `"closed"`, by the server; or the name of the exception
            that ended the connection, such as `"Lagged"`.
        text: the same in words.
    """

    time: int
    server_id: int
    reason: str
    text: str


Item: TypeAlias = "Pack | Lost | End"


def size_in_memory(item: Item) -> int:
    """Return about how many bytes an item takes while it waits for the disk."""
    return AROUND + (len(item.frames) if isinstance(item, Pack) else 0)


def check_seekable(path: str | os.PathLike[str]) -> None:
    """Raise RecordingError if this is there, and cannot be a recording, as a FIFO cannot.

    Opening one would wait for its other end.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # opening it says why
    kinds = {stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket"}
    if what := kinds.get(stat.S_IFMT(mode)):
        raise RecordingError(
            f"{os.fspath(path)}: this is {what}, and a recording is a file, which is read and "
            "written at any place: give a file"
        )


def needed() -> None:
    """Raise RecordingError unless the package that knows the format is installed."""
    try:
        import mcap  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "mcap":
            raise
        raise RecordingError(
            "recordings need the package mcap, which is not installed: pip install 'jumiks[record]'"
        ) from None


class _Output:
    """A file that is written whole, without a buffer: what a chunk has is with the kernel."""

    def __init__(self, path: str | os.PathLike[str], overwrite: bool) -> None:
        check_seekable(path)
        self._file = io.FileIO(path, "wb" if overwrite else "xb")

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def cut(self, size: int) -> None:
        self._file.truncate(size)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()


class Writer:
    """Writes a recording. What `flush` has written is readable whatever happens then.

    Args:
        path: of a file that is not there yet.
        topic: what the feed is called in it, such as the server's address.
        server_id: the server's number; further ones may follow.
        compression: of chunks.
        overwrite: whether a file that is there is replaced.

    Raises:
        FileExistsError: the file is there.
        OSError: it cannot be made.
        RecordingError: the package mcap is not installed, or a pipe or socket is there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        topic: str,
        server_id: int,
        *,
        compression: Compression = "lz4",
        overwrite: bool = False,
    ) -> None:
        needed()
        from mcap.writer import CompressionType
        from mcap.writer import Writer as McapWriter

        self._topic = topic
        self._output = _Output(path, overwrite)
        self._whole = 0  # bytes of the file up to the end of a chunk
        self._packs: dict[int, int] = {}  # channels, by the server's number
        self._sequence = 0
        kind = CompressionType[compression.upper()]
        self._mcap: McapWriter = McapWriter(self._output, 1 << 62, kind)  # type: ignore[arg-type]
        try:
            self._mcap.start(library=LIBRARY)
            self._whole = self._output.tell()
            schema = json.dumps(EVENT_SCHEMA).encode()
            self._events = self._channel(
                topic + EVENT_SUFFIX, "json", ("jumiks.Event", "jsonschema", schema)
            )
            self._pack_schema = self._mcap.register_schema("jumiks.Frames", "text", PACK_SCHEMA)
            self._packs_of(server_id)
        except BaseException:
            self._output.close()
            raise

    def _channel(self, topic: str, encoding: str, schema: tuple[str, str, bytes]) -> int:
        return self._mcap.register_channel(topic, encoding, self._mcap.register_schema(*schema))

    def write(self, item: Item) -> int:
        """Add an item to the chunk that is not in the file yet; return the bytes it has there."""
        if isinstance(item, Pack):
            channel, data = self._packs_of(item.server_id), item.frames
        else:
            channel, data = self._events, json.dumps(_event(item)).encode()
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        self._mcap.add_message(channel, item.time, data, item.time, self._sequence)
        return len(data) + _MESSAGE_HEAD

    def _packs_of(self, server_id: int) -> int:
        if server_id not in self._packs:
            self._packs[server_id] = self._mcap.register_channel(
                self._topic, PACK_ENCODING, self._pack_schema, {"server_id": str(server_id)}
            )
        return self._packs[server_id]

    def flush(self) -> None:
        """Write the chunk."""
        self._mcap.flush()  # type: ignore[no-untyped-call]
        self._whole = self._output.tell()

    def close(self) -> None:
        """Finish the file."""
        try:
            self._mcap.finish()  # type: ignore[no-untyped-call]
        finally:
            self._output.close()

    def give_up(self) -> None:
        """Close a file that cannot be written any more, at the end of its last whole chunk."""
        try:
            self._output.cut(self._whole)
        finally:
            self._output.close()


def _event(item: Lost | End) -> dict[str, object]:
    found: dict[str, object] = {"server_id": str(item.server_id)}
    if isinstance(item, End):
        return {"event": "end", **found, "reason": item.reason, "text": item.text}
    gap = item.gap
    found |= {"first_id": gap.first, "last_id": gap.last, "reason": gap.reason.name.lower()}
    return {"event": "gap", **found, "text": f"{gap}: {gap.reason.value}"}


class Reader(Closing):
    """Reads a recording: an iterator over its packs, its gaps and its end.

    It reads from the beginning, and a file that is still being written as well. ::

        with Reader("ticks.mcap") as recording:
            for item in recording:
                if isinstance(item, Pack):
                    ...

    Args:
        path: of the file.
        topic: which feed; by default the only one in the file.

    Raises:
        OSError: the file cannot be read.
        RecordingError: it is no recording, no file, is damaged, or has several feeds.
    """

    def __init__(self, path: str | os.PathLike[str], topic: str | None = None) -> None:
        needed()
        self.path: str = os.fspath(path)
        self.topic: str | None = None
        """Which feed; None until it was found."""
        self._wanted = topic
        self.is_cut_off: bool = False
        """Whether the file has no end: what follows its last whole chunk is lost."""
        self._channels: dict[int, Channel] = {}
        self._topics: set[str] = set()
        check_seekable(path)
        self._file = open(path, "rb")  # noqa: SIM115
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._check()
        except BaseException:
            self._file.close()
            raise

    def _check(self) -> None:
        if self._file.read(len(_MAGIC)) != _MAGIC:
            raise self._error("it is no MCAP file")
        for channel in self._summary():
            self._meet(channel)
        if self._topics and self.topic is None:
            raise self._strange()
        self._file.seek(len(_MAGIC))

    def _summary(self) -> list[Channel]:
        # So what a large file has is told at once. A file that was cut off has none, and whatever
        # is wrong is found again, and told, while reading. The library's own way has no bound.
        from mcap.data_stream import ReadDataStream
        from mcap.records import Channel

        found: list[Channel] = []
        try:
            self._file.seek(-_FOOTER.size, os.SEEK_END)
            at = _FOOTER.unpack(self._file.read(_FOOTER.size))[2]
            for _ in range(_MOST_IN_SUMMARY if at else 0):
                self._file.seek(at)
                kind, length = _RECORD.unpack(self._file.read(_RECORD.size))
                if kind == _FOOTER_KIND:
                    return found
                if kind == _CHANNEL_KIND:
                    body = self._file.read(min(length, _LARGEST_CHANNEL))
                    found.append(Channel.read(ReadDataStream(io.BytesIO(body))))
                at += _RECORD.size + length
        except Exception:
            pass
        return []

    def _error(self, words: str) -> RecordingError:
        return RecordingError(f"{self.path}: {words}")

    def _strange(self) -> RecordingError:
        if not self._topics:
            return self._error("it has nothing: it was cut off before its first chunk")
        topics = ", ".join(map(repr, sorted(self._topics)[:5]))
        if self._wanted is not None:
            return self._error(f"it has no feed {self._wanted!r}; its topics: {topics}")
        return self._error(
            f"it is an MCAP file, but no recording of a feed of jumiks (its topics: {topics}): "
            "take one that `jumiks record` has written"
        )

    def _meet(self, channel: Channel) -> None:
        self._channels[channel.id] = channel
        self._topics.add(channel.topic)
        if channel.message_encoding != PACK_ENCODING:
            return
        if self._wanted is None and self.topic not in (None, channel.topic):
            raise self._error(
                f"it has more than one feed, {self.topic!r} and {channel.topic!r}: say which"
            )
        if self._wanted in (None, channel.topic):
            self.topic = channel.topic

    def __iter__(self) -> Iterator[Item]:
        from mcap.records import Channel, Message

        for record in self._records():
            if isinstance(record, Channel):
                self._meet(record)
            elif isinstance(record, Message):
                item = self._item(record)
                if item is not None:
                    yield item
        if self.topic is None:
            raise self._strange()

    def _records(self) -> Iterator[McapRecord]:
        # The library's own reader does not tell a file that was cut off from a damaged one.
        from mcap.opcode import Opcode

        while True:
            at = self._file.tell()
            head = self._file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                break
            kind, length = _RECORD.unpack(head)
            if length > self._size - at - _RECORD.size:
                break
            if length > LARGEST_RECORD:
                raise self._error(f"damaged at byte {at}: a record of {length} bytes")
            body = self._file.read(length)
            if len(body) < length:
                break
            if kind == Opcode.DATA_END:
                return
            yield from self._parsed(at, kind, body)
        self.is_cut_off = True

    def _parsed(self, at: int, kind: int, body: bytes) -> list[McapRecord]:
        try:
            return _parse(kind, body)
        except Exception as error:  # the library raises what struct, zstandard and others do
            words = str(error) or type(error).__name__
            raise self._error(f"damaged at byte {at}: {words}") from error

    def _item(self, message: Message) -> Item | None:
        channel = self._channels.get(message.channel_id)
        if channel is None:
            raise self._error(f"damaged: a message of channel {message.channel_id}, which is none")
        try:
            if channel.topic == self.topic and channel.message_encoding == PACK_ENCODING:
                return self._pack(channel, message)
            if channel.topic == f"{self.topic}{EVENT_SUFFIX}":
                return _told(message)
        except _WRONG as error:
            raise self._error(
                f"damaged: a message of {channel.topic} cannot be read: {error}"
            ) from error
        return None

    def _pack(self, channel: Channel, message: Message) -> Pack:
        frames = message.data
        first_id = _FRAME.unpack_from(frames)[3]
        upto = split_frames(frames, first_id, len(frames))
        if isinstance(upto, int):
            raise self._error(
                f"damaged: the pack of {channel.topic} that begins with message {first_id} has no "
                f"frame of the next message at its byte {upto}, where ids rise by one"
            )
        return Pack(message.log_time, int(channel.metadata["server_id"]), first_id, frames)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _parse(kind: int, body: bytes) -> list[McapRecord]:
    from mcap.data_stream import ReadDataStream
    from mcap.opcode import Opcode
    from mcap.records import Channel, Chunk, Message
    from mcap.stream_reader import breakup_chunk

    stream = ReadDataStream(io.BytesIO(body))
    if kind == Opcode.CHUNK:
        chunk: Chunk = Chunk.read(stream)
        return breakup_chunk(_uncompressed(chunk), validate_crc=True)
    if kind == Opcode.CHANNEL:
        return [Channel.read(stream)]
    if kind == Opcode.MESSAGE:
        return [Message.read(stream, len(body))]
    return []


def _uncompressed(chunk: Chunk) -> Chunk:
    # The library's own way has no bound: a few bytes may stand for all memory there is.
    size = chunk.uncompressed_size
    if size > LARGEST_RECORD:
        raise ValueError(f"a chunk of {size} bytes")
    if chunk.compression == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        data = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1)
    elif chunk.compression == "zstd":
        import zstandard

        data = zstandard.ZstdDecompressor().stream_reader(chunk.data).read(size + 1)
    elif chunk.compression:
        raise ValueError(f"a chunk compressed by {chunk.compression[:20]!r}: not by lz4 or zstd")
    else:
        data = chunk.data
    if len(data) != size:
        raise ValueError(f"a chunk of {size} bytes has {len(data)} or more")
    return replace(chunk, compression="", data=data)


def _told(message: Message) -> Lost | End:
    event: dict[str, Any] = json.loads(message.data)
    server_id = int(event["server_id"])
    if event["event"] == "end":
        return End(message.log_time, server_id, str(event["reason"]), str(event["text"]))
    first, last = int(event["first_id"]), event["last_id"]
    reason = GapReason[event["reason"].upper()]
    return Lost(
        message.log_time, server_id, Gap(first, None if last is None else int(last), reason)
    )
