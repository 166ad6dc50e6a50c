# SPDX-License-Identifier: Apache-2.0
"""Build the wheels that go to users, each by a compiler that has its C library: zig cc.

build_wheels.py SDIST FOLDER [PLATFORM ...]
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from build_dist import finish, unpack

TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "musllinux_1_2_aarch64": "aarch64-linux-musl",
}
"""Where a wheel is for, and what zig calls that."""


FREE_THREADED = "python3.14t"
"""It needs a wheel of its own, which is built if it is here, for this machine and glibc."""


def free_threaded_python(folder: Path) -> str:
    """Return one that can build."""
    subprocess.run([FREE_THREADED, "-m", "venv", "--without-pip", folder], check=True)
    python = f"{folder}/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-compile", "build", "setuptools>=77", "cffi>=2"],
        check=True,
    )
    return python


def python_headers(folder: Path) -> list[str]:
    """Return flags that find Debian's pyconfig.h, which lies apart for each machine.

    The stable ABI asks it for nothing in which two 64-bit machines differ.
    """
    name = f"python{sysconfig.get_python_version()}"
    ours = Path("/usr/include", sysconfig.get_config_var("MULTIARCH") or "none", name)
    if not ours.exists():
        return []
    for machine in ("x86_64", "aarch64"):
        (folder / f"{machine}-linux-gnu").mkdir()
        (folder / f"{machine}-linux-gnu" / name).symlink_to(ours)
    return [f"-I{folder}"]


def start(
    source: Path, out: Path, platform: str, headers: list[str], python: str = sys.executable
) -> subprocess.Popen[bytes]:
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[platform], *headers]
    build = [python, "-m", "build", "--no-isolation", "--wheel", f"--outdir={out}"]
    return subprocess.Popen(
        [*build, f"-C--build-option=--plat-name={platform}", source],
        env={**os.environ, "CC": " ".join(compiler)},
        umask=0o022,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def main() -> None:
    sdist, out = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    with tempfile.TemporaryDirectory() as place:
        (headers := Path(place) / "include").mkdir()
        flags = python_headers(headers)
        for platform in sys.argv[3:] or TARGETS:
            finish(start(unpack(sdist, Path(place) / platform), out, platform, flags))
        if not shutil.which(FREE_THREADED):
            print(f"{FREE_THREADED} is not here, so there is no wheel for it")
            return
        python = free_threaded_python(Path(place) / "python")
        source = unpack(sdist, Path(place) / "free-threaded")
        finish(start(source, out, f"manylinux_2_17_{os.uname().machine}", [], python))


if __name__ == "__main__":
    main()
