# SPDX-License-Identifier: GPL-2.0
"""The switch's weather and resets do what they say. The guests are sockets."""

from __future__ import annotations

import random
import select
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cluster import Switch, Weather
from cluster.machine import mac_address
from cluster.switchd import ETHERNET, TCP_RST, TCP_SYN, Segment, checksum, damaged

# How long a frame that comes at all may take.
SECONDS = 20.0
# And how long is waited where none is to come.
NEVER = 0.2

TCP_ACK = 16


def mac(node: int) -> bytes:
    """A node's Ethernet address."""
    return bytes(int(octet, 16) for octet in mac_address(node).split(":"))


def frame(source: int, target: int, payload: bytes) -> bytes:
    """A frame of no protocol that anybody knows."""
    return mac(target) + mac(source) + b"\x88\xb5" + payload


def packet(segment: Segment, payload: bytes = b"") -> bytes:
    """An IPv4 packet with a TCP segment."""
    flags = segment.flags
    tcp = struct.pack(
        ">HHIIBBHHH", *segment.ports, segment.sequence, segment.acknowledged, 5 << 4, flags, 0, 0, 0
    )
    body = payload + bytes(len(payload) % 2)
    pseudo = segment.source + segment.destination
    pseudo += struct.pack(">BBH", 0, 6, len(tcp) + len(payload))
    tcp = tcp[:16] + checksum(pseudo + tcp + body) + tcp[18:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(payload), 1, 0, 64, 6, 0)
    ip += segment.source + segment.destination
    return ip[:10] + checksum(ip) + ip[12:] + tcp + payload


def sound(data: bytes) -> bool:
    """Whether a receiver finds both checksums right."""
    if data[0] != 0x45 or struct.unpack_from(">H", data, 2)[0] != len(data) or data[9] != 6:
        return False
    body = data[20:] + bytes(len(data) % 2)
    pseudo = data[12:20] + struct.pack(">BBH", 0, 6, len(data) - 20)
    return checksum(data[:20]) == b"\0\0" and checksum(pseudo + body) == b"\0\0"


SEGMENT = Segment(bytes((10, 1, 0, 1)), bytes((10, 1, 0, 2)), (35000, 7700), 1000, 2000, TCP_ACK)


class Lan:
    """A switch with three guests."""

    def __init__(self, folder: Path) -> None:
        self.switch = Switch(folder / "switch.log")
        self.guests = [self.switch.plug(port) for port in range(3)]
        for node, guest in enumerate(self.guests):
            # Lets the switch learn who is where.
            guest.send(frame(node, 99, b"here"))
            for other in self.guests:
                if other is not guest:
                    assert self.receive(self.guests.index(other)) == frame(node, 99, b"here")

    def send(self, source: int, target: int, payload: bytes) -> None:
        """A frame from one guest to another."""
        self.guests[source].send(frame(source, target, payload))

    def receive(self, node: int, seconds: float = SECONDS) -> bytes | None:
        """The next frame that a guest gets, if there is one in time."""
        ready, _, _ = select.select([self.guests[node]], [], [], seconds)
        return self.guests[node].recv(65536) if ready else None

    def taken(self, node: int, count: int) -> None:
        """Wait until the switch has taken so many frames of a guest."""
        deadline = time.monotonic() + SECONDS
        while self.switch.counters()[node]["received"] < count + 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self) -> None:
        """The end."""
        for guest in self.guests:
            guest.close()
        self.switch.close()


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """A network whose chances are always the same."""
    made = Lan(tmp_path)
    made.switch.seed(1)
    yield made
    made.close()


def exchange(lan: Lan, weather: Weather, count: int = 200) -> list[int]:
    """The numbers of the frames that arrive of so many that are sent through some weather."""
    lan.switch.set_weather({(0, 1): weather})
    for number in range(count):
        lan.send(0, 1, struct.pack(">I", number))
    # The last is sent when all are under way, and is slower than all.
    lan.taken(0, count)
    lan.switch.set_weather({(0, 1): Weather(delay=4 * (weather.delay + weather.jitter))})
    lan.send(0, 1, b"that is all")
    arrived = []
    while (data := lan.receive(1)) != frame(0, 1, b"that is all"):
        assert data
        arrived.append(struct.unpack_from(">I", data, ETHERNET)[0])
    return arrived


def test_no_weather(lan: Lan) -> None:
    """Everything arrives, in order, once."""
    assert exchange(lan, Weather()) == list(range(200))


def test_loss(lan: Lan) -> None:
    """Some are missing, the others are in order."""
    arrived = exchange(lan, Weather(loss=0.2))
    assert 120 < len(arrived) < 190
    assert arrived == sorted(set(arrived))
    assert lan.switch.events()["lost"] == 200 - len(arrived)


def test_duplicate(lan: Lan) -> None:
    """Some come twice, none is missing."""
    arrived = Counter(exchange(lan, Weather(duplicate=0.2)))
    assert set(arrived) == set(range(200))
    twice = sum(count == 2 for count in arrived.values())
    assert 10 < twice < 80 and max(arrived.values()) == 2
    assert lan.switch.events()["duplicated"] == twice


