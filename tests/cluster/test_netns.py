# SPDX-License-Identifier: GPL-2.0
"""KCCM loaded in a network namespace: it belongs to that one (see also tests/kunit/netns.rs)."""

from __future__ import annotations

from collections.abc import Callable

from cluster import Cluster, address
from cluster.cluster import PORT
from traffic import traffic, unload_all

WITHIN = "/run/netns"
LISTENS = f"netstat -tln | grep -q ':{PORT} '"


def move_network(cluster: Cluster, node: int) -> None:
    """Move a node's network device to a new namespace, mounted at ``WITHIN``."""
    addresses = f"ip addr add {address(node)}/24 dev eth0"
    cluster[node].run(
        f"set -e; touch {WITHIN}; unshare --net={WITHIN} sh -c '"
        "nsenter --target 1 --net ip link set eth0 netns $$ && "
        f"ip link set lo up && ip link set eth0 up && {addresses}'"
    )


def test_node_in_a_namespace(make_cluster: Callable[..., Cluster]) -> None:
    """P2, P10: loaded by a task in a namespace, it lives there, also when nobody else does any more."""
    cluster = make_cluster(3, load=False)
    # Node 1 connects to one of the others, and is connected to by the other.
    machine = cluster[1]
    move_network(cluster, 1)
    for node in (0, 2):
        cluster.load(node)
    machine.run(f"nsenter --net={WITHIN} insmod /modules/kccm.ko {cluster.parameters(1)}")
    cluster.wait_connected()
    machine.run(f"nsenter --net={WITHIN} sh -c \"{LISTENS}\"")
    assert machine.run(LISTENS, check=False).rc != 0
    with traffic(cluster, range(3)):
        pass
    # A cut, within.
    for state in ("down", "up"):
        machine.run(f"nsenter --net={WITHIN} ip link set eth0 {state}")
        if state == "down":
            for other in (0, 2):
                cluster.wait_lost(other, 1)
                cluster.wait_lost(1, other)
    cluster.wait_connected()
    # Only KCCM keeps the namespace now.
    machine.run(f"umount {WITHIN}")
    with traffic(cluster, range(3)):
        pass
    assert not machine.run("ls /sys/class/net/eth0", check=False).out.startswith("/sys")
    unload_all(cluster, 1)
    # With the namespace gone, its device is back where it came from.
    machine.wait_until("[ -e /sys/class/net/eth0 ]")
    machine.run(f"ip link set eth0 up; ip addr add {address(1)}/24 dev eth0")
    cluster.load(1)
    cluster.wait_connected()


def test_address_of_another_namespace(make_cluster: Callable[..., Cluster]) -> None:
    """A node whose address is in another namespace cannot be loaded, and says why."""
    cluster = make_cluster(1, load=False)
    machine = cluster[0]
    mark = machine.mark()
    machine.run(f"touch {WITHIN}; unshare --net={WITHIN} ip link set lo up")
    command = f"nsenter --net={WITHIN} insmod /modules/kccm.ko {cluster.parameters(0)}"
    assert machine.run(command, check=False).rc != 0
    machine.wait_console(f"cannot listen at {address(0)}:{PORT}: EADDRNOTAVAIL", since=mark)
    assert not machine.loaded("kccm")
    cluster.load(0)
