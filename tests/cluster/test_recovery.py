# SPDX-License-Identifier: GPL-2.0
"""Nodes that die, stand still and come back (P11)."""

from __future__ import annotations

import re
import time

import pytest

from cluster import Cluster
from cluster.cluster import SYSFS
from cluster.settings import scaled
from logs import expect_line
from traffic import (
    Traffic,
    all_pairs,
    connections,
    demo,
    demo_command,
    demo_spawn,
    need_demo,
    traffic,
    unload_all,
)

# How much later than dead_ms a silence may be found: the guests' own delays.
MARGIN_MS = 1500

# For a node that only stands still for a while: so long nobody is held dead.
PATIENT_MS = 20_000


def assert_found_in_time(cluster: Cluster, node: int, peer: int, mark: int, dead_ms: int) -> None:
    """``node`` has found ``peer`` silent, and that not much later than dead_ms."""
    line = expect_line(cluster[node], mark, rf"node {peer} has been silent for \d+ ms: disconnect")
    silent = int(re.findall(r"for (\d+) ms", line)[0])
    assert dead_ms <= silent <= dead_ms + scaled(MARGIN_MS), line


def come_back(cluster: Cluster, node: int) -> None:
    """Boot a node that was killed, and load KCCM in it."""
    cluster.boot([node])
    cluster.load(node)
    cluster.wait_connected()


def wait_clock(cluster: Cluster, node: int, ms: int) -> None:
    """Wait until so much time has gone by in a node."""
    now = float(cluster[node].read("/proc/uptime").split()[0])
    end = now + ms / 1000
    cluster[node].wait_until(f"read -r t _ </proc/uptime; [ ${{t%.*}} -gt {int(end)} ]", end)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killed_while_idle(cluster3: Cluster, victim: int) -> None:
    """P11: a node without warning gone is found within dead_ms, and its socket removed.

    The others carry on; booted again it is known by its new incarnation, and
    the fully connected state is back.
    """
    others = [node for node in range(3) if node != victim]
    need_demo(cluster3, others)
    before = {node: cluster3.peer_table(node)[victim] for node in others}
    marks = {node: cluster3[node].mark() for node in others}
    with traffic(cluster3, others) as floods:
        floods.stop()
        cluster3.kill(victim)
        for node in others:
            cluster3.wait_lost(node, victim)
            assert_found_in_time(cluster3, node, victim, marks[node], cluster3.dead_ms)
            expect_line(cluster3[node], marks[node], f"lost node {victim} .*: ETIMEDOUT")
            assert cluster3.peer(node, victim, "last_error") == "ETIMEDOUT"
            ends = cluster3[node].run("netstat -tn | grep EST").out
            assert f"10.1.0.{victim + 1}:" not in ends
        floods.start()
        come_back(cluster3, victim)
    for node in others:
        now = cluster3.peer_table(node)[victim]
        assert now["incarnation"] == cluster3.attribute(victim, "incarnation")
        assert now["incarnation"] != before[node]["incarnation"]
        assert int(now["reconnects"]) == int(before[node]["reconnects"]) + 1


@pytest.mark.parametrize("victim", [0, 2])
def test_killed_with_data_in_flight(cluster3: Cluster, victim: int) -> None:
    """P11: the same with data in flight to it and from it, and calls and receivers waiting.

    All that waits for the node ends with EHOSTDOWN; what the others send each
    other arrives to the last message.
    """
    others = [node for node in range(3) if node != victim]
    need_demo(cluster3)
    marks = {node: cluster3[node].mark() for node in others}
    waiters = [demo_spawn(cluster3[node], f"recv {victim} 99 -1") for node in others]
    for node in others:
        # With that of the flood's receiver, which takes whatever comes.
        cluster3[node].wait_until(f"grep -q 'receivers_waiting [12]' {SYSFS}/stats")
    with traffic(cluster3, others) as floods:
        # Towards the victim as fast as it goes, and from there.
        Traffic(cluster3, [victim]).start(60_000, 0)
        Traffic(cluster3, others).progress(50)
        cluster3.kill(victim)
        for node, waiter in zip(others, waiters):
            cluster3.wait_lost(node, victim)
            assert_found_in_time(cluster3, node, victim, marks[node], cluster3.dead_ms)
            result = waiter.wait(check=False)
            assert result.rc != 0 and "Host is down" in result.out
        floods.progress()
        come_back(cluster3, victim)
        need_demo(cluster3)
        # The floods go on, to the new one too.
        receives = f"grep -qv '^0$' {SYSFS}/peers/{others[0]}/rx_messages"
        cluster3[victim].wait_until(receives)


def test_bulk_to_a_node_that_dies(cluster3: Cluster) -> None:
    """P11: what was for its last incarnation does not get to the next, on either connection."""
    need_demo(cluster3)
    for node in (0, 1):
        demo(cluster3[node], "send_bulk 2 7 before")
        demo(cluster3[2], f"send_bulk {node} 7 from the dead")
    cluster3[2].freeze()
    for node in (0, 1):
        demo(cluster3[node], "send_bulk 2 7 lost")
    cluster3.kill(2)
    for node in (0, 1):
        cluster3.wait_lost(node, 2)
        refused = cluster3[node].run(demo_command("send_bulk 2 7 nobody"), check=False)
        assert refused.rc != 0 and "Host is down" in refused.out
        assert demo(cluster3[node], "probe 2 7 0").startswith("source=2 tag=7 len=13")
    come_back(cluster3, 2)
    need_demo(cluster3)
    for node in (0, 1):
        # What its last incarnation has left behind is gone, too.
        assert cluster3[node].run(demo_command("probe 2 7 0"), check=False).rc != 0
        demo(cluster3[node], f"send_bulk 2 7 node {node}")
        assert demo(cluster3[2], f"recv {node} 7 5000").endswith(f"text=node {node}")
        assert cluster3.peer(node, 2, "bulk_state") == cluster3.peer(2, node, "bulk_state") == "up"
    assert cluster3[2].run(demo_command("probe -1 -1 0"), check=False).rc != 0


