#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Runs every test of KCCM: KUnit in a guest, the corpus of the fuzzer, and the
others with pytest.

The work is cut into units, the KUnit module, each file of tests/cluster, tests/host and
tests/torture, and the fuzzer, of which ``--jobs`` run side by side. The last line of the output is
``N passed, N failed``; the exit status is 0 only if tests ran and none failed.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import fuzz
from cluster import process, settings
from cluster.accel import accelerator
from cluster.channel import Job
from cluster.image import Image
from cluster.ktap import Case, KtapReader, Suite
from cluster.machine import Machine, MachineSpec, assert_no_leaks
from cluster.rundir import RunDir
from cluster.settings import Flavour, HarnessError

# Where there are files of tests for pytest: those on clusters, and those that need no guest.
TEST_FOLDERS = tuple(settings.TREE / "tests" / name for name in ("cluster", "host", "torture"))
# Those whose tests are so many, and so quick, that only the failed ones are shown.
QUICK_TESTS = frozenset(
    f"test_{name}.py" for name in ("checker", "enough", "rings", "schedule", "switch")
)
LOG_DIR = settings.BUILD / "log"

KUNIT_MODULE = "kccm_kunit"
KUNIT_SECONDS = 600.0
KUNIT_MEMORY_MB = 384
# Two processors, so that races between threads have a chance to show.
KUNIT_CPUS = 2

# A suite, or a case of the suite before it.
_KUNIT = re.compile(
    r"^\s*#\[(?:\w+::)*kunit_tests\((?P<suite>\w+)\)\]"
    r"|^\s*#\[test\]\s+(?:#\[[^\n]*\]\s+)*fn (?P<case>\w+)",
    re.MULTILINE,
)
_STILL_RUNNING_SECONDS = 30.0

# Of a failure's text, how many lines at its beginning and at its end are shown.
_SHOWN_FIRST = 15
_SHOWN_LAST = 25


@dataclass(frozen=True)
class Outcome:
    """How one test ended."""

    test: str
    status: str  # pass, fail or skip
    seconds: float = 0.0
    text: str = ""


class Report:
    """What the user sees, and the sum of it. Its methods may be called by any thread."""

    def __init__(self, verbose: bool) -> None:
        self.outcomes: list[Outcome] = []
        self._verbose = verbose
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._running: dict[str, float] = {}
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def step(self, text: str) -> None:
        """Say what is being done."""
        with self._lock:
            self._print("", text)

    def start(self, test: str) -> None:
        """A test, or something else that takes its time, begins."""
        with self._lock:
            self._running[test] = time.monotonic()

    def finish(self, test: str) -> None:
        """What start() announced is over."""
        with self._lock:
            self._running.pop(test, None)

    def add(self, outcome: Outcome, shown: bool = True) -> None:
        """A test has ended. Failures are always shown."""
        with self._lock:
            self._running.pop(outcome.test, None)
            self.outcomes.append(outcome)
            if shown or self._verbose or outcome.status == "fail":
                self._print(outcome.status, f"{outcome.test}  ({outcome.seconds:.1f} s)")
            if outcome.status == "fail":
                self._details(outcome)

    def suite(self, kernel: str, suite: Suite) -> None:
        """A KUnit suite has ended; its cases have been added before."""
        bad = sum(case.status == "fail" for case in suite.cases)
        count = len(suite.cases)
        what = f"{bad} of {count} failed" if bad else f"{count} case{'s' if count != 1 else ''}"
        with self._lock:
            status = "fail" if bad or suite.status == "fail" else "pass"
            self._print(status, f"{kernel}:{suite.name}  {what}  ({suite.seconds:.1f} s)")

    def still_running(self) -> None:
        """Name what has been running for long."""
        now = time.monotonic()
        with self._lock:
            for test, since in self._running.items():
                if now - since >= _STILL_RUNNING_SECONDS:
                    self._print("", f"still running: {test} ({now - since:.0f} s)")

    def count(self, status: str) -> int:
        """How many tests ended like this."""
        return sum(outcome.status == status for outcome in self.outcomes)

    def close(self) -> int:
        """Print the summary; the process's exit status."""
        passed, failed, skipped = (self.count(s) for s in ("pass", "fail", "skip"))
        print()
        for outcome in self.outcomes:
            if outcome.status == "fail":
                print(f"failed: {outcome.test}")
        if skipped:
            print(f"{skipped} skipped")
        if not passed + failed:
            print("no test has run")
        took = time.monotonic() - self._started
        print(f"{took:.0f} s; logs in {_short(settings.RUN_DIR)} and {_short(LOG_DIR)}")
        # Nothing having run is a failure of its own.
        failed = failed or int(passed == 0)
        print(f"{passed} passed, {failed} failed", flush=True)
        return 1 if failed else 0

    def _print(self, status: str, text: str) -> None:
        colour = {"pass": "32", "fail": "31", "skip": "33"}.get(status)
        mark = f"{ {'pass': 'ok', 'fail': 'FAIL'}.get(status, status):<4}"
        if colour and self._colour:
            mark = f"\033[{colour}m{mark}\033[0m"
        print(f"{time.monotonic() - self._started:7.1f} s  {mark}  {text}", flush=True)

    def _details(self, outcome: Outcome) -> None:
        lines = outcome.text.rstrip().splitlines()
        left_out = len(lines) - _SHOWN_FIRST - _SHOWN_LAST
        if left_out > 1 and not self._verbose:
            note = f"... ({left_out} lines left out, -v shows them) ..."
            lines = [*lines[:_SHOWN_FIRST], note, *lines[-_SHOWN_LAST:]]
        for line in lines:
            print(f"            {line}")
        sys.stdout.flush()


