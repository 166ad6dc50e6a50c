# SPDX-License-Identifier: Apache-2.0
"""Change one operator, number or statement at a time, and see whether a test notices.

    python tests/mutation/mutate.py [--seed 1] [--sample 300] [--seconds 1200] [FILE ...]

Run it from the project's root. It takes all of csrc/ and src/jumiks/, or the files that are named,
and tries a random sample of their mutants, for as long as it may; a prefix of a random sample is
one too. It prints what became of each, and a table of scores. docs/coverage.md has the last such
table, and the reason for each mutant that stays. `--only NUMBER ...` tries these of a sample again.

A mutant is tried in a copy of the project, in two rounds. The first has the tests that run the
changed line, the most specific first, and the quick ones of the first files that `TESTS` names for
the changed file; for C, the programs of tests/c come before them. Who passes it comes into the
second round, when all have had their first: it has the rest of these tests, slow ones too.
`make coverage` notes which tests run a line of Python.

A failure counts only if the same test fails again with the change, and passes without it.
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
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

BUILD = Path("build/mutation")
PRISTINE = BUILD / "pristine"
"""A copy of the project without a change."""

COPIED = ("csrc", "docs", "examples", "src", "tests", "*.toml", "*.md", "Makefile", "setup.py")
NOTED = Path("build/coverage/python/data")
"""What `make coverage` leaves: lines, by the test that ran them."""

HANGS = 60
"""Seconds after which a test hangs, and so has noticed a mutant."""

LONGEST = 240.0
"""Seconds for a round's tests; if none has failed until then, those that ran have passed."""

MOST_CHANCES = 4
"""Tests that may fail by chance before a mutant is left; on a busy machine some do."""

MOST_NOTED = 30
"""Tests of a line in the first round, and in the second four times as many."""

FIRST_FILES = 3
"""Files of tests in the first round; the others come in the second."""

CORES = os.cpu_count() or 1
AT_ONCE = 2 * CORES
"""Mutants that are tried at once: many a test waits."""

C_PROGRAMS = ["frame", "log", "order", "connect", "guard", "units", "wakes", "threads", "client"]
C_PROGRAMS += ["storm", "death"]
"""Tests of the core alone, the quickest first."""

C_SLOW = ["faults"]
"""Those of the second round."""

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
PROGRAM_HANGS = 60.0

