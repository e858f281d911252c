# SPDX-License-Identifier: GPL-2.0
"""The checker finds what it is there to find, and nothing else. No guests."""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import checker
import history
import pytest
from checker import Bounds, Checker, Verdict
from history import Flag, Kind, Record, Tag
from simulate import Histories, Simulation

HEADER = Path(__file__).with_name("history.h")


def judge(histories: Histories, bounds: Bounds | None = None) -> Verdict:
    """What the checker says."""
    judged = Checker(bounds)
    for node, records in histories.items():
        judged.add(node, records)
    return judged.check()


class Scribe:
    """Writes the history of one node by hand."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.records: list[Record] = []
        self.incarnation = 0
        self.lives = 0
        self.number = 0

    def write(self, kind: Kind, node: int | None = None, tag: int = 0, **fields: int) -> None:
        """One record."""
        self.records.append(Record(kind, self.node if node is None else node, tag, **fields))

    @property
    def place(self) -> int:
        """How many records the node has written."""
        return sum(record.kind < Kind.STARTING for record in self.records)

    def begin(self) -> None:
        """A new life."""
        self.lives += 1
        self.number = 0
        self.incarnation = 0x100 * (self.node + 1) + self.lives
        self.write(Kind.STARTING, number=self.lives)
        self.write(Kind.BEGIN, number=self.lives, incarnation=self.incarnation)
        self.write(Kind.READY)

    def starting(self, other: Scribe) -> None:
        """The host is about to start another node's next life."""
        self.write(Kind.STARTING, other.node, number=other.lives + 1)

    def up(self, other: Scribe, incarnation: int = 0) -> None:
        """Hear of another node."""
        self.write(Kind.UP, other.node, incarnation=incarnation or other.incarnation)

    def down(self, other: Scribe, incarnation: int = 0) -> None:
        """Hear of another node."""
        self.write(Kind.DOWN, other.node, incarnation=incarnation or other.incarnation)

    def start(self, kind: Kind, to: Scribe, tag: int) -> Record:
        """An operation that does not end yet."""
        self.number += 1
        record = Record(kind, to.node, tag, 0, 0, self.number, 0, self.number, 7 * self.number)
        self.records.append(record)
        return record

    def end(self, begun: Record, result: int = 0) -> None:
        """The end of an operation."""
        ends = {Kind.SEND: Kind.SENT, Kind.CALL: Kind.CALLED, Kind.CONFIRM: Kind.CONFIRMED}
        self.write(ends[Kind(begun.kind)], 0, number=begun.number, result=result)

    def replied(self, begun: Record, by: Scribe, result: int = 0, **fields: int) -> None:
        """The end of a synchronous call."""
        answer = {"length": begun.length, "crc": begun.crc, "incarnation": by.incarnation}
        answer |= fields
        self.write(Kind.REPLIED, 0, number=begun.number, result=result, **answer)

    def send(self, to: Scribe, tag: int = Tag.ANY, result: int = 0) -> Record:
        """A message, or an asynchronous call where the tag is a function."""
        begun = self.start(Kind.SEND if tag < Tag.SHORT else Kind.CALL, to, tag)
        self.end(begun, result)
        return begun

    def receive(self, source: Scribe, sent: Record, **fields: int) -> None:
        """A message or a call arrives."""
        came = {"number": sent.number, "length": sent.length, "crc": sent.crc}
        came["incarnation"] = source.incarnation
        kind = Kind.RECV if sent.kind in history.MESSAGES else Kind.RUN
        if kind == Kind.RECV:
            came["result"] = 1
        tag = fields.pop("tag", sent.tag)
        self.write(kind, source.node, tag, **(came | fields))

    def final(self, *others: Scribe) -> None:
        """The end of the run, with these being up."""
        for other in others:
            self.write(Kind.FINAL, other.node, incarnation=other.incarnation)


def pair() -> tuple[Scribe, Scribe]:
    """Two nodes that know each other, and that calls are answered."""
    a, b = Scribe(0), Scribe(1)
    a.begin()
    b.begin()
    for one, other in ((a, b), (b, a)):
        one.up(other)
        other.receive(one, one.send(other, Tag.READY))
    return a, b


def verdict(*scribes: Scribe, bounds: Bounds | None = None) -> Verdict:
    """What the checker says of histories written by hand."""
    return judge({scribe.node: scribe.records for scribe in scribes}, bounds)


def renew(node: Scribe, other: Scribe, died: Kind = Kind.DIED) -> None:
    """A node ends, is started again, and the other hears of it."""
    node.write(died)
    other.down(node)
    other.starting(node)
    node.begin()
    other.up(node)
    node.up(other)
    other.receive(node, node.send(other, Tag.READY))
    node.receive(other, other.send(node, Tag.READY))


# The two languages say the same.


def _enumerated(prefix: str) -> dict[str, int]:
    """The constants of history.h with a prefix, without it."""
    text = HEADER.read_text()
    found = re.findall(rf"^\s*(?:#define\s+)?{prefix}(\w+)\s*=?\s*(\d+),?\s", text, re.MULTILINE)
    return {name: int(value) for name, value in found}


