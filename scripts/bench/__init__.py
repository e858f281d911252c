# SPDX-License-Identifier: GPL-2.0
"""The benchmark of KCCM against its peers.

How the parts fit together::

    plan           what is measured: peers, figures, points
      |
    rounds ------- guest ---------- environments
      |            commands and     QEMU and UML, with one processor
      |            their answers    and with two
      +----------- instances        a guest for each node of a cluster
      +-- percentile   percentiles of all rounds' calls together
      |
    records        results.json and about.json, the only source of
      |            numbers for what follows
      +-- ratios       ratios within a boot, and how something grows
      +-- crossings    where the lines of figure 8 cross, and what to choose
      +-- plots        pictures
      `-- tables       report.md, the targets, the part of README.md

What a guest is asked is described in guest.py; the other end is in tests/bench.
"""
