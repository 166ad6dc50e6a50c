# SPDX-License-Identifier: Apache-2.0
"""docs/protocol.md says what the code does: its tables and its bytes are read and compared."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from support import reference
from support.base import DEADLINE, ROOT
from support.servers import Server

from jumiks import Client, ClientInfo, Monitor, ServerStats, monitor
from jumiks._native import lib
from jumiks._options import HANDSHAKE_TIMEOUT
from jumiks._server import monitors
from jumiks._wire import handshake, status
from jumiks._wire.handshake import (
    UNTOLD_PACKET,
    Capability,
    ClientHello,
    ServerHello,
    Status,
    Welcome,
)
from jumiks.server import SEND_BUFFER

pytestmark = pytest.mark.no_core

PAGE = (ROOT / "docs" / "protocol.md").read_text()

SIZES = {"u16": 2, "u16[3]": 6, "u32": 4, "u64": 8}
BLOCK = re.compile(r"^```(\S*) ?(.*)\n((?:.*\n)*?)```$", re.M)
LINE = re.compile(r'((?:[0-9a-f]{2} )*[0-9a-f]{2})  +(\w+)(?: = ("[^"]*"|\S+))?(?:  \((.+)\))?')

Fields = list[tuple[str, object]]


class Line(NamedTuple):
    data: bytes
    field: str
    value: int | str | tuple[int, ...] | None
    words: str


class Example(NamedTuple):
    kind: str
    lines: tuple[Line, ...]

    @property
    def packet(self) -> bytes:
        return b"".join(line.data for line in self.lines)

    @property
    def fields(self) -> Fields:
        """What the packet says, without what is only filling."""
        return [(line.field, line.value) for line in self.lines if line.value is not None]

    def __str__(self) -> str:
        return f"{self.kind} of {len(self.packet)} bytes"


class Row(NamedTuple):
    at: int
    type: str
    field: str


def value_of(text: str | None) -> int | str | tuple[int, ...] | None:
    if text is None:
        return None
    if text.startswith('"'):
        return text[1:-1]
    if "." in text:
        return tuple(map(int, text.split(".")))
    return int(text, 0)


def examples() -> Iterator[Example]:
    for language, kind, body in BLOCK.findall(PAGE):
        if language != "hex":
            continue
        lines = []
        for text in body.splitlines():
            match = LINE.fullmatch(text)
            assert match, f"not understood: {text!r}"
            data, field, value, words = match.groups()
            lines.append(Line(bytes.fromhex(data), field, value_of(value), words or ""))
        yield Example(kind, tuple(lines))


def tables(header: Sequence[str]) -> list[list[list[str]]]:
    """Every table with that header: its rows, each a list of cells without back quotes."""
    found: list[list[list[str]]] = []
    inside = False
    for line in PAGE.splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells == list(header):
            inside = True
            found.append([])
        elif inside and not set(line) <= set("|- "):
            found[-1].append(cells)
    return found


def layouts() -> list[list[Row]]:
    rows = tables(("at", "type", "field", "meaning"))
    return [[Row(int(row[0]), row[1], row[2]) for row in table] for table in rows]


def layout(first_fields: str) -> list[Row]:
    """The one layout whose fields begin like that."""
    wanted = first_fields.split()
    (found,) = (rows for rows in layouts() if [row.field for row in rows[: len(wanted)]] == wanted)
    return found


EXAMPLES = list(examples())


def of_kind(kind: str) -> list[Example]:
    return [example for example in EXAMPLES if example.kind == kind]


every_example = pytest.mark.parametrize("example", EXAMPLES, ids=str)


def numbered(text: str) -> dict[str, int]:
    """The names of a table of numbers."""
    (table,) = tables((text, "name", "meaning"))
    return {row[1]: int(row[0]) for row in table}


# ---- the bytes ----


def test_every_kind_of_packet_has_an_example() -> None:
    assert {example.kind for example in EXAMPLES} == {
        "server-hello",
        "reply",
        "welcome",
        "classic-message",
        "framed-packet",
        "ack",
        "wake",
        "answer",
    }


@every_example
def test_each_line_of_an_example_has_the_bytes_of_its_value(example: Example) -> None:
    for line in example.lines:
        match line.value:
            case None:
                assert line.field == "cut" or not any(line.data), line
            case int(number):
                assert line.data == number.to_bytes(len(line.data), "little"), line
            case str(text):
                assert line.data == text.encode(), line
            case version:
                assert line.data == b"".join(part.to_bytes(2, "little") for part in version), line


def named(parts: Sequence[tuple[str, object]], example: Example) -> Fields:
    """Of all fields those that the example shows, and of the others only what is not zero."""
    shown = {line.field for line in example.lines}
    return [(name, value) for name, value in parts if name in shown or value not in (0, "")]


def read_server_hello(example: Example) -> tuple[Fields, Fields]:
    packet = example.packet
    theirs = reference.decode_server_hello(packet)
    ours = ServerHello.decode(packet)
    assert ours.extended == reference.is_extended(packet) == (len(packet) > 6)
    names = reference.ServerHello._fields
    return (
        named(list(zip(names, theirs, strict=True)), example),
        named([(name, getattr(ours, name)) for name in names], example),
    )


def read_reply(example: Example) -> tuple[Fields, Fields]:
    packet = example.packet
    theirs = reference.decode_reply(packet)
    ours = ClientHello.decode(packet)
    assert ours.extended == reference.is_extended(packet) == (len(packet) > 6)
    names = reference.Reply._fields
    return (
        named(list(zip(names, theirs, strict=True)), example),
        named([(name, getattr(ours, name)) for name in names], example),
    )


WELCOME_FIELDS = ("status", "capabilities", "left_out", "first_id", "first_offset", "text")
"""In the order of the wire."""


def read_welcome(example: Example) -> tuple[Fields, Fields]:
    theirs = reference.decode_welcome(example.packet)
    ours = Welcome.decode(example.packet)
    names = WELCOME_FIELDS
    return (
        named([(name, getattr(theirs, name)) for name in names], example),
        named([(name, getattr(ours, name)) for name in names], example),
    )


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("server-hello", read_server_hello),
        ("reply", read_reply),
        ("welcome", read_welcome),
    ],
)
def test_both_codecs_read_the_handshake_as_the_page_does(
    kind: str, read: Callable[[Example], tuple[Fields, Fields]]
) -> None:
    for example in of_kind(kind):
        theirs, ours = read(example)
        assert theirs == example.fields
        assert ours == example.fields


@pytest.mark.parametrize(
    ("kind", "again", "reference_again"),
    [
        (
            "server-hello",
            lambda packet: ServerHello.decode(packet).encode(),
            lambda packet: reference.encode_server_hello(reference.decode_server_hello(packet)),
        ),
        (
            "reply",
            lambda packet: ClientHello.decode(packet).encode(),
            lambda packet: reference.encode_reply(reference.decode_reply(packet)),
        ),
        (
            "welcome",
            lambda packet: Welcome.decode(packet).encode(),
            lambda packet: reference.encode_welcome(reference.decode_welcome(packet)),
        ),
    ],
)
def test_both_codecs_write_the_handshake_as_the_page_does(
    kind: str, again: Callable[[bytes], bytes], reference_again: Callable[[bytes], bytes]
) -> None:
    for example in of_kind(kind):
        if any(line.field == "cut" for line in example.lines):
            continue
        assert again(example.packet) == example.packet
        if len(example.packet) == 6:
            assert reference.encode_classic_hello((1, 0, 0)) == example.packet
        else:
            assert reference_again(example.packet) == example.packet


def test_classic_messages_and_acks_are_as_the_page_shows_them() -> None:
    for example in of_kind("classic-message"):
        message = reference.decode_classic(example.packet)
        assert [("id", message.id), ("payload", message.payload.decode())] == example.fields
        assert reference.encode_classic(message) == example.packet
    for example in of_kind("ack"):
        packet_id = reference.decode_ack(example.packet)
        assert [("id", packet_id)] == example.fields
        assert reference.encode_ack(packet_id) == example.packet


def frame_fields(frame: reference.Frame) -> Fields:
    fields: Fields = [("size", len(frame.payload)), ("kind", frame.kind), ("flags", frame.flags)]
    fields.append(("id", frame.id))
    if frame.kind == reference.BYE:
        fields += zip(reference.Bye._fields, reference.decode_bye(frame), strict=True)
    elif frame.flags & reference.FRAGMENT:
        part = reference.decode_fragment(frame)
        fields += [("total", part.total), ("offset", part.offset), ("slice", part.slice.decode())]
    elif frame.payload:
        fields.append(("payload", frame.payload.decode()))
    return fields


def frame_again(frame: reference.Frame) -> bytes:
    if frame.kind == reference.BYE:
        return reference.encode_bye(reference.decode_bye(frame), frame.id)
    if frame.flags & reference.FRAGMENT:
        return reference.encode_fragment(reference.decode_fragment(frame))
    return reference.encode_frame(frame)


def test_framed_packets_are_as_the_page_shows_them() -> None:
    for example in of_kind("framed-packet"):
        frames = reference.decode_frames(example.packet)
        assert [field for frame in frames for field in frame_fields(frame)] == example.fields
        assert b"".join(map(frame_again, frames)) == example.packet


def test_what_else_a_shared_connection_carries_is_as_the_page_shows_it() -> None:
    for example in of_kind("wake"):
        (frame,) = reference.decode_frames(example.packet)
        assert frame_fields(frame) == example.fields
        assert frame.kind == lib.JMK_KIND_WAKE
    for example in of_kind("answer"):
        assert len(example.packet) == lib.JMK_ANSWER_SIZE == layout("id zero")[-1].at
        assert [("id", int.from_bytes(example.packet[:8], "little"))] == example.fields
    for kind, name, *_ in tables(("kind", "name", "sent by the server when"))[0]:
        assert getattr(lib, f"JMK_KIND_{name}") == int(kind)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_words_of_the_shared_pages_stand_where_the_page_says(tmp_path: Path) -> None:
    welcome, log, cursor = tables(("byte", "type", "word", "meaning"))
    assert [row[:3] for row in welcome] == [["16", "u64", "first_offset"]]
    rows = [("jmk_log_page", row) for row in log] + [("jmk_cursor_page", row) for row in cursor]
    checks = [
        f"_Static_assert(offsetof(struct {struct}, {word}) == {byte} && "
        f'sizeof((struct {struct} *)0)->{word} == {SIZES[size]}, "{word}");'
        for struct, (byte, size, word, _) in rows
    ]
    magic, layout_number = (int(log[row][3].partition(";")[0], 0) for row in (0, 1))
    checks += [
        f'_Static_assert(JMK_PAGE_MAGIC == {magic}u && JMK_PAGE_LAYOUT == {layout_number}, "");',
        '_Static_assert(sizeof(struct jmk_cursor_page) == 192, "");',
    ]
    source = tmp_path / "words.c"
    source.write_text('#include <stddef.h>\n#include "common/page.h"\n' + "\n".join(checks) + "\n")
    folder = ROOT / "csrc"
    subprocess.run(["cc", "-std=c11", f"-I{folder}", "-fsyntax-only", source], check=True)


def number_before(words: str) -> int:
    """The number that stands before these words on the page, whose lines may break anywhere."""
    (found,) = re.findall(rf"([\d,]*\d) ?{words}", " ".join(PAGE.split()))
    return int(found.replace(",", ""))


def test_figures_on_the_page_are_those_of_the_code() -> None:
    largest = 2 * SEND_BUFFER - 32
    assert number_before(", of which the kernel makes") == SEND_BUFFER
    assert number_before(", so its largest packet is") == 2 * SEND_BUFFER
    assert number_before("bytes, with a message of") == largest
    assert f"with a message of {largest - 8:,}." in PAGE
    assert number_before("bytes then, or less where its reply") == UNTOLD_PACKET
    assert number_before("seconds by default") == HANDSHAKE_TIMEOUT
    assert number_before("bytes, and at most the hello's") == monitors.MOST_PACKET
    assert number_before("MiB. A request that comes") == monitor._MOST_ANSWER >> 20


def test_units_are_told_of_names_that_a_status_has() -> None:
    (units,) = tables(("name", "unit", "meaning"))
    named = {name.strip() for row in units for name in row[0].split(",")}
    assert named <= {each.name for each in (*fields(ServerStats), *fields(ClientInfo))}
    counts = {"key", "pid", "uid", "gid", "command", "delivery"}
    plain = {"published", "delivered", "messages", "packets", "skipped", "clients", "worst_lag"}
    for name in {*status.PLAIN, *(each.name for each in fields(ServerStats))} - counts - plain:
        sized = name.endswith(("bytes", "_id")) or name in ("log_size", "log_used", "log_held")
        assert name in named or sized, name


def named_in(start: str) -> set[str]:
    """The names of a status that one point of the page's list has."""
    point = next(each for each in PAGE.split("\n* ") if each.startswith(start))
    words = point.partition("\n\n")[0].removeprefix(start)
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^()]*\)", "", words)))


