#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Shows that the fuzz targets can fail: puts mistakes into copies of the sources.

Each mistake of tests/fuzz/mutants is put in by itself, and the target that is named with
it must find it, beginning with nothing but its corpus. A mistake that is not
found, and one that no longer fits the sources, is a failure.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fuzz
from cluster import settings
from cluster.settings import HarnessError

# What is copied: the sources under test, and the targets.
PARTS = ("config.rs", "conn", "tests/fuzz")
LIST = fuzz.SOURCES / "mutants"
OUT = settings.BUILD / "fuzz" / "mutants"
RUNS = 2_000_000


@dataclass(frozen=True)
class Mutant:
    """A mistake: what stands in a file, once, and what stands there with it."""

    target: str
    file: str
    right: str
    wrong: str


def mutants() -> Iterator[Mutant]:
    """All mistakes, from their list."""
    text = "\n".join(line for line in LIST.read_text().splitlines() if not line.startswith("#"))
    for block in re.split(r"\n{2,}", text.strip()):
        head, *lines = block.splitlines()
        target, file = head.split()
        right, wrong = ([line[1:] for line in lines if line[0] == sign] for sign in "-+")
        yield Mutant(target, file, "\n".join(right), "\n".join(wrong))


def put_in(mutant: Mutant, tree: Path) -> None:
    """Copy the sources, and put the mistake in."""
    tree.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source, copy = settings.TREE / part, tree / part
        if source.is_dir():
            shutil.copytree(source, copy, dirs_exist_ok=True)
        else:
            shutil.copy2(source, copy)
    file = tree / mutant.file
    text = file.read_text()
    if text.count(mutant.right) != 1:
        raise HarnessError(f"{text.count(mutant.right)} times in {mutant.file}, not once")
    file.write_text(text.replace(mutant.right, mutant.wrong))


def try_out(mutant: Mutant) -> tuple[bool, str]:
    """Whether a mistake is found, and what came of it."""
    tree = OUT / "tree"
    log = OUT / f"{mutant.target}.log"
    shutil.rmtree(OUT / "corpus", ignore_errors=True)
    try:
        put_in(mutant, tree)
        fuzz.build(tree / "tests" / "fuzz", OUT / "bin")
    except HarnessError as error:
        return False, str(error)
    options = [
        *fuzz.fuzzing(mutant.target, RUNS, seed=1),
        *fuzz.findings(mutant.target, OUT / "findings"),
        *fuzz.corpora(mutant.target, OUT / "corpus"),
    ]
    began = time.monotonic()
    status = fuzz.start(mutant.target, options, log, OUT / "bin").wait()
    ran = fuzz.result(mutant.target, status, log, time.monotonic() - began)
    if ran.good or not ran.finding:
        return False, f"not found with {ran.executions:,} executions"
    return True, " / ".join(line.strip() for line in ran.cause.splitlines()[1:2])


def main() -> int:
    """Try all mistakes; the exit status."""
    parser = argparse.ArgumentParser(
        description="Put mistakes in, and see the fuzz targets find them."
    )
    parser.add_argument("--only", default="", metavar="NAME", help="only those of this target")
    only = parser.parse_args().only
    OUT.mkdir(parents=True, exist_ok=True)
    missed = tried = 0
    for mutant in mutants():
        if only and mutant.target != only:
            continue
        found, text = try_out(mutant)
        tried += 1
        missed += not found
        what = " ".join(mutant.right.split())
        print(
            f"{'ok  ' if found else 'FAIL'}  {mutant.target:<7} {mutant.file}: {what[:60]}",
            flush=True,
        )
        print(f"                {text}", flush=True)
    print(f"{tried} mistakes, {missed} not found")
    return 1 if missed or not tried else 0


if __name__ == "__main__":
    sys.exit(main())
