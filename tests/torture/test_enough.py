# SPDX-License-Identifier: GPL-2.0
"""A run that has not done what it was made for is found out. No guests."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from enough import FEW_FRAMES, FRAMES, LEAST_WORK, shortfalls
from schedule import KINDS


def summary(signed: bool = True) -> dict[str, Any]:
    """Of a run that has just done enough."""
    done = {kind: 1 for kind in KINDS if signed or kind != "rekey"}
    broken = {"swallowed": 1, "reset": 0} if signed else {"swallowed": 0, "reset": 1}
    return {
        "signed": signed,
        "planned": dict.fromkeys(KINDS, 2),
        "impossible": {} if signed else {"rekey": "this run is not signed"},
        "done": done,
        "missed": {"reset": 1},
        "late": {},
        "half frames": 1,
        "keys": {"newest": [4], "in use": [4]} if signed else {"newest": [1], "in use": []},
        "starved": {"failslab": 1, "fail_page_alloc": 1},
        "frames": dict.fromkeys((*FRAMES, FEW_FRAMES[0]), 1) | broken,
        "history": dict(LEAST_WORK),
    }


@pytest.mark.parametrize("signed", [True, False])
def test_enough(signed: bool) -> None:
    """One of everything is enough."""
    assert not list(shortfalls(summary(signed)))


@pytest.mark.parametrize("signed", [True, False])
def test_nothing_done(signed: bool) -> None:
    """Whatever is missing is named, and nothing else."""
    good = summary(signed)
    for part in ("history", "frames", "done"):
        for name in [name for name, count in good[part].items() if count]:
            for change in ("zero", "absent"):
                bad = copy.deepcopy(good)
                if change == "zero":
                    bad[part][name] = 0
                else:
                    del bad[part][name]
                (said,) = shortfalls(bad)
                assert name in said


def test_left_out() -> None:
    """Nothing may be left out where it can be done; nor may a signed run go without keys."""
    bad = summary() | {"impossible": {"starve": "no failslab"}}
    assert list(shortfalls(bad)) == ["starve was left out: no failslab"]
    bad = summary() | {"impossible": {"rekey": "no keyctl"}}
    assert list(shortfalls(bad)) == ["rekey was left out: no keyctl"]


def test_few_frames() -> None:
    """Of what happens to few frames one kind is enough."""
    few = summary()
    few["frames"] |= dict.fromkeys(FEW_FRAMES, 0)
    (said,) = shortfalls(few)
    assert said == "no frame was reordered or corrupted"
    for kind in FEW_FRAMES:
        assert not list(shortfalls({**few, "frames": few["frames"] | {kind: 1}}))


def test_between_frames() -> None:
    """One reset at least is in the middle of a frame."""
    bad = summary() | {"half frames": 0}
    assert list(shortfalls(bad)) == ["no connection was reset in the middle of a frame"]


@pytest.mark.parametrize(("newest", "used"), [(1, [1]), (4, [3, 4]), (4, [3]), (4, [])])
def test_keys(newest: int, used: list[int]) -> None:
    """Another key than the first is in use in the end, and no other."""
    bad = summary() | {"keys": {"newest": [newest], "in use": used}}
    (said,) = shortfalls(bad)
    assert said == f"key [{newest}] should be in use in the end, and it is {used}"


def test_slow_kernels() -> None:
    """Where things take longer there is less to be done, but some of everything; what kept it is told."""
    slow = summary()
    slow["history"] = {what: least / 4 for what, least in LEAST_WORK.items()}
    assert not list(shortfalls(slow, 4.0))
    assert len(list(shortfalls(slow))) == len(LEAST_WORK)
    slow["done"]["reset"] = 0
    (said,) = shortfalls(slow, 4.0)
    assert "reset was planned 2 times" in said and "0 had no time, 1 nothing" in said
