# SPDX-License-Identifier: Apache-2.0
"""`jumiks listen`: write messages to the standard output, or to a command."""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from jumiks._client.stream import OnGap
from jumiks._gap import Gap, in_words
from jumiks.client import Client
from jumiks.errors import MessagesLost, ServerClosed

from .framing import write_all, write_messages
from .streams import check_output, say
from .usage import UsageError

__all__ = ["run"]

COMMAND_FAILED: Final = 5
MESSAGES_LOST: Final = 6


def run(options: argparse.Namespace) -> int:
    """Listen until the server closes, or `--count` messages have come."""
    if options.on_gap == "write" and (options.command or not options.json):
        raise UsageError("--on-gap write makes a gap a line of JSON: give --json, and no --exec")
    if not options.command:
        check_output()  # before a message is received that cannot be written
    client: Client[bytes | Gap] = Client(  # type: ignore[assignment]
        options.address,
        start=options.start,
        wait=options.wait,
        name=options.name,
        delivery=options.delivery,
        on_gap=ON_GAP[options.on_gap],
        reconnect=options.reconnect,
    )
    with client:
        try:
            return _run_commands(client, options) if options.command else _write(client, options)
        except ServerClosed:
            return 0
        except MessagesLost as error:
            _tell(error.gap)
            return MESSAGES_LOST


def _tell(gap: Gap) -> None:
    count = "" if gap.count is None else f", {gap.count} in all"
    say(f"{in_words(gap, 'lost')}{count}: {gap.reason.value}")


ON_GAP: Final[dict[str, OnGap]] = {"tell": _tell, "write": "yield", "fail": "raise"}


def _write(client: Client[bytes | Gap], options: argparse.Namespace) -> int:
    left = sys.maxsize if options.count is None else options.count
    descriptor = sys.stdout.fileno()
    while left:
        batch = client.receive_many()
        if isinstance(batch, Gap):
            write_all(descriptor, _gap_as_json(batch))
            continue
        last = batch.first_id + min(len(batch), left) - 1
        messages: Sequence[bytes] = batch if len(batch) <= left else batch[:left]
        if options.json:
            write_all(descriptor, _as_json(batch.first_id, messages))
        else:
            write_messages(descriptor, options.framing, messages)
        left -= len(messages)
    client.ack(last)
    return 0


def _as_json(first_id: int, messages: Sequence[bytes]) -> bytes:
    lines = []
    for packet_id, message in enumerate(messages, first_id):
        try:
            name, text = "payload", message.decode()
        except UnicodeDecodeError:
            name, text = "base64", base64.b64encode(message).decode()
        lines.append(json.dumps({"id": packet_id, "length": len(message), name: text}) + "\n")
    return "".join(lines).encode()


def _gap_as_json(gap: Gap) -> bytes:
    facts = {"first": gap.first, "last": gap.last, "count": gap.count, "reason": gap.reason.name}
    return json.dumps({"gap": facts}).encode() + b"\n"


def _run_commands(client: Client[bytes | Gap], options: argparse.Namespace) -> int:
    left = sys.maxsize if options.count is None else options.count
    while left:
        message = client.receive()
        assert isinstance(message, bytes)  # a gap would be no message of a command
        environment = {**os.environ, "JUMIKS_ID": str(client.last_id)}
        done = subprocess.run(
            options.command, shell=True, input=message, env=environment, check=False
        )
        if done.returncode:
            say(
                f"the command failed with status {done.returncode} for message {client.last_id}, "
                "which is not acked"
            )
            return COMMAND_FAILED
        client.ack()
        left -= 1
    return 0