def test_header() -> None:
    """history.h and history.py agree."""
    kinds = {kind.name: kind.value for kind in Kind if kind < Kind.STARTING}
    flags = {flag.name: flag.value for flag in Flag}
    named = _enumerated("HISTORY_")
    assert named.items() >= (kinds | flags).items()
    assert set(named) - set(kinds | flags) == {"OFFSET"}
    tags = _enumerated("TAG_")
    assert len(tags) == tags.pop("MESSAGES") + 1
    assert tags | _enumerated("FUNC_") == {tag.name: tag.value for tag in Tag}
    fields = {"__u8": "B", "__s32": "i", "__u32": "I", "__u64": "Q"}
    struct = re.search(r"struct history_record \{(.*?)\}", HEADER.read_text(), re.DOTALL)
    assert struct
    declared = re.findall(r"(__\w+) (\w+);", struct[1])
    assert "<" + "".join(fields[kind] for kind, _ in declared) == history.RECORD.format
    assert tuple(name for _, name in declared) == Record._fields


def test_files(tmp_path: Path) -> None:
    """A file has the records that were written; half a record at its end is none."""
    records = Simulation(1).run(200)[0]
    path = tmp_path / "node0.history"
    history.write(path, records)
    path.write_bytes(path.read_bytes() + records[0].pack()[:-1])
    assert [Record(*fields) for fields in history.read(path)] == records


# Histories that must pass.


def test_nothing() -> None:
    """Two nodes that have not done anything."""
    a, b = pair()
    a.final(b)
    b.final(a)
    assert verdict(a, b).good


def test_unloaded_one_after_the_other() -> None:
    """At the end a node is told that another has gone before it."""
    a, b = pair()
    a.final(b)
    b.final(a)
    a.down(b)
    assert verdict(a, b).good


def test_everything() -> None:
    """One of each kind."""
    a, b = pair()
    for tag in (Tag.ANY, Tag.SHORT, Tag.LONG, Tag.SOFTIRQ):
        b.receive(a, a.send(b, tag))
    for tag in (Tag.LONG, Tag.SOFTIRQ):
        call = a.start(Kind.SYNC, b, tag)
        b.receive(a, call)
        a.replied(call, b)
    failing = a.start(Kind.SYNC, b, Tag.SHORT)
    b.receive(a, failing)
    a.replied(failing, b, -errno.EREMOTEIO, length=0, crc=0)
    a.send(b, result=-errno.EAGAIN)
    sure = a.start(Kind.CONFIRM, b, Tag.EACH)
    b.receive(a, sure)
    a.end(sure)
    a.final(b)
    b.final(a)
    said = verdict(a, b)
    assert said.good
    assert said.counts["messages accepted"] + 1 == said.counts["messages delivered"] == 4
    assert said.counts["confirmed messages accepted"] == 1
    assert said.counts["synchronous calls replied"] == 3
    classes = [said.counts[f"{name} calls run"] for name in history.CLASSES]
    assert classes == [2, 2, 2] and said.counts["calls run"] == 6


def test_counts_of_calls() -> None:
    """Calls are counted by class, and those that are long, or run in softirq context, also by that."""
    a, b = pair()
    long_one = a.start(Kind.CALL, b, Tag.SOFTIRQ)._replace(length=40000)
    a.records[-1] = long_one
    a.end(long_one)
    b.receive(a, long_one, flags=Flag.SOFTIRQ)
    b.receive(a, a.send(b, Tag.SOFTIRQ), flags=Flag.SOFTIRQ)
    b.receive(a, a.send(b, Tag.SOFTIRQ))
    b.receive(a, a.send(b, Tag.BRIEF))
    said = verdict(a, b)
    assert said.good
    assert {name: count for name, count in said.counts.items() if "calls" in name} == {
        "calls accepted": 4,
        "calls run": 4,
        "short calls run": 1,
        "softirq calls run": 3,
        "softirq calls of more than 16 KiB run": 1,
        "softirq calls run in softirq context": 2,
    }


@pytest.mark.parametrize("seed", range(40))
def test_generated(seed: int) -> None:
    """Histories of a cluster that keeps its promises, whatever happens to its nodes."""
    histories = Simulation(seed, 3 + seed % 3).run(2500, faults=seed % 4 != 0)
    said = judge(histories)
    assert said.good, "\n".join(said.lines())
    assert said.counts["messages delivered"] > 50 and said.counts["calls run"] > 5


def test_killed_sender() -> None:
    """What a killed node had begun may have been delivered, or not."""
    for delivered in (True, False):
        a, b = pair()
        sent = [a.start(Kind.SEND, b, Tag.ANY), a.start(Kind.CALL, b, Tag.SHORT)]
        a.write(Kind.DIED)
        if delivered:
            for record in sent:
                b.receive(a, record)
        b.final()
        assert verdict(a, b).good


def test_killed_receiver() -> None:
    """What a killed node had not received is lost; what it had received is still checked."""
    a, b = pair()
    sent = [a.send(b) for _ in range(3)]
    b.receive(a, sent[0])
    renew(b, a)
    a.final(b)
    b.final(a)
    assert verdict(a, b).good


