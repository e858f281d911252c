#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Fuzzes the pure parts of KCCM in user space; tests/fuzz/main.rs says what and how.

Every target gets ``--runs`` inputs, made from those in tests/fuzz/corpus and
from what earlier runs have found (build/fuzz/corpus). An input that does not
hold is written to build/fuzz/findings. The last line of the output counts;
the exit status is 0 only if nothing was found.

``--keep`` does not fuzz: it puts into tests/fuzz/corpus, of all that was found,
the fewest and shortest inputs that reach everything that was reached.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster import process, settings
from cluster.settings import HarnessError

SOURCES = settings.TREE / "tests" / "fuzz"
CORPUS = SOURCES / "corpus"
OUT = settings.BUILD / "fuzz"

# The targets, the slowest first, with the length of their inputs at most: what
# they can make use of, and some.
LONGEST = {
    "session": 128,
    "stream": 512,
    "state": 256,
    "credit": 256,
    "config": 192,
    "peers": 384,
    "answer": 64,
    "hello": 96,
    "frame": 48,
}

# About two minutes on two cores.
RUNS = 500_000
# An input that takes longer has found an endless loop.
HANG_SECONDS = 60
# What the targets allocate is checked by themselves; memory that was freed is
# kept from use for a while, which must not take all there is.
SANITIZER = "quarantine_size_mb=16:detect_leaks=0"
REFRESH_SECONDS = 5.0

_AT = re.compile(rb"^at (\d+)$", re.MULTILINE)
_DONE = re.compile(rb"^stat::number_of_executed_units: (\d+)$", re.MULTILINE)
_REACHED = re.compile(rb" cov: (\d+) ft: (\d+) corp: (\d+)/")
_WRITTEN = re.compile(rb"Test unit written to (\S+)")
# What libFuzzer and Rust say of a crash, less the stack.
_CAUSE = re.compile(rb"panicked at|ERROR: |SUMMARY: ")


@dataclass(frozen=True)
class Ran:
    """What a target did."""

    target: str
    status: int
    executions: int
    branches: int
    inputs: int
    seconds: float
    log: Path
    finding: Path | None
    cause: str

    @property
    def good(self) -> bool:
        return self.status == 0

    def again(self) -> str:
        """What to do with a finding."""
        if self.finding is None:
            return ""
        finding = _short(self.finding)
        return f"The input:  {finding}\nAgain with: {_short(OUT / self.target)} {finding}"


def build(sources: Path = SOURCES, out: Path = OUT, goal: str = "all") -> None:
    """Make the fuzzer, with a link for each target, if anything has changed; or lint it."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "build.log"
    needed = {name: settings.variable(name) for name in ("KCCM_KDIR", "LIBCLANG_PATH")}
    for name, value in needed.items():
        if not value:
            raise HarnessError(f"{name} is not set: run scripts/setup.sh")
    # Not the flags of the make that we may be called by.
    inherited = {k: v for k, v in os.environ.items() if "MAKE" not in k and k != "MFLAGS"}
    command = ["make", "-f", str(sources / "Makefile"), f"OUT={out}", goal]
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, env=inherited | needed, check=False
        )
    if done.returncode != 0:
        text = log.read_text(errors="replace")
        # Not the commands, but what came of them.
        start = text.find("error")
        raise HarnessError(f"the fuzzer does not build: see {log}\n{text[max(start, 0) :]}")


def start(target: str, options: Sequence[str], log: Path, out: Path = OUT) -> process.Child:
    """Start a target with options and corpora of libFuzzer."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    env = ["env", f"ASAN_OPTIONS={SANITIZER}", "RUST_BACKTRACE=0"]
    limits = [f"-timeout={HANG_SECONDS}", "-print_final_stats=1"]
    return process.spawn([*env, str(out / target), *limits, *options], log)


def executions(log: Path) -> int:
    """How many inputs a target has been given up to now."""
    text = log.read_bytes()
    counts = _DONE.findall(text) or _AT.findall(text)
    return int(counts[-1]) if counts else 0


def result(target: str, status: int, log: Path, seconds: float) -> Ran:
    """What the log of a target that has ended says."""
    text = log.read_bytes()
    reached = _REACHED.findall(text)
    branches, _, inputs = map(int, reached[-1]) if reached else (0, 0, 0)
    written = _WRITTEN.findall(text)
    lines = text.decode(errors="replace").splitlines()
    at = next((i for i, line in enumerate(lines) if _CAUSE.search(line.encode())), None)
    cause = lines[-10:] if at is None else lines[at : at + 4]
    return Ran(
        target=target,
        status=status,
        executions=executions(log),
        branches=branches,
        inputs=inputs,
        seconds=seconds,
        log=log,
        finding=Path(written[-1].decode()) if written else None,
        cause="" if status == 0 else "\n".join(cause),
    )


def fuzzing(target: str, runs: int, seed: int) -> list[str]:
    """The options with which a target is fuzzed."""
    dictionary = SOURCES / f"{target}.dict"
    return [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={LONGEST[target]}",
        *([f"-dict={dictionary}"] if dictionary.exists() else []),
    ]


def findings(target: str, folder: Path = OUT / "findings") -> list[str]:
    """Where inputs go that do not hold."""
    folder.mkdir(parents=True, exist_ok=True)
    return [f"-artifact_prefix={folder}/{target}-"]


def corpora(target: str, found: Path | None = None) -> list[str]:
    """Where a target's inputs are; what is new goes into ``found``."""
    found = found or OUT / "corpus" / target
    found.mkdir(parents=True, exist_ok=True)
    # The first one is written to.
    return [str(found), str(CORPUS / target)]


