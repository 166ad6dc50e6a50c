# SPDX-License-Identifier: Apache-2.0
"""How many cursor pages each user holds, including those that clients kept when they left.

The memory of a page counts as the server's, which made it, until no process has it open or mapped.
The server cannot take it back: punching a hole (fallocate(2)) takes the inode's lock, and a peer
can hold that lock as long as it likes, by a write from memory that does not arrive. So pages are
counted. inotify(7) reports when a page is gone: its file has no name, so it is deleted with its
last descriptor and mapping.
"""

from __future__ import annotations

import os
import select
import struct
from collections import Counter
from contextlib import suppress
from typing import Final

from .._green import original
from .._native import lib

__all__: list[str] = []

MORE_THAN_CONNECTIONS: Final = 2
"""Pages that a user may hold for each connection it may have."""

_EVENT: Final = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, len
_DELETED: Final = 0x400  # IN_DELETE_SELF
_READ: Final = 65536


class Pages:
    """The pages of one server that are watched, by their users.

    Args:
        epoll: where the inotify descriptor is registered.
    """

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._watch_fd = -1
        self._users: dict[int, int] = {}
        self._held: Counter[int] = Counter()

    def fileno(self) -> int:
        """Readable once a page is gone; -1 as long as none was watched."""
        return self._watch_fd

    def __len__(self) -> int:
        return self._held.total()

    def held(self, uid: int) -> int:
        """Return how many pages a user holds."""
        return self._held[uid]

    def add(self, uid: int, page_fd: int) -> None:
        """Count a page that a user is about to get.

        If the system does not let us watch it, it counts until the server ends.
        """
        self._held[uid] += 1
        if self._watch_fd < 0:
            self._open()
        if self._watch_fd >= 0:
            watch = lib.jmk_page_watch(self._watch_fd, page_fd)
            if watch >= 0:
                self._users[watch] = uid

    def _open(self) -> None:
        descriptor = lib.jmk_page_watch_new()
        if descriptor < 0:
            return
        try:
            self._epoll.register(descriptor, select.EPOLLIN)
        except OSError:
            os.close(descriptor)
        else:
            self._watch_fd = descriptor

    def read(self) -> None:
        """Count no longer what is gone."""
        with suppress(BlockingIOError):
            told = original("os", "read")(self._watch_fd, _READ)
            for watch, mask, _, _ in _EVENT.iter_unpack(told):  # none has a name behind it
                if mask & _DELETED and (uid := self._users.pop(watch, None)) is not None:
                    self._held[uid] -= 1
                    if not self._held[uid]:
                        del self._held[uid]

    def close(self) -> None:
        """Stop watching."""
        if self._watch_fd >= 0:
            os.close(self._watch_fd)
            self._watch_fd = -1
