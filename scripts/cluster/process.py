# SPDX-License-Identifier: GPL-2.0
"""Child processes that cannot outlive us.

The kernel kills each child when its parent goes away (PR_SET_PDEATHSIG), which
holds for SIGKILL and crashes too. "Parent" there means the *thread* that made
the child, so all children are made by one thread that lives as long as the
process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kccm-spawner")

Child = subprocess.Popen[bytes]


def spawn(argv: Sequence[str], log: Path, pass_fds: Sequence[int] = ()) -> Child:
    """Start ``argv`` with its output in ``log``, in a session of its own.

    A session of its own keeps Ctrl-C from reaching the child before its owner
    has had a chance to end it in order.
    """
    command = ["setpriv", "--pdeathsig", "KILL", "--", *argv]

    def start() -> Child:
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    return _spawner.submit(start).result()


def kill(child: Child, timeout: float = 10.0) -> bool:
    """SIGKILL a child and collect it; false if the kernel does not let it go."""
    if child.poll() is None:
        child.kill()
    try:
        child.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True
