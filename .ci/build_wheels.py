# SPDX-License-Identifier: Apache-2.0
"""Build the wheels that go to users, each by a compiler that has its C library: zig cc.

build_wheels.py SDIST FOLDER [PLATFORM ...]
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from build_dist import BUILD, finish, unpack

TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "musllinux_1_2_aarch64": "aarch64-linux-musl",
}
"""Where a wheel is for, and what zig calls that."""


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


def start(source: Path, out: Path, platform: str, headers: list[str]) -> subprocess.Popen[bytes]:
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[platform], *headers]
    return subprocess.Popen(
        [*BUILD, "--wheel", f"-C--build-option=--plat-name={platform}", f"--outdir={out}", source],
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


if __name__ == "__main__":
    main()
