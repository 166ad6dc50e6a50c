# SPDX-License-Identifier: Apache-2.0
"""Makes the site: `make docs`. Pages are Markdown; the reference comes from the code itself."""

import re
import sys
from pathlib import Path
from typing import Final

from docutils import nodes
from pygments.lexers import TextLexer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import jumiks

HERE: Final = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for generated.py

project = "jumiks"
author = "The jumiks maintainers"
copyright = "The jumiks maintainers. Apache-2.0"  # noqa: A001
release = version = jumiks.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
exclude_patterns = ["models"]
needs_sphinx = "8"

myst_heading_anchors = 4  # as a forge has them, so that the same links work there
highlight_language = "text"
smartquotes = False  # they would make one dash of the two before an option

default_role = "py:obj"  # `name` in a docstring is a link where there is such a thing, else code
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
maximum_signature_line_length = 90
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Members", "params_style")]

html_theme = "furo"
html_title = f"jumiks {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(HERE / "_static/scorer.js")
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False

ROOT: Final = HERE.parent
PROJECT: Final = {
    f"project/{name.lower()}": f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG")
}
"""Pages whose text is a file of the project's own folder."""

ELSEWHERE: Final = {
    "README.md": "index.md",
    "examples/": "project/examples.md",
    "examples/systemd/": "project/examples.md",
    **{file: f"{page}.md" for page, file in PROJECT.items()},
}
"""Which page of the site stands for a file or folder above docs/, where pages link to it."""


def link_inside(_app: Sphinx, page: str, source: list[str]) -> None:
    """Have links to what stands above docs/ lead to pages here, wherever the page is."""
    above = "../" * page.count("/")
    text, back = source[0], r"(?:\.\./)+"
    if page in PROJECT:
        text, back = (ROOT / PROJECT[page]).read_text("utf-8"), ""
        text = text.replace("](docs/", f"]({above}")
    for target, instead in ELSEWHERE.items():
        text = re.sub(rf"\]\({back}{re.escape(target)}\)", f"]({above}{instead})", text)
    source[0] = text


def link_pages(
    _app: Sphinx, _what: str, _name: str, _it: object, _options: object, lines: list[str]
) -> None:
    """Have docstrings' words such as docs/protocol.md lead there."""
    for index, line in enumerate(lines):
        lines[index] = re.sub(r"docs/([\w-]+)\.md", r":doc:`/\1`", line)


def public_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.TextElement
) -> nodes.reference | None:
    """Find a class under its public name: `jumiks.stats.ClientInfo` is `jumiks.ClientInfo`."""
    if node.get("refdomain") != "py":
        return None
    last, domain = node["reftarget"].rpartition(".")[2], env.domains.python_domain
    if f"jumiks.{last}" not in domain.objects:
        return None
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"jumiks.{last}", node, text
    )


LONG: Final = 20
"""Characters of code that fit into a table's cell, also on a phone."""

SHORT: Final = 16
"""Characters of a cell that is one figure with its unit, or a range."""

COLUMNS: Final = re.compile(r"\S {3,}\S")


def mark_what_may_break(_app: Sphinx, page: nodes.document) -> None:
    """Name what site.css breaks in another way than the rest of its kind."""
    for cell in page.findall(nodes.entry):
        if len(cell.astext()) <= SHORT:
            cell["classes"].append("short")
        for code in cell.findall(nodes.literal):
            if len(code.astext()) > LONG:
                code["classes"].append("long")
    for block in page.findall(nodes.literal_block):
        if len(COLUMNS.findall(block.astext())) > 2:
            block["classes"].append("columns")


def setup(app: Sphinx) -> None:
    """Have Sphinx call what is above."""
    app.connect("source-read", link_inside)
    app.connect("autodoc-process-docstring", link_pages)
    app.connect("doctree-read", mark_what_may_break)
    app.connect("missing-reference", public_name)
    app.add_lexer("hex", TextLexer)
