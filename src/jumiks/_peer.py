# SPDX-License-Identifier: Apache-2.0
"""The process at the other end of a connection, and the users and groups of this system.

The credentials are those the peer had when it called `connect` (SO_PEERCRED, unix(7)). The kernel
vouches for them, so no peer can claim to be another.
"""

import grp
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Final

from ._green import is_readable
from ._native import whole_number
from .errors import UNSEEN, printable

__all__ = ["Peer"]

# struct ucred: pid_t, uid_t, gid_t.
_UCRED: Final = struct.Struct("iII")

_INT: Final = struct.Struct("i")

# The peer's supplementary groups; the socket module has no name for it (Linux 4.13).
_SO_PEERGROUPS: Final = 59

_GROUPS_SIZE: Final = 1024  # 256 groups, the most that the socket module takes

# A descriptor that stands for the peer's process; the socket module has no name for it (Linux 6.5).
_SO_PEERPIDFD: Final = 77

_USUAL_OVERFLOW: Final = 65534  # DEFAULT_OVERFLOWUID

NO_ID: Final = 2**32 - 1
"""The id that no user and no group has: (uid_t) -1."""


def _overflow(kind: str) -> int:
    try:
        with open(f"/proc/sys/kernel/overflow{kind}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _USUAL_OVERFLOW


OVERFLOW_UID: Final = _overflow("uid")
"""What the kernel says for every user that our user namespace does not map: user_namespaces(7). So
it is nobody's identity, also where this process itself runs as it."""

OVERFLOW_GID: Final = _overflow("gid")
"""The same for groups."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a connection.

    Args:
        pid: its process id; 0 if it lives in a process namespace that cannot be seen from here.
        uid: its effective user id; that of nobody (65534) also stands for each user that is not
            mapped in the server's user namespace.
        gid: its effective group id; likewise.
        groups: its supplementary groups; none are known if there are more than 256.
        command: its program's name when it was let in. The program chooses it, so show it, but base
            no rule on it. It is "" where the kernel cannot vouch for it (before Linux 6.5).
        name: what a client calls itself (`Client(name=...)`), at most 64 bytes and printable; ""
            before it has said so. It may be anything, so it proves nothing.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = field(default=frozenset(), compare=False, repr=False)
    command: str = field(default="", compare=False, repr=False)
    name: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid else UNSEEN
        text = f"{process} of user {self.uid}"
        return f"{self.name!r} ({text})" if self.name else text

    @classmethod
    def of(cls, sock: socket.socket) -> "Peer":
        """Ask the kernel for the process at the other end of a connected socket.

        Raises:
            OSError: as getsockopt(2) does.
        """
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(found)
        return cls(pid, uid, gid, _groups(sock))


def _groups(sock: socket.socket) -> frozenset[int]:
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError:
        return frozenset()  # there are more, or the kernel is an old one
    return frozenset(number for (number,) in struct.iter_unpack("I", found))


_COMMAND_SIZE: Final = 64  # TASK_COMM_LEN is 16, and more for some of the kernel's own threads


def process_name(pid: int) -> str:
    """What a process of our own pid namespace calls itself; "" if it cannot be seen from here."""
    try:
        # In a container with another namespace's /proc the number would be somebody else's.
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""
        # A file object would cost more than all the rest of this.
        file = os.open(f"/proc/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            name = os.read(file, _COMMAND_SIZE).rstrip(b"\n").decode("utf-8", "replace")
        finally:
            os.close(file)
    except OSError:
        return ""
    return printable(name)


def peer_command(sock: socket.socket, pid: int) -> str:
    """Return the name of the program at the other end (proc(5), comm); "" if it is not known.

    By the time it is looked up its process id may be another's. The pidfd is that of the process
    which connected: if that one is alive afterwards, the number was its own all along. Nothing is
    kept open for it.
    """
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, _INT.size)
    except OSError:
        return ""  # it is gone, or the kernel is an old one
    (pidfd,) = _INT.unpack(found)
    try:
        name = process_name(pid)
        return "" if is_readable(pidfd) else name
    finally:
        os.close(pidfd)


def group_id(group: object, name: str = "group") -> int:
    """The id of a group that is given by name or number; raises as `Group` does.

    Args:
        group: the group.
        name: the argument's name, for messages.
    """
    if isinstance(group, str):
        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            raise ValueError(
                f"{name}={group!r}: there is no group named {group!r}: see getent group"
            ) from None
    number = whole_number(group)
    if number is None:
        raise TypeError(f"{name} is the name or number of a group, not {group!r}")
    if not 0 <= number < NO_ID:
        raise ValueError(f"{name}={number}: it is no group id: those go from 0 to {NO_ID - 1}")
    return number
