# SPDX-License-Identifier: Apache-2.0
"""NATS JetStream: one stream with one subject; an append names the stream's last record.

The sequence number alone would not do (see `Mark`), so each record also has a message id of its
own, and names that of the record before it.

The client's own publish for JetStream never answers where the server refuses. So records go out as
plain messages whose answers come to an inbox of ours. Reading needs no durable consumer: an
ephemeral one is asked for a bounded number of bytes at a time.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from asyncio import Future
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import datetime
from itertools import count
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from .engine import Create, Engine, Mark, Patience, StreamInfo, Tail
from .errors import (
    NO_ANSWER,
    Conflict,
    EngineError,
    Unfit,
    no_answer,
    no_stream,
    no_tls,
    not_allowed,
    over,
    tls_failed,
    unreachable,
)
from .record import Record, Unreadable

__all__: list[str] = []

TIMEOUT: Final = 5.0
"""Seconds for a request, and for connecting; records have `Engine.patience`."""

HEADROOM: Final = 1024
"""Bytes of `max_payload` that headers may take."""

PULL_BYTES: Final = 8 << 20
BATCH: Final = 4096
"""Bytes of records, and how many of them, asked for at a time."""

FEWEST: Final = 64
"""Records whose sizes are asked for at first, going back from the end."""

PULL_SECONDS: Final = 30.0
HEARTBEAT: Final = 2.0

LONGEST_NAME: Final = 255
"""Bytes of a stream's name, as the server has it."""

MOST_REPLICAS: Final = 5
"""Copies of a stream, as the server has it."""

_NOT_IN_NAMES: Final = frozenset(" \t\r\n\f.*>/\\")
_NOT_IN_SUBJECTS: Final = frozenset(" \t\r\n\f*>")
_NAME: Final = "Nats-Msg-Id"
_SIZE: Final = "Nats-Msg-Size"
_WRONG_END: Final = {10070, 10071, 10164}
_NO_STREAM: Final = 10059
_NO_MESSAGE: Final = 10037
_PULL_IS_OVER: Final = ("Exceeds MaxBytes", "Batch Completed")
_STATES: Final = {10077: "full", 10047: "full", 10023: "full", 10054: "record too large"}
"""What the engine lacks, for some of its error codes."""


