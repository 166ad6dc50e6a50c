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

from jumiks._gap import Gap
from jumiks.client import Client
from jumiks.errors import ServerClosed

from .framing import write_all, write_messages
from .streams import check_output, say

__all__ = ["run"]

COMMAND_FAILED: Final = 5


def run(options: argparse.Namespace) -> int:
    """Listen until the server closes, or `--count` messages have come."""
    if not options.command:
        check_output()  # before a message is received that cannot be written
    with Client(
        options.address,
        start=options.start,
        wait=options.wait,
        name=options.name,
        delivery=options.delivery,
        on_gap=_tell,
        reconnect=options.reconnect,
    ) as client:
        try:
            return _run_commands(client, options) if options.command else _write(client, options)
        except ServerClosed:
            return 0


def _tell(gap: Gap) -> None:
    count = "" if gap.count is None else f", {gap.count} in all"
    say(f"{gap} are lost{count}: {gap.reason.value}")


def _write(client: Client, options: argparse.Namespace) -> int:
    left = sys.maxsize if options.count is None else options.count
    descriptor = sys.stdout.fileno()
    while left:
        batch = client.receive_many()
        messages: Sequence[bytes] = batch if len(batch) <= left else batch[:left]
        if options.json:
            write_all(descriptor, _as_json(batch.first_id, messages))
        else:
            write_messages(descriptor, options.framing, messages)
        left -= len(messages)
    client.ack(batch.first_id + len(messages) - 1)
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


def _run_commands(client: Client, options: argparse.Namespace) -> int:
    left = sys.maxsize if options.count is None else options.count
    while left:
        message = client.receive()
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
