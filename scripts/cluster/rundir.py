# SPDX-License-Identifier: GPL-2.0
"""Folders for the logs of what runs, one for each at a time."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path

from . import settings
from .settings import HarnessError

_MOST = 100


class RunDir:
    """A folder in ``parent`` (default: build/run) that is ours until close().

    When another process uses the one called ``name``, it is ``name``.2 and so
    on: several test runs in one tree do not disturb each other.
    """

    def __init__(self, name: str, parent: Path = settings.RUN_DIR) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise HarnessError(f"{name!r} does not do as the name of a folder for logs")
        parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("", *(f".{number}" for number in range(2, _MOST))):
            self._lock = (parent / f".{name}{suffix}.lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                continue
            self.path: Path = parent / f"{name}{suffix}"
            self.path.mkdir(exist_ok=True)
            return
        raise HarnessError(f"{_MOST} runs called {name} are under way already")

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the folder's name; what is in it stays."""
        self._lock.close()
