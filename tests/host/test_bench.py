# SPDX-License-Identifier: GPL-2.0
"""The benchmark, with a guest that makes its numbers up."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from bench import (
    crossings,
    environments,
    guest,
    main,
    percentile,
    plan,
    plots,
    ratios,
    records,
    rounds,
    tables,
)
from bench.guest import Answer, Failure, Guest, Hung
from bench.progress import Report
from bench.records import Boot, Record, Results
from bench.targets import TARGETS, Outcome
from bench.units import counts_text, significant, size_text, spread_text, text
from bench_guest import FakeGuest
from cluster.channel import CommandTimeout, Result
from cluster.settings import HarnessError

# Marks in README.md are looked for in the tree, too.
TREE = Path(__file__).resolve().parents[2]


def silent() -> Report:
    """A report that is kept."""
    return Report(Console(record=True, file=open("/dev/null", "w"), width=200))


def said(report: Report) -> str:
    """What the user was told."""
    return report.console.export_text(clear=False)


def a_record(values: tuple[float, ...], x: int = 64, boot: str = "one", **more: object) -> Record:
    """A record of figure 7, unless told otherwise."""
    fields: dict[str, object] = {
        "env": "qemu-1",
        "figure": "7",
        "series": "tcp",
        "peer": "tcp",
        "variant": "",
        "metric": "p50",
        "unit": "ns",
        "median": sorted(values)[len(values) // 2],
        "p99": None,
        "rounds": len(values),
        "spread": (min(values), max(values)),
        "count": 100,
        **more,
    }
    return Record(x=x, boot=boot, values=values, **fields)  # type: ignore[arg-type]


def measured(fake: FakeGuest, figures: tuple[str, ...], report: Report | None = None) -> list[Record]:
    """Everything of these figures."""
    measurement = rounds.Measurement(fake, report or silent(), "boot", "qemu-1")  # type: ignore[arg-type]
    there = measurement.start(plan.peers_in(plan.phases(figures)))
    found = []
    for phase in plan.phases(figures, there):
        found += measurement.run(phase, 7)
    return found


# Answers.


def test_words_of_an_answer() -> None:
    """Numbers by name; whatever else it says is a failure that says what."""
    assert Answer(0, "p50_ns=21300 switches=2.01").words() == {"p50_ns": 21300, "switches": 2.01}
    for status, said_there, why in (
        (0, "error=unsupported", "unsupported"),
        (0, "what?", "no answer: 'what\\?'"),
        (0, "", "no answer"),
        (0, "p50_ns=fast", "no answer: 'p50_ns=fast'"),
        (1, "", "status 1"),
        (1, "sh: write error: Invalid argument [ 1.2] kccm_bench: no peer x", "^no peer x$"),
        (1, "p50_ns=3", "p50_ns=3"),
    ):
        with pytest.raises(Failure, match=why):
            Answer(status, said_there).words()


class Busybox:
    """A shell of this machine in the place of a guest's."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.hang: tuple[str, ...] = ()
        self.ran: list[str] = []

    def program(self, name: str, script: str) -> None:
        """Put a program on its PATH."""
        path = self.place / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, command: str, timeout: float = 30.0, check: bool = True) -> Result:
        """As a machine does."""
        assert not check
        self.ran.append(command)
        command = command.replace("/run/", f"{self.place}/").replace("$(dmesg", f"$({self.place}/dmesg")
        lines = command.splitlines()
        if at := next((n for n, line_ in enumerate(lines) if any(w in line_ for w in self.hang)), 0):
            number = lines[at].split()[1]
            (self.place / "bench.at").write_text(f"{number}\n")
            raise CommandTimeout(f"longer than {timeout:g} s")
        done = subprocess.run(
            ["busybox", "sh", "-c", command],
            env={"PATH": f"{self.place}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout + done.stderr)


@pytest.fixture(name="shell")
def _shell(tmp_path: Path) -> Busybox:
    """A shell with programs in the place of peers, and without a device."""
    shell = Busybox(tmp_path)
    shell.program("bench_rpc", 'echo "p50_ns=1 args=$#"; [ "$2" != size=3 ] || exit 3')
    shell.program("dmesg", "echo '[ 1.5] kccm_bench: the device is broken'")
    if not shutil.which("usleep"):
        shell.program("usleep", "sleep 0.05")
    return shell


def test_commands_in_one_shell(shell: Busybox) -> None:
    """Several commands are run by one shell, and where one fails, the others go on."""
    commands = [f"call peer=rpc size={size} count=1" for size in (2, 3, 4)]
    commands.insert(1, "call peer=tcp size=1 count=1")
    answers = Guest(shell).ask(commands)
    assert len(shell.ran) == 1
    assert [answer.status for answer in answers][2:] == [3, 0]
    assert answers[0] == answers[3] == Answer(0, "p50_ns=1 args=3")
    with pytest.raises(Failure, match="^the device is broken$"):
        answers[1].words()


def test_a_command_that_hangs(shell: Busybox) -> None:
    """It is found, and the others have their answers."""
    shell.hang = ("size=3", "size=5")
    sizes = (2, 3, 4, 5, 6)
    answers = Guest(shell).ask([f"call peer=rpc size={size} count=1" for size in sizes])
    assert [answer.status for answer in answers] == [0, 124, 0, 124, 0]
    assert "no answer in" in answers[1].text and answers[2] == Answer(0, "p50_ns=1 args=3")


def test_a_command_that_cannot_be_killed(shell: Busybox) -> None:
    """Then there is nothing more to be had of this boot, and it is said whose fault that is."""
    shell.hang = ("size=3", "nothing")
    with pytest.raises(Hung, match="size=3") as caught:
        Guest(shell).ask([f"call peer=rpc size={size} count=1" for size in (2, 3, 4)])
    assert plan.peer_of(caught.value.command) == "rpc"


def test_an_answer_that_is_lost() -> None:
    """What a script has not printed counts as failed."""
    answers = guest.answers_in("noise\n@1 0 a=1\nb=2\n@2 0 c=3\n", 3)
    assert answers == [Answer(1, "no answer"), Answer(0, "a=1\nb=2"), Answer(0, "c=3")]


def test_servers(shell: Busybox) -> None:
    """A server is waited for; one that ends, or is not there, is no peer."""
    shell.program("bench_tcp", "sleep 0.2; echo ready; sleep 1")
    Guest(shell).start("user-tcp")
    shell.program("bench_tcp", "echo 'no such port'; exit 1")
    with pytest.raises(Failure, match="no such port"):
        Guest(shell).start("user-tcp")
    (shell.place / "bench_tcp").unlink()
    with pytest.raises(Failure, match="the guest has no bench_tcp"):
        Guest(shell).start("user-tcp")


# The plan.


def test_plan_has_what_is_asked_for() -> None:
    """All sizes and classes; what several figures have in common is measured once."""
    (calls,) = plan.phases(("7", "8"))
    commands = [point.command() for point in calls.points]
    assert len(commands) == len(set(commands))
    seven = [point for point in calls.points if any(use.figure == "7" for use in point.uses)]
    assert {point.x for point in seven} == set(plan.SIZES)
    assert {point.peer for point in seven} == {
        *(*plan.RIVALS, *plan.CLASSES),
        *(plan.ASYNC, plan.COPYING),
    }
    common = next(p for p in calls.points if p.command() == "call peer=kccm-short size=64")
    assert {use.figure for use in common.uses} == {"7", "8"}
    handlers = {dict(point.words).get("service_us", 0) for point in calls.points}
    assert handlers == set(plan.SERVICE_US)
    for batch in calls.batches():
        assert len({point.x for point in batch}) == 1
    assert {phase.name for phase in plan.phases(plan.FIGURES)} == {
        *("calls", "cost", "throughput", "inflight", "tails", "scale")
    }
    assert plan.phases(("7",), ["tcp"])[0].points == tuple(
        p for p in plan.phases(("7",))[0].points if p.peer == "tcp"
    )


def test_only_what_is_to_be_counted_is_traced() -> None:
    """Counting takes time: it has points of its own, calls and messages, which take it twice."""
    for phase in plan.phases(plan.FIGURES):
        traced = [point for point in phase.points if point.passes == 2]
        assert len(traced) == (len(phase.points) if phase.name == "cost" else 0)
    (cost,) = plan.phases(("cost",))
    assert {point.verb for point in cost.points} == {"call", "flood"}
    assert {point.peer for point in cost.points if point.verb == "flood"} == {"kccm", "tcp", "tipc"}
    series = [rounds.Series(point, 1e-4, rounds.length(cost, point, 1e-4)) for point in cost.points]
    assert all(0.6 <= one.seconds(cost) < 0.7 for one in series)


def test_sunrpc_comes_after_the_server_that_it_calls() -> None:
    """Peers are set up in order."""
    peers = plan.peers_in(plan.phases(plan.FIGURES))
    assert peers.index("rpc") < peers.index("sunrpc")


def test_order_of_a_round() -> None:
    """Every round has all, begins with another one, and does not always go the same way."""
    items = list(range(12))
    orders = [rounds.order(items, index, 7) for index in range(7)]
    assert all(sorted(order) == items for order in orders)
    assert len({order[0] for order in orders}) >= 6
    # None is always just after the same.
    for item in items:
        before = {order[order.index(item) - 1] for order in orders}
        assert len(before) > 1
    assert rounds.order([], 3, 7) == [] and rounds.order([1], 3, 7) == [1]


@pytest.mark.parametrize(
    ("mean_ns", "count"),
    [(10_000, 9000), (90_000, 1000), (9_000_000, 20), (90_000_000, 3), (900_000_000, 3), (1, 50_000)],
)
def test_how_often(mean_ns: int, count: int) -> None:
    """A round of a point takes as long as planned, with limits for what is slow or fast."""
    phase = plan.phases(("7",))[0]
    found = rounds.length(phase, phase.points[0], mean_ns / 1e9)
    assert found["count"] == count and 1 <= found["warm"] <= 200


def test_slow_calls_of_tails_take_longer() -> None:
    """Of a call beside bulk there are still some hundreds in a round."""
    (tails,) = plan.phases(("tails",))
    for each, count in ((20e-6, 15_000), (1e-3, 1000), (10e-3, 300)):
        assert rounds.length(tails, tails.points[0], each)["count"] == count
    loaded = next(point for point in tails.points if point.bounded)
    for each, count, seconds in ((20e-6, 15_000, 0.3), (1e-3, 1000, 1.0), (10e-3, 1000, 3.1)):
        series = rounds.Series(loaded, each, rounds.length(tails, loaded, each))
        assert series.length["count"] == count and series.length["ms"] == 3000
        assert series.seconds(tails) == pytest.approx(seconds, rel=0.05)


def test_rounds_are_made_to_fit() -> None:
    """With less time there is less of each round, not fewer rounds; with no time, the least."""
    (phase,) = plan.phases(plan.QUICK_FIGURES)
    series = [rounds.Series(point, 50e-6 + point.x * 10e-9) for point in phase.points]
    for seconds in (1000.0, 100.0, 60.0):
        found = rounds.fit(phase, series, 7, seconds)
        assert 0.8 * min(seconds, 130) < sum(one.seconds(found) for one in series) * 7 <= seconds
    rounds.fit(phase, series, 7, 0.0)
    assert all(one.length.get("count", 3) >= 3 for one in series)
    (floods,) = plan.phases(("throughput",))
    series = [rounds.Series(point, 0.0) for point in floods.points]
    rounds.fit(floods, series, 7, 0.0)
    assert {one.length["ms"] for one in series} == {60}


def test_what_hangs_is_left_out() -> None:
    """And what asks more of the same peer; the other peers stay."""
    (scale,) = plan.phases(("scale",))
    left = plan.without_hung(scale, "scale nodes=64")
    assert [point.x for point in left.points] == [2, 8, 32]
    (many,) = plan.phases(("inflight",))
    left = plan.without_hung(many, "inflight peer=tcp size=64 depth=16 ms=60")
    assert {point.x for point in left.points if point.peer == "tcp"} == {1, 2, 4, 8}
    assert {point.x for point in left.points if point.peer == "rpc"} == set(plan.DEPTHS)


def test_phases_share_the_time() -> None:
    """By what they would take."""
    phases = plan.phases(plan.FIGURES)
    found = rounds.shares(phases, 100.0)
    assert len(found) == len(phases) and sum(found) == pytest.approx(100)


# Measuring.


def test_records_of_the_figures() -> None:
    """Every figure has its records, with what the rounds have given."""
    found = measured(FakeGuest(), plan.FIGURES)
    assert {record.figure for record in found} == set(plan.FIGURES)
    keys = [(record.figure, record.series, record.x, record.unit) for record in found]
    assert len(keys) == len(set(keys))
    for record in found:
        assert record.rounds == len(record.values) == 7
        low, high = record.spread
        assert low <= record.median <= high
        assert (record.p99 is not None) == (record.metric == "p50" and record.figure in "7 8 inflight")
    units = {record.metric: record.unit for record in found}
    assert units["messages"] == "1/s" and units["bytes"] == "B/s" and units["idle CPU"] == "ppm"


def test_every_round_asks_for_everything() -> None:
    """One batch for each x, in each of the rounds, after the one that warms up."""
    fake = FakeGuest()
    measured(fake, ("7",))
    assert len(fake.asked) == len(plan.SIZES) * 8
    firsts = {batch[0].split()[1] for batch in fake.asked[len(plan.SIZES) :]}
    assert len(firsts) >= 6


def twist(wanted: str, answer: str, after: int = 0) -> Callable[[str, str], str]:
    """Answer otherwise to commands with these words, after so many that are answered well."""
    seen = [0]

    def change(command: str, text_: str) -> str:
        if not set(wanted.split()) <= set(command.split()):
            return text_
        seen[0] += 1
        return answer if seen[0] > after else text_

    return change


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("failed: it is on fire", "it is on fire"),
        ("", "it is no answer"),
        ("p99_ns=3", "the answer has no p50_ns"),
        ("p50_ns=0 p99_ns=1", "p50_ns=0"),
        ("p50_ns=-3", "p50_ns=-3"),
        ("p50_ns=nine", "it is no answer"),
    ],
)
@pytest.mark.parametrize("after", [0, 3])
def test_wrong_answers_are_told_and_left_out(answer: str, reason: str, after: int) -> None:
    """At once, or in the midst of the rounds: no record is made of it, and all others are."""
    report = silent()
    good = measured(FakeGuest(), ("7",))
    found = measured(FakeGuest(twist=twist("peer=tcp size=64", answer, after)), ("7",), report)
    missing = {(r.series, r.x) for r in good} - {(r.series, r.x) for r in found}
    assert missing == {("tcp", 64)}
    assert "left out: call tcp size=64" in said(report) and reason in said(report)


