"""The header walk in plain Python, for the reference evaluator.  Its rules are those at the head of ``bpf/headers.h``:

* a header is present when its fixed part lies wholly inside the frame, else it and all behind it are absent;
* up to two VLAN tags (0x8100, 0x88a8) are walked (IEEE 802.1Q, 802.1ad);
* IPv4 needs version 4 and ihl >= 5; the transport header is absent in fragments with an offset (RFC 791);
* IPv6 extension headers (hop-by-hop, routing, fragment, AH, destination) are walked, at most :data:`MAX_EXTENSIONS`
  of them; a chain that is longer, cut short, or a fragment with an offset has no transport header (RFC 8200, RFC 4302);
* TCP has a payload if its data offset is 5 words or more; of its options the first :data:`MAX_TCP_OPTIONS` are looked
  at (RFC 9293);
* ``tunnels.py`` finds what is inside a tunnel, and the same walk goes over that, once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ..language.expr import Intervals
from ..language.fields import HEADERS, INNER, MAPPED, FieldSpec, field_named
from ..language.metadata import Metadata
from .tunnels import IPV4, IPV6, TEB, enter

__all__ = ["EXTENSIONS", "MAX_EXTENSIONS", "MAX_TCP_OPTIONS", "Packet", "walk"]

#: How many IPv6 extension headers the walk passes, and how many TCP options.
MAX_EXTENSIONS = 6
MAX_TCP_OPTIONS = 10

TAGS = (0x8100, 0x88A8)
ETHERTYPE_ARP = 0x0806
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60
#: IPv6 extension headers by number.
EXTENSIONS = {HOP_BY_HOP: "hopopts", ROUTING: "routing", FRAGMENT: "frag", AH: "ah", DESTINATION: "dstopts"}
#: Transport headers by protocol number; each IP version has its own ICMP.
_OVER_BOTH = {6: "tcp", 17: "udp", 47: "gre", 132: "sctp"}
TRANSPORT = {"ip": {**_OVER_BOTH, 1: "icmp"}, "ip6": {**_OVER_BOTH, 58: "icmp6"}}
NO_METADATA = Metadata()
#: The first day of 1970, of the days of a week that begins with Sunday.
THURSDAY = 4


@dataclass(slots=True)
class Packet:
    """What the walk found.  ``starts``: where each header starts, by name (``inner.ip`` inside a tunnel); metadata that
    is present starts at 0.  ``members``: values that are not at one place in the bytes, by the names of the members of
    ``struct packet``; ``len`` and ``rx_queue`` are always present.  ``devices``: the names that conditions
    know the packet's device by."""

    frame: bytes = field(repr=False)
    starts: dict[str, int] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)
    devices: Collection[str] = ()

    @property
    def present(self) -> set[str]:
        """The names of the headers that are there."""
        return set(self.starts)

    def value(self, spec: FieldSpec) -> int | None:
        """The value of a field; None where its header is absent or, for payload, too short."""
        if spec.header is not None and spec.header not in self.starts:
            return None
        if isinstance(spec.at, str):
            prefix = INNER if spec.name.startswith(INNER) else ""
            return self.members[prefix + spec.at] >> spec.shift & spec.maximum
        if any(not self.inside(name, values) for name, values in spec.only):
            return None
        length = self.value(field_named(spec.moved[0])) if spec.moved else 0
        at = self.starts[spec.header or ""] + spec.at + (length or 0) * (spec.moved[1] if spec.moved else 0)
        number = self.number(at, spec.size)
        if number is None:
            return None
        return number | MAPPED if spec.mapped else number >> spec.shift & spec.maximum

    def inside(self, name: str, intervals: Intervals) -> bool:
        """The field of that name has a value, and it lies in one of ``intervals``."""
        value = self.value(field_named(name))
        return value is not None and any(low <= value <= high for low, high in intervals)

    def number(self, at: int, size: int) -> int | None:
        """``size`` bytes in network order; None where the frame ends before they do."""
        return int.from_bytes(self.frame[at : at + size]) if at + size <= len(self.frame) else None

    def found(self, header: str, at: int) -> bool:
        """Note that ``header`` starts at ``at``, if its fixed part lies wholly in the frame."""
        if at + HEADERS[header].size > len(self.frame):
            return False
        self.starts[header] = at
        return True


