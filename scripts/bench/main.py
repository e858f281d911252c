# SPDX-License-Identifier: GPL-2.0
"""The command line of the benchmark, and the way from it to the files."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from cluster.machine import Machine
from cluster.settings import BUILD, TREE, HarnessError

from . import environments, instances, plan, plots, records, tables
from .environments import ENVIRONMENTS, Environment
from .guest import Guest, Hung
from .plan import Phase
from .progress import Report
from .records import Boot, Record, Results
from .rounds import LEAST_ROUNDS, LeftOut, Measurement, shares

# So long may figures 7 and 8 take for `make bench-quick` to stay under three minutes.
QUICK_SECONDS = 140.0
# The same of all figures in one environment.
FULL_SECONDS = 500.0
# A guest that hangs time and again is given up.
_MOST_BOOTS = 4


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure KCCM against its peers.")
    parser.add_argument(
        "--quick", action="store_true", help="figures 7 and 8 in QEMU with one processor"
    )
    parser.add_argument(
        "--envs",
        default="",
        metavar="NAME,...",
        help=f"of {','.join(ENVIRONMENTS)}; default: {','.join(environments.DEFAULT)}",
    )
    parser.add_argument(
        "--figures", default="", metavar="NAME,...", help=f"default: {','.join(plan.FIGURES)}"
    )
    parser.add_argument(
        "--peers", default="", metavar="NAME,...", help=f"default: {','.join(plan.PEERS)}"
    )
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="what the rounds of an environment should take at most, if they can",
    )
    parser.add_argument("--folder", type=Path, default=BUILD / "bench", help="of the results")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, draw and write from results.json"
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="measure nothing, put table and pictures from results.json into README.md",
    )
    arguments = parser.parse_args(argv)
    default_envs = environments.QUICK if arguments.quick else environments.DEFAULT
    arguments.envs = _choice(parser, arguments.envs, ENVIRONMENTS, default_envs)
    arguments.figures = _choice(
        parser, arguments.figures, plan.FIGURES, plan.QUICK_FIGURES if arguments.quick else None
    )
    arguments.peers = _choice(parser, arguments.peers, plan.PEERS, None)
    if arguments.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds must be at least {LEAST_ROUNDS}")
    arguments.seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else FULL_SECONDS)
    return arguments


def _choice(
    parser: argparse.ArgumentParser,
    text: str,
    known: Collection[str],
    default: Collection[str] | None,
) -> list[str]:
    """A list of names, in the order in which they are known."""
    if not text:
        return list(default or known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := set(names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: must be of {', '.join(known)}")
    return [name for name in known if name in names]


def measure(
    environment: Environment, arguments: argparse.Namespace, report: Report
) -> Iterator[_Measured]:
    """Everything that was asked for, in one boot of one guest.

    What the guest has measured when it dies is kept. When it hangs, it is booted again for the
    phases that it has not measured, without what it has hung with.
    """
    figures = arguments.figures
    if environment.counted:
        figures = [figure for figure in figures if figure in plan.COUNTED_FIGURES]
    todo = plan.phases(figures, arguments.peers)
    if environment.nodes_of_their_own:
        todo = instances.phases(todo)
    if not todo:
        return
    for _ in range(_MOST_BOOTS):
        done = _measure(environment, todo, arguments, report)
        yield done
        if not done.hung:
            return
        rest = [phase for phase in todo if phase.name not in done.phases]
        todo = [phase for phase in (plan.without_hung(rest[0], done.hung), *rest[1:]) if phase.points]
        if not todo:
            return
        report.say("booting again for the rest, without that")


def _measure(
    environment: Environment,
    phases: Sequence[Phase],
    arguments: argparse.Namespace,
    report: Report,
) -> _Measured:
    """One boot."""
    began = time.monotonic()
    done = _Measured(environment.name)
    try:
        if environment.nodes_of_their_own:
            _measure_instances(environment, phases, arguments, report, done)
        else:
            _measure_guest(environment, phases, arguments, report, done)
    except Hung as error:
        done.hung = error.command
        done.error = f"{environment.name}: {error}"
        done.left_out.append(f"{plan.peer_of(error.command)}: {error}")
        report.say(f"error: {done.error}")
    except HarnessError as error:
        done.error = f"{environment.name}: {error}"
        report.say(f"error: {done.error}")
    done.seconds = time.monotonic() - began
    return done


def _measure_guest(
    environment: Environment,
    phases: Sequence[Phase],
    arguments: argparse.Namespace,
    report: Report,
    done: _Measured,
) -> None:
    with environments.opened(environment) as machine:
        _booted(environment, machine, report, done)
        measurement = Measurement(Guest(machine), report, done.name, environment.name)
        try:
            _measure_phases(measurement, phases, arguments, done)
        finally:
            done.left_out = measurement.left_out.lines()
            done.missing = measurement.left_out.missing()


def _measure_instances(
    environment: Environment,
    phases: Sequence[Phase],
    arguments: argparse.Namespace,
    report: Report,
    done: _Measured,
) -> None:
    """Each phase in guests of its own. One that cannot be measured there is left out."""
    instances.flavour()
    left_out = LeftOut()
    for phase in phases:
        (point,) = phase.points
        report.say(f"{phase.name}: booting")
        try:
            with instances.opened(point.x) as cluster:
                if not done.kernel:
                    _booted(environment, cluster[0], report, done)
                guests = instances.Instances(cluster, arguments.rounds)
                measurement = Measurement(guests, report, done.name, environment.name)
                measurement.left_out = left_out
                done.records += measurement.run(phase, arguments.rounds)
        except HarnessError as error:
            reason = instances.first_line(error)
            left_out.point(point, reason)
            report.say(f"left out: {point}: {reason}")
            if not isinstance(error, instances.TooMany):
                done.error = f"{environment.name}: {error}"
    done.left_out = left_out.lines()
    if not done.records:
        raise HarnessError("nothing could be measured")


def _booted(environment: Environment, machine: Machine, report: Report, done: _Measured) -> None:
    """Say what has booted, and keep that."""
    done.kernel, done.host = environments.describe(machine)
    if environment.nodes_of_their_own:
        done.kernel += f", {instances.MEMORY_MB} MiB each"
    report.say(f"{environment.title}: booted {done.kernel} on {done.host}")
    if environments.busy(done.load):
        report.say(f"this machine is busy (load {done.load:.1f}): times will vary")


def _measure_phases(
    measurement: Measurement,
    phases: Sequence[Phase],
    arguments: argparse.Namespace,
    done: _Measured,
) -> None:
    wanted = plan.peers_in(phases)
    missing = set(wanted) - set(measurement.start(wanted))
    if len(missing) == len(wanted):
        raise HarnessError("none of the peers is to be had")
    phases = [plan.without(phase, *missing) for phase in phases]
    for phase, seconds in zip(phases, shares(phases, arguments.seconds)):
        if phase.points:
            done.records += measurement.run(phase, arguments.rounds, seconds)
        done.phases.append(phase.name)


@functools.cache
def _load_before() -> float:
    """What the machine had to do when it was asked first: later the benchmark is a part of it."""
    return os.getloadavg()[0]


class _Measured:
    """What came of one environment."""

    def __init__(self, env: str) -> None:
        now = datetime.now(timezone.utc)
        self.env = env
        self.name = f"{env} {now:%Y-%m-%dT%H:%M:%S.%fZ}"
        self.date = f"{now:%Y-%m-%d}"
        self.load = _load_before()
        self.kernel = self.host = self.error = ""
        self.seconds = 0.0
        self.hung = ""
        self.phases: list[str] = []
        self.records: list[Record] = []
        self.left_out: list[str] = []
        self.missing: list[str] = []

    def boot(self) -> Boot:
        """For about.json."""
        return Boot(
            name=self.name,
            env=self.env,
            date=self.date,
            kernel=self.kernel,
            machine=self.host,
            revision=environments.revision(),
            load=round(self.load, 1),
            seconds=round(self.seconds, 1),
            left_out=tuple(self.left_out),
            missing=tuple(self.missing),
        )


def write(results: Results, folder: Path, report: Report) -> None:
    """Pictures and tables from what was measured."""
    drawn = plots.draw(results, folder)
    (folder / "report.md").write_text(tables.report(results, [path.name for path in drawn]))
    report.say(f"{len(results.records)} records: {folder}/results.json")
    report.say(f"tables: {folder}/report.md; pictures: {len(drawn)} of {folder}/*.svg")


def run(arguments: argparse.Namespace, report: Report) -> int:
    """All of it; the exit status."""
    folder: Path = arguments.folder
    results = records.read(folder)
    wrong = []
    if not (arguments.report or arguments.readme):
        for name in arguments.envs:
            for done in measure(ENVIRONMENTS[name], arguments, report):
                if done.error:
                    wrong.append(done.error)
                if done.records:
                    measured = {record.figure for record in done.records}
                    results.add(done.boot(), measured, done.records)
                    records.write(results, folder)
    if not results.records:
        raise HarnessError(f"{folder} has no results: measure first, with `make bench`")
    write(results, folder, report)
    if arguments.readme:
        tables.update_readme(results, folder, TREE)
        report.say("README.md and Documentation/bench have the table and the pictures")
        for doubt in tables.doubts(results):
            report.say(f"warning: {doubt}")
    else:
        report.console.print()
        report.console.print(tables.summary(results, arguments.envs), markup=False)
    return 1 if wrong else 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit status."""
    arguments = parse_arguments(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(arguments, Report())
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
