# SPDX-License-Identifier: Apache-2.0
"""The classes that users see are faces over others, and use what those offer."""

import ast
import inspect
from pathlib import Path

import pytest
from support.base import ROOT

from jumiks import AsyncClient, AsyncServer, Client, Server

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


@pytest.mark.parametrize(
    ("sync", "twin", "more", "fewer"),
    [
        # To look for a message before sleeping would keep the event loop from all others.
        (Client, AsyncClient, set(), {"spin"}),
        (
            Server,
            AsyncServer,
            {"publish_wait", "publish_many_wait", "publish_frames_wait"},
            set(),
        ),
    ],
)
def test_the_twins_have_the_same_methods_and_arguments_in_the_same_order(
    sync: type, twin: type, more: set[str], fewer: set[str]
) -> None:
    def public(kind: type) -> list[str]:
        return [name for name in vars(kind) if not name.startswith("_")]

    assert [name for name in public(twin) if name not in more] == public(sync)
    arguments = list(inspect.signature(sync).parameters.items())
    assert list(inspect.signature(twin).parameters.items()) == [
        (name, argument) for name, argument in arguments if name not in fewer
    ]
