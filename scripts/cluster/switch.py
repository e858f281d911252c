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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import process
from .settings import HarnessError, scaled
from .switchd import Weather

# One direction between two ports.
Link = tuple[int, int]


@dataclass(frozen=True)
class Broken:
    """How far the breaking of a connection has got.

    ``state`` is one of those in switchd.py; ``half`` says whether what was being
    sent is half there, ``segments`` how many have been replaced or swallowed. ``flow``
    is address and port of the sender, and of the receiver, if they are known.
    """

    state: str
    half: bool
    segments: int
    flow: list[Any]


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

    def set_cuts(self, pairs: Iterable[Link]) -> None:
        """Have these directed pairs cut, and no others."""
        with self._lock:
            self._cuts = set(pairs)
            self._transact({"do": "cuts", "pairs": sorted(self._cuts)}, [])

    # Weather and resets.

    def seed(self, seed: int) -> None:
        """What the weather's chances are made from."""
        self._request({"do": "seed", "seed": seed})

    def set_weather(self, weather: Mapping[Link, Weather]) -> None:
        """Have this weather on these directed links, and none on others."""
        links = [(a, b, asdict(values)) for (a, b), values in weather.items()]
        self._request({"do": "weather", "links": links})

    def reset(self, a: int, b: int, within: float = 1.0) -> int:
        """Reset the TCP connection between two nodes (IPv4), from now on until it is.

        The segments from ``a`` to ``b`` are replaced by resets in both
        directions, as soon as one has gone before that what ``a`` sends goes on
        behind; or if none does, after a while. An end has to take one ``within``
        so many seconds of the first, which is to be less than the silence after
        which the nodes give it up. Where nothing is sent nothing comes of it, and
        where TCP-AO signs segments no end takes the resets. Returns a number for
        broken() and let_be().
        """
        return self._break({"pair": (a, b), "forge": True, "within": within})

    def hold(self, a: int, b: int) -> int:
        """Swallow what ``a`` sends to ``b`` over their connection, as reset() chooses where from.

        Until let_be(), or for as long as there is that connection. Returns a
        number, as reset() does.
        """
        return self._break({"pair": (a, b), "forge": False, "within": 0.0})

    def _break(self, what: dict[str, Any]) -> int:
        return int(self._request({"do": "break", **what})["number"])

    def broken(self, number: int) -> Broken:
        """What has become of a connection that reset() or hold() was to break."""
        return Broken(**self._request({"do": "broken", "number": number}))

    def let_be(self, number: int) -> Broken:
        """The same, and leave it alone from now on."""
        return Broken(**self._request({"do": "let be", "number": number}))

    def events(self) -> dict[str, int]:
        """What has befallen frames so far, by kind."""
        answer: dict[str, int] = self._request({"do": "events"})
        return answer

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
