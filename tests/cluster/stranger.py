# SPDX-License-Identifier: GPL-2.0
"""User-space clients and servers in a guest that speak to KCCM's port, or in its place.

They are busybox's nc, fed through a FIFO, so that a test says what is sent
when, and sees what was answered and whether the other side has closed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import wire
from cluster import Cluster, address
from cluster.cluster import PORT
from cluster.machine import Machine

_names = (f"/tmp/stranger{number}" for number in itertools.count(1))


class Stranger:
    """One TCP connection between user space in ``machine`` and a KCCM.

    ``nc`` ends when the other side closes, and with it the job.
    """

    def __init__(self, machine: Machine, nc: str) -> None:
        self.machine = machine
        self._name = next(_names)
        machine.run(f"mkfifo {self._name}.in")
        # The FIFO has a writer for as long as there may be more to send.
        self._job = machine.spawn(
            f"sleep 100000 >{self._name}.in & echo $! >{self._name}.pid; "
            f"exec nc {nc} <{self._name}.in >{self._name}.out 2>{self._name}.err"
        )

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.machine.write_file(f"{self._name}.data", data)
        self.machine.run(f"cat {self._name}.data >{self._name}.in")

    def finish(self) -> None:
        """Send no more: the other side sees the end of the stream."""
        self.machine.wait_until(f"[ -s {self._name}.pid ]")
        self.machine.run(f"kill $(cat {self._name}.pid)")

    def answer(self, length: int, timeout: float = 10.0) -> bytes:
        """Wait for so many bytes from the other side."""
        self.machine.wait_until(
            f"[ $(wc -c <{self._name}.out) -ge {length} ]",
            timeout,
            what=f"{length} bytes from the other side",
            hint=f"wc -c {self._name}.out; cat {self._name}.err",
        )
        return self.received()[:length]

    def greeting(self) -> wire.Greeting:
        """Wait for a greeting from the other side."""
        return wire.Greeting.decode(self.answer(wire.GREETING_LEN))

    def received(self) -> bytes:
        """What the other side has sent so far."""
        text = self.machine.run(f"xxd -p {self._name}.out").out
        return bytes.fromhex("".join(text.split()))

    def closed_within(self, timeout: float = 10.0) -> None:
        """Wait until the other side has closed the connection."""
        self._job.wait(timeout, check=False)

    @property
    def open(self) -> bool:
        """Whether the connection is there still."""
        return not self._job.poll(0)

    def stop(self) -> None:
        """Kill the client; the kernel closes its connection."""
        self._job.stop()
        self.machine.run(f"rm -f {self._name}.*")


@contextmanager
def stranger(cluster: Cluster, node: int, target: int, port: int = PORT) -> Iterator[Stranger]:
    """A client on ``node``, connected to the KCCM of node ``target``."""
    client = Stranger(cluster[node], f"{address(target)} {port}")
    try:
        yield client
    finally:
        client.stop()


@contextmanager
def impostor(cluster: Cluster, node: int, port: int = PORT) -> Iterator[Stranger]:
    """A server in the place of the KCCM of ``node``, which takes one connection."""
    server = Stranger(cluster[node], f"-l -p {port}")
    try:
        cluster[node].wait_until(f"netstat -tln | grep -q ':{port} '")
        yield server
    finally:
        server.stop()


def hello(cluster: Cluster, source: int, to: int, **fields: object) -> bytes:
    """The greeting with which node ``source`` would connect to node ``to``."""
    good = {"cluster": cluster.name, "source": source, "to": to}
    return wire.Greeting(**{**good, **fields}).encode()  # type: ignore[arg-type]
