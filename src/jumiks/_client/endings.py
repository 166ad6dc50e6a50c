# SPDX-License-Identifier: Apache-2.0
"""How a client's connection ended, from the core's code to the exception that a user gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import errors
from .._native import check, fault_of, ffi, lib
from ..errors import (
    ConnectionEnded,
    ConnectionLost,
    Disconnected,
    Lagged,
    ProtocolError,
    ServerClosed,
)
from .link import LARGEST_PLAIN

if TYPE_CHECKING:
    from .._core import Client as Handle
    from .link import Delivery

__all__: list[str] = []


def ending_of(
    code: int,
    handle: Handle,
    *,
    address: str,
    delivery: Delivery,
    due: int,
    name: str,
    may_be_too_large: bool,
) -> Exception:
    """Return what a code of the core stands for, which a receive is about to raise.

    Args:
        code: neither success nor a wait that is to go on.
        handle: the connection.
        address: of the server.
        delivery: how the connection gets messages.
        name: what the client was told to call itself; "" if nothing.
        due: the id of the next message that the user has neither got nor been told to miss.
        may_be_too_large: whether that one may not fit into a packet of plain 1.0.
    """
    if code == lib.JMK_E_PROTOCOL:
        return fault_of(handle)
    if code == lib.JMK_E_LOST:
        return _lost(handle, address, delivery, due, may_be_too_large)
    if code == lib.JMK_E_END:
        return _goodbye(handle, name)
    try:
        check(code, "client")
    except Exception as error:
        return error
    raise AssertionError(code)


def _lost(
    handle: Handle, address: str, delivery: Delivery, due: int, may_be_too_large: bool
) -> ConnectionLost:
    why = errors.NO_REASON if delivery == "classic" else errors.DIED
    if may_be_too_large:
        why += errors.OR_TOO_LARGE.format(due=due, most=LARGEST_PLAIN)
    reason = errors.NO_GOODBYE.format(address=address, why=why)
    # The log is there still, and read to its end, unless the server was just cutting us.
    last = lib.jmk_client_published_id(handle)
    if last < due:
        return ConnectionLost(reason)
    return ConnectionLost(reason, first_lost=due, last_lost=last)


def _goodbye(handle: Handle, name: str) -> ConnectionEnded:
    words = ffi.new("struct jmk_goodbye *")
    lib.jmk_client_goodbye(handle, words)
    if words.reason == lib.JMK_R_LAGGED:
        return Lagged(
            limit_kind="bytes" if words.limit_kind == lib.JMK_LIMIT_BYTES else "messages",
            limit=words.limit,
            lag=words.lag,
            lag_bytes=words.lag_bytes,
            last_acked=words.acked_id,
            first_lost=words.first_lost,
            last_lost=words.last_lost,
            oldest_kept=words.oldest_id,
            resume_at=lib.jmk_client_last_id(handle) + 1,
            name=name,
        )
    if words.reason == lib.JMK_R_PROTOCOL:
        return ProtocolError(errors.BLAMED)
    if words.reason == lib.JMK_R_KICKED:
        return Disconnected(errors.KICKED)
    if words.reason == lib.JMK_R_CLOSING and not words.first_lost:
        return ServerClosed(errors.CLOSED_ALL)
    reason = (
        errors.CLOSED_EARLY
        if words.reason == lib.JMK_R_CLOSING
        else errors.UNKNOWN_REASON.format(reason=words.reason)
    )
    return ConnectionLost(reason, first_lost=words.first_lost, last_lost=words.last_lost)
