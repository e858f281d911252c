#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Measures how long it takes from a node's death until subscribers hear "down".

In each round a node of three is killed, frozen, or cut off from another, while
nothing is sent or while all flood each other. When it happened is known here;
when it was heard, the guest's log says. What the guest's clock shows is found
by having it write to its log, between two looks at the clock here.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster import Cluster
from cluster.machine import Machine
from cluster.settings import HarnessError, scaled

NODES = 3
DEVICE = "/dev/kccm_demo"
# The longest message of a flood. They follow each other without a pause.
FLOOD_BYTES = 8192
# What is promised: dead_ms, and so much more.
TOLERANCE = 1.20
# The best of so many looks at a guest's clock.
LOOKS = 8

Pair = tuple[int, int]


@dataclass(frozen=True)
class Clock:
    """How much a guest's clock is behind ours, seconds, and by how much that can be wrong."""

    behind: float
    error: float


def read_clock(machine: Machine, label: str) -> Clock:
    """Have the guest write to its log, several times, and take the quickest."""
    best = None
    for look in range(LOOKS):
        mark = machine.mark()
        text = f"clock-{label}-{look}"
        before = time.monotonic()
        machine.run(f"echo {text} >/dev/kmsg")
        after = time.monotonic()
        shown = when(machine, mark, text)
        clock = Clock((before + after) / 2 - shown, (after - before) / 2)
        best = min(best or clock, clock, key=lambda c: c.error)
    assert best is not None
    return best


def when(machine: Machine, mark: int, pattern: str, timeout: float = 10.0) -> float:
    """What the guest's clock showed when it logged a line."""
    line = machine.wait_console(rf"^\[.*{pattern}.*$", timeout, mark)
    found = re.match(r"\[ *(\d+\.\d+)\]", line)
    assert found, line
    return float(found[1])


@dataclass
class Kind:
    """One way to die: who does it, who sees it, and what puts it right."""

    name: str
    strike: Callable[[Cluster, int], None]
    mend: Callable[[Cluster, int], None]
    # Who sees whom go, when it happens to a node.
    seen: Callable[[int], list[Pair]]


def others(victim: int) -> list[int]:
    """All but one."""
    return [node for node in range(NODES) if node != victim]


def from_outside(victim: int) -> list[Pair]:
    """All others see it."""
    return [(node, victim) for node in others(victim)]


def both_ends(victim: int) -> list[Pair]:
    """The two ends of a link see each other go."""
    other = others(victim)[0]
    return [(victim, other), (other, victim)]


def boot_again(cluster: Cluster, victim: int) -> None:
    """A node that was killed comes back."""
    cluster.boot([victim])
    load(cluster, victim)


KINDS = (
    Kind("machine killed", lambda c, v: c.kill(v), boot_again, from_outside),
    Kind("machine frozen", lambda c, v: c[v].freeze(), lambda c, v: c[v].thaw(), from_outside),
    Kind(
        "link cut",
        lambda c, v: c.cut(v, others(v)[0]),
        lambda c, v: c.heal(v, others(v)[0]),
        both_ends,
    ),
)


@dataclass
class Row:
    """What was measured of one kind, idle or under load: milliseconds."""

    kind: str
    load: str
    times: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def text(self, limit: float) -> str:
        """A line of the table."""
        late = sum(took > limit for took in self.times)
        return (
            f"| {self.kind:<14} | {self.load:<5} | {len(self.times):>5} | {min(self.times):>8.0f} "
            f"| {statistics.median(self.times):>6.0f} | {max(self.times):>7.0f} "
            f"| {max(self.errors):>5.0f} | {late:>4} |"
        )


HEAD = """\
| death          | load  | heard | shortest | median | longest | error | late |
|----------------|-------|------:|---------:|-------:|--------:|------:|-----:|"""


def load(cluster: Cluster, node: int, **parameters: object) -> None:
    """KCCM, and who hears."""
    cluster.load(node, **(parameters or cluster_parameters))
    cluster[node].insmod("kccm_demo", "events=1")


cluster_parameters: dict[str, object] = {}


@contextmanager
def flooding(cluster: Cluster, nodes: list[int], floods: bool) -> Iterator[None]:
    """All flood each other, if so."""
    command = f"exec 3<>{DEVICE} && echo '{{}}' >&3 && cat <&3"
    if not floods:
        yield
        return
    cluster.run_all(dict.fromkeys(nodes, command.format(f"flood {FLOOD_BYTES}")))
    try:
        for node in nodes:
            path = "/sys/kernel/kccm/peers/*/rx_messages"
            cluster[node].wait_until(f"[ $(cat {path} | sort -n | head -n 1) -gt 100 ]")
        yield
    finally:
        there = [node for node in nodes if cluster[node].alive and not cluster[node].frozen]
        cluster.run_all(dict.fromkeys(there, command.format("flood 0")))


def measure(cluster: Cluster, kind: Kind, victim: int, row: Row) -> None:
    """One death."""
    seen = kind.seen(victim)
    clocks = {node: read_clock(cluster[node], f"{victim}-before") for node, _ in seen}
    marks = {node: cluster[node].mark() for node, _ in seen}
    before = time.monotonic()
    kind.strike(cluster, victim)
    after = time.monotonic()
    for node, gone in seen:
        pattern = f"heard: node {gone} is down"
        heard = when(cluster[node], marks[node], pattern, 60) + clocks[node].behind
        row.times.append((heard - before) * 1000)
        row.errors.append((clocks[node].error + after - before) * 1000)


def run(cluster: Cluster, rounds: int, dead_ms: int) -> list[Row]:
    """All kinds, idle and under load, in turn."""
    rows = []
    for kind, busy in itertools.product(KINDS, (False, True)):
        row = Row(kind.name, "flood" if busy else "idle")
        rows.append(row)
        for index in range(rounds):
            # Who connects to all, who listens to all, and who does some of each.
            victim = index % NODES
            with flooding(cluster, list(range(NODES)), busy):
                measure(cluster, kind, victim, row)
            kind.mend(cluster, victim)
            cluster.wait_connected()
            if busy:
                cluster.run_all(f"exec 3<>{DEVICE} && echo 'flood 0' >&3 && cat <&3")
        print(row.text(dead_ms * TOLERANCE), flush=True)
    return rows


def main() -> int:
    """The table; the status is 0 when nothing was late."""
    parser = argparse.ArgumentParser(description="Measure how soon nodes that die are found.")
    parser.add_argument("--rounds", type=int, default=6, help="of each kind of death")
    parser.add_argument("--dead-ms", type=int, default=3000)
    arguments = parser.parse_args()
    dead_ms = round(scaled(arguments.dead_ms))
    cluster_parameters["dead_ms"] = dead_ms
    try:
        with Cluster(NODES, name="detection") as cluster:
            for node in range(NODES):
                load(cluster, node)
            cluster.wait_connected()
            print(f'From death to "down", ms; dead_ms={dead_ms}, late: more than 20 % over')
            print(HEAD, flush=True)
            rows = run(cluster, arguments.rounds, dead_ms)
            cluster.assert_clean()
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    late = sum(took > dead_ms * TOLERANCE for row in rows for took in row.times)
    total = sum(len(row.times) for row in rows)
    deaths = arguments.rounds * len(rows)
    print(f"{deaths} deaths were heard of {total} times, {late} of them late")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
