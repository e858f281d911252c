# SPDX-License-Identifier: GPL-2.0
"""Measuring clusters whose nodes have a kernel each, with guests that are none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from bench import environments, instances, main, plan, plots, records, rounds, tables
from bench.instances import Instances
from bench.plan import Phase
from bench.progress import Report
from bench.records import Boot, Results
from bench_guest import FakeGuest
from cluster.channel import CommandTimeout, GuestDied, Result
from cluster.cluster import SYSFS
from cluster.machine import Unclean
from cluster.settings import HarnessError

KIB = 1024
# What the nodes below take, in KiB and in millionths of a processor's time.
ALONE, END = 400, 20
QUIET_PPM, LOADED_PPM = 1000, 3000


class FakeJob:
    """A script that runs, in a thread of its own."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._future: Future[Result] = Future()
        threading.Thread(target=self._work, args=(work,)).start()

    def _work(self, work: Callable[[], Result]) -> None:
        try:
            self._future.set_result(work())
        except Exception as error:  # pylint: disable=broad-exception-caught
            self._future.set_exception(error)

    def wait(self, timeout: float = 30.0, check: bool = True) -> Result:
        """As a job's."""
        assert not check
        return self._future.result(timeout)


class FakeNode:
    """A guest that loads and unloads KCCM, and has less memory meanwhile."""

    pid = None

    def __init__(self, cluster: FakeCluster, number: int) -> None:
        self._cluster, self._number = cluster, number
        self.members = 0
        self._told = threading.Event()

    def tell(self, pipe: str) -> None:
        """Let a script go on that reads this pipe."""
        assert not any(node.members for node in self._cluster[self._number :]) and pipe
        self._told.set()

    def spawn(self, command: str) -> FakeJob:
        """Begin to carry out what matters of a script."""
        return FakeJob(lambda: self._run(command))

    def _run(self, command: str) -> Result:
        out = []
        for line in command.splitlines():
            if "read -r go" in line:
                assert self._told.wait(10.0)
                self._told.clear()
            elif found := re.match(r"insmod .*\bpeers=(\S+)", line):
                self.members = found[1].count("=")
                if self.members > 1:
                    self._cluster.load(self._number)
            elif line == "rmmod kccm":
                self.members = 0
            elif line.startswith("END"):
                out.append(str(50_000 + self._number - self._taken()))
        return Result(0, "\n".join(out))

    def _taken(self) -> int:
        others = END * (self.members - 1)
        return ALONE + others + self._number % instances.PARTS if self.members else 0


class FakeCluster(list[FakeNode]):
    """Guests all of which have to be told to load KCCM before any of them does."""

    def __init__(self, nodes: int, error: Exception | None = None) -> None:
        super().__init__(FakeNode(self, number) for number in range(nodes))
        self.error = error
        self.rounds = 0
        self._all = threading.Barrier(nodes)

    def parameters(self, node: int, **extra: object) -> str:
        """As a cluster's."""
        peers = ",".join(f"{n}=10.1.0.{n + 1}" for n in range(len(self)))
        return f"node_id={node} peers={extra.get('peers', peers)}"

    def load(self, node: int) -> None:
        """A node loads KCCM, as do all others; the last one takes a moment."""
        self._all.wait(10.0)
        if node == len(self) - 1:
            self.rounds += 1
            if self.error and self.rounds > 2:
                raise self.error
            time.sleep(0.03)

    def cpu_ns(self, groups: Collection[int | None]) -> dict[int, int]:
        """What instances.cpu_ns() would find."""
        assert len(groups) == len(self)
        ppm = LOADED_PPM if self[0].members else QUIET_PPM
        return {7: time.monotonic_ns() * ppm * len(self) // 1_000_000}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(instances, "IDLE_SECONDS", 0.02)


@pytest.fixture(name="clusters")
def _clusters(monkeypatch: pytest.MonkeyPatch) -> dict[int, FakeCluster | Exception]:
    """What there is in the place of clusters, by their number of nodes."""
    there: dict[int, FakeCluster | Exception] = {n: FakeCluster(n) for n in instances.NODES}

    @contextmanager
    def opened(nodes: int) -> Iterator[FakeCluster]:
        found = there[nodes]
        if isinstance(found, Exception):
            raise found
        monkeypatch.setattr(instances, "cpu_ns", found.cpu_ns)
        yield found

    monkeypatch.setattr(instances, "opened", opened)
    monkeypatch.setattr(instances, "flavour", lambda: None)
    monkeypatch.setattr(environments, "describe", lambda machine: ("7.3.4", "a machine"))
    return there


def run(folder: Path, *words: str) -> int:
    """The program, in this environment alone."""
    return main.main(["--envs", "uml-nodes", "--folder", str(folder), *words])


# A round.


def test_words_of_a_round(
    clusters: dict[int, FakeCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What scale.c says of nodes in one kernel: the last one counts, each tells of its memory."""
    monkeypatch.setattr(instances, "cpu_ns", clusters[8].cpu_ns)
    guests = Instances(clusters[8], 1)  # type: ignore[arg-type]
    for number, answer in enumerate(guests.ask(["scale nodes=8"] * 4), start=1):
        words = answer.words()
        assert 30 <= words.pop("connect_ms") < 5000
        assert words.pop("idle_cpu_ppm") == pytest.approx(8 * (LOADED_PPM - QUIET_PPM), rel=0.2)
        assert words == {
            "bytes_per_node": (ALONE + number) * KIB,
            "bytes_connected": (ALONE + number + 7 * END) * KIB,
            "bytes_per_conn": 2 * END * KIB,
        }
    assert all(node.members == 0 for node in clusters[8])


def test_memory_of_few_connections(
    clusters: dict[int, FakeCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be told from what a kernel does besides."""
    monkeypatch.setattr(instances, "cpu_ns", clusters[2].cpu_ns)
    words = Instances(clusters[2], 1).ask(["scale"])[0].words()  # type: ignore[arg-type]
    assert "bytes_per_conn" not in words and words["bytes_per_node"] == (ALONE + 1) * KIB


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GuestDied("node7: the guest has ended\n  its console"), "node7: the guest has ended"),
        (CommandTimeout("longer than that"), "node 7: not done in 60 s"),
    ],
)
def test_round_that_fails(
    clusters: dict[int, FakeCluster],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
) -> None:
    """The answer says why, in a line."""
    monkeypatch.setattr(instances, "cpu_ns", clusters[8].cpu_ns)
    clusters[8].error = error
    answers = Instances(clusters[8], 1).ask(["scale"] * 3)  # type: ignore[arg-type]
    assert [answer.status for answer in answers] == [0, 0, 1]
    assert answers[2].text == reason


