# SPDX-License-Identifier: GPL-2.0
"""Pictures of the figures, one SVG each for each environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from . import crossings, plan
from .environments import ENVIRONMENTS
from .plan import ASYNC, BACKGROUND, BULK, CLASSES, COPYING, FLOOR, LONG, PEERS, RIVALS, SHORT, SMALL
from .plan import SOFTIRQ
from .records import Record, Results
from .units import cost_unit, text

# The same numbers make the same file.
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "kccm",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.6,
        "axes.edgecolor": "#808080",
        "xtick.color": "#404040",
        "ytick.color": "#404040",
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
    }
)


@dataclass(frozen=True)
class Style:
    """How a peer looks: colours of Okabe and Ito, which all can tell apart; ours are thick."""

    colour: str
    marker: str
    line: str = "-"
    width: float = 1.2


STYLES = {
    FLOOR: Style("#000000", "o", "--"),
    SHORT: Style("#0072B2", "s", width=2.4),
    SOFTIRQ: Style("#D55E00", "D", width=2.4),
    LONG: Style("#56B4E9", "^", width=2.4),
    ASYNC: Style("#009E73", "v", width=2.4),
    COPYING: Style("#D55E00", "D", ":", width=1.2),
    "kccm": Style("#0072B2", "s", width=2.4),
    "tipc": Style("#CC79A7", "P"),
    "tipc-local": Style("#CC79A7", "X", ":"),
    "rpc": Style("#E69F00", "o"),
    "sunrpc": Style("#E69F00", "p", ":"),
    "user-tcp": Style("#808080", "h", "-."),
    "o2net": Style("#8C6D31", "*", "-."),
}

# What the paper had in the place of these.
PAPER = {
    SHORT: "paper: KCCM with reply",
    ASYNC: "paper: KCCM, asynchronous",
    "rpc": "paper: Sun RPC",
}
PAPER_CROSSING = 3000
# The same of figure 8, and what it found there.
PAPER_8 = {SHORT: "paper: short", LONG: "paper: long"}
PAPER_FOUND_8 = (
    "The paper found short ahead of long where the handler is short, as a function call costs less "
    "than a thread; it tells of no crossing."
)


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw all that there are records of, and remove what there are none of any more."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("figure-*.svg"):
        old.unlink()
    drawn = []
    for env in results.environments():
        for figure, make in _DRAWERS.items():
            if results.of(env, figure):
                path = folder / f"figure-{figure}-{env}.svg"
                picture = make(results, env)
                picture.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
                plt.close(picture)
                drawn.append(path)
    return drawn


# What several have in common.

# The spread of a bar.
_WHISKERS: dict[str, Any] = {"elinewidth": 0.8, "capsize": 2, "ecolor": "#404040", "fmt": "none"}


def _titled(results: Results, env: str, figure: str, title: str, picture: Figure) -> None:
    records = results.of(env, figure)
    boot = results.boots.get(records[0].boot)
    date = f"{boot.date}, " if boot else ""
    rounds = min(record.rounds for record in records)
    picture.suptitle(
        f"{title}\n", x=0.01, y=1.0, ha="left", va="bottom", fontsize=12, fontweight="bold"
    )
    note = f"{ENVIRONMENTS[env].title}, {date}medians of {rounds} rounds, bars: lowest to highest"
    picture.text(0.01, 1.005, note, ha="left", va="bottom", color="#606060")


def _time_unit(results: Results, env: str, figure: str) -> str:
    """What time is counted in: nanoseconds or instructions."""
    return next(r.unit for r in results.of(env, figure) if r.unit in ("ns", "instructions"))


def _time_label(unit: str) -> str:
    return "median time of a call" if unit == "ns" else "instructions of a call, median"


def _bytes_axis(axes: Axes) -> None:
    """A logarithmic axis of sizes, with a place for 0."""
    axes.set_xscale("symlog", base=2, linthresh=64, linscale=0.8)
    shown = {0: "0", 64: "64", 256: "256", 1024: "1 Ki", 4096: "4 Ki", 16384: "16 Ki"}
    shown |= {65536: "64 Ki", 1 << 20: "1 Mi"}
    axes.xaxis.set_major_locator(FixedLocator(list(shown)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: shown.get(round(x), "")))


def _log_axis(axes: Axes, unit: str, which: str = "y") -> None:
    """A logarithmic axis, labelled with units; a short one between the powers of ten, too."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    if high / low < 300:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value, unit)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _plain(value: float, unit: str) -> str:
    """A label of an axis: a power of ten needs no figures after the point."""
    shown = text(value, unit)
    number, _, rest = shown.partition(" ")
    return f"{float(number):g} {rest}".strip()