def test_a_status_has_the_names_of_the_page_and_no_others(address: str) -> None:
    with Server(address) as server, Client(address), Monitor(address) as monitor:
        server.wait_for_clients(1, DEADLINE)
        status = json.loads(monitor.status().raw)
    (client,) = status["clients"]
    assert set(status) == {"address", "stats", "clients"} | named_in("`address`, ")
    assert set(status["stats"]) == named_in("`stats`: ")
    assert set(client) == named_in("`clients`, a list: ")


def test_the_framed_examples_make_one_connection() -> None:
    packets = [example.packet for example in of_kind("framed-packet")]
    *messages, bye = reference.read_framed(packets)
    assert messages == [(100000, b"hi"), (100001, b""), (100002, b"abcdefghij")]
    assert isinstance(bye, reference.Bye)
    assert packets[1:3] == list(reference.fragment_packets(messages[2], 32))  # type: ignore[arg-type]


# ---- the tables ----


def test_the_fields_of_each_layout_follow_each_other_without_holes() -> None:
    assert len(layouts()) == 11
    for rows in layouts():
        for row, after in pairwise(rows):
            assert row.at + SIZES[row.type] == after.at, row
        assert rows[0].at == 0
        assert rows[-1].type == "end"


@pytest.mark.parametrize(
    ("fields", "size", "names"),
    [
        ("version capabilities server_id", 48, reference.ServerHello._fields),
        ("version capabilities start", 24, reference.Reply._fields),
        ("status capabilities left_out", 16, WELCOME_FIELDS[:4]),
        ("reason limit_kind", 64, reference.Bye._fields),
    ],
)
def test_the_layouts_name_the_fields_that_the_codecs_have(
    fields: str, size: int, names: tuple[str, ...]
) -> None:
    rows = layout(fields)
    assert rows[-1].at == size
    assert tuple(row.field for row in rows[:-1] if row.field != "zero") == names


