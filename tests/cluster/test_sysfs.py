# SPDX-License-Identifier: GPL-2.0
"""/sys/kernel/kccm: what it shows is documented and true, and its knobs do what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from cluster import Cluster, address
from cluster.cluster import PORT, SYSFS
from cluster.settings import TREE, scaled
from logs import expect_line, expect_once, wait_for_log_room
from traffic import demo, need_demo, unload_all

ABI = TREE / "Documentation" / "ABI" / "sysfs-kernel-kccm"
LONG_PAUSE_MS = 60_000


@pytest.fixture
def patient(cluster3: Cluster) -> Iterator[Cluster]:
    """Node 0 pauses for long before it connects again; as before after the test."""
    unload_all(cluster3, 0)
    cluster3.load(0, backoff_min_ms=LONG_PAUSE_MS, backoff_max_ms=LONG_PAUSE_MS)
    cluster3.wait_connected()
    yield cluster3
    for node in range(3):
        unload_all(cluster3, node)
    cluster3.load_all()
    cluster3.wait_connected()


def documented() -> dict[str, str]:
    """The files of the ABI document, and what it says of each."""
    entries = re.split(r"^What:\s*", ABI.read_text(), flags=re.MULTILINE)[1:]
    texts = dict(entry.split("\n", 1) for entry in entries)
    return {path.removeprefix(f"{SYSFS}/"): text for path, text in texts.items()}


def reconnects(cluster: Cluster, node: int, peer: int) -> int:
    """How often the connection was established again."""
    return int(cluster.peer(node, peer, "reconnects"))


def test_every_file_is_documented(cluster3: Cluster) -> None:
    """The files are those of Documentation/ABI, with the modes that it implies."""
    listed = cluster3[0].run(f"cd {SYSFS} && find . -type f -exec stat -c '%n %a' '{{}}' +").out
    modes: dict[str, str] = {}
    for line in listed.splitlines():
        name, mode = line.removeprefix("./").split()
        modes[re.sub(r"^peers/\d+/", "peers/<id>/", name)] = mode
    texts = documented()
    folder = texts.pop("peers/")
    assert "each other node" in folder
    assert set(modes) == set(texts)
    for name, mode in modes.items():
        text = texts[name]
        wanted = "200" if "Write only" in text else "644" if "Writing" in text else "444"
        assert mode == wanted, name
    assert cluster3[0].run(f"ls {SYSFS}/peers").out.split() == ["1", "2"]


def test_values(cluster3: Cluster) -> None:
    """Everything that an idle node shows is as it should be."""
    own = {node: cluster3.attribute(node, "incarnation") for node in range(3)}
    for node in range(3):
        assert cluster3.attribute(node, "node_id") == str(node)
        assert cluster3.attribute(node, "cluster") == cluster3.name
        assert re.fullmatch(r"[0-9a-f]{16}", own[node]) and int(own[node], 16)
        table = cluster3.peer_table(node)
        assert set(table) == {0, 1, 2} - {node}
        for peer, shown in table.items():
            assert shown["state"] == "up"
            assert shown["address"] == f"{address(peer)}:{PORT}"
            assert shown["incarnation"] == own[peer]
            assert shown["admin"] == "up"
            assert shown["last_error"] == "none"
            assert shown["next_attempt_ms"] == "none"
            assert shown["queued_bytes"] == "0"
    assert len(set(own.values())) == 3


def stats(cluster: Cluster, node: int) -> dict[str, int]:
    """The file of that name."""
    lines = [line.split() for line in cluster.attribute(node, "stats").splitlines()]
    return {name: int(value) for name, value in lines}


def test_stats_are_documented(cluster3: Cluster) -> None:
    """The lines of stats are those of Documentation/ABI, in that order."""
    names = re.findall(r"^\s+([a-z_]+):", documented()["stats"].split("Description:")[1], re.M)
    assert list(stats(cluster3, 0)) == names
    assert stats(cluster3, 0)["peers"] == stats(cluster3, 0)["peers_up"] == 2


def test_counters_count(cluster3: Cluster) -> None:
    """Messages, calls and bytes are counted at both ends; a queue shows what it keeps."""
    need_demo(cluster3)
    sender, receiver = (0, 2), (2, 0)
    text = "eleven char"
    before = {ends: cluster3.peer_table(ends[0])[ends[1]] for ends in (sender, receiver)}
    assert stats(cluster3, 2)["messages_waiting"] == 0
    for _ in range(3):
        demo(cluster3[0], f"send 2 4711 {text}")
    cluster3[2].wait_until(f"grep -q 'messages_waiting 3' {SYSFS}/stats")
    # 256 bytes for the bookkeeping of each.
    assert int(cluster3.peer(2, 0, "queued_bytes")) == 3 * (len(text) + 256)
    for _ in range(3):
        assert f"text={text}" in demo(cluster3[2], "recv 0 4711 1000")
    assert cluster3.peer(2, 0, "queued_bytes") == "0"
    demo(cluster3[0], "ping 2 5 100 sync")
    after = {ends: cluster3.peer_table(ends[0])[ends[1]] for ends in (sender, receiver)}

    def more(ends: tuple[int, int], name: str) -> int:
        return int(after[ends][name]) - int(before[ends][name])

    bytes_out, bytes_back = 3 * len(text) + 5 * 100, 5 * 100
    assert more(sender, "tx_messages") == more(receiver, "rx_messages") == 3
    assert more(sender, "tx_rcalls") == more(receiver, "rx_rcalls") == 5
    assert more(sender, "tx_bytes") == more(receiver, "rx_bytes") == bytes_out
    assert more(sender, "rx_bytes") == more(receiver, "tx_bytes") == bytes_back
    assert more(sender, "reconnects") == more(receiver, "reconnects") == 0


@pytest.mark.parametrize(("node", "peer"), [(0, 1), (1, 0)], ids=["connecting", "listening"])
def test_admin_down_and_up(cluster3: Cluster, node: int, peer: int) -> None:
    """P11: the administrator takes a peer down: it stays down, and the peer is told.

    On the node that connects as well as on the one that listens.
    """
    wait_for_log_room(cluster3[peer])
    mark, own_mark = cluster3[peer].mark(), cluster3[node].mark()
    before = reconnects(cluster3, node, peer), reconnects(cluster3, peer, node)
    cluster3[node].write(f"{SYSFS}/peers/{peer}/admin", "down")
    assert cluster3.peer_state(node, peer) == "down"
    assert cluster3.peer(node, peer, "admin") == "down"
    expect_line(cluster3[peer], mark, f"node {node} has taken this node down by its administrator")
    cluster3.wait_lost(peer, node)
    cluster3[node].wait_until(
        f"grep -qx 'taken down by the administrator' {SYSFS}/peers/{peer}/last_error"
    )
    told = f"grep -qx 'refused: administratively down' {SYSFS}/peers/{node}/last_error"
    cluster3[peer].wait_until(told)
    if peer < node:
        # It connects again, and is refused.
        attempts = int(cluster3.peer(peer, node, "attempts"))
        cluster3[peer].wait_until(f"[ $(cat {SYSFS}/peers/{node}/attempts) -gt {attempts + 3} ]")
        cluster3[peer].wait_until(told)
        # Again and again, but a line is enough.
        refused = rf"refused a connection from .* as node {peer}: administratively down"
        expect_once(cluster3[node], own_mark, refused)
    assert cluster3.peer_state(node, peer) == "down"
    # The others do not notice.
    assert cluster3.peer_state(2, 0) == cluster3.peer_state(2, 1) == "up"
    cluster3[node].write(f"{SYSFS}/peers/{peer}/admin", "up")
    cluster3.wait_connected()
    assert (reconnects(cluster3, node, peer), reconnects(cluster3, peer, node)) == (
        before[0] + 1,
        before[1] + 1,
    )
    assert cluster3.peer(node, peer, "last_error") == "none"
    # Up to what is up changes nothing.
    cluster3[node].write(f"{SYSFS}/peers/{peer}/admin", "up")
    assert cluster3.peer_state(node, peer) == "up"


@pytest.mark.parametrize("knob", ["disconnect", "reconnect"])
@pytest.mark.parametrize(("node", "peer"), [(0, 2), (2, 0)], ids=["connecting", "listening"])
def test_control(cluster3: Cluster, node: int, peer: int, knob: str) -> None:
    """P11: a connection that the administrator ends is established again, between the same two."""
    wait_for_log_room(cluster3[peer])
    mark = cluster3[peer].mark()
    before = reconnects(cluster3, node, peer)
    incarnation = cluster3.peer(node, peer, "incarnation")
    cluster3[node].write(f"{SYSFS}/peers/{peer}/control", knob)
    cluster3[node].wait_until(f"grep -qx {before + 1} {SYSFS}/peers/{peer}/reconnects")
    cluster3.wait_connected()
    expect_line(cluster3[peer], mark, f"node {node} reconnects by its administrator")
    assert cluster3.peer(node, peer, "incarnation") == incarnation
    assert reconnects(cluster3, node, peer) == before + 1


def test_disconnect_pauses_reconnect_does_not(patient: Cluster) -> None:
    """After "disconnect" the back-off's pause is kept; "reconnect" has none, and ends one."""
    before = reconnects(patient, 0, 2)
    patient[0].write(f"{SYSFS}/peers/2/control", "reconnect")
    patient[0].wait_until(f"grep -qx {before + 1} {SYSFS}/peers/2/reconnects")
    patient.wait_connected()
    patient[0].write(f"{SYSFS}/peers/2/control", "disconnect")
    patient.wait_state(0, 2, "backoff")
    patient.wait_state(2, 0, "listening")
    assert int(patient.peer(0, 2, "next_attempt_ms")) > LONG_PAUSE_MS / 2
    patient[0].write(f"{SYSFS}/peers/2/control", "reconnect")
    patient.wait_connected(timeout=LONG_PAUSE_MS / 4000)
    assert reconnects(patient, 0, 2) == before + 2