def _line(axes: Axes, records: Sequence[Record], peer: str, label: str = "") -> None:
    style = STYLES[peer]
    axes.errorbar(
        [record.x for record in records],
        [record.median for record in records],
        yerr=_bars(records),
        color=style.colour,
        marker=style.marker,
        markersize=4.5,
        linestyle=style.line,
        linewidth=style.width,
        elinewidth=0.8,
        capsize=2,
        clip_on=False,
        label=label or PEERS[peer],
        zorder=3 if peer.startswith("kccm") else 2,
    )


def _bars(records: Sequence[Record]) -> list[list[float]]:
    return [
        [record.median - record.spread[0] for record in records],
        [record.spread[1] - record.median for record in records],
    ]


def _label_ends(axes: Axes, ends: Iterable[tuple[float, str, str]], gap: float) -> None:
    """Name lines at their right ends, moved apart so that no name covers another.

    ``ends`` are heights, names and colours, ``gap`` the least distance, as a share of the axis.
    """
    low, high = (math.log(limit) for limit in axes.get_ylim())
    wanted = sorted(((math.log(y) - low) / (high - low), name, colour) for y, name, colour in ends)
    if not wanted:
        return
    places = _apart([place for place, _, _ in wanted], gap)
    for (end, name, colour), place in zip(wanted, places):
        axes.annotate(
            name,
            xy=(1.0, end),
            xytext=(1.05, place),
            xycoords="axes fraction",
            color=colour,
            va="center",
            fontsize=8.5,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 4,
            },
            annotation_clip=False,
        )


