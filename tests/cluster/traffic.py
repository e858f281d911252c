# SPDX-License-Identifier: GPL-2.0
"""Traffic between nodes that is checked to the last message, by kccm_demo.

The module floods all peers with numbered, checksummed messages and checks
those that come in; see samples/kccm_demo.c.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cluster import Cluster
from cluster.channel import Job
from cluster.machine import Machine
from cluster.settings import scaled

DEVICE = "/dev/kccm_demo"
DEMO = "kccm_demo"

# Between two messages to a peer. Enough of them to notice, and room for others.
PAUSE_US = 5000

Pair = tuple[int, int]


# kccm_demo.


def demo_command(command: str) -> str:
    """A command of kccm_demo, for the shell."""
    return f"exec 3<>{DEVICE} && echo '{command}' >&3 && cat <&3"


def demo(machine: Machine, command: str, timeout: float = 30.0) -> str:
    """One command of kccm_demo, and what came of it; a failure raises CommandFailed."""
    return machine.run(demo_command(command), timeout).out.strip()


def demo_spawn(machine: Machine, command: str) -> Job:
    """One command of kccm_demo, which may take its time."""
    return machine.spawn(demo_command(command))


def fields(line: str) -> dict[str, str]:
    """The ``name=value`` pairs of a line."""
    return dict(pair.split("=", 1) for pair in line.split() if "=" in pair)


def need_demo(cluster: Cluster, nodes: Iterable[int] | None = None) -> None:
    """Load kccm_demo in these nodes (default: all that run), where it is not."""
    wanted = cluster.alive() if nodes is None else nodes
    cluster.run_all({n: f"[ -e {DEVICE} ] || insmod /modules/{DEMO}.ko" for n in wanted})


def unload_all(cluster: Cluster, node: int, timeout: float = 30.0) -> None:
    """Unload what uses KCCM, and KCCM, from one node; nothing where there is none."""
    loaded = "{{ [ ! -d /sys/module/{0} ] || rmmod {0}; }}"
    steps = " && ".join(loaded.format(name) for name in (DEMO, "kccm"))
    cluster[node].run(steps, timeout)


def counts(cluster: Cluster, node: int) -> dict[int, dict[str, int]]:
    """What a node has flooded, and seen of others' floods, by peer."""
    lines = [fields(line) for line in demo(cluster[node], "counts").splitlines()]
    return {int(line.pop("peer")): {k: int(v) for k, v in line.items()} for line in lines}


# Connections.


def connections(cluster: Cluster, nodes: Iterable[int]) -> dict[Pair, tuple[str, ...]]:
    """Which connections these nodes have to each other: state, incarnation, reconnects."""
    names = ("state", "incarnation", "reconnects")
    tables = {node: cluster.peer_table(node) for node in nodes}
    pairs = itertools.permutations(tables, 2)
    return {(a, b): tuple(tables[a][b][name] for name in names) for a, b in pairs}


# Floods.


@dataclass
class Traffic:
    """The floods between some nodes."""

    cluster: Cluster
    nodes: list[int]

    @property
    def pairs(self) -> list[Pair]:
        """Every direction of it: from, to."""
        return list(itertools.permutations(self.nodes, 2))

    def start(self, size: int, pause_us: int) -> None:
        """Begin to flood."""
        command = demo_command(f"flood {size} {pause_us}")
        self.cluster.run_all({node: command for node in self.nodes})

    def stop(self) -> None:
        """End the floods."""
        self.cluster.run_all({node: demo_command("flood 0") for node in self.nodes})

    def progress(self, least: int = 10, timeout: float = 30.0) -> None:
        """Wait until every node has had so many more messages from every other."""
        before = self._received("received")

        def missing() -> dict[Pair, int]:
            return {p: before[p] + least - n for p, n in self._received("received").items()}

        self._wait(missing, timeout, "messages short of progress")

    def complete(self, timeout: float = 60.0) -> None:
        """Wait until everything that was sent has been received."""
        tables = self._tables()
        sent = {(a, b): tables[a].get(b, {}).get("sent", 0) for a, b in self.pairs}

        def missing() -> dict[Pair, int]:
            return {pair: sent[pair] - n for pair, n in self._received("next").items()}

        self._wait(missing, timeout, "messages sent and not received")

    def errors(self) -> dict[Pair, tuple[int, ...]]:
        """What was lost, repeated and corrupt, from and to whom."""
        tables = self._tables()
        names = ("lost", "repeated", "corrupt")
        return {(a, b): tuple(tables[b].get(a, {}).get(n, 0) for n in names) for a, b in self.pairs}

    def _tables(self) -> dict[int, dict[int, dict[str, int]]]:
        return {node: counts(self.cluster, node) for node in self.nodes}

    def _received(self, what: str) -> dict[Pair, int]:
        tables = self._tables()
        return {(a, b): tables[b].get(a, {}).get(what, 0) for a, b in self.pairs}

    def _wait(self, missing: Callable[[], dict[Pair, int]], timeout: float, what: str) -> None:
        deadline = time.monotonic() + scaled(timeout)
        while left := {pair: n for pair, n in missing().items() if n > 0}:
            assert time.monotonic() < deadline, f"{what}, by (from, to): {left}"
            time.sleep(0.05)


@contextmanager
def traffic(
    cluster: Cluster, nodes: Iterable[int], size: int = 2048, pause_us: int = PAUSE_US
) -> Iterator[Traffic]:
    """Floods between these nodes, of which not one message may be missing at the end.

    Nor may a connection between them have been lost. Their peers that are not
    among them are flooded too, but what becomes of that is not looked at.
    """
    floods = Traffic(cluster, list(nodes))
    need_demo(cluster, nodes)
    before = connections(cluster, floods.nodes), floods.errors()
    floods.start(size, pause_us)
    try:
        floods.progress()
        yield floods
        floods.progress()
    finally:
        floods.stop()
    floods.complete()
    assert (connections(cluster, floods.nodes), floods.errors()) == before
