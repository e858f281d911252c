# SPDX-License-Identifier: GPL-2.0
"""Messages and remote calls between machines: what the paper's figures 2 to 5 show."""

from __future__ import annotations

import itertools
import re
import time

import pytest

from cluster import Cluster
from cluster.cluster import SYSFS
from cluster.settings import fewer, paced, scaled
from traffic import (
    counts,
    demo,
    demo_command,
    demo_spawn,
    fields,
    need_demo,
    reload,
    traffic,
)

PAIRS = list(itertools.permutations(range(3), 2))
CALL_COUNTERS = ("tx_rcalls", "rx_rcalls", "failed_rcalls")


@pytest.fixture(autouse=True)
def _demo(cluster3: Cluster) -> None:
    need_demo(cluster3)


def both_ends(one: int, other: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """A pair as either of the two sees it."""
    return (one, other), (other, one)


def stats(cluster: Cluster, node: int) -> dict[str, int]:
    """The node's file of that name."""
    lines = [line.split() for line in cluster.attribute(node, "stats").splitlines()]
    return {name: int(value) for name, value in lines}


def wait_stats(cluster: Cluster, node: int, name: str, value: int) -> None:
    """Wait until a line of the node's stats says so."""
    cluster[node].wait_until(f"grep -qx '{name} {value}' {SYSFS}/stats", hint=f"cat {SYSFS}/stats")


def test_figure_2_queued_before_it_is_asked_for(cluster3: Cluster) -> None:
    """P6: a message that nobody waits for is queued; its receiver does not stop for it."""
    for sender, receiver in PAIRS:
        before = stats(cluster3, receiver)
        demo(cluster3[sender], f"send {receiver} 2 figure two")
        wait_stats(cluster3, receiver, "messages_waiting", before["messages_waiting"] + 1)
        got = demo(cluster3[receiver], f"recv {sender} 2 0")
        assert f"source={sender} tag=2 len=10" in got and got.endswith("text=figure two")
        after = stats(cluster3, receiver)
        assert after["messages_queued"] == before["messages_queued"] + 1
        assert after["messages_handed_over"] == before["messages_handed_over"]


def test_figure_3_handed_to_a_sleeping_receiver(cluster3: Cluster) -> None:
    """P7: a receiver that sleeps is handed the message directly, and woken."""
    for sender, receiver in PAIRS:
        before = stats(cluster3, receiver)
        waiting = demo_spawn(cluster3[receiver], f"recv {sender} 3 -1")
        wait_stats(cluster3, receiver, "receivers_waiting", before["receivers_waiting"] + 1)
        demo(cluster3[sender], f"send {receiver} 3 figure three")
        assert waiting.wait().out.strip().endswith("text=figure three")
        after = stats(cluster3, receiver)
        assert after["messages_queued"] == before["messages_queued"]
        assert after["messages_handed_over"] == before["messages_handed_over"] + 1
        assert after["receivers_waiting"] == before["receivers_waiting"]


def test_what_a_receiver_asks_for(cluster3: Cluster) -> None:
    """P6, P7: by source and tag, exact or any; of what matches, what came first."""
    first = [(1, 10), (2, 10), (1, 11), (2, 11), (1, 10)]
    for number, (sender, tag) in enumerate(first, start=1):
        demo(cluster3[sender], f"send 0 {tag} number {number}")
        wait_stats(cluster3, 0, "messages_waiting", number)

    def take(source: int, tag: int) -> str:
        return fields(demo(cluster3[0], f"recv {source} {tag} 0").replace("number ", ""))["text"]

    assert fields(demo(cluster3[0], "probe -1 11 0"))["source"] == "1"
    assert take(2, -1) == "2"
    assert take(-1, 11) == "3"
    assert take(1, 10) == "1"
    assert take(-1, -1) == "4"
    assert take(-1, -1) == "5"
    nothing = cluster3[0].run(demo_command("recv -1 -1 0"), check=False)
    assert nothing.rc != 0
    assert "temporarily unavailable" in nothing.out


def test_bulk_has_a_connection_of_its_own(cluster3: Cluster) -> None:
    """From the first kccm_send_bulk() on, whichever side calls it; all that is counted is."""
    names = ("tx_messages", "rx_messages")
    for sender, receiver in ((0, 1), (2, 1)):
        for ends in both_ends(sender, receiver):
            assert cluster3.peer(*ends, "bulk_state") == "unused"
        before = [cluster3.peer(*ends, name) for ends, name in zip(both_ends(sender, receiver), names)]
        for number in range(3):
            demo(cluster3[sender], f"send_bulk {receiver} 6 number {number}")
        for number in range(3):
            got = demo(cluster3[receiver], f"recv {sender} 6 5000")
            assert got.endswith(f"text=number {number}")
        demo(cluster3[receiver], f"send_bulk {sender} 6 back")
        assert demo(cluster3[sender], f"recv {receiver} 6 5000").endswith("text=back")
        for ends in both_ends(sender, receiver):
            assert cluster3.peer(*ends, "bulk_state") == "up"
        after = [cluster3.peer(*ends, name) for ends, name in zip(both_ends(sender, receiver), names)]
        assert [int(a) - int(b) for a, b in zip(after, before)] == [3, 3]
    assert cluster3.peer(0, 2, "bulk_state") == "unused"


def test_time_out(cluster3: Cluster) -> None:
    """P7: who has waited as long as he wanted gets ETIMEDOUT, and no message afterwards."""
    late = cluster3[1].run(demo_command("recv 0 4 200"), check=False)
    assert late.rc != 0
    assert "timed out" in late.out
    demo(cluster3[0], "send 1 4 too late")
    wait_stats(cluster3, 1, "messages_waiting", 1)
    assert demo(cluster3[1], "recv 0 4 0").endswith("too late")


def test_killed_while_waiting(cluster3: Cluster) -> None:
    """P7: a process that sleeps in kccm_recv() can be killed, and takes no message with it."""
    before = stats(cluster3, 2)["receivers_waiting"]
    for command in ("recv 0 5 -1", "probe -1 5 -1"):
        waiting = demo_spawn(cluster3[2], command)
        wait_stats(cluster3, 2, "receivers_waiting", before + 1)
        cluster3[2].run("kill -KILL $(ps -o pid,args | awk '/exec 3[<]/ { print $1 }')")
        assert waiting.wait(5, check=False).rc == 128 + 9
        wait_stats(cluster3, 2, "receivers_waiting", before)
    demo(cluster3[0], "send 2 5 for the living")
    assert demo(cluster3[2], "recv 0 5 5000").endswith("for the living")


def test_killed_while_calling(cluster3: Cluster) -> None:
    """P9: so can one that waits for the reply to a synchronous call."""
    cluster3[2].freeze()
    waiting = demo_spawn(cluster3[0], "ping 2 1 64 sync")
    wait_stats(cluster3, 0, "calls_waiting", 1)
    cluster3[0].run("kill -KILL $(ps -o pid,args | awk '/exec 3[<]/ { print $1 }')")
    assert waiting.wait(5, check=False).rc == 128 + 9
    wait_stats(cluster3, 0, "calls_waiting", 0)
    cluster3[2].thaw()
    cluster3.wait_connected()


def calls_between(cluster: Cluster, a: int, b: int) -> list[int]:
    """What has been counted of calls at both ends."""
    return [int(cluster.peer(*end, name)) for end in both_ends(a, b) for name in CALL_COUNTERS]


@pytest.mark.parametrize("how", ["sync", "short", "long"])
def test_rcalls_between_all_pairs(cluster3: Cluster, how: str) -> None:
    """P8, P9: synchronous calls, and asynchronous ones to short and long handlers that call back.

    They are counted at both ends, and nothing of them is left.
    """
    rounds, size = 20, 3000
    back = 0 if how == "sync" else rounds
    for caller, called in PAIRS:
        before = calls_between(cluster3, caller, called)
        times = fields(demo(cluster3[caller], f"ping {called} {rounds} {size} {how}"))
        assert times["rounds"] == str(rounds)
        assert times["size"] == str(size)
        assert 0 < int(times["min_ns"]) <= int(times["median_ns"]) <= int(times["p99_ns"])
        after = calls_between(cluster3, caller, called)
        assert [new - old for new, old in zip(after, before)] == [
            *(rounds, back, 0),
            *(back, rounds, 0),
        ]
    for node in range(3):
        left = stats(cluster3, node)
        assert left["calls_waiting"] == left["long_calls_waiting"] == 0
        assert left["messages_waiting"] == 0


def test_calls_pass_a_full_queue(cluster3: Cluster) -> None:
    """P8, P9: where messages have no room any more, calls of every kind have, both ways."""
    receiver, senders, longest, room = 1, (0, 2), 60_000, 2 << 20
    # Not so much that a kernel that checks itself would not come to the end of it.
    reload(cluster3, range(3), max_message=1 << 20, queue_bytes=room)
    need_demo(cluster3)
    demo(cluster3[receiver], "hold 1")
    # Faster than single messages: the flood.
    for node in senders:
        demo(cluster3[node], f"flood {longest}")
    full = " && ".join(
        f"[ $(cat {SYSFS}/peers/{node}/queued_bytes) -gt {room - 2 * longest} ]"
        for node in senders
    )
    cluster3[receiver].wait_until(full, 60)
    for node in senders:
        demo(cluster3[node], "flood 0")
        # The last bit of room, with what kccm_demo can receive.
        fill = f"while echo 'send {receiver} 6 {'x' * 200}' >&3; do :; done"
        refused = cluster3[node].run(f"exec 3<>/dev/kccm_demo; {fill}", check=False)
        assert "temporarily unavailable" in refused.out
        # With the reply, all that was sent before the call has come in.
        demo(cluster3[node], f"ping {receiver} 1 64 sync")
    before = settled(cluster3, receiver)
    for node in senders:
        for caller, called in ((node, receiver), (receiver, node)):
            for how in ("sync", "short", "long"):
                assert fields(demo(cluster3[caller], f"ping {called} 3 3000 {how}"))["rounds"] == "3"
    # Nothing has been taken out meanwhile, and there is still no room.
    assert settled(cluster3, receiver) == before
    for node in senders:
        refused = cluster3[node].run(demo_command(f"send {receiver} 6 {'x' * 200}"), check=False)
        assert "temporarily unavailable" in refused.out
    demo(cluster3[receiver], "hold 0")
    drain = "while echo 'recv -1 6 0' >&3; do :; done"
    cluster3[receiver].run(f"exec 3<>/dev/kccm_demo; {drain}", check=False)
    wait_stats(cluster3, receiver, "messages_waiting", 0)
    for node in senders:
        assert counts(cluster3, receiver)[node]["lost"] == 0
    reload(cluster3, range(3))


def settled(cluster: Cluster, node: int) -> tuple[list[str], int]:
    """The same as ``queued``, once calls that are over do not count any more.

    They do until their replies have been acknowledged, which may take a little.
    """
    deadline = time.monotonic() + scaled(10)
    looks = [queued(cluster, node)]
    while time.monotonic() < deadline:
        time.sleep(paced(0.2))
        looks.append(queued(cluster, node))
        if looks[-1] == looks[-2]:
            break
    return looks[-1]


def queued(cluster: Cluster, node: int) -> tuple[list[str], int]:
    """How many bytes of each peer, and how many messages, are queued at a node."""
    table = cluster.peer_table(node)
    sizes = [table[peer]["queued_bytes"] for peer in sorted(table)]
    return sizes, stats(cluster, node)["messages_waiting"]


def test_flood_of_all_by_all(cluster3: Cluster) -> None:
    """P5: all nodes send to all as fast as they can: complete, in order, undamaged."""
    with traffic(cluster3, range(3), size=60_000, pause_us=0) as floods:
        floods.progress(fewer(300))
    for node in range(3):
        assert re.search(r"^messages_waiting 0$", cluster3.attribute(node, "stats"), re.MULTILINE)
