#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Does everything to a cluster that can befall one, and proves that nothing came of it.

Every node sends messages to and calls functions on every other, and writes down
what it does (tests/torture/main.c). Meanwhile nodes and links suffer what a
schedule says, which is made from a seed (tests/torture/schedule.py). Then all is
healed, and the checker (tests/torture/checker.py) judges what was written down.

All of it is left in build/torture: schedule, log, histories, consoles, and what
was done in numbers (summary.json). The exit status is 0 only if every promise
was kept and no kernel reported a fault.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "torture"))

import checker
import schedule
from cluster import Cluster, HarnessError
from cluster import settings as harness
from cluster.settings import scaled
from faults import SHARED, Settings, Tormentor
from history import Kind
from rings import Historian

RING_BYTES = 16 << 20

# With what KCCM is loaded: bounds that can be reached, and little patience.
DEAD_MS = 2000
PARAMETERS: dict[str, object] = {
    "handshake_ms": 1500,
    "backoff_min_ms": 50,
    "backoff_max_ms": 500,
    "max_message": 65536,
    "queue_bytes": 512 << 10,
    "max_rcall": 65536,
    "rcall_bytes": 512 << 10,
    "kept_bytes": 256 << 10,
    "kept_frames": 256,
    "unsent_bytes": 64 << 10,
    "short_warn_us": 1000000,
}
TIMES = ("handshake_ms",)

# Nothing more comes when nothing has come for so long. A segment that is lost when links heal is
# sent again within dead_ms, or the connection is made anew.
QUIET_SECONDS = 5.0
SETTLE_SECONDS = 90.0
_PROGRESS_SECONDS = 10.0


class Log:
    """Tells the user, and a file, what happens."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """One line, with the time."""
        with self._lock:
            line = f"{time.monotonic() - self._began:7.1f} s  {text}"
            print(line, flush=True)
            self._file.write(line + "\n")

    def plain(self, text: str = "") -> None:
        """One line as it is."""
        with self._lock:
            print(text, flush=True)
            self._file.write(text + "\n")


def progress(historian: Historian, tormentor: Tormentor) -> str:
    """Counts so far."""
    count = historian.count
    return (
        f"messages {count(Kind.SENT, Kind.CONFIRMED)} sent {count(Kind.RECV)} received, "
        f"calls {count(Kind.CALLED, Kind.REPLIED)} made {count(Kind.RUN)} run, "
        f"incarnations {count(Kind.BEGIN)}, faults {tormentor.done.faults.total()}"
    )


@contextmanager
def reporting(log: Log, historian: Historian, tormentor: Tormentor) -> Iterator[None]:
    """Tell the counts now and then."""
    stop = threading.Event()

    def report() -> None:
        while not stop.wait(_PROGRESS_SECONDS):
            log.say(progress(historian, tormentor))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def parameters() -> dict[str, object]:
    """KCCM's, with times as this machine needs them."""
    times = {name: round(scaled(int(str(PARAMETERS[name])))) for name in TIMES}
    return {**PARAMETERS, **times, "dead_ms": round(scaled(DEAD_MS))}


