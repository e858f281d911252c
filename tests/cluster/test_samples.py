# SPDX-License-Identifier: GPL-2.0
"""The samples from which a user would start: they load, talk to each other, and unload."""

from __future__ import annotations

import itertools

import pytest

from cluster import Cluster
from logs import expect_line

HELLOS = ("kccm_hello_c", "kccm_hello_rust")
LANGUAGE = {"kccm_hello_c": "C", "kccm_hello_rust": "Rust"}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(HELLOS, HELLOS)))
def test_hello(cluster3: Cluster, first: str, second: str) -> None:
    """P1, P5, P7, P9: of two modules in two kernels one greets the other with a call, which is replied to, and sent a message."""
    marks = {node: cluster3[node].mark() for node in range(3)}
    one, other = LANGUAGE[first], LANGUAGE[second]
    # Whoever is first finds nobody to greet, and waits to be greeted.
    cluster3[0].insmod(first)
    expect_line(cluster3[0], marks[0], "node 1 cannot be greeted yet")
    cluster3[2].insmod(second, "peer=0")
    expect_line(cluster3[0], marks[0], f"node 2 called: hello, here is {other}$")
    expect_line(cluster3[2], marks[2], "node 0 replied: hello yourself$")
    expect_line(cluster3[2], marks[2], f"node 0 sent: a message in {one}$")
    assert "handlers 1" in cluster3.attribute(0, "stats")
    for node, module in ((0, first), (2, second)):
        cluster3[node].rmmod(module, timeout=5)
        assert "handlers 0" in cluster3.attribute(node, "stats")
        assert "messages_waiting 0" in cluster3.attribute(node, "stats")


@pytest.mark.parametrize("module", HELLOS)
def test_hello_to_nobody(cluster3: Cluster, module: str) -> None:
    """With a node that is not there, loading fails, says why, and leaves nothing behind."""
    mark = cluster3[0].mark()
    cluster3.unload(2)
    cluster3.wait_lost(0, 2)
    result = cluster3[0].try_insmod(module, "peer=2 wait_ms=200")
    assert result.rc != 0
    assert "timed out" in result.out
    expect_line(cluster3[0], mark, "node 2 was not greeted: .*ETIMEDOUT")
    assert not cluster3[0].loaded(module)
    assert "handlers 0" in cluster3.attribute(0, "stats")
    cluster3.load(2)
    cluster3.wait_connected()


def test_kccm_is_in_use(cluster3: Cluster) -> None:
    """KCCM cannot be unloaded while a sample uses it."""
    for module in HELLOS:
        cluster3[1].insmod(module)
        assert cluster3[1].rmmod("kccm", check=False).rc != 0
        cluster3[1].rmmod(module)
    cluster3.unload(1)
    cluster3.load(1)
    cluster3.wait_connected()


def test_without_kccm(cluster3: Cluster) -> None:
    """Without KCCM no sample can be loaded, and nothing is left of the attempt."""
    cluster3.unload(1)
    for module in (*HELLOS, "kccm_demo", "kccm_lock"):
        result = cluster3[1].try_insmod(module)
        assert result.rc != 0 and "unknown symbol" in result.out
        assert not cluster3[1].loaded(module)
    cluster3.load(1)
    cluster3.wait_connected()
