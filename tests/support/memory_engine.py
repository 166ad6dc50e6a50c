# SPDX-License-Identifier: Apache-2.0
"""An engine in memory, which fails when and how a test wants it to."""

import asyncio
from asyncio import Future
from collections.abc import AsyncIterator
from itertools import count

from jumiks.bridge.engine import Create, Credentials, Engine, Mark, StreamInfo, Tail, Target
from jumiks.bridge.errors import Conflict, over
from jumiks.bridge.record import Record, Unreadable

_made = count(1)


class Store:
    """What outlives connections: the records, and what is to go wrong."""

    def __init__(self) -> None:
        self.records: list[Record | Unreadable] = []
        self.mark = 0
        """Appends that were ever stored, but for those that were rolled back."""
        self.names: list[str] = []
        """Of the records, as `Mark` wants it."""
        self.created = f"stream {next(_made)}"
        self.down = False
        self.lose_answers = False
        """Whether what is appended is stored, and its answer is lost with the connection."""
        self.lose_appends = False
        self.largest = 1 << 20
        self.connections: set[MemoryEngine] = set()
        self.changed = asyncio.Event()

    def change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def end(self) -> Mark:
        """What the next append must expect."""
        return Mark(self.mark, self.names[-1] if self.names else "")

    def cut(self) -> None:
        """End all connections."""
        for each in tuple(self.connections):
            each.cut()
        self.change()

    def roll_back(self, records: int, cut: bool = True) -> None:
        """Lose the last records, as an engine does that had not synced its disk.

        Args:
            records: how many.
            cut: whether connections end; they do not where another machine takes over unseen.
        """
        if cut:
            self.cut()
        keep = max(0, len(self.records) - records)
        self.mark -= len(self.records) - keep
        del self.records[keep:], self.names[keep:]

    def delete(self) -> None:
        """Delete the stream; the next open with `create` makes it anew."""
        self.cut()
        self.records, self.names, self.mark = [], [], 0
        self.created = f"stream {next(_made)}"

    def trim(self, records: int) -> None:
        """Drop the oldest records."""
        del self.records[:records], self.names[:records]


class MemoryEngine(Engine):
    """A connection to a store."""

    extra = "none"

    def __init__(self, store: Store) -> None:
        super().__init__(Target("memory", (("here", None),), None, "TICKS"), Credentials(), None)
        self.store = store
        self._flying: list[Future[None]] = []
        self._there = False

    def _check(self) -> None:
        if not self._there or self.store.down:
            raise over(self.target)

    def cut(self) -> None:
        self._there = False
        self.store.connections.discard(self)
        for future in self._flying:
            if not future.done():
                future.set_exception(over(self.target))
        self._flying.clear()

    async def open(self, create: Create | None = None) -> StreamInfo:
        self._there = True
        self._check()
        self.store.connections.add(self)
        return await self.info()

    async def close(self) -> None:
        self.cut()

    @property
    def largest(self) -> int:
        return self.store.largest

    async def info(self) -> StreamInfo:
        self._check()
        size = sum(len(each.body) for each in self.store.records if isinstance(each, Record))
        return StreamInfo("memory", "TICKS", self.store.created, len(self.store.records), size)

    async def last(self) -> Tail:
        self._check()
        if not self.store.records:
            return Tail(None, self.store.end())
        record = self.store.records[-1]
        assert isinstance(record, Record)
        return Tail(record.end, self.store.end())

    async def append(self, previous: Mark, record: Record) -> Future[None]:
        # It takes a moment, so several are in flight.
        self._check()
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._flying.append(future)
        loop.call_later(0.0002, self._arrive, previous, record, future)
        return future

    def _arrive(self, previous: Mark, record: Record, future: Future[None]) -> None:
        store = self.store
        if not self._there or store.lose_appends:
            self.cut()
            return
        if store.end() != previous:
            if not future.done():
                text = f"{self.target}: it ends with {store.end()}, not with {previous}"
                future.set_exception(Conflict(text))
            return
        store.records.append(record)
        store.mark += 1
        store.names.append(self.after(previous, record).name)
        store.change()
        if store.lose_answers:
            self.cut()
        elif not future.done():
            future.set_result(None)

    def after(self, previous: Mark, record: Record) -> Mark:
        return Mark(previous.number + 1, f"{id(self)} {record.last}")

    async def read(self, start: int) -> AsyncIterator[Record | Unreadable]:
        at = 0
        records = self.store.records
        while at < len(records):
            found = records[at]
            if isinstance(found, Record) and found.last >= start:
                break
            at += 1
        while True:
            self._check()
            if self.store.records is not records or at > len(records):
                raise over(self.target)
            if at < len(records):
                yield records[at]
                at += 1
            else:
                await self.store.changed.wait()

    async def back(self, size: int) -> int:
        self._check()
        for record in reversed(self.store.records):
            if isinstance(record, Record):
                size -= len(record.body)
                if size <= 0:
                    return record.seq
        return 0

    async def around(self, stream: int) -> Record | None:
        for record in self.store.records:
            if isinstance(record, Record) and record.last >= stream:
                return record
        return None
