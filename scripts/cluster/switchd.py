# SPDX-License-Identifier: GPL-2.0
"""The process behind switch.Switch: a learning Ethernet switch in one epoll loop.

Each port is one end of a SOCK_SEQPACKET pair whose other end a QEMU process
holds; one packet is one frame. The control socket carries one JSON request
per packet and gets one JSON answer; sockets of new ports ride along with
"attach". When the control socket ends, so does the switch.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections import deque
from typing import Any

MAX_FRAME = 65536
# Frames taken from one port before the others have their turn.
BURST = 32
# Frames kept for a guest that does not read, as a hardware switch keeps some.
QUEUE_FRAMES = 1024

Pair = tuple[int, int]


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
        self.stopped: set[int] = set()

    def run(self) -> None:
        """Carry frames until the control socket ends."""
        control_fd = self.control.fileno()
        while True:
            for fd, events in self.epoll.poll():
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
        """Give a frame to one port, or let it wait there, or drop it."""
        if self.cuts and (source.number, target.number) in self.cuts:
            target.counters["dropped"] += 1
        elif target.queue:
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
        elif what == "counters":
            return {port.number: port.counters for port in self.ports.values()}
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
