# SPDX-License-Identifier: GPL-2.0
"""The process behind switch.Switch: a learning Ethernet switch in one epoll loop.

Each port is one end of a SOCK_SEQPACKET pair whose other end a QEMU process
holds; one packet is one frame. The control socket carries one JSON request
per packet and gets one JSON answer; sockets of new ports ride along with
"attach". When the control socket ends, so does the switch.

A link can have weather: what becomes of frames in one direction between two
ports is then a matter of chance. And a connection can be broken where a frame
of whoever uses it is half there: it is reset, by segments that either end takes
for the other's, or nothing more gets through until somebody else breaks it.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

MAX_FRAME = 65536
# Frames taken from one port before the others have their turn.
BURST = 32
# Frames kept for a guest that does not read, as a hardware switch keeps some.
QUEUE_FRAMES = 1024

# Frames under way on links with weather, at most.
AIR_FRAMES = 8192
# Segments of a connection in which half a frame is looked for before it is to be broken; and then
# segments that are tried when it is to be reset. One that is not the very next that an end waits for
# resets nothing.
BREAK_WAITS = 100
RESET_TRIES = 40

# What can befall a frame.
EVENTS = ("cut", "lost", "delayed", "duplicated", "reordered", "corrupted", "reset", "swallowed")

ETHERNET = 14
TCP_FIN, TCP_SYN, TCP_RST, TCP_PSH = 1, 2, 4, 8

Pair = tuple[int, int]
# Address and port of the sender, and of the receiver.
Flow = tuple[bytes, int, bytes, int]


@dataclass(frozen=True)
class Weather:
    """What befalls the frames in one direction: seconds, and shares from 0 to 1."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # so many are held back, for as long as delay and jitter at their most
    corrupt: float = 0.0  # in so many some bits are turned over


@dataclass(order=True)
class Airborne:
    """A frame that has been sent and is due to arrive."""

    due: float
    number: int
    pair: Pair
    port: Port = field(compare=False)
    frame: bytes = field(compare=False)


def damaged(frame: bytes, chance: random.Random) -> bytes:
    """An IP packet's frame with a burst of up to 15 bits turned over.

    The checksums of IP and TCP find every burst that short. The Ethernet header
    is left alone, and so are other protocols, which have no checksum: a real
    network has one of its own for them.
    """
    if len(frame) < ETHERNET + 20 or frame[12:14] not in (b"\x08\x00", b"\x86\xdd"):
        return frame
    bits = (len(frame) - ETHERNET) * 8
    length = chance.randint(1, 15)
    # The first bit of a burst is wrong in any case.
    burst = (1 << (length - 1)) | chance.getrandbits(length - 1) if length > 1 else 1
    number = int.from_bytes(frame[ETHERNET:], "big")
    number ^= burst << chance.randrange(bits - length + 1)
    return frame[:ETHERNET] + number.to_bytes(bits // 8, "big")


@dataclass(frozen=True)
class Segment:
    """What is to be known of a TCP segment over IPv4."""

    source: bytes  # address and
    destination: bytes
    ports: tuple[int, int]
    sequence: int
    acknowledged: int
    flags: int
    length: int = 0  # of what it carries

    @property
    def flow(self) -> Flow:
        """The connection that it belongs to, and in which direction."""
        return self.source, self.ports[0], self.destination, self.ports[1]

    @property
    def goes_on(self) -> bool:
        """Whether what its sender has begun to send does not end with it."""
        return self.length > 0 and not self.flags & (TCP_PSH | TCP_FIN | TCP_SYN | TCP_RST)

    @classmethod
    def parse(cls, frame: bytes) -> Segment | None:
        """The segment in a frame, if it is one."""
        if len(frame) < ETHERNET + 40 or frame[12:14] != b"\x08\x00":
            return None
        header = (frame[ETHERNET] & 15) * 4
        if frame[ETHERNET + 9] != socket.IPPROTO_TCP or len(frame) < ETHERNET + header + 20:
            return None
        tcp = struct.unpack_from(">HHIIBB", frame, ETHERNET + header)
        addresses = frame[ETHERNET + 12 : ETHERNET + 20]
        (total,) = struct.unpack_from(">H", frame, ETHERNET + 2)
        length = max(0, total - header - (tcp[4] >> 4) * 4)
        return cls(addresses[:4], addresses[4:], tcp[:2], tcp[2], tcp[3], tcp[5], length)

    def reset(self) -> bytes:
        """The IP packet that resets the connection at the receiver, as if from the sender."""
        tcp = struct.pack(">HHIIBBHHH", *self.ports, self.sequence, 0, 5 << 4, TCP_RST, 0, 0, 0)
        pseudo = self.source + self.destination + struct.pack(">BBH", 0, socket.IPPROTO_TCP, 20)
        tcp = tcp[:16] + checksum(pseudo + tcp) + tcp[18:]
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, socket.IPPROTO_TCP, 0)
        ip += self.source + self.destination
        return ip[:10] + checksum(ip) + ip[12:] + tcp

    def answer_reset(self) -> bytes:
        """The same in the other direction, at the sender."""
        back = Segment(
            self.destination, self.source, self.ports[::-1], self.acknowledged, 0, TCP_RST
        )
        return back.reset()