def _short(path: Path) -> str:
    """A path as seen from the top of the tree."""
    return str(path.relative_to(settings.TREE)) if path.is_relative_to(settings.TREE) else str(path)


@dataclass
class Selection:
    """The tests that --only asks for; everything when it is empty."""

    only: str = ""
    pattern: str = field(init=False)

    def __post_init__(self) -> None:
        globbed = any(c in self.only for c in "*?[")
        self.pattern = self.only if globbed or not self.only else f"*{self.only}*"

    def takes(self, test: str) -> bool:
        """Whether a test is asked for."""
        return not self.pattern or fnmatch.fnmatch(test, self.pattern)


# KUnit.


def expected_cases() -> dict[str, set[str]]:
    """The KUnit suites in the sources, with their cases."""
    sources = (
        path
        for path in settings.TREE.rglob("*.rs")
        if settings.BUILD not in path.parents
        and not any(part.startswith(".") for part in path.relative_to(settings.TREE).parts)
    )
    suites: dict[str, set[str]] = {}
    for path in sources:
        cases: set[str] = set()
        for found in _KUNIT.finditer(path.read_text()):
            if found["suite"]:
                cases = suites.setdefault(found["suite"], set())
            else:
                cases.add(found["case"])
    return suites


class KunitRun:
    """Loads the KUnit module in a guest and reports what its suites say."""

    def __init__(self, flavour: Flavour, selection: Selection, report: Report) -> None:
        self.name = "kunit" if flavour.name == "base" else f"kunit-{flavour.name}"
        self._flavour = flavour
        self._selection = selection
        self._report = report
        self._ktap = KtapReader()
        self._read_to = 0
        self._expected: dict[str, set[str]] = {}
        for suite, cases in expected_cases().items():
            if taken := {case for case in cases if self._takes(suite, case)}:
                self._expected[suite] = taken

    def run(self) -> None:
        """The whole unit; whatever goes wrong is a failed test."""
        if self._selection.only and not self._expected:
            return
        self._report.start(self.name)
        began = time.monotonic()
        try:
            with RunDir(self.name) as folder, self._machine(folder.path) as machine:
                try:
                    self._run_suites(machine)
                finally:
                    self._check_suites(machine)
                machine.assert_clean()
                assert_no_leaks([machine])
        except HarnessError as error:
            self._fail("the guest", str(error), time.monotonic() - began)
        finally:
            self._report.finish(self.name)

    def _takes(self, suite: str, case: str) -> bool:
        """Whether a case is asked for, by its own name or as one of its suite."""
        names = f"{self.name}:{suite}", f"{self.name}:{suite}.{case}"
        return any(self._selection.takes(name) for name in names)

    def _filter(self) -> str:
        """What has KUnit run no more than it must: it can be told of one suite, or one case."""
        if not self._selection.only or len(self._expected) != 1:
            return ""
        ((suite, cases),) = self._expected.items()
        case = f".{min(cases)}" if len(cases) == 1 else ""
        return f"kunit.filter_glob={suite}{case}"

    def _machine(self, folder: Path) -> Machine:
        flavour = self._flavour
        return Machine(
            MachineSpec(
                name=self.name,
                image=Image.build(flavour.modules()),
                kernel=flavour.bzimage,
                accel=accelerator(flavour.bzimage),
                cpus=KUNIT_CPUS,
                memory_mb=max(KUNIT_MEMORY_MB, flavour.memory_mb),
                kunit=True,
                append=f"{flavour.append} {self._filter()}".strip(),
                folder=folder,
            )
        )

    def _limit(self, seconds: float) -> float:
        """A limit for this kernel, when the environment does not speak of it."""
        return seconds * max(1.0, self._flavour.timeout_scale / settings.timeout_scale())

    def _run_suites(self, machine: Machine) -> None:
        """Boot, load the module, and follow the console until it is done."""
        machine.boot()
        machine.wait_ready(self._limit(60))
        self._report.step(f"{self.name}: booted, loading {KUNIT_MODULE}.ko")
        machine.sync_console()
        self._read_to = machine.mark()
        *needed, module = machine.spec.image.dependencies(KUNIT_MODULE)
        for name in needed:
            machine.insmod(name)
        # insmod sleeps for as long as a case takes: that is no hung task.
        machine.write("/proc/sys/kernel/hung_task_timeout_secs", "240")
        job = machine.spawn(f"insmod /modules/{module}.ko")
        try:
            self._follow(machine, job)
            machine.sync_console()
            machine.rmmod(module)
        finally:
            self._take(machine)

    def _follow(self, machine: Machine, job: Job) -> None:
        """Report suites as they end, until the module is loaded."""
        deadline = time.monotonic() + self._limit(KUNIT_SECONDS)
        while not job.poll(0.2) and time.monotonic() < deadline:
            self._take(machine)
        job.wait(timeout=1.0)

    def _take(self, machine: Machine) -> None:
        """Read on in the console, and report the suites that have ended."""
        end = machine.mark()
        for suite in self._ktap.feed(machine.console.text(self._read_to, end)):
            if self._wanted(suite):
                self._report_suite(suite)
        self._read_to = end

    def _wanted(self, suite: Suite) -> bool:
        return not self._selection.only or suite.name in self._expected

    def _cases(self, suite: Suite) -> list[Case]:
        """The cases that are asked for, of those that have run."""
        wanted = self._expected.get(suite.name, set())
        return [case for case in suite.cases if not self._selection.only or case.name in wanted]

    def _report_suite(self, suite: Suite) -> None:
        self._report_cases(suite)
        self._report.suite(self.name, replace(suite, cases=self._cases(suite)))

    def _report_cases(self, suite: Suite) -> None:
        for case in self._cases(suite):
            text = "\n".join(case.diagnostics)
            test = f"{self.name}:{suite.name}.{case.name}"
            self._report.add(Outcome(test, case.status, 0.0, text), shown=False)

    def _check_suites(self, machine: Machine) -> None:
        """Every suite of the sources must have run, to its end."""
        log = machine.console.path
        for suite in filter(self._wanted, self._ktap.suites.values()):
            if suite.status is None:
                self._report_cases(suite)
            if gap := suite.gaps():
                self._fail(suite.name, f"{gap}: see {log}")
        for name, cases in sorted(self._expected.items()):
            suite = self._ktap.suites.get(name)
            if suite is None:
                self._fail(name, f"the sources have this suite, but it did not run: see {log}")
                continue
            if suite.gaps():
                continue
            for case in sorted(cases - {case.name for case in suite.cases}):
                text = f"the sources have this case, but it did not run: see {log}"
                self._fail(f"{name}.{case}", text)

    def _fail(self, what: str, text: str, seconds: float = 0.0) -> None:
        self._report.add(Outcome(f"{self.name}:{what}", "fail", seconds, text))