def test_a_frame_and_a_fragment_start_as_the_layouts_say() -> None:
    assert layout("size kind flags id")[-1].at == reference.FRAME_HEADER
    whole = layout("size kind flags id")[-1].at + layout("total offset")[-1].at
    assert whole == reference.FRAGMENT_HEADER


def test_the_package_sends_packets_as_long_as_the_layouts_say() -> None:
    assert len(ServerHello().encode()) == layout("version capabilities server_id")[-1].at
    assert len(ClientHello().encode()) == layout("version capabilities start")[-1].at
    assert len(Welcome(Status.ACCEPTED).encode()) == layout("status")[-1].at


def test_capabilities_and_statuses_have_the_numbers_of_the_page() -> None:
    assert numbered("bit") == {item.name: item.value for item in Capability}
    assert numbered("status") == {item.name: item.value for item in Status}


def test_the_example_of_a_refusal_has_the_words_that_a_server_uses() -> None:
    texts = [Welcome.decode(example.packet).text for example in of_kind("welcome")]
    assert handshake.refusal_text(Status.CLOSING) in texts


def test_numbers_in_examples_have_the_names_of_the_tables() -> None:
    names = {"status": numbered("status"), "reason": numbered("reason")}
    for example in EXAMPLES:
        for line in example.lines:
            if line.field in names:
                assert names[line.field][line.words] == line.value


def test_the_page_names_the_constants_of_the_package() -> None:
    assert handshake.FIRST_ID == 100000
    assert f"the first is {handshake.FIRST_ID}" in PAGE
    assert (
        f"{handshake.START_NOW} = the next one published, {handshake.START_OLDEST} = the oldest"
    ) in PAGE
    assert "version 1.0" in PAGE.splitlines()[0]
    assert handshake.VERSION[:2] == (1, 0)
