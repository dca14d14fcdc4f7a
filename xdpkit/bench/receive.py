"""Paths that receive: AF_XDP in every mode, XDP alone, packet sockets, UDP through the stack, io_uring."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path as File
from typing import Any

from ..kernel import core
from ..kernel.core import check, lib
from ..language.errors import NotSupported
from ..link.attach import Link, attach
from ..sockets.options import KERNEL_HEADROOM, Bind, Mode, SocketOptions, Wait
from ..sockets.workers import wait_number
from .native import loops, uring
from .site import Path, Running, Site, dropping, everything, loop
from .traffic import TIME_OFFSET, packet_socket

__all__ = ["RECEIVE"]

_IN_FRAME = 42 + TIME_OFFSET
_RECVFROM, _RECVMMSG, _TPACKET_V3 = 0, 1, 2
_ALL = 3  # ETH_P_ALL
#: Packet sockets of a fanout group, each with a worker.
MOST_WORKERS = 64
_FANOUT_LB = 1  # PACKET_FANOUT_LB: in turn


@contextmanager
def _sink(site: Site) -> Iterator[tuple[Any, int]]:
    """A sink of the core that counts, or that keeps delays; and a place for its threads' CPU."""
    out = core.ffi.new("struct xk_sink **")
    if site.stamped:
        room = core.ffi.from_buffer("uint64_t[]", site.delays_ns, require_writable=True)
        check(lib.xk_sink_delays(_IN_FRAME, room, len(site.delays_ns), out))
    else:
        check(lib.xk_sink_count(0, MOST_WORKERS, out))
    try:
        yield out[0], site.cpu
    finally:
        lib.xk_sink_close(out[0])


def _join(me: Running, workers: Sequence[Any]) -> None:
    stats = core.ffi.new("struct xk_worker_stats *")
    for worker in workers:
        lib.xk_worker_stop(worker)
    for worker in workers:
        lib.xk_worker_join(worker, stats)
        me.received += int(stats.packets)
        me.delays += int(stats.written)
        if stats.error:
            raise OSError(stats.error, f"worker: {os.strerror(stats.error)}")


def _afxdp(
    mode: Mode, bind: Bind, wait: Wait | None = None, options: SocketOptions | None = None
) -> Callable[[Site], AbstractContextManager[Running]]:
    """AF_XDP, drained by the C worker; ``wait`` instead of the site's."""

    @contextmanager
    def path(site: Site) -> Iterator[Running]:
        me = Running()
        with (
            attach(everything(), site.port.name, mode=mode, bind=bind, options=options) as link,
            link.sockets() as sockets,
        ):
            me.attachment = str(link.attachment)
            with _sink(site) as (sink, cpu):
                out = core.ffi.new("struct xk_worker **")
                number = wait_number(wait or site.wait)
                check(lib.xk_worker_start_xsk(sockets.xsks[0].xsk, sink, 0, 0, number, cpu, out))
                try:
                    yield me
                finally:
                    sockets.stop_inflow()
                    _join(me, [out[0]])
        _settle(me, link)

    return path


def _settle(me: Running, link: Link) -> None:
    ledger = link.ledger()
    if ledger.problems():
        raise OSError(f"the ledger does not sum: {ledger.problems()[0]}")
    me.received, me.lost = ledger.delivered, ledger.lost


def _plain_c(frame_size: int) -> Callable[[Site], AbstractContextManager[Running]]:
    """The yardstick: an AF_XDP loop that does nothing else, behind the same program."""

    @contextmanager
    def path(site: Site) -> Iterator[Running]:
        most = frame_size - KERNEL_HEADROOM
        if site.size > most:
            raise NotSupported("the plain loop", f"packets of at most {most} bytes: it knows one frame for each")
        me = Running()
        with attach(everything(), site.port.name, mode="native") as link:
            fd = loops().plain_open(site.port.index, 0, frame_size)
            if fd < 0:
                raise OSError("the plain loop opens no socket")
            check(lib.xk_xskmap_set(link.program.map_fd("xsks"), 0, fd))
            me.attachment = "native, copy"
            with socket.socket(44, socket.SOCK_RAW, 0, fd) as sock:
                with loop(site, me, _IN_FRAME, lambda stop, delays: int(loops().plain_run(stop, delays))):
                    yield me
                    lib.xk_xskmap_clear(link.program.map_fd("xsks"), 0)
                    check(lib.xk_quiesce())
                counts = sock.getsockopt(283, 7, 48)  # XDP_STATISTICS
                me.lost = sum(int.from_bytes(counts[at : at + 8], sys.byteorder) for at in (0, 24))

    return path


