#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Measures KCCM against its peers: scripts/bench/__init__.py says how it is built."""

import sys

from bench.main import main

if __name__ == "__main__":
    sys.exit(main())
