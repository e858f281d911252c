# SPDX-License-Identifier: GPL-2.0
"""Links that are cut, one way or both, and restored (P11)."""

from __future__ import annotations

import re

import pytest

from cluster import Cluster
from cluster.cluster import SYSFS
from logs import expect_line
from test_recovery import PATIENT_MS, assert_found_in_time, wait_clock
from traffic import all_pairs, connections, traffic, unload_all


def assert_only_these_reconnected(
    cluster: Cluster, before: dict[tuple[int, int], tuple[str, ...]], pairs: set[tuple[int, int]]
) -> None:
    """Everybody is connected, as the same run as before, and only these have been lost."""
    after = connections(cluster, before)
    for ends, (state, incarnation, reconnects) in after.items():
        assert state == "up"
        assert incarnation == before[ends][1]
        again = int(reconnects) - int(before[ends][2])
        expected = ends in pairs or ends[::-1] in pairs
        assert (again >= 1) if expected else again == 0, ends


def test_cut_both_ways(cluster3: Cluster) -> None:
    """P11: both ends find it within dead_ms; the third node and its traffic do not notice."""
    before = connections(cluster3, all_pairs(range(3)))
    marks = {node: cluster3[node].mark() for node in range(3)}
    with traffic(cluster3, range(3), apart=(0, 2)) as floods:
        cluster3.cut(0, 2)
        for node, peer in ((0, 2), (2, 0)):
            cluster3.wait_lost(node, peer)
            assert_found_in_time(cluster3, node, peer, marks[node], cluster3.dead_ms)
        # The lower one tries again and again, the higher one waits.
        cluster3[0].wait_until(f"grep -qE 'connecting|backoff' {SYSFS}/peers/2/state")
        assert cluster3.peer_state(2, 0) == "listening"
        floods.progress()
        cluster3.heal(0, 2)
        cluster3.wait_connected()
    assert_only_these_reconnected(cluster3, before, {(0, 2)})


def test_attempts_into_a_cut_link(cluster3: Cluster) -> None:
    """P10: an attempt that gets no answer is given up after handshake_ms, and made again."""
    unload_all(cluster3, 0)
    cluster3.cut(0, 1)
    cluster3.load(0, handshake_ms=500, backoff_min_ms=50, backoff_max_ms=100)
    cluster3.wait_state(0, 2, "up")
    watch = (
        f"n=0; was=; while [ $n -lt 6 ]; do read -r s <{SYSFS}/peers/1/state; "
        '[ "$s" = "$was" ] || { echo $s; was=$s; n=$((n + 1)); }; usleep 10000; done'
    )
    seen = cluster3[0].run(watch).out.split()
    assert set(seen) == {"connecting", "backoff"}
    assert cluster3.peer(0, 1, "last_error") == "ETIMEDOUT"
    cluster3.heal(0, 1)
    cluster3.wait_connected()


@pytest.mark.parametrize(("deaf", "mute"), [(2, 0), (0, 2)], ids=["upwards", "downwards"])
def test_cut_one_way(cluster3: Cluster, deaf: int, mute: int) -> None:
    """P11: what goes only one way is no connection, for either; healed, it is back."""
    before = connections(cluster3, all_pairs(range(3)))
    marks = {node: cluster3[node].mark() for node in range(3)}
    with traffic(cluster3, range(3), apart=(0, 2)):
        cluster3.cut(mute, deaf, both=False)
        cluster3.wait_lost(deaf, mute)
        assert_found_in_time(cluster3, deaf, mute, marks[deaf], cluster3.dead_ms)
        # That one tells the other, which could still hear it.
        cluster3.wait_lost(mute, deaf)
        expect_line(cluster3[mute], marks[mute], f"lost node {deaf} ")
        assert cluster3.peer_state(0, 2) != "up" and cluster3.peer_state(2, 0) != "up"
        cluster3.heal(mute, deaf, both=False)
        cluster3.wait_connected()
    assert_only_these_reconnected(cluster3, before, {(0, 2)})


def test_cut_for_a_moment(cluster3: Cluster) -> None:
    """P11: a cut that is shorter than dead_ms delays messages, and loses none."""
    for node in range(3):
        unload_all(cluster3, node)
    cluster3.load_all(dead_ms=PATIENT_MS)
    cluster3.wait_connected()
    with traffic(cluster3, range(3)) as floods:
        for both in (True, False):
            cluster3.cut(0, 2, both=both)
            wait_clock(cluster3, 1, 1500)
            cluster3.heal(0, 2, both=both)
            floods.progress()
    for node in range(3):
        unload_all(cluster3, node)
    cluster3.load_all()
    cluster3.wait_connected()


@pytest.mark.parametrize("node", [0, 1])
def test_isolated_node(cluster3: Cluster, node: int) -> None:
    """P11: a node whose cable is pulled loses all peers, they lose only it; then all are back."""
    others = [other for other in range(3) if other != node]
    before = connections(cluster3, all_pairs(range(3)))
    with traffic(cluster3, others):
        cluster3.switch.isolate(node)
        for other in others:
            cluster3.wait_lost(node, other)
            cluster3.wait_lost(other, node)
        up = re.search(r"^peers_up (\d+)$", cluster3.attribute(node, "stats"), re.MULTILINE)
        assert up and up[1] == "0"
        cluster3.switch.rejoin(node)
        cluster3.wait_connected()
    assert_only_these_reconnected(cluster3, before, {(node, other) for other in others})


def test_everything_cut(cluster3: Cluster) -> None:
    """P11: all links fail at once, and come back at once."""
    before = connections(cluster3, all_pairs(range(3)))
    pairs = [(0, 1), (0, 2), (1, 2)]
    for pair in pairs:
        cluster3.cut(*pair)
    for a, b in pairs:
        cluster3.wait_lost(a, b)
        cluster3.wait_lost(b, a)
    cluster3.switch.heal_all()
    cluster3.wait_connected()
    assert_only_these_reconnected(cluster3, before, set(pairs))
    with traffic(cluster3, range(3)):
        pass
