# SPDX-License-Identifier: Apache-2.0
"""What a bridge needs of an engine. A new engine is one file with one class, and a row here.

An engine keeps one stream of records and can compare before it appends. All its methods are called
from one event loop. It never connects again by itself: whatever goes wrong is an `EngineError`, and
the bridge then opens it anew.
"""

from __future__ import annotations

import os
import re
import ssl
from abc import ABC, abstractmethod
from asyncio import Future
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Final, NamedTuple
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from .errors import no_file, no_key, no_pem, not_installed
from .record import Position, Record, Unreadable

__all__ = ["Create", "Credentials", "Engine", "StreamInfo"]

PASSWORD: Final = "JUMIKS_BRIDGE_PASSWORD"
"""The environment variable that has the password, if no file has it."""

LEAST: Final = 5.0
MOST: Final = 320.0
"""Seconds that a record may be on its way: at first, and at most."""

_SEED: Final = re.compile("^SU[A-Z2-7]{56}$", re.MULTILINE)
_TOKEN: Final = "BEGIN NATS USER JWT"


@dataclass(frozen=True, slots=True)
class Create:
    """How to make a stream that is not there.

    Args:
        max_bytes: bytes that it keeps, the oldest go first; 0 is no limit.
        replicas: copies in a cluster.
    """

    max_bytes: int = 0
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to log in. Nothing of it is ever printed.

    Args:
        creds: path of a file with a JWT and its seed (NATS).
        nkey: path of a file with an nkey seed (NATS).
        tls_ca: path of the certificates to trust; by default those of the system.
        tls_cert: path of a certificate for this end.
        tls_key: path of its key.
        password_file: path of a file whose first line is the password. By default the environment
            variable JUMIKS_BRIDGE_PASSWORD has it. The user's name stands in the URL.

    Raises:
        ValueError: there are both creds and nkey, or a tls_key without its tls_cert.
    """

    creds: str | None = None
    nkey: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    password_file: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would silently do nothing."""
        if self.creds is not None and self.nkey is not None:
            raise ValueError("creds and nkey are two ways to log in: leave one of them out")
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key is the key of a certificate: give tls_cert too")

    @property
    def password(self) -> str | None:
        """The password, read anew each time, so that it may change."""
        if self.password_file is None:
            return os.environ.get(PASSWORD)
        return _read(self.password_file, "not allowed").partition("\n")[0]

    def check_keys(self) -> None:
        """Look into the files of NATS, whose client does not say what is wrong with one.

        Raises:
            EngineError: one cannot be read, or has no key.
        """
        for path in filter(None, (self.creds, self.nkey)):
            text = _read(path, "not allowed")
            if not _SEED.search(text) or (path == self.creds and _TOKEN not in text):
                raise no_key(path, path == self.creds)

    @property
    def asks_for_tls(self) -> bool:
        """Whether an option makes sense with TLS alone."""
        return any((self.tls_ca, self.tls_cert, self.tls_key))

    def context(self) -> ssl.SSLContext:
        """Return what verifies the other end; that cannot be switched off.

        Raises:
            EngineError: a file cannot be read, or has no certificate, or no key.
        """
        files = [path for path in (self.tls_ca, self.tls_cert, self.tls_key) if path]
        for path in files:
            _read(path, "tls")
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except ssl.SSLError as error:
            raise no_pem(files, error.reason) from None
        return context


