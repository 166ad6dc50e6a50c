# SPDX-License-Identifier: Apache-2.0
"""`jumiks serve`: publish the standard input."""

from __future__ import annotations

import argparse
import signal

from jumiks._options import LOG_SIZE, MOST_LOG_SIZE
from jumiks.errors import counted
from jumiks.server import Server
from jumiks.systemd import listen_socket, notify

from .framing import read_messages
from .streams import say, standard_input

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Publish standard input to its end."""
    descriptor = standard_input()
    server: Server | None = None
    # A signal's exception while the server is made would leave a server that is never closed.
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    )
    try:
        try:
            server = _make(options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        notify("READY=1")
        if options.wait:
            server.wait_for_clients(options.wait)
        for messages in read_messages(descriptor, options.framing, server.max_message):
            server.publish_many(messages)
        _say_if_nobody_heard(server)
    except BaseException:
        if server is not None:
            notify("STOPPING=1")
            server.close()
        raise
    notify("STOPPING=1")
    server.close(options.linger)
    return 0


def _say_if_nobody_heard(server: Server) -> None:
    stats = server.stats()
    if stats.published and not (
        stats.delivered or server.clients() or any(server.endings.values())
    ):
        say(
            f"{counted(stats.published, 'message')} published, no client was "
            "connected: --wait 1 waits for one"
        )


def _make(options: argparse.Namespace) -> Server:
    # The server judges what is too much, and names the option for it.
    room = min(4 * (options.max_message or 0), MOST_LOG_SIZE)
    return Server(
        listen_socket() if options.address == "systemd" else options.address,
        max_lag=options.max_lag,
        on_lag=options.on_lag,
        log_size=max(LOG_SIZE, 2 * options.keep.bytes, room),
        keep=options.keep.messages,
        keep_bytes=options.keep.bytes,
        max_message=options.max_message,
        mode=options.mode,
        group=options.group,
        allow="anyone" if options.anyone else None,
    )
