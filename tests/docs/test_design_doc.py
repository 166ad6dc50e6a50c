# SPDX-License-Identifier: Apache-2.0
"""The maps of docs/design.md name each file of the core and each module, and none that is gone."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.base import ROOT

pytestmark = pytest.mark.no_core

PAGE = (ROOT / "docs/design.md").read_text("utf-8")
C, PACKAGE = ROOT / "csrc", ROOT / "src/jumiks"


def section(title: str) -> str:
    return PAGE.partition(f"\n### {title}\n")[2].partition("\n## ")[0].partition("\n### ")[0]


def named(title: str) -> list[str]:
    """What the first column of a section's table names, in its order."""
    rows = re.findall(r"^\| (`.*?) \|", section(title), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def once(names: Iterator[str] | list[str]) -> list[str]:
    return sorted(dict.fromkeys(names))


def test_the_map_of_c_has_every_file() -> None:
    files = [path.relative_to(C) for path in C.rglob("*") if path.suffix in (".c", ".h")]
    stems = once(str(path.with_suffix("")) for path in files)
    told = named("C: `csrc/`")
    assert len(told) == len(set(told))
    assert sorted(name.removesuffix(".h") for name in told if name != "build_core.py") == stems


def test_the_map_of_python_has_every_module() -> None:
    modules = once(
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "cli" and path.name != "__init__.py"
    )
    told = named("Python: `src/jumiks/`")
    assert len(told) == len(set(told))
    assert sorted(name for name in told if name != "cli/") == modules


def test_what_is_to_be_opened_is_there() -> None:
    rows = re.findall(r"^\| [^|`]+ \| (.*) \|$", section("To change X, open Y"), re.MULTILINE)
    assert len(rows) >= 10
    for row in rows:
        for name in re.findall(r"`([\w/]+\.[ch]|[\w/]+\.py)`", row):
            assert (ROOT / name).exists() or (PACKAGE / name).exists() or Path(C / name).exists(), (
                name
            )
