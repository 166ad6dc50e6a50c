# SPDX-License-Identifier: Apache-2.0
"""Addresses: what a user may write, checked. No I/O here."""

import os
import re
import socket
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from .._green import is_socket

__all__: list[str] = []

MAX_PATH: Final = 107
"""Bytes of a path that fit sun_path together with its closing NUL (unix(7))."""

MAX_ABSTRACT: Final = 107
"""Bytes of an abstract name that fit sun_path after its leading NUL (unix(7))."""


_URL: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)|(unix):(/.*)", re.IGNORECASE | re.DOTALL)
_LOCAL: Final = ("ipc", "unix", "file")
"""Schemes whose rest is a path on this machine."""


class Kind(Enum):
    """What an address names."""

    ABSTRACT = "abstract"
    PATH = "path"
    SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address.

    Args:
        kind: what it names.
        text: as a user writes it, for messages.
        sockaddr: as bind(2) and connect(2) take it; an abstract name begins with NUL.
        ready: the ready-made socket, if it is one.
    """

    kind: Kind
    text: str
    sockaddr: bytes
    ready: socket.socket | None = field(default=None, repr=False, compare=False)

    @property
    def abstract(self) -> bool:
        """Whether no file, and so no file permission, stands behind it."""
        return self.sockaddr.startswith(b"\0")

    def __str__(self) -> str:
        return self.text


def parse_address(address: object) -> Address:
    """Check an address.

    Args:
        address: "@name" is abstract; a str with a "/" in it, or an `os.PathLike`, is a path; a
            `socket.socket` is one that was bound already (socket activation).

    Raises:
        TypeError: it is none of these.
        ValueError: it is empty, too long for the kernel, has a NUL byte, could be a name as well as
            a path, is a URL, or the socket is of the wrong kind.
    """
    if isinstance(address, Address):
        return address
    if is_socket(address):
        return _parse_socket(address)
    if isinstance(address, str):
        if address.startswith("@"):
            return _parse_abstract(address)
        if (found := _URL.fullmatch(address)) is not None:
            raise _no_url(address, *(found.groups()[:2] if found[1] else found.groups()[2:]))
        where = _parse_path(address)
        if "/" not in address:
            # Without its "@" a name would make a socket file in some directory.
            name = address if address.isprintable() else "name"
            raise ValueError(
                f"address {address!r} is neither a name nor a path: write '@{name}' for an "
                f"abstract address, or './{name}' for a socket file in the working directory"
            )
        return where
    if isinstance(address, os.PathLike):
        return _parse_path(os.fsdecode(address))
    raise TypeError(
        "an address is '@name', a path (str or os.PathLike) or a bound socket, "
        f"not {type(address).__name__}"
    )


def parse_client_address(address: object) -> Address:
    """Check an address to connect to: what `parse_address` takes, but for a ready-made socket.

    Raises:
        TypeError, ValueError: as `parse_address`, or it is a socket.
    """
    if not isinstance(address, str | os.PathLike | Address) and not is_socket(address):
        raise TypeError(
            f"an address is '@name' or a path (str or os.PathLike), not {type(address).__name__}"
        )
    where = parse_address(address)
    if where.ready is not None:
        raise TypeError("a client takes '@name' or a path; a ready-made socket is for a server")
    return where


def _no_url(address: str, scheme: str, rest: str) -> ValueError:
    what = f"address {address!r} is a URL, and an address is '@name' or a path"
    if scheme.lower() in _LOCAL and rest:
        return ValueError(f"{what}: write {rest if rest[0] == '@' else _shown(rest)!r}")
    return ValueError(
        f"{what}, as jumiks connects processes of one machine: 'jumiks bridge' carries a feed to "
        "others"
    )


def _parse_abstract(text: str) -> Address:
    name = os.fsencode(text[1:])
    if not name:
        raise ValueError("address '@' has no name: write '@name'")
    _check_no_nul(name, text)
    if len(name) > MAX_ABSTRACT:
        raise ValueError(
            f"address {text!r} is too long: {len(name)} bytes after the '@', "
            f"and the kernel takes {MAX_ABSTRACT}"
        )
    return Address(Kind.ABSTRACT, text, b"\0" + name)


def _check_no_nul(name: bytes, text: str) -> None:
    if b"\0" in name:
        raise ValueError(f"address {text!r} has a NUL byte in it: take it out")


def _parse_path(text: str) -> Address:
    path = os.fsencode(text)
    if not path:
        raise ValueError("the address is empty: write '@name' or a path")
    if path.startswith(b"\0"):
        raise ValueError(f"address {text!r}: an abstract address is written '@name'")
    _check_no_nul(path, text)
    if len(path) > MAX_PATH:
        raise ValueError(
            f"address {text!r} is too long: {len(path)} bytes, and the kernel takes {MAX_PATH}; "
            "take a shorter path, one relative to the working directory, or '@name'"
        )
    return Address(Kind.PATH, _shown(text), path)


def _shown(path: str) -> str:
    # As it may be given as an address again.
    return path if "/" in path else f"./{path}"


def no_folder(folder: str) -> str:
    """Return what to say of a directory that is not there."""
    text = f"there is no directory {folder!r}"
    if folder.startswith("~"):
        text += (
            " ('~' stands for a home directory in a shell alone; os.path.expanduser makes it so)"
        )
    return text


def _parse_socket(sock: socket.socket) -> Address:
    if sock.fileno() < 0:
        raise ValueError("the socket given as address is closed")
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
        raise ValueError(
            "the socket given as address must be AF_UNIX and SOCK_SEQPACKET, not "
            f"{_name(sock.family)} and {_name(sock.type)}: "
            "a socket unit of systemd makes such a one by ListenSequentialPacket="
        )
    sockaddr = _sockname(sock)
    if not sockaddr:
        raise ValueError("the socket given as address is not bound: bind it, or give its address")
    text = os.fsdecode(sockaddr)
    text = "@" + text[1:] if text[0] == "\0" else _shown(text)
    return Address(Kind.SOCKET, text, sockaddr, sock)


def _name(value: int) -> str:
    return value.name if isinstance(value, Enum) else str(value)


def _sockname(sock: socket.socket) -> bytes:
    # Python gives an abstract name as bytes and a path as str.
    name = sock.getsockname()
    return name if isinstance(name, bytes) else os.fsencode(name)
