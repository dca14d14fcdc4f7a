"""``xdpkit demo``: the main job on a lab of its own, so that a newcomer sees it before touching a real device.

Two network namespaces joined by a veth pair; one sends DNS, web and unwanted traffic, the other runs
``demo_pipeline.py``: it drops some, passes some, and redirects DNS into a capture file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

from ..lab.lab import Lab, Namespace
from ..lab.template import checksum, ipv4_frame
from ..language.pipeline import load_file
from ..link.attach import Link, attach
from ..link.ledger import Ledger
from ..sockets.workers import Workers
from ..terminal import make_console, print_table, visible
from .signals import signals
from .table import headline, table
from .watch import Watched

__all__ = ["PIPELINE", "RATE_PPS", "demo", "show_demo"]

PIPELINE = Path(__file__).with_name("demo_pipeline.py")
RATE_PPS = 100_000


#: A query for the address of example.org (RFC 1035).
_QUERY = bytes.fromhex("000001000001000000000000") + b"\x07example\x03org\0" + bytes.fromhex("00010001")


def templates(source: str, destination: str) -> list[bytes]:
    """Mixed traffic between two MAC addresses: DNS queries, web, ping, and a network that nobody wants."""

    def udp(sport: int, dport: int, data: bytes) -> bytes:
        return struct.pack("!4H", sport, dport, 8 + len(data), 0) + data

    def frame(src: str, protocol: int, payload: bytes) -> bytes:
        ends = {"src_mac": source, "dst_mac": destination, "src": src, "dst": "192.0.2.1"}
        return ipv4_frame(protocol, payload, **ends)

    pseudo = IPv4Address("198.51.100.8").packed + IPv4Address("192.0.2.1").packed + struct.pack("!HH", 6, 20)
    syn = struct.pack("!HHIIBBHHH", 40000, 443, 0, 0, 5 << 4, 0x02, 8192, 0, 0)
    syn = syn[:16] + struct.pack("!H", checksum(pseudo + syn)) + syn[18:]
    echo = struct.pack("!BBHHH", 8, 0, checksum(b"\x08\0\0\0\0\0\0\0ping"), 0, 0) + b"ping"
    return [
        frame("198.51.100.7", 17, udp(5353, 53, _QUERY)),
        frame("198.51.100.8", 6, syn),
        frame("203.0.113.9", 17, udp(1, 9, b"unwanted")),
        frame("198.51.100.9", 1, echo),
    ]


def demo(path: Path, seconds: float, watch: Callable[[Link, Workers, float], None]) -> tuple[Ledger, int]:
    """Run the demo for ``seconds``, capture to ``path``; the final ledger and how many packets were sent.

    ``watch(link, workers, seconds)`` is called while traffic flows and returns when the time is over.
    """
    pipe = load_file(PIPELINE)
    with Lab.pair(queues=2, names=("outside", "inside")) as (outside, inside), inside.namespace:
        with (
            outside.generator(templates(outside.mac, inside.mac)) as generator,
            attach(pipe, inside.name, timestamps=True) as link,
        ):
            with link.sockets() as sockets, sockets.write(path) as workers:
                generator.start(rate_pps=RATE_PPS)
                try:
                    watch(link, workers, seconds)
                finally:
                    sent = generator.stop()
                    generator.settle()
        return link.ledger(), sent - generator.dropped


def show_demo(write: Path, duration: float) -> None:
    """``xdpkit demo``: the plan, the live table, and where every packet went."""
    Namespace("probe").close()  # without privilege it fails here, before it says what it will do
    console = make_console()
    console.print(f"pipeline {os.path.relpath(PIPELINE)}:", style="bold")
    for rule in load_file(PIPELINE).outcomes:
        console.print(visible(f"  {rule.name:<8} {rule}"))
    console.print(f"traffic: {RATE_PPS:,} packets/s requested, {duration:g} s, over a veth pair of two queues\n")
    with signals() as stop:

        def watch(link: Link, workers: Workers, seconds: float) -> None:
            Watched(link, stop, seconds, 0, console, False).run(workers)

        ledger, arrived = demo(write, duration, watch)
    console.print(headline(ledger), soft_wrap=not console.is_terminal)
    print_table(console, table(ledger))
    for problem in ledger.problems():
        raise OSError(f"the ledger does not sum: {problem}")
    if arrived != ledger.seen:
        raise OSError(f"{arrived} packets arrived but the program saw {ledger.seen}")
    size = write.stat().st_size
    console.print(f"\nevery packet is accounted for: {arrived:,} sent, {ledger.seen:,} seen, {ledger.lost:,} lost")
    console.print(visible(f"capture: {write} ({size:,} bytes); look at it with: tcpdump -nr {write}"), soft_wrap=True)