def test_overlapping() -> None:
    """Of two messages that were being sent at the same time either may be first."""
    a, b = pair()
    first, second = a.start(Kind.SEND, b, Tag.ANY), a.start(Kind.SEND, b, Tag.ANY)
    a.end(first)
    a.end(second)
    b.receive(a, second)
    b.receive(a, first)
    assert verdict(a, b).good


def test_other_orders() -> None:
    """Messages of different tags, and long calls, may overtake each other."""
    a, b = pair()
    sent = [a.send(b, tag) for tag in (Tag.ANY, Tag.EACH, Tag.LONG, Tag.SLOW, Tag.LONG)]
    for record in reversed(sent):
        b.receive(a, record)
    a.final(b)
    b.final(a)
    assert verdict(a, b).good


def test_uncertain_call() -> None:
    """A synchronous call that has timed out may have run, once."""
    for runs in (0, 1):
        a, b = pair()
        call = a.start(Kind.SYNC, b, Tag.LONG)
        a.replied(call, b, -errno.ETIMEDOUT)
        for _ in range(runs):
            b.receive(a, call)
        a.final(b)
        b.final(a)
        assert verdict(a, b).good


def test_unconfirmed() -> None:
    """A message whose delivery was not confirmed in time may have been delivered, or not."""
    for arrives in (True, False):
        a, b = pair()
        sure = a.start(Kind.CONFIRM, b, Tag.ANY)
        a.end(sure, -errno.ETIMEDOUT)
        if arrives:
            b.receive(a, sure)
        a.final(b)
        b.final(a)
        assert verdict(a, b).good


@pytest.mark.parametrize("prompt", sorted(history.PROMPT_FUNCTIONS))
def test_confirmed_while_unloading(prompt: Tag) -> None:
    """A call whose handler has been taken back does not run, while messages still arrive."""
    a, b = pair()
    a.send(b, prompt)
    sure = a.start(Kind.CONFIRM, b, Tag.ANY)
    a.end(sure)
    assert verdict(a, b).rules == {"confirmed"}
    b.write(Kind.STOP)
    assert verdict(a, b).good


def test_received_before_up() -> None:
    """A receiver that had been called before the new incarnation was up may return later."""
    a, b = pair()
    sent = a.send(b)
    began = b.place
    renew(a, b)
    b.receive(Sender(a, 1), sent, result=b.place + 1 - began)
    assert verdict(a, b).good


@pytest.mark.parametrize("prompt", sorted(history.PROMPT_FUNCTIONS))
def test_handler_before_up(prompt: Tag) -> None:
    """So may a handler, if there are no more of them than can be under way."""
    a, b = pair()
    calls = [a.send(b, prompt), a.send(b, Tag.LONG), a.send(b, Tag.LONG)]
    renew(a, b)
    for call in calls:
        b.receive(Sender(a, 1), call)
    assert verdict(a, b, bounds=Bounds(listeners=1, long_handlers=2)).good
    assert verdict(a, b, bounds=Bounds(listeners=0, long_handlers=2)).rules == {"old session"}
    assert verdict(a, b, bounds=Bounds(listeners=1, long_handlers=1)).rules == {"old session"}


def test_lost_while_unloading() -> None:
    """A handler that has been taken back does not run, while the next still does."""
    a, b = pair()
    a.send(b, Tag.SHORT)
    later = a.send(b, Tag.BRIEF)
    b.write(Kind.STOP)
    b.receive(a, later)
    b.write(Kind.END)
    a.down(b)
    assert verdict(a, b).good


def test_call_before_ready() -> None:
    """A call to a node that is up, and has not said that its handlers are registered, may be lost."""
    a, b = Scribe(0), Scribe(1)
    a.begin()
    b.begin()
    a.up(b)
    b.up(a)
    a.send(b, Tag.SHORT)
    a.receive(b, b.send(a, Tag.READY))
    b.receive(a, a.send(b, Tag.SHORT))
    a.final(b)
    b.final(a)
    assert verdict(a, b).good


def test_down_for_a_while() -> None:
    """An incarnation may go down and come up again, and what was under way is delivered."""
    a, b = pair()
    sent = a.send(b)
    a.down(b)
    a.up(b)
    b.receive(a, sent)
    a.final(b)
    b.final(a)
    assert verdict(a, b).good


class Sender(Scribe):
    """An earlier life of a node, as a source."""

    def __init__(self, scribe: Scribe, life: int) -> None:
        super().__init__(scribe.node)
        self.incarnation = 0x100 * (scribe.node + 1) + life


# Histories that must fail.

Broken = Callable[[Scribe, Scribe], None]


def duplicate_message(a: Scribe, b: Scribe) -> None:
    """A message arrives twice."""
    sent = a.send(b)
    b.receive(a, sent)
    b.receive(a, sent)


def duplicate_call(a: Scribe, b: Scribe) -> None:
    """A synchronous call runs twice."""
    call = a.start(Kind.SYNC, b, Tag.LONG)
    b.receive(a, call)
    b.receive(a, call)
    a.replied(call, b)


def duplicate_softirq_call(a: Scribe, b: Scribe) -> None:
    """A call for softirqs is run in softirq context, and again by the listener."""
    call = a.send(b, Tag.SOFTIRQ)
    b.receive(a, call, flags=Flag.SOFTIRQ)
    b.receive(a, call)


