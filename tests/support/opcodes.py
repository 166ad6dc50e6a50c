# SPDX-License-Identifier: Apache-2.0
"""An exception at every bytecode of the package, one after the other: what a signal's handler does.

`raises_at` raises before the bytecode of a given number. Python itself handles signals in fewer
places: where a function begins, at a jump back, and once a call is over. So two kinds are left out,
where no signal comes. From the end of a `with` block to the call of `__exit__` no statement is
safe. At the first and the last bytecode of an `except` block the interpreter takes note of what it
handles, and of its end: raised there, it would keep what was caught, and all that this refers to.
"""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import jumiks

PACKAGE = str(Path(jumiks.__file__).parent)

needs_bytecodes = pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="Python 3.12 and later do not trace the first bytecodes of a call",
)

ALL = bool(os.environ.get("JUMIKS_TEST_EXAMPLES"))
"""Whether to try every bytecode where a call has thousands, and not some of them."""


_NOTES = ("PUSH_EXC_INFO", "POP_EXCEPT")
_OUT = ("LOAD_FAST", "LOAD_FAST_BORROW", "RETURN_VALUE", "YIELD_VALUE")
_TO_HANDLER = ("STORE_FAST", "PUSH_NULL", "PRECALL", "CALL")
_PAST_NONE = ("STORE_FAST", "POP_JUMP_FORWARD_IF_NONE")


class AlarmError(Exception):
    """What a handler raises."""


class Alarm:
    """Where the exception came: the function's name, and the bytecode's."""

    def __init__(self) -> None:
        self.function = self.opcode = ""

    def came_from(self, frame: FrameType) -> None:
        self.function = frame.f_code.co_name
        self.opcode = dis.opname[frame.f_code.co_code[frame.f_lasti]]

    @property
    def at_the_very_end(self) -> bool:
        """Whether nothing was left to do but to hand out; no signal is handled there."""
        return (
            self.opcode in _OUT
            or (self.function == "run" and self.opcode in _TO_HANDLER)
            or (self.function == "receive" and self.opcode in _PAST_NONE)
        )


@cache
def never_interrupted(code: CodeType) -> frozenset[int]:
    """Where the bytecodes stand that are left out.

    Those that leave `with` load None three times, and call.
    """
    steps = list(dis.get_instructions(code))
    found = {each.offset for each in steps if each.opname in _NOTES}
    for index in range(len(steps) - 4):
        nones = steps[index : index + 3]
        if any((each.opname, each.argval) != ("LOAD_CONST", None) for each in nones):
            continue
        first, last = index, index + 3
        while steps[first - 1].opname in ("SWAP", "NOP"):
            first -= 1
        while steps[last].opname in ("PRECALL", "CACHE"):
            last += 1
        found.update(each.offset for each in steps[first : last + 1])
    return frozenset(found)


def raises_at(number: int, call: Callable[[], object], alarm: Alarm | None = None) -> bool:
    """Call it, and raise at the bytecode of this number in the package; False if it has fewer."""

    def ring(frame: FrameType) -> None:
        if alarm is not None:
            alarm.came_from(frame)
        raise AlarmError

    return happens_at(number, call, ring)


def happens_at(
    number: int,
    call: Callable[[], object],
    action: Callable[[FrameType], object],
    *,
    within: tuple[str, ...] = (PACKAGE,),
) -> bool:
    """Call it, and do something at the bytecode of this number; False if it has fewer.

    `within` has the beginnings of the files' names whose bytecodes are counted.
    """
    left = number

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "opcode" and frame.f_lasti not in never_interrupted(frame.f_code):
            left -= 1
            if left < 0:
                sys.settrace(None)
                action(frame)
        return local

    def trace(frame: FrameType, _: str, __: Any) -> Any:
        if not frame.f_code.co_filename.startswith(within):
            return None
        frame.f_trace_opcodes = True
        return local

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, AlarmError):
            before_hook(unraisable)

    before, before_hook = sys.gettrace(), sys.unraisablehook
    sys.unraisablehook = hook
    sys.settrace(trace)
    try:
        with suppress(jumiks.JumiksError, AlarmError):
            call()
    finally:
        sys.settrace(before)
        sys.unraisablehook = before_hook
    return left < 0  # Python swallows what is raised while something is given up


def numbers(step: int) -> Iterator[int]:
    """0, 1, 2, ...; or with gaps of about `step`, others each time, where not all are tried."""
    number = 0 if ALL else int.from_bytes(os.urandom(2)) % step
    while True:
        yield number
        number += 1 if ALL else step
