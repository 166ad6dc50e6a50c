# SPDX-License-Identifier: Apache-2.0
"""Messages received together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, overload

from ._native import (
    ffi,
    frame_bytes,
    frame_view,
    gather,
    lib,
    message_list,
    owned,
    row_bytes,
    row_size,
    row_view,
    view_list,
)
from .errors import Overwritten, dtype_of_objects, no_dtype, no_numpy, uneven, wrong_dtype

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from ._core import Arena
    from ._core import Client as Handle

__all__ = ["Batch"]

_T = TypeVar("_T")


def _numpy() -> ModuleType:
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise no_numpy() from None
    return np


def message_dtype(dtype: DTypeLike) -> np.dtype[np.void]:
    """Return a dtype that messages can have.

    Args:
        dtype: what numpy takes for one.

    Raises:
        TypeError: it has Python objects in it, or is none.
        ImportError: numpy is not installed.
    """
    numpy = _numpy()
    if dtype is None:  # numpy has a default, and messages have none
        raise no_dtype(dtype, "messages have no usual one")
    found: np.dtype[np.void]
    if isinstance(dtype, numpy.dtype):
        found = dtype
    else:
        try:
            found = numpy.dtype(dtype)
        except Exception as error:  # TypeError, ValueError, SyntaxError, what the caller's type has
            raise no_dtype(dtype, error) from None
    if found.hasobject:
        raise dtype_of_objects(found)
    return found


def array_of(count: int, dtype: np.dtype[np.void], rows: bytearray) -> NDArray[np.void]:
    """Return the bytes of that many messages as an array, which may be written to."""
    array: NDArray[np.void] = _numpy().ndarray(count, dtype, rows)
    return array


def _frame_length(size: int) -> int:
    return lib.JMK_FRAME_HEADER + (size + 7) // 8 * 8


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
        self.first_id: int = first_id
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
        arena, client = self._arena, self._client
        if arena is None and client is None:
            return None
        made = copy()
        if self._arena is None and self._client is None:
            return None  # a signal's handler has closed the client, which copied them, or received
        if not self.valid:
            self._lose()
            raise self._error()
        return made

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
        shared log are different: they end at the next receive (with `ack="manual"` they do not), at
        an `ack` of the batch, or at `close`. What was made of them and lives on (a slice, an array)
        keeps this batch and all behind it from being acked, so the client's lag grows; see `valid`.

        Raises:
            Overwritten: they are gone already.
        """
        views = self._views
        if views is None:
            views = self._lent_as(lambda arena: view_list(arena, self._items, self._count))
            if views is None:
                views = [memoryview(message) for message in self._messages()]
            self._views = views
        return views  # not looked up again, as a handler may have closed the client since

    def frames(self) -> memoryview:
        """All messages as frames, one behind the other, as a read-only memoryview of bytes.

        That is what docs/protocol.md has in "Framed messages", without fragments: what
        `Server.publish_frames` takes. With `delivery="shared"` it is the log itself, not copied if
        asked for before the messages are looked at otherwise. It is lent as views of a shared log
        are: see `views`. In all other cases it is one copy, made at this call.

        Raises:
            Overwritten: they are gone already.
        """
        lent = self._lent_in_place(self._frame_view)
        if lent is not None:
            return lent
        copy = self._copied(lambda: frame_bytes(self._items, self._count, self.first_id))
        return memoryview(copy or gather(self._messages()).frames(self.first_id))

    def rows(self) -> memoryview:
        """All messages as rows of a read-only memoryview of bytes: messages x bytes.

        They must have one size. With `delivery="shared"` the rows are strided, and are the log
        itself: not copied, and lent as `frames` are. In all other cases they are one copy, made at
        this call.

        Raises:
            ValueError: a message differs in size; the text has its id.
            Overwritten: they are gone already.
        """
        size = self._row_size()
        head, stride = lib.JMK_FRAME_HEADER, _frame_length(size)

        def view(arena: Arena) -> memoryview:
            return row_view(arena, self._frame_view(arena), head, self._count, size, stride)

        lent = self._lent_in_place(view)
        if lent is not None:
            return lent
        copy = self._row_copy()
        return row_view(copy, copy, 0, self._count, size, max(1, size))

    def array(self, dtype: DTypeLike) -> NDArray[np.void]:
        """All messages as a read-only numpy array of one dimension, an item per message.

        They must have the size of the dtype, which need not be a record's. With
        `delivery="shared"` the array is the log itself: not copied, and lent. It cannot be taken
        back, so the array, or a slice of it that lives on, keeps this batch and all behind it from
        being acked: let go of it before the next receive. `valid` is about it, too. In all other
        cases it is one copy, made at this call. `Client.receive_array` always copies.

        Args:
            dtype: what numpy takes for one.

        Raises:
            ValueError: the messages have another size, or not all the same one.
            TypeError: the dtype has Python objects in it.
            ImportError: numpy is not installed.
            Overwritten: they are gone already.
        """
        wanted = message_dtype(dtype)
        strides = (_frame_length(self._row_size(wanted)),)
        lent = self._lent_in_place(self._frame_view)
        if lent is None:
            array = self._copied_array(wanted)
            array.flags.writeable = False
        else:
            head = lib.JMK_FRAME_HEADER
            array = _numpy().ndarray(self._count, wanted, lent, head, strides)
        return array

    def _copied_array(self, dtype: np.dtype[np.void]) -> NDArray[np.void]:
        self._row_size(dtype)
        return array_of(self._count, dtype, self._row_copy())

    def _row_copy(self) -> bytearray:
        copy = self._copied(lambda: row_bytes(self._items, self._count))
        return gather(self._messages()).row_bytes() if copy is None else copy

    def _row_size(self, dtype: np.dtype[np.void] | None = None) -> int:
        # Of each message, which is the dtype's.
        found = self._copied(lambda: row_size(self._items, self._count))
        if found is None:
            found = gather(self._messages()).row_size
        size, other, other_size = found
        if other is not None and other_size is not None:
            raise uneven(self.first_id, size, self.first_id + other, other_size)
        if dtype is not None and dtype.itemsize != size:
            raise wrong_dtype(dtype, dtype.itemsize, size)
        return size

    def _frame_view(self, arena: Arena) -> memoryview:
        return frame_view(arena, self._items, self._count)

    def _lent_in_place(self, make: Callable[[Arena], memoryview]) -> memoryview | None:
        # For those that packets have in several places, nothing is made.
        view = self._lent_as(make) if self._loans is not None else None
        if view is not None:
            self._lent.append(view)
        return view

    def _lent_as(self, make: Callable[[Arena], _T]) -> _T | None:
        """What `make` makes of the memory they were received in; None: they are there no more.

        It stays theirs as long as the arena lives that `make` is called with.
        """
        client, arena = self._client, self._arena
        if client is None:
            made = make(arena) if arena is not None else None
            return made if self._arena is arena else self._lent_as(make)
        watch = _Watch()
        arena = watch.over(client)
        made = make(arena)
        if self._client is None:  # a signal's handler has closed the client, which copied them
            return self._lent_as(make)
        # In this order: a signal that comes between leaves nothing that is not taken back.
        if self._loans is not None:
            self._loans.append(self)
        self._watch, self._arena, self._client = watch, arena, None
        return made

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
