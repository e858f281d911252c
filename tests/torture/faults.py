# SPDX-License-Identifier: GPL-2.0
"""Carries a schedule out on a cluster whose nodes run kccm_torture.ko, and heals everything."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import rings
from cluster import Cluster, Link, Weather
from cluster.cluster import SYSFS
from cluster.machine import insmod
from cluster.settings import scaled
from schedule import Fault

MODULE = "kccm_torture"
PARAMETERS = f"/sys/module/{MODULE}/parameters"
SHARED = "shared"

_UNLOAD = f"echo 1 >{PARAMETERS}/stop && rmmod {MODULE} && rmmod kccm"

_FAILSLAB = "/sys/kernel/debug/failslab"
# Of how many allocations one fails, in percent.
_STARVE_PERCENT = 5
_LOAD_SECONDS = 30.0
# A long handler, a send and a call have to end first.
_UNLOAD_SECONDS = 60.0
# How often what could not be undone is tried again.
_RETRY_SECONDS = 0.2

# Kinds whose beginning and end are commands to a guest that may be gone just then.
_COMMANDS = frozenset({"disconnect", "reconnect", "part"})

# What keys are called in the guests' keyrings, without their numbers.
KEY = "kccm:torture"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """With what the nodes are loaded."""

    seed: int
    pause_us: int
    kccm: dict[str, Any]
    signed: bool


@dataclass
class Done:
    """What has been done, by kind, and what has not."""

    faults: Counter[str] = field(default_factory=Counter)
    # The node was not there, or there was no time left for it.
    missed: Counter[str] = field(default_factory=Counter)


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
        self._starving = False
        # The numbers of the keys that a node has to have.
        self._keys = [1]
        self._began = 0.0

    # The cluster.

    def boot(self) -> None:
        """Boot and load all nodes, and wait until they are connected."""
        for node in range(len(self._cluster)):
            self._share(node)
        self._cluster.boot()
        self._starving = self.has_failslab()
        for node in range(len(self._cluster)):
            self.load(node)
        self._cluster.wait_connected()

    def has_failslab(self) -> bool:
        """Whether the kernel can have allocations fail."""
        return self._cluster[0].run(f"[ -d {_FAILSLAB} ]", check=False).rc == 0

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
        """One thing after the other; what there is no time left for is left out."""
        for fault in lane:
            self._sleep_until(fault.at)
            if self._abort.is_set():
                return
            if self.elapsed() + fault.lasts > duration + 1 or self._impossible(fault):
                self.done.missed[fault.kind] += 1
                continue
            self._tell(fault)
            node = fault.node
            assert node is not None
            actions: dict[str, Callable[[int, float], None]] = {
                "kill": self._kill,
                "reboot": self._reboot,
                "reload": self._reload,
                "freeze": self._freeze,
                "long freeze": self._freeze,
                "deaf": self._deafen,
                "starve": self._starve,
            }
            actions[fault.kind](node, fault.lasts)
            self.done.faults[fault.kind] += 1

    def _impossible(self, fault: Fault) -> bool:
        return fault.kind == "starve" and not self._starving

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
        self._cluster.boot([node])
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

    def _starve(self, node: int, seconds: float) -> None:
        """Only KCCM's threads, and those that use it: the guest's own commands have to go on."""
        settings = {
            "task-filter": "Y",
            "ignore-gfp-wait": "N",
            "verbose": "0",
            "interval": "1",
            "times": "-1",
            "probability": str(_STARVE_PERCENT),
        }
        steps = [f"echo {value} >{_FAILSLAB}/{name}" for name, value in settings.items()]
        chosen = "read -r name <$p/comm && case $name in kccm*) echo 1 >$p/make-it-fail;; esac"
        steps.append(f"for p in /proc/[0-9]*; do {chosen}; done 2>/dev/null; true")
        self._cluster[node].run(" && ".join(steps))
        self._pause(seconds)
        self._cluster[node].write(f"{_FAILSLAB}/probability", "0")

    # Links.

    def _link_lane(self, lane: list[Fault]) -> None:
        """Things that overlap: what begins and ends when, in the order of the times."""
        moments = [(fault.at, number, True) for number, fault in enumerate(lane)]
        moments += [(f.ends, n, False) for n, f in enumerate(lane) if f.lasts]
        undo: list[Fault] = []
        for moment, number, begins in sorted(moments):
            while self.elapsed() < moment and not self._abort.is_set():
                self._sleep_until(min(moment, self.elapsed() + _RETRY_SECONDS))
                undo = [fault for fault in undo if not self._command(fault, False)]
            if self._abort.is_set():
                return
            fault = lane[number]
            if begins:
                self._tell(fault)
            if fault.kind not in _COMMANDS:
                self._links.change(fault, begins)
            elif not self._command(fault, begins):
                if begins:
                    self.done.missed[fault.kind] += 1
                    continue
                undo.append(fault)
            if begins:
                self.done.faults[fault.kind] += 1

    def _command(self, fault: Fault, begins: bool) -> bool:
        """Tell one end of a link something; false if it is not there to be told."""
        node, peer = fault.links[0]
        name, word = "control", fault.kind
        if fault.kind == "part":
            name, word = "admin", "down" if begins else "up"
        if not self._locks[node].acquire(blocking=False):
            return False
        try:
            self._cluster[node].write(f"{SYSFS}/peers/{peer}/{name}", word)
        finally:
            self._locks[node].release()
        return True

    # Keys.

    def _key_lane(self, lane: list[Fault], duration: float) -> None:
        """One new key after the other, while there is time. A node that is not there just then is told
        when it is.
        """
        for fault in lane:
            self._sleep_until(fault.at)
            if self._abort.is_set():
                return
            if not self._settings.signed or self.elapsed() > duration:
                self.done.missed[fault.kind] += 1
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
            self.done.faults[fault.kind] += 1

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

    def unload_all(self) -> None:
        """Unload everything, which has to leave nothing behind."""
        self._cluster.run_all(_UNLOAD, _UNLOAD_SECONDS)


class _Links:
    """The links, and what troubles them at present."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._active: list[Fault] = []

    def change(self, fault: Fault, begins: bool) -> None:
        """A fault begins or ends."""
        if fault.kind == "reset":
            self._cluster.switch.reset(*fault.links[0])
            return
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