def checksum(data: bytes) -> bytes:
    """The checksum of IP and TCP over an even number of bytes."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)


# How far the breaking of a connection has got.
WAITING = "waiting"  # nothing has been done yet
HELD = "held"  # nothing more gets through
FORGED = "forged"  # resets have been sent, and nobody is known to have taken one
DONE = "done"  # an end has
OVER = "over"  # it came to nothing


@dataclass
class Break:
    """A connection that is to be broken, in the middle of a frame if there is one in time.

    With ``forge`` by resets, of which an end has to take one within so many seconds;
    else its segments in one direction are swallowed.
    """

    pair: Pair
    forge: bool
    within: float = math.inf
    state: str = WAITING
    half: bool = False  # whether a frame is half there
    flow: Flow | None = None
    segments: int = 0  # that were replaced by resets, or swallowed
    waits: int = BREAK_WAITS
    since: float = 0.0  # when the first of them was

    @property
    def is_over(self) -> bool:
        """Whether it does nothing any more."""
        return self.state in (DONE, OVER)

    def takes(self, segment: Segment, now: float) -> bool:
        """Look at the next segment; whether it does not get through."""
        if self.flow is None:
            self._look(segment)
            return False
        if self.forge and self.segments:
            # A connection that ends later ends for want of what has been replaced.
            if self.segments == RESET_TRIES or now - self.since > self.within:
                self.state = OVER
                return False
        if self.forge and segment.flags & (TCP_RST | TCP_SYN | TCP_FIN):
            self._ends(segment)
            return False
        if segment.flow != self.flow:
            return False
        if not self.segments:
            self.since = now
        self.state = FORGED if self.forge else HELD
        self.segments += 1
        return True

    def _look(self, segment: Segment) -> None:
        """Look for half a frame: what is then on its way gets through, what follows does not."""
        if segment.flags & (TCP_RST | TCP_SYN | TCP_FIN):
            return
        self.waits -= 1
        if segment.goes_on or self.waits <= 0:
            self.half, self.flow = segment.goes_on, segment.flow
            if not self.forge:
                self.state = HELD

    def _ends(self, segment: Segment) -> None:
        """A connection ends or begins, which an end that has taken a reset sees to."""
        ours = segment.flow == self.flow
        if self.segments and (ours or segment.flags & TCP_SYN):
            self.state = OVER if segment.flags & TCP_FIN else DONE
        elif ours or segment.flags & TCP_SYN:
            # By itself, or as its sender has died, before anything was done to it.
            self.half, self.flow = False, None

    def told(self) -> dict[str, Any]:
        """How far it has got."""
        flow: list[Any] = []
        if self.flow:
            source, port, destination, other = self.flow
            flow = [socket.inet_ntoa(source), port, socket.inet_ntoa(destination), other]
        return {
            "state": self.state,
            "half": self.half,
            "segments": self.segments,
            "flow": flow,
        }


class Port:
    """One guest's link, and the frames that wait for the guest to read."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.socket = sock
        self.queue: deque[bytes] = deque()
        self.counters = {"received": 0, "sent": 0, "dropped": 0}


