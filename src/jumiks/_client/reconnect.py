# SPDX-License-Identifier: Apache-2.0
"""Waiting for a server: one that is not there yet, and the way back to one that is gone."""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate, repeat
from math import inf
from typing import Final, Literal, Protocol

from .. import errors
from .._green import is_readable
from .._native import nanoseconds, new_eventfd
from .._wire.handshake import Status
from ..errors import Closed, ConnectionEnded, ProtocolError, Refused, Timeout, add_time_tried
from .connecting import FeedBehind, Wait, wait_for

__all__ = ["Backoff"]

log = logging.getLogger("jumiks")

_AGAIN: Final = 10.0
_AGAIN_AT_MOST: Final = 3600.0

_LASTED: Final = 1.0
"""Seconds that a connection without a message has to last at least, however short the waits are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits that grow from try to try, each cut short by chance, so that not all come at once.

    A connection that ends before it has handed out a message, and before it has lasted `most`
    seconds (or 1 s, if that is longer), counts as one more try: waits go on to grow, and `give_up`
    counts on.

    Args:
        first: seconds before the first try.
        most: seconds that a wait grows to.
        factor: each wait is this many times the one before; 1 or more.
        jitter: the fraction of each wait, 0 to 1, that is randomised: chance takes some or all of
            it away.
        give_up: seconds without such a connection after which the ending is raised; None never
            does.

    Raises:
        TypeError, ValueError: one of them is out of its range.
    """

    first: float = 0.05
    most: float = 2.0
    factor: float = 2.0
    jitter: float = 0.5
    give_up: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("first", "most", "factor", "jitter", "give_up"):
            value = getattr(self, name)
            nanoseconds(value, name, none=name == "give_up")
        if self.most < self.first:
            raise ValueError(f"most={self.most}: it must be {self.first} (first) or more")
        if self.factor < 1:
            raise ValueError(f"factor={self.factor}: it must be 1 or more")
        if self.jitter > 1:
            raise ValueError(f"jitter={self.jitter}: it must be from 0 to 1")

    def waits(self) -> Iterator[float]:
        """Seconds to wait before each try, without end."""
        # Not a generator, which a signal's handler could end by what it raises.
        return map(self._cut, accumulate(repeat(self.factor), self._grow, initial=self.first))

    def _cut(self, wait: float) -> float:
        return wait * (1 - self.jitter * random.random())

    def _grow(self, wait: float, factor: float) -> float:
        return min(wait * factor, self.most)


_PASSING: Final = {Status.CLOSING, Status.TOO_MANY_CLIENTS, Status.INTERNAL}

_LASTING: Final = {
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTSOCK,  # a file is there, and a server leaves it alone
    errno.EPROTOTYPE,  # another program's socket is there
}
"""What is wrong with an address, however often it is tried."""


def will_pass(error: Exception) -> bool:
    """Whether it is worth another try, at a server that is being started."""
    if isinstance(error, Refused):
        return error.status in _PASSING or isinstance(error, FeedBehind)
    if isinstance(error, PermissionError | ProtocolError):
        return False
    return isinstance(error, OSError) and error.errno not in _LASTING


WAITING: Final = Backoff(first=0.01, most=0.25)
"""Waits for a server that is not there yet, where no others were asked for: few clients wait, each
for a short time, and a try costs one system call."""


def wait_for_server(
    connect: Callable[[], Generator[Wait, None, None]],
    address: str,
    wait: float | Literal["default"] | None,
    backoff: Backoff | None,
) -> Generator[Wait, None, None]:
    """Connect for the first time, to a server that may not be there yet.

    Args:
        connect: makes one try.
        address: the server's, for the log.
        wait: seconds until the last try begins; None is no limit. By default as long as the backoff
            tries, or 0 without one.
        backoff: when to try, once the first try has failed.
    """
    if wait == "default":
        wait = backoff.give_up if backoff is not None else 0.0
    report = Report(time.monotonic, "there")
    for pause in (backoff or WAITING).waits():
        try:
            yield from connect()
        except Exception as error:
            waited = time.monotonic() - report.began
            left = inf if wait is None else wait - waited
            if not will_pass(error) or left <= 0:
                if report.tries:
                    add_time_tried(error, waited)
                raise
            words = report.failed(error)
        else:
            words = report.succeeded()
            left = 0.0
        if words:
            log.info("%s: %s", address, words)
        if not left:
            return
        yield -1, min(pause, left)