def test_next_attempt_counts_down(patient: Cluster) -> None:
    """P10: while a node waits before it connects again, it shows for how long yet."""
    unload_all(patient, 2)
    patient.wait_state(0, 2, "backoff")
    path = f"{SYSFS}/peers/2/next_attempt_ms"
    loop = (
        "for i in 1 2 3 4 5 6; do read -r up _ </proc/uptime; "
        f"read -r ms <{path}; echo $up $ms; usleep 100000; done"
    )
    samples = [line.split() for line in patient[0].run(loop).out.splitlines()]
    times = [round(float(up) * 1000) for up, _ in samples]
    left = [int(ms) for _, ms in samples]
    # The full pause, less up to a quarter of it by chance.
    assert LONG_PAUSE_MS * 0.7 < left[0] <= LONG_PAUSE_MS
    assert left == sorted(set(left), reverse=True)
    # It is the same moment that all of them mean, but for the time between two reads.
    ends = [time + ms for time, ms in zip(times, left)]
    assert max(ends) - min(ends) < scaled(500)
    assert patient.peer(0, 2, "last_error") == "ESHUTDOWN"
    patient.load(2)
    patient[0].write(f"{SYSFS}/peers/2/control", "reconnect")
    patient.wait_connected(timeout=LONG_PAUSE_MS / 4000)


