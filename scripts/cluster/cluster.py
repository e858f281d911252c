# SPDX-License-Identifier: GPL-2.0
"""A cluster: several guests on one switch, and KCCM in them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from . import settings
from .accel import accelerator
from .channel import Job, Result
from .image import Image
from .machine import Machine, MachineSpec, assert_clean, assert_no_leaks, insmod
from .rundir import RunDir
from .settings import scaled
from .switch import Switch
from .uml import machine_for

PORT = 7700
SYSFS = "/sys/kernel/kccm"
# The module's defaults.
DEAD_MS = 3000
HANDSHAKE_MS = 2000

BOOT_SECONDS = 60.0
CONNECT_SECONDS = 30.0


def address(node: int, family: int = 4) -> str:
    """The address of a node; IPv6 in the brackets that the peer list wants."""
    return f"10.1.0.{node + 1}" if family == 4 else f"[fd00::{node + 1:x}]"


class Cluster:
    """``nodes`` machines on a switch of their own, as a context manager.

    >>> with Cluster(3, name="example") as cluster:
    ...     cluster.load_all()
    ...     cluster.wait_connected()
    ...     cluster.kill(1)
    ...     cluster.wait_lost(0, 1)

    ``modules`` are the kernel modules in the guests' image (default: all of
    ours that are built); ``tools`` are programs of the host to put there too,
    such as ``ip``, ``tc`` or ``ss``. Logs are in ``folder``, which is called
    ``name`` and is in ``parent``. With ``shared``, each machine shares the file
    of that name in its folder with its guest, see MachineSpec; it has to be
    there when the machine boots.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        name: str = "cluster",
        modules: Iterable[Path] | None = None,
        tools: Sequence[str] = (),
        cpus: int = 1,
        memory_mb: int | None = None,
        mtu: int = 1500,
        append: str = "",
        flavour: settings.Flavour | None = None,
        parent: Path = settings.RUN_DIR,
        shared: str = "",
    ) -> None:
        self.name = name
        self.flavour = flavour or settings.flavour()
        self.accel = "uml" if self.flavour.is_uml else accelerator(self.flavour.bzimage)
        self.image = Image.build(self.flavour.modules() if modules is None else modules, tools)
        self._run_dir = RunDir(name, parent)
        self._shared = shared
        self.folder = self._run_dir.path
        common = MachineSpec(
            name=name,
            image=self.image,
            kernel=self.flavour.bzimage,
            accel=self.accel,
            cpus=cpus,
            memory_mb=memory_mb or self.flavour.memory_mb,
            mtu=mtu,
            append=f"{self.flavour.append} {append}".strip(),
        )
        self.machines = [machine_for(self._node_spec(common, node)) for node in range(nodes)]
        self.switch = Switch(self.folder / "switch.log")

    def _node_spec(self, common: MachineSpec, node: int) -> MachineSpec:
        name = f"node{node}"
        folder = self.folder / name
        shared = folder / self._shared if self._shared else None
        full_name = f"{folder.parent.name}/{name}"
        return replace(common, name=full_name, node_id=node, folder=folder, shared=shared)

    def __enter__(self) -> Cluster:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.machines)

    def __getitem__(self, node: int) -> Machine:
        return self.machines[node]

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines)

    # Power.

    def boot(self, nodes: Iterable[int] | None = None, timeout: float = BOOT_SECONDS) -> None:
        """Boot those of the nodes that are off (default: all), side by side."""
        off = [node for node in self._nodes(nodes) if not self.machines[node].alive]
        for node in off:
            with self.switch.plug(node) as cable:
                self.machines[node].boot(cable)
        for node in off:
            self.machines[node].wait_ready(timeout)

    def kill(self, node: int) -> None:
        """End a node without warning (SIGKILL to its QEMU)."""
        self.machines[node].kill()
        self.switch.unplug(node)

    def reboot(self, node: int, timeout: float = BOOT_SECONDS) -> None:
        """Boot a node anew, ending it without warning if it runs. It has no KCCM then."""
        self.kill(node)
        self.boot([node], timeout)

    def alive(self) -> list[int]:
        """The nodes that run."""
        return [node for node, machine in enumerate(self.machines) if machine.alive]

    def close(self) -> None:
        """End all machines and the switch; the logs stay."""
        with ExitStack() as stack:  # goes on when one of them fails
            stack.callback(self._run_dir.close)
            stack.callback(self.switch.close)
            for machine in self.machines:
                stack.callback(machine.kill)

    # The network.

    def cut(self, a: int, b: int, both: bool = True) -> None:
        """Drop all frames from node ``a`` to ``b``, and with ``both`` from ``b`` to ``a``."""
        self.switch.cut(a, b, both)

    def heal(self, a: int, b: int, both: bool = True) -> None:
        """Undo cut()."""
        self.switch.heal(a, b, both)

    # KCCM.

    @property
    def dead_ms(self) -> int:
        """After how long a silence a node is held dead, unless loaded otherwise."""
        return round(max(DEAD_MS, scaled(DEAD_MS)))

    @property
    def handshake_ms(self) -> int:
        """How long a handshake may take, unless loaded otherwise."""
        return round(max(HANDSHAKE_MS, scaled(HANDSHAKE_MS)))

    def peers(self, family: int = 4) -> str:
        """The ``peers`` parameter that names all nodes of this cluster."""
        return ",".join(f"{node}={address(node, family)}" for node in range(len(self)))

    def parameters(self, node: int, *, family: int = 4, **extra: object) -> str:
        """The parameters with which ``node`` loads KCCM; ``extra`` adds or replaces some.

        Where everything takes longer, nodes have more time to greet, and before
        they are held dead: the defaults times KCCM_TIMEOUT_SCALE.
        """
        values: dict[str, object] = {
            "node_id": node,
            "peers": self.peers(family),
            "cluster": self.name,
        }
        if settings.timeout_scale() > 1:
            values.update(dead_ms=self.dead_ms, handshake_ms=self.handshake_ms)
        values.update(extra)
        return " ".join(f"{name}={value}" for name, value in values.items())

    def load(self, node: int, *, family: int = 4, **extra: object) -> None:
        """Load KCCM in one node, such as ``load(1, dead_ms=500, cluster="other")``."""
        self.machines[node].insmod("kccm", self.parameters(node, family=family, **extra))

    def load_all(self, *, family: int = 4, **extra: object) -> None:
        """Load KCCM in all nodes that run, side by side."""
        self.run_all(
            {
                node: f"{insmod('kccm')} {self.parameters(node, family=family, **extra)}"
                for node in self.alive()
            }
        )

    def unload(self, node: int, timeout: float = 30.0) -> None:
        """Unload KCCM from one node."""
        self.machines[node].rmmod("kccm", timeout=timeout)

    def run_all(self, command: str | dict[int, str], timeout: float = 30.0) -> dict[int, Result]:
        """Run a command in all nodes that run (or one command each) at once."""
        if isinstance(command, str):
            command = {node: command for node in self.alive()}
        jobs: dict[int, Job] = {n: self.machines[n].spawn(text) for n, text in command.items()}
        return {node: job.wait(timeout) for node, job in jobs.items()}

    def attribute(self, node: int, name: str) -> str:
        """An attribute below /sys/kernel/kccm, such as ``incarnation``."""
        return self.machines[node].read(f"{SYSFS}/{name}")

    def peer(self, node: int, peer: int, name: str) -> str:
        """An attribute that ``node`` has of ``peer``, such as ``rx_messages``."""
        return self.attribute(node, f"peers/{peer}/{name}")

    def peer_state(self, node: int, peer: int) -> str:
        """The state of ``peer`` as ``node`` sees it."""
        return self.peer(node, peer, "state")

    def peer_table(self, node: int) -> dict[int, dict[str, str]]:
        """All attributes of all peers as ``node`` sees them, read at one go."""
        command = (
            f"cd {SYSFS}/peers && for f in */*; do "
            'v=; { read -r v <"$f"; } 2>/dev/null && echo "$f $v"; done; true'
        )
        table: dict[int, dict[str, str]] = {}
        for line in self.machines[node].run(command).out.splitlines():
            name, _, value = line.partition(" ")
            peer, _, attribute = name.partition("/")
            table.setdefault(int(peer), {})[attribute] = value
        return table

    def wait_state(self, node: int, peer: int, state: str, timeout: float = 30.0) -> None:
        """Wait until ``node`` sees ``peer`` in ``state``."""
        self._wait_peers(node, [peer], f'[ "$s" = {state} ]', state, timeout)

    def wait_lost(self, node: int, peer: int, timeout: float = 30.0) -> None:
        """Wait until ``node`` no longer sees ``peer`` up."""
        self._wait_peers(node, [peer], '[ "$s" != up ]', "lost", timeout)

    def wait_connected(
        self, timeout: float = CONNECT_SECONDS, nodes: Iterable[int] | None = None
    ) -> None:
        """Wait until these nodes (default: all that run) see each other up."""
        wanted = self.alive() if nodes is None else list(nodes)
        deadline = time.monotonic() + scaled(timeout)
        for node in wanted:
            peers = [peer for peer in wanted if peer != node]
            left = max(1.0, deadline - time.monotonic()) / settings.timeout_scale()
            self._wait_peers(node, peers, '[ "$s" = up ]', "up", left)

    def _wait_peers(
        self, node: int, peers: Sequence[int], test: str, what: str, timeout: float
    ) -> None:
        """Have a node watch its own attributes, so that nothing is polled from here.

        ``test`` is a shell condition about $s, the state of a peer.
        """
        if not peers:
            return
        machine = self.machines[node]
        machine.run(f"[ -d {SYSFS} ] || {{ echo 'KCCM is not loaded'; exit 1; }}")
        paths = [f"{SYSFS}/peers/{peer}" for peer in peers]
        ready = "; ".join(f"read -r s <{path}/state && {test} || return 1" for path in paths)
        machine.wait_until(
            "ready 2>/dev/null",
            timeout,
            setup=f"ready() {{ {ready}; }}",
            hint=f"grep -s . {' '.join(f'{path}/*' for path in paths)}",
            what=f"node {node} sees {', '.join(str(peer) for peer in peers)} {what}",
        )

    # Faults.

    def assert_clean(self) -> None:
        """Raise Unclean if any node's kernel has reported a fault."""
        assert_clean(self.machines)

    def assert_no_leaks(self) -> None:
        """Raise Unclean if a node's kernel has lost memory, where kmemleak looks for it."""
        assert_no_leaks(self.machines)

    def _nodes(self, nodes: Iterable[int] | None) -> list[int]:
        return list(range(len(self))) if nodes is None else list(nodes)
