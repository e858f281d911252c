# SPDX-License-Identifier: GPL-2.0
"""What is done to whom, and when: made from a seed, before anything is done.

There is a lane for each node, in which one thing is done after the other, one
for the links, in which things overlap, and one for the cluster's keys. Each lane deals its kinds of faults
like cards, from a shuffled deck, so that all of them come up also in a short
run. The same seed, nodes, duration and kinds give the same schedule.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster import Link, Weather

# What can be done to a node, and what that is.
NODE_FAULTS = {
    "kill": "QEMU is killed, and booted again after a while",
    "reboot": "the guest goes down without a word, and is booted again at once",
    "reload": "the modules are unloaded and loaded again",
    "freeze": "the processors are stopped, for less than dead_ms",
    "long freeze": "the processors are stopped, for longer",
    "deaf": "nothing is received, so that queues fill up",
    "starve": "allocations of KCCM's threads and its users' fail (failslab, fail_page_alloc)",
}

# And to links.
LINK_FAULTS = {
    "cut one way": "what one node sends to another is dropped",
    "cut": "what two nodes send to each other is dropped",
    "isolate": "one node is cut from all others",
    "delay": "frames are late, some more than others",
    "loss": "frames are lost",
    "duplicate": "frames arrive twice",
    "reorder": "frames overtake each other",
    "corrupt": "frames are damaged",
    "storm": "all of the last five",
    "reset": "the TCP connection of two nodes is reset, in the middle of a frame if it can be",
    "disconnect": "a node is told to drop a connection",
    "reconnect": "a node is told to make a connection anew",
    "part": "an administrator keeps two nodes apart for a while",
}

# And to the cluster.
KEY_FAULTS = {"rekey": "it gets a new key, one node after the other, and then loses the old one"}

KINDS = (*NODE_FAULTS, *LINK_FAULTS, *KEY_FAULTS)

# Something of the same kind is done more often than others of its lane.
_TWICE = ("reload", "freeze", "deaf", "cut", "reset")

# From the end of one fault of a node to its next one; between faults of links.
_NODE_GAP = (1.0, 4.0)
_LINK_GAP = (0.3, 3.0)
_KEY_GAP = (2.0, 8.0)
# How long each lasts; those of DEAD_TIMES are multiples of dead_ms.
_LENGTHS: dict[str, tuple[float, float]] = {
    "kill": (0.0, 4.0),
    "reboot": (0.0, 0.0),
    "reload": (0.0, 2.0),
    "freeze": (0.1, 0.8),
    "long freeze": (1.5, 3.0),
    "deaf": (1.0, 8.0),
    "starve": (1.0, 4.0),
    "cut one way": (0.1, 5.0),
    "cut": (0.1, 5.0),
    "isolate": (0.1, 4.0),
    "reset": (0.0, 0.0),
    "disconnect": (0.0, 0.0),
    "reconnect": (0.0, 0.0),
    "part": (0.1, 3.0),
    "rekey": (0.0, 5.0),
}
_WEATHER_LENGTH = (0.5, 5.0)
# How long a node takes to be back after these, apart from the planned pause.
_RECOVERY = {"kill": 6.0, "reboot": 6.0, "reload": 2.0}
DEAD_TIMES = ("freeze", "long freeze")


@dataclass(frozen=True)
class Fault:
    """One thing that is done."""

    at: float  # seconds from the beginning
    kind: str
    lasts: float  # seconds
    node: int | None = None
    links: tuple[Link, ...] = ()
    order: tuple[int, ...] = ()  # of nodes
    weather: Weather | None = None

    @property
    def ends(self) -> float:
        """When it is undone."""
        return self.at + self.lasts

    def __str__(self) -> str:
        text = f"{self.kind}"
        if self.node is not None:
            text += f" node {self.node}"
        if self.links:
            text += " " + ",".join(f"{a}>{b}" for a, b in self.links)
        if self.order:
            text += " nodes " + ",".join(map(str, self.order))
        if self.weather:
            values = vars(self.weather).items()
            text += " " + " ".join(f"{name}={value:.3f}" for name, value in values if value)
        return text + (f" for {self.lasts:.1f} s" if self.lasts else "")


class _Deck:
    """Deals kinds in random order, all of them before any comes again."""

    def __init__(self, kinds: Sequence[str], chance: random.Random) -> None:
        self._kinds = [kind for kind in kinds for _ in range(1 + (kind in _TWICE))]
        self._chance = chance
        self._left: list[str] = []

    def deal(self) -> str:
        if not self._left:
            self._left = list(self._kinds)
            self._chance.shuffle(self._left)
        return self._left.pop()


def make(seed: int, nodes: int, duration: float, dead: float, kinds: Sequence[str]) -> list[Fault]:
    """The schedule: all faults, in the order of their times. ``dead``: dead_ms, in seconds."""
    faults: list[Fault] = []
    for node in range(nodes):
        chance = random.Random(f"{seed} node {node}")
        chosen = [kind for kind in NODE_FAULTS if kind in kinds]
        faults += _node_lane(node, chance, duration, dead, chosen)
    chance = random.Random(f"{seed} links")
    faults += _link_lane(nodes, chance, duration, [kind for kind in LINK_FAULTS if kind in kinds])
    if "rekey" in kinds:
        faults += _key_lane(nodes, random.Random(f"{seed} keys"), duration)
    return sorted(faults, key=lambda fault: fault.at)


def _node_lane(
    node: int, chance: random.Random, duration: float, dead: float, kinds: Sequence[str]
) -> Iterator[Fault]:
    if not kinds:
        return
    deck = _Deck(kinds, chance)
    now = chance.uniform(*_NODE_GAP)
    while True:
        kind = deck.deal()
        lasts = chance.uniform(*_LENGTHS[kind]) * (dead if kind in DEAD_TIMES else 1)
        if now + lasts > duration:
            return
        yield Fault(now, kind, lasts, node)
        now += lasts + _RECOVERY.get(kind, 0.0) + chance.uniform(*_NODE_GAP)


def _link_lane(
    nodes: int, chance: random.Random, duration: float, kinds: Sequence[str]
) -> Iterator[Fault]:
    if not kinds:
        return
    deck = _Deck(kinds, chance)
    now = chance.uniform(*_LINK_GAP)
    while True:
        kind = deck.deal()
        low, high = _LENGTHS.get(kind, _WEATHER_LENGTH)
        # Short ones more often than long ones.
        lasts = low + (high - low) * chance.random() ** 2
        fault = _LINK_MAKERS.get(kind, _weather)(now, kind, lasts, nodes, chance)
        if fault.ends > duration:
            return
        yield fault
        now += chance.uniform(*_LINK_GAP)


def _key_lane(nodes: int, chance: random.Random, duration: float) -> Iterator[Fault]:
    now = chance.uniform(*_KEY_GAP)
    while True:
        lasts = chance.uniform(*_LENGTHS["rekey"])
        if now + lasts > duration:
            return
        order = tuple(chance.sample(range(nodes), nodes))
        yield Fault(now, "rekey", lasts, order=order)
        now += lasts + chance.uniform(*_KEY_GAP)


def signs(seed: int) -> bool:
    """Whether the nodes of a run sign what they send: in every other one."""
    return random.Random(f"{seed} signs").random() < 0.5


def _two(nodes: int, chance: random.Random) -> Link:
    a, b = chance.sample(range(nodes), 2)
    return a, b


def _one_way(at: float, kind: str, lasts: float, nodes: int, chance: random.Random) -> Fault:
    return Fault(at, kind, lasts, links=(_two(nodes, chance),))


def _both_ways(at: float, kind: str, lasts: float, nodes: int, chance: random.Random) -> Fault:
    a, b = _two(nodes, chance)
    return Fault(at, kind, lasts, links=((a, b), (b, a)))


def _isolate(at: float, kind: str, lasts: float, nodes: int, chance: random.Random) -> Fault:
    node = chance.randrange(nodes)
    others = [other for other in range(nodes) if other != node]
    links = tuple(link for other in others for link in ((node, other), (other, node)))
    return Fault(at, kind, lasts, links=links)


def _weather(at: float, kind: str, lasts: float, nodes: int, chance: random.Random) -> Fault:
    """Some weather, on one direction, a link, or everywhere."""
    a, b = _two(nodes, chance)
    everywhere = tuple(itertools.permutations(range(nodes), 2))
    links = chance.choice([((a, b),), ((a, b), (b, a)), everywhere])
    values = {
        "delay": chance.uniform(0.005, 0.15),
        "jitter": chance.uniform(0.0, 0.15),
        "loss": chance.uniform(0.01, 0.2),
        "duplicate": chance.uniform(0.01, 0.2),
        "reorder": chance.uniform(0.05, 0.3),
        "corrupt": chance.uniform(0.005, 0.1),
    }
    taken = {"delay": ("delay", "jitter"), "reorder": ("reorder", "delay"), "storm": tuple(values)}
    names = taken.get(kind, (kind,))
    scale = 0.3 if kind == "storm" else 1.0
    weather = Weather(**{name: round(values[name] * scale, 3) for name in names})
    return Fault(at, kind, lasts, links=links, weather=weather)


_Maker = Callable[[float, str, float, int, random.Random], Fault]

_LINK_MAKERS: dict[str, _Maker] = {
    "cut one way": _one_way,
    "cut": _both_ways,
    "isolate": _isolate,
    "reset": _one_way,
    "disconnect": _one_way,
    "reconnect": _one_way,
    "part": _one_way,
}
