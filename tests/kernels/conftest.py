"""What older kernels must refuse in so many words.  Collected in the guests of tests/vm alone (make test-kernels): the
machine's own kernel has it all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xdpkit.kernel.features import has

collect_ignore_glob = [] if "xdpkit.guest" in Path("/proc/cmdline").read_text().split() else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lacks(feature): skipped where the kernel has the feature")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("lacks"):
        if has(mark.args[0]):
            pytest.skip(f"Linux {os.uname().release} has {mark.args[0]}")
