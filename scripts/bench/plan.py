# SPDX-License-Identifier: GPL-2.0
"""What is measured: the peers, and the points of each figure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

FLOOR = "tcp"
SHORT, SOFTIRQ, LONG = "kccm-short", "kccm-softirq", "kccm-long"
ASYNC = "kccm-async-short"
# The same with a handler that copies its arguments into its reply.
COPYING = "kccm-softirq-copying"
CLASSES = (SHORT, SOFTIRQ, LONG)

# Peers, by the names that pictures and tables give them. The order is that in which they are set
# up: sunrpc calls the server of rpc.
PEERS = {
    FLOOR: "in-kernel TCP (floor)",
    SHORT: "KCCM short",
    SOFTIRQ: "KCCM softirq",
    LONG: "KCCM long",
    ASYNC: "KCCM asynchronous",
    COPYING: "KCCM softirq, copying",
    "kccm": "KCCM",
    "tipc": "TIPC",
    "tipc-local": "TIPC, node-local",
    "rpc": "ONC RPC (libtirpc)",
    "sunrpc": "ONC RPC (kernel client)",
    "user-tcp": "user-space TCP",
    "o2net": "o2net",
}


def short_name(peer: str) -> str:
    """How it is called among those that are all KCCM."""
    return PEERS[peer].removeprefix("KCCM ")


# Why some are not to be had, where the guest can only say that they are not there.
WHY_NOT = {
    "o2net": "a kernel can be one node of it only, and its nodes find each other by heartbeats on "
    "a disk that they share",
}
# Those that answer a call, but for KCCM.
RIVALS = (FLOOR, "tipc", "tipc-local", "rpc", "sunrpc", "user-tcp", "o2net")

# Those of which a pair can also move messages.
BUSY_RIVALS = (FLOOR, "tipc", "tipc-local")

SIZES = (0, 64, 256, 1024, 3000, 4096, 8192, 16384, 65536, 1 << 20)
SERVICE_US = (0, 1, 10, 100)
FLOOD_SIZES = (64, 65536, 1 << 20)
SENDERS = (1, 8)
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NODES = (2, 8, 32, 64, 128)
SMALL = 64

FIGURES = ("7", "8", "throughput", "inflight", "tails", "cost", "scale")
QUICK_FIGURES = ("7", "8")
# Those of which all there is to know can be said in instructions.
COUNTED_FIGURES = ("7", "8", "cost")


@dataclass(frozen=True)
class Use:
    """A record that is made of a point: one word of its answers.

    ``metric`` tells records of the same point apart, ``variant`` those of the same peer and x. The
    word ``p99``, if any, is the 99th percentile of the same thing. What is ``optional`` may be
    missing in an answer. With ``thousandths`` it is that percentile, of which a round has few
    calls: it is made of the calls of all rounds together where their answers tell it.
    """

    figure: str
    metric: str
    word: str
    unit: str
    p99: str = ""
    optional: bool = False
    variant: str = ""
    thousandths: int = 0


CALL_TIME = ("p50", "p50_ns", "ns", "p99_ns")
TAILS = (
    Use("tails", "p50", "p50_ns", "ns"),
    Use("tails", "p99", "p99_ns", "ns", thousandths=990),
    Use("tails", "p99.9", "p999_ns", "ns", thousandths=999),
)
COSTS = tuple(
    Use("cost", metric, word, unit, optional=True)
    for metric, word, unit in (
        ("cpu", "cpu_ns", "ns/call"),
        ("switches", "switches", "switches/call"),
        ("wakeups", "wakeups", "wake-ups/call"),
        ("allocations", "allocs", "allocations/call"),
        ("pages", "pages", "pages/call"),
    )
)
SCALES = tuple(
    Use("scale", metric, word, unit, optional=metric != "connect")
    for metric, word, unit in (
        ("connect", "connect_ms", "ms"),
        ("memory per node", "bytes_per_node", "B"),
        ("memory per connected node", "bytes_connected", "B"),
        ("memory per connection", "bytes_per_conn", "B"),
        ("idle CPU", "idle_cpu_ppm", "ppm"),
    )
)


@dataclass(frozen=True)
class Point:
    """One thing to measure: a command, but for how often or how long, and what is made of it."""

    verb: str
    peer: str
    x: int
    words: tuple[tuple[str, int], ...]
    uses: tuple[Use, ...] = ()

    def __str__(self) -> str:
        """As a user knows it."""
        extra = "".join(f" {name}={value}" for name, value in self.words)
        return f"{self.verb} {self.peer}{extra}"

    def command(self, **length: int) -> str:
        """The command for the guest; ``length`` are words such as ``count`` or ``ms``."""
        peer = [f"peer={self.peer}"] if self.verb != "scale" else []
        pairs = [*self.words, *length.items()]
        return " ".join([self.verb, *peer, *(f"{name}={value}" for name, value in pairs)])

    @property
    def passes(self) -> int:
        """How often it is done: once more to count what it costs."""
        return 1 + dict(self.words).get("trace", 0)

    @property
    def bounded(self) -> bool:
        """Whether it ends when the time is up: nobody knows before how long a call takes then."""
        return "background" in dict(self.words)


@dataclass(frozen=True)
class Phase:
    """Points that are measured in the same rounds, each for about so long in a round.

    Of calls, there are at least ``least`` in a round, where that takes no more than ``stretch``
    times as long, and three of the slowest, or one of those that are bounded.
    """

    name: str
    points: tuple[Point, ...]
    milliseconds: float
    least: int = 20
    stretch: float = 3.0

    def batches(self) -> list[tuple[Point, ...]]:
        """The points in the order of a round: those of the same x are measured together."""
        by_x: dict[int, list[Point]] = {}
        for point in self.points:
            by_x.setdefault(point.x, []).append(point)
        return [tuple(points) for points in by_x.values()]


def _figure_7() -> Iterator[Point]:
    for size in SIZES:
        for peer in (*RIVALS, *CLASSES, ASYNC, COPYING):
            yield Point("call", peer, size, (("size", size),), (Use("7", *CALL_TIME),))


def service_variant(us: int) -> str:
    """What the series of figure 8 are called, after the classes of their handlers."""
    return f"{us} us"


# Where a short handler holds up the calls of others.
CALLERS, CALLERS_US = 4, 100
CALLERS_VARIANT = f"{CALLERS} callers, {CALLERS_US} us"


def _figure_8() -> Iterator[Point]:
    for size in SIZES:
        for us in SERVICE_US:
            words = (("size", size), *((("service_us", us),) if us else ()))
            for peer in CLASSES:
                use = Use("8", *CALL_TIME, variant=service_variant(us))
                yield Point("call", peer, size, words, (use,))
    for peer in CLASSES:
        words = (("size", SMALL), ("depth", CALLERS), ("service_us", CALLERS_US))
        use = Use("8", *CALL_TIME, variant=CALLERS_VARIANT)
        yield Point("inflight", peer, SMALL, words, (use,))


ONE_WAY = "one way"


def _cost() -> Iterator[Point]:
    words = (("size", SMALL), ("trace", 1))
    for peer in (*RIVALS, *CLASSES, ASYNC):
        yield Point("call", peer, SMALL, words, COSTS)
    uses = tuple(
        replace(use, variant=ONE_WAY, unit=use.unit.replace("/call", "/message")) for use in COSTS
    )
    for peer in ("kccm", FLOOR, "tipc"):
        yield Point("flood", peer, SMALL, (*words, ("senders", 1)), uses)


def senders_variant(senders: int) -> str:
    """What the series of the throughput are called, after the peer."""
    return f"{senders} sender{'s' if senders > 1 else ''}"


def _throughput() -> Iterator[Point]:
    for size in FLOOD_SIZES:
        what = ("messages", "per_s", "1/s") if size == SMALL else ("bytes", "bytes_per_s", "B/s")
        for senders in SENDERS:
            for peer in (FLOOR, "kccm", "tipc", "tipc-local"):
                words = (("size", size), ("senders", senders))
                use = Use("throughput", *what, variant=senders_variant(senders))
                yield Point("flood", peer, size, words, (use,))


def _inflight() -> Iterator[Point]:
    uses = (Use("inflight", "rate", "per_s", "1/s"), Use("inflight", *CALL_TIME))
    for depth in DEPTHS:
        for peer in (*RIVALS, *CLASSES):
            words = (("size", SMALL), ("depth", depth))
            yield Point("inflight", peer, depth, words, uses)


# What a call has beside it: messages by the way that it goes itself, or by that for bulk, which only
# KCCM has. (Of the others a pair has a socket for each.)
BACKGROUND, BULK = "background", "bulk"
LOADS = {"": 0, BACKGROUND: 1, BULK: 2}


def _tails() -> Iterator[Point]:
    rivals: dict[str, tuple[str, ...]] = {"": RIVALS, BACKGROUND: BUSY_RIVALS, BULK: ()}
    for variant, background in LOADS.items():
        words = (("size", SMALL), *((("background", background),) if background else ()))
        for peer in (*rivals[variant], *CLASSES):
            uses = tuple(replace(use, variant=variant) for use in TAILS)
            yield Point("call", peer, SMALL, words, uses)


def _scale() -> Iterator[Point]:
    for nodes in NODES:
        yield Point("scale", "kccm", nodes, (("nodes", nodes),), SCALES)


# The figures that are measured together, and the phase of each, less its points. What is traced
# is measured twice. Beside bulk a call takes a hundred times as long as without.
_PHASES = (
    (("7", "8"), Phase("calls", (), 90.0)),
    (("cost",), Phase("cost", (), 300.0, 1000)),
    (("throughput",), Phase("throughput", (), 250.0)),
    (("inflight",), Phase("inflight", (), 100.0)),
    (("tails",), Phase("tails", (), 300.0, 1000, stretch=10.0)),
    (("scale",), Phase("scale", (), 3000.0)),
)
_POINTS = {
    "7": _figure_7,
    "8": _figure_8,
    "cost": _cost,
    "throughput": _throughput,
    "inflight": _inflight,
    "tails": _tails,
    "scale": _scale,
}


def _merged(points: Iterable[Point]) -> tuple[Point, ...]:
    """Points with the same command made one, which has the uses of all, sorted by x."""
    found: dict[str, Point] = {}
    for point in points:
        same = found.get(point.command())
        if same:
            point = replace(same, uses=same.uses + point.uses)
        found[point.command()] = point
    return tuple(sorted(found.values(), key=lambda point: point.x))


def phases(figures: Collection[str], peers: Collection[str] = tuple(PEERS)) -> list[Phase]:
    """What there is to do for these figures, with these peers."""
    found = []
    for part, phase in _PHASES:
        points = _merged(
            point
            for figure in part
            if figure in figures
            for point in _POINTS[figure]()
            if point.peer in peers
        )
        if points:
            found.append(replace(phase, points=points))
    return found


def peers_in(todo: Iterable[Phase]) -> list[str]:
    """The peers that these phases need, in the order in which they are to be set up."""
    used = {point.peer for phase in todo for point in phase.points}
    return [peer for peer in PEERS if peer in used]


def without(phase: Phase, *peers: str) -> Phase:
    """A phase without some peers."""
    points = tuple(point for point in phase.points if point.peer not in peers)
    return replace(phase, points=points)


def without_hung(phase: Phase, command: str) -> Phase:
    """A phase without what has hung with a command, and what asks more of the same peer."""
    words = set(command.split())
    hung = [point for point in phase.points if set(point.command().split()) <= words]
    least = min((point.x for point in hung), default=0)
    peer = peer_of(command)
    points = tuple(point for point in phase.points if point.peer != peer or point.x < least)
    return replace(phase, points=points)


def peer_of(command: str) -> str:
    """Whom a command is about."""
    found = re.search(r"\bpeer=(\S+)", command)
    return found[1] if found else "kccm"
