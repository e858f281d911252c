# SPDX-License-Identifier: GPL-2.0
"""A guest of the benchmark that is none: it answers every command, with made-up numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from bench.guest import Answer, Failure
from bench.plan import PEERS

# Nanoseconds of a call, and of a byte.
SPEEDS = {
    "tcp": (30_000, 3.0),
    "kccm-short": (31_000, 3.1),
    "kccm-softirq": (19_000, 3.2),
    "kccm-long": (42_000, 2.9),
    "kccm-async-short": (4_000, 1.0),
    "kccm-softirq-copying": (19_000, 3.7),
    "kccm": (5_000, 1.0),
    "tipc": (33_000, 3.6),
    "tipc-local": (24_000, 2.0),
    "rpc": (157_000, 20.0),
    "sunrpc": (90_000, 9.0),
    "user-tcp": (117_000, 5.0),
    "o2net": (60_000, 4.0),
}


class FakeGuest:
    """In the place of bench.guest.Guest. ``twist`` may change an answer before it is given."""

    def __init__(self, seed: int = 1, twist: Callable[[str, str], str] | None = None) -> None:
        self._random = random.Random(seed)
        self._twist = twist or (lambda command, text: text)
        self.missing: dict[str, str] = {}
        self.asked: list[list[str]] = []
        # Fewer words than a kernel may have.
        self.costs = True

    def start(self, peer: str) -> None:
        """Every peer is there, unless a test has it missing."""
        if peer in self.missing:
            raise Failure(self.missing[peer])

    def ask(self, commands: Sequence[str], seconds: float = 10.0) -> list[Answer]:
        """Answer at once."""
        del seconds
        self.asked.append(list(commands))
        return [self._answer(command) for command in commands]

    def _answer(self, command: str) -> Answer:
        verb, *rest = command.split()
        words = dict(word.split("=", 1) for word in rest)
        text = getattr(self, f"_{verb}")(words)
        text = self._twist(command, text)
        failed = text.startswith("failed:")
        return Answer(1 if failed else 0, text.removeprefix("failed:").strip())

    def _near(self, value: float) -> float:
        return value * self._random.uniform(0.95, 1.08)

    def _time(self, words: dict[str, str]) -> float:
        fixed, each = SPEEDS[words["peer"]]
        return self._near(fixed + each * int(words.get("size", 0)))

    def _call(self, words: dict[str, str]) -> str:
        size, peer = int(words["size"]), words["peer"]
        if peer == "o2net" and size > 4096 or peer.startswith("tipc") and size > 66000:
            return "error=unsupported"
        ns = self._time(words) + 1000 * int(words.get("service_us", 0))
        tail = 4.5 if "background" in words else 1.3
        answer = (
            f"p50_ns={ns:.0f} p99_ns={ns * tail:.0f} p999_ns={ns * tail * 2:.0f} "
            f"mean_ns={ns * 1.05:.0f} min_ns={ns * 0.9:.0f} count={words['count']}"
        )
        # Those above the 99th percentile.
        slowest = (ns * tail * (2.2 - n / 20) for n in range(min(16, int(words["count"]))))
        answer += "".join(f" slow{n}_ns={value:.0f}" for n, value in enumerate(slowest))
        return answer + self._costs(words, ns)

    def _costs(self, words: dict[str, str], ns: float) -> str:
        if not self.costs or "trace" not in words:
            return ""
        return f" cpu_ns={ns * 0.8:.2f} switches={self._near(2):.2f} wakeups=2.0 allocs=0 pages=0"

    def _flood(self, words: dict[str, str]) -> str:
        rate = 3e9 / self._time(words) * (1.1 if words["senders"] == "8" else 1)
        return (
            f"per_s={rate:.0f} bytes_per_s={rate * int(words['size']):.0f} ms={words['ms']} "
            f"count={rate * int(words['ms']) / 1000:.0f}{self._costs(words, 1e9 / rate)}"
        )

    def _inflight(self, words: dict[str, str]) -> str:
        depth, ns = int(words["depth"]), self._time(words) + 1000 * int(words.get("service_us", 0))
        rate = 1e9 / ns * depth / (1 + depth / 8)
        p50 = depth / rate * 1e9
        count = rate * int(words["ms"]) / 1000
        return f"per_s={rate:.0f} p50_ns={p50:.0f} p99_ns={p50 * 2:.0f} count={count:.0f}"

    def _scale(self, words: dict[str, str]) -> str:
        nodes = int(words["nodes"])
        return (
            f"connect_ms={self._near(5 + nodes * nodes / 4):.1f} bytes_per_node={90_000 + nodes * 9000} "
            f"bytes_per_conn=9100 idle_cpu_ppm={nodes * 20}"
        )


assert set(SPEEDS) == set(PEERS)
