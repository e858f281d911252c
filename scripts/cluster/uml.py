# SPDX-License-Identifier: GPL-2.0
"""A guest that is user-mode Linux: a kernel that is a program, of which dozens fit.

It is used like any Machine. Its processors are threads of one process, kernel
code runs at the speed of the host, and every process of the guest is a process
of the host, in the group of the guest's own, which ends with it.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from . import process
from .machine import Machine, MachineSpec, mac_address
from .settings import HarnessError

_SHM = Path("/dev/shm")


def machine_for(spec: MachineSpec) -> Machine:
    """The machine that a specification asks for."""
    return UmlMachine(spec) if spec.accel == "uml" else Machine(spec)


class UmlMachine(Machine):
    """One guest that is user-mode Linux; the specification's kernel is the program.

    What it has no use for are ``kunit`` and ``shared``. A frozen guest's clock goes on.
    """

    process_name = "UML"

    @property
    def _own_folder(self) -> Path:
        """What UML leaves of itself while it runs."""
        return self.folder / "uml"

    def _start(self, agent: int, network: int | None) -> process.Child:
        """Start UML, with these ends of the command channel and of the cable."""
        if self.spec.shared:
            raise HarnessError(f"{self.name}: a guest that is user-mode Linux shares no file")
        with self.console.path.open("ab") as console:
            numbers = [agent, console.fileno()] + ([network] if network is not None else [])
            return process.spawn(self._arguments(*numbers), self.process_log, numbers)

    def _arguments(self, agent: int, console: int, network: int | None = None) -> list[str]:
        spec = self.spec
        lan: list[str] = []
        if network is not None:
            mac = mac_address(spec.node_id)
            lan = [f"vec0:transport=fd,fd={network},mac={mac},mtu={spec.mtu}"]
        return [
            # A panic ends in abort(), which must not leave an image of all memory.
            *("env", f"TMPDIR={self._memory_folder()}", "prlimit", "--core=0:0", "--"),
            *(str(spec.kernel), f"mem={spec.memory_mb}M", f"initrd={spec.image.path}"),
            *(f"ncpus={spec.cpus}", "seccomp=on", "noreboot", "panic=-1"),
            *(f"uml_dir={self._own_folder}", "umid=guest"),
            *("con=null", f"con0=null,fd:{console}", "console=tty0"),
            *("ssl=null", f"ssl1=fd:{agent}"),
            *(f"kccm_node={spec.node_id}", f"kccm_mtu={spec.mtu}"),
            *lan,
            *spec.append.split(),
        ]

    def _memory_folder(self) -> Path:
        """Where the guest's memory is a file, which has lost its name when the guest boots.

        On a disk it would be written back to that time and again.
        """
        needed = self.spec.memory_mb << 20
        try:
            there = os.statvfs(_SHM)
        except FileNotFoundError:
            return self.folder
        executable = not there.f_flag & os.ST_NOEXEC
        room = there.f_bavail * there.f_frsize
        return _SHM if executable and room > needed and os.access(_SHM, os.W_OK) else self.folder

    def kill(self) -> None:
        """End UML without warning (SIGKILL), as a power failure would."""
        super().kill()
        shutil.rmtree(self._own_folder, ignore_errors=True)

    def _kill_process(self, child: process.Child) -> bool:
        """SIGKILL the guest and all its processes."""
        self._signal(child, signal.SIGKILL)
        return process.kill(child)

    def freeze(self) -> None:
        """Stop the guest and all its processes."""
        self._signal(self._running(), signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """Let a frozen guest go on."""
        self._signal(self._running(), signal.SIGCONT)
        self.frozen = False

    @staticmethod
    def _signal(child: process.Child, number: signal.Signals) -> None:
        """Signal the group that a guest leads, for as long as the guest is there."""
        if child.poll() is None:
            os.killpg(child.pid, number)

    def _running(self) -> process.Child:
        if self._child is None or not self.alive:
            raise HarnessError(f"{self.name} is not running")
        return self._child
