# SPDX-License-Identifier: GPL-2.0
"""What a cluster takes whose nodes have a kernel each: guests that are user-mode Linux.

For each count of nodes so many guests are booted, on a switch of their own. To ``rounds`` they are
one guest, which answers ``scale`` with the words that tests/bench/scale.c has for nodes in one
kernel. They mean the same, but for what each kernel has of its own:

``connect_ms``      from when all are told to load KCCM to when the last says that all its peers
                    are up, by the clock of this machine: with loading
``bytes_per_node``  what a kernel has less of while its node is a cluster by itself, with the code
                    of the module
``bytes_connected`` what it has less of when its node is connected to all others
``bytes_per_conn``  by how much that is more, for a connection, which has an end in two kernels
``idle_cpu_ppm``    the time on this machine's processors that all guests have together while
                    nothing is asked of them, less what they have without KCCM; the switch is not
                    counted

Memory is without what sockets have in their buffers. It is looked at in the round that warms up,
when KCCM is loaded for the first time: of what is freed, a kernel keeps some for the next time,
when it would not be seen. Each round tells of other guests: of their median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from cluster import Cluster, CommandTimeout, HarnessError, Job, address, settings
from cluster.cluster import DEAD_MS, SYSFS
from cluster.machine import insmod
from cluster.settings import Flavour

from .guest import Answer
from .plan import Phase

NODES = (2, 8, 32, 64)
# What each guest has. Most of it none of them ever touches.
MEMORY_MB = 64
# So long may each count take when it has booted; one that would take longer is left out.
SECONDS = 150.0
# With fewer nodes, what else a kernel does with its memory is more than connections take.
FEWEST_FOR_MEMORY = 8
# Memory is looked at in one part of the guests after the other, and each round tells of another.
PARTS = 8
# So long what was asked before may have to settle.
SETTLE_SECONDS = 0.3
# A kernel gives back what was needed only to load a module after so long.
ALONE_US = 200_000
# Twice the time between two signs of life, which idle connections send.
IDLE_SECONDS = 2 * DEAD_MS / 4 / 1000
# So long, for each pair of nodes, a guest waits until it looks again whether it is connected: then
# it looks some twenty times, however many nodes there are. A look takes it 0.3 ms.
LOOK_SECONDS = 40e-6

# A command takes no longer than this, unless something is wrong.
MOST_SECONDS = 60.0

# The pipe by which a guest is told to load KCCM.
GO = "/run/go"

# Prints how many KiB a kernel does not have for itself. What can be had again is let go of before,
# and what lies on the lists of a processor is free.
_MEMORY = """echo 3 >/proc/sys/vm/drop_caches
awk '/^(MemFree|Buffers|Cached|AnonPages|PageTables):/ { kib += $2 }
/^ +count:/ { kib += 4 * $2 }
/^TCP:/ { kib += 4 * $NF }
END { print kib }' /proc/meminfo /proc/zoneinfo /proc/net/sockstat
"""
# What a neighbour says of itself is believed.
_PREPARE = f"""echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_accept
mkfifo {GO}
{{ {_MEMORY} }} >/dev/null
"""
# Fails if a peer is not up any more.
_ALL_UP = f"""for peer in {SYSFS}/peers/*; do read -r -n 2 s <$peer/state; [ "$s" = up ] || {{
echo "node ${{peer##*/}} was lost while nothing was asked of it"; exit 1; }}; done
"""


def phases(todo: Collection[Phase]) -> list[Phase]:
    """The phases, one for each count of nodes that is measured like this."""
    return [
        replace(phase, name=f"{phase.name}, {point.x} nodes", points=(point,))
        for phase in todo
        for point in phase.points
        if point.verb == "scale" and point.x in NODES
    ]


def flavour() -> Flavour:
    """The kernel of the guests, and KCCM for it; raises HarnessError if there is none."""
    found = settings.flavour("uml")
    found.module("kccm")
    return found


@contextmanager
def opened(nodes: int) -> Iterator[Cluster]:
    """So many guests that have booted; their kernels must not complain."""
    kernel = flavour()
    modules = [kernel.module("kccm")]
    _check_memory(nodes)
    with Cluster(
        nodes, name="bench-uml-nodes", flavour=kernel, modules=modules, memory_mb=MEMORY_MB
    ) as cluster:
        try:
            with prepared(cluster):
                yield cluster
        finally:
            # A fault is what to tell, whatever has come of it.
            cluster.assert_clean()


@contextmanager
def prepared(cluster: Cluster) -> Iterator[None]:
    """The guests are ready for what Instances asks of them, and say little on their consoles."""
    with ExitStack() as quiet:
        for machine in cluster:
            quiet.enter_context(machine.quiet_console())
        cluster.run_all(_PREPARE)
        # Each tells all others where it is. When all ask for all others at once, they have to answer
        # thousands of questions, as a broadcast goes to all.
        cluster.run_all({n: f"arping -q -U -c 1 -I eth0 {address(n)}" for n in range(len(cluster))})
        yield


class TooMany(HarnessError):
    """So many guests are too much for this machine."""


def _check_memory(nodes: int) -> None:
    """Raise TooMany if this machine has not the memory for so many guests."""
    there, needed = _available_mb(), nodes * MEMORY_MB
    if needed > there:
        raise TooMany(
            f"{nodes} guests of {MEMORY_MB} MiB do not fit into the {there} MiB that are free"
        )


def _available_mb() -> int:
    """How much memory this machine has to spare."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable:"))