@contextmanager
def _afxdp_python(site: Site) -> Iterator[Running]:
    """AF_XDP, drained by Python in batches, lengths summed as a numpy column; a delay from each batch's middle."""
    with attach(everything(), site.port.name, mode="native", bind="want:zerocopy") as link, link.sockets() as sockets:

        class Batches(Running):
            total_bytes = 0

            def poll(self, timeout: float = 0.01) -> None:
                deadline = time.monotonic() + timeout
                for batch in sockets.batches(timeout=timeout):
                    self.total_bytes += int(batch.lengths.sum())
                    if site.stamped and self.delays < len(site.delays_ns):
                        sent = int.from_bytes(batch.frames[len(batch) // 2][_IN_FRAME : _IN_FRAME + 8])
                        site.delays_ns[self.delays] = time.monotonic_ns() - sent
                        self.delays += 1
                    if timeout and time.monotonic() > deadline:
                        return

        me = Batches(str(link.attachment))
        yield me
        sockets.stop_inflow()
        me.poll(0)
    _settle(me, link)


@contextmanager
def _xdp_drop(site: Site) -> Iterator[Running]:
    """XDP alone: what the sender and the hook cost, and no more."""
    with attach(dropping(), site.port.name, mode="native") as link:
        me = Running(str(link.attachment))
        yield me
        me.received = link.ledger().seen


def _packet(kind: int, sockets: int = 1) -> Callable[[Site], AbstractContextManager[Running]]:
    """Packet sockets drained by the C worker; several share the packets by PACKET_FANOUT."""

    @contextmanager
    def path(site: Site) -> Iterator[Running]:
        me, opened, workers = Running("AF_PACKET"), [], []
        config = core.ffi.new(
            "struct xk_packet_config *",
            {"kind": kind, "filter_prog_fd": -1, "block_size": 1 << 20, "blocks": 16,
             "retire_ms": 1 if site.stamped else 10, "buffer_bytes": 16 << 20},
        )  # fmt: skip
        with ExitStack() as stack:
            sink, cpu = stack.enter_context(_sink(site))
            for _ in range(sockets):
                out, worker = core.ffi.new("struct xk_packet **"), core.ffi.new("struct xk_worker **")
                check(lib.xk_packet_open(site.port.index, config, out), site.port.name)
                stack.callback(lib.xk_packet_close, out[0])
                opened.append(out[0])
                if sockets > 1:
                    check(lib.xk_packet_fanout(out[0], 1, _FANOUT_LB), site.port.name)
                check(lib.xk_worker_start_packet(out[0], sink, 0, lib.XK_WAIT_ADAPTIVE, cpu, worker))
                workers.append(worker[0])
            try:
                yield me
            finally:
                for handle in opened:
                    check(lib.xk_packet_quiet(handle))
                check(lib.xk_quiesce())
                _join(me, workers)
            packets, drops = core.ffi.new("uint64_t *"), core.ffi.new("uint64_t *")
            for handle in opened:
                check(lib.xk_packet_stats(handle, packets, drops))
                me.lost += int(drops[0])

    return path


@contextmanager
def _python_recv(site: Site) -> Iterator[Running]:
    """A Python loop around socket.recv."""
    with packet_socket(site.port, _ALL) as sock:
        sock.settimeout(0.01)

        class Recv(Running):
            def poll(self) -> None:
                try:
                    for _ in range(1000):
                        packet = sock.recv(9216)
                        self.received += 1
                        if site.stamped and self.delays < len(site.delays_ns):
                            sent = int.from_bytes(packet[_IN_FRAME : _IN_FRAME + 8])
                            site.delays_ns[self.delays] = time.monotonic_ns() - sent
                            self.delays += 1
                except TimeoutError:
                    pass

        me = Recv("AF_PACKET")
        yield me
        before = -1
        while me.received > before:
            before = me.received
            me.poll()
        me.lost = int.from_bytes(sock.getsockopt(263, 6, 8)[4:], sys.byteorder)  # PACKET_STATISTICS


@contextmanager
def _io_uring(site: Site) -> Iterator[Running]:
    """A packet socket read by io_uring."""
    me, ring = Running("AF_PACKET"), uring()

    def run(stop: Any, delays: Any) -> int:
        packets = int(ring.uring_run(sock.fileno(), stop, delays))
        if packets < 0:
            raise OSError(-packets, f"io_uring: {os.strerror(-packets)}")
        return packets

    with packet_socket(site.port, _ALL) as sock:
        with loop(site, me, _IN_FRAME, run):
            yield me
        me.lost = int.from_bytes(sock.getsockopt(263, 6, 8)[4:], sys.byteorder)


def _udp(batch: int) -> Callable[[Site], AbstractContextManager[Running]]:
    """A UDP socket: packets go through the whole stack."""

    @contextmanager
    def path(site: Site) -> Iterator[Running]:
        me = Running("UDP socket")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
            sock.bind(("0.0.0.0", 9))
            before = _udp_lost()
            with loop(site, me, TIME_OFFSET, lambda stop, d: int(loops().receive_run(sock.fileno(), batch, stop, d))):
                yield me
            me.lost = _udp_lost() - before

    return path


def _udp_lost() -> int:
    """InErrors of UDP in this thread's namespace: datagrams that found no room."""
    names, values = (
        line.split() for line in File("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Udp:")
    )
    return int(values[names.index("InErrors")])


_RING = "TPACKET_V3, 16 blocks of 1 MiB, retired after 10 ms (1 ms for delays), C worker, adaptive wait"
RECEIVE = (
    Path("xdp-drop", _xdp_drop, "native XDP, one counter, no user space", delays=False),
    Path("plain-c", _plain_c(4096), "AF_XDP rxdrop loop in C, libxdp's defaults: copy, frames of 4096, never sleeps"),
    Path("plain-c-2k", _plain_c(2048), "the same with frames of 2048, the smallest that it knows"),
    Path(
        "afxdp",
        _afxdp("native", "want:zerocopy"),
        "rings of 2048, need_wakeup, C worker, batch 256, adaptive wait",
    ),
    Path(
        "afxdp-spread",
        _afxdp("native", "want:zerocopy", options=SocketOptions(unaligned="on")),
        "the same with unaligned=on: frames of 2112",
    ),
    Path("afxdp-sleep", _afxdp("native", "want:zerocopy", "sleep"), "as afxdp, but it sleeps at once"),
    Path("afxdp-nap", _afxdp("native", "want:zerocopy", "nap"), "as afxdp, but it looks again every 0.5 ms"),
    Path("afxdp-generic", _afxdp("generic", "copy"), "as afxdp, in generic mode"),
    Path("afxdp-python", _afxdp_python, "batches of at most 512 in Python, lengths summed by numpy"),
    Path("tpacket-v3", _packet(_TPACKET_V3), _RING),
    Path("tpacket-fanout", _packet(_TPACKET_V3, 2), _RING + ", PACKET_FANOUT_LB over 2 sockets on one CPU"),
    Path("recvmmsg", _packet(_RECVMMSG), "packet socket, batch 64, 16 MiB, timestamps, auxdata, adaptive wait"),
    Path("recvfrom", _packet(_RECVFROM), "packet socket, 16 MiB, adaptive wait"),
    Path("io-uring", _io_uring, "packet socket, multishot recv, 2048 provided buffers, 16 MiB"),
    Path("udp-recvmmsg", _udp(64), "UDP socket, batch 64, 16 MiB, sleeps in poll"),
    Path("udp-recv", _udp(1), "UDP socket, 16 MiB, sleeps in poll"),
    Path("python-recv", _python_recv, "packet socket, socket.recv in Python, 16 MiB"),
)
