# SPDX-License-Identifier: GPL-2.0
"""Histories of a cluster that keeps all promises, made up from a seed, for the checker's tests.

It is a model of what KCCM does and of when kccm_torture.ko writes what, step by step in random
order. Sessions lose nothing for as long as both ends live; nodes are killed, unloaded and started
again at any point.
"""

from __future__ import annotations

import errno
import random
from collections import defaultdict, deque
from dataclasses import dataclass, field

from history import MESSAGES, PROMPT_FUNCTIONS, Flag, Kind, Record, Tag

Histories = dict[int, list[Record]]

_TAGS = (Tag.ANY, Tag.PROBED, Tag.EACH, Tag.BULK)
_FUNCTIONS = (Tag.SHORT, Tag.BRIEF, Tag.LONG, Tag.SOFTIRQ)
_ENDS = {
    Kind.SEND: Kind.SENT,
    Kind.CONFIRM: Kind.CONFIRMED,
    Kind.CALL: Kind.CALLED,
    Kind.SYNC: Kind.REPLIED,
}


@dataclass
class Operation:
    """A message or call under way."""

    sender: Node
    to: int
    kind: Kind
    tag: int
    number: int
    length: int
    crc: int
    result: int | None = None
    answer: Record | None = None
    taken: bool = False  # KCCM has taken charge of it, or refused it


@dataclass
class Node:
    """One incarnation."""

    node: int
    life: int
    incarnation: int
    numbers: int = 0
    begun: list[Operation] = field(default_factory=list)
    # By the incarnation it came from: what has been received, and nobody has asked for.
    queues: dict[tuple[int, int], deque[Operation]] = field(
        default_factory=lambda: defaultdict(deque)
    )
    long_calls: list[Operation] = field(default_factory=list)
    told: dict[int, int] = field(default_factory=dict)  # what the subscriber believes is up
    ready: set[int] = field(default_factory=set)  # incarnations that answer calls
    greeted: set[int] = field(default_factory=set)  # incarnations that know that we do
    receiving: dict[int, int] = field(default_factory=dict)  # by tag, where the call began