def test_unsupported_sizes_are_left_out_quietly() -> None:
    """They are in the list of what was left out, but no line of the log."""
    report = silent()
    measurement = rounds.Measurement(FakeGuest(), report, "boot", "qemu-1")  # type: ignore[arg-type]
    (phase,) = plan.phases(("7",), ["tcp", "tipc"])
    found = measurement.run(phase, 7)
    assert max(record.x for record in found if record.peer == "tipc") == 65536
    assert measurement.left_out.lines() == ["tipc: call size=1048576: unsupported"]
    assert "left out" not in said(report)


def test_missing_peers_are_told_once() -> None:
    """A peer that is not to be had is in no round."""
    report, fake = silent(), FakeGuest()
    fake.missing["tipc"] = "no module"
    found = measured(fake, ("7", "throughput"), report)
    assert "tipc" not in {record.peer for record in found} and len(found) > 50
    assert said(report).count("left out: tipc: no module") == 1


def test_how_many(results: Results) -> None:
    """Calls and messages are counted as the guest says."""
    for record in results.records:
        assert bool(record.count) == (record.figure != "scale")
    (one,) = results.of("qemu-1", "tails", "tcp", "", "p50")
    assert one.count and one.count > 7 * 1000


def test_percentile_of_all_rounds() -> None:
    """As of the calls of all rounds together, whatever round the slowest are of."""
    times = [float(value) for value in random.Random(1).sample(range(10**6), 2100)]
    parts = [sorted(times[at : at + 300], reverse=True) for at in range(0, 2100, 300)]

    def answers(told: int) -> list[dict[str, float]]:
        named = ({f"slow{n}_ns": value for n, value in enumerate(part[:told])} for part in parts)
        return [{"count": 300, "p50_ns": 1, **words} for words in named]

    assert percentile.of_all(answers(4), 999) == sorted(times)[2099 * 999 // 1000]
    # The fourth might not be among these, and those without words tell nothing.
    assert percentile.of_all(answers(3), 999) is None
    assert percentile.of_all([{"p50_ns": 1}], 999) is None
    # All that there are is enough.
    few = [{"count": 2, "slow0_ns": 9, "slow1_ns": 8}, {"count": 1, "slow0_ns": 7}]
    assert percentile.of_all(few, 500) == 8


def test_tails_are_of_all_rounds_where_calls_are_few() -> None:
    """And of each round where these have enough; the spread is that of the rounds, with it."""

    def change(command: str, text_: str) -> str:
        slow = "background=" in command
        return text_.replace("p50_ns=", "p50_ns=9" if slow else "p50_ns=").replace(
            "mean_ns=", "mean_ns=9999" if slow else "mean_ns="
        )

    found = [r for r in measured(FakeGuest(twist=change), ("tails",)) if r.metric == "p99.9"]
    assert {r.pooled for r in found if r.variant} == {True}
    assert {r.pooled for r in found if not r.variant and r.peer == "tcp"} == {False}
    for record in found:
        low, high = record.spread
        assert low <= record.median <= high and len(record.values) == 7


def test_costs_that_cannot_be_had() -> None:
    """No record is made of a word that is not there."""
    fake = FakeGuest()
    fake.costs = False
    found = measured(fake, ("7", "cost"))
    assert {record.figure for record in found} == {"7"}


# Statistics.


def test_ratio_is_made_round_by_round() -> None:
    """The median of the ratios is not the ratio of the medians."""
    found = ratios.ratio(a_record((1.0, 2.0, 9.0)), a_record((1.0, 4.0, 3.0)))
    assert found and (found.median, found.low, found.high) == (1.0, 0.5, 3.0)


def test_ratios_within_a_boot_only() -> None:
    """Nothing is compared across boots, with nothing, or with nought."""
    one = a_record((1.0, 2.0))
    assert ratios.ratio(one, a_record((1.0, 2.0), boot="two")) is None
    assert ratios.ratio(one, None) is None and ratios.ratio(None, one) is None
    assert ratios.ratio(one, a_record((0.0, 2.0))) is None
    assert ratios.ratio(one, a_record((1.0, 2.0, 3.0))) is None


def test_growth() -> None:
    """The power of x with which something grows; nothing is said of less than three points."""
    squares = [a_record((3.0 * x * x,), x) for x in (2, 8, 32, 64)]
    assert ratios.growth(squares) == pytest.approx(2)
    assert ratios.growth([a_record((7.0,), x) for x in (2, 8, 32)]) == pytest.approx(0)
    assert ratios.growth([*squares[:2], a_record((0.0,), 32)]) is None


def line(*heights: float, noise: float = 0.001) -> list[Record]:
    """A line at 64, 128, 256, ... with seven rounds."""
    return [
        a_record(tuple(height * (1 + noise * n) for n in range(7)), 64 << index)
        for index, height in enumerate(heights)
    ]


def test_where_lines_cross() -> None:
    """Between two points, on axes that are both logarithmic."""
    flat = line(1.0, 1.0, 1.0)
    (one,) = crossings.between(flat, line(2.0, 2.0, 0.5))
    assert (one.below, one.above, one.faster) == (128, 256, True)
    assert one.x == pytest.approx(128 * 2**0.5)
    assert [c.faster for c in crossings.between(flat, line(0.5, 2.0, 0.5))] == [False, True]
    assert not crossings.between(flat, line(2.0, 2.0, 2.0))
    assert crossings.ahead(flat, line(2.0, 2.0, 2.0)) == (3, 0)
    assert crossings.ahead(line(2.0, 2.0, 0.5), flat) == (1, 2)


def test_what_lies_on_top_does_not_cross() -> None:
    """Points where now the one, now the other is ahead decide nothing."""
    flat = [a_record((1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0), 64 << n) for n in range(3)]
    other = [a_record((2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0), 64 << n) for n in range(3)]
    assert not crossings.between(flat, other)
    assert crossings.ahead(flat, other) == (0, 0)


def a_figure_8(factors: dict[int, float]) -> Results:
    """Calls of long handlers that take so many times as long as short ones, by the handler's time."""
    found = [
        a_record((t, t, t), size, figure="8", peer=peer, variant=plan.service_variant(us))
        for us, factor in factors.items()
        for size in (64, 128, 256)
        for peer, t in (("kccm-short", 1.0), ("kccm-long", factor))
    ]
    return Results(found)


def test_which_class_to_choose() -> None:
    """Short for what is so short that long takes a tenth longer; if nothing is, that is said."""
    (told,) = crossings.choice(a_figure_8({0: 2.0, 1: 1.5, 10: 1.2, 100: 1.05}), "qemu-1")
    assert "short is ahead of long by more than 10 % at most sizes for handlers of up to 10 µs" in told
    assert "3 of 3 at 0 µs" in told and "0 of 3 at 100 µs" in told
    (told,) = crossings.choice(a_figure_8({0: 1.09, 1: 0.9}), "qemu-1")
    assert "short is ahead of long by more than 10 % at few sizes only" in told
    assert crossings.choice(Results(), "qemu-1") == []
    found = a_figure_8({0: 2.0})
    assert crossings.callers(found, "qemu-1") == ""
    found.records += [record_of_callers(*of) for of in (("kccm-short", 2.0), ("kccm-long", 1.0))]
    told = crossings.callers(found, "qemu-1")
    assert "takes 0.50 (0.50-0.50) times as long with long as with short" in told


def record_of_callers(peer: str, time: float) -> Record:
    """Several that call the same handler at once."""
    return a_record((time, time), figure="8", peer=peer, variant=plan.CALLERS_VARIANT)


def test_units() -> None:
    """As people read them."""
    assert [size_text(n) for n in (0, 3000, 4096, 1 << 20)] == ["0 B", "3000 B", "4 KiB", "1 MiB"]
    assert [significant(n) for n in (0, 0.1234, 1.234, 12.34, 123.4, 1234.0)] == [
        *("0", "0.123", "1.23", "12.3", "123", "1234")
    ]
    assert text(21_300, "ns") == "21.3 µs" and text(2.5e6, "1/s") == "2.50 M/s"
    assert text(1.5 * (1 << 30), "B/s") == "1.50 GiB/s" and text(9, "B") == "9.00 B"
    assert text(8100, "instructions") == "8.10 k" and text(0, "instructions") == "0"
    assert spread_text(21_300, (9_000, 1.2e6), "ns") == "21.3 (9.00-1200) µs"
    assert spread_text(2, (2, 2.001), "") == "2.00"
    assert [counts_text(n) for n in ([], [7], [630, 12_340, 700])] == ["-", "7", "630-12.3 k"]


# Files.


@pytest.fixture(scope="module", name="results")
def _results() -> Results:
    """What a whole run in one environment gives."""
    found = Results()
    boot = Boot(
        *("boot", "qemu-1", "2026-01-02", "7.3.4", "a machine", "abc"), left_out=("o2net: gone",)
    )
    found.add(boot, plan.FIGURES, measured(FakeGuest(), plan.FIGURES))
    return found


def test_results_are_read_as_they_were_written(results: Results, tmp_path: Path) -> None:
    """results.json is a list of records with the names that are agreed upon."""
    records.write(results, tmp_path)
    listed = json.loads((tmp_path / "results.json").read_text())
    wanted = {"env", "figure", "series", "x", "unit", "median", "p99", "rounds"}
    assert isinstance(listed, list) and all(wanted <= set(record) for record in listed)
    assert records.read(tmp_path) == results
    assert records.read(tmp_path / "nothing") == Results()
    (tmp_path / "results.json").write_text('[{"env": 1}]')
    with pytest.raises(HarnessError, match="measure again"):
        records.read(tmp_path)


def test_new_records_replace_those_of_their_figures() -> None:
    """Only of the same environment and figure; boots without records are forgotten."""
    found = Results()
    first = Boot("one", "qemu-1", "", "", "", "")
    found.add(first, ("7", "8"), [a_record((1.0,)), a_record((1.0,), figure="8")])
    found.add(Boot("two", "qemu-1", "", "", "", ""), ("7",), [a_record((2.0,), boot="two")])
    assert [(r.figure, r.boot) for r in found.records] == [("8", "one"), ("7", "two")]
    found.add(Boot("3", "qemu-1", "", "", "", ""), ("8",), [a_record((2.0,), boot="3", figure="8")])
    assert set(found.boots) == {"two", "3"}


def test_report_has_all_tables(results: Results) -> None:
    """Every figure, every target, when and where, and what was left out."""
    made = tables.report(results, ["figure-7-qemu-1.svg"])
    for wanted in (
        *("## Targets", "### Figure 7", "### Figure 8", "### Throughput", "### Tails", "### Cost"),
        *("### Scale", "### Left out", "o2net: gone", "a machine", "2026-01-02", "7 rounds"),
        *("(figure-7-qemu-1.svg)", "1 MiB", "handler of 100 µs", *(t.text for t in TARGETS)),
    ):
        assert wanted in made
    for block in made.split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            assert len({line_.count("|") for line_ in lines}) == 1


def test_reports_say_how_things_grow(results: Results) -> None:
    """In words, a line for each quantity."""
    made = tables.report(results)
    assert "time until fully connected grows with the number of nodes to the power 1." in made
    assert "idle CPU grows with the number of nodes to the power 1.0 (2 to 128 nodes)" in made


def test_a_target_is_shown_with_the_digits_that_it_takes() -> None:
    """What is missed by a little does not look like what is met."""
    target = next(target for target in TARGETS if target.limit == 0.20)
    for value, shown in ((0.2004, "missed: 0.2004"), (0.196, "met: 0.20"), (0.3, "missed: 0.30")):
        outcome = Outcome(target.status(value, "qemu-1"), ratios.Ratio(value, 0.1, 0.4, 7, 64))
        assert tables.outcome_text(target, outcome, "qemu-1").startswith(f"{shown} (0.1")


def test_targets(results: Results) -> None:
    """The worst of what belongs to a target decides; where nothing was measured, nothing does."""
    by_text = {target.text.partition(",")[0]: target for target in TARGETS}
    rpc = by_text["times as fast as ONC RPC (libtirpc)"].outcome(results, "qemu-1")
    assert rpc.worst and rpc.status == ("met" if rpc.worst.median >= 2 else "missed")
    softirq = TARGETS[0]
    assert softirq.outcome(results, "qemu-1").status == "missed"
    assert softirq.outcome(Results(), "qemu-1").status == "not measured"
    tipc = by_text["against TIPC between namespaces"].outcome(results, "qemu-1")
    assert len(tipc.missing) == 2 and tipc.worst
    tails = by_text["p99 of a 64 B call during a bulk transfer (`kccm_send_bulk()`)"].outcome(results, "qemu-1")
    assert tails.status == "missed" and tails.worst and 3.1 < tails.worst.median < 4.0


def test_target_without_a_goal_here(results: Results) -> None:
    """It is shown, and neither met nor missed."""
    elsewhere = Results([record_in(record, "uml-2") for record in results.records], results.boots)
    outcome = TARGETS[0].outcome(elsewhere, "uml-2")
    assert outcome.status == "" and outcome.worst


def test_instructions(results: Results) -> None:
    """Where they are counted, times are in them; no target is for that."""
    env = "qemu-icount"
    assert env in environments.ENVIRONMENTS and env not in environments.DEFAULT
    measurement = rounds.Measurement(FakeGuest(), silent(), "b", env)  # type: ignore[arg-type]
    found = Results(boots={"b": Boot("b", env, "", "", "", "")})
    for phase in plan.phases(("7", "cost"), ["tcp", "kccm-short"]):
        found.records += measurement.run(phase, 7)
    assert {record.unit for record in found.of(env, "7")} == {"instructions"}
    assert "instructions/call" in {record.unit for record in found.of(env, "cost")}
    made = tables.report(found)
    assert " k |" in made and " µs |" not in made
    both = Results([*results.records, *found.records], {**results.boots, **found.boots})
    titles = environments.ENVIRONMENTS[env].title
    assert titles in tables.report(both) and titles not in tables.readme_part(both, Path("nowhere"))


def record_in(record: Record, env: str) -> Record:
    """The same record of another environment."""
    return Record(**{**record.__dict__, "env": env})


def test_pictures(results: Results, tmp_path: Path) -> None:
    """One for each figure, the same from the same numbers, and none that is out of date."""
    (tmp_path / "figure-7-uml-1.svg").write_text("old")
    drawn = plots.draw(results, tmp_path)
    assert sorted(path.name for path in drawn) == sorted(f"figure-{f}-qemu-1.svg" for f in plan.FIGURES)
    assert not (tmp_path / "figure-7-uml-1.svg").exists()
    first = {path: path.read_bytes() for path in drawn}
    assert all(data.startswith(b"<?xml") for data in first.values())
    few = Results([r for r in results.records if r.figure == "7"], results.boots)
    (again,) = plots.draw(few, tmp_path)
    assert again.read_bytes() == first[again]


def test_pictures_of_little(tmp_path: Path) -> None:
    """What was left out does not keep the rest from being drawn."""
    for peers in (["tcp"], ["kccm-softirq"], ["kccm", "o2net"]):
        found = Results()
        fake = FakeGuest()
        fake.missing = {peer: "gone" for peer in plan.PEERS if peer not in peers}
        found.add(Boot("boot", "qemu-1", "", "", "", ""), plan.FIGURES, measured(fake, plan.FIGURES))
        assert plots.draw(found, tmp_path)
        assert tables.report(found) and tables.readme_part(found, tmp_path)


def test_names_do_not_cover_each_other() -> None:
    """Names at the ends of lines are moved apart, in their order, about where they belong."""
    places = plots._apart([0.1, 0.5, 0.5, 0.51, 0.9], 0.05)  # pylint: disable=protected-access
    assert all(b - a >= 0.05 - 1e-9 for a, b in zip(places, places[1:]))
    assert places[0] == 0.1 and places[-1] == 0.9
    assert sum(places[1:4]) / 3 == pytest.approx((0.5 + 0.5 + 0.51) / 3)


# The command line.


@pytest.fixture(name="machine")
def _machine(monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    """A guest for the whole program."""
    fake = FakeGuest()

    @contextmanager
    def opened(environment: environments.Environment) -> Iterator[SimpleNamespace]:
        if environment.kind == "uml":
            raise HarnessError("no such kernel: run scripts/setup.sh --bench")
        yield SimpleNamespace()

    monkeypatch.setattr(environments, "opened", opened)
    monkeypatch.setattr(environments, "describe", lambda machine: ("7.3.4", "a machine"))
    monkeypatch.setattr(main, "Guest", lambda machine: fake)
    return fake


def test_quick_run(machine: FakeGuest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures 7 and 8 in one environment, with files and a summary."""
    assert main.main(["--quick", "--folder", str(tmp_path)]) == 0
    assert machine.asked
    found = records.read(tmp_path)
    assert found.environments() == ["qemu-1"]
    assert {record.figure for record in found.records} == set(plan.QUICK_FIGURES)
    assert (tmp_path / "report.md").exists() and (tmp_path / "figure-8-qemu-1.svg").exists()
    out = capsys.readouterr().out
    assert "results.json" in out and "short class, against the floor" in out


def test_environment_that_is_not_there(
    machine: FakeGuest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told, the others are measured, and the status says that something is missing."""
    del machine
    assert main.main(["--figures", "7", "--envs", "uml-1,qemu-2", "--folder", str(tmp_path)]) == 1
    assert records.read(tmp_path).environments() == ["qemu-2"]
    assert "uml-1: no such kernel: run scripts/setup.sh --bench" in capsys.readouterr().out


def test_guest_that_dies(machine: FakeGuest, tmp_path: Path) -> None:
    """The phases that were done before are kept."""

    def change(command: str, answer: str) -> str:
        if command.startswith("flood"):
            raise HarnessError("the guest has ended")
        return answer

    machine._twist = change  # pylint: disable=protected-access
    folder = str(tmp_path)
    assert main.main(["--figures", "7,throughput", "--envs", "qemu-1", "--folder", folder]) == 1
    assert {record.figure for record in records.read(tmp_path).records} == {"7"}


def test_guest_that_hangs(machine: FakeGuest, tmp_path: Path) -> None:
    """It is booted again, and the rest measured without the peer that is to blame."""

    def change(command: str, answer: str) -> str:
        if command.startswith("flood peer=tipc-local"):
            raise Hung(command, 1.0)
        return answer

    machine._twist = change  # pylint: disable=protected-access
    words = ["--figures", "7,throughput,scale", "--envs", "qemu-1", "--folder", str(tmp_path)]
    assert main.main(words) == 1
    found = records.read(tmp_path)
    assert {record.figure for record in found.records} == {"7", "throughput", "scale"}
    peers = {record.peer for record in found.of("qemu-1", "throughput")}
    assert "tipc" in peers and "tipc-local" not in peers
    assert found.of("qemu-1", "7", "tipc-local") and len(found.boots) == 2
    assert "hangs" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "words", [["--envs", "moon"], ["--figures", "9"], ["--rounds", "3"], ["--peers", "pigeons"]]
)
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is not known, or too little, is refused."""
    with pytest.raises(SystemExit):
        main.parse_arguments(words)
    assert "must be" in capsys.readouterr().err


def test_missing_peers_are_told_at_the_end(
    machine: FakeGuest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where they are missing, and why; that is no failure."""
    machine.missing = {"o2net": 'there is no peer "o2net" here', "tipc": "no module"}
    words = ["--figures", "7", "--envs", "qemu-1,qemu-2", "--folder", str(tmp_path)]
    assert main.main(words) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == [
        "left out: tipc: no module (QEMU, 1 CPU; QEMU, 2 CPUs)",
        f"left out: o2net: {plan.WHY_NOT['o2net']} (QEMU, 1 CPU; QEMU, 2 CPUs)",
    ]
    found = records.read(tmp_path)
    assert "Left out: tipc: no module (QEMU" in tables.readme_part(found, tmp_path)
    assert "- tipc: no module" in (tmp_path / "report.md").read_text()


def test_what_should_not_be_shown(results: Results) -> None:
    """A tree that has been changed, and a machine that had something else to do."""
    assert not tables.doubts(results)
    boot = Boot("boot", "qemu-1", "", "", "", "abc+", load=100.0)
    changed, busy = tables.doubts(Results(results.records, {"boot": boot}))
    assert "no revision" in changed and "load 100.0" in busy


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without results there is nothing to draw."""
    assert main.main(["--report", "--folder", str(tmp_path)]) == 1
    assert "make bench" in capsys.readouterr().err


def test_readme(results: Results, tmp_path: Path) -> None:
    """The part between the marks is replaced, and the pictures copied; the rest stays."""
    plots.draw(results, tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nout of date\n{tables.END}\nafter\n")
    for _ in range(2):
        tables.update_readme(results, tmp_path, tmp_path)
    made = readme.read_text()
    assert made.startswith("before\n") and made.endswith("\nafter\n")
    assert "out of date" not in made
    assert made.count("![") == 2 and "a machine" in made
    for picture in ("figure-7-qemu-1.svg", "figure-8-qemu-1.svg"):
        assert f"({tables.PICTURES / picture})" in made
        assert (tmp_path / tables.PICTURES / picture).exists()
    readme.write_text("no marks")
    with pytest.raises(HarnessError, match="has not the lines"):
        tables.update_readme(results, tmp_path, tmp_path)


def test_readme_of_the_tree_has_the_marks() -> None:
    """Once each, in order."""
    readme = (TREE / "README.md").read_text()
    assert readme.count(tables.BEGIN) == readme.count(tables.END) == 1
    assert readme.index(tables.BEGIN) < readme.index(tables.END)
