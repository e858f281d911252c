# SPDX-License-Identifier: GPL-2.0
"""What the nodes of a torture run write down: the same as history.h.

A history is a file of records of one node, over all its lives. Most are
kccm_torture.ko's; those from STARTING on are the host's, put between them at
the time when the host had read all that the guest had written before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

RECORD = struct.Struct("<BBBBiQQII")

_CHUNK_RECORDS = 32768


class Kind(IntEnum):
    """What happened. history.h has the details."""

    BEGIN = 1
    READY = 2
    UP = 3
    DOWN = 4
    SEND = 5
    SENT = 6
    RECV = 7
    CALL = 8
    CALLED = 9
    SYNC = 10
    REPLIED = 11
    RUN = 12
    STOP = 13
    CONFIRM = 14
    CONFIRMED = 15
    FINAL = 16
    END = 17
    # The host's own.
    STARTING = 32  # KCCM is about to be loaded on `node`, for the time `number`
    DIED = 33  # this machine has ended; all that it wrote is before this
    CLOCK = 34  # `number` milliseconds have passed since the run began


# What sends a message.
MESSAGES = frozenset({Kind.SEND, Kind.CONFIRM})


class Flag(IntEnum):
    """What is wrong with something that came; but for SOFTIRQ, which only says where it was run."""

    MANGLED = 1
    ASTRAY = 2
    STATUS = 4
    CONTEXT = 8
    SOFTIRQ = 16


class Tag(IntEnum):
    """Tags of messages, and functions."""

    READY = 0
    ANY = 1
    PROBED = 2
    EACH = 3
    BULK = 4
    SHORT = 16
    BRIEF = 17
    LONG = 18
    SLOW = 19
    SOFTIRQ = 20


# By the classes of their handlers.
CLASSES = {
    "short": frozenset({Tag.SHORT, Tag.BRIEF}),
    "long": frozenset({Tag.LONG, Tag.SLOW}),
    "softirq": frozenset({Tag.SOFTIRQ}),
}

# Functions that are run as their calls come in, by the listener or before it, and so in the order of
# the calls, whichever of them it is.
PROMPT_FUNCTIONS = CLASSES["short"] | CLASSES["softirq"]


class Record(NamedTuple):
    """One thing that happened."""

    kind: int
    node: int = 0
    tag: int = 0
    flags: int = 0
    result: int = 0
    number: int = 0
    incarnation: int = 0
    length: int = 0
    crc: int = 0

    def pack(self) -> bytes:
        """The record as it is in a file."""
        return RECORD.pack(*self)


# What RECORD unpacks: a Record's fields without its name, for speed.
Fields = tuple[int, int, int, int, int, int, int, int, int]


def read(path: Path) -> Iterator[Fields]:
    """The records of a file; what an interrupted write has left at its end is no record."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_RECORDS * RECORD.size):
            whole = len(chunk) - len(chunk) % RECORD.size
            yield from RECORD.iter_unpack(chunk[:whole])


def write(path: Path, records: Iterable[Record]) -> None:
    """Make a file of records."""
    path.write_bytes(b"".join(record.pack() for record in records))
