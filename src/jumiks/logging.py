# SPDX-License-Identifier: Apache-2.0
"""Log records for other processes: `Handler` publishes them as JSON, `Listener` hands them on.

In the program that logs::

    with Server("@app-logs", on_lag="skip", patience=0) as server:
        logging.getLogger().addHandler(Handler(server))

In any number of others::

    with Listener("@app-logs", logging.StreamHandler()):
        ...

With `patience=0` a slow listener is skipped at once. Otherwise the server gives it a second, and
the handler, which never waits, drops the records of that second for all listeners.

Both follow `logging.handlers.QueueHandler` and `QueueListener` where those have a rule.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

from ._client.reconnect import will_pass
from ._gap import Gap
from ._options import ClientOptions, check_names
from ._wire.address import parse_client_address
from ._wire.handshake import Status
from .client import Client, Keywords
from .errors import (
    Closed,
    ConnectionLost,
    JumiksError,
    Lagged,
    MessageTooLarge,
    Refused,
    Timeout,
    counted,
)
from .monitor import Monitor
from .server import Server

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Handler", "Listener", "record_from_json", "record_to_json"]

_WORDS: Final = ("name", "levelname", "pathname", "filename", "module", "funcName", "threadName")
_MAYBE_WORDS: Final = ("processName", "exc_text", "stack_info", "taskName")
_NUMBERS: Final = ("levelno", "lineno", "thread", "process")
_TIMES: Final = ("created", "msecs", "relativeCreated")
_LOCAL: Final = {"msg", "message", "args", "exc_info"}
_OWN: Final = "jumiks.logging"
_SET_HERE: Final = ("reconnect", "wait", "on_gap")
_LOOK: Final = 0.2
"""Seconds between two looks at whether to stop, while the server is not there. Also: how long a
listener that is to stop waits for what must be on its way."""

_REST: Final = 1.0
"""Seconds to read on where nobody knows what was published before the stop, or to come back."""


_formatter: Final = logging.Formatter()
_mine = threading.local()


def record_to_json(record: logging.LogRecord) -> bytes:
    """Write a record as a JSON object, with the names of its attributes.

    `msg` is the whole message, with its arguments; `exc_text` has the traceback. What was given as
    `extra` is there too: what JSON does not know stands as its `repr`.
    """
    found = {name: value for name, value in vars(record).items() if name not in _LOCAL}
    found["msg"] = record.getMessage()
    if record.exc_info and not record.exc_text:
        found["exc_text"] = _formatter.formatException(record.exc_info)
    return json.dumps(found, default=repr, skipkeys=True).encode("utf-8", "backslashreplace")


def record_from_json(data: Buffer) -> logging.LogRecord:
    """Make the record that `record_to_json` wrote.

    Attributes of the wrong type are left out, and so are names that would hide a method of
    `logging.LogRecord`. So handlers can work with whatever a server sends.

    Raises:
        ValueError: it is no JSON object, or it has no `msg`.
    """
    try:
        found = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no record: {len(bytes(data))} bytes that are no JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("msg"), str):
        raise ValueError("no record: it must be a JSON object with a text named 'msg'")
    record = logging.LogRecord("", logging.INFO, "", 0, found.pop("msg"), None, None)
    for name, value in found.items():
        if _fits(name, value):
            setattr(record, name, value)
    return record


def _fits(name: str, value: object) -> bool:
    if name in _WORDS:
        return isinstance(value, str)
    if name in _MAYBE_WORDS:
        return value is None or isinstance(value, str)
    if name in _NUMBERS:
        return isinstance(value, int) and not isinstance(value, bool)
    if name in _TIMES:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e11
    return name not in _LOCAL and not hasattr(logging.LogRecord, name) and name[:2] != "__"


class Handler(logging.Handler):
    """Publishes each record as JSON.

    It never waits: a record that finds no room in the log is dropped, and counted in `dropped`. So
    are records that are larger than the server's `max_message`, records that jumiks logs while it
    publishes one, records after the server was closed, and records in a forked child, which has no
    part in its parent's server; the child's own copy counts those. For records of children, put a
    `QueueHandler` in them and a `QueueListener` with this handler in the parent.

    The next record that can be published comes behind one of the logger "jumiks.logging", of level
    WARNING, which says how many were dropped, and how many of them were too large. `flush`
    publishes that one alone.

    Args:
        server: where to publish. Its lag policy decides about clients that are slow. Where the
            server would wait for one, this handler drops records, which all others then miss too.
            So take `on_lag="skip"` with `patience=0`, which waits for none.
        level: of the least important records that are published.
    """

    def __init__(self, server: Server, level: int | str = logging.NOTSET) -> None:
        if not isinstance(server, Server):
            raise TypeError(f"server={server!r}: it must be a jumiks.Server")
        super().__init__(level)
        self._server = server
        self._pid = os.getpid()
        self.dropped: int = 0
        """Records that were not published, in this process."""
        self._told = 0  # those of them that listeners were told of
        self._too_large = 0  # those that they were not told of
        self._limit = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Publish a record, or count it as dropped; `handleError` is told what has no JSON."""
        if getattr(_mine, "publishes", False) or os.getpid() != self._pid:
            self.dropped += 1
            return
        _mine.publishes = True
        try:
            data = record_to_json(record)
        except Exception:
            self.dropped += 1
            self.handleError(record)
        else:
            if not (self._tell_dropped() and self._publish(data)):
                self.dropped += 1
        finally:
            _mine.publishes = False

    def flush(self) -> None:
        """Tell listeners how many records were dropped, if they were not told and there is room."""
        if getattr(_mine, "publishes", False) or os.getpid() != self._pid:
            return
        with self.lock or nullcontext():
            _mine.publishes = True
            try:
                self._tell_dropped()
            finally:
                _mine.publishes = False

    def _tell_dropped(self) -> bool:
        # Return whether a record may follow: its listeners must hear first what is missing.
        dropped = self.dropped
        if dropped == self._told:
            return True
        count = dropped - self._told
        words = f"records were lost: {count} were not published"
        if self._too_large:
            words += f", {self._too_large} of those as larger than max_message, {self._limit} bytes"
        record = _own_record(logging.WARNING, words)
        record.dropped = count
        if not self._publish(record_to_json(record)):
            return False
        self._told = dropped
        self._too_large = 0
        return True

    def _publish(self, data: bytes) -> bool:
        try:
            self._server.publish(data, timeout=0)
        except MessageTooLarge as error:
            self._too_large += 1
            self._limit = error.limit
            return False
        except Exception:  # a program must not end because nobody can hear it
            return False
        return True