def replay(target: str, log: Path, out: Path = OUT) -> Ran:
    """Run what is in tests/fuzz/corpus and nothing else."""
    began = time.monotonic()
    files = sum(path.is_file() for path in (CORPUS / target).iterdir())
    with tempfile.TemporaryDirectory() as nothing:
        inputs = corpora(target, Path(nothing))
        options = ["-runs=0", *findings(target, out / "findings"), *inputs]
        status = start(target, options, log, out).wait()
    ran = result(target, status, log, time.monotonic() - began)
    if ran.good and not 0 < files <= ran.executions:
        cause = f"{files} inputs in {CORPUS / target}, {ran.executions} executed"
        return dataclasses.replace(ran, status=1, cause=cause)
    return ran


class Fuzzing:
    """Fuzzes some targets, several at a time, and tells how far they are."""

    def __init__(self, runs: int, seed: int) -> None:
        self._runs = runs
        self._seed = seed
        self._lock = threading.Lock()
        self._running: dict[str, Path] = {}
        self._started = time.monotonic()

    def run(self, names: Sequence[str], jobs: int) -> list[Ran]:
        """All of them, to their ends."""
        with self._progress(), ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(self._fuzz, names))

    def _fuzz(self, target: str) -> Ran:
        log = OUT / "log" / f"{target}.log"
        options = fuzzing(target, self._runs, self._seed)
        began = time.monotonic()
        child = start(target, [*options, *findings(target), *corpora(target)], log)
        with self._lock:
            self._running[target] = log
        try:
            status = child.wait()
        finally:
            process.kill(child)
        ran = result(target, status, log, time.monotonic() - began)
        with self._lock:
            del self._running[target]
            self._tell(ran)
        return ran

    def _tell(self, ran: Ran) -> None:
        mark = "ok  " if ran.good else "FAIL"
        self._say(
            f"{mark}  {ran.target:<8}{ran.executions:>12,} executions, {ran.branches} branches "
            f"reached by {ran.inputs} inputs  ({ran.seconds:.0f} s)"
        )
        if not ran.good:
            for line in [*ran.cause.splitlines(), *ran.again().splitlines()]:
                print(f"                {line}")
            print(f"                Log:        {_short(ran.log)}", flush=True)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:7.1f} s  {text}", flush=True)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[None]:
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(REFRESH_SECONDS if sys.stdout.isatty() else 6 * REFRESH_SECONDS):
                with self._lock:
                    for target, log in self._running.items():
                        self._say(f"      {target:<8}{executions(log):>12,} of {self._runs:,}")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _short(path: Path) -> str:
    """A path as seen from the top of the tree."""
    return str(path.relative_to(settings.TREE)) if path.is_relative_to(settings.TREE) else str(path)


def keep(target: str) -> None:
    """Replace a target's corpus by the least that reaches the same."""
    folders = [CORPUS / target, OUT / "corpus" / target]
    least = OUT / "least" / target
    shutil.rmtree(least, ignore_errors=True)
    least.mkdir(parents=True)
    log = OUT / "log" / f"{target}.keep.log"
    inputs = [str(folder) for folder in folders if folder.is_dir()]
    options = [
        "-set_cover_merge=1",
        "-use_counters=0",
        f"-max_len={LONGEST[target]}",
        str(least),
        *inputs,
    ]
    if start(target, options, log).wait() != 0:
        raise HarnessError(f"the corpus of {target} was not merged: see {log}")
    for old in folders[0].iterdir():
        old.unlink()
    for new in least.iterdir():
        shutil.copy(new, folders[0])
    sizes = [path.stat().st_size for path in folders[0].iterdir()]
    print(f"{target:<8}{len(sizes):>5} inputs, {sum(sizes)} bytes", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fuzz the pure parts of KCCM in user space.")
    parser.add_argument(
        "--runs", type=int, default=RUNS, metavar="N", help=f"inputs for each target ({RUNS})"
    )
    parser.add_argument(
        "--only", default=",".join(LONGEST), metavar="NAMES", help="which, with commas (all)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="for what is random (0: another each time)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="how many targets run side by side (2, or as many as there are processors)",
    )
    parser.add_argument("--keep", action="store_true", help="only renew tests/fuzz/corpus")
    parser.add_argument("--lint", action="store_true", help="only run clippy over the targets")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    for name in arguments.only:
        if name not in LONGEST:
            parser.error(f"there is no target {name}: {', '.join(LONGEST)}")
    if arguments.runs < 1 or arguments.jobs < 1:
        parser.error("--runs and --jobs must be at least 1")
    return arguments


def summary(done: Sequence[Ran]) -> int:
    """Print the counts; the process's exit status."""
    bad = sum(not ran.good for ran in done)
    total = sum(ran.executions for ran in done)
    what = {0: "no finding", 1: "1 finding"}.get(bad, f"{bad} findings")
    print(f"{len(done)} targets, {total:,} executions, {what}", flush=True)
    return 1 if bad or not done else 0


def _interrupt(*_: object) -> None:
    # At once: our end ends the targets, which waiting would not.
    print("interrupted", flush=True)
    os._exit(130)


def main() -> int:
    """Do what the command line asks for; the exit status."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        if arguments.lint:
            build(goal="clippy")
            return 0
        build()
        if arguments.keep:
            for target in arguments.only:
                keep(target)
            return 0
        return summary(Fuzzing(arguments.runs, arguments.seed).run(arguments.only, arguments.jobs))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
