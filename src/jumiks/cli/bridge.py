# SPDX-License-Identifier: Apache-2.0
"""`jumiks bridge`: a local feed in an engine, and back; see docs/bridge.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from jumiks.bridge import Create, Credentials, Inbound, Outbound
from jumiks.bridge.figures import metrics
from jumiks.bridge.inbound import HISTORY
from jumiks.bridge.look import Look, look
from jumiks.errors import JumiksError
from jumiks.systemd import notify

from .serve import check_file_options
from .status import age, short, table
from .usage import Size, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run"]

STATUS_EVERY = 1.0
"""Seconds between two looks at what the service manager is told."""


def run(options: argparse.Namespace) -> int:
    """Run a bridge until SIGTERM or Ctrl-C, or print the status of a stream."""
    if options.bridge == "status":
        return _status(options)
    logging.basicConfig(format="jumiks bridge: %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("jumiks").setLevel(logging.WARNING)  # each client that comes and goes
    logging.getLogger("jumiks.bridge").setLevel(logging.INFO)
    with _usage():
        bridge = _outbound(options) if options.bridge == "out" else _inbound(options)
    with ExitStack() as stack:
        if options.metrics is not None:
            _serve_metrics(stack, bridge, *options.metrics)
        return asyncio.run(_run(bridge))


@contextmanager
def _usage() -> Iterator[None]:
    # What a bridge refuses of its arguments is a wrong use of the command.
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def credentials_of(options: argparse.Namespace) -> Credentials:
    """Return how to log in."""
    return Credentials(
        creds=options.creds,
        nkey=options.nkey,
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        password_file=options.password_file,
    )


def _outbound(options: argparse.Namespace) -> Outbound:
    create = None
    if options.create:
        create = Create(max_bytes=options.max_bytes or 0, replicas=options.replicas or 1)
    return Outbound(
        options.address,
        options.url,
        subject=options.subject,
        create=create,
        pack=options.pack,
        plain=options.plain,
        window=options.window,
        on_too_large=options.on_too_large,
        credentials=credentials_of(options),
    )


def _sizes(options: argparse.Namespace) -> tuple[int, int | None]:
    # The history and the log's size: one of them alone says what the other is.
    history: Size | None = options.history
    size = options.log_size
    if not isinstance(size, Size):  # it was not given
        return HISTORY if history is None else history, None
    if history is None:
        return size // 2, size
    if history > size:
        raise UsageError(
            f"--history {history.text}: it goes into the log, and --log-size {size.text} is less: "
            "give a smaller --history or a larger --log-size"
        )
    return history, size


def _inbound(options: argparse.Namespace) -> Inbound:
    check_file_options(options)
    history, log_size = _sizes(options)
    return Inbound(
        options.url,
        options.address,
        history=history,
        log_size=log_size,
        wait=options.wait,
        credentials=credentials_of(options),
        max_lag=options.max_lag,
        on_lag=options.on_lag,
        patience=options.patience,
        mode=options.mode,
        group=options.group,
        allow="anyone" if options.anyone else None,
    )


async def _run(bridge: Outbound | Inbound) -> int:
    loop, status = asyncio.get_running_loop(), 0

    def end(number: int) -> None:
        nonlocal status
        status = 0 if number == signal.SIGTERM else 128 + number
        bridge.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    told = asyncio.create_task(_tell(bridge))
    try:
        await bridge.run()
    finally:
        told.cancel()
        notify("STOPPING=1")
    return status


async def _tell(bridge: Outbound | Inbound) -> None:
    # READY once it runs, and then what it does, where a service manager wants to know.
    before = ""
    while True:
        stats = bridge.stats()
        words = f"{stats.state}: {stats.problem}" if stats.problem else stats.state
        if words != before:
            with suppress(OSError):
                notify(f"STATUS={words}" + ("\nREADY=1" if stats.state == "running" else ""))
            before = words
        await asyncio.sleep(STATUS_EVERY)


def _serve_metrics(stack: ExitStack, bridge: Outbound | Inbound, host: str, port: int) -> None:
    try:
        from prometheus_client import CollectorRegistry, start_http_server

        from jumiks.prometheus import Figures
    except ImportError as error:
        raise JumiksError(
            "--metrics needs prometheus-client, which is not installed: "
            "pip install 'jumiks[prometheus]'"
        ) from error
    registry = CollectorRegistry()
    registry.register(Figures(lambda: metrics(bridge)))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        words = error.strerror or str(error)
        raise JumiksError(
            f"--metrics {host}:{port}: {words}: it must be a free port of this machine"
        ) from error
    stack.callback(thread.join)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)


# ---- status


def _status(options: argparse.Namespace) -> int:
    with _usage():
        found = asyncio.run(look(options.url, credentials_of(options)))
    if options.json:
        print(json.dumps(found.as_json()))
        return 0
    for line in _lines(found):
        print(line)
    return 0


def _lines(found: Look) -> Iterator[str]:
    info, position = found.info, found.position
    yield f"{found.url}  {info.engine}, made {info.created or 'never'}"
    yield f"stream  {info.records} records, {short(info.bytes)}B"
    if position is None:
        yield "end     it is empty"
    else:
        old = "" if found.stored is None else f", stored {age(time.time() - found.stored)} ago"
        yield (
            f"end     stream id {position.stream}, which is {position.source} of source "
            f"{position.server}{old}"
        )
    yield f"far     server_id {found.far_id}"
    if found.runs:
        rows = [("STREAM IDS", "SOURCE IDS", "SOURCE", "BEGINS")]
        rows += [
            (
                f"{run.first}-{run.last}",
                f"{run.source_first}-{run.source_last}",
                str(run.server),
                run.begins,
            )
            for run in found.runs
        ]
        yield ""
        yield from table(rows)
