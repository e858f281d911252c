# SPDX-License-Identifier: GPL-2.0
"""The cluster's network: an Ethernet switch whose links can be cut.

The frames are carried by a process of its own (switchd.py), so a busy test
does not slow them down. This is its remote control.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import process
from .settings import HarnessError, scaled

# One direction between two ports.
Link = tuple[int, int]

_DAEMON = Path(__file__).with_name("switchd.py")


class Switch:
    """A learning switch with one port per node.

    A cut is directed: frames from ``a`` to ``b`` are dropped. Cuts belong to
    the ports and stay in force when a guest on them is booted again.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._log.write_bytes(b"")
        self._lock = threading.Lock()
        self._cuts: set[Link] = set()
        self._ports: set[int] = set()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(scaled(10.0))
        # -I and -S: nothing but the standard library, for a quick start.
        command = [sys.executable, "-I", "-S", str(_DAEMON), str(theirs.fileno())]
        with theirs:
            self._child = process.spawn(command, log, [theirs.fileno()])

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the switch."""
        self._control.close()
        process.kill(self._child)

    # Ports.

    def plug(self, port: int) -> socket.socket:
        """Connect a new cable to a port; returns the guest's end, for QEMU."""
        ours, guests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            self._request({"do": "attach", "port": port}, [ours.fileno()])
        self._ports.add(port)
        return guests

    def unplug(self, port: int) -> None:
        """Remove the cable of a guest that is gone."""
        self._request({"do": "detach", "port": port})

    # Links.

    def cut(self, a: int, b: int, both: bool = True) -> None:
        """Drop all frames from ``a`` to ``b``, and with ``both`` from ``b`` to ``a``."""
        self._change_cuts(add={(a, b), (b, a)} if both else {(a, b)})

    def heal(self, a: int, b: int, both: bool = True) -> None:
        """Undo cut()."""
        self._change_cuts(remove={(a, b), (b, a)} if both else {(a, b)})

    def isolate(self, port: int) -> None:
        """Take down the link of one node: cut it from all others, both ways."""
        others = self._ports - {port}
        self._change_cuts(add={pair for o in others for pair in ((port, o), (o, port))})

    def rejoin(self, port: int) -> None:
        """Undo isolate(), and every other cut that this node is part of."""
        with self._lock:
            mine = {pair for pair in self._cuts if port in pair}
        self._change_cuts(remove=mine)

    def heal_all(self) -> None:
        """Undo all cuts."""
        with self._lock:
            everything = set(self._cuts)
        self._change_cuts(remove=everything)

    @property
    def cuts(self) -> frozenset[Link]:
        """The directed pairs that are cut at present."""
        with self._lock:
            return frozenset(self._cuts)

    def counters(self) -> dict[int, dict[str, int]]:
        """Frames received, sent and dropped (cut, or too many waiting) per port."""
        answer = self._request({"do": "counters"})
        return {int(port): counters for port, counters in answer.items()}

    # Inside.

    def _change_cuts(self, add: Iterable[Link] = (), remove: Iterable[Link] = ()) -> None:
        with self._lock:
            self._cuts = (self._cuts | set(add)) - set(remove)
            pairs = sorted(self._cuts)
            self._transact({"do": "cuts", "pairs": pairs}, [])

    def _request(self, request: dict[str, Any], fds: list[int] | None = None) -> Any:
        with self._lock:
            return self._transact(request, fds or [])

    def _transact(self, request: dict[str, Any], fds: list[int]) -> Any:
        """Send one request and return its answer; in force when this returns."""
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], fds)
            answer = self._control.recv(65536)
        except OSError as error:
            raise HarnessError(f"the switch does not answer ({error}): see {self._log}") from error
        if not answer:
            raise HarnessError(f"the switch has ended: see {self._log}")
        return json.loads(answer)