class JetStream(Engine):
    """One stream of JetStream."""

    extra: ClassVar[str] = "nats"
    subject: str | None

    _client: Client | None = None
    _limit = 1 << 20

    def check(self, create: Create | None) -> None:
        """Check the names; a server does not answer where one is wrong. See `Engine.check`."""
        name, subject = self.target.stream, self.subject
        if set(name) & _NOT_IN_NAMES or len(name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"no stream of NATS can have the name {name!r:.100}: a name has at most "
                f"{LONGEST_NAME} bytes, and no '.', '*', '>', '/', '\\' or space"
            )
        if subject is not None and (set(subject) & _NOT_IN_SUBJECTS or not all(subject.split("."))):
            raise ValueError(
                f"no record of NATS can have the subject {subject!r:.100}: it must be words with "
                "a '.' between them, without '*', '>' or space"
            )
        if create is not None and not 1 <= create.replicas <= MOST_REPLICAS:
            raise ValueError(
                f"replicas={create.replicas}: NATS makes from 1 to {MOST_REPLICAS} copies"
            )

    # ---- connecting ----

    async def open(self, create: Create | None = None) -> StreamInfo:
        """Connect to the first of the hosts that answers; see `Engine.open`."""
        await self.close()
        self._flying: dict[str, tuple[int, Future[None]]] = {}
        """By the answer's subject: the sequence number that is due, and who waits."""
        self._pulls: set[_Pull] = set()
        self._gone = asyncio.Event()  # the connection has ended
        self._own = os.urandom(6).hex()  # no other connection's record has such a message id
        self._numbers = count(1)
        failure: EngineError | None = None
        for host, port in self.target.hosts:
            try:
                await self._connect(host, port or 4222)
                break
            except EngineError as error:
                failure = error
        else:
            assert failure is not None
            raise failure
        found = await self._request(f"STREAM.INFO.{self.target.stream}", {}, may_lack=_NO_STREAM)
        if found is None:
            found = await self._create(create)
        self._check(found["config"])
        return self._stream_info(found)

    def _login(self, client: Client, where: str, secure: bool) -> dict[str, Any]:
        def guarded(secret: str) -> Callable[[], str]:
            def give() -> str:
                # Who stands between may have said that the server has no TLS.
                if secure and not _is_secure(client):
                    raise no_tls(where)
                return secret

            return give

        self.credentials.check_keys()
        user, password = self.target.user, self.credentials.password
        options: dict[str, Any] = {}
        if secure:
            options["tls"] = self.credentials.context()
        if user is not None:
            options["user"], options["password"] = guarded(user), guarded(password or "")
        elif password:
            options["token"] = guarded(password)
        if self.credentials.creds:
            options["user_credentials"] = self.credentials.creds
        if self.credentials.nkey:
            options["nkeys_seed"] = self.credentials.nkey
        return options

    async def _connect(self, host: str, port: int) -> None:
        secure = self.target.scheme == "tls" or self.credentials.asks_for_tls
        where = f"{'tls' if secure else 'nats'}://{f'[{host}]' if ':' in host else host}:{port}"
        client, problems = Client(), list[Exception]()
        options = self._login(client, where, secure)

        async def note(error: Exception) -> None:
            problems.append(error)

        async def ended() -> None:
            if client is self._client:  # and not one that was given up
                self._ended()

        try:
            # Not in a task of its own, whose error nobody would see where a cancellation meets it.
            async with asyncio.timeout(TIMEOUT + 1):
                await client.connect(
                    [where],
                    name="jumiks bridge",
                    error_cb=note,
                    closed_cb=ended,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=int(TIMEOUT),
                    ping_interval=max(1, int(self.patience.seconds / 2.5)),
                    max_outstanding_pings=2,
                    **options,
                )
            if secure and not _is_secure(client):
                raise no_tls(where)
        except BaseException as error:
            await _discard(client)
            if isinstance(error, Exception):
                raise _refusal(where, problems[0] if problems else error) from None
            raise
        await self._begin(client)

    async def _begin(self, client: Client) -> None:
        self._client = client
        self._limit = client.max_payload
        self._inbox = client.new_inbox()
        await client.subscribe(f"{self._inbox}.*", cb=self._answered)

    def _over(self) -> EngineError:
        failure = self._client.last_error if self._client is not None else None
        if isinstance(failure, errors.UnexpectedEOF) or not isinstance(
            failure, errors.StaleConnectionError
        ):
            return over(self.target)
        # A ping had no answer: either of them may wait behind records.
        return no_answer(self.target, self.patience.seconds, self.patience.words)

    def _ended(self) -> None:
        self._gone.set()
        for _, future in self._flying.values():
            if not future.done():
                future.set_exception(self._over())
        self._flying.clear()
        for pull in self._pulls:
            pull.queue.put_nowait(None)

    async def close(self) -> None:
        """Close the connection; see `Engine.close`."""
        client, self._client = self._client, None
        if client is None:
            return
        self._ended()
        await _discard(client)

    def _open(self) -> Client:
        client = self._client
        if client is None or client.is_closed:
            raise over(self.target)
        return client

    # ---- the stream ----

    async def _create(self, create: Create | None) -> dict[str, Any]:
        name = self.target.stream
        if create is None:
            raise no_stream(self.target)
        config = {
            "name": name,
            "subjects": [self.subject or name],
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "max_bytes": create.max_bytes or -1,
            "num_replicas": create.replicas,
            "allow_direct": True,
        }
        found = await self._request(f"STREAM.CREATE.{name}", config)
        assert found is not None
        return found

    def _check(self, config: dict[str, Any]) -> None:
        subjects = config.get("subjects") or []
        wrong = ""
        if len(subjects) != 1 or any(sign in subjects[0] for sign in "*>"):
            wrong = f"it has the subjects {', '.join(subjects) or 'of a mirror'}"
        elif self.subject is not None and subjects != [self.subject]:
            wrong = f"its subject is {subjects[0]}, not {self.subject}"
        elif config.get("mirror") or config.get("sources"):
            wrong = "it is filled from other streams"
        elif config.get("retention", "limits") != "limits":
            wrong = f"its retention is {config['retention']}, so readers would delete records"
        elif config.get("no_ack"):
            wrong = "it has no_ack, so nobody would know what is stored"
        elif config.get("sealed"):
            wrong = "it is sealed"
        if wrong:
            raise Unfit(
                f"{self.target}: {wrong}; a feed needs a stream of its own, with one subject: "
                "take another name, and --create"
            )
        self.subject = subjects[0]
        if config.get("max_msg_size", -1) > 0:
            self._limit = min(self._limit, config["max_msg_size"])

    def _stream_info(self, found: dict[str, Any]) -> StreamInfo:
        version = self._open().connected_server_version
        return StreamInfo(
            engine=f"NATS {version.major}.{version.minor}.{version.patch}",
            name=found["config"]["name"],
            created=found["created"],
            records=found["state"]["messages"],
            bytes=found["state"]["bytes"],
            keep_seconds=(found["config"].get("max_age") or 0) / 1e9 or None,
        )

    @property
    def largest(self) -> int:
        """The largest body that a record may have, bytes."""
        return self._limit - HEADROOM

    async def info(self) -> StreamInfo:
        """Look at the stream again."""
        return self._stream_info(await self._info())

    async def _info(self) -> dict[str, Any]:
        found = await self._request(f"STREAM.INFO.{self.target.stream}", {}, may_lack=_NO_STREAM)
        if found is None:
            raise Unfit(f"{self.target}: the stream is gone")
        return found

    async def last(self) -> Tail:
        """Return where the stream ends; the leader of the stream answers."""
        while True:
            state = (await self._info())["state"]
            if not state["messages"]:
                return Tail(None, Mark(state["last_seq"]))
            found = await self._message({"last_by_subj": self.subject})
            if found is None:
                continue  # it has gone since
            sequence, record, stored, name = found
            if sequence > state["last_seq"]:
                continue  # one more was stored in between
            if isinstance(record, Unreadable):
                raise Unfit(f"{self.target}: its last record is none of a bridge: {record}")
            # The one behind it may have been deleted by hand; the next append goes behind that.
            mark = Mark(state["last_seq"], name if sequence == state["last_seq"] else "")
            return Tail(record.end, mark, _seconds(stored))

    async def _message(
        self, what: dict[str, Any]
    ) -> tuple[int, Record | Unreadable, str, str] | None:
        found = await self._request(
            f"STREAM.MSG.GET.{self.target.stream}", what, _NO_MESSAGE, self.patience
        )
        if found is None:
            return None
        message = found["message"]
        headers = _headers(_decoded(message.get("hdrs")))
        body = _decoded(message.get("data"))
        return message["seq"], _record(headers, body), message["time"], headers.get(_NAME, "")

    async def _request(
        self,
        subject: str,
        body: dict[str, Any],
        may_lack: int = 0,
        patience: Patience | None = None,
    ) -> dict[str, Any] | None:
        client = self._open()
        seconds, words = (patience.seconds, patience.words) if patience else (TIMEOUT, "")
        try:
            answer = await self._answer(
                client.request(
                    f"$JS.API.{subject}",
                    json.dumps(body).encode() if body else b"",
                    timeout=seconds,
                )
            )
        except errors.NoRespondersError:
            raise EngineError(
                f"{self.target}: nothing there answers for JetStream: start nats-server with "
                "--jetstream, or wait for the cluster to have a leader",
                "no JetStream",
            ) from None
        except (errors.Error, OSError) as failure:
            if _timed_out(failure):
                if patience is not None:
                    patience.more()
                raise no_answer(self.target, seconds, words) from None
            raise EngineError(f"{self.target}: {failure}") from None
        found: dict[str, Any] = json.loads(answer.data)
        error = found.get("error")
        if error is None:
            return found
        if error.get("err_code") == may_lack:
            return None
        return self._fail(error)

    async def _answer(self, request: Coroutine[Any, Any, Msg]) -> Msg:
        # The client itself waits for an answer until its time is up, though the connection ended.
        asked = asyncio.ensure_future(request)
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise self._over()
            return asked.result()
        finally:
            gone.cancel()
            asked.cancel()
            asked.add_done_callback(_ignored)  # it may fail all the same

    def _fail(self, error: dict[str, Any]) -> NoReturn:
        raise self._failure(error)

    def _failure(self, error: dict[str, Any]) -> EngineError:
        code, words = error.get("err_code", 0), error.get("description", "")
        text = f"{self.target}: {words} (NATS error {code})"
        if code in _WRONG_END:
            return Conflict(text)
        state = "full" if "maximum" in words or "insufficient" in words else "refuses"
        return EngineError(text, _STATES.get(code, state))

    # ---- appending ----

    async def append(self, previous: Mark, record: Record) -> Future[None]:
        """Send a record off; see `Engine.append`."""
        client, future = self._open(), asyncio.get_running_loop().create_future()
        number, behind = str(next(self._numbers)), self.after(previous, record)
        self._flying[number] = behind.number, future
        headers = record.headers()
        headers["Nats-Expected-Last-Sequence"] = str(previous.number)
        if previous.name:
            # The number alone would not do with several records in flight: of two writers at one
            # place one has its first record refused, and its second would follow the other's.
            headers["Nats-Expected-Last-Msg-Id"] = previous.name
        headers[_NAME] = behind.name
        assert self.subject is not None
        try:
            await client.publish(self.subject, record.body, f"{self._inbox}.{number}", headers)
        except BaseException as error:
            self._flying.pop(number, None)
            future.cancel()
            if isinstance(error, errors.Error | OSError):
                raise EngineError(f"{self.target}: {error}") from None
            raise
        return future

    def after(self, previous: Mark, record: Record) -> Mark:
        """Return the sequence number and the message id that a record gets."""
        # A mark ends where the record before it does, and must not pass for a repeat of that one.
        sequence = previous.number + 1
        return Mark(sequence, f"{record.last}.{sequence}.{self._own}")

    async def _answered(self, message: Msg) -> None:
        number = message.subject.rpartition(".")[2]
        due, future = self._flying.pop(number, (0, None))
        if future is None or future.done():
            return
        if not message.data:  # the status of a message that nobody took
            text = f"{self.target}: the stream is gone, or its leader is"
            future.set_exception(EngineError(text, "no stream"))
            return
        answer = json.loads(message.data)
        error = answer.get("error")
        if error is not None:
            future.set_exception(self._failure(error))
        elif answer.get("seq") != due:  # it was taken for a repeat of an earlier one
            text = f"{self.target}: it acked record {answer.get('seq')}, and {due} was due"
            future.set_exception(Conflict(text))
        else:
            future.set_result(None)

    # ---- reading ----

    async def read(self, start: int) -> AsyncIterator[Record | Unreadable]:
        """Read records, and wait for more; see `Engine.read`."""
        consumer = await self._consumer(await self._sequence_of(start))
        async with aclosing(self._pull(consumer)) as messages:
            async for message in messages:
                yield _record(message.headers or {}, message.data)

    async def _consumer(self, first: int, *, headers_only: bool = False) -> dict[str, Any]:
        config = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, first),
            "ack_policy": "none",
            "max_deliver": -1,
            "headers_only": headers_only,
            "inactive_threshold": int(4 * PULL_SECONDS * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        stream = self.target.stream
        found = await self._request(
            f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config}
        )
        assert found is not None
        return found

    async def _pull(
        self, consumer: dict[str, Any], batch: int = BATCH
    ) -> AsyncGenerator[Msg, None]:
        # Messages of our consumer, at most `batch` per request. Later ones come as they are stored.
        pull = _Pull(self, self._open(), consumer["name"], batch)
        self._pulls.add(pull)
        try:
            await pull.begin()
            while True:
                yield await pull.next()
        except (errors.Error, OSError) as error:
            raise EngineError(f"{self.target}: {error}") from None
        finally:
            self._pulls.discard(pull)
            with suppress(Exception):
                await pull.end()

    async def _sequence_of(self, stream: int) -> int:
        # Records may have other sequence numbers than before if the engine went back, so they are
        # looked for by what they say.
        state = (await self._info())["state"]
        low, high = state["first_seq"], state["last_seq"] + 1
        if not stream or not state["messages"]:
            return int(low)
        while low < high:  # the first record that ends at the id or behind it
            middle = (low + high) // 2
            found = await self._first_from(middle, high)
            if found is None or found[1].last >= stream:
                high = middle
            else:
                low = found[0] + 1
        return int(low)

    async def _first_from(self, sequence: int, before: int) -> tuple[int, Record] | None:
        # The first record from there on that can be read.
        while sequence < before:
            found = await self._message({"seq": sequence, "next_by_subj": self.subject})
            if found is None or found[0] >= before:
                return None
            if isinstance(found[1], Record):
                return found[0], found[1]
            sequence = found[0] + 1
        return None

    async def back(self, size: int) -> int:
        """Return where the last `size` bytes begin; headers alone come, and say the sizes."""
        state = (await self._info())["state"]
        first, behind = state["first_seq"], state["last_seq"] + 1
        if state["bytes"] <= size:
            return 0
        begin, count = behind, FEWEST
        while size > 0 and begin > first:
            end, begin = begin, max(first, begin - count)
            for sequence, held in reversed(await self._sizes(begin, end)):
                size -= held
                if size <= 0:
                    begin = sequence
                    break
            count = min(2 * count, BATCH)
        found = await self._first_from(begin, behind)
        return found[1].seq if found else 0

    async def _sizes(self, begin: int, end: int) -> list[tuple[int, int]]:
        # The sequence numbers that there are in this range, and how many bytes each record has.
        consumer = await self._consumer(begin, headers_only=True)
        found: list[tuple[int, int]] = []
        if not consumer["num_pending"]:
            return found
        async with aclosing(self._pull(consumer, end - begin)) as messages:
            async for message in messages:
                about = _about(message)
                if about.stream < end:
                    size = (message.headers or {}).get(_SIZE, len(message.data))
                    found.append((about.stream, int(size)))
                if about.stream + 1 >= end or not about.left:
                    break
        return found

    async def around(self, stream: int) -> Record | None:
        """Return the record that has this stream id, or else the next one."""
        found = await self._first_from(await self._sequence_of(stream), 1 << 64)
        return found[1] if found else None


