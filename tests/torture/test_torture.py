# SPDX-License-Identifier: GPL-2.0
"""A short torture run: always the same, with a bit of everything."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cluster import process
from cluster.settings import BUILD, RUN_DIR, TREE, scaled

SEED = 20
SECONDS = 60
# What comes before and after: booting, healing, coming to rest, judging.
MORE_SECONDS = 240


@pytest.mark.limit(SECONDS + MORE_SECONDS + 30)
def test_short_torture() -> None:
    """Every promise is kept, and no kernel has reported a fault."""
    folder = RUN_DIR / "torture-short"
    log = BUILD / "log" / "torture-short.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    arguments = ["--seed", str(SEED), "--duration", str(SECONDS), "--folder", str(folder)]
    child = process.spawn([sys.executable, str(TREE / "scripts" / "torture.py"), *arguments], log)
    try:
        status = child.wait(scaled(SECONDS + MORE_SECONDS))
    except subprocess.TimeoutExpired:
        status = -1
    finally:
        process.kill(child)
    said = log.read_text(errors="replace").splitlines()
    assert status == 0, "\n".join([f"status {status}, log: {log}", *said[-60:]])
