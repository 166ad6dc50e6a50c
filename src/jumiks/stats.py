# SPDX-License-Identifier: Apache-2.0
"""Figures: what a server knows of itself and of each client, as plain values."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from ._native import lib
from .access import Peer

if TYPE_CHECKING:
    from ._core import Account, Stats

__all__ = ["ClientInfo", "EndReason", "Gap", "GapReason", "ServerStats"]


class EndReason(enum.Enum):
    """Why a connection ended, as the server saw it."""

    LAGGED = lib.JMK_R_LAGGED
    """The lag policy cut it."""
    CLOSING = lib.JMK_R_CLOSING
    """The server closed."""
    PROTOCOL = lib.JMK_R_PROTOCOL
    """The client broke the protocol."""
    TOO_LARGE = lib.JMK_R_TOO_LARGE
    """A message did not fit the packet of a plain 1.0 client."""
    DISCONNECTED = lib.JMK_R_KICKED
    """`Server.disconnect`."""
    LEFT = lib.JMK_R_LEFT
    """The client closed its end, or died."""
    ERROR = lib.JMK_R_ERROR
    """The operating system failed; `ClientInfo.error` says how."""


class GapReason(enum.Enum):
    """Why messages are missing."""

    SKIPPED = "the server skipped them, as its lag policy says"
    EVICTED = "the server no longer had them"
    ENDED = "the server ended first"
    RESTARTED = "another server took its place"


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages that a client will not get.

    Args:
        first: the first of them; 0 if that is unknown.
        last: the last one, inclusive; None if that is unknown, as the server that knew it is gone.
        reason: why; gaps that differ in that alone are equal.
    """

    first: int
    last: int | None
    reason: GapReason = field(default=GapReason.SKIPPED, compare=False)

    def __str__(self) -> str:
        if self.last is None:
            return f"messages from {self.first} on, nobody knows how many"
        return f"messages {self.first} to {self.last}"

    @property
    def count(self) -> int | None:
        """How many; None if that is unknown."""
        return None if self.last is None else self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One client as the server sees it, at one moment. Ids are 0 where there is none."""

    key: int
    """Names the client within its server; never used again."""
    peer: Peer
    """Its process, from the kernel."""
    mode: str
    """`"shared"` if it reads the log, `"framed"`, or `"classic"` for one message a packet."""
    lag: int
    """Messages that were offered to it and not acked."""
    lag_bytes: int
    """Bytes of the log that it holds."""
    worst_lag: int
    """The largest `lag` that was seen."""
    queued: int
    """Messages published and not sent to it yet; none if it reads the log itself."""
    kernel_bytes: int
    """What its socket holds, sent and not yet read; with the kernel's overhead."""
    unacked: int
    """Messages sent to it and not acked."""
    sent_id: int
    """The last message wholly handed to its socket."""
    acked_id: int
    """The last message it has acked."""
    messages: int
    """Messages sent to it."""
    bytes: int
    """The same in bytes, headers included."""
    packets: int
    """The same in packets."""
    skipped: int
    """Messages that its cursor jumped over."""
    since: float
    """When it was let in, on the clock of `time.monotonic`, s."""
    last_ack: float | None
    """When its last ack came, on that clock."""
    reason: EndReason | None
    """Why it is gone; None while it is not."""
    limit: int
    """The limit that it exceeded, if `LAGGED`."""
    limit_kind: str
    """That limit's unit: `"messages"`, `"bytes"`, or `""`."""
    lost: Gap | None
    """What it did not get, if it is gone or was skipped."""
    error: str
    """What the operating system said, if the reason is `ERROR`."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.peer.pid

    @property
    def uid(self) -> int:
        """Its user id."""
        return self.peer.uid

    @property
    def command(self) -> str:
        """What its program is called, by its own word; "" if that is not known."""
        return self.peer.command

    def __str__(self) -> str:
        return (
            f"client {self.key} (process {self.pid}, {self.mode}): {self.lag} messages behind: "
            f"{self.queued} queued, {self.kernel_bytes} bytes in the kernel, "
            f"{self.unacked} sent and not acked"
        )


_UNITS = {lib.JMK_LIMIT_MESSAGES: "messages", lib.JMK_LIMIT_BYTES: "bytes"}
_MODES = {lib.JMK_CLASSIC: "classic", lib.JMK_FRAMED: "framed", lib.JMK_SHARED: "shared"}


def client_info(account: Account, peer: Peer) -> ClientInfo:
    """Make a value of the core's account, which changes with the next call."""
    lost = Gap(account.first_lost, account.last_lost) if account.first_lost else None
    return ClientInfo(
        key=account.key,
        peer=peer,
        mode=_MODES[account.mode],
        lag=account.lag,
        lag_bytes=account.lag_bytes,
        worst_lag=account.worst_lag,
        queued=account.queued,
        kernel_bytes=account.kernel_bytes,
        unacked=account.unacked,
        sent_id=account.sent_id,
        acked_id=account.acked_id,
        messages=account.messages,
        bytes=account.bytes,
        packets=account.packets,
        skipped=account.skipped,
        since=account.since / 1e9,
        last_ack=account.last_ack / 1e9 if account.last_ack else None,
        reason=EndReason(account.reason) if account.reason else None,
        limit=account.limit,
        limit_kind=_UNITS.get(account.limit_kind, ""),
        lost=lost,
        error=os.strerror(account.error) if account.error else "",
    )


@dataclass(frozen=True, slots=True)
class ServerStats:
    """A server's figures, all of one moment."""

    oldest_id: int
    """The oldest message that the log keeps."""
    next_id: int
    """The packet id that the next message gets."""
    log_size: int
    """Bytes."""
    log_used: int
    """Bytes of it that keep messages."""
    log_held: int
    """Bytes of those that some client has not acked."""
    published: int
    """Messages."""
    published_bytes: int
    """The same in bytes of payload."""
    delivered: int
    """Messages sent to clients, all together, also to those that are gone."""
    delivered_bytes: int
    """The same in bytes, headers included."""
    packets: int
    """The same in packets."""
    skipped: int
    """Messages skipped, all clients together."""
    clients: int
    """Clients connected."""
    unread: int
    """Clients gone that have neither read all they were sent nor closed: they keep their places."""
    kernel_bytes: int
    """What the sockets of all these hold, sent and not yet read; with the kernel's overhead."""
    cursor_pages: int
    """Cursor pages held by users whom `max_clients_per_user` binds, also by clients gone."""
    rounds: int
    """Times the pump looked for work."""
    inline_rounds: int
    """Those of them in a publisher's own thread."""
    waits: int
    """Times a publisher had to wait."""


def server_stats(stats: Stats, cursor_pages: int) -> ServerStats:
    """Make a value of the core's figures, and of one that it does not know."""
    figures = {each.name: getattr(stats, each.name, cursor_pages) for each in fields(ServerStats)}
    return ServerStats(**figures)
