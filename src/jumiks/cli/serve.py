# SPDX-License-Identifier: Apache-2.0
"""`jumiks serve`: publish the standard input."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from jumiks._options import LOG_SIZE, MOST_LOG_SIZE, ServerOptions
from jumiks._wire.handshake import FIRST_ID
from jumiks.errors import counted
from jumiks.server import Server
from jumiks.systemd import listen_socket, notify

from .framing import read_messages
from .streams import say, standard_input
from .usage import Size, UsageError, size_text

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Publish standard input to its end."""
    descriptor = standard_input()
    server: Server | None = None
    try:
        with signals_held():
            server = make_server(options)
        notify("READY=1")
        if options.wait:
            server.wait_for_clients(options.wait)
        largest = server.max_message
        for messages in read_messages(
            descriptor, options.framing, largest, options.too_long, tell=say
        ):
            server.publish_many(messages)
        say_if_nobody_heard(server, waited=bool(options.wait))
    except BaseException:
        if server is not None:
            notify("STOPPING=1")
            server.close()
        raise
    notify("STOPPING=1")
    server.close(options.linger)
    return 0


@contextmanager
def signals_held() -> Iterator[None]:
    """Let signals come at the end of the block.

    Their exception while a server is made would leave a server that is never closed.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def say_if_nobody_heard(server: Server, *, waited: bool = False) -> int:
    """Say so if no client was there for what was published; return how many messages that were.

    Args:
        server: which has published it.
        waited: whether `--wait` was given.
    """
    stats = server.stats()
    if stats.published and not (
        stats.delivered or server.clients() or any(server.endings.values())
    ):
        hint = "" if waited else ": --wait 1 waits for one"
        say(f"{counted(stats.published, 'message')} published, no client was connected{hint}")
        return stats.published
    return 0


def _log_size(options: argparse.Namespace) -> int:
    # What is too much is told in the words that were typed, and with the option that has to change.
    keep: Size = options.keep.bytes
    largest: Size | None = options.max_message
    if not isinstance(options.log_size, Size):  # it was not given
        if 2 * keep > MOST_LOG_SIZE:
            raise UsageError(
                f"--keep {keep.text}: at most {size_text(MOST_LOG_SIZE // 2)} can be kept, half of "
                "the largest log"
            )
        return max(LOG_SIZE, 2 * keep, min(4 * (largest or 0), MOST_LOG_SIZE))
    size: Size = options.log_size
    room = 1 << (size - 1).bit_length()  # as the server rounds it
    if 2 * keep > room:
        raise UsageError(
            f"--keep {keep.text}: at most half of --log-size {size.text} is kept, as clients need "
            "room too: give a smaller --keep or a larger --log-size"
        )
    if largest is not None and 4 * largest > room:
        raise UsageError(
            f"--max-message {largest.text}: it is at most a quarter of --log-size {size.text}: "
            "give a smaller --max-message or a larger --log-size"
        )
    return size


def _check_kept(messages: int, log_size: int, given: bool) -> None:
    most = ServerOptions(log_size=log_size).most_kept
    if messages > most:
        which = f"--log-size {size_text(log_size)}" if given else f"a log of {size_text(log_size)}"
        advice = "a smaller --keep or a larger --log-size" if given else "a --log-size for them"
        raise UsageError(
            f"--keep {messages}: half of {which} is kept, which has room for {most} messages at "
            f"most, if they are empty: give {advice}"
        )


def check_file_options(options: argparse.Namespace) -> None:
    """Refuse options of a socket file where this makes none, and `--anyone` where it makes one.

    Raises:
        UsageError: there is such an option.
    """
    abstract = options.address.startswith("@")
    if options.anyone and not abstract and options.address != "systemd":
        raise UsageError(
            f"--anyone is for an abstract address, and {options.address!r} is a path, whose file "
            "has permissions: give --mode 0666 for it"
        )
    if options.mode is None and options.group is None:
        return
    if options.address == "systemd":
        advice = "SocketMode= and SocketGroup= of the socket unit say the same"
    elif abstract:
        advice = "--anyone is all it needs" if options.anyone else "give a path, or --anyone"
    else:
        return
    raise UsageError(
        f"--mode and --group are for the file that a path makes, and {options.address!r} makes "
        f"none: {advice}"
    )


def make_server(
    options: argparse.Namespace, first_id: int = FIRST_ID, server_id: int | None = None
) -> Server:
    """Make the server that the options ask for.

    Args:
        options: those of the command line.
        first_id: as `Server` takes it.
        server_id: likewise.
    """
    check_file_options(options)
    log_size = _log_size(options)
    _check_kept(options.keep.messages, log_size, isinstance(options.log_size, Size))
    return Server(
        listen_socket() if options.address == "systemd" else options.address,
        max_lag=options.max_lag,
        on_lag=options.on_lag,
        patience=options.patience,
        log_size=log_size,
        keep=options.keep.messages,
        keep_bytes=options.keep.bytes,
        max_message=options.max_message,
        mode=options.mode,
        group=options.group,
        allow="anyone" if options.anyone else None,
        first_id=first_id,
        server_id=server_id,
    )
