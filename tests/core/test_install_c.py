# SPDX-License-Identifier: Apache-2.0
"""What `make install-c` makes of a packager's settings, with a compiler that only takes notes."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support.base import ROOT
from support.c import ENVIRONMENT

pytestmark = pytest.mark.no_core

# The make that runs the tests may be one with -j.
OURS = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("MAKE")}

COMPILER = """#!/bin/sh
echo "$@" >>"$0.notes"
while [ "$1" != -o ]; do shift; done
: >"$2"
"""


class Packager:
    """Installs into a folder of its own, with a compiler that writes empty files."""

    def __init__(self, folder: Path) -> None:
        if not (shutil.which("make") and shutil.which("ar")):
            pytest.skip("no make, or no binutils")
        self.folder = folder
        self.notes = folder / "cc.notes"
        compiler = folder / "cc"
        compiler.write_text(COMPILER)
        compiler.chmod(0o755)

    def install(self, prefix: Path | str, *settings: str, umask: int = 0o022) -> list[list[str]]:
        """Return the commands that the compiler was given."""
        self.notes.write_text("")
        words = [f"PREFIX={prefix}", f"C_LIB={self.folder}/built", f"CC={self.folder}/cc"]
        done = subprocess.run(
            ["make", "--silent", "-C", str(ROOT), "install-c", *words, *settings],
            env=OURS,
            umask=umask,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, "")
        return [line.split() for line in self.notes.read_text().splitlines()]


@pytest.fixture
def packager(tmp_path: Path) -> Packager:
    return Packager(tmp_path)


def pkg_config(folder: Path, *asked: str, **more: str) -> list[str]:
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config")
    said = subprocess.check_output(
        ["pkg-config", *asked, "jumiks"],
        env=ENVIRONMENT | {"PKG_CONFIG_PATH": str(folder / "pkgconfig")} | more,
        text=True,
    )
    return shlex.split(said)


def test_nothing_of_other_flags_or_another_compiler_is_taken(
    packager: Packager, tmp_path: Path
) -> None:
    files = len(packager.install(tmp_path / "to"))
    assert files > 10
    assert packager.install(tmp_path / "to") == []
    for settings in (["CFLAGS=-g"], ["CFLAGS=-g", "CPPFLAGS=-DA"], ["CFLAGS=-g", "LDFLAGS=-s"]):
        assert len(packager.install(tmp_path / "to", *settings)) == files
        assert packager.install(tmp_path / "to", *settings) == []
    os.symlink("cc", tmp_path / "other")
    packager.install(tmp_path / "to", f"CC={tmp_path}/other")
    noted = Path(f"{tmp_path}/other.notes").read_text().splitlines()
    assert len(noted) == files


def test_a_packager_s_flags_come_before_those_that_the_library_needs(
    packager: Packager, tmp_path: Path
) -> None:
    own = "-O1 -std=gnu89 -fvisibility=hidden -flto"
    *compiled, linked = packager.install(
        tmp_path / "to", f"CFLAGS={own}", "CPPFLAGS=-DMINE", "LDFLAGS=-Wl,-z,now"
    )
    for command in compiled:
        order = ["-O3", "-DMINE", *own.split(), "-std=c11", "-fvisibility=default"]
        assert [word for word in command if word in order] == order
    assert "-flto" in linked  # which a compiler asks for again as it links
    assert "-Wl,-z,now" in linked


def test_where_a_package_is_staged_is_not_where_it_will_be(
    packager: Packager, tmp_path: Path
) -> None:
    stage, there = tmp_path / "stage", "/usr/lib/x86_64-linux-gnu"
    packager.install("/usr", f"DESTDIR={stage}", f"LIBDIR={there}")
    folder = Path(f"{stage}{there}")
    assert str(stage) not in (folder / "pkgconfig/jumiks.pc").read_text()
    assert pkg_config(folder, "--variable=libdir") == [there]
    assert pkg_config(folder, "--cflags", "--libs", PKG_CONFIG_SYSROOT_DIR=str(stage)) == [
        f"-I{stage}/usr/include",
        f"-L{folder}",
        "-ljumiks",
    ]


def test_everybody_may_read_what_was_installed_with_a_umask_of_077(
    packager: Packager, tmp_path: Path
) -> None:
    packager.install(tmp_path / "to", umask=0o077)
    found = [path for path in (tmp_path / "to").rglob("*") if not path.is_symlink()]
    assert {path.name for path in found} >= {"jumiks.h", "jumiks.pc", "libjumiks.a"}
    assert [path for path in found if path.stat().st_mode & 0o044 != 0o044] == []


def test_a_prefix_may_have_spaces(packager: Packager, tmp_path: Path) -> None:
    to = tmp_path / "a few words"
    packager.install(to)
    assert pkg_config(to / "lib", "--cflags", "--libs") == [
        f"-I{to}/include",
        f"-L{to}/lib",
        "-ljumiks",
    ]
