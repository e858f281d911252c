# SPDX-License-Identifier: GPL-2.0
"""Where things are, and how long they may take.

Everything is decided here once: the environment (``KCCM_*``) wins over
``build/env.sh``, which scripts/setup.sh writes.

Tests run on one of several *flavours*, chosen by ``KCCM_FLAVOUR``:

==========  =======================  ==========================================
flavour     kernel                   modules
==========  =======================  ==========================================
``base``    ``KCCM_BZIMAGE``         ``KCCM_MODULE_DIR`` (default: the tree)
``memory``  ``KCCM_BZIMAGE_MEMORY``  ``KCCM_MODULE_DIR_MEMORY`` (default:
                                     build/memory)
``locks``   ``KCCM_BZIMAGE_LOCKS``   ``KCCM_MODULE_DIR_LOCKS`` (default:
                                     build/locks)
``leaks``   that of ``locks``, with kmemleak switched on
``bench``   ``KCCM_BZIMAGE_BENCH``   ``KCCM_MODULE_DIR_BENCH`` (default:
                                     build/bench-tree)
``uml``     ``KCCM_LINUX_UML``, user-mode Linux
                                     ``KCCM_MODULE_DIR_UML`` (default:
                                     build/uml-tree)
==========  =======================  ==========================================
"""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
BUILD = TREE / "build"
RUN_DIR = BUILD / "run"
IMAGE_DIR = BUILD / "images"
GUEST_INIT = TREE / "scripts" / "guest-init"

# Modules are looked for in these places below a module directory.
MODULE_FOLDERS = (".", "samples", "tests/kunit", "tests/api", "tests/torture", "tests/bench")


class HarnessError(Exception):
    """What the harness needs is missing or wrong; the text says what to do."""


@dataclass(frozen=True)
class Flavour:
    """A test kernel, the modules built against it, and what it costs.

    Of user-mode Linux ``bzimage`` is the program that it is. ``kdir`` is the
    build tree of the kernel, where build/env.sh names it.
    """

    name: str
    bzimage: Path
    module_dir: Path
    memory_mb: int
    timeout_scale: float
    append: str = ""  # to the kernel command line
    kdir: Path | None = None

    @property
    def is_uml(self) -> bool:
        """Whether the kernel is user-mode Linux."""
        return self.name == "uml"

    def modules(self) -> list[Path]:
        """All modules of ours that were built against this kernel."""
        folders = (self.module_dir / folder for folder in MODULE_FOLDERS)
        return [path for folder in folders for path in sorted(folder.glob("*.ko"))]

    def module(self, name: str) -> Path:
        """The file of one module of ours, such as ``kccm_kunit``."""
        for path in self.modules():
            if path.stem == name:
                return path
        raise HarnessError(
            f"no {name}.ko below {self.module_dir}: build it first with `make demo` or `make test`"
        )


@dataclass(frozen=True)
class _Cost:
    """What a flavour takes: its kernel, memory for each guest, and how much longer."""

    kernel: str
    memory_mb: int
    timeout_scale: float
    append: str = ""


_FLAVOURS = {
    "base": _Cost("base", 192, 1.0),
    "memory": _Cost("memory", 768, 4.0),
    "locks": _Cost("locks", 384, 3.0),
    "leaks": _Cost("locks", 512, 4.0, "kmemleak=on"),
    "bench": _Cost("bench", 256, 1.0),
    "uml": _Cost("uml", 128, 1.0),
}


# What makes each kernel, and where the modules for it are.
_SETUP = {
    "base": "scripts/setup.sh",
    "memory": "scripts/setup.sh --sanitize memory",
    "locks": "scripts/setup.sh --sanitize locks",
    "bench": "scripts/setup.sh --bench",
    "uml": "scripts/setup.sh --bench",
}
_MODULES = {
    "base": TREE,
    "memory": BUILD / "memory",
    "locks": BUILD / "locks",
    "bench": BUILD / "bench-tree",
    "uml": BUILD / "uml-tree",
}


def _cost(name: str) -> _Cost:
    if name not in _FLAVOURS:
        raise HarnessError(f"KCCM_FLAVOUR={name}: it must be one of {', '.join(_FLAVOURS)}")
    return _FLAVOURS[name]


@functools.cache
def _env_file() -> dict[str, str]:
    """The variables that build/env.sh sets."""
    path = BUILD / "env.sh"
    if not path.exists():
        return {}
    script = 'set -a; . "$1"; env -0'
    done = subprocess.run(
        ["bash", "-c", script, "env", str(path)], capture_output=True, timeout=30, check=False
    )
    if done.returncode != 0:
        raise HarnessError(f"{path} cannot be read: {done.stderr.decode(errors='replace').strip()}")
    pairs = (item.partition("=") for item in done.stdout.decode().split("\0") if item)
    return {name: value for name, _, value in pairs}


def variable(name: str, default: str = "") -> str:
    """A setting from the environment, else from build/env.sh."""
    return os.environ.get(name) or _env_file().get(name) or default


def flavour(name: str | None = None) -> Flavour:
    """The flavour called ``name``, by default the one in KCCM_FLAVOUR."""
    name = name or variable("KCCM_FLAVOUR", "base")
    cost = _cost(name)
    suffix = "" if cost.kernel == "base" else f"_{cost.kernel.upper()}"
    image = f"KCCM_LINUX{suffix}" if cost.kernel == "uml" else f"KCCM_BZIMAGE{suffix}"
    bzimage = variable(image)
    if not bzimage or not Path(bzimage).is_file():
        raise HarnessError(
            f"no {cost.kernel} test kernel ({image}={bzimage or 'not set'}): run "
            f"{_SETUP[cost.kernel]}, or set the variable to one"
        )
    kdir = variable(f"KCCM_KDIR{suffix}")
    return Flavour(
        name=name,
        bzimage=Path(bzimage),
        module_dir=Path(variable(f"KCCM_MODULE_DIR{suffix}", str(_MODULES[cost.kernel]))),
        memory_mb=cost.memory_mb,
        timeout_scale=cost.timeout_scale,
        append=cost.append,
        kdir=Path(kdir) if kdir else None,
    )


@functools.cache
def timeout_scale() -> float:
    """What every time limit is multiplied by: more for slow kernels and machines."""
    text = variable("KCCM_TIMEOUT_SCALE")
    if not text:
        return _cost(variable("KCCM_FLAVOUR", "base")).timeout_scale
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if scale <= 0:
        raise HarnessError(f"KCCM_TIMEOUT_SCALE={text}: it must be a number above 0")
    return scale


def scaled(seconds: float) -> float:
    """A time limit as it holds on this machine."""
    return seconds * timeout_scale()


def paced(seconds: float) -> float:
    """A pause between two looks, or between two things that a guest is to do again and again.

    A kernel that checks itself takes so much longer for each that it would have
    time for nothing else.
    """
    return max(seconds, min(0.5, seconds * timeout_scale() ** 2))


def fewer(count: int) -> int:
    """So many of something large, but fewer of them where a kernel checks itself."""
    return max(1, round(count / timeout_scale() ** 2))
