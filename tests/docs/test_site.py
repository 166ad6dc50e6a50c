# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/: what they show works, no link leads nowhere, and each page can be found."""

import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.base import ROOT
from support.pages import DOCS, PAGES, TOP, Block, Run, anchors, blocks, is_run_here, links
from support.servers import Server

import jumiks
from jumiks import errors
from jumiks._metrics import metrics

ELSEWHERE = {
    "tour.md": {"sh": "tests/docs/test_tour.py"},
    "bridge.md": {"sh": "tests/docs/test_bridge_doc.py"},
    "protocol.md": dict.fromkeys(("hex",), "tests/wire/test_protocol_doc.py"),
    "scale.md": {"": "tests/docs/test_scale_doc.py"},
    "recipes.md": {"python": "tests/docs/test_recipes.py"},
    "README.md": dict.fromkeys(("python", "sh"), "tests/docs/test_examples.py"),
}
"""Kinds of blocks of a page that a test of that page alone runs, by the page's name."""

TESTS = [ROOT / "tests/conftest.py", ROOT / "tests/support/base.py"]
NO_VARIABLES = {"JUMIKS_H"}

EVERY_BLOCK = [block for page in [*PAGES, *TOP] for block in blocks(page)]


def other_test(block: Block) -> str:
    """The test that runs a block, if that is not the one of this file."""
    if block.note.startswith("run by: "):
        return block.note.removeprefix("run by: ")
    return ELSEWHERE.get(block.page.name, {}).get(block.kind.partition(" ")[0], "")


RUN_HERE = [
    page
    for page in PAGES
    if any(is_run_here(block) and not other_test(block) for block in blocks(page))
]


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", RUN_HERE, ids=shown)
def test_the_blocks_of_a_page_do_what_it_says(page: Path, address: str, tmp_path: Path) -> None:
    text = page.read_text("utf-8")
    for package, used in (
        ("numpy", "import numpy"),
        ("prometheus_client", "import prometheus_client"),
        ("mcap", "jumiks.recording"),
    ):
        if used in text and find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    run = Run(page, tmp_path, address)
    for block, output, after in run.each_output(lambda block: not other_test(block)):
        if after is not None and after.kind == "text":
            assert output == after.body, block


@pytest.mark.no_core
@pytest.mark.parametrize("page", [*PAGES, *TOP], ids=shown)
def test_each_block_of_a_page_is_found(page: Path) -> None:
    """A fence that is indented, or of another kind, would be one that nothing runs."""
    text = page.read_text("utf-8")
    fences = re.findall(r"^\s*(?:```+|~~~+)", text, re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page))


@pytest.mark.no_core
def test_a_note_names_a_test_that_there_is_or_a_reason() -> None:
    for block in EVERY_BLOCK:
        if block.note.startswith("not run: "):
            assert len(block.note) > 20, block
        elif test := other_test(block):
            assert block.page.name in (ROOT / test).read_text("utf-8"), block


@pytest.mark.no_core
def test_each_file_that_a_page_shows_is_used_by_a_block_that_is_run() -> None:
    for block in EVERY_BLOCK:
        if block.file and not block.note:
            commands = [each.body for each in blocks(block.page) if is_run_here(each)]
            stem = block.file.removesuffix(".py")
            assert any(re.search(rf"\b{re.escape(stem)}\b", text) for text in commands), block


@pytest.mark.no_core
@pytest.mark.parametrize("page", [*PAGES, *TOP], ids=shown)
def test_no_link_leads_nowhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.no_core
def test_each_page_is_in_the_index() -> None:
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    listed = [
        line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")
    ]
    pages = [str(page.relative_to(DOCS).with_suffix("")) for page in PAGES]
    assert sorted([*listed, "index"]) == sorted(pages)


@pytest.mark.no_core
def test_each_drawing_is_what_its_program_draws() -> None:
    """`python docs/drawings/draw.py` draws them anew."""
    drawings = runpy.run_path(str(DOCS / "drawings/draw.py"))["DRAWINGS"]
    files = {path.stem: path.read_text("utf-8") for path in (DOCS / "drawings").glob("*.svg")}
    assert files == {name: draw() for name, draw in drawings.items()}


@pytest.mark.no_core
def test_the_reference_has_every_public_name() -> None:
    pages = "".join(page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
    named = re.findall(r"\.\. auto(?:class|data|exception):: jumiks\.(\w+)$", pages, re.M)
    assert sorted(named) == sorted(jumiks.__all__)


@pytest.mark.no_core
def test_the_page_of_errors_has_a_cause_and_a_remedy_for_each() -> None:
    page = (DOCS / "reference/errors.md").read_text("utf-8")
    found = re.findall(
        r"^## (\w+)\n\n\*\*Cause\.\*\* .{20,}\n\n\*\*What to do\.\*\* .{8,}", page, re.MULTILINE
    )
    assert sorted(found) == sorted({*errors.__all__} - {"JumiksError"})


@pytest.mark.no_core
def test_the_page_of_the_environment_has_every_variable() -> None:
    page = (DOCS / "reference/environment.md").read_text("utf-8")
    files = [*(ROOT / "src").rglob("*.py"), ROOT / "setup.py", *ROOT.glob("csrc/*.py"), *TESTS]
    words = "".join(path.read_text("utf-8") for path in files)
    used = set(re.findall(r"\b(JUMIKS_[A-Z_]+|NOTIFY_SOCKET|LISTEN_[A-Z]+)\b", words))
    assert used - NO_VARIABLES <= set(re.findall(r"`([A-Z_]+)", page))


def test_the_page_on_monitoring_names_figures_that_there_are(server: Server) -> None:
    page = (DOCS / "howto/monitoring.md").read_text("utf-8")
    named = set(re.findall(r"\bjumiks_\w+", page)) - {"jumiks_client"}
    there = {f"{each.name}{'_total' * (each.kind == 'counter')}" for each in metrics(server)}
    assert len(named) >= 5
    assert named <= there
    reasons = {reason.name.lower() for reason in jumiks.EndReason}
    assert set(re.findall(r'reason="(\w+)"', page)) <= reasons
