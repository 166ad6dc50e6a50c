# SPDX-License-Identifier: Apache-2.0
import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.base import ROOT

import jumiks
from jumiks.cli import main

pytestmark = pytest.mark.no_core

HEADER = (ROOT / "csrc/jumiks.h").read_text("utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


@pytest.fixture(scope="module")
def build_core() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "csrc/build_core.py"))


def test_the_cdef_is_all_that_stands_between_the_marks(build_core: dict[str, Any]) -> None:
    cdef = build_core["cut_cdef"](HEADER)
    before, begin, rest = HEADER.partition(build_core["BEGIN"])
    assert before + begin + cdef + rest.removeprefix(cdef) == HEADER
    assert rest.removeprefix(cdef).startswith(build_core["END"])
    assert "enum jmk_error" in cdef
    assert "JUMIKS_H" not in cdef


FUNCTION = re.compile(r"\b(jmk_\w+)\(")


def test_the_cdef_has_every_function_but_that_for_programs_in_c(build_core: dict[str, Any]) -> None:
    in_cdef = set(FUNCTION.findall(build_core["cut_cdef"](HEADER)))
    assert set(FUNCTION.findall(HEADER)) == in_cdef | {"jmk_connect"}
    assert "jmk_connect" not in in_cdef


def test_libjumiks_has_every_function_of_the_header() -> None:
    version, _, names = (ROOT / "csrc/libjumiks.map").read_text("utf-8").partition("{\nglobal:\n")
    assert version.splitlines()[-1].strip() == "JUMIKS_1"
    listed = names.partition("local:\n    *;\n")[0].replace(";", "").split()
    assert sorted(listed) == sorted(set(FUNCTION.findall(HEADER)))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "once each"),
        ("/* cdef: begin */ int a;", "once each"),
        ("/* cdef: begin */ /* cdef: begin */ /* cdef: end */", "once each"),
        ("/* cdef: begin */\n  #define A 1\n/* cdef: end */", "#define A 1"),
    ],
)
def test_a_header_that_cannot_be_cut_is_refused(
    build_core: dict[str, Any], header: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build_core["cut_cdef"](header)


def test_every_c_file_that_python_needs_is_built_into_its_library(
    build_core: dict[str, Any],
) -> None:
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*.c")
        if path.parent.name != "connect"
    }
    assert files == set(build_core["core_sources"]())


def test_the_version_is_the_one_that_stands_in_pyproject() -> None:
    assert importlib.metadata.version("jumiks") == PROJECT["version"]


def test_the_version_is_looked_up_once_it_is_asked_for() -> None:
    asked = "import sys, jumiks; print('importlib.metadata' in sys.modules, jumiks.__version__)"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert said.stdout == f"False {PROJECT['version']}\n"


def test_an_import_loads_no_ctypes() -> None:
    """As newer versions of libffi open a descriptor then, perhaps the number of a closed stream."""
    asked = "import sys; import jumiks.cli; print('ctypes' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


def test_a_copy_without_the_library_says_what_to_do(tmp_path: Path) -> None:
    package = Path(jumiks.__file__).parent
    shutil.copytree(package, tmp_path / "jumiks", ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    said = subprocess.run(
        [sys.executable, "-c", "import jumiks"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert f"jumiks has no compiled library for this Python in {tmp_path}" in said.stderr
    assert said.stderr.splitlines()[-1].startswith("ImportError: ")


def test_the_package_is_the_command() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "jumiks", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"jumiks {PROJECT['version']}\n"


def test_a_name_that_is_not_there_is_none() -> None:
    with pytest.raises(AttributeError, match="'jumiks' has no attribute 'Servr'"):
        getattr(jumiks, "Servr")  # noqa: B009


def test_the_command_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"jumiks {PROJECT['version']}\n"


def test_cffi_is_all_that_is_needed_at_run_time() -> None:
    required = importlib.metadata.requires("jumiks") or []
    assert [need for need in required if "extra ==" not in need] == ["cffi>=2"]


NAME = re.compile(r"[\w.-]+")


def plain(name: str) -> str:
    return name.replace("_", "-").lower()


def test_extras_are_what_the_package_itself_imports() -> None:
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE))
    modules: dict[str, set[str]] = {}
    for module, packages in importlib.metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(plain(package), set()).add(module)
    needs = [need for extra in PROJECT["optional-dependencies"].values() for need in extra]
    names = [plain(NAME.findall(need)[0]) for need in needs]
    assert names
    # One that is not installed is looked at where it is.
    assert [name for name in names if name in modules and not modules[name] & imported] == []


def test_every_group_that_is_installed_is_there() -> None:
    scripts = MAKEFILE + (ROOT / ".ci/test_pythons").read_text("utf-8")
    used = set(re.findall(r"--group (\w+)", scripts))
    assert {"dev", "test", "coverage", "bench"} <= used <= set(PYPROJECT["dependency-groups"])


def test_every_python_that_is_classified_is_tested() -> None:
    prefix = "Programming Language :: Python :: 3."
    classified = [each.removeprefix(prefix) for each in PROJECT["classifiers"] if prefix in each]
    tested = re.findall(r"python3\.(\d+)\b", MAKEFILE.partition("PYTHONS ?=")[2].splitlines()[0])
    assert classified == tested
    assert PROJECT["requires-python"] == f">=3.{tested[0]}"


def test_type_checkers_find_the_types() -> None:
    assert (Path(jumiks.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("time", ["today", str(2**32)])
def test_a_build_says_what_is_wrong_with_its_time(time: str) -> None:
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=os.environ | {"SOURCE_DATE_EPOCH": time},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"SOURCE_DATE_EPOCH={time} is no time in whole seconds since")
    assert len(done.stderr.splitlines()) == 1


def test_a_build_takes_nothing_that_an_earlier_one_left(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    package = tmp_path / "jumiks"
    package.mkdir()
    (package / "_objects.abi3.so").touch()
    words = [
        "--quiet",
        "egg_info",
        "--egg-base",
        str(tmp_path),
        "build_py",
        "--build-lib",
        str(tmp_path),
    ]
    subprocess.run([sys.executable, "setup.py", *words], cwd=ROOT, check=True)
    built = {path.name for path in package.iterdir()}
    assert "py.typed" in built
    assert [name for name in built if ".so" in name] == []
