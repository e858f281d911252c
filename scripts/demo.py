#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Shows KCCM at work on a cluster of QEMU machines.

Each step does one thing, says what it is and how long it took, and shows what
came of it. The exit status is 0 only if all of it was as it should be.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster import Cluster, HarnessError, address
from cluster import settings
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

CLUSTER = "demo"
# How often what is shown live is looked at again.
REFRESH_SECONDS = 0.4


class Wrong(Exception):
    """KCCM did not do what it should."""


@dataclass
class Demo:
    """The cluster, the terminal, and what has gone wrong so far."""

    cluster: Cluster
    console: Console
    step_number: int = 0
    wrong: list[str] = field(default_factory=list)
    # Nodes that were killed and are not back.
    dead: set[int] = field(default_factory=set)

    @property
    def nodes(self) -> range:
        return range(len(self.cluster))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Every node with every other, both ways."""
        return ((a, b) for a in self.nodes for b in self.nodes if a != b)

    def check(self, right: bool, what: str) -> None:
        """Say so if something is not as it should be, and go on."""
        if not right:
            self.wrong.append(what)
            self.console.print(f"     [bold red]wrong:[/] {what}")

    def say(self, text: str) -> None:
        self.console.print(f"     {text}")

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step of the demonstration: its title, and at its end the time it took."""
        self.step_number += 1
        self.console.print()
        self.console.print(f" [bold cyan]{self.step_number:>2}[/]  [bold]{title}[/]")
        begin = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - begin
            self.console.print(f"     [dim]{took:.1f} s[/]")

    @contextmanager
    def live(self, first: Table) -> Iterator[Callable[[Table], None]]:
        """A table that changes while it is shown; where nothing can, it is printed at the end."""
        if self.console.is_terminal:
            with Live(first, console=self.console, refresh_per_second=4) as live:
                yield live.update
            return
        last = [first]
        yield lambda table: last.__setitem__(0, table)
        self.console.print(last[0])

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Something that takes a while and has nothing to show meanwhile."""
        begin = time.monotonic()
        with self.console.status(f"{what} ..."):
            yield
        self.say(f"{what} [dim]({time.monotonic() - begin:.1f} s)[/]")


# ---- 1. The fully connected state (P10).

_CONNECTED = re.compile(r"\[ *(\d+\.\d+)\] kccm: node (\d+): connected to node (\d+) at (\S+)")


def state_table(demo: Demo, states: dict[tuple[int, int], str]) -> Table:
    """Who sees whom in which state; a row is a node, a column its peer."""
    table = Table(show_edge=False, pad_edge=False, box=None)
    table.add_column("     ")
    for peer in demo.nodes:
        table.add_column(f"node {peer}", justify="center", min_width=14)
    for node in demo.nodes:
        cells = [state_cell(demo, node, peer, states) for peer in demo.nodes]
        table.add_row(f"     node {node}", *cells)
    return table


def state_cell(demo: Demo, node: int, peer: int, states: dict[tuple[int, int], str]) -> Text:
    if node == peer:
        return Text("·", style="dim")
    state = states.get((node, peer), "-")
    if peer in demo.dead and state not in ("up", "-"):
        # sysfs says what is being done about it: connecting, backoff or listening.
        state = "down"
    arrow = "→" if node < peer else "←"
    style = {"up": "green", "-": "dim", "down": "red"}.get(state, "yellow")
    return Text(f"{arrow} {state}", style=style)


def read_states(demo: Demo) -> dict[tuple[int, int], str]:
    states: dict[tuple[int, int], str] = {}
    for node in demo.cluster.alive():
        if not demo.cluster[node].loaded("kccm"):
            continue
        for peer, attributes in demo.cluster.peer_table(node).items():
            states[node, peer] = attributes.get("state", "-")
    return states


def watch_states(demo: Demo, done: Callable[[dict[tuple[int, int], str]], bool], seconds: float) -> None:
    """Show the states until they are as wanted."""
    deadline = time.monotonic() + seconds * settings.timeout_scale()
    states = read_states(demo)
    with demo.live(state_table(demo, states)) as show_table:
        while not done(states):
            if time.monotonic() > deadline:
                raise Wrong(f"the states did not become what they should within {seconds:g} s")
            time.sleep(REFRESH_SECONDS)
            states = read_states(demo)
            show_table(state_table(demo, states))


def all_up(demo: Demo) -> Callable[[dict[tuple[int, int], str]], bool]:
    return lambda states: all(states.get(pair) == "up" for pair in demo.pairs())


def form(demo: Demo) -> None:
    """Load KCCM everywhere, and watch the connections form."""
    demo.say("Each node connects (→) to the nodes above it and listens (←) to those below.")
    demo.cluster.load_all()
    watch_states(demo, all_up(demo), 30)
    steps = len(demo.cluster) - 1
    for node in demo.nodes:
        log = demo.cluster[node].dmesg()
        peers = [int(m[3]) for m in _CONNECTED.finditer(log) if int(m[2]) == node]
        up = sum(1 for peer in peers if peer > node)
        demo.check(len(peers) == steps, f"node {node} made {len(peers)} connections, not {steps}")
        demo.say(f"node {node}: {steps} connections: {up} made, {steps - up} accepted")


# ---- 2. Messages: queued, and handed over (P6, P7).


def shell(command: str) -> str:
    """The shell command that gives the sample module a command and prints what comes of it."""
    return f"exec 3<>/dev/kccm_demo; echo '{command}' >&3 && cat <&3"


def tell(demo: Demo, node: int, command: str) -> str:
    """Give the sample module on a node a command; what came of it."""
    return demo.cluster[node].run(shell(command), timeout=60).out.strip()


def stat(demo: Demo, node: int, name: str) -> int:
    values = dict(line.split() for line in demo.cluster.attribute(node, "stats").splitlines())
    return int(values[name])


_RECEIVED = re.compile(r"source=(\d+) tag=(\d+) len=(\d+) waited_us=(\d+) text=(.*)")


def receive_result(text: str) -> re.Match[str]:
    match = _RECEIVED.search(text)
    if not match:
        raise Wrong(f"a receive said: {text!r}")
    return match


def show_message(demo: Demo, figure: str, sender: int, receiver: int, text: str, how: str) -> None:
    demo.say(
        f"[bold]{figure}[/]  node {sender} sends [green]\"{text}\"[/], node {receiver} {how}"
    )


def messages(demo: Demo) -> None:
    sender, receiver = 0, len(demo.cluster) - 1
    queued = stat(demo, receiver, "messages_queued")
    text = "here before you asked"
    tell(demo, sender, f"send {receiver} 2 {text}")
    arrived = f"[ $(sed -n 's/messages_queued //p' /sys/kernel/kccm/stats) -gt {queued} ]"
    demo.cluster[receiver].wait_until(arrived, 10)
    got = receive_result(tell(demo, receiver, f"recv {sender} 2 5000"))
    demo.check(got[5] == text, f"node {receiver} received {got[5]!r}")
    show_message(
        demo, "figure 2", sender, receiver, text,
        f"asks later: it was [cyan]queued[/], and taken in {got[4]} us without sleeping",
    )

    handed = stat(demo, receiver, "messages_handed_over")
    waiting = stat(demo, receiver, "receivers_waiting")
    job = demo.cluster[receiver].spawn(shell(f"recv {sender} 3 10000"))
    asleep = f"[ $(sed -n 's/receivers_waiting //p' /sys/kernel/kccm/stats) -gt {waiting} ]"
    demo.cluster[receiver].wait_until(asleep, 10)
    text = "this is what you wait for"
    tell(demo, sender, f"send {receiver} 3 {text}")
    got = receive_result(job.wait(20).out)
    demo.check(got[5] == text, f"node {receiver} received {got[5]!r}")
    demo.check(
        stat(demo, receiver, "messages_handed_over") > handed,
        "the message was not handed over to the sleeping receiver",
    )
    show_message(
        demo, "figure 3", sender, receiver, text,
        f"sleeps for it: [cyan]handed over[/] after {int(got[4]) / 1000:.0f} ms of sleep",
    )


# ---- 3. Remote calls between every pair (P8, P9).

_TIMES = re.compile(r"min_ns=(\d+) median_ns=(\d+)")
CALLS = {
    "short": "asynchronous, its handler run by the listener, which calls back",
    "long": "asynchronous, its handler run in a thread, which calls back",
    "sync": "synchronous, with reply",
}
ROUNDS = 50


def rcalls(demo: Demo) -> None:
    demo.say(f"Round trips of 64 bytes between every pair, median of {ROUNDS}, in ms; best in brackets:")
    table = Table(show_edge=False, box=None, pad_edge=False)
    table.add_column("     ")
    for how in CALLS:
        table.add_column(how, justify="right", min_width=14)
    with demo.live(table):
        for a, b in demo.pairs():
            cells = []
            for how in CALLS:
                times = _TIMES.search(tell(demo, a, f"ping {b} {ROUNDS} 64 {how}"))
                if not times:
                    raise Wrong(f"no {how} call from node {a} to node {b}")
                cells.append(f"{int(times[2]) / 1e6:.2f} [dim]({int(times[1]) / 1e6:.2f})[/]")
            table.add_row(f"     node {a} → node {b}", *cells)
    for how, what in CALLS.items():
        demo.say(f"[dim]{how}: {what}[/]")


# ---- 4. An algorithm from user space: Ricart and Agrawala's mutual exclusion.

LOCK = "/sys/kernel/debug/kccm_lock"
INCREMENTS = 100


@dataclass
class Counter:
    """What a node's copy of the counter says."""

    value: int
    lost: int
    run: str
    done: int
    wanted: int
    # By node: increments in the counter, and acknowledged ones.
    count: dict[int, int]
    acked: dict[int, int]


