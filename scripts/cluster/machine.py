# SPDX-License-Identifier: GPL-2.0
"""One guest: a QEMU process, its console, its command channel and its monitor.

All connections to QEMU are socket pairs that it inherits, so nothing but logs
is left in the file system, and a connection ends exactly when QEMU does.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import process, settings
from .channel import Channel, GuestDied, GuestError, Job, Result
from .console import PANIC, Console
from .hosttsc import host_tsc_khz
from .image import MODULE_FOLDER, Image
from .qmp import Qmp
from .settings import HarnessError, paced, scaled

QEMU = "qemu-system-x86_64"

# Accelerators, with the processor that each offers. Without five-level page
# tables: a kernel with KASAN that is interrupted while it finds out about them
# takes its own memory for wild. The clock of the last one goes on by a nanosecond
# with each instruction, and while the guest is idle at once to where it has
# something to do.
ACCELERATORS = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    "tcg": ["-accel", "tcg", "-cpu", "max,la57=off"],
    "icount": ["-accel", "tcg", "-cpu", "max,la57=off", "-icount", "shift=0,sleep=off"],
}

_WRITE_CHUNK = 6000


class Unclean(GuestError):
    """A guest's kernel has reported a fault on its console."""


@dataclass(frozen=True)
class MachineSpec:
    """What a machine is made of.

    ``append`` is added to the kernel command line; ``kunit`` lets modules run
    KUnit suites (and the kernel its own, when it boots). ``shared`` is a file
    that the guest has as the memory of an ivshmem device: what it writes there
    is in the file at once, and outlives it. ``accel`` is one of ACCELERATORS, or
    ``uml`` where the kernel is user-mode Linux, see uml.py.
    """

    name: str
    image: Image
    kernel: Path
    node_id: int = 0
    accel: str = "tcg"
    cpus: int = 1
    memory_mb: int = 192
    mtu: int = 1500
    append: str = ""
    kunit: bool = False
    folder: Path | None = None  # for the logs; default: build/run/<name>
    shared: Path | None = None

    @property
    def hostname(self) -> str:
        """The name by which the guest knows itself."""
        return f"node{self.node_id}"

    def command_line(self) -> str:
        """The kernel's command line. A panic resets at once, which ends QEMU."""
        clock = emulated_clock(self.accel == "icount") if self.accel in ("tcg", "icount") else ""
        kunit = f"kunit.enable={int(self.kunit)}"
        ours = f"kccm_node={self.node_id} kccm_mtu={self.mtu}"
        return f"console=ttyS0 panic=-1 reboot=t {clock} {kunit} {ours} {self.append}".strip()


def emulated_clock(counted: bool = False) -> str:
    """Kernel parameters for a clock that is right under emulation.

    The clocksource watchdog misfires there, and so do the calibration and the
    check of the timer's interrupt when the host is busy. Where instructions are
    ``counted``, the clock ticks with them.
    """
    khz = 1_000_000 if counted else host_tsc_khz()
    known = f" tsc_early_khz={khz}" if khz else ""
    return f"no_timer_check tsc=nowatchdog clocksource=tsc{known}"


def _qemu_path(path: Path) -> str:
    """A file name inside a QEMU option, where commas separate."""
    return str(path).replace(",", ",,")


