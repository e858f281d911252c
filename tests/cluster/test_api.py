# SPDX-License-Identifier: GPL-2.0
"""The exported functions, from C and from Rust, as other modules use them (tests/api)."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cluster import Cluster
from cluster.cluster import SYSFS
from logs import expect_line, expect_once, kccm_lines

RUST, C = "kccm_api_rust", "kccm_api_c"

# Those of kccm_api_rust.rs.
CHECKS = (
    "cluster",
    "nothing to receive",
    "messages",
    "sending",
    "synchronous calls",
    "asynchronous calls",
    "waiting in a short handler",
    "calls where they come in",
    "registrations",
    "subscriptions",
)


@pytest.mark.parametrize(("here", "there"), [(0, 1), (2, 0)])
def test_rust(cluster3: Cluster, here: int, there: int) -> None:
    """P5-P9: all of include/kccm.rs does what it says there, between two kernels."""
    mark = cluster3[here].mark()
    cluster3[there].insmod(RUST)
    result = cluster3[here].try_insmod(RUST, f"peer={there}", timeout=60)
    lines = kccm_lines(cluster3[here], mark)
    said = [match[1] for line in lines if (match := re.search(rf"{RUST}: (.*): as it sh", line))]
    assert tuple(said) == CHECKS, lines
    assert result.rc == 0, result.out
    for node in (here, there):
        cluster3[node].rmmod(RUST)
        assert "handlers 0" in cluster3.attribute(node, "stats")
        assert "messages_waiting 0" in cluster3.attribute(node, "stats")


def test_events(cluster3: Cluster) -> None:
    """P11: a subscriber hears of every peer: who is there, who goes, who comes."""
    cluster3[1].insmod(RUST)
    mark = cluster3[0].mark()
    cluster3[0].insmod(RUST, "peer=1", timeout=60)

    def hears(node: int, event: str, since: int) -> None:
        incarnation = cluster3.attribute(node, "incarnation")
        expect_once(cluster3[0], since, f"node {node} is {event}, incarnation {incarnation}")

    for node in (1, 2):
        hears(node, "Up", mark)
    admin = f"{SYSFS}/peers/2/admin"
    for _ in range(3):
        for setting, event in (("down", "Down"), ("up", "Up")):
            mark = cluster3[0].mark()
            cluster3[0].write(admin, setting)
            hears(2, event, mark)
    cluster3.wait_connected()
    cluster3[0].rmmod(RUST)
    cluster3[1].rmmod(RUST)


def test_wrong_arguments(cluster3: Cluster) -> None:
    """Each exported function refuses what it cannot take, with the error that kccm.h names."""
    for node in range(3):
        mark = cluster3[node].mark()
        result = cluster3[node].try_insmod(C, timeout=60)
        lines = kccm_lines(cluster3[node], mark)
        assert result.rc == 0, "\n".join(lines)
        expect_line(cluster3[node], mark, r"\d{2,} checks, 0 failed")
        cluster3[node].rmmod(C)


def test_registration_dropped_by_a_handler(make_cluster: Callable[..., Cluster]) -> None:
    """A handler that drops a registration is told, and its module stays, as kccm.rs says."""
    cluster = make_cluster(2)
    cluster[1].insmod(RUST)
    mark = cluster[1].mark()
    cluster[0].insmod(RUST, "misuse=1")
    expect_once(cluster[1], mark, "a registration was dropped by a handler or subscriber")
    assert cluster[1].rmmod(RUST, check=False).rc != 0
    cluster[0].rmmod(RUST)
