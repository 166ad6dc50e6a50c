# SPDX-License-Identifier: Apache-2.0
"""The C core as Python sees it: the only module that imports what was built.

`lib` calls let go of the GIL. A server's handle may be used from any thread, a client's by one at a
time; csrc/jumiks.h says which calls are exceptions.
"""

import inspect
import operator
import os
from collections.abc import Callable, Iterator
from io import FileIO
from itertools import repeat
from typing import TYPE_CHECKING, Final, TypeVar

from .errors import CONDITIONS, FAULTS, ProtocolError, no_library, protocol_error

try:
    from ._core import ffi, lib
except ModuleNotFoundError as error:
    if error.name != f"{__package__}._core":
        raise
    raise no_library(os.path.dirname(__file__)) from None
from ._objects import (
    AsyncMessages,
    Gathered,
    Handout,
    Messages,
    Publisher,
    Publishing,
    Receiver,
    Reservation,
    frame_bytes,
    frame_view,
    gather,
    gather_frames,
    message_list,
    row_bytes,
    row_size,
    row_view,
    split_frames,
    view_list,
)

if TYPE_CHECKING:
    from ._core import Client

__all__ = [
    "AsyncMessages",
    "Gathered",
    "Handout",
    "Messages",
    "Publisher",
    "Publishing",
    "Receiver",
    "Reservation",
    "address_of",
    "check",
    "check_callback",
    "check_handler",
    "fault_of",
    "ffi",
    "frame_bytes",
    "frame_view",
    "gather",
    "gather_frames",
    "lib",
    "message_list",
    "nanoseconds",
    "new_eventfd",
    "owned",
    "owned_descriptors",
    "row_bytes",
    "row_size",
    "row_view",
    "split_frames",
    "view_list",
]

_T = TypeVar("_T")

_SECOND = 1_000_000_000
_LONGEST = (1 << 63) - 1

_CONDITIONS: Final[dict[int, str]] = {getattr(lib, name): name for name in CONDITIONS}
_FAULTS: Final[dict[int, str]] = {getattr(lib, name): name for name in FAULTS}


def address_of(pointer: object) -> int:
    """Return a C pointer as a number, for the functions that know no cffi."""
    return int(ffi.cast("uintptr_t", pointer))


def owned(made: Iterator[_T], free: Callable[[_T], object]) -> _T:
    """Return a handle that is given back once nobody refers to it.

    Args:
        made: makes it when it is asked for its one item: a `map` over a function in C. So no
            bytecode runs between the making and the owning, and no signal is handled there.
        free: gives it back; called with NULL where it could not be made.
    """
    return next(map(ffi.gc, made, (free,)))


def owned_descriptors(made: Iterator[int]) -> Iterator[FileIO]:
    """Return what closes the descriptors at the latest once nobody refers to it.

    An int would be lost with an exception between two bytecodes, and a `__del__` may be cut short
    by one; this is in C.

    Args:
        made: makes one each time it is asked: a `map` over a function in C, as for `owned`.
    """
    return map(FileIO, made, repeat("r+"))


def new_eventfd() -> FileIO:
    """Return an eventfd, by which one thread wakes another."""
    return next(owned_descriptors(map(os.eventfd, (0,), (os.EFD_CLOEXEC | os.EFD_NONBLOCK,))))


def whole_number(value: object) -> int | None:
    """Return a whole number of any kind, such as numpy's, as an int; None if it is none.

    True and False are none, and no float is one.
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def nanoseconds(seconds: object, name: str = "timeout", *, none: bool = True) -> int:
    """Return a time as the core takes it.

    Args:
        seconds: 0 or more; None is no limit.
        name: the argument's name, for messages.
        none: whether it may be None.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, NaN, or more than a float can hold.
    """
    if seconds is None and none:
        return -1
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} is a number of seconds{' or None' * none}, not {seconds!r}")
    no_limit = "; None is no limit" * none
    try:
        float(seconds)  # what a clock is added to
    except OverflowError:
        size = seconds.bit_length() if isinstance(seconds, int) else 0
        raise ValueError(
            f"{name} is a number of {size} bits: it must be one that a float can hold" + no_limit
        ) from None
    if not seconds >= 0:
        raise ValueError(f"{name}={seconds}: it must be 0 seconds or more{no_limit}")
    return int(min(seconds * _SECOND, _LONGEST))


def check_callback(function: object, name: str) -> None:
    """Raise TypeError unless a callback can be called, or is None; `name` is the argument's.

    What it returns is not awaited, so a coroutine function would never run.
    """
    if function is not None and not callable(function):
        raise TypeError(f"{name} is a function or None, not {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{name} is a plain function, as nobody awaits what {function!r:.100} returns; "
            "let it start a task"
        )


def check_handler(handler: object, *, awaited: bool) -> None:
    """Raise TypeError unless each message can be handed to this function.

    Args:
        handler: the function.
        awaited: whether what it returns is awaited.
    """
    if not callable(handler):
        raise TypeError(f"handler is a function that takes a message, not {handler!r:.100}")
    if not awaited and inspect.iscoroutinefunction(handler):
        raise TypeError(
            f"handler is a plain function, as only AsyncClient awaits what {handler!r:.100} returns"
        )


def check(code: int, what: str) -> None:
    """Raise what a return code of the core stands for.

    Args:
        code: 0 is success, a negative number -errno, a positive one a JMK_E_* condition.
        what: "server" or "client": whose method was called.

    Raises:
        OSError: the operating system failed.
        JumiksError: the subclass for that condition.
    """
    if code == 0:
        return
    if code < 0:
        raise OSError(-code, os.strerror(-code))
    kind, text = CONDITIONS[_CONDITIONS[code]]
    raise kind(text.format(what=what))


def fault_of(client: "Client") -> ProtocolError:
    """Return the error for what a client's server did wrong, after JMK_E_PROTOCOL."""
    fault = ffi.new("struct jmk_fault *")
    lib.jmk_client_fault(client, fault)
    return protocol_error(_FAULTS[fault.kind], fault.found, fault.due)