def _label_point(axes: Axes, record: Record, name: str, colour: str) -> None:
    """Name a line that ends before the others, where it ends."""
    axes.annotate(
        name,
        xy=(record.x, record.median),
        xytext=(7, -3),
        textcoords="offset points",
        color=colour,
        va="top",
        fontsize=8.5,
        path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
        zorder=5,
    )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved as little as need be for ``gap`` between them."""
    groups: list[tuple[float, list[float]]] = []
    for place in places:
        groups.append((place, [place]))
        # Groups that touch become one, in the middle of where its members would be.
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            members = groups[-2][1] + groups[-1][1]
            groups[-2:] = [(sum(members) / len(members), members)]
    return [
        _bottom(group, gap) + index * gap for group in groups for index in range(len(group[1]))
    ]


def _bottom(group: tuple[float, list[float]], gap: float) -> float:
    return group[0] - gap * (len(group[1]) - 1) / 2


def _top(group: tuple[float, list[float]], gap: float) -> float:
    return group[0] + gap * (len(group[1]) - 1) / 2


def _grid(
    rows: int, columns: int, width: float, height: float, same: bool = False
) -> tuple[Figure, list[Axes]]:
    """A picture of several parts, which may have the same heights."""
    picture, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, sharey=same
    )
    return picture, [one for row in axes for one in row]


# Figures 7 and 8.


def _figure_7(results: Results, env: str) -> Figure:
    picture, (axes,) = _grid(1, 1, 7.6, 5.6)
    ends = []
    for peer in (*RIVALS, LONG, ASYNC, COPYING, SHORT, SOFTIRQ):
        records = results.of(env, "7", peer)
        if records:
            _line(axes, records, peer)
            name = PEERS[peer] + (f"\n({PAPER[peer]})" if peer in PAPER else "")
            if records[-1].x == max(plan.SIZES):
                ends.append((records[-1].median, name, STYLES[peer].colour))
            else:
                _label_point(axes, records[-1], name, STYLES[peer].colour)
    unit = _time_unit(results, env, "7")
    _bytes_axis(axes)
    _log_axis(axes, unit)
    axes.set_xlim(0, 1 << 20)
    axes.axvline(PAPER_CROSSING, color="#808080", linestyle=(0, (2, 2)), linewidth=1)
    axes.annotate(
        "paper: from 3000 B up, KCCM\nwith reply is ahead of Sun RPC",
        xy=(PAPER_CROSSING, 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color="#606060",
    )
    axes.set_xlabel("arguments, and reply (asynchronous: arguments alone), bytes")
    axes.set_ylabel(_time_label(unit))
    _label_ends(axes, ends, 0.068)
    picture.tight_layout()
    _titled(results, env, "7", "Figure 7: time of a remote call against size", picture)
    return picture


def _figure_8(results: Results, env: str) -> Figure:
    there = [us for us in plan.SERVICE_US if results.of(env, "8", variant=plan.service_variant(us))]
    rows = (len(there) + 1) // 2
    picture, all_axes = _grid(rows, min(2, len(there)), 9.5, 3.9 * rows, same=True)
    for axes, us in zip(all_axes, there):
        for peer in (LONG, SHORT, SOFTIRQ):
            records = results.of(env, "8", peer, plan.service_variant(us))
            if records:
                paper = f" ({PAPER_8[peer]})" if peer in PAPER_8 else ""
                _line(axes, records, peer, PEERS[peer] + paper)
        _bytes_axis(axes)
        axes.set_xlim(0, 1 << 20)
        axes.set_title("empty handler" if us == 0 else f"handler takes {us} µs")
        axes.annotate(
            "\n".join(crossings.told(results, env, us)),
            xy=(0.99, 0.03),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            fontsize=7,
            color="#606060",
            # An outline of the letters would be many times as long.
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            zorder=4,
        )
        if us >= 10:
            axes.axhline(us * 1000, color="#808080", linestyle=(0, (2, 2)), linewidth=1)
            axes.annotate(
                "the handler alone",
                xy=(0.99, us * 1000),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color="#606060",
                fontsize=8,
            )
        axes.set_xlabel("arguments, and reply, bytes")
    unit = _time_unit(results, env, "8")
    _log_axis(all_axes[0], unit)
    low, high = all_axes[0].get_ylim()
    # Room for what is said of the crossings.
    all_axes[0].set_ylim(low / 6, high)
    for axes in all_axes[:: min(2, len(there))]:
        axes.set_ylabel(_time_label(unit))
    all_axes[0].legend(frameon=False, loc="upper left")
    for axes in all_axes[len(there) :]:
        axes.set_visible(False)
    picture.tight_layout()
    picture.text(0.01, 0.0, PAPER_FOUND_8, ha="left", va="top", fontsize=8, color="#606060")
    title = "Figure 8: handlers of the classes short, softirq and long"
    _titled(results, env, "8", title, picture)
    return picture


# The others.


def _throughput(results: Results, env: str) -> Figure:
    sizes = sorted({record.x for record in results.of(env, "throughput")})
    picture, all_axes = _grid(1, len(sizes), 10.5, 3.6)
    titles = {64: "64 B: messages a second", 65536: "64 KiB: bytes a second"}
    titles[1 << 20] = "1 MiB: bytes a second"
    for axes, size in zip(all_axes, sizes):
        records = [r for r in results.of(env, "throughput") if r.x == size]
        _throughput_bars(axes, records, named=axes is all_axes[0])
        axes.set_title(titles.get(size, str(size)))
    handles = [plt.Rectangle((0, 0), 1, 1, color="#606060", alpha=a) for a in (1.0, 0.45)]
    labels = [plan.senders_variant(senders) for senders in plan.SENDERS]
    all_axes[-1].legend(handles, labels, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    picture.tight_layout()
    _titled(results, env, "throughput", "Throughput, one way", picture)
    return picture


def _throughput_bars(axes: Axes, records: Sequence[Record], named: bool) -> None:
    peers = [peer for peer in PEERS if peer in {record.peer for record in records}]
    variants = [plan.senders_variant(senders) for senders in plan.SENDERS]
    for row, peer in enumerate(peers):
        for column, variant in enumerate(variants):
            one = next((r for r in records if (r.peer, r.variant) == (peer, variant)), None)
            if one is None:
                continue
            y = row + (column - 0.5) * 0.38
            axes.barh(
                y,
                one.median,
                height=0.36,
                color=STYLES[peer].colour,
                alpha=1.0 if column == 0 else 0.45,
            )
            axes.errorbar([one.median], [y], xerr=_bars([one]), **_WHISKERS)
            axes.annotate(
                text(one.median, one.unit),
                xy=(one.spread[1], y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    _rows(axes, [PEERS[peer] for peer in peers], named)
    _bars_axis(axes, max(record.spread[1] for record in records) * 1.45)


def _rows(axes: Axes, names: Sequence[str], named: bool = True) -> None:
    """Name the rows of a horizontal picture, the first on top."""
    axes.set_yticks(range(len(names)), [name if named else "" for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _bars_axis(axes: Axes, length: float) -> None:
    """The axis of bars that say themselves how long they are."""
    axes.set_xlim(0, length or 1)
    axes.xaxis.set_major_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)


def _inflight(results: Results, env: str) -> Figure:
    picture, all_axes = _grid(1, 2, 10.5, 4.4)
    unit = _time_unit(results, env, "inflight")
    parts = (("rate", "1/s", "calls a second"), ("p50", unit, _time_label(unit)))
    for axes, (metric, unit, title) in zip(all_axes, parts):
        ends = []
        for peer in PEERS:
            records = results.of(env, "inflight", peer, metric=metric)
            if records:
                _line(axes, records, peer)
                ends.append((records[-1].median, PEERS[peer], STYLES[peer].colour))
        axes.set_xscale("log", base=2)
        axes.set_xticks(plan.DEPTHS, [str(depth) for depth in plan.DEPTHS])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0.9, max(plan.DEPTHS))
        _log_axis(axes, unit)
        axes.set_title(title)
        axes.set_xlabel("calls in flight")
        _label_ends(axes, ends, 0.055)
    picture.tight_layout(w_pad=1)
    _titled(results, env, "inflight", "Calls of 64 bytes in flight", picture)
    return picture


_PERCENTILES = {"p50": "o", "p99": "s", "p99.9": "D"}
_LOADED = {"": "-", BACKGROUND: "--", BULK: ":"}


def _tails(results: Results, env: str) -> Figure:
    peers = [peer for peer in PEERS if results.of(env, "tails", peer)]
    picture, (axes,) = _grid(1, 1, 8.6, 0.55 * len(peers) + 1.4)
    for row, peer in enumerate(peers):
        for variant, shift in (("", -0.24), (BACKGROUND, 0.0), (BULK, 0.24)):
            _tail(axes, results.of(env, "tails", peer, variant), row + shift)
    _rows(axes, [PEERS[peer] for peer in peers])
    _log_axis(axes, _time_unit(results, env, "tails"), "x")
    for metric, marker in _PERCENTILES.items():
        axes.plot([], [], marker, color="#404040", label=metric)
    for variant, label in (
        ("", "alone"),
        (BACKGROUND, "during a bulk transfer\non the same pair"),
        (BULK, "the same by\nkccm_send_bulk()"),
    ):
        axes.plot([], [], _LOADED[variant], color="#404040", label=label)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_xlabel(
        "time of a call of 64 bytes\n(p99.9: of all rounds' calls together where a round has few)"
    )
    picture.tight_layout()
    _titled(results, env, "tails", "Tails: a call of 64 bytes, alone and during a bulk transfer", picture)
    return picture


def _tail(axes: Axes, records: Sequence[Record], y: float) -> None:
    """One peer's percentiles, one after the other on a line."""
    if not records:
        return
    colour = STYLES[records[0].peer].colour
    variant = records[0].variant
    medians = [record.median for record in records]
    axes.plot(medians, [y] * len(medians), linestyle=_LOADED[variant], color=colour, linewidth=1)
    for record in records:
        axes.errorbar(
            [record.median],
            [y],
            xerr=_bars([record]),
            marker=_PERCENTILES[record.metric],
            markersize=5,
            color=colour,
            markerfacecolor="white" if variant else colour,
            elinewidth=0.8,
            capsize=2,
        )