def duplicate_failed_call(a: Scribe, b: Scribe) -> None:
    """A synchronous call that has timed out runs twice."""
    call = a.start(Kind.SYNC, b, Tag.SHORT)
    a.replied(call, b, -errno.ETIMEDOUT)
    b.receive(a, call)
    b.receive(a, call)


def duplicate_of_killed(a: Scribe, b: Scribe) -> None:
    """An uncertain message arrives twice."""
    sent = a.start(Kind.SEND, b, Tag.ANY)
    a.write(Kind.DIED)
    b.receive(a, sent)
    b.receive(a, sent)


def duplicate_after_restart(a: Scribe, b: Scribe) -> None:
    """A message that was being sent arrives at two incarnations."""
    sent = a.start(Kind.SEND, b, Tag.ANY)
    b.receive(a, sent)
    renew(b, a)
    b.receive(a, sent)
    a.end(sent)


def lost_in_the_middle(a: Scribe, b: Scribe) -> None:
    """A message is missing, a later one is there."""
    a.send(b)
    b.receive(a, a.send(b))


def lost_call(a: Scribe, b: Scribe) -> None:
    """A short call is missing, a later one is there."""
    a.send(b, Tag.SHORT)
    b.receive(a, a.send(b, Tag.BRIEF))


def lost_softirq_call(a: Scribe, b: Scribe) -> None:
    """A call for softirqs is missing, a later one is there."""
    a.send(b, Tag.SOFTIRQ)
    b.receive(a, a.send(b, Tag.SOFTIRQ))


def lost_softirq_call_before_short(a: Scribe, b: Scribe) -> None:
    """A call for softirqs is missing, a short one that came later is there."""
    a.send(b, Tag.SOFTIRQ)
    b.receive(a, a.send(b, Tag.SHORT))


def lost_of_killed(a: Scribe, b: Scribe) -> None:
    """The sender is killed, and what is missing was certainly sent."""
    a.send(b)
    b.receive(a, a.start(Kind.SEND, b, Tag.ANY))
    a.write(Kind.DIED)


def lost_to_killed(a: Scribe, b: Scribe) -> None:
    """The receiver is killed, and had received what was sent later."""
    lost_in_the_middle(a, b)
    renew(b, a)


def lost_after_down(a: Scribe, b: Scribe) -> None:
    """The peer is away for a while, and then what comes later arrives."""
    a.send(b)
    a.down(b)
    a.up(b)
    b.receive(a, a.send(b))


def lost_after_restart(a: Scribe, b: Scribe) -> None:
    """A new incarnation does not get the first that was sent to it."""
    renew(b, a)
    a.send(b)
    b.receive(a, a.send(b))


def lost_before_up(a: Scribe, b: Scribe) -> None:
    """What is between two messages that an incarnation has got was sent to the same."""
    b.write(Kind.DIED)
    a.down(b)
    a.starting(b)
    b.begin()
    b.receive(a, a.send(b, Tag.EACH))
    a.send(b)
    b.receive(a, a.send(b))
    a.up(b)


@pytest.mark.parametrize("tag", [Tag.ANY, Tag.SHORT, Tag.LONG, Tag.SOFTIRQ])
def test_lost_at_the_end(tag: Tag) -> None:
    """Both have lived on, and what was sent has not arrived."""
    a, b = pair()
    a.send(b, tag)
    assert verdict(a, b).good
    a.final(b)
    assert verdict(a, b).good
    b.final(a)
    assert verdict(a, b).rules == {"lost"}


def order_of_messages(a: Scribe, b: Scribe) -> None:
    """Two messages of a tag the wrong way round."""
    sent = [a.send(b) for _ in range(2)]
    for record in reversed(sent):
        b.receive(a, record)


def order_of_calls(a: Scribe, b: Scribe) -> None:
    """Two short calls, one of them synchronous, the wrong way round."""
    first = a.send(b, Tag.SHORT)
    second = a.start(Kind.SYNC, b, Tag.BRIEF)
    b.receive(a, second)
    b.receive(a, first)
    a.replied(second, b)


def order_of_softirq_calls(a: Scribe, b: Scribe) -> None:
    """A call for softirqs is run in softirq context while one before it waits for the listener."""
    calls = [a.send(b, Tag.SOFTIRQ) for _ in range(2)]
    b.receive(a, calls[1], flags=Flag.SOFTIRQ)
    b.receive(a, calls[0])


def order_of_softirq_before_short(a: Scribe, b: Scribe) -> None:
    """A call for softirqs passes a short one that the listener has yet to run."""
    calls = [a.send(b, Tag.SHORT), a.send(b, Tag.SOFTIRQ)]
    for call in reversed(calls):
        b.receive(a, call)


def order_of_short_before_softirq(a: Scribe, b: Scribe) -> None:
    """A short call passes one for softirqs, to which there is a reply."""
    first = a.start(Kind.SYNC, b, Tag.SOFTIRQ)
    a.replied(first, b)
    b.receive(a, a.send(b, Tag.BRIEF))
    b.receive(a, first)


def order_far_apart(a: Scribe, b: Scribe) -> None:
    """A message arrives far too late, among others that are in order."""
    sent = [a.send(b) for _ in range(50)]
    for record in [*sent[1:], sent[0]]:
        b.receive(a, record)


