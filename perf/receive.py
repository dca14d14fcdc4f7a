"""Receive 64-byte packets on one veth queue through every path there is, in one run, and compare.

    python perf/receive.py [--runs 5] [--seconds 1] [--only afxdp-c,recvfrom] [--json FILE]

A process pinned to CPU 0 sends as fast as it can (BPF_PROG_TEST_RUN live frames); the receiver is pinned to CPU 1.
The sending CPU also runs the receiver's softirq, so on veth a path that costs the kernel more slows its own generator:
rates compare only within one run.  Paths take turns, run by run; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cffi
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from xdpkit import REDIRECT, Pipeline, attach, eth
from xdpkit.core import check, ffi, lib
from xdpkit.generator import Generator, udp_frame
from xdpkit.lab import Lab
from xdpkit.live import si
from xdpkit.port import Port

SENDER_CPU, RECEIVER_CPU = 0, 1
FRAME_BYTES = 64
RECVFROM, RECVMMSG, TPACKET_V3 = 0, 1, 2


@dataclass
class Sample:
    """One run of one path; packets."""

    path: str
    got: str
    seconds: float
    sent: int
    ring_dropped: int  # at the veth ring, before any hook
    kernel_dropped: int  # between hook and user space: socket buffer, RX ring or FILL empty
    received: int

    @property
    def rate(self) -> float:
        return self.received / self.seconds


class Receiver:
    """A path: counts packets until told to stop.  ``received`` and ``dropped`` are final after stop()."""

    got = ""
    received = dropped = 0

    def poll(self) -> None:
        """Receive for a moment (paths that run in this thread)."""
        time.sleep(0.01)

    def stop(self) -> None:
        """Drain and count."""


@contextmanager
def afxdp_c(port: Port) -> Iterator[Receiver]:
    """AF_XDP, drained and counted by the C worker."""
    me = Receiver()
    with attach(everything(), port.name, mode="native", bind="want:zerocopy") as link, link.sockets() as sockets:
        with sockets.count(cpus=[RECEIVER_CPU]):
            me.got = str(link.got)
            yield me
    ledger = link.ledger()
    assert not ledger.problems(), ledger.problems()
    me.received, me.dropped = ledger.delivered, ledger.lost


@contextmanager
def plain_c(port: Port) -> Iterator[Receiver]:
    """The yardstick: perf/plain.c, an AF_XDP loop that does nothing else, behind the same program."""
    me = Receiver()
    plain = cffi.FFI()
    plain.cdef("int plain_open(int ifindex, int queue); uint64_t plain_run(const int *stop);")
    with tempfile.TemporaryDirectory() as directory:
        library, source = Path(directory, "plain.so"), Path(__file__).with_name("plain.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        loop = plain.dlopen(str(library))
    with attach(everything(), port.name, mode="native") as link:
        fd = loop.plain_open(port.index, 0)
        if fd < 0:
            raise OSError("plain.c opens no socket")
        check(lib.xk_xskmap_set(link.program.map_fd("xsks"), 0, fd))
        stop = plain.new("int *")
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(loop.plain_run, stop)
            yield me
            lib.xk_xskmap_clear(link.program.map_fd("xsks"), 0)
            check(lib.xk_quiesce())
            stop[0] = 1
            me.received = run.result()
        statistics_ = socket.socket(44, socket.SOCK_RAW, 0, fd).getsockopt(283, 7, 48)  # XDP_STATISTICS
        me.dropped = sum(int.from_bytes(statistics_[at : at + 8], sys.byteorder) for at in (0, 24))


@contextmanager
def afxdp_python(port: Port) -> Iterator[Receiver]:
    """AF_XDP, drained by Python in batches, lengths summed as a numpy column."""
    with attach(everything(), port.name, mode="native", bind="want:zerocopy") as link, link.sockets() as sockets:

        class Batches(Receiver):
            total_bytes = 0

            def poll(self) -> None:
                deadline = time.monotonic() + 0.01
                for batch in sockets.batches(timeout=0.01):
                    self.total_bytes += int(batch.lengths.sum())
                    if time.monotonic() > deadline:
                        return

            def stop(self) -> None:
                sockets.stop_inflow()
                for batch in sockets.batches(timeout=0):
                    self.total_bytes += int(batch.lengths.sum())

        me = Batches()
        me.got = str(link.got)
        yield me
    ledger = link.ledger()
    assert not ledger.problems(), ledger.problems()
    me.received, me.dropped = ledger.delivered, ledger.lost


def packet_socket(kind: int) -> Callable[[Port], Any]:
    """A packet socket drained by the C worker."""

    @contextmanager
    def path(port: Port) -> Iterator[Receiver]:
        me = Receiver()
        config = ffi.new(
            "struct xk_packet_config *",
            {"kind": kind, "filter_prog_fd": -1, "block_size": 1 << 20, "blocks": 16, "retire_ms": 10,
             "buffer_bytes": 16 << 20},
        )  # fmt: skip
        out, sink, worker = ffi.new("struct xk_packet **"), ffi.new("struct xk_sink **"), ffi.new("struct xk_worker **")
        check(lib.xk_packet_open(port.index, config, out))
        check(lib.xk_sink_count(0, sink))
        check(lib.xk_worker_start_packet(out[0], sink[0], 0, lib.XK_WAIT_ADAPTIVE, RECEIVER_CPU, worker))
        stats = ffi.new("struct xk_worker_stats *")
        yield me
        check(lib.xk_packet_quiet(out[0]))
        check(lib.xk_quiesce())
        lib.xk_worker_stop(worker[0])
        lib.xk_worker_join(worker[0], stats)
        packets, drops = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        check(lib.xk_packet_stats(out[0], packets, drops))
        lib.xk_packet_close(out[0])
        lib.xk_sink_close(sink[0])
        me.received, me.dropped = int(stats.packets), int(drops[0])

    return path


@contextmanager
def python_recv(port: Port) -> Iterator[Receiver]:
    """A Python loop around socket.recv."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        sock.bind((port.name, 3))
        sock.settimeout(0.01)

        class Recv(Receiver):
            def poll(self) -> None:
                try:
                    for _ in range(1000):
                        sock.recv(2048)
                        self.received += 1
                except TimeoutError:
                    pass

            def stop(self) -> None:
                try:
                    while sock.recv(2048):
                        self.received += 1
                except TimeoutError:
                    pass
                self.dropped = int.from_bytes(sock.getsockopt(263, 6, 8)[4:], sys.byteorder)  # PACKET_STATISTICS

        yield Recv()


