# SPDX-License-Identifier: GPL-2.0
"""What follows from records. Ratios are made round by round, and within one boot only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from .records import Record


@dataclass(frozen=True)
class Ratio:
    """How many times as much one thing is as another: median of the rounds' ratios, and spread."""

    median: float
    low: float
    high: float
    rounds: int
    x: int


def ratio(above: Record | None, below: Record | None) -> Ratio | None:
    """The ratio of two records; None when one is missing or they are not of the same boot."""
    if above is None or below is None or above.boot != below.boot:
        return None
    if len(above.values) != len(below.values) or min(below.values) <= 0:
        return None
    rounds = [a / b for a, b in zip(above.values, below.values)]
    return Ratio(statistics.median(rounds), min(rounds), max(rounds), len(rounds), above.x)


# A line through fewer points says nothing.
_FEWEST_POINTS = 3


def growth(records: Iterable[Record]) -> float | None:
    """With which power of x something grows: the slope of a straight line on logarithmic axes.

    What is 0 has no place there, and is left out.
    """
    points = [(math.log(r.x), math.log(r.median)) for r in records if r.x > 0 and r.median > 0]
    if len({x for x, _ in points}) < _FEWEST_POINTS:
        return None
    return statistics.linear_regression(*zip(*points)).slope
