#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Proves from the histories of a torture run what KCCM promises, or says what is not so.

    checker.py FOLDER        checks FOLDER/node*.history

The rules, for every two incarnations, by the names that complaints have:

duplicate     what was sent is delivered once at most: over all incarnations of its receiver
lost          what was accepted is delivered, if something later of the same order was, or if
              both incarnations lived on and were connected at the end
order         what was sent one after the other, with one tag or to handlers that are run as
              calls come in (short ones and those for softirqs), is delivered so
invented      only what was sent is delivered, to whom it was sent, with its tag
damaged       as it was sent
refused       what the sender was told of that it was not accepted is not delivered
old session   once the new incarnation of a sender is up, nothing of the old one is received; what
              was sent before an incarnation began is not delivered to it
events        "up" and "down" alternate, "down" is of what was up, what has been replaced does not
              come back
reply         a synchronous call that succeeded has run its handler, and has the reply to itself
hung          at the end, nothing waits any more
confirmed     when the delivery of a message is confirmed, the short calls before it have run, and
              those for softirqs
context       softirqs are disabled where a handler for softirqs runs, and where no other does
history       the history itself makes sense

Of a machine that was killed, an operation that had begun and not ended may or may not have taken
place. Nothing else is uncertain: a record is in the memory of the host before what it tells of can
have an effect (see history.h).

Whether one operation was before another is known when it had ended before the other began; of two
that overlapped, either may have been first.
"""

from __future__ import annotations

import errno
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import history
from history import CLASSES, MESSAGES, PROMPT_FUNCTIONS, Fields, Flag, Kind, Tag

# Complaints of one rule that are told in full.
SHOWN = 20

# No operation so far ahead of the last one is believed.
_GAP = 1 << 20

_NEVER = 1 << 62

# Calls with arguments of more bytes are counted by themselves.
LONG_ARGUMENTS = 16384

_CLASS_OF: dict[int, str] = {tag: name for name, tags in CLASSES.items() for tag in tags}

_RAN = frozenset({0, -errno.EREMOTEIO})
# Errors of a synchronous call that say that it did not get as far as a handler.
_NOT_RUN = frozenset(
    -number
    for number in (
        errno.EAGAIN,
        errno.EINVAL,
        errno.EDEADLK,
        errno.EOPNOTSUPP,
        errno.E2BIG,
        errno.ENODEV,
    )
)

# The same of a message whose delivery was to be confirmed.
_NOT_SENT = frozenset(
    -number for number in (errno.EMSGSIZE, errno.EINVAL, errno.EDEADLK, errno.ENOMEM, errno.ENODEV)
)

_BEGINS = MESSAGES | {Kind.CALL, Kind.SYNC}
_ENDS = {
    Kind.SENT: Kind.SEND,
    Kind.CALLED: Kind.CALL,
    Kind.REPLIED: Kind.SYNC,
    Kind.CONFIRMED: Kind.CONFIRM,
}


@dataclass(frozen=True)
class Bounds:
    """How much can be under way at a receiver that has not been written down yet."""

    listeners: int = 1
    long_handlers: int = 32


@dataclass(frozen=True)
class Complaint:
    """One way in which a history is not as promised."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass
class Verdict:
    """What came out: nothing to complain of, or what."""

    complaints: list[Complaint] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def good(self) -> bool:
        """Whether the histories keep all promises."""
        return not self.totals

    @property
    def rules(self) -> set[str]:
        """The rules that are broken."""
        return set(self.totals)

    def complain(self, rule: str, text: str) -> None:
        """Note a broken rule; beyond the first few, only how often."""
        self.totals[rule] += 1
        if self.totals[rule] <= SHOWN:
            self.complaints.append(Complaint(rule, text))

    def lines(self) -> Iterator[str]:
        """The verdict for people to read."""
        for complaint in self.complaints:
            yield str(complaint)
        for rule, total in self.totals.items():
            if total > SHOWN:
                yield f"{rule}: {total - SHOWN} more"


@dataclass(frozen=True)
class Event:
    """What a subscriber has been told."""

    at: int
    up: bool
    node: int
    incarnation: int


