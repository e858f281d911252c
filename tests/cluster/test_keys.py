# SPDX-License-Identifier: GPL-2.0
"""Who may join: nodes without the key, or with another; keys that change; keys that are no good."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from cluster import Cluster, address
from cluster.cluster import PORT, SYSFS
from cluster.machine import Machine
from cluster.settings import paced, scaled
from logs import expect_line, kccm_lines
from traffic import traffic, unload_all

ClusterFactory = Callable[..., Cluster]

KEY = "kccm:test"
# No connection may be lost here, also where the machine has much else to do.
PATIENT = {"dead_ms": 10_000}
KEYED = {"key": KEY, **PATIENT}
SECRETS = {1: "the first secret, 0123456789", 2: "the second one, fedcba9876543210"}
ANOTHER = "not at all what the others have"

# What /proc/net/netstat calls them.
NOT_SIGNED, MISMATCHED, UNKNOWN = "TCPAORequired", "TCPAOBad", "TCPAOKeyNotFound"


def add_key(machine: Machine, number: int, secret: str, kind: str = "logon") -> None:
    """Put a key into root's keyring, as an administrator does: not as an argument."""
    machine.run(f"printf '%s' '{secret}' | keyctl padd {kind} {KEY}:{number} @u")


def remove_key(machine: Machine, number: int, kind: str = "logon") -> None:
    """Take a key out of root's keyring."""
    machine.run(f"keyctl unlink %{kind}:{KEY}:{number} @u")


def rekey(machine: Machine) -> None:
    """Have the node look for its keys again."""
    machine.write(f"{SYSFS}/rekey", "1")


def netstat(machine: Machine) -> dict[str, int]:
    """The counters of TcpExt in /proc/net/netstat."""
    lines = machine.run("grep '^TcpExt:' /proc/net/netstat").out.splitlines()
    names, values = (line.split()[1:] for line in lines)
    return {name: int(value) for name, value in zip(names, values)}


def wait_more(machine: Machine, before: dict[str, int], counter: str) -> None:
    """Wait until a counter of /proc/net/netstat has risen."""
    deadline = time.monotonic() + scaled(30)
    while netstat(machine)[counter] <= before[counter]:
        assert time.monotonic() < deadline, f"{machine.name}: {counter} does not rise"
        time.sleep(paced(0.2))


def wait_uses(cluster: Cluster, number: int, nodes: Iterable[int]) -> None:
    """Wait until these nodes sign all that they send with that key."""
    for node in nodes:
        all_do = f"[ \"$(cat {SYSFS}/peers/*/key | sort -u)\" = {number} ]"
        cluster[node].wait_until(all_do, timeout=60)


def up(cluster: Cluster, node: int) -> set[int]:
    """The peers that a node sees up."""
    return {peer for peer, shown in cluster.peer_table(node).items() if shown["state"] == "up"}


@pytest.fixture
def keyed(make_cluster: ClusterFactory) -> Iterator[Cluster]:
    """Three nodes without KCCM, with the first key in their keyrings."""
    cluster = make_cluster(3, load=False, tools=["keyctl", "insmod"])
    for machine in cluster:
        add_key(machine, 1, SECRETS[1])
    yield cluster


# Who has no key, or another.


@pytest.mark.limit(300)
def test_one_without_and_one_with_another(make_cluster: ClusterFactory) -> None:
    """The two that have the key go on; the others do not get through TCP's handshake.

    Who is to connect sees no answer; who listens sees why, and so does the kernel.
    """
    cluster = make_cluster(4, load=False, tools=["keyctl"])
    # Who has the key, who has none, who has another: those that listen to all, and those that
    # connect to all.
    for members, none, other in (((2, 3), 0, 1), ((0, 1), 3, 2)):
        for node in (*members, other):
            add_key(cluster[node], 1, ANOTHER if node == other else SECRETS[1])
        before = [netstat(machine) for machine in cluster]
        marks = [machine.mark() for machine in cluster]
        cluster.run_all(
            {
                node: f"insmod /modules/kccm.ko {cluster.parameters(node, **given)}"
                for node in range(4)
                for given in [PATIENT if node == none else KEYED]
            }
        )
        cluster.wait_connected(nodes=members)
        with traffic(cluster, members):
            for node in range(4):
                counters = set()
                if none < node:  # which connects to it
                    counters.add(NOT_SIGNED)
                if other < node != none or node == other > members[0]:
                    counters.add(MISMATCHED)
                if node == none and members[0] < node:
                    counters.add(UNKNOWN)
                for counter in counters:
                    wait_more(cluster[node], before[node], counter)
                if NOT_SIGNED in counters:
                    expect_line(cluster[node], marks[node], "refused what was not signed", 60)
                if MISMATCHED in counters:
                    line = "refused what was signed with another secret"
                    expect_line(cluster[node], marks[node], line, 60)
                for peer in range(node + 1, 4):
                    if {node, peer} & {none, other} and node != none:
                        where = address(peer).replace(".", r"\.")
                        line = f"not connected to {where}:{PORT}: no answer: .* another key"
                        expect_line(cluster[node], marks[node], line, 60)
                        says = cluster.peer(node, peer, "last_error")
                        assert says.startswith("ETIMEDOUT: no answer"), says
        for node in range(4):
            assert up(cluster, node) == (set(members) - {node} if node in members else set())
            # Nobody has come so far as to say who it is.
            said = "\n".join(kccm_lines(cluster[node], marks[node]))
            assert "connected to node" not in said or node in members
            assert "greet" not in said and "refused a connection" not in said
        for node in range(4):
            unload_all(cluster, node)
            cluster[node].run("keyctl clear @u")


