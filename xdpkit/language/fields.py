"""The field table: every header and field that a rule can name, where its value comes from, and how it is written.

All other parts read this one table.  ``bpf/walk.h`` finds the headers and notes where they start, in ``struct packet``,
whose layout is generated from the table when the package is built.  The compiler reads fields at these places, and the
reference evaluator reads them in the bytes of the frame.  The objects that users write (``udp.dport``) are made from
the same rows.  To add a field of a header that is walked already, one row here is enough.

``inner`` is a second set of headers, those inside a tunnel: ``inner.ip.dst`` has the row of ``ip.dst``.
This module imports only the standard library, because the build runs it before the package exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

INNER = "inner."
#: Bytes of payload that one comparison may read, and how far into the payload.
PAYLOAD_MAX_SIZE, PAYLOAD_MAX_OFFSET = 16, 4095


@dataclass(frozen=True, slots=True)
class HeaderSpec:
    """A header: the ``slot`` of ``struct headers`` that says where it starts (None: its fields are members), the
    ``size`` of its fixed part in bytes, and the headers of which one must stand in front of it."""

    name: str
    slot: str | None
    size: int
    behind: tuple[str, ...] = ()


_IP, _UDP = ("ip", "ip6"), ("udp",)
#: In the order of their bits in ``headers.present``.  Those with a dot are parts of a header that may be missing.
OUTER = (
    HeaderSpec("eth", "eth", 14),
    HeaderSpec("vlan", None, 4, ("eth",)),
    HeaderSpec("vlan2", None, 4, ("vlan",)),
    HeaderSpec("arp", "l3", 8, ("eth",)),
    HeaderSpec("ip", "l3", 20),
    HeaderSpec("ip6", "l3", 40),
    HeaderSpec("hopopts", None, 8, ("ip6",)),
    HeaderSpec("routing", "routing", 8, ("ip6",)),
    HeaderSpec("frag", "frag", 8, ("ip6",)),
    HeaderSpec("ah", None, 8, ("ip6",)),
    HeaderSpec("dstopts", None, 8, ("ip6",)),
    HeaderSpec("tcp", "l4", 20, _IP),
    HeaderSpec("tcp.mss", None, 4, ("tcp",)),
    HeaderSpec("udp", "l4", 8, _IP),
    HeaderSpec("icmp", "l4", 8, ("ip",)),
    HeaderSpec("icmp6", "l4", 4, ("ip6",)),
    HeaderSpec("sctp", "l4", 12, _IP),
    HeaderSpec("gre", "l4", 4, _IP),
    HeaderSpec("payload", "payload", 0, ("tcp", "udp")),
    HeaderSpec("gre.key", "tunnel", 4, ("gre",)),
    HeaderSpec("vxlan", "tunnel", 8, _UDP),
    HeaderSpec("geneve", "tunnel", 8, _UDP),
    HeaderSpec("gtpu", "tunnel", 8, _UDP),
    HeaderSpec("mpls", "tunnel", 4, ("eth",)),
    HeaderSpec("meta.timestamp", None, 0),
    HeaderSpec("meta.hash", None, 0),
    HeaderSpec("meta.vlan", None, 0),
)
#: Headers that the walk into tunnels finds; they have no inner counterpart.
TUNNEL = ("gre.key", "vxlan", "geneve", "gtpu", "mpls")
#: What the kernel may know of a packet besides its bytes.  Each is present or absent by itself, like a header, and has
#: one field of the same name.  They have no inner counterpart either.
METADATA = ("meta.timestamp", "meta.hash", "meta.vlan")
HEADERS: dict[str, HeaderSpec] = {h.name: h for h in OUTER} | {
    INNER + h.name: replace(h, name=INNER + h.name, behind=tuple(INNER + b for b in h.behind))
    for h in OUTER
    if h.name not in (*TUNNEL, *METADATA)
}
#: Groups of headers of which a packet has at most one outside a tunnel, and at most one inside.
EXCLUSIVE = (
    ("arp", "ip", "ip6", "mpls"),
    ("tcp", "udp", "icmp", "icmp6", "sctp", "gre"),
    ("vxlan", "geneve", "gtpu"),
)

#: Slots: byte offsets in the packet; ``room`` is the size of the largest header that starts there.
SLOTS = tuple(dict.fromkeys(h.slot for h in OUTER if h.slot))
#: Members of ``struct headers`` with their widths in bits: what is present, slots, values that are not in one place of
#: the packet's bytes (a tag may be in the kernel's metadata, a protocol number behind extension headers).
HEADERS_MEMBERS: tuple[tuple[str, int], ...] = (
    ("present", 32),
    *((slot, 32) for slot in SLOTS),
    *((name, 16) for name in ("eth_type", "vlan_tci", "vlan_etype", "vlan2_tci", "vlan2_etype", "tcp_mss")),
    ("ip6_proto", 8),
)
#: Members of ``struct packet`` behind the two ``struct headers``, aligned as they stand.
PACKET_MEMBERS: tuple[tuple[str, int], ...] = (
    ("len", 32),
    ("rx_queue", 32),
    ("meta_timestamp", 64),
    ("meta_hash", 32),
    ("ifindex", 32),
    ("meta_vlan", 16),
    ("meta_day", 16),
    ("meta_second", 32),
    ("meta_mark", 32),
    ("meta_priority", 32),
    ("ct", 8),
)
#: Values that rules may test, that are in no header, and that cost time to find out: the bits of wanted_meta(), in
#: order.
WANTED_META = ("meta_mark", "meta_priority", "meta_day", "meta_second")
_HEADERS_BYTES = -(-sum(bits for _, bits in HEADERS_MEMBERS) // 32) * 4


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One row: ``name`` as users write it, the ``header`` that must be present (None: always there), ``at``: the byte
    of the header where its value starts, or the member of ``struct packet`` that holds it; ``shift`` and ``bits`` cut
    it out.  ``kind`` says how values are written: uint, mac, ipv4, ipv6, ip (either family, IPv4 as an IPv4-mapped IPv6
    address, RFC 4291 section 2.5.5.2), flags, day, time or bytes.  ``alone``: the values that it means when it stands
    alone as a condition.  ``mapped``: its 32 bits are an IPv4 address, and its value is that address as an IPv4-mapped
    one.  ``only``: other fields, and the intervals that their values must be in for this one to be there.  ``moved``: a
    field and a factor: the value starts so many bytes further on."""

    name: str
    header: str | None
    at: int | str
    bits: int
    doc: str
    kind: str = "uint"
    shift: int = 0
    alone: tuple[int, int] | None = None
    mapped: bool = False
    only: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = ()
    moved: tuple[str, int] | None = None

    @property
    def deep(self) -> bool:
        """The value may lie behind the fixed part of its header, so the packet may end before it does."""
        return isinstance(self.at, int) and (
            self.moved is not None or self.header is None or self.at + self.size > HEADERS[self.header].size
        )

    @property
    def maximum(self) -> int:
        """The largest value of the field."""
        return (1 << self.bits) - 1

    @property
    def size(self) -> int:
        """Bytes to read, of which the lowest bits are the field and what ``shift`` leaves out."""
        if self.mapped:
            return 4
        size = (self.shift + self.bits + 7) // 8
        return 4 if size == 3 and self.kind != "bytes" else size


