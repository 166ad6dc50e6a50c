# SPDX-License-Identifier: Apache-2.0
"""Rules that say which peers may connect, by their credentials."""

import inspect
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

from .._native import whole_number
from .._peer import NO_ID, OVERFLOW_GID, OVERFLOW_UID, Peer, group_id

__all__ = ["Allow", "Group"]

log = logging.getLogger("jumiks")


@dataclass(frozen=True, slots=True)
class Group:
    """In `allow`: every user of this group, as its effective or a supplementary group.

    Args:
        group: a name or a number.

    Raises:
        ValueError: there is no group of that name, or that is no group id.
        TypeError: it is neither.
    """

    group: str | int

    def __post_init__(self) -> None:
        group_id(self.group)


Allow: TypeAlias = (
    Literal["anyone"] | int | Group | Iterable[int | Group] | Callable[[Peer], bool] | None
)
"""What the option `allow` takes: which peers may connect.

None
    the default. At an abstract address, the server's own user and root may connect, as such an
    address has no permissions. At a path, every peer that the file's permissions let through.
"anyone"
    every peer.
a user id, a `Group`, or several of them
    these users and the members of these groups, and no other user, not even root.
a function
    It gets the `Peer` and returns True or False. It is called once per connection, in the server's
    control thread, before anything is sent to the peer. So it must not take long. If it raises, or
    returns anything else, the peer is refused.

The overflow ids (65534) identify no user: every user that the server's user namespace does not map
has them. Such a user gets in only by `"anyone"`, by a function, or by the permissions of a path.
"""


@dataclass(frozen=True, slots=True)
class Some:
    """Users and groups by their ids."""

    users: frozenset[int]
    groups: frozenset[int]

    def __contains__(self, peer: Peer) -> bool:
        groups = (peer.groups | {peer.gid}) - {OVERFLOW_GID}
        return (peer.uid in self.users and peer.uid != OVERFLOW_UID) or bool(self.groups & groups)


Rule: TypeAlias = Literal["anyone"] | Some | Callable[[Peer], bool] | None
"""The same after `check_allow`."""


def _user(uid: object, name: str) -> int:
    number = whole_number(uid)
    if number is None:
        raise TypeError(f"{name} takes user ids as numbers, not {uid!r}: see pwd.getpwnam")
    if not 0 <= number < NO_ID:
        raise ValueError(f"{name}: {number} is no user id: those go from 0 to {NO_ID - 1}")
    return number


def check_allow(name: str, allow: object) -> Rule:
    """Check a rule when the server starts, and return it in the form that `refusal` takes.

    Args:
        name: the argument's name, for messages.
        allow: as described at `Allow`.

    Raises:
        TypeError: it is none of these.
        ValueError: a text other than "anyone", a number that is no user id, or no user at all.
    """
    if allow is None:
        return None
    if isinstance(allow, str):
        if allow != "anyone":
            raise ValueError(
                f"{name}={allow!r}: the only text it takes is 'anyone'; users are given by number "
                "(pwd.getpwnam), groups as Group(name)"
            )
        return "anyone"
    if isinstance(allow, Group) or whole_number(allow) is not None:
        return _some((allow,), name)
    if callable(allow):
        if inspect.iscoroutinefunction(allow):
            raise TypeError(
                f"{name} takes a plain function: a coroutine's answer would come too late"
            )
        return cast(Callable[[Peer], bool], allow)
    if isinstance(allow, Iterable) and not isinstance(allow, bytes | bytearray):
        found = _some(allow, name)
        if not found.users and not found.groups:
            raise ValueError(f"{name} is empty: nobody could connect; give a user id or a Group")
        return found
    least = "None, False" if name == "monitor" else "None"
    raise TypeError(
        f"{name} takes {least}, 'anyone', a user id, a Group, several of them or a function, "
        f"not {allow!r:.100}"
    )


def _identity(number: int, overflow: int, what: str, name: str) -> int:
    if number == overflow:
        raise ValueError(
            f"{name}: {what} {number} stands for all {what}s that this user namespace does not "
            f"map, so it identifies none of them: name another {what}, or take 'anyone'"
        )
    return number


def _some(allowed: Iterable[object], name: str) -> Some:
    users, groups = set(), set()
    for each in allowed:
        if isinstance(each, Group):
            groups.add(_identity(group_id(each.group), OVERFLOW_GID, "group", name))
        else:
            users.add(_identity(_user(each, name), OVERFLOW_UID, "user", name))
    return Some(frozenset(users), frozenset(groups))


_NOBODY: Final = (
    f"user {OVERFLOW_UID} may not connect: this number stands for all users that the server's user "
    "namespace does not map, so it identifies none of them; run the client as another user, or "
    "give the server allow='anyone' or a function"
)


def _trusted() -> frozenset[int]:
    # Users that could stop the server anyway.
    return frozenset((0, os.geteuid())) - {OVERFLOW_UID}


def refusal(rule: Rule, peer: Peer, abstract: bool) -> str | None:
    """Say why a rule does not let a peer connect; None if it does.

    Args:
        rule: what `check_allow` returned.
        peer: the process that connected.
        abstract: whether the server's address is an abstract one, which has no file permissions.
    """
    if rule == "anyone":
        return None
    if rule is None:
        if not abstract or peer.uid in _trusted():
            return None
        if peer.uid == OVERFLOW_UID:
            return _NOBODY
        return f"user {peer.uid} may not connect: only the server's own user and root may"
    if isinstance(rule, Some):
        if peer in rule:
            return None
        return _NOBODY if peer.uid == OVERFLOW_UID else f"user {peer.uid} may not connect"
    return _ask(rule, peer)


@dataclass(frozen=True, slots=True)
class Quota:
    """How many connections a user may have. The user id comes from the kernel.

    Args:
        limit: connections of one user.
        spared: users that may have more: they could stop the server anyway.
    """

    limit: int
    spared: frozenset[int] = frozenset()

    @classmethod
    def share(cls, most: int) -> "Quota":
        """At most half of `most`, so that no user keeps all others out by itself."""
        return cls(max(1, most // 2), _trusted())

    def binds(self, uid: int) -> bool:
        """Whether it holds for this user."""
        return uid not in self.spared

    def refusal(self, uid: int, held: int) -> str | None:
        """Why a user with `held` connections may not have one more; None if it may."""
        if not self.binds(uid) or held < self.limit:
            return None
        return f"user {uid} has {held} connections, and {self.limit} are the most for one user"


def _ask(rule: Callable[[Peer], bool], peer: Peer) -> str | None:
    refusal = f"user {peer.uid} (process {peer.pid}) may not connect"
    try:
        answer: object = rule(peer)
    except BaseException:  # also sys.exit, and what a cancelled future raises
        log.exception("allow=%r raised for %r, which is refused", rule, peer)
        return refusal
    if answer is True:
        return None
    if answer is not False:
        # Anything truthy would let peers in by mistake: a coroutine, or a forgotten comparison.
        log.error("allow=%r returned %r, not True or False; %r is refused", rule, answer, peer)
    return refusal