@dataclass(frozen=True)
class Answer:
    """What a synchronous call was told: by whom, and on which arguments."""

    incarnation: int
    length: int
    crc: int
    flags: int


class Operations:
    """What one incarnation has done, by number.

    A place in a history is the count of what the guest has written up to there.
    """

    def __init__(self) -> None:
        self.kind = bytearray(1)
        self.node = bytearray(1)
        self.tag = bytearray(1)
        self.length = array("I", [0])
        self.crc = array("I", [0])
        self.begin = array("Q", [0])
        self.end = array("Q", [0])  # 0: not ended
        self.result = array("i", [0])
        self.answers: dict[int, Answer] = {}
        # By whom it was received or run: an index into the lives, from 1; and where in its history.
        self.receiver = array("H", [0])
        self.received = array("Q", [0])

    def __len__(self) -> int:
        return len(self.kind)

    def reach(self, number: int) -> bool:
        """Make room for an operation; false if the number cannot be right."""
        more = number + 1 - len(self.kind)
        if number < 1 or more > _GAP:
            return False
        if more > 0:
            for octets in (self.kind, self.node, self.tag):
                octets.extend(bytes(more))
            for numbers in (self.length, self.crc, self.begin, self.end, self.received):
                numbers.extend([0] * more)
            self.result.extend([0] * more)
            self.receiver.extend([0] * more)
        return True

    def ended(self, number: int) -> int:
        """Where an operation had ended, for comparison: never, if it has not."""
        return self.end[number] or _NEVER

    def accepted(self, number: int) -> bool:
        """Whether this is a message or an asynchronous call that KCCM has taken charge of."""
        is_sent = self.kind[number] in (Kind.SEND, Kind.CONFIRM, Kind.CALL)
        return is_sent and self.end[number] != 0 and self.result[number] == 0

    def refused(self, number: int) -> bool:
        """Whether the caller was told that this has not been sent."""
        if not self.end[number] or not self.result[number]:
            return False
        certain = {Kind.SYNC: _NOT_RUN, Kind.CONFIRM: _NOT_SENT}.get(Kind(self.kind[number]))
        return certain is None or self.result[number] in certain


class Deliveries:
    """What one incarnation has received and run, in the order of its history."""

    def __init__(self) -> None:
        self.kind = bytearray()
        self.node = bytearray()
        self.tag = bytearray()
        self.flags = bytearray()
        self.number = array("Q")
        self.sender = array("Q")
        self.length = array("I")
        self.crc = array("I")
        self.at = array("Q")
        self.began = array("Q")

    def __len__(self) -> int:
        return len(self.kind)

    def add(self, at: int, fields: Fields) -> None:
        """Take in a RECV or a RUN."""
        kind, node, tag, flags, result, number, sender, length, crc = fields
        self.kind.append(kind)
        self.node.append(node)
        self.tag.append(tag)
        self.flags.append(flags)
        self.number.append(number)
        self.sender.append(sender)
        self.length.append(length)
        self.crc.append(crc)
        self.at.append(at)
        self.began.append(at - result if kind == Kind.RECV else at)


class Life:
    """One incarnation of a node."""

    def __init__(self, node: int, number: int, incarnation: int, order: int) -> None:
        self.node = node
        self.number = number
        self.incarnation = incarnation
        self.order = order  # among the lives of its node, from 0
        self.index = 0  # among all lives, from 1
        self.operations = Operations()
        self.deliveries = Deliveries()
        self.events: list[Event] = []
        # Where others are first known to be up, and to answer calls: by their incarnations.
        self.first_up: dict[int, int] = {}
        self.answering: dict[int, int] = {}
        # After which place here others began: by node and number of the life.
        self.starting: dict[tuple[int, int], int] = {}
        self.stop = _NEVER
        self.final: dict[int, int] = {}  # by node, the incarnation that is up at the end
        self.is_final = False
        self.final_at = _NEVER
        self.is_unloaded = False
        self.over = False

    def __str__(self) -> str:
        return f"node {self.node} life {self.number} ({self.incarnation:016x})"


