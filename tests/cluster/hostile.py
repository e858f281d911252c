# SPDX-License-Identifier: GPL-2.0
"""A node that speaks the protocol wrongly, on the machine of the KCCM that it speaks to.

It is hostile.c, which has the addresses of two nodes there: LOW, which connects
to the victim, and HIGH, which the victim connects to. This file makes its
scripts and runs them; test_hostile.py says what is wrong, and what must come
of it.
"""

from __future__ import annotations

import gzip
import itertools
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wire
from cluster import Cluster, address
from cluster.cluster import PORT, SYSFS
from cluster.settings import BUILD, scaled

# The nodes: two that are hostile, the victim, and its true peer.
LOW, VICTIM, TRUE, HIGH = 0, 1, 2, 3

# Where a step may take its time, because nothing is to be waited for.
SOON = round(scaled(20_000))

# The victim's bounds: as small as the flood of kccm_demo allows.
BOUNDS = {
    "max_message": 65536,
    "queue_bytes": 131072,
    "max_rcall": 65536,
    "rcall_bytes": 262144,
    "handshake_ms": round(scaled(1000)),
    "dead_ms": round(scaled(2000)),
    "backoff_min_ms": 10,
    "backoff_max_ms": 10,
}

_incarnations = itertools.count(0x0B5E55ED)


def program() -> Path:
    """hostile.c, compiled for the guests."""
    source = Path(__file__).with_name("hostile.c")
    made = BUILD / "hostile"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        made.parent.mkdir(parents=True, exist_ok=True)
        command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", made, source]
        subprocess.run(command, check=True, timeout=120)
    return made


@dataclass
class Cell:
    """One conversation: what is done, and what has to be printed, in that order."""

    name: str
    steps: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def do(self, *steps: str) -> Cell:
        """Add steps."""
        self.steps += steps
        return self

    def see(self, step: str, pattern: str) -> Cell:
        """Add a step, and what has to be printed then."""
        self.expected.append(pattern)
        return self.do(step)

    def judge(self, lines: list[str]) -> list[str]:
        """What is wrong with what was printed."""
        wrong = [line for line in lines if line.startswith("FAIL")]
        if not wrong:
            printed = [line for line in lines if not line.startswith("kccm")]
            pairs = itertools.zip_longest(self.expected, printed, fillvalue="")
            wrong = [f"/{p}/ but {line!r}" for p, line in pairs if not re.fullmatch(p, line)]
        return [f"{self.name}: {what}" for what in wrong]

    # Steps.

    def say(self, data: bytes, slot: int = 0) -> Cell:
        """Say something; nothing, too."""
        return self.do(f"say {slot} {data.hex()}") if data else self

    def refused(self, reason: int, slot: int = 0) -> Cell:
        """Hear a refusal."""
        return self._greeting(wire.REFUSAL, reason, slot)

    def welcomed(self, slot: int = 0) -> Cell:
        """Hear a welcome."""
        return self._greeting(wire.WELCOME, 0, slot)

    def hears_hello(self, slot: int = 0) -> Cell:
        """Hear a hello."""
        return self._greeting(wire.HELLO, 0, slot)

    def _greeting(self, kind: int, reason: int, slot: int) -> Cell:
        start = wire.MAGIC + wire.VERSION.to_bytes(2, "little") + bytes([kind, reason])
        return self.see(f"hear {slot} {wire.GREETING_LEN} {SOON}", f"heard {start.hex()}")

    def ends(self, bye: str = r"-?\d+", slot: int = 0) -> Cell:
        """The victim ends the connection; if it is not reset, with this reason last."""
        return self.see(f"end {slot} {SOON}", rf"end (fin {bye}|rst -?\d+)")

    def up(self, peer: int) -> Cell:
        """The victim has a connection to a hostile node."""
        return self.do(f"file {SOON} {SYSFS}/peers/{peer}/state up")

    def lost(self, peer: int, incarnation: int, error: str) -> Cell:
        """The victim has lost its connection, for this reason."""
        line = f"lost node {peer} (incarnation {incarnation:016x}): "
        return self.see(f"log {SOON} {line}", f"log ({error})")

    def connected(self, peer: int, incarnation: int) -> Cell:
        """The connection was made."""
        start = f"connected to node {peer} at "
        return self.see(f"log {SOON} {start}", rf"log .* \(incarnation {incarnation:016x}\)")

    def nothing_left(self, peer: int) -> Cell:
        """There is no connection, no session, and nothing that is kept for or of the peer."""
        nothing = {
            "up": "0",
            "session": f"{0:016x}",
            "queued_bytes": "0",
            "unacknowledged": "0 0",
        }
        for name, value in nothing.items():
            self.do(f"file {SOON} {SYSFS}/peers/{peer}/{name} {value}")
        return self.do(f"gone {address(peer)} {SOON}")

    def never_connected(self, peer: int) -> Cell:
        """No connection was made."""
        return self.do(f"quiet connected to node {peer} ")


