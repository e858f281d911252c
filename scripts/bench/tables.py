# SPDX-License-Identifier: GPL-2.0
"""Tables: report.md, the part of README.md that is made, and the end of what the terminal shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from cluster.settings import HarnessError

from . import crossings, plan
from .environments import DEFAULT, ENVIRONMENTS, busy
from .plan import ASYNC, BACKGROUND, BULK, CLASSES, FLOOR, PEERS, RIVALS, SMALL
from .ratios import Ratio, growth, ratio
from .records import Record, Results
from .targets import TARGETS, Outcome, Target
from .units import cost_unit, counts_text, size_text, spread_text

BEGIN = "<!-- made by scripts/bench.py --readme: begin -->"
END = "<!-- made by scripts/bench.py --readme: end -->"
# Where README.md has its pictures.
PICTURES = Path("Documentation/bench")
README_FIGURES = ("7", "8")
# Of which it shows the ratios: emulated, and with code that is the processor's own.
README_RATIOS = ("qemu-1", "uml-1")

NOTHING = "-"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, whose columns are in line; all but the first are numbers."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    widths = [max(width, 3) for width in widths]

    def put(line: Sequence[str]) -> str:
        first = f"{line[0]:<{widths[0]}}"
        rest = [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:])]
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    return "\n".join([put(lines[0]), f"|{'|'.join(rule)}|", *(put(line) for line in lines[1:])])


def _peers(results: Results, env: str, figure: str, peers: Iterable[str]) -> list[str]:
    """Those of the peers that have records."""
    there = {record.peer for record in results.of(env, figure)}
    return [peer for peer in peers if peer in there]


def _xs(records: Iterable[Record]) -> list[int]:
    return sorted({record.x for record in records})


def _cell(record: Record | None, unit: str | None = None) -> str:
    if record is None:
        return NOTHING
    return spread_text(record.median, record.spread, record.unit if unit is None else unit)


def _counts(records: Iterable[Record | None]) -> str:
    """How many calls, or messages, these records are made of each."""
    return counts_text([record.count for record in records if record and record.count])


def ratio_text(value: Ratio | None) -> str:
    """A ratio, and between what the rounds' were."""
    if value is None:
        return NOTHING
    return f"{value.median:.2f} ({value.low:.2f}-{value.high:.2f})"


# Figure 7.


def times(results: Results, env: str) -> str:
    """Times of calls, by size and peer."""
    peers = _peers(results, env, "7", (*CLASSES, ASYNC, plan.COPYING, *RIVALS))
    rows = []
    for size in _xs(results.of(env, "7")):
        found = [results.one(env, "7", peer, size) for peer in peers]
        rows.append([size_text(size), *(_cell(record) for record in found), _counts(found)])
    return table(["", *(PEERS[peer] for peer in peers), "calls each"], rows)


def call_ratios(results: Results, env: str, ours: str) -> str:
    """The time of a call of one of our classes by that of each peer."""
    peers = _peers(results, env, "7", RIVALS)
    rows = []
    for size in _xs(results.of(env, "7", ours)):
        one = results.one(env, "7", ours, size)
        found = (ratio(one, results.one(env, "7", peer, size)) for peer in peers)
        rows.append([size_text(size), *(ratio_text(value) for value in found)])
    return table([PEERS[ours], *(PEERS[peer] for peer in peers)], rows)


def handlers(results: Results, env: str) -> str:
    """What the handlers of figure 7 do, and what one that does more takes."""
    told = (
        "KCCM's handlers have nothing to do, and do not write their replies; the peers' servers send "
        "what they have received"
    )
    parts = []
    for size in plan.SIZES:
        pair = (results.one(env, "7", peer, size) for peer in (plan.COPYING, plan.SOFTIRQ))
        if at := ratio(*pair):
            parts.append(f"{at.median:.2f} at {size_text(size)}")
    if parts:
        told += (
            ". A call of a softirq handler that copies its arguments into its reply takes so many times "
            f"as long ({ENVIRONMENTS[env].title}): {', '.join(parts)}"
        )
    return f"{told}."


# Figure 8.


