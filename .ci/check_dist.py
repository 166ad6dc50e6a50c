# SPDX-License-Identifier: Apache-2.0
"""Look into the sdist and the wheels, and install and try the wheel that fits this machine."""

import fnmatch
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile  # type: ignore[import-untyped]
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent

IN_SDIST = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "csrc/build_core.py",
    "csrc/jumiks.h",
    "csrc/python/module.c",
    "examples/systemd/jumiks-log.socket",
    "pyproject.toml",
    "setup.py",
    "src/jumiks/py.typed",
    "tests/conftest.py",
)
IN_WHEEL = (
    "jumiks/__init__.py",
    "jumiks/cli/__init__.py",
    "jumiks/_objects.py",
    "jumiks/py.typed",
)
LIBRARIES = {
    "cp311-abi3": "jumiks/_core.abi3.so",
    "cp314-cp314t": "jumiks/_core.cpython-314t-*-linux-*.so",
}
"""What a wheel is for, and its one library. A free-threaded Python has no stable ABI."""

OFFERED = {"PyInit__core", "PyInit__objects"}
"""The modules that the one library has."""

ROUND_TRIP = """
import os, jumiks
address = f"@jumiks-dist-{os.getpid()}"
with jumiks.Server(address) as server, jumiks.Client(address) as client:
    server.publish(b"tried")
    assert client.receive(timeout=10) == b"tried"
print("jumiks", jumiks.__version__, "works from", os.path.dirname(jumiks.__file__))
"""


def check_names(archive: Path, names: set[str], wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in names]
    built = [name for name in names if name.endswith((".o", ".pyc"))]
    if missing or built:
        sys.exit(f"{archive.name}: missing {missing}, does not belong there {built}")


def check_sdist(path: Path) -> None:
    with tarfile.open(path) as archive:
        names = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    check_names(path, names, IN_SDIST)
    if (ROOT / ".git").exists():
        compare_with_git(path, names)


def compare_with_git(sdist: Path, names: set[str]) -> None:
    """An sdist has what the repository has, so what its tests need, and nothing that lay about."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    tracked = {name for name in listed.stdout.split("\0") if name}
    missing = sorted(name for name in tracked - names if Path(name).name != ".gitignore")
    strays = sorted(
        name for name in names - tracked - {"PKG-INFO", "setup.cfg"} if ".egg-info/" not in name
    )
    if missing or strays:
        sys.exit(
            f"{sdist.name} lacks files of the repository: {missing}, and has others: {strays}; "
            "MANIFEST.in says what goes into it"
        )


def check_library(where: str, content: bytes) -> set[str]:
    """A library offers its modules and has nothing of the machine that built it.

    Returns the names of the libraries that it needs.
    """
    library = ELFFile(io.BytesIO(content))
    sections = [section.name for section in library.iter_sections()]
    if kept := [name for name in sections if name.startswith((".debug", ".symtab"))]:
        sys.exit(f"{where} has debug information: {kept}")
    for folder in (Path.home(), ROOT, Path(sys.prefix), Path(tempfile.gettempdir())):
        if bytes(folder) + b"/" in content:
            sys.exit(f"{where} has a path of this machine, under {folder}")
    dynamic = list(library.get_section_by_name(".dynamic").iter_tags())
    if found := {tag.entry.d_tag for tag in dynamic} & {"DT_RPATH", "DT_RUNPATH", "DT_TEXTREL"}:
        sys.exit(f"{where} has {found}")
    symbols = library.get_section_by_name(".dynsym").iter_symbols()
    offered = {each.name for each in symbols if each.entry.st_shndx != "SHN_UNDEF"}
    if offered != OFFERED:
        sys.exit(f"{where} offers {sorted(offered)}, and not {sorted(OFFERED)} alone")
    stacks = [each for each in library.iter_segments() if each.header.p_type == "PT_GNU_STACK"]
    if not stacks or stacks[0].header.p_flags & 1:
        sys.exit(f"{where} asks for a stack that can be executed")
    return {tag.needed for tag in dynamic if tag.entry.d_tag == "DT_NEEDED"}


def version(tag: str) -> list[int]:
    """Return the figures of manylinux_2_17_x86_64."""
    return [int(part) for part in tag.split("_")[1:3]]


def check_platform(path: Path, needed: set[str]) -> None:
    """The libraries may need nothing that the wheel's name does not promise."""
    tags = path.stem.split("-")[-1].split(".")
    promised = next((tag for tag in tags if re.match(r"\w+_\d+_\d+_", tag)), tags[0])
    if promised.startswith("musllinux_"):
        # Every musl takes both names for itself. auditwheel knows only Alpine's, the second.
        if not needed <= {"libc.so", f"libc.musl-{promised.split('_', 3)[3]}.so.1"}:
            sys.exit(f"{path.name} needs {sorted(needed)}, and not musl's C library alone")
        return
    show = [sys.executable, "-m", "auditwheel", "show", "--json", str(path)]
    found = json.loads(subprocess.run(show, capture_output=True, check=True).stdout)
    works = found["overall_tag"]
    if found["external_libs"] or found["unsupported_isa"]:
        sys.exit(f"{path.name} needs libraries or a processor that not all have: {found}")
    if not promised.startswith("linux_") and version(promised) < version(works):
        sys.exit(f"{path.name} promises {promised}, and works where {works} does: {found}")
    print(f"{path.name}: works where {works} does")


def check_wheel(path: Path) -> None:
    kind = "-".join(path.name.split("-")[2:4])
    if kind not in LIBRARIES:
        sys.exit(f"{path.name} is not for one of {sorted(LIBRARIES)}")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        check_names(path, names, IN_WHEEL)
        libraries = [name for name in names if re.search(r"\.so\b", name)]
        if len(libraries) != 1 or not fnmatch.fnmatch(libraries[0], LIBRARIES[kind]):
            sys.exit(f"{path.name} has {libraries}, and not {LIBRARIES[kind]} alone")
        needed = check_library(path.name, archive.read(libraries[0]))
    foreign = [name for name in names if not name.startswith(("jumiks/", "jumiks-"))]
    if foreign:
        sys.exit(f"{path.name} installs more than jumiks: {foreign}")
    check_platform(path, needed)


def python_for(path: Path) -> str | None:
    """Return a Python of this machine that the wheel fits, if there is one."""
    tags = parse_wheel_filename(path.name)[3]
    if not tags.isdisjoint(sys_tags()):
        return sys.executable
    runs_here = any(tag.platform in {each.platform for each in sys_tags()} for tag in tags)
    free_threaded = next((f"python3.{tag.abi[3:]}" for tag in tags if tag.abi[-1] == "t"), None)
    return shutil.which(free_threaded) if free_threaded and runs_here else None


def try_install(archive: Path, base: str) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        subprocess.run([base, "-m", "venv", "--without-pip", f"{elsewhere}/venv"], check=True)
        python = f"{elsewhere}/venv/bin/python"
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", str(archive)], cwd=elsewhere, check=True)
        subprocess.run([python, "-I", "-c", ROUND_TRIP], cwd=elsewhere, check=True)
        command = [f"{elsewhere}/venv/bin/jumiks", "serve", "@jumiks-dist"]
        subprocess.run(command, stdin=subprocess.DEVNULL, cwd=elsewhere, check=True)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    for sdist in folder.glob("*.tar.gz"):
        check_sdist(sdist)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        sys.exit(f"no wheel is in {folder}")
    for wheel in wheels:
        check_wheel(wheel)
        if python := python_for(wheel):
            try_install(wheel, python)


if __name__ == "__main__":
    main()
