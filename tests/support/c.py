# SPDX-License-Identifier: Apache-2.0
"""What the tests that compile C share: all warnings, and sanitizers if the compiler has them."""

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.base import ROOT

CORE = sorted(path for path in (ROOT / "csrc").glob("*/*.c") if path.parent.name != "python")
FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-DJMK_POINTS", "-g", "-O1", "-pthread"),
    *("-Wall", "-Wextra", "-Werror", "-Wconversion"),
    f"-I{ROOT / 'csrc'}",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COMPILE_DEADLINE = 200.0
"""Seconds for a compiler or a test; most take a few, that of the faults half a minute."""

COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\])*"', re.DOTALL)
FUNCTION = re.compile(
    r"^(?!#)(?:__attribute__\(\(\w+\)\) )?\w[^;{}=()]*?(\w+)\([^;{}]*\) \{\n(.*?)^\}",
    re.MULTILINE | re.DOTALL,
)

# A preloaded sanitizer is there for the interpreter, not for compilers and programs of their own.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def c_functions(path: Path) -> dict[str, str]:
    """Return the bodies of a C file's functions, by name, without comments and strings."""
    text = COMMENT_OR_STRING.sub(" ", path.read_text("utf-8"))
    return {found[1]: found[2] for found in FUNCTION.finditer(text)}


def run(*command: object) -> None:
    """Run a program; show what it says if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMPILE_DEADLINE,
        env=ENVIRONMENT,
    )
    if done.returncode != 0:
        words = " ".join(str(word) for word in command)
        pytest.fail(f"{words}\ngave {done.returncode}:\n{done.stdout.decode(errors='replace')}")


def links(compiler: str, flags: list[str], folder: Path) -> bool:
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [compiler, *flags, str(source), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True, env=ENVIRONMENT).returncode == 0


def folder_of_the_run(factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run of pytest have."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def made_once(made: Path) -> Iterator[bool]:
    """Whether this is to be made now; else another worker has made it, or makes it meanwhile."""
    with Path(f"{made}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        to_be_made = not lock.read()
        yield to_be_made
        if to_be_made:
            lock.write("made")


class Build:
    """The core, compiled once for all tests of a run.

    Args:
        factory: of the folder.
        name: of this build.
        flags: further ones.
    """

    def __init__(self, factory: pytest.TempPathFactory, name: str, *flags: str) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        folder = folder_of_the_run(factory) / name
        folder.mkdir(exist_ok=True)
        self.objects = [folder / f"{source.stem}.o" for source in CORE]
        built = folder / "command"
        with made_once(built) as to_be_made:
            if to_be_made:
                sanitizers = SANITIZERS if links(compiler, SANITIZERS, folder) else []
                self.command = [compiler, *FLAGS, *flags, *sanitizers]
                self._compile()
                built.write_text(json.dumps(self.command))
        self.command = json.loads(built.read_text())

    def _compile(self) -> None:
        compilers = [
            subprocess.Popen(
                [*self.command, "-c", str(source), "-o", str(built)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
            )
            for source, built in zip(CORE, self.objects, strict=True)
        ]
        said = [each.communicate(timeout=COMPILE_DEADLINE)[0].decode() for each in compilers]
        if any(each.returncode for each in compilers):
            pytest.fail("the core does not compile:\n" + "\n".join(said))

    def program(self, path: Path, *sources: Path) -> Path:
        """Make a program of these sources and the core, with the flags that stand beside them."""
        beside = [source.with_suffix(".flags") for source in sources]
        flags = [f"@{each}" for each in beside if each.exists()]
        run(*self.command, *flags, *sources, *self.objects, "-o", path)
        return path
