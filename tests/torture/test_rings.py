# SPDX-License-Identifier: GPL-2.0
"""Histories come out of the shared memory as guests put them in. A thread plays the guest."""

from __future__ import annotations

import mmap
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import history
from history import RECORD, Kind, Record
from rings import Historian, Ring

CAPACITY = 50
SIZE = 4096 + CAPACITY * RECORD.size


class Guest:
    """What recorder.c does, in its own mapping of the file."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._numbers = memoryview(self._memory)[:40].cast("Q")
        self.head = self._numbers[2]

    @property
    def full(self) -> bool:
        """Whether there is no room."""
        return self.head - self._numbers[4] >= CAPACITY

    def record(self, number: int) -> None:
        """One record, or a record lost."""
        if self.full:
            self._numbers[3] += 1
            return
        place = 4096 + self.head % CAPACITY * RECORD.size
        self._memory[place : place + RECORD.size] = Record(Kind.SENT, number=number).pack()
        self.head += 1
        self._numbers[2] = self.head


def wait(condition: Callable[[], bool]) -> None:
    """Until it is so."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sent(path: Path) -> list[int]:
    """The numbers that a guest has written down, as far as they have come."""
    return [fields[5] for fields in history.read(path) if fields[0] == Kind.SENT]


def test_ring(tmp_path: Path) -> None:
    """Records come out once and in order, also around the end of the ring."""
    ring = Ring(tmp_path / "shared", SIZE)
    guest = Guest(tmp_path / "shared")
    chance = random.Random(1)
    put, taken = 0, b""
    while put < 1000:
        for _ in range(chance.randrange(CAPACITY + 1)):
            if not guest.full:
                guest.record(put)
                put += 1
        taken += ring.take()
    taken += ring.take()
    numbers = [fields[5] for fields in RECORD.iter_unpack(taken)]
    assert numbers == list(range(put))
    assert ring.lost == 0


def test_full(tmp_path: Path) -> None:
    """What finds no room is counted; it can be seen that something is missing."""
    ring = Ring(tmp_path / "shared", SIZE)
    guest = Guest(tmp_path / "shared")
    for number in range(CAPACITY + 3):
        guest.record(number)
    assert ring.lost == 3
    assert len(ring.take()) == CAPACITY * RECORD.size


def test_loaded_again(tmp_path: Path) -> None:
    """A guest that comes back to a ring in use goes on where it was."""
    ring = Ring(tmp_path / "shared", SIZE)
    for life in range(3):
        guest = Guest(tmp_path / "shared")
        guest.record(life)
        assert [fields[5] for fields in RECORD.iter_unpack(ring.take())] == [life]


def test_historian(tmp_path: Path) -> None:
    """All that a guest has written before the host does something stands before that."""
    historian = Historian(tmp_path, 2, SIZE)
    stop = threading.Event()
    written = [0]

    def work() -> None:
        guest = Guest(tmp_path / "shared")
        while not stop.is_set():
            if not guest.full:
                guest.record(written[0])
                written[0] += 1

    historian.boots(0, tmp_path / "shared")
    thread = threading.Thread(target=work)
    thread.start()
    marks = []
    for life in range(1, 6):
        wait(lambda: written[0] > 200 * life)  # noqa: B023 - it is called here and now
        marks.append(written[0])
        historian.starting(1, life)
    stop.set()
    thread.join()
    historian.died(0)
    historian.close()
    path = tmp_path / "node0.history"
    assert sent(path) == list(range(written[0]))
    kinds = [Record(*fields) for fields in history.read(path)]
    for life, before in enumerate(marks, start=1):
        at = kinds.index(Record(Kind.STARTING, 1, number=life))
        assert sum(record.kind == Kind.SENT for record in kinds[:at]) >= before
    assert kinds[-1].kind == Kind.DIED
    assert historian.lost == 0
    assert historian.count(Kind.SENT) == written[0]
