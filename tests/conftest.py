"""What all tests share; by being here it also makes the modules of this directory importable in those below.

`@pytest.mark.needs("tcx")`: the test is about a feature of newer kernels (a key of xdpkit.kernel.features.FEATURES).
It is skipped where the kernel is older than the feature and the probe agrees.  A kernel that is new enough and lacks it
is a failure: so nothing is ever skipped on CI's kernel.

`@pytest.mark.root`: the test needs root; the folders in ROOT_FOLDERS have it for all their tests.  `@pytest.mark.slow`:
the test needs no root, but seconds.  `make check` runs what has neither, without privileges: what needs some and does
not say so fails there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xdpkit.kernel.features import FEATURES, has, kernel_version
from xdpkit.lab import Lab, Port
from xdpkit.lab.generator import Generator
from xdpkit.lab.pytest_plugin import MakeVeth

# A shell that starts the tests in the background has them ignore SIGINT, and every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the same of nohup


ROOT_FOLDERS = {
    "bench", "cli", "device", "doctor", "firewall", "fuzz", "kernel", "kernels", "lab", "link", "sockets", "zerocopy",
}  # fmt: skip
HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root")
    config.addinivalue_line("markers", "slow: needs no root, but takes seconds")
    config.addinivalue_line("markers", "needs(feature, ...): kernel features, keys of xdpkit.kernel.features.FEATURES")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(HERE).parts[0] in ROOT_FOLDERS:
            item.add_marker(pytest.mark.root)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            feature = FEATURES[name]
            if has(name):
                continue
            if kernel_version() >= feature.since:
                pytest.fail(f"Linux {os.uname().release} should have {name}, and the probe does not find it")
            pytest.skip(f"{name} came with Linux {feature.version}, this is {os.uname().release}")


@pytest.fixture
def lab(xdp_lab: Lab) -> Lab:
    """The fixtures of the plugin by shorter names: this, and the three below."""
    return xdp_lab


@pytest.fixture
def make_veth(xdp_make_veth: MakeVeth) -> MakeVeth:
    return xdp_make_veth


@pytest.fixture
def veth_pair(xdp_veth_pair: tuple[Port, Port]) -> tuple[Port, Port]:
    return xdp_veth_pair


@pytest.fixture
def generator(xdp_generator: Callable[..., Generator]) -> Callable[..., Generator]:
    return xdp_generator


@pytest.fixture(scope="module")
def wire() -> Iterator[Port]:
    """A port; what its peer sends arrives there, on one queue, and nothing else."""
    with Lab.pair() as (_, right):
        yield right