def invented_number(a: Scribe, b: Scribe) -> None:
    """A message that was not sent."""
    b.receive(a, a.send(b), number=1000)


def invented_incarnation(a: Scribe, b: Scribe) -> None:
    """A message from nobody."""
    b.receive(a, a.send(b), incarnation=77)


def invented_source(a: Scribe, b: Scribe) -> None:
    """A message that says that it is from another node."""
    sent = a.send(b)
    b.write(Kind.RECV, 2, sent.tag, number=sent.number, incarnation=a.incarnation)


def invented_tag(a: Scribe, b: Scribe) -> None:
    """A message with another tag."""
    b.receive(a, a.send(b), tag=Tag.PROBED)


def invented_kind(a: Scribe, b: Scribe) -> None:
    """A message that was a call."""
    sent = a.send(b, Tag.SHORT)
    b.receive(a, sent._replace(kind=Kind.SEND))


def invented_receiver(a: Scribe, b: Scribe) -> None:
    """A message to somebody else."""
    sent = a.start(Kind.SEND, Scribe(2), Tag.ANY)
    a.end(sent)
    b.receive(a, sent)


def invented_astray(a: Scribe, b: Scribe) -> None:
    """A message that itself says that it was for another."""
    b.receive(a, a.send(b), flags=Flag.ASTRAY)


def damaged_body(a: Scribe, b: Scribe) -> None:
    """A message with another checksum."""
    b.receive(a, a.send(b), crc=1)


def damaged_length(a: Scribe, b: Scribe) -> None:
    """A call with other arguments."""
    b.receive(a, a.send(b, Tag.LONG), length=4000)


def damaged_softirq_call(a: Scribe, b: Scribe) -> None:
    """A call for softirqs whose arguments came in pieces, and were put together wrongly."""
    b.receive(a, a.send(b, Tag.SOFTIRQ), crc=1)


def damaged_head(a: Scribe, b: Scribe) -> None:
    """Something that cannot be made sense of."""
    b.receive(a, a.send(b), flags=Flag.MANGLED, number=0, incarnation=0)


def refused_message(a: Scribe, b: Scribe) -> None:
    """A message that could not be sent arrives."""
    b.receive(a, a.send(b, result=-errno.ETIMEDOUT))


def refused_call(a: Scribe, b: Scribe) -> None:
    """A synchronous call that found no handler runs."""
    call = a.start(Kind.SYNC, b, Tag.LONG)
    a.replied(call, b, -errno.EOPNOTSUPP)
    b.receive(a, call)


def old_message(a: Scribe, b: Scribe) -> None:
    """A message of the old incarnation is received when the new one is up."""
    sent = a.send(b)
    renew(a, b)
    b.receive(Sender(a, 1), sent)


def old_calls(a: Scribe, b: Scribe) -> None:
    """More calls of the old incarnation begin than can have been under way."""
    calls = [a.send(b, Tag.SHORT) for _ in range(2)]
    renew(a, b)
    for call in calls:
        b.receive(Sender(a, 1), call)


def old_prompt_calls(a: Scribe, b: Scribe) -> None:
    """A short call and one for softirqs are under way, of which there can be only one."""
    calls = [a.send(b, Tag.SHORT), a.send(b, Tag.SOFTIRQ)]
    renew(a, b)
    for call in calls:
        b.receive(Sender(a, 1), call)


def old_to_new(a: Scribe, b: Scribe) -> None:
    """What was sent to the old incarnation arrives at the new one."""
    sent = a.send(b)
    renew(b, a)
    b.receive(a, sent)


def old_call_to_new(a: Scribe, b: Scribe) -> None:
    """A call to the old incarnation runs in the new one."""
    call = a.start(Kind.SYNC, b, Tag.LONG)
    a.replied(call, b, -errno.EHOSTDOWN)
    renew(b, a)
    b.receive(a, call)


def events_twice_up(a: Scribe, b: Scribe) -> None:
    """Up, and up again."""
    a.up(b)


def events_no_down(a: Scribe, b: Scribe) -> None:
    """A new incarnation is up, and the old one was never down."""
    b.write(Kind.DIED)
    b.begin()
    a.up(b)


def events_twice_down(a: Scribe, b: Scribe) -> None:
    """Down, and down again."""
    a.down(b)
    a.down(b)


def events_down_of_new(a: Scribe, b: Scribe) -> None:
    """The new incarnation is down, and was never up."""
    b.write(Kind.DIED)
    b.begin()
    a.down(b)


def events_down_first(a: Scribe, b: Scribe) -> None:
    """Down is the first that is heard."""
    a.down(Scribe(2), b.incarnation)


def events_back(a: Scribe, b: Scribe) -> None:
    """The old incarnation comes back."""
    old = b.incarnation
    renew(b, a)
    a.down(b)
    a.up(b, old)


def events_unknown(a: Scribe, b: Scribe) -> None:
    """An incarnation that never was."""
    a.down(b)
    a.up(b, 77)


def events_final(a: Scribe, b: Scribe) -> None:
    """Up at the end, and the subscriber does not know."""
    a.down(b)
    a.final(b)


