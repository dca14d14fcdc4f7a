"""pytest fixtures for packet tests: `lab`, `veth_pair`, `make_veth`, `generator`. Fresh namespaces for each test.

They need CAP_SYS_ADMIN and CAP_NET_ADMIN. Without them a test that asks for one fails, it is not skipped: a
green run must mean that the packets flowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from .lab import Lab, Namespace, Port

if TYPE_CHECKING:
    from .generator import Generator

MakeVeth = Callable[..., tuple[Port, Port]]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An empty `xdpkit.lab.Lab`, closed after the test."""
    try:
        Namespace("probe").close()
    except PermissionError as error:
        pytest.fail(f"the xdpkit lab cannot start: {error.strerror}", pytrace=False)
    with Lab() as lab:
        yield lab


@pytest.fixture
def make_veth(lab: Lab) -> MakeVeth:
    """`make_veth(queues=4, ...)`: two new namespaces joined by a veth pair; options as for `Lab.veth`."""

    def make(**options: Any) -> tuple[Port, Port]:
        return lab.veth(lab.namespace("left"), lab.namespace("right"), **options)

    return make


@pytest.fixture
def veth_pair(make_veth: MakeVeth) -> tuple[Port, Port]:
    """Two ports joined by a veth pair with one queue, each in a namespace of its own."""
    return make_veth()


@pytest.fixture
def generator(lab: Lab) -> Iterator[Callable[..., Generator]]:
    """`generator(port, templates, ...)`: an open `xdpkit.lab.generator.Generator`, closed before the lab is."""
    with ExitStack() as stack:
        yield lambda port, templates, **options: stack.enter_context(port.generator(templates, **options))