class _Pull:
    """Records of an ephemeral consumer, asked for as they are used."""

    def __init__(self, engine: JetStream, client: Client, consumer: str, batch: int) -> None:
        self._engine = engine
        self._client = client
        self._consumer = consumer
        self._batch = batch
        self._inbox = client.new_inbox()
        self.queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        """What came; None once the connection has ended."""
        self._due = 1  # the consumer's own number of the next record
        self._asked = 0.0
        self._left = 0

    async def begin(self) -> None:
        self._subscription = await self._client.subscribe(
            self._inbox, cb=self.queue.put, pending_msgs_limit=0, pending_bytes_limit=0
        )

    async def end(self) -> None:
        await self._subscription.unsubscribe()
        await self._engine._request(
            f"CONSUMER.DELETE.{self._engine.target.stream}.{self._consumer}", {}
        )

    async def _ask(self) -> None:
        body = {
            "batch": self._batch,
            "max_bytes": max(PULL_BYTES, 2 * self._client.max_payload),
            "expires": int(PULL_SECONDS * 1e9),
            "idle_heartbeat": int(HEARTBEAT * 1e9),
        }
        await self._client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._engine.target.stream}.{self._consumer}",
            json.dumps(body).encode(),
            self._inbox,
        )
        self._left = self._batch

    async def next(self) -> Msg:
        """Return the message that comes next."""
        patience = self._engine.patience
        while True:
            if not self._left and self.queue.empty():
                await self._ask()
            try:
                message = await asyncio.wait_for(self.queue.get(), patience.seconds)
            except TimeoutError:
                error = no_answer(self._engine.target, patience.seconds, patience.words)
                patience.more()
                raise error from None
            if message is None:
                error = self._engine._over()
                if error.state == NO_ANSWER:
                    patience.more()
                raise error
            headers = message.headers or {}
            status = headers.get("Status") if not message.reply else None
            if status is None:
                self._take(message)
                return message
            if status in ("404", "408") or (
                status == "409" and headers.get("Description", "").endswith(_PULL_IS_OVER)
            ):
                self._left = 0  # this pull is over: the next one asks again
            elif status == "100":
                patience.reset()
            else:
                words = headers.get("Description", status)
                raise EngineError(f"{self._engine.target}: {words}")

    def _take(self, message: Msg) -> None:
        self._left = max(0, self._left - 1)
        number = _about(message).consumer
        if number != self._due:
            raise EngineError(
                f"{self._engine.target}: record {number} came where {self._due} is due"
            )
        self._due += 1