@contextmanager
def scapy_sniffer(port: Port) -> Iterator[Receiver]:
    """scapy's AsyncSniffer with a callback, nothing stored; what it lost is not told."""
    from scapy.sendrecv import AsyncSniffer  # noqa: PLC0415  half a second, and only this path wants it

    class Sniff(Receiver):
        def count(self, _: object) -> None:
            self.received += 1

        def stop(self) -> None:
            sniffer.stop()

    me = Sniff()
    sniffer = AsyncSniffer(iface=port.name, store=False, prn=me.count)
    sniffer.start()
    while not getattr(sniffer, "stop_cb", None):
        time.sleep(0.01)
    yield me


PATHS: dict[str, Callable[[Port], Any]] = {
    "plain-c": plain_c,
    "afxdp-c": afxdp_c,
    "afxdp-python": afxdp_python,
    "tpacket-v3": packet_socket(TPACKET_V3),
    "recvmmsg": packet_socket(RECVMMSG),
    "recvfrom": packet_socket(RECVFROM),
    "python-recv": python_recv,
    "scapy-sniffer": scapy_sniffer,
}


def everything() -> Pipeline:
    """Redirect every packet."""
    pipe = Pipeline("everything")
    pipe.rule(eth.present, REDIRECT, name="all")
    return pipe


def sender(port: Port, pipe: Connection, seconds: float) -> None:
    """The sending process: at "go", send for ``seconds``; report (sent, dropped at the veth ring, seconds)."""
    frame = udp_frame(FRAME_BYTES, src_mac=port.mac, dst_mac=port.peer.mac)
    with Generator(port, [frame.frame], sequence_offset=frame.payload_offset, cpu=SENDER_CPU) as generator:
        pipe.send("ready")
        pipe.recv()
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            generator.send(16384)
        took = time.monotonic() - start
        generator.settle(30)
        pipe.send((generator.sent, generator.dropped, took))


def run_once(name: str, seconds: float) -> Sample:
    """A fresh veth pair, the path, the sender; what became of every packet."""
    with Lab.pair(queues=1, names=("sender", "receiver")) as (left, right), right.namespace:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        with PATHS[name](right) as receiver:
            process = context.Process(target=sender, args=(left, theirs, seconds))
            process.start()
            ours.recv()
            ours.send("go")
            while not ours.poll():
                receiver.poll()
            sent, dropped, took = ours.recv()
            process.join()
            receiver.stop()
    return Sample(name, receiver.got, took, sent, dropped, receiver.dropped, receiver.received)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default=",".join(PATHS), help="comma-separated paths")
    parser.add_argument("--json", default="", metavar="FILE", help="write samples and medians there")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := [n for n in names if n not in PATHS]:
        parser.error(f"unknown path {unknown[0]!r}: {', '.join(PATHS)}")
    os.sched_setaffinity(0, {RECEIVER_CPU})
    samples: list[Sample] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=args.runs * len(names))
        for _ in range(args.runs):
            for name in names:
                progress.update(task, description=name)
                samples.append(run_once(name, args.seconds))
                progress.advance(task)
    report(names, samples, args.json)


def report(names: list[str], samples: list[Sample], path: str) -> None:
    """A table of medians, and JSON."""
    base = [s.rate for s in samples if s.path == "recvfrom"]
    table = Table(title=f"receive {FRAME_BYTES}-byte packets, one veth queue, Linux {platform.release()}", box=None)
    for column, justify in (
        ("path", "left"), ("packets/s", "right"), ("min - max", "right"), ("x recvfrom", "right"),
        ("offered/s", "right"), ("veth ring drop", "right"), ("kernel drop", "right"), ("unaccounted", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    rows = []
    for name in names:
        mine = [s for s in samples if s.path == name]
        rate = statistics.median(s.rate for s in mine)
        sent = sum(s.sent for s in mine)
        ratio = rate / statistics.median(base) if base else None
        unaccounted = sum(s.sent - s.ring_dropped - s.kernel_dropped - s.received for s in mine)
        rows.append({"path": name, "rate": rate, "ratio": ratio, "runs": [asdict(s) | {"rate": s.rate} for s in mine]})
        table.add_row(
            name, si(rate), f"{si(min(s.rate for s in mine))} - {si(max(s.rate for s in mine))}",
            f"{ratio:.2f}" if ratio else "",
            si(statistics.median(s.sent / s.seconds for s in mine)),
            f"{sum(s.ring_dropped for s in mine) / sent:.1%}", f"{sum(s.kernel_dropped for s in mine) / sent:.1%}",
            f"{unaccounted / sent:.1%}",
        )  # fmt: skip
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
    for got in dict.fromkeys(s.got for s in samples if s.got):
        console.print(f"AF_XDP got: {got}", highlight=False)
    if path:
        with open(path, "w") as file:
            json.dump({"kernel": platform.release(), "frame_bytes": FRAME_BYTES, "paths": rows}, file, indent=1)


if __name__ == "__main__":
    main()
