# SPDX-License-Identifier: Apache-2.0
"""One module a rival, all with the same few names.

Each module has `publisher(path)` and `subscriber(path, largest)`; their values are the two
protocols below. `path` is a socket file that does not exist yet; `largest` is the size of the
largest message, bytes. Whoever adds one sets it up as its own documents recommend for this job:
local, and nothing lost.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol, cast


class Publisher(Protocol):
    """The publishing end. It listens once it is made."""

    @property
    def send(self) -> Callable[[bytes], object]:
        """Publish one message; as plain a callable as the rival has."""

    @property
    def send_many(self) -> Callable[[Sequence[bytes]], object]:
        """Publish a batch: by the rival's own call for that, or one by one."""

    def ready(self, clients: int) -> None:
        """Return once that many subscribers will get all that is published from now on."""

    def close(self) -> None:
        """Close, once all subscribers are through."""


class Subscriber(Protocol):
    """The receiving end. It is connected once it is made."""

    def messages(self) -> Iterator[bytes]:
        """Message by message, as a user's loop would; ends when nothing comes any more."""

    def batches(self) -> Iterator[Sequence[bytes]]:
        """The same, as many at a time as the rival gives."""

    def close(self) -> None:
        """Close."""


class Adapter(Protocol):
    """What each module here has."""

    def publisher(self, path: str) -> Publisher:
        """Make the publishing end."""

    def subscriber(self, path: str, largest: int) -> Subscriber:
        """Make a receiving end."""


SILENCE = 3.0
"""Seconds without a message after which a subscriber takes the rest for lost."""

CONNECT = 30.0
"""Seconds for all subscribers to connect."""

CHUNK = 256
"""Messages in a batch, where the rival itself gives them one by one."""

PACKAGES = {"pyzmq": ("zmq", "pyzmq")}
"""What an adapter imports, and the distribution that has it."""


def load(name: str) -> Adapter:
    """The adapter's module."""
    return cast("Adapter", importlib.import_module(f"bench.adapters.{name}"))


def missing(name: str) -> str | None:
    """How to get what this adapter lacks; None if it lacks nothing."""
    module, package = PACKAGES.get(name, ("bench", ""))
    if importlib.util.find_spec(module):
        return None
    return f"{name} is not installed: pip install {package}"


def in_chunks(messages: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Batches, for a rival that has none."""
    while chunk := list(islice(messages, CHUNK)):
        yield chunk
