# SPDX-License-Identifier: GPL-2.0
"""Percentiles of the calls of all rounds together, from what each round tells of its slowest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_SLOW = re.compile(r"slow\d+_ns")


def of_all(rounds: Sequence[Mapping[str, float]], thousandths: int) -> float | None:
    """That below which so many thousandths of the calls of all rounds are.

    The words of a round are ``count``, and ``slow0_ns`` and so on. None when the rounds do not tell
    enough of their calls: then there are so many that each round has such a percentile of its own.
    """
    calls = sum(int(words.get("count", 0)) for words in rounds)
    if not calls:
        return None
    # As the guests count: from below, of sorted ones.
    from_above = (calls - 1) - (calls - 1) * thousandths // 1000
    slowest: list[float] = []
    for words in rounds:
        told = [value for name, value in words.items() if _SLOW.fullmatch(name)]
        if len(told) <= from_above and len(told) < int(words.get("count", 0)):
            return None
        slowest += told
    return sorted(slowest, reverse=True)[from_above]
