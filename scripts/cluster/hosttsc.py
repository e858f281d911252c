# SPDX-License-Identifier: GPL-2.0
"""The frequency of the host's time-stamp counter.

An emulated guest reads the host's counter. It would have to find out for
itself how fast that ticks, which goes wrong by factors when the host is busy
just then, and from there on all its timers would be wrong. So we measure, at
leisure, and tell it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Callable

# rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")

_MEASURE_SECONDS = 0.1
_SAMPLES = 50


@functools.cache
def host_tsc_khz() -> int | None:
    """The counter's frequency, or None where it cannot be read."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None  # the host's policy forbids code in memory that can be written
    page.write(_RDTSC)
    code = ctypes.c_char.from_buffer(page)
    return _measure(ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code)))


def _measure(counter: Callable[[], int]) -> int:
    """Ticks per millisecond, from two readings of both clocks."""
    first_time, first_ticks = _read_both(counter)
    time.sleep(_MEASURE_SECONDS)
    last_time, last_ticks = _read_both(counter)
    return round((last_ticks - first_ticks) * 1_000_000 / (last_time - first_time))


def _read_both(counter: Callable[[], int]) -> tuple[int, int]:
    """The monotonic clock in ns and the counter at the same moment.

    Of many tries the one with the least time around the reading counts: the
    others were interrupted.
    """
    best = (1 << 63, 0, 0)
    for _ in range(_SAMPLES):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        ticks = counter()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        best = min(best, (after - before, (before + after) // 2, ticks))
    return best[1], best[2]
