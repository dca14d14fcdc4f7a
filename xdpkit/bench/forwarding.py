"""Paths that forward from port a to port b of one namespace: in user space, in the kernel at XDP, in the stack.

The stack's bridge, not its routing: a router rewrites addresses in pages that live frames are sent from again."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..device.netlink import iproute, outside_loop
from ..lab.lab import Lab
from ..lab.port import Port
from ..language.actions import Forward
from ..language.headers import eth
from ..language.pipeline import Pipeline
from ..link.attach import attach
from ..link.forward import forward
from ..sockets.options import SocketOptions
from .native import loops
from .site import Path, Running, Site, everything, loop
from .traffic import packet_socket

__all__ = ["FORWARD", "middle"]


@contextmanager
def middle(mtu: int) -> Iterator[tuple[Port, Port, Port, Port]]:
    """left - a | b - right, one queue each."""
    with Lab() as lab:
        namespace = lab.namespace("middle")
        left, a = lab.veth(lab.namespace("left"), namespace, names=("left", "a"), mtu=mtu)
        b, right = lab.veth(namespace, lab.namespace("right"), names=("b", "right"), mtu=mtu)
        yield left, a, b, right


@contextmanager
def _user_space(site: Site) -> Iterator[Running]:
    with attach(everything(), "a", mode="native") as a, attach(everything(), "b", mode="native") as b:
        with forward(a, b, cpus=[site.cpu], wait=site.wait):
            me = Running(str(a.attachment))
            yield me
        me.lost = a.ledger().lost


@contextmanager
def _devmap(_: Site) -> Iterator[Running]:
    pipe = Pipeline("devmap")
    pipe.rule(eth.present, Forward("b"), name="all")
    with attach(pipe, "a", mode="native") as link:
        yield Running(str(link.attachment))


@contextmanager
def _python(site: Site) -> Iterator[Running]:
    """Batches of a, copied by numpy into arrays that b sends."""
    options = SocketOptions(tx=True)
    with attach(everything(), "a", mode="native") as a, attach(everything(), "b", mode="native", options=options) as b:
        with a.sockets() as come, b.sockets() as go:

            class Turn(Running):
                def poll(self) -> None:
                    for batch in come.batches(timeout=0.01):
                        rows = np.stack([np.frombuffer(bytes(frame), np.uint8) for frame in batch.frames])
                        while len(rows):
                            rows = rows[go.send(rows) :]
                            go.complete()

            me = Turn(str(a.attachment))
            yield me
        me.lost = a.ledger().lost


@contextmanager
def _packet(site: Site) -> Iterator[Running]:
    """recvmmsg from a, sendmmsg to b.  The filter of the stack drops what arrives besides."""
    with packet_socket(site.port, 3) as come, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as go:
        go.setsockopt(263, 20, 1)  # PACKET_QDISC_BYPASS
        go.bind(("b", 0))

        def run(stop: Any, _: Any) -> int:
            return int(loops().forward_run(come.fileno(), go.fileno(), stop))

        with loop(site, Running("AF_PACKET"), 0, run) as me:
            yield me
        me.lost = int.from_bytes(come.getsockopt(263, 6, 8)[4:], sys.byteorder)  # PACKET_STATISTICS


@contextmanager
def _bridge(_: Site) -> Iterator[Running]:
    def make() -> None:
        with iproute("make a bridge") as ip:
            ip.link("add", ifname="bridge", kind="bridge", br_mcast_snooping=0)
            index = socket.if_nametoindex("bridge")
            for name in ("a", "b"):
                ip.link("set", index=socket.if_nametoindex(name), master=index)
            ip.link("set", index=index, state="up")

    outside_loop(make)
    yield Running("the kernel's bridge")


FORWARD = (
    Path("devmap", _devmap, 'Forward("b"): XDP alone, on the CPU that receives', delays=False),
    Path("afxdp-forward", _user_space, "forward(a, b): one C thread, shared UMEM, adaptive wait", delays=False),
    Path("bridge", _bridge, "Linux bridge, no STP", delays=False),
    Path("packet-forward", _packet, "packet sockets, recvmmsg and sendmmsg of 64 in C", delays=False),
    Path("python-forward", _python, "AF_XDP batches and sockets.send() in Python", delays=False),
)
