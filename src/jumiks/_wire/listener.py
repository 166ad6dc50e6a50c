# SPDX-License-Identifier: Apache-2.0
"""Listening: how a server's socket gets to its address, and what may be there already (unix(7)).

A path needs care, as a socket file outlives the process that made it. These rules keep every start
and stop apart from every other:

* Servers start on one path one at a time: each holds a lock file beside the path, from before it
  binds until it listens, and removes that file again. The file rather than its directory is locked,
  as other programs lock directories for reasons of their own (tmpfiles.d(5)). It is locked by
  flock(2), and every user may open it, so one that a killed process left behind is in no way. One
  that may not be opened, and that is older than any start takes, is removed; where that is not
  allowed either (a sticky directory), each user has a lock of its own. There a start of one user
  could not replace the socket file of another anyway.
* A socket file that refuses connections has no listener. Under the lock no server is about to
  listen there either, so the file is stale, and is replaced. Anything else is left alone.
* Between bind and listen no client can connect, so group and permissions are set there. The
  descriptor's own mode is set before bind, which makes the file with that mode less the umask: at
  no time is it wider than what was asked for.
* A stop removes the file first and then closes the socket, and removes it only if it still is the
  very file (device and inode) that the start made. So only the next start removes a file that
  refuses connections.
* A forked child closes its copies of the sockets that listen at once: a copy would hold an abstract
  name for as long as the child lives. A child that was forked behind Python's back cannot. So a
  stop also shuts the socket down, which refuses connections from then on. It leaves a ready-made
  socket alone: a service manager has it too, and goes on listening.
"""

import errno
import fcntl
import logging
import os
import re
import socket
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Final

from .. import errors
from .._closing import Closing
from .._green import accept, is_readable, real_socket
from .._native import owned_descriptors, whole_number
from .._peer import NO_ID, Peer, group_id
from ..errors import AddressInUse
from . import rights
from .address import Address, Kind, no_folder, parse_address
from .connect import kind_of_file, make_socket, waits

__all__: list[str] = []

log = logging.getLogger("jumiks")

BACKLOG: Final = (1 << 31) - 1
"""As many as the system allows: the kernel takes net.core.somaxconn instead of a larger number."""

LOCK_PATIENCE: Final = 5.0
"""Seconds to wait for other servers that start on the same path; each takes well under one."""

_LONGEST_START: Final = 2.0
"""Seconds after which a lock file that cannot be opened counts as left behind."""

GROUP_MODE: Final = 0o660
"""Permissions of a path that has a group and no mode: a group that may not write cannot connect."""

_listening: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for sock in list(_listening):
        sock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Listener(Closing):
    """A listening, non-blocking, close-on-exec socket, and the file it has to remove.

    Args:
        sock: belongs to the listener from now on.
        address: where it listens.
        made: the path it made, absolute, with its device and inode; None if it made none.
    """

    def __init__(
        self, sock: socket.socket, address: Address, made: tuple[str, int, int] | None = None
    ) -> None:
        self.sock = sock
        self.address = address
        self._made = made
        # Connections in the backlog may have been made before descriptors were refused.
        self._guarded = rights.may_come(sock)
        self._refuses = rights.refuse(sock)
        if self._refuses and not is_readable(sock.fileno()):
            self._guarded = False
        # A forked child that closes its copy must not remove its parent's file.
        self._pid = os.getpid()

    def fileno(self) -> int:
        """Return the descriptor; -1 after `close`."""
        return self.sock.fileno()

    def accept(self) -> socket.socket:
        """Return the next connection, close-on-exec.

        Raises:
            OSError: as accept(2) does; BlockingIOError if there is none.
        """
        try:
            return accept(self.sock)
        except BlockingIOError:
            if self._refuses:
                self._guarded = False  # those that came before it refused descriptors are through
            raise

    def close(self) -> None:
        """Close the socket; remove the path first, if it still is the one that was made here."""
        made, self._made = self._made, None
        if self._pid == os.getpid():
            if made is not None:
                _remove(*made)
            if self.fileno() >= 0:
                self._hang_up()
        self.sock.close()

    def _hang_up(self) -> None:
        # Connections in the backlog may have sent descriptors, which our close would close as well.
        if self.address.kind is Kind.SOCKET:
            # Another process may listen on it too, so it must not be shut down.
            if self._guarded:
                rights.close(self.sock, guarded=True)
            return
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # no client gets in any more
            while self._guarded:
                rights.hang_up(accept(self.sock), guarded=True)


def _remove(path: str, device: int, inode: int) -> None:
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == (device, inode):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("could not remove the socket file %r: %s", path, error)


def check_mode(name: str, mode: object) -> int | None:
    """Check a server's `mode` argument.

    Raises:
        TypeError: it is neither a number nor None.
        ValueError: it has bits beyond those of permissions.
    """
    if mode is None:
        return None
    number = whole_number(mode)
    if number is None:
        raise TypeError(f"{name} is a number such as 0o660, or None, not {mode!r}")
    if not 0 <= number <= 0o777:
        digits = str(number)
        meant = f": did you mean 0o{digits}?" if re.fullmatch("[0-7]{3}", digits) else ""
        raise ValueError(f"{name}={number} ({number:#o}): it must be from 0 to 0o777{meant}")
    return number


