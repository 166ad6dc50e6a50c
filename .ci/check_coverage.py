# SPDX-License-Identifier: Apache-2.0
"""Show which share of the lines of C and of Python the tests run; fail where it is too small."""

import json
import sys
from typing import NamedTuple

WANTED = 95.0
"""Percent of the lines of each language."""


class File(NamedTuple):
    name: str
    run: int
    lines: int

    @property
    def share(self) -> float:
        return 100 * self.run / self.lines if self.lines else 100.0


def c_files(path: str) -> list[File]:
    with open(path) as summary:
        files = json.load(summary)["files"]
    return [File(each["filename"], each["line_covered"], each["line_total"]) for each in files]


def python_files(path: str) -> list[File]:
    with open(path) as report:
        files = json.load(report)["files"]
    found = []
    for name, each in files.items():
        figures = each["summary"]
        found.append(File(name, figures["covered_lines"], figures["num_statements"]))
    return found


def total(name: str, files: list[File]) -> File:
    return File(name, sum(each.run for each in files), sum(each.lines for each in files))


def main() -> None:
    c, python = c_files(sys.argv[1]), python_files(sys.argv[2])
    totals = [total("C", c), total("Python", python), total("both", c + python)]
    for file in [*sorted(c + python), *totals]:
        print(f"{file.name:40} {file.run:5} of {file.lines:5} lines  {file.share:6.1f} %")
    if short := [each.name for each in totals if each.share < WANTED]:
        sys.exit(f"less than {WANTED:g} % of lines: {', '.join(short)}")


if __name__ == "__main__":
    main()
