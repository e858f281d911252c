# SPDX-License-Identifier: GPL-2.0
"""Carries a schedule out on a cluster whose nodes run kccm_torture.ko, and heals everything."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import rings
from cluster import Broken, Cluster, GuestError, Link, Weather, switchd
from cluster.cluster import SYSFS
from cluster.machine import insmod
from cluster.settings import scaled
from schedule import Fault

MODULE = "kccm_torture"
PARAMETERS = f"/sys/module/{MODULE}/parameters"
SHARED = "shared"

_UNLOAD = f"echo 1 >{PARAMETERS}/stop && rmmod {MODULE} && rmmod kccm"

# What can have allocations fail: those of objects, and those of pages.
_INJECTORS = tuple(f"/sys/kernel/debug/{name}" for name in ("failslab", "fail_page_alloc"))
# Of how many allocations one fails, in percent.
_STARVE_PERCENT = 5
# From where each injector counts down.
_STARVE_TIMES = 1_000_000_000
# How often it is looked which threads are to starve, in hundredths of a second: new ones are made.
_STARVE_LOOK = 25
# All guests are at work while one boots.
_BOOT_SECONDS = 180.0
_LOAD_SECONDS = 30.0
# A long handler, a send and a call have to end first.
_UNLOAD_SECONDS = 60.0
# How often what could not be done is tried again, and for how long at most.
_RETRY_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0
# How often it is looked what has become of a connection that is to be broken.
_LOOK_SECONDS = 0.05

# What is done to links by guests, that may be gone just then, or wait for the right moment.
_BY_GUESTS = frozenset({"disconnect", "reconnect", "part", "reset"})

# What keys are called in the guests' keyrings, without their numbers.
KEY = "kccm:torture"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """With what the nodes are loaded."""

    seed: int
    pause_us: int
    kccm: dict[str, Any]
    # Why the nodes do not sign what they send; empty if they do.
    unsigned: str

    @property
    def signed(self) -> bool:
        """Whether the nodes sign what they send."""
        return not self.unsigned


@dataclass
class Done:
    """What has been done, by kind, and what has not."""

    faults: Counter[str] = field(default_factory=Counter)
    # There was no time left for it.
    late: Counter[str] = field(default_factory=Counter)
    # The node was not there, or nothing came of it.
    missed: Counter[str] = field(default_factory=Counter)
    # Of the resets, those in the middle of a frame; allocations that have failed.
    half_frames: int = 0
    starved: Counter[str] = field(default_factory=Counter)


class Tormentor:
    """Does to the nodes and links of a cluster what a schedule says."""

    def __init__(
        self, cluster: Cluster, historian: rings.Historian, settings: Settings, say: Say
    ) -> None:
        self.done = Done()
        self._cluster = cluster
        self._historian = historian
        self._settings = settings
        self._say = say
        self._lives = [0] * len(cluster)
        # Held while a node is not there to be told anything.
        self._locks = [threading.Lock() for _ in range(len(cluster))]
        self._abort = threading.Event()
        self._errors: list[Exception] = []
        self._links = _Links(cluster)
        # Kinds of faults that cannot be had in this run, and why.
        self.impossible: dict[str, str] = {}
        self._counting = threading.Lock()
        # The numbers of the keys that a node has to have.
        self._keys = [1]
        self._began = 0.0

    # The cluster.

    def boot(self) -> None:
        """Boot and load all nodes, and wait until they are connected."""
        for node in range(len(self._cluster)):
            self._share(node)
        self._cluster.boot()
        if not self._can_starve():
            self.impossible["starve"] = "this kernel has no failslab, or no fail_page_alloc"
        if not self._settings.signed:
            self.impossible["rekey"] = self._settings.unsigned
        for node in range(len(self._cluster)):
            self.load(node)
        self._cluster.wait_connected()

    def _can_starve(self) -> bool:
        """Whether the kernel can have allocations fail."""
        there = " && ".join(f"[ -d {injector} ]" for injector in _INJECTORS)
        return self._cluster[0].run(there, check=False).rc == 0

    def load(self, node: int) -> None:
        """Load KCCM and the workload in a node: a new life of it begins."""
        self._lives[node] += 1
        life = self._lives[node]
        self._historian.starting(node, life)
        kccm = self._cluster.parameters(node, **self._settings.kccm)
        ours = f"life={life} seed={self._settings.seed} pause_us={self._settings.pause_us}"
        steps = [f"{insmod('kccm')} {kccm}", f"{insmod(MODULE)} {ours}"]
        if self._settings.signed:
            steps[0] += f" key={KEY}"
            steps = [self._add_key(number) for number in self._keys] + steps
        self._cluster[node].run(" && ".join(steps), _LOAD_SECONDS)

    def unload(self, node: int) -> None:
        """Unload both from a node."""
        self._cluster[node].run(_UNLOAD, _UNLOAD_SECONDS)

    def _share(self, node: int) -> None:
        self._historian.boots(node, self._cluster[node].folder / SHARED)

    # The schedule.

    def run(self, schedule: Iterable[Fault], duration: float) -> None:
        """Do all of it, in a thread for each lane; raises what went wrong in any."""
        lanes: dict[int | None, list[Fault]] = {}
        for fault in schedule:
            lanes.setdefault(fault.node, []).append(fault)
        whole = lanes.pop(None, [])
        links = [fault for fault in whole if not fault.order]
        keys = [fault for fault in whole if fault.order]
        self._began = time.monotonic()
        threads = [
            threading.Thread(target=self._guard, args=(self._node_lane, lane, duration))
            for lane in lanes.values()
        ]
        threads.append(threading.Thread(target=self._guard, args=(self._link_lane, links)))
        arguments = (self._key_lane, keys, duration)
        threads.append(threading.Thread(target=self._guard, args=arguments))
        for thread in threads:
            thread.start()
        self._sleep_until(duration)
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def elapsed(self) -> float:
        """Seconds since run() began."""
        return time.monotonic() - self._began

    def _guard(self, lane: Callable[..., None], *arguments: object) -> None:
        try:
            lane(*arguments)
        except Exception as error:  # a lane must not end unnoticed
            self._errors.append(error)
            self._abort.set()

    def _sleep_until(self, moment: float) -> None:
        self._abort.wait(max(0.0, moment - self.elapsed()))

    # Nodes.

    def _node_lane(self, lane: list[Fault], duration: float) -> None:
        """One thing after the other; what there is no time left for is left out, if it was done before."""
        for fault in lane:
            self._sleep_until(fault.at)
            if self._abort.is_set():
                return
            if fault.kind in self.impossible:
                continue
            if self.elapsed() + fault.lasts > duration + 1 and self.done.faults[fault.kind]:
                self._count(self.done.late, fault)
                continue
            self._tell(fault)
            node = fault.node
            assert node is not None
            actions: dict[str, Callable[[int, float], str | None]] = {
                "kill": self._kill,
                "reboot": self._reboot,
                "reload": self._reload,
                "freeze": self._freeze,
                "long freeze": self._freeze,
                "deaf": self._deafen,
                "starve": self._starve,
            }
            if why := actions[fault.kind](node, fault.lasts):
                self._left_out(fault, why)
            else:
                self._count(self.done.faults, fault)

    def _count(self, counts: Counter[str], fault: Fault) -> None:
        with self._counting:
            counts[fault.kind] += 1

    def _left_out(self, fault: Fault, why: str) -> None:
        """A fault has not been done, or nothing has come of it."""
        self._say(f"not done: {fault}: {why}")
        self._count(self.done.missed, fault)

    def _tell(self, fault: Fault) -> None:
        late = self.elapsed() - fault.at
        self._say(f"{fault}" + (f" ({late:.1f} s late)" if late > 1 else ""))

    def _pause(self, seconds: float) -> None:
        self._abort.wait(seconds)

    def _kill(self, node: int, pause: float) -> None:
        with self._locks[node]:
            self._cluster.kill(node)
            self._historian.died(node)
            self._pause(pause)
            self._boot_again(node)

    def _reboot(self, node: int, _: float) -> None:
        with self._locks[node]:
            self._cluster[node].power_off()
            self._cluster.kill(node)
            self._historian.died(node)
            self._boot_again(node)

    def _boot_again(self, node: int) -> None:
        self._share(node)
        self._cluster.boot([node], _BOOT_SECONDS)
        self.load(node)

    def _reload(self, node: int, pause: float) -> None:
        with self._locks[node]:
            self.unload(node)
            self._pause(pause)
            self.load(node)

    def _freeze(self, node: int, seconds: float) -> None:
        with self._locks[node]:
            self._cluster[node].freeze()
            self._pause(seconds)
            self._cluster[node].thaw()

    def _deafen(self, node: int, seconds: float) -> None:
        self._cluster[node].write(f"{PARAMETERS}/receiving", "0")
        self._pause(seconds)
        self._cluster[node].write(f"{PARAMETERS}/receiving", "1")

    def _starve(self, node: int, seconds: float) -> str | None:
        """Only KCCM's threads, and those that use it: the guest's own commands have to go on."""
        failed = self._cluster[node].run(_starve_command(seconds), seconds + 30.0).out.split()
        if len(failed) != len(_INJECTORS):
            raise GuestError(f"node {node}: cannot say what has failed: {' '.join(failed)}")
        counts = {
            injector.rpartition("/")[2]: _STARVE_TIMES - int(left)
            for injector, left in zip(_INJECTORS, failed, strict=True)
        }
        with self._counting:
            self.done.starved.update(counts)
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        self._say(f"starved node {node}: allocations failed: {told}")
        return None if sum(counts.values()) else "no allocation has failed"

    # Links.

    def _link_lane(self, lane: list[Fault]) -> None:
        """Things that overlap: what begins and ends when, in the order of the times."""
        moments = [(fault.at, number, True) for number, fault in enumerate(lane)]
        moments += [(f.ends, n, False) for n, f in enumerate(lane) if f.lasts]
        helpers: list[threading.Thread] = []
        for moment, number, begins in sorted(moments):
            self._sleep_until(moment)
            if self._abort.is_set():
                break
            fault = lane[number]
            if fault.kind in _BY_GUESTS:
                if begins:
                    does = self._reset if fault.kind == "reset" else self._command
                    helpers.append(threading.Thread(target=self._guard, args=(does, fault)))
                    helpers[-1].start()
                continue
            if begins:
                self._tell(fault)
            self._links.change(fault, begins)
            if begins:
                self._count(self.done.faults, fault)
        for helper in helpers:
            helper.join()

    def _command(self, fault: Fault) -> None:
        """Tell one end of a link something, and later perhaps take it back."""
        node, peer = fault.links[0]
        place = f"{SYSFS}/peers/{peer}"
        # Where it would change nothing, it is not done.
        if fault.kind == "part":
            looks, says = "admin", "echo down >admin"
        else:
            looks, says = "state", f"echo {fault.kind} >control"
        command = f'cd {place} && read -r s <{looks} && [ "$s" = up ] && {says}'
        if not self._insist(node, command, max(fault.ends, fault.at + scaled(_PATIENCE_SECONDS))):
            self._left_out(fault, f"node {node} was not there, or not connected")
            return
        self._tell(fault)
        self._count(self.done.faults, fault)
        if fault.lasts:
            self._sleep_until(fault.ends)
            self._insist(node, f"echo up >{place}/admin")

    def _insist(self, node: int, command: str, until: float = math.inf) -> bool:
        """Have a guest run a command as soon as it is there and the command does not fail; whether
        that was in time.
        """
        while not self._abort.is_set():
            if self._ask(node, command):
                return True
            if self.elapsed() > until:
                return False
            self._pause(_RETRY_SECONDS)
        return False

    def _ask(self, node: int, command: str) -> bool:
        """Have a guest run a command, if it is there; whether that has succeeded."""
        if not self._locks[node].acquire(blocking=False):
            return False
        try:
            return self._cluster[node].run(command, check=False).rc == 0
        finally:
            self._locks[node].release()

    def _reset(self, fault: Fault) -> None:
        """Break a connection where a frame is half there, if one is long enough for that in time. Who
        forges a reset cannot sign it: where the nodes sign, the receiver of that frame does it.
        """
        self._tell(fault)
        break_it = self._reset_from_inside if self._settings.signed else self._reset_by_forgery
        until = fault.at + scaled(_PATIENCE_SECONDS)
        while (broken := break_it(*fault.links[0], until)) is None:
            self._pause(_RETRY_SECONDS)
            if self._abort.is_set() or self.elapsed() >= until:
                break
        if broken is None:
            self._left_out(fault, "no connection that was in use could be reset in time")
            return
        a, b = fault.links[0]
        what = (
            f"swallowed, and node {b} has reset it"
            if self._settings.signed
            else "replaced by resets"
        )
        where = "in the middle of a frame" if broken.half else "between frames"
        self._say(f"reset {a}>{b} was done {where}: {broken.segments} segments {what}")
        self._count(self.done.faults, fault)
        with self._counting:
            self.done.half_frames += broken.half

    def _reset_by_forgery(self, a: int, b: int, until: float) -> Broken | None:
        switch = self._cluster.switch
        number = switch.reset(a, b, self._settings.kccm["dead_ms"] / 2000)
        try:
            self._watch(number, until, (switchd.DONE, switchd.OVER))
        finally:
            broken = switch.let_be(number)
        return broken if broken.state == switchd.DONE else None

    def _reset_from_inside(self, a: int, b: int, until: float) -> Broken | None:
        switch = self._cluster.switch
        number = switch.hold(a, b)
        gone = False
        try:
            broken = self._watch(number, until, (switchd.HELD, switchd.OVER))
            if broken.state == switchd.HELD:
                # Seen from there: its own address and port first.
                flow = " ".join(map(str, broken.flow[2:] + broken.flow[:2]))
                gone = self._ask(b, f"echo {flow} >{PARAMETERS}/abort")
        finally:
            broken = switch.let_be(number)
        return broken if gone else None

    def _watch(self, number: int, until: float, states: Iterable[str]) -> Broken:
        """Wait until the breaking of a connection has got somewhere, or there is no time left."""
        while True:
            broken = self._cluster.switch.broken(number)
            if broken.state in states or self._abort.is_set() or self.elapsed() > until:
                return broken
            self._pause(_LOOK_SECONDS)

    # Keys.

    def _key_lane(self, lane: list[Fault], duration: float) -> None:
        """One new key after the other, while there is time, and one at least. A node that is not there
        just then is told when it is.
        """
        for fault in lane:
            self._sleep_until(fault.at)
            if self._abort.is_set():
                return
            if fault.kind in self.impossible:
                continue
            if self.elapsed() > duration and self.done.faults[fault.kind]:
                self._count(self.done.late, fault)
                continue
            self._tell(fault)
            old = self._keys[-1]
            new = old % 255 + 1
            pause = fault.lasts / 2 / len(fault.order)
            self._keys = [old, new]
            self._rekey(fault.order, self._add_key(new), pause)
            self._keys = [new]
            unlink = f"keyctl unlink %logon:{KEY}:{old} @u"
            self._rekey(fault.order, unlink, pause)
            self._count(self.done.faults, fault)

    def _rekey(self, order: Iterable[int], change: str, pause: float) -> None:
        for node in order:
            if self._abort.is_set():
                return
            with self._locks[node]:
                # A node that was booted or loaded meanwhile has what it has to have.
                self._cluster[node].run(f"{{ {change}; }} 2>&1; echo 1 >{SYSFS}/rekey")
            self._pause(pause)

    def _add_key(self, number: int) -> str:
        secret = hashlib.sha256(f"{self._settings.seed} {number}".encode()).hexdigest()
        return f"keyctl add logon {KEY}:{number} {secret} @u >/dev/null"

    # The end.

    def heal(self) -> None:
        """Undo everything that may be left, so that all nodes can connect."""
        self._links.clear()
        command = (
            f"echo 1 >{PARAMETERS}/receiving; "
            f"for peer in {SYSFS}/peers/*; do echo up >$peer/admin; done"
        )
        self._cluster.run_all(command)

    def settle(self, quiet: float, limit: float) -> bool:
        """Let the work end, and wait until nothing happens any more; whether it came to that."""
        self._cluster.wait_connected()
        self._cluster.run_all(f"echo 0 >{PARAMETERS}/sending")
        deadline = time.monotonic() + scaled(limit)
        while True:
            idle = time.monotonic() - self._historian.last_record
            if idle >= scaled(quiet):
                break
            if time.monotonic() > deadline:
                return False
            time.sleep(min(1.0, scaled(quiet) - idle + 0.05))
        self._cluster.run_all(f"echo 1 >{PARAMETERS}/final")
        return True

    def keys(self) -> dict[str, list[int]]:
        """Which key the nodes should use, and which they do."""
        command = f"cat {SYSFS}/peers/*/key"
        said = self._cluster.run_all(command).values() if self._settings.signed else ()
        words = {word for result in said for word in result.out.split()}
        numbers = [int(word) for word in words if word.isdecimal()]
        return {"newest": self._keys[-1:], "in use": sorted(numbers)}

    def unload_all(self) -> None:
        """Unload everything, which has to leave nothing behind."""
        self._cluster.run_all(_UNLOAD, _UNLOAD_SECONDS)


def _starve_command(seconds: float) -> str:
    """A command that has allocations fail for so long; it says how many each injector left to fail.

    Threads are looked for again and again, for new ones are made: an injector
    hits a thread only if that has been marked, and only outside of interrupts.
    """
    settings: dict[str, object] = {
        "task-filter": "Y",
        "ignore-gfp-wait": "N",
        "verbose": 0,
        "interval": 1,
        "times": _STARVE_TIMES,
        "probability": _STARVE_PERCENT,
    }
    pages: dict[str, object] = {"min-order": 0, "ignore-gfp-highmem": "N"}
    steps = [
        f"echo {value} >{injector}/{name}"
        for injector in _INJECTORS
        for name, value in (settings | (pages if "page" in injector else {})).items()
    ]
    marks = "case $name in kccm*) echo 1 >$p/make-it-fail;; esac"
    return (
        "now() { read -r up _ </proc/uptime; up=${up%.*}${up#*.}; }; "
        f"mark() {{ for p in /proc/[0-9]*; do read -r name <$p/comm && {marks}; done 2>/dev/null; }}; "
        f"{' && '.join(steps)} || exit 1; now; end=$((up + {round(seconds * 100)})); "
        f"while mark; now; [ $up -lt $end ]; do usleep {_STARVE_LOOK * 10000}; done; "
        + "; ".join(f"echo 0 >{injector}/probability" for injector in _INJECTORS)
        + "".join(f"; cat {injector}/times" for injector in _INJECTORS)
    )


class _Links:
    """The links, and what troubles them at present."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._active: list[Fault] = []

    def change(self, fault: Fault, begins: bool) -> None:
        """A fault begins or ends."""
        if begins:
            self._active.append(fault)
        else:
            self._active.remove(fault)
        self._apply()

    def clear(self) -> None:
        """All is well."""
        self._active.clear()
        self._apply()

    def _apply(self) -> None:
        """Cuts add up; of several kinds of weather on one link, the last counts."""
        cuts: set[Link] = set()
        weather: dict[Link, Weather] = {}
        for fault in self._active:
            if fault.weather:
                weather |= dict.fromkeys(fault.links, fault.weather)
            else:
                cuts |= set(fault.links)
        with ExitStack() as stack:  # goes on when one of them fails
            stack.callback(self._cluster.switch.set_cuts, cuts)
            stack.callback(self._cluster.switch.set_weather, weather)
