# SPDX-License-Identifier: GPL-2.0
"""The fully connected state (P10): who connects to whom, in whichever order they come."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import pytest

from cluster import Cluster, address
from cluster.cluster import PORT

ESTABLISHED, LISTEN = 0x01, 0x0A


@pytest.fixture
def unloaded(cluster3: Cluster) -> Iterator[Cluster]:
    """Three nodes without KCCM, which get it back after the test."""
    cluster3.run_all("rmmod kccm")
    yield cluster3
    cluster3.run_all("[ ! -d /sys/module/kccm ] || rmmod kccm")
    cluster3.load_all()
    cluster3.wait_connected()


def ip_of(hexadecimal: str) -> str:
    """An address as /proc/net/tcp{,6} prints it, as the peer list has it."""
    words = [hexadecimal[i : i + 8] for i in range(0, len(hexadecimal), 8)]
    octets = b"".join(bytes.fromhex(word)[::-1] for word in words)
    if len(octets) == 4:
        return ".".join(str(octet) for octet in octets)
    assert octets[:2] == b"\xfd\x00" and not any(octets[2:15])
    return f"[fd00::{octets[15]:x}]"


def sockets(cluster: Cluster, node: int, state: int, family: int = 4) -> list[tuple[str, ...]]:
    """A node's TCP sockets in a state: local address and port, the other's address and port."""
    found = []
    name = "tcp" if family == 4 else "tcp6"
    for line in cluster[node].read(f"/proc/net/{name}").splitlines()[1:]:
        _, local, remote, st = line.split()[:4]
        if int(st, 16) == state:
            ends = [end.split(":") for end in (local, remote)]
            ends = [[ip, port] for ip, port in ends if state != LISTEN or ip.strip("0")]
            found.append(tuple(x for ip, port in ends for x in (ip_of(ip), str(int(port, 16)))))
    return found


def assert_lower_connects(
    cluster: Cluster, family: int = 4, ports: dict[int, int] | None = None
) -> None:
    """One connection for each pair of nodes, made by the lower to the port of the higher."""
    listening = {node: str((ports or {}).get(node, PORT)) for node in range(len(cluster))}
    for me in range(len(cluster)):
        found = sockets(cluster, me, ESTABLISHED, family)
        assert len(found) == len(cluster) - 1, f"node {me} has the connections {found}"
        for peer in set(range(len(cluster))) - {me}:
            mine = [c for c in found if c[2] == address(peer, family)]
            assert len(mine) == 1, f"node {me} has {mine} with node {peer}"
            ip, port, _, peer_port = mine[0]
            assert ip == address(me, family)
            if me < peer:
                assert port != listening[me] and peer_port == listening[peer]
            else:
                assert port == listening[me] and peer_port != listening[peer]


def test_lower_node_connects_higher_listens(cluster3: Cluster) -> None:
    """P10: each pair shares one connection, from the lower id to the port of the higher."""
    assert_lower_connects(cluster3)
    for node in range(3):
        assert sockets(cluster3, node, LISTEN) == [(address(node), str(PORT))]


def test_every_order_of_loading(unloaded: Cluster) -> None:
    """P10: the nodes reach the fully connected state whichever order they come in."""
    for order in itertools.permutations(range(3)):
        for node in order:
            unloaded.load(node)
        unloaded.wait_connected()
        assert_lower_connects(unloaded)
        unloaded.run_all("rmmod kccm")


def test_all_at_once(unloaded: Cluster) -> None:
    """P10: all nodes do it at the same time; only the lower of two makes attempts.

    Whoever is connected stays so.
    """
    incarnations = set()
    for _ in range(5):
        unloaded.load_all()
        unloaded.wait_connected()
        for node in range(3):
            incarnations.add(unloaded.attribute(node, "incarnation"))
            table = unloaded.peer_table(node)
            assert {peer["reconnects"] for peer in table.values()} == {"0"}
            for peer, attributes in table.items():
                # Whoever was there too early has made more than one.
                assert (int(attributes["attempts"]) > 0) == (node < peer)
                assert attributes["incarnation"] == unloaded.attribute(peer, "incarnation")
        unloaded.run_all("rmmod kccm")
    assert len(incarnations) == 15, "an incarnation is new at every load"


def test_ipv6(unloaded: Cluster) -> None:
    """P10: the same over IPv6."""
    unloaded.load_all(family=6)
    unloaded.wait_connected()
    assert_lower_connects(unloaded, family=6)
    assert unloaded.peer(0, 2, "address") == f"{address(2, 6)}:{PORT}"
    assert not sockets(unloaded, 0, ESTABLISHED)


def test_both_families(unloaded: Cluster) -> None:
    """P10: a node that is listed at its IPv6 address, the others at their IPv4 addresses."""
    listed = [address(0), address(1, 6), address(2)]
    unloaded.load_all(peers=",".join(f"{node}={at}" for node, at in enumerate(listed)))
    unloaded.wait_connected()
    # Each connection is of the family of the one that listens.
    assert [c[2] for c in sockets(unloaded, 1, ESTABLISHED, family=6)] == [address(0, 6)]
    assert [c[2] for c in sockets(unloaded, 1, ESTABLISHED)] == [address(2)]
    assert unloaded.peer(0, 1, "address") == f"{address(1, 6)}:{PORT}"


def test_ports_of_their_own(unloaded: Cluster) -> None:
    """The port parameter holds for the entries of peers that name none."""
    peers = f"0={address(0)},1={address(1)}:7711,2={address(2)}"
    unloaded.load_all(port=7722, peers=peers)
    unloaded.wait_connected()
    assert_lower_connects(unloaded, ports={0: 7722, 1: 7711, 2: 7722})
    assert unloaded.peer(0, 1, "address") == f"{address(1)}:7711"
    assert unloaded.peer(0, 2, "address") == f"{address(2)}:7722"


def test_several_listener_threads(unloaded: Cluster) -> None:
    """P4: a node with several listener threads connects just as well."""
    unloaded.load(0)
    unloaded.load(1, listeners=4)
    unloaded.load(2, listeners=2)
    unloaded.wait_connected()
    assert_lower_connects(unloaded)
    threads = [unloaded[n].run("ps -o comm | grep -c '^kccm[0-9]*/listen'").out for n in range(3)]
    assert [int(count) for count in threads] == [1, 4, 2]


def test_ids_with_gaps(unloaded: Cluster) -> None:
    """P10: ids need not follow each other, and 255 is one."""
    peers = f"255={address(0)},7={address(1)},100={address(2)}"
    ids = {0: 255, 1: 7, 2: 100}
    for node, number in ids.items():
        unloaded.load(node, peers=peers, node_id=number)
    for node, number in ids.items():
        for other in set(ids.values()) - {number}:
            unloaded.wait_state(node, other, "up")
    # 7 connects to both, 255 to none.
    to_port = {n: [c for c in sockets(unloaded, n, ESTABLISHED) if c[3] == str(PORT)] for n in ids}
    assert {node: len(connections) for node, connections in to_port.items()} == {0: 0, 1: 2, 2: 1}


def test_node_alone(unloaded: Cluster) -> None:
    """A cluster of one node is fully connected."""
    unloaded.load(1, peers=f"1={address(1)}")
    assert unloaded[1].run("ls /sys/kernel/kccm/peers").out == ""
    assert re.search(r"^peers 0$", unloaded.attribute(1, "stats"), re.MULTILINE)


def test_five_nodes(make_cluster: Callable[..., Cluster]) -> None:
    """P10: five nodes, ten connections."""
    cluster = make_cluster(5)
    assert_lower_connects(cluster)
