# SPDX-License-Identifier: GPL-2.0
"""What was measured, as files: results.json has the numbers, about.json where they are from."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cluster.settings import HarnessError


@dataclass(frozen=True)
class Record:
    """One point of one series.

    ``values`` has what each round gave, in their order; ``median`` is theirs, ``spread`` the lowest
    and the highest, and ``p99`` the median of the rounds' 99th percentiles (of times of calls).
    ``count`` is how many calls, or messages, all rounds had. Only records of one ``boot`` may be
    compared. With ``pooled``, ``median`` is instead a percentile of the calls of all rounds together,
    while ``values`` are the rounds' own.
    """

    env: str
    figure: str
    series: str
    x: int
    unit: str
    median: float
    p99: float | None
    rounds: int
    spread: tuple[float, float]
    count: int | None
    peer: str
    variant: str
    metric: str
    boot: str
    values: tuple[float, ...]
    pooled: bool = False

    @classmethod
    def parse(cls, fields: dict[str, object]) -> Record:
        """A record as it is in the file."""
        record = cls(**fields)  # type: ignore[arg-type]
        low, high = record.spread
        return replace(record, spread=(low, high), values=tuple(record.values))


@dataclass(frozen=True)
class Boot:
    """The boot of a guest in which was measured, and what was left out there, with the reason.

    ``load`` is what the machine had to do beside, when it began; ``missing`` are peers that were not
    to be had at all.
    """

    name: str
    env: str
    date: str
    kernel: str
    machine: str
    revision: str
    load: float = 0.0
    seconds: float = 0.0
    left_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @classmethod
    def parse(cls, fields: dict[str, object]) -> Boot:
        """A boot as it is in the file."""
        boot = cls(**fields)  # type: ignore[arg-type]
        return replace(boot, left_out=tuple(boot.left_out), missing=tuple(boot.missing))


@dataclass
class Results:
    """All records, and the boots that they are from."""

    records: list[Record] = field(default_factory=list)
    boots: dict[str, Boot] = field(default_factory=dict)

    def add(self, boot: Boot, figures: Collection[str], records: Iterable[Record]) -> None:
        """Add what was measured of these figures in a boot, in the place of what was known."""
        kept = [r for r in self.records if r.env != boot.env or r.figure not in figures]
        self.records = [*kept, *records]
        self.boots[boot.name] = boot
        used = {record.boot for record in self.records}
        self.boots = {name: b for name, b in self.boots.items() if name in used}

    def environments(self) -> list[str]:
        """Where something was measured."""
        return list(dict.fromkeys(record.env for record in self.records))

    def of(
        self,
        env: str,
        figure: str,
        peer: str | None = None,
        variant: str | None = None,
        metric: str | None = None,
    ) -> list[Record]:
        """Records of a figure, sorted by x; None stands for any."""
        found = (
            record
            for record in self.records
            if (record.env, record.figure) == (env, figure)
            and peer in (None, record.peer)
            and variant in (None, record.variant)
            and metric in (None, record.metric)
        )
        return sorted(found, key=lambda record: record.x)

    def one(
        self, env: str, figure: str, peer: str, x: int, variant: str = "", metric: str = "p50"
    ) -> Record | None:
        """The record of a point, if it was measured."""
        found = (r for r in self.of(env, figure, peer, variant, metric) if r.x == x)
        return next(found, None)


def write(results: Results, folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(record)) for record in results.records)
    _replace(folder / "results.json", f"[\n{lines}\n]\n")
    boots = [asdict(boot) for boot in results.boots.values()]
    _replace(folder / "about.json", json.dumps(boots, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def read(folder: Path) -> Results:
    """What is known; nothing if nothing has been measured."""
    if not (folder / "results.json").exists():
        return Results()
    try:
        records = [Record.parse(f) for f in json.loads((folder / "results.json").read_text())]
        boots = [Boot.parse(f) for f in json.loads((folder / "about.json").read_text())]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HarnessError(
            f"{folder} has no results of this version ({error}): remove it, and measure again"
        ) from error
    return Results(records, {boot.name: boot for boot in boots})
