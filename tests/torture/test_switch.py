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
from cluster.switchd import (
    BREAK_WAITS,
    DONE,
    ETHERNET,
    FORGED,
    HELD,
    OVER,
    RESET_TRIES,
    TCP_FIN,
    TCP_PSH,
    TCP_RST,
    TCP_SYN,
    WAITING,
    Break,
    Segment,
    checksum,
    damaged,
)

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


def sent(source: int, target: int, segment: Segment, payload: bytes = b"") -> bytes:
    """A frame with a TCP segment."""
    return mac(target) + mac(source) + b"\x08\x00" + packet(segment, payload)


# What follows it is sent with it, and the end of that.
BEGINNING = sent(0, 1, SEGMENT, b"half a frame")
REST = replace(SEGMENT, sequence=SEGMENT.sequence + 12, flags=TCP_ACK | TCP_PSH)


def test_segment() -> None:
    """What is read of a segment, also where the frame is longer than its packet."""
    data = Segment.parse(BEGINNING + bytes(6))
    assert data == replace(SEGMENT, length=12)
    assert data.goes_on and data.flow == (SEGMENT.source, 35000, SEGMENT.destination, 7700)
    for flags in (TCP_PSH, TCP_FIN, TCP_SYN, TCP_RST):
        assert not replace(data, flags=TCP_ACK | flags).goes_on
    assert not SEGMENT.goes_on


def test_reset(lan: Lan) -> None:
    """Both ends of a connection are sent what each takes for a reset by the other, where a frame is
    half there.
    """
    number = lan.switch.reset(0, 1, SECONDS)
    whole = sent(0, 1, replace(SEGMENT, flags=TCP_ACK | TCP_PSH), b"a frame")
    for passes in (whole, sent(0, 1, SEGMENT), BEGINNING):
        lan.guests[0].send(passes)
        assert lan.receive(1) == passes
    assert lan.switch.broken(number).state == WAITING and lan.switch.broken(number).half
    lan.guests[0].send(sent(0, 1, REST, b"the rest"))
    there, back = lan.receive(1), lan.receive(0)
    assert there and back
    assert sound(there[ETHERNET:]) and sound(back[ETHERNET:])
    assert there[:12] == mac(1) + mac(0) and back[:12] == mac(0) + mac(1)
    one, other = Segment.parse(there), Segment.parse(back)
    assert one == replace(REST, flags=TCP_RST, acknowledged=0)
    assert other == Segment(
        SEGMENT.destination, SEGMENT.source, (7700, 35000), SEGMENT.acknowledged, 0, TCP_RST
    )
    assert lan.switch.broken(number).state == FORGED
    # One end has taken it, and connects again: that is let through, as is all after it.
    again = replace(SEGMENT, ports=(35001, 7700), flags=TCP_SYN)
    for segment in (again, replace(again, flags=TCP_ACK), SEGMENT):
        lan.guests[0].send(sent(0, 1, segment))
        assert lan.receive(1) == sent(0, 1, segment)
    broken = lan.switch.let_be(number)
    assert (broken.state, broken.half, broken.segments) == (DONE, True, 1)
    assert broken.flow == ["10.1.0.1", 35000, "10.1.0.2", 7700]
    assert lan.switch.events()["reset"] == 1


def test_reset_elsewhere(lan: Lan) -> None:
    """Other connections, and what is no TCP, go on."""
    lan.switch.reset(0, 1)
    lan.send(0, 1, b"no TCP")
    assert lan.receive(1) == frame(0, 1, b"no TCP")
    lan.guests[0].send(sent(0, 2, SEGMENT, b"x"))
    assert lan.receive(2) == sent(0, 2, SEGMENT, b"x")
    lan.guests[0].send(BEGINNING)
    assert lan.receive(1) == BEGINNING
    other = sent(0, 1, replace(SEGMENT, ports=(35001, 7700)), b"x")
    lan.guests[0].send(other)
    assert lan.receive(1) == other