class Report:
    """What is worth a line of log while a client waits for a server, or for its return.

    Each kind of line once, and while it goes on again after 10 s, 20 s, 40 s, and so on.

    Args:
        now: the clock, s.
        goal: where the server is to be: "there" the first time, then "back".
    """

    def __init__(self, now: Callable[[], float], goal: str = "back") -> None:
        self._now = now
        self._goal = goal
        self.began = now()
        self.tries = 0
        self._due: dict[tuple[object, ...], tuple[float, float]] = {}
        self._is_away = False  # as far as the log says

    def ended(self, ending: ConnectionEnded) -> str | None:
        """What to say of a connection that ended."""
        if not self._is_due((type(ending),)):
            return None
        self._is_away = True
        words = f"{ending}; coming back to it"
        return f"{words} again, {self._effort()}" if self.tries else words

    def failed(self, error: Exception) -> str | None:
        """What to say of a try that failed."""
        self.tries += 1
        code = getattr(error, "errno", None)
        if not self._is_due((type(error), code, getattr(error, "status", None))):
            return None
        self._is_away = True
        return f"not {self._goal} yet {self._effort()}: {getattr(error, 'strerror', None) or error}"

    def succeeded(self) -> str | None:
        """What to say of a try that succeeded: only where the log says that it is away."""
        self.tries += 1
        was_away, self._is_away = self._is_away, False
        return f"{self._goal} {self._effort()}" if was_away else None

    def _is_due(self, kind: tuple[object, ...]) -> bool:
        now = self._now()
        due, wait = self._due.get(kind, (now, _AGAIN))
        if now < due:
            return False
        self._due[kind] = now + wait, min(2 * wait, _AGAIN_AT_MOST)
        return True

    def _effort(self) -> str:
        tries = "1 try" if self.tries == 1 else f"{self.tries} tries"
        return f"after {tries} in {self._now() - self.began:.1f} s"


class Effort:
    """What a client's ways back have in common, until it has a connection that is of use.

    Args:
        backoff: when to try.
        now: the clock, s.
    """

    def __init__(self, backoff: Backoff, now: Callable[[], float] = time.monotonic) -> None:
        self._backoff = backoff
        self._now = now
        self._begin()
        self._is_over = True
        self._since: tuple[float, int] | None = None

    def _begin(self) -> None:
        self.waits = self._backoff.waits()
        """Seconds to wait before each try."""
        self.report = Report(self._now)
        """What to say of it."""

    def resume(self, last_id: int) -> None:
        """Go on after an ending, or begin.

        Args:
            last_id: the last message that was handed out.
        """
        since, self._since = self._since, None
        if self._is_over or (since is not None and self._was_of_use(*since, last_id)):
            self._begin()
        self._is_over = False

    def entered(self, last_id: int) -> None:
        """Note that a try led to a connection; `last_id` is as for `resume`."""
        self._since = self._now(), last_id

    def end(self) -> None:
        """Have the next way back begin anew, as the user was told how this one ended."""
        self._is_over = True

    def left(self) -> float:
        """Seconds until it is time to give up; there is one try in any case."""
        if self._backoff.give_up is None:
            return inf
        return self._backoff.give_up - (self._now() - self.report.began)

    def _was_of_use(self, since: float, last_before: int, last_id: int) -> bool:
        lasted = self._now() - since
        return last_id != last_before or lasted >= max(self._backoff.most, _LASTED)


class Comer(Protocol):
    """What comes back: what the way back needs of a client."""

    way: Return | None
    """The way that it is on."""
    out: int
    """The last message that was handed out."""

    @property
    def handle(self) -> object | None:
        """None once it is closed."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Over all of this."""

    @property
    def address(self) -> str:
        """The server's."""

    def entering(self, ending: ConnectionEnded) -> Generator[Wait, None, None]:
        """Connect, after an ending."""

    def drop(self) -> None:
        """Let go of a connection that was made while the client was closed."""

    def wait_on_way(self, descriptor: int, seconds: float) -> None:
        """Have whoever polls the client come back then, or once the descriptor is readable."""


