# SPDX-License-Identifier: Apache-2.0
"""Parts of the site that are made from the code: what a page names as `{generated} NAME`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import jumiks
from jumiks._metrics import metrics
from jumiks.cli.pages import EXIT_STATUS, commands
from jumiks.cli.parser import COMMANDS, EXAMPLES


def _cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|").replace("<", "\\<").replace("$", "\\$")


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(row) + " |" for row in lines]


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices:
        return " ".join(f"`{each}`" for each in action.choices)
    return f"`{action.metavar or action.dest}`".replace("|", "\\|")


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    for action in parser._actions:
        if action.dest == "help":
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings)
        value = _value(action)
        first = f"{names} {value}".strip() if names else value
        yield first, _cell(action.help or "")


def command_line() -> str:
    """Return a section for each command: usage, arguments, an example."""
    lines: list[str] = []
    for name, parser in commands().items():
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        lines += [f"## jumiks {name}", "", _cell(COMMANDS[name].long), ""]
        lines += ["```text", usage, "```", ""]
        if rows := list(_arguments(parser)):
            lines += [*_table(("argument", "what it does"), iter(rows)), ""]
        lines += ["Example:", "", "```text", EXAMPLES[name], "```", ""]
    lines += ["## Exit status", ""]
    lines += _table(("status", "meaning"), ((f"`{code}`", text) for code, text in EXIT_STATUS))
    return "\n".join(lines)


def server_metrics() -> str:
    """Return a table of the figures of a server, as it has them."""
    with jumiks.Server(f"@jumiks-docs-{id(object())}") as server:
        found = list(metrics(server))
    rows = (
        (
            f"`{each.name}{'_total' if each.kind == 'counter' else ''}`",
            each.kind,
            ", ".join(f"`{label}`" for label in each.labels),
            each.text,
        )
        for each in found
    )
    return "\n".join(_table(("name", "kind", "labels", "what it is"), rows))


def _title(path: Path) -> str:
    """Return the first line of a program's own description."""
    lines = [line.strip('"/* ') for line in path.read_text("utf-8").splitlines()]
    return next(line for line in lines if line and "SPDX" not in line).rstrip(".")


def examples() -> str:
    """Return each program in examples/ with what it is about."""
    lines: list[str] = []
    folder = Path(__file__).parent.parent / "examples"
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix in (".py", ".c"):
            lines += [f"## {name}", "", f"{_title(path)}.", ""]
        elif path.suffix in (".service", ".socket"):
            lines += [f"## {name}", ""]
        else:
            continue
        kind = {".py": "python", ".c": "c"}.get(path.suffix, "ini")
        lines += [f"```{{literalinclude}} /../examples/{name}", f":language: {kind}", "```", ""]
    return "\n".join(lines)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "command-line": command_line,
    "server-metrics": server_metrics,
    "examples": examples,
}


class Generated(SphinxDirective):
    """Puts a part into a page, in place of the directive."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the part's nodes."""
        text = PARTS[self.arguments[0]]()
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Have Sphinx know the directive."""
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
