# SPDX-License-Identifier: Apache-2.0
"""What `help()` shows of the public names."""

import dataclasses
import enum
import inspect
import pydoc

import pytest

import jumiks

pytestmark = pytest.mark.no_core

PUBLIC = [getattr(jumiks, name) for name in jumiks.__all__]
CLASSES = [each for each in PUBLIC if inspect.isclass(each)]


def names_of(kind: type) -> list[str]:
    """What a value of that class is made of, or its values are called."""
    if dataclasses.is_dataclass(kind):
        return [each.name for each in dataclasses.fields(kind)]
    if issubclass(kind, enum.Enum) and not all(isinstance(each.value, str) for each in kind):
        return [each.name for each in kind]  # a text as a value says it itself
    return []


def arguments_of(kind: type) -> list[str]:
    """The arguments of a class that is no value."""
    if dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum | jumiks.JumiksError):
        return []
    doc = inspect.getdoc(kind) or ""
    if "those of `" in doc or "Args:" not in doc:
        return []
    return [name for name in inspect.signature(kind).parameters if name != "args"]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_help_says_what_each_field_and_argument_is(kind: type) -> None:
    shown = pydoc.plain(pydoc.render_doc(kind))
    for name in names_of(kind) + arguments_of(kind):
        assert f"      {name}: " in shown, name


def test_that_is_so_for_some() -> None:
    assert sum(map(len, map(names_of, CLASSES))) > 70
    assert sum(map(len, map(arguments_of, CLASSES))) > 30


def test_help_names_all_forms_of_a_rule() -> None:
    doc = inspect.getdoc(jumiks.Server) or ""
    allow = doc.partition("    allow: ")[2].partition("    share_log: ")[0]
    for word in ("None", '"anyone"', "user id", "`Group`", "list or set", "function", "`Peer`"):
        assert word in allow


@pytest.mark.parametrize(
    "error",
    [
        "ConnectionRefusedError",
        "FileNotFoundError",
        "PermissionError",
        "Timeout",
        "Refused",
        "VersionMismatch",
        "ProtocolError",
        "ConnectionLost",
        "TypeError",
        "ValueError",
        "OSError",
    ],
)
def test_help_names_what_making_a_client_raises(error: str) -> None:
    raises = (inspect.getdoc(jumiks.Client) or "").partition("Raises:")[2]
    assert error in raises
