# SPDX-License-Identifier: GPL-2.0
"""Whether guests may use KVM, and how fast their clock ticks when they may not.

/dev/kvm can be there, can even make a virtual machine, and then hang it for
ever. So KVM is used only after a probe guest has booted under it; the answer
is remembered until the host boots again.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from . import settings
from .image import Image
from .machine import Machine, MachineSpec
from .settings import HarnessError

_PROBE_SECONDS = 6.0
_CACHE = "accel.json"
_CHOICES = ("kvm", "tcg")


def accelerator(kernel: Path) -> str:
    """``kvm`` or ``tcg``: the best that works here; KCCM_ACCEL overrides it."""
    wanted = settings.variable("KCCM_ACCEL")
    if wanted:
        if wanted not in _CHOICES:
            raise HarnessError(f"KCCM_ACCEL={wanted}: it must be kvm or tcg")
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    settings.BUILD.mkdir(parents=True, exist_ok=True)
    with (settings.BUILD / f".{_CACHE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _cached_probe(kernel)


def _cached_probe(kernel: Path) -> str:
    """The remembered answer if the host has not been booted since, else a new one."""
    cache = settings.BUILD / _CACHE
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        known = json.loads(cache.read_text())
        if known["boot_id"] == boot_id and known["accel"] in _CHOICES:
            return str(known["accel"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no answer yet, or not one of ours: ask again
    accel = "kvm" if _kvm_boots(kernel) else "tcg"
    cache.write_text(json.dumps({"boot_id": boot_id, "accel": accel}) + "\n")
    return accel


def _kvm_boots(kernel: Path) -> bool:
    """Whether a guest boots under KVM within a few seconds, and can be ended again."""
    spec = MachineSpec("kvm-probe", Image.build(), kernel, accel="kvm", memory_mb=128)
    try:
        with Machine(spec) as machine:
            machine.boot()
            machine.wait_ready(_PROBE_SECONDS)
            machine.run("true", _PROBE_SECONDS)
    except HarnessError:
        return False
    return True
