# SPDX-License-Identifier: GPL-2.0
"""Whoever else speaks to the port: a clear line in the log, and nobody else is disturbed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

import wire
from cluster import Cluster, Job, address
from cluster.cluster import PORT, SYSFS
from logs import expect_line, expect_once, kccm_lines, wait_for_log_room
from stranger import Stranger, hello, impostor, stranger
from traffic import traffic, unload_all

# Where strangers come from, and whom they speak to.
HERE, TARGET = 0, 1
FROM_HERE = r"10\.1\.0\.1:\d+"


def connections_to_port(cluster: Cluster, node: int) -> list[str]:
    """The other ends of a node's connections to its port."""
    lines = cluster[node].run("netstat -tn").out.splitlines()
    fields = [line.split() for line in lines if "ESTABLISHED" in line]
    return [f[4] for f in fields if f[3] == f"{address(node)}:{PORT}"]


# Greetings.


@dataclass
class Bad:
    """A greeting that is refused, and why."""

    reason: str
    change: dict[str, Any]
    node: int = HERE
    nameless: bool = False  # who it claims to be cannot be read


BAD_GREETINGS = [
    Bad("wrong version", {"version": wire.VERSION + 1}, nameless=True),
    Bad("wrong version", {"version": 0xFFFF}, nameless=True),
    Bad("wrong cluster", {"cluster": "other"}),
    Bad("wrong cluster", {"cluster": "strangers2"}),
    Bad("unknown id", {"source": 9}),
    Bad("unknown id", {"source": TARGET}),
    Bad("unknown id", {"to": 2}),
    Bad("wrong direction", {"source": 2}, node=2),
    Bad("wrong address", {"source": 0}, node=2),
    Bad("duplicate", {"incarnation": 0xBAD}),
    Bad("malformed greeting", {"kind": wire.WELCOME}),
    Bad("malformed greeting", {"kind": 77}),
    Bad("malformed greeting", {"reason": 1}),
    Bad("malformed greeting", {"source": 256}),
    Bad("malformed greeting", {"incarnation": 0}),
    Bad("malformed greeting", {"dead_ms": 0}),
    Bad("malformed greeting", {"queue_bytes": 1}),
    Bad("malformed greeting", {"received": 5}),
    Bad("malformed greeting", {"cluster": ""}),
    Bad("malformed greeting", {"cluster": "two words"}),
]


@pytest.mark.limit(300)
def test_bad_greetings_are_refused(cluster3: Cluster) -> None:
    """P10: whoever does not belong is told why, logged with the reason, and closed."""
    machine = cluster3[TARGET]
    with traffic(cluster3, range(3)):
        for bad in BAD_GREETINGS:
            wait_for_log_room(machine)
            mark = machine.mark()
            greeting = hello(cluster3, bad.node, TARGET, **bad.change)
            with stranger(cluster3, bad.node, TARGET, greeting) as client:
                answer = client.greeting()
                client.closed_within()
                assert len(client.received()) == wire.GREETING_LEN
            assert answer.magic == wire.MAGIC and answer.kind == wire.REFUSAL
            assert wire.REASONS[answer.reason] == bad.reason, bad
            claims = "" if bad.nameless else f" as node {bad.change.get('source', bad.node)}"
            origin = re.escape(address(bad.node))
            line = rf"refused a connection from {origin}:\d+{claims}: {bad.reason}$"
            expect_once(machine, mark, line)
        assert len(connections_to_port(cluster3, TARGET)) == 1


