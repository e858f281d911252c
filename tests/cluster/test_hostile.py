# SPDX-License-Identifier: GPL-2.0
"""A hostile node that speaks the protocol wrongly, in every state of a connection.

What can be said wrongly (SPEECHES) is said in every state that a connection can
be in for the victim: while it awaits a greeting, is refused, welcomed, in use, resumed
or over, on the side that is connected to and on the side that connects. What
must come of it follows from the state and from what is wrong. After each of
these conversations nothing may be left of it; a true peer exchanges messages
with the victim all the while and loses nothing, and at the end no kernel may
have complained.

A node that has a peer's address can do harm to its own session only.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest

import wire
from cluster import address
from cluster.cluster import PORT, SYSFS
from cluster.settings import timeout_scale
from conftest import ClusterFactory
from hostile import BOUNDS, HIGH, LOW, SOON, TRUE, VICTIM, Cell, Hostile, program
from traffic import traffic
from wire import BYE, CALL, CALL_SYNC, CREDIT, MESSAGE, OPEN, PING, REPLY
from wire import header as H

KINDS = {
    "message": MESSAGE,
    "call": CALL,
    "synchronous call": CALL_SYNC,
    "reply": REPLY,
    "credit": CREDIT,
    "ping": PING,
    "open": OPEN,
    "bye": BYE,
}
MOST = {MESSAGE: BOUNDS["max_message"], CREDIT: 0, PING: 0, BYE: 0, OPEN: 0}
NOBODY = 0x7FFF_FFFF  # a function that nobody has registered
TAG = 0x7FFF  # of messages that nobody receives

# What the hostile nodes say that they have room for.
WINDOWS = (wire.Greeting().queue_bytes, wire.Greeting().rcall_bytes)

U64 = (1 << 64) - 1

# What is left to chance, and how much of it.
SEED = int(os.environ.get("KCCM_HOSTILE_SEED", "1"))
COUNT = int(os.environ.get("KCCM_HOSTILE_COUNT", "300"))


class Verdict(Enum):
    """What comes of something that is said where frames are expected."""

    MALFORMED = "the frame makes no sense"
    WRONG = "the frame breaks the rules"
    FINE = "it changes nothing, or is served"
    SHORT = "the frame is not complete"
    STOPS = "ESHUTDOWN"
    KEEPS_AWAY = "EHOSTDOWN"
    RECONNECTS = "ECONNRESET"
    COMPLAINS = "EPROTO"


BYES = [
    Verdict.STOPS,
    Verdict.KEEPS_AWAY,
    Verdict.RECONNECTS,
    Verdict.RECONNECTS,
    Verdict.COMPLAINS,
]


@dataclass(frozen=True)
class Place:
    """Where a session stands."""

    next: int = 1  # the number of the next frame to the victim
    sent: int = 0  # the number of the last frame from it


@dataclass(frozen=True)
class Speech:
    """Something to be said."""

    name: str
    verdict: Verdict
    say: Callable[[Place], bytes]
    takes: int = 0  # how many numbers it uses up; -1 for one if that is the first
    zeros: int = 0  # what is said behind it
    heard: bool = True  # whether its first header can be made out, and makes sense


Said = Callable[[Place], bytes]


def frame(kind: int, place: Place, length: int = 0, **fields: int) -> bytes:
    """The header of the next frame of this kind."""
    seq = place.next if kind in wire.SEQUENCED else 0
    return H(kind, length, **{"seq": seq, **fields})


def next_frame(kind: int, length: int = 0, **fields: int) -> Said:
    """The next frame, but for what follows its header."""
    return lambda place: frame(kind, place, length, **fields)


def ahead(kind: int, jump: int) -> Said:
    """The next frame but so many."""
    return lambda place: frame(kind, place, seq=place.next + jump)


def acknowledging(kind: int, jump: int) -> Said:
    """The next frame, which acknowledges so many more than have been sent."""
    return lambda place: frame(kind, place, ack=min(place.sent + jump, U64))


def then(*parts: Said | bytes) -> Said:
    """One after the other."""
    return lambda place: b"".join(p if isinstance(p, bytes) else p(place) for p in parts)


def several(kind: int, count: int, length: int = 0, **fields: int) -> Said:
    """So many frames."""

    def said(place: Place) -> bytes:
        numbers = range(place.next, place.next + count)
        return b"".join(H(kind, length, seq=n, **fields) + bytes(length) for n in numbers)

    return said


def cut(said: Said, count: int) -> Said:
    """The beginning of it."""
    return lambda place: said(place)[:count]


def malformed(name: str, kind: int, length: int = 0, **fields: int) -> Speech:
    """A header that makes no sense by itself."""
    said = next_frame(kind, length, **fields)
    return Speech(name, Verdict.MALFORMED, said, heard=False)


def wrong(name: str, said: Said) -> Speech:
    """A frame that breaks the rules."""
    return Speech(name, Verdict.WRONG, said)


def fine(name: str, said: Said, takes: int = 1) -> Speech:
    """Frames that do no harm."""
    return Speech(name, Verdict.FINE, said, takes)


def short(name: str, said: Said, heard: bool, zeros: int = 0) -> Speech:
    """A frame that is not complete."""
    return Speech(name, Verdict.SHORT, said, heard=heard, zeros=zeros)


def speeches_of_a_kind(name: str, kind: int) -> Iterator[Speech]:
    """What can be wrong with a frame of any kind."""
    for flags in (6, 255) if kind == REPLY else (1, 255):
        yield malformed(f"{name}, flags {flags}", kind, flags=flags)
    for reserved in (1, 0x8000):
        yield malformed(f"{name}, reserved {reserved}", kind, reserved=reserved)
    for length in (MOST.get(kind, BOUNDS["max_rcall"]) + 1, (1 << 32) - 1):
        yield malformed(f"{name} of {length} bytes", kind, length)
    for number in (1, 1 << 63, U64):
        yield wrong(f"{name} acknowledges {number} too many", acknowledging(kind, number))
    if kind not in wire.SEQUENCED:
        for number in (1, U64):
            yield malformed(f"{name} with number {number}", kind, seq=number)
        return
    yield malformed(f"{name} without a number", kind, seq=0)
    for number in (1, 1000, 1 << 63):
        yield wrong(f"{name} jumps {number} ahead", ahead(kind, number))
    yield wrong(f"{name} with the last number", next_frame(kind, seq=U64))
    # The next frame, and then the same number again; in a session that goes on, an old number.
    tag = 0 if kind == REPLY else NOBODY
    yield fine(f"{name} twice", then(*(2 * [next_frame(kind, tag=tag)])))
    yield fine(f"{name} with the first number", next_frame(kind, tag=tag, seq=1), takes=-1)


# Fields that mean nothing.
FIELDS: list[tuple[str, int, dict[str, int]]] = [
    ("message, id", MESSAGE, {"id": 1}),
    ("message, arg", MESSAGE, {"arg": -1}),
    ("call, id", CALL, {"id": 1}),
    ("call, arg", CALL, {"arg": 1}),
    ("synchronous call, room", CALL_SYNC, {"arg": -1}),
    ("synchronous call, more room", CALL_SYNC, {"arg": BOUNDS["max_rcall"] + 1}),
    ("reply that needs room", REPLY, {"tag": 1}),
    ("reply that has not run and needs room", REPLY, {"tag": 1, "flags": 1}),
    ("credit for no lane", CREDIT, {"tag": 2}),
    ("credit for lane -1", CREDIT, {"tag": 0xFFFF_FFFF}),
    ("credit, arg", CREDIT, {"arg": 1}),
    ("ping, id", PING, {"id": 1}),
    ("ping wants 2", PING, {"tag": 2}),
    ("ping, arg", PING, {"arg": 1}),
    ("bye, id", BYE, {"id": 1}),
    ("bye for no reason", BYE, {"tag": len(BYES)}),
    ("bye, arg", BYE, {"arg": 1}),
    ("open, id", OPEN, {"id": 1}),
    ("open, tag", OPEN, {"tag": 1}),
    ("open, arg", OPEN, {"arg": 1}),
]

# What is not frames at all.
NOISE = {
    "another hello": wire.Greeting("hostile-own", source=LOW, to=VICTIM).encode(),
    "a welcome": wire.Greeting("hostile-own", LOW, VICTIM, wire.WELCOME).encode(),
    "a refusal": wire.Greeting("hostile-own", LOW, VICTIM, wire.REFUSAL, 1).encode(),
    "zeros": bytes(200),
    "ones": b"\xff" * 200,
    "HTTP": b"GET / HTTP/1.1\r\nHost: node1\r\nAccept: */*\r\n\r\n",
    "noise": b"\xa5" + random.Random(4711).randbytes(7999),
}


def speeches() -> Iterator[Speech]:
    """Everything wrong, and some that is only odd."""
    for kind in (0, 9, 77, 128, 255):
        yield malformed(f"kind {kind}", kind)
    for name, kind in KINDS.items():
        yield from speeches_of_a_kind(name, kind)
    for name, kind, fields in FIELDS:
        yield malformed(name, kind, **fields)
    for name, data in NOISE.items():
        yield Speech(name, Verdict.MALFORMED, then(data), heard=False)
    # Credit.
    for lane, window in enumerate(WINDOWS):
        for limit in (window + 1, 1 << 63, U64):
            yield wrong(f"lane {lane} granted {limit}", next_frame(CREDIT, tag=lane, id=limit))
        yield fine(f"lane {lane} granted nothing", next_frame(CREDIT, tag=lane), 0)
    less = H(CREDIT, tag=1, id=WINDOWS[1]) + H(CREDIT, tag=1, id=1)
    yield fine("lane 1 granted, and less than that", then(less), 0)
    length = 40_000
    count = BOUNDS["queue_bytes"] // (256 + length) + 1
    yield wrong("more messages than granted", several(MESSAGE, count, length, tag=TAG))
    # What is kept for replies that are never acknowledged.
    count = BOUNDS["rcall_bytes"] // (256 + length) + 1
    yield wrong("more calls than granted", several(CALL_SYNC, count, tag=NOBODY, arg=length))
    # Calls and replies.
    for number in (0, 1, U64):
        yield fine(f"reply to {number}, which was never called", next_frame(REPLY, id=number))
    for outcome in range(1, 6):
        yield fine(f"reply to nothing, outcome {outcome}", next_frame(REPLY, flags=outcome))
    yield fine("long reply to nothing", several(REPLY, 1, length, tag=length))
    yield fine("call of nothing", next_frame(CALL, tag=NOBODY))
    for number in (0, U64):
        said = next_frame(CALL_SYNC, tag=NOBODY, id=number)
        yield fine(f"call of nothing with id {number}", said)
    yield fine("calls with the same id", several(CALL_SYNC, 3, tag=NOBODY, id=7), 3)
    # Lengths that are not those of what follows.
    four = then(next_frame(MESSAGE, 4, tag=TAG), b"four", b"\xeemore", bytes(35))
    yield Speech("message longer than it says", Verdict.MALFORMED, four)
    eight = then(next_frame(MESSAGE, 8, tag=TAG), b"four", 2 * H(PING, tag=1))
    yield Speech("message shorter than it says", Verdict.MALFORMED, eight)
    # What is not complete.
    yield short("nothing", then(), False)
    for count in (1, 4, 39):
        part = cut(next_frame(MESSAGE, 100, tag=TAG), count)
        yield short(f"{count} bytes of a header", part, False)
    longest = next_frame(MESSAGE, BOUNDS["max_message"], tag=TAG)
    yield short("a header and nothing behind it", longest, True)
    yield short("half a message", then(longest, bytes(100)), True, zeros=30_000)
    half = cut(several(CALL, 2, 9, tag=NOBODY), 2 * (wire.HEADER_LEN + 9) - 1)
    yield short("a call and most of the next", half, True)
    # Good-byes, and what is said behind them.
    for reason, verdict in enumerate(BYES):
        bye = H(BYE, tag=reason)
        yield Speech(f"bye, reason {reason}", verdict, then(bye))
        more = then(bye, next_frame(MESSAGE, tag=TAG), b"\xa5" * 60)
        yield Speech(f"bye, reason {reason}, and more", verdict, more)
    # What is right.
    yield fine("ping", then(H(PING)), 0)
    yield fine("message", next_frame(MESSAGE, tag=TAG))


SPEECHES = list(speeches())

# One of each kind: those that say the same with another number are left out.
KINDS_OF_SPEECH = list({re.sub(r"\d+", "", s.name): s for s in reversed(SPEECHES)}.values())


# States in which frames are expected. Each leads there, and says something.


def judge_open(cell: Cell, speech: Speech, place: Place, peer: int, incarnation: int) -> Cell:
    """What must come of what was said on a connection that is in use."""
    if speech.verdict is Verdict.FINE:
        # All that came before this is served, and the session goes on.
        last = place.next + (speech.takes if speech.takes >= 0 else int(place.next == 1))
        cell.say(H(CALL, tag=NOBODY, seq=last) + H(PING, tag=1))
        cell.do(f"acked 0 {last} {SOON}", "finish 0")
        return cell.lost(peer, incarnation, "ECONNRESET").ends("-1")
    if speech.verdict is Verdict.SHORT:
        cell.do("finish 0")
        return cell.lost(peer, incarnation, "ECONNRESET").ends("-1")
    if speech.verdict in (Verdict.MALFORMED, Verdict.WRONG):
        return cell.lost(peer, incarnation, "EPROTO").ends("4")
    return cell.lost(peer, incarnation, speech.verdict.value).ends()


def judge_welcomed(cell: Cell, speech: Speech, incarnation: int) -> Cell:
    """The same on a connection on which nothing was heard before."""
    if speech.heard:
        return judge_open(cell.connected(LOW, incarnation), speech, Place(), LOW, incarnation)
    if speech.verdict is Verdict.SHORT:
        cell.do("finish 0")
    return cell.ends("-1").never_connected(LOW)


def say(cell: Cell, speech: Speech, place: Place, before: bytes = b"", slot: int = 0) -> Cell:
    """Say it."""
    data = before + speech.say(place)
    # A line of the script is not that long.
    for start in range(0, len(data), 4000):
        cell.say(data[start : start + 4000], slot)
    return cell.do(f"zeros {slot} {speech.zeros}") if speech.zeros else cell


class Talk:
    """Makes the conversations."""

    def __init__(self, hostile: Hostile) -> None:
        self.hostile = hostile

    # The side that is connected to.

    def awaited(self, speech: Speech) -> Cell:
        """A greeting is awaited."""
        return self._instead(speech, b"")

    def half_greeted(self, speech: Speech) -> Cell:
        """Half of a greeting has come in."""
        return self._instead(speech, self.hostile.hello(self.hostile.incarnation())[:72])

    def _instead(self, speech: Speech, before: bytes) -> Cell:
        cell = Cell(f"{'half a hello' if before else 'no hello'}: {speech.name}")
        say(self.hostile.connect(cell).say(before), speech, Place())
        return cell.do("finish 0").ends().never_connected(LOW)

    def refused(self, speech: Speech) -> Cell:
        """The greeting was refused."""
        cell, incarnation = Cell(f"refused: {speech.name}"), self.hostile.incarnation()
        self.hostile.connect(cell).say(self.hostile.hello(incarnation, cluster="other"))
        return say(cell.refused(2), speech, Place()).ends().never_connected(LOW)

    def pipelined(self, speech: Speech) -> Cell:
        """The greeting has yet to be judged."""
        cell, incarnation = Cell(f"hello, and at once: {speech.name}"), self.hostile.incarnation()
        hello = self.hostile.hello(incarnation)
        say(self.hostile.connect(cell), speech, Place(), hello).welcomed()
        return judge_welcomed(cell, speech, incarnation)

    def welcomed(self, speech: Speech) -> Cell:
        """Nothing was heard yet but the greeting."""
        cell, incarnation = Cell(f"welcomed: {speech.name}"), self.hostile.incarnation()
        self.hostile.connect(cell).say(self.hostile.hello(incarnation)).welcomed()
        return judge_welcomed(say(cell, speech, Place()), speech, incarnation)

    def _up(self, cell: Cell, incarnation: int) -> Cell:
        self.hostile.connect(cell).say(self.hostile.hello(incarnation) + H(PING)).welcomed()
        return cell.up(LOW)

    def accepted(self, speech: Speech) -> Cell:
        """The connection is in use."""
        cell, incarnation = Cell(f"up: {speech.name}"), self.hostile.incarnation()
        say(self._up(cell, incarnation), speech, Place())
        return judge_open(cell, speech, Place(), LOW, incarnation)

    def resumed(self, speech: Speech) -> Cell:
        """The session has had another connection, and both sides have sent something in it."""
        cell, incarnation = Cell(f"resumed: {speech.name}"), self.hostile.incarnation()
        cell = self._up(cell, incarnation).say(H(CALL_SYNC, tag=NOBODY, id=5) + H(PING, tag=1))
        cell.do(f"acked 0 1 {SOON}", "reset 0").lost(LOW, incarnation, "ECONNRESET")
        again = self.hostile.hello(incarnation, to_incarnation=self.hostile.victim, received=1)
        self.hostile.connect(cell.do("forget")).say(again + H(PING)).welcomed().up(LOW)
        place = Place(next=2, sent=1)
        return judge_open(say(cell, speech, place), speech, place, LOW, incarnation)

    def parted(self, speech: Speech) -> Cell:
        """The hostile node has said that it wants another connection."""
        cell, incarnation = Cell(f"behind a bye: {speech.name}"), self.hostile.incarnation()
        say(self._up(cell, incarnation), speech, Place(), H(BYE, tag=2))
        return cell.lost(LOW, incarnation, "ECONNRESET").ends()

    def dismissed(self, speech: Speech) -> Cell:
        """The victim has said that it wants another connection."""
        cell, incarnation = Cell(f"dismissed: {speech.name}"), self.hostile.incarnation()
        self._up(cell, incarnation).say(H(PING, tag=1)).do(f"acked 0 0 {SOON}")
        cell.do(f"write {SYSFS}/peers/{LOW}/control disconnect")
        cell.lost(LOW, incarnation, "ECONNABORTED").do("forget")
        return say(cell, speech, Place()).ends("2").do(f"quiet node {LOW}")

    def replaced(self, speech: Speech) -> Cell:
        """There is a newer connection, which goes on."""
        cell, incarnation = Cell(f"replaced: {speech.name}"), self.hostile.incarnation()
        self._up(cell, incarnation)
        again = self.hostile.hello(incarnation, to_incarnation=self.hostile.victim) + H(PING)
        self.hostile.connect(cell, 1).say(again, 1).welcomed(1)
        cell.lost(LOW, incarnation, "ECONNRESET").do("forget")
        say(cell, speech, Place()).ends("3").say(H(CALL, tag=NOBODY) + H(PING, tag=1), 1)
        cell.do(f"acked 1 1 {SOON}", f"quiet lost node {LOW}", "finish 1")
        return cell.lost(LOW, incarnation, "ECONNRESET").ends("-1", 1)

    # The side that connects.

    def unanswered(self, speech: Speech) -> Cell:
        """An answer is awaited."""
        return self._answer(speech, b"")

    def half_answered(self, speech: Speech) -> Cell:
        """Half of an answer has come in."""
        return self._answer(speech, self.hostile.welcome(self.hostile.incarnation())[:72])

    def _answer(self, speech: Speech, before: bytes) -> Cell:
        cell = Cell(f"{'half a welcome' if before else 'no welcome'}: {speech.name}")
        say(self.hostile.accept(cell), speech, Place(), before)
        return cell.do("finish 0").ends("-1").never_connected(HIGH)

    def at_once(self, speech: Speech) -> Cell:
        """The answer has yet to be judged."""
        cell, incarnation = Cell(f"welcome, and at once: {speech.name}"), self.hostile.incarnation()
        say(self.hostile.accept(cell), speech, Place(), self.hostile.welcome(incarnation))
        return judge_open(cell, speech, Place(), HIGH, incarnation)

    def _in_use(self, cell: Cell, incarnation: int) -> Cell:
        self.hostile.accept(cell).say(self.hostile.welcome(incarnation))
        return cell.connected(HIGH, incarnation)

    def connecting(self, speech: Speech) -> Cell:
        """The connection is in use."""
        cell, incarnation = Cell(f"welcomes: {speech.name}"), self.hostile.incarnation()
        say(self._in_use(cell, incarnation), speech, Place())
        return judge_open(cell, speech, Place(), HIGH, incarnation)

    def reconnected(self, speech: Speech) -> Cell:
        """The session has had another connection, and both sides have sent something in it."""
        cell, incarnation = Cell(f"welcomes again: {speech.name}"), self.hostile.incarnation()
        self._in_use(cell, incarnation).say(H(CALL_SYNC, tag=NOBODY, id=5) + H(PING, tag=1))
        cell.do(f"acked 0 1 {SOON}", "reset 0").lost(HIGH, incarnation, "ECONNRESET")
        self.hostile.accept(cell.do("forget")).say(self.hostile.welcome(incarnation, received=1))
        place = Place(next=2, sent=1)
        return judge_open(say(cell, speech, place), speech, place, HIGH, incarnation)

    def given_up(self, speech: Speech) -> Cell:
        """The victim has said that it wants another connection."""
        cell, incarnation = Cell(f"given up: {speech.name}"), self.hostile.incarnation()
        self._in_use(cell, incarnation).do(f"acked 0 0 {SOON}")
        cell.do(f"write {SYSFS}/peers/{HIGH}/control disconnect")
        cell.lost(HIGH, incarnation, "ECONNABORTED").do("forget")
        return say(cell, speech, Place()).ends("2").do(f"quiet lost node {HIGH}")

    STATES = {
        LOW: (
            awaited,
            half_greeted,
            refused,
            pipelined,
            welcomed,
            accepted,
            resumed,
            parted,
            dismissed,
            replaced,
        ),
        HIGH: (
            unanswered,
            half_answered,
            at_once,
            connecting,
            reconnected,
            given_up,
        ),
    }

    # Those of them in which there is no session, and those in which nobody listens any more.
    SILENT = (awaited, half_greeted, refused, unanswered, half_answered)
    OVER = (parted, dismissed, replaced, given_up)

    def everything(self) -> Iterator[Cell]:
        """Every speech in every state where frames are expected, one of each kind elsewhere.

        On a kernel that takes much longer, because it checks itself, each kind in one state where
        frames are expected and in one elsewhere, on either side.
        """
        slow = timeout_scale() > 1
        elsewhere = self.SILENT + self.OVER
        for peer, states in self.STATES.items():
            for state in states:
                alike = [s for s in states if (s in elsewhere) == (state in elsewhere)]
                speeches = KINDS_OF_SPEECH if slow or state in elsewhere else SPEECHES
                for speech in speeches[alike.index(state) :: len(alike)] if slow else speeches:
                    cell = state(self, speech)
                    if state in self.SILENT:
                        yield cell.nothing_left(peer)
                    else:
                        yield cell
                        yield self.hostile.cleanup(peer)


# Greetings.

# What a hello says wrongly, and what it is refused for; None if it is not answered at all.
HELLOS: list[tuple[dict[str, Any], int | None]] = [
    *(({"magic": magic}, None) for magic in (b"HTTP", b"KCCN", b"MCCK", bytes(4))),
    *(({"version": version}, 1) for version in (0, wire.VERSION - 1, wire.VERSION + 1, 256, 0xFFFF)),
    *(({"cluster": name}, 2) for name in ("other", "h", 64 * "x")),
    *(({"source": source}, 3) for source in (VICTIM, 9, 255)),
    *(({"to": to}, 3) for to in (LOW, TRUE, 9, 255)),
    *(({"source": source}, 4) for source in (TRUE, HIGH)),
    *(({"kind": kind}, 9) for kind in (0, wire.WELCOME, wire.REFUSAL, 5, 255)),
    ({"kind": wire.HELLO_BULK}, 11),
    *(({"reason": reason}, 9) for reason in (1, 255)),
    *(({"source": node}, 9) for node in (256, 0xFFFF)),
    *(({"to": node}, 9) for node in (256, 0xFFFF)),
    *(({"dead_ms": ms}, 9) for ms in (0, 99, 3_600_001, 0xFFFF_FFFF)),
    *(({"queue_bytes": size}, 9) for size in (0, 1 << 20, (1 << 40) + 1, U64)),
    *(({"rcall_bytes": size}, 9) for size in (0, 1 << 20, (1 << 40) + 1, U64)),
    *(({"max_message": size}, 9) for size in (1 << 30, 0xFFFF_FFFF)),
    *(({"max_rcall": size}, 9) for size in (1 << 30, 0xFFFF_FFFF)),
    *(({"received": number}, 9) for number in (1, U64)),
    *(({"cluster": name}, 9) for name in ("", "two words", "del\x7f", "h\0stile")),
    ({"incarnation": 0}, 9),
]

# What is odd in a hello, but no reason not to be welcome: all of it is about another session.
ODD_HELLOS: list[dict[str, Any]] = [
    {"to_incarnation": 1},
    {"to_incarnation": U64, "received": U64},
    {"granted": (U64, U64)},
]

# What a welcome says wrongly, and what the log has to say of that.
WELCOMES: list[tuple[dict[str, Any], str]] = [
    *(({"magic": magic}, "malformed greeting") for magic in (b"HTTP", bytes(4))),
    *(({"version": version}, "wrong version") for version in (0, wire.VERSION - 1, wire.VERSION + 1, 0xFFFF)),
    *(({"kind": kind}, "malformed greeting") for kind in (0, wire.HELLO, wire.HELLO_BULK, 255)),
    *(({"reason": reason}, "malformed greeting") for reason in (1, 255)),
    *(({"cluster": name}, "wrong cluster") for name in ("other", "h")),
    *(({"source": source}, "unknown id") for source in (LOW, VICTIM, TRUE, 9)),
    *(({"to": to}, "unknown id") for to in (LOW, TRUE, HIGH)),
    *(({"to_incarnation": number}, "unknown id") for number in (1, U64)),
    *(({"source": node}, "malformed greeting") for node in (256, 0xFFFF)),
    *(({"dead_ms": ms}, "malformed greeting") for ms in (0, 3_600_001)),
    *(({"queue_bytes": size}, "malformed greeting") for size in (0, U64)),
    *(({"rcall_bytes": size}, "malformed greeting") for size in (0, U64)),
    *(({"max_message": size}, "malformed greeting") for size in (1 << 30, 0xFFFF_FFFF)),
    ({"to_incarnation": 0, "received": 1}, "malformed greeting"),
    ({"incarnation": 0}, "malformed greeting"),
    ({"cluster": ""}, "malformed greeting"),
]


def hello_cells(hostile: Hostile) -> Iterator[Cell]:
    """Wrong hellos, with and without a session that they could do harm to."""
    for change, reason in HELLOS:
        cell = hostile.connect(Cell(f"hello, {change}"))
        cell.say(hostile.hello(**{"incarnation": hostile.incarnation(), **change}))
        if reason is not None:
            cell.refused(reason)
        yield cell.ends("-1").never_connected(LOW).nothing_left(LOW)
    cell = hostile.connect(Cell("hello from another's address"), at=HIGH)
    cell.say(hostile.hello(hostile.incarnation())).refused(6).ends("-1")
    yield cell.never_connected(LOW).nothing_left(LOW).nothing_left(HIGH)
    for change in ODD_HELLOS:
        cell, incarnation = Cell(f"odd hello, {change}"), hostile.incarnation()
        hostile.connect(cell).say(hostile.hello(incarnation, **change)).welcomed()
        cell.say(H(CALL, tag=NOBODY) + H(PING, tag=1)).do(f"acked 0 1 {SOON}", "finish 0")
        yield cell.lost(LOW, incarnation, "ECONNRESET").ends("-1")
        yield hostile.cleanup(LOW)
    admin = f"write {SYSFS}/peers/{LOW}/admin"
    cell = hostile.connect(Cell("kept away").do(f"{admin} down"))
    cell.say(hostile.hello(hostile.incarnation())).refused(7).ends("-1").do(f"{admin} up")
    yield cell.never_connected(LOW).nothing_left(LOW)


def stale_cells(hostile: Hostile) -> Iterator[Cell]:
    """Hellos that have nothing to do with the session that there is."""
    incarnation, victim = hostile.incarnation(), hostile.victim
    # Two frames from the victim, of which one has been acknowledged.
    cell = Cell("a session with stale hellos")
    hostile.connect(cell).say(hostile.hello(incarnation)).welcomed()
    calls = [H(CALL_SYNC, tag=NOBODY, id=n, seq=n) for n in (1, 2)]
    cell.say(b"".join(calls) + H(PING, tag=1)).do(f"acked 0 2 {SOON}")
    cell.say(H(CALL, tag=NOBODY, seq=3, ack=1) + H(PING, ack=1, tag=1)).do(f"acked 0 3 {SOON}")
    cell.connected(LOW, incarnation)
    stale = [
        *({"to_incarnation": to} for to in (0, 1, victim ^ 1, U64)),
        *({"to_incarnation": victim, "received": number} for number in (0, 3, 1 << 63, U64)),
    ]

    def all_refused(reasons: list[tuple[dict[str, Any], int]]) -> None:
        for change, reason in reasons:
            said = hostile.hello(**{"incarnation": incarnation, **change})
            hostile.connect(cell, 1).say(said, 1).refused(reason, 1).ends("-1", 1)

    others = [{"incarnation": hostile.incarnation()}, {"incarnation": victim}]
    all_refused([*((change, 10) for change in stale), *((change, 5) for change in others)])
    # The connection that there is goes on as if nothing had been.
    cell.say(H(CALL, tag=NOBODY, seq=4) + H(PING, tag=1)).do(f"acked 0 4 {SOON}", "reset 0")
    cell.lost(LOW, incarnation, "ECONNRESET").do("forget")
    all_refused([(change, 10) for change in stale])
    # Nor does the session mind.
    again = hostile.hello(incarnation, to_incarnation=victim, received=2) + H(PING, tag=1)
    hostile.connect(cell).say(again).welcomed().do(f"acked 0 4 {SOON}", "finish 0")
    yield cell.lost(LOW, incarnation, "ECONNRESET").ends("-1")
    yield hostile.cleanup(LOW)


def answer_cells(hostile: Hostile) -> Iterator[Cell]:
    """Wrong welcomes, and refusals."""
    at = f"at {address(HIGH)}:{PORT}: "

    def answered(name: str, answer: bytes, line: str) -> Cell:
        # Another failure first: a reason that stays the same is logged once.
        cell = hostile.accept(Cell(name), 1).do("reset 1")
        hostile.accept(cell).say(answer).ends("-1")
        return cell.see(f"log {SOON} {line}", "log ").never_connected(HIGH).nothing_left(HIGH)

    for change, reason in WELCOMES:
        answer = hostile.welcome(**{"incarnation": hostile.incarnation(), **change})
        yield answered(f"welcome, {change}", answer, f"refused node {HIGH} {at}{reason}")
    for number in range(256):
        reason = wire.REASONS.get(number)
        by = f"refused by node {HIGH} {at}{reason}"
        by = by if reason else f"refused node {HIGH} {at}malformed greeting"
        if reason or number in (0, 12, 255):
            values = {"kind": wire.REFUSAL, "reason": number}
            answer = hostile.welcome(hostile.incarnation(), **values)
            yield answered(f"refusal, reason {number}", answer, by)
    # A session that begins in the middle.
    for received in (1, U64):
        cell, incarnation = Cell(f"welcome, received {received}"), hostile.incarnation()
        hostile.accept(cell).say(hostile.welcome(incarnation, received=received)).ends()
        yield cell.lost(HIGH, incarnation, "EPROTO")
        yield hostile.cleanup(HIGH)


# Silence.


def silent_cells(hostile: Hostile) -> Iterator[Cell]:
    """Whoever says no more is given up in time."""
    for said in (0, 72):
        # A greeting that does not come, or not whole; a peer that was welcomed, and then nothing.
        cell, incarnation = Cell(f"silent, {said} bytes"), hostile.incarnation()
        hello, welcome = hostile.hello(incarnation), hostile.welcome(incarnation)
        hostile.connect(cell).say(hello[:said])
        hostile.connect(cell, 1).say(hello, 1).welcomed(1).say(H(PING)[: said // 2], 1)
        hostile.accept(cell, 2).say(welcome[:said], 2)
        for slot in range(3):
            cell.ends("-1", slot)
        cell.never_connected(LOW).never_connected(HIGH)
        yield cell.nothing_left(LOW).nothing_left(HIGH)
    parts = {
        "": b"",
        "half a header": H(MESSAGE, 100)[:20],
        "a header": H(MESSAGE, BOUNDS["max_message"], tag=TAG),
        "half a message": H(MESSAGE, 1000, tag=TAG) + bytes(500),
    }
    for name, part in parts.items():
        # Both sides at once, as each takes its time.
        cell, low, high = Cell(f"up and silent, {name}"), *(hostile.incarnation() for _ in "ab")
        hostile.connect(cell).say(hostile.hello(low) + H(PING) + part).welcomed()
        hostile.accept(cell, 1).say(hostile.welcome(high) + H(PING) + part, 1)
        cell.lost(LOW, low, "ETIMEDOUT").lost(HIGH, high, "ETIMEDOUT")
        yield cell.ends("-1").ends("-1", 1)
        yield from (hostile.cleanup(LOW), hostile.cleanup(HIGH))


# Calls to a hostile node.


def call_cells(hostile: Hostile) -> Iterator[Cell]:
    """Replies that are late, wrong, or somebody else's: a call gets one, or an error."""

    def called(name: str) -> tuple[Cell, int]:
        cell, incarnation = Cell(f"call, {name}"), hostile.incarnation()
        hello = hostile.hello(incarnation, granted=(0, WINDOWS[1]))
        hostile.connect(cell).say(hello + H(PING)).welcomed().up(LOW)
        return cell.do(f"demo ping {LOW} 1 8 sync", f"called 0 {SOON}"), incarnation

    def over(cell: Cell, incarnation: int, seq: int) -> Iterator[Cell]:
        # It goes on after that.
        cell.say(H(CALL, tag=NOBODY, seq=seq) + H(PING, tag=1))
        cell.do(f"acked 0 {seq} {SOON}", "finish 0")
        yield cell.lost(LOW, incarnation, "ECONNRESET").ends("-1")
        yield hostile.cleanup(LOW)

    def demoed(cell: Cell, result: str) -> Cell:
        return cell.see(f"demoed {SOON}", f"demo {result}")

    ran, eight = "rounds=1 .*", bytes(8)
    good = (H(REPLY, 8, tag=8) + eight).hex()
    again = (H(REPLY, 8, tag=8, seq=2) + eight).hex()
    cell, incarnation = called("two replies")
    yield from over(demoed(cell.do(f"reply 0 {good}", f"reply 0 {again}"), ran), incarnation, 3)
    cell, incarnation = called("the same reply again and again")
    yield from over(demoed(cell.do(*(3 * [f"reply 0 {good}"])), ran), incarnation, 2)
    cell, incarnation = called("another's reply first")
    cell.say(b"".join(H(REPLY, id=n, seq=n + 1) for n in range(3)))
    fourth = (H(REPLY, 8, tag=8, seq=4) + eight).hex()
    yield from over(demoed(cell.do(f"reply 0 {fourth}"), ran), incarnation, 5)
    cell, incarnation = called("a longer reply than there is room for")
    long = H(REPLY, 2000, tag=2000) + bytes(2000)
    yield from over(demoed(cell.do(f"reply 0 {long.hex()}"), ran), incarnation, 2)
    # EOPNOTSUPP, E2BIG, EMSGSIZE, ENOMEM, ESHUTDOWN
    for outcome, errno in enumerate((95, 7, 90, 12, 108), 1):
        cell, incarnation = called(f"outcome {outcome}")
        needed = U64 >> 32 if outcome == 3 else 0
        reply = H(REPLY, flags=outcome, tag=needed, arg=-(1 << 31)).hex()
        yield from over(demoed(cell.do(f"reply 0 {reply}"), f"errno {errno}"), incarnation, 2)
    cell, incarnation = called("a reply from another node")
    other = hostile.incarnation()
    hostile.accept(cell, 1).say(hostile.welcome(other) + H(PING), 1)
    cell.do(f"reply 1 {good}").say(H(CALL, tag=NOBODY, seq=2) + H(PING, tag=1), 1)
    cell.do(f"acked 1 2 {SOON}", "finish 1").lost(HIGH, other, "ECONNRESET")
    yield from over(demoed(cell.do(f"reply 0 {good}"), ran), incarnation, 2)
    yield hostile.cleanup(HIGH)
    cell, incarnation = called("and the node stops")
    cell.say(H(BYE)).lost(LOW, incarnation, "ESHUTDOWN").ends()
    yield demoed(cell, "errno 112")  # EHOSTDOWN
    cell, incarnation = called("and another incarnation comes")
    cell.do("reset 0").lost(LOW, incarnation, "ECONNRESET")
    new = hostile.incarnation()
    hostile.connect(cell).say(hostile.hello(new) + H(PING)).welcomed()
    demoed(cell, "errno 102")  # ENETRESET
    # The reply is for nobody.
    yield from over(cell.do(f"reply 0 {good}", "forget"), new, 2)


