# SPDX-License-Identifier: GPL-2.0
"""Wrong parameters: insmod fails, one line in the log says why, nothing is left behind."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cluster import Cluster, flavour
from cluster.machine import Machine
from logs import kccm_lines

GOOD = {"node_id": "0", "peers": "0=10.1.0.1,1=10.1.0.2,2=10.1.0.3", "cluster": "parameters"}

# Everything that KCCM can be told. A new parameter needs a line here, and below.
PARAMETERS = {
    "backoff_max_ms",
    "backoff_min_ms",
    "cluster",
    "dead_ms",
    "handshake_ms",
    "kept_bytes",
    "kept_frames",
    "key",
    "listeners",
    "max_long_handlers",
    "max_message",
    "max_rcall",
    "node_id",
    "peers",
    "port",
    "queue_bytes",
    "rcall_bytes",
    "short_warn_us",
    "unsent_bytes",
}


@dataclass
class Wrong:
    """Parameters instead of the good ones (None: not given), and what the log says of them."""

    change: dict[str, str | None]
    says: str


def entry(number: int, text: str, reason: str, peers: str) -> Wrong:
    """A wrong entry of ``peers``; the line names it."""
    return Wrong({"peers": peers}, rf'peers: entry {number} "{re.escape(text)}": {reason}')


def outside(parameter: str, value: int, least: int, most: int) -> Wrong:
    """A number out of its range; the line names both."""
    return Wrong({parameter: str(value)}, f"{parameter}: {value} is not in {least}..{most}")


def around(parameter: str, least: int, most: int) -> list[Wrong]:
    """The two values next to the range."""
    return [outside(parameter, value, least, most) for value in (least - 1, most + 1)]


MISSING = [
    Wrong({"node_id": None}, "node_id: must be given"),
    Wrong({"peers": None}, "peers: must be given"),
    Wrong({"node_id": None, "peers": None}, "node_id: must be given"),
    Wrong({"node_id": "7"}, "peers: no entry for this node's own id 7"),
    Wrong({"peers": "1=10.1.0.2,2=10.1.0.3"}, "peers: no entry for this node's own id 0"),
]

PEERS = [
    entry(3, "1=10.1.0.9", "another entry has the same id", "0=10.1.0.1,1=10.1.0.2,1=10.1.0.9"),
    entry(2, "1=10.1.0.1", "another entry has the same address", "0=10.1.0.1,1=10.1.0.1"),
    entry(2, "1=10.1.0.1:7700", "another entry has the same addr", "0=10.1.0.1,1=10.1.0.1:7700"),
    entry(1, "10.1.0.1", "expected id=address", "10.1.0.1"),
    entry(2, "", "expected id=address", "0=10.1.0.1,,1=10.1.0.2"),
    entry(2, "one=10.1.0.2", "the id before '=' is not a number", "0=10.1.0.1,one=10.1.0.2"),
    entry(2, "-1=10.1.0.2", "the id before '=' is not a number", "0=10.1.0.1,-1=10.1.0.2"),
    entry(2, "256=10.1.0.2", "the id is not in 0..255", "0=10.1.0.1,256=10.1.0.2"),
    entry(2, "1=10.1.0", "not an IPv4 address", "0=10.1.0.1,1=10.1.0"),
    entry(2, "1=node1", "not an IPv4 address", "0=10.1.0.1,1=node1"),
    entry(2, "1=", "not an IPv4 address", "0=10.1.0.1,1="),
    entry(2, "1=fd00::2", "an IPv6 address needs brackets", "0=10.1.0.1,1=fd00::2"),
    entry(2, "1=10.1.0.2:0", "the port is not in 1..65535", "0=10.1.0.1,1=10.1.0.2:0"),
    entry(2, "1=10.1.0.2:65536", "the port is not in 1..65535", "0=10.1.0.1,1=10.1.0.2:65536"),
    entry(2, "1=[fd00::2]:x", "the port is not in 1..65535", "0=10.1.0.1,1=[fd00::2]:x"),
    entry(2, "1=0.0.0.0", ".*not one that a node can have", "0=10.1.0.1,1=0.0.0.0"),
    entry(2, "1=224.0.0.1", ".*not one that a node can have", "0=10.1.0.1,1=224.0.0.1"),
]

CLUSTER = [
    Wrong({"cluster": ""}, 'cluster: "" is not 1 to 64 printable'),
    Wrong({"cluster": "x" * 65}, 'cluster: "x{65}" is not 1 to 64 printable'),
    Wrong({"cluster": '"two words"'}, 'cluster: "two words" is not 1 to 64 printable'),
]

KEY = [
    Wrong({"key": "x" * 129}, 'key: "x{129}" is not 1 to 128 printable'),
    Wrong({"key": '"two words"'}, 'key: "two words" is not 1 to 128 printable'),
]

NUMBERS = [
    outside("node_id", 256, 0, 255),
    *around("port", 1, 65535),
    *around("max_message", 1, 1 << 30),
    *around("max_rcall", 1, 16 << 20),
    *around("queue_bytes", 4096, 1 << 40),
    *around("rcall_bytes", 4096, 1 << 40),
    *around("kept_bytes", 4096, 1 << 40),
    *around("kept_frames", 1, 1 << 20),
    *around("unsent_bytes", 4096, 1 << 40),
    *around("max_long_handlers", 1, 1024),
    *around("listeners", 1, 64),
    *around("dead_ms", 100, 3_600_000),
    *around("handshake_ms", 100, 60_000),
    *around("backoff_min_ms", 10, 60_000),
    *around("backoff_max_ms", 10, 60_000),
    Wrong(
        {"backoff_min_ms": "500", "backoff_max_ms": "400"},
        "backoff_max_ms: must be at least 500: it is at least backoff_min_ms",
    ),
    Wrong({"queue_bytes": "4096"}, r"queue_bytes: must be at least \d+: a message of max_message"),
    Wrong({"rcall_bytes": "4096"}, r"rcall_bytes: must be at least \d+: a call with arguments"),
    Wrong({"dead_ms": "soon"}, "`soon' invalid for parameter `dead_ms'"),
    Wrong({"node_id": "first"}, "`first' invalid for parameter `node_id'"),
]


@pytest.fixture
def machine(make_cluster: Callable[..., Cluster]) -> Machine:
    """A node without KCCM.

    It has the insmod of kmod: that of busybox tries what fails a second time.
    """
    return make_cluster(1, load=False, tools=["insmod"])[0]


def parameters(change: dict[str, str | None]) -> str:
    """The good parameters with some changed, for insmod."""
    given = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    return " ".join(f"'{name}={value}'" for name, value in given.items())


def leftovers(machine: Machine) -> list[str]:
    """What there is of KCCM in a node that has none."""
    looks = {
        "the module": "grep ^kccm /proc/modules",
        "its directory": "ls -d /sys/kernel/kccm",
        "its threads": "ps -o comm | grep '^kccm0/'",
        "its port": "netstat -tln | grep ':7700 '",
    }
    return [what for what, look in looks.items() if machine.run(look, check=False).rc == 0]


def refuses(machine: Machine, arguments: str, error: int, says: str) -> list[str]:
    """Everything that is wrong about how insmod fails with these arguments."""
    mark = machine.mark()
    result = machine.try_insmod("kccm", arguments)
    lines = kccm_lines(machine, mark)
    wrong = []
    if result.rc == 0:
        machine.rmmod("kccm")
        return [f"{arguments}: was loaded"]
    # In the words of kmod, which has its own for what can be wrong with a module.
    if ("Invalid parameters" if error == errno.EINVAL else os.strerror(error)) not in result.out:
        wrong.append(f"{arguments}: insmod says {result.out.strip()!r}")
    # The kernel tells of a taint once, and of nothing else.
    lines = [line for line in lines if "out-of-tree" not in line]
    if len(lines) != 1 or not re.search(says, lines[0]):
        wrong.append(f"{arguments}: not one line with /{says}/ but {lines}")
    return wrong


def test_wrong_parameters_are_refused(machine: Machine) -> None:
    """insmod fails with EINVAL; exactly one line says what is wrong and where.

    After all of that, it loads with parameters that are right.
    """
    wrong = []
    for case in [*MISSING, *PEERS, *CLUSTER, *KEY, *NUMBERS]:
        wrong += refuses(machine, parameters(case.change), errno.EINVAL, case.says)
    assert not wrong, "\n".join(wrong)
    assert not leftovers(machine)
    machine.insmod("kccm", parameters({}))
    assert len(leftovers(machine)) == 4
    machine.rmmod("kccm")
    assert not leftovers(machine)


def test_every_number_has_its_wrong_values() -> None:
    """The table above knows every parameter that is bounded."""
    unbounded = {"short_warn_us", "peers", "cluster", "key"}
    assert {name for case in NUMBERS for name in case.change} == PARAMETERS - unbounded


def test_address_that_cannot_be_used(machine: Machine) -> None:
    """The own entry of peers: another machine's address, a port in use; the log says so."""
    says = r"node 0: cannot listen at 10\.1\.0\.77:7700: .*is that address this machine's"
    peers: dict[str, str | None] = {"peers": "0=10.1.0.77,1=10.1.0.2"}
    assert not refuses(machine, parameters(peers), errno.EADDRNOTAVAIL, says)
    assert not leftovers(machine)
    # And a port that something else listens at.
    server = machine.spawn("exec nc -l -p 7700")
    machine.wait_until("netstat -tln | grep -q ':7700 '")
    says = r"node 0: cannot listen at 10\.1\.0\.1:7700: .*and the port free\?"
    assert not refuses(machine, parameters({}), errno.EADDRINUSE, says)
    server.stop()
    assert not leftovers(machine)
    machine.insmod("kccm", parameters({}))


def test_modinfo_tells_of_every_parameter() -> None:
    """modinfo has a text for every parameter, and its type."""

    def field(name: str) -> dict[str, str]:
        command = ["/sbin/modinfo", "-F", name, str(flavour().module("kccm"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return dict(line.split(":", 1) for line in done.stdout.splitlines())

    texts, types = field("parm"), field("parmtype")
    assert set(types) == PARAMETERS
    assert set(texts) == PARAMETERS
    short = {name: text for name, text in texts.items() if len(text.split()) < 2}
    assert not short