def read_counter(demo: Demo, node: int) -> Counter:
    text = demo.cluster[node].read(f"{LOCK}/status")

    def number(name: str) -> int:
        match = re.search(rf"^(?:.* )?{name}=(\d+)", text, re.MULTILINE)
        if not match:
            raise Wrong(f"no {name} in the status of node {node}:\n{text}")
        return int(match[1])

    run = re.search(r"^run=(\S+)", text, re.MULTILINE)
    rows = re.findall(r"^node=(\d+) count=(\d+) acked=(\d+)", text, re.MULTILINE)
    return Counter(
        value=number("count"),
        lost=number("lost"),
        run=run[1] if run else "?",
        done=number("done"),
        wanted=number("wanted"),
        count={int(node): int(count) for node, count, _ in rows},
        acked={int(node): int(acked) for node, _, acked in rows},
    )


def counter_table(demo: Demo, counters: dict[int, Counter]) -> Table:
    table = Table(show_edge=False, box=None, pad_edge=False)
    table.add_column("     ")
    for column in ("increments made", "counter as seen here"):
        table.add_column(column, justify="right")
    for node in demo.nodes:
        counter = counters.get(node)
        if counter is None:
            table.add_row(f"     node {node}", "[red]gone[/]", "")
            continue
        bar_length = 20 * counter.done // max(counter.wanted, 1)
        bar = f"[green]{'━' * bar_length}[/][dim]{'━' * (20 - bar_length)}[/]"
        table.add_row(
            f"     node {node}", f"{bar} {counter.done}/{counter.wanted}", str(counter.value)
        )
    return table


