# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/: their blocks, which are run as a reader would, and their links.

A comment before a block says what the block itself cannot:

`<!-- not run: REASON -->` the block cannot be run here; `<!-- run by: tests/FILE -->` another test
does it; `<!-- given: server, client -->` the block uses these, as `GIVEN` makes them.

A block whose first line is a comment with a file's name, `# feed.py`, is that file. A block of
another kind is run; if one of output (`text`) follows it, that is what it prints.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from support.base import ROOT
from support.command import JUMIKS_IN_SHELL, PYTHON_IN_SHELL

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TOP = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]

BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*?) -->\n+)?```(?P<kind>[^\n]*)\n(?P<body>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
QUIET = ("", "text", "text varying")
"""Kinds of blocks that are output, or a drawing."""

ADDRESS = re.compile(r"(?<=[\"' `])@([a-z]+)(?=[\"' `);]|$)", re.MULTILINE)
"""An abstract address, which is no decorator."""

FILE = re.compile(r"# ([\w.-]+\.\w+)\n")

GIVEN = {
    "server": "server = stack.enter_context(jumiks.Server(where, share_log=True))",
    "client": "client = stack.enter_context(jumiks.Client(where))",
    "ticks": """
import numpy
TICK, size = numpy.dtype([("time", "<i8"), ("size", "<i4")]), 0
server.publish_many(numpy.ones(3, TICK))""",
    "recording": """
import subprocess, sys
server = jumiks.Server(where, share_log=True, keep=10)
server.publish_many([b"8 bytes."] * 3)
words = [sys.executable, "-m", "jumiks.cli", "record", where, "ticks.mcap", "--overwrite"]
recorder = subprocess.Popen([*words, "--from", "oldest"], stderr=subprocess.DEVNULL)
server.wait_for_clients(1)
server.drain()
server.close()
assert recorder.wait() == 0""",
    "item": """
import numpy
from jumiks.recording import Pack, Reader
dtype = numpy.dtype("<i8")
recording = stack.enter_context(Reader("ticks.mcap"))
item = next(each for each in recording if isinstance(each, Pack))""",
    # For a program that goes on until Ctrl-C.
    "feed": """
import os, signal, sys, threading
def feed():
    with jumiks.Server(where, share_log=True) as server:
        server.wait_for_clients(1)
        server.publish_many([b"one", b"two", b"three"])
        server.drain()
        os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, lambda *_: (sys.stdout.flush(), os._exit(0)))
threading.Thread(target=feed, daemon=True).start()""",
}
BEFORE = "import contextlib, jumiks\nstack, where = contextlib.ExitStack(), {where!r}\n"
AFTER = "\nstack.close()\n"

LOGGED = re.compile(r"^gone \(LAGGED\): .*\n", re.MULTILINE)
"""What a server logs of a slow client: it has process ids, so pages only say that it is there."""

MORE_TIME = (("--wait 5", "--wait 50"), ("timeout 10", "timeout 50"), ("timeout=5", "timeout=50"))
"""What is enough for a reader is not on a busy machine."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    note: str
    body: str

    @property
    def file(self) -> str:
        """The name of the file that it is; "" if it is none."""
        found = FILE.match(self.body) if self.kind.partition(" ")[0] not in ("sh", *QUIET) else None
        return found[1] if found else ""

    @property
    def is_output(self) -> bool:
        return self.kind in QUIET

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("kind")) + 1,
            found["kind"],
            found["note"] or "",
            found["body"],
        )
        for found in BLOCK.finditer(text)
    ]


class Run:
    """Runs the blocks of one page, one after the other, in a folder of their own."""

    def __init__(self, page: Path, folder: Path, address: str) -> None:
        self.blocks, self.folder, self.address = blocks(page), folder / "work", address
        self.folder.mkdir()
        self.tools = folder / "tools"
        self.tools.mkdir()
        for name, words in (("python", PYTHON_IN_SHELL), ("jumiks", JUMIKS_IN_SHELL)):
            tool = self.tools / name
            tool.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            tool.chmod(0o755)

    def here(self, text: str) -> str:
        """A block's text with an address of this test, and more time."""
        for enough, plenty in MORE_TIME:
            text = text.replace(enough, plenty)
        return ADDRESS.sub(rf"{self.address}-\1", text)

    def program(self, block: Block) -> str:
        """A block of Python with what it is given."""
        body = self.here(block.body)
        if not block.note:
            return body
        found = ADDRESS.search(block.body)
        before = BEFORE.format(where=f"{self.address}-{found[1] if found else 'given'}")
        given = [GIVEN[name] for name in block.note.removeprefix("given: ").split(", ")]
        return before + "\n".join(given) + "\n" + body + AFTER

    def words_for(self, block: Block) -> list[str]:
        if block.kind == "python":
            return [sys.executable, "-W", "error", "-c", self.program(block)]
        assert block.kind == "sh", f"{block}: nothing here runs {block.kind}"
        return ["bash", "-euo", "pipefail", "-c", self.here(block.body)]

    def printed_by(self, block: Block) -> str:
        surroundings = {
            **os.environ,
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "COLUMNS": "120",
            "PYTHONUNBUFFERED": "",  # lines of two processes come as wholes
        }
        block_process = subprocess.run(
            self.words_for(block),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=surroundings,
            timeout=60,
            check=False,
        )
        assert block_process.returncode == 0, (
            f"{block} ended with {block_process.returncode}:\n{block_process.stdout}"
        )
        return re.sub(rf"{self.address}-", "@", LOGGED.sub("", block_process.stdout))

    def each_output(
        self, wanted: Callable[[Block], bool]
    ) -> Iterator[tuple[Block, str, Block | None]]:
        """Run each block that is wanted here: it, what it printed, and the block behind it."""
        for block, after in pairwise([*self.blocks, None]):
            assert block is not None
            if block.file:
                (self.folder / block.file).write_text(self.here(block.body))
            elif wanted(block) and is_run_here(block):
                yield block, self.printed_by(block), after


def is_run_here(block: Block) -> bool:
    """Whether `Run` runs it: not if it is no program, or a note says who else does, or why not."""
    if block.is_output or block.file or block.kind.startswith("{"):
        return False
    return not block.note.startswith(("not run: ", "run by: "))


# ---- links ----

LINK = re.compile(r"(?<!`)\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    return LINK.findall(re.sub(r"`[^`\n]*`", "", text))


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as a forge and the site make them."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
