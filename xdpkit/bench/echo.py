"""Round trips: one frame at a time out of a packet socket that spins, back from what is measured on the other CPU.

The client is the same for all, so the difference is the way back: AF_XDP in user space, XDP alone (TX), a UDP echo
server on the stack.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import numpy as np
from numpy.typing import NDArray

from ..device.netlink import iproute, outside_loop
from ..lab.lab import Lab
from ..language.actions import TX
from ..language.headers import eth
from ..language.pipeline import Pipeline
from ..link.attach import attach
from ..link.forward import forward
from ..sockets.options import Wait
from .native import ffi, loops
from .site import Path, Running, Site, everything, loop
from .traffic import CPUS, frame_for, packet_socket

__all__ = ["ECHO", "round_trips"]

_NUD_PERMANENT = 0x80


def _reflect(wait: Wait) -> Callable[[Site], AbstractContextManager[Running]]:
    @contextmanager
    def path(site: Site) -> Iterator[Running]:
        with attach(everything(), site.port.name, mode="native", bind="want:zerocopy") as link:
            with forward(link, link, wait=wait, cpus=[site.cpu]):
                yield Running(str(link.attachment))

    return path


@contextmanager
def _xdp_tx(site: Site) -> Iterator[Running]:
    pipe = Pipeline("reflect")
    pipe.rule(eth.present, TX, name="all")
    with attach(pipe, site.port.name, mode="native") as link:
        yield Running(str(link.attachment))


@contextmanager
def _udp_echo(site: Site) -> Iterator[Running]:
    client = site.port.peer

    def neighbour() -> None:
        with iproute("the neighbour") as ip:
            there = {"dst": "198.18.0.1", "lladdr": client.mac, "state": _NUD_PERMANENT}
            ip.neigh("add", ifindex=site.port.index, **there)

    outside_loop(neighbour)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 9))
        with loop(site, Running("UDP socket"), 0, lambda stop, _: int(loops().echo_run(sock.fileno(), stop))) as me:
            yield me


ECHO = (
    Path("xdp-tx", _xdp_tx, "TX at XDP, no user space"),
    Path("afxdp-busy", _reflect("busy"), "forward(a, a), never sleeps"),
    Path("afxdp-adaptive", _reflect("adaptive"), "forward(a, a), looks on for some 20 us, then sleeps"),
    Path("afxdp-sleep", _reflect("sleep"), "forward(a, a), sleeps at once"),
    Path("udp-echo", _udp_echo, "recvfrom and sendto in C, sleeps in poll"),
)


def round_trips(path: Path, count: int, gap_us: int) -> tuple[str, NDArray[np.uint32]]:
    """The attachment, and the ns of each of at most ``count`` round trips of 64 bytes, ``gap_us`` between them."""
    with Lab.pair(addresses=(None, "198.19.0.1/15")) as (left, right):
        times = np.zeros(count, np.uint32)
        frame = frame_for(left, 64)
        with packet_socket(left, 3) as sock, ThreadPoolExecutor(1, initializer=_on, initargs=(CPUS[0],)) as pool:
            with left.namespace:
                client = attach(Pipeline("client"), left.name, mode="native")  # veth gives XDP_TX to no one without
            with client, right.namespace, path.open(Site(right, 64, CPUS[1])) as running:
                room = ffi.from_buffer("uint32_t[]", times, require_writable=True)
                ping = loops().ping_run
                pool.submit(ping, sock.fileno(), frame, len(frame), min(count, 100), gap_us, room).result()
                back = pool.submit(ping, sock.fileno(), frame, len(frame), count, gap_us, room).result()
        return running.attachment, times[:back]


def _on(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
