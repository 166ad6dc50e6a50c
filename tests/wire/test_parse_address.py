# SPDX-License-Identifier: Apache-2.0
"""What may be written as an address, and what is said to other things."""

from pathlib import Path
from typing import Any

import pytest

from jumiks._wire.address import Kind, parse_address

pytestmark = pytest.mark.no_core


@pytest.mark.parametrize(
    ("written", "kind", "text", "sockaddr"),
    [
        ("@ticks", Kind.ABSTRACT, "@ticks", b"\0ticks"),
        ("@@", Kind.ABSTRACT, "@@", b"\0@"),
        ("@" + "n" * 107, Kind.ABSTRACT, "@" + "n" * 107, b"\0" + b"n" * 107),
        ("@größe", Kind.ABSTRACT, "@größe", "\0größe".encode()),
        ("/run/ticks", Kind.PATH, "/run/ticks", b"/run/ticks"),
        ("./ticks", Kind.PATH, "./ticks", b"./ticks"),
        ("./@ticks", Kind.PATH, "./@ticks", b"./@ticks"),
        ("./ipc://ticks", Kind.PATH, "./ipc://ticks", b"./ipc://ticks"),
        ("/run/a://b", Kind.PATH, "/run/a://b", b"/run/a://b"),
        (Path("ticks"), Kind.PATH, "./ticks", b"ticks"),
        (Path("@ticks"), Kind.PATH, "./@ticks", b"@ticks"),
        ("/" + "p" * 106, Kind.PATH, "/" + "p" * 106, b"/" + b"p" * 106),
        ("/\udcff", Kind.PATH, "/\udcff", b"/\xff"),
    ],
)
def test_an_address_is_parsed(written: Any, kind: Kind, text: str, sockaddr: bytes) -> None:
    parsed = parse_address(written)
    assert (parsed.kind, parsed.text, parsed.sockaddr) == (kind, text, sockaddr)
    assert parsed.abstract == (kind is Kind.ABSTRACT)
    assert str(parsed) == text
    assert parse_address(parsed) is parsed


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "empty"),
        ("@", "no name"),
        ("@a\0b", "NUL"),
        ("a\0b", "NUL"),
        ("\0ticks", "is written '@name'"),
        ("@" + "n" * 108, "108 bytes after the '@', and the kernel takes 107"),
        ("@" + "ö" * 54, "108 bytes"),
        ("p" * 108, "108 bytes, and the kernel takes 107"),
        ("tcp://127.0.0.1:80", "is a URL, and an address is '@name' or a path, as jumiks connects"),
        ("http://host/ticks", "'jumiks bridge' carries a feed to others"),
        ("inproc://ticks", "is a URL"),
        ("ipc://", "is a URL"),
        ("ipc:///tmp/ticks", "address 'ipc:///tmp/ticks' is a URL, .* path: write '/tmp/ticks'$"),
        ("ipc://ticks", "write './ticks'$"),
        ("IPC://@ticks", "write '@ticks'$"),
        ("unix:/run/ticks", "write '/run/ticks'$"),
    ],
)
def test_a_wrong_address_is_refused_with_what_would_be_right(written: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_address(written)


@pytest.mark.parametrize("written", [None, 7, b"ticks", ["ticks"], ("localhost", 80)])
def test_an_address_of_a_wrong_type_is_refused(written: object) -> None:
    with pytest.raises(TypeError, match="'@name', a path"):
        parse_address(written)
