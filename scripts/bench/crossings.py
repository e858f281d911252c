# SPDX-License-Identifier: GPL-2.0
"""Where the lines of figure 8 cross, which tells a user which class to choose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from . import plan
from .plan import CLASSES, LONG, SHORT, SOFTIRQ
from .ratios import ratio
from .records import Record, Results


@dataclass(frozen=True)
class Crossing:
    """Between which two x, and about where, the second line gets below the first, or above it."""

    x: float
    below: int
    above: int
    faster: bool


def between(first: Sequence[Record], second: Sequence[Record]) -> list[Crossing]:
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


def ahead(first: Sequence[Record], second: Sequence[Record]) -> tuple[int, int]:
    """At how many points the first of two lines is below the second, and above, beyond doubt."""
    other = {record.x: record for record in second}
    below = above = 0
    for record in first:
        at = ratio(record, other.get(record.x))
        if at and at.median != 1 and _decided(record, other[record.x]):
            below, above = below + (at.median < 1), above + (at.median > 1)
    return below, above


# In words.


def told(results: Results, env: str, us: int) -> list[str]:
    """What there is to say of each two classes, with handlers that take so long."""
    lines = []
    for index, first in enumerate(CLASSES):
        for second in CLASSES[index + 1 :]:
            a, b = (results.of(env, "8", p, plan.service_variant(us)) for p in (first, second))
            if a and b:
                lines.append(_told(first, second, a, b))
    return lines


def lines(results: Results, env: str) -> list[str]:
    """All of it, for all handlers."""
    return [
        f"handler of {us} µs: {line}" for us in plan.SERVICE_US for line in told(results, env, us)
    ]


def _told(first: str, second: str, a: Sequence[Record], b: Sequence[Record]) -> str:
    one, other = map(plan.short_name, (first, second))
    found = between(a, b)
    if found:
        words = ("faster" if at.faster else "slower" for at in found)
        places = [f"{word} from about {_about(at.x)} up" for word, at in zip(words, found)]
        return f"{other}, against {one}: {', then '.join(places)}"
    slower, faster = ahead(a, b)
    count, total = max(slower, faster), min(len(a), len(b))
    if count == 0:
        return f"{other}, against {one}: no difference that the rounds agree on"
    where = "every size" if count == total else f"{count} of {total} sizes, else no clear difference"
    return f"{other}, against {one}: {'slower' if slower else 'faster'} at {where}"


# What to choose.

# So much faster is worth a choice.
_WORTH = 1.10
_MARGIN = f"{_WORTH - 1:.0%}".replace("%", " %")


def _leads(results: Results, env: str, first: str, second: str) -> list[tuple[int, int, int]]:
    """For each handler how long it takes, at how many sizes a call of the second of two classes
    takes so much longer than one of the first, and at how many both were measured."""
    found = []
    for us in plan.SERVICE_US:
        variant = plan.service_variant(us)
        both = (
            ratio(record, results.one(env, "8", first, record.x, variant))
            for record in results.of(env, "8", second, variant)
        )
        medians = [at.median for at in both if at]
        if medians:
            found.append((us, sum(median > _WORTH for median in medians), len(medians)))
    return found


def choice(results: Results, env: str) -> list[str]:
    """Which class a user should choose, as the numbers say."""
    pairs = ((SOFTIRQ, SHORT), (SHORT, LONG))
    found = ((*pair, _leads(results, env, *pair)) for pair in pairs)
    return [_chosen(first, second, leads) for first, second, leads in found if leads]


def _chosen(first: str, second: str, leads: Sequence[tuple[int, int, int]]) -> str:
    one, other = map(plan.short_name, (first, second))
    sizes = ", ".join(f"{count} of {total} at {us} µs" for us, count, total in leads)
    worth = [us for us, _, _ in itertools.takewhile(lambda lead: 2 * lead[1] > lead[2], leads)]
    if not worth:
        return f"{one} is ahead of {other} by more than {_MARGIN} at few sizes only ({sizes})"
    handlers = f"handlers of up to {worth[-1]} µs" if worth[-1] else "empty handlers"
    cost = " (while it runs, its processor does nothing else)" if first == SOFTIRQ else ""
    return (
        f"{one} is ahead of {other} by more than {_MARGIN} at most sizes for {handlers}{cost} ({sizes})"
    )


def callers(results: Results, env: str) -> str:
    """What becomes of calls of short handlers that others hold up; empty if that is not known."""
    short, long = (
        results.one(env, "8", peer, plan.SMALL, plan.CALLERS_VARIANT) for peer in (SHORT, LONG)
    )
    at = ratio(long, short)
    if at is None:
        return ""
    return (
        f"where {plan.CALLERS} call at once a handler of {plan.CALLERS_US} µs, a call takes "
        f"{at.median:.2f} ({at.low:.2f}-{at.high:.2f}) times as long with long as with short"
    )


def _about(x: float) -> str:
    """Two figures, and no more: between two sizes it is a guess."""
    return f"{float(f'{x / 1024:.2g}'):g} KiB" if x >= 1024 else f"{float(f'{x:.2g}'):g} B"
