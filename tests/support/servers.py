# SPDX-License-Identifier: Apache-2.0
"""The servers that tests make: they share their log by default, or not, as the run has it.

A log that is shared is small, as the pages of a large one take longer to make than most tests.
"""

import mmap
import weakref
from typing import TYPE_CHECKING

import jumiks
from support.base import SHARE_LOG

default_taken = mmap.mmap(-1, 1)
"""Not zero once the default was taken, here or in a forked child: memory that they share."""

LOG_SIZE = 1 << 20
"""Bytes of a log, where a test says nothing that a size follows from."""

LARGE = {"log_size", "max_message", "keep_bytes", "history"}
"""Options that say it."""

defaults: weakref.WeakSet[object] = weakref.WeakSet()
"""All that took the default and are still there."""


class _OfThisRun:
    """Takes the run's default for `share_log` where the test gives none."""

    if not TYPE_CHECKING:  # mypy holds tests to the signatures of jumiks

        def __init__(self, where, **options):
            if "share_log" not in options:
                default_taken[0] = 1
                defaults.add(self)
                options["share_log"] = SHARE_LOG
            if SHARE_LOG and not LARGE & options.keys():
                options["log_size"] = LOG_SIZE
            super().__init__(where, **options)


class Server(_OfThisRun, jumiks.Server):
    """A server as tests make it."""


class AsyncServer(_OfThisRun, jumiks.AsyncServer):
    """The same for event loops."""


def preamble() -> str:
    """What a script begins with: `jumiks`, and the servers that have the default of this run."""
    default_taken[0] = 1
    return (
        "import functools, jumiks\n"
        f"Server = functools.partial(jumiks.Server, share_log={SHARE_LOG})\n"
        f"AsyncServer = functools.partial(jumiks.AsyncServer, share_log={SHARE_LOG})\n"
    )
