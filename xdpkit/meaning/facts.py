"""What the tables of connections look at in a packet, for the reference evaluator: its kind, the key of its flow,
and what its TCP header says."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum

from .walk import EXTENSIONS, Packet

__all__ = ["ACK", "FIN", "MAX_SCALE", "RST", "SYN", "UDP", "Facts", "Kind", "facts"]

FIN, SYN, RST, ACK = 1, 2, 4, 16
TCP, UDP, ICMP, ICMP6, SCTP = 6, 17, 1, 58, 132
#: Protocols whose header the walk knows; without it the packet is cut short.
_BOTH = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
NAMES = {4: {**_BOTH, ICMP: "icmp"}, 6: {**_BOTH, ICMP6: "icmp6"}}
#: Of an IPv4 address that is written as one of IPv6; no packet of IPv6 has such addresses (RFC 4291, RFC 6890).
MAPPED_PREFIX = bytes(10) + b"\xff\xff"
#: ICMP messages about a packet (RFC 792; RFC 4443), and queries with the type of their answer.
ERRORS = {ICMP: (3, 4, 5, 11, 12), ICMP6: (1, 2, 3, 4)}
QUERIES = {ICMP: {8: 0, 13: 14, 15: 16, 17: 18}, ICMP6: {128: 129}}
ANSWERS = {proto: {answer: query for query, answer in known.items()} for proto, known in QUERIES.items()}
#: A window field of 16 bits may be shifted so far (RFC 7323 section 2.3).
MAX_SCALE = 14
#: TCP options that are looked at, and which one says how windows are scaled.
MAX_OPTIONS, WINDOW_SCALE = 16, 3


class Kind(IntEnum):
    """What a packet is to the tables."""

    NONE = 0  # not tracked
    BAD = 1  # cut short, or a contradiction
    TCP = 2
    PLAIN = 3  # UDP, and protocols without a state of their own
    QUERY = 4
    ANSWER = 5
    ERROR = 6  # an ICMP error
    LATER = 7  # a fragment that is not the first


@dataclass(slots=True)
class Facts:
    """What the tables look at.  ``key``: of the flow, or of the flow that an ICMP error is about; ``fragment``: of the
    fragments of this packet, None where there are none.  ``high``: the sender is the second endpoint of the key."""

    kind: Kind
    proto: int = 0
    key: Hashable = None
    high: bool = False
    fragment: Hashable = None
    seq: int = 0
    end: int = 0
    ack: int = 0
    window: int = 0
    flags: int = 0
    scale: int | None = None


def facts(packet: Packet) -> Facts:
    """What ``packet`` is to the tables, by its outer headers."""
    starts = packet.starts
    if "ip" in starts:
        at, family = starts["ip"], 4
        head = packet.frame[at : at + 20]
        proto, source, target = head[9], head[12:16], head[16:20]
        word, ident = int.from_bytes(head[6:8]), int.from_bytes(head[4:6])
        offset, more = word & 0x1FFF, word >> 13 & 1
        below, whole = at + 4 * (head[0] & 15), int.from_bytes(head[2:4])
        size = whole - 4 * (head[0] & 15) if whole else packet.members["len"] - below
    elif "ip6" in starts:
        at, family = starts["ip6"], 6
        head = packet.frame[at : at + 40]
        proto, source, target = packet.members["ip6_proto"], head[8:24], head[24:40]
        offset = more = ident = 0
        if "frag" in starts:
            piece = packet.frame[starts["frag"] : starts["frag"] + 8]
            word, ident = int.from_bytes(piece[2:4]), int.from_bytes(piece[4:8])
            offset, more = word >> 3, word & 1
        below = next((starts[n] for n in NAMES[6].values() if n in starts), 0)
        whole = int.from_bytes(head[4:6])
        size = whole + 40 + at - below if whole else packet.members["len"] - below
    else:
        return Facts(Kind.NONE)
    tags = _tags(packet)
    fragment = ("fragment", family, tags, source, target, ident, proto) if offset or more else None
    if offset:
        return Facts(Kind.LATER, proto, fragment=fragment)
    if family == 6 and (proto in EXTENSIONS or source.startswith(MAPPED_PREFIX) or target.startswith(MAPPED_PREFIX)):
        return Facts(Kind.BAD)
    name = NAMES[family].get(proto)
    if name is None:
        return _between(Facts(Kind.PLAIN, proto, fragment=fragment), family, tags, (source, 0), (target, 0))
    if name not in starts:
        return Facts(Kind.BAD)
    if name in ("icmp", "icmp6"):
        return _of_icmp(packet, name, proto, family, tags, source, target, fragment)
    head = packet.frame[below : below + 20]
    ends = (source, int.from_bytes(head[0:2])), (target, int.from_bytes(head[2:4]))
    if proto != TCP:
        return _between(Facts(Kind.PLAIN, proto, fragment=fragment), family, tags, *ends)
    found = _of_tcp(packet, below, size)
    if found is None:
        return Facts(Kind.BAD)
    found.fragment = fragment
    return _between(found, family, tags, *ends)


def _tags(packet: Packet) -> tuple[int, ...]:
    """Identifiers of both VLAN tags; one of 0 is none (IEEE 802.1Q: a priority tag)."""
    found = (packet.members[f"{name}_tci"] & 0xFFF if name in packet.starts else 0 for name in ("vlan", "vlan2"))
    return tuple(found)


def _between(seen: Facts, family: int, tags: tuple[int, ...], a: tuple[bytes, int], b: tuple[bytes, int]) -> Facts:
    seen.high = a > b
    seen.key = (family, tags, seen.proto, *((b, a) if a > b else (a, b)))
    return seen


def _query(
    family: int, tags: tuple[int, ...], proto: int, asker: bytes, asked: bytes, kind: int, ident: int
) -> Hashable:
    return "query", family, tags, proto, asker, asked, kind, ident


def _of_icmp(
    packet: Packet, name: str, proto: int, family: int, tags: tuple[int, ...], source: bytes, target: bytes,
    fragment: Hashable,
) -> Facts:  # fmt: skip
    at = packet.starts[name]
    kind, word = packet.frame[at], packet.number(at + 4, 4)
    if kind in ERRORS[proto]:
        return Facts(Kind.ERROR, proto, _quoted(packet, at + 8, family, tags, target))
    asks, answers = QUERIES[proto], ANSWERS[proto]
    if kind not in asks and kind not in answers:
        return Facts(Kind.NONE)
    if word is None:
        return Facts(Kind.BAD)
    ident = word >> 16
    if kind in asks:
        key = _query(family, tags, proto, source, target, kind, ident)
        return Facts(Kind.QUERY, proto, key, source > target, fragment)
    key = _query(family, tags, proto, target, source, answers[kind], ident)
    return Facts(Kind.ANSWER, proto, key, source > target, fragment)


def _quoted(packet: Packet, at: int, family: int, tags: tuple[int, ...], receiver: bytes) -> Hashable:
    """The key of the packet that an ICMP error quotes, which whoever gets the error must have sent; None if it cannot
    be told."""
    size = 20 if family == 4 else 40
    head = packet.frame[at : at + size]
    if len(head) < size or head[0] >> 4 != family:
        return None
    if family == 4:
        below, proto, source, target = at + 4 * (head[0] & 15), head[9], head[12:16], head[16:20]
        if head[0] & 15 < 5 or int.from_bytes(head[6:8]) & 0x1FFF:
            return None
    else:
        below, proto, source, target = at + 40, head[6], head[8:24], head[24:40]
        if target.startswith(MAPPED_PREFIX):
            return None
    part = packet.frame[below : below + 8]
    if len(part) < 8 or source != receiver:
        return None
    name = NAMES[family].get(proto)
    if name in ("icmp", "icmp6"):
        kind, ident = part[0], int.from_bytes(part[4:6])
        if kind in QUERIES[proto]:
            return _query(family, tags, proto, source, target, kind, ident)
        if kind in ANSWERS[proto]:
            return _query(family, tags, proto, target, source, ANSWERS[proto][kind], ident)
        return None
    ports = (int.from_bytes(part[0:2]), int.from_bytes(part[2:4])) if name else (0, 0)
    return _between(Facts(Kind.PLAIN, proto), family, tags, (source, ports[0]), (target, ports[1])).key


def _of_tcp(packet: Packet, at: int, size: int) -> Facts | None:
    """What a TCP header says; None for lengths and flags that contradict each other (RFC 9293 section 3.10.7)."""
    head = packet.frame[at : at + 20]
    header = 4 * (head[12] >> 4)
    flags = head[13] & (FIN | SYN | RST | ACK)
    known = (flags & SYN and not flags & (FIN | RST)) or (flags & RST and not flags & (FIN | SYN)) or (
        flags & ACK and not flags & (SYN | RST)
    )  # fmt: skip
    if header < 20 or size < header or not known:
        return None
    seq, ack = int.from_bytes(head[4:8]), int.from_bytes(head[8:12])
    end = seq + size - header + bool(flags & SYN) + bool(flags & FIN) & 0xFFFFFFFF
    scale = _scale(packet.frame[at + 20 : at + header], header - 20) if flags & SYN else None
    return Facts(Kind.TCP, TCP, None, False, None, seq, end, ack, int.from_bytes(head[14:16]), flags, scale)


def _scale(options: bytes, size: int) -> int | None:
    """The window scale option (RFC 7323 section 2); None where there is none, or the options are cut short."""
    at = 0
    if len(options) < size:
        return None
    for _ in range(MAX_OPTIONS):
        if at >= size or options[at] == 0:
            return None
        if options[at] == 1:
            at += 1
            continue
        if at + 1 >= size or options[at + 1] < 2:
            return None
        if options[at] == WINDOW_SCALE:
            return min(options[at + 2], MAX_SCALE) if options[at + 1] == 3 and at + 3 <= size else None
        at += options[at + 1]
    return None
