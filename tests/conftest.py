"""What all tests share; by being here it also makes the modules of this directory importable in those below.

`@pytest.mark.needs("tcx")`: the test is about a feature of newer kernels (a key of xdpkit.kernel.features.FEATURES).
It is skipped where the kernel is older than the feature and the probe agrees.  A kernel that is new enough and lacks it
is a failure: so nothing is ever skipped on CI's kernel.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from xdpkit.kernel.features import FEATURES, has, kernel_version
from xdpkit.lab import Lab, Port

# A shell that starts the tests in the background has them ignore SIGINT, and every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(feature, ...): kernel features, keys of xdpkit.kernel.features.FEATURES")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            feature = FEATURES[name]
            if has(name):
                continue
            if kernel_version() >= feature.since:
                pytest.fail(f"Linux {os.uname().release} should have {name}, and the probe does not find it")
            pytest.skip(f"{name} came with Linux {feature.version}, this is {os.uname().release}")


@pytest.fixture(scope="module")
def wire() -> Iterator[Port]:
    """A port; what its peer sends arrives there, on one queue, and nothing else."""
    with Lab.pair() as (_, right):
        yield right
