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
from cluster.settings import paced, scaled

DEVICE = "/dev/kccm_demo"
DEMO = "kccm_demo"

# Longest message, and the time between two to a peer: enough of them to notice
# what is lost, and room for others, also where a kernel checks itself.
SIZE = 2048
PAUSE_US = round(1e6 * paced(0.005))

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


def reload(cluster: Cluster, nodes: Iterable[int], **parameters: int) -> None:
    """Load KCCM anew in these nodes, with these parameters, until all are connected again."""
    for node in nodes:
        unload_all(cluster, node)
        cluster.load(node, **parameters)
    cluster.wait_connected()


def counts(cluster: Cluster, node: int) -> dict[int, dict[str, int]]:
    """What a node has flooded, and seen of others' floods, by peer."""
    lines = [fields(line) for line in demo(cluster[node], "counts").splitlines()]
    return {int(line.pop("peer")): {k: int(v) for k, v in line.items()} for line in lines}


# Connections.


def connections(cluster: Cluster, pairs: Iterable[Pair]) -> dict[Pair, tuple[str, ...]]:
    """What the first of each pair says of the second: state, incarnation, reconnects."""
    names = ("state", "incarnation", "reconnects")
    wanted = list(pairs)
    tables = {node: cluster.peer_table(node) for node in sorted({a for a, _ in wanted})}
    return {(a, b): tuple(tables[a][b][name] for name in names) for a, b in wanted}


def all_pairs(nodes: Iterable[int]) -> list[Pair]:
    """Every direction between nodes."""
    return list(itertools.permutations(nodes, 2))


# Floods.


@dataclass
class Traffic:
    """The floods between some nodes."""

    cluster: Cluster
    nodes: list[int]
    # Two of them whose traffic with each other does not count.
    apart: Pair | None = None

    @property
    def pairs(self) -> list[Pair]:
        """Every direction that counts: from, to."""
        return [p for p in all_pairs(self.nodes) if set(p) != set(self.apart or ())]

    def start(self, size: int = SIZE, pause_us: int = PAUSE_US) -> None:
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
            time.sleep(paced(0.05))


@contextmanager
def traffic(
    cluster: Cluster,
    nodes: Iterable[int],
    apart: Pair | None = None,
    size: int = SIZE,
    pause_us: int = PAUSE_US,
) -> Iterator[Traffic]:
    """Floods between these nodes, of which not one message may be missing at the end.

    Nor may a connection between them have been lost, except that of the two
    that are ``apart``. Peers that are not among these nodes are flooded too, but
    what becomes of that is not looked at.
    """
    floods = Traffic(cluster, list(nodes), apart)
    need_demo(cluster, floods.nodes)
    before = connections(cluster, floods.pairs), floods.errors()
    floods.start(size, pause_us)
    try:
        floods.progress()
        yield floods
        floods.progress()
    finally:
        floods.stop()
    floods.complete()
    assert (connections(cluster, floods.pairs), floods.errors()) == before
