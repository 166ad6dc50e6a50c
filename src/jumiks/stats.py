# SPDX-License-Identifier: Apache-2.0
"""Figures: what a server knows of itself and of each client, as plain values."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ._gap import Gap, GapReason
from ._native import lib
from ._peer import Peer
from .errors import counted

if TYPE_CHECKING:
    from ._core import Account, Stats

__all__ = ["ClientInfo", "EndReason", "ServerStats"]


class EndReason(enum.Enum):
    """Why a connection ended, as the server saw it.

    Members:
        LAGGED: it fell too far behind, and the lag policy cut it.
        CLOSING: the server closed.
        PROTOCOL: the client broke the protocol.
        TOO_LARGE: a message did not fit into a packet of this plain 1.0 client.
        DISCONNECTED: `Server.disconnect` was called for it.
        LEFT: the client closed its end, or died.
        ERROR: the operating system failed; `ClientInfo.error` says how.
    """

    LAGGED = lib.JMK_R_LAGGED
    CLOSING = lib.JMK_R_CLOSING
    PROTOCOL = lib.JMK_R_PROTOCOL
    TOO_LARGE = lib.JMK_R_TOO_LARGE
    DISCONNECTED = lib.JMK_R_KICKED
    LEFT = lib.JMK_R_LEFT
    ERROR = lib.JMK_R_ERROR


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One client as the server sees it, at one moment. Ids are 0 where there is none.

    Args:
        key: number that names the client within its server; never used again.
        peer: its process, as the kernel names it.
        delivery: `"shared"` if it reads the log, `"framed"` if it gets packets with many messages
            each, `"classic"` for one message per packet.
        lag: messages that were offered to it and are not acked.
        lag_bytes: bytes of the log that these messages hold.
        worst_lag: the largest `lag` that the server saw, messages. It looks at the lag as it sends
            or offers messages. Of a client that gets packets, acks count once they are read.
        queued: messages published and not sent to it yet; 0 if it reads the log itself.
        kernel_bytes: bytes in its socket, sent and not read yet, with the kernel's overhead.
        unacked: messages sent to it and not acked.
        sent_id: packet id of the last message that went to its socket whole, or was offered in the
            log; 0 if none.
        acked_id: packet id of the last message it has acked; 0 if none.
        messages: messages sent to it so far.
        bytes: bytes sent to it so far, headers included.
        packets: packets sent to it so far.
        skipped: messages it was made to miss so far, also while it is still being skipped.
        since: when it was let in, seconds on the clock of `time.monotonic`.
        last_ack: when its last ack was seen, seconds on that clock; None if there was none.
        reason: why it is gone; None while it is not.
        limit: the limit at which it was cut, in the unit of `limit_kind`; 0 if the reason is not
            `LAGGED`.
        limit_kind: `"messages"` (`max_lag`) or `"bytes"` (the log); "" if the reason is not
            `LAGGED`.
        lost: if it is gone, messages that it may not have got; None if there are none. Of a client
            that left, died or failed, these are all that it had not acked. So they are of one that
            read the log and was cut, which gets those that the log still has when it reads them.
        error: what the operating system said, if the reason is `ERROR`; else "".
    """

    key: int
    peer: Peer
    delivery: str
    lag: int
    lag_bytes: int
    worst_lag: int
    queued: int
    kernel_bytes: int
    unacked: int
    sent_id: int
    acked_id: int
    messages: int
    bytes: int
    packets: int
    skipped: int
    since: float
    last_ack: float | None
    reason: EndReason | None
    limit: int
    limit_kind: str
    lost: Gap | None
    error: str

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

    @property
    def name(self) -> str:
        """What it calls itself (`Client(name=...)`), or else its program; "" if neither is known.

        It may be anything: show it, but base no rule on it.
        """
        return self.peer.name or self.peer.command

    def __str__(self) -> str:
        name = f"{self.peer.name!r}, " if self.peer.name else ""
        text = f"client {self.key} ({name}process {self.pid}, {self.delivery}): "
        text += f"{counted(self.lag, 'message')} behind"
        if self.delivery == "shared" or not self.lag:
            return text
        return (
            f"{text}: {self.queued} queued, {self.kernel_bytes} bytes in the kernel, "
            f"{self.unacked} sent and not acked"
        )


_UNITS = {lib.JMK_LIMIT_MESSAGES: "messages", lib.JMK_LIMIT_BYTES: "bytes"}
_DELIVERIES = {lib.JMK_CLASSIC: "classic", lib.JMK_FRAMED: "framed", lib.JMK_SHARED: "shared"}


def client_info(account: Account, peer: Peer) -> ClientInfo:
    """Make a value of the core's account, which changes with the next call."""
    cut = account.reason in (lib.JMK_R_NONE, lib.JMK_R_LAGGED)  # none yet: it is skipped
    why = GapReason.SKIPPED if cut else GapReason.ENDED
    lost = Gap(account.first_lost, account.last_lost, why) if account.first_lost else None
    return ClientInfo(
        key=account.key,
        peer=peer,
        delivery=_DELIVERIES[account.delivery],
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
    """A server's figures, all of one moment.

    Args:
        oldest_id: packet id of the oldest message that the log keeps; `next_id` if it keeps none.
        next_id: the packet id that the next message gets.
        log_size: bytes of the log.
        log_used: bytes of the log that keep messages.
        log_held: bytes of those that some client has not acked.
        published: messages published so far; the server's `history` counts.
        published_bytes: bytes of payload published so far, likewise.
        delivered: messages sent so far, to all clients together, also to those that are gone.
        delivered_bytes: bytes sent so far, headers included, likewise.
        packets: packets sent so far, likewise.
        skipped: messages that clients were made to miss so far, likewise.
        clients: clients connected now.
        unread: clients that are gone and have neither read all they were sent nor closed; they keep
            their places.
        kernel_bytes: bytes in the sockets of all these, sent and not read yet, with the kernel's
            overhead.
        cursor_pages: cursor pages held by users that `max_clients_per_user` binds, also by their
            clients that are gone.
        rounds: times the server looked for something to send or for acks.
        inline_rounds: times it did so in a publisher's own thread; counted in `rounds` too.
        waits: times a publisher had to wait for a client. One that finds room as soon as acks are
            taken did not.
    """

    oldest_id: int
    next_id: int
    log_size: int
    log_used: int
    log_held: int
    published: int
    published_bytes: int
    delivered: int
    delivered_bytes: int
    packets: int
    skipped: int
    clients: int
    unread: int
    kernel_bytes: int
    cursor_pages: int
    rounds: int
    inline_rounds: int
    waits: int


def server_stats(stats: Stats, cursor_pages: int) -> ServerStats:
    """Make a value of the core's figures, and of one that it does not know."""
    names = {each.name for each in fields(ServerStats)} - {"cursor_pages"}
    figures = {name: getattr(stats, name) for name in names}
    return ServerStats(cursor_pages=cursor_pages, **figures)


def share(info: ClientInfo, max_lag: int, log_size: int) -> float:
    """How far a client is on its way to a limit; 1 is there.

    Args:
        info: the client.
        max_lag: messages; 0 is no limit.
        log_size: bytes; 0 is not known.
    """
    of_messages = info.lag / max_lag if max_lag else 0.0
    of_bytes = info.lag_bytes / log_size if log_size else 0.0
    return max(of_messages, of_bytes)
