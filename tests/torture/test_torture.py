# SPDX-License-Identifier: GPL-2.0
"""Two short torture runs, always the same, each with a bit of everything: one that is signed, in
which keys change, and one that is not, in which resets are forged.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import schedule
from cluster import process
from cluster.settings import BUILD, RUN_DIR, TREE, scaled, timeout_scale
from enough import shortfalls

# Seeds and seconds: each has every kind of fault in its schedule, and early enough.
RUNS = {"signed": (20, 60), "unsigned": (133, 40)}
# What comes before and after: booting, healing, coming to rest, judging.
MORE_SECONDS = 360


@pytest.mark.parametrize("kind", RUNS)
def test_schedules(kind: str) -> None:
    """Every kind of fault is planned, at nodes also early enough to be in time when it comes late."""
    seed, seconds = RUNS[kind]
    faults = schedule.make(seed, 3, seconds, 2.0, schedule.KINDS)
    soon = [fault.kind for fault in faults if fault.ends < 25 or fault.node is None]
    assert set(soon) == set(schedule.KINDS)
    assert soon.count("reset") >= 3 and schedule.signs(seed) == (kind == "signed")


@pytest.mark.limit(max(seconds for _, seconds in RUNS.values()) + MORE_SECONDS + 30)
@pytest.mark.parametrize("kind", RUNS)
def test_short_torture(kind: str) -> None:
    """Every promise is kept, no kernel has reported a fault, and there was something to be kept."""
    if kind == "signed" and not shutil.which("keyctl"):
        pytest.skip("this machine has no keyctl, from which guests have theirs: install keyutils")
    seed, seconds = RUNS[kind]
    name = f"torture-{kind}"
    folder = RUN_DIR / name
    log = BUILD / "log" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    summary = folder / "summary.json"
    summary.unlink(missing_ok=True)
    arguments = ["--seed", str(seed), "--duration", str(seconds), "--folder", str(folder)]
    child = process.spawn([sys.executable, str(TREE / "scripts" / "torture.py"), *arguments], log)
    try:
        ended = f"status {child.wait(scaled(seconds + MORE_SECONDS))}"
    except subprocess.TimeoutExpired as error:
        ended = f"not done in {error.timeout:.0f} s"
    finally:
        process.kill(child)
    said = log.read_text(errors="replace").splitlines()
    assert ended == "status 0", "\n".join([f"{ended}, log: {log}", *said[-60:]])
    did = json.loads(summary.read_text())
    assert did["signed"] == (kind == "signed"), did["impossible"]
    missing = list(shortfalls(did, timeout_scale()))
    hint = "not enough was done (on a slow machine: KCCM_TIMEOUT_SCALE=2)"
    assert not missing, "\n".join([f"{hint}, log: {log}", *missing, *said[-60:]])
