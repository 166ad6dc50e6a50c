# SPDX-License-Identifier: Apache-2.0
"""A client's connections: from the address to a handle of the core, whoever waits meanwhile."""

from __future__ import annotations

import _socket
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Generator
from math import inf
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from .. import errors
from .._native import Receiver, address_of, check, ffi, lib, nanoseconds, owned
from .._wire import rights
from .._wire.address import parse_client_address
from .._wire.handshake import UNTOLD_PACKET, Capability, ClientHandshake, ServerHello
from ..errors import ConnectionLost, ProtocolError, printable
from .connecting import (
    CannotShareError,
    Connecting,
    Received,
    Wait,
    descriptors_received,
)

if TYPE_CHECKING:
    from .._core import Client as Handle
    from .._core import ClientConfig

__all__: list[str] = []

log = logging.getLogger("jumiks")

Delivery: TypeAlias = Literal["shared", "framed", "classic"]
"""How a client gets messages."""

ARENA_SIZE: Final = 4 << 20
"""Bytes of address space for what one receive takes; memory is used as messages need."""

CLASSIC_PACKET: Final = UNTOLD_PACKET
"""The largest packet taken from a plain 1.0 server, which does not tell. One that left its socket
at the system's default cannot send more than 212960 bytes."""

LARGEST_PLAIN: Final = CLASSIC_PACKET - 8
"""The largest message, bytes, that a plain 1.0 connection of this client carries; behind an id."""

_detach: Final = _socket.socket.detach
"""In C, and no bytecode. `socket.socket` may be another class, where gevent has patched it."""

_CAPABILITIES: Final[dict[str, Capability]] = {
    "classic": Capability(0),
    "framed": Capability.FRAMES,
    "shared": Capability.FRAMES | Capability.LOG,
}
_DELIVERIES: Final[dict[int, Delivery]] = {
    lib.JMK_CLASSIC: "classic",
    lib.JMK_FRAMED: "framed",
    lib.JMK_SHARED: "shared",
}


def program_name() -> str:
    """Return what this program is called: its script, or its module if `python -m` ran it."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name).removesuffix(".__main__")
    script = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return script if script not in ("", "-", "-c") else "python"


class Link(NamedTuple):
    """A connection with its welcome: what the core works on, and what was agreed."""

    handle: Handle
    receiver: Receiver
    descriptor: int
    delivery: Delivery
    watched: bool
    """Whether the server's death is noticed even if the connection stays open."""
    hello: ServerHello
    first_id: int
    """The first message of this connection; 0 if the server did not say."""
    left_out: int
    """Messages before that one which the server has and did not send."""