def _cost(results: Results, env: str) -> Figure:
    uses = [use for use in plan.COSTS if results.of(env, "cost", metric=use.metric)]
    titles = {
        "cpu": "CPU time of all processors",
        "switches": "context switches",
        "wakeups": "wake-ups",
        "allocations": "allocations",
        "pages": "allocations of pages",
    }
    # First what calls cost, then what messages do.
    rows = [
        (peer, variant)
        for variant in ("", plan.ONE_WAY)
        for peer in PEERS
        if results.of(env, "cost", peer, variant)
    ]
    names = [PEERS[peer] + (f", {variant}" if variant else "") for peer, variant in rows]
    picture, all_axes = _grid(1, len(uses), 2.4 * len(uses) + 1.5, 0.3 * len(rows) + 0.9)
    for axes, use in zip(all_axes, uses):
        for row, (peer, variant) in enumerate(rows):
            one = results.one(env, "cost", peer, SMALL, variant, use.metric)
            if one is None:
                continue
            axes.barh(row, one.median, height=0.62, color=STYLES[peer].colour)
            axes.errorbar([one.median], [row], xerr=_bars([one]), **_WHISKERS)
            shown = text(one.median, cost_unit(one.unit))
            place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(shown, xy=(one.spread[1], row), fontsize=7.5, **place)
        _rows(axes, names, axes is all_axes[0])
        highest = max(r.spread[1] for r in results.of(env, "cost", metric=use.metric))
        _bars_axis(axes, highest * 1.35)
        axes.set_title(titles[use.metric])
    picture.tight_layout()
    title = "What a call of 64 bytes costs, and a message one way"
    _titled(results, env, "cost", title, picture)
    return picture


