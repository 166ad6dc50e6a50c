# SPDX-License-Identifier: Apache-2.0
"""Descriptors that peers send (SCM_RIGHTS) where none are due: see csrc/common/guard.c.

To close one may take as long as its sender likes, and the kernel closes what comes with a packet
in the thread that reads or drops it. Linux 6.16 can refuse descriptors at the sender. A socket for
which it did not do so from the beginning is *guarded*: each packet is looked at before it is read,
one with descriptors stays unread, and the socket is closed by a thread that no other waits for.
"""

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from .._native import lib

__all__: list[str] = []

SO_PASSRIGHTS: Final = 83
"""The socket module has no name for it (Linux 6.16)."""

SO_PASSPIDFD: Final = 76
"""The socket module has no name for this either (Linux 6.5)."""

# Options by which the kernel sends other control messages along.
_OTHERS: Final = (socket.SO_PASSCRED, socket.SO_PASSSEC, SO_PASSPIDFD)


def refuse(sock: socket.socket) -> bool:
    """Have the kernel refuse descriptors that are sent to this socket from now on.

    A listening socket hands this on to the connections that are made from now on.

    Returns:
        False if this kernel cannot.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def may_come(sock: socket.socket) -> bool:
    """Whether descriptors may come to this socket, or may have come before they were refused.

    If they may, all other control messages are turned off, so that descriptors are recognized.
    """
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS):
            return False
    except OSError:
        pass
    for option in _OTHERS:
        with suppress(OSError):  # it does not know that one
            sock.setsockopt(socket.SOL_SOCKET, option, 0)
    return True


def come_next(sock: socket.socket) -> bool:
    """Whether descriptors come with the next packet of a guarded socket, which stays unread.

    Raises:
        OSError: as recvmsg(2) does; BlockingIOError or TimeoutError if there is no packet.
    """
    _, _, flags, _ = sock.recvmsg(0, 0, socket.MSG_PEEK)
    return bool(flags & socket.MSG_CTRUNC)


def close(sock: socket.socket, guarded: bool) -> None:
    """Close our copy of a socket; its connection goes on if another process has a copy."""
    if guarded:
        lib.jmk_dispose(sock.detach())
    else:
        sock.close()


def hang_up(sock: socket.socket, guarded: bool) -> None:
    """End a connection and close its socket, also if others, such as a forked child, have copies.

    The other end finds the end at once, whatever is unread here.
    """
    with suppress(OSError):  # it may be gone, or closed
        sock.shutdown(socket.SHUT_RDWR)
    close(sock, guarded)


def dispose(descriptors: Iterable[int]) -> None:
    """Close descriptors that a peer sent."""
    for descriptor in descriptors:
        lib.jmk_dispose(descriptor)


def closing() -> bool:
    """Whether a descriptor that was given to the other thread is not closed yet."""
    return lib.jmk_dispose_pending() > 0


def crowded() -> bool:
    """Whether too many closes are under way to make a new connection."""
    return lib.jmk_dispose_pending() >= lib.JMK_MOST_DISPOSED


def check_crowd() -> None:
    """Raise OSError where `crowded`."""
    if crowded():
        text = (
            f"{lib.jmk_dispose_pending()} connections of this process are still being closed, as "
            "their peers sent descriptors whose closing takes long: try again later"
        )
        raise OSError(errno.EMFILE, text)
