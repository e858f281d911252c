# SPDX-License-Identifier: GPL-2.0
"""Whether a torture run has done what it is for: a run that does nothing breaks no promise.

What it did is in the summary.json that scripts/torture.py leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# What a short run does at the very least, by the names of the counts: a fifth of what is usual on two
# processors, or less. On slow kernels it is as much less as they are slower.
LEAST_WORK = {
    "messages delivered": 2000,
    "bulk messages delivered": 200,
    "calls run": 1000,
    "short calls run": 400,
    "long calls run": 400,
    "softirq calls run": 200,
    "softirq calls run in softirq context": 50,
    "softirq calls of more than 16 KiB run": 4,
    "synchronous calls replied": 200,
    "confirmed messages accepted": 20,
}

# What the faults of links do to frames, whatever the seed.
FRAMES = ("cut", "lost", "delayed", "duplicated")
# What they do to few, of which a short run may see one kind alone.
FEW_FRAMES = ("reordered", "corrupted")


def shortfalls(summary: dict[str, Any], slowness: float = 1.0) -> Iterator[str]:
    """What a run was to do and has not done. ``slowness``: how many times as long things take."""
    signed = summary["signed"]
    history, frames, done = summary["history"], summary["frames"], summary["done"]
    for what, least in LEAST_WORK.items():
        if history.get(what, 0) < least / slowness:
            yield f"{history.get(what, 0)} {what}, of {least / slowness:g} at least"
    for kind, why in summary["impossible"].items():
        # Without keys there are none to change.
        if (kind, signed) != ("rekey", False):
            yield f"{kind} was left out: {why}"
    for kind, times in summary["planned"].items():
        if kind not in summary["impossible"] and not done.get(kind):
            late, missed = (summary[why].get(kind, 0) for why in ("late", "missed"))
            yield (
                f"{kind} was planned {times} times, and not done: {late} had no time, {missed} nothing "
                "to work on"
            )
    for kind in (*FRAMES, "swallowed" if signed else "reset"):
        if not frames.get(kind):
            yield f"no frame was {kind}"
    if not any(frames.get(kind) for kind in FEW_FRAMES):
        yield f"no frame was {' or '.join(FEW_FRAMES)}"
    if done.get("reset") and not summary["half frames"]:
        yield "no connection was reset in the middle of a frame"
    keys = summary["keys"]
    if signed and (keys["newest"] == [1] or keys["in use"] != keys["newest"]):
        yield f"key {keys['newest']} should be in use in the end, and it is {keys['in use']}"
