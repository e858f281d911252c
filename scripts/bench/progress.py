# SPDX-License-Identifier: GPL-2.0
"""What the user sees while it is measured: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 15.0


class Report:
    """Says what is done, and what is wrong."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """A line, with the time since the beginning."""
        self.console.print(f"[{time.monotonic() - self._began:5.0f} s] {text}", markup=False)

    @contextmanager
    def steps(self, title: str, total: int) -> Iterator[Steps]:
        """Something of many steps."""
        if not self.console.is_terminal:
            self.say(title)
            yield Lines(self, title, total)
            return
        columns = (
            TextColumn("        {task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
        )
        began = time.monotonic()
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield Bar(progress, title, total)
        self.say(f"{title}: {time.monotonic() - began:.0f} s")


class Steps:
    """How far something is."""

    def step(self, now: str, count: int = 1) -> None:
        """So many steps are done; ``now`` is what comes next."""


class Bar(Steps):
    """In a terminal."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=total, now="")

    def step(self, now: str, count: int = 1) -> None:
        self._progress.update(self._task, advance=count, now=now)


class Lines(Steps):
    """Where nothing can be written over."""

    def __init__(self, report: Report, title: str, total: int) -> None:
        self._report, self._title, self._total = report, title, total
        self._done = 0
        self._told = time.monotonic()

    def step(self, now: str, count: int = 1) -> None:
        self._done += count
        if time.monotonic() - self._told >= _LINE_SECONDS:
            self._told = time.monotonic()
            share = self._done / max(self._total, 1)
            self._report.say(f"{self._title}: {share:.0%}, {now}")
