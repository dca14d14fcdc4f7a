"""pytest fixtures for packet tests: `xdp_lab`, `xdp_veth_pair`, `xdp_make_veth`, `xdp_generator`.
Fresh namespaces for each test.

They need CAP_SYS_ADMIN and CAP_NET_ADMIN. Without them a test that asks for one fails, it is not skipped: a
green run must mean that the packets flowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from .lab import Lab, Namespace, Port

if TYPE_CHECKING:
    from .generator import Generator

MakeVeth = Callable[..., tuple[Port, Port]]


@cache
def _refusal() -> str:
    """Why this process may make no namespace; empty if it may."""
    try:
        Namespace("probe").close()
    except PermissionError as error:
        return error.strerror or str(error)
    return ""


@pytest.fixture
def xdp_lab() -> Iterator[Lab]:
    """An empty `xdpkit.lab.Lab`, closed after the test."""
    if refusal := _refusal():
        pytest.fail(f"the xdpkit lab cannot start: {refusal}", pytrace=False)
    with Lab() as lab:
        yield lab


@pytest.fixture
def xdp_make_veth(xdp_lab: Lab) -> MakeVeth:
    """`xdp_make_veth(queues=4, ...)`: two new namespaces joined by a veth pair; options as for `Lab.veth`."""

    def make(**options: Any) -> tuple[Port, Port]:
        return xdp_lab.veth(xdp_lab.namespace("left"), xdp_lab.namespace("right"), **options)

    return make


@pytest.fixture
def xdp_veth_pair(xdp_make_veth: MakeVeth) -> tuple[Port, Port]:
    """Two ports joined by a veth pair with one queue, each in a namespace of its own."""
    return xdp_make_veth()


@pytest.fixture
def xdp_generator(xdp_lab: Lab) -> Iterator[Callable[..., Generator]]:
    """`xdp_generator(port, templates, ...)`: an open `xdpkit.lab.generator.Generator`, closed before the lab is."""
    with ExitStack() as stack:
        yield lambda port, templates, **options: stack.enter_context(port.generator(templates, **options))
