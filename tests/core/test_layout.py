# SPDX-License-Identifier: Apache-2.0
"""Which C file may include which (docs/design.md); `make lint` looks at Python's imports."""

import ast
import re
from pathlib import Path

import pytest
from support.base import ROOT
from support.c import c_functions

pytestmark = pytest.mark.no_core

CORE = ROOT / "csrc"
INCLUDE = re.compile(r'^#include "(.*)"', re.MULTILINE)
USE = re.compile(r"(?<![\w.>])jmk_\w+")

ALLOWED = {
    "common": {"common", ""},
    "server": {"server", "common", ""},
    "client": {"client", "common", ""},
    "connect": {"connect", "common", ""},
    "python": {"python", ""},
}
"""Folders that the files of a folder include from; "" is that of jumiks.h."""

SERVER = ["log", "session", "send", "send_packets", "send_shared", "state", "acks", "ends", "admit"]
SERVER += ["skip", "pump", "lag", "publish", "attach", "server"]
CLIENT = ["arena", "labels", "client", "connection", "receive_packets", "receive_shared"]
CONNECT = ["handshake", "connect"]
HEADERS = {"server": SERVER, "client": CLIENT, "connect": CONNECT}
"""The files of a folder: each header may include those further to the left."""

CALLS = {
    "server": SERVER,
    "client": [*CLIENT[:2], *CLIENT[3:], "client"],
    "connect": CONNECT,
}
"""The same, and each C file may call functions of those further to the left."""


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


@pytest.mark.parametrize("folder", HEADERS)
def test_headers_of_a_folder_include_only_those_below(folder: str) -> None:
    order = HEADERS[folder]
    assert {path.stem for path in (CORE / folder).glob("*.[ch]")} == set(order)
    for path in (CORE / folder).glob("*.h"):
        own = {Path(name).stem for name in includes(path) if folder_of(name) == folder}
        assert own <= set(order[: order.index(path.stem)])


def calls_upward(files: dict[str, dict[str, str]], order: list[str]) -> list[str]:
    """Return the calls of functions that are defined in a file further up, as one line each."""
    home = {name: file for file, bodies in files.items() for name in bodies}
    return [
        f"{file}: {caller} calls {called} of {home[called]}"
        for file, bodies in files.items()
        for caller, body in bodies.items()
        for called in USE.findall(body)
        if called in home and order.index(home[called]) > order.index(file)
    ]


@pytest.mark.parametrize("folder", CALLS)
def test_a_file_calls_only_functions_of_files_below(folder: str) -> None:
    files: dict[str, dict[str, str]] = {}
    for path in sorted((CORE / folder).glob("*.[ch]")):
        files.setdefault(path.stem, {}).update(c_functions(path))
    assert sum(map(len, files.values())) > 15, "the functions are not found any more"
    assert calls_upward(files, CALLS[folder]) == []


def test_a_call_upward_is_found(tmp_path: Path) -> None:
    path = tmp_path / "below.c"
    path.write_text(
        "/* jmk_above_one() is only named */\n"
        "static void helper(int x) {\n    jmk_above_two(x, other->jmk_above_one(1));\n}\n\n"
        "int jmk_below_go(void)\n{\n}\n\n"
        'int jmk_below_say(void) {\n    return print("jmk_above_one()");\n}\n'
    )
    above = {"jmk_above_one": "jmk_below_say();", "jmk_above_two": ""}
    found = calls_upward({"below": c_functions(path), "above": above}, ["below", "above"])
    assert found == ["below: helper calls jmk_above_two of above"]


def test_the_lag_policy_is_asked_in_one_place() -> None:
    found = [
        (path.name, function)
        for path in files()
        for function, body in c_functions(path).items()
        for _ in range(body.count("config.policy"))
    ]
    assert found == [("lag.c", "demand_for")]


MOST_LINES = 40
"""Of a function's body, without its docstring."""


def test_no_function_is_long() -> None:
    long = {
        f"{path.name}: {name}"
        for path in files()
        for name, body in c_functions(path).items()
        if body.count("\n") > MOST_LINES
    }
    for path in (ROOT / "src/jumiks").rglob("*.py"):
        for each in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                first = each.body[bool(ast.get_docstring(each)) :][:1]
                if first and (each.end_lineno or 0) - first[0].lineno >= MOST_LINES:
                    long.add(f"{path.name}: {each.name}")
    assert long == set()
