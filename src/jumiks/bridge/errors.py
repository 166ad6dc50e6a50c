# SPDX-License-Identifier: Apache-2.0
"""What an engine raises, and the sentences that more than one of them says."""

from __future__ import annotations

import errno
import re
from typing import Final

from ..errors import JumiksError, counted

__all__ = ["Conflict", "EngineError", "TooLarge", "Unfit"]

NO_ANSWER: Final = "no answer"
"""The state where an engine is silent, or a link too slow."""

_REFUSED: Final = re.compile(rf"\bErr(no|or) {errno.ECONNREFUSED}\b")


class EngineError(JumiksError):
    """The engine cannot be reached, refuses, or failed; the bridge tries again.

    Args:
        text: what happened.
        state: the same in a word or two, for the status.
    """

    def __init__(self, text: str, state: str = "unreachable") -> None:
        super().__init__(text)
        self.state = state


class Conflict(EngineError):
    """The stream does not end where an append expected it to end; nothing was stored."""

    def __init__(self, text: str) -> None:
        super().__init__(text, "conflict")


class Unfit(EngineError):
    """There is no such stream, or it is one that a bridge must not use."""

    def __init__(self, text: str) -> None:
        super().__init__(text, "unfit stream")


class TooLarge(JumiksError):
    """A message is larger than the engine takes, and the bridge is to stop then."""


class Standby(EngineError):
    """Another bridge appends to the stream, or may."""

    def __init__(self, text: str) -> None:
        super().__init__(text, "standby")


class Loop(JumiksError):
    """The source serves the very stream that is appended to."""


def not_installed(scheme: str, extra: str) -> JumiksError:
    """Make the error for an engine whose client is missing."""
    return JumiksError(
        f"{scheme}:// needs a client that is not installed: pip install 'jumiks[{extra}]'"
    )


def over(where: object) -> EngineError:
    """Make the error for a connection that has ended."""
    return EngineError(f"{where}: the connection ended")


def unreachable(where: object, words: str) -> EngineError:
    """Make the error for a connection that could not be made, or that failed.

    Args:
        where: whom to.
        words: what a client says; clients chain and word what the system said.
    """
    if _REFUSED.search(words):
        words = "nothing listens there: is the engine running, and is this its port?"
    return EngineError(f"{where}: {words}")


def no_answer(where: object, seconds: float, more: str = "") -> EngineError:
    """Make the error for an engine that is silent."""
    return EngineError(f"{where}: no answer within {seconds:g} s{more}", NO_ANSWER)


def not_allowed(where: object, words: str) -> EngineError:
    """Make the error for a password, a token or a key that the engine does not take."""
    return EngineError(f"{where}: it does not let this user in: {words}", "not allowed")


def no_file(path: str, words: str, state: str) -> EngineError:
    """Make the error for a file to log in with that cannot be read; it may come into being."""
    return EngineError(f"{path}: {words}", state)


def no_key(path: str, with_token: bool) -> EngineError:
    """Make the error for a file without a key of NATS."""
    needs = "a user's JWT and the seed of its key" if with_token else "the seed of a user's key"
    return EngineError(f"{path}: it must have {needs}, a line that begins with SU", "not allowed")


def no_pem(paths: list[str], words: str) -> EngineError:
    """Make the error for files of TLS that have something else."""
    return EngineError(f"{', '.join(paths)}: no PEM certificate or key: {words}", "tls")


def cut_at_once(where: object, words: str) -> EngineError:
    """Make the error for an engine that ends a connection without TLS at its first word."""
    return EngineError(f"{where}: {words}; if it speaks TLS alone, the URL begins with rediss://")


def tls_failed(where: object, words: str) -> EngineError:
    """Make the error for a certificate that one of both ends does not take."""
    return EngineError(f"{where}: TLS failed: {words}", "tls")


def no_tls(where: object) -> EngineError:
    """Make the error for an engine that would have the rest go in the clear."""
    return tls_failed(where, "this server offers none")


def no_stream(where: object) -> Unfit:
    """Make the error for a stream that is not there."""
    return Unfit(f"{where}: there is no such stream; jumiks bridge out makes it, with --create")


def appends(conflict: Conflict) -> Standby:
    """Make the error for a stream that another bridge appends to."""
    return Standby(f"{conflict}: another bridge appends")


def another_source(stream: object, last: int, source: object, server: int) -> Standby:
    """Make the error for a stream whose last record is of another source.

    Args:
        stream: which.
        last: the `server_id` of that other source.
        source: the address of this bridge's own.
        server: its `server_id`.
    """
    return Standby(
        f"{stream}: its last record is of source {last}, and {source} is {server}: this bridge "
        "appends once no other one has done so for some seconds, as a stream is for one source"
    )


def loop(stream: object, source: object, server: int) -> Loop:
    """Make the error for a source that serves what the bridge stores."""
    return Loop(
        f"{source} (server_id {server}) is the far feed of {stream}: its messages come from there, "
        "and would be stored again without end; name the feed that is published, or another stream"
    )


def lost_words(record_at: int, lost: int | None, kind: str) -> str:
    """Say in the log what is lost."""
    words = "an unknown number of messages" if lost is None else counted(lost, "message")
    return f"gap at stream id {record_at}: {words} lost ({kind})"


def opened_words(where: object, engine: str, records: int) -> str:
    """Say in the log what a bridge has found."""
    return f"{where}: {engine}, {counted(records, 'record')}"


def restarted_words(source: object, server: int, first: int, seq: int) -> str:
    """Say in the log that a source's place was taken.

    Args:
        source: its address.
        server: the `server_id` of the new one.
        first: that one's id of its first message here.
        seq: the stream id that this message has.
    """
    return f"{source}: another source, server_id {server}: its id {first} is stream id {seq}"


def blocks_words(source: object) -> str:
    """Say in the log that a source waits for this bridge, and so for the engine."""
    return (
        f"{source}: its lag policy is 'block', so an outage of the engine stops the publisher; "
        "take on_lag='disconnect' or 'skip', and a log that has room for the longest outage"
    )