GARBAGE = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: node1\r\nAccept: */*\r\n\r\n" + b"x" * 200,
    "zeros": bytes(wire.GREETING_LEN),
    "noise": os.urandom(4096),
    "a frame": wire.message(1, b"without a greeting" * 20),
}


def test_garbage_is_closed(cluster3: Cluster) -> None:
    """What is not KCCM's is closed without a word; the log says where it came from."""
    machine = cluster3[TARGET]
    with traffic(cluster3, range(3)):
        for data in GARBAGE.values():
            wait_for_log_room(machine)
            mark = machine.mark()
            with stranger(cluster3, HERE, TARGET, data) as client:
                client.closed_within()
                assert client.received() == b""
            expect_once(machine, mark, rf"node {TARGET}: {FROM_HERE} is not KCCM: closed$")


def test_half_a_greeting_then_the_end(cluster3: Cluster) -> None:
    """A greeting that is cut off by the end of the stream is closed, and logged."""
    machine = cluster3[TARGET]
    with traffic(cluster3, range(3)):
        for length in (0, 1, wire.GREETING_LEN - 1):
            wait_for_log_room(machine)
            mark = machine.mark()
            part = hello(cluster3, HERE, TARGET)[:length]
            with stranger(cluster3, HERE, TARGET, part) as client:
                cluster3[HERE].wait_until(f"netstat -tn | grep -q '{address(TARGET)}:{PORT} '")
                client.finish()
                client.closed_within()
                assert client.received() == b""
            expect_once(machine, mark, rf"node {TARGET}: {FROM_HERE} ended without a greeting$")


def test_silence_is_closed_in_time(cluster3: Cluster) -> None:
    """P10: who connects and says nothing, or stops half-way, has handshake_ms and no more."""
    machine = cluster3[TARGET]
    wait_for_log_room(machine)
    mark = machine.mark()
    with traffic(cluster3, range(3)):
        part = hello(cluster3, HERE, TARGET)[:100]
        with (
            stranger(cluster3, HERE, TARGET) as mute,
            stranger(cluster3, HERE, TARGET, part) as half,
        ):
            for client in (mute, half):
                client.closed_within()
                assert client.received() == b""
    within = f"within {cluster3.handshake_ms} ms"
    says = rf"node {TARGET}: {FROM_HERE} did not greet {within}: closed"
    lines = [line for line in kccm_lines(machine, mark) if re.search(says, line)]
    assert len(lines) == 2


def test_slow_greeting_is_in_time(cluster3: Cluster) -> None:
    """A greeting that comes in pieces is as good as any: here, good enough to be refused."""
    wait_for_log_room(cluster3[TARGET])
    with stranger(cluster3, HERE, TARGET) as client:
        data = hello(cluster3, HERE, TARGET, cluster="other")
        for start in range(0, len(data), 48):
            client.send(data[start : start + 48])
        assert wire.REASONS[client.greeting().reason] == "wrong cluster"
        client.closed_within()


@pytest.mark.limit(300)
def test_many_connections_at_once(cluster3: Cluster) -> None:
    """Connections that say nothing: peers connect as before. No more than a few are kept.

    The log says so, and with the strangers everything that they had is gone.
    """
    machine, of_strangers, of_a_peer = cluster3[TARGET], 64, 8
    for node in range(3):
        unload_all(cluster3, node)
    # A cluster of two: node 2 is a stranger.
    peers = f"{HERE}={address(HERE)},{TARGET}={address(TARGET)}"
    cluster3.load(HERE, peers=peers)
    cluster3.load(TARGET, peers=peers, handshake_ms=60_000)
    cluster3.wait_connected(nodes=[HERE, TARGET])
    pending = f"netstat -tn | grep -c '{address(TARGET)}:{PORT} .*EST'"
    mark = machine.mark()

    def crowd(node: int, size: int) -> Job:
        # Not one of them has anything to say.
        one = f"nc {address(TARGET)} {PORT} <&4 >/dev/null 2>&1 &"
        return cluster3[node].spawn(
            "mkfifo /tmp/crowd; exec 4<>/tmp/crowd; rm /tmp/crowd; "
            f"i=0; while [ $i -lt {size} ]; do {one} i=$((i + 1)); done; wait"
        )

    jobs = [crowd(2, of_strangers + 20)]
    machine.wait_until(f"[ $({pending}) = {of_strangers + 1} ]", timeout=60)
    many = r"too many connections without a greeting, one from 10\.1\.0\.3:\d+ closed"
    expect_line(machine, mark, many, timeout=60)
    # A peer finds its place all the same.
    cluster3[HERE].write(f"{SYSFS}/peers/{TARGET}/control", "reconnect")
    expect_line(machine, mark, f"lost node {HERE} ")
    cluster3.wait_connected(nodes=[HERE, TARGET])
    # From a peer's machine come a few more, to the harm of that peer alone.
    with traffic(cluster3, [HERE, TARGET]):
        jobs.append(crowd(HERE, of_a_peer + 20))
        both = of_strangers + of_a_peer + 1
        machine.wait_until(f"[ $({pending}) = {both} ]", timeout=60)
        for node, kept in ((2, of_strangers), (HERE, of_a_peer)):
            cluster3[node].wait_until(f"[ $(pidof nc | wc -w) = {kept} ]", timeout=60)
        wait_for_log_room(machine)
        for job in jobs:
            job.stop()
        expect_line(machine, mark, r"10\.1\.0\.[13]:\d+ ended without a greeting")
        machine.wait_until(f"[ $({pending}) = 1 ]")
    for node in (HERE, TARGET):
        unload_all(cluster3, node)
    cluster3.load_all()
    cluster3.wait_connected()


# Frames, from somebody who has greeted well.


@pytest.fixture
def speaker(cluster3: Cluster) -> Iterator[Cluster]:
    """Node 0 has no KCCM, so that a user-space client there can speak for it."""
    unload_all(cluster3, HERE)
    yield cluster3
    cluster3.load(HERE)
    cluster3.wait_connected()


@contextmanager
def greeted(cluster: Cluster, first: bytes = b"", **change: Any) -> Iterator[Stranger]:
    """A client that is node 0 to the target, and sends ``first`` right after its greeting.

    It is heard before that, as every peer must be.
    """
    said = hello(cluster, HERE, TARGET, **change) + wire.header(wire.PING) + first
    with stranger(cluster, HERE, TARGET, said) as client:
        answer = client.greeting()
        assert answer.kind == wire.WELCOME and answer.source == TARGET and answer.to == HERE
        yield client


H = wire.header
MALFORMED = {
    "unknown kind": (H(77), r"Kind\(77\)"),
    "kind 0": (H(0), r"Kind\(0\)"),
    "reserved field": (H(wire.PING, reserved=1), "Field"),
    "flags of a message": (H(wire.MESSAGE, 4, flags=1, tag=1) + b"four", "Field"),
    "argument of a message": (H(wire.MESSAGE, 4, arg=1, tag=1) + b"four", "Field"),
    "outcome of a reply": (H(wire.REPLY, flags=99), "Field"),
    "lane of a credit": (H(wire.CREDIT, id=1, tag=2), "Field"),
    "reason of a bye": (H(wire.BYE, tag=99), "Field"),
    "payload of a ping": (H(wire.PING, 1) + b"x", r"TooLong\(1\)"),
    "message too long": (H(wire.MESSAGE, (16 << 20) + 1, tag=1), r"TooLong\(16777217\)"),
    "length of 4 GiB": (H(wire.MESSAGE, 0xFFFFFFFF, tag=1), r"TooLong\(4294967295\)"),
    "call too long": (H(wire.CALL, (1 << 20) + 1, tag=1), r"TooLong\(1048577\)"),
    "reply too long": (H(wire.REPLY, (1 << 20) + 1), r"TooLong\(1048577\)"),
    "room for a reply": (H(wire.CALL_SYNC, arg=-1, tag=1), r"TooLong\(4294967295\)"),
    "noise": (b"\xa5" * 64, r"Kind\(165\)"),
}


@pytest.mark.limit(300)
def test_malformed_frames_end_the_connection(speaker: Cluster) -> None:
    """A frame that makes no sense: a line in the log, a good-bye, the connection closed."""
    machine = speaker[TARGET]
    bye = wire.header(wire.BYE, ack=1, tag=4)
    with traffic(speaker, [TARGET, 2]):
        for name, (data, says) in MALFORMED.items():
            wait_for_log_room(machine)
            mark = machine.mark()
            before = int(speaker.peer(TARGET, HERE, "rx_messages"))
            # A good message first, to see that it is the bad one that is minded.
            with greeted(speaker, wire.message(0x5712, b"a good one") + data) as client:
                client.closed_within()
                assert bye in client.received(), name
            malformed = rf"node {HERE} sent a malformed frame \({says}\): disconnected$"
            expect_once(machine, mark, malformed)
            expect_line(machine, mark, rf"lost node {HERE} \(.*\): EPROTO")
            assert speaker.peer(TARGET, HERE, "last_error") == "EPROTO", name
            assert int(speaker.peer(TARGET, HERE, "rx_messages")) == before + 1, name


def test_half_a_frame_then_the_end(speaker: Cluster) -> None:
    """P11: the stream ends inside a frame: the peer is lost at once, nothing of it delivered."""
    frame = wire.message(1, b"x" * 1000)
    machine = speaker[TARGET]
    with traffic(speaker, [TARGET, 2]):
        for length in (1, wire.HEADER_LEN - 1, wire.HEADER_LEN, len(frame) - 1):
            mark = machine.mark()
            before = speaker.peer(TARGET, HERE, "rx_messages")
            with greeted(speaker, frame[:length]) as client:
                client.finish()
                client.closed_within()
            expect_line(machine, mark, rf"lost node {HERE} \(.*\): ECONNRESET")
            assert speaker.peer(TARGET, HERE, "rx_messages") == before


def test_half_a_frame_then_silence(speaker: Cluster) -> None:
    """P11: a peer that greets, sends half a frame and says no more, is dead after dead_ms."""
    machine = speaker[TARGET]
    mark = machine.mark()
    with traffic(speaker, [TARGET, 2]):
        with greeted(speaker, wire.message(1, b"x" * 1000)[:500]) as client:
            client.closed_within(30)
    line = expect_line(machine, mark, rf"node {HERE} has been silent for \d+ ms: disconnected")
    silent = re.search(r"for (\d+) ms", line)
    assert silent and int(silent[1]) >= speaker.dead_ms
    assert speaker.peer(TARGET, HERE, "last_error") == "ETIMEDOUT"


def test_grants_that_cannot_be(speaker: Cluster) -> None:
    """A peer that grants more than its window is cut off."""
    mark = speaker[TARGET].mark()
    with traffic(speaker, [TARGET, 2]):
        with greeted(speaker, wire.header(wire.CREDIT, id=1 << 40, tag=0)) as client:
            client.closed_within()
        expect_line(speaker[TARGET], mark, rf"lost node {HERE} \(.*\): EPROTO")


def test_more_than_was_granted(speaker: Cluster) -> None:
    """A peer that sends more than it was granted is cut off; what it had sent so far is kept."""
    unload_all(speaker, TARGET)
    length, fit = 40_000, 4
    window = fit * (length + 256) + 100
    speaker.load(TARGET, queue_bytes=window, max_message=length)
    speaker.wait_connected(nodes=[TARGET, 2])
    machine = speaker[TARGET]
    mark = machine.mark()
    with traffic(speaker, [TARGET, 2], size=1000):
        with greeted(speaker) as client:
            numbers = range(1, fit + 2)
            heads = [H(wire.MESSAGE, length, tag=0x7FFF, seq=number) for number in numbers]
            client.send_zeros(heads, length)
            client.closed_within()
        expect_line(machine, mark, rf"lost node {HERE} \(.*\): EPROTO")
        assert int(speaker.peer(TARGET, HERE, "queued_bytes")) == fit * (length + 256)
    unload_all(speaker, TARGET)
    speaker.load(TARGET)
    speaker.wait_connected(nodes=[TARGET, 2])


# Servers in a node's place.

ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "not KCCM": ({"magic": b"HTTP"}, "refused node 2 at .*: malformed greeting"),
    "another version": ({"version": wire.VERSION + 1}, "refused node 2 at .*: wrong version"),
    "no such kind": ({"kind": 9}, "refused node 2 at .*: malformed greeting"),
    "another cluster": ({"cluster": "other"}, "refused node 2 at .*: wrong cluster"),
    "another node": ({"source": 1}, "refused node 2 at .*: unknown id"),
    "for another node": ({"to": 1}, "refused node 2 at .*: unknown id"),
    "for an earlier run": ({"to_incarnation": 1}, "refused node 2 at .*: unknown id"),
    "a refusal": ({"kind": wire.REFUSAL, "reason": 6}, "refused by node 2 at .*: wrong address"),
    "for no reason": ({"kind": wire.REFUSAL, "reason": 99}, "refused node 2 at .*: malformed gr"),
}


@pytest.fixture
def absent(cluster3: Cluster) -> Iterator[Cluster]:
    """Node 2 has no KCCM, and node 1 cannot reach it."""
    cluster3.cut(1, 2)
    unload_all(cluster3, 2)
    unload_all(cluster3, 0)
    # Short pauses, so that the tests need not wait for the next attempt.
    cluster3.load(0, backoff_max_ms=200)
    cluster3.wait_connected(nodes=[0, 1])
    yield cluster3
    unload_all(cluster3, 0)
    cluster3.heal(1, 2)
    cluster3.load(0)
    cluster3.load(2)
    cluster3.wait_connected()


@pytest.mark.limit(300)
def test_wrong_answers(absent: Cluster) -> None:
    """P10: what answers in a peer's place is not taken for it; the log says why, once."""
    machine = absent[0]
    last_error = f"{SYSFS}/peers/2/last_error"
    incarnation = int(absent.attribute(0, "incarnation"), 16)
    with traffic(absent, [0, 1]):
        for name, (change, says) in ANSWERS.items():
            # Another failure first: a reason that stays the same is logged once.
            machine.wait_until(f"grep -qx ECONNREFUSED {last_error}", what=name)
            mark = machine.mark()
            with impostor(absent, 2) as server:
                greeting = server.greeting()
                assert greeting.kind == wire.HELLO and (greeting.source, greeting.to) == (0, 2)
                assert greeting.incarnation == incarnation
                assert greeting.cluster == absent.name
                good = replace(
                    wire.Greeting(absent.name, source=2, to=0),
                    kind=wire.WELCOME,
                    to_incarnation=incarnation,
                )
                server.send(replace(good, **change).encode())
                server.closed_within()
            expect_once(machine, mark, f"node 0: {says}")
            assert absent.peer_state(0, 2) != "up"
    assert absent.peer_state(0, 1) == "up"


def test_no_answer(absent: Cluster) -> None:
    """P10: a server that accepts and never answers is given up after handshake_ms."""
    machine = absent[0]
    unload_all(absent, 0)
    # Time to see why, before the next attempt finds nobody.
    absent.load(0, backoff_min_ms=10_000, backoff_max_ms=60_000)
    with impostor(absent, 2) as server:
        reconnect = f"{{ echo reconnect >{SYSFS}/peers/2/control; false; }}"
        machine.wait_until(f"grep -qx greeting {SYSFS}/peers/2/state || {reconnect}")
        absent.wait_connected(nodes=[0, 1])
        with traffic(absent, [0, 1]):
            server.greeting()
            server.closed_within()
            machine.wait_until(f"grep -qx ETIMEDOUT {SYSFS}/peers/2/last_error")
            assert absent.peer_state(0, 2) == "backoff"


@pytest.mark.limit(300)
def test_refusals_of_every_kind(absent: Cluster) -> None:
    """P10: whatever a node is refused for, it says so: in the log, and in sysfs."""
    machine = absent[0]
    last_error = f"{SYSFS}/peers/2/last_error"
    incarnation = int(absent.attribute(0, "incarnation"), 16)
    with traffic(absent, [0, 1]):
        for reason, name in wire.REASONS.items():
            machine.wait_until(f"grep -qx ECONNREFUSED {last_error}", what=name)
            mark = machine.mark()
            with impostor(absent, 2) as server:
                server.greeting()
                refusal = wire.Greeting(absent.name, source=2, to=0, kind=wire.REFUSAL)
                refusal = replace(refusal, reason=reason, to_incarnation=incarnation)
                server.send(refusal.encode())
                server.closed_within()
            expect_once(machine, mark, f"node 0: refused by node 2 at .*: {name}$")


def test_unknown_to_another(cluster3: Cluster) -> None:
    """P10: a node that is not on another's list is refused; both logs and sysfs say why."""
    unload_all(cluster3, 0)
    unload_all(cluster3, 2)
    # Node 2 has never heard of node 0.
    cluster3.load(2, peers=f"1={address(1)},2={address(2)}")
    marks = {n: cluster3[n].mark() for n in range(3)}
    cluster3.load(0)
    cluster3.wait_connected(nodes=[0, 1])
    expect_line(cluster3[2], marks[2], rf"refused a connection from {FROM_HERE} .*: unknown id")
    expect_once(cluster3[0], marks[0], "refused by node 2 at .*: unknown id")
    cluster3[0].wait_until(f"grep -qx 'refused: unknown id' {SYSFS}/peers/2/last_error")
    for node in (0, 2):
        unload_all(cluster3, node)
    cluster3.load(0)
    cluster3.load(2)
    cluster3.wait_connected()


# Nodes that do not belong.


@pytest.mark.parametrize("node", [0, 1, 2])
def test_node_of_another_cluster(cluster3: Cluster, node: int) -> None:
    """P10: a node with another cluster's name stays out; both logs and sysfs say why."""
    others = [other for other in range(3) if other != node]
    with traffic(cluster3, others) as floods:
        pass
    unload_all(cluster3, node)
    marks = {n: cluster3[n].mark() for n in range(3)}
    for other in others:
        wait_for_log_room(cluster3[other], lines=6)
    cluster3.load(node, cluster="other", backoff_max_ms=400)
    try:
        floods.start()
        for other in others:
            low, high = sorted((node, other))
            at = re.escape(address(low))
            refused = rf"refused a connection from {at}:\d+ as node {low}: wrong cluster"
            expect_line(cluster3[high], marks[high], refused)
            says = f"refused by node {high} at .*: wrong cluster"
            expect_line(cluster3[low], marks[low], says)
            shown = f"grep -qx 'refused: wrong cluster' {SYSFS}/peers/{high}/last_error"
            cluster3[low].wait_until(shown)
            assert cluster3.peer_state(node, other) != "up"
            assert cluster3.peer_state(other, node) != "up"
            # Refused again and again, but a line at each end is enough.
            before = int(cluster3.peer(low, high, "attempts"))
            more = f"[ $(cat {SYSFS}/peers/{high}/attempts) -gt {before + 2} ]"
            cluster3[low].wait_until(more, timeout=20)
            expect_once(cluster3[high], marks[high], refused)
            expect_once(cluster3[low], marks[low], says)
        floods.progress()
    finally:
        floods.stop()
        unload_all(cluster3, node)
    floods.complete()
    cluster3.load(node)
    cluster3.wait_connected()


def test_node_with_another_id(cluster3: Cluster) -> None:
    """P10: a node that says it is another is not let in from its own address."""
    unload_all(cluster3, 2)
    marks = {n: cluster3[n].mark() for n in range(3)}
    wait_for_log_room(cluster3[1])
    peers = f"0={address(2)},1={address(1)},2={address(0)}"
    cluster3.load(2, node_id=0, peers=peers)
    expect_line(cluster3[1], marks[1], r"connection from 10\.1\.0\.3:\d+ as node 0: wrong address")
    expect_line(cluster3[2], marks[2], "refused by node 1 at .*: wrong address")
    cluster3[2].wait_until(f"grep -qx 'refused: wrong address' {SYSFS}/peers/1/last_error")
    assert cluster3.peer_state(0, 1) == cluster3.peer_state(1, 0) == "up"
    cluster3.unload(2)
    cluster3.load(2)
    cluster3.wait_connected()