def test_peers_are_waited_for(tmp_path: Path) -> None:
    """A guest's script begins when told to, and ends when all are up; or KCCM cannot be loaded."""
    states = [tmp_path / "peers" / str(peer) / "state" for peer in range(3)]
    for state in states:
        state.parent.mkdir(parents=True)
        state.write_text("connecting\n")
    pipe = tmp_path / "go"
    os.mkfifo(pipe)
    guests = Instances(FakeCluster(4), 1)  # type: ignore[arg-type]
    script = guests._joining(3)  # pylint: disable=protected-access
    script = script.replace(SYSFS, str(tmp_path)).replace(instances.GO, str(pipe))

    def shell(insmod: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["busybox", "sh", "-c", script.replace("insmod", insmod, 1)])
        time.sleep(0.2)
        assert process.poll() is None
        pipe.write_text("\n")
        return process

    with shell("false") as refused:
        assert refused.wait(10) != 0
    with shell("true") as waiting:
        for state in reversed(states):
            time.sleep(0.1)
            assert waiting.poll() is None
            state.write_text("up\n")
        assert waiting.wait(10) == 0


def test_time_on_processors() -> None:
    """It is that of a group alone, and of processes that are there at the end."""
    busy = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(busy, start_new_session=True) as process:
        try:
            assert list(instances.cpu_ns([process.pid])) == [process.pid]
            time.sleep(0.5)
            assert instances.cpu_ns([process.pid, None])[process.pid] > 10_000_000
        finally:
            process.kill()
    assert not instances.cpu_ns([process.pid])
    assert os.getpid() in instances.cpu_ns([os.getpgrp()])


# All counts.