def reply_without_run(a: Scribe, b: Scribe) -> None:
    """A reply, and nobody ran anything."""
    a.replied(a.start(Kind.SYNC, b, Tag.LONG), b)


def reply_failed_without_run(a: Scribe, b: Scribe) -> None:
    """The handler's error, and it did not run."""
    a.replied(a.start(Kind.SYNC, b, Tag.LONG), b, -errno.EREMOTEIO)


def reply_to_another(a: Scribe, b: Scribe) -> None:
    """The reply is to other arguments."""
    calls = [a.start(Kind.SYNC, b, Tag.LONG) for _ in range(2)]
    for call in calls:
        b.receive(a, call)
    a.replied(calls[0], b)
    a.replied(calls[1], b, length=calls[0].length, crc=calls[0].crc)


def reply_astray(a: Scribe, b: Scribe) -> None:
    """The reply says that it is to another call."""
    call = a.start(Kind.SYNC, b, Tag.SHORT)
    b.receive(a, call)
    a.replied(call, b, flags=Flag.ASTRAY)


def reply_status(a: Scribe, b: Scribe) -> None:
    """The status is another than the handler's."""
    call = a.start(Kind.SYNC, b, Tag.SHORT)
    b.receive(a, call)
    a.replied(call, b, -errno.EREMOTEIO, flags=Flag.STATUS)


def reply_of_softirq_to_another(a: Scribe, b: Scribe) -> None:
    """The reply that was sent in softirq context is to the call before."""
    calls = [a.start(Kind.SYNC, b, Tag.SOFTIRQ) for _ in range(2)]
    for call in calls:
        b.receive(a, call, flags=Flag.SOFTIRQ)
    a.replied(calls[0], b)
    a.replied(calls[1], b, length=calls[0].length, crc=calls[0].crc)


def reply_of_softirq_without_run(a: Scribe, b: Scribe) -> None:
    """A reply, and the handler for softirqs did not run."""
    a.replied(a.start(Kind.SYNC, b, Tag.SOFTIRQ), b)


def reply_of_another(a: Scribe, b: Scribe) -> None:
    """The reply is of an incarnation that did not run it."""
    call = a.start(Kind.SYNC, b, Tag.SHORT)
    b.receive(a, call)
    a.replied(call, b, incarnation=b.incarnation + 1)


def hung_at_the_end(a: Scribe, b: Scribe) -> None:
    """All is quiet, and a call waits."""
    a.start(Kind.SYNC, b, Tag.LONG)
    a.final(b)


def hung_unloaded(a: Scribe, b: Scribe) -> None:
    """The module is unloaded, and somebody still sends."""
    a.start(Kind.SEND, b, Tag.ANY)
    a.write(Kind.STOP)
    a.write(Kind.END)


def confirmed_too_early(a: Scribe, b: Scribe) -> None:
    """The delivery of a message is confirmed, and a call before it does not run."""
    a.send(b, Tag.SHORT)
    sure = a.start(Kind.CONFIRM, b, Tag.EACH)
    b.receive(a, sure)
    a.end(sure)


def confirmed_before_softirq(a: Scribe, b: Scribe) -> None:
    """The same with a call for softirqs."""
    a.send(b, Tag.SOFTIRQ)
    sure = a.start(Kind.CONFIRM, b, Tag.EACH)
    b.receive(a, sure)
    a.end(sure)


def context_of_softirq(a: Scribe, b: Scribe) -> None:
    """A handler for softirqs runs where they are not disabled."""
    b.receive(a, a.send(b, Tag.SOFTIRQ), flags=Flag.CONTEXT)


def context_of_long(a: Scribe, b: Scribe) -> None:
    """A handler that may sleep runs in softirq context."""
    b.receive(a, a.send(b, Tag.LONG), flags=Flag.CONTEXT | Flag.SOFTIRQ)


def lost_confirmed(a: Scribe, b: Scribe) -> None:
    """A message whose delivery was confirmed is not received, a later one is."""
    a.end(a.start(Kind.CONFIRM, b, Tag.ANY))
    b.receive(a, a.send(b))


def refused_confirmed(a: Scribe, b: Scribe) -> None:
    """A message that was to be confirmed, and was too long, arrives."""
    sure = a.start(Kind.CONFIRM, b, Tag.ANY)
    a.end(sure, -errno.EMSGSIZE)
    b.receive(a, sure)


def history_twice_begun(a: Scribe, b: Scribe) -> None:
    """Two operations of one number."""
    a.start(Kind.SEND, b, Tag.ANY)
    a.number -= 1
    a.start(Kind.SEND, b, Tag.ANY)


def history_twice_ended(a: Scribe, b: Scribe) -> None:
    """An operation ends twice."""
    sent = a.send(b)
    b.receive(a, sent)
    a.end(sent)


def history_not_begun(a: Scribe, b: Scribe) -> None:
    """An operation ends that did not begin."""
    a.end(Record(Kind.SEND, b.node, number=40))


def history_wrong_end(a: Scribe, b: Scribe) -> None:
    """A message ends as a call."""
    a.end(a.start(Kind.SEND, b, Tag.ANY)._replace(kind=Kind.CALL))