def _figure_8(results: Results, env: str) -> list[str]:
    parts = []
    for us in plan.SERVICE_US:
        variant = plan.service_variant(us)
        records = results.of(env, "8", variant=variant)
        if not records:
            continue
        rows = []
        for size in _xs(records):
            found = [results.one(env, "8", peer, size, variant) for peer in CLASSES]
            short = found[0]
            ratios = [ratio_text(ratio(record, short)) for record in found[1:]]
            cells = [_cell(record) for record in found]
            rows.append([size_text(size), *cells, *ratios, _counts(found)])
        names = [plan.short_name(peer) for peer in CLASSES]
        ratio_names = [f"{name} / short" for name in names[1:]]
        parts.append(table([f"handler of {us} µs", *names, *ratio_names, "calls each"], rows))
    if results.of(env, "8", variant=plan.CALLERS_VARIANT):
        parts += _callers(results, env)
    lines = [*crossings.lines(results, env), *crossings.choice(results, env)]
    lines.append(crossings.callers(results, env))
    return [*parts, "\n".join(f"- {line}" for line in lines if line)]


def _callers(results: Results, env: str) -> list[str]:
    """Where a short handler holds up the calls of others."""
    found = {r.peer: r for r in results.of(env, "8", variant=plan.CALLERS_VARIANT)}
    rows = []
    for peer in (peer for peer in CLASSES if peer in found):
        one = found[peer]
        p99 = spread_text(one.p99, (one.p99, one.p99), one.unit) if one.p99 else NOTHING
        against = ratio_text(ratio(one, found.get(CLASSES[0])))
        rows.append([PEERS[peer], _cell(one), p99, against, _counts([one])])
    title = f"{plan.CALLERS} callers at once, 64 B, handler of {plan.CALLERS_US} µs"
    return [table([title, "a call", "p99", "by that of short", "calls"], rows)]


# The others.


def _throughput(results: Results, env: str) -> list[str]:
    peers = _peers(results, env, "throughput", PEERS)
    rows = []
    for x in _xs(results.of(env, "throughput")):
        for senders in plan.SENDERS:
            variant = plan.senders_variant(senders)
            records = {r.peer: r for r in results.of(env, "throughput", variant=variant) if r.x == x}
            against = ratio_text(ratio(records.get("kccm"), records.get(FLOOR)))
            cells = [_cell(records.get(peer)) for peer in peers]
            counts = _counts(records.values())
            rows.append([f"{size_text(x)}, {variant}", *cells, against, counts])
    names = [PEERS[peer] for peer in peers]
    return [table(["one way", *names, "KCCM / floor", "messages each"], rows)]


def _inflight(results: Results, env: str) -> list[str]:
    peers = _peers(results, env, "inflight", PEERS)
    parts = []
    for metric, title in (("rate", "calls a second"), ("p50", "median time of a call")):
        rows = []
        for x in _xs(results.of(env, "inflight")):
            found = [results.one(env, "inflight", peer, x, "", metric) for peer in peers]
            rows.append([str(x), *(_cell(record) for record in found), _counts(found)])
        names = [PEERS[peer] for peer in peers]
        parts.append(table([f"in flight: {title}", *names, "calls each"], rows))
    return parts


def _tails(results: Results, env: str) -> list[str]:
    metrics = ("p50", "p99", "p99.9")
    rows = []
    for peer in _peers(results, env, "tails", PEERS):
        for load in (BACKGROUND, BULK):
            one = {
                (v, m): results.one(env, "tails", peer, SMALL, v, m) for v in ("", load) for m in metrics
            }
            if load == BULK and one[BULK, "p50"] is None:
                continue
            against = ratio_text(ratio(one[load, "p99"], one["", "p99"]))
            counts = [_counts([one[variant, "p50"]]) for variant in ("", load)]
            cells = [_cell(record) for record in one.values()]
            rows.append([_loaded(peer, load), *cells, against, *counts])
    loaded = [f"{metric}, bulk" for metric in metrics]
    head = ["64 B", *metrics, *loaded, "p99: bulk / without", "calls", "calls, bulk"]
    return [table(head, rows), *_tails_notes(results, env)]


def _loaded(peer: str, load: str) -> str:
    """A peer, and by which way bulk goes."""
    return PEERS[peer] + (", `kccm_send_bulk()`" if load == BULK else "")


