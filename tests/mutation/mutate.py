# SPDX-License-Identifier: Apache-2.0
"""Change one operator, number or statement at a time, and see whether a test notices.

    python tests/mutation/mutate.py [--seed 1] [--sample 300] [--seconds 1200] [FILE ...]

Run it from the project's root. It takes all of csrc/ and src/jumiks/, or the files that are named,
and tries a random sample of their mutants, for as long as it may; a prefix of a random sample is
one too. It prints what became of each, and a table of scores. docs/coverage.md has the last such
table, and the reason for each mutant that stays.

A mutant is tried in a copy of src/ by the tests that run the changed line, up to the first that
fails. `make coverage` notes which tests these are, for Python. For C, and where nothing is noted
(other threads and processes run much of the package), it is the tests of the file, below.
"""

import argparse
import ast
import copy
import os
import random
import re
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

BUILD = Path("build/mutation")
NOTED = Path("build/coverage/python/data")
"""What `make coverage` leaves: lines, by the test that ran them."""

HANGS = 60
"""Seconds after which a test hangs, and so has noticed a mutant."""

LONGEST = 600.0
"""Seconds after which the tests of a file, or a program in C, do."""

MOST_CHANCES = 4
"""Tests of a file that may fail by chance before it is left; on a busy machine some do."""

MOST_TESTS = 40
"""More tests than that run many a line; then the tests of the file will do."""

CORES = os.cpu_count() or 1

C_PROGRAMS = ["test_frame", "test_connect", "test_log", "test_client", "test_guard", "test_wakes"]
C_PROGRAMS += ["test_units"]
"""Tests of the core alone, the quickest first."""

TESTS = {
    "csrc/common/frame": "whole/test_frames server/test_liars client/test_hostile_server "
    "client/test_client",
    "csrc/server/lag.c": "server/test_lag server/test_lag_policies server/test_publish "
    "server/test_turn",
    "csrc/server/publish.c": "server/test_publish server/test_turn server/test_server "
    "whole/test_arrays",
    "csrc/server/server.c": "server/test_figures server/test_server client/test_client_life",
    "csrc/server/": "server/test_server server/test_lag server/test_keep client/test_shared",
    "csrc/client/": "client/test_client client/test_shared client/test_hostile_server "
    "client/test_ends",
    "csrc/python/arrays.c": "whole/test_arrays",
    "csrc/python/": "whole/test_arrays client/test_lent server/test_publish whole/test_frames "
    "client/test_client",
    "csrc/connect/": "",  # it is not in Python's library
    "csrc/": "client/test_client client/test_shared machine/test_seccomp machine/test_fork",
    "_wire/handshake.py": "wire/test_handshake wire/test_protocol_doc",
    "_wire/address.py": "wire/test_address",
    "_wire/listener.py": "wire/test_address server/test_server",
    "_wire/": "wire/test_codecs wire/test_monitor wire/test_rights wire/test_address "
    "client/test_client",
    "_server/lag.py": "server/test_lag whole/test_bad_input",
    "_server/lag_watch.py": "server/test_watch",
    "_server/monitors.py": "wire/test_monitor",
    "_server/access.py": "server/test_access server/test_quota",
    "_server/pages.py": "server/test_pages",
    "_server/journal.py": "server/test_quota server/test_strangers server/test_server",
    "_server/": "server/test_welcome server/test_callbacks server/test_quota server/test_strangers "
    "server/test_figures server/test_server",
    "_client/reconnect.py": "client/test_backoff client/test_reconnect",
    "_client/labels.py": "client/test_labels",
    "_client/readiness.py": "client/test_readiness client/test_wait",
    "_client/stream.py": "client/test_stream client/test_by_hand client/test_gap_of_one "
    "client/test_given_back client/test_client client/test_readiness "
    "client/test_client_life client/test_ends client/test_wait client/test_lent",
    "_client/connecting.py": "client/test_deadlines client/test_client client/test_client_life "
    "machine/test_green cli/test_effects",
    "_client/": "client/test_stream client/test_client client/test_client_life client/test_ends "
    "client/test_reconnect client/test_by_hand",
    "_aio/server.py": "client/test_aio_server client/test_cancelled",
    "_aio/": "client/test_aio client/test_cancelled",
    "_loops.py": "client/test_aio client/test_cancelled",
    "bridge/": "bridge cli/test_bridge",
    "recording/": "recording cli/test_record",
    "jumiks/logging.py": "integrations/test_logging",
    "testing.py": "integrations/test_testing",
    "cli/": "cli",
    "_metrics.py": "integrations server/test_figures",
    "prometheus.py": "integrations",
    "opentelemetry.py": "integrations",
    "systemd.py": "integrations",
    "stats.py": "server/test_figures cli/test_status",
    "errors.py": "whole/test_errors client/test_ends",
    "_options.py": "core/test_options whole/test_bad_input",
    "monitor.py": "wire/test_monitor",
    "_peer.py": "server/test_access server/test_welcome",
    "_green.py": "machine/test_green",
    "batch.py": "client/test_lent client/test_client whole/test_frames",
    "client.py": "client/test_client client/test_client_life client/test_deadlines "
    "client/test_stream",
    "server.py": "server/test_publish server/test_callbacks server/test_turn server/test_server",
    "": "client/test_client client/test_client_life machine/test_exit whole/test_errors",
}
"""The tests of a file: those of the first of these that its path has."""