def _bit(name: str, header: str, at: int | str, shift: int, doc: str) -> FieldSpec:
    return FieldSpec(name, header, at, 1, doc, shift=shift, alone=(1, 1))


#: Flags of TCP by name, bit 0 first (RFC 9293 section 3.1).
TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")


def _type(header: str, *types: int | tuple[int, int]) -> tuple[tuple[str, tuple[tuple[int, int], ...]], ...]:
    """What ``only`` is for fields that messages of these types have."""
    return ((f"{header}.type", tuple((t, t) if isinstance(t, int) else t for t in types)),)


#: Addresses in ARP that can be compared with MAC addresses, and with those of IPv4.
_MAC = (("arp.hlen", ((6, 6),)),)
_IPV4 = (("arp.ptype", ((0x0800, 0x0800),)), ("arp.plen", ((4, 4),)))
#: Messages with identifier and sequence number (RFC 792, RFC 950; RFC 4443).
_QUERY, _QUERY6, _TARGET = _type("icmp", 0, 8, (13, 18)), _type("icmp6", (128, 129)), _type("icmp6", (135, 137))

_BOTH: tuple[FieldSpec, ...] = (
    FieldSpec("eth.dst", "eth", 0, 48, "destination MAC address", "mac"),
    FieldSpec("eth.src", "eth", 6, 48, "source MAC address", "mac"),
    FieldSpec("eth.type", "eth", "eth_type", 16, "EtherType at offset 12: 0x8100 or 0x88a8 on a tagged frame"),
    FieldSpec("vlan.id", "vlan", "vlan_tci", 12, "VLAN identifier of the outer tag (IEEE 802.1Q)"),
    FieldSpec("vlan.pcp", "vlan", "vlan_tci", 3, "priority code point of the outer tag", shift=13),
    _bit("vlan.dei", "vlan", "vlan_tci", 12, "drop eligible indicator of the outer tag"),
    FieldSpec("vlan.etype", "vlan", "vlan_etype", 16, "EtherType behind the outer tag"),
    FieldSpec("vlan2.id", "vlan2", "vlan2_tci", 12, "VLAN identifier of the inner tag (IEEE 802.1ad)"),
    FieldSpec("vlan2.pcp", "vlan2", "vlan2_tci", 3, "priority code point of the inner tag", shift=13),
    _bit("vlan2.dei", "vlan2", "vlan2_tci", 12, "drop eligible indicator of the inner tag"),
    FieldSpec("vlan2.etype", "vlan2", "vlan2_etype", 16, "EtherType behind the inner tag"),
    FieldSpec("arp.htype", "arp", 0, 16, "hardware type: 1 Ethernet (RFC 826)"),
    FieldSpec("arp.ptype", "arp", 2, 16, "protocol type: 0x0800 IPv4"),
    FieldSpec("arp.hlen", "arp", 4, 8, "bytes of a hardware address"),
    FieldSpec("arp.plen", "arp", 5, 8, "bytes of a protocol address"),
    FieldSpec("arp.op", "arp", 6, 16, "operation: 1 request, 2 reply (RFC 826)"),
    FieldSpec("arp.sha", "arp", 8, 48, "sender MAC address, of 6 bytes", "mac", only=_MAC),
    FieldSpec("arp.spa", "arp", 8, 32, "sender IPv4 address", "ipv4", only=_IPV4, moved=("arp.hlen", 1)),
    FieldSpec("arp.tha", "arp", 14, 48, "target MAC address, of 6 bytes", "mac", only=_MAC, moved=("arp.plen", 1)),
    FieldSpec("arp.tpa", "arp", 12, 32, "target IPv4 address", "ipv4", only=_IPV4, moved=("arp.hlen", 2)),
    FieldSpec("ip.ihl", "ip", 0, 4, "header length in words of 4 bytes (RFC 791)"),
    FieldSpec("ip.options", "ip", 0, 4, "alone: the header has options; its value is that of ip.ihl", alone=(6, 15)),
    FieldSpec("ip.tos", "ip", 1, 8, "type-of-service octet: DSCP and ECN"),
    FieldSpec("ip.dscp", "ip", 1, 6, "differentiated services code point (RFC 2474)", shift=2),
    FieldSpec("ip.ecn", "ip", 1, 2, "explicit congestion notification (RFC 3168)"),
    FieldSpec("ip.len", "ip", 2, 16, "total length in bytes"),
    FieldSpec("ip.id", "ip", 4, 16, "identification"),
    _bit("ip.df", "ip", 6, 6, "don't fragment"),
    _bit("ip.mf", "ip", 6, 5, "more fragments"),
    FieldSpec("ip.frag_offset", "ip", 6, 13, "fragment offset in units of 8 bytes"),
    FieldSpec("ip.fragment", "ip", 6, 14, "alone: any fragment; mf and frag_offset in one", alone=(1, 0x3FFF)),
    FieldSpec("ip.ttl", "ip", 8, 8, "time to live"),
    FieldSpec("ip.proto", "ip", 9, 8, "protocol number"),
    FieldSpec("ip.csum", "ip", 10, 16, "header checksum as it stands there"),
    FieldSpec("ip.src", "ip", 12, 32, "IPv4 source address", "ipv4"),
    FieldSpec("ip.dst", "ip", 16, 32, "IPv4 destination address", "ipv4"),
    FieldSpec("ip6.tc", "ip6", 0, 8, "traffic class: DSCP and ECN (RFC 8200)", shift=4),
    FieldSpec("ip6.dscp", "ip6", 0, 6, "differentiated services code point", shift=6),
    FieldSpec("ip6.ecn", "ip6", 1, 2, "explicit congestion notification", shift=4),
    FieldSpec("ip6.flow", "ip6", 0, 20, "flow label (RFC 6437)"),
    FieldSpec("ip6.len", "ip6", 4, 16, "payload length in bytes"),
    FieldSpec("ip6.next", "ip6", 6, 8, "next header: the first extension header or the protocol"),
    FieldSpec("ip6.hlim", "ip6", 7, 8, "hop limit"),
    FieldSpec("ip6.proto", "ip6", "ip6_proto", 8, "protocol behind the extension headers that the walk passed"),
    FieldSpec("ip6.src", "ip6", 8, 128, "IPv6 source address", "ipv6"),
    FieldSpec("ip6.dst", "ip6", 24, 128, "IPv6 destination address", "ipv6"),
    FieldSpec("routing.next", "routing", 0, 8, "protocol of what follows (RFC 8200 section 4.4)"),
    FieldSpec("routing.len", "routing", 1, 8, "length in units of 8 bytes, not counting the first"),
    FieldSpec("routing.type", "routing", 2, 8, "routing type"),
    FieldSpec("routing.seg_left", "routing", 3, 8, "segments left"),
    FieldSpec("frag.next", "frag", 0, 8, "protocol of what is in fragments (RFC 8200 section 4.5)"),
    FieldSpec("frag.offset", "frag", 2, 13, "fragment offset in units of 8 bytes", shift=3),
    _bit("frag.mf", "frag", 3, 0, "more fragments"),
    FieldSpec("frag.id", "frag", 4, 32, "identification"),
    FieldSpec("tcp.sport", "tcp", 0, 16, "source port"),
    FieldSpec("tcp.dport", "tcp", 2, 16, "destination port"),
    FieldSpec("tcp.seq", "tcp", 4, 32, "sequence number"),
    FieldSpec("tcp.ackseq", "tcp", 8, 32, "acknowledgment number"),
    FieldSpec("tcp.off", "tcp", 12, 4, "data offset: header length in words of 4 bytes", shift=4),
    FieldSpec("tcp.flags", "tcp", 13, 8, "CWR ECE URG ACK PSH RST SYN FIN, bit 7 to bit 0 (RFC 9293)", "flags"),
    *(_bit(f"tcp.{name}", "tcp", 13, bit, f"flag {name.upper()}") for bit, name in enumerate(TCP_FLAGS)),
    FieldSpec("tcp.window", "tcp", 14, 16, "window, not scaled"),
    FieldSpec("tcp.csum", "tcp", 16, 16, "checksum as it stands there"),
    FieldSpec("tcp.urgptr", "tcp", 18, 16, "urgent pointer"),
    FieldSpec("tcp.mss", "tcp.mss", "tcp_mss", 16, "maximum segment size option, where there is one"),
    FieldSpec("udp.sport", "udp", 0, 16, "source port"),
    FieldSpec("udp.dport", "udp", 2, 16, "destination port"),
    FieldSpec("udp.len", "udp", 4, 16, "length in bytes, header included (RFC 768)"),
    FieldSpec("udp.csum", "udp", 6, 16, "checksum as it stands there"),
    FieldSpec("icmp.type", "icmp", 0, 8, "ICMP type (RFC 792)"),
    FieldSpec("icmp.code", "icmp", 1, 8, "ICMP code"),
    FieldSpec("icmp.id", "icmp", 4, 16, "identifier of a query or its reply (types 0, 8, 13 to 18)", only=_QUERY),
    FieldSpec("icmp.seq", "icmp", 6, 16, "sequence number of a query or its reply", only=_QUERY),
    FieldSpec("icmp.mtu", "icmp", 6, 16, "MTU of the next hop (type 3; RFC 1191)", only=_type("icmp", 3)),
    FieldSpec("icmp.gateway", "icmp", 4, 32, "better gateway (type 5)", "ipv4", only=_type("icmp", 5)),
    FieldSpec("icmp.pointer", "icmp", 4, 8, "byte that is wrong (type 12)", only=_type("icmp", 12)),
    FieldSpec("icmp6.type", "icmp6", 0, 8, "ICMPv6 type (RFC 4443)"),
    FieldSpec("icmp6.code", "icmp6", 1, 8, "ICMPv6 code"),
    FieldSpec("icmp6.id", "icmp6", 4, 16, "identifier of an echo request or reply", only=_QUERY6),
    FieldSpec("icmp6.seq", "icmp6", 6, 16, "sequence number of an echo request or reply", only=_QUERY6),
    FieldSpec("icmp6.mtu", "icmp6", 4, 32, "MTU of the next hop (type 2)", only=_type("icmp6", 2)),
    FieldSpec("icmp6.pointer", "icmp6", 4, 32, "byte that is wrong (type 4)", only=_type("icmp6", 4)),
    FieldSpec("icmp6.max_delay", "icmp6", 4, 16, "maximum response delay (type 130)", only=_type("icmp6", 130)),
    FieldSpec("icmp6.target", "icmp6", 8, 128, "target address (types 135 to 137, RFC 4861)", "ipv6", only=_TARGET),
    FieldSpec("icmp6.dst", "icmp6", 24, 128, "redirected address (type 137)", "ipv6", only=_type("icmp6", 137)),
    FieldSpec("sctp.sport", "sctp", 0, 16, "source port (RFC 9260)"),
    FieldSpec("sctp.dport", "sctp", 2, 16, "destination port"),
    FieldSpec("sctp.vtag", "sctp", 4, 32, "verification tag"),
    FieldSpec("gre.flags", "gre", 0, 16, "flags and version (RFC 2784, RFC 2890)"),
    FieldSpec("gre.proto", "gre", 2, 16, "EtherType of what is inside"),
)
_OUTER_ONLY: tuple[FieldSpec, ...] = (
    FieldSpec("gre.key", "gre.key", 0, 32, "key, where there is one (RFC 2890)"),
    FieldSpec("vxlan.vni", "vxlan", 4, 24, "network identifier (RFC 7348)", shift=8),
    FieldSpec("geneve.vni", "geneve", 4, 24, "network identifier (RFC 8926)", shift=8),
    FieldSpec("geneve.proto", "geneve", 2, 16, "EtherType of what is inside"),
    FieldSpec("gtpu.type", "gtpu", 1, 8, "message type: 255 carries a packet (3GPP TS 29.281)"),
    FieldSpec("gtpu.teid", "gtpu", 4, 32, "tunnel endpoint identifier"),
    FieldSpec("mpls.label", "mpls", 0, 20, "label on top of the stack (RFC 3032)", shift=12),
    FieldSpec("mpls.tc", "mpls", 2, 3, "traffic class (RFC 5462)", shift=1),
    _bit("mpls.bos", "mpls", 2, 0, "bottom of stack"),
    FieldSpec("mpls.ttl", "mpls", 3, 8, "time to live"),
    FieldSpec("pkt.len", None, "len", 32, "length of the frame in bytes, Ethernet header included"),
    FieldSpec("pkt.queue", None, "rx_queue", 32, "RX queue of arrival"),
    FieldSpec("meta.timestamp", "meta.timestamp", "meta_timestamp", 64, "time of arrival by the device's clock, in ns"),
    FieldSpec("meta.hash", "meta.hash", "meta_hash", 32, "flow hash that came with the packet (RSS)"),
    FieldSpec("meta.vlan", "meta.vlan", "meta_vlan", 12, "VLAN identifier of a tag that is not in the bytes any more"),
    FieldSpec("meta.mark", None, "meta_mark", 32, "the skb's mark; 0 where nobody set one, and at XDP"),
    FieldSpec("meta.priority", None, "meta_priority", 32, "the skb's priority; 0 where nobody set one, and at XDP"),
    FieldSpec("meta.day", None, "meta_day", 3, "day of the week in UTC: 'Sunday' (0) to 'Saturday' (6)", "day"),
    FieldSpec("meta.hour", None, "meta_second", 17, "time of day in UTC: '17:30' or seconds since midnight", "time"),
)
FIELDS: tuple[FieldSpec, ...] = (
    *_BOTH,
    *_OUTER_ONLY,
    *(
        replace(
            f,
            name=INNER + f.name,
            header=INNER + f.header,
            only=tuple((INNER + name, values) for name, values in f.only),
            moved=(INNER + f.moved[0], f.moved[1]) if f.moved else None,
        )
        for f in _BOTH
        if f.header
    ),
)
#: What is in front of an IPv4 address in an IPv4-mapped IPv6 address.
MAPPED = 0xFFFF << 32
#: Keys of sets and limits that are an address of either family.  No packet has them as such: a condition on one becomes
#: two, for IPv4 and for IPv6 (:func:`families`).
EITHER = (
    FieldSpec("src", None, "src", 128, "source address, IPv4 or IPv6", "ip"),
    FieldSpec("dst", None, "dst", 128, "destination address, IPv4 or IPv6", "ip"),
)
#: What is known of the packet's flow, where the pipeline tracks (tracking.py).  No bytes of a packet have it.
CT = (
    FieldSpec("ct.state", None, "ct", 4, "0 not tracked, 1 new, 2 established, 3 related, 4 invalid"),
    FieldSpec("ct.direction", None, "ct", 4, "0 not known, 1 original, 2 reply", shift=4),
)
_MAPPED = tuple(
    replace(f, name=f"{f.name}.mapped", bits=128, kind="ip", mapped=True) for f in FIELDS if f.kind == "ipv4"
)
_BY_NAME = {spec.name: spec for spec in (*FIELDS, *EITHER, *CT, *_MAPPED)}
_PAYLOAD = re.compile(r"((?:inner\.)?payload)\[(\d+):(\d+)\]")