TESTS = {
    "csrc/client/arena": "client/test_client client/test_lent client/test_hostile_server",
    "csrc/client/labels": "client/test_labels client/test_client",
    "csrc/client/receive_shared": "client/test_shared client/test_shared_lies "
    "client/test_given_back client/test_gap_of_one client/test_wait client/test_by_hand "
    "client/test_ends machine/test_fork",
    "csrc/client/receive_packets": "client/test_client client/test_hostile_server "
    "client/test_gap_of_one client/test_labels client/test_by_hand client/test_ends "
    "client/test_lent whole/test_peers",
    "csrc/client/connection": "client/test_ends client/test_deadlines client/test_readiness "
    "client/test_wait client/test_client_life machine/test_fork",
    "csrc/client/": "client/test_client_life client/test_ends client/test_client "
    "client/test_readiness client/test_reentered client/test_labels machine/test_fork",
    "csrc/common/frame": "whole/test_frames client/test_hostile_server wire/test_vectors "
    "server/test_liars client/test_client whole/test_any_bytes",
    "csrc/common/map": "client/test_shared client/test_shared_lies machine/test_seccomp "
    "server/test_pages",
    "csrc/common/os": "machine/test_seccomp machine/test_fork client/test_deadlines "
    "client/test_shared machine/test_exit",
    "csrc/common/": "wire/test_rights server/test_hostile server/test_liars machine/test_exit",
    "csrc/connect/": "whole/test_c_library",  # it is not in Python's library
    "csrc/python/arrays": "whole/test_arrays whole/test_blocks",
    "csrc/python/awaiting": "whole/test_blocks client/test_direct client/test_aio "
    "client/test_cancelled client/test_given_back whole/test_opcodes",
    "csrc/python/frames": "bridge/test_records whole/test_frames client/test_words "
    "whole/test_any_bytes",
    "csrc/python/handout": "client/test_direct client/test_stream client/test_client "
    "client/test_given_back client/test_wait client/test_by_hand client/test_reentered "
    "client/test_aio client/test_readiness client/test_words whole/test_opcodes whole/test_blocks",
    "csrc/python/publisher": "server/test_publish server/test_turn client/test_reentered "
    "whole/test_any_bytes whole/test_frames whole/test_arrays whole/test_bad_input "
    "whole/test_blocks",
    "csrc/python/receiver": "client/test_lent client/test_client client/test_by_hand "
    "client/test_given_back whole/test_arrays whole/test_blocks",
    "csrc/python/": "whole/test_blocks whole/test_frames client/test_lent server/test_publish "
    "whole/test_any_bytes client/test_words client/test_client client/test_reentered "
    "whole/test_bad_input",
    "csrc/server/lag": "server/test_lag server/test_keep server/test_lag_policies server/test_turn "
    "server/test_figures server/test_publish server/test_lag_model",
    "csrc/server/admit": "server/test_lag server/test_keep server/test_pace "
    "server/test_lag_policies server/test_lag_model",
    "csrc/server/skip": "server/test_lag_policies server/test_figures client/test_gap_of_one",
    "csrc/server/log": "server/test_publish server/test_keep server/test_continued "
    "client/test_position server/test_server client/test_shared server/test_shortage",
    "csrc/server/publish": "server/test_publish server/test_turn server/test_server "
    "whole/test_arrays server/test_lag whole/test_frames",
    "csrc/server/ends": "server/test_figures client/test_ends server/test_server "
    "client/test_gap_of_one server/test_welcome machine/test_fork",
    "csrc/server/send_packets": "client/test_client server/test_liars server/test_figures "
    "whole/test_peers server/test_lag",
    "csrc/server/send_shared": "client/test_shared client/test_shared_lies server/test_figures "
    "server/test_liars server/test_lag_policies",
    "csrc/server/attach": "server/test_server client/test_position server/test_figures "
    "server/test_keep server/test_welcome client/test_reconnect",
    "csrc/server/": "server/test_figures server/test_server server/test_lag server/test_pace "
    "client/test_client_life server/test_turn server/test_keep client/test_shared",
    "_wire/handshake.py": "wire/test_handshake wire/test_protocol_doc wire/test_vectors "
    "client/test_hostile_server server/test_welcome whole/test_compat",
    "_wire/address.py": "wire/test_address wire/test_parse_address server/test_names",
    "_wire/listener.py": "wire/test_address server/test_server server/test_names "
    "server/test_continued machine/test_namespaces cli/test_ls",
    "_wire/connect.py": "client/test_deadlines client/test_client_life wire/test_address "
    "client/test_aio",
    "_wire/status.py": "wire/test_codecs wire/test_monitor cli/test_status",
    "_wire/rights.py": "wire/test_rights wire/test_monitor server/test_hostile",
    "_wire/": "wire/test_codecs wire/test_rights wire/test_address client/test_client",
    "_server/lag.py": "server/test_lag whole/test_bad_input core/test_options",
    "_server/lag_watch.py": "server/test_watch",
    "_server/monitors.py": "wire/test_monitor server/test_hostile",
    "_server/access.py": "server/test_access server/test_quota server/test_strangers",
    "_server/pages.py": "server/test_pages",
    "_server/journal.py": "server/test_quota server/test_strangers server/test_server",
    "_server/changes.py": "server/test_welcome server/test_server server/test_callbacks",
    "_server/": "server/test_welcome server/test_callbacks server/test_server server/test_quota "
    "server/test_strangers server/test_figures server/test_hostile server/test_shortage "
    "wire/test_monitor machine/test_fork client/test_position",
    "_client/reconnect.py": "client/test_backoff client/test_reconnect client/test_moved "
    "client/test_deadlines client/test_aio",
    "_client/labels.py": "client/test_labels",
    "_client/readiness.py": "client/test_readiness client/test_wait client/test_aio "
    "client/test_stream",
    "_client/endings.py": "client/test_ends client/test_gap_of_one client/test_hostile_server "
    "whole/test_errors",
    "_client/link.py": "client/test_client_life client/test_direct client/test_reconnect "
    "client/test_hostile_server client/test_shared client/test_aio client/test_position",
    "_client/stream.py": "client/test_stream client/test_direct client/test_gap_of_one "
    "client/test_by_hand client/test_given_back client/test_client client/test_readiness "
    "client/test_position client/test_client_life client/test_ends client/test_reconnect "
    "client/test_wait client/test_lent client/test_aio client/test_reentered machine/test_fork "
    "whole/test_arrays client/test_lost_at_end",
    "_client/connecting.py": "client/test_deadlines client/test_client_life client/test_client "
    "machine/test_green cli/test_effects client/test_aio",
    "_aio/server.py": "client/test_aio_server client/test_cancelled server/test_watch",
    "_aio/": "client/test_aio client/test_cancelled client/test_by_hand client/test_reentered",
    "_loops.py": "client/test_aio client/test_cancelled client/test_aio_server "
    "client/test_reconnect",
    "bridge/record.py": "bridge/test_records bridge/test_through bridge/test_inbound "
    "bridge/test_failures bridge",
    "bridge/engine.py": "bridge/test_settings bridge/test_login bridge cli/test_bridge_options",
    "bridge/outbound.py": "bridge/test_outbound bridge/test_through bridge/test_failures "
    "bridge/test_promises bridge",
    "bridge/inbound.py": "bridge/test_inbound bridge/test_through bridge/test_back "
    "bridge/test_deleted bridge",
    "bridge/": "bridge/test_through bridge/test_settings bridge/test_failures bridge "
    "cli/test_bridge cli/test_bridge_options docs/test_bridge_example",
    "recording/": "recording/test_recording cli/test_record",
    "jumiks/logging.py": "integrations/test_logging",
    "testing.py": "integrations/test_testing",
    "cli/bridge.py": "cli/test_bridge_options cli/test_bridge cli/test_help",
    "cli/record.py": "cli/test_record cli/test_effects cli/test_help",
    "cli/framing.py": "cli/test_framing cli/test_cli cli/test_effects",
    "cli/ls.py": "cli/test_ls cli/test_cli",
    "cli/top.py": "cli/test_effects cli/test_status cli/test_cli",
    "cli/s": "cli/test_status cli/test_effects cli/test_cli cli/test_framing cli",
    "cli/p": "cli/test_help cli/test_effects cli/test_cli docs/test_site cli",
    "cli/bench.py": "cli/test_help cli/test_cli cli/test_effects docs/test_tour",
    "cli/": "cli/test_effects cli/test_cli cli/test_help cli docs/test_bench docs/test_tour",
    "_metrics.py": "integrations/test_prometheus integrations/test_opentelemetry "
    "server/test_figures",
    "prometheus.py": "integrations/test_prometheus",
    "opentelemetry.py": "integrations/test_opentelemetry server/test_figures",
    "systemd.py": "integrations/test_systemd",
    "stats.py": "server/test_figures cli/test_status core/test_faces",
    "errors.py": "whole/test_errors core/test_texts client/test_ends client/test_hostile_server "
    "server/test_server whole/test_bad_input server/test_lag server/test_access "
    "client/test_client core/test_packaging",
    "_options.py": "core/test_options whole/test_bad_input cli/test_help",
    "monitor.py": "wire/test_monitor",
    "_peer.py": "server/test_access server/test_welcome client/test_direct client/test_reconnect",
    "_native.py": "core/test_packaging machine/test_subinterpreters whole/test_errors",
    "_green.py": "machine/test_patched machine/test_green",
    "_closing.py": "server/test_server client/test_client_life machine/test_exit",
    "batch.py": "client/test_lent client/test_client whole/test_frames whole/test_arrays "
    "client/test_words client/test_given_back",
    "client.py": "client/test_client client/test_client_life client/test_deadlines "
    "client/test_stream client/test_reconnect client/test_reentered machine/test_fork "
    "machine/test_exit machine/test_green whole/test_bad_input",
    "server.py": "server/test_publish server/test_callbacks server/test_turn server/test_server "
    "server/test_welcome server/test_watch machine/test_fork machine/test_exit machine/test_green "
    "whole/test_bad_input",
    "": "client/test_client client/test_client_life machine/test_exit whole/test_errors",
}
"""The tests of a file, those first that notice most: of the first of these that its path has."""


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
        self.for_tests = [*base, "-DJMK_POINTS", *SANITIZERS]
        self.module = [*describe["core_sources"](), str(generated)]
        self.tested = [each for each in self.module if each.startswith(("csrc/s", "csrc/c"))]
        self.tested += sorted(map(str, Path("csrc/connect").glob("*.c")))
        programs = [self._source(name) for name in [*C_PROGRAMS, *C_SLOW]]
        with ThreadPoolExecutor(CORES) as pool:
            jobs = [pool.submit(self._compile, self.for_module, each, "m") for each in self.module]
            jobs += [
                pool.submit(self._compile, self.for_tests, each, "t")
                for each in [*self.tested, *programs]
            ]
        for job in jobs:
            job.result()

    @staticmethod
    def _source(program: str) -> str:
        return f"tests/c/test_{program}.c"

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

    def build(self, path: str, tree: Path) -> bool:
        """Compile a tree's changed file, and put it into its module; False if it is no C."""
        source = str(tree / path)
        if not self._compile(self.for_module, source, "m", tree):
            return False
        if path in self.tested:
            self._compile(self.for_tests, source, "t", tree)
        if path in self.module:
            (module,) = (tree / "src/jumiks").glob("_core*.so")
            module.unlink()
            objects = self._objects(self.module, path, "m", tree)
            subprocess.run(["cc", "-shared", "-pthread", "-o", str(module), *objects], check=True)
        return True

    def notices(self, program: str, path: str, tree: Path) -> bool:
        """Whether a program that is linked to a tree's changed file fails, and not by chance."""
        if path not in self.tested:
            return False
        flags = Path(self._source(program)).with_suffix(".flags")
        own = [f"@{flags}"] if flags.exists() else []
        test = self._object(self._source(program), "t", BUILD)
        file = str(tree / program)
        usual = str(BUILD / program)
        for output, folder in ((usual, BUILD), (file, tree)):
            objects = self._objects(self.tested, path, "t", folder)
            command = ["cc", "-pthread", *SANITIZERS, *own, test, *objects, "-o", output]
            if output != usual or not Path(usual).exists():
                subprocess.run(command, check=True)

        def fails(program: str) -> bool:
            return ended([program], tree, PROGRAM_HANGS)[0] != 0

        return fails(file) and not fails(usual) and fails(file)