def _readable(axes: Axes, values: Iterable[float]) -> list[float]:
    """Of these values on the vertical axis, those whose names do not cover each other."""
    place = axes.transScale + axes.transLimits
    found: list[float] = []
    for value in sorted(values):
        if not found or place.transform((1, value))[1] - place.transform((1, found[-1]))[1] > 0.06:
            found.append(value)
    return found


def _scale(results: Results, env: str) -> Figure:
    uses = [use for use in plan.SCALES if results.of(env, "scale", metric=use.metric)]
    titles = {
        "connect": "until fully connected",
        "memory per node": "memory per node",
        "memory per connected node": "memory per connected node",
        "memory per connection": "memory per connection",
        "idle CPU": "CPU while idle, ppm",
    }
    picture, all_axes = _grid(1, len(uses), 3.0 * len(uses), 3.4)
    for axes, use in zip(all_axes, uses):
        records = results.of(env, "scale", metric=use.metric)
        _line(axes, records, "kccm")
        axes.set_xscale("log", base=2)
        axes.set_xticks([r.x for r in records], [str(record.x) for record in records])
        axes.xaxis.set_minor_locator(NullLocator())
        if all(record.spread[0] > 0 for record in records):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            if high / low < 4:
                axes.set_ylim(low / 2, high * 2)
        # Even where all values lie within one power of ten, some of them are named.
        axes.yaxis.set_major_locator(FixedLocator(_readable(axes, {r.median for r in records})))
        axes.yaxis.set_minor_locator(NullLocator())
        unit = use.unit.replace("ppm", "")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _, unit=unit: text(v, unit)))
        axes.set_title(titles[use.metric])
        axes.set_xlabel("nodes")
    picture.tight_layout()
    _titled(results, env, "scale", ENVIRONMENTS[env].scale, picture)
    return picture


_DRAWERS: dict[str, Callable[[Results, str], Figure]] = {
    "7": _figure_7,
    "8": _figure_8,
    "throughput": _throughput,
    "inflight": _inflight,
    "tails": _tails,
    "cost": _cost,
    "scale": _scale,
}
