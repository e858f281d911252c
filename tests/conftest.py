# SPDX-License-Identifier: GPL-2.0
"""What all tests share: limits of time, the choice of tests, and reports to the test runner."""

from __future__ import annotations

import fnmatch
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from cluster.settings import scaled

# The most that setting up, running and tearing down a test may take each,
# unless it is marked with pytest.mark.limit(seconds).
PHASE_SECONDS = 300.0


# Limits of time. All waits of the harness have one; this is for those that have not.


@contextmanager
def _limited(item: pytest.Item) -> Iterator[None]:
    marker = item.get_closest_marker("limit")
    seconds = scaled(marker.args[0] if marker else PHASE_SECONDS)

    def expire(*_: object) -> None:
        raise TimeoutError(f"{item.name} took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Bound the making of a test's fixtures."""
    with _limited(item):
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Bound the test itself."""
    with _limited(item):
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Bound the removal of a test's fixtures."""
    with _limited(item):
        yield


# Reports.


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that scripts/run_tests.py --only asks for."""
    pattern = os.environ.get("KCCM_TEST_ONLY")
    if not pattern:
        return
    kept = [
        item
        for item in items
        if fnmatch.fnmatch(item.nodeid, pattern)
        or fnmatch.fnmatch(item.nodeid.removeprefix("tests/"), pattern)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


class Events:
    """Tells scripts/run_tests.py, over a pipe, what happens: one JSON object per line."""

    def __init__(self, fd: int) -> None:
        self._pipe = os.fdopen(fd, "w", buffering=1)
        self._reports: list[pytest.TestReport] = []

    def _tell(self, event: str, **fields: object) -> None:
        self._pipe.write(json.dumps({"event": event, **fields}) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read as a test counts as a failed test."""
        if report.failed:
            text = str(report.longrepr)
            self._tell("result", test=report.nodeid, status="fail", seconds=0.0, text=text)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """All tests are known."""
        self._tell("collected", tests=[item.nodeid for item in session.items])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._reports = []
        self._tell("start", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase (set-up, call, tear-down) of a test has ended."""
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended: failed if any of its phases did."""
        reports = self._reports
        outcomes = {report.outcome for report in reports}
        status = next((s for s in ("failed", "skipped") if s in outcomes), "passed")
        failed = [report for report in reports if report.failed]
        texts = [report.longreprtext for report in failed]
        texts += [str(value) for name, value in reports[-1].user_properties if name == "logs"][:1]
        self._tell(
            "result",
            test=nodeid,
            status={"failed": "fail", "skipped": "skip", "passed": "pass"}[status],
            seconds=sum(report.duration for report in reports),
            text="\n".join(texts),
        )

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Everything has run."""
        self._tell("end", status=int(exitstatus))


def pytest_configure(config: pytest.Config) -> None:
    """Report to the test runner when it has started us."""
    config.addinivalue_line("markers", "limit(seconds): the most that a phase of a test may take")
    fd = os.environ.get("KCCM_TEST_EVENTS")
    if fd:
        config.pluginmanager.register(Events(int(fd)), "kccm-events")
