# SPDX-License-Identifier: GPL-2.0
"""Numbers as people read them."""

from __future__ import annotations

_BINARY = ((1 << 20, "Mi"), (1 << 10, "Ki"))
_DECIMAL = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def size_text(size: int) -> str:
    """A number of bytes that is a size: 64 B, 64 KiB."""
    for unit, prefix in _BINARY:
        if size >= unit and size % unit == 0:
            return f"{size // unit} {prefix}B"
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
    """A number with its unit, scaled."""
    if unit == "ns":
        return time_text(value)
    if unit in ("B", "B/s"):
        for factor, prefix in ((1 << 30, "Gi"), *_BINARY):
            if value >= factor:
                return f"{significant(value / factor)} {prefix}{unit}"
        return f"{significant(value)} {unit}"
    if unit == "1/s":
        for factor, prefix in _DECIMAL:
            if value >= factor:
                return f"{significant(value / factor)} {prefix}/s"
        return f"{significant(value)} /s"
    return f"{significant(value)} {unit.partition('/')[0]}".rstrip()


def time_text(ns: float) -> str:
    """Nanoseconds: 21.3 µs."""
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if ns >= factor:
            return f"{significant(ns / factor)} {unit}"
    return f"{significant(ns)} ns"
