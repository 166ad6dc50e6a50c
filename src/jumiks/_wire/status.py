# SPDX-License-Identifier: Apache-2.0
"""The packets of a MONITOR connection, and the status in them (docs/protocol.md, "Status")."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

from .. import errors
from .._gap import Gap
from .._peer import Peer
from ..errors import ProtocolError, printable
from ..stats import ClientInfo, ServerStats
from .handshake import NAME_SIZE

__all__ = ["ServerStatus"]

_SPARSE: Final = 16
"""At most one byte in this many may open a list or an object, which take time and memory."""

_MOST_NUMBER: Final = (1 << 64) - 1

HEADER: Final = struct.Struct("<HHI")
STATUS: Final = 1
MORE: Final = 1
UNKNOWN: Final = 2


def request(number: int) -> bytes:
    """Return the packet that asks for the status."""
    return HEADER.pack(STATUS, 0, number)


def answers(number: int, body: bytes, size: int) -> Iterator[bytes]:
    """Yield the packets of an answer, each of at most `size` bytes."""
    step = size - HEADER.size
    for begin in range(0, len(body), step):
        flags = MORE if begin + step < len(body) else 0
        yield HEADER.pack(STATUS, flags, number) + body[begin : begin + step]


PLAIN: Final = tuple(
    each.name
    for each in fields(ClientInfo)
    if each.name not in ("peer", "reason", "limit", "limit_kind", "lost", "error")
)


def as_json(
    about: Mapping[str, object], stats: ServerStats, clients: Sequence[ClientInfo], monitors: int
) -> Iterator[str]:
    """Yield a status as JSON, in parts, so that no step takes long."""
    figures = {each.name: getattr(stats, each.name) for each in fields(ServerStats)}
    head = {**about, "now": time.monotonic(), "monitors": monitors, "stats": figures}
    yield json.dumps(head)[:-1] + ', "clients": ['
    for index, info in enumerate(clients):
        one: dict[str, object] = {name: getattr(info, name) for name in PLAIN}
        one |= {"pid": info.peer.pid, "uid": info.peer.uid, "gid": info.peer.gid}
        one |= {"command": info.command, "name": info.name}
        one["lost"] = [info.lost.first, info.lost.last] if info.lost else None
        yield (", " if index else "") + json.dumps(one)
    yield "]}"


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A server's status. Its own figures and its clients' are taken one after the other.

    Args:
        address: its address, as its user wrote it.
        pid: its process id as the kernel shows it here; 0 if it is not in our pid namespace.
        server_id: its random number, new each time a server starts.
        max_lag: messages a client may be behind; 0 is no limit.
        on_lag: its lag policy: `"disconnect"`, `"block"` or `"skip"`.
        now: when it answered, seconds on the clock of `time.monotonic`.
        started: when it started, seconds on that clock.
        monitors: monitors connected now, this one included.
        stats: its figures.
        clients: its clients, each with its figures.
        raw: the JSON as it came; a later version of the server may say more in it.
    """

    address: str
    pid: int
    server_id: int
    max_lag: int
    on_lag: str
    now: float
    started: float
    monitors: int
    stats: ServerStats
    clients: tuple[ClientInfo, ...]
    raw: str


def parse_status(text: str) -> ServerStatus:
    """Read an answer. A name that is not known is ignored; one that is not there is 0, "" or empty.

    Raises:
        ProtocolError: it is no status.
    """
    if text.count("[") + text.count("{") > len(text) / _SPARSE + 100:
        raise ProtocolError(errors.BAD_STATUS.format(why=errors.MANY_PARTS))
    try:
        found = json.loads(text)
        figures = found.get("stats", {})
        return ServerStatus(
            address=_word(found.get("address")),
            pid=_number(found, "pid"),
            server_id=_number(found, "server_id"),
            max_lag=_number(found, "max_lag"),
            on_lag=_word(found.get("on_lag")),
            now=_moment(found, "now"),
            started=_moment(found, "started"),
            monitors=_number(found, "monitors"),
            stats=ServerStats(
                **{each.name: _number(figures, each.name) for each in fields(ServerStats)}
            ),
            clients=tuple(_client(each) for each in found.get("clients", ())),
            raw=text,
        )
    except (
        ArithmeticError,
        AttributeError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ProtocolError(errors.BAD_STATUS.format(why=f"{error!r:.200}")) from error


def _word(value: object) -> str:
    # It goes to terminals, and comes from a server that may be anybody's.
    return printable(str(value or ""))


def _short_word(value: object) -> str:
    return _word(value)[:NAME_SIZE]


def _number(found: Mapping[str, object], name: str) -> int:
    value = found.get(name, 0)
    if not isinstance(value, int) or not 0 <= value <= _MOST_NUMBER:
        raise TypeError(f"{name} is {value!r:.50}")
    return value


def _moment(found: Mapping[str, object], name: str) -> float:
    value = found.get(name, 0.0)
    if not isinstance(value, int | float) or not 0 <= value <= _MOST_NUMBER:
        raise TypeError(f"{name} is {value!r:.50}")
    return float(value)


def _gap(lost: object) -> Gap | None:
    if not isinstance(lost, list):
        return None
    first, last = lost
    ends = {"first": first, "last": last}
    return Gap(_number(ends, "first"), _number(ends, "last"))


def _client(found: Mapping[str, object]) -> ClientInfo:
    names = [name for name in PLAIN if name not in ("delivery", "since", "last_ack")]
    figures = {name: _number(found, name) for name in names}
    pid, uid, gid = (_number(found, name) for name in ("pid", "uid", "gid"))
    return ClientInfo(
        peer=Peer(
            pid,
            uid,
            gid,
            command=_short_word(found.get("command")),
            name=_short_word(found.get("name")),
        ),
        delivery=_word(found.get("delivery")),
        since=_moment(found, "since"),
        last_ack=None if found.get("last_ack") is None else _moment(found, "last_ack"),
        reason=None,
        limit=0,
        limit_kind="",
        lost=_gap(found.get("lost")),
        error="",
        **figures,
    )
