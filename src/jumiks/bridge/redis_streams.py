# SPDX-License-Identifier: Apache-2.0
"""Redis Streams: one key; an append is a script that compares with a second key, the position.

The entry of a record has the id `<stream id of its last message>-0`, so an entry is found by a
message. `{key}:at` holds where the stream ends. The same script writes it, so both change together,
and it survives trimming. The braces have a cluster keep both keys in one place.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import Future
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from math import inf
from typing import Any, ClassVar, Final, TypeAlias

from redis import exceptions as errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .engine import Create, Engine, Mark, Patience, StreamInfo, Tail
from .errors import (
    NO_ANSWER,
    Conflict,
    EngineError,
    Unfit,
    cut_at_once,
    no_answer,
    no_stream,
    not_allowed,
    over,
    tls_failed,
    unreachable,
)
from .record import Position, Record, Unreadable

__all__: list[str] = []

_Entry: TypeAlias = tuple[bytes, dict[bytes, bytes]]
_Connection: TypeAlias = Any
"""The client's own."""

TIMEOUT: Final = 5.0
"""Seconds for connecting and for a request; records have `Engine.patience`."""

BLOCK: Final = 1000
"""Milliseconds that a read waits for records before it looks whether the stream is the same."""

READ_BYTES: Final = 2 << 20
"""Bytes of records asked for at a time, about. The next ones are asked for meanwhile."""

FEWEST, MOST = 4, 512
"""Records asked for at a time; Redis takes a number of them, and not of bytes."""

LARGEST: Final = 64 << 20
"""The largest body, bytes; Redis itself takes more, and has it in memory several times."""

APPEND: Final = """\
local place = redis.call('HMGET', KEYS[2], 'stream', 'server', 'source', 'bytes', 'records')
local at = place[1] and table.concat(place, ' ', 1, 3) or '0'
if at ~= ARGV[1] then
  return redis.error_reply('CONFLICT the stream ends at ' .. at .. ', not at ' .. ARGV[1])
end
redis.call('XADD', KEYS[1], ARGV[2] .. '-0', unpack(ARGV, 6))
local created = redis.call('TIME')
redis.call('HSETNX', KEYS[2], 'created', created[1] .. '.' .. created[2])
local most, length = tonumber(ARGV[5]), redis.call('XLEN', KEYS[1])
local size, records = tonumber(place[4] or 0), tonumber(place[5] or length - 1)
if records ~= length - 1 then
  size = math.floor(size * (length - 1) / math.max(1, records))
end
size = size + #ARGV[#ARGV]
redis.call('HSET', KEYS[2], 'stream', ARGV[2], 'server', ARGV[3], 'source', ARGV[4],
  'stored', created[1], 'bytes', string.format('%.0f', size), 'records', length)
if most > 0 and size > most and length > 1 then
  repeat
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    redis.call('XDEL', KEYS[1], oldest[1])
    size, length = size - #oldest[2][#oldest[2]], length - 1
  until size <= most or length == 1
  redis.call('HSET', KEYS[2], 'bytes', string.format('%.0f', size), 'records', length)
end
return redis.status_reply('OK')
"""
"""KEYS: the stream, its position. ARGV: the end that is expected (stream id, server_id, source id;
or 0), the same three of the new end, the bytes that it may keep (0: all), then fields and values,
the body last. Where somebody else has trimmed the stream, the bytes that it has are taken to have
shrunk as much as the number of its records."""


BACK: Final = """\
local found, held, at = redis.call('XREVRANGE', KEYS[1], ARGV[1], '-', 'COUNT', ARGV[2]), 0, 0
while at < #found and held < tonumber(ARGV[3]) do
  at = at + 1
  held = held + #found[at][2][#found[at][2]]
end
return {at, held, at > 0 and found[at][1]}
"""
"""Adds up the sizes of bodies, from a newer entry to older ones, until the sum is large enough.
KEYS: the stream. ARGV: the entry to begin at, the most entries to read, and the sum in bytes.
Returns the number of entries added, the sum, and the id of the oldest of them. MEMORY USAGE of
Redis is no substitute: it samples only the oldest entries."""


