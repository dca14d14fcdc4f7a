"""The meaning of a pipeline, in plain Python: every engine must agree with :func:`evaluate` on every frame.

:func:`walk` reads the headers of a frame, :func:`holds` says if a condition is true of them, :func:`evaluate` finds the
rule that takes the frame.  This module is the specification, written to be read and not to be fast; the rules of the
walk are those at the head of ``bpf/packet.h``:

* a header is present when its fixed part lies wholly inside the frame, else it and all behind it are absent;
* up to two VLAN tags (0x8100, 0x88a8) are walked (IEEE 802.1Q, 802.1ad);
* IPv4 needs version 4 and ihl >= 5; the transport header is absent in fragments with an offset (RFC 791);
* IPv6 extension headers (hop-by-hop, routing, fragment, AH, destination) are walked, at most :data:`MAX_EXTENSIONS`
  of them; a chain that is longer, cut short, or a fragment with an offset has no transport header (RFC 8200, RFC 4302).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatch
from struct import Struct
from typing import Any

from .classic import Classic, interpret
from .expr import Always, And, Expr, Not, Or, Present, Test
from .fields import FieldSpec
from .pipeline import Pipeline, Rule

__all__ = ["MAX_EXTENSIONS", "Packet", "evaluate", "holds", "walk"]

#: How many IPv6 extension headers the walk passes.
MAX_EXTENSIONS = 6

TAGS = (0x8100, 0x88A8)
ETHERTYPE_IP, ETHERTYPE_ARP, ETHERTYPE_IP6 = 0x0800, 0x0806, 0x86DD
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION)

# The fixed parts, in network byte order; x skips what no field names.
_ETHERNET = Struct("!6s6sH")
_TAG = Struct("!HH")  # TCI, EtherType behind the tag
_ARP = Struct("!HHBBH6xI6xI")  # hardware, protocol, their address lengths, operation, sender IP, target IP (RFC 826)
_IP = Struct("!BBHxxHBBxxII")  # version and ihl, TOS, length, fragment, TTL, protocol, addresses (RFC 791)
_IP6 = Struct("!BxxxHBBQQQQ")  # version, payload length, next header, hop limit, addresses (RFC 8200)
_EXTENSION = Struct("!BBHxxxx")  # next header, length, fragment offset (RFC 8200 section 4, RFC 4302)
_TCP = Struct("!HHxxxxxxxxxBxxxxxx")  # ports, flags (RFC 9293)
_UDP = Struct("!HHxxxx")  # ports (RFC 768)
_ICMP = Struct("!BBxxxxxx")  # type, code (RFC 792)
_ICMP6 = Struct("!BBxx")  # type, code (RFC 4443)

# By protocol number: header, wire format, members; each IP version has its own ICMP.
Transport = tuple[str, Struct, tuple[str, ...]]
_TCP_UDP: dict[int, Transport] = {
    TCP: ("tcp", _TCP, ("sport", "dport", "tcp_flags")),
    UDP: ("udp", _UDP, ("sport", "dport")),
}
_OVER_IP = {**_TCP_UDP, ICMP: ("icmp", _ICMP, ("icmp_type", "icmp_code"))}
_OVER_IP6 = {**_TCP_UDP, ICMP6: ("icmp6", _ICMP6, ("icmp_type", "icmp_code"))}


@dataclass(slots=True)
class Packet:
    """What the walk found: the names of the headers that are ``present``, and the ``members`` of ``struct packet`` that
    it filled (``fields.MEMBERS``).  ``members["len"]`` and ``members["rx_queue"]`` are always there."""

    frame: bytes = field(repr=False)
    present: set[str] = field(default_factory=set)
    members: dict[str, int] = field(default_factory=dict)

    def value(self, spec: FieldSpec) -> int | None:
        """The value of a field; None where its header is absent."""
        if spec.header is not None and spec.header not in self.present:
            return None
        if spec.bits == 128:
            return self.members[spec.member + "_hi"] << 64 | self.members[spec.member + "_lo"]
        return self.members[spec.member] >> spec.shift & spec.maximum

    def _take(self, wire: Struct, at: int) -> tuple[Any, ...] | None:
        """The header at ``at``; None where the frame ends before it does."""
        return wire.unpack_from(self.frame, at) if at + wire.size <= len(self.frame) else None

    def _found(self, header: str, **members: int) -> None:
        self.present.add(header)
        self.members.update(members)


def walk(frame: bytes, *, rx_queue: int = 0, wire_bytes: int | None = None) -> Packet:
    """The headers of ``frame`` (from the destination MAC address on, without FCS), received on ``rx_queue``.
    ``wire_bytes``: its length where ``frame`` is only the beginning of it."""
    length = len(frame) if wire_bytes is None else wire_bytes
    packet = Packet(frame, members={"len": length, "rx_queue": rx_queue})
    ethernet = packet._take(_ETHERNET, 0)
    if ethernet is None:
        return packet
    destination, source, ethertype = ethernet
    packet._found(
        "eth", eth_dst=int.from_bytes(destination), eth_src=int.from_bytes(source), eth_type=ethertype
    )  # fmt: skip
    at = _ETHERNET.size
    for name in ("vlan", "vlan2"):
        if ethertype not in TAGS:
            break
        tag = packet._take(_TAG, at)
        if tag is None:
            return packet
        tci, ethertype = tag
        packet._found(name, **{f"{name}_tci": tci, f"{name}_etype": ethertype})
        at += _TAG.size
    if ethertype == ETHERTYPE_IP:
        _walk_ip(packet, at)
    elif ethertype == ETHERTYPE_IP6:
        _walk_ip6(packet, at)
    elif ethertype == ETHERTYPE_ARP:
        _walk_arp(packet, at)
    return packet


def _walk_arp(packet: Packet, at: int) -> None:
    """ARP for IPv4 over Ethernet; other kinds have their addresses elsewhere and count as absent (RFC 826)."""
    arp = packet._take(_ARP, at)
    if arp is None or arp[:4] != (1, ETHERTYPE_IP, 6, 4):
        return
    packet._found("arp", arp_op=arp[4], arp_spa=arp[5], arp_tpa=arp[6])


def _walk_ip(packet: Packet, at: int) -> None:
    """IPv4 with its options (RFC 791 section 3.1)."""
    ip = packet._take(_IP, at)
    if ip is None:
        return
    version_ihl, tos, length, fragment, ttl, proto, source, destination = ip
    version, ihl = version_ihl >> 4, version_ihl & 15
    if version != 4 or ihl < 5:
        return
    packet._found(
        "ip", ip_src=source, ip_dst=destination, ip_proto=proto, ip_ttl=ttl, ip_tos=tos, ip_len=length
    )  # fmt: skip
    offset = fragment & 0x1FFF
    if offset == 0:
        _walk_transport(packet, at + 4 * ihl, proto, _OVER_IP)


def _walk_ip6(packet: Packet, at: int) -> None:
    """IPv6 with its extension headers (RFC 8200 section 4).  ``ip6_proto`` is the number that the last header passed
    names, so it is an extension's own where the chain is cut short or too long."""
    ip6 = packet._take(_IP6, at)
    if ip6 is None or ip6[0] >> 4 != 6:
        return
    _, length, proto, hop_limit, source_hi, source_lo, destination_hi, destination_lo = ip6
    packet._found(
        "ip6", ip6_src_hi=source_hi, ip6_src_lo=source_lo, ip6_dst_hi=destination_hi, ip6_dst_lo=destination_lo,
        ip6_hlim=hop_limit, ip6_len=length, ip6_proto=proto,
    )  # fmt: skip
    at += _IP6.size
    for _ in range(MAX_EXTENSIONS):
        if proto not in EXTENSIONS:
            break
        extension = packet._take(_EXTENSION, at)
        if extension is None:
            return
        kind = proto
        proto, length, fragment = extension
        packet.members["ip6_proto"] = proto
        if kind == FRAGMENT and fragment & 0xFFF8:
            return
        at += _extension_bytes(kind, length)
    _walk_transport(packet, at, proto, _OVER_IP6)


