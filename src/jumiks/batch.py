# SPDX-License-Identifier: Apache-2.0
"""Messages received together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, overload

from ._native import ffi, frame_bytes, frame_view, gather, lib, message_list, owned, view_list
from .errors import Overwritten

if TYPE_CHECKING:
    from ._core import Arena
    from ._core import Client as Handle

__all__ = ["Batch"]

_T = TypeVar("_T")


class _Watch:
    """Whether the memory that views show has stayed as it was, also once nobody holds it."""

    __slots__ = ("_arena", "_was_whole")

    def __init__(self) -> None:
        self._was_whole = True
        self._arena: weakref.ref[Arena] | None = None

    def over(self, client: Handle) -> Arena:
        """The last batch's arena, let go of with its last view; what it was like then is kept."""
        held = owned(map(lib.jmk_client_hold_batch, (client,)), lib.jmk_held_free)
        arena = ffi.gc(held, self._look_once_more)
        self._arena = weakref.ref(arena)
        return arena

    def _look_once_more(self, held: Arena) -> None:
        self._was_whole = bool(lib.jmk_held_is_intact(held)) and self._was_whole

    def is_whole(self) -> bool:
        arena = self._arena() if self._arena is not None else None
        if arena is not None and self._was_whole:
            self._was_whole = bool(lib.jmk_held_is_intact(arena))
        return self._was_whole


class Batch(Sequence[bytes]):
    """Messages received together; their packet ids have no holes.

    `first_id` and `last_id` are the ids of the first and the last. The messages are made into bytes
    objects when they are first looked at, at the latest before the next receive.

    Where the client reads the server's log itself, the messages lie in that log until they are
    acked, unless the lag policy cuts or skips this client first: then looking at them for the first
    time raises `Overwritten`, and `valid` says so of views. ::

        with client.receive_many() as batch:
            for view in batch.views():
                ...
    """

    __slots__ = (
        "__weakref__",
        "_arena",
        "_client",
        "_count",
        "_items",
        "_lent",
        "_list",
        "_loans",
        "_lost",
        "_views",
        "_watch",
        "first_id",
    )

    def __init__(
        self,
        first_id: int,
        count: int,
        *,
        messages: list[bytes] | None = None,
        client: Handle | None = None,
        items: int = 0,
        loans: list[Batch] | None = None,
    ) -> None:
        self.first_id = first_id
        self._count = count
        self._list = messages
        self._views: list[memoryview] | None = None
        self._lent: list[memoryview] = []  # what was lent beside them
        self._arena: Arena | None = None
        self._watch: _Watch | None = None
        self._client = client
        self._items = items
        self._loans = loans
        self._lost = False

    @property
    def last_id(self) -> int:
        """The packet id of the last message."""
        return self.first_id + self._count - 1

    @property
    def valid(self) -> bool:
        """Whether the messages, and views of them, still are what was received.

        Once False it stays so. It is about all that was made of the views, too, for as long as
        any of that lives, whatever became of the batch and its client.
        """
        if not self._lost and self._watch is not None:
            self._lost = not self._watch.is_whole()
        if self._lost:
            return False
        client = self._client
        return client is None or bool(lib.jmk_client_batch_is_intact(client))

    def _messages(self) -> list[bytes]:
        if self._list is None:
            messages = self._copied(lambda: message_list(self._items, self._count))
            if self._is_settled():
                return self._messages()
            if messages is None:
                raise self._error() if self._lost else ValueError("this batch was released")
            self._list = messages
            self._client = None
        return self._list

    def _copied(self, copy: Callable[[], _T]) -> _T | None:
        """What `copy` makes of the memory they were received in; None: they are there no more.

        Raises:
            Overwritten: they were given up while it copied, or before.
        """
        made = copy() if self._is_there() else None
        if not self._is_there():  # a signal's handler may have closed the client since
            return None
        if not self.valid:
            self._lose()
            raise self._error()
        return made

    def _is_there(self) -> bool:
        return self._client is not None or self._arena is not None

    def _is_settled(self) -> bool:
        # Looked at again, as a signal's handler may have closed the client since.
        return self._list is not None

    def _lose(self) -> None:
        self._lost, self._views, self._arena, self._client = True, None, None, None
        self._lent = []

    def _error(self) -> Overwritten:
        return Overwritten(self.first_id, self.last_id)

    def _settle(self) -> None:
        """Copy what nobody has looked at yet: its memory is about to be used for something else."""
        if self._list is None and self._client is not None:
            with suppress(Overwritten):  # whoever looks at it is told then
                self._messages()

    def views(self) -> list[memoryview]:
        """The messages as read-only memoryviews, not copied if asked for before anything else.

        They stay valid as long as they live, and keep the memory of the whole batch. Views of a
        shared log are different: they end at the next receive, at an `ack` of the batch, or at
        `close`. What was made of them and lives on (a slice, an array) keeps this batch and all
        behind it from being acked, so the client's lag grows; see `valid`.

        Raises:
            Overwritten: they are gone already.
        """
        views = self._views
        if views is None:
            arena = self._lend()
            if arena is None:
                self._views = views = [memoryview(message) for message in self._messages()]
            else:
                views = view_list(arena, self._items, self._count)
                if self._arena is not arena:  # a signal's handler has closed the client since
                    return self.views()
                self._views = views
        return views  # not looked up again, for the same reason

    def frames(self) -> memoryview:
        """All messages as frames, one behind the other, as a read-only memoryview of bytes.

        That is what docs/protocol.md has in "Framed messages", without fragments: what
        `Server.publish_frames` takes. With `delivery="shared"` it is the log itself, not copied if
        asked for before the messages are looked at otherwise. It is lent as views of a shared log
        are: see `views`. In all other cases it is one copy, made at this call.

        Raises:
            Overwritten: they are gone already.
        """
        arena = self._lend() if self._loans is not None else None
        if arena is not None:
            view = frame_view(arena, self._items, self._count)
            if self._arena is not arena:
                return self.frames()
            self._lent.append(view)
            return view
        copy = self._copied(lambda: frame_bytes(self._items, self._count, self.first_id))
        return memoryview(copy or gather(self._messages()).frames(self.first_id))

    def _lend(self) -> Arena | None:
        """What holds the memory that they were received in; None: they are not there any more."""
        client = self._client
        if client is not None:
            watch = _Watch()
            arena = watch.over(client)
            # In this order: a signal that comes between leaves nothing that is not taken back.
            if self._loans is not None:
                self._loans.append(self)
            if self._client is None:  # its handler has closed the client
                return self._lend()
            self._watch, self._arena, self._client = watch, arena, None
        return self._arena

    def _take_back(self) -> None:
        # Views of the log, but for those that something else was made of.
        if self._arena is None:
            return
        self._lost = not self.valid
        if self._loans is not None:
            for view in (*(self._views or ()), *self._lent):
                with suppress(BufferError):
                    view.release()
        self._views = self._arena = None
        self._lent = []

    def release(self) -> None:
        """Let go of the views; a `with` block does so at its end.

        What they show is kept as long as somebody else refers to one of them.

        Raises:
            Overwritten: the lag policy cut or skipped this client while they were in use, so what
                was read through them may be anything.
        """
        self._take_back()
        if self._lost:
            raise self._error()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except Overwritten:
            if kind is None:
                raise

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return self._messages()[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._messages())

    def __repr__(self) -> str:
        return f"<jumiks.Batch of {self._count} messages from {self.first_id}>"
