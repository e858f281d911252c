# SPDX-License-Identifier: GPL-2.0
"""What KCCM has said in a guest's log."""

from __future__ import annotations

import re

from cluster.machine import Machine

_LINE = re.compile(r"^\[ *(\d+\.\d+)\](?:\[[^\]]*\])? (.*\bkccm\w*: .*)$", re.MULTILINE)

# sys/log.rs: how much is logged of what others can cause, and what that is.
_BURST = 10
_INTERVAL = 5.0
_LIMITED = re.compile(
    "refused a connection|is not KCCM|without a greeting|did not greet|malformed frame"
    "|is stopping|by its administrator|has a newer connection|could not make sense"
)


def kccm_lines(machine: Machine, since: int) -> list[str]:
    """KCCM's lines since a mark, with all that it has said so far."""
    machine.sync_console()
    return [match[2] for match in _LINE.finditer(machine.dmesg(since))]


def expect_line(machine: Machine, since: int, pattern: str, timeout: float = 10.0) -> str:
    """Wait for a line of KCCM's that matches; returns it."""
    return machine.wait_console(rf"^\[.*\bkccm\w*: .*({pattern}).*$", timeout, since)


def expect_once(machine: Machine, since: int, pattern: str) -> None:
    """Wait for a line of KCCM's that matches; there must be no other."""
    expect_line(machine, since, pattern)
    lines = [line for line in kccm_lines(machine, since) if re.search(pattern, line)]
    assert len(lines) == 1, f"{machine.name}: not one line with /{pattern}/ but {lines}"


def wait_for_log_room(machine: Machine, lines: int = 2) -> None:
    """Wait until KCCM may log so many more lines of what others cause.

    It logs no more than ten of them in five seconds from the first.
    """
    machine.sync_console()
    said = _LINE.finditer(machine.dmesg())
    times = [float(match[1]) for match in said if _LIMITED.search(match[2])]
    if len(times) <= _BURST - lines:
        return
    # From then on so many are left of whichever five seconds it is; the two clocks differ.
    room_at = times[lines - 1 - _BURST] + _INTERVAL + 0.5
    later = f"awk '{{ exit !($1 > {room_at}) }}' /proc/uptime"
    machine.wait_until(later, timeout=3 * _INTERVAL)
