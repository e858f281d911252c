# SPDX-License-Identifier: GPL-2.0
"""Measures the points of a phase: how long each takes, then all of them in rounds.

Whatever else the machine does meets all series: in each round every point is measured once, those of
the same x one after the other, and which series is the first moves on with each round.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from . import percentile
from .environments import ENVIRONMENTS
from .guest import UNSUPPORTED, Answer, Asked, Failure
from .plan import WHY_NOT, Phase, Point, Use
from .progress import Report, Steps
from .records import Record

# Fewer rounds are not enough to tell a median and a spread.
LEAST_ROUNDS = 7

# How often something is called to find out how long it takes, by its size.
_TRIAL_CALLS = 40
_TRIAL_CALLS_LARGE = 3
_LARGE = 1 << 18
_TRIAL_MS = 60
# No round of a point has fewer calls than the first of these, or more than the second.
_FEWEST_CALLS = 3
_MOST_CALLS = 50_000
# So long, in calls of a round, is the round that is not counted.
_WARM_SHARE = 0.1
_MOST_WARM = 200
_WARM_BOUNDED = 10
# So many times what they should commands may take before they are taken to hang.
_PATIENCE = 3.0
# What each command costs beside what it measures.
_OVERHEAD_SECONDS = 0.012
# A round of a point is no shorter than this, however little time there is; one of many calls or
# messages at once needs more to get going.
_SHORTEST_MS = 5.0
_SHORTEST_MANY_MS = 60.0

T = TypeVar("T")


def order(items: Sequence[T], index: int, rounds: int) -> list[T]:
    """The order in the round ``index`` of ``rounds``: the first one moves on, and every other round
    is backwards, so that nothing always follows the same."""
    if not items:
        return []
    first = index * len(items) // max(rounds, 1) % len(items)
    moved = [*items[first:], *items[:first]]
    return moved[::-1] if index % 2 else moved


@dataclass
class LeftOut:
    """Points that could not be measured, by peer and reason."""

    points: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    peers: dict[str, str] = field(default_factory=dict)

    def peer(self, peer: str, reason: str) -> str:
        """A peer is not to be had; what there is to say."""
        self.peers[peer] = reason
        return f"left out: {peer}: {reason}"

    def point(self, point: Point, reason: str) -> None:
        """A point cannot be measured."""
        self.points[point.peer, reason].append(str(point).replace(f" {point.peer}", "", 1))

    def missing(self) -> list[str]:
        """The peers that are not to be had, for the user."""
        return [f"{peer}: {reason}" for peer, reason in self.peers.items()]

    def lines(self) -> list[str]:
        """Everything else that is left out."""
        told = []
        for (peer, reason), points in self.points.items():
            shown = ", ".join(points[:4]) + (f" and {len(points) - 4} more" if points[4:] else "")
            told.append(f"{peer}: {shown}: {reason}")
        return told


@dataclass
class Series:
    """What the rounds have given of a point; ``each`` is how long a call, or a cluster, took before."""

    point: Point
    each: float
    length: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    rounds: list[dict[str, float]] = field(default_factory=list)

    @property
    def command(self) -> str:
        """The command of a round."""
        return self.point.command(**self.length)

    def seconds(self, phase: Phase) -> float:
        """How long a round should take."""
        if self.point.verb == "call":
            most = self.length.get("ms", math.inf) / 1000
            took = min(self.length["count"] * self.each, most) * self.point.passes
            took += min(self.length["warm"] * self.each, most)
        elif self.point.verb == "scale":
            took = self.each
        else:
            took = self.length.get("ms", round(phase.milliseconds)) * self.point.passes / 1000
        return took + _OVERHEAD_SECONDS


class Measurement:
    """Measures phases in one boot of a guest."""

    def __init__(self, guest: Asked, report: Report, boot: str, env: str) -> None:
        self._guest = guest
        self._report = report
        self._boot, self._env = boot, ENVIRONMENTS[env]
        self._told: set[tuple[str, str]] = set()
        self.left_out = LeftOut()

    def start(self, peers: Iterable[str]) -> list[str]:
        """Set peers up; those that are to be had."""
        there = []
        for peer in peers:
            try:
                self._guest.start(peer)
            except Failure as error:
                self._report.say(self.left_out.peer(peer, WHY_NOT.get(peer, str(error))))
            else:
                there.append(peer)
        return there

    def run(self, phase: Phase, rounds: int, seconds: float = math.inf) -> list[Record]:
        """Measure a phase, in so many seconds if it can be done.

        A point that fails once is left out of all rounds, and told.
        """
        end = time.monotonic() + seconds
        live = {one.point: one for one in self._trial(phase)}
        slowness = self._env.slowness
        with self._report.steps(f"{phase.name}: {rounds} rounds", rounds * len(live)) as steps:
            for index in range(rounds):
                began = time.monotonic()
                now = fit(phase, list(live.values()), rounds - index, (end - began) / slowness)
                planned = sum(one.seconds(now) for one in live.values())
                self._round(now, live, (index, rounds), steps)
                slowness = max((time.monotonic() - began) / planned, 0.1) if planned else 1.0
        return [record for one in live.values() for record in self._records(one)]

    def _round(
        self, phase: Phase, live: dict[Point, Series], which: tuple[int, int], steps: Steps
    ) -> None:
        """One round; what fails in it is removed from ``live``."""
        index, rounds = which
        for batch in phase.batches():
            wanted = [live[point] for point in batch if point in live]
            now = f"round {index + 1} of {rounds}, {_axis(batch[0])}"
            for one in self._batch(phase, order(wanted, index, rounds), now, steps):
                del live[one.point]

    def _batch(
        self, phase: Phase, batch: Sequence[Series], now: str, steps: Steps
    ) -> list[Series]:
        """One round of points with the same x; those that failed."""
        if not batch:
            return []
        expected = _expected(phase, batch) * self._env.slowness
        answers = self._guest.ask([one.command for one in batch], expected)
        failed = []
        for one, answer in zip(batch, answers):
            try:
                one.rounds.append(_checked(one.point, answer))
                one.calls += round(one.rounds[-1].get("count", 0))
            except Failure as error:
                self._fail(one.point, f"in a round: {error}")
                failed.append(one)
        steps.step(now, len(batch))
        return failed

    def _fail(self, point: Point, reason: str) -> None:
        """Leave a point out, and say so: for each peer and reason once."""
        self.left_out.point(point, reason)
        if reason != UNSUPPORTED and (point.peer, reason) not in self._told:
            self._report.say(f"left out: {point}: {reason}")
        self._told.add((point.peer, reason))

    # How long.

    def _trial(self, phase: Phase) -> list[Series]:
        """Measure each point a little: that warms up, and tells how often a round can."""
        found = []
        with self._report.steps(f"{phase.name}: warming up", len(phase.points)) as steps:
            for batch in phase.batches():
                commands = [point.command(**_trial_length(point)) for point in batch]
                began = time.monotonic()
                expected = sum(_trial_seconds(point) for point in batch) * self._env.slowness
                answers = self._guest.ask(commands, expected)
                took = (time.monotonic() - began) / len(batch)
                for point, answer in zip(batch, answers):
                    try:
                        # A flood for so short a time may have nothing to show.
                        words = _checked(point, answer, least=0 if point.verb == "flood" else 1)
                    except Failure as error:
                        self._fail(point, str(error))
                    else:
                        # In the guest's time, as that of calls is.
                        each = took / self._env.slowness if point.verb == "scale" else _mean(words)
                        found.append(Series(point, each))
                steps.step(_axis(batch[0]), len(batch))
        return found

    # What comes of it.

    def _records(self, series: Series) -> Iterator[Record]:
        for use in series.point.uses:
            if all(use.word in words for words in series.rounds):
                yield self._record(series, use)

    def _record(self, series: Series, use: Use) -> Record:
        point, rounds = series.point, series.rounds
        values = [words[use.word] for words in rounds]
        p99 = [words[use.p99] for words in rounds if use.p99 in words] if use.p99 else []
        several = use.figure not in ("7", "8", "throughput")
        names = (point.peer, use.variant, use.metric if several else "")
        pooled = percentile.of_all(rounds, use.thousandths) if use.thousandths else None
        median = statistics.median(values) if pooled is None else pooled
        return Record(
            env=self._env.name,
            figure=use.figure,
            series=" ".join(name for name in names if name),
            x=point.x,
            unit=self._env.unit(use.unit),
            median=median,
            p99=statistics.median(p99) if p99 else None,
            rounds=len(values),
            spread=(min(*values, median), max(*values, median)),
            count=series.calls or None,
            peer=point.peer,
            variant=use.variant,
            metric=use.metric,
            boot=self._boot,
            values=tuple(values),
            pooled=pooled is not None,
        )


def _axis(point: Point) -> str:
    """What the points of a batch have in common."""
    name = {"inflight": "depth", "scale": "nodes"}.get(point.verb, "size")
    return f"{name} {point.x}"


def _checked(point: Point, answer: Answer, least: int = 1) -> dict[str, float]:
    """The words of an answer, if it has those that are needed, and these make sense.

    With ``least``, what is needed cannot be 0.
    """
    words = answer.words()
    for use in point.uses:
        if use.word not in words:
            if not use.optional:
                raise Failure(f"the answer has no {use.word}: {answer.text[:200]!r}")
        elif words[use.word] < 0 or (words[use.word] == 0 and least and not use.optional):
            raise Failure(f"the answer makes no sense: {use.word}={words[use.word]:g}")
    return words


def _trial_length(point: Point) -> dict[str, int]:
    if point.verb == "call":
        size = dict(point.words)["size"]
        count = _TRIAL_CALLS_LARGE if size >= _LARGE else _TRIAL_CALLS
        return {"count": count, "warm": max(1, count // 4)}
    return {"ms": _TRIAL_MS} if point.verb in ("flood", "inflight") else {}


def _trial_seconds(point: Point) -> float:
    """What a trial may take; how long a cluster takes to form nobody knows before."""
    return 40.0 if point.verb == "scale" else 0.5


def _mean(words: dict[str, float]) -> float:
    """How many seconds a call takes, as far as a short look can tell.

    The mean has what calls wait for, but also whatever else the machine did for a while.
    """
    median = max(words.get("p50_ns", 0.0), 1.0)
    return min(words.get("mean_ns", median), 4 * median) / 1e9


def length(phase: Phase, point: Point, each: float) -> dict[str, int]:
    """How often, or for how long, a round measures a point of which a call takes ``each``."""
    if point.verb in ("flood", "inflight"):
        return {"ms": round(max(phase.milliseconds, _SHORTEST_MANY_MS))}
    if point.verb != "call":
        return {}
    count = phase.milliseconds / 1000 / each
    if point.bounded:
        count = round(min(max(count, phase.least), _MOST_CALLS))
        return {"count": count, "warm": _WARM_BOUNDED, "ms": round(phase.milliseconds * phase.stretch)}
    if count < phase.least:
        count = min(phase.least, count * phase.stretch)
    count = round(min(max(count, _FEWEST_CALLS), _MOST_CALLS))
    return {"count": count, "warm": max(1, min(round(count * _WARM_SHARE), _MOST_WARM))}


def _expected(phase: Phase, batch: Sequence[Series]) -> float:
    """How many seconds a round of these points should take at most."""
    return _PATIENCE * sum(one.seconds(phase) for one in batch) + 1.0


def fit(phase: Phase, series: Sequence[Series], rounds: int, seconds: float) -> Phase:
    """Set the length of all series, so that the rounds take no longer than so many seconds.

    Where that cannot be, each round is as short as it may be: there are no fewer of them.
    """
    while True:
        for one in series:
            one.length = length(phase, one.point, one.each)
        needed = rounds * sum(one.seconds(phase) for one in series)
        if needed <= seconds or phase.milliseconds <= _SHORTEST_MS:
            return phase
        shorter = max(phase.milliseconds * 0.9, _SHORTEST_MS)
        phase = replace(phase, milliseconds=shorter, least=round(phase.least * 0.9))


def shares(phases: Sequence[Phase], seconds: float) -> list[float]:
    """How many of so many seconds each phase may take."""
    wanted = [
        phase.milliseconds * phase.stretch * sum(point.passes for point in phase.points)
        for phase in phases
    ]
    return [seconds * one / max(sum(wanted), 1.0) for one in wanted]