def listen(
    address: object,
    *,
    mode: int | None = None,
    group: str | int | None = None,
    backlog: int = BACKLOG,
) -> Listener:
    """Listen at an address.

    Args:
        address: what `parse_address` takes. A ready-made socket belongs to the listener from now
            on.
        mode: permissions of the path, such as 0o660; users that may write may connect. None leaves
            it to the umask, or is 0o660 if there is a group.
        group: name or id of the group that gets the path. None leaves it to the system.
        backlog: connections that may wait to be accepted (listen(2)), if the system allows it.

    Raises:
        AddressInUse: another server is there.
        FileExistsError: something that is no socket stands there.
        PermissionError, FileNotFoundError, OSError: the system refuses, for the reason given.
        TypeError, ValueError: a wrong argument.
    """
    where = parse_address(address)
    if where.kind is not Kind.PATH:
        if mode is not None or group is not None:
            raise ValueError(
                "mode and group are for the file that a path makes, and "
                f"{where.text!r} makes none: for '@name' and a ready-made socket use allow"
            )
        return _listen_ready(where, backlog) if where.ready else _listen_abstract(where, backlog)
    gid = None if group is None else group_id(group)
    if mode is None and gid is not None:
        mode = GROUP_MODE
    return _listen_path(where, mode, gid, backlog)


def _listen_ready(where: Address, backlog: int) -> Listener:
    assert where.ready is not None
    sock = real_socket(where.ready)
    _listening.add(sock)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        rights.refuse(sock)
        try:
            sock.listen(backlog)
        except OSError as error:
            raise ValueError(
                f"the socket given as address cannot listen ({error.strerror}): is it connected?"
            ) from None
    # A service manager hands its sockets over inheritable.
    sock.set_inheritable(False)
    sock.setblocking(False)
    return Listener(sock, where)


def _listen_abstract(where: Address, backlog: int) -> Listener:
    sock = make_socket()
    _listening.add(sock)
    try:
        # Twice, as the owner may have gone between the two calls.
        for last in (False, True):
            try:
                sock.bind(where.sockaddr)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            owner = _owner(where)
            if last or owner is not None:
                raise _in_use(where, owner)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return Listener(sock, where)


def _listen_path(where: Address, mode: int | None, gid: int | None, backlog: int) -> Listener:
    sock = make_socket()
    _listening.add(sock)
    try:
        with _start_lock(where):
            made = _bind_path(sock, where, mode)
            try:
                _give_path(where, mode, gid)
                sock.listen(backlog)
            except BaseException:
                _remove(*made)
                raise
    except BaseException:
        sock.close()
        raise
    return Listener(sock, where, made)


@contextmanager
def _start_lock(where: Address) -> Iterator[None]:
    """Hold the right to start a server on a path; see the top of this module."""
    folder, name = os.path.split(os.path.abspath(where.text))
    file, path = _take_lock(where, os.path.join(folder, f".{name}.jumiks-lock"))
    try:
        yield
    finally:
        # While it is locked, no other start relies on this file: see the check in _try_lock.
        with suppress(OSError):
            os.unlink(path)
        file.close()


def _take_lock(where: Address, path: str) -> tuple[FileIO, str]:
    own_path = f"{path}-{os.geteuid()}"
    for _ in waits(time.monotonic() + LOCK_PATIENCE):
        try:
            file = _try_lock(path)
        except OSError as error:
            # Another user's lock file, in a directory that several share, is there for an instant.
            if error.errno == errno.EACCES and os.path.lexists(path):
                if _is_left_over(path) and path != own_path:
                    path = own_path
                continue
            owner = _owner(where)
            if owner is not None:
                raise _in_use(where, owner) from None
            raise _explain_folder(error, where) from None
        if file is not None:
            return file, path
    raise AddressInUse(
        where.text, detail=errors.STAYED_LOCKED.format(path=path, seconds=LOCK_PATIENCE)
    )


def _is_left_over(path: str) -> bool:
    """Remove a lock file that is too old to be held; True if that is not allowed."""
    try:
        if time.time() - os.lstat(path).st_mtime < _LONGEST_START:
            return False
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _opened(path: str, flags: int, mode: int = 0o777) -> FileIO:
    return next(owned_descriptors(map(os.open, (path,), (flags,), (mode,))))


