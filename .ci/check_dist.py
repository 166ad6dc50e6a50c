# SPDX-License-Identifier: Apache-2.0
"""Look into the sdist and the wheel, install each into an environment of its own, and try it."""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

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
    "jumiks/_core.abi3.so",
    "jumiks/_objects.py",
    "jumiks/py.typed",
)

ROUND_TRIP = """
import os, jumiks
address = f"@jumiks-dist-{os.getpid()}"
with jumiks.Server(address) as server, jumiks.Client(address) as client:
    server.publish(b"tried")
    assert client.receive(timeout=10) == b"tried"
print("jumiks", jumiks.__version__, "works from", os.path.dirname(jumiks.__file__))
"""


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def check_names(archive: Path, names: set[str], wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in names]
    built = [name for name in names if name.endswith((".o", ".pyc"))]
    if missing or built:
        sys.exit(f"{archive.name}: missing {missing}, does not belong there {built}")


def check_sdist(path: Path) -> None:
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    check_names(path, names, IN_SDIST)
    if any(name.endswith(".so") for name in names):
        sys.exit(f"{path.name} has compiled modules")


def check_wheel(path: Path) -> None:
    if "-cp311-abi3-" not in path.name:
        sys.exit(f"{path.name} is not for the stable ABI of Python 3.11 and later")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        libraries = [archive.read(name) for name in names if name.endswith(".so")]
    check_names(path, names, IN_WHEEL)
    if any(b".debug_info" in each or bytes(Path.home()) + b"/" in each for each in libraries):
        sys.exit(f"{path.name} has debug information, or paths of this machine")
    foreign = [name for name in names if not name.startswith(("jumiks/", "jumiks-"))]
    if foreign:
        sys.exit(f"{path.name} installs more than jumiks: {foreign}")


def try_install(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        venv.create(f"{elsewhere}/venv", with_pip=True)
        python = f"{elsewhere}/venv/bin/python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, str(archive)], cwd=elsewhere, check=True)
        subprocess.run([python, "-I", "-c", ROUND_TRIP], cwd=elsewhere, check=True)
        command = [f"{elsewhere}/venv/bin/jumiks", "serve", "@jumiks-dist"]
        subprocess.run(command, stdin=subprocess.DEVNULL, cwd=elsewhere, check=True)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    sdist, wheel = only(folder, "*.tar.gz"), only(folder, "*.whl")
    check_sdist(sdist)
    check_wheel(wheel)
    for archive in (sdist, wheel):
        try_install(archive)
        print(f"{archive.name}: fine")


if __name__ == "__main__":
    main()
