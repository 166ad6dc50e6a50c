# SPDX-License-Identifier: Apache-2.0
"""A client's stream of messages: everything about receiving that never waits.

`Client` and `AsyncClient` are two faces over it, which differ in how they wait: within the core,
and in an event loop. A face takes with `take` or `batch`. Either returns the core's code where
there is nothing yet; then the face waits and takes again. `ending` says what other codes stand for.

Most messages take no way through here: a `Handout` has them in C, as long as `direct` is set. It is
set by `prepare`, before a receive, and cleared by whatever has the next receive look at more than
messages.

What counts as handed out is one number, `out`. A signal's exception may come at any bytecode. Until
`out` has moved, the same messages are received again. It moves last, and in one store, and Python
handles no signal between that and the `return` or `yield` behind it: neither is a call, nor a jump
back. So a face ends with `return stream.hand_out(...)`, or stores `out` itself, right before it
returns or yields the message.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar, cast

from .. import errors
from .._gap import Gap, GapReason, in_words
from .._native import Handout, Receiver, check, lib, whole_number
from .._wire.handshake import FIRST_ID, START_NOW, START_OLDEST, ServerHello, Status
from ..batch import Batch, array_of
from ..errors import (
    AckError,
    Busy,
    Closed,
    ConnectionEnded,
    ConnectionLost,
    MessagesLost,
    Overwritten,
    Refused,
    ServerClosed,
)
from .connecting import FeedBehind, Wait
from .endings import ending_of
from .labels import Labels
from .link import LARGEST_PLAIN, Delivery, Link, Linker
from .readiness import Readiness
from .reconnect import Backoff, Effort, Return, wait_for_server

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import TypeVar as _TypeVar

    from .._core import Client as Handle

    Item = _TypeVar("Item", bytes, bytes | Gap, default=bytes)
    """What a client's stream has: messages, or gaps too."""
else:
    Item = TypeVar("Item")

__all__: list[str] = []

OnGap: TypeAlias = Callable[[Gap], object] | Literal["raise", "yield"] | None
"""What happens at a gap in the stream."""

Ack: TypeAlias = Literal["after", "before", "manual"]
"""When a message counts as handled."""

NOTHING_YET: Final = (lib.JMK_E_TIMEOUT, -errno.EINTR)
"""Codes of the core after which a wait goes on: there was nothing, or a signal came (EINTR)."""

log = logging.getLogger("jumiks")

Taken: TypeAlias = "tuple[int, int, list[bytes]]"
"""Messages made into bytes objects, not all of them handed out: first id, last id to hand out, and
themselves."""

_NOTHING: Final[Taken] = (0, 0, [])

_LOST_IN_SILENCE: Final = (
    "%s: %s: %s; client.missed counts what is lost, and on_gap= tells each gap; this is "
    "logged once per client"
)

_UNTIL_THERE: Final = Backoff(first=0.02, most=0.5)
"""Waits for a feed that this client is ahead of, and that is on its way."""


_TRIES_AT_ONE: Final = 3
"""Connections that end without a goodbye at one message that was there when they began, until that
is taken for the cause."""


class _Stuck(NamedTuple):
    """Where plain connections ended without a goodbye, the last of them and those before it."""

    server_id: int = 0
    due: int = 0
    join: int = 0
    """The last of them; each counts once."""
    times: int = 0

    def is_at(self, server_id: int, due: int) -> bool:
        """Whether it is at that message of that server."""
        return (self.server_id, self.due) == (server_id, due)


class _Gaps(NamedTuple):
    """What is known of gaps; replaced as a whole, so that none is counted or told in part."""

    missed: int = 0
    counted: int = 0
    """The last message of the last gap, or before the first of this connection: none up to it is
    due any more."""
    untold: tuple[Gap, ...] = ()


_T = TypeVar("_T")

