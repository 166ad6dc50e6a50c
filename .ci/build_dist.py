# SPDX-License-Identifier: Apache-2.0
"""Build sdist and wheel twice, in two folders and surroundings: the bytes have to be equal."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

BUILD = [sys.executable, "-m", "build", "--no-isolation"]

OTHER = {"LC_ALL": "C", "PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "USER": "somebody"}
"""What must not matter, as the second build has it."""


def start(
    source: Path, out: Path, *kinds: str, env: Mapping[str, str] = {}, umask: int = 0o022
) -> subprocess.Popen[bytes]:
    """Start a build whose output is kept until it fails."""
    return subprocess.Popen(
        [*BUILD, *kinds, "--outdir", str(out), str(source)],
        env={**os.environ, **env},
        umask=umask,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(build: subprocess.Popen[bytes]) -> None:
    said, _ = build.communicate()
    if build.returncode:
        sys.exit(f"{said.decode(errors='replace')}\nfailed: {build.args}")


def unpack(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def forget_the_sdist(folder: Path) -> Path:
    """Remove what a clone does not have."""
    for name in ("PKG-INFO", "setup.cfg"):
        (folder / name).unlink()
    shutil.rmtree(only(folder / "src", "*.egg-info"))
    return folder


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def compare(first: Path, second: Path) -> None:
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    print(f"{hashes[0]}  {first.name}")
    if hashes[0] != hashes[1]:
        sys.exit(f"{first.name}: a second build, in another folder, gave {hashes[1]}")


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    if "SOURCE_DATE_EPOCH" not in os.environ:
        sys.exit("SOURCE_DATE_EPOCH is not set, so no two builds would be equal: use make dist")
    finish(start(Path.cwd(), out, "--sdist"))
    sdist = only(out, "*.tar.gz")
    with tempfile.TemporaryDirectory() as place:
        again = Path(place) / "again"
        here = unpack(sdist, Path(place) / "a")
        there = forget_the_sdist(unpack(sdist, Path(place) / "a longer name"))
        builds = [
            start(here, out, "--wheel"),
            start(there, again, env=OTHER, umask=0o077),
        ]
        for build in builds:
            finish(build)
        compare(sdist, only(again, "*.tar.gz"))
        compare(only(out, "*.whl"), only(again, "*.whl"))


if __name__ == "__main__":
    main()