@pytest.mark.limit(300)
def test_who_gets_the_key_is_let_in(keyed: Cluster) -> None:
    """A node that has only a newer key than the others joins when it has theirs, too."""
    late = keyed[1]
    remove_key(late, 1)
    add_key(late, 2, SECRETS[2])
    keyed.load_all(**KEYED)
    keyed.wait_connected(nodes=[0, 2])
    before = netstat(late)
    wait_more(late, before, UNKNOWN)
    assert up(keyed, 1) == set()
    add_key(late, 1, SECRETS[1])
    rekey(late)
    keyed.wait_connected()
    wait_uses(keyed, 1, range(3))


def test_client_in_user_space(keyed: Cluster) -> None:
    """Who connects to the port without a key gets no connection, and the kernel counts that."""
    keyed.load_all(**KEYED)
    keyed.wait_connected()
    target = keyed[1]
    before = netstat(target)
    mark = target.mark()
    for node in (0, 1, 2):
        client = keyed[node].run(f"nc -w 5 {address(1)} {PORT} </dev/null", check=False)
        assert client.rc != 0, f"connected from node {node}"
    wait_more(target, before, NOT_SIGNED)
    expect_line(target, mark, r"node 1: refused what was not signed \(segments so far: \d+\)")
    assert "refused_not_signed 0" not in keyed.attribute(1, "stats")
    assert up(keyed, 1) == {0, 2}


# Keys that change.


@pytest.mark.limit(300)
def test_rotation_under_load(keyed: Cluster) -> None:
    """Node by node, in different orders: no connection is lost, and no message."""
    keyed.load_all(**KEYED)
    keyed.wait_connected()
    with traffic(keyed, range(3)) as floods:
        for node in (1, 2, 0):
            add_key(keyed[node], 2, SECRETS[2])
            rekey(keyed[node])
            assert keyed.attribute(node, "key_numbers") == "1 2"
            floods.progress()
        wait_uses(keyed, 2, range(3))
        for node in (0, 2, 1):
            remove_key(keyed[node], 1)
            rekey(keyed[node])
            assert keyed.attribute(node, "key_numbers") == "2"
            floods.progress()
        wait_uses(keyed, 2, range(3))
    # And when connections break, they come back with the new one.
    count = int(keyed.peer(0, 2, "reconnects"))
    for node in (0, 1):
        keyed[node].write(f"{SYSFS}/peers/2/control", "reconnect")
    keyed[0].wait_until(f"[ $(cat {SYSFS}/peers/2/reconnects) -gt {count} ]")
    keyed.wait_connected()
    wait_uses(keyed, 2, range(3))


@pytest.mark.limit(300)
def test_rotation_without_load_and_half_done(keyed: Cluster) -> None:
    """Idle connections change over, too, and wait for nodes that are late."""
    keyed.load_all(**KEYED)
    keyed.wait_connected()
    for node in (0, 1):
        add_key(keyed[node], 2, SECRETS[2])
        rekey(keyed[node])
        # At once, before all have it.
        remove_key(keyed[node], 1)
        rekey(keyed[node])
    for node, other in ((0, 1), (1, 0)):
        mine = f"{SYSFS}/peers/{other}/key"
        keyed[node].wait_until(f"[ $(cat {mine}) = 2 ]")
        assert keyed.peer(node, 2, "key") == "1"
    assert keyed[2].run(f"cat {SYSFS}/peers/*/key").out.split() == ["1", "1"]
    add_key(keyed[2], 2, SECRETS[2])
    rekey(keyed[2])
    wait_uses(keyed, 2, range(3))
    for node in range(3):
        assert up(keyed, node) == {0, 1, 2} - {node}
        reconnects = keyed[node].run(f"cat {SYSFS}/peers/*/reconnects").out.split()
        assert reconnects == ["0", "0"]


