"""``xdpkit demo``: the main job on a lab of its own, so that a newcomer sees it before touching a real device.

Two network namespaces joined by a veth pair; one sends DNS, web and unwanted traffic, the other runs
``demo_pipeline.py``: it drops some, passes some, and redirects DNS into a capture file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from ..lab.lab import Lab
from ..language.pipeline import load_file
from ..link.attach import Link, attach
from ..link.ledger import Ledger
from ..sockets.workers import Workers

__all__ = ["PIPELINE", "RATE_PPS", "demo"]

PIPELINE = Path(__file__).with_name("demo_pipeline.py")
RATE_PPS = 100_000


def templates(source: str, destination: str) -> list[bytes]:
    """Mixed traffic between two MAC addresses: DNS queries, web, ping, and a network that nobody wants."""
    ether = Ether(src=source, dst=destination)
    query = UDP(sport=5353, dport=53, chksum=0) / DNS(rd=1, qd=DNSQR(qname="example.org"))
    return [
        bytes(ether / IP(src="198.51.100.7", dst="192.0.2.1") / query),
        bytes(ether / IP(src="198.51.100.8", dst="192.0.2.1") / TCP(sport=40000, dport=443, flags="S")),
        bytes(ether / IP(src="203.0.113.9", dst="192.0.2.1") / UDP(sport=1, dport=9) / b"unwanted"),
        bytes(ether / IP(src="198.51.100.9", dst="192.0.2.1") / ICMP() / b"ping"),
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