# ---- which tests


class Choice(NamedTuple):
    """Tests of one round: programs in C, and words for pytest."""

    programs: Sequence[str]
    tests: Sequence[str]
    kinds: str


def rounds(mutant: Mutant) -> list[Choice]:
    """The tests that a mutant is tried by: those of the first round, and of the second."""
    files = tests_of(mutant.path)
    first, rest = files[:FIRST_FILES], files[FIRST_FILES:]
    if mutant.path.endswith(".c"):
        models = ["tests/core/test_models.py"]
        return [
            Choice(C_PROGRAMS, [*first, *models], "not slow"),
            Choice([], first, "slow"),
            Choice(C_SLOW, rest, "slow or not slow"),
        ]
    noted = noted_tests(mutant.path, mutant.line)
    more = noted[MOST_NOTED : 4 * MOST_NOTED]
    return [
        Choice([], [*noted[:MOST_NOTED], *first], "not slow"),
        Choice([], [*noted[:MOST_NOTED], *first], "slow"),
        Choice([], [*more, *rest], "slow or not slow"),
    ]


def tests_of(path: str) -> list[str]:
    names = next(tests for part, tests in TESTS.items() if part in path)
    return [
        f"tests/{name}" if Path(f"tests/{name}").is_dir() else f"tests/{name}.py"
        for name in names.split()
    ]