@cache
def field_named(name: str) -> FieldSpec:
    """The row of ``name``; ``payload[offset:size]`` names bytes of the payload.  KeyError if there is none."""
    if match := _PAYLOAD.fullmatch(name):
        header, offset, size = match[1], int(match[2]), int(match[3])
        if not (1 <= size <= PAYLOAD_MAX_SIZE and offset <= PAYLOAD_MAX_OFFSET):
            raise KeyError(name)
        return FieldSpec(name, header, offset, 8 * size, "bytes of the payload", "bytes")
    return _BY_NAME[name]


def families(
    specs: tuple[FieldSpec, ...], *, mapped: bool = True
) -> tuple[tuple[str | None, tuple[FieldSpec, ...]], ...]:
    """``specs`` as fields that packets have, each time with the header that says when: where one of them is of either
    family, for "ip" and for "ip6"; else once, for None.  ``mapped``: IPv4 addresses are read as IPv4-mapped ones, as
    the keys of a set of both families are."""
    if not any(spec in EITHER for spec in specs):
        return ((None, specs),)
    return tuple(
        (header, tuple(_BY_NAME[f"{header}.{s.name}{end}"] if s in EITHER else s for s in specs))
        for header, end in (("ip", ".mapped" if mapped else ""), ("ip6", ""))
    )


