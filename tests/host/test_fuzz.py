# SPDX-License-Identifier: GPL-2.0
"""What is said of a fuzz target that has run, with programs in the place of targets."""

from __future__ import annotations

from pathlib import Path

import pytest

import fuzz
import fuzz_mutants
from cluster import settings


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of a fuzzer with one target, ``one``, with two inputs."""
    monkeypatch.setattr(fuzz, "OUT", tmp_path / "out")
    monkeypatch.setattr(fuzz, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(fuzz, "LONGEST", {"one": 16})
    (tmp_path / "out").mkdir()
    (tmp_path / "corpus/one").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "corpus/one" / name).write_text(name)
    return tmp_path


def replay(place: Path, script: str) -> fuzz.Ran:
    """Run the inputs of the target, which is this script."""
    target = place / "out/one"
    target.write_text(f"#!/bin/sh\n{script}\n")
    target.chmod(0o755)
    return fuzz.replay("one", place / "log", out=place / "out")


def test_inputs_that_hold(place: Path) -> None:
    """Every input was executed, and nothing found."""
    ran = replay(
        place, 'echo "#3 DONE cov: 12 ft: 13 corp: 2/2b"\necho stat::number_of_executed_units: 3'
    )
    assert ran.good and (ran.executions, ran.branches, ran.inputs) == (3, 12, 2)


def test_inputs_that_are_not_run(place: Path) -> None:
    """A target that has not executed what is kept for it has failed, whatever it says."""
    ran = replay(place, "echo stat::number_of_executed_units: 1")
    assert not ran.good and "2 inputs in" in ran.cause and "1 executed" in ran.cause
    for path in (place / "corpus/one").iterdir():
        path.unlink()
    assert not replay(place, "echo stat::number_of_executed_units: 1").good


def test_input_that_does_not_hold(place: Path) -> None:
    """The cause is told, and how to run the input again."""
    finding = place / "out/findings/one-crash-1"
    said = (
        "#2 INITED",
        "thread panicked at x.rs:1:",
        "it is not so",
        f"Test unit written to {finding}",
    )
    ran = replay(place, "".join(f"echo '{line}'\n" for line in said) + "exit 77")
    assert not ran.good and ran.status == 77
    assert ran.cause.splitlines()[:2] == ["thread panicked at x.rs:1:", "it is not so"]
    assert ran.finding == finding and ran.again().endswith(f"{finding}")


def test_every_target_has_inputs() -> None:
    """The list of targets, their files and their corpora are the same."""
    modules = {path.stem for path in (fuzz.SOURCES / "targets").glob("*.rs")} - {"mod"}
    corpora = {path.name for path in fuzz.CORPUS.iterdir() if path.is_dir()}
    assert modules == corpora == set(fuzz.LONGEST)
    for name in corpora:
        inputs = list((fuzz.CORPUS / name).iterdir())
        assert inputs and all(0 < path.stat().st_size <= fuzz.LONGEST[name] for path in inputs)


def test_mistakes_fit_the_sources() -> None:
    """What the mistakes for `make fuzz-mutants` take the place of stands there, once."""
    mistakes = list(fuzz_mutants.mutants())
    assert {mistake.target for mistake in mistakes} == set(fuzz.LONGEST)
    for mistake in mistakes:
        text = (settings.TREE / mistake.file).read_text()
        assert text.count(mistake.right) == 1, f"{mistake.file}: {mistake.right}"
        assert mistake.right != mistake.wrong
