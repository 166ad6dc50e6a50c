# SPDX-License-Identifier: Apache-2.0
"""Change one operator, number or statement at a time, and see whether a test notices.

    python tests/mutation/mutate.py [FILE ...]        from the project's root

Each mutant is tried in a process of its own, by the tests of its file, up to the first that fails.
What no test noticed is printed; docs/coverage.md has the reason for each that stays so.
"""

import ast
import copy
import importlib.machinery
import importlib.util
import itertools
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

PATIENCE = 8.0
"""Times as long as without a change a mutant's tests may take; one that hangs is noticed too."""

AT_ONCE = 2 * (os.cpu_count() or 1)
"""Mutants that are tried at a time; many a test waits."""

BUILD = Path("build/mutation")
TESTS = {
    "src/jumiks/_server/lag.py": ["tests/whole/test_bad_input.py", "tests/server/test_lag.py"],
    "src/jumiks/_wire/handshake.py": [
        "tests/wire/test_handshake.py",
        "tests/wire/test_protocol_doc.py",
    ],
    "csrc/server/lag.c": [
        "tests/server/test_lag.py",
        "tests/server/test_server.py",
        "tests/server/test_keep.py",
    ],
}
POLICY = re.compile(r"^/\* ---- the policy; .*?(?=^/\* ---- waiting)", re.MULTILINE | re.DOTALL)
"""What is changed of lag.c."""

RUN = "--run"
"""How this program starts itself for one mutant."""

UNCHANGED = "unchanged"
"""The first mutant is none: a failure of its would say that all others fail for no reason."""


class Mutant(NamedTuple):
    module: str
    line: int
    what: str
    source: str


# ---- Python

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
}


def changed(node: ast.AST) -> Iterator[ast.AST | None]:
    """What may stand in a node's place; None is nothing at all."""
    other = copy.deepcopy(node)
    match other:
        case ast.BinOp() | ast.BoolOp() if type(other.op) in SWAPS:
            other.op = SWAPS[type(other.op)]()  # type: ignore[assignment]
            yield other
        case ast.Compare():
            for index, operator in enumerate(other.ops):
                one = copy.deepcopy(other)
                one.ops[index] = SWAPS[type(operator)]()  # type: ignore[call-overload]
                yield one
        case ast.UnaryOp(op=ast.Not() | ast.Invert()):
            yield other.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not other.value)
        case ast.Constant(value=int(number)):
            yield ast.Constant(number + 1)
        case ast.IfExp():
            yield ast.IfExp(other.test, other.orelse, other.body)
        case ast.Return(value=value) if value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Assign(targets=[ast.Attribute()]):
            yield ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Parents, fields, indices and children, without annotations, which nothing runs."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST):
                yield node, name, index if isinstance(value, list) else None, child
                yield from places(child)


def python_mutants(path: str) -> Iterator[Mutant]:
    tree = ast.parse(Path(path).read_text("utf-8"))
    module = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
    yield Mutant(module, 0, UNCHANGED, ast.unparse(tree))
    for parent, name, index, child in places(tree):
        for new in changed(child):
            stored = getattr(parent, name)
            before = ast.unparse(child)
            if index is None:
                setattr(parent, name, new)
            else:
                stored[index] = new
            source = ast.unparse(ast.fix_missing_locations(tree))
            after = ast.unparse(new) if new is not None else ""
            yield Mutant(module, getattr(child, "lineno", 0), f"{before}  ->  {after}", source)
            if index is None:
                setattr(parent, name, child)
            else:
                stored[index] = child


# ---- C

C_SWAPS = (
    *((r"&&", "||"), (r"\|\|", "&&"), (r"==", "!="), (r"!=", "==")),
    *((r" <= ", " < "), (r" >= ", " > "), (r" < ", " <= "), (r" > ", " >= ")),
    *((r" \+ ", " - "), (r" - ", " + "), (r" / 2", " / 3")),
    *((r"\btrue\b", "false"), (r"\bfalse\b", "true"), (r"(?<=[( ])!(?=[a-z])", "")),
    *((r"= 0;", "= 1;"), (r"= now;", "= 0;"), (r"^ +jmk_pump_\w+\(.*\);$", ";")),
)


