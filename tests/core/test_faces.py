# SPDX-License-Identifier: Apache-2.0
"""The classes that users see are faces over others, and use what those offer."""

import ast
from pathlib import Path

import pytest
from support.base import ROOT

pytestmark = pytest.mark.no_core

PACKAGE = ROOT / "src/jumiks"
FACES = [PACKAGE / "client.py", PACKAGE / "aio.py", *sorted((PACKAGE / "_aio").glob("*.py"))]


def private_names_of_others(path: Path) -> list[str]:
    """Where a module uses a name with an underscore of anything but `self`."""
    return [
        f"{path.name}:{each.lineno}: {ast.unparse(each)}"
        for each in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(each, ast.Attribute)
        and each.attr.startswith("_")
        and not each.attr.endswith("__")
        and ast.unparse(each.value) != "self"
    ]


@pytest.mark.parametrize("path", FACES, ids=lambda path: path.name)
def test_a_face_uses_no_private_name_of_others(path: Path) -> None:
    assert private_names_of_others(path) == []
