# SPDX-License-Identifier: Apache-2.0
"""Processor time of tests, which a busy machine hardly changes: `pytest --processor-time`."""

import os
from collections import Counter
from collections.abc import Generator

import pytest

MOST = 40
"""Files and tests that are shown, those that take longest."""


def spent() -> float:
    """Seconds of the processor that this process and the children it reaped have used."""
    return sum(os.times()[:4])


class Times:
    """Adds to each report how much a part of a test used, and shows the sums."""

    def __init__(self) -> None:
        self.before = spent()
        self.tests: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = spent()
        # All attributes of a report go from the worker to the process that counts.
        vars(report)["processor_time"] = now - self.before
        self.before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests[report.nodeid] += vars(report)["processor_time"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: Counter[str] = Counter()
        for name, seconds in self.tests.items():
            files[name.partition("::")[0]] += seconds
        for title, times in (("files", files), ("tests", self.tests)):
            terminalreporter.section(f"{times.total():.1f} s of the processor, by {title}")
            for name, seconds in times.most_common(MOST):
                terminalreporter.line(f"{seconds:7.2f} s  {name}")
