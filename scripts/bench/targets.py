# SPDX-License-Identifier: GPL-2.0
"""What KCCM is to reach, and whether it does: ratios within one boot, see ratios.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Union

from . import plan
from .plan import ASYNC, BULK, FLOOR, LONG, SHORT, SIZES, SMALL, SOFTIRQ
from .ratios import Ratio, ratio
from .records import Record, Results
from .units import size_text

KI = 1024
UP_TO_64K = tuple(size for size in SIZES if size <= 64 * KI)
SYNCHRONOUS = (SHORT, SOFTIRQ)


@dataclass(frozen=True)
class Place:
    """Where a record is found."""

    figure: str
    peer: str
    x: int
    variant: str = ""
    metric: str = "p50"

    def record(self, results: Results, env: str) -> Record | None:
        """The record, if that was measured."""
        return results.one(env, self.figure, self.peer, self.x, self.variant, self.metric)


@dataclass(frozen=True)
class Quotient:
    """One thing by another, or one thing itself when there is nothing below."""

    label: str
    above: Place
    below: Place | None = None

    def value(self, results: Results, env: str) -> Ratio | None:
        """As measured."""
        above = self.above.record(results, env)
        if self.below is not None:
            return ratio(above, self.below.record(results, env))
        return above and Ratio(above.median, *above.spread, above.rounds, above.x)


@dataclass(frozen=True)
class Outcome:
    """How a target stands in an environment: the worst of its quotients, and which are missing."""

    status: str  # met, missed or not measured; empty where there is no goal
    worst: Ratio | None = None
    label: str = ""
    missing: tuple[str, ...] = ()


Limit = Union[float, dict[str, float]]


@dataclass(frozen=True)
class Target:
    """Something to reach: all quotients at most, or at least, so much.

    ``limit`` is one number or one for each environment that has a goal.
    """

    text: str
    goal: str
    limit: Limit
    quotients: tuple[Quotient, ...]
    least: bool = False
    strict: bool = False
    unit: str = ""

    def outcome(self, results: Results, env: str) -> Outcome:
        """How it stands."""
        values = [(q.label, q.value(results, env)) for q in self.quotients]
        there = [(label, value) for label, value in values if value is not None]
        missing = tuple(label for label, value in values if value is None)
        if not there:
            return Outcome("not measured", missing=missing)
        worst = min if self.least else max
        label, value = worst(there, key=lambda item: item[1].median)
        return Outcome(self.status(value.median, env), value, label, missing)

    def status(self, value: float, env: str) -> str:
        """Whether a value is good enough."""
        limit = self.limit.get(env) if isinstance(self.limit, dict) else self.limit
        if limit is None:
            return ""
        if self.strict:
            return "met" if value < limit else "missed"
        return "met" if (value >= limit if self.least else value <= limit) else "missed"


def _calls(
    peers: Iterable[str], others: Iterable[str], sizes: Iterable[int], inverted: bool = False
) -> tuple[Quotient, ...]:
    """Times of calls by those of others; inverted, how many times as fast they are."""
    found = []
    sizes, others = tuple(sizes), tuple(others)
    for peer in peers:
        for other in others:
            for size in sizes:
                ours, theirs = Place("7", peer, size), Place("7", other, size)
                label = f"{plan.short_name(peer)}, {size_text(size)}"
                above, below = (theirs, ours) if inverted else (ours, theirs)
                found.append(Quotient(label, above, below))
    return tuple(found)


def _floods(size: int, metric: str) -> tuple[Quotient, ...]:
    variants = [plan.senders_variant(senders) for senders in plan.SENDERS]
    return tuple(
        Quotient(v, *(Place("throughput", p, size, v, metric) for p in ("kccm", FLOOR)))
        for v in variants
    )


TARGETS = (
    Target(
        "synchronous call, softirq class, against the floor, 64 B and 3000 B",
        "QEMU 1 CPU ≤ 0.70, 2 CPUs ≤ 0.30; UML 1 CPU ≤ 0.85",
        {"qemu-1": 0.70, "qemu-2": 0.30, "uml-1": 0.85},
        _calls([SOFTIRQ], [FLOOR], (64, 3000)),
    ),
    Target(
        "synchronous call, short class, against the floor, 64 B and 3000 B",
        "≤ 1.10",
        1.10,
        _calls([SHORT], [FLOOR], (64, 3000)),
    ),
    Target(
        "either of them, against the floor, 64 KiB",
        "≤ 1.05",
        1.05,
        _calls(SYNCHRONOUS, [FLOOR], (64 * KI,)),
    ),
    Target(
        "times as fast as ONC RPC (libtirpc), 0 B to 64 KiB",
        "≥ 4",
        4.0,
        _calls(SYNCHRONOUS, ["rpc"], UP_TO_64K, inverted=True),
        least=True,
    ),
    Target(
        "times as fast as ONC RPC (libtirpc), 1 MiB",
        "≥ 2",
        2.0,
        _calls(SYNCHRONOUS, ["rpc"], (1 << 20,), inverted=True),
        least=True,
    ),
    Target(
        "against TIPC between namespaces, every size",
        "< 1",
        1.0,
        _calls(SYNCHRONOUS, ["tipc"], SIZES),
        strict=True,
    ),
    Target(
        "asynchronous call, cost to the caller, against a synchronous one, 64 B",
        "≤ 0.20",
        0.20,
        _calls([ASYNC], [SHORT], (64,)),
    ),
    Target(
        "one-way 64 B messages a second, against a kernel_sendmsg() for each",
        "≥ 3",
        3.0,
        _floods(SMALL, "messages"),
        least=True,
    ),
    Target(
        "bytes a second at 1 MiB, against an in-kernel TCP stream",
        "≥ 0.95",
        0.95,
        _floods(1 << 20, "bytes"),
        least=True,
    ),
    Target(
        "long call by short, empty handler",
        "≤ 1.50",
        1.50,
        tuple(
            Quotient(
                size_text(size),
                *(Place("8", peer, size, plan.service_variant(0)) for peer in (LONG, SHORT)),
            )
            for size in SIZES
        ),
    ),
    Target(
        "p99 of a 64 B call during a bulk transfer (`kccm_send_bulk()`), by that without",
        "≤ 3",
        3.0,
        tuple(
            Quotient(
                plan.short_name(peer),
                Place("tails", peer, SMALL, BULK, "p99"),
                Place("tails", peer, SMALL, "", "p99"),
            )
            for peer in SYNCHRONOUS
        ),
    ),
    Target(
        "64 nodes in one kernel, fully connected, ms",
        "< 3000",
        3000.0,
        (Quotient("64 nodes", Place("scale", "kccm", 64, metric="connect")),),
        strict=True,
        unit="ms",
    ),
    Target(
        "memory per connection of these beside the socket buffers",
        "< 64 KiB",
        64.0 * KI,
        (Quotient("64 nodes", Place("scale", "kccm", 64, metric="memory per connection")),),
        strict=True,
        unit="B",
    ),
)