# What is delivered in the order in which it was sent: messages of a tag, or calls that are run as they
# come in. None: no such order.
def _order_of(kind: int, tag: int) -> int | None:
    if kind == Kind.RECV or kind in MESSAGES:
        return tag
    return Tag.SHORT if tag in PROMPT_FUNCTIONS else None


_WORDS = {
    Kind.SEND: "message",
    Kind.CALL: "call",
    Kind.SYNC: "synchronous call",
    Kind.CONFIRM: "confirmed message",
}


class Checker:
    """Takes in the histories of all nodes, and then judges."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self.verdict = Verdict()
        self.lives: list[Life] = []
        self._by_incarnation: dict[int, Life] = {}
        self._of_node: dict[int, list[Life]] = defaultdict(list)

    # Taking in.

    def add(self, node: int, records: Iterable[Fields]) -> None:
        """Take in the history of a node."""
        life: Life | None = None
        at = 0
        for fields in records:
            kind = fields[0]
            if kind >= Kind.STARTING:
                self._host(life, at, fields)
                continue
            at += 1
            if kind == Kind.BEGIN:
                if life and not life.over:
                    self._odd(life, at, "another life begins before it has ended")
                life = self._begin(node, fields)
            elif life is None or life.over:
                self.verdict.complain(
                    "history", f"node {node}: record {at} is of no life: {fields}"
                )
                return
            else:
                self._guest(life, at, fields)
        self.verdict.counts["records"] += at

    def _begin(self, node: int, fields: Fields) -> Life:
        number, incarnation = fields[5], fields[6]
        life = Life(node, number, incarnation, len(self._of_node[node]))
        if fields[1] != node:
            self._odd(life, 0, f"is in the history of node {fields[1]}")
        if incarnation in self._by_incarnation:
            self._odd(life, 0, f"has the incarnation of {self._by_incarnation[incarnation]}")
        self.lives.append(life)
        life.index = len(self.lives)
        self._by_incarnation.setdefault(incarnation, life)
        self._of_node[node].append(life)
        return life

    def _host(self, life: Life | None, at: int, fields: Fields) -> None:
        """Take in what the host has written between the guest's records."""
        kind, node, number = fields[0], fields[1], fields[5]
        if life is None or life.over:
            return
        if kind == Kind.STARTING:
            life.starting[node, number] = at
        elif kind == Kind.DIED:
            life.over = True

    def _guest(self, life: Life, at: int, fields: Fields) -> None:
        """Take in what a node has written."""
        kind, node, tag, _, _, _, incarnation, _, _ = fields
        if kind in _BEGINS:
            self._take_begin(life, at, fields)
        elif kind in _ENDS:
            self._take_end(life, at, fields)
        elif kind in (Kind.RECV, Kind.RUN):
            life.deliveries.add(at, fields)
            if kind == Kind.RECV and tag == Tag.READY:
                life.answering.setdefault(incarnation, at)
        elif kind in (Kind.UP, Kind.DOWN):
            life.events.append(Event(at, kind == Kind.UP, node, incarnation))
            if kind == Kind.UP:
                life.first_up.setdefault(incarnation, at)
        elif kind == Kind.STOP:
            life.stop = at
        elif kind == Kind.FINAL:
            life.is_final = True
            life.final_at = min(life.final_at, at)
            if incarnation:
                life.final[node] = incarnation
        elif kind == Kind.END:
            life.is_unloaded = life.over = True
        elif kind != Kind.READY:
            self._odd(life, at, f"unknown: {fields}")

    def _take_begin(self, life: Life, at: int, fields: Fields) -> None:
        kind, node, tag, _, _, number, _, length, crc = fields
        operations = life.operations
        if not operations.reach(number) or operations.kind[number]:
            self._odd(life, at, f"an operation begins with the number {number}")
            return
        operations.kind[number] = kind
        operations.node[number] = node
        operations.tag[number] = tag
        operations.length[number] = length
        operations.crc[number] = crc
        operations.begin[number] = at

    def _take_end(self, life: Life, at: int, fields: Fields) -> None:
        kind, _, _, flags, result, number, incarnation, length, crc = fields
        operations = life.operations
        known = 0 < number < len(operations)
        if not known or operations.kind[number] != _ENDS[Kind(kind)] or operations.end[number]:
            self._odd(life, at, f"an operation ends with the number {number}")
            return
        operations.end[number] = at
        operations.result[number] = result
        if kind == Kind.REPLIED and result in _RAN:
            operations.answers[number] = Answer(incarnation, length, crc, flags)

    def _odd(self, life: Life, at: int, text: str) -> None:
        self.verdict.complain("history", f"{life}: record {at}: {text}")

    # Judging.

    def check(self) -> Verdict:
        """Judge all that was taken in."""
        for life in self.lives:
            self._check_events(life)
        streams = [stream for life in self.lives for stream in self._deliver(life)]
        for stream in streams:
            self._check_order(stream)
        sessions = _Sessions(self.lives, streams)
        for life in self.lives:
            self._check_operations(life, sessions)
            self._check_confirmed(life)
        self.verdict.counts["incarnations"] = len(self.lives)
        return self.verdict

    def _check_events(self, life: Life) -> None:
        """What a subscriber was told of each node: up, down of the same, up of one not before."""
        up: dict[int, int] = {}
        last: dict[int, Life] = {}
        # What was told before it was looked who is up; other nodes may have gone since then.
        told: dict[int, int] | None = None
        for event in life.events:
            if told is None and event.at > life.final_at:
                told = dict(up)
            node = event.node
            said = (
                f"{life}: {'up' if event.up else 'down'} of node {node}, {event.incarnation:016x}"
            )
            whose = self._by_incarnation.get(event.incarnation)
            if whose is None or whose.node != node:
                self.verdict.complain("events", f"{said}: it has no such incarnation")
                continue
            if event.up:
                if node in up:
                    self.verdict.complain("events", f"{said}, while {up[node]:016x} is up")
                if node in last and whose.order < last[node].order:
                    self.verdict.complain("events", f"{said}: {last[node]} has replaced it")
                up[node] = event.incarnation
                last[node] = whose
            else:
                if up.pop(node, None) != event.incarnation:
                    self.verdict.complain("events", f"{said}, which is not up")
            self.verdict.counts["events"] += 1
        for node, incarnation in life.final.items():
            if (up if told is None else told).get(node) != incarnation:
                text = f"{life}: at the end node {node} is up as {incarnation:016x}"
                self.verdict.complain("events", f"{text}, and the subscriber was not told")

    def _deliver(self, receiver: Life) -> list[_Stream]:
        """Join what one incarnation has received with what others have sent."""
        streams: dict[tuple[int, int | None], _Stream] = {}
        late: dict[tuple[int, bool], int] = defaultdict(int)
        bounds: dict[int, tuple[int, int]] = {}
        deliveries = receiver.deliveries
        for i, number in enumerate(deliveries.number):
            kind = deliveries.kind[i]
            sender = self._sender(receiver, i)
            if sender is None:
                continue
            operations = sender.operations
            operations.receiver[number] = receiver.index
            operations.received[number] = deliveries.at[i]
            order = _order_of(kind, deliveries.tag[i])
            stream = streams.get((sender.index, order))
            if stream is None:
                stream = streams[sender.index, order] = _Stream(sender, receiver, order)
                started = sender.starting.get((receiver.node, receiver.number), -1)
                bounds[sender.index] = self._replaced(receiver, sender), started
            stream.numbers.append(number)
            replaced, started = bounds[sender.index]
            if deliveries.began[i] >= replaced:
                if kind == Kind.RUN:
                    late[sender.index, order is not None] += 1
                else:
                    self._old(receiver, sender, number, "was received, which is up no more")
            if 0 < operations.end[number] <= started:
                self._old(receiver, sender, number, "was sent before this incarnation began")
        for (index, prompt), count in late.items():
            # A handler may have been called and not have come to write. What comes in over a connection
            # is handled by one at a time, be it the listener or not.
            if count > (self.bounds.listeners if prompt else self.bounds.long_handlers):
                which = "short or softirq" if prompt else "long"
                text = f"{receiver}: {count} {which} calls of {self.lives[index - 1]} have begun"
                self.verdict.complain("old session", f"{text} after its next incarnation was up")
        return list(streams.values())

    def _sender(self, receiver: Life, i: int) -> Life | None:
        """Who has sent what was delivered, if that and the delivery itself are as they must be."""
        deliveries = receiver.deliveries
        kind, node, tag = deliveries.kind[i], deliveries.node[i], deliveries.tag[i]
        number, incarnation = deliveries.number[i], deliveries.sender[i]

        def complain(rule: str, text: str) -> None:
            what = f"{'message' if kind == Kind.RECV else 'call'} {number} tag {tag}"
            where = f"{receiver}: record {deliveries.at[i]}"
            self.verdict.complain(rule, f"{where}: {what} from node {node}: {text}")

        self._count_delivery(deliveries, i)
        if deliveries.flags[i] & Flag.CONTEXT:
            complain("context", "was run with softirqs disabled, or enabled, as its class must not be")
        if deliveries.flags[i] & Flag.MANGLED:
            complain("damaged", "makes no sense")
            return None
        sender = self._by_incarnation.get(incarnation)
        if sender is None or sender.node != node:
            complain("invented", f"it has no incarnation {incarnation:016x}")
            return None
        operations = sender.operations
        if not 0 < number < len(operations) or not operations.begin[number]:
            complain("invented", f"{sender} has sent nothing of this number")
            return None
        sent = operations.kind[number]
        right_kind = (sent in MESSAGES) == (kind == Kind.RECV)
        to = operations.node[number]
        if not right_kind or to != receiver.node or operations.tag[number] != tag:
            word = _WORDS[Kind(sent)]
            complain("invented", f"was a {word} to node {to}, tag {operations.tag[number]}")
            return None
        if deliveries.flags[i] & Flag.ASTRAY:
            complain("invented", "says that it is not for this node, or not from that")
        if (deliveries.length[i], deliveries.crc[i]) != (
            operations.length[number],
            operations.crc[number],
        ):
            got = f"{deliveries.length[i]} bytes, checksum {deliveries.crc[i]:08x}"
            was = f"{operations.length[number]} bytes, checksum {operations.crc[number]:08x}"
            complain("damaged", f"{got}; sent were {was}")
        if operations.receiver[number]:
            first = self.lives[operations.receiver[number] - 1]
            where = f"record {operations.received[number]}"
            complain("duplicate", f"was delivered before, to {first}, {where}")
            return None
        if operations.refused(number):
            complain("refused", f"its sender was told {_error(operations.result[number])}")
        return sender

    def _count_delivery(self, deliveries: Deliveries, i: int) -> None:
        counts = self.verdict.counts
        if deliveries.kind[i] == Kind.RECV:
            counts["messages delivered"] += 1
            counts["bulk messages delivered"] += deliveries.tag[i] == Tag.BULK
            return
        counts["calls run"] += 1
        name = _CLASS_OF.get(deliveries.tag[i], "unknown")
        counts[f"{name} calls run"] += 1
        if deliveries.length[i] > LONG_ARGUMENTS:
            counts[f"{name} calls of more than 16 KiB run"] += 1
        if deliveries.flags[i] & Flag.SOFTIRQ:
            counts[f"{name} calls run in softirq context"] += 1

    def _replaced(self, receiver: Life, sender: Life) -> int:
        """Where the receiver was first told that a later incarnation of the sender's node is up."""
        later = self._of_node[sender.node][sender.order + 1 :]
        return min(
            (
                receiver.first_up.get(life.incarnation, _NEVER)
                for life in later
                if life.incarnation != sender.incarnation
            ),
            default=_NEVER,
        )

    def _old(self, receiver: Life, sender: Life, number: int, why: str) -> None:
        text = f"{receiver}: {_describe(sender, number)} of {sender} {why}"
        self.verdict.complain("old session", text)

    def _check_order(self, stream: _Stream) -> None:
        """Nothing is delivered after what began when it had ended."""
        if stream.order is None:
            return
        operations = stream.sender.operations
        earliest, which = _NEVER, 0
        for number in reversed(stream.numbers):
            if operations.begin[number] > earliest:
                first, second = _describe(stream.sender, which), _describe(stream.sender, number)
                text = f"{stream.receiver}: of {stream.sender}: {first} was sent before {second}"
                self.verdict.complain("order", f"{text} and delivered after it")
            if (end := operations.ended(number)) < earliest:
                earliest, which = end, number

    def _check_operations(self, life: Life, sessions: _Sessions) -> None:
        """What became of everything that one incarnation has begun."""
        operations = life.operations
        counts = self.verdict.counts
        for number in range(1, len(operations)):
            kind = operations.kind[number]
            if not kind:
                continue  # it was ended between taking the number and writing it down
            if not operations.end[number]:
                counts["uncertain"] += 1
                if life.is_final or life.is_unloaded:
                    self.verdict.complain(
                        "hung", f"{life}: {_describe(life, number)} has not ended"
                    )
                continue
            result = operations.result[number]
            counts[f"{_WORDS[Kind(kind)]}s {_outcome(kind, result)}"] += 1
            if operations.receiver[number]:
                if kind == Kind.SYNC and result in _RAN:
                    self._check_reply(life, number)
            elif kind == Kind.SYNC:
                if result in _RAN:
                    text = f"{life}: {_describe(life, number)} has a reply, and has not run"
                    self.verdict.complain("reply", text)
            elif operations.accepted(number) and (proof := sessions.proof(life, number)):
                self.verdict.complain("lost", f"{life}: {_describe(life, number)}: {proof}")

    def _check_reply(self, life: Life, number: int) -> None:
        """The reply of a call is of who ran it, and to this call."""
        operations = life.operations
        answer = operations.answers[number]
        what = f"{life}: {_describe(life, number)}"
        ran = self.lives[operations.receiver[number] - 1]
        if answer.flags & Flag.STATUS:
            self.verdict.complain("reply", f"{what}: the status is not what the handler returned")
        if operations.result[number]:
            return
        if answer.flags & (Flag.MANGLED | Flag.ASTRAY):
            self.verdict.complain("reply", f"{what}: the reply is not one to this call")
        elif answer.incarnation != ran.incarnation:
            self.verdict.complain(
                "reply", f"{what}: {answer.incarnation:016x} replied, {ran} ran it"
            )
        elif (answer.length, answer.crc) != (operations.length[number], operations.crc[number]):
            self.verdict.complain("reply", f"{what}: the reply is to other arguments")

    def _check_confirmed(self, life: Life) -> None:
        """The calls before a message whose delivery was confirmed have run, if they run as they come."""
        operations = life.operations
        confirmed = [
            number
            for number in range(1, len(operations))
            if operations.kind[number] == Kind.CONFIRM and operations.accepted(number)
        ]
        missing = [
            number
            for number in range(1, len(operations) if confirmed else 0)
            if operations.tag[number] in PROMPT_FUNCTIONS
            and operations.accepted(number)
            and not operations.receiver[number]
        ]
        for sent in confirmed if missing else ():
            begin, end = operations.begin[sent], operations.end[sent]
            peer = self._up_throughout(life, operations.node[sent], begin, end)
            ready = life.answering.get(peer.incarnation, _NEVER) if peer else _NEVER
            for number in missing:
                to_it = operations.node[number] == operations.node[sent]
                if to_it and operations.begin[number] > ready and operations.end[number] < begin:
                    text = f"{_describe(life, number)} has not run before {_describe(life, sent)}"
                    self.verdict.complain("confirmed", f"{life}: {text}")

    def _up_throughout(self, life: Life, node: int, begin: int, end: int) -> Life | None:
        """The incarnation of a node that was up between two places, and kept its handlers."""
        events = [event for event in life.events if event.node == node and event.at < end]
        if not events or not events[-1].up or events[-1].at > begin:
            return None
        peer = self._by_incarnation.get(events[-1].incarnation)
        return peer if peer and peer.stop == _NEVER else None


