# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets on their corpus, without a fuzzer: what was found once is not found again."""

import re
import runpy
from pathlib import Path

import pytest
from support.base import ROOT
from support.c import Build, run

pytestmark = pytest.mark.no_core  # the C targets are built with sanitizers anyway

FUZZ = ROOT / "tests" / "fuzz"
CORPUS = FUZZ / "corpus"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.c"))
HANDSHAKE = runpy.run_path(str(FUZZ / "fuzz_handshake.py"))


def inputs(target: str) -> list[Path]:
    return sorted((CORPUS / target).iterdir())


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    # The same core that is fuzzed: with batches that a short input can fill.
    flags = re.findall(r"-DJMK_MAX_ITEMS=\d+", (ROOT / "Makefile").read_text("utf-8"))
    assert len(flags) == 1
    return Build(tmp_path_factory, "core-to-fuzz", *flags)


def test_every_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {*TARGETS, "handshake"}
    assert len(TARGETS) >= 4


@pytest.mark.slow  # it compiles the core
@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_finds_nothing(target: str, build: Build, tmp_path: Path) -> None:
    sources = (FUZZ / f"fuzz_{target}.c", FUZZ / "replay.c")
    run(build.program(tmp_path / target, *sources), *inputs(target))


@pytest.mark.parametrize("path", inputs("handshake"), ids=lambda path: path.name)
def test_the_handshake_takes_any_bytes(path: Path) -> None:
    HANDSHAKE["run"](path.read_bytes())