# By chance.


@dataclass
class Expectation:
    """What a connection in use does with what is said, step by step."""

    errors: set[str]
    received: int = 0
    calls: int = 0  # what they cost
    replies: int = 0
    messages: int = 0

    @classmethod
    def of(cls, data: bytes) -> Expectation:
        """What becomes of it when it ends behind this."""
        self = cls({"ECONNRESET"})
        while len(data) >= wire.HEADER_LEN:
            error, length = self._frame(data)
            if error:
                self.errors = self.errors - {"ECONNRESET"} | {error}
                break
            if len(data) < wire.HEADER_LEN + length:
                break
            error = self._served(data)
            if error:
                self.errors = self.errors - {"ECONNRESET"} | {error}
                break
            data = data[wire.HEADER_LEN + length :]
        return self

    def _frame(self, data: bytes) -> tuple[str, int]:
        """What is wrong with a header by itself, and how much follows it."""
        fields = struct.unpack_from("<IBBHQQQIi", data)
        length, kind, flags, reserved, seq, _, id_, tag, arg = fields
        most = MOST.get(kind, BOUNDS["max_rcall"])
        room = arg % (1 << 32)
        sane = kind in KINDS.values() and not reserved and length <= most
        sane = sane and (seq != 0) == (kind in wire.SEQUENCED)
        sane = sane and (flags == 0 or kind == REPLY and flags <= 5)
        sane = sane and (id_ == 0 or kind in (CALL_SYNC, REPLY, CREDIT))
        sane = sane and (arg == 0 or kind == REPLY or kind == CALL_SYNC and room <= most)
        sane = sane and tag <= {CREDIT: 1, PING: 1, BYE: 4, OPEN: 0}.get(kind, tag)
        sane = sane and (kind != REPLY or flags == 3 or tag == length)
        return "" if sane else "EPROTO", length

    def _served(self, data: bytes) -> str:
        """What comes of a whole frame."""
        length, kind, _, _, seq, ack, id_, tag, arg = struct.unpack_from("<IBBHQQQIi", data)
        if ack > self.replies:
            return "EPROTO"
        if ack:
            # Somebody else may have yet to send that reply.
            self.errors.add("EPROTO")
        if seq > self.received + 1:
            return "EPROTO"
        if kind in wire.SEQUENCED and seq <= self.received:
            return ""
        self.received = max(self.received, seq)
        if kind == MESSAGE:
            self.messages += 256 + length
            return "EPROTO" if self.messages > BOUNDS["queue_bytes"] else ""
        if kind == CALL_SYNC:
            self.calls += 256 + length + arg
            self.replies += 1
            return "EPROTO" if self.calls > BOUNDS["rcall_bytes"] else ""
        if kind == CREDIT:
            return "EPROTO" if id_ > WINDOWS[tag] else ""
        if kind == OPEN:
            # The victim does not connect to this peer.
            return "EPROTO"
        return BYES[tag].value if kind == BYE else ""