def c_mutants(path: str) -> Iterator[Mutant]:
    text = Path(path).read_text("utf-8")
    policy = POLICY.search(text)
    assert policy is not None
    yield Mutant("jumiks._core", 0, UNCHANGED, text)
    code = re.sub(r"/\*.*?\*/", lambda found: " " * len(found[0]), policy[0], flags=re.DOTALL)
    for pattern, new in C_SWAPS:
        for found in re.finditer(pattern, code, re.MULTILINE):
            start, end = (policy.start() + at for at in found.span())
            line = text.count("\n", 0, start) + 1
            what = f"{text.splitlines()[line - 1].strip()}  [{found[0].strip()} -> {new.strip()}]"
            yield Mutant("jumiks._core", line, what, text[:start] + new + text[end:])


class Core:
    """The core's object files, to which a changed one is linked."""

    def __init__(self) -> None:
        describe = runpy.run_path("csrc/build_core.py")
        generated = BUILD / "_core.c"
        describe["ffibuilder"]().emit_c_code(str(generated))
        include = sysconfig.get_path("include")
        self.compile = ["cc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-fPIC", "-pthread", "-w"]
        self.compile += ["-Icsrc", f"-I{include}", "-c", "-o"]
        self.objects = []
        for source in [*describe["core_sources"](), generated]:
            self.objects.append(str(BUILD / f"{Path(source).stem}.o"))
            subprocess.run([*self.compile, self.objects[-1], str(source)], check=True)

    def link(self, base: Path) -> Path | None:
        """The module's file with a changed lag.c; None if that is no C."""
        command = [*self.compile, f"{base}.o", f"{base}.c"]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            return None
        others = [each for each in self.objects if not each.endswith("/lag.o")]
        link = ["cc", "-shared", "-pthread", "-o", f"{base}.so", f"{base}.o", *others]
        subprocess.run(link, check=True)
        return base.with_suffix(".so")


# ---- trying


class Finder(MetaPathFinder):
    """Imports a changed module in place of the real one.

    Args:
        module: its name.
        file: where it is, Python or compiled.
    """

    def __init__(self, module: str, file: str) -> None:
        self.module = module
        self.file = file

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        return importlib.util.spec_from_file_location(name, self.file)


def run_tests(module: str, file: str, *tests: str) -> int:
    """Run tests on a changed module; what pytest says of them."""
    # A shell has it ignored by what runs in the background, and some tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.meta_path.insert(0, Finder(module, file))
    return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])


class Trial(NamedTuple):
    """A mutant that is being tried, and until when."""

    mutant: Mutant
    process: subprocess.Popen[bytes]
    deadline: float


def start(mutant: Mutant, file: Path, tests: Sequence[str], seconds: float) -> Trial:
    command = [sys.executable, __file__, RUN, mutant.module, str(file), *tests]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
    )
    return Trial(mutant, process, time.monotonic() + seconds)


def ended(trials: list[Trial]) -> Iterator[Mutant]:
    """Wait until a trial has ended, or hangs; yields the mutant if no test noticed it."""
    while True:
        for trial in trials:
            if trial.process.poll() is None and time.monotonic() < trial.deadline:
                continue
            with suppress(ProcessLookupError):
                os.killpg(trial.process.pid, signal.SIGKILL)  # and whatever it started
            trials.remove(trial)
            if trial.process.wait() == 0:
                yield trial.mutant
            return
        time.sleep(0.02)


def survivors(
    path: str, mutants: Iterable[Mutant], core: Core | None, seconds: float
) -> Iterator[Mutant]:
    """Try mutants of a file, some at once, each for so many seconds; yields the unnoticed."""
    trials: list[Trial] = []
    for number, mutant in enumerate(mutants):
        source = BUILD / f"mutant{number}{Path(path).suffix}"
        source.write_text(mutant.source, "utf-8")
        file = core.link(source.with_suffix("")) if core else source
        if file is None:
            continue  # it does not compile
        if len(trials) >= AT_ONCE:
            yield from ended(trials)
        trials.append(start(mutant, file, TESTS[path], seconds))
    while trials:
        yield from ended(trials)


def main() -> None:
    left = 0
    BUILD.mkdir(parents=True, exist_ok=True)
    for path in sys.argv[1:] or TESTS:
        core = Core() if path.endswith(".c") else None
        mutants = c_mutants(path) if core else python_mutants(path)
        begin = time.monotonic()
        if not list(survivors(path, itertools.islice(mutants, 1), core, math.inf)):
            sys.exit(f"{path}: its tests fail without a change, too")
        seconds = PATIENCE * (time.monotonic() - begin)
        for mutant in survivors(path, mutants, core, seconds):
            left += 1
            print(f"  {path}:{mutant.line}: {mutant.what}", flush=True)
    print(f"{left} that no test noticed")


if __name__ == "__main__":
    if sys.argv[1:2] == [RUN]:
        sys.exit(run_tests(*sys.argv[2:]))
    main()