def read_counters(demo: Demo) -> dict[int, Counter]:
    return {node: read_counter(demo, node) for node in demo.cluster.alive()}


def begin_increments(demo: Demo, nodes: Iterable[int]) -> None:
    demo.cluster.run_all({node: f"echo 'run {INCREMENTS}' > {LOCK}/control" for node in nodes})


def watch_increments(
    demo: Demo, done: Callable[[dict[int, Counter]], bool], seconds: float = 60
) -> dict[int, Counter]:
    """Show the counter until it is as wanted."""
    deadline = time.monotonic() + seconds * settings.timeout_scale()
    counters = read_counters(demo)
    with demo.live(counter_table(demo, counters)) as show_table:
        while not done(counters):
            if time.monotonic() > deadline:
                raise Wrong(f"the increments were not made within {seconds:g} s")
            time.sleep(REFRESH_SECONDS)
            counters = read_counters(demo)
            show_table(counter_table(demo, counters))
        # The nodes were read one after the other: now that all are done, they agree.
        counters = read_counters(demo)
        show_table(counter_table(demo, counters))
    return counters


def finished(counters: dict[int, Counter]) -> bool:
    return all(counter.done >= counter.wanted for counter in counters.values())


def counter_faults(counters: dict[int, Counter], killed: int | None) -> dict[int, list[str]]:
    """What is wrong with the counter as each node has it: nothing lost, nothing counted twice.

    A node that was killed may have got one increment into the counter that
    nobody was told to be complete, see samples/lock/counter.c.
    """
    value = max(counter.value for counter in counters.values())
    faults: dict[int, list[str]] = {}
    for node, counter in counters.items():
        wrong = faults[node] = []
        if counter.value != value:
            wrong.append(f"it is at {counter.value}, but {value} elsewhere")
        if counter.lost:
            wrong.append(f"{counter.lost} increments were found lost")
        if counter.value != sum(counter.count.values()):
            wrong.append(f"{counter.value} is not the sum of {counter.count}")
        for other, count in counter.count.items():
            spare = 1 if other == killed else 0
            acked = counter.acked[other]
            if not acked <= count <= acked + spare:
                wrong.append(f"{count} increments of node {other}, {acked} acknowledged")
    return faults


