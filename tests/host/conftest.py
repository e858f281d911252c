# SPDX-License-Identifier: GPL-2.0
"""Tests that need no guest: bounded, chosen and reported as the cluster tests are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_path = Path(__file__).resolve().parents[1] / "cluster" / "conftest.py"
_spec = importlib.util.spec_from_file_location("kccm_cluster_conftest", _path)
assert _spec and _spec.loader
_cluster = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_cluster)

pytest_configure = _cluster.pytest_configure
pytest_collection_modifyitems = _cluster.pytest_collection_modifyitems
pytest_runtest_setup = _cluster.pytest_runtest_setup
pytest_runtest_call = _cluster.pytest_runtest_call
pytest_runtest_teardown = _cluster.pytest_runtest_teardown
