# SPDX-License-Identifier: GPL-2.0
"""What the cluster tests share: clusters, and the watch over their kernels.

``cluster3`` is a three-node cluster with KCCM up, shared by the tests of one
file; ``make_cluster`` makes clusters of any shape for one test. After each
test the consoles of all guests are searched for fault reports (BUG, WARNING,
lockdep, KASAN, hung tasks ...): one of them fails the test, unless the test
has announced it with ``machine.allow_console(...)``.

One test: ``/usr/bin/python3 -m pytest tests/cluster/test_x.py -k name``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from cluster import Cluster, HarnessError
from cluster.machine import Machine, assert_clean
from cluster.settings import flavour

ClusterFactory = Callable[..., Cluster]


class Watch:
    """The clusters that exist, and up to where their consoles have been searched."""

    def __init__(self) -> None:
        self.clusters: list[Cluster] = []
        self.shared: list[Cluster] = []
        self.failed = False
        self._searched: dict[str, int] = {}

    def add(self, cluster: Cluster) -> None:
        """Watch a cluster, from the first line of its consoles on."""
        self.clusters.append(cluster)

    def remove(self, cluster: Cluster) -> None:
        """Forget a cluster that has ended."""
        self.clusters.remove(cluster)
        for machine in cluster:
            self._searched.pop(machine.name, None)

    def check(self, cluster: Cluster) -> None:
        """Search what a cluster has printed since the last time."""
        try:
            assert_clean(cluster, self._searched)
        finally:
            for machine in cluster:
                machine.console.allowed.clear()

    def machines(self) -> list[Machine]:
        """All machines of all clusters."""
        return [machine for cluster in self.clusters for machine in cluster]

    def consoles(self) -> str:
        """The last console lines of every guest, and the files that have the rest."""
        return "\n".join(f"{m.name}\n{m.console.context()}" for m in self.machines())

    def logs(self) -> str:
        """The files that have the guests' consoles."""
        return "\n".join(f"console log: {m.console.path}" for m in self.machines())


_watch = Watch()


def _folder_name(request: pytest.FixtureRequest) -> str:
    return Path(str(request.path)).stem.removeprefix("test_").replace("_", "-")


def _connect(cluster: Cluster) -> None:
    cluster.load_all()
    cluster.wait_connected()


@pytest.fixture(scope="module")
def cluster3(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three nodes with KCCM up. A test leaves them as it found them.

    After a test that failed the nodes are booted anew, so that what it left
    does not fail the next one.
    """
    with Cluster(3, name=_folder_name(request)) as cluster:
        _watch.add(cluster)
        _watch.shared.append(cluster)
        try:
            _connect(cluster)
            yield cluster
            cluster.assert_no_leaks()
        finally:
            _watch.shared.remove(cluster)
            _watch.remove(cluster)


@pytest.fixture
def make_cluster(request: pytest.FixtureRequest) -> Iterator[ClusterFactory]:
    """``make_cluster(nodes=3, load=True, **Cluster arguments)``; ended after the test.

    With ``load``, KCCM is loaded in all nodes and all of them are connected.
    """
    with ExitStack() as stack:

        def make(nodes: int = 3, load: bool = True, **arguments: Any) -> Cluster:
            arguments.setdefault("name", f"{_folder_name(request)}-own")
            cluster = Cluster(nodes, **arguments)
            stack.enter_context(cluster)
            _watch.add(cluster)
            stack.callback(_watch.remove, cluster)
            stack.callback(_watch.check, cluster)
            stack.callback(cluster.assert_no_leaks)
            if load:
                _connect(cluster)
            return cluster

        yield make


@pytest.fixture(autouse=True)
def clean_consoles() -> Iterator[None]:
    """Fails a test during which a guest's kernel reported a fault."""
    if _watch.failed:
        _watch.failed = False
        for cluster in _watch.shared:
            _start_over(cluster)
    yield
    for cluster in list(_watch.clusters):
        _watch.check(cluster)


def _start_over(cluster: Cluster) -> None:
    """Boot a shared cluster anew, as its fixture has made it."""
    cluster.switch.heal_all()
    for node in range(len(cluster)):
        cluster.kill(node)
    cluster.boot()
    _connect(cluster)


# Reports.


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the guests' consoles to the report of a failure."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        _watch.failed = True
        if _watch.clusters:
            report.sections.append(("guest consoles", _watch.consoles()))
            report.user_properties.append(("logs", _watch.logs()))


def pytest_report_header() -> str:
    """What the tests will run on."""
    try:
        chosen = flavour()
    except HarnessError as error:
        return f"KCCM: {error}"
    return f"KCCM: {chosen.name} kernel {chosen.bzimage}, modules in {chosen.module_dir}"