def check_names() -> None:
    """End if a name in `TESTS` is none: what does not run can notice nothing."""
    named = {test for path in TESTS for test in tests_of(path)}
    if missing := sorted(test for test in named if not Path(test).exists()):
        sys.exit(f"TESTS names what is not there: {', '.join(missing)}")


@cache
def lines_run() -> dict[str, dict[str, int]]:
    """By file, and by the test that ran some of it in `make coverage`: its lines, one bit each."""
    found: dict[str, dict[str, int]] = {}
    if NOTED.exists():
        with closing(sqlite3.connect(NOTED)) as noted:
            for path, context, bits in noted.execute(
                "SELECT path, context, numbits FROM line_bits JOIN context ON context.id = "
                "context_id JOIN file ON file.id = file_id WHERE context != ''"
            ):
                inside = f"src/jumiks/{path.split('/jumiks/', 1)[-1]}"
                tests = found.setdefault(inside, {})
                tests[context] = tests.get(context, 0) | int.from_bytes(bits, "little")
    return found


@cache
def breadth() -> Counter[str]:
    """How many lines each test runs in all."""
    count: Counter[str] = Counter()
    for tests in lines_run().values():
        for context, bits in tests.items():
            count[context] += bits.bit_count()
    return count


def noted_tests(path: str, line: int) -> list[str]:
    """The tests that ran a line in `make coverage`, those first that run little else."""
    tests = lines_run().get(path, {})
    contexts = [context for context, bits in tests.items() if bits >> line & 1]
    contexts.sort(key=lambda context: (breadth()[context], context))
    return [name for context in contexts for name in named(context)]


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