def _tails_notes(results: Results, env: str) -> list[str]:
    """What the numbers of the table are."""
    pooled = [
        _loaded(record.peer, record.variant) + (", bulk" if record.variant else "")
        for record in results.of(env, "tails", metric="p99.9")
        if record.pooled
    ]
    notes = []
    if pooled:
        notes.append(
            "p99.9 is that of the calls of all rounds together, with the lowest and the highest of "
            f"single rounds in brackets, for {'; '.join(pooled)}. These have few calls in a round; "
            "for the others it is the median of the rounds' own."
        )
    notes.append(
        "Bulk is messages of 1 MiB to the same peer, one after the other. KCCM sends them over the "
        "connection of the calls, or with `kccm_send_bulk()` over the one for bulk; TCP and TIPC have "
        "a second socket for them, between the same two addresses."
    )
    return notes


def _cost(results: Results, env: str) -> list[str]:
    parts = []
    for variant, title, counted in (
        ("", "a call of 64 B", "calls"),
        (plan.ONE_WAY, "a message of 64 B, one way", "messages"),
    ):
        there = {record.peer for record in results.of(env, "cost", variant=variant)}
        rows = []
        for peer in (peer for peer in PEERS if peer in there):
            found = [results.one(env, "cost", peer, SMALL, variant, u.metric) for u in plan.COSTS]
            units = (cost_unit(record.unit) if record else "" for record in found)
            cells = [_cell(record, unit) for record, unit in zip(found, units)]
            rows.append([PEERS[peer], *cells, _counts(found)])
        if rows:
            head = [title, *(use.metric for use in plan.COSTS), counted]
            parts.append(table(head, rows))
    note = (
        "Of all processors, both ends and all between them. Allocations are those of the slab "
        "allocator, pages those of the page allocator; neither has what is allocated many at a time, "
        "as the network does for its caches of packets. What is counted is counted in a second pass, "
        "as counting takes time."
    )
    return [*parts, note]


def _scale(results: Results, env: str) -> list[str]:
    there = {record.metric for record in results.of(env, "scale")}
    metrics = [use.metric for use in plan.SCALES if use.metric in there]
    rows = [
        [str(x), *(_cell(results.one(env, "scale", "kccm", x, "", metric)) for metric in metrics)]
        for x in _xs(results.of(env, "scale"))
    ]
    lines = (_grows(metric, results.of(env, "scale", metric=metric)) for metric in metrics)
    if ENVIRONMENTS[env].nodes_of_their_own:
        note = (
            "Connect is the time from when all are told to load KCCM until all are connected, with "
            "loading; memory of a node is with the code of the module. "
        )
    else:
        note = "Connect is the time from the start of the first node until all are connected. "
    note += (
        "Memory is beside the buffers of sockets, of connections that have carried nothing yet. Idle CPU "
        "is the time that all nodes together take of a processor, where that is more than without them."
    )
    told = "\n".join(f"- {line}" for line in lines if line)
    return [table([ENVIRONMENTS[env].scale, *metrics], rows), note, told]


def _grows(metric: str, records: Sequence[Record]) -> str:
    """How a quantity grows with the number of nodes, in words."""
    name = "time until fully connected" if metric == "connect" else metric
    power = growth(records)
    if power is None:
        return f"{name}: too few numbers to say how it grows" if records else ""
    xs = [record.x for record in records if record.median > 0]
    between = f"{min(xs)} to {max(xs)} nodes"
    return f"{name} grows with the number of nodes to the power {power:.1f} ({between})"


def _figure_7(results: Results, env: str) -> list[str]:
    parts = [times(results, env), handlers(results, env)]
    parts.append("Times of KCCM by those of the peers; below 1 KCCM is faster:")
    there = _peers(results, env, "7", (*CLASSES, ASYNC))
    return [*parts, *(call_ratios(results, env, ours) for ours in there)]


_SECTIONS: dict[str, tuple[str, Callable[[Results, str], list[str]]]] = {
    "7": ("Figure 7: time of a call against size", _figure_7),
    "8": ("Figure 8: short, softirq and long handlers", _figure_8),
    "throughput": ("Throughput, one way", _throughput),
    "inflight": ("Calls in flight", _inflight),
    "tails": ("Tails", _tails),
    "cost": ("Cost of a call, and of a message", _cost),
    "scale": ("Scale", _scale),
}


# The targets.