class Instances:
    """Guests with a node each, in the place of one guest that has them all: see guest.Guest.

    A count of nodes whose ``rounds`` would take more than SECONDS is given up after the first.
    """

    def __init__(self, cluster: Cluster, rounds: int) -> None:
        self._cluster = cluster
        self._nodes = range(len(cluster))
        self._rounds = rounds
        self._pool = ThreadPoolExecutor(len(cluster))
        self._asked = 0
        # What the guests take without KCCM, and what each has of its memory without KCCM, with a
        # node by itself, and with one that is connected.
        self._without = 0.0
        self._free: list[list[int]] = []

    def start(self, peer: str) -> None:
        """There is nothing to be set up."""

    def ask(self, commands: Sequence[str], seconds: float = 10.0) -> list[Answer]:
        """Answer commands, each of which is ``scale`` with as many nodes as there are."""
        del seconds
        return [self._answer() for _ in commands]

    def _answer(self) -> Answer:
        first = not self._asked
        self._asked += 1
        try:
            if first:
                self._without = self._idle_ppm()
                self._free = self._in_parts(self._alone)
            began = time.monotonic()
            words = self._scale(first)
        except HarnessError as error:
            return Answer(1, first_line(error))
        took = time.monotonic() - began
        if first and self._rounds * took > SECONDS:
            return Answer(1, f"there is no time for {self._rounds} rounds of {took:.0f} s")
        return Answer(0, " ".join(f"{name}={value:.3f}" for name, value in words.items()))

    def _scale(self, first: bool) -> dict[str, float]:
        """One round; in the end KCCM is loaded nowhere."""
        took = self._connect()
        ppm = self._idle_ppm() - self._without
        self._ask(self._nodes[::PARTS], lambda node: _ALL_UP)
        if first:
            connected = self._in_parts(lambda node: _MEMORY)
            self._free = [[*free, *more] for free, more in zip(self._free, connected)]
        self._ask(self._nodes, lambda node: "rmmod kccm")
        return {"connect_ms": 1000 * took, "idle_cpu_ppm": max(ppm, 0.0), **self._memory()}

    def _memory(self) -> dict[str, float]:
        """What has been taken of the memory of this round's part of the guests."""
        nodes = len(self._nodes)
        part = self._free[self._asked % min(nodes, PARTS) :: PARTS]
        alone = 1024 * statistics.median(without - by_itself for without, by_itself, _ in part)
        in_all = 1024 * statistics.median(without - connected for without, _, connected in part)
        words = {"bytes_per_node": max(alone, 0), "bytes_connected": max(in_all, 0)}
        if nodes >= FEWEST_FOR_MEMORY:
            words["bytes_per_conn"] = max(2 * (in_all - alone) / (nodes - 1), 0)
        return words

    def _alone(self, node: int) -> str:
        """Loads KCCM with nobody to connect to; prints the memory before and with it."""
        peers = f"{node}={address(node)}"
        load = f"{insmod('kccm')} {self._cluster.parameters(node, peers=peers)}"
        return f"set -e\n{_MEMORY}{load}\nusleep {ALONE_US}\n{_MEMORY}rmmod kccm"

    def _connect(self) -> float:
        """Load KCCM in all guests at once; how many seconds it takes until all are connected.

        What waits for that in each guest is there before.
        """
        waiting = self._spawn(self._nodes, self._joining)
        time.sleep(SETTLE_SECONDS)
        began = time.monotonic()
        for machine in self._cluster:
            machine.tell(GO)
        _numbers(waiting)
        return time.monotonic() - began

    def _joining(self, node: int) -> str:
        """Loads KCCM when told to, and ends when all peers are up: one by one, as they stay so."""
        # Other ways to wait make a process, which takes longer than all looks.
        pause = f"read -r -t {max(LOOK_SECONDS * len(self._nodes) ** 2, 0.001):.3f} go <&5"
        return (
            f"exec 5<>{GO}; read -r go <&5\n"
            f"{insmod('kccm')} {self._cluster.parameters(node)} && cd {SYSFS}/peers || exit\n"
            f'for peer in *; do until read -r -n 2 s <$peer/state && [ "$s" = up ]; do\n'
            f"{pause}; done; done; true"
        )

    def _ask(self, nodes: range, command: Callable[[int], str]) -> list[list[int]]:
        """Run a command in these guests side by side; the numbers that they print."""
        return _numbers(self._spawn(nodes, command))

    def _in_parts(self, command: Callable[[int], str]) -> list[list[int]]:
        """Run a command in all guests, in one part of them after the other.

        Were all at work at once, they would hardly get to tell one another that they live.
        """
        found: dict[int, list[int]] = {}
        for part in range(PARTS):
            nodes = self._nodes[part::PARTS]
            found.update(zip(nodes, self._ask(nodes, command)))
        return [found[node] for node in self._nodes]

    def _spawn(self, nodes: range, command: Callable[[int], str]) -> dict[int, Job]:
        """Start a command in these guests."""
        jobs = self._pool.map(lambda node: self._cluster[node].spawn(command(node)), nodes)
        return dict(zip(nodes, jobs))

    def _idle_ppm(self) -> float:
        """What part of the time the guests are at work, all together, in millionths."""
        groups = [machine.pid for machine in self._cluster]
        time.sleep(SETTLE_SECONDS)
        began, before = time.monotonic(), cpu_ns(groups)
        time.sleep(IDLE_SECONDS)
        ended, after = time.monotonic(), cpu_ns(groups)
        had = sum(ns - before.get(process, 0) for process, ns in after.items())
        return had / (ended - began) / 1e3


def _numbers(jobs: dict[int, Job]) -> list[list[int]]:
    """What the commands of nodes have printed, when they have ended."""
    found = []
    for node, job in jobs.items():
        try:
            done = job.wait(MOST_SECONDS, check=False)
        except CommandTimeout as error:
            raise HarnessError(f"node {node}: not done in {MOST_SECONDS:.0f} s") from error
        words = done.out.split()
        if done.rc != 0:
            raise HarnessError(f"node {node}: {' '.join(words)[-200:]}")
        found.append([int(word) for word in words])
    return found


def cpu_ns(groups: Collection[int | None]) -> dict[int, int]:
    """The processes of these groups, and how long each has been on a processor."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, fields = path.read_text().rpartition(") ")
            process = int(before.split()[0])
            if int(fields.split()[2]) in groups:
                # A process's clock, see clock_getcpuclockid(3): it counts nanoseconds.
                found[process] = time.clock_gettime_ns((~process << 3) | 2)
        except OSError:
            continue  # it has just ended
    return found


def first_line(error: HarnessError) -> str:
    """What a message says, without what is known of the guest besides."""
    return str(error).partition("\n")[0]