def test_run(
    clusters: dict[int, FakeCluster], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every count has all records, of as many rounds as asked for; more nodes fit in one kernel."""
    assert run(tmp_path, "--rounds", "8") == 0
    found = records.read(tmp_path)
    assert {(record.figure, record.peer, record.rounds) for record in found.records} == {
        ("scale", "kccm", 8)
    }
    for metric in (use.metric for use in plan.SCALES):
        counts = [r.x for r in found.of("uml-nodes", "scale", "kccm", metric=metric)]
        assert counts == [n for n in instances.NODES if n >= 8 or metric != "memory per connection"]
    assert all(cluster.rounds == 9 for cluster in clusters.values())
    (boot,) = found.boots.values()
    assert boot.kernel == f"7.3.4, {instances.MEMORY_MB} MiB each" and not boot.left_out
    out = capsys.readouterr().out
    assert "scale, 64 nodes: 8 rounds" in out and "| A kernel for each node" in out
    assert "in one kernel" not in out


def test_only_the_scale(
    clusters: dict[int, FakeCluster], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else is measured there, and nothing of other peers."""
    for words in (["--figures", "7,tails"], ["--peers", "tcp"]):
        assert run(tmp_path, *words) == 1
        assert "has no results" in capsys.readouterr().err
    assert not any(cluster.rounds for cluster in clusters.values())


def test_what_cannot_be_measured_is_left_out(
    clusters: dict[int, FakeCluster | Exception],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A guest that dies, or too many guests, do not keep the rest from being measured."""
    clusters[8] = FakeCluster(8, GuestDied("node7: the guest has ended"))
    clusters[64] = instances.TooMany("64 guests do not fit")
    assert run(tmp_path) == 0
    found = records.read(tmp_path)
    assert {record.x for record in found.records} == {2, 32}
    (boot,) = found.boots.values()
    assert boot.left_out == (
        "kccm: scale nodes=8: in a round: node7: the guest has ended",
        "kccm: scale nodes=64: 64 guests do not fit",
    )
    assert "left out: scale kccm nodes=64: 64 guests do not fit" in capsys.readouterr().out
    assert "64 guests do not fit" in (tmp_path / "report.md").read_text()


def test_kernel_that_complains(
    clusters: dict[int, FakeCluster | Exception], tmp_path: Path
) -> None:
    """That is an error, whatever has been measured."""
    clusters[64] = Unclean("the kernel has reported faults")
    assert run(tmp_path) == 1
    clusters[64] = GuestDied("node3: the guest has ended")
    assert run(tmp_path) == 1
    assert {record.x for record in records.read(tmp_path).records} == {2, 8, 32}


def test_nothing_can_be_measured(
    clusters: dict[int, FakeCluster | Exception],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No kernel, or no guest that boots."""
    clusters.update(dict.fromkeys(instances.NODES, HarnessError("no guest boots")))
    assert run(tmp_path) == 1
    assert "uml-nodes: nothing could be measured" in capsys.readouterr().out

    def missing() -> None:
        raise HarnessError("no such kernel: run scripts/setup.sh --bench")

    monkeypatch.setattr(instances, "flavour", missing)
    assert run(tmp_path) == 1
    assert "uml-nodes: no such kernel" in capsys.readouterr().out


def test_no_time(clusters: dict[int, FakeCluster], monkeypatch: pytest.MonkeyPatch) -> None:
    """A count whose rounds do not fit is given up after the first, and says so."""
    monkeypatch.setattr(instances, "cpu_ns", clusters[8].cpu_ns)
    monkeypatch.setattr(instances, "SECONDS", 0.01)
    guests = Instances(clusters[8], 7)  # type: ignore[arg-type]
    report = Report(Console(record=True, file=open("/dev/null", "w"), width=200))
    measurement = rounds.Measurement(guests, report, "boot", "uml-nodes")
    (phase,) = (p for p in scales() if p.points[0].x == 8)
    assert not measurement.run(phase, 7) and clusters[8].rounds == 1
    assert "there is no time for 7 rounds" in measurement.left_out.lines()[0]


def test_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests that do not fit are not booted."""
    monkeypatch.setattr(instances, "flavour", lambda: None)
    check = instances._check_memory  # pylint: disable=protected-access
    monkeypatch.setattr(instances, "_available_mb", lambda: 8 * instances.MEMORY_MB)
    check(8)
    with pytest.raises(HarnessError, match="9 guests of 64 MiB do not fit into the 512 MiB"):
        check(9)


def scales() -> list[Phase]:
    """What there is to do."""
    return instances.phases(plan.phases(plan.FIGURES))


# Tables and pictures.


@pytest.fixture(name="results")
def _results() -> Results:
    """Nodes in one kernel, and with a kernel for each."""
    found = Results()
    for env in ("qemu-1", "uml-1", "uml-nodes"):
        boot = Boot(env, env, "2026-01-02", "7.3.4", "a machine", "abc")
        fake, report = FakeGuest(), Report(Console(file=open("/dev/null", "w")))
        todo = scales() if env == "uml-nodes" else plan.phases(("scale",))
        measurement = rounds.Measurement(fake, report, env, env)
        found.add(boot, ("scale",), [r for phase in todo for r in measurement.run(phase, 7)])
    return found


def test_tables(results: Results, tmp_path: Path) -> None:
    """Each says where the nodes are; targets are those of nodes in one kernel."""
    report = tables.report(results)
    assert report.count("| Nodes in one kernel") == 2
    assert report.count("| A kernel for each node") == report.count("## UML instances") == 1
    assert "UML instances" not in tables.targets(results, results.environments())
    readme = tables.readme_part(results, tmp_path)
    assert readme.count("| Nodes in one kernel") == readme.count("| A kernel for each node") == 1
    assert readme.index("take, QEMU, 1 CPU:") < readme.index("take, UML instances:")
    (summary,) = {tables.summary(results, ["uml-nodes"])}
    assert "| A kernel for each node" in summary and "in one kernel" not in summary


def test_pictures(results: Results, tmp_path: Path) -> None:
    """The title says where the nodes are."""
    for path in plots.draw(results, tmp_path):
        theirs = path.name.endswith("uml-nodes.svg")
        assert ("A kernel for each node" in path.read_text()) == theirs
        assert ("Nodes in one kernel" in path.read_text()) != theirs
