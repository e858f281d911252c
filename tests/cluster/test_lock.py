# SPDX-License-Identifier: GPL-2.0
"""Ricart and Agrawala's lock, and the counter that all nodes increment under it (P2)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from cluster import Cluster, Job
from cluster.machine import Machine
from cluster.settings import paced, scaled
from traffic import fields

MODULE = "kccm_lock"
DEBUGFS = f"/sys/kernel/debug/{MODULE}"
DEVICE = f"/dev/{MODULE}"
# More than can be made in a test: until it is stopped.
ENDLESS = 10_000_000


@dataclass
class Status:
    """What a node's status file tells of the lock and the counter."""

    values: dict[str, str]
    nodes: dict[int, dict[str, str]] = field(default_factory=dict)
    peers: dict[int, dict[str, str]] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """One of the values."""
        return int(self.values[name])


def status(machine: Machine) -> Status:
    """Read a node's status file."""
    found = Status({})
    for line in machine.read(f"{DEBUGFS}/status").splitlines():
        pairs = fields(line)
        if "node" in pairs:
            found.nodes[int(pairs.pop("node"))] = pairs
        elif "peer" in pairs:
            found.peers[int(pairs.pop("peer"))] = pairs
        else:
            found.values.update(pairs)
    return found


def control(cluster: Cluster, nodes: Iterable[int], command: str) -> None:
    """Write a command to these nodes' control files."""
    cluster.run_all({node: f"echo '{command}' >{DEBUGFS}/control" for node in nodes})


def wait_for(what: str, condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Look until something holds."""
    deadline = time.monotonic() + scaled(timeout)
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(paced(0.1))


def wait_increments(cluster: Cluster, node: int, more: int = 20) -> None:
    """Wait until a node sees the counter so much greater."""
    start = status(cluster[node]).number("count")
    wait_for(
        f"node {node} sees {more} more increments",
        lambda: status(cluster[node]).number("count") >= start + more,
    )


def wait_done(cluster: Cluster, node: int) -> None:
    """Wait until a node has made its increments."""
    wait_for(f"node {node} is done", lambda: status(cluster[node]).values["run"] == "done")


def assert_nothing_lost(cluster: Cluster, killed: Iterable[int] = ()) -> int:
    """The counter is right on all nodes, which agree; returns it."""
    seen = {node: status(cluster[node]) for node in cluster.alive()}
    values = {found.number("count") for found in seen.values()}
    assert len(values) == 1, f"the nodes disagree: {seen}"
    spare = list(killed)
    for found in seen.values():
        assert found.number("lost") == found.number("fenced") == 0, found
        assert found.number("count") == sum(int(by["count"]) for by in found.nodes.values())
        for node, by in found.nodes.items():
            # A node that was killed may not have got round to tell of its last increment.
            slack = int(by["count"]) - int(by["acked"])
            assert 0 <= slack <= spare.count(node), (node, found)
    return values.pop()


@pytest.fixture
def locked(cluster3: Cluster) -> Iterator[Cluster]:
    """Three nodes with the lock, the counter at 0."""
    cluster3.run_all(f"insmod /modules/{MODULE}.ko")
    wait_ready(cluster3, range(3))
    yield cluster3
    # While another node takes its leave the module is in use for a moment.
    again = f"while [ -d /sys/module/{MODULE} ] && ! rmmod {MODULE} 2>/dev/null; do sleep 0.1; done"
    cluster3.run_all(again)


def wait_ready(cluster: Cluster, nodes: Iterable[int]) -> None:
    """Wait until these nodes may enter, all of them taking part."""
    for node in nodes:
        cluster[node].wait_until(
            f"grep -q 'in=3 .*ready=1' {DEBUGFS}/status", hint=f"cat {DEBUGFS}/status"
        )


class Holder:
    """A process that has, or wants, the lock."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._job: Job = machine.spawn(
            f"exec 3<>{DEVICE}; echo lock >&3 && cat <&3 >/tmp/held && exec sleep 100000"
        )

    def stamp(self) -> tuple[int, int]:
        """Wait until it has the lock; returns with which stamp."""
        self._machine.wait_until("grep -q held /tmp/held", hint="cat /tmp/held")
        found = re.fullmatch(r"held (\d+)\.(\d+)", self._machine.read("/tmp/held"))
        assert found
        return int(found[1]), int(found[2])

    @property
    def has_it(self) -> bool:
        """Whether it has the lock."""
        return self._machine.run("grep -q held /tmp/held", check=False).rc == 0

    def kill(self) -> None:
        """End it; it cannot unlock."""
        self._job.stop()
        self._machine.run("rm -f /tmp/held")


def test_counter(locked: Cluster) -> None:
    """All nodes increment at once: every increment is there, on every node."""
    control(locked, range(3), "run 60")
    for node in range(3):
        wait_done(locked, node)
    assert assert_nothing_lost(locked) == 180
    for node in range(3):
        found = status(locked[node])
        assert found.values["state"] == "idle"
        assert {n: int(by["count"]) for n, by in found.nodes.items()} == {0: 60, 1: 60, 2: 60}
        assert found.number("requests") == found.number("entries") == 60
        assert found.number("nodes") == found.number("in") == 3
        assert set(found.peers) == {0, 1, 2} - {node}
        assert {peer["in"] for peer in found.peers.values()} == {"1"}


