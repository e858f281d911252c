# SPDX-License-Identifier: GPL-2.0
"""The process behind switch.Switch: a learning Ethernet switch in one epoll loop.

Each port is one end of a SOCK_SEQPACKET pair whose other end a QEMU process
holds; one packet is one frame. The control socket carries one JSON request
per packet and gets one JSON answer; sockets of new ports ride along with
"attach". When the control socket ends, so does the switch.

A link can have weather: what becomes of frames in one direction between two
ports is then a matter of chance. And connections can be reset, by segments
that either end takes for the other's.
"""

from __future__ import annotations

import heapq
import json
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
# Segments of a connection that are tried when it is to be reset. One that is not the very next
# that an end waits for resets nothing.
RESET_TRIES = 40

ETHERNET = 14
TCP_FIN, TCP_SYN, TCP_RST = 1, 2, 4

Pair = tuple[int, int]


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
        return cls(addresses[:4], addresses[4:], tcp[:2], tcp[2], tcp[3], tcp[5])

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
        self.resets: dict[Pair, int] = {}
        self.events: dict[str, int] = dict.fromkeys(
            ("cut", "lost", "delayed", "duplicated", "reordered", "corrupted", "reset"), 0
        )

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
        if self.resets and pair in self.resets and self.reset(source, target, frame):
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

    # Resets.

    def reset(self, source: Port, target: Port, frame: bytes) -> bool:
        """Make a segment of a connection that is to be reset do that; whether it has been used."""
        pair = source.number, target.number
        segment = Segment.parse(frame)
        if segment is None:
            return False
        self.resets[pair] -= 1
        if segment.flags & (TCP_RST | TCP_SYN | TCP_FIN) or not self.resets[pair]:
            # One end has taken it: it has no such connection any more, or makes another.
            del self.resets[pair]
            return False
        self.events["reset"] += 1
        there, here = frame[:6], frame[6:12]
        self.hand_over(target, there + here + b"\x08\x00" + segment.reset())
        self.hand_over(source, here + there + b"\x08\x00" + segment.answer_reset())
        return True

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
        elif what == "reset":
            for a, b in request["pairs"]:
                self.resets[a, b] = RESET_TRIES
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
