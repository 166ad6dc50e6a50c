# SPDX-License-Identifier: Apache-2.0
"""Where CI=true, a test that is skipped has failed, unless the reason is one of a few."""

from collections.abc import Generator

import pytest

MAY_SKIP = {
    "this C library ": "a Python has the one that it was built for",
    "this kernel ": "a container has the kernel of its machine",
    "only root ": "who changes jumiks need not be root; CI is",
    "this root ": "a container's root may be unable to become another user",
    "this user ": "a container may forbid namespaces to its root, too",
    "the system calls of ": "of a machine of another kind",
    "Python 3.": "what this one does not do; make test-pythons tries the others",
    "sanitizers ": "the same test runs in a build without them",
}
"""How such a reason begins, and why nothing that could be installed would help."""


def refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a failure of what was skipped for want of something that can be installed."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    assert isinstance(report.longrepr, tuple)
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not reason.startswith(tuple(MAY_SKIP)):
        report.outcome = "failed"
        report.longrepr = f"with CI=true nothing is skipped because {reason}: install it"


class NoSkips:
    """Looks at each report before anybody counts it."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        refuse(report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self,
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        refuse(report)
        return report