def ended(command: Sequence[str], tree: Path, seconds: float) -> tuple[int | None, str]:
    """How a program ends in a tree, None if it has to be killed; and what it says."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command if command[0] == sys.executable else [str(Path(command[0]).resolve())],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str((tree / "src").resolve())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # A shell has it ignored by what runs in the background, and some tests press Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it started, too
        process.wait()
        output.seek(0)
        return code, output.read()


class Failure(NamedTuple):
    """The test that fails, or that was running at the end of it all; none if all pass."""

    test: list[str]
    cut: bool = False
    """Whether that end was that of the time."""


def first_failure(tests: Sequence[str], kinds: str, tree: Path) -> Failure:
    command = [sys.executable, "-m", "pytest", "-x", "-v", "--tb=no", "-p", "no:cacheprovider"]
    # With one seed, what fails by an example of hypothesis fails by it again.
    command += ["-p", "no:xdist", f"--timeout={HANGS}", "--hypothesis-seed=0", "-m", kinds, *tests]
    code, said = ended(command, tree, LONGEST)
    if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return Failure([])
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+::\S.*?)(?: - .*)?$", said, re.MULTILINE)
    running = re.findall(r"^(tests/\S+::\S.*?) *(?:[A-Z]{4,} *\[.*)?$", said, re.MULTILINE)
    # Where there is neither, not even an import passes.
    return Failure(failed[:1] or running[-1:] or ["--collect-only", *tests], code is None)


def cause(choice: Choice, tree: Path) -> str | None:
    """The test that a tree makes fail, each time; "" if none, None if that cannot be told.

    A test that fails without a change too, or by chance, hides no other.
    """
    left_out: list[str] = []
    unsure = False
    for _ in range(MOST_CHANCES):
        failed, cut = first_failure([*choice.tests, *left_out], choice.kinds, tree)
        if not failed:
            return None if unsure else ""
        if first_failure(failed, choice.kinds, PRISTINE).test:
            unsure = True
        elif first_failure(failed, choice.kinds, tree).test:
            return failed[-1]
        if cut:  # the others that ran have passed
            return None if unsure else ""
        left_out += [f"--deselect={each}" for each in failed]
    return None


def noticing(choice: Choice, mutant: Mutant, core: Core, tree: Path) -> str | None:
    """The test of a round that notices a mutant; "" if none, None if that cannot be told."""
    for program in choice.programs:
        if core.notices(program, mutant.path, tree):
            return f"tests/c/test_{program}.c"
    return cause(choice, tree) if choice.tests else ""


class Campaign:
    """Tries mutants until the time is over, and counts.

    Args:
        seconds: how long; the first round has two thirds of it.
    """

    def __init__(self, seconds: float) -> None:
        self.core = Core()
        shutil.copytree(".", PRISTINE, ignore=not_copied)
        self.begun = time.monotonic()
        self.seconds = seconds
        self.verdicts: dict[int, tuple[str, bool | None]] = {}
        self._lock = threading.Lock()

    def run(self, chosen: Sequence[tuple[int, Mutant]]) -> None:
        for share, wider in ((2 / 3, False), (1, True)):
            until = self.begun + share * self.seconds

            def attempt(one: tuple[int, Mutant], wider: bool = wider, until: float = until) -> None:
                if time.monotonic() < until:
                    self.attempt(*one, wider)

            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(attempt, chosen))

    def attempt(self, number: int, mutant: Mutant, wider: bool) -> None:
        if wider and self.verdicts.get(number, ("", True))[1] is not False:
            return
        tree = BUILD / f"tree{number}"
        shutil.copytree(PRISTINE, tree)  # what is compiled already, too: children start sooner
        try:
            verdict, by = self._judge(mutant, tree, wider)
        finally:
            shutil.rmtree(tree)
        with self._lock:
            self.verdicts[number] = (str(Path(mutant.path).parent), verdict)
            how = "PASSED  " if verdict is False and not wider else VERDICTS[verdict]
            print(f"{how}  #{number} {mutant.path}:{mutant.line}: {mutant.what}  {by}", flush=True)

    def _judge(self, mutant: Mutant, tree: Path, wider: bool) -> tuple[bool | None, str]:
        """Whether a test notices, and which; None if it is no C, or tests fail without it, too."""
        file = tree / mutant.path
        file.write_text(mutant.source, "utf-8")
        for stale in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            stale.unlink()
        if file.suffix == ".c" and not self.core.build(mutant.path, tree):
            return None, "(does not compile)"
        first, *others = rounds(mutant)
        unsure = False
        for choice in others if wider else [first]:
            by = noticing(choice, mutant, self.core, tree)
            if by:
                return True, f"[{by}]"
            unsure = unsure or by is None
        return (None, "(by chance)") if unsure else (False, "")

    def report(self) -> None:
        tried: Counter[str] = Counter()
        noticed: Counter[str] = Counter()
        for module, verdict in self.verdicts.values():
            if verdict is not None:
                tried[module] += 1
                noticed[module] += verdict
        print("\n| module | tried | noticed | score |\n|---|---|---|---|")
        for name in sorted(tried):
            print(
                f"| {name} | {tried[name]} | {noticed[name]} | {noticed[name] / tried[name]:.0%} |"
            )
        share = noticed.total() / max(tried.total(), 1)
        print(f"| all | {tried.total()} | {noticed.total()} | {share:.0%} |")


def not_copied(folder: str, names: list[str]) -> set[str]:
    if folder != ".":
        return set()
    return {name for name in names if not any(fnmatch(name, each) for each in COPIED)}


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
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="of the sample")
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()
    check_names()
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    chosen = sample(options.files or files(), options.seed, options.sample)
    campaign = Campaign(options.seconds)
    campaign.run(
        [each for each in enumerate(chosen) if each[0] in (options.only or range(len(chosen)))]
    )
    campaign.report()


if __name__ == "__main__":
    main()
