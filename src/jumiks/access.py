# SPDX-License-Identifier: Apache-2.0
"""Who may connect: the peer's credentials, and the rules they are held against.

The credentials are those the peer had when it called `connect` (SO_PEERCRED, unix(7)). The kernel
vouches for them, so no peer can claim to be another.
"""

import inspect
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

__all__ = ["Allow", "Peer"]

log = logging.getLogger("jumiks")

# struct ucred: pid_t, uid_t, gid_t.
_UCRED: Final = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a connection.

    Args:
        pid: its process id; 0 if it lives in a process namespace that cannot be seen from here.
        uid: its effective user id.
        gid: its effective group id.
    """

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, sock: socket.socket) -> "Peer":
        """Ask the kernel who is at the other end of a connected socket.

        Raises:
            OSError: as getsockopt(2) does.
        """
        return cls(
            *_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        )


Allow: TypeAlias = Literal["anyone"] | int | Iterable[int] | Callable[[Peer], bool] | None
"""What a user may say about who may connect.

None
    the default. An abstract address takes the server's own user and root, as anybody may try to
    connect to it; for a path, the file's permissions have decided already.
"anyone"
    everybody who gets as far as connecting.
a user id, or several
    these users and nobody else, not even root.
a function
    gets the `Peer` and returns True or False. It runs in the server's control thread, so it must
    not take long. One that raises, or returns anything else, refuses.
"""

Rule: TypeAlias = Literal["anyone"] | frozenset[int] | Callable[[Peer], bool] | None
"""The same after `parse`."""


def _user(uid: object, name: str) -> int:
    if isinstance(uid, bool) or not isinstance(uid, int):
        raise TypeError(f"{name} takes user ids as numbers, not {uid!r}: see pwd.getpwnam")
    if not 0 <= uid < 2**32 - 1:
        raise ValueError(f"{name}: {uid} is no user id")
    return uid


def parse(allow: object, name: str = "allow") -> Rule:
    """Check a rule once, so that a wrong one is found when the server starts.

    Args:
        allow: as described at `Allow`.
        name: the argument's name, for messages.

    Raises:
        TypeError: it is none of these.
        ValueError: a text other than "anyone", a number that is no user id, or no user at all.
    """
    if allow is None:
        return None
    if isinstance(allow, str):
        if allow != "anyone":
            raise ValueError(f"{name}={allow!r}: the only text it takes is 'anyone'")
        return "anyone"
    if isinstance(allow, int):
        return frozenset({_user(allow, name)})
    if callable(allow):
        if inspect.iscoroutinefunction(allow):
            raise TypeError(
                f"{name} takes a plain function: a coroutine's answer would come too late"
            )
        return cast(Callable[[Peer], bool], allow)
    if isinstance(allow, Iterable) and not isinstance(allow, bytes | bytearray):
        users = frozenset(_user(uid, name) for uid in allow)
        if not users:
            raise ValueError(f"{name} is empty: nobody could connect")
        return users
    raise TypeError(
        f"{name} takes None, 'anyone', a user id, several user ids or a function, "
        f"not {type(allow).__name__}"
    )


def check(rule: Rule, peer: Peer, abstract: bool) -> str | None:
    """Hold a peer against a rule.

    Args:
        rule: what `parse` returned.
        peer: who connected.
        abstract: whether the server's address is an abstract one, where no file guards it.

    Returns:
        None if it may connect, otherwise the reason why not.
    """
    if rule == "anyone":
        return None
    if rule is None:
        if not abstract or peer.uid in (0, os.geteuid()):
            return None
        return f"user {peer.uid} may not connect: only the server's own user and root may"
    if isinstance(rule, frozenset):
        return None if peer.uid in rule else f"user {peer.uid} may not connect"
    return _ask(rule, peer)


def _ask(rule: Callable[[Peer], bool], peer: Peer) -> str | None:
    refusal = f"user {peer.uid} (process {peer.pid}) may not connect"
    try:
        answer: object = rule(peer)
    except Exception:
        log.exception("allow=%r raised for %r, which is refused", rule, peer)
        return refusal
    if answer is True:
        return None
    if answer is not False:
        # Anything truthy would let peers in by mistake: a coroutine, or a forgotten comparison.
        log.error("allow=%r returned %r, not True or False; %r is refused", rule, answer, peer)
    return refusal
