# SPDX-License-Identifier: GPL-2.0
"""Schedules are made from a seed alone, and have everything in them. No guests."""

from __future__ import annotations

import itertools

import pytest
import schedule
from schedule import KEY_FAULTS, KINDS, LINK_FAULTS, NODE_FAULTS, Fault

DURATION = 120.0
DEAD = 2.0


def made(seed: int, nodes: int = 3, kinds: tuple[str, ...] = KINDS) -> list[Fault]:
    """A schedule of ordinary length."""
    return schedule.make(seed, nodes, DURATION, DEAD, kinds)


def test_same_seed() -> None:
    """The same seed gives the same schedule, another one another."""
    assert made(7) == made(7)
    assert made(7) != made(8)
    assert [str(fault) for fault in made(7)] == [str(fault) for fault in made(7)]


@pytest.mark.parametrize("seed", range(5))
def test_all_kinds(seed: int) -> None:
    """Each kind comes up in a run of two minutes, with what it is about."""
    faults = made(seed)
    assert {fault.kind for fault in faults} == set(KINDS)
    for fault in faults:
        assert (fault.node is not None) == (fault.kind in NODE_FAULTS)
        assert bool(fault.links) == (fault.kind in LINK_FAULTS)
        assert (sorted(fault.order) == [0, 1, 2]) == (fault.kind in KEY_FAULTS)
        assert all(a != b and 0 <= min(a, b) and max(a, b) < 3 for a, b in fault.links)
        if fault.weather:
            assert any(vars(fault.weather).values())
            assert max(fault.weather.loss, fault.weather.corrupt, fault.weather.duplicate) <= 0.3


@pytest.mark.parametrize("nodes", [3, 4, 5])
def test_times(nodes: int) -> None:
    """In order, within the time that there is; to one node one thing after the other."""
    faults = made(1, nodes)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(0 < fault.at and fault.ends <= DURATION for fault in faults)
    for node in range(nodes):
        lane = [fault for fault in faults if fault.node == node]
        assert len(lane) > 8
        assert all(one.ends < other.at for one, other in itertools.pairwise(lane))


def test_freezes() -> None:
    """A short freeze is not long enough to be held dead, a long one is."""
    for fault in made(3, 5):
        if fault.kind == "freeze":
            assert fault.lasts < DEAD
        if fault.kind == "long freeze":
            assert fault.lasts > DEAD


def test_signs() -> None:
    """Some runs are signed, some are not, and the same always in the same way."""
    signed = [schedule.signs(seed) for seed in range(100)]
    assert 30 < sum(signed) < 70
    assert signed == [schedule.signs(seed) for seed in range(100)]


def test_chosen_kinds() -> None:
    """Only what was asked for."""
    assert {fault.kind for fault in made(1, kinds=("kill", "reset"))} == {"kill", "reset"}
    assert {fault.kind for fault in made(1, kinds=("reload",))} == {"reload"}
    assert made(1, kinds=()) == []