def test_backoff_grows(cluster3: Cluster) -> None:
    """P10: pauses between attempts grow up to the bound, with jitter."""
    unload_all(cluster3, 0)
    unload_all(cluster3, 2)
    cluster3.load(0, backoff_min_ms=40, backoff_max_ms=640)
    path = f"{SYSFS}/peers/2/next_attempt_ms"
    # The longest that was shown of each pause: what is shown falls until the next begins.
    loop = (
        "last=0; n=0; "
        f"while [ $n -lt 10 ]; do usleep 5000; read -r ms <{path}; [ $ms = none ] && continue; "
        "[ $ms -gt $last ] && { echo $ms; n=$((n + 1)); }; last=$ms; done"
    )
    pauses = [int(ms) for ms in cluster3[0].run(loop).out.split()]
    assert max(pauses) <= 640
    assert pauses[-1] > 640 * 0.6, f"not grown to the bound: {pauses}"
    cluster3.unload(0)
    cluster3.load(0)
    cluster3.load(2)
    cluster3.wait_connected()


def test_bad_writes_are_refused(cluster3: Cluster) -> None:
    """Anything but a knob's words is refused with EINVAL, and changes nothing."""
    before = cluster3.peer_table(0)
    wrong = []
    writes = [("admin", text) for text in ("sideways", "", "DOWN", "down now", "1", "do")]
    writes += [("control", text) for text in ("connect", "", "up", "disconnect,")]
    for name, text in writes:
        result = cluster3[0].write(f"{SYSFS}/peers/1/{name}", text, check=False)
        if result.rc == 0 or "Invalid argument" not in result.out:
            wrong.append((name, text, result))
    octets = cluster3[0].run(f"printf '\\377\\n' >{SYSFS}/peers/1/admin", check=False)
    assert octets.rc != 0
    long = cluster3[0].run(f"head -c 5000 /dev/zero >{SYSFS}/peers/1/admin", check=False)
    assert long.rc != 0
    for name in ("state", "next_attempt_ms", "reconnects"):
        assert cluster3[0].write(f"{SYSFS}/peers/1/{name}", "1", check=False).rc != 0
    assert cluster3[0].run(f"cat {SYSFS}/peers/1/control", check=False).rc != 0
    assert not wrong
    assert cluster3.peer_table(0) == before


def test_unload_while_files_are_read(cluster3: Cluster) -> None:
    """rmmod neither waits for those who read the files nor breaks under them."""
    unload_all(cluster3, 1)
    cluster3.load(1)
    machine = cluster3[1]
    # One reads everything all the time, one writes, one keeps a file open.
    every = f"{SYSFS}/* {SYSFS}/peers/*/*"
    reader = machine.spawn(
        f"while :; do for f in {every}; do read -r x <$f; done; done >/dev/null 2>&1"
    )
    knob = f"{SYSFS}/peers/0/admin"
    writer = machine.spawn(f"while :; do echo up >{knob}; done >/dev/null 2>&1")
    holder = machine.spawn(
        f"exec 5<{SYSFS}/peers/0/state; echo open >/tmp/held; "
        "until [ -e /tmp/unloaded ]; do usleep 20000; done; cat <&5"
    )
    machine.wait_until("[ -s /tmp/held ]")
    for turn in range(4):
        if turn:
            cluster3.load(1)
            cluster3.wait_state(1, 0, "up")
        cluster3.unload(1, timeout=5)
    machine.run(": >/tmp/unloaded")
    result = holder.wait(check=False)
    assert result.rc != 0 and "No such device" in result.out
    for job in (reader, writer):
        job.stop()
    machine.run("rm /tmp/held /tmp/unloaded")
    cluster3.load(1)
    cluster3.wait_connected()
