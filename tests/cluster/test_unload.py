# SPDX-License-Identifier: GPL-2.0
"""rmmod at any moment: it ends cleanly and quickly, the peers are told, nobody else notices."""

from __future__ import annotations

import pytest

from cluster import Cluster, Job
from cluster.cluster import SYSFS
from cluster.machine import insmod
from cluster.settings import paced
from logs import expect_line, wait_for_log_room
from traffic import DEMO, Traffic, demo, demo_spawn, need_demo, reload, traffic, unload_all

# Sends without end, when told to.
API = "kccm_api_rust"

# An rmmod may take so long, whatever goes on.
PROMPT = 5.0

# The room of a queue that is to be full, and the other parameters that go with it: not so much that a
# kernel that checks itself would not come to the end of it.
ROOM = 4 << 20
SMALL = {"queue_bytes": ROOM, "max_message": 1 << 20}


def leftovers(cluster: Cluster, node: int) -> str:
    """What there is of KCCM in a node that has unloaded it: no socket that nobody ends."""
    looks = (
        f"ls -d {SYSFS} /sys/module/kccm 2>/dev/null",
        "ps -o comm | grep '^kccm'",
        "netstat -tan | grep ':7700 ' | grep -vE 'FIN_WAIT2|TIME_WAIT'",
    )
    return cluster[node].run("; ".join(looks), check=False).out


@pytest.mark.limit(300)
def test_ten_times_under_load(cluster3: Cluster) -> None:
    """P11: one node leaves and comes back ten times while all flood all.

    It is told of as stopping at once; between the other two not one message is
    lost, and their connection does not notice.
    """
    others, size, pause_us = [0, 2], 4096, round(1e6 * paced(0.002))
    with traffic(cluster3, others, size=size, pause_us=pause_us) as floods:
        for _ in range(10):
            need_demo(cluster3, [1])
            everybody = Traffic(cluster3, [0, 1, 2])
            Traffic(cluster3, [1]).start(size, pause_us)
            everybody.progress(5)
            for node in others:
                wait_for_log_room(cluster3[node])
            marks = {node: cluster3[node].mark() for node in others}
            unload_all(cluster3, 1, timeout=2 * PROMPT)
            for node in others:
                expect_line(cluster3[node], marks[node], "node 1 is stopping")
                expect_line(cluster3[node], marks[node], "lost node 1 ")
            cluster3.load(1)
            cluster3.wait_connected()
        floods.progress()


def test_at_full_speed(cluster3: Cluster) -> None:
    """rmmod is prompt while peers send as fast as they can what nobody here receives."""
    others = [0, 2]
    need_demo(cluster3, others)
    reload(cluster3, [1], **SMALL)
    Traffic(cluster3, others).start(60_000, 0)
    # Until the peers wait for room.
    full = f"[ $(cat {SYSFS}/peers/0/queued_bytes) -gt {ROOM - 200_000} ]"
    cluster3[1].wait_until(full, timeout=60)
    cluster3.unload(1, timeout=PROMPT)
    assert leftovers(cluster3, 1) == ""
    Traffic(cluster3, others).stop()
    cluster3.load(1)
    cluster3.wait_connected()


@pytest.mark.parametrize("frozen", [0, 2])
def test_with_a_frozen_peer(cluster3: Cluster, frozen: int) -> None:
    """rmmod does not wait for a peer that stands still, with data on its way to it."""
    need_demo(cluster3)
    Traffic(cluster3, [1]).start(60_000, 0)
    cluster3[frozen].wait_until(f"[ $(cat {SYSFS}/peers/1/rx_messages) -gt 5 ]")
    cluster3[frozen].freeze()
    # The peer's window is full once a sender is out of time.
    cluster3[1].wait_until(
        f"exec 3<>/dev/{DEMO}; echo counts >&3; cat <&3 | grep -q 'peer={frozen} .*failed=[1-9]'",
        timeout=60,
    )
    unload_all(cluster3, 1, timeout=PROMPT)
    assert leftovers(cluster3, 1) == ""
    cluster3[frozen].thaw()
    cluster3.wait_lost(frozen, 1)
    cluster3.load(1)
    cluster3.wait_connected()


def test_while_connecting(cluster3: Cluster) -> None:
    """rmmod in every state of connecting: no answer, back-off, waiting to be connected to."""
    unload_all(cluster3, 1)
    cluster3.switch.isolate(1)
    for state in ("connecting", "backoff"):
        cluster3.load(1)
        cluster3.wait_state(1, 2, state)
        assert cluster3.peer_state(1, 0) == "listening"
        cluster3.unload(1, timeout=PROMPT)
        assert leftovers(cluster3, 1) == ""
    cluster3.switch.rejoin(1)
    # At once, over and over, while peers connect.
    both = f"insmod /modules/kccm.ko {cluster3.parameters(1)} && rmmod kccm"
    cluster3[1].run(f"for i in 1 2 3 4 5 6 7 8 9 10; do {both} || exit 1; done", timeout=60)
    assert leftovers(cluster3, 1) == ""
    cluster3.load(1)
    cluster3.wait_connected()


def test_with_all_kinds_of_waiters(cluster3: Cluster) -> None:
    """Who waits for a node that unloads is told at once: receivers, and senders without room.

    Nobody can be waiting for a reply then: a module with a handler that runs has
    to go before KCCM can.
    """
    reload(cluster3, [1], **SMALL)
    need_demo(cluster3)
    waiters: dict[str, Job] = {
        "a receiver": demo_spawn(cluster3[0], "recv 1 55 -1"),
        "a prober": demo_spawn(cluster3[0], "probe 1 56 -1"),
        "a sender": cluster3[2].spawn(f"{insmod(API)} fill=1"),
    }
    patient = demo_spawn(cluster3[0], "recv -1 57 -1")
    # And the flood's receiver.
    cluster3[0].wait_until(f"grep -q 'receivers_waiting 4' {SYSFS}/stats")
    # Until there is no room for one message more.
    full = f"[ $(cat {SYSFS}/peers/2/queued_bytes) -gt {ROOM - (1 << 20)} ]"
    cluster3[1].wait_until(full, timeout=60)
    assert not any(waiter.poll(0) for waiter in waiters.values())
    unload_all(cluster3, 1, timeout=2 * PROMPT)
    for what, waiter in waiters.items():
        result = waiter.wait(PROMPT, check=False)
        assert result.rc != 0 and "Host is down" in result.out, what
    # Who waits for anybody has others to wait for.
    assert not patient.poll(0)
    demo(cluster3[2], "send 0 57 for whom it may concern")
    assert "source=2" in patient.wait(PROMPT).out
    cluster3.load(1)
    cluster3.wait_connected()


def test_module_in_use_stays(cluster3: Cluster) -> None:
    """KCCM cannot be unloaded under a module that uses it, and goes on."""
    need_demo(cluster3)
    result = cluster3[1].rmmod("kccm", check=False)
    assert result.rc != 0 and "unavailable" in result.out
    with traffic(cluster3, range(3)):
        pass
