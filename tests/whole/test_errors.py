# SPDX-License-Identifier: Apache-2.0
import copy
import errno
import pickle
import re

import pytest
from support.base import ROOT

from jumiks import Gap, GapReason, errors
from jumiks.errors import (
    AckError,
    AddressInUse,
    Busy,
    Closed,
    ConnectionEnded,
    ConnectionLost,
    Disconnected,
    Forked,
    JumiksError,
    Lagged,
    MessagesLost,
    MessageTooLarge,
    Overwritten,
    ProtocolError,
    Refused,
    ServerClosed,
    Timeout,
    VersionMismatch,
)

pytestmark = pytest.mark.no_core

HEADER = (ROOT / "csrc/jumiks.h").read_text("utf-8").partition("/* cdef: end */")[0]

LAGGED = Lagged(
    limit_kind="messages",
    limit=10_000,
    lag=10_001,
    lag_bytes=640_064,
    last_acked=100_499,
    first_lost=100_700,
    last_lost=112_000,
    oldest_kept=100_600,
)

SAMPLES: tuple[JumiksError, ...] = (
    AckError("no such message"),
    AddressInUse("@ticks", pid=41, uid=1000, detail="it is busy"),
    Busy("two threads"),
    Closed("the client is closed"),
    ConnectionEnded("over"),
    ConnectionLost("end of stream", first_lost=100_003, last_lost=100_004),
    Disconnected("on purpose"),
    Forked("in a child"),
    JumiksError("base"),
    LAGGED,
    MessageTooLarge(5000, 4096),
    MessagesLost(Gap(100_000, None, GapReason.RESTARTED)),
    Overwritten(100_000, 100_041),
    ProtocolError("an odd frame"),
    Refused("too many clients", status=3),
    ServerClosed("good night"),
    Timeout("no room", holder="pid 12", published=7),
    VersionMismatch(ours=(1, 0, 0), theirs=(2, 1, 0)),
)


def facts(error: JumiksError) -> dict[str, object]:
    known = dict(vars(error), args=error.args, text=str(error), kind=type(error))
    if isinstance(error, OSError):
        known.update(errno=error.errno, strerror=error.strerror, filename=error.filename)
    return known


