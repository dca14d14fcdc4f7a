"""These tests want NICs with AF_XDP zero-copy, and take them up and down: they are collected in the guest of tests/vm
alone (make test-zerocopy), where eth0 is an emulated card and nobody's network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from wire import DRIVERS, wire

from xdpkit.lab import Port

collect_ignore_glob = [] if "xdpkit.guest" in Path("/proc/cmdline").read_text().split() else ["test_*.py"]


@pytest.fixture(params=DRIVERS)
def nics(request: pytest.FixtureRequest) -> Iterator[tuple[Port, Port]]:
    """(near, far): two joined NICs of a driver."""
    with wire(request.param) as ports:
        yield ports
