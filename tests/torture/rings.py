# SPDX-License-Identifier: GPL-2.0
"""Takes the histories out of the guests' shared memory, while they run and when they have died.

Each guest writes records into a ring in memory that is a file here (history.h);
a thread copies what is there to node<n>.history, and lets the ring be filled
again. What the host does is written between them: what was in the ring before
stands before it.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections import defaultdict
from pathlib import Path

from history import RECORD, Kind, Record

_MAGIC = 0x79726F747369684B
_OFFSET = 4096
_DRAIN_SECONDS = 0.05
_CLOCK_SECONDS = 0.25

# Where the numbers of struct history_ring are, in units of eight bytes.
_MAGIC_AT, _SIZES_AT, _HEAD_AT, _LOST_AT, _TAIL_AT = range(5)


class Ring:
    """The shared memory of one boot of one guest."""

    def __init__(self, path: Path, size: int) -> None:
        """A file of zeros with a new, empty ring in it."""
        path.unlink(missing_ok=True)
        with path.open("w+b") as file:
            file.truncate(size)
            self._memory = mmap.mmap(file.fileno(), size)
        self.capacity = (size - _OFFSET) // RECORD.size
        # Each number is read and written at one go, which `struct` would not promise.
        self._numbers = memoryview(self._memory)[: 8 * (_TAIL_AT + 1)].cast("Q")
        self._numbers[_SIZES_AT] = RECORD.size | self.capacity << 32
        self._numbers[_MAGIC_AT] = _MAGIC

    def take(self) -> bytes:
        """All records that have been written since the last time."""
        head, tail = self._numbers[_HEAD_AT], self._numbers[_TAIL_AT]
        data = b""
        while tail < head:
            first = tail % self.capacity
            count = min(head - tail, self.capacity - first)
            begin = _OFFSET + first * RECORD.size
            data += self._memory[begin : begin + count * RECORD.size]
            tail += count
        self._numbers[_TAIL_AT] = tail
        return data

    @property
    def lost(self) -> int:
        """How many records found no room: with any, the history proves nothing."""
        return self._numbers[_LOST_AT]

    def close(self) -> None:
        """Let go of the memory; the file stays."""
        self._numbers.release()
        self._memory.close()


class Historian:
    """Keeps the histories of all nodes."""

    def __init__(self, folder: Path, nodes: int, ring_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ring_bytes = ring_bytes
        self._rings: dict[int, Ring] = {}
        self._files = [(folder / f"node{node}.history").open("wb") for node in range(nodes)]
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._stop = threading.Event()
        self.lost = 0
        # How many records there are, of each kind; and when the last of the guests' came.
        self.counts: dict[int, int] = defaultdict(int)
        self.last_record = self._began
        self._thread = threading.Thread(target=self._run, name="historian", daemon=True)
        self._thread.start()

    def boots(self, node: int, path: Path) -> None:
        """A machine is about to boot: make its shared memory."""
        with self._lock:
            self._let_go(node)
            self._rings[node] = Ring(path, self._ring_bytes)

    def died(self, node: int) -> None:
        """A machine has ended."""
        with self._lock:
            self._drain(node)
            self._put(node, Record(Kind.DIED, node))
            self._let_go(node)

    def starting(self, node: int, life: int) -> None:
        """KCCM is about to be loaded."""
        with self._lock:
            for other in range(len(self._files)):
                self._drain(other)
                self._put(other, Record(Kind.STARTING, node, number=life))

    def count(self, *kinds: Kind) -> int:
        """How many records of these kinds there are."""
        return sum(self.counts[kind] for kind in kinds)

    def close(self) -> None:
        """Write down what there still is, and end."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            for node in list(self._rings):
                self._drain(node)
                self._let_go(node)
            for file in self._files:
                file.close()

    def _run(self) -> None:
        clock = 0.0
        while not self._stop.wait(_DRAIN_SECONDS):
            now = time.monotonic()
            with self._lock:
                for node in self._rings:
                    self._drain(node)
                if now - clock >= _CLOCK_SECONDS:
                    clock = now
                    milliseconds = round((now - self._began) * 1000)
                    for node in range(len(self._files)):
                        self._put(node, Record(Kind.CLOCK, number=milliseconds))

    def _drain(self, node: int) -> None:
        ring = self._rings.get(node)
        data = ring.take() if ring else b""
        if not data:
            return
        self._files[node].write(data)
        self.last_record = time.monotonic()
        kinds = data[:: RECORD.size]
        for kind in set(kinds):
            self.counts[kind] += kinds.count(kind)

    def _put(self, node: int, record: Record) -> None:
        self._files[node].write(record.pack())

    def _let_go(self, node: int) -> None:
        if ring := self._rings.pop(node, None):
            self.lost += ring.lost
            ring.close()