def outcome_text(target: Target, outcome: Outcome, env: str) -> str:
    """How a target stands, in a cell."""
    if outcome.worst is None:
        return outcome.status
    worst = outcome.worst
    if target.unit:
        shown = spread_text(worst.median, (worst.low, worst.high), target.unit)
    else:
        digits = _digits(target, worst.median, env)
        shown, low, high = (f"{v:.{digits}f}" for v in (worst.median, worst.low, worst.high))
        shown += f" ({low}-{high})"
    where = f", {outcome.label}" if len(target.quotients) > 1 else ""
    missing = f"; not measured: {len(outcome.missing)} of {len(target.quotients)}"
    status = f"{outcome.status}: " if outcome.status else ""
    return f"{status}{shown}{where}{missing if outcome.missing else ''}"


def _digits(target: Target, value: float, env: str) -> int:
    """How many digits after the point it takes to see whether a target is met: two as a rule."""
    for digits in range(2, 6):
        if target.status(round(value, digits), env) == target.status(value, env):
            return digits
    return 6


def targets(results: Results, envs: Sequence[str]) -> str:
    """All targets, with how they stand in each environment that has any: the worst of each."""
    envs = [env for env in envs if ENVIRONMENTS[env].has_targets]
    rows = [
        [
            target.text,
            target.goal,
            *(outcome_text(target, target.outcome(results, env), env) for env in envs),
        ]
        for target in TARGETS
    ]
    return table(["", "goal", *(ENVIRONMENTS[env].title for env in envs)], rows)


# All together.


def _order(results: Results) -> list[str]:
    there = results.environments()
    return [name for name in ENVIRONMENTS if name in there]


def where_from(results: Results, env: str) -> list[str]:
    """When and where the records of an environment were measured."""
    lines = []
    for boot in results.boots.values():
        if boot.env == env:
            figures = dict.fromkeys(r.figure for r in results.records if r.boot == boot.name)
            rounds = {r.rounds for r in results.records if r.boot == boot.name}
            lines.append(
                f"{ENVIRONMENTS[env].title}: {boot.date}, {boot.kernel} on {boot.machine}, load "
                f"{boot.load:.1f}; revision {boot.revision}, {min(rounds)} rounds, "
                f"{boot.seconds:.0f} s; figures {', '.join(figures)}"
            )
    return lines


def report(results: Results, pictures: Collection[str] = ()) -> str:
    """All tables."""
    envs = _order(results)
    parts = [
        "<!-- SPDX-License-Identifier: GPL-2.0 -->",
        "# KCCM measured against its peers",
        "Made by `make bench` from results.json. Each environment is one boot of one guest; a value is "
        "the median of the rounds, a ratio the median of the rounds' ratios, with the lowest and the "
        "highest in brackets, unless these are no others. In each round every point was measured once, "
        "in another order. How many calls, or messages, are those of all rounds. (Of UML instances, each "
        "count of nodes is one boot of so many guests, and was measured by itself.)",
        "\n".join(f"- {line}" for env in envs for line in where_from(results, env)),
        "## Targets",
        "The worst of what belongs to each, between what the rounds' were, and where that is.",
        targets(results, envs),
    ]
    for env in envs:
        parts.append(f"## {ENVIRONMENTS[env].title}")
        for figure, (title, make) in _SECTIONS.items():
            if results.of(env, figure):
                picture = f"figure-{figure}-{env}.svg"
                shown = [f"![{title}]({picture})"] if picture in pictures else []
                parts += [f"### {title}", *shown, *make(results, env)]
        boots = [boot for boot in results.boots.values() if boot.env == env]
        left_out = [line for boot in boots for line in (*boot.missing, *boot.left_out)]
        if left_out:
            parts += ["### Left out", "\n".join(f"- {line}" for line in left_out)]
    return "\n\n".join(parts) + "\n"


def summary(results: Results, envs: Sequence[str]) -> str:
    """What the terminal shows at the end."""
    lines = []
    for env in envs:
        if env not in results.environments():
            continue
        lines.append(ENVIRONMENTS[env].title)
        if ENVIRONMENTS[env].nodes_of_their_own:
            lines += [f"  {line}" for part in _scale(results, env) for line in part.splitlines()]
            continue
        for target in TARGETS if ENVIRONMENTS[env].has_targets else ():
            outcome = target.outcome(results, env)
            if outcome.worst is not None:
                lines.append(f"  {target.text}: {target.goal}: {outcome_text(target, outcome, env)}")
        lines += [f"  {line}" for line in crossings.lines(results, env)]
        lines += [f"  {line}" for line in crossings.choice(results, env)]
    lines += [f"left out: {line}" for line in missing(results, envs)]
    return "\n".join(lines)