class _Stream:
    """What one incarnation has had from another, in the order of delivery."""

    def __init__(self, sender: Life, receiver: Life, order: int | None) -> None:
        self.sender = sender
        self.receiver = receiver
        self.order = order
        self.numbers = array("Q")

    def last_begin(self) -> int:
        """Where the last of it began that proves something of what was before."""
        operations = self.sender.operations
        stop = self.receiver.stop
        return max(
            (operations.begin[n] for n in self.numbers if operations.received[n] < stop), default=0
        )

    def first_end(self) -> int:
        """Where the first of it had ended."""
        return min((self.sender.operations.ended(n) for n in self.numbers), default=_NEVER)


@dataclass
class _Session:
    """Two incarnations, and what the sending one's history says of when they had a session."""

    receiver: Life
    messages_from: int  # messages that began after this were for this session, or a later one
    calls_from: int  # and calls, to one that had its handlers
    quiet: bool  # both have lived on, connected
    last: dict[int | None, int] = field(default_factory=dict)


class _Sessions:
    """Tells what must have been delivered."""

    def __init__(self, lives: list[Life], streams: list[_Stream]) -> None:
        self._sessions: dict[tuple[int, int], list[_Session]] = defaultdict(list)
        of_sender: dict[int, dict[int, list[_Stream]]] = defaultdict(dict)
        for stream in streams:
            pair = of_sender[stream.sender.index].setdefault(stream.receiver.index, [])
            pair.append(stream)
        indices = {life.incarnation: life.index for life in lives}
        for sender in lives:
            had = of_sender[sender.index]
            heard = {indices[i] for i in sender.first_up if i in indices}
            # Of all others it has not heard, nor have they had anything from it.
            for index in sorted(heard | set(had)):
                receiver = lives[index - 1]
                session = self._make(sender, receiver, had.get(index, []))
                self._sessions[sender.index, receiver.node].append(session)

    @staticmethod
    def _make(sender: Life, receiver: Life, streams: list[_Stream]) -> _Session:
        own, others = sender.incarnation, receiver.incarnation
        messages = [s.first_end() for s in streams if s.order is not None and s.order < Tag.SHORT]
        return _Session(
            receiver=receiver,
            messages_from=min([sender.first_up.get(others, _NEVER), *messages]),
            calls_from=sender.answering.get(others, _NEVER),
            quiet=sender.final.get(receiver.node) == others
            and receiver.final.get(sender.node) == own,
            last={s.order: s.last_begin() for s in streams if s.order is not None},
        )

    def proof(self, life: Life, number: int) -> str:
        """Why an operation that was not delivered ought to have been; empty if there is no reason."""
        operations = life.operations
        kind, tag = operations.kind[number], operations.tag[number]
        begin, end = operations.begin[number], operations.end[number]
        order = _order_of(kind, tag)
        for session in self._sessions[life.index, operations.node[number]]:
            since = session.messages_from if kind in MESSAGES else session.calls_from
            if begin <= since:
                continue
            if session.quiet:
                return f"{session.receiver} has lived on, connected, and not got it"
            if order is not None and end < session.last.get(order, 0):
                return f"{session.receiver} has got later ones of the same order"
        return ""


