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
MORE_SECONDS = 240


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
        status = child.wait(scaled(seconds + MORE_SECONDS))
    except subprocess.TimeoutExpired:
        status = -1
    finally:
        process.kill(child)
    said = log.read_text(errors="replace").splitlines()
    assert status == 0, "\n".join([f"status {status}, log: {log}", *said[-60:]])
    did = json.loads(summary.read_text())
    if shutil.which("keyctl"):
        assert did["signed"] == (kind == "signed")
    missing = list(shortfalls(did, timeout_scale()))
    assert not missing, "\n".join([f"not enough was done, log: {log}", *missing, *said[-60:]])
