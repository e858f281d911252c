#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Compares two builds of KCCM, in turn and in the same guests: round trips and floods.

Each round loads first the one, then the other (the next round the other way
round), so that whatever else the machine does meets both. The figure to look
at is the median of the rounds' ratios; a ratio above 1 is in favour of the
second build.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from cluster import Cluster
from cluster.settings import BUILD, TREE, HarnessError, variable

DEVICE = "/dev/kccm_demo"
SYSFS = "/sys/kernel/kccm"
MODULES = ("kccm.ko", "samples/kccm_demo.ko")
# Rounds of a ping: enough for a steady median, few enough for a slow machine.
PINGS = {64: 2000, 16384: 500}
FLOODS = (64, 60000)
FLOOD_SECONDS = 3


def build(revision: str) -> Path:
    """The tree of a revision of this project, with its modules and samples built."""
    tree = BUILD / "before"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    log = BUILD / "log" / "before.log"
    log.parent.mkdir(exist_ok=True)
    unpack = f'git archive --format=tar "$1" | tar -x -C "{tree}"'
    make = [TREE / "scripts/kernel/make.sh", variable("KCCM_KDIR"), f"M={tree}", "KCCM_SAMPLES=1"]
    print(f"building {revision} (log: {log})", flush=True)
    for command in (["bash", "-o", "pipefail", "-c", unpack, "-", revision], [*make, "modules"]):
        with log.open("ab") as out:
            done = subprocess.run(command, cwd=TREE, stdout=out, stderr=out, check=False)
        if done.returncode:
            raise HarnessError(f"{revision} cannot be had or built: see {log}")
    return tree


def stage(name: str, tree: Path) -> list[Path]:
    """Copies of a build's modules, under names that tell them from the other's."""
    folder = BUILD / "compare"
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for module in MODULES:
        source = tree / module
        if not source.is_file():
            raise HarnessError(f"{source} is not there: build it first")
        copy = folder / f"{name}_{source.name}"
        shutil.copy(source, copy)
        copies.append(copy)
    return copies


def demo(command: str) -> str:
    """A command of kccm_demo, for the shell."""
    return f"exec 3<>{DEVICE} && echo '{command}' >&3 && cat <&3"


def measure(cluster: Cluster, which: str) -> dict[str, float]:
    """Load a build in both nodes, measure, and unload it again. More is better."""
    cluster.run_all(
        {
            node: f"insmod /modules/{which}_kccm.ko {cluster.parameters(node)} && "
            f"insmod /modules/{which}_kccm_demo.ko"
            for node in range(2)
        }
    )
    cluster.wait_connected()
    found = {}
    for size, rounds in PINGS.items():
        # The first ones warm caches up.
        cluster[0].run(demo(f"ping 1 100 {size} sync"))
        said = cluster[0].run(demo(f"ping 1 {rounds} {size} sync"), 60).out
        median = re.search(r"median_ns=(\d+)", said)
        if not median:
            raise HarnessError(f"kccm_demo says no median: {said}")
        found[f"round trips of {size} bytes, 1/s"] = 1e9 / int(median[1])
    for size in FLOODS:
        # Both looks at what has come in, and at the clock, are taken at the receiver.
        look = f"cat {SYSFS}/peers/0/rx_messages {SYSFS}/peers/0/rx_bytes; cut -d' ' -f1 /proc/uptime"
        cluster[0].run(demo(f"flood {size}"))
        began, ended = (
            [float(n) for n in part.split()]
            for part in cluster[1]
            .run(f"sleep 1; {look}; echo and; sleep {FLOOD_SECONDS}; {look}")
            .out.split("and")
        )
        cluster[0].run(demo("flood 0"))
        took = ended[2] - began[2]
        what, index = ("bytes", 1) if size > 1024 else ("messages", 0)
        found[f"flood of up to {size} bytes, {what}/s"] = (ended[index] - began[index]) / took
    cluster.run_all("rmmod kccm_demo && rmmod kccm")
    return found


def main() -> int:
    """The table."""
    parser = argparse.ArgumentParser(description="Compare two builds of KCCM in one boot.")
    parser.add_argument("before", help="a revision of this project")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = defaultdict(list)
    results: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    try:
        modules = [*stage("before", build(arguments.before)), *stage("after", TREE)]
        with Cluster(2, name="compare", modules=modules) as cluster:
            for index in range(arguments.rounds):
                order = ("before", "after") if index % 2 == 0 else ("after", "before")
                pair = {which: measure(cluster, which) for which in order}
                for name, value in pair["after"].items():
                    ratios[name].append(value / pair["before"][name])
                    for which in order:
                        results[name][which].append(pair[which][name])
                print(f"round {index + 1} of {arguments.rounds}", flush=True)
            cluster.assert_clean()
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{'':<40} {'before':>12} {'after':>12}  ratio (lowest to highest)")
    for name, all_of in ratios.items():
        before, after = (statistics.median(results[name][w]) for w in ("before", "after"))
        print(
            f"{name:<40} {before:>12.0f} {after:>12.0f}  {statistics.median(all_of):.2f} "
            f"({min(all_of):.2f} to {max(all_of):.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