class Run:
    """One torture run, from the first boot to the verdict."""

    def __init__(self, arguments: argparse.Namespace, cluster: Cluster) -> None:
        self.arguments = arguments
        self.cluster = cluster
        self.folder = cluster.folder
        self.log = Log(self.folder / "log.txt")
        self.wrong: list[str] = []
        # When all had come to rest, see Tormentor.keys().
        self.keys: dict[str, list[int]] = {}
        self.historian = Historian(self.folder, len(cluster), RING_BYTES)
        pause_us = round(scaled(arguments.pause_us))
        settings = Settings(arguments.seed, pause_us, parameters(), arguments.unsigned)
        self.tormentor = Tormentor(cluster, self.historian, settings, self.log.say)
        self.schedule = schedule.make(
            arguments.seed,
            arguments.nodes,
            arguments.duration,
            scaled(DEAD_MS) / 1000,
            arguments.kinds,
        )
        lines = [f"{fault.at:8.2f} s  {fault}\n" for fault in self.schedule]
        (self.folder / "schedule.txt").write_text("".join(lines))

    def run(self) -> bool:
        """All of it; whether everything was as promised."""
        began = time.monotonic()
        try:
            self._boot()
            with reporting(self.log, self.historian, self.tormentor):
                self.tormentor.run(self.schedule, self.arguments.duration)
                self._settle()
            self._unload()
        except HarnessError as error:
            self.wrong.append(str(error))
        finally:
            events = self._network_events()
            self._stop()
        verdict = self._judge()
        self._summary(verdict, events, time.monotonic() - began)
        return verdict.good and not self.wrong

    def _boot(self) -> None:
        arguments = self.arguments
        self.log.say(
            f"seed {arguments.seed}: {arguments.nodes} nodes on the {self.cluster.flavour.name} "
            f"kernel for {arguments.duration:g} s, {len(self.schedule)} faults planned, "
            f"{'not signed' if arguments.unsigned else 'signed'}"
        )
        self.tormentor.boot()
        self.cluster.switch.seed(arguments.seed)
        for kind, why in self._impossible().items():
            self.log.say(f"left out: {kind} ({why})")
        self.log.say("all nodes are connected")

    def _impossible(self) -> dict[str, str]:
        """Kinds of faults that are wanted but not to be had, and why."""
        wanted, there = self.arguments.kinds, self.tormentor.impossible
        return {kind: why for kind, why in there.items() if kind in wanted}

    def _settle(self) -> None:
        """Heal everything, and wait until all is delivered."""
        self.log.say("healing everything")
        self.tormentor.heal()
        if self.tormentor.settle(QUIET_SECONDS, SETTLE_SECONDS):
            self.log.say("all is quiet")
        else:
            self.wrong.append(f"the nodes did not come to rest in {scaled(SETTLE_SECONDS):g} s")

    def _unload(self) -> None:
        self.keys = self.tormentor.keys()
        for node in range(len(self.cluster)):
            command = "cd /sys/kernel/kccm && grep -r . stats peers 2>/dev/null"
            stats = self.cluster[node].run(command, check=False).out
            (self.cluster[node].folder / "stats.txt").write_text(stats)
        self.tormentor.unload_all()
        self.cluster.assert_clean()
        self.cluster.assert_no_leaks()
        self.log.say("all modules are unloaded")

    def _network_events(self) -> dict[str, int]:
        try:
            return self.cluster.switch.events()
        except HarnessError as error:
            self.wrong.append(str(error))
            return {}

    def _stop(self) -> None:
        """End all machines, and have all that they wrote."""
        for machine in self.cluster:
            self.wrong += [f"{machine.name}: {line}" for line in machine.trouble()]
        for node in range(len(self.cluster)):
            self.cluster.kill(node)
            self.historian.died(node)
            (self.cluster[node].folder / SHARED).unlink(missing_ok=True)
        self.historian.close()
        if self.historian.lost:
            self.wrong.append(f"{self.historian.lost} records found no room: nothing is proved")

    def _judge(self) -> checker.Verdict:
        self.log.say("checking the histories")
        verdict = checker.check_folder(self.folder)
        text = "".join(f"{line}\n" for line in verdict.lines())
        (self.folder / "verdict.txt").write_text(text or "all promises kept\n")
        return verdict

    def _summary(self, verdict: checker.Verdict, events: dict[str, int], took: float) -> None:
        """Tell what was done and what came of it, and keep it for programs to read."""
        arguments, done, plain = self.arguments, self.tormentor.done, self.log.plain
        good = verdict.good and not self.wrong
        plain()
        plain(
            f"seed {arguments.seed}, {arguments.nodes} nodes, {arguments.duration:g} s of faults "
            f"({took:.0f} s in all)"
        )
        _table(self.log, "faults", _sorted(done.faults))
        _table(self.log, "without effect (nobody there, or not connected)", _sorted(done.missed))
        _table(self.log, "left out (no time)", _sorted(done.late))
        impossible = {kind: self._planned()[kind] for kind in self._impossible()}
        _table(self.log, "left out (impossible here)", _sorted(impossible))
        _table(self.log, "resets", {"in the middle of a frame": done.half_frames})
        _table(self.log, "allocations that failed", _sorted(done.starved))
        _table(self.log, "frames", events)
        _table(self.log, "history", verdict.counts)
        for line in dict.fromkeys(self.wrong):
            plain(f"WRONG: {line}")
        for line in verdict.lines():
            plain(f"BROKEN: {line}")
        numbers = {**self._numbers(), "frames": events, "history": verdict.counts, "good": good}
        (self.folder / "summary.json").write_text(json.dumps(numbers, indent=4) + "\n")
        plain(f"everything is in {self.folder}")
        plain("every promise kept" if good else "NOT as promised")

    def _planned(self) -> Counter[str]:
        return Counter(fault.kind for fault in self.schedule)

    def _numbers(self) -> dict[str, object]:
        """What was to be done, and what was."""
        arguments, done = self.arguments, self.tormentor.done
        return {
            "seed": arguments.seed,
            "nodes": arguments.nodes,
            "seconds": arguments.duration,
            "signed": not arguments.unsigned,
            "kernel": self.cluster.flavour.name,
            "planned": self._planned(),
            "impossible": self._impossible(),
            "done": done.faults,
            "missed": done.missed,
            "late": done.late,
            "half frames": done.half_frames,
            "starved": done.starved,
            "keys": self.keys,
        }


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _table(log: Log, title: str, counts: dict[str, int]) -> None:
    if counts:
        log.plain(f"{title}:")
        for name, count in counts.items():
            log.plain(f"  {count:>10}  {name}")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Torture a cluster, and judge what came of it.")
    parser.add_argument("--duration", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--nodes", type=int, default=3, help="3 to 5")
    parser.add_argument(
        "--kinds",
        default="",
        metavar="KIND,...",
        help=f"default: all of {', '.join(schedule.KINDS)}",
    )
    parser.add_argument(
        "--pause-us", type=int, default=20000, help="between two things of a thread"
    )
    parser.add_argument(
        "--signed",
        action=argparse.BooleanOptionalAction,
        help="whether KCCM has a key (default: made from the seed)",
    )
    parser.add_argument("--folder", type=Path, default=harness.BUILD / "torture")
    arguments = parser.parse_args(argv)
    if not 3 <= arguments.nodes <= 5:
        parser.error("--nodes must be 3 to 5")
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1 << 31)
    chosen = [kind.strip() for kind in arguments.kinds.split(",") if kind.strip()]
    if unknown := set(chosen) - set(schedule.KINDS):
        parser.error(f"no such kind of fault: {', '.join(sorted(unknown))}")
    arguments.kinds = chosen or list(schedule.KINDS)
    if arguments.signed is None:
        arguments.signed = schedule.signs(arguments.seed)
    return arguments