def test_there_is_a_sample_of_every_class_and_no_class_is_missing_in_all() -> None:
    assert sorted({type(error).__name__ for error in SAMPLES}) == sorted(errors.__all__)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_pickling_keeps_every_fact(error: JumiksError) -> None:
    assert facts(pickle.loads(pickle.dumps(error))) == facts(error)
    assert facts(copy.copy(error)) == facts(error)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_has_one_base_and_stands_in_the_tree_of_the_module(error: JumiksError) -> None:
    assert isinstance(error, JumiksError)
    assert f"── {type(error).__name__}" in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (Timeout, TimeoutError),
        (MessageTooLarge, ValueError),
        (AckError, ValueError),
        (AddressInUse, OSError),
        (ConnectionEnded, ConnectionError),
    ],
)
def test_an_error_is_caught_as_the_builtin_it_is_akin_to(
    kind: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(kind, builtin)


def test_address_in_use_names_the_owner_and_has_the_errno() -> None:
    error = AddressInUse("@ticks", pid=41, uid=1000)
    assert error.errno == errno.EADDRINUSE
    assert (error.address, error.pid, error.uid) == ("@ticks", 41, 1000)
    assert "'@ticks' is in use by process 41 of user 1000" in str(error)


def test_address_in_use_by_an_unknown_owner_says_so() -> None:
    assert "by a process that cannot be seen from here" in str(AddressInUse("@ticks"))


def test_message_too_large_names_size_limit_and_setting() -> None:
    error = MessageTooLarge(5000, 4096)
    assert (error.size, error.limit) == (5000, 4096)
    assert "5000 bytes" in str(error)
    assert "max_message, 4096 bytes" in str(error)
    assert "raise the server's max_message, which is at most a quarter of its log_size" in str(
        error
    )


def test_a_timeout_tells_the_client_that_held_it_and_what_went_in() -> None:
    error = Timeout("no room", holder="pid 12", published=7)
    assert (str(error), error.holder, error.published) == ("no room", "pid 12", 7)
    assert (Timeout("no room").holder, Timeout("no room").published) == (None, 0)


def test_a_version_mismatch_names_both_versions() -> None:
    error = VersionMismatch(ours=(1, 0, 0), theirs=(2, 1, 0))
    assert isinstance(error, Refused)
    assert error.status == 1
    assert "version 2.1.0" in str(error)
    assert "this end 1.0.0" in str(error)


def test_a_gap_of_one_message_is_told_as_one() -> None:
    assert str(Gap(100_000, 100_001)) == "messages 100000 to 100001"
    assert str(Gap(100_000, 100_000)) == "message 100000"
    assert str(MessagesLost(Gap(100_000, 100_000))).startswith("message 100000 is lost: ")
    assert str(MessagesLost(Gap(100_000, 100_001))).startswith("messages 100000 to 100001 are ")


def test_lagged_says_all_its_figures() -> None:
    text = str(LAGGED)
    for word in (
        "had been at its limit of 10000 messages (max_lag)",
        "was 10001 messages (640064 bytes) behind at the end",
        "did not work off 5000 messages within the server's patience (1 s by default)",
        "or had no time for that, as another client kept up; ",
        "the last ack was for 100499",
        "not received: messages 100700 to 112000 (11301 of them)",
        "connect again with start=100700",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("oldest_kept", "words"),
    [
        (100_700, "to go on, connect again with start=100700: it tells what is no longer kept"),
        (100_701, "the server kept 100701 and later"),
        (112_000, "connect again with start=112000"),
    ],
)
def test_lagged_says_which_of_the_lost_messages_can_still_be_had(
    oldest_kept: int, words: str
) -> None:
    error = Lagged(
        limit_kind="bytes",
        limit=4096,
        lag=3,
        first_lost=100_700,
        last_lost=112_000,
        oldest_kept=oldest_kept,
    )
    assert words in str(error)
    assert "at its limit of 4096 bytes (log_size), and was 3 messages (0 bytes) behind" in str(
        error
    )
    assert "did not work off 2048 bytes within" in str(error)
    assert "have the server raise log_size or patience, or use on_lag='block'" in str(error)
    assert "use a larger 'serve --log-size' or 'serve --patience', or" in error.command_text
    assert "it never acked" in str(error)


def test_lagged_has_the_words_of_the_command_line() -> None:
    assert "have the server raise max_lag or patience, or use on_lag='block'" in str(LAGGED)
    assert LAGGED.command_text == (
        str(LAGGED)
        .replace("start=100700", "--from 100700")
        .replace(
            "have the server raise max_lag or patience, or use on_lag='block'",
            "use a larger 'serve --max-lag' or 'serve --patience', or 'serve --on-lag block'",
        )
    )


def test_one_message_is_one() -> None:
    text = str(Lagged(limit_kind="messages", limit=1, lag=1, lag_bytes=24))
    assert "at its limit of 1 message (max_lag), and was 1 message (24 bytes) behind" in text
    assert "did not work off 1 message within" in text


@pytest.mark.parametrize(("first", "last", "oldest"), [(0, 0, 5), (100_001, 100_002, 100_003)])
def test_lagged_promises_nothing_that_cannot_be_had(first: int, last: int, oldest: int) -> None:
    error = Lagged(
        limit_kind="messages",
        limit=1,
        lag=2,
        first_lost=first,
        last_lost=last,
        oldest_kept=oldest,
    )
    assert "connect again" not in str(error)
    assert "; handle messages faster, or " in str(error)
    assert "raise max_lag" in str(error)


def test_connection_lost_names_the_range_it_knows_of() -> None:
    error = ConnectionLost("end of stream", first_lost=100_003, last_lost=100_003)
    assert "end of stream; lost: message 100003" in str(error)
    assert str(ConnectionLost("end of stream")) == "end of stream"


@pytest.mark.parametrize(
    ("prefix", "sentences"),
    [
        ("JMK_E_", {name: text for name, (_, text) in errors.CONDITIONS.items()}),
        ("JMK_FAULT_", errors.FAULTS),
    ],
)
def test_every_code_of_the_header_has_a_sentence_of_its_own(
    prefix: str, sentences: dict[str, str]
) -> None:
    codes = set(re.findall(rf"\b({prefix}\w+)[ ,]", HEADER)) - {f"{prefix}NONE"}
    assert len(codes) > 15
    assert set(sentences) == codes
    assert len(set(sentences.values())) == len(sentences)
    for text in sentences.values():
        assert text.format(what="client", found=1, due=2)
