"""Nanoseconds that completing checksums costs a packet that leaves by a device at XDP, and what the same costs TCP.

    python perf/checksums.py [--runs 5] [--duration 2] [-o FILE]

The first table is the kernel's own measure (BPF_PROG_TEST_RUN, medians): a program of one rule, TX, that completes
the checksums which senders left to their device, and one that does not.  `complete`: the packet's checksum is there, so
only its headers are looked at.  `left`: all of the packet is summed.  (These packets have payloads of which the right
checksum is also the one that a sender leaves to its device: a test run repeats one packet, and a completed one needs no
sum.)

The second table is TCP between two hosts over a bridge of two veth pairs: with the sums made by the program or by
forward(), as ratios to the same with the sums made by the sender (`ethtool -K DEV tx off`).
"""

from __future__ import annotations

import argparse
import json
import platform
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from xdpkit import REDIRECT, TX, Forward, Pipeline, attach, compile_pipeline, forward
from xdpkit.device import ethtool
from xdpkit.kernel.program import Program
from xdpkit.lab import Lab, Port
from xdpkit.terminal import make_console

REPEAT = 100_000
SIZES = (64, 256, 512, 1500, 9000)
SERVER = ("10.0.0.2", 5001)


def folded(data: bytes) -> int:
    """The sum of 16-bit words as one (RFC 1071), not complemented."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def packet(size: int, *, left: bool) -> bytes:
    """TCP in IPv4 in Ethernet, with a checksum that is right; ``left``: and is the sum of the pseudo header too."""
    made = Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=4000, dport=5001) / bytes(size - 54)
    raw = bytearray(bytes(made))
    if not left:
        return bytes(raw)
    pseudo = folded(bytes(raw[26:34]) + struct.pack("!II", size - 34, 6))
    raw[50:52], raw[-2:] = struct.pack("!H", pseudo), b"\0\0"
    raw[-2:] = struct.pack("!H", 0xFFFF - folded(struct.pack("!H", pseudo) + bytes(raw[34:])))
    return bytes(raw)


def nanoseconds(runs: int) -> list[dict[str, Any]]:
    """Every size and kind of packet: without completing, with, and the ratio."""
    rows = []
    for size in SIZES:
        compiled = compile_pipeline(Pipeline("tx", default=TX), "xdp" if size < 3000 else "xdp_frags")
        with Program(compiled) as plain, Program(compiled, completes=True) as completing:
            for left in (False, True):
                sent = packet(size, left=left)
                taken: dict[Program, list[int]] = {plain: [], completing: []}
                for _ in range(runs):
                    for program, times in taken.items():
                        times.append(program.test_run(sent, repeat=REPEAT)[1])
                without, with_ = (statistics.median(times) for times in taken.values())
                rows.append({"bytes": size, "checksum": "left" if left else "complete", "without": without,
                             "with": with_, "adds": with_ - without})  # fmt: skip
    return rows


def transfer(left: Port, right: Port, seconds: float) -> float:
    """Bytes a second of TCP from left to right."""
    with right.namespace:
        server = socket.create_server(SERVER)
    with left.namespace:
        client = socket.create_connection(SERVER, timeout=10)
    got = 0

    def receive() -> None:
        nonlocal got
        accepted, _ = server.accept()
        with accepted:
            while part := accepted.recv(1 << 18):
                got += len(part)

    with server, client:
        receiver = threading.Thread(target=receive)
        receiver.start()
        data, start = bytes(1 << 17), time.monotonic()
        while time.monotonic() - start < seconds:
            client.sendall(data)
        client.close()
        receiver.join()
        return got / (time.monotonic() - start)


@contextmanager
def bridge(how: str) -> Iterator[tuple[Port, Port]]:
    """Two hosts and a bridge between them, in the kernel or by forward()."""
    with Lab() as lab, ExitStack() as stack:
        middle, options = lab.namespace("middle"), {"offloads": True}
        left, a = lab.veth(
            lab.namespace("left"), middle, names=("left", "a"), addresses=("10.0.0.1/24", None), **options
        )
        _, right = lab.veth(
            middle, lab.namespace("right"), names=("b", "right"), addresses=(None, "10.0.0.2/24"), **options
        )
        to_b, to_a = (Pipeline(f"to-{to}", default=Forward(to) if how == "FORWARD" else REDIRECT) for to in ("b", "a"))
        stack.enter_context(a.namespace)
        one, two = stack.enter_context(attach(to_b, "a")), stack.enter_context(attach(to_a, "b"))
        if how == "forward()":
            stack.enter_context(forward(one, two))
        yield left, right


def over_tcp(runs: int, seconds: float) -> list[dict[str, Any]]:
    """Both ways to bridge: with the offload, and with sums that the senders make; they take turns."""
    rows = []
    for how in ("FORWARD", "forward()"):
        rates: dict[bool, list[float]] = {True: [], False: []}
        with bridge(how) as (left, right):
            for _ in range(runs):
                for offload in (True, False):
                    for port in (left, right):
                        with port.namespace:
                            ethtool.set_features(port.name, {"tx-checksum-ip-generic": offload})
                    rates[offload].append(transfer(left, right, seconds))
        bridged, sender = (statistics.median(rates[offload]) * 8e-9 for offload in (True, False))
        rows.append({"by": how, "gbit/s": bridged, "sums by the sender": sender, "ratio": bridged / sender})
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, box=None, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) and v < 20 else f"{v:,.0f}" if not isinstance(v, str) else v
                        for v in row.values()))  # fmt: skip
    make_console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--duration", "--seconds", dest="seconds", type=float, default=2)
    parser.add_argument("-o", "--output", dest="json", default="", metavar="FILE")
    args = parser.parse_args()
    costs = nanoseconds(args.runs)
    show(f"ns per packet that leaves by TX, Linux {platform.release()}", costs)
    tcp = over_tcp(args.runs, args.seconds)
    show("TCP over a bridge of veths, Gbit/s", tcp)
    if args.json:
        Path(args.json).write_text(json.dumps({"kernel": platform.release(), "ns": costs, "tcp": tcp}, indent=1))


if __name__ == "__main__":
    main()