VERDICTS = {True: "noticed ", False: "SURVIVED", None: "unjudged"}


class Mutant(NamedTuple):
    path: str
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
        case ast.Return(value=value) if value is not None and ast.unparse(value) != "None":
            yield ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Assign(targets=[ast.Attribute()]):
            yield ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()


def is_for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Parents, fields, indices and children, without annotations, which nothing runs."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not is_for_types_alone(child):
                yield node, name, index if isinstance(value, list) else None, child
                yield from places(child)


def python_mutants(path: str, wanted: Collection[int] = ()) -> Iterator[Mutant | None]:
    """All mutants of a file, in order; None for those that are not wanted."""
    tree = ast.parse(Path(path).read_text("utf-8"))
    number = 0
    for parent, name, index, child in places(tree):
        for new in changed(child):
            number += 1
            if number - 1 not in wanted:
                yield None
                continue
            stored = getattr(parent, name)
            before = ast.unparse(child)
            if index is None:
                setattr(parent, name, new)
            else:
                stored[index] = new
            source = ast.unparse(ast.fix_missing_locations(tree))
            after = ast.unparse(new) if new is not None else ""
            yield Mutant(path, getattr(child, "lineno", 0), f"{before}  ->  {after}", source)
            if index is None:
                setattr(parent, name, child)
            else:
                stored[index] = child


# ---- C

C_SWAPS = (
    *((r"&&", "||"), (r"\|\|", "&&"), (r"==", "!="), (r"!=", "==")),
    *((r" <= ", " < "), (r" >= ", " > "), (r" < ", " <= "), (r" > ", " >= ")),
    *((r" \+ ", " - "), (r" - ", " + "), (r" / (?=\d)", " * "), (r" % ", " / ")),
    *((r"\btrue\b", "false"), (r"\bfalse\b", "true"), (r"(?<=[( ])!(?=[a-z])", "")),
    *((r"= 0;", "= 1;"), (r"= now;", "= 0;"), (r"\bbreak;", ";"), (r"\bcontinue;", ";")),
    (r"^ +[a-z][\w>.-]*\([^;{}]*\);$", ";"),  # a call
    (r"^ +[a-z][\w>.\[\]-]* [-+]?= [^;{}]*;$", ";"),  # an assignment
    (r"(?<=^#define )([A-Z_]+) (?=\d+\b)", r"\1 2*"),
)


def c_mutants(path: str, wanted: Collection[int] = ()) -> Iterator[Mutant | None]:
    """The same for C."""
    text = Path(path).read_text("utf-8")
    code = re.sub(r"/\*.*?\*/", lambda found: " " * len(found[0]), text, flags=re.DOTALL)
    number = 0
    for pattern, new in C_SWAPS:
        for found in re.finditer(pattern, code, re.MULTILINE):
            number += 1
            if number - 1 not in wanted:
                yield None
                continue
            start, end = found.span()
            line = text.count("\n", 0, start) + 1
            with_new = found.expand(new)
            what = (
                f"{text.splitlines()[line - 1].strip()}  [{found[0].strip()} -> {with_new.strip()}]"
            )
            yield Mutant(path, line, what, text[:start] + with_new + text[end:])


def mutants(path: str, wanted: Collection[int] = ()) -> Iterator[Mutant | None]:
    return (c_mutants if path.endswith(".c") else python_mutants)(path, wanted)