class Simulation:
    """A cluster at work. histories has what its nodes wrote down."""

    def __init__(self, seed: int, nodes: int = 3) -> None:
        self.random = random.Random(seed)
        self.histories: Histories = {node: [] for node in range(nodes)}
        self._nodes: dict[int, Node] = {}
        self._lives: dict[int, int] = defaultdict(int)
        # What is under way, by the incarnations of sender and receiver.
        self._sessions: dict[tuple[int, int], deque[Operation]] = defaultdict(deque)
        self._quiet = False

    def run(self, steps: int = 3000, faults: bool = True) -> Histories:
        """Live for so many steps, then let all come to rest."""
        for node in self.histories:
            self._start(node)
        for _ in range(steps):
            if faults and self.random.random() < 0.003:
                self._fault()
            else:
                self._step()
        for node in self.histories:
            if node not in self._nodes:
                self._start(node)
        self._rest()
        return self.histories

    # Faults.

    def _fault(self) -> None:
        off = [node for node in self.histories if node not in self._nodes]
        node = self.random.choice(off or list(self.histories))
        if off:
            self._start(node)
        elif self.random.random() < 0.5:
            self._kill(node)
        else:
            self._unload(node)

    def _start(self, number: int) -> None:
        self._lives[number] += 1
        life = self._lives[number]
        for history in self.histories.values():
            history.append(Record(Kind.STARTING, number, number=life))
        node = Node(number, life, self.random.getrandbits(64) | 1)
        self._nodes[number] = node
        self._write(node, Record(Kind.BEGIN, number, number=life, incarnation=node.incarnation))
        self._write(node, Record(Kind.READY, number))

    def _end(self, number: int) -> Node:
        """A node is no more; what was under way to it is lost."""
        gone = self._nodes.pop(number)
        for pair in list(self._sessions):
            if gone.incarnation in pair:
                del self._sessions[pair]
        for node in self._nodes.values():
            self._forget(node, gone.incarnation)
            for operation in node.begun:
                to_it = operation.to == number and operation.taken
                if to_it and operation.result is None:
                    operation.result = -errno.EHOSTDOWN
        return gone

    @staticmethod
    def _forget(node: Node, incarnation: int) -> None:
        """What came from an incarnation that is over is thrown away."""
        for source in [key for key in node.queues if key[0] == incarnation]:
            del node.queues[source]
        node.long_calls = [c for c in node.long_calls if c.sender.incarnation != incarnation]

    def _kill(self, number: int) -> None:
        self._end(number)
        self.histories[number].append(Record(Kind.DIED, number))

    def _unload(self, number: int) -> None:
        node = self._nodes[number]
        for operation in list(node.begun):
            self._finish(node, operation, -errno.ETIMEDOUT)
        self._write(node, Record(Kind.STOP, number))
        self._end(number)
        self._write(node, Record(Kind.END, number))

    # Steps.

    def _step(self) -> None:
        if not self._nodes:
            return
        node = self.random.choice(list(self._nodes.values()))
        choices = [self._hear, self._begin, self._take, self._finish_one]
        choices += [self._deliver, self._deliver, self._receive, self._receive, self._run_long]
        self.random.choice(choices)(node)

    def _rest(self) -> None:
        """No more operations begin, until nothing is left to do."""
        self._quiet = True
        for _ in range(20):
            for node in self._nodes.values():
                for _ in range(10 * len(self._nodes)):
                    self._hear(node)
                while node.begun:
                    self._take(node)
                    self._finish_one(node)
                    self._deliver_all()
                self._deliver_all()
        for node in self._nodes.values():
            for peer in self._nodes.values():
                if peer is not node:
                    incarnation = node.told.get(peer.node, 0)
                    final = Record(Kind.FINAL, peer.node, incarnation=incarnation)
                    self._write(node, final)

    def _deliver_all(self) -> None:
        for node in self._nodes.values():
            while any(q for (_, to), q in self._sessions.items() if to == node.incarnation):
                self._deliver(node)
            while any(node.queues.values()):
                self._receive(node)
            while node.long_calls:
                self._run_long(node)

    def _hear(self, node: Node) -> None:
        """The subscriber is told of one node, if there is something to tell."""
        other = self.random.choice([n for n in self.histories if n != node.node])
        now = self._nodes.get(other)
        believed = node.told.get(other, 0)
        actual = now.incarnation if now else 0
        if believed and believed != actual:
            self._write(node, Record(Kind.DOWN, other, incarnation=believed))
            del node.told[other]
        elif actual and not believed:
            self._write(node, Record(Kind.UP, other, incarnation=actual))
            node.told[other] = actual
        if node.told.get(other) and actual not in node.greeted:
            node.greeted.add(actual)
            self._new(node, other, Kind.SEND, Tag.READY)

    def _begin(self, node: Node) -> None:
        """A thread calls KCCM."""
        other = self.random.choice([n for n in self.histories if n != node.node])
        kind = self.random.choice([Kind.SEND, Kind.SEND, Kind.CONFIRM, Kind.CALL, Kind.SYNC])
        if self._quiet or len(node.begun) > 6:
            return
        if kind in MESSAGES:
            self._new(node, other, kind, self.random.choice(_TAGS))
        elif node.told.get(other) in node.ready:
            self._new(node, other, kind, self.random.choice(_FUNCTIONS))

    def _new(self, node: Node, to: int, kind: Kind, tag: int) -> None:
        node.numbers += 1
        crc, length = self.random.getrandbits(32), self.random.randrange(2000)
        operation = Operation(node, to, kind, tag, node.numbers, length, crc)
        fields = {"number": node.numbers, "length": length, "crc": crc}
        self._write(node, Record(kind, to, tag, **fields))
        node.begun.append(operation)

    def _take(self, node: Node) -> None:
        """KCCM takes charge of something, or refuses it."""
        waiting = [o for o in node.begun if not o.taken]
        if not waiting:
            return
        operation = self.random.choice(waiting)
        operation.taken = True
        peer = self._nodes.get(operation.to)
        if peer is None:
            operation.result = -errno.EHOSTDOWN
        elif operation.tag != Tag.READY and self.random.random() < 0.05:
            operation.result = -errno.EAGAIN
        else:
            self._sessions[node.incarnation, peer.incarnation].append(operation)
            if operation.kind in (Kind.SEND, Kind.CALL):
                operation.result = 0

    def _finish_one(self, node: Node) -> None:
        """An operation returns to its caller."""
        done = [o for o in node.begun if o.result is not None]
        late = [o for o in node.begun if o.taken and o.result is None]
        if done:
            self._finish(node, self.random.choice(done), 0)
        elif late and self.random.random() < 0.1:
            self._finish(node, late[0], -errno.ETIMEDOUT)

    def _finish(self, node: Node, operation: Operation, otherwise: int) -> None:
        operation.result = otherwise if operation.result is None else operation.result
        if not operation.taken:
            operation.taken, operation.result = True, -errno.EINTR
        node.begun.remove(operation)
        end = Record(_ENDS[operation.kind], result=operation.result, number=operation.number)
        if operation.result == 0 and operation.answer:
            end = operation.answer
        self._write(node, end)

    def _deliver(self, node: Node) -> None:
        """The next frame from somebody arrives."""
        arriving = [q for (_, to), q in self._sessions.items() if to == node.incarnation and q]
        if not arriving:
            return
        operation = self.random.choice(arriving).popleft()
        if operation.kind in MESSAGES:
            if operation.kind == Kind.CONFIRM and operation.result is None:
                operation.result = 0
            node.queues[operation.sender.incarnation, operation.tag].append(operation)
        elif operation.tag in PROMPT_FUNCTIONS:
            self._run(node, operation)
        else:
            node.long_calls.append(operation)

    def _run_long(self, node: Node) -> None:
        if node.long_calls:
            which = self.random.randrange(len(node.long_calls))
            self._run(node, node.long_calls.pop(which))

    def _run(self, node: Node, operation: Operation) -> None:
        self._came(node, Kind.RUN, operation, 0)
        waiting = operation in operation.sender.begun and operation.result is None
        if operation.kind == Kind.SYNC and waiting:
            operation.result = -errno.EREMOTEIO if operation.number % 8 == 7 else 0
            operation.answer = Record(
                Kind.REPLIED,
                number=operation.number,
                incarnation=node.incarnation,
                length=operation.length,
                crc=operation.crc,
            )

    def _receive(self, node: Node) -> None:
        """A receiver asks for a message, or gets one."""
        tag = self.random.choice((Tag.READY, *_TAGS))
        if tag not in node.receiving:
            node.receiving[tag] = self._written(node)
            return
        queues = [queue for (_, which), queue in node.queues.items() if which == tag and queue]
        if queues:
            operation = self.random.choice(queues).popleft()
            began = node.receiving.pop(tag)
            self._came(node, Kind.RECV, operation, self._written(node) + 1 - began)
            if tag == Tag.READY:
                node.ready.add(operation.sender.incarnation)

    def _came(self, node: Node, kind: Kind, operation: Operation, result: int) -> None:
        sender = operation.sender
        self._write(
            node,
            Record(
                kind,
                sender.node,
                operation.tag,
                result=result,
                number=operation.number,
                incarnation=sender.incarnation,
                length=operation.length,
                crc=operation.crc,
            ),
        )

    def _written(self, node: Node) -> int:
        return sum(record.kind < Kind.STARTING for record in self.histories[node.node])

    def _write(self, node: Node, record: Record) -> None:
        self.histories[node.node].append(record)


__all__ = ["Flag", "Histories", "Simulation"]
