"""The walk into a tunnel, for the reference evaluator: where the inner headers start.  The rules are those at the head
of ``bpf/tunnel.bpf.c``; one level is walked.
"""

from __future__ import annotations

from struct import unpack_from
from typing import Protocol

__all__ = ["IPV4", "IPV6", "MAX_GTPU_EXTENSIONS", "MAX_LABELS", "TEB", "enter"]

MAX_LABELS = 8
MAX_GTPU_EXTENSIONS = 4
IPV4, IPV6, TEB = 0x0800, 0x86DD, 0x6558
MPLS = (0x8847, 0x8848)
IPIP, UDP, IP6, GRE = 4, 17, 41, 47
GTPU_PORT, VXLAN_PORT, GENEVE_PORT = 2152, 4789, 6081
CSUM, ROUTING, KEY, SEQUENCE, VERSION = 0x8000, 0x4000, 0x2000, 0x1000, 7

#: What is inside, as an EtherType, and where it starts.
Inside = tuple[int, int] | None


class Outer(Protocol):
    """The packet, as far as this module needs it: its bytes, and a method that notes where a header starts."""

    frame: bytes

    def found(self, header: str, at: int) -> bool:
        """Note that ``header`` starts at ``at``, if it lies wholly in the frame."""


def enter(packet: Outer, at: int, proto: int | None, ethertype: int) -> Inside:
    """What is in the tunnel behind the outer headers: ``at`` is where ``proto`` or, for MPLS, ``ethertype`` starts."""
    if ethertype in MPLS:
        return _mpls(packet, at)
    if proto == IPIP:
        return IPV4, at
    if proto == IP6:
        return IPV6, at
    if proto == GRE:
        return _gre(packet, at)
    if proto == UDP and at + 8 <= len(packet.frame):
        return _udp(packet, at)
    return None


def _version(packet: Outer, at: int) -> Inside:
    """IPv4 or IPv6 by the first four bits."""
    if at >= len(packet.frame):
        return None
    kinds: dict[int, Inside] = {4: (IPV4, at), 6: (IPV6, at)}
    return kinds.get(packet.frame[at] >> 4)


def _mpls(packet: Outer, at: int) -> Inside:
    """A stack of labels; the lowest bit of the third byte marks the last (RFC 3032 section 2.1)."""
    packet.found("mpls", at)
    for _ in range(MAX_LABELS):
        if at + 4 > len(packet.frame):
            return None
        bottom = packet.frame[at + 2] & 1
        at += 4
        if bottom:
            return _version(packet, at)
    return None


def _gre(packet: Outer, at: int) -> Inside:
    """Checksum, key and sequence number are there where flags say so (RFC 2890 section 2)."""
    if at + 4 > len(packet.frame):
        return None
    flags, ethertype = unpack_from("!HH", packet.frame, at)
    if flags & (ROUTING | VERSION):
        return None
    at += 8 if flags & CSUM else 4
    if flags & KEY:
        if not packet.found("gre.key", at):
            return None
        at += 4
    return ethertype, at + (4 if flags & SEQUENCE else 0)


def _udp(packet: Outer, at: int) -> Inside:
    """VXLAN (RFC 7348 section 5), GENEVE (RFC 8926 section 3.4), GTP-U (3GPP TS 29.281 section 5.1), by port."""
    (port,) = unpack_from("!H", packet.frame, at + 2)
    at += 8
    if at + 8 > len(packet.frame):
        return None
    flags, kind, ethertype = unpack_from("!BBH", packet.frame, at)
    if port == VXLAN_PORT and flags & 8:
        packet.found("vxlan", at)
        return TEB, at + 8
    if port == GENEVE_PORT and flags >> 6 == 0:
        packet.found("geneve", at)
        return ethertype, at + 8 + 4 * (flags & 0x3F)
    if port == GTPU_PORT and flags & 0xF0 == 0x30:
        packet.found("gtpu", at)
        return _gtpu(packet, at + 8, flags) if kind == 255 else None
    return None


def _gtpu(packet: Outer, at: int, flags: int) -> Inside:
    """Behind the fixed part: 4 more bytes if any of the flags E, S, PN is set, then extension headers, whose first byte
    is their length in words and whose last is the type of the next (3GPP TS 29.281 section 5.2)."""
    following = 0
    if flags & 7:
        if at + 4 > len(packet.frame):
            return None
        following = packet.frame[at + 3] if flags & 4 else 0
        at += 4
    for _ in range(MAX_GTPU_EXTENSIONS):
        if not following:
            break
        if at >= len(packet.frame) or not packet.frame[at]:
            return None
        at += 4 * packet.frame[at]
        if at > len(packet.frame):
            return None
        following = packet.frame[at - 1]
    return None if following else _version(packet, at)