@pytest.mark.limit(300)
def test_killed_node_comes_back_during_rotation(keyed: Cluster) -> None:
    """A node that was killed comes back with the new key only, and finds those that have both."""
    keyed.load_all(**KEYED)
    keyed.wait_connected()
    for node in (0, 2):
        add_key(keyed[node], 2, SECRETS[2])
        rekey(keyed[node])
    keyed.kill(1)
    with traffic(keyed, (0, 2)):
        keyed.boot([1])
        add_key(keyed[1], 2, SECRETS[2])
        keyed.load(1, **KEYED)
        keyed.wait_connected()
    wait_uses(keyed, 2, range(3))


# Keys that are no good.


def expect_refusal(machine: Machine, arguments: str, error: int, says: str) -> None:
    """insmod fails with an error, and the log says why in one line."""
    mark = machine.mark()
    result = machine.try_insmod("kccm", arguments)
    assert result.rc != 0 and os.strerror(error) in result.out, result.out
    lines = [line for line in kccm_lines(machine, mark) if "out-of-tree" not in line]
    assert len(lines) == 1 and says in lines[0], lines


def test_keys_that_are_no_good(make_cluster: ClusterFactory) -> None:
    """Loading fails, and one line says what is wrong with which key."""
    cluster = make_cluster(1, load=False, tools=["keyctl", "insmod"])
    machine = cluster[0]
    arguments = cluster.parameters(0, key=KEY)
    none = f"key: no key {KEY}:0 to {KEY}:255 of type logon or user in the keyrings"
    expect_refusal(machine, arguments, errno.ENOKEY, none)
    # Of another type.
    machine.run(f"keyctl newring {KEY}:1 @u")
    expect_refusal(machine, arguments, errno.ENOKEY, none)
    # Too short, too long: each is named.
    for secret, says in (
        ("x" * 15, "has 15 bytes; it must have 16 to 80"),
        ("x" * 81, "has more than 80 bytes; it must have 16 to 80"),
    ):
        add_key(machine, 7, secret)
        mark = machine.mark()
        result = machine.try_insmod("kccm", arguments)
        assert result.rc != 0
        expect_line(machine, mark, f"key: {KEY}:7 {says}")
        remove_key(machine, 7)
    # Revoked.
    add_key(machine, 8, SECRETS[1])
    machine.run(f"keyctl revoke %logon:{KEY}:8")
    expect_refusal(machine, arguments, errno.EKEYREVOKED, f"key: {KEY}:8 was revoked")
    # One that is good makes up for one that is no more.
    add_key(machine, 9, SECRETS[2], "user")
    machine.insmod("kccm", arguments)
    assert cluster.attribute(0, "key_numbers") == "9"
    # The keys stay when those that are found are no good.
    remove_key(machine, 9, "user")
    mark = machine.mark()
    assert machine.run(f"echo 1 >{SYSFS}/rekey", check=False).rc != 0
    expect_line(machine, mark, f"node 0: the keys stay as they are: key: {KEY}:8 was revoked")
    assert cluster.attribute(0, "key_numbers") == "9"


def test_secret_is_shown_nowhere(keyed: Cluster) -> None:
    """Neither sysfs nor the log have it, and a key of type logon is not read back by anybody."""
    keyed.load_all(**KEYED)
    keyed.wait_connected()
    machine = keyed[0]
    secret = SECRETS[1]
    assert keyed.attribute(0, "key") == KEY
    assert machine.read("/sys/module/kccm/parameters/key") == KEY
    found = machine.run(
        f"grep -rs '{secret}' /sys/kernel/kccm /sys/module/kccm /proc/keys", check=False
    )
    assert found.out == ""
    assert secret not in machine.dmesg()
    assert machine.run(f"keyctl print %logon:{KEY}:1", check=False).rc != 0


def test_no_key_is_asked_for(cluster3: Cluster) -> None:
    """Without the parameter nothing is signed, and there is nothing to look for."""
    assert cluster3.attribute(0, "key") == cluster3.attribute(0, "key_numbers") == "none"
    assert cluster3.peer(0, 1, "key") == "none"
    assert cluster3[0].run(f"echo 1 >{SYSFS}/rekey", check=False).rc != 0
    counters = netstat(cluster3[0])
    assert not [name for name in (NOT_SIGNED, MISMATCHED, UNKNOWN) if counters[name]]
