# SPDX-License-Identifier: GPL-2.0
"""What a guest's kernel has printed: waiting for a line, and finding trouble."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .settings import HarnessError, scaled

PANIC = re.compile(r"Kernel panic - not syncing")

# Lines with which a kernel reports that something in it is wrong.
_TROUBLE = re.compile(
    "|".join(
        (
            r"\bBUG:",
            r"\bBUG \S+ .*: ",  # SLUB's reports
            r"\bWARNING:",
            r"\bOops\b",
            PANIC.pattern,
            r"\bINFO: task .* blocked for more than",
            r"\bINFO: .*detected stalls",
            r"\bINFO: .*self-detected stall",
            r"\bINFO: trying to register non-static key",
            r"\bINFO: lockdep is turned off",
            r"\b(KASAN|UBSAN|KFENCE|KCSAN|ODEBUG|DEBUG_LOCKS_WARN_ON)\b",
            r"\bsoft lockup\b|\bhard LOCKUP\b|\bworkqueue lockup\b",
            r"\bgeneral protection fault\b",
            r"\binvalid opcode:",
            r"\bstack segment:",
            r"\bunable to handle\b",
            r"\brust_kernel: panicked at",
            r"\brefcount_t: ",
            r"\blist_(add|del) corruption\b",
            r"\bunreferenced object\b",
            r"\bkobject: .*(tried to|is not initialized|no .release)",
            r"\bunregister_netdevice: waiting for\b",
            r"\bOut of memory\b",
        )
    )
)

# Every line of printk starts with its time; what a program prints does not.
_PRINTK = re.compile(r"^\[ *\d+\.\d+\](\[[^\]]*\])? ")

# A sanitised kernel presents its checkers by name when it boots.
_BOOT_NOTICE = re.compile(r"KernelAddressSanitizer initialized|ODEBUG: selftest passed")

_POLL_SECONDS = 0.02


class ConsoleTimeout(HarnessError, TimeoutError):
    """A line that was waited for did not come."""


def trouble_in(text: str, allowed: Iterable[re.Pattern[str]] = ()) -> list[str]:
    """The lines of a kernel log that report a fault, less those allowed."""
    passes = [_BOOT_NOTICE, *allowed]
    return [
        line
        for line in text.splitlines()
        if _PRINTK.match(line)
        and _TROUBLE.search(line)
        and not any(pattern.search(line) for pattern in passes)
    ]


class Console:
    """The log that QEMU writes of a guest's first serial port.

    Positions in it ("marks") are byte offsets in the file, which grows over
    all boots of the machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.allowed: list[re.Pattern[str]] = []

    def mark(self) -> int:
        """The present end of the log, for the ``since`` of the other methods."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def text(self, since: int = 0, until: int | None = None) -> str:
        """What was printed since a mark, or between two."""
        return _decode(self._bytes(since, until))

    def _bytes(self, since: int, until: int | None = None) -> bytes:
        try:
            with self.path.open("rb") as log:
                log.seek(since)
                return log.read() if until is None else log.read(max(0, until - since))
        except FileNotFoundError:
            return b""

    def tail(self, lines: int = 12) -> str:
        """The last lines, indented to stand in a message."""
        start = max(0, self.mark() - 200 * lines)
        last = self.text(start).splitlines()[-lines:]
        return "\n".join(f"    {line}" for line in last) or "    (nothing was printed)"

    def find(self, pattern: str, since: int = 0) -> re.Match[str] | None:
        """The first match of a regular expression since a mark, if there is one."""
        return re.search(pattern, self.text(since), re.MULTILINE)

    def wait(
        self, pattern: str, timeout: float, since: int, alive: Callable[[], bool]
    ) -> re.Match[str]:
        """Wait until ``pattern`` is printed, for as long as the machine is alive."""
        deadline = time.monotonic() + scaled(timeout)
        searched = -1
        while True:
            lives = alive()  # asked before looking, so that the last words are seen
            if (end := self.mark()) != searched:
                searched = end
                if found := self.find(pattern, since):
                    return found
            if not lives or time.monotonic() >= deadline:
                why = f"in {scaled(timeout):g} s" if lives else "before the machine ended"
                raise ConsoleTimeout(f"/{pattern}/ did not appear {why}\n{self.context()}")
            time.sleep(_POLL_SECONDS)

    def allow(self, pattern: str) -> None:
        """Expect lines that match: they are no trouble from now on."""
        self.allowed.append(re.compile(pattern))

    def trouble(self, since: int = 0) -> list[str]:
        """Reports of faults since a mark."""
        return trouble_in(self.text(since), self.allowed)

    def next_trouble(self, since: int) -> tuple[list[str], int]:
        """Reports of faults in the complete lines since a mark, and the mark of their end."""
        data = self._bytes(since)
        data = data[: data.rfind(b"\n") + 1]
        return trouble_in(_decode(data), self.allowed), since + len(data)

    def context(self) -> str:
        """The end of the log and where to find it, for error messages."""
        return f"  last console lines:\n{self.tail()}\n  console log: {self.path}"


def _decode(data: bytes) -> str:
    return data.decode(errors="replace").replace("\r", "")