def test_hold(lan: Lan) -> None:
    """Of one connection, in one direction, nothing gets through behind half a frame, until it may."""
    number = lan.switch.hold(0, 1)
    lan.guests[0].send(BEGINNING)
    assert lan.receive(1) == BEGINNING
    assert lan.switch.broken(number).state == HELD and lan.switch.broken(number).half
    for flags in (TCP_PSH, 0, TCP_FIN, TCP_RST):
        lan.guests[0].send(sent(0, 1, replace(REST, flags=TCP_ACK | flags), b"the rest"))
    # Its other direction, and others.
    back = Segment(
        SEGMENT.destination, SEGMENT.source, (7700, 35000), 2000, 1012, TCP_RST | TCP_ACK
    )
    lan.guests[1].send(sent(1, 0, back))
    assert lan.receive(0) == sent(1, 0, back)
    again = sent(0, 1, replace(SEGMENT, ports=(35001, 7700), flags=TCP_SYN))
    lan.guests[0].send(again)
    assert lan.receive(1) == again
    broken = lan.switch.let_be(number)
    assert (broken.state, broken.half, broken.segments) == (HELD, True, 4)
    assert lan.switch.events()["swallowed"] == 4
    lan.guests[0].send(sent(0, 1, REST, b"the rest"))
    assert lan.receive(1) == sent(0, 1, REST, b"the rest")


def test_one_after_the_other(lan: Lan) -> None:
    """What was to be done to a link before is over when something else is."""
    first, second = lan.switch.hold(0, 1), lan.switch.reset(0, 1)
    assert lan.switch.let_be(first).state == OVER
    lan.guests[0].send(BEGINNING)
    assert lan.receive(1) == BEGINNING
    assert lan.switch.broken(second).half


DATA = replace(SEGMENT, length=100, flags=TCP_ACK | TCP_PSH)
MORE = replace(DATA, flags=TCP_ACK)


def test_reset_between_frames() -> None:
    """If no frame is long enough for a while, it need not be in the middle of one."""
    for breaking in (Break((0, 1), True), Break((0, 1), False)):
        assert not any(breaking.takes(DATA, 0.0) for _ in range(BREAK_WAITS))
        assert breaking.takes(DATA, 0.0) and not breaking.half
        assert breaking.state == (FORGED if breaking.forge else HELD)


def test_reset_of_one_that_ends() -> None:
    """A connection that ends by itself was not reset, and the next one will be."""
    breaking = Break((0, 1), True)
    assert not breaking.takes(MORE, 0.0) and breaking.half
    again = replace(MORE, ports=(35001, 7700))
    for passes in (replace(DATA, flags=TCP_FIN), replace(again, flags=TCP_SYN), DATA, again):
        assert not breaking.takes(passes, 0.0)
    assert breaking.takes(again, 0.0)
    assert breaking.flow == again.flow and breaking.state == FORGED


@pytest.mark.parametrize(
    ("flags", "state"),
    [(TCP_RST, DONE), (TCP_SYN, DONE), (TCP_SYN | TCP_ACK, DONE), (TCP_FIN, OVER)],
)
def test_reset_is_taken(flags: int, state: str) -> None:
    """An end that has taken a reset knows no such connection, or makes another; none that closes has."""
    breaking = Break((0, 1), True, within=1.0)
    for now, segment in ((10.0, MORE), (15.0, DATA), (16.0, replace(DATA, flags=flags))):
        breaking.takes(segment, now)
    assert breaking.state == state and breaking.is_over and breaking.segments == 1


def test_reset_is_not_taken() -> None:
    """Where nobody takes them there are so many resets, and no more."""
    breaking = Break((0, 1), True)
    breaking.takes(MORE, 0.0)
    assert all(breaking.takes(DATA, 0.0) for _ in range(RESET_TRIES))
    assert not breaking.takes(DATA, 0.0) and breaking.state == OVER


@pytest.mark.parametrize("last", [DATA, replace(DATA, flags=TCP_SYN), replace(DATA, flags=TCP_RST)])
def test_reset_is_not_taken_in_time(last: Segment) -> None:
    """A connection that ends after a while ends because nothing gets through, not of a reset."""
    breaking = Break((0, 1), True, within=1.0)
    assert not breaking.takes(MORE, 10.0)
    assert breaking.takes(DATA, 15.0) and breaking.takes(DATA, 15.9)
    assert not breaking.takes(last, 16.1) and breaking.state == OVER
    holding = Break((0, 1), False, within=1.0)
    assert not holding.takes(MORE, 10.0)
    assert holding.takes(DATA, 15.0) and holding.takes(DATA, 99.0)


def test_unplugged(lan: Lan) -> None:
    """What is under way to a guest that is gone does not reach the next on its port."""
    lan.switch.set_weather({(0, 1): Weather(delay=NEVER)})
    lan.send(0, 1, b"x")
    lan.taken(0, 1)
    lan.guests[1].close()
    lan.guests[1] = lan.switch.plug(1)
    assert lan.receive(1, 3 * NEVER) is None