def test_call_to_a_node_that_dies(cluster3: Cluster) -> None:
    """P11: a synchronous call ends when its node is gone, not with its own time-out."""
    need_demo(cluster3)
    mark = cluster3[0].mark()
    cluster3[2].freeze()
    call = demo_spawn(cluster3[0], "ping 2 1 64 sync")
    cluster3[0].wait_until(f"grep -q 'calls_waiting 1' {SYSFS}/stats")
    cluster3.kill(2)
    assert call.wait(check=False).rc != 0
    expect_line(cluster3[0], mark, "lost node 2")
    assert "calls_waiting 0" in cluster3.attribute(0, "stats")
    come_back(cluster3, 2)


@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "flooded"])
def test_frozen_for_long(cluster3: Cluster, loaded: bool) -> None:
    """P11: a node that stands still beyond dead_ms is lost; it comes back as the same run."""
    frozen, others = 1, [0, 2]
    need_demo(cluster3)
    incarnation = cluster3.attribute(frozen, "incarnation")
    before = connections(cluster3, all_pairs(range(3)))
    marks = {node: cluster3[node].mark() for node in range(3)}
    with traffic(cluster3, others) as floods:
        if loaded:
            Traffic(cluster3, [frozen]).start(8192, 1000)
        else:
            floods.stop()
        cluster3[frozen].freeze()
        for node in others:
            cluster3.wait_lost(node, frozen)
            assert_found_in_time(cluster3, node, frozen, marks[node], cluster3.dead_ms)
        if not loaded:
            floods.start()
        floods.progress()
        cluster3[frozen].thaw()
        cluster3.wait_connected()
        if loaded:
            Traffic(cluster3, [frozen]).stop()
    assert cluster3.attribute(frozen, "incarnation") == incarnation
    for (a, b), (state, known, reconnects) in connections(cluster3, all_pairs(range(3))).items():
        state_before, known_before, reconnects_before = before[a, b]
        assert state == state_before == "up" and known == known_before
        again = int(reconnects) - int(reconnects_before)
        assert (again >= 1) if frozen in (a, b) else again == 0
    # What it had missed is lost to it, and known to be: the rest is in order.
    assert all(errors[1:] == (0, 0) for errors in Traffic(cluster3, [0, 1, 2]).errors().values())


def test_frozen_for_a_moment(cluster3: Cluster) -> None:
    """P11: a node that stands still for less than dead_ms stays connected; nothing is lost."""
    for node in range(3):
        unload_all(cluster3, node)
    cluster3.load_all(dead_ms=PATIENT_MS)
    cluster3.wait_connected()
    with traffic(cluster3, range(3)):
        for frozen in range(3):
            cluster3[frozen].freeze()
            wait_clock(cluster3, (frozen + 1) % 3, 1500)
            cluster3[frozen].thaw()
        # Every connection must have had to wait, and go on: traffic() looks.
    for node in range(3):
        unload_all(cluster3, node)
    cluster3.load_all()
    cluster3.wait_connected()


def test_all_die_but_one(cluster3: Cluster) -> None:
    """P2, P11: the last node left lives on alone, and finds the others again."""
    incarnation = cluster3.attribute(1, "incarnation")
    for node in (0, 2):
        cluster3.kill(node)
    for node in (0, 2):
        cluster3.wait_lost(1, node)
    cluster3.boot()
    cluster3.load(0)
    cluster3.load(2)
    cluster3.wait_connected()
    assert cluster3.attribute(1, "incarnation") == incarnation
    with traffic(cluster3, range(3)):
        pass


def test_restart_sooner_than_noticed(cluster3: Cluster) -> None:
    """P11: a node back before its death is found is known as new, and connected again at once."""
    for victim in (2, 0):
        before = {node: cluster3.peer(node, victim, "incarnation") for node in {0, 1, 2} - {victim}}
        others = sorted(before)
        for node in others:
            unload_all(cluster3, node)
            # Nobody will be held dead in this test.
            cluster3.load(node, dead_ms=3_600_000)
        cluster3.wait_connected()
        marks = {node: cluster3[node].mark() for node in others}
        cluster3.kill(victim)
        began = time.monotonic()
        cluster3.boot([victim])
        cluster3.load(victim)
        cluster3.wait_connected()
        took = time.monotonic() - began
        for node in others:
            assert cluster3.peer(node, victim, "incarnation") == cluster3.attribute(
                victim, "incarnation"
            )
            expect_line(cluster3[node], marks[node], f"lost node {victim} ")
            assert "has been silent" not in cluster3[node].dmesg(marks[node])
        assert took < scaled(30)
    for node in range(3):
        unload_all(cluster3, node)
    cluster3.load_all()
    cluster3.wait_connected()