_streams: weakref.WeakSet[Stream[bytes] | Stream[bytes | Gap]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # What the parent had received and not handed out is the parent's.
    for stream in _streams:
        stream.forget_taken()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Stream(Handout, Generic[Item]):
    """The stream of a client that acks once the user comes back for more: `ack="after"`.

    Args:
        linker: makes its connections.
        start: the packet id to begin at, or what stands for the newest or the oldest.
        of: the server that the packet id is of; 0 is any.
        on_gap: what happens at a gap.
        wait: seconds to wait for a server that is not there yet; see `wait_for_server`.
        backoff: when to come back to a server that is gone; None never does.
        ack_patience: nanoseconds that an ack may wait for room in the socket.
    """

    _is_simple = True
    """Whether it hands out what it has taken, and nothing else is due."""

    _due_later = 0
    """The first message that was not there yet when it connected."""

    _telling = False
    """Whether `on_gap` is being called."""

    def __init__(
        self,
        linker: Linker,
        *,
        start: int,
        of: int,
        on_gap: OnGap,
        wait: float | Literal["default"] | None,
        backoff: Backoff | None,
        ack_patience: int,
    ) -> None:
        self.handle: Handle | None = None
        """None before it is connected, and once it is closed."""
        self._closing: Handle | None = None
        self._pid = os.getpid()
        _streams.add(self)
        self._linker = linker
        self._wanted, self._wanted_of = start, of
        self._goes_on = False  # the try under way asks for an id of the server that it belongs to
        self._on_gap = on_gap
        self._wait = wait
        self._backoff = backoff
        self._effort = Effort(backoff) if backoff is not None else None
        self._ack_patience = ack_patience
        self.descriptor = -1
        self.delivery: Delivery = "classic"
        self.watched = False
        """Whether the server's death is noticed even if the connection stays open."""
        self.joins = 0
        """Connections so far."""
        self.server_id = 0
        self._first = 0  # the first message of this connection; 0 if the server did not say
        self._gaps: _Gaps = _Gaps()
        self._stuck = _Stuck()
        self._passed = 0  # the message that the try under way goes on behind, as it is too large
        self._may_be_too_large = False  # may one of this server's, for a packet of plain 1.0?
        self._lost_from = 0  # the first message of what the end has lost, once that is counted
        self._logged = False  # a gap that nothing else tells
        # First and last of the batch handed out last, and of the one that is about to be.
        self._together = self._batch_due = (0, 0)
        self._acked = 0  # what was acked by hand
        self._labels: Labels | None = None  # of a plain 1.0 server: all ids inside are our own
        self._last_batch: weakref.ref[Batch] | None = None
        self._loans: list[Batch] = []  # those whose views are of the log itself
        self._settling = threading.RLock()  # over the last batch's memory, and what is lent
        # Over the handle and the way back; a signal's handler may close the client under it.
        self.lock = threading.RLock()
        self.way: Return | None = None
        """The way back to a server that is gone, while it is under way."""
        self._readiness: Readiness | None = None  # from the first time that its user wants it on
        self._kept_back = 0  # the last of `taken`, which is not in its bounds yet; 0: there is none

    # ---- connecting ----

    @property
    def address(self) -> str:
        """The server's address, as a user writes it."""
        return self._linker.address

    def arriving(self) -> Generator[Wait, None, None]:
        """Connect for the first time, to a server that may not be there yet."""
        return wait_for_server(self.entering, self.address, self._wait, self._backoff)

    def entering(self, ending: ConnectionEnded | None = None) -> Generator[Wait, None, None]:
        """Connect, with one try: for the first time, or after an ending."""
        if ending is not None:
            link = yield from self._going_on(self._start_again)
        elif self._wanted_of:
            link = yield from self._until_there()
        else:
            link = yield from self._linker.connect(self._wanted, None)
        self._join(link, ending)

    def _going_on(self, start_for: Callable[[ServerHello], int]) -> Generator[Wait, None, Link]:
        self._goes_on = False
        try:
            return (yield from self._linker.connect(START_OLDEST, start_for))
        except Refused as refused:
            if refused.status != Status.START or not self._goes_on:
                raise
            raise FeedBehind(refused.reason, status=refused.status) from None

    def _until_there(self) -> Generator[Wait, None, Link]:
        timeout = self._linker.timeout
        deadline = inf if timeout is None else time.monotonic() + timeout
        for pause in _UNTIL_THERE.waits():
            try:
                return (yield from self._going_on(self._start_there))
            except FeedBehind:
                if time.monotonic() + pause > deadline:
                    raise
            yield -1, pause
        raise AssertionError

    def tell_at_start(self) -> None:
        """Tell a function of a gap at the start, while the client is made."""
        if not callable(self._on_gap):
            return
        try:
            self._tell()
        except BaseException:
            self.close()
            raise

    def due(self) -> int:
        """Return the next message due, neither handed out nor in a gap; 0 if that is unknown."""
        last = max(self.out, self._gaps.counted)
        return last + 1 if last else 0

    def _start_again(self, hello: ServerHello) -> int:
        due, stuck = self.due(), self._stuck
        is_stuck = stuck.times >= _TRIES_AT_ONE and stuck.is_at(hello.server_id, due)
        self._passed = 0
        if is_stuck and hello.oldest_id <= due < hello.next_id:
            self._passed = due
            due += 1
        return self._start_at(due, self.server_id, hello)

    def _note_stuck(self, ending: Exception) -> None:
        # A server that has nothing for us, or is another one, ends for other reasons. So may one
        # whose message came later: nobody knows whether it was there by then.
        stuck, due = self._stuck, self.due()
        may_be = self._may_be_too_large and due < self._due_later
        if not isinstance(ending, ConnectionLost) or not may_be:
            self._stuck = _Stuck()
            return
        if stuck.join != self.joins:
            times = stuck.times + 1 if stuck.is_at(self.server_id, due) else 1
            self._stuck = _Stuck(self.server_id, due, self.joins, times)

    def _start_there(self, hello: ServerHello) -> int:
        return self._start_at(self._wanted, self._wanted_of, hello)

    def _start_at(self, due: int, server_id: int, hello: ServerHello) -> int:
        if not hello.extended:
            return START_NOW
        if hello.server_id != server_id or not due:
            return START_OLDEST
        self._goes_on = server_id != 0
        return due

    def _join(self, link: Link, ending: ConnectionEnded | None) -> None:
        hello, first = link.hello, link.first_id
        found = (
            self._gaps_at_start(hello.server_id, first, link.left_out)
            if ending is None
            else self._gaps_on_return(hello.server_id, first, ending)
        )
        gaps: list[Gap] = list(found)
        self.joins += 1
        self.direct = False
        self.handle, self.receiver = link.handle, link.receiver
        self.descriptor = link.descriptor
        if self._readiness is not None:
            self._readiness.watch(self.descriptor, lib.jmk_client_server_fd(self.handle))
        self.delivery = link.delivery
        self.watched = link.watched
        self._may_be_too_large = (
            link.delivery == "classic"
            and hello.server_id != 0
            and (hello.max_message or inf) > LARGEST_PLAIN
        )
        self._due_later = hello.next_id
        self.quarter = max(1, hello.max_lag // 4) if hello.max_lag else 1 << 63
        known: _Gaps = self._gaps
        same = hello.server_id == self.server_id != 0
        if ending is not None and not same:
            self.forget_taken()
            self.out = self._acked = self.returned = 0  # its ids begin anew
        self.server_id, self._first = hello.server_id, first
        missed = known.missed + sum(gap.count or 0 for gap in gaps)
        counted = max(known.counted if same else 0, first - 1)
        self._gaps = _Gaps(missed, counted, (*known.untold, *gaps))
        self._labels = None if hello.extended else Labels()
        self.direct = self._may_be_direct()

    def _may_be_direct(self) -> bool:
        # Does the next receive have nothing to look at but messages?
        return (
            self._is_simple
            and self._labels is None
            and self._readiness is None
            and self._last_batch is None
            and not self._loans
            and not self._gaps.untold
        )

    def hand_out_by_python(self) -> None:
        """Have no receive wait in C, where greenlets wait otherwise."""
        self._is_simple = self.direct = False

    def _gaps_at_start(self, server_id: int, first: int, left_out: int) -> Iterator[Gap]:
        if self._wanted_of not in (0, server_id):
            yield Gap(self._wanted, None, GapReason.RESTARTED)
            yield from self._gap_before(first)
        elif FIRST_ID <= self._wanted < first:
            yield Gap(self._wanted, first - 1, GapReason.EVICTED)
        elif self._wanted == START_OLDEST and left_out:
            yield Gap(first - left_out, first - 1, GapReason.EVICTED)

    def _gaps_on_return(self, server_id: int, first: int, ending: ConnectionEnded) -> Iterator[Gap]:
        due = self.due()
        if server_id == self.server_id != 0:
            if first > due:
                passed = first - 1 == due == self._passed
                yield Gap(due, first - 1, GapReason.TOO_LARGE if passed else GapReason.EVICTED)
                if passed and self._effort is not None:
                    self._effort.end()  # it got on, so the next way back begins anew
            return
        # What it published to its end stands in its log, if we have that, also what came after we
        # had lost the connection.
        handle = self.handle
        last = lib.jmk_client_published_id(handle) if handle is not None else 0
        if isinstance(ending, ConnectionLost):
            last = max(last, ending.last_lost)
        if last >= due > 0:
            yield Gap(due, last, GapReason.ENDED)
        elif isinstance(ending, ConnectionLost) and self.delivery != "shared":
            yield Gap(self.shown(due), None, GapReason.RESTARTED)
        yield from self._gap_before(first)

    @staticmethod
    def _gap_before(first: int) -> Iterator[Gap]:
        # What another server's feed had, and this client did not get.
        if first > FIRST_ID:
            yield Gap(FIRST_ID, first - 1, GapReason.EVICTED)

    def open(self) -> Handle:
        """Return the connection's handle.

        Raises:
            Closed, Forked: it is closed, or another process's.
        """
        handle = self.handle
        if handle is None:
            raise Closed(errors.CLOSED.format(what="client"))
        if self._pid != os.getpid():
            check(lib.JMK_E_FORKED, "client")
        return handle

    # ---- being polled ----

    def readiness(self) -> int:
        """Return the descriptor that is readable whenever a receive would not wait.

        From the first call on, whatever hands something out first looks whether more is there. So
        the last message of `taken` gets into its bounds by another `take`.
        """
        handle = self.open()
        with self.lock:
            ready = self._readiness
            if ready is None:
                self.direct = False
                ready = self._readiness = Readiness()
                if self.way is not None:
                    self.wait_on_way(*self.way.due())
                else:
                    ready.watch(self.descriptor, lib.jmk_client_server_fd(handle))
                    if self.taken[1] - self.out > 1:
                        self._keep_last(self.taken)
                    if not self._has_more():
                        # A receive that found nothing may have left acks that want room.
                        self._look_ahead(self.out, waited=self.handled() == self.out)
        return ready.fileno()

    def _has_more(self) -> bool:
        # Without a look into the core?
        receiver = self.receiver
        return (
            self.has_taken()
            or bool(self._gaps.untold)
            or (receiver is not None and receiver.has_batch(self.out))
        )

    def _look_ahead(self, out: int, *, more: bool = False, waited: bool = False) -> None:
        # `out` is about to be handed out. `waited`: a receive has found nothing, and acked.
        ready, handle = self._readiness, self.handle
        if ready is None or handle is None or not self.is_ours():
            return
        found = lib.JMK_HAS_MORE if more else lib.jmk_client_look_ahead(handle, out, waited)
        # If another thread is receiving, its user comes back once for nothing.
        quiet = (lib.JMK_WOULD_WAIT, lib.JMK_WANTS_ROOM)
        ready.show(more=found not in quiet, wants_room=found == lib.JMK_WANTS_ROOM)

    def show_rest(self) -> None:
        """Have a poll find what is taken; it was kept from being handed out."""
        if self._readiness is not None and self.is_ours() and self._has_more():
            self._readiness.show(more=True)

    def wait_on_way(self, descriptor: int, seconds: float) -> None:
        """Have a poll end once the way back can be gone on with.

        Args:
            descriptor: what that waits for, until it is readable; -1 is none.
            seconds: until it is time in any case.
        """
        if self._readiness is not None:
            self._readiness.wait(descriptor, seconds)

    def _keep_last(self, found: Taken) -> None:
        first, last, messages = found
        self._kept_back = last
        self.taken = first, last - 1, messages

    # ---- taking ----

    def has_taken(self) -> bool:
        """Whether there are messages that the core is not needed for."""
        return self.out < self.taken[1] or self.out + 1 == self._kept_back

    def rest(self) -> list[bytes]:
        """Return the messages of `taken` that are not handed out yet."""
        first, last, messages = self.taken
        whole = self.out < first and not self._kept_back
        return messages if whole else messages[self.out + 1 - first : last + 1 - first]

    def forget_taken(self) -> None:
        """Drop messages that will not be handed out."""
        self.taken = _NOTHING
        self._kept_back = 0

    def advance(self) -> bool:
        """Have the next message in `taken` if the core is not needed for that; else False.

        It is asked once all of `taken` is handed out.
        """
        return False

    def _advance_to_last(self) -> bool:
        last = self._kept_back
        if self.out + 1 != last or self.handle is None:
            return False
        self._look_ahead(last)
        self._take_in_last()
        return True

    def _take_in_last(self) -> None:
        first, _, messages = self.taken
        self.taken = first, self._kept_back, messages
        self._kept_back = 0

    def take(self, limit: int) -> Gap | int | None:
        """Take what is there into `taken`, in one call; or return a gap that comes first.

        Args:
            limit: nanoseconds to wait in the core; 0 never waits, -1 is no limit.

        Returns:
            None once there are messages, or a code of the core if there are none.
        """
        if self._kept_back and self._advance_to_last():
            return None
        if self._gaps.untold and (gap := self._tell()) is not None:
            return gap
        self.taken = _NOTHING  # while it waits it keeps none of the old ones in memory
        found = self.prepare().receive_list(self.out, limit)
        if isinstance(found, int):
            return self._nothing(found)
        first_id, last_id, lost, messages, shift = found
        if self._labels is not None:
            self._labels.note(first_id, shift)
        if lost and (gap := self._skipped(first_id - lost, first_id - 1)) is not None:
            return gap
        # In this order: none of the old ones are left, whatever comes between.
        self.out = first_id - 1
        self._keep((first_id, last_id, messages))
        return None

    def _keep(self, found: Taken) -> None:
        if self._readiness is None:
            self.taken = found
        elif found[1] > found[0]:
            self._look_ahead(self.out, more=True)
            self._keep_last(found)
        else:
            self._look_ahead(found[1])
            self.taken = found

    def batch(self, limit: int) -> Batch | Gap | int:
        """Return all that is there, which `hand_out` hands out; or a gap that comes first.

        Args, returns: as for `take`.
        """
        if self.has_taken() and self.handle is not None:
            if self._kept_back:
                self._take_in_last()
            self._look_ahead(self.taken[1])
            return self._batch_of(self.rest())
        if self._gaps.untold and (gap := self._tell()) is not None:
            return gap
        found: tuple[int, int, int, int, int] | int = self.prepare().receive_slices(self.out, limit)
        if isinstance(found, int):
            return self._nothing(found)
        first_id, lost, shift, count, items = found
        if self._labels is not None:
            self._labels.note(first_id, shift)
        if lost and (gap := self._skipped(first_id - lost, first_id - 1)) is not None:
            return gap
        # It stays in the arena, or in the log.
        loans = self._loans if self.delivery == "shared" else None
        batch = Batch(self.shown(first_id), count, client=self.open(), items=items, loans=loans)
        self.direct = False
        self._last_batch = weakref.ref(batch)
        self._batch_due = first_id, first_id + count - 1
        if self._readiness is not None:
            self._look_ahead(self._batch_due[1])
        return batch

    def array(self, dtype: np.dtype[np.void], limit: int) -> NDArray[np.void] | Gap | int:
        """Return all that is there as an array of its own, likewise; or a gap that comes first.

        Args:
            dtype: of the messages.
            limit: as for `take`.

        Raises:
            ValueError: the messages have another size, or not all one. They are received again.
        """
        receiver = self.receiver
        if receiver is not None and self.direct and not self.acks_ahead and not self.has_taken():
            self.returned = self.out
            rows = receiver.receive_rows(self.out, limit, dtype.itemsize)
            if isinstance(rows, int) and rows in NOTHING_YET:
                return rows
            if isinstance(rows, int):
                return self._nothing(rows)
            first_id, lost, count, copy = rows
            if copy is not None and not lost:
                self._batch_due = first_id, first_id + count - 1
                return array_of(count, dtype, copy)
        found = self.batch(limit)  # the same messages, if some were received
        if not isinstance(found, Batch):
            return found
        try:
            return found._copied_array(dtype)
        except Overwritten:
            if self.receiver is not None:
                self.receiver.drop()
            return -errno.EINTR

    def _batch_of(self, messages: list[bytes]) -> Batch:
        first_id, count = self.out + 1, len(messages)
        self._batch_due = first_id, first_id + count - 1
        return Batch(self.shown(first_id), count, messages=messages)

    def peek(self) -> int:
        """Return `JMK_E_TIMEOUT` or another code if the core has nothing, else 0.

        What it finds stays in the core until it is taken; an end or an error as well.
        """
        if self.has_taken() or self.receiver is None or self._gaps.untold:
            return 0
        found = self.prepare().receive_slices(self.out, 0)
        code = found if isinstance(found, int) else 0
        if self._readiness is not None:
            self._look_ahead(self.out, more=code not in NOTHING_YET, waited=True)
        return code

    def prepare(self) -> Receiver:
        """Return what takes from the core, whose next call uses the last batch's memory again."""
        receiver = self.receiver
        if receiver is None:
            raise Closed(errors.CLOSED.format(what="client"))
        if self._last_batch is not None or self._loans:
            self._settle_batch(self._lent_until())
        self.direct = self._may_be_direct()
        self.returned = self.out
        return receiver

    def _lent_until(self) -> float:
        # Views of messages up to this one end at a receive.
        return inf

    def _settle_batch(self, until: float = inf) -> None:
        # The last batch's memory is about to be used again, or given back. Whoever comes while
        # another thread does this waits for its end, as that reads the memory.
        with self._settling:
            last = self._last_batch
            batch = last() if last is not None else None
            if batch is not None:
                batch._settle()
            self._last_batch = None
            while self._loans and self._loans[0].last_id <= until:
                batch = self._loans[0]
                batch._take_back()
                with suppress(ValueError):  # a signal's handler closed this client meanwhile
                    self._loans.remove(batch)

    # ---- gaps, and handing out ----

    def _nothing(self, code: int) -> Gap | int:
        # What a receive has that found no message: the code, or what the end of it all has lost.
        if self._readiness is not None:
            self._look_ahead(self.out, waited=True)
        if code not in NOTHING_YET and (gap := self._lost_at_end(code)) is not None:
            return gap
        return code

    def _lost_at_end(self, code: int) -> Gap | None:
        # A client that comes back is told then. One that lagged can get what the server still has.
        if self._effort is not None or self.handle is None:
            return None
        ending = self.ending(code)
        if not isinstance(ending, ConnectionLost) or not ending.first_lost:
            return None
        self._lost_from = ending.first_lost
        first = max(ending.first_lost, self.out + 1)
        return self._skipped(first, ending.last_lost, GapReason.ENDED)

    def _skipped(self, first: int, last: int, reason: GapReason = GapReason.SKIPPED) -> Gap | None:
        known: _Gaps = self._gaps
        first = max(first, known.counted + 1)
        if first <= last:  # else these messages are received again, and that was told
            gap = Gap(first, last, reason)
            self.direct = False
            self._gaps = _Gaps(known.missed + last - first + 1, last, (*known.untold, gap))
        return self._tell()

    def _tell(self) -> Gap | None:
        # What is due is told; what is to be handed out is returned, and `hand_out` follows.
        if self._telling:
            raise Busy(errors.IN_ON_GAP)
        while self._gaps.untold:
            gap = self._gaps.untold[0]
            if self._readiness is not None:
                receiver = self.receiver
                behind = receiver is not None and receiver.has_batch(self.out)
                self._look_ahead(self.out, more=behind or len(self._gaps.untold) > 1)
            if self._on_gap == "yield":
                return gap
            if self._on_gap == "raise":
                error = MessagesLost(gap)
                self.hand_out_gap(gap)
                raise error
            if callable(self._on_gap):
                try:
                    self._telling = True
                    self._on_gap(gap)
                except Exception:  # it was told; after a Ctrl-C it is told again
                    self.hand_out_gap(gap)
                    raise
                finally:
                    self._telling = False
            elif not self._logged:
                self._logged = True
                words = in_words(gap, "lost")
                log.warning(_LOST_IN_SILENCE, self.address, words, gap.reason.value)
            self.hand_out_gap(gap)
        return None

    def hand_out_gap(self, gap: Gap) -> Item:
        """Return a gap that `take` returned, which counts as handed out now."""
        # As for a message, what follows the store is no place for a signal.
        known: _Gaps = self._gaps
        item = cast(Item, gap)
        rest = _Gaps(known.missed, known.counted, known.untold[1:])
        self._gaps = rest
        return item

    def hand_out(self, found: _T) -> _T:
        """Return what `batch` or `array` returned, which counts as handed out now."""
        if isinstance(found, Gap):
            self.hand_out_gap(found)
            return found
        self._together = self._batch_due
        self.out = self._batch_due[1]
        return found

    # ---- the end, and coming back ----

    def ending(self, code: int) -> Exception:
        """Return what a code of the core stands for, beyond those of `NOTHING_YET`."""
        handle = self.handle
        if handle is None:
            return Closed(errors.CLOSED.format(what="client"))
        return ending_of(
            code,
            handle,
            address=self.address,
            delivery=self.delivery,
            due=self._lost_from or self.due(),
            name=self._linker.given_name,
            may_be_too_large=self._may_be_too_large,
        )

    def way_back(self, ending: Exception) -> Return:
        """Return the way back to the server; raise the ending if there is none."""
        if self._effort is None or not isinstance(ending, ServerClosed | ConnectionLost):
            try:
                raise ending
            finally:
                del ending  # it has this frame, and would keep the connection for the collector
        with self.lock:
            way = self.way
            if way is None:
                self._note_stuck(ending)
                way = self.way = Return(self, ending, self._effort)
        return way

    def drop(self) -> None:
        """Let go of a connection that was made while the client was closed."""
        self.handle = self.receiver = None

    # ---- acks ----

    def ack_target(self, packet_id: int | None) -> int:
        """Return the message that an ack by hand names; views that it covers are released.

        Args:
            packet_id: as the user sees it; None is the last one handed out.
        """
        handled = self.out if packet_id is None else whole_number(packet_id)
        if handled is None:
            raise TypeError(f"packet_id is a number, not {packet_id!r}")
        if packet_id is not None and self._labels is not None:
            handled = self._labels.find(packet_id, self.out)
        if handled > self.out or handled < (FIRST_ID if self._labels is None and packet_id else 0):
            last = self.last_id if self.out else "none"
            raise AckError(errors.NOT_HANDED_OUT.format(packet_id=packet_id, last=last))
        for batch in tuple(self._loans):
            if batch.last_id <= handled:
                batch._take_back()  # else its views would hold the ack back
        self._acked = max(self._acked, handled)
        return handled

    def ack(self, handled: int) -> None:
        """Ack a message, and all before it; 0 is none."""
        handle = self.open()
        if handled:
            check(lib.jmk_client_ack(handle, handled, self._ack_patience), "client")

    def is_acked(self, handled: int) -> bool:
        """Whether an ack has left; in a shared log it always has, but for what views hold back."""
        handle = self.handle
        return (
            handle is None
            or self.delivery == "shared"
            or lib.jmk_client_acked_id(handle) >= handled
        )

    def acks_have_left(self) -> bool:
        """Whether no ack is left for the next receive."""
        return self.is_acked(self.out)

    def ack_in_loop(self, out: int) -> None:
        """Ack what a loop has handled.

        A slow loop acks by time, and within a long batch often enough for `max_lag`.
        """
        try:
            self.ack(out)
        except BaseException:
            self.show_rest()
            raise

    # ---- asking ----

    @property
    def last_id(self) -> int:
        """The packet id, as the user sees it, of the last message handed out; 0 if none was."""
        return self.shown(self.out)

    def shown(self, number: int) -> int:
        """Return the id that the user sees of a message, or of the one to come."""
        return number if self._labels is None else self._labels.of(number)

    @property
    def resume_at(self) -> int:
        """Where another client would go on."""
        handled = max(self.handled(), self._acked)
        return self.shown(handled + 1) if self.out else self._first

    @property
    def position(self) -> tuple[int, int]:
        """The same, and of which server that is."""
        return self.server_id, self.resume_at

    def handled(self) -> int:
        """Return the last message that counts as handled, for all we know."""
        first, last = self._together
        return max((first if self.out == last else self.out) - 1, self.returned)

    @property
    def lag(self) -> int:
        """Messages received by this end and not acked."""
        handle = self.open()
        acked = lib.jmk_client_acked_id(handle)  # first: another thread may go on between the two
        return lib.jmk_client_last_id(handle) - acked

    @property
    def backlog(self) -> int:
        """Messages not acked, with those in the log that were not received yet, if it is shared."""
        handle = self.open()
        acked = lib.jmk_client_acked_id(handle)
        received = lib.jmk_client_last_id(handle)
        return max(received, lib.jmk_client_published_id(handle)) - acked

    @property
    def published(self) -> int:
        """The last message of a log that is shared; 0 if none is."""
        handle = self.handle
        return lib.jmk_client_published_id(handle) if handle is not None else 0

    @property
    def missed(self) -> int:
        """Messages lost in gaps, all together."""
        return self._gaps.missed

    def is_ours(self) -> bool:
        """Whether this process made it, and no fork."""
        return self._pid == os.getpid()

    def __str__(self) -> str:
        state = "closed" if self.handle is None else f"last {self.last_id}"
        return f"{self.address} ({state})"

    # ---- closing ----

    def close(self) -> None:
        """Close the connection, and ack what was handled, if no other thread is receiving."""
        if not self.is_ours():
            self.handle = self.receiver = None
            if self._readiness is not None:
                self._readiness.leave()
            return
        if sys.is_finalizing():
            # A thread that stands still for ever may hold the lock, or be on the way back.
            handle, self.handle, self.receiver = self.handle, None, None
        else:
            with self.lock:
                if self.handle is not None:
                    self._closing = self.handle
                self.handle = self.receiver = None
                way, self.way = self.way, None
                if way is not None:
                    way.end()
                if self._readiness is not None:
                    self._readiness.close()
            handle = self._closing
        if handle is None:
            return
        try:
            self._settle_batch()
            lib.jmk_client_ack(handle, max(0, self.handled()), 0)
        finally:
            lib.jmk_client_close(handle)
        self._closing = None  # until then the next call does what a signal kept this one from

    def close_forgotten(self, face: object) -> None:
        """Close it for a face that nobody has closed, with a warning."""
        if self.handle is not None and self.is_ours():
            warnings.warn(
                errors.NOT_CLOSED.format(it=face), ResourceWarning, source=face, stacklevel=3
            )
            self.close()


class AckingAhead(Stream[Item]):
    """The stream of a client that acks a message when it is handed out: `ack="before"`.

    `taken` has all of them, but goes no further than the one message that is acked already; `ahead`
    is the last.
    """

    def __init__(self, linker: Linker, **options: Any) -> None:
        super().__init__(linker, **options)
        self.acks_ahead = True

    def has_taken(self) -> bool:
        """Whether there are messages that the core is not needed for."""
        return self.out < self.ahead

    def forget_taken(self) -> None:
        """Drop messages that will not be handed out."""
        self.ahead = 0
        self.taken = _NOTHING

    def advance(self) -> bool:
        """Ack the next message, and put it into `taken`, if the core is not needed for it."""
        due = self.out + 1
        if due > self.ahead:
            return False
        # As `ack` does, without one more call per message.
        check(lib.jmk_client_ack(self.open(), due, self._ack_patience), "client")
        if self._readiness is not None:
            self._look_ahead(due, more=due < self.ahead)
        first, _, messages = self.taken
        self.taken = first, due, messages
        return True

    def take(self, limit: int) -> Gap | int | None:
        """Ack the next message, and put it into `taken`; see `Stream.take`."""
        found = self._take_ahead(limit)
        if found is None:
            self.advance()
        return found

    def _take_ahead(self, limit: int) -> Gap | int | None:
        if self.has_taken():
            return None
        self.ahead = 0
        return super().take(limit)

    def _keep(self, found: Taken) -> None:
        first, last, messages = found
        self.taken = first, first - 1, messages
        self.ahead = last

    def batch(self, limit: int) -> Batch | Gap | int:
        """Return all that is there and ack it; see `Stream.batch`."""
        if (found := self._take_ahead(limit)) is not None:
            return found
        first, _, messages = self.taken
        self.ack(self.ahead)
        self._look_ahead(self.ahead)
        return self._batch_of(messages[self.out + 1 - first :])

    def handled(self) -> int:
        """Return the last message that counts as handled."""
        return self.out


class AckingByHand(Stream[Item]):
    """The stream of a client that acks nothing by itself: `ack="manual"`.

    A client that comes back goes on behind what was handed out, so it gets nothing twice.
    """

    def _join(self, link: Link, ending: ConnectionEnded | None) -> None:
        if ending is not None:
            self._settle_batch()  # what is lent is lent by the log before
        super()._join(link, ending)
        self._acked = self._acked or max(0, self._first - 1)
        self.quarter = 0  # no loop acks

    def ack_in_loop(self, out: int) -> None:
        """Do nothing: the user does."""

    def _lent_until(self) -> float:
        return self._acked

    def acks_have_left(self) -> bool:
        """Whether no ack is left for the next receive."""
        return self.is_acked(self._acked)

    @property
    def resume_at(self) -> int:
        """Where another client would go on."""
        return self.shown(self._acked + 1) if self._acked else self._first

    def handled(self) -> int:
        """Return the last message that counts as handled."""
        return self._acked


STREAMS: Final[dict[Ack, type[Stream[Any]]]] = {
    "after": Stream,
    "before": AckingAhead,
    "manual": AckingByHand,
}
"""The stream for each."""