class _About(NamedTuple):
    stream: int
    """Its sequence number."""
    consumer: int
    """The consumer's own number of it."""
    left: int
    """How many there are behind it."""


def _about(message: Msg) -> _About:
    # $JS.ACK.<stream>.<consumer>.<tries>.<sequence>.<the consumer's>.<time>.<left>; a domain and an
    # account may stand before the stream, and something more at the end.
    tokens = message.reply.split(".")
    at = 5 if len(tokens) == 9 else 7
    return _About(int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 3]))


def _record(headers: dict[str, str], body: bytes) -> Record | Unreadable:
    try:
        return Record.parse(headers, body)
    except Unreadable as error:
        return Unreadable(str(error))  # the ids that it claims may be nonsense too


def _decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def _headers(data: bytes) -> dict[str, str]:
    lines = data.decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name: value.strip() for name, _, value in pairs}


def _seconds(text: str) -> float:
    # Nanoseconds are more than Python reads.
    whole, _, rest = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")


def _is_secure(client: Client) -> bool:
    writer = getattr(client._transport, "_io_writer", None)
    return writer is not None and writer.get_extra_info("ssl_object") is not None


async def _discard(client: Client) -> None:
    # It may wait for the end of a TLS connection that never was one.
    with suppress(Exception):
        async with asyncio.timeout(1):
            await client.close()


def _ignored(task: Future[Msg]) -> None:
    if not task.cancelled():
        task.exception()


def _timed_out(error: BaseException) -> bool:
    return isinstance(error, TimeoutError | errors.TimeoutError)


def _refusal(where: str, error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    words = str(error) or type(error).__name__
    if _timed_out(error):
        return no_answer(where, TIMEOUT)
    lower = words.lower()
    if "authorization" in lower or "authentication" in lower:
        return not_allowed(where, words)
    if "certificate" in lower or "ssl" in lower or "tls" in lower:
        return tls_failed(where, words)
    if isinstance(error, ImportError):
        return EngineError(f"{where}: {words}: pip install 'jumiks[nats]'", "not installed")
    return unreachable(where, words)