def missing(results: Results, envs: Iterable[str]) -> list[str]:
    """The peers that were not to be had, and where."""
    found: dict[str, list[str]] = {}
    for boot in results.boots.values():
        if boot.env in envs:
            for line in boot.missing:
                found.setdefault(line, []).append(ENVIRONMENTS[boot.env].title)
    return [f"{line} ({'; '.join(dict.fromkeys(where))})" for line, where in found.items()]


# README.md.


def doubts(results: Results) -> list[str]:
    """What speaks against showing these results to everybody."""
    lines = []
    for boot in results.boots.values():
        title = ENVIRONMENTS[boot.env].title
        if boot.revision.endswith("+"):
            lines.append(f"{title}: measured of a tree that no revision is the same as")
        if busy(boot.load):
            lines.append(f"{title}: measured while the machine was busy (load {boot.load:.1f})")
    return lines


def _readme_order(results: Results) -> list[str]:
    """The environments that are for everybody, if there are any."""
    there = _order(results)
    return [env for env in there if env in DEFAULT] or there


def readme_part(results: Results, folder: Path) -> str:
    """What stands between the two marks of README.md."""
    envs = _readme_order(results)
    first = envs[0]
    parts = [
        "\n".join(f"- {line}" for env in envs for line in where_from(results, env)),
        targets(results, envs),
        "The worst of what belongs to each. A ratio is the median of the rounds' ratios, not the ratio "
        "of the medians; in brackets are the lowest and the highest of a round.",
    ]
    parts.append(handlers(results, first))
    for env in [env for env in README_RATIOS if env in envs] or envs[:1]:
        for ours in _peers(results, env, "7", (plan.SOFTIRQ, plan.SHORT)):
            where = ENVIRONMENTS[env].title
            title = f"Time of a call by that of each peer, {where}; below 1 KCCM is faster:"
            parts += [title, call_ratios(results, env, ours)]
    parts += [f"Left out: {line}." for line in missing(results, envs)]
    for figure in README_FIGURES:
        title = _SECTIONS[figure][0]
        for env in envs[:1]:
            picture = folder / f"figure-{figure}-{env}.svg"
            if picture.exists():
                parts.append(f"![{title}, {ENVIRONMENTS[env].title}]({PICTURES / picture.name})")
    lines = crossings.lines(results, first)
    choice = crossings.choice(results, first)
    for env in envs:
        if line := crossings.callers(results, env):
            choice.append(f"{ENVIRONMENTS[env].title}: {line}")
    for title, told in (
        ("Where the lines of figure 8 cross:", lines),
        ("Which class to choose:", choice),
    ):
        if told:
            parts += [title, "\n".join(f"- {line}" for line in told)]
    for env in _one_of_each_scale(results):
        title = f"What clusters take, {ENVIRONMENTS[env].title}:"
        parts += [title, *_scale(results, env)]
    return "\n\n".join(parts)


def _one_of_each_scale(results: Results) -> list[str]:
    """The first environment with nodes in one kernel, and the first with a kernel for each."""
    found: dict[str, str] = {}
    for env in _order(results):
        if results.of(env, "scale"):
            found.setdefault(ENVIRONMENTS[env].scale, env)
    return list(found.values())


def update_readme(results: Results, folder: Path, tree: Path) -> None:
    """Put table and pictures into README.md, between the marks."""
    path = tree / "README.md"
    old = path.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise HarnessError(f"{path} has not the lines {BEGIN} and {END}: put them where this goes")
    part = readme_part(results, folder)
    place = tree / PICTURES
    place.mkdir(parents=True, exist_ok=True)
    for figure in README_FIGURES:
        for env in _readme_order(results):
            picture = folder / f"figure-{figure}-{env}.svg"
            if picture.exists():
                shutil.copy(picture, place / picture.name)
    path.write_text(f"{before}{BEGIN}\n\n{part}\n\n{END}{after}")