def _read(path: str, state: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError as error:
        raise no_file(path, error.strerror or str(error), state) from None


@dataclass(frozen=True, slots=True)
class Target:
    """A stream's URL, in parts."""

    scheme: str
    hosts: tuple[tuple[str, int | None], ...]
    user: str | None
    stream: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Target:
        """Take a URL apart.

        Raises:
            ValueError: it is none of an engine, or it has a password.
        """
        parts = urlsplit(url)
        if parts.scheme not in ENGINES:
            known = ", ".join(f"{scheme}://" for scheme in ENGINES)
            raise ValueError(f"{_redacted(parts)!r}: an engine's URL begins with one of {known}")
        user, at, hosts = parts.netloc.rpartition("@")
        if ":" in user:
            raise ValueError(
                f"{_redacted(parts)!r} has a password, which other users can see in the list of "
                f"processes: put it into a file for --password-file, or into ${PASSWORD}"
            )
        stream = unquote(parts.path.removeprefix("/"))
        if not stream or "/" in stream or not hosts:
            raise ValueError(
                f"{_redacted(parts)!r}: it must name one stream, as in "
                f"{parts.scheme}://host/{'ticks' if 'redis' in parts.scheme else 'TICKS'}"
            )
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        found = tuple(_host(each) for each in hosts.split(","))
        return cls(parts.scheme, found, unquote(user) if at else None, stream, options)

    def __str__(self) -> str:
        hosts = ",".join(
            (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
            for host, port in self.hosts
        )
        return f"{self.scheme}://{hosts}/{self.stream}"


def _host(text: str) -> tuple[str, int | None]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r}: it must be a host, or host:port")
    return parts.hostname, parts.port


def _redacted(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


class Mark(NamedTuple):
    """What an append expects the stream to end with; what it means is the engine's own business.

    Records are in flight, each with the mark behind the one before. So a mark must tell records of
    this connection from those of any other: a number that counts records is not enough. The record
    behind one that was refused would be stored if another bridge was just as far.

    Args:
        number: where the stream ends.
        name: of the record there; "" if it has none.
    """

    number: int
    name: str = ""


class Tail(NamedTuple):
    """Where a stream ends.

    Args:
        position: what its last record says; None if it has no record.
        mark: what the next append expects.
        stored: when the last record was stored, seconds since 1970, as far as that is known.
    """

    position: Position | None
    mark: Mark
    stored: float | None = None


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What is known of a stream.

    Args:
        engine: the engine's name and version.
        name: the stream's.
        created: when it was made, as the engine writes it; another stream of that name has another.
        records: how many it has.
        bytes: what they take.
        keep_seconds: after how many seconds a record may go; None if never.
    """

    engine: str
    name: str
    created: str
    records: int
    bytes: int
    keep_seconds: float | None = None


class Patience:
    """How long the other end may be silent while a record is on its way.

    A link may need longer for one record. So the time doubles while no record gets through, as long
    as the other end still lets this end connect.
    """

    def __init__(self) -> None:
        self.seconds: float = LEAST

    def more(self) -> None:
        """Double it, up to `MOST`: nothing came in time."""
        self.seconds = min(2 * self.seconds, MOST)

    def reset(self) -> None:
        """Begin with the shortest again: nothing is on its way."""
        self.seconds = LEAST

    @property
    def words(self) -> str:
        """What an error adds once there is no longer time."""
        most = f"; no record gets longer than {MOST:g} s: is the link too slow for its size?"
        return most if self.seconds >= MOST else ""


class Engine(ABC):
    """One stream of one engine.

    Args:
        target: where it is.
        credentials: how to log in.
        subject: the subject of its records, in an engine that has subjects.
    """

    extra: ClassVar[str]
    """The extra of this package that installs the engine's client."""

    pack: ClassVar[int] = 128 << 10
    """Bytes of a record that suit the engine."""

    in_url: ClassVar[tuple[str, ...]] = ()
    """Options that may stand in its URL."""

    def __init__(self, target: Target, credentials: Credentials, subject: str | None) -> None:
        self.target = target
        self.credentials = credentials
        self.subject: str | None = subject
        self.patience: Patience = Patience()
        """For records alone; connecting, and all other requests, have a time of their own."""
        for name in target.options:
            if name not in self.in_url:
                known = f": it may have {', '.join(self.in_url)}" if self.in_url else ""
                raise ValueError(f"{target}: a URL of this engine has no option {name!r}{known}")
        self.check(None)

    def check(self, create: Create | None) -> None:  # noqa: B027
        """Check what was asked for, as far as that takes no connection.

        Args:
            create: how to make the stream; None does not.

        Raises:
            ValueError: the engine has no such thing, or takes no such name.
        """

    @abstractmethod
    async def open(self, create: Create | None = None) -> StreamInfo:
        """Connect, and look at the stream.

        Args:
            create: how to make the stream if it is not there; None does not.

        Raises:
            Unfit: it is not there, or is not for a bridge.
            EngineError: the engine cannot be reached, or does not let this end in.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connection; appends that are not answered fail. May be repeated."""

    @property
    @abstractmethod
    def largest(self) -> int:
        """The largest body that a record may have, bytes."""

    @abstractmethod
    async def info(self) -> StreamInfo:
        """Look at the stream again."""

    @abstractmethod
    async def last(self) -> Tail:
        """Return where the stream ends, from the one place that decides.

        Raises:
            Unfit: its last record is none of a bridge.
        """

    @abstractmethod
    async def append(self, previous: Mark, record: Record) -> Future[None]:
        """Send a record off, to be stored if the stream still ends at `previous`.

        Returns once the record is on its way. What is returned is done once the engine has stored
        the record; or it fails, with `Conflict` if the stream ends elsewhere.
        """

    @abstractmethod
    def after(self, previous: Mark, record: Record) -> Mark:
        """Return what the append behind this one expects."""

    @abstractmethod
    def read(self, start: int) -> AsyncIterator[Record | Unreadable]:
        """Read records, and wait for more, for ever.

        Args:
            start: begin at or before the record with this stream id, or at the oldest.

        Raises:
            EngineError: the connection ended, or the stream is another one or went back.
        """

    @abstractmethod
    async def back(self, size: int) -> int:
        """Return a stream id from which on about `size` bytes of records are kept; 0: all."""

    @abstractmethod
    async def around(self, stream: int) -> Record | None:
        """Return the record that has this stream id, or else the next one; None: there is none."""


class _Known(NamedTuple):
    module: str
    name: str
    client: str
    extra: str


ENGINES: Final = {
    "nats": _Known("jetstream", "JetStream", "nats", "nats"),
    "tls": _Known("jetstream", "JetStream", "nats", "nats"),
    "redis": _Known("redis_streams", "RedisStreams", "redis", "redis"),
    "rediss": _Known("redis_streams", "RedisStreams", "redis", "redis"),
}
"""The engine of each scheme of a URL."""


def make_engine(
    url: str, credentials: Credentials | None = None, subject: str | None = None
) -> Engine:
    """Make the engine that a URL names; it is not connected yet.

    Raises:
        ValueError: no engine has such URLs.
        JumiksError: the engine's client is not installed.
    """
    target = Target.parse(url)
    known = ENGINES[target.scheme]
    try:
        import_module(known.client)
    except ImportError as error:
        raise not_installed(target.scheme, known.extra) from error
    kind = getattr(import_module(f".{known.module}", __package__), known.name)
    engine: Engine = kind(target, credentials or Credentials(), subject)
    return engine