def room_bytes() -> dict[str, int]:
    """Slot to the size of the largest header that starts there."""
    return {slot: max(h.size for h in OUTER if h.slot == slot) for slot in SLOTS if slot != "payload"}


def offsets() -> dict[str, tuple[int, int]]:
    """Member to (offset in bytes, width in bits) in ``struct packet``; those of ``packet.inner`` with ``inner.`` in
    front, and where the bytes of a slot are kept as ``room.slot``."""
    layout: dict[str, tuple[int, int]] = {}
    at = 0
    for prefix in ("", INNER):
        start = at
        for name, bits in HEADERS_MEMBERS:
            layout[prefix + name] = (at, bits)
            at += bits // 8
        at = start + _HEADERS_BYTES
    for name, bits in PACKET_MEMBERS:
        layout[name] = (at, bits)
        at += bits // 8
    at = -(-at // 8) * 8
    for prefix in ("", INNER):
        for slot, size in room_bytes().items():
            layout[f"{prefix}room.{slot}"] = (at, 0)
            at += -(-size // 8) * 8
    return layout


def c_header() -> str:
    """``packet_layout.h``: header bits and ``struct packet``, with every offset asserted."""
    lines = ["/* Generated from xdpkit/language/fields.py when the package is built. */", "#pragma once", "", "enum {"]
    lines += [f"\tHAS_{h.name.upper().replace('.', '_')} = 1u << {bit}," for bit, h in enumerate(OUTER)]
    lines += [f"\tWANTED_{name.upper()} = 1u << {bit}," for bit, name in enumerate(WANTED_META)]
    lines += [
        "};",
        "",
        "/* Where each header starts that is present, and what is not read there. */",
        "struct headers {",
    ]
    lines += [f"\t__u{bits} {name};" for name, bits in HEADERS_MEMBERS]
    lines += ["};", "", "/* Copies of the headers, where a hook cannot read them in place. */", "struct rooms {"]
    lines += [f"\t__u8 {slot}[{-(-size // 8) * 8}] __attribute__((aligned(8)));" for slot, size in room_bytes().items()]
    lines += ["};", "", "struct packet {", "\tstruct headers outer, inner;"]
    lines += [f"\t__u{bits} {name};" for name, bits in PACKET_MEMBERS]
    lines += ["\tstruct rooms room, inner_room;", "};", ""]
    for name, (offset, _) in offsets().items():
        place = name.removeprefix(INNER)
        if place.startswith("room."):
            place = f"inner_{place}" if name.startswith(INNER) else place
        elif name not in dict(PACKET_MEMBERS):
            place = f"{'inner' if name.startswith(INNER) else 'outer'}.{place}"
        lines.append(f'_Static_assert(__builtin_offsetof(struct packet, {place}) == {offset}, "{name}");')
    return "\n".join(lines) + "\n"