class Core:
    """The core's object files, to which a changed one is linked: as a module, and for C tests."""

    def __init__(self) -> None:
        describe = runpy.run_path("csrc/build_core.py")
        generated = BUILD / "_core.c"
        describe["ffibuilder"]().emit_c_code(str(generated))
        base = ["cc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-pthread", "-w", "-Icsrc"]
        self.for_module = [*base, "-fPIC", f"-I{sysconfig.get_path('include')}"]
        self.for_tests = [*base, "-DJMK_POINTS"]
        self.module = [*describe["core_sources"](), str(generated)]
        self.tested = [each for each in self.module if each.startswith(("csrc/s", "csrc/c"))]
        self.tested += sorted(map(str, Path("csrc/connect").glob("*.c")))
        self.programs = [f"tests/c/{name}.c" for name in C_PROGRAMS]
        with ThreadPoolExecutor(CORES) as pool:
            jobs = [pool.submit(self._compile, self.for_module, each, "m") for each in self.module]
            jobs += [
                pool.submit(self._compile, self.for_tests, each, "t")
                for each in [*self.tested, *self.programs]
            ]
        for job in jobs:
            job.result()

    @staticmethod
    def _object(source: str, kind: str, folder: Path) -> str:
        return str(folder / f"{Path(source).stem}.{kind}.o")

    def _compile(self, command: list[str], source: str, kind: str, folder: Path = BUILD) -> bool:
        output = self._object(source, kind, folder)
        done = subprocess.run(
            [*command, "-c", source, "-o", output], stderr=subprocess.PIPE, text=True
        )
        if done.returncode and folder == BUILD:
            sys.exit(done.stderr)
        return done.returncode == 0

    def _objects(self, sources: list[str], changed: str, kind: str, folder: Path) -> list[str]:
        return [self._object(each, kind, folder if each == changed else BUILD) for each in sources]

    def link(self, mutant: Mutant, tree: Path) -> bool:
        """Put a changed module into a tree; False if the change is no C."""
        source = str(tree / Path(mutant.path).name)
        Path(source).write_text(mutant.source, "utf-8")
        if not self._compile(self.for_module, source, "m", tree):
            return False
        if mutant.path not in self.module:
            return True
        (module,) = (tree / "src/jumiks").glob("_core*.so")
        module.unlink()
        objects = self._objects(self.module, mutant.path, "m", tree)
        subprocess.run(["cc", "-shared", "-pthread", "-o", str(module), *objects], check=True)
        return True

    def programs_with(self, mutant: Mutant, tree: Path) -> Iterator[str]:
        """Yield C tests that are linked to a changed file."""
        if mutant.path not in self.tested:
            return
        self._compile(self.for_tests, str(tree / Path(mutant.path).name), "t", tree)
        objects = self._objects(self.tested, mutant.path, "t", tree)
        for program in self.programs:
            flags = Path(program).with_suffix(".flags")
            own = [f"@{flags}"] if flags.exists() else []
            file = str(tree / Path(program).stem)
            test = self._object(program, "t", BUILD)
            subprocess.run(["cc", "-pthread", *own, test, *objects, "-o", file], check=True)
            yield file


# ---- which tests


def tests_of(path: str) -> list[str]:
    names = next(tests for part, tests in TESTS.items() if part in path)
    return [
        f"tests/{name}" if Path(f"tests/{name}").is_dir() else f"tests/{name}.py"
        for name in names.split()
    ]


def noted_tests(path: str, line: int) -> list[str]:
    """The tests that ran a line in `make coverage`; none if that is not known."""
    if not NOTED.exists():
        return []
    query = (
        "SELECT DISTINCT context, numbits FROM line_bits JOIN context ON context.id = context_id "
        "JOIN file ON file.id = file_id WHERE file.path LIKE ? AND context != ''"
    )
    found = set()
    with closing(sqlite3.connect(NOTED)) as noted:
        for context, bits in noted.execute(query, (f"%/{path.removeprefix('src/')}",)):
            if line // 8 < len(bits) and bits[line // 8] & 1 << line % 8:
                found.update(named(context))
    return sorted(found) if len(found) <= MOST_TESTS else []


@cache
def named(context: str) -> list[str]:
    """The test that coverage calls `module.function`; two folders may have such a module."""
    module, _, function = context.rpartition(".")
    return [
        f"{file}::{function}"
        for file in Path("tests").rglob(f"{module.rpartition('.')[2]}.py")
        if f"def {function}(" in file.read_text("utf-8")
    ]


# ---- trying


def ended(command: Sequence[str], tree: Path) -> tuple[int | None, str]:
    """How a program ends, None if it has to be killed; and what it says."""
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str((tree / "src").resolve())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
        # A shell has it ignored by what runs in the background, and some tests press Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        said, _ = process.communicate(timeout=LONGEST)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it started, too
        process.wait()