def test_reorder(lan: Lan) -> None:
    """Some are overtaken, none is missing."""
    arrived = exchange(lan, Weather(delay=0.02, reorder=0.1))
    assert sorted(arrived) == list(range(200))
    assert arrived != sorted(arrived)


def test_delay(lan: Lan) -> None:
    """Nothing arrives before its time, and nothing is overtaken."""
    lan.switch.set_weather({(0, 1): Weather(delay=0.3)})
    begin = time.monotonic()
    for number in range(10):
        lan.send(0, 1, bytes([number]))
    assert lan.receive(1) == frame(0, 1, bytes([0]))
    assert time.monotonic() - begin >= 0.3
    assert [lan.receive(1) for _ in range(9)] == [frame(0, 1, bytes([n])) for n in range(1, 10)]


def test_one_direction(lan: Lan) -> None:
    """Weather is on the links that it is meant for, until it is over."""
    lan.switch.set_weather({(0, 1): Weather(loss=1.0)})
    for source, target in ((1, 0), (0, 2), (2, 1)):
        lan.send(source, target, b"x")
        assert lan.receive(target) == frame(source, target, b"x")
    lan.send(0, 1, b"lost")
    lan.switch.set_weather({})
    lan.send(0, 1, b"through")
    assert lan.receive(1) == frame(0, 1, b"through")


def test_cut_in_the_air(lan: Lan) -> None:
    """What is under way when a link is cut does not arrive."""
    lan.switch.set_weather({(0, 1): Weather(delay=0.5)})
    begin = time.monotonic()
    lan.send(0, 1, b"x")
    lan.taken(0, 1)
    lan.switch.set_cuts([(0, 1)])
    if time.monotonic() - begin < 0.5:
        assert lan.receive(1, 1.0) is None
        assert lan.switch.events()["cut"] == 1


def test_corrupt(lan: Lan) -> None:
    """IP packets arrive damaged, and each can be seen to be; other frames are let be."""
    lan.switch.set_weather({(0, 1): Weather(corrupt=1.0)})
    whole = packet(SEGMENT, b"payload " * 50)
    for _ in range(50):
        lan.guests[0].send(mac(1) + mac(0) + b"\x08\x00" + whole)
        data = lan.receive(1)
        assert data and data[:ETHERNET] == mac(1) + mac(0) + b"\x08\x00"
        assert len(data) == ETHERNET + len(whole)
        assert data[ETHERNET:] != whole and not sound(data[ETHERNET:])
    lan.send(0, 1, b"not IP at all" * 5)
    assert lan.receive(1) == frame(0, 1, b"not IP at all" * 5)


def test_damage_is_always_found() -> None:
    """No damage that the switch does passes the checksums."""
    chance = random.Random(1)
    for _ in range(20000):
        payload = chance.randbytes(chance.randrange(100))
        whole = packet(replace(SEGMENT, sequence=chance.getrandbits(32)), payload)
        assert sound(whole)
        data = damaged(b"\0" * 12 + b"\x08\x00" + whole, chance)[ETHERNET:]
        assert data != whole and not sound(data)


def test_reset(lan: Lan) -> None:
    """Both ends of a connection are sent what each takes for a reset by the other."""
    header = mac(1) + mac(0) + b"\x08\x00"
    segment = header + packet(SEGMENT, b"data")
    lan.switch.reset(0, 1)
    lan.guests[0].send(segment)
    there, back = lan.receive(1), lan.receive(0)
    assert there and back
    assert sound(there[ETHERNET:]) and sound(back[ETHERNET:])
    assert there[:12] == mac(1) + mac(0) and back[:12] == mac(0) + mac(1)
    one, other = Segment.parse(there), Segment.parse(back)
    assert one == replace(SEGMENT, flags=TCP_RST, acknowledged=0)
    assert other == Segment(
        SEGMENT.destination, SEGMENT.source, (7700, 35000), SEGMENT.acknowledged, 0, TCP_RST
    )
    # One end has taken it, and connects again: that is let through, as is all after it.
    for flags in (TCP_SYN, TCP_ACK):
        lan.guests[0].send(header + packet(replace(SEGMENT, flags=flags)))
        assert lan.receive(1) == header + packet(replace(SEGMENT, flags=flags))
    assert lan.switch.events()["reset"] == 1


def test_reset_elsewhere(lan: Lan) -> None:
    """Other connections, and what is no TCP, go on."""
    lan.switch.reset(0, 1)
    lan.send(0, 1, b"no TCP")
    assert lan.receive(1) == frame(0, 1, b"no TCP")
    segment = mac(2) + mac(0) + b"\x08\x00" + packet(SEGMENT)
    lan.guests[0].send(segment)
    assert lan.receive(2) == segment


def test_unplugged(lan: Lan) -> None:
    """What is under way to a guest that is gone does not reach the next on its port."""
    lan.switch.set_weather({(0, 1): Weather(delay=NEVER)})
    lan.send(0, 1, b"x")
    lan.taken(0, 1)
    lan.guests[1].close()
    lan.guests[1] = lan.switch.plug(1)
    assert lan.receive(1, 3 * NEVER) is None