class Machine:
    """One guest, which can be booted any number of times.

    >>> with Machine(MachineSpec("example", Image.build(), kernel)) as machine:
    ...     machine.boot()
    ...     machine.wait_ready()
    ...     machine.run("uname -r").out
    """

    process_name = "QEMU"

    def __init__(self, spec: MachineSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.folder = spec.folder or settings.RUN_DIR / spec.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.console = Console(self.folder / "console.log")
        self.console.path.write_bytes(b"")
        self.process_log = self.folder / f"{self.process_name.lower()}.log"
        self.process_log.write_bytes(b"")
        self.frozen = False
        self.boot_mark = 0
        self._child: process.Child | None = None
        self._channel: Channel | None = None
        self._qmp: Qmp | None = None

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # Power.

    def boot(self, network: socket.socket | None = None) -> None:
        """Start the guest and return at once; ``network`` is one end of a packet socket."""
        if self.alive:
            raise HarnessError(f"{self.name} is running already")
        self.kill()  # closes what the last boot has left
        self.boot_mark = self.console.mark()
        agent, theirs = socket.socketpair()
        with theirs:
            self._child = self._start(theirs.fileno(), network.fileno() if network else None)
        self._channel = Channel(agent, self.name, self._context)
        self.frozen = False

    def _start(self, agent: int, network: int | None) -> process.Child:
        """Start QEMU, with these ends of the command channel and of the cable."""
        monitor, theirs = socket.socketpair()
        with theirs:
            numbers = [agent, theirs.fileno()] + ([network] if network is not None else [])
            child = process.spawn(self._arguments(*numbers), self.process_log, numbers)
        self._qmp = Qmp(monitor)
        return child

    def _arguments(self, agent: int, monitor: int, network: int | None = None) -> list[str]:
        spec = self.spec
        lan: list[str] = []
        if network is not None:
            # The kernel makes and checks all checksums itself: frames are damaged on the way.
            card = f"virtio-net-pci,netdev=lan,mac={mac_address(spec.node_id)},romfile="
            card += ",csum=off,guest_csum=off"
            if spec.mtu > 1500:
                card += f",host_mtu={spec.mtu}"
            lan = ["-netdev", f"dgram,id=lan,local.type=fd,local.str={network}", "-device", card]
        shared: list[str] = []
        if spec.shared:
            path, size = _qemu_path(spec.shared), spec.shared.stat().st_size
            memory = f"memory-backend-file,id=shared,share=on,size={size},mem-path={path}"
            shared = ["-object", memory, "-device", "ivshmem-plain,memdev=shared"]
        return [
            *(shutil.which(QEMU) or _no_qemu(), "-name", spec.hostname),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "pc,i8042=off,usb=off", *ACCELERATORS[spec.accel]),
            *("-smp", str(spec.cpus), "-m", str(spec.memory_mb)),
            *("-kernel", str(spec.kernel), "-initrd", str(spec.image.path)),
            *("-append", spec.command_line()),
            *("-chardev", f"file,id=console,append=on,path={_qemu_path(self.console.path)}"),
            *("-serial", "chardev:console"),
            *("-chardev", f"socket,id=agent,fd={agent}", "-serial", "chardev:agent"),
            *("-chardev", f"socket,id=qmp,fd={monitor}", "-mon", "chardev=qmp,mode=control"),
            *lan,
            *shared,
        ]

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the guest takes commands."""
        self._connected().wait_ready(timeout)

    @property
    def alive(self) -> bool:
        """Whether the guest's process exists."""
        return self._child is not None and self._child.poll() is None

    @property
    def panicked(self) -> bool:
        """Whether the kernel of the present or last boot has panicked."""
        return bool(PANIC.search(self.console.text(self.boot_mark)))

    @property
    def pid(self) -> int | None:
        """The id of the guest's process, while it is alive."""
        return self._child.pid if self._child and self.alive else None

    def kill(self) -> None:
        """End the guest without warning (SIGKILL), as a power failure would."""
        if self._child and not self._kill_process(self._child):
            what = f"{self.process_name} (pid {self._child.pid})"
            raise HarnessError(f"{self.name}: {what} survives SIGKILL")
        for connection in (self._channel, self._qmp):
            if connection:
                connection.close()
        self._child, self._channel, self._qmp = None, None, None
        self.frozen = False

    def _kill_process(self, child: process.Child) -> bool:
        """SIGKILL the process; false if it survives that."""
        return process.kill(child)

    def power_off(self, timeout: float = 15.0) -> None:
        """Have the guest switch itself off, and wait for its end."""
        if self.alive:
            try:
                self.spawn("poweroff -f")
            except GuestDied:
                pass  # it was quicker than its answer
        self.wait_dead(timeout)
        self.kill()

    def wait_dead(self, timeout: float = 15.0) -> None:
        """Wait until the guest has ended by itself (panic, power off)."""
        try:
            if self._child:
                self._child.wait(scaled(timeout))
        except subprocess.TimeoutExpired as error:
            what = f"{self.name}: still running after {scaled(timeout):g} s"
            raise GuestError(f"{what}\n{self._context()}") from error

    def freeze(self) -> None:
        """Stop the guest's processors; its clock stops with them."""
        self._monitor().execute("stop")
        self.frozen = True

    def thaw(self) -> None:
        """Let a frozen guest go on."""
        self._monitor().execute("cont")
        self.frozen = False

    # Commands.

    def spawn(self, command: str) -> Job:
        """Start a shell command in the guest and return while it runs."""
        if self.frozen:
            raise GuestError(f"{self.name} is frozen: thaw() it before {command!r}")
        return self._connected().spawn(command)

    def run(self, command: str, timeout: float = 30.0, check: bool = True) -> Result:
        """Run a shell command in the guest; its output is at most 1 MiB.

        With ``check``, a status other than 0 raises CommandFailed.
        """
        return self.spawn(command).wait(timeout, check)

    def tell(self, pipe: str) -> None:
        """Write a line to a named pipe, which a command has to read; returns at once.

        It takes the guest much less than another command would.
        """
        self._connected().tell(pipe)

    def read(self, path: str) -> str:
        """A guest file's text without white space at the ends, such as a sysfs attribute."""
        return self.run(f"cat {shlex.quote(path)}").out.strip()

    def write(self, path: str, text: str, check: bool = True) -> Result:
        """Write a line to a guest file, such as a sysfs attribute."""
        return self.run(f"echo {shlex.quote(text)} >{shlex.quote(path)}", check=check)

    def write_file(self, path: str, data: bytes) -> None:
        """Make a file of any bytes in the guest."""
        target = shlex.quote(path)
        self.run(f": >{target}")
        for start in range(0, len(data), _WRITE_CHUNK):
            text = base64.b64encode(data[start : start + _WRITE_CHUNK]).decode()
            self.run(f"echo {text} | base64 -d >>{target}")

    @contextlib.contextmanager
    def quiet_console(self) -> Iterator[None]:
        """Print only warnings and worse: each character of an emulated serial line takes its time."""
        path = "/proc/sys/kernel/printk"
        level = self.read(path).split()[0]
        self.write(path, "5")
        try:
            yield
        finally:
            self.write(path, level)

    def wait_until(
        self,
        condition: str,
        timeout: float = 30.0,
        *,
        hint: str = "",
        setup: str = "",
        what: str = "",
    ) -> None:
        """Wait until a shell condition holds; the guest itself looks.

        ``hint`` is a command whose output goes into the error message, ``what``
        says there what was waited for, and ``setup`` is run once before.
        """
        limit = scaled(timeout)
        pause = round(1e6 * paced(0.04))
        loop = (
            f"{setup}\n"
            "now() { read -r up _ </proc/uptime; up=${up%%.*}; }; "
            f"now; end=$((up + {int(limit) + 1})); "
            f"until {condition}; do now; [ $up -lt $end ] || exit 124; usleep {pause}; done"
        )
        result = self.run(loop, timeout=timeout + 10, check=False)
        if result.rc == 0:
            return
        state = self.run(hint, check=False).out if hint else result.out
        why = f"not so in {limit:g} s" if result.rc == 124 else f"ended with status {result.rc}"
        wanted = what or repr(condition)
        raise GuestError(f"{self.name}: {wanted}: {why}\n{state.rstrip()}\n{self._context()}")

    # Kernel modules.

    def insmod(self, module: str, parameters: str = "", timeout: float = 30.0) -> Result:
        """Load a module of the image, after the modules that it needs."""
        *needed, wanted = self.spec.image.dependencies(module)
        steps = [f"[ -d /sys/module/{name} ] || {insmod(name)}" for name in needed]
        return self.run(" && ".join([*steps, f"{insmod(wanted)} {parameters}"]), timeout)

    def try_insmod(self, module: str, parameters: str = "", timeout: float = 30.0) -> Result:
        """Load one module, which may fail; the caller looks at the status."""
        return self.run(f"{insmod(module)} {parameters}", timeout, check=False)

    def rmmod(self, *modules: str, timeout: float = 30.0, check: bool = True) -> Result:
        """Unload modules in the order given.

        One that is in use, as a call may be running that another node has made,
        is tried again for a while, unless the caller looks at the status.
        """
        if not check:
            return self.run(" && ".join(f"rmmod {name}" for name in modules), timeout, check)
        again = (
            "n=0; until rmmod {0} 2>/tmp/rmmod || [ $n -ge 30 ]; do n=$((n + 1)); sleep 0.1; done"
        )
        tried = (f"{again.format(name)}; [ ! -d /sys/module/{name} ]" for name in modules)
        return self.run(f"{{ {' && '.join(tried)}; }} || {{ cat /tmp/rmmod; false; }}", timeout)

    def loaded(self, module: str) -> bool:
        """Whether a module is loaded."""
        return self.run(f"[ -d /sys/module/{module} ]", check=False).rc == 0

    # The console.

    def mark(self) -> int:
        """The console's present end, for ``since``."""
        return self.console.mark()

    def sync_console(self, timeout: float = 15.0) -> None:
        """Wait until all that the kernel has said so far is on the console.

        A kernel thread writes the console, some time after the fact.
        """
        marker = f"console marker {secrets.token_hex(8)}"
        self.run(f"echo '<6>{marker}' >/dev/kmsg", timeout)
        self.wait_console(marker, timeout)

    def dmesg(self, since: int | None = None) -> str:
        """What the kernel has printed since a mark, by default since it booted."""
        return self.console.text(self.boot_mark if since is None else since)

    def wait_console(self, pattern: str, timeout: float = 30.0, since: int | None = None) -> str:
        """Wait for a line that matches; returns what matched."""
        start = self.boot_mark if since is None else since
        found = self.console.wait(pattern, timeout, start, lambda: self.alive)
        return found.group(0)

    def allow_console(self, pattern: str) -> None:
        """Expect fault reports that match ``pattern``, because a test provokes them."""
        self.console.allow(pattern)

    def trouble(self, since: int = 0) -> list[str]:
        """Fault reports (BUG, WARNING, Oops, lockdep, KASAN, hung task) on the console."""
        return self.console.trouble(since)

    def assert_clean(self, since: int = 0) -> None:
        """Raise Unclean if the kernel has reported a fault since a mark."""
        assert_clean([self], {self.name: since})

    @property
    def looks_for_leaks(self) -> bool:
        """Whether its kernel runs with kmemleak."""
        return "kmemleak=on" in self.spec.append.split()

    # Inside.

    def _connected(self) -> Channel:
        if self._channel is None:
            raise GuestError(f"{self.name} is switched off: boot() it first")
        return self._channel

    def _monitor(self) -> Qmp:
        if self._qmp is None or not self.alive:
            raise GuestError(f"{self.name} is not running")
        return self._qmp

    def _context(self) -> str:
        """What error messages say about the state of the machine."""
        notes = [f"  fault: {line}" for line in self.trouble(self.boot_mark)[:5]]
        if self.frozen:
            notes.append("  the guest is frozen")
        if said := self.process_log.read_text(errors="replace").strip():
            notes.append(f"  {self.process_name} says: {said[-500:]}")
        return "\n".join([*notes, self.console.context()])


