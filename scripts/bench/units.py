# SPDX-License-Identifier: GPL-2.0
"""Numbers as people read them."""

from __future__ import annotations

# What each unit is called from which value up.
_SCALES = {
    "ns": ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")),
    "B": ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")),
    "B/s": ((1 << 30, "GiB/s"), (1 << 20, "MiB/s"), (1 << 10, "KiB/s"), (1, "B/s")),
    "1/s": ((1e9, "G/s"), (1e6, "M/s"), (1e3, "k/s"), (1, "/s")),
    "instructions": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")),
}


def size_text(size: int) -> str:
    """A number of bytes that is a size: 64 B, 64 KiB."""
    for factor, name in _SCALES["B"]:
        if size >= factor and size % factor == 0:
            return f"{size // int(factor)} {name}"
    return f"{size} B"


def significant(value: float) -> str:
    """Three figures of a number."""
    if value == 0:
        return "0"
    digits = 2
    for limit in (10, 100):
        digits -= abs(value) >= limit
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.{digits}f}"


def text(value: float, unit: str) -> str:
    """A number with its unit, scaled: 21.3 µs."""
    factor, name = _scale(value, unit)
    return f"{significant(value / factor)} {name}".rstrip()


def spread_text(median: float, spread: tuple[float, float], unit: str) -> str:
    """The same with the lowest and the highest, unless these are no others: 21.3 (20.9-24.0) µs."""
    factor, name = _scale(median, unit)
    shown, *others = (significant(value / factor) for value in (median, *spread))
    if set(others) != {shown}:
        shown = f"{shown} ({'-'.join(others)})"
    return f"{shown} {name}".rstrip()


def cost_unit(unit: str) -> str:
    """What is put behind a cost of a call, where it is known that it is one: of time its unit alone."""
    time = unit.partition("/")[0]
    return time if time in ("ns", "instructions") else ""


def counts_text(counts: list[int]) -> str:
    """How many, from the fewest to the most: 630-12.3 k."""
    ends = sorted({min(counts), max(counts)}) if counts else []
    return "-".join(str(n) if n < 10_000 else text(n, "instructions") for n in ends) or "-"


def _scale(value: float, unit: str) -> tuple[float, str]:
    """By what to divide a number, and what its unit is called then."""
    scales = _SCALES.get(unit, ((1, unit.partition("/")[0]),))
    return next((scale for scale in scales if value >= scale[0]), scales[-1])
