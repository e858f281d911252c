# SPDX-License-Identifier: GPL-2.0
"""User-space clients and servers in a guest that speak to KCCM's port, or in its place.

They are busybox's nc, fed through a FIFO, so that a test says what is sent
when, and sees what was answered and whether the other side has closed.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import wire
from cluster import Cluster, address
from cluster.cluster import PORT
from cluster.machine import Machine

_names = (f"/tmp/stranger{number}" for number in itertools.count(1))

# What is sent at one go fits in a command, and in a FIFO that nobody reads.
_MOST = 8000


class Stranger:
    """One TCP connection between user space in ``machine`` and a KCCM.

    ``nc`` ends when the other side closes, and with it the job.
    """

    def __init__(self, machine: Machine, nc: str, first: bytes = b"") -> None:
        self.machine = machine
        self._name = next(_names)
        # The FIFO has a writer, "sleep", for as long as there may be more to send.
        self._job = machine.spawn(
            f"mkfifo {self._name}.in; exec 9<>{self._name}.in; {self._put(first)} >&9; "
            f"sleep 100000 >&9 9>&- & echo $! >{self._name}.pid; "
            f"exec nc {nc} <{self._name}.in >{self._name}.out 2>{self._name}.err 9>&-"
        )

    @staticmethod
    def _put(data: bytes) -> str:
        assert len(data) <= _MOST
        return f"echo {base64.b64encode(data).decode()} | base64 -d"

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.machine.run(f"[ -p {self._name}.in ] && {self._put(data)} >{self._name}.in")

    def send_zeros(self, headers: list[bytes], length: int) -> None:
        """Send each of these, followed by so many zeros.

        The other side may close the connection meanwhile.
        """
        frames = (f"{self._put(header)}; head -c {length} /dev/zero" for header in headers)
        self.machine.spawn(f"({'; '.join(frames)}) >{self._name}.in")

    def finish(self) -> None:
        """Send no more: the other side sees the end of the stream."""
        self.machine.run(f"kill $(cat {self._name}.pid)")

    def answer(self, length: int, timeout: float = 10.0) -> bytes:
        """Wait for so many bytes from the other side."""
        self.machine.wait_until(
            f"[ -e {self._name}.out ] && [ $(wc -c <{self._name}.out) -ge {length} ]",
            timeout,
            what=f"{length} bytes from the other side",
            hint=f"wc -c {self._name}.out; cat {self._name}.err",
        )
        return self._octets(f"head -c {length}")

    def greeting(self) -> wire.Greeting:
        """Wait for a greeting from the other side."""
        return wire.Greeting.decode(self.answer(wire.GREETING_LEN))

    def received(self) -> bytes:
        """What the other side has sent so far, the last of it."""
        return self._octets("tail -c 20000")

    def _octets(self, part: str) -> bytes:
        text = self.machine.run(f"{part} {self._name}.out | xxd -p").out
        return bytes.fromhex("".join(text.split()))

    def closed_within(self, timeout: float = 10.0) -> None:
        """Wait until the other side has closed the connection."""
        self._job.wait(timeout, check=False)

    def stop(self) -> None:
        """Kill the client; the kernel closes its connection."""
        self._job.stop()
        # What nc has left behind when it ended by itself.
        self.machine.run(f"kill $(cat {self._name}.pid); rm -f {self._name}.*", check=False)


@contextmanager
def stranger(cluster: Cluster, node: int, target: int, first: bytes = b"") -> Iterator[Stranger]:
    """A client on ``node``, connected to the KCCM of node ``target``; sends ``first`` at once."""
    client = Stranger(cluster[node], f"{address(target)} {PORT}", first)
    try:
        yield client
    finally:
        client.stop()


@contextmanager
def impostor(cluster: Cluster, node: int) -> Iterator[Stranger]:
    """A server in the place of the KCCM of ``node``, which takes one connection."""
    server = Stranger(cluster[node], f"-l -p {PORT}")
    try:
        yield server
    finally:
        server.stop()


_incarnations = itertools.count(0x5712A96E)


def hello(cluster: Cluster, source: int, to: int, /, **change: Any) -> bytes:
    """The greeting with which node ``source`` would connect to node ``to``, or a change of it.

    Each comes from another incarnation.
    """
    good = wire.Greeting(
        cluster=cluster.name, source=source, to=to, incarnation=next(_incarnations)
    )
    return replace(good, **change).encode()