class Hostile:
    """The hostile nodes of a cluster, and the victim's machine that they live on."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.machine = cluster[VICTIM]
        self.victim = 0

    def settle(self, **extra: object) -> None:
        """Take the addresses of the hostile nodes, and load KCCM in the others."""
        peers = ",".join(f"{node}={address(node)}" for node in (LOW, VICTIM, TRUE, HIGH))
        for node in (LOW, HIGH):
            self.machine.run(f"ip addr add {address(node)}/32 dev lo")
        # Connections that are over are not to be looked through for those that are not.
        self.machine.write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0")
        self.cluster.load(VICTIM, peers=peers, **BOUNDS, **extra)
        true_peers = ",".join(f"{node}={address(node)}" for node in (VICTIM, TRUE))
        self.cluster.load(TRUE, peers=true_peers, dead_ms=BOUNDS["dead_ms"])
        self.cluster.wait_connected(nodes=[VICTIM, TRUE])
        self.victim = int(self.cluster.attribute(VICTIM, "incarnation"), 16)

    # What they say.

    @staticmethod
    def incarnation() -> int:
        """One that there has not been yet."""
        return next(_incarnations)

    def hello(self, incarnation: int, **change: Any) -> bytes:
        """A good hello, or a change of it. It grants nothing, so nobody else's messages come."""
        return self._greeting(incarnation, {"source": LOW, **change})

    def welcome(self, incarnation: int, **change: Any) -> bytes:
        """A good welcome, or a change of it."""
        values = {"kind": wire.WELCOME, "source": HIGH, "to_incarnation": self.victim, **change}
        return self._greeting(incarnation, values)

    def _greeting(self, incarnation: int, values: dict[str, Any]) -> bytes:
        common = {"cluster": self.cluster.name, "to": VICTIM, "granted": (0, 0)}
        return wire.Greeting(**{**common, "incarnation": incarnation, **values}).encode()

    # Conversations.

    @staticmethod
    def connect(cell: Cell, slot: int = 0, at: int = LOW) -> Cell:
        """Connect to the victim."""
        return cell.do(f"open {slot} {address(at)} {address(VICTIM)} {PORT}")

    @staticmethod
    def accept(cell: Cell, slot: int = 0) -> Cell:
        """Let the victim connect."""
        cell.do(f"listen {address(HIGH)} {PORT}", f"accept {slot} {SOON}")
        return cell.hears_hello(slot)

    def cleanup(self, peer: int) -> Cell:
        """Another incarnation, which comes and stops; after that nothing is left of any.

        Of the one before it nothing is left when the session has begun, and it
        leaves nothing itself.
        """
        cell, incarnation = Cell("cleanup"), self.incarnation()
        cell.do(f"gone {address(peer)} {SOON}")
        words = wire.header(wire.PING) + wire.header(wire.BYE)
        if peer == LOW:
            cell.do(f"file {SOON} {SYSFS}/peers/{LOW}/state listening")
            self.connect(cell).say(self.hello(incarnation) + words).welcomed()
        else:
            self.accept(cell).say(self.welcome(incarnation) + words)
        cell.lost(peer, incarnation, "ESHUTDOWN").ends()
        return cell.nothing_left(peer)

    def prepare(self, cells: list[Cell]) -> None:
        """Take these conversations to the machine."""
        script = "".join("\n".join([f"cell {c.name}", *c.steps, ""]) for c in cells)
        self.machine.write_file("/tmp/script.gz", gzip.compress(script.encode()))
        self.machine.run("gunzip -f /tmp/script.gz")

    def run(self, cells: list[Cell], timeout: float) -> list[str]:
        """Have the conversations that were prepared; what was wrong with them."""
        # What the console takes longer to print than it takes to happen stays in the log.
        with self.machine.quiet_console():
            lines = self.machine.run("hostile /tmp/script", timeout).out.splitlines()
        assert lines and lines[-1] == "done", lines[-5:]
        parts: list[list[str]] = []
        for line in lines[:-1]:
            if line.startswith("cell "):
                parts.append([])
            elif parts:
                parts[-1].append(line)
        assert len(parts) == len(cells)
        return [wrong for cell, said in zip(cells, parts) for wrong in cell.judge(said)]
