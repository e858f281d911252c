# SPDX-License-Identifier: GPL-2.0
"""Where is measured: the only place that knows how guests of the benchmark are made."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import settings
from cluster.accel import accelerator
from cluster.image import Image, kernel_modules
from cluster.machine import Machine, MachineSpec, assert_clean
from cluster.rundir import RunDir
from cluster.settings import Flavour, HarnessError
from cluster.uml import machine_for

from .guest import MODULE, PROGRAMS

# For messages of 1 MiB on many connections, and 128 nodes in one kernel.
MEMORY_MB = 1024
BOOT_SECONDS = 60.0
# Of the kernel's own modules, those that peers need, where they are no part of the kernel.
PEER_MODULES = ("tipc", "sunrpc", "ocfs2_nodemanager")
# Of the programs of the host, those that peers need: TIPC's nodes are set up with this one.
TOOLS = ("tipc",)
# What `make bench` builds, and libtirpc's list of networks, without which there are none for it.
PROGRAM_FOLDER = settings.BUILD / "bench" / "user"
NETCONFIG = Path("/etc/netconfig")


@dataclass(frozen=True)
class Environment:
    """A kind of guest, and how many processors it has.

    Where instructions are ``counted``, each takes a nanosecond of the guest's time, whatever it does
    and however busy this machine is. With ``nodes_of_their_own``, there is a guest for each node of a
    cluster, see instances.py. Neither has any of the targets.
    """

    name: str
    kind: str
    cpus: int
    counted: bool = False
    nodes_of_their_own: bool = False

    @property
    def title(self) -> str:
        """As pictures and tables call it."""
        if self.nodes_of_their_own:
            return "UML instances"
        kind = {"qemu": "QEMU", "uml": "UML"}[self.kind]
        counted = ", instructions" if self.counted else ""
        return f"{kind}, {self.cpus} CPU{'s' if self.cpus > 1 else ''}{counted}"

    @property
    def has_targets(self) -> bool:
        """Whether there is something to be reached here."""
        return not (self.counted or self.nodes_of_their_own)

    @property
    def slowness(self) -> float:
        """How many times what the guest's clock says something takes."""
        return 20.0 if self.counted else 1.0

    def unit(self, unit: str) -> str:
        """What a unit of time is here."""
        return re.sub(r"^ns\b", "instructions", unit) if self.counted else unit

    @property
    def scale(self) -> str:
        """What clusters are made of here, as pictures and tables have it."""
        return "A kernel for each node" if self.nodes_of_their_own else "Nodes in one kernel"


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("qemu-1", "qemu", 1),
        Environment("qemu-2", "qemu", 2),
        Environment("uml-1", "uml", 1),
        Environment("uml-2", "uml", 2),
        Environment("qemu-icount", "qemu", 1, counted=True),
        Environment("uml-nodes", "uml", 1, nodes_of_their_own=True),
    )
}
# Where is measured unless told otherwise.
DEFAULT = tuple(name for name, environment in ENVIRONMENTS.items() if not environment.counted)
QUICK = ("qemu-1",)


@contextmanager
def opened(environment: Environment) -> Iterator[Machine]:
    """A guest that has booted and has kccm_bench.ko loaded; its kernel must not complain."""
    with RunDir(f"bench-{environment.name}") as folder:
        with _machine(environment, folder.path) as machine:
            machine.boot()
            machine.wait_ready(BOOT_SECONDS * environment.slowness)
            if NETCONFIG.is_file():
                machine.write_file(str(NETCONFIG), NETCONFIG.read_bytes())
            for module in (*PEER_MODULES, MODULE):
                if module in machine.spec.image.modules:
                    machine.insmod(module)
            # Of thousands of connections that are told of, that would be measured with theirs.
            with machine.quiet_console():
                yield machine
            assert_clean([machine])


def _machine(environment: Environment, folder: Path) -> Machine:
    flavour = settings.flavour("uml" if environment.kind == "uml" else "bench")
    modules = [*_peer_modules(flavour), flavour.module(MODULE)]
    return machine_for(
        MachineSpec(
            name=f"bench-{environment.name}",
            image=Image.build(modules, _programs()),
            kernel=flavour.bzimage,
            accel=_accelerator(environment, flavour),
            cpus=environment.cpus,
            memory_mb=MEMORY_MB,
            append=flavour.append,
            folder=folder,
        )
    )


def _accelerator(environment: Environment, flavour: Flavour) -> str:
    if environment.counted:
        return "icount"
    return "uml" if flavour.is_uml else accelerator(flavour.bzimage)


def _peer_modules(flavour: Flavour) -> list[Path]:
    """The kernel's modules that peers need, of those that it has."""
    found: list[Path] = []
    for name in PEER_MODULES:
        with contextlib.suppress(HarnessError, OSError):
            found += kernel_modules(flavour.kdir, name) if flavour.kdir else []
    return list(dict.fromkeys(found))


def _programs() -> list[str]:
    """The peers in user space, and what others need there: as much of it as there is."""
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    tools = [name for name in TOOLS if shutil.which(name, path=search)]
    paths = (PROGRAM_FOLDER / name for name in PROGRAMS.values())
    return [*tools, *(str(path) for path in paths if path.is_file())]


def describe(machine: Machine) -> tuple[str, str]:
    """The kernel of a guest, and the machine that it runs on."""
    kernel = machine.run("uname -r").out.strip()
    accel = getattr(machine.spec, "accel", "")
    return f"{kernel}{f' ({accel})' if accel else ''}", host()


def host() -> str:
    """This machine: processor, how many of them, kernel."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1].strip() if found else model
    cpus = len(os.sched_getaffinity(0))
    return f"{model}, {cpus} CPU{'s' if cpus > 1 else ''}, Linux {platform.release()}"


def busy(load: float) -> bool:
    """Whether so much else to do disturbs what is measured."""
    return load > len(os.sched_getaffinity(0)) / 4


def revision() -> str:
    """The revision of this tree, with a + when it has been changed."""
    git = ["git", "-C", str(settings.TREE)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed else "")