class Chance:
    """Says things by chance, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def frames(self, peer: int) -> bytes:
        """Some frames of that peer's, right or nearly so."""
        pick, said = self.random, []
        # To the other the victim would connect once more, and go on with that.
        kinds = [kind for kind in KINDS.values() if kind != OPEN or peer == LOW]
        seq = 1
        for _ in range(pick.randint(1, 8)):
            kind = pick.choice(kinds)
            if kind in (BYE, OPEN) and pick.random() < 0.8:
                kind = PING
            length = pick.choice([0, 1, 39, 40, 300]) if kind in wire.SEQUENCED else 0
            fields = {"tag": NOBODY}
            if kind == REPLY:
                fields = {"tag": length, "id": pick.getrandbits(64), "arg": pick.randint(-9, 9)}
            elif kind == CALL_SYNC:
                fields |= {"id": pick.getrandbits(pick.choice([1, 64])), "arg": pick.randint(0, 99)}
            elif kind not in wire.SEQUENCED:
                fields = {"tag": pick.randint(0, 1)}
            if kind == CREDIT:
                # For calls alone: messages are there to be sent.
                fields = {"tag": 1, "id": pick.choice([0, 1, WINDOWS[1]])}
            head = H(kind, length, seq=seq if kind in wire.SEQUENCED else 0, **fields)
            seq += kind in wire.SEQUENCED
            said.append(head + pick.randbytes(length))
        for _ in range(pick.choice([0, 1, 1, 2])):
            self._spoil(said)
        return b"".join(said)

    def _spoil(self, said: list[bytes]) -> None:
        pick = self.random
        at = pick.randrange(len(said))
        spoilt = bytearray(said[at])
        how = pick.randrange(6)
        if how == 0 and spoilt:
            bit = pick.randrange(8 * len(spoilt))
            spoilt[bit // 8] ^= 1 << bit % 8
        elif how == 1 and len(spoilt) >= wire.HEADER_LEN:
            # A number, or a field.
            place, size = pick.choice([(0, 4), (4, 1), (5, 1), (8, 8), (16, 8), (24, 8), (32, 4)])
            value = pick.choice([0, 1, 2, pick.getrandbits(8 * size), (1 << 8 * size) - 1])
            spoilt[place : place + size] = value.to_bytes(size, "little")
        elif how == 2:
            del spoilt[pick.randrange(len(spoilt) + 1) :]
        elif how == 3:
            spoilt *= 2
        elif how == 4:
            other = pick.randrange(len(said))
            said[other], spoilt = bytes(spoilt), bytearray(said[other])
        else:
            place = pick.randrange(len(spoilt) + 1)
            spoilt[place:place] = pick.randbytes(pick.choice([1, 4, 40]))
        said[at] = bytes(spoilt)


def chance_cells(hostile: Hostile, seed: int, count: int) -> Iterator[Cell]:
    """Connections of the hostile nodes, and what they say on them by chance."""
    chance = Chance(seed)
    pick = chance.random
    for number in range(count):
        peer = pick.choice([LOW, HIGH])
        said = chance.frames(peer)
        cell, incarnation = Cell(f"seed {seed}, number {number}"), hostile.incarnation()
        if peer == LOW:
            hostile.connect(cell).say(hostile.hello(incarnation) + H(PING)).welcomed()
        else:
            hostile.accept(cell).say(hostile.welcome(incarnation))
        cell.connected(peer, incarnation)
        # In pieces of any length.
        cuts = [0, len(said), *(pick.randint(0, len(said)) for _ in range(pick.randint(0, 5)))]
        for start, end in itertools.pairwise(sorted(set(cuts))):
            cell.say(said[start:end])
        cell.do("finish 0")
        errors = "|".join(sorted(Expectation.of(said).errors))
        yield cell.lost(peer, incarnation, errors).ends()
        yield hostile.cleanup(peer)


@pytest.fixture
def hostile(make_cluster: ClusterFactory) -> Hostile:
    """The hostile nodes, and machines for a victim and a true peer of that."""
    cluster = make_cluster(3, load=False, tools=[str(program())])
    # Its address is the hostile node's.
    cluster.kill(LOW)
    return Hostile(cluster)


def harmless(hostile: Hostile, cells: list[Cell]) -> None:
    """Have these conversations; nothing but them may be any different after that."""
    hostile.prepare(cells)
    with traffic(hostile.cluster, [VICTIM, TRUE]):
        before = memory(hostile)
        wrong = hostile.run(cells, timeout=60 + len(cells) / 6)
        after = memory(hostile)
    shown = "\n".join(wrong[:40])
    assert not wrong, f"{len(wrong)} of {len(cells)}:\n{shown}"
    # Of each connection there would be a stage of 8 KiB, at least.
    assert before - after < 4096 + 4 * len(cells), f"{before - after} KiB are lost"


def memory(hostile: Hostile) -> int:
    """What is free on the victim's machine, KiB."""
    command = "echo 3 >/proc/sys/vm/drop_caches; grep MemAvailable /proc/meminfo"
    return int(hostile.machine.run(command).out.split()[1])


@pytest.mark.limit(800)
def test_every_speech_in_every_state(hostile: Hostile) -> None:
    """Whatever is said, and whenever: it ends as it must, and nobody else notices."""
    hostile.settle()
    harmless(hostile, list(Talk(hostile).everything()))


@pytest.mark.limit(300 + COUNT / 4)
def test_greetings_silence_calls_and_chance(hostile: Hostile) -> None:
    """Greetings with every field wrong, silence, replies to the wrong calls, and a seed's chance.

    KCCM_HOSTILE_SEED and KCCM_HOSTILE_COUNT choose other chances, and more of them.
    """
    hostile.settle(listeners=2)
    parts = (hello_cells, stale_cells, answer_cells, silent_cells, call_cells)
    cells = [cell for part in parts for cell in part(hostile)]
    harmless(hostile, [*cells, *chance_cells(hostile, SEED, COUNT)])