def _outcome(kind: int, result: int) -> str:
    if kind == Kind.SYNC:
        return "replied" if result in _RAN else "failed"
    return "failed" if result else "accepted"


def _describe(life: Life, number: int) -> str:
    operations = life.operations
    word = _WORDS[Kind(operations.kind[number])]
    to = f"to node {operations.node[number]} tag {operations.tag[number]}"
    place = f"records {operations.begin[number]}..{operations.end[number] or ''}"
    return f"{word} {number} {to} ({place})"


def _error(result: int) -> str:
    return errno.errorcode.get(-result, str(result))


def check_folder(folder: Path, bounds: Bounds | None = None) -> Verdict:
    """Judge the histories in a folder."""
    checker = Checker(bounds)
    for path in sorted(folder.glob("node*.history")):
        checker.add(int(path.stem.removeprefix("node")), history.read(path))
    return checker.check()


def main() -> int:
    """Judge the histories in the folder that is given; the exit status."""
    if len(sys.argv) != 2:
        print("usage: checker.py FOLDER", file=sys.stderr)
        return 2
    verdict = check_folder(Path(sys.argv[1]))
    for line in verdict.lines():
        print(line)
    for what, count in verdict.counts.items():
        print(f"{count:>12}  {what}")
    print("all promises kept" if verdict.good else f"broken: {', '.join(sorted(verdict.rules))}")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