def cannot_sign() -> str:
    """Why the guests cannot sign what they send; empty if they can."""
    if b"parmtype=key:" not in harness.flavour().module("kccm").read_bytes():
        return "kccm.ko has no parameter key"
    return "" if shutil.which("keyctl") else "the host has no keyctl"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run what the command line asks for; the exit status."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    folder: Path = arguments.folder
    try:
        not_wanted = "" if arguments.signed else "this run is not signed"
        arguments.unsigned = cannot_sign() or not_wanted
        tools = () if arguments.unsigned else ("keyctl",)
        cluster = Cluster(
            arguments.nodes, name=folder.name, parent=folder.parent, shared=SHARED, tools=tools
        )
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        _tidy(cluster)
        return 0 if Run(arguments, cluster).run() else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        cluster.close()


def _tidy(cluster: Cluster) -> None:
    """Remove what an earlier run has left, so that nothing is taken for this run's."""
    kept = {"console.log", "qemu.log", "switch.log"}
    ours = {machine.folder for machine in cluster}
    for path in cluster.folder.iterdir():
        if path.is_dir() and path not in ours:
            shutil.rmtree(path)
    for path in cluster.folder.rglob("*"):
        if path.is_file() and path.name not in kept:
            path.unlink()


if __name__ == "__main__":
    sys.exit(main())