def check_sum(demo: Demo, counters: dict[int, Counter], killed: int | None, total: int) -> str:
    """Whether the counter is right on every node; says so if not, and what the sum is."""
    for node, faults in counter_faults(counters, killed).items():
        for fault in faults:
            demo.check(False, f"the counter of node {node}: {fault}")
    value = max(counter.value for counter in counters.values())
    if killed is None:
        demo.check(value == total, f"the counter is {value}, not {total}")
    return str(value)


def algorithm(demo: Demo) -> None:
    demo.say(
        "Every increment reads the counter on all nodes, adds one, and writes it to all: "
        "without the lock, increments would be lost."
    )
    for machine in demo.cluster:
        machine.insmod("kccm_lock")
    begin_increments(demo, demo.nodes)
    counters = watch_increments(demo, finished)
    total = INCREMENTS * len(demo.cluster)
    value = check_sum(demo, counters, None, total)
    demo.say(f"{len(demo.cluster)} × {INCREMENTS} increments, and the counter is [bold]{value}[/]")


# ---- 5. A node dies, and comes back (P11).

VICTIM = 1


def kill_a_node(demo: Demo, victim: int) -> None:
    """End a node's machine without warning, and watch the others find out."""
    others = [node for node in demo.nodes if node != victim]
    begin = time.monotonic()
    demo.cluster.kill(victim)
    demo.dead.add(victim)
    demo.say(f"node {victim}'s machine was ended by SIGKILL: no word, no FIN")
    watch_states(demo, lambda states: all(states.get((n, victim)) != "up" for n in others), 30)
    demo.say(
        f"the others show it [red]down[/] after {time.monotonic() - begin:.1f} s "
        "[dim](dead_ms is 3000: silence for so long is death)[/]"
    )
    for a in others:
        for b in others:
            if a != b:
                demo.check(demo.cluster.peer_state(a, b) == "up", f"node {a} lost node {b}")


def bring_it_back(demo: Demo, victim: int) -> None:
    """Boot the node again, and watch the fully connected state come back."""
    with demo.waiting(f"node {victim} boots"):
        demo.cluster.boot([victim])
    demo.cluster.load(victim)
    watch_states(demo, all_up(demo), 30)
    demo.dead.discard(victim)
    demo.cluster[victim].insmod("kccm_demo")
    demo.cluster[victim].insmod("kccm_lock")


