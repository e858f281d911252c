# SPDX-License-Identifier: GPL-2.0
"""What follows from records. Ratios are made round by round, and within one boot only."""

from __future__ import annotations

import statistics
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
