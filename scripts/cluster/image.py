# SPDX-License-Identifier: GPL-2.0
"""The guests' initramfs: busybox, our init, kernel modules, some host tools.

An image is named after what is in it, so it is made only when something in it
has changed, and machines with the same contents share one. It is not
compressed: under emulation, unpacking costs more than copying.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import settings
from .settings import HarnessError

MODULE_FOLDER = "modules"
_FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/sbin", MODULE_FOLDER)
_KEEP_SECONDS = 4 * 3600


@dataclass(frozen=True)
class Entry:
    """One name in the archive."""

    name: str
    mode: int
    data: bytes = b""


def _cpio_record(entry: Entry, inode: int) -> bytes:
    """One record of the "newc" format, padded to four bytes."""
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    head += b"\0" * (-len(head) % 4)
    return head + entry.data + b"\0" * (-len(entry.data) % 4)


def cpio(entries: Iterable[Entry]) -> bytes:
    """A cpio archive as the kernel unpacks it."""
    records = [_cpio_record(entry, inode) for inode, entry in enumerate(entries, start=1)]
    return b"".join(records) + _cpio_record(Entry("TRAILER!!!", 0), 0)


@functools.cache
def _busybox() -> Path:
    """A busybox that needs no shared library."""
    path = settings.variable("KCCM_BUSYBOX") or shutil.which("busybox")
    if not path:
        raise HarnessError("no busybox found: install the package busybox-static")
    if _libraries(Path(path)):
        raise HarnessError(f"{path} needs shared libraries: install the package busybox-static")
    return Path(path)


@functools.cache
def _applets(busybox: Path) -> list[str]:
    done = subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, timeout=30, check=True
    )
    return sorted(set(done.stdout.split()) - {"busybox"})


def _libraries(binary: Path) -> list[Path]:
    """The shared libraries, with the loader, that a program of the host needs: none if static."""
    done = subprocess.run(["ldd", binary], capture_output=True, text=True, timeout=30, check=False)
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", done.stdout)]


def _tool_entries(tools: Iterable[str]) -> Iterator[Entry]:
    """Programs of the host, in /usr/sbin before busybox's own, and their libraries."""
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
    libraries: set[Path] = set()
    for tool in tools:
        found = shutil.which(tool, path=search)
        if not found:
            raise HarnessError(f"the host has no program called {tool}: install its package")
        libraries.update(_libraries(Path(found)))
        yield Entry(f"usr/sbin/{Path(found).name}", stat.S_IFREG | 0o755, Path(found).read_bytes())
    for library in sorted(libraries):
        yield Entry(str(library).lstrip("/"), stat.S_IFREG | 0o755, library.read_bytes())


def _all_entries(modules: Iterable[Path], tools: Iterable[str]) -> list[Entry]:
    busybox = _busybox()
    files = [
        Entry("init", stat.S_IFREG | 0o755, settings.GUEST_INIT.read_bytes()),
        Entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
    ]
    files += [Entry(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in _applets(busybox)]
    for module in modules:
        name = f"{MODULE_FOLDER}/{module.name.replace('-', '_')}"
        files.append(Entry(name, stat.S_IFREG | 0o644, module.read_bytes()))
    files += _tool_entries(tools)
    return _folder_entries(files) + files


def _folder_entries(files: Iterable[Entry]) -> list[Entry]:
    """The folders that hold all files, parents first."""
    names = set(_FOLDERS)
    names.update(str(Path(entry.name).parent) for entry in files)
    names.update(str(parent) for name in list(names) for parent in Path(name).parents)
    return [Entry(name, stat.S_IFDIR | 0o755) for name in sorted(names - {"."})]


def _key(entries: Iterable[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.mode:o}\0{len(entry.data)}\0".encode())
        digest.update(entry.data)
    return digest.hexdigest()[:16]


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "wb") as output:
        output.write(data)
    os.replace(temporary, path)


def _remove_old(folder: Path) -> None:
    """Remove images that nobody has asked for in hours."""
    oldest = time.time() - _KEEP_SECONDS
    for path in folder.glob("*.cpio"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            pass  # another process was faster


@dataclass(frozen=True)
class Image:
    """An initramfs on disk, and the modules that it holds."""

    path: Path
    modules: dict[str, Path]

    @classmethod
    def build(cls, modules: Iterable[Path] = (), tools: Iterable[str] = ()) -> Image:
        """The image with these module files and host programs, made if need be."""
        by_name = {path.stem.replace("-", "_"): path for path in modules}
        missing = [str(path) for path in by_name.values() if not path.is_file()]
        if missing:
            raise HarnessError(f"no such module: {', '.join(missing)}: build it first")
        entries = _all_entries(by_name.values(), tools)
        path = settings.IMAGE_DIR / f"{_key(entries)}.cpio"
        if path.exists():
            os.utime(path)
        else:
            _write_atomically(path, cpio(entries))
            _remove_old(path.parent)
        return cls(path, by_name)

    def dependencies(self, module: str) -> list[str]:
        """What has to be loaded before ``module``, in order, itself last."""
        order: list[str] = []
        self._visit(module.replace("-", "_"), order)
        return order

    def _visit(self, module: str, order: list[str]) -> None:
        if module in order:
            return
        if module not in self.modules:
            known = ", ".join(sorted(self.modules)) or "none"
            raise HarnessError(f"module {module} is not in the guests' image (it has: {known})")
        for needed in _module_depends(self.modules[module]):
            self._visit(needed, order)
        order.append(module)


def _module_depends(path: Path) -> list[str]:
    """The ``depends=`` entry of a module's .modinfo section."""
    found = re.search(rb"\0depends=([\w,-]*)\0", path.read_bytes())
    names = found.group(1).decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def kernel_modules(kdir: Path, *names: str) -> list[Path]:
    """The files of a kernel's own modules, such as ``tipc``, and of those that they need."""
    listed = (kdir / "modules.order").read_text().split()
    files = {Path(name).stem.replace("-", "_"): kdir / name for name in listed}
    files = {name: path.with_suffix(".ko") for name, path in files.items()}
    wanted = [name.replace("-", "_") for name in names]
    found: dict[str, Path] = {}
    while wanted:
        name = wanted.pop()
        if name not in files:
            raise HarnessError(f"the kernel in {kdir} has no module {name}")
        if name not in found:
            found[name] = files[name]
            wanted += _module_depends(files[name])
    return list(found.values())