def history_wild_number(a: Scribe, b: Scribe) -> None:
    """A number out of all reason."""
    a.number = 1 << 40
    a.start(Kind.SEND, b, Tag.ANY)


def history_not_dead(a: Scribe, b: Scribe) -> None:
    """A life begins, and the one before it has not ended."""
    b.begin()


def history_after_the_end(a: Scribe, b: Scribe) -> None:
    """A life goes on when it is over."""
    b.write(Kind.DIED)
    b.up(a)


def history_of_nobody(a: Scribe, b: Scribe) -> None:
    """Something happens before anything has begun."""
    b.records.insert(0, Record(Kind.UP, 0, incarnation=a.incarnation))
    a.records.clear()
    b.records[1:] = []


def history_same_incarnation(a: Scribe, b: Scribe) -> None:
    """Two lives of one incarnation."""
    b.write(Kind.DIED)
    b.write(Kind.BEGIN, number=2, incarnation=b.incarnation)


def history_of_another(a: Scribe, b: Scribe) -> None:
    """The history of another node."""
    b.records[1] = b.records[1]._replace(node=0)


def history_unknown_kind(a: Scribe, b: Scribe) -> None:
    """A record of no known kind."""
    b.records.append(Record(31))


_RULES = {"duplicate", "lost", "order", "invented", "damaged", "refused", "old", "events"}
_RULES |= {"reply", "hung", "confirmed", "context", "history"}


def _broken() -> Iterator[tuple[str, Broken]]:
    for name, function in list(globals().items()):
        rule = name.partition("_")[0]
        if rule in _RULES and callable(function):
            yield ("old session" if rule == "old" else rule), function


@pytest.mark.parametrize(("rule", "broken"), _broken(), ids=[f.__name__ for _, f in _broken()])
def test_complains(rule: str, broken: Broken) -> None:
    """Each of the histories above breaks the rule that it is named after, and no other."""
    a, b = pair()
    broken(a, b)
    said = verdict(a, b)
    assert said.rules == {rule}, "\n".join(said.lines())


def test_every_rule() -> None:
    """No rule of the checker is without a history that breaks it."""
    listed = re.findall(r"^([a-z]+(?: [a-z]+)?)  ", checker.__doc__ or "", re.MULTILINE)
    assert set(listed) == {rule for rule, _ in _broken()}


# Generated histories, in which one thing has gone wrong.

Mutation = Callable[[Histories, random.Random], bool]


def _places(histories: Histories, *kinds: Kind) -> list[tuple[int, int]]:
    return [
        (node, at)
        for node, records in histories.items()
        for at, record in enumerate(records)
        if record.kind in kinds
    ]


def _pick(histories: Histories, rng: random.Random, *kinds: Kind) -> tuple[list[Record], int]:
    node, at = rng.choice(_places(histories, *kinds))
    return histories[node], at


def drop(histories: Histories, rng: random.Random) -> bool:
    """A message that was sent to a node that was up, between two that live on, is missing."""
    records, at = _pick(histories, rng, Kind.RECV)
    receiver = next(record for record in records if record.kind == Kind.BEGIN)
    sender = histories[records[at].node]
    up = sender.index(Record(Kind.UP, receiver.node, incarnation=receiver.incarnation))
    began = (r.kind == Kind.SEND and r.number == records[at].number for r in sender[up:])
    if records[at].tag == Tag.READY or not any(began):
        return False
    del records[at]
    return True


def repeat(histories: Histories, rng: random.Random) -> bool:
    """A message or a call is delivered again."""
    records, at = _pick(histories, rng, Kind.RECV, Kind.RUN)
    records.insert(at + 1, records[at]._replace(result=1))
    return True


def swap(histories: Histories, rng: random.Random) -> bool:
    """Two messages of a tag, sent one after the other, are exchanged."""
    records, at = _pick(histories, rng, Kind.RECV)
    one = records[at]
    same = (one.node, one.tag, one.incarnation)
    for later in range(at + 1, len(records)):
        other = records[later]
        if other.kind in (Kind.DIED, Kind.END):
            return False
        if other.kind != Kind.RECV or (other.node, other.tag, other.incarnation) != same:
            continue
        sent = [
            sender
            for sender in histories[one.node]
            if sender.kind in (Kind.SEND, Kind.SENT) and sender.number in (one.number, other.number)
        ]
        began = next((i for i, r in enumerate(sent) if r.number == other.number), -1)
        ended = any(r.kind == Kind.SENT and r.number == one.number for r in sent[:began])
        lives = sum(r.kind == Kind.BEGIN for r in histories[one.node])
        if ended and lives == 1:
            records[at], records[later] = other._replace(result=1), one._replace(result=1)
            return True
    return False


def swap_calls(histories: Histories, rng: random.Random) -> bool:
    """Of two calls that run as they come in, one of them for softirqs, the later one passes the other."""
    records, at = _pick(histories, rng, Kind.RUN)
    one = records[at]
    # What became of the calls of a node that has had one life.
    places = {
        (record.kind, record.number): place for place, record in enumerate(histories[one.node])
    }
    ended = min(
        places.get((Kind.CALLED, one.number), 1 << 32),
        places.get((Kind.REPLIED, one.number), 1 << 32),
    )
    for later in range(at + 1, len(records)):
        other = records[later]
        if other.kind != Kind.RUN or other.incarnation != one.incarnation:
            continue
        tags = {one.tag, other.tag}
        began = places.get((Kind.CALL, other.number)) or places[Kind.SYNC, other.number]
        if Tag.SOFTIRQ in tags and tags <= history.PROMPT_FUNCTIONS and ended < began:
            records[at], records[later] = other, one
            return True
    return False


