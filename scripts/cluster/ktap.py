# SPDX-License-Identifier: GPL-2.0
"""Reading KUnit's results (KTAP) out of a kernel log.

A suite is a level of indentation: its cases' results stand at four spaces,
those of a case's parameters deeper, and the suite's own at none::

        # Subtest: kccm_frame
        1..2
        ok 1 round_trip
        # truncated: EXPECTATION FAILED at conn/frame.rs:301
        not ok 2 truncated
    not ok 1 kccm_frame
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_PRINTK = re.compile(r"^\[ *(?P<time>\d+\.\d+)\](\[[^\]]*\])? ")
_SUBTEST = re.compile(r"^ {4}# Subtest: (?P<name>\S+)$")
_PLAN = re.compile(r"^ {4}1\.\.(?P<count>\d+)$")
_RESULT = re.compile(
    r"^(?P<indent> *)(?P<verdict>ok|not ok) \d+ (- )?(?P<name>[^#\s]+)?"
    r"(\s*# (?P<directive>SKIP)\b.*)?"
)
_CHATTER = re.compile(r"^ *(KTAP version \d|1\.\.\d+$|# .*\bspeed: |# module: |# \S+: pass:\d)")

CASE_INDENT = 4
_MOST_DIAGNOSTICS = 200


@dataclass(frozen=True)
class Case:
    """One test case that has ended."""

    suite: str
    name: str
    status: str  # pass, fail or skip
    diagnostics: tuple[str, ...] = ()


@dataclass
class Suite:
    """One suite, as far as it has come."""

    name: str
    planned: int | None = None
    started: float = 0.0
    seconds: float = 0.0
    status: str | None = None  # pass or fail, once it has ended
    cases: list[Case] = field(default_factory=list)

    def gaps(self) -> str | None:
        """What is missing, if the suite did not end as it had announced."""
        if self.status is None:
            return f"did not end: {len(self.cases)} of {self.planned or 'its'} cases reported"
        if self.planned is None or len(self.cases) != self.planned:
            return f"reported {len(self.cases)} cases, but had announced {self.planned}"
        failed = any(case.status == "fail" for case in self.cases)
        if self.status == "fail" and not failed:
            return "failed as a whole, with no case that failed"
        return None


class KtapReader:
    """Takes a kernel log in pieces, and keeps the suites that it tells of."""

    def __init__(self) -> None:
        self.suites: dict[str, Suite] = {}
        self._rest = ""
        self._suite: Suite | None = None
        self._diagnostics: list[str] = []

    def feed(self, text: str) -> list[Suite]:
        """Take in more of the log; returns the suites that have ended in it."""
        *lines, self._rest = (self._rest + text).split("\n")
        ended = [self._line(line) for line in lines]
        return [suite for suite in ended if suite]

    def _line(self, line: str) -> Suite | None:
        stamp = _PRINTK.match(line)
        if not stamp:
            # Later lines of one message of several have no time of their own.
            self._diagnose(line)
            return None
        time, body = float(stamp["time"]), line[stamp.end() :]
        if subtest := _SUBTEST.match(body):
            self._open(subtest["name"], time)
        elif self._suite and (plan := _PLAN.match(body)) and self._suite.planned is None:
            self._suite.planned = int(plan["count"])
        elif result := _RESULT.match(body):
            return self._result(result, time)
        elif not _CHATTER.match(body):
            self._diagnose(body)
        return None

    def _open(self, name: str, time: float) -> None:
        self._suite = Suite(name, started=time)
        self.suites[name] = self._suite
        self._diagnostics = []

    def _diagnose(self, line: str) -> None:
        if self._suite and line.strip() and len(self._diagnostics) < _MOST_DIAGNOSTICS:
            self._diagnostics.append(line.rstrip())

    def _result(self, result: re.Match[str], time: float) -> Suite | None:
        """A result of a parameter, a case or a suite, by its indentation."""
        suite = self._suite
        status = "pass" if result["verdict"] == "ok" else "fail"
        indent = len(result["indent"])
        if suite is None or indent > CASE_INDENT:
            if status == "fail":
                self._diagnose(result.string.strip())
            return None
        if indent == CASE_INDENT:
            status = "skip" if result["directive"] else status
            name = result["name"] or "?"
            suite.cases.append(Case(suite.name, name, status, tuple(self._diagnostics)))
            self._diagnostics = []
            return None
        suite.status, suite.seconds = status, time - suite.started
        self._suite = None
        return suite
