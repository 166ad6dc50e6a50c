# SPDX-License-Identifier: Apache-2.0
"""Records as docs/bridge.md has them: bytes in, bytes out."""

import json
import re
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from support.base import ROOT

from jumiks._options import AsyncClientOptions, ServerOptions
from jumiks.bridge.record import Record, Unreadable, make_frames, split_frames

pytestmark = pytest.mark.no_core

VECTORS = json.loads((ROOT / "tests/bridge/vectors.json").read_text("utf-8"))["records"]
PAGE = (ROOT / "docs/bridge.md").read_text("utf-8")
FIRST = 100_000


def about(vector: dict[str, Any]) -> str:
    words: str = vector["about"]
    return words


def page_payloads(body: bytes) -> list[bytes]:
    """What the five lines on the page find."""
    (code,) = re.findall(r"```python\n(def payloads.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    found: list[bytes] = names["payloads"](body)
    return found


@pytest.mark.parametrize("vector", [each for each in VECTORS if "ends" in each], ids=about)
def test_a_record_is_read_and_written_as_the_vectors_say(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["body"])
    messages = list(map(bytes.fromhex, vector["messages"]))
    record = Record.parse(vector["headers"], body)
    assert list(record.payloads()) == messages
    assert record.end._asdict() == vector["ends"]
    assert record.headers() == vector["headers"]
    if messages and not record.plain:
        assert make_frames(record.first, messages) == body
        assert page_payloads(body) == messages


@pytest.mark.parametrize("vector", [each for each in VECTORS if "wrong" in each], ids=about)
def test_what_is_no_record_is_unreadable(vector: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        Record.parse(vector["headers"], bytes.fromhex(vector["body"])).payloads()


@pytest.mark.parametrize("seq", ["9" * 5000, str((1 << 64) - 1), "nan", "-5", "+5", "\u0665"])
def test_an_id_that_cannot_be_is_unreadable(seq: str) -> None:
    headers = Record(FIRST, 1, 42, FIRST, b"x", plain=True).headers()
    with pytest.raises(Unreadable):
        Record.parse(headers | {"Jumiks-Seq": seq}, b"x")


@pytest.mark.parametrize(
    "record",
    [
        Record(FIRST, (1 << 48) + 1, 42, FIRST, b"", "evicted", (1 << 48) + 1),
        Record(FIRST - 1, 1, 42, FIRST, b"", "evicted", 1),
        Record((1 << 62) - 1, 2, 42, FIRST, b"", "evicted", 2),
        Record(FIRST, 1, 0, FIRST, b"", "evicted", 1),
        Record(FIRST, 1, 42, FIRST - 2, b"", "evicted", 1),
        Record(FIRST, 2, 42, (1 << 64) - 2, b"", "evicted", 2),
        Record(FIRST, 1, 42, FIRST - 1, b"", "restarted", None),
    ],
    ids=lambda record: f"{record.seq} {record.count} {record.server} {record.first}",
)
def test_ids_that_no_server_could_go_on_with_are_unreadable(record: Record) -> None:
    with pytest.raises(Unreadable, match="no feed has these"):
        Record.parse(record.headers(), b"")


@pytest.mark.parametrize(
    "record",
    [
        Record(FIRST, 1 << 48, 42, FIRST, b"", "evicted", 1 << 48),
        Record((1 << 62) - 2, 2, 42, FIRST, b"", "evicted", 2),
        Record(FIRST, 5, 42, FIRST - 5, b"", "evicted", 5),
        Record(FIRST, 1, 42, (1 << 64) - 2, b"", "evicted", 1),
        Record(FIRST, 1, 42, FIRST, b"", "restarted", None),
    ],
    ids=lambda record: f"{record.seq} {record.count} {record.server} {record.first}",
)
def test_ids_that_a_server_goes_on_with_are_read(record: Record) -> None:
    assert Record.parse(record.headers(), b"") == record
    ServerOptions(first_id=record.last + 1)
    AsyncClientOptions(start=(record.server, record.end.source + 1))


def test_what_is_unreadable_still_says_which_ids_it_takes() -> None:
    (later,) = (each for each in VECTORS if each["about"] == "a later format")
    with pytest.raises(Unreadable) as caught:
        Record.parse(later["headers"], b"")
    assert (caught.value.first, caught.value.last) == (FIRST, FIRST)


def test_the_page_names_each_header() -> None:
    named = {name for each in VECTORS for name in each["headers"]}
    assert named == set(re.findall(r"^\| `(Jumiks-\w+)` \|", PAGE, re.MULTILINE))


payloads = strategies.lists(strategies.binary(max_size=40), min_size=1, max_size=20)
alike = strategies.integers(0, 40).flatmap(
    lambda size: strategies.lists(
        strategies.binary(min_size=size, max_size=size), min_size=1, max_size=20
    )
)


@hypothesis.given(payloads | alike, strategies.integers(FIRST, 1 << 60))
def test_frames_are_found_again_whatever_their_sizes(messages: list[bytes], first: int) -> None:
    frames = make_frames(first, messages)
    record = Record(FIRST, len(messages), 1, first, frames)
    assert list(record.payloads()) == messages
    assert page_payloads(frames) == messages
    with pytest.raises(Unreadable):
        split_frames(frames, first + 1, 1)


@pytest.mark.parametrize("first", [-1, 1 << 64])
def test_an_id_that_none_can_be_is_refused(first: int) -> None:
    with pytest.raises(Unreadable, match=f"a message with the id {first}"):
        split_frames(make_frames(FIRST, [b"message"]), first, 1)


@hypothesis.given(payloads | alike, strategies.data())
def test_frames_of_which_a_byte_changed_are_found_or_refused(
    messages: list[bytes], data: strategies.DataObject
) -> None:
    frames = bytearray(make_frames(FIRST, messages))
    at = data.draw(strategies.integers(0, len(frames) - 1))
    frames[at] ^= 1 << data.draw(strategies.integers(0, 7))
    try:
        found = Record(FIRST, len(messages), 1, FIRST, bytes(frames)).payloads()
    except Unreadable:
        return
    assert len(found) == len(messages)
    assert sum(a != b for a, b in zip(found, messages, strict=True)) <= 1


@hypothesis.given(payloads | alike, strategies.integers(1, 300))
def test_packs_have_all_frames_in_order_and_no_more_than_they_may(
    messages: list[bytes], limit: int
) -> None:
    frames = make_frames(FIRST, messages)
    found: list[bytes] = []
    begin = 0
    for count, end in split_frames(frames, FIRST, limit):
        assert end - begin <= limit or count == 1
        number = FIRST + len(found)
        found.extend(Record(number, count, 1, number, frames[begin:end]).payloads())
        begin = end
    assert found == messages


@hypothesis.given(
    strategies.dictionaries(
        strategies.sampled_from(
            [
                f"Jumiks-{word}"
                for word in ("Format", "Seq", "Count", "Server", "First", "Gap", "Lost", "Plain")
            ]
        ),
        strategies.sampled_from(["", "1", "0", "?", "-1", "evicted", "100000", "٣", "9" * 30]),
    ),
    strategies.binary(max_size=40),
)
def test_no_headers_raise_anything_else(headers: dict[str, str], body: bytes) -> None:
    try:
        record = Record.parse(headers, body)
        record.payloads()
    except Unreadable:
        return
    assert record.end.stream == record.last
