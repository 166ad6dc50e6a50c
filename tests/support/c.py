# SPDX-License-Identifier: Apache-2.0
"""What the tests that compile C share: all warnings, and sanitizers if the compiler has them."""

import os
import re
import shutil
import subprocess
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


class Build:
    """The core, compiled once for all tests of a module; `flags` are further ones."""

    def __init__(self, folder: Path, *flags: str) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        self.command = [compiler, *FLAGS, *flags]
        if links(compiler, SANITIZERS, folder):
            self.command += SANITIZERS
        self.objects = [folder / f"{source.stem}.o" for source in CORE]
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