def first_failure(tests: Sequence[str], tree: Path, left_out: Sequence[str] = ()) -> list[str]:
    """The first test that fails, or all of them if no test is to blame; none if all pass."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--timeout={HANGS}"]
    options += [f"--deselect={each}" for each in left_out]
    for kind in ("not slow", "slow"):
        command = [sys.executable, "-m", "pytest", *options, "-m", kind, *tests]
        code, said = ended(command, tree)
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+::\S.*?)(?: - .*)?$", said, re.MULTILINE)
            return failed[:1] or [*tests]
    return []


def is_cause(tests: Sequence[str], tree: Path) -> bool | None:
    """Whether a tree makes one of these fail, each time; None if that cannot be told.

    A test that fails without a change too, or by chance, hides no other.
    """
    left_out: list[str] = []
    unsure = False
    for _ in range(MOST_CHANCES):
        failed = first_failure(tests, tree, left_out)
        if not failed:
            return None if unsure else False
        if first_failure(failed, Path()):
            unsure = True
        elif first_failure(failed, tree):
            return True
        left_out += failed
    return None


def is_noticed(mutant: Mutant, core: Core, tree: Path) -> bool | None:
    """Whether a test fails; None if it does not compile, or tests fail without it, too."""
    shutil.copytree("src", tree / "src")  # what is compiled already, too: children start sooner
    noted: list[str] = []
    if mutant.path.endswith(".c"):
        if not core.link(mutant, tree):
            return None
        if any(ended([each], tree)[0] != 0 for each in core.programs_with(mutant, tree)):
            return True
    else:
        (tree / mutant.path).write_text(mutant.source, "utf-8")
        noted = noted_tests(mutant.path, mutant.line)
    batches = [noted] if noted else []
    batches += [[each] for each in tests_of(mutant.path)]
    unsure = False
    for each in batches:
        noticed = is_cause(each, tree)
        if noticed:
            return True
        unsure = unsure or noticed is None
    return None if unsure else False


class Campaign:
    """Tries mutants until the time is over, and counts.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self.core = Core()
        self.ends = time.monotonic() + seconds
        self.tried: Counter[str] = Counter()
        self.noticed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._number = 0

    def attempt(self, mutant: Mutant) -> None:
        if time.monotonic() >= self.ends:
            return
        with self._lock:
            self._number += 1
            tree = BUILD / f"tree{self._number}"
        noticed = is_noticed(mutant, self.core, tree)
        shutil.rmtree(tree)
        with self._lock:
            print(f"{VERDICTS[noticed]}  {mutant.path}:{mutant.line}: {mutant.what}", flush=True)
            if noticed is None:
                return
            module = str(Path(mutant.path).parent)
            self.tried[module] += 1
            self.noticed[module] += noticed

    def report(self) -> None:
        print("\n| module | tried | noticed | score |\n|---|---|---|---|")
        for name in sorted(self.tried):
            tried, noticed = self.tried[name], self.noticed[name]
            print(f"| {name} | {tried} | {noticed} | {noticed / tried:.0%} |")
        tried, noticed = self.tried.total(), self.noticed.total()
        print(f"| all | {tried} | {noticed} | {noticed / max(tried, 1):.0%} |")


def sample(paths: Sequence[str], seed: int, size: int) -> list[Mutant]:
    """Choose mutants of files, in a random order that the seed gives."""
    all_places = [(path, n) for path in paths for n in range(sum(1 for _ in mutants(path)))]
    print(f"{len(all_places)} mutants of {len(paths)} files; seed {seed}", flush=True)
    chosen = random.Random(seed).sample(all_places, min(size, len(all_places)))
    made: dict[tuple[str, int], Mutant] = {}
    for path in {path for path, _ in chosen}:
        wanted = {n for of, n in chosen if of == path}
        for number, mutant in enumerate(mutants(path, wanted)):
            if mutant is not None:
                made[path, number] = mutant
    return [made[place] for place in chosen]


def files() -> list[str]:
    found = [*Path("csrc").glob("*/*.c"), *Path("src/jumiks").rglob("*.py")]
    return sorted(str(path) for path in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=int, default=300, metavar="MUTANTS")
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    chosen = sample(options.files or files(), options.seed, options.sample)
    campaign = Campaign(options.seconds)
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(campaign.attempt, chosen))
    campaign.report()


if __name__ == "__main__":
    main()
