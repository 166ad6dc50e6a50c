# SPDX-License-Identifier: Apache-2.0
"""Change one operator, number or statement at a time, and see whether a test notices.

    python tests/mutation/mutate.py [FILE ...]        from the project's root

Each mutant is tried in a fork, by the tests of its file, up to the first that fails. What no test
noticed is printed; docs/coverage.md has the reason for each that stays so.
"""

import ast
import copy
import importlib.machinery
import importlib.util
import itertools
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
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

# Loaded once, before the forks.
import hypothesis.stateful  # noqa: F401
import pytest

DEADLINE = 600.0
"""Seconds for the tests of one mutant; one that hangs is noticed too."""

AT_ONCE = 2 * (os.cpu_count() or 1)
"""Mutants that are tried at a time; many a test waits."""

BUILD = Path("build/mutation")
TESTS = {
    "src/jumiks/lag.py": ["tests/test_bad_input.py", "tests/test_lag.py"],
    "src/jumiks/handshake.py": ["tests/test_handshake.py", "tests/test_protocol_doc.py"],
    "csrc/publish.c": ["tests/test_lag.py", "tests/test_server.py"],
}
POLICY = re.compile(r"^/\* ---- the policy; .*?(?=^/\* ---- waiting)", re.MULTILINE | re.DOTALL)
"""What is changed of publish.c."""

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
        BUILD.mkdir(parents=True, exist_ok=True)
        generated = BUILD / "_core.c"
        describe["ffibuilder"]().emit_c_code(str(generated))
        include = sysconfig.get_path("include")
        self.compile = ["cc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-fPIC", "-pthread", "-w"]
        self.compile += ["-Icsrc", f"-I{include}", "-c", "-o"]
        self.objects = []
        for source in [*describe["core_sources"](), generated]:
            self.objects.append(str(BUILD / f"{Path(source).stem}.o"))
            subprocess.run([*self.compile, self.objects[-1], str(source)], check=True)

    def link(self, number: int, mutant: Mutant) -> str | None:
        """The module's file with a changed publish.c; None if that is no C."""
        base = BUILD / f"mutant{number}"
        base.with_suffix(".c").write_text(mutant.source, "utf-8")
        command = [*self.compile, f"{base}.o", f"{base}.c"]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            return None
        others = [each for each in self.objects if not each.endswith("/publish.o")]
        subprocess.run(["cc", "-shared", "-pthread", "-o", f"{base}.so", f"{base}.o", *others])
        return f"{base}.so"


# ---- trying


class Finder(MetaPathFinder, Loader):
    """Imports a changed module in place of the real one.

    Args:
        mutant: the module's name, and its source if that is Python.
        binary: the file of a compiled one.
    """

    def __init__(self, mutant: Mutant, binary: str | None) -> None:
        self.mutant = mutant
        self.binary = binary

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.mutant.module:
            return None
        if self.binary is not None:
            return importlib.util.spec_from_file_location(name, self.binary)
        return importlib.machinery.ModuleSpec(name, self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.source, f"<mutant of {module.__name__}>", "exec"), vars(module))


def start(mutant: Mutant, binary: str | None, tests: Sequence[str]) -> int:
    """Start the tests in a fork; returns its id."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    sys.meta_path.insert(0, Finder(mutant, binary))
    options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
    os._exit(pytest.main([*options, *tests]))


class Trial(NamedTuple):
    """A mutant that is being tried, and until when."""

    mutant: Mutant
    deadline: float


def ended(trials: dict[int, Trial]) -> Iterator[Mutant]:
    """Wait until a trial has ended, or hangs; yields the mutant if no test noticed it."""
    while True:
        for child, trial in trials.items():
            hangs = time.monotonic() > trial.deadline
            if hangs:
                os.kill(child, signal.SIGKILL)
            done, status = os.waitpid(child, 0 if hangs else os.WNOHANG)
            if not done:
                continue
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # whatever it started
            del trials[child]
            if status == 0:
                yield trial.mutant
            return
        time.sleep(0.02)


def survivors(path: str, mutants: Iterable[Mutant], core: Core | None) -> Iterator[Mutant]:
    """Try mutants of a file, some at once; yields the unnoticed."""
    trials: dict[int, Trial] = {}
    for number, mutant in enumerate(mutants):
        binary = core.link(number, mutant) if core else None
        if core and binary is None:
            continue  # it does not compile
        if len(trials) >= AT_ONCE:
            yield from ended(trials)
        trials[start(mutant, binary, TESTS[path])] = Trial(mutant, time.monotonic() + DEADLINE)
    while trials:
        yield from ended(trials)


def main() -> None:
    left = 0
    for path in sys.argv[1:] or TESTS:
        core = Core() if path.endswith(".c") else None
        mutants = c_mutants(path) if core else python_mutants(path)
        if not list(survivors(path, itertools.islice(mutants, 1), core)):
            sys.exit(f"{path}: its tests fail without a change, too")
        for mutant in survivors(path, mutants, core):
            left += 1
            print(f"  {path}:{mutant.line}: {mutant.what}", flush=True)
    print(f"{left} that no test noticed")


if __name__ == "__main__":
    main()