class Return:
    """The way back to a server, from its ending on, whoever waits.

    Args:
        client: what comes back.
        ending: how its last connection ended.
        effort: when to try.
    """

    def __init__(self, client: Comer, ending: ConnectionEnded, effort: Effort) -> None:
        self._client = client
        self.ending = ending
        """What it comes back from."""
        self._effort = effort
        self._steps = self._tries()
        self._wake = new_eventfd()
        self._in_step = False
        self._wait: Wait = (-1, 0.0)
        self._until = 0.0
        self.failure: Exception | None = None
        """Why the last try failed."""
        self._to_log: list[str | None] = []

    def _tries(self) -> Generator[Wait, None, None]:
        effort, client = self._effort, self._client
        effort.resume(client.out)
        self._to_log.append(effort.report.ended(self.ending))
        for wait in effort.waits:
            left = effort.left()
            if left <= 0 and effort.report.tries:
                effort.end()
                raise self.ending from self.failure
            yield -1, max(0.0, min(wait, left))
            try:
                yield from client.entering(self.ending)
                effort.entered(client.out)
                self._to_log.append(effort.report.succeeded())
                return
            except Exception as error:
                if not will_pass(error):
                    effort.end()
                    raise
                self.failure = error
                self._to_log.append(effort.report.failed(error))

    def due(self) -> Wait:
        """What is waited for now."""
        return self._wait[0], max(0.0, self._until - time.monotonic())

    def step(self) -> bool:
        """Go on, if it is time; True once the client is connected."""
        try:
            return self._step()
        finally:
            self._log()

    def _log(self) -> None:
        # Not under the client's lock: what a handler does is not known.
        while self._to_log:
            if words := self._to_log.pop(0):
                log.info("%s: %s", self._client.address, words)

    def _step(self) -> bool:
        client = self._client
        descriptor, left = self.due()
        with client.lock:
            if client.handle is None:
                client.way = None
                raise Closed(errors.CLOSED.format(what="client"))
            if client.way is not self:
                return True  # another thread was here
            if left > 0 and (descriptor < 0 or not is_readable(descriptor)):
                return False
            self._in_step = True
            client.wait_on_way(-1, inf)  # a step may close what is waited for
            try:
                self._wait = next(self._steps)
            except StopIteration:
                self._stop_if_closed()
                client.way = None
                self._finish()
                return True
            except BaseException:
                client.way = None
                self._finish()
                client.wait_on_way(-1, 0)  # the next receive has it told again
                raise
            finally:
                self._in_step = False
            self._stop_if_closed()
            self._until = time.monotonic() + self._wait[1]
            client.wait_on_way(*self._wait)
        return False

    def _stop_if_closed(self) -> None:
        # A signal's handler may have closed the client during a step, and the step connected.
        client = self._client
        if client.way is self:
            return
        client.drop()
        self._finish()
        raise Closed(errors.CLOSED.format(what="client"))

    def wait(self, deadline: float) -> None:
        """Wait for what is due, in this thread, or until the deadline, or until it is ended."""
        descriptor, left = self.due()
        left = min(left, deadline - time.monotonic())
        if left > 0:
            wait_for((descriptor, left), self.fileno())

    def out_of_time(self) -> Timeout:
        """What a receive raises that has run out of time on the way."""
        error = Timeout(errors.NOT_BACK.format(address=self._client.address))
        error.__cause__ = self.failure or self.ending
        return error

    def fileno(self) -> int:
        """Readable once it is ended; -1 once it is over."""
        return -1 if self._wake.closed else self._wake.fileno()

    def end(self) -> None:
        """Give up, and wake the thread that waits; call it under the client's lock."""
        self.failure = None  # its traceback has us, and would keep us for the collector
        if self._in_step:
            return  # a signal's handler came in the middle of it, and it gives up by itself
        self._steps.close()
        os.eventfd_write(self._wake.fileno(), 1)

    def _finish(self) -> None:
        # Only the thread that waits gets here. What was raised may keep us for long.
        self._steps.close()
        self.failure = None
        self._wake.close()

    def __del__(self) -> None:
        if hasattr(self, "_wake"):
            self._wake.close()  # not by `end`: somebody may be waiting for it
