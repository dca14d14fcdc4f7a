"""A packet in a few words."""

from __future__ import annotations

from ..language.fields import field_named
from ..language.sets import written
from .walk import walk

__all__ = ["describe"]


def describe(frame: bytes, wire_bytes: int | None = None) -> str:
    """Who sent what to whom, in a few words for people: as the header walk finds it in the bytes that there are.
    ``wire_bytes``: what the packet had on the wire."""
    packet = walk(frame, wire_bytes=wire_bytes)

    def value(name: str) -> str:
        number = packet.value(field_named(name))
        return "" if number is None else written(field_named(name), number)

    l4 = next((h for h in ("tcp", "udp", "sctp") if h in packet.present), "")
    for l3 in ("ip", "ip6"):
        if l3 in packet.present:
            ports = (f".{value(f'{l4}.sport')}", f".{value(f'{l4}.dport')}") if l4 else ("", "")
            what = l4 or next(
                (h for h in ("icmp", "icmp6", "gre") if h in packet.present), f"protocol {value(l3 + '.proto')}"
            )
            return f"{value(l3 + '.src')}{ports[0]} > {value(l3 + '.dst')}{ports[1]} {what}"
    if "arp" in packet.present:
        return f"arp {value('arp.spa')} > {value('arp.tpa')}"
    return f"{value('eth.src')} > {value('eth.dst')} type {int(value('eth.type') or 0):#06x}"