def assert_clean(machines: Iterable[Machine], marks: dict[str, int] | None = None) -> None:
    """Raise Unclean with all fault reports of these machines.

    ``marks`` has, by machine name, where on each console to begin (default: at
    the top), and is moved on to where the next search is to begin.
    """
    marks = {} if marks is None else marks
    reports: list[str] = []
    for machine in machines:
        if machine.alive and not machine.frozen:
            machine.sync_console()
        since = marks.get(machine.name, 0)
        lines, marks[machine.name] = machine.console.next_trouble(since)
        if lines:
            reports.append(f"{machine.name} ({machine.console.path}):")
            reports += [f"    {line}" for line in lines[:20]]
    if reports:
        raise Unclean("the kernel has reported faults\n" + "\n".join(reports))


# What is younger than 5 s may be in nobody's books yet (kmemleak's MSECS_MIN_AGE); what has changed
# since the last scan is in use. What looks lost is looked at again: a scan sees no registers, and
# lists while they are changed.
_FIND_LEAKS = """
k=/sys/kernel/debug/kmemleak
[ -e $k ] || { echo 'no kmemleak here'; exit 1; }
sleep 6
for try in 1 2 3 4 5; do
	echo scan >$k && echo scan >$k || exit 1
	[ "$(grep -c '^unreferenced' $k)" = 0 ] && exit
	sleep 2
done
cat $k
echo clear >$k
"""


def assert_no_leaks(machines: Iterable[Machine]) -> None:
    """Raise Unclean with what the kernels of these machines have lost, where kmemleak is on."""
    looking = [m for m in machines if m.looks_for_leaks and m.alive and not m.frozen]
    jobs = [machine.spawn(_FIND_LEAKS) for machine in looking]
    reports: list[str] = []
    for machine, job in zip(looking, jobs):
        found = job.wait(60).out.splitlines()
        if found:
            (machine.folder / "kmemleak.txt").write_text("\n".join(found) + "\n")
            reports.append(f"{machine.name} ({machine.folder}/kmemleak.txt):")
            reports += [f"    {line}" for line in found[:40]]
    if reports:
        raise Unclean("the kernel has lost memory\n" + "\n".join(reports))


def mac_address(node_id: int) -> str:
    """The (locally administered) Ethernet address of a node."""
    return f"52:54:00:6b:{node_id >> 8:02x}:{node_id & 255:02x}"


def insmod(module: str) -> str:
    """The command that loads one module of the image."""
    return f"insmod /{MODULE_FOLDER}/{module.replace('-', '_')}.ko"


def _no_qemu() -> str:
    raise HarnessError(f"no {QEMU} found: install the package qemu-system-x86")
