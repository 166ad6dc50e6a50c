# SPDX-License-Identifier: Apache-2.0
"""One module a rival, all with the same few names; and the contestants, which are set-ups of them.

Each module has `publisher(path, work, **options)` and `subscriber(path, work, **options)`; their
values are the two protocols below. `path` is a socket file that does not exist yet, in a folder of
its own; `work` says what is going to be done. Whoever adds one sets it up as its own documents
recommend for this job: local, and nothing lost where the rival can promise that.
"""

import importlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from bench.work import Work, cycle_length


class Publisher(Protocol):
    """The publishing end. It listens once it is made."""

    @property
    def send(self) -> Callable[[bytes], object]:
        """Publish one message; as plain a callable as the rival has."""

    @property
    def send_each(self) -> Callable[[Sequence[bytes]], object]:
        """Publish messages one by one, as a user's loop would."""

    @property
    def send_many(self) -> Callable[[Sequence[bytes]], object]:
        """Publish a batch: by the rival's own call for that, or one by one."""

    @property
    def processes(self) -> Sequence[int]:
        """What else works for this end: a broker's process id."""

    def ready(self, clients: int) -> None:
        """Return once that many subscribers will get all that is published from now on."""

    def close(self) -> None:
        """Close, once all subscribers are through."""


class Subscriber(Protocol):
    """The receiving end. It will get all that is published once it and `ready` have returned."""

    def messages(self) -> Iterator[bytes]:
        """Message by message, as a user's loop would; ends when nothing comes any more."""

    def batches(self) -> Iterator[Sequence[bytes]]:
        """The same, as many at a time as the rival gives."""

    def close(self) -> None:
        """Close."""


@runtime_checkable
class LoopSubscriber(Protocol):
    """A receiving end in an event loop, which no caller from outside may hold up."""

    def drive(self, work: Work, take: Callable[[Sequence[bytes]], bool]) -> None:
        """Give `take` what comes, until it returns True or nothing comes any more."""

    def close(self) -> None:
        """Close."""


class Adapter(Protocol):
    """What each module here has."""

    def publisher(self, path: str, work: Work, **options: object) -> Publisher:
        """Make the publishing end."""

    def subscriber(self, path: str, work: Work, **options: object) -> Subscriber | LoopSubscriber:
        """Make a receiving end."""


class OneByOne:
    """A publisher whose rival knows single messages only, and no other process."""

    send: Callable[[bytes], object]
    processes: Sequence[int] = ()

    def send_each(self, messages: Sequence[bytes]) -> None:
        send = self.send
        for message in messages:
            send(message)

    def send_many(self, messages: Sequence[bytes]) -> None:
        self.send_each(messages)


SILENCE = 1.0
"""Seconds without a message after which a subscriber takes the rest for lost."""

CONNECT = 20.0
"""Seconds for all subscribers to connect."""

CHUNK = 256
"""Messages in a batch at most, where the rival itself gives them one by one."""


@dataclass(frozen=True)
class Contestant:
    """One set-up of a rival, or of jumiks.

    Args:
        module: the adapter, or `floor` for the C program.
        imports: the package that the adapter imports, and the name to install it by.
        program: the program that it starts, and the name to install it by.
        keeps: about what it delivers, messages and bytes a second, if much of what it is given
            waits in memory: it is then given what it can deliver in the time of a run.
        publisher: options of the publishing end.
        subscriber: options of the receiving end.
        words: the C program's mode, and the size of its log in MiB if that is not 16.
        core: the commit whose core the C program has; empty for today's.
        apart: it takes part in few comparisons, which name it.
    """

    module: str
    imports: tuple[str, str] | None = None
    program: tuple[str, str] | None = None
    keeps: tuple[float, float] | None = None
    publisher: Mapping[str, object] = field(default_factory=dict)
    subscriber: Mapping[str, object] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    core: str = ""
    apart: bool = False

    def most(self, work: Work) -> int:
        """How many messages to publish at most."""
        if self.keeps is None:
            return sys.maxsize
        messages, size = self.keeps
        return int(work.seconds / (1 / messages + work.size / size) / work.clients)


def _floor(*words: str, core: str = "") -> Contestant:
    return Contestant("floor", program=("cc", "gcc"), words=words, core=core)


def _at_once(how: str, **options: object) -> Contestant:
    option = {"at_once": how}
    return Contestant(
        "jumiks", ("numpy", "numpy"), publisher={**option, **options}, subscriber=option
    )


BEFORE = "df40dea"
"""The commit whose core today's is compared with."""

LOG_SIZES = (1, 2, 4, 8, 16)
"""MiB: the sizes of the log that are compared."""


