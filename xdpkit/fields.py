"""The field table: every header and field a rule can name, where its value comes from, and how it is written.

One table feeds everything.  ``bpf/packet.h`` fills ``struct packet`` (whose layout is generated from here when the
package is built), the compiler loads its members, the reference evaluator computes the same members from bytes, and
the objects that users write (``udp.dport``) are made from the same rows.  Adding a field is a row here, a line in the
walk in ``bpf/packet.h`` and a line in ``reference.py``; the property tests hold the two walks together.

Members hold host-order integers and mean something only while the bit of their header is set in ``present``.
This module imports nothing but the standard library: the build runs it before the package exists.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Headers in the order of their bits in ``packet.present``.  ``vlan`` is the outer tag, ``vlan2`` the inner one.
HEADERS = ("eth", "vlan", "vlan2", "arp", "ip", "ip6", "tcp", "udp", "icmp", "icmp6")

#: Members of ``struct packet``: name and width in bits.  Wide ones first, so that the layout has no holes.
MEMBERS: tuple[tuple[str, int], ...] = (
    ("eth_dst", 64),
    ("eth_src", 64),
    ("ip6_src_hi", 64),
    ("ip6_src_lo", 64),
    ("ip6_dst_hi", 64),
    ("ip6_dst_lo", 64),
    ("present", 32),
    ("len", 32),
    ("rx_queue", 32),
    ("ip_src", 32),
    ("ip_dst", 32),
    ("arp_spa", 32),
    ("arp_tpa", 32),
    ("eth_type", 16),
    ("vlan_tci", 16),
    ("vlan_etype", 16),
    ("vlan2_tci", 16),
    ("vlan2_etype", 16),
    ("arp_op", 16),
    ("ip_len", 16),
    ("ip6_len", 16),
    ("sport", 16),
    ("dport", 16),
    ("ip_proto", 8),
    ("ip_ttl", 8),
    ("ip_tos", 8),
    ("ip6_proto", 8),
    ("ip6_hlim", 8),
    ("tcp_flags", 8),
    ("icmp_type", 8),
    ("icmp_code", 8),
)


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One row: ``name`` as users write it, the ``header`` that must be present (None: always there), the ``member``
    of ``struct packet`` that holds it (``shift`` and ``bits`` cut it out; 128 bits means ``member_hi``/``member_lo``),
    and ``kind``, which says how values are written: uint, mac, ipv4 or ipv6."""

    name: str
    header: str | None
    member: str
    bits: int
    doc: str
    kind: str = "uint"
    shift: int = 0

    @property
    def maximum(self) -> int:
        """The largest value of the field."""
        return (1 << self.bits) - 1


FIELDS: tuple[FieldSpec, ...] = (
    FieldSpec("eth.dst", "eth", "eth_dst", 48, "destination MAC address", "mac"),
    FieldSpec("eth.src", "eth", "eth_src", 48, "source MAC address", "mac"),
    FieldSpec("eth.type", "eth", "eth_type", 16, "EtherType at offset 12: 0x8100 or 0x88a8 on a tagged frame"),
    FieldSpec("vlan.id", "vlan", "vlan_tci", 12, "VLAN identifier of the outer tag (IEEE 802.1Q)"),
    FieldSpec("vlan.pcp", "vlan", "vlan_tci", 3, "priority code point of the outer tag", shift=13),
    FieldSpec("vlan.etype", "vlan", "vlan_etype", 16, "EtherType behind the outer tag"),
    FieldSpec("vlan2.id", "vlan2", "vlan2_tci", 12, "VLAN identifier of the inner tag (IEEE 802.1ad)"),
    FieldSpec("vlan2.pcp", "vlan2", "vlan2_tci", 3, "priority code point of the inner tag", shift=13),
    FieldSpec("vlan2.etype", "vlan2", "vlan2_etype", 16, "EtherType behind the inner tag"),
    FieldSpec("arp.op", "arp", "arp_op", 16, "operation: 1 request, 2 reply (RFC 826)"),
    FieldSpec("arp.spa", "arp", "arp_spa", 32, "sender IPv4 address", "ipv4"),
    FieldSpec("arp.tpa", "arp", "arp_tpa", 32, "target IPv4 address", "ipv4"),
    FieldSpec("ip.src", "ip", "ip_src", 32, "IPv4 source address", "ipv4"),
    FieldSpec("ip.dst", "ip", "ip_dst", 32, "IPv4 destination address", "ipv4"),
    FieldSpec("ip.proto", "ip", "ip_proto", 8, "protocol number (RFC 791)"),
    FieldSpec("ip.ttl", "ip", "ip_ttl", 8, "time to live"),
    FieldSpec("ip.tos", "ip", "ip_tos", 8, "type-of-service octet: DSCP and ECN"),
    FieldSpec("ip.len", "ip", "ip_len", 16, "total length in bytes"),
    FieldSpec("ip6.src", "ip6", "ip6_src", 128, "IPv6 source address", "ipv6"),
    FieldSpec("ip6.dst", "ip6", "ip6_dst", 128, "IPv6 destination address", "ipv6"),
    FieldSpec("ip6.proto", "ip6", "ip6_proto", 8, "protocol behind the extension headers that the walk passed"),
    FieldSpec("ip6.hlim", "ip6", "ip6_hlim", 8, "hop limit"),
    FieldSpec("ip6.len", "ip6", "ip6_len", 16, "payload length in bytes"),
    FieldSpec("tcp.sport", "tcp", "sport", 16, "source port"),
    FieldSpec("tcp.dport", "tcp", "dport", 16, "destination port"),
    FieldSpec("tcp.flags", "tcp", "tcp_flags", 8, "CWR ECE URG ACK PSH RST SYN FIN, bit 7 to bit 0 (RFC 9293)"),
    FieldSpec("udp.sport", "udp", "sport", 16, "source port"),
    FieldSpec("udp.dport", "udp", "dport", 16, "destination port"),
    FieldSpec("icmp.type", "icmp", "icmp_type", 8, "ICMP type (RFC 792)"),
    FieldSpec("icmp.code", "icmp", "icmp_code", 8, "ICMP code"),
    FieldSpec("icmp6.type", "icmp6", "icmp_type", 8, "ICMPv6 type (RFC 4443)"),
    FieldSpec("icmp6.code", "icmp6", "icmp_code", 8, "ICMPv6 code"),
    FieldSpec("pkt.len", None, "len", 32, "length of the frame in bytes, Ethernet header included"),
    FieldSpec("pkt.queue", None, "rx_queue", 32, "RX queue of arrival"),
)


def offsets() -> dict[str, tuple[int, int]]:
    """Member name to (offset in bytes, width in bits) in ``struct packet``."""
    layout, offset = {}, 0
    for name, bits in MEMBERS:
        size = bits // 8
        assert offset % size == 0, f"{name} would leave a hole"
        layout[name] = (offset, bits)
        offset += size
    return layout


def c_header() -> str:
    """``packet_layout.h``: header bits and ``struct packet``, with every offset asserted."""
    lines = ["/* Generated from xdpkit/fields.py when the package is built. */", "#pragma once", "", "enum {"]
    lines += [f"\tHAS_{name.upper()} = 1u << {bit}," for bit, name in enumerate(HEADERS)]
    lines += ["};", "", "struct packet {"]
    lines += [f"\t__u{bits} {name};" for name, bits in MEMBERS]
    lines += ["};", ""]
    for name, (offset, _) in offsets().items():
        lines.append(f'_Static_assert(__builtin_offsetof(struct packet, {name}) == {offset}, "{name}");')
    return "\n".join(lines) + "\n"
