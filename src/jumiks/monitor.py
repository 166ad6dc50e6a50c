# SPDX-License-Identifier: Apache-2.0
"""Look at a running server: the client's end of a MONITOR connection."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import Final

from . import errors
from ._client.connecting import Connecting, Received, in_thread
from ._closing import Closing
from ._green import let_others_run
from ._native import nanoseconds
from ._wire import rights
from ._wire.address import parse_client_address
from ._wire.handshake import Capability, ClientHandshake, Status
from ._wire.status import HEADER, MORE, STATUS, UNKNOWN, ServerStatus, parse_status, request
from .errors import Closed, ConnectionLost, ProtocolError, Refused, Timeout

__all__ = ["Monitor", "ServerStatus"]


_MOST_ANSWER: Final = 8 << 20
"""Bytes: more than ten thousand clients, which take about a second to read."""


def _wait_until(deadline: float | None, sock: socket.socket) -> None:
    # What is sent in small pieces, one now and then, has no more time than what comes at once.
    if deadline is None:
        sock.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(min(left, threading.TIMEOUT_MAX))


class Monitor(Closing, Connecting):
    """Ask a running server how it is; it receives no messages, and slows nobody down.

    Args:
        where: the server's address: `"@name"` or a path.
        timeout: seconds to connect, and for each answer; None is no limit.

    Raises:
        Refused: the server does not let this user look, has no status to give, or has too many
            monitors already.
        ConnectionRefusedError, FileNotFoundError, Timeout, VersionMismatch, ProtocolError: as for
            `Client`.
        TypeError, ValueError: an argument is wrong; the text says what would be right.
    """

    def __init__(self, where: str | os.PathLike[str], *, timeout: float | None = 5.0) -> None:
        nanoseconds(timeout)
        parsed = parse_client_address(where)
        self._address = str(parsed)
        self._pid = os.getpid()
        self._timeout = timeout
        self._asked = 0
        handshake = ClientHandshake(Capability.MONITOR)
        # No descriptors come: it asks for no log.
        sock = in_thread(self._connect(parsed, handshake, timeout, Received()))
        if Capability.MONITOR not in handshake.granted:
            rights.hang_up(sock, self._guarded)
            raise Refused(errors.STATUS_REFUSED, status=Status.NOT_ALLOWED)
        self._sock: socket.socket | None = sock

    def status(self) -> ServerStatus:
        """Ask once.

        Raises:
            Timeout: there was no answer in time.
            ConnectionLost: the server is gone.
            ProtocolError: it broke the protocol.
            Closed: this monitor is closed.
        """
        sock = self._sock
        if sock is None:
            raise Closed(errors.CLOSED.format(what="monitor"))
        self._asked = (self._asked + 1) % (1 << 32)
        try:
            deadline = None if self._timeout is None else time.monotonic() + self._timeout
            _wait_until(deadline, sock)
            sock.send(request(self._asked), socket.MSG_NOSIGNAL)
            body = self._answer(sock, deadline)
            status = parse_status(body.decode("utf-8", "replace"))
        except TimeoutError:
            raise Timeout(
                errors.NO_ANSWER.format(address=self._address, timeout=self._timeout)
            ) from None
        except (BrokenPipeError, ConnectionResetError):
            raise ConnectionLost(errors.GONE.format(address=self._address)) from None
        except (ConnectionLost, ProtocolError):
            # No server stands still because the user keeps a monitor whose connection is over.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            raise
        return replace(status, pid=self._server_pid)

    def _answer(self, sock: socket.socket, deadline: float | None) -> bytearray:
        body = bytearray()
        while len(body) <= _MOST_ANSWER:
            let_others_run(sock.fileno(), inf if deadline is None else deadline)
            _wait_until(deadline, sock)
            if self._guarded and rights.come_next(sock):
                raise ProtocolError(errors.BROKEN_PROTOCOL.format(fault=errors.UNINVITED))
            packet = sock.recv(1 << 18)
            if not packet:
                raise ConnectionLost(errors.GONE.format(address=self._address))
            if len(packet) < HEADER.size:
                raise ProtocolError(errors.BROKEN_PROTOCOL.format(fault=errors.SHORT_ANSWER))
            kind, flags, number = HEADER.unpack_from(packet)
            if number != self._asked:
                continue  # to a question whose time was over
            if kind != STATUS or flags & UNKNOWN:
                raise ProtocolError(errors.BROKEN_PROTOCOL.format(fault=errors.NO_STATUS_KNOWN))
            body += packet[HEADER.size :]
            if not flags & MORE:
                return body
        raise ProtocolError(
            errors.BROKEN_PROTOCOL.format(fault=errors.LONG_STATUS.format(most=_MOST_ANSWER))
        )

    def close(self) -> None:
        """Close the connection; may be repeated."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._pid == os.getpid():
            rights.hang_up(sock, self._guarded)
        else:
            sock.close()