def damage(histories: Histories, rng: random.Random) -> bool:
    """Something is delivered damaged."""
    records, at = _pick(histories, rng, Kind.RECV, Kind.RUN)
    records[at] = records[at]._replace(crc=records[at].crc ^ 1 << rng.randrange(32))
    return True


def refuse(histories: Histories, rng: random.Random) -> bool:
    """The sender of something that was delivered has been told that it was not sent."""
    records, at = _pick(histories, rng, Kind.RECV)
    number, incarnation = records[at].number, records[at].incarnation
    sender = histories[records[at].node]
    begin = next(i for i, r in enumerate(sender) if r.incarnation == incarnation)
    for i in range(begin, len(sender)):
        if sender[i].kind in (Kind.DIED, Kind.END):
            return False
        if sender[i].kind == Kind.SENT and sender[i].number == number:
            sender[i] = sender[i]._replace(result=-errno.ENETRESET)
            return True
    return False


def forge(histories: Histories, rng: random.Random) -> bool:
    """Something comes from an incarnation that does not exist."""
    records, at = _pick(histories, rng, Kind.RECV, Kind.RUN)
    records[at] = records[at]._replace(incarnation=rng.getrandbits(64))
    return True


def forget_down(histories: Histories, rng: random.Random) -> bool:
    """A node is not said to be down before its next incarnation is up."""
    records, at = _pick(histories, rng, Kind.DOWN)
    node = records[at].node
    for record in records[at + 1 :]:
        if record.kind in (Kind.DIED, Kind.END):
            return False
        if record.kind == Kind.UP and record.node == node:
            del records[at]
            return True
    return False


def unrun(histories: Histories, rng: random.Random) -> bool:
    """A synchronous call has a reply, and did not run."""
    records, at = _pick(histories, rng, Kind.REPLIED)
    reply = records[at]
    if reply.result:
        return False
    caller = next(r for r in reversed(records[:at]) if r.kind == Kind.BEGIN)
    for other in histories.values():
        for i, record in enumerate(other):
            same = (record.number, record.incarnation) == (reply.number, caller.incarnation)
            if record.kind == Kind.RUN and same:
                del other[i]
                return True
    return False


def leave_waiting(histories: Histories, rng: random.Random) -> bool:
    """An operation does not end, in a life that did in order."""
    records, at = _pick(histories, rng, Kind.SENT, Kind.CALLED, Kind.REPLIED)
    if any(record.kind == Kind.DIED for record in records[at:]):
        return False
    del records[at]
    return True


@pytest.mark.parametrize(
    ("mutation", "rule"),
    [
        (drop, "lost"),
        (repeat, "duplicate"),
        (swap, "order"),
        (swap_calls, "order"),
        (damage, "damaged"),
        (refuse, "refused"),
        (forge, "invented"),
        (forget_down, "events"),
        (unrun, "reply"),
        (leave_waiting, "hung"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_mutated(mutation: Mutation, rule: str) -> None:
    """The checker finds one thing that is wrong among thousands that are right."""
    found = 0
    for seed in range(200):
        rng = random.Random(f"mutation {seed}")
        # Those that need nodes that live on are found more easily where there are few faults.
        histories = Simulation(seed).run(600, faults=mutation not in (drop, swap, swap_calls))
        if not _mutate(histories, mutation, rng):
            continue
        said = judge(histories)
        assert rule in said.rules, (seed, said.rules)
        found += 1
        if found == 20:
            return
    pytest.fail(f"no more than {found} histories could be changed")


def _mutate(histories: Histories, mutation: Mutation, rng: random.Random) -> bool:
    try:
        return mutation(histories, rng)
    except IndexError:
        return False  # it has nothing of the kind


def test_many_complaints() -> None:
    """A history in which everything is wrong is still told of briefly."""
    a, b = pair()
    for _ in range(1000):
        b.receive(a, a.send(b), crc=1)
    said = verdict(a, b)
    assert said.totals == {"damaged": 1000}
    assert len(said.complaints) == checker.SHOWN
    assert list(said.lines())[-1] == f"damaged: {1000 - checker.SHOWN} more"


def test_folder(tmp_path: Path) -> None:
    """Histories in files are judged as those in memory; so is half a record at the end of one."""
    histories = Simulation(5).run(800)
    for node, records in histories.items():
        history.write(tmp_path / f"node{node}.history", records)
    assert checker.check_folder(tmp_path).counts == judge(histories).counts
    records, at = _pick(histories, random.Random(1), Kind.RECV)
    records[at] = records[at]._replace(crc=records[at].crc ^ 1)
    for node, changed in histories.items():
        history.write(tmp_path / f"node{node}.history", changed)
    assert checker.check_folder(tmp_path).rules == {"damaged"}
