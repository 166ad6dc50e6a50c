# SPDX-License-Identifier: Apache-2.0
"""Recording a feed: one thread receives, another one writes, so a slow disk holds up no ack."""

from __future__ import annotations

import os
import queue
import threading
import time
from contextlib import suppress
from typing import Final

from .._gap import Gap, GapReason
from .._native import gather
from ..batch import Batch
from ..client import Client
from ..errors import Closed, ConnectionEnded, Overwritten, ServerClosed
from .file import Compression, End, Item, Lost, Pack, Writer, size_in_memory

__all__ = ["Recorder"]

BUFFER: Final = 64 << 20
CHUNK: Final = 1 << 20
"""Bytes of packs after which a chunk is written."""

FLUSH_EVERY: Final = 1.0
"""Seconds after which it is written, whatever it has."""

FULL_PAUSE: Final = 0.002
"""Seconds between two looks at whether there is room again, while the buffer is full."""

_OF_BEFORE: Final = (GapReason.ENDED, GapReason.RESTARTED)
"""Why messages of the server before are missing, once the next one is there."""


class Recorder:
    """Writes what a client receives to an MCAP file (docs/recording.md).

    Messages are acked once they are in this process's memory. A thread writes them: every MiB, and
    every second. It is started by `run`, and gone at its end.

    Args:
        client: with `on_gap="yield"`, so that gaps are recorded; it is closed at the end.
        path: of a file that is not there yet.
        topic: what the feed is called in it; such as its address.
        compression: `"zstd"`, `"lz4"` or `"none"`.
        overwrite: whether a file that is there is replaced.
        buffer: bytes that may wait for the disk in memory. Beyond that the client lags. A pack,
            which is what one receive found, takes about 256 bytes beside its messages, and a gap
            as many.

    Raises:
        FileExistsError: the file is there.
        OSError: it cannot be made.
        RecordingError: the package mcap is not installed, or a pipe or socket is there.
    """

    def __init__(
        self,
        client: Client[bytes | Gap],
        path: str | os.PathLike[str],
        topic: str,
        *,
        compression: Compression = "lz4",
        overwrite: bool = False,
        buffer: int = BUFFER,
    ) -> None:
        self._client = client
        self._path = os.fspath(path)
        self._writer = Writer(
            path, topic, client.server_id, compression=compression, overwrite=overwrite
        )
        self._room = buffer
        # No lock: a signal's exception may leave Python's own ones held.
        self._waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._received_bytes = self._written_bytes = 0
        self._failure: BaseException | None = None
        self._server_id = client.server_id
        self._next_id = 0
        self._now = 0
        self.messages: int = 0
        """Messages received."""
        self.lost: int = 0
        """Messages in gaps of known size."""
        self.gaps: int = 0
        """Gaps."""

    def run(self, count: int | None = None) -> None:
        """Record until the server closes, `count` messages are there, or an exception comes.

        The file is finished in each case, unless it cannot be written. After KeyboardInterrupt it
        has all that was received until then.

        Args:
            count: messages; None is no limit.

        Raises:
            Lagged, Disconnected, ConnectionLost, ProtocolError: as `Client.receive` does.
            OSError: the file cannot be written, as on a full disk. It is cut off at its last whole
                chunk, and readable.
        """
        thread = threading.Thread(target=self._write, name="jumiks recording")
        thread.start()
        reason, text = "stopped", "its user ended it"
        try:
            self._receive(count)
        except ServerClosed as error:
            reason, text = "closed", str(error)
        except Closed:  # by the thread that writes, else by another one
            pass
        except ConnectionEnded as error:
            reason, text = type(error).__name__, str(error)
            raise
        finally:
            self._end(End(self._time(), self._server_id, reason, text), thread)

    def _end(self, end: End, thread: threading.Thread) -> None:
        self._waiting.put(end)
        thread.join()
        self._client.close()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Let `run` come to its end: from another thread, or from a signal's handler."""
        self._client.close()

    # ---- receiving ----

    def _time(self) -> int:
        # MCAP's readers sort by it, so it never goes back.
        self._now = max(self._now, time.time_ns())
        return self._now

    def _receive(self, count: int | None) -> None:
        while count is None or self.messages < count:
            found = self._client.receive_many()
            now = self._time()
            before, self._server_id = self._server_id, self._client.server_id
            if before != self._server_id:
                self._next_id = 0
            if isinstance(found, Gap):
                whose = before if found.reason in _OF_BEFORE else self._server_id
                self._lose(now, whose, found)
            else:
                self._take(now, found, None if count is None else count - self.messages)

    def _take(self, now: int, batch: Batch, most: int | None) -> None:
        try:
            if most is None or len(batch) <= most:
                frames, count = bytes(batch.frames()), len(batch)
                batch.release()
            else:
                frames, count = gather(batch[:most]).frames(batch.first_id), most
        except Overwritten:  # the lag policy gave them up while they were copied
            self._lose(now, self._server_id, Gap(batch.first_id, batch.last_id))
            return
        self.messages += count
        self._next_id = batch.first_id + count
        self._put(Pack(now, self._server_id, batch.first_id, frames))

    def _lose(self, now: int, server_id: int, gap: Gap) -> None:
        if gap.last is not None and server_id == self._server_id != 0:
            if gap.last < self._next_id:
                return  # all of it was told already
            gap = Gap(max(gap.first, self._next_id), gap.last, gap.reason)
            self._next_id = (gap.last or 0) + 1
        self.gaps += 1
        self.lost += gap.count or 0
        self._put(Lost(now, server_id, gap))

    def _put(self, item: Item) -> None:
        before, size = self._received_bytes, size_in_memory(item)
        while before > self._written_bytes and before + size - self._written_bytes > self._room:
            if self._failure is not None:
                return  # `_end` raises it
            time.sleep(FULL_PAUSE)
        self._received_bytes = before + size
        self._waiting.put(item)

    # ---- writing ----

    def _write(self) -> None:
        try:
            self._write_all()
            self._writer.close()
        except BaseException as error:
            with suppress(OSError):
                self._writer.give_up()
            if isinstance(error, OSError):
                words = f"{error.strerror or error}; it is readable up to its last whole chunk"
                error = OSError(error.errno, words, self._path)
            self._failure = error
            self._client.close()  # which may wait for a message

    def _write_all(self) -> None:
        pending, due, item = 0, 0.0, None
        while not isinstance(item, End):
            try:
                left = max(0.0, due - time.monotonic()) if pending else None
                item = self._waiting.get(timeout=left)
            except queue.Empty:
                item = None
            if item is not None:
                if not pending:
                    due = time.monotonic() + FLUSH_EVERY
                pending += self._writer.write(item)
                self._written_bytes += size_in_memory(item)
            if pending >= CHUNK or (pending and time.monotonic() >= due):
                self._writer.flush()
                pending = 0
