# SPDX-License-Identifier: Apache-2.0
"""Build the compiled library; everything else stands in pyproject.toml.

Five variables of the environment change the build:

JUMIKS_DEV=1
    compile our own C files with warnings as errors, with assertions and debug information.
JUMIKS_SANITIZE=address,undefined (or thread)
    compile and link everything with these sanitizers of the compiler.
JUMIKS_COVERAGE=1
    count how often each line of C is run; the counts are kept beside the object files.
JUMIKS_DELAYS=1
    sleep for random moments wherever threads and processes may meet, and look at nothing that
    nobody was woken for (tests/c/delayed.c).
SOURCE_DATE_EPOCH=1700000000
    give all files in sdist and wheel this time (s since 1970), so that the same sources give the
    same bytes: https://reproducible-builds.org/docs/source-date-epoch/
"""

import gzip
import os
import re
import shutil
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

DEV = os.environ.get("JUMIKS_DEV", "") not in ("", "0")
SANITIZE = os.environ.get("JUMIKS_SANITIZE", "")
COVERAGE = os.environ.get("JUMIKS_COVERAGE", "") not in ("", "0")
DELAYS = os.environ.get("JUMIKS_DELAYS", "") not in ("", "0")

KINDS = {"coverage": COVERAGE, "delays": DELAYS, "dev": DEV, "plain": True}
KIND = SANITIZE.replace(",", "-") or next(kind for kind, is_so in KINDS.items() if is_so)

COMPILE = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-fvisibility=hidden", "-pthread"]
LINK = ["-pthread"]
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wconversion", "-g", "-UNDEBUG"]

if SANITIZE:
    sanitizers = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    COMPILE += [*sanitizers, "-O1", "-g", "-fno-omit-frame-pointer", "-UNDEBUG"]
    LINK += sanitizers

if KIND == "plain":
    # What goes to users has no paths of the machine that built it, and is half the size.
    COMPILE += ["-g0"]
    LINK += ["-Wl,--strip-all"]

if COVERAGE:
    # Many threads count at once.
    COMPILE += ["--coverage", "-fprofile-update=atomic", "-O0", "-g"]
    LINK += ["--coverage"]

if DELAYS:
    COMPILE += ["-DJMK_POINTS", "-Icsrc", "-g"]
    LINK += ["@tests/c/test_wakes.flags"]


class BuildExt(build_ext):
    """Give every module our flags, and our own C files alone the strict ones."""

    def build_extensions(self) -> None:
        """Compile and link all modules."""
        if DEV:
            self._be_strict_with_our_own()
        # Some Pythons have modules look for libraries where that Python is.
        self.compiler.linker_so = [
            word for word in self.compiler.linker_so if not word.startswith("-Wl,-rpath")
        ]
        for extension in self.extensions:
            extension.sources += ["tests/c/delayed.c"] if DELAYS else []
            extension.extra_compile_args = COMPILE
            extension.extra_link_args = LINK
        super().build_extensions()

    def _be_strict_with_our_own(self) -> None:
        # cffi's generated file is not clean under these flags, and setuptools has no flags for a
        # single file: this is the one place that all files pass through.
        compile_one = self.compiler._compile

        def compile_strictly(
            obj: str, src: str, ext: str, cc_args: list[str], extra: list[str], pp_opts: list[str]
        ) -> None:
            own = STRICT if Path(src).parts[0] == "csrc" else []
            compile_one(obj, src, ext, cc_args, [*extra, *own], pp_opts)

        self.compiler._compile = compile_strictly


class BuildPy(build_py):
    """Start from nothing: what an earlier build left would be part of the wheel.

    A library of a module that is Python by now would be imported in its place.
    """

    def run(self) -> None:
        """Copy the package's files."""
        shutil.rmtree(Path(self.build_lib) / "jumiks", ignore_errors=True)
        super().run()


# A free-threaded Python has no stable ABI (until 3.15), so it gets a wheel of its own.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

SOURCE_DATE_EPOCH = os.environ.get("SOURCE_DATE_EPOCH", "")
if SOURCE_DATE_EPOCH:
    # More does not fit into the header of a .gz file.
    if not re.fullmatch("[0-9]+", SOURCE_DATE_EPOCH) or int(SOURCE_DATE_EPOCH) >= 2**32:
        raise SystemExit(
            f"SOURCE_DATE_EPOCH={SOURCE_DATE_EPOCH} is no time in whole seconds since 1970, below "
            "2**32: give one such as $(git log -1 --format=%ct), or unset it"
        )
    os.umask(0o022)  # the modes in archives come of it


def level(path: str, time: int) -> None:
    """Write a .tar.gz anew, without what the machine and the moment have put into it."""
    with tarfile.open(path) as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        files = [(member, archive.extractfile(member)) for member in members]
        with (
            open(f"{path}.level", "wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=time) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as levelled,
        ):
            for member, content in files:
                member.pax_headers = {}  # a time with its fraction, which would go before the other
                member.mtime = time
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                levelled.addfile(member, content)
    os.replace(f"{path}.level", path)


class Sdist(sdist):
    """Make the sdist's bytes a matter of its files alone, if the time is given."""

    def make_archive(self, *args: Any, **options: Any) -> str:
        """Make one archive and return its path."""
        path: str = super().make_archive(*args, **options)
        if SOURCE_DATE_EPOCH:
            level(path, int(SOURCE_DATE_EPOCH))
        return path


setup(
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy, "sdist": Sdist},
    cffi_modules=["csrc/build_core.py:ffibuilder"],
    options={
        # Python 3.11's stable ABI: one wheel serves that version and all later ones.
        "bdist_wheel": {} if FREE_THREADED else {"py_limited_api": "cp311"},
        # The flags above are no part of what setuptools compares, so no object file may be reused,
        # and no kind of build may take another one's.
        "build": {"build_base": f"build/{KIND}"},
        "build_ext": {"force": "true"},
    },
)