class Fabric:
    """All ports, the table of addresses, and the links that are cut."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.epoll = select.epoll()
        self.epoll.register(control.fileno(), select.EPOLLIN)
        self.ports: dict[int, Port] = {}
        self.by_fd: dict[int, Port] = {}
        self.addresses: dict[bytes, Port] = {}
        self.cuts: set[Pair] = set()
        self.chance = random.Random()
        self.weather: dict[Pair, Weather] = {}
        self.air: list[Airborne] = []
        self.launched = 0
        self.breaks: dict[Pair, Break] = {}
        self.numbered: dict[int, Break] = {}
        self.begun = 0
        self.events: dict[str, int] = dict.fromkeys(EVENTS, 0)

    def run(self) -> None:
        """Carry frames until the control socket ends."""
        control_fd = self.control.fileno()
        while True:
            for fd, events in self.epoll.poll(self.land()):
                if fd == control_fd:
                    if not self.serve_control():
                        return
                    continue
                port = self.by_fd.get(fd)
                if port and events & select.EPOLLOUT:
                    self.flush(port)
                if port and events & ~select.EPOLLOUT:
                    self.receive(port)

    # Frames.

    def receive(self, port: Port) -> None:
        """Forward what one guest has sent, up to a burst."""
        receive = port.socket.recv
        try:
            for _ in range(BURST):
                frame = receive(MAX_FRAME, socket.MSG_DONTWAIT)
                if not frame:
                    self.detach(port.number)
                    return
                port.counters["received"] += 1
                self.forward(port, frame)
        except BlockingIOError:
            pass
        except OSError:
            self.detach(port.number)

    def forward(self, source: Port, frame: bytes) -> None:
        """Learn where the sender is, and pass the frame on to where it belongs."""
        self.addresses[frame[6:12]] = source
        target = self.addresses.get(frame[:6])
        if target is None or frame[0] & 1:
            for port in list(self.ports.values()):
                if port is not source:
                    self.deliver(source, port, frame)
        elif target is not source:
            self.deliver(source, target, frame)

    def deliver(self, source: Port, target: Port, frame: bytes) -> None:
        """Send a frame on its way to one port, if the link lets it."""
        pair = source.number, target.number
        if self.cuts and pair in self.cuts:
            target.counters["dropped"] += 1
            self.events["cut"] += 1
            return
        if self.breaks and pair in self.breaks and self.breaks_off(source, target, frame):
            return
        if weather := self.weather.get(pair):
            self.launch(pair, weather, target, frame)
        else:
            self.hand_over(target, frame)

    def hand_over(self, target: Port, frame: bytes) -> None:
        """Give a frame to one port, or let it wait there."""
        if target.queue:
            self.enqueue(target, frame)
        else:
            try:
                target.socket.send(frame, socket.MSG_DONTWAIT)
                target.counters["sent"] += 1
            except BlockingIOError:
                self.enqueue(target, frame)
            except OSError:
                self.detach(target.number)

    def enqueue(self, port: Port, frame: bytes) -> None:
        """Keep a frame until the guest reads, unless too many wait already."""
        if len(port.queue) >= QUEUE_FRAMES:
            port.counters["dropped"] += 1
            return
        if not port.queue:
            self.epoll.modify(port.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        port.queue.append(frame)

    def flush(self, port: Port) -> None:
        """Hand over waiting frames for as long as the guest takes them."""
        try:
            while port.queue:
                port.socket.send(port.queue[0], socket.MSG_DONTWAIT)
                port.queue.popleft()
                port.counters["sent"] += 1
            self.epoll.modify(port.socket.fileno(), select.EPOLLIN)
        except BlockingIOError:
            pass
        except OSError:
            self.detach(port.number)

    # Weather.

    def launch(self, pair: Pair, weather: Weather, target: Port, frame: bytes) -> None:
        """Let a frame have what the weather has for it."""
        chance, events = self.chance, self.events
        if chance.random() < weather.loss or len(self.air) >= AIR_FRAMES:
            target.counters["dropped"] += 1
            events["lost"] += 1
            return
        copies = 1
        if chance.random() < weather.duplicate:
            copies = 2
            events["duplicated"] += 1
        for _ in range(copies):
            due = time.monotonic() + weather.delay + weather.jitter * chance.random()
            if chance.random() < weather.reorder:
                due += weather.delay + weather.jitter + 0.001
                events["reordered"] += 1
            events["delayed"] += weather.delay > 0
            data = frame
            if chance.random() < weather.corrupt:
                data = damaged(frame, chance)
                events["corrupted"] += 1
            self.launched += 1
            heapq.heappush(self.air, Airborne(due, self.launched, pair, target, data))

    def land(self) -> float | None:
        """Hand over the frames that are due; how long it is until the next is."""
        while self.air:
            wait = self.air[0].due - time.monotonic()
            if wait > 0:
                return wait
            flown = heapq.heappop(self.air)
            # A guest that has been unplugged meanwhile gets nothing, and nor does its successor.
            if self.ports.get(flown.port.number) is not flown.port:
                continue
            if flown.pair in self.cuts:
                flown.port.counters["dropped"] += 1
                self.events["cut"] += 1
            else:
                self.hand_over(flown.port, flown.frame)
        return None

    # Connections that are broken.

    def breaks_off(self, source: Port, target: Port, frame: bytes) -> bool:
        """Do to a segment what breaks its connection, if that is to be; whether it is gone."""
        segment = Segment.parse(frame)
        if segment is None:
            return False
        pair = source.number, target.number
        breaking = self.breaks[pair]
        taken = breaking.takes(segment, time.monotonic())
        if breaking.is_over:
            del self.breaks[pair]
        if not taken:
            return False
        if breaking.forge:
            self.events["reset"] += 1
            there, here = frame[:6], frame[6:12]
            self.hand_over(target, there + here + b"\x08\x00" + segment.reset())
            self.hand_over(source, here + there + b"\x08\x00" + segment.answer_reset())
        else:
            target.counters["dropped"] += 1
            self.events["swallowed"] += 1
        return True

    def begin_break(self, breaking: Break) -> int:
        """Begin to break a connection of two ports; the number by which that is known."""
        pair = breaking.pair
        if earlier := self.breaks.get(pair):
            earlier.state = OVER
        self.begun += 1
        self.numbered[self.begun] = self.breaks[pair] = breaking
        return self.begun

    def end_break(self, number: int) -> Break:
        """Let a connection be, whatever has become of it."""
        breaking = self.numbered.pop(number)
        if self.breaks.get(breaking.pair) is breaking:
            del self.breaks[breaking.pair]
        return breaking

    # Control.

    def serve_control(self) -> bool:
        """Answer one request; false at the end of the control socket."""
        data, fds, _, _ = socket.recv_fds(self.control, 65536, 1)
        if not data:
            return False
        request = json.loads(data)
        answer = self.execute(request, fds)
        self.control.send(json.dumps(answer).encode())
        return True

    def execute(self, request: dict[str, Any], fds: list[int]) -> Any:
        """Carry out one request."""
        what = request["do"]
        if what == "attach":
            self.attach(request["port"], socket.socket(fileno=fds[0]))
        elif what == "detach":
            self.detach(request["port"])
        elif what == "cuts":
            self.cuts = {(a, b) for a, b in request["pairs"]}
        elif what == "weather":
            self.weather = {(a, b): Weather(**values) for a, b, values in request["links"]}
        elif what == "seed":
            self.chance.seed(request["seed"])
        elif what == "break":
            a, b = request["pair"]
            breaking = Break((a, b), request["forge"], request["within"])
            return {"number": self.begin_break(breaking)}
        elif what == "broken":
            return self.numbered[request["number"]].told()
        elif what == "let be":
            return self.end_break(request["number"]).told()
        elif what == "counters":
            return {port.number: port.counters for port in self.ports.values()}
        elif what == "events":
            return self.events
        return {}

    def attach(self, number: int, sock: socket.socket) -> None:
        """Plug a guest into a port, in place of what was there."""
        self.detach(number)
        port = Port(number, sock)
        self.ports[number] = port
        self.by_fd[sock.fileno()] = port
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def detach(self, number: int) -> None:
        """Unplug a guest: its frames and its addresses are forgotten."""
        port = self.ports.pop(number, None)
        if port is None:
            return
        self.epoll.unregister(port.socket.fileno())
        del self.by_fd[port.socket.fileno()]
        port.socket.close()
        self.addresses = {mac: p for mac, p in self.addresses.items() if p is not port}


def main() -> None:
    """Run the switch on the control socket whose number is the argument."""
    Fabric(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