# The tests in Python.


class PytestRun:
    """Runs one file of tests in a pytest of its own."""

    def __init__(self, path: Path, selection: Selection, report: Report) -> None:
        self._folder = path.parent.name
        self.name = f"{self._folder}/{path.name}"
        self._path = path
        self._shown = path.name not in QUICK_TESTS
        self._passed = 0
        self._selection = selection
        self._report = report
        self._pending: list[str] = []
        self._ended = False

    def run(self) -> None:
        """The whole unit; tests that pytest did not come to are failed tests."""
        LOG_DIR.mkdir(parents=True, exist_ok=True)
        log = LOG_DIR / f"{self._path.stem}.log"
        log.write_bytes(b"")
        read_end, write_end = os.pipe()
        with os.fdopen(read_end) as events:
            try:
                child = process.spawn(self._command(write_end), log, [write_end])
            finally:
                os.close(write_end)
            for line in events:
                self._take(json.loads(line))
        status = child.wait()
        if not self._ended:
            self._lost(f"pytest ended with status {status}: see {log}")
        if not self._shown and self._passed:
            self._report.step(f"{self.name}: {self._passed} passed")

    def _command(self, events: int) -> list[str]:
        variables = {
            "KCCM_TEST_EVENTS": str(events),
            "KCCM_TEST_ONLY": self._selection.pattern,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        assignments = [f"{name}={value}" for name, value in variables.items()]
        options = ["-p", "no:cacheprovider", "-v", "--tb=short", "--color=no"]
        options.append(f"--rootdir={settings.TREE}")
        pytest = [sys.executable, "-m", "pytest", *options, str(self._path)]
        return ["env", f"--chdir={settings.TREE}", *assignments, *pytest]

    def _take(self, event: dict[str, object]) -> None:
        """Act upon one event of tests/conftest.py."""
        kind, test = event["event"], self._test(str(event.get("test", "")))
        if kind == "collected":
            tests = event["tests"]
            assert isinstance(tests, list)
            self._pending = [self._test(name) for name in tests]
        elif kind == "start":
            self._report.start(test)
        elif kind == "result":
            if test in self._pending:
                self._pending.remove(test)
            seconds = float(str(event["seconds"]))
            outcome = Outcome(test, str(event["status"]), seconds, str(event["text"]))
            self._passed += outcome.status == "pass"
            self._report.add(outcome, self._shown)
        elif kind == "end":
            self._ended = True
            # Interrupted (2) and worse leave tests behind; 5 is "nothing selected".
            if event["status"] not in (0, 1, 5) and self._pending:
                self._lost(f"pytest ended with status {event['status']}")

    def _test(self, nodeid: str) -> str:
        return re.sub(rf"^(tests/)?({self._folder}/)?", f"{self._folder}/", nodeid)

    def _lost(self, why: str) -> None:
        for test in self._pending or [self.name]:
            self._report.add(Outcome(test, "fail", 0.0, why))


# The fuzzer's corpus.


class FuzzRun:
    """Runs every target of the fuzzer with the inputs that are kept for it, and no others."""

    name = "fuzz"

    def __init__(self, selection: Selection, report: Report) -> None:
        self._report = report
        self._targets = [name for name in fuzz.LONGEST if selection.takes(f"{self.name}:{name}")]

    def run(self) -> None:
        """The whole unit; a fuzzer that does not build is a failed test."""
        if not self._targets:
            return
        self._report.start(self.name)
        try:
            fuzz.build()
            for target in self._targets:
                self._replay(target)
        except HarnessError as error:
            self._report.add(Outcome(f"{self.name}:build", "fail", 0.0, str(error)))
        finally:
            self._report.finish(self.name)

    def _replay(self, target: str) -> None:
        ran = fuzz.replay(target, LOG_DIR / f"fuzz-{target}.log")
        text = ran.cause if ran.finding is None else f"{ran.cause}\n{ran.again()}"
        status = "pass" if ran.good else "fail"
        self._report.add(Outcome(f"{self.name}:{target}", status, ran.seconds, text))


# All together.


Unit = KunitRun | PytestRun | FuzzRun


def units(arguments: argparse.Namespace, report: Report) -> list[Unit]:
    """What there is to do, the longest first."""
    selection = Selection(arguments.only)
    flavour = settings.flavour()
    todo: list[Unit] = [KunitRun(flavour, selection, report)]
    paths = [path for folder in TEST_FOLDERS for path in sorted(folder.glob("test_*.py"))]
    if flavour.name != "base":
        # The others show the same on any kernel.
        paths = [p for p in paths if p.parent.name == "cluster" or p.name == "test_torture.py"]
    # It takes by far the longest.
    paths.sort(key=lambda path: path.name != "test_torture.py")
    todo += [PytestRun(path, selection, report) for path in paths]
    return [*todo, FuzzRun(selection, report)] if flavour.name == "base" else todo


@contextlib.contextmanager
def heartbeat(tick: Callable[[], None]) -> Iterator[None]:
    """Call ``tick`` now and then from another thread."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_STILL_RUNNING_SECONDS):
            tick()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run_units(todo: list[Unit], jobs: int, report: Report) -> None:
    """Run all units, ``jobs`` at a time."""

    def run(unit: Unit) -> None:
        try:
            unit.run()
        except Exception as error:  # a unit must not end unnoticed
            report.add(Outcome(unit.name, "fail", 0.0, f"{type(error).__name__}: {error}"))

    pool = ThreadPoolExecutor(jobs)
    with heartbeat(report.still_running):
        list(pool.map(run, todo))
    pool.shutdown()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the tests of KCCM.")
    parser.add_argument(
        "--only",
        default="",
        metavar="PATTERN",
        help="run only the tests whose names contain PATTERN (or match it, with * and ?); names "
        "look like kunit:SUITE.CASE, cluster/test_FILE.py::test_NAME, host/... and fuzz:TARGET",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        metavar="N",
        help="how many units (KUnit, files of tests, fuzzer) run side by side (default: 2)",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show every KUnit case, and failures in full"
    )
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    return arguments


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run what the command line asks for; the exit status."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    report = Report(arguments.verbose)
    try:
        todo = units(arguments, report)
        kernel = settings.flavour()
        report.step(f"{len(todo)} units on the {kernel.name} kernel, {arguments.jobs} at a time")
        run_units(todo, arguments.jobs, report)
    except HarnessError as error:
        report.add(Outcome("the test runner", "fail", 0.0, str(error)))
    except KeyboardInterrupt:
        report.add(Outcome("the test runner", "fail", 0.0, "interrupted"))
        # At once: our end ends the guests and pytest, which waiting would not.
        os._exit(report.close())
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