def death_and_return(demo: Demo) -> None:
    victim = VICTIM
    others = [node for node in demo.nodes if node != victim]
    before = read_counter(demo, 0).value
    begin_increments(demo, demo.nodes)
    watch_increments(demo, lambda counters: counters[0].value > before + INCREMENTS // 2)
    kill_a_node(demo, victim)
    if len(others) > len(demo.cluster) // 2:
        watch_increments(demo, finished)
        demo.say("the others have made all their increments without it")
    else:
        demo.say("the other waits: half of the nodes are no majority, so it must not enter alone")
    bring_it_back(demo, victim)
    demo.say("The fully connected state is back. Once more, the returned node too:")
    watch_increments(demo, lambda counters: all(c.run != "running" for c in counters.values()))
    begin_increments(demo, demo.nodes)
    counters = watch_increments(demo, finished)
    value = check_sum(demo, counters, victim, 0)
    demo.check(
        counters[0].count[victim] >= counters[0].acked[victim] >= 2 * INCREMENTS,
        "the returned node's increments are not all there",
    )
    demo.say(f"nothing lost, nothing twice: the counter is [bold]{value}[/]")


# ---- 6. The closing table.


def closing_table(demo: Demo) -> Table:
    table = Table(title="What each node says of each peer", title_style="bold")
    for column in ("node", "peer", "state"):
        table.add_column(column)
    for column in ("messages out", "in", "rcalls out", "in", "bytes out", "in", "reconnects"):
        table.add_column(column, justify="right")
    for node in demo.nodes:
        for peer, seen in sorted(demo.cluster.peer_table(node).items()):
            state = seen["state"]
            demo.check(state == "up", f"node {node} sees node {peer} {state}")
            counts = [seen[f"{way}_{what}"] for what in ("messages", "rcalls") for way in ("tx", "rx")]
            table.add_row(
                str(node),
                str(peer),
                Text(state, style="green" if state == "up" else "red"),
                *counts,
                size(seen["tx_bytes"]),
                size(seen["rx_bytes"]),
                seen["reconnects"],
            )
        table.add_section()
    return table


def size(text: str) -> str:
    number = float(text)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return text


def counters_table(demo: Demo) -> Table:
    """Whether the algorithm's result is right, node by node."""
    counters = read_counters(demo)
    faults = counter_faults(counters, VICTIM)
    table = Table(title="The counter under the lock", title_style="bold")
    table.add_column("node")
    for column in ("counter", "made here", "acknowledged", "lost"):
        table.add_column(column, justify="right")
    table.add_column("result")
    for node in demo.nodes:
        counter = counters[node]
        demo.check(not faults[node], f"node {node}'s counter: {'; '.join(faults[node])}")
        table.add_row(
            str(node),
            str(counter.value),
            str(counter.count.get(node, 0)),
            str(counter.acked.get(node, 0)),
            str(counter.lost),
            Text("wrong", style="red") if faults[node] else Text("right", style="green"),
        )
    return table


def closing(demo: Demo) -> None:
    demo.console.print(closing_table(demo))
    demo.console.print(counters_table(demo))
    for machine in demo.cluster:
        machine.rmmod("kccm_lock", "kccm_demo", "kccm")
    demo.say("all modules unloaded, no fault in any kernel's log")
    demo.cluster.assert_clean()


# ---- All of it.

STEPS: list[tuple[str, Callable[[Demo], None]]] = [
    ("The nodes connect: every pair, at once, the lower id to the higher", form),
    ("A message that waits for its receiver, and a receiver that waits for its message", messages),
    ("Remote calls between every pair", rcalls),
    ("Ricart and Agrawala's distributed mutual exclusion (1981), in the kernel", algorithm),
    ("One node is killed without warning, the others carry on, and it comes back", death_and_return),
    ("What each node has counted", closing),
]


def show(demo: Demo) -> None:
    with demo.step(f"{len(demo.cluster)} QEMU machines boot ({demo.cluster.accel})"):
        demo.cluster.boot()
        demo.say(f"addresses {address(0)} to {address(len(demo.cluster) - 1)}, on a switch of their own")
        demo.say(f"logs: {demo.cluster.folder}")
    for title, run in STEPS:
        with demo.step(title):
            if run is messages:
                for machine in demo.cluster:
                    machine.insmod("kccm_demo")
            run(demo)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, help="how many machines, 2 to 8")
    arguments = parser.parse_args()
    if not 2 <= arguments.nodes <= 8:
        parser.error("NODES must be 2 to 8")
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    begin = time.monotonic()
    console.print(Panel(f"[bold]KCCM[/]: a cluster of {arguments.nodes} kernels", expand=False))
    cluster = Cluster(arguments.nodes, name=CLUSTER)
    demo = Demo(cluster, console)
    try:
        show(demo)
    except (Wrong, HarnessError) as error:
        demo.wrong.append(str(error))
        console.print(f"[bold red]{error}[/]", soft_wrap=True)
    finally:
        cluster.close()
    took = time.monotonic() - begin
    console.print()
    if demo.wrong:
        console.print(f"[bold red]Not as it should be[/] ({took:.0f} s). Logs: {cluster.folder}")
        return 1
    console.print(f"[bold green]All as it should be[/] ({took:.0f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
