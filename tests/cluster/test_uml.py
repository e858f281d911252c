# SPDX-License-Identifier: GPL-2.0
"""User-mode Linux, on which the benchmark measures: it boots, runs KCCM, and leaves nothing behind.

`scripts/setup.sh --bench` builds it; where that has not been asked for, these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import instances
from cluster import Cluster, HarnessError, Image, MachineSpec, UmlMachine, settings
from cluster.rundir import RunDir
from cluster.settings import Flavour
from conftest import ClusterFactory
from logs import expect_line


@pytest.fixture(scope="module")
def uml() -> Flavour:
    """User-mode Linux, with our modules for it."""
    if settings.flavour().name != "base":
        pytest.skip("user-mode Linux is tested along with the base kernel")
    try:
        flavour = settings.flavour("uml")
        flavour.module("kccm")
    except HarnessError as error:
        pytest.skip(str(error))
    return flavour


@pytest.fixture
def machine(uml: Flavour) -> Iterator[UmlMachine]:
    """One guest, not booted yet."""
    with RunDir("uml") as folder:
        spec = MachineSpec("uml", Image.build(), uml.bzimage, accel="uml", folder=folder.path)
        with UmlMachine(spec) as guest:
            yield guest


def processes(group: int) -> list[str]:
    """The names of the processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = path.read_text().partition(" (")[2].rpartition(") ")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        state, _, its_group = fields.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name)
    return found


@pytest.mark.parametrize("cpus", [1, 2])
def test_runs_kccm(make_cluster: ClusterFactory, uml: Flavour, cpus: int) -> None:
    """Two guests connect over the switch, one greets the other, and both unload."""
    cluster = make_cluster(2, flavour=uml, cpus=cpus)
    assert cluster[0].run("nproc").out.strip() == str(cpus)
    mark = cluster[0].mark()
    cluster[0].insmod("kccm_hello_c")
    cluster[1].insmod("kccm_hello_rust", "peer=0")
    expect_line(cluster[0], mark, "node 1 called: hello, here is Rust$")
    cluster[0].rmmod("kccm_hello_c", "kccm")
    cluster[1].rmmod("kccm_hello_rust", "kccm")
    cluster.assert_clean()


def test_measured_as_a_cluster(make_cluster: ClusterFactory, uml: Flavour) -> None:
    """What the benchmark asks of guests with a node each, in one round."""
    cluster = make_cluster(2, load=False, flavour=uml, memory_mb=instances.MEMORY_MB)
    with instances.prepared(cluster):
        (answer,) = instances.Instances(cluster, 1).ask(["scale nodes=2"])
    words = answer.words()
    assert 1 < words["connect_ms"] < 1000 * instances.MOST_SECONDS
    # No less than the module's code.
    assert 200 << 10 < words["bytes_per_node"] < 4 << 20
    assert 200 << 10 < words["bytes_connected"] < 4 << 20
    assert words["idle_cpu_ppm"] < 500_000
    assert not any(machine.loaded("kccm") for machine in cluster)


def test_leaves_nothing(machine: UmlMachine) -> None:
    """Of a guest that switches itself off, or is killed, neither processes nor files remain."""
    for end in (machine.power_off, machine.kill):
        machine.boot()
        machine.wait_ready()
        machine.spawn("sleep 1000")
        group = machine.pid
        assert group and processes(group)
        end()
        assert not processes(group)
        assert sorted(path.name for path in machine.folder.iterdir()) == ["console.log", "uml.log"]


def test_panic_is_the_end(machine: UmlMachine) -> None:
    """A guest that panics ends, says why, and does not boot again."""
    machine.spec = replace(machine.spec, append="rdinit=/nothing init=/nothing")
    machine.boot()
    machine.wait_dead()
    assert machine.panicked
    assert machine.trouble()


def test_frozen(machine: UmlMachine) -> None:
    """A frozen guest does nothing, and goes on when it is thawed."""
    machine.boot()
    machine.wait_ready()
    job = machine.spawn("while :; do echo; usleep 1000; done")
    machine.freeze()
    assert not job.poll(0.3)
    machine.thaw()
    job.stop()
    assert machine.run("echo here").out == "here\n"
