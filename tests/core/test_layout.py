# SPDX-License-Identifier: Apache-2.0
"""Which C file may include which (docs/design.md); `make lint` looks at Python's imports."""

import re
from pathlib import Path

import pytest
from support.base import ROOT

pytestmark = pytest.mark.no_core

CORE = ROOT / "csrc"
INCLUDE = re.compile(r'^#include "(.*)"', re.MULTILINE)

ALLOWED = {
    "common": {"common", ""},
    "server": {"server", "common", ""},
    "client": {"client", "common", ""},
    "python": {""},
}
"""Folders that the files of a folder include from; "" is that of jumiks.h."""

# Within a folder: a header may include those further to the left.
SERVER = ["log.h", "session.h", "send.h", "server.h"]
CLIENT = ["arena.h", "labels.h", "client.h", "connection.h"]


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text("utf-8"))


def folder_of(name: str) -> str:
    return str(Path(name).parent).replace(".", "", 1)


def files() -> list[Path]:
    return sorted(path for path in CORE.rglob("*.[ch]"))


def test_every_file_of_the_core_has_its_folder() -> None:
    assert {path.parent.name for path in files()} == {*ALLOWED, CORE.name}
    assert [path.name for path in CORE.glob("*.[ch]")] == ["jumiks.h"]
    assert includes(CORE / "jumiks.h") == []


@pytest.mark.parametrize("path", [path for path in files() if path.parent != CORE], ids=str)
def test_includes_stay_within_what_the_folder_may_use(path: Path) -> None:
    found = {folder_of(name) for name in includes(path)}
    assert found <= ALLOWED[path.parent.name]
    for name in includes(path):
        assert (CORE / name).exists(), f"{name}: includes name the path from csrc"


@pytest.mark.parametrize("order", [SERVER, CLIENT], ids=["server", "client"])
def test_headers_of_a_folder_include_only_those_below(order: list[str]) -> None:
    folder = "server" if order is SERVER else "client"
    assert {path.name for path in (CORE / folder).glob("*.h")} == set(order)
    for name in order:
        own = [
            Path(each).name for each in includes(CORE / folder / name) if folder_of(each) == folder
        ]
        assert set(own) <= set(order[: order.index(name)])
