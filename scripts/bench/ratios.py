# SPDX-License-Identifier: GPL-2.0
"""What follows from records. Ratios are made round by round, and within one boot only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Crossing:
    """Between which two x, and about where, the second line gets below the first, or above it."""

    x: float
    below: int
    above: int
    faster: bool


def crossings(first: Sequence[Record], second: Sequence[Record]) -> list[Crossing]:
    """Where the second of two lines crosses the first.

    A point counts only where one of the two was ahead in nine tenths of the rounds: what
    lies on top of each other does not cross.
    """
    other = {record.x: record for record in first}
    found = []
    last: tuple[int, float] | None = None
    for record in sorted(second, key=lambda record: record.x):
        at = ratio(record, other.get(record.x))
        if at is None or not _decided(record, other[record.x]):
            continue
        height = math.log(at.median)
        if last and height * last[1] < 0:
            found.append(_between(last, (record.x, height)))
        last = (record.x, height)
    return found


def _decided(a: Record, b: Record) -> bool:
    below = sum(x < y for x, y in zip(a.values, b.values))
    above = sum(x > y for x, y in zip(a.values, b.values))
    return max(below, above) >= 0.9 * len(a.values)


def _between(left: tuple[int, float], right: tuple[int, float]) -> Crossing:
    """Where a straight line between two points, on a logarithmic axis, is at height 0."""
    (x0, y0), (x1, y1) = left, right
    share = y0 / (y0 - y1)
    low, high = math.log(max(x0, 1)), math.log(x1)
    return Crossing(math.exp(low + share * (high - low)), x0, x1, faster=y1 < 0)


def always_ahead(first: Sequence[Record], second: Sequence[Record]) -> int:
    """1 if the first of two lines is below the second wherever that is decided, -1 if above, else 0."""
    other = {record.x: record for record in second}
    signs = set()
    for record in first:
        at = ratio(record, other.get(record.x))
        if at and at.median != 1 and _decided(record, other[record.x]):
            signs.add(1 if at.median < 1 else -1)
    return signs.pop() if len(signs) == 1 else 0