def _open_lock(path: str) -> FileIO | None:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    # Not made by the same call: in a sticky directory that may fail for another user's file, though
    # it could be opened (fs.protected_regular).
    for access in (os.O_RDWR, os.O_RDONLY):
        try:
            return _opened(path, flags | access)
        except FileNotFoundError:
            break
        except PermissionError:
            if access == os.O_RDONLY:
                raise
    try:
        file = _opened(path, flags | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    with suppress(OSError):
        os.fchmod(file.fileno(), 0o644)  # whatever the umask is
    return file


def _try_lock(path: str) -> FileIO | None:
    file = _open_lock(path)
    if file is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed it since: then others lock a newer file of this name.
        if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
            with suppress(OSError):
                os.utime(file.fileno())  # held from now on: see _is_left_over
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _bind_path(sock: socket.socket, where: Address, mode: int | None) -> tuple[str, int, int]:
    path = os.path.abspath(where.text)
    if mode is not None:
        os.fchmod(sock.fileno(), mode)
    # Twice, as a stale file is removed in between.
    for last in (False, True):
        try:
            sock.bind(where.sockaddr)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise _explain_folder(error, where) from None
        _remove_stale(where)
        if last:
            raise AddressInUse(where.text, detail=errors.TAKEN_AGAIN)
    made = os.lstat(path)
    return path, made.st_dev, made.st_ino


def _remove_stale(where: Address) -> None:
    try:
        found = os.lstat(where.text)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(
            errno.EEXIST,
            f"there is {kind_of_file(found.st_mode)} already, which is left alone: "
            "take another path",
            where.text,
        )
    owner = _owner(where)
    if owner is not None:
        raise _in_use(where, owner)
    try:
        os.unlink(where.text)
    except FileNotFoundError:
        # Its server was just stopping, and only this start can have made a new one since.
        return
    except OSError as error:
        raise OSError(
            error.errno,
            f"a socket file that no server listens on cannot be replaced ({error.strerror}): "
            f"have its owner, user {found.st_uid}, remove it",
            where.text,
        ) from None


def _give_path(where: Address, mode: int | None, gid: int | None) -> None:
    if gid is not None:
        try:
            os.chown(where.text, -1, gid, follow_symlinks=False)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot give the socket file to group {gid} ({error.strerror}): "
                "the server's user must be a member of it",
                where.text,
            ) from None
    # What the umask took away at bind.
    if mode is not None and stat.S_IMODE(os.lstat(where.text).st_mode) != mode:
        os.chmod(where.text, mode)


_UNKNOWN: Final = Peer(0, NO_ID, NO_ID)
_OTHER_TYPE: Final = Peer(0, NO_ID, NO_ID)


def _owner(where: Address) -> Peer | None:
    """Find out which process listens at an address, by a connection that is closed at once.

    Returns:
        None if none does; `_UNKNOWN` if one does and the kernel does not say which, `_OTHER_TYPE`
        if its socket is of another type.

    Raises:
        PermissionError: this user may not even ask.
    """
    probe = make_socket()
    try:
        probe.connect(where.sockaddr)
        return Peer.of(probe)
    except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        try:
            os.lstat(where.text)
        except PermissionError:
            folder = os.path.dirname(where.text) or "."
            text = f"this user may not search {folder!r}: have its permissions changed"
            raise PermissionError(error.errno, text, where.text) from None
        raise PermissionError(
            error.errno,
            "there is a socket that this user may not connect to, so whether it is in use "
            "cannot be told: take another path",
            where.text,
        ) from None
    except OSError as error:
        if error.errno == errno.EAGAIN:  # its backlog is full
            return _UNKNOWN
        if error.errno == errno.EPROTOTYPE:
            return _OTHER_TYPE
        raise
    finally:
        rights.hang_up(probe, rights.may_come(probe))


def _in_use(where: Address, owner: Peer | None) -> AddressInUse:
    if owner is None or owner is _UNKNOWN:
        return AddressInUse(where.text)
    if owner is _OTHER_TYPE:
        return AddressInUse(where.text, detail=errors.OTHER_TYPE)
    detail = errors.OWNER_GONE if owner.pid and _is_gone(owner.pid) else ""
    if owner.pid == os.getpid():
        detail = errors.OURS
    return AddressInUse(where.text, pid=owner.pid or None, uid=owner.uid, detail=detail)


def _is_gone(pid: int) -> bool:
    # /proc may hide it, or not be there. What may not be asked is not known to be gone.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _explain_folder(error: OSError, where: Address) -> OSError:
    # The same error if there is no more to say.
    folder = os.path.dirname(where.text) or "."
    not_allowed = f"this user may not make files in {folder!r}: have its permissions changed"
    # The kernel says the same of a file system that takes no new files, like /proc.
    missing = f"nothing can be made in {folder!r}: take another path"
    if not os.path.isdir(folder):
        missing = f"{no_folder(folder)}: make it first"
    texts = {
        errno.ENOENT: missing,
        errno.ENOTDIR: f"{folder!r} is not a directory: check the path",
        errno.EACCES: not_allowed,
        errno.EPERM: not_allowed,
        errno.EROFS: f"{folder!r} is on a file system that is mounted read-only: take another path",
    }
    if error.errno not in texts:
        return error
    return OSError(error.errno, texts[error.errno], where.text)