class RedisStreams(Engine):
    """One key of Redis."""

    extra: ClassVar[str] = "redis"
    pack: ClassVar[int] = 256 << 10
    in_url: ClassVar[tuple[str, ...]] = ("db",)

    _client: Redis | None = None
    _options: dict[str, Any]
    _most = 0
    _appends = False
    """Whether only a primary is of use. After a failover the first of the hosts may be none."""
    _share = READ_BYTES
    """Bytes of records per request: fewer while a link is too slow for so large an answer."""

    def check(self, create: Create | None) -> None:
        """Refuse what is for NATS alone; see `Engine.check`."""
        for name, value in (
            ("subject", self.subject),
            ("creds", self.credentials.creds),
            ("nkey", self.credentials.nkey),
            ("replicas", None if create is None or create.replicas == 1 else create.replicas),
        ):
            if value is not None:
                raise ValueError(f"{name}={value!r} is for NATS, and Redis has none: leave it out")
        if not (number := self.target.options.get("db", "0")).isdecimal():
            raise ValueError(f"{self.target}: db={number!r}: it must be a number")

    # ---- connecting ----

    async def open(self, create: Create | None = None) -> StreamInfo:
        """Connect; see `Engine.open`. To make a stream is to give it a time in `{key}:at`."""
        await self.close()
        self._appends = self._appends or create is not None
        failure: EngineError | None = None
        for host, port in self.target.hosts:
            try:
                await self._begin(host, port or 6379)
                if not self._appends or await self._is_primary():
                    break
                failure = EngineError(f"{self.target}: {host} is a replica", "replica")
                await self.close()
            except EngineError as error:
                failure = error
        else:
            assert failure is not None
            raise failure
        if create is not None:
            self._most = create.max_bytes
            await self._create()
        return await self.info()

    async def _is_primary(self) -> bool:
        return bool((await self._ask(self._open().info("replication")))["role"] == "master")

    async def _create(self) -> None:
        client = self._open()
        if _text(await self._ask(client.type(self._key))) == "none":
            seconds, micro = await self._ask(client.time())
            await self._ask(client.hsetnx(self._at, "created", f"{seconds}.{micro:06}"))

    async def _begin(self, host: str, port: int) -> None:
        credentials = self.credentials
        secure = self.target.scheme == "rediss" or credentials.asks_for_tls
        self._options = {
            "host": host,
            "port": port,
            "db": int(self.target.options.get("db", 0)),
            "username": self.target.user,
            "password": credentials.password,
        }
        if secure:
            credentials.context()  # says what is wrong with a file
            self._options |= {
                "ssl": True,
                "ssl_ca_certs": credentials.tls_ca,
                "ssl_certfile": credentials.tls_cert,
                "ssl_keyfile": credentials.tls_key,
                "ssl_cert_reqs": "required",
                "ssl_check_hostname": True,
            }
        self._others: list[Redis] = []
        self._pipeline: _Pipeline | None = None
        self._client = await self._connect()
        self._script = _text(await self._ask(self._client.script_load(APPEND)))

    async def _connect(self, seconds: float = TIMEOUT) -> Redis:
        secure = "ssl" in self._options
        where = f"redis{'s' * secure}://{self._options['host']}:{self._options['port']}"
        client = Redis(
            socket_timeout=seconds,
            socket_connect_timeout=TIMEOUT,
            single_connection_client=True,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name="jumiks-bridge",
            **self._options,
        )
        try:
            async with asyncio.timeout(TIMEOUT):
                await client.ping()
        except (errors.RedisError, OSError) as error:
            await _discard(client)
            if not secure and isinstance(error.__context__, ConnectionResetError):
                raise cut_at_once(where, str(error)) from None
            raise _failure(where, error) from None
        except BaseException:
            await _discard(client)
            raise
        return client

    async def _another(self) -> Redis:
        # Reading waits, and appends are answered later: each has a connection of its own.
        self._open()
        client = await self._connect(self.patience.seconds)
        self._others.append(client)
        return client

    async def _ask(self, call: Any, where: str = "") -> Any:
        try:
            return await call
        except (errors.RedisError, OSError) as error:
            raise _failure(where or str(self.target), error) from None

    async def close(self) -> None:
        """Close the connections; see `Engine.close`."""
        client, self._client = self._client, None
        if client is None:
            return
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            await pipeline.close()
        for each in (client, *self._others):
            await _discard(each)

    def _open(self) -> Redis:
        if self._client is None:
            raise over(self.target)
        return self._client

    # ---- the stream ----

    @property
    def _key(self) -> str:
        return self.target.stream

    @property
    def _at(self) -> str:
        return f"{{{self.target.stream}}}:at"

    @property
    def largest(self) -> int:
        """The largest body that a record may have, bytes."""
        return LARGEST

    async def info(self) -> StreamInfo:
        """Look at the stream again."""
        client = self._open()
        about = await self._ask(client.info("server"))
        created, size = await self._ask(client.hmget(self._at, ["created", "bytes"]))
        kind = _text(await self._ask(client.type(self._key)))
        if kind not in ("none", "stream") or (kind == "stream" and created is None):
            what = f"a {kind}" if kind != "stream" else "a stream of someone else"
            raise Unfit(f"{self.target}: the key is {what}: a feed needs a key of its own")
        if created is None:
            raise no_stream(self.target)
        if size is None and kind == "stream":  # another writer's; some entries are looked at
            size = await self._ask(client.memory_usage(self._key))
        return StreamInfo(
            engine=f"Redis {about['redis_version']}",
            name=self._key,
            created=_text(created),
            records=await self._ask(client.xlen(self._key)),
            bytes=_number(size),
        )

    async def last(self) -> Tail:
        """Return where the stream ends, as `{key}:at` says."""
        client = self._open()
        if self._pipeline is not None:
            # Its connection is silent as long as the source is; Redis may end one that is.
            await (await self._pipeline.send("PING"))
        names = ["stream", "server", "source", "stored"]
        stream, server, source, stored = await self._ask(client.hmget(self._at, names))
        if stream is None:
            await self.info()  # raises if the key is not ours
            return Tail(None, Mark(0))
        try:
            position = Position(int(stream), int(server), int(source))
            return Tail(position, _mark(position), float(stored or 0) or None)
        except (TypeError, ValueError):
            found = f"{_text(stream)!r}, {_text(server or b'')!r}, {_text(source or b'')!r}"
            raise Unfit(f"{self.target}: {self._at} has {found} for its three numbers") from None

    # ---- appending ----

    async def append(self, previous: Mark, record: Record) -> Future[None]:
        """Send a record off; see `Engine.append`."""
        self._appends = True
        if self._pipeline is None:
            client = await self._another()
            self._pipeline = _Pipeline(str(self.target), client, self.patience)
        end = record.end
        expected = f"{previous.number} {previous.name}".rstrip()
        words: list[bytes | str | int] = [expected, *end, self._most]
        for name, value in record.headers().items():
            words += (name, value)
        words += ("Body", record.body)
        return await self._pipeline.send("EVALSHA", self._script, 2, self._key, self._at, *words)

    def after(self, previous: Mark, record: Record) -> Mark:  # noqa: ARG002
        """Return where a record ends, in the stream and at its source."""
        return _mark(record.end)

    # ---- reading ----

    async def read(self, start: int) -> AsyncIterator[Record | Unreadable]:
        """Read records, and wait for more; see `Engine.read`."""
        client, created = await self._another(), (await self.info()).created
        first = f"{max(0, start)}-0"
        most = self._fitting(0, 0)
        found = await self._paced(client.xrange(self._key, first, count=most), most)
        end: float = _number(await self._ask(client.hget(self._at, "stream")))
        at: bytes | str = f"{max(0, start - 1)}-18446744073709551615"
        assert client.connection is not None
        while True:
            at = found[-1][0] if found else at
            size = sum(len(fields.get(b"Body", b"")) for _, fields in found)
            most = self._fitting(len(found), size)
            # Redis answers while what is here is used.
            await self._ask(self._ask_for_more(client.connection, at, most))
            for number, fields in found:
                yield _record(number, fields) if _stream_id(number) <= end else _foreign(number)
            end = inf  # what comes from here on is compared with its own answer
            found = []  # a long wait may follow
            found = await self._paced(self._more(client.connection, created, at), most)

    async def _ask_for_more(self, connection: _Connection, at: bytes | str, most: int) -> None:
        # That it is the same stream is asked behind what was read: one that was made anew may have
        # lower ids, which the read would wait behind.
        words = ("COUNT", most, "BLOCK", BLOCK, "STREAMS", self._key, at)
        commands = [("XREAD", *words), ("HMGET", self._at, "created", "stream")]
        await connection.send_packed_command(connection.pack_commands(commands), False)

    async def _more(self, connection: _Connection, created: str, at: bytes | str) -> list[_Entry]:
        answer = await connection.read_response()
        now, stream = await connection.read_response()
        self._check_same(created, at, now, stream)
        entries = answer[0][1] if answer else []
        return [
            (number, dict(zip(words[::2], words[1::2], strict=True))) for number, words in entries
        ]

    async def _paced(self, call: Any, count: int) -> Any:
        # The client has one limit for a whole answer, however much of it comes meanwhile. So what
        # is too much for a link is asked for in smaller parts; and one record gets longer.
        begin = time.monotonic()
        try:
            found = await call
        except (errors.RedisError, OSError) as failure:
            error = _failure(str(self.target), failure, self.patience)
            if error.state == NO_ANSWER and count == 1:
                self.patience.more()
            elif error.state == NO_ANSWER:
                self._share = max(1, self._share // 4)
            raise error from None
        if time.monotonic() - begin < TIMEOUT / 4:
            self._share = min(READ_BYTES, 2 * self._share)
            self.patience.reset()
        return found

    def _fitting(self, count: int, size: int) -> int:
        # How many records to ask for: `count` records had `size` bytes, and an answer has a share.
        fewest = FEWEST if self._share == READ_BYTES else 1
        return min(MOST, max(fewest, self._share * count // (size + 1)))

    def _check_same(
        self, created: str, at: bytes | str, now: bytes | None, stream: bytes | None
    ) -> None:
        if _text(now or b"") != created:
            raise EngineError(f"{self.target}: the stream is another one now", "another stream")
        if _number(stream) < _stream_id(at):
            words = f"the stream went back, or entry {_text(at)} is none of a bridge"
            raise EngineError(f"{self.target}: {words}: XDEL removes it", "went back")

    async def back(self, size: int) -> int:
        """Return where the last `size` bytes begin; Redis adds up the bodies, and sends none."""
        client, end, most, first = self._open(), "+", FEWEST, 0
        while size > 0:
            entries, held, oldest = await self._ask(
                client.eval(BACK, 1, self._key, end, most, size)
            )
            if not entries:
                return 0
            size -= held
            first, end = _stream_id(oldest), f"({_text(oldest)}"
            most = min(MOST, max(FEWEST, READ_BYTES * entries // (held + 1)))
        return first

    async def around(self, stream: int) -> Record | None:
        """Return the record that has this stream id, or else the next one."""
        first = f"{stream}-0"
        while found := await self._ask(self._open().xrange(self._key, first, count=1)):
            record = _record(*found[0])
            if isinstance(record, Record):
                return record
            first = "(" + found[0][0].decode()
        return None


class _Pipeline:
    """Commands that are sent before those before them are answered.

    Args:
        where: what errors name.
        client: one whose connection nobody else uses.
        patience: how long an answer may take.
    """

    def __init__(self, where: str, client: Redis, patience: Patience) -> None:
        assert client.connection is not None
        self._where = where
        self._patience = patience
        self._connection = client.connection
        self._waiting: deque[Future[None]] = deque()
        self._sent = asyncio.Event()
        self._ended: EngineError | None = None
        self._answers = asyncio.create_task(self._read())

    async def send(self, *words: bytes | str | int) -> Future[None]:
        """Send a command; what is returned is done once it is answered."""
        if self._ended is not None:
            raise self._ended
        connection = self._connection
        future: Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._sent.set()
        try:
            await connection.send_packed_command(connection.pack_command(*words), False)
        except Exception as error:  # the client's own, too, where the connection ends meanwhile
            ended = self._end(_failure(self._where, error, self._patience))
            future.exception()  # raised here
            raise ended from None
        except BaseException:
            future.cancel()  # whose answer may still come
            raise
        return future

    async def _read(self) -> None:
        try:
            while True:
                while not self._waiting:
                    self._sent.clear()
                    await self._sent.wait()
                error: EngineError | None = None
                try:
                    await self._connection.read_response()
                except errors.ResponseError as failure:
                    error = _failure(self._where, failure)
                future = self._waiting.popleft()
                if not future.done():
                    future.set_exception(error) if error else future.set_result(None)
        except (errors.RedisError, OSError) as failure:
            self._end(_failure(self._where, failure, self._patience))

    def _end(self, error: EngineError) -> EngineError:
        ended = self._ended = self._ended or error
        for future in self._waiting:
            if not future.done():
                future.set_exception(ended)
        self._waiting.clear()
        return ended

    async def close(self) -> None:
        """Read no more answers; commands without one fail."""
        self._answers.cancel()
        await asyncio.gather(self._answers, return_exceptions=True)
        self._end(over(self._where))


async def _discard(client: Redis) -> None:
    with suppress(Exception):
        async with asyncio.timeout(1):
            await client.aclose()


def _mark(end: Position) -> Mark:
    return Mark(end.stream, f"{end.server} {end.source}")


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _number(value: bytes | int | None) -> int:
    try:
        return int(value or 0)
    except ValueError:
        return 0


def _stream_id(number: bytes | str) -> int:
    return int(_text(number).partition("-")[0])


def _foreign(number: bytes) -> Unreadable:
    # The script writes an entry and the position together.
    words = (
        f"entry {_text(number)} is behind the stream's end, so none of a bridge: XDEL removes it"
    )
    return Unreadable(words, 0, _stream_id(number))


def _record(number: bytes, fields: dict[bytes, bytes]) -> Record | Unreadable:
    last = _stream_id(number)
    body = fields.get(b"Body", b"")
    headers = {_text(name): _text(value) for name, value in fields.items() if name != b"Body"}
    try:
        record = Record.parse(headers, body)
    except Unreadable as error:
        return error if error.last == last else Unreadable(str(error), 0, last)
    if record.last != last:
        return Unreadable(f"an entry {last} with a record that ends at {record.last}", 0, last)
    return record


def _failure(where: str, error: BaseException, patience: Patience | None = None) -> EngineError:
    words = str(error) or type(error).__name__
    if isinstance(error, EngineError):
        return error
    if words.startswith("CONFLICT"):
        return Conflict(f"{where}: {words.partition(' ')[2].partition(' script:')[0]}")
    if isinstance(
        error, errors.AuthenticationError | errors.AuthorizationError
    ) or words.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
        return not_allowed(where, words)
    if isinstance(error, errors.OutOfMemoryError) or words.startswith("OOM"):
        return EngineError(f"{where}: {words}", "full")
    if "equal or smaller" in words or "exhausted" in words:
        return Unfit(
            f"{where}: behind the last record is, or was, an entry that is none of a bridge: "
            "remove it (XDEL), and set the last id back to that of the last record (XSETID)"
        )
    if words.startswith("READONLY"):
        return EngineError(f"{where}: {words}", "replica")
    if "WRONGTYPE" in words:
        return Unfit(f"{where}: {words}")
    if isinstance(error, errors.TimeoutError | TimeoutError):
        if patience is not None:
            return no_answer(where, patience.seconds, patience.words)
        return no_answer(where, TIMEOUT)
    if "SSL" in words or "certificate" in words.lower():
        return tls_failed(where, words)
    if isinstance(error, errors.ConnectionError | OSError):
        return unreachable(where, words)
    return EngineError(f"{where}: {words}", "refuses")
