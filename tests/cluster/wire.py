# SPDX-License-Identifier: GPL-2.0
"""KCCM's bytes on the wire, made and read by hand.

A second description of the protocol beside conn/hello.rs and conn/frame.rs, so
that a change of either that would break a cluster of mixed versions is seen.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

MAGIC = b"KCCM"
VERSION = 2
GREETING_LEN = 144
HEADER_LEN = 40

HELLO, WELCOME, REFUSAL, HELLO_BULK = range(1, 5)
MESSAGE, CALL, CALL_SYNC, REPLY, CREDIT, PING, BYE, OPEN = range(1, 9)
SEQUENCED = (MESSAGE, CALL, CALL_SYNC, REPLY)

_GREETING = struct.Struct("<4sHBBHHIQQQIIQQQQ64s")
_HEADER = struct.Struct("<IBBHQQQIi")
assert _GREETING.size == GREETING_LEN and _HEADER.size == HEADER_LEN

# The reasons of a refusal, as logs and sysfs name them.
REASONS = {
    1: "wrong version",
    2: "wrong cluster",
    3: "unknown id",
    4: "wrong direction",
    5: "duplicate",
    6: "wrong address",
    7: "administratively down",
    8: "stopping",
    9: "malformed greeting",
    10: "stale greeting",
    11: "too early",
}


@dataclass(frozen=True)
class Greeting:
    """A greeting; as made here, a good HELLO."""

    cluster: str = ""
    source: int = 0
    to: int = 0
    kind: int = HELLO
    reason: int = 0
    version: int = VERSION
    magic: bytes = MAGIC
    dead_ms: int = 3000
    incarnation: int = 0x5712A96E
    to_incarnation: int = 0
    received: int = 0
    max_message: int = 16 << 20
    max_rcall: int = 1 << 20
    queue_bytes: int = 32 << 20
    rcall_bytes: int = 8 << 20
    granted: tuple[int, int] = field(default=(32 << 20, 8 << 20))

    def encode(self) -> bytes:
        """The bytes of it."""
        return _GREETING.pack(
            self.magic,
            self.version,
            self.kind,
            self.reason,
            self.source,
            self.to,
            self.dead_ms,
            self.incarnation,
            self.to_incarnation,
            self.received,
            self.max_message,
            self.max_rcall,
            self.queue_bytes,
            self.rcall_bytes,
            *self.granted,
            self.cluster.encode(),
        )

    @classmethod
    def decode(cls, data: bytes) -> Greeting:
        """A greeting from its bytes."""
        (
            magic,
            version,
            kind,
            reason,
            source,
            to,
            dead_ms,
            incarnation,
            to_incarnation,
            received,
            max_message,
            max_rcall,
            queue_bytes,
            rcall_bytes,
            messages,
            calls,
            cluster,
        ) = _GREETING.unpack(data[:GREETING_LEN])
        return cls(
            cluster=cluster.rstrip(b"\0").decode(),
            source=source,
            to=to,
            kind=kind,
            reason=reason,
            version=version,
            magic=magic,
            dead_ms=dead_ms,
            incarnation=incarnation,
            to_incarnation=to_incarnation,
            received=received,
            max_message=max_message,
            max_rcall=max_rcall,
            queue_bytes=queue_bytes,
            rcall_bytes=rcall_bytes,
            granted=(messages, calls),
        )


def header(
    kind: int,
    length: int = 0,
    *,
    seq: int | None = None,
    ack: int = 0,
    flags: int = 0,
    reserved: int = 0,
    id: int = 0,  # noqa: A002 - the field's name
    tag: int = 0,
    arg: int = 0,
) -> bytes:
    """A frame's header; where it needs a number, that of the first frame."""
    if seq is None:
        seq = 1 if kind in SEQUENCED else 0
    return _HEADER.pack(length, kind, flags, reserved, seq, ack, id, tag, arg)


def message(tag: int, payload: bytes, seq: int = 1) -> bytes:
    """A whole message."""
    return header(MESSAGE, len(payload), tag=tag, seq=seq) + payload