def _log(size: int) -> Contestant:
    return Contestant("jumiks", publisher={"log_size": size << 20})


_REDIS = ("redis", "redis[hiredis]")

CONTESTANTS = {
    "jumiks": Contestant("jumiks"),
    "jumiks-framed": Contestant("jumiks", publisher={"share_log": False}),
    "jumiks-spin": Contestant("jumiks", subscriber={"spin": 0.002}),
    "jumiks-classic": Contestant("jumiks", keeps=(5e5, 3e9), subscriber={"delivery": "classic"}),
    "jumiks-views": Contestant("jumiks", subscriber={"views": True}),
    "jumiks-reserve-views": Contestant(
        "jumiks", publisher={"reserve": True}, subscriber={"views": True}
    ),
    "jumiks-publish-views": Contestant(
        "jumiks", publisher={"singly": True}, subscriber={"views": True}
    ),
    "jumiks-arrays": _at_once("arrays"),
    "jumiks-frames": _at_once("frames"),
    "jumiks-arrays-log-4M": _at_once("arrays", log_size=4 << 20),
    **{f"jumiks-log-{size}M": _log(size) for size in LOG_SIZES},
    "jumiks-asyncio": Contestant("jumiks", subscriber={"loop": "asyncio"}),
    "jumiks-uvloop": Contestant("jumiks", ("uvloop", "uvloop"), subscriber={"loop": "uvloop"}),
    "pyzmq": Contestant("pyzmq", ("zmq", "pyzmq"), keeps=(3e6, 2e9)),
    "pynng": Contestant("pynng", ("pynng", "pynng")),
    "zenoh": Contestant("zenoh", ("zenoh", "eclipse-zenoh")),
    "iceoryx2": Contestant("iceoryx2", ("iceoryx2", "iceoryx2")),
    "iceoryx2-views": Contestant("iceoryx2", ("iceoryx2", "iceoryx2"), subscriber={"views": True}),
    "redis": Contestant("redis", _REDIS, ("redis-server", "redis-server"), keeps=(1.5e5, 4e8)),
    "nats": Contestant(
        "nats", ("nats", "nats-py"), ("nats-server", "nats-server"), keeps=(3e5, 6e8)
    ),
    "kickmsg": Contestant("kickmsg", ("kickmsg", "kickmsg"), keeps=(2e6, 1e9), apart=True),
    "subetha": Contestant("subetha", ("subetha", "subetha-ipc"), apart=True),
    "mp-connection": Contestant("mp_connection"),
    "socket": Contestant("seqpacket"),
    "c-send": _floor("send"),
    "c-acked": _floor("acked"),
    "c-sendmmsg": _floor("mmsg"),
    "c-packets": _floor("packets"),
    "c-memcpy": _floor("memcpy"),
    "core-classic": _floor("classic"),
    "core-classic-many": _floor("classic-many"),
    "core-framed": _floor("framed-many"),
    "core-shared": _floor("shared-many"),
    **{f"core-shared-log-{size}M": _floor("shared-many", str(size)) for size in LOG_SIZES},
    f"core-shared-of-{BEFORE}": _floor("shared-many", core=BEFORE),
}
"""All there are. One that differs by an option only is one line."""

OURS = tuple(name for name in CONTESTANTS if name.startswith(("jumiks", "core-")))
RIVALS = tuple(
    name
    for name, each in CONTESTANTS.items()
    if name not in OURS and each.module != "floor" and not each.subscriber
)


def load(module: str) -> Adapter:
    """The adapter's module."""
    return cast("Adapter", importlib.import_module(f"bench.adapters.{module}"))


def missing(name: str) -> str | None:
    """How to get what this contestant lacks; None if it lacks nothing."""
    each = CONTESTANTS[name]
    if each.imports and importlib.util.find_spec(each.imports[0]) is None:
        return f"{name} was left out: pip install '{each.imports[1]}'"
    if each.program and shutil.which(each.program[0]) is None:
        return f"{name} was left out: apt-get install {each.program[1]}"
    if each.core and not has_commit(each.core):
        return f"{name} was left out: this is no git checkout with the commit {each.core}"
    return None


def has_commit(commit: str) -> bool:
    """Whether this is a checkout that has it, so that its core can be built."""
    words = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    if shutil.which("git") is None:
        return False
    folder = Path(__file__).parent
    return subprocess.run(words, cwd=folder, stderr=subprocess.DEVNULL).returncode == 0


def in_chunks(messages: Iterator[bytes], work: Work) -> Iterator[list[bytes]]:
    """Batches, for a rival that has none; all that is published is a multiple of them."""
    most = min(CHUNK, cycle_length(work.size))
    while chunk := list(islice(messages, most)):
        yield chunk