def _extension_bytes(kind: int, length: int) -> int:
    """Units of 8 bytes behind the first 8 (RFC 8200); a fragment header is 8 bytes long (its second byte is reserved);
    AH counts words of 4 bytes, minus 2 (RFC 4302 section 2.2)."""
    if kind == FRAGMENT:
        return 8
    if kind == AH:
        return (length + 2) * 4
    return (length + 1) * 8


def _walk_transport(packet: Packet, at: int, proto: int, known: dict[int, Transport]) -> None:
    """The header that ``proto`` names, if it is one of ``known``."""
    if proto in known:
        header, wire, members = known[proto]
        values = packet._take(wire, at)
        if values is not None:
            packet._found(header, **dict(zip(members, values, strict=True)))


@singledispatch
def holds(expr: Expr, packet: Packet) -> bool:
    """Is ``expr`` true of ``packet``?"""
    raise TypeError(f"no meaning for {type(expr).__name__}")


@holds.register
def _(expr: Always, packet: Packet) -> bool:
    return True


@holds.register
def _(expr: Present, packet: Packet) -> bool:
    return expr.header in packet.present


@holds.register
def _(expr: Test, packet: Packet) -> bool:
    value = packet.value(expr.spec)
    return value is not None and any(low <= value <= high for low, high in expr.intervals)


@holds.register
def _(expr: Not, packet: Packet) -> bool:
    return not holds(expr.term, packet)


@holds.register
def _(expr: And, packet: Packet) -> bool:
    return all(holds(term, packet) for term in expr.terms)


@holds.register
def _(expr: Or, packet: Packet) -> bool:
    return any(holds(term, packet) for term in expr.terms)


@holds.register
def _(expr: Classic, packet: Packet) -> bool:
    return interpret(expr.instructions, packet.frame, wire_len=packet.members["len"]) != 0


def evaluate(pipeline: Pipeline, frame: bytes, *, rx_queue: int = 0, wire_bytes: int | None = None) -> Rule:
    """The rule that takes ``frame``: the first whose condition holds, else the default.  Its ``action.verdict`` is the
    verdict."""
    packet = walk(frame, rx_queue=rx_queue, wire_bytes=wire_bytes)
    return next(rule for rule in pipeline.outcomes if holds(rule.expr, packet))