class Linker(Connecting):
    """Makes the connections of one client.

    Args:
        where: the server's address.
        delivery: the best to ask for.
        timeout: seconds that each connection may take; None is no limit.
        spin: seconds to look for a message before sleeping, where the log is shared.
        acks_by_hand: whether no receive acks.
        name: what the client calls itself; None is the program's name.
    """

    _asks_for_process = True

    def __init__(
        self,
        where: str | os.PathLike[str],
        delivery: Delivery,
        timeout: float | None,
        spin: float,
        *,
        acks_by_hand: bool,
        name: str | None = None,
    ) -> None:
        self._where = parse_client_address(where)
        self._address = str(self._where)
        self._wishes = _CAPABILITIES[delivery]
        self._timeout = timeout
        self._spin = nanoseconds(spin)
        self._acks_by_hand = acks_by_hand
        self.given_name = printable(name or "")
        """What the user named the client; "" if nothing."""
        self._name = program_name() if name is None else name

    @property
    def address(self) -> str:
        """Where it connects to, as a user writes it."""
        return self._address

    @property
    def timeout(self) -> float | None:
        """Seconds that each connection may take; None is no limit."""
        return self._timeout

    def connect(
        self, start: int, start_for: Callable[[ServerHello], int] | None
    ) -> Generator[Wait, None, Link]:
        """Connect and shake hands.

        Args:
            start: the packet id to ask for, or what stands for the newest or the oldest.
            start_for: chooses the start once the server has said who it is.
        """
        timeout = self._timeout
        deadline = inf if timeout is None else time.monotonic() + timeout
        while True:
            framed = Capability.FRAMES in self._wishes
            handshake = ClientHandshake(
                self._wishes,
                start,
                min(ARENA_SIZE, (1 << 32) - 1 if framed else CLASSIC_PACKET),
                start_for=start_for,
                name=self._name,
            )
            try:
                with descriptors_received() as received:
                    return (yield from self._link(handshake, timeout, received))
            except CannotShareError as error:
                log.warning("%s: cannot read its log, so it has to send: %s", self._address, error)
                self._wishes &= ~Capability.LOG
                timeout = None if deadline == inf else max(0.0, deadline - time.monotonic())

    def _link(
        self, handshake: ClientHandshake, timeout: float | None, received: Received
    ) -> Generator[Wait, None, Link]:
        sock = yield from self._connect(self._where, handshake, timeout, received)
        try:
            return self._make_core(sock, handshake, received.descriptors())
        except BaseException:
            rights.hang_up(sock, self._guarded)
            raise

    def _config(self, handshake: ClientHandshake, descriptors: list[int]) -> ClientConfig:
        hello, welcome = handshake.hello, handshake.welcome
        assert hello is not None
        config = ffi.new("struct jmk_client_config *")
        config.first_id = welcome.first_id if welcome else 0
        config.labels = not hello.extended
        config.acks_by_hand = self._acks_by_hand
        config.max_lag = hello.max_lag
        config.max_message = hello.max_message or (1 << 32) - 1
        config.arena_size = ARENA_SIZE
        config.max_packet = min(CLASSIC_PACKET, ARENA_SIZE)
        config.delivery = lib.JMK_CLASSIC
        if handshake.framed:
            config.max_packet = min(hello.max_packet or UNTOLD_PACKET, ARENA_SIZE)
            config.delivery = lib.JMK_FRAMED
        if handshake.shared:
            assert welcome is not None
            if len(descriptors) != 2:
                fault = errors.DESCRIPTORS_DUE.format(count=len(descriptors))
                raise ProtocolError(errors.BROKEN_HANDSHAKE.format(fault=fault))
            config.delivery = lib.JMK_SHARED
            config.log_fd, config.cursor_fd = descriptors
            config.first_offset = welcome.first_offset
            config.spin = self._spin
        elif descriptors:
            raise ProtocolError(errors.BROKEN_HANDSHAKE.format(fault=errors.UNINVITED))
        return config

    def _make_core(
        self, sock: socket.socket, handshake: ClientHandshake, descriptors: list[int]
    ) -> Link:
        hello, welcome = handshake.hello, handshake.welcome
        assert hello is not None
        config = self._config(handshake, descriptors)
        sock.setblocking(True)
        config.guard = lib.JMK_GUARD_NONE
        if self._guarded:
            # All descriptors that it takes have come.
            last = rights.refuse(sock)
            config.guard = lib.JMK_GUARD_UNTIL_EMPTY if last else lib.JMK_GUARD_ALWAYS
        descriptor, error = sock.fileno(), ffi.new("int *")
        # The descriptor is in one pair of hands at a time, whatever comes between.
        detached = map(_detach, (sock,))
        made = map(lib.jmk_client_make, detached, (config,), (error,))
        handle = owned(made, lib.jmk_client_free)
        code = error[0]
        if code < 0 and handshake.shared:
            raise CannotShareError(os.strerror(-code))
        check(code, "client")
        watched = self._watch_server(handle) or handshake.shared
        receiver = Receiver(handle, address_of(handle))
        return Link(
            handle,
            receiver,
            descriptor,
            _DELIVERIES[config.delivery],
            watched,
            hello,
            welcome.first_id if welcome else 0,
            welcome.left_out if welcome else 0,
        )

    def _watch_server(self, handle: Handle) -> bool:
        # A log tells of its server's death itself. In our own process we would not see it.
        if self._server_pid == os.getpid():
            return False
        if self._server_pid == 0 and self._server_pidfd < 0:
            return False  # it cannot be seen from here
        try:
            if self._server_pid:
                next(map(lib.jmk_client_watch, (handle,), map(os.pidfd_open, (self._server_pid,))))
            else:
                next(map(lib.jmk_client_watch, (handle,), map(os.dup, (self._server_pidfd,))))
        except ProcessLookupError:
            raise ConnectionLost(errors.SERVER_DIED.format(address=self._address)) from None
        except OSError:
            return False  # this system has none, or has no descriptor to spare
        return True