def walk(
    frame: bytes, *, rx_queue: int = 0, wire_bytes: int | None = None, metadata: Metadata = NO_METADATA,
    now_ns: int = 0, devices: Collection[str] = (),
) -> Packet:  # fmt: skip
    """The headers of ``frame`` (from the destination MAC address on, without FCS), received on ``rx_queue``.
    ``wire_bytes``: the length of the packet where ``frame`` is only its beginning.  ``metadata``: what is known of the
    packet besides its bytes.  ``now_ns``: the clock, nanoseconds since 1970 in UTC."""
    length = len(frame) if wire_bytes is None else wire_bytes
    packet = Packet(frame, members={"len": length, "rx_queue": rx_queue}, devices=devices)
    days, second = divmod(now_ns // 1_000_000_000, 86_400)
    packet.members |= {"meta_mark": metadata.mark, "meta_priority": metadata.priority}
    packet.members |= {"meta_day": (days + THURSDAY) % 7, "meta_second": second}
    for name, value in metadata.present().items():
        packet.starts[name] = 0
        packet.members[name.replace(".", "_")] = value
    at, ethertype = _walk_link(packet, "", 0)
    at, proto = _walk_network(packet, "", at, ethertype)
    inside = enter(packet, at, proto, ethertype)
    if inside is None:
        return packet
    ethertype, at = inside
    if ethertype == TEB:
        at, ethertype = _walk_link(packet, INNER, at)
    elif ethertype not in (IPV4, IPV6):
        return packet
    _walk_network(packet, INNER, at, ethertype)
    return packet


def _walk_link(packet: Packet, prefix: str, at: int) -> tuple[int, int]:
    """Walk Ethernet and its tags.  Returns where they end, and the EtherType of the next header (0 if there is
    none)."""
    if not packet.found(prefix + "eth", at):
        return at, 0
    ethertype = int.from_bytes(packet.frame[at + 12 : at + 14])
    packet.members[prefix + "eth_type"] = ethertype
    at += 14
    for name in ("vlan", "vlan2"):
        if ethertype not in TAGS:
            break
        if not packet.found(prefix + name, at):
            return at, 0
        tci, ethertype = (int.from_bytes(packet.frame[i : i + 2]) for i in (at, at + 2))
        packet.members |= {f"{prefix}{name}_tci": tci, f"{prefix}{name}_etype": ethertype}
        at += 4
    return at, ethertype


def _walk_network(packet: Packet, prefix: str, at: int, ethertype: int) -> tuple[int, int | None]:
    """Walk the network header and the transport header behind it.  Returns where the transport header starts, and its
    protocol number (None if there is none)."""
    proto = None
    if ethertype == IPV4:
        at, proto = _walk_ip(packet, prefix, at)
        _walk_transport(packet, prefix, at, TRANSPORT["ip"].get(-1 if proto is None else proto))
    elif ethertype == IPV6:
        at, proto = _walk_ip6(packet, prefix, at)
        _walk_transport(packet, prefix, at, TRANSPORT["ip6"].get(-1 if proto is None else proto))
    elif ethertype == ETHERTYPE_ARP:
        packet.found(prefix + "arp", at)
    return at, proto


def _walk_ip(packet: Packet, prefix: str, at: int) -> tuple[int, int | None]:
    """IPv4 with its options (RFC 791 section 3.1)."""
    first = packet.frame[at] if at < len(packet.frame) else 0
    version, ihl = first >> 4, first & 15
    if version != 4 or ihl < 5 or not packet.found(prefix + "ip", at):
        return at, None
    offset = int.from_bytes(packet.frame[at + 6 : at + 8]) & 0x1FFF
    return at + 4 * ihl, None if offset else packet.frame[at + 9]


def _walk_ip6(packet: Packet, prefix: str, at: int) -> tuple[int, int | None]:
    """IPv6 with its extension headers (RFC 8200 section 4).  ``ip6_proto`` is the number that the last header passed
    names, so it is an extension's own where the chain is cut short or too long."""
    first = packet.frame[at] if at < len(packet.frame) else 0
    if first >> 4 != 6 or not packet.found(prefix + "ip6", at):
        return at, None
    proto = packet.members[prefix + "ip6_proto"] = packet.frame[at + 6]
    at += 40
    for _ in range(MAX_EXTENSIONS):
        if proto not in EXTENSIONS:
            break
        kind = proto
        if not packet.found(prefix + EXTENSIONS[kind], at):
            return at, None
        proto, length = packet.frame[at : at + 2]
        packet.members[prefix + "ip6_proto"] = proto
        if kind == FRAGMENT and int.from_bytes(packet.frame[at + 2 : at + 4]) & 0xFFF8:
            return at, None
        at += _extension_bytes(kind, length)
    return at, None if proto in EXTENSIONS else proto


def _extension_bytes(kind: int, length: int) -> int:
    """Units of 8 bytes behind the first 8 (RFC 8200); a fragment header is 8 bytes long (its second byte is reserved);
    AH counts words of 4 bytes, minus 2 (RFC 4302 section 2.2)."""
    if kind == FRAGMENT:
        return 8
    if kind == AH:
        return (length + 2) * 4
    return (length + 1) * 8


def _walk_transport(packet: Packet, prefix: str, at: int, header: str | None) -> None:
    """The transport header, its parts, and where its payload starts."""
    if header is None or not packet.found(prefix + header, at):
        return
    if header == "udp":
        packet.starts[prefix + "payload"] = at + 8
    elif header == "tcp":
        size = 4 * (packet.frame[at + 12] >> 4)
        if size >= 20:
            packet.starts[prefix + "payload"] = at + size
            _walk_tcp_options(packet, prefix, at, at + size)


def _walk_tcp_options(packet: Packet, prefix: str, at: int, end: int) -> None:
    """The maximum segment size (RFC 9293 section 3.2): kind 2, length 4."""
    at += 20
    for _ in range(MAX_TCP_OPTIONS):
        kind, length = packet.number(at, 1), packet.number(at + 1, 1)
        if at >= end or kind is None or kind == 0:
            return
        if kind == 1:
            at += 1
            continue
        if length is None or length < 2:
            return
        if kind == 2:
            mss = packet.number(at + 2, 2)
            if length == 4 and at + 4 <= end and mss is not None:
                packet.starts[f"{prefix}tcp.mss"] = at
                packet.members[f"{prefix}tcp_mss"] = mss
            return
        at += length