class Listener:
    """Hands the records of a server to local handlers, in a thread.

    It waits for a server that is not there yet, and comes back to one that was restarted. A gap
    becomes a record of the logger "jumiks.logging", of level WARNING, that says what was lost. So
    does what a `Handler` dropped, and the first message that is no record.

    If the server cuts it for its lag, it says so, and comes back too; what it then misses is a gap.
    If it is refused, or the server's user disconnects it, or an option cannot work, that is the
    end: `error` has the reason, and the last record says it, at level ERROR. Call `stop` and
    `start` to try again.

    Args:
        address: the server's.
        handlers: get each record; as with `QueueListener`, filters of loggers are not asked again.
        respect_handler_level: whether a handler gets only records of its level or above.
        options: for `jumiks.Client`: `start`, `timeout`, `name`, `delivery`, `ack` (not "manual")
            and `spin`. The others are as this class needs them.

    Raises:
        TypeError, ValueError: an argument is wrong; the text says what would be right.

    Attributes:
        lost: records that were lost, in gaps or as a `Handler` dropped them, or that `stop` knows
            of and could not get; those of a gap of unknown size count as one.
        unreadable: messages that were no records; they are left out, and the first is told.
        error: what ended the thread, if it was not `stop`: for example `jumiks.Refused`.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *handlers: logging.Handler,
        respect_handler_level: bool = False,
        options: Keywords | None = None,
    ) -> None:
        for handler in handlers:
            if not isinstance(handler, logging.Handler):
                raise TypeError(f"{handler!r} is no logging.Handler")
        self._address = address
        self._handlers = handlers
        self._respect = respect_handler_level
        self._options = _checked(options or {})
        parse_client_address(address)
        self._thread: threading.Thread | None = None
        # No Event, no `join`: a signal's handler may call what it has interrupted, or raise.
        self._stopping = False
        self._running_in = 0  # the process; 0 once the thread is over
        self._over: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._client: Client[bytes | Gap] | None = None
        self._receives = 0  # odd while the thread is in a receive without a limit
        self._end: tuple[int, int | None] | None = None  # from `stop` on: server, last message
        self._ends_at = 0.0
        self._place = (0, 0)  # where the last connection ended: server, next message due
        self.lost: int = 0
        self.unreadable: int = 0
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin to listen. Records that are published before it has connected do not come."""
        if self._is_running():
            raise RuntimeError("this listener was started already")
        self._stopping = False
        self._end, self._place = None, (0, 0)
        self._client, self._receives = None, 0  # a child has those of its parent's thread
        self.error = None
        self._over = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="jumiks-listener", daemon=True)
        self._running_in = os.getpid()
        try:
            self._thread.start()
        except Exception:  # there are too many
            self._running_in, self._thread = 0, None
            raise

    def stop(self) -> None:
        """Handle all that is published by now, and end the thread. It may be started again.

        As with `QueueListener`, that takes as long as the handlers take. What is published from now
        on is not waited for. What cannot be had, as the server hangs, counts in `lost`; a lost
        connection has a second to come back. A server that sends packets is asked what it has
        published; from one that does not answer, such as a plain 1.0 server, the listener takes
        what comes at once, for a second at most. A connection that is being made is waited for,
        `timeout` seconds at most.

        Any thread may call it, while another one does too: each returns once the thread has ended.
        A handler may call it, and goes on at once: the thread ends when the rest is handed on. If
        an exception ends a call, such as that of Ctrl-C, the next one does the rest.
        """
        thread = self._thread
        if thread is None or self._running_in not in (0, os.getpid()):
            return
        if self._running_in and not self._stopping:
            if (client := self._client) is not None:
                self._set_end(client)
            self._stopping = True
        if thread is threading.current_thread():
            return
        until = time.monotonic() + _REST
        while self._running_in:
            receives = self._receives
            if receives % 2 and self._is_over():
                self._wake()  # it waits for what comes after the end
            with suppress(queue.Empty):
                self._over.get(timeout=_LOOK)
                self._over.put(None)  # for others that wait here
            if receives % 2 and self._receives == receives:
                self._wake(until)  # what is to come does not
        thread.join()

    def close(self) -> None:
        """Do what `stop` does."""
        self.stop()

    def __enter__(self) -> Listener:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def handle(self, record: logging.LogRecord) -> None:
        """Hand one record to each handler."""
        for handler in self._handlers:
            if self._respect and record.levelno < handler.level:
                continue
            try:
                handler.handle(record)
            except Exception:  # of a handler that does not keep to its own rule
                handler.handleError(record)

    def _is_running(self) -> bool:
        return self._running_in == os.getpid()  # and in no child

    def _run(self) -> None:
        try:
            self._listen()
        finally:
            self._running_in = 0
            self._over.put(None)

    def _listen(self) -> None:
        options: Keywords | None = self._options
        try:
            while options is not None and not (self._stopping and options is self._options):
                options = self._follow(options)
        except BaseException as error:  # a handler may raise SystemExit
            self.error = error
            why = str(error) or type(error).__name__
            self._tell(
                logging.ERROR,
                f"no more records come from {self._address}: {why}; call stop() and start() of the "
                "Listener to try again",
            )
        finally:
            self._count_rest()

    def _follow(self, options: Keywords) -> Keywords | None:
        # Return the options to go on with; None at the end.
        try:
            client = Client(self._address, on_gap="yield", **options)
        except Exception as error:
            if not self._stopping and not _will_pass(error):
                raise
            return None if self._stopping else options
        with client:
            self._client = client
            try:
                while not self._is_over():
                    self._take(self._receive(client))
                with suppress(JumiksError, OSError):
                    client.ack()
            except (Closed, Timeout):  # by stop, or while it stops
                if client._stream.way is not None:
                    self._set_end(client)
            except Lagged as error:
                return self._after_cut(client, error, options)
            finally:
                self._place = client.server_id, client._stream.due()
                self._client = None
        return None

    def _after_cut(
        self, client: Client[bytes | Gap], error: Lagged, options: Keywords
    ) -> Keywords | None:
        again: Keywords = {**self._options, "start": (client.server_id, client._stream.due())}
        if self._is_over() or (self._stopping and again == options):
            return None
        self._tell(
            logging.WARNING,
            f"{self._address} cut this listener, which was {counted(error.lag, 'message')} behind; "
            "it goes on where it can: use faster handlers, or on_lag='skip' at the server",
        )
        if not self._stopping:
            time.sleep(_LOOK)
        return again

    def _receive(self, client: Client[bytes | Gap]) -> bytes | Gap:
        if not self._stopping:
            self._receives += 1
            try:
                return client.receive()
            finally:
                self._receives += 1
        if not self._knows_end():
            return client.receive(0)
        try:
            return client.receive(_LOOK)
        except Timeout:
            if client._stream.way is None:
                raise
            return client.receive(_REST)

    # ---- the end ----

    def _set_end(self, client: Client[bytes | Gap]) -> None:
        last = client._stream.published or None
        way = client._stream.way
        if way is not None and isinstance(way.ending, ConnectionLost):
            last = way.ending.last_lost or last  # what it did not send
        if last is None:
            with suppress(JumiksError, OSError), Monitor(self._address, timeout=_REST) as monitor:
                status = monitor.status()
                if status.server_id == client.server_id:
                    last = status.stats.next_id - 1
        self._ends_at = time.monotonic() + _REST
        self._end = client.server_id, last

    def _is_over(self) -> bool:
        # Has it all that was published before the stop?
        client = self._client
        if not self._stopping or client is None:
            return self._stopping
        if self._end is None:  # it has connected since
            self._set_end(client)
        assert self._end is not None
        server_id, last = self._end
        if client.server_id != server_id:
            return True
        return time.monotonic() >= self._ends_at if last is None else client._stream.due() > last

    def _wake(self, until: float = 0.0) -> None:
        # `until`: if it is coming back for what it knows of, it has time until then.
        client = self._client
        if client is None:
            return
        comes_back = client._stream.way is not None and self._knows_end()
        if not comes_back or time.monotonic() >= until:
            client.close()

    def _knows_end(self) -> bool:
        return self._end is not None and self._end[1] is not None

    def _count_rest(self) -> None:
        server_id, due = self._place
        if self._end is None or self._end[0] != server_id or not self._end[1]:
            return
        if 0 < due <= self._end[1]:
            rest = self._end[1] - due + 1
            self.lost += rest
            self._tell(
                logging.WARNING,
                f"records were lost: {rest} that were published before the stop did not come",
            )

    # ---- what comes ----

    def _tell(self, level: int, text: str) -> None:
        self.handle(_own_record(level, text))

    def _take(self, item: bytes | Gap) -> None:
        if isinstance(item, Gap):
            self.lost += item.count or 1
            self._tell(logging.WARNING, f"records were lost: {item} ({item.reason.value})")
            return
        try:
            record = record_from_json(item)
        except ValueError as error:
            self.unreadable += 1
            if self.unreadable == 1:
                self._tell(
                    logging.WARNING,
                    f"{self._address} publishes something else than log records: {error}; this is "
                    "told once, and the Listener's `unreadable` counts such messages",
                )
        else:
            self.lost += _dropped(record)
            self.handle(record)


def _dropped(record: logging.LogRecord) -> int:
    # What a handler says that it has dropped; a server may send anything.
    count = getattr(record, "dropped", 0)
    return count if record.name == _OWN and type(count) is int and count > 0 else 0


def _will_pass(error: Exception) -> bool:
    # A server that lets nobody else in may do so for long, so that is told.
    if isinstance(error, Refused) and error.status == Status.TOO_MANY_CLIENTS:
        return False
    return will_pass(error)


def _checked(options: Keywords) -> Keywords:
    # Else the thread would find what is wrong, where the user does not look.
    for name in _SET_HERE:
        if name in options:
            raise TypeError(f"options={options!r:.200}: leave {name!r} out, which a Listener sets")
    check_names("Client", ClientOptions, options)
    if ClientOptions(**options).ack == "manual":
        raise ValueError("options: ack='manual' has nothing acked, so the server would cut this")
    return {**options, "reconnect": True, "wait": _LOOK}


def _own_record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(_OWN, level, __file__, 0, text, None, None)
