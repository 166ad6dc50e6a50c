# SPDX-License-Identifier: Apache-2.0
"""A service of systemd: take over its socket (sd_listen_fds(3)), tell its manager (sd_notify(3)).

::

    with Server(systemd.listen_socket()) as server:
        systemd.notify("READY=1")
        ...
        systemd.notify("STOPPING=1")

It takes no library, and works with whoever else keeps to the same two conventions.
"""

from __future__ import annotations

import os
import socket
from typing import Final

__all__ = ["listen_socket", "listen_sockets", "notify"]

_FIRST: Final = 3
"""Descriptors are passed from this one on (SD_LISTEN_FDS_START)."""

_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def listen_sockets() -> dict[str, list[socket.socket]]:
    """Take over all sockets that were passed, by their names (`FileDescriptorName=`).

    They are the caller's from then on, and no child of this process takes them for its own. So a
    second call finds none.
    """
    mine = os.environ.get("LISTEN_PID") == str(os.getpid())
    count, names = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_FDNAMES", "")
    for variable in _VARIABLES:
        os.environ.pop(variable, None)
    found: dict[str, list[socket.socket]] = {}
    if not mine or not count.isdecimal():
        return found
    known = names.split(":") if names else []
    for index in range(int(count)):
        sock = socket.socket(fileno=_FIRST + index)
        sock.set_inheritable(False)
        name = known[index] if index < len(known) else "unknown"
        found.setdefault(name, []).append(sock)
    return found


def listen_socket() -> socket.socket:
    """Take over the one socket that was passed, for `Server`.

    Raises:
        ValueError: none was, or several.
    """
    found = [sock for socks in listen_sockets().values() for sock in socks]
    if len(found) == 1:
        return found[0]
    for sock in found:
        sock.close()
    raise ValueError(
        f"{len(found)} sockets were passed by the service manager, and it takes one: "
        "start this by a socket unit with one ListenSequentialPacket="
    )


def notify(state: str) -> bool:
    """Tell the service manager, such as `"READY=1"`; False if nobody asked to be told.

    Args:
        state: as sd_notify(3) describes it; lines for several.

    Raises:
        OSError: it cannot be told.
    """
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + where[1:] if where.startswith("@") else where)
        sock.sendall(state.encode())
    return True