def test_one_at_a_time(locked: Cluster) -> None:
    """Who wants the lock waits until it is free, and enters in the order of the stamps."""
    holders = [Holder(locked[0])]
    stamps = [holders[0].stamp()]
    for node in (2, 1):
        holders.append(Holder(locked[node]))
        # Its request has reached the one who is in, who has put off the reply.
        locked[0].wait_until(f"grep -q 'peer={node} .*waits=1' {DEBUGFS}/status")
    assert not holders[1].has_it
    assert not holders[2].has_it
    assert status(locked[2]).values["state"] == "waiting"
    assert status(locked[0]).values["state"] == "held"
    holders[0].kill()
    stamps.append(holders[1].stamp())
    assert not holders[2].has_it
    holders[1].kill()
    stamps.append(holders[2].stamp())
    holders[2].kill()
    assert stamps == sorted(stamps)
    assert [node for _, node in stamps] == [0, 2, 1]


def test_node_dies_while_it_holds_the_lock(locked: Cluster) -> None:
    """P2, P11: the lock of a dead node is the next one's; waiting ones do not wait for ever."""
    holder = Holder(locked[1])
    first = holder.stamp()
    waiting = Holder(locked[2])
    locked[1].wait_until(f"grep -q 'peer=2 .*waits=1' {DEBUGFS}/status")
    locked.kill(1)
    assert waiting.stamp() > first
    waiting.kill()
    control(locked, (0, 2), "run 10")
    for node in (0, 2):
        wait_done(locked, node)
    locked.boot([1])
    locked.load(1)
    locked.wait_connected()
    locked[1].insmod(MODULE)
    wait_ready(locked, range(3))
    assert assert_nothing_lost(locked) == 20


@pytest.mark.parametrize("victim", [1, 2])
def test_node_dies_while_all_increment(locked: Cluster, victim: int) -> None:
    """P2, P11: the others go on; the node that is back counts on from where it was."""
    others = [node for node in range(3) if node != victim]
    control(locked, range(3), f"run {ENDLESS}")
    wait_increments(locked, victim)
    locked.kill(victim)
    for node in others:
        locked.wait_lost(node, victim)
    wait_increments(locked, others[0])
    locked.boot([victim])
    locked.load(victim)
    locked[victim].insmod(MODULE)
    wait_ready(locked, range(3))
    control(locked, [victim], f"run {ENDLESS}")
    wait_for(
        "the node that is back takes part",
        lambda: status(locked[victim]).number("done") >= 10,
    )
    control(locked, range(3), "stop")
    total = assert_nothing_lost(locked, killed=[victim])
    assert total >= 50
    runs = {n: int(by["runs"]) for n, by in status(locked[others[0]]).nodes.items()}
    assert runs == {**dict.fromkeys(others, 1), victim: 2}


def test_node_cut_off(locked: Cluster) -> None:
    """P11: a node alone is no majority and waits; the others go on; then it goes on with them."""
    control(locked, range(3), f"run {ENDLESS}")
    wait_increments(locked, 0)
    locked.switch.isolate(0)
    for node in (1, 2):
        locked.wait_lost(node, 0)
        locked.wait_lost(0, node)
    wait_increments(locked, 1)
    alone = status(locked[0])
    assert alone.values["ready"] == "0"
    wait_increments(locked, 2)
    assert status(locked[0]).number("count") == alone.number("count")
    locked.switch.rejoin(0)
    locked.wait_connected()
    wait_ready(locked, range(3))
    wait_for("node 0 goes on", lambda: status(locked[0]).number("done") >= alone.number("done") + 5)
    control(locked, range(3), "stop")
    seen = [status(locked[node]) for node in range(3)]
    # It may have been in when it was cut off: then its increment was fenced, and made anew.
    assert sum(found.number("fenced") for found in seen) <= 1
    assert {found.number("lost") for found in seen} == {0}
    assert len({found.number("count") for found in seen}) == 1
    for found in seen:
        assert found.number("count") == sum(int(by["count"]) for by in found.nodes.values())


def test_unload_and_load_again(locked: Cluster) -> None:
    """A node that unloads the lock says so; the others go on at once, and it may come back."""
    control(locked, range(3), f"run {ENDLESS}")
    for node in (2, 0):
        wait_increments(locked, node)
        locked[node].rmmod(MODULE, timeout=10)
        wait_increments(locked, 1)
        locked[node].insmod(MODULE)
        wait_ready(locked, range(3))
        control(locked, [node], f"run {ENDLESS}")
    wait_increments(locked, 1)
    control(locked, range(3), "stop")
    # What was begun when it was unloaded may be there without having been told of.
    assert assert_nothing_lost(locked, killed=[0, 2]) >= 80
