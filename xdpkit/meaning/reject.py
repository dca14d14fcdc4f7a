"""What REJECT answers, in plain Python: the reply to a packet, byte for byte, or that there is none.

The rules are those of ``bpf/reject.bpf.c`` and, but for what the kernel looks up in its routes, of Linux's own reject:

* TCP is reset with the sequence number that its sender expects (RFC 9293 section 3.10.7.1).  Other packets, and TCP
  where the rule says so, get ICMP or ICMPv6 destination unreachable, which quotes the packet in at most 576 bytes
  (RFC 1812 section 4.3.2.3) or 1,280 (RFC 4443 section 2.4).
* There is no answer to a reset, to ICMP that is no query, to later fragments, to broadcast and multicast, to addresses
  that are not those of one host, and where the walk did not get to the end of IPv6's extension headers (RFC 1122
  section 3.2.2, RFC 4443 section 2.4).
* The reply has no IP options and no extension headers, and the VLAN tags of the packet.
"""

from __future__ import annotations

from struct import pack, unpack_from

from ..language.actions import Reject
from .walk import EXTENSIONS, Packet

__all__ = ["MAX_QUOTE4", "MAX_QUOTE6", "checksum", "reply"]

#: Bytes of a packet that are quoted at most: what 576 and 1,280 bytes leave beside the headers.
MAX_QUOTE4, MAX_QUOTE6 = 576 - 20 - 8, 1280 - 40 - 8
TTL = 64
#: ICMP messages that are answered: queries and their replies.
ICMP_ANSWERED = (0, 8, *range(13, 19))
ICMP6_REDIRECT = 137
FIN, SYN, RST, ACK = 1, 2, 4, 16


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(unpack_from(f"!{(len(data) + 1) // 2}H", data + b"\0"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def reply(packet: Packet, action: Reject) -> bytes | None:
    """What ``action`` sends back for ``packet``; None where it must not answer."""
    frame, starts = packet.frame, packet.starts
    if "eth" not in starts or frame[0] & 1 or not {"ip", "ip6"} & starts.keys():
        return None
    if "tcp" in starts and frame[starts["tcp"] + 13] & RST:
        return None
    version = 4 if "ip" in starts else 6
    at = starts["ip" if version == 4 else "ip6"]
    link = frame[6:12] + frame[:6] + frame[12:at]
    made = _reply4(packet, action, at) if version == 4 else _reply6(packet, action, at)
    return None if made is None else link + made


def _reply4(packet: Packet, action: Reject, at: int) -> bytes | None:
    frame, starts = packet.frame, packet.starts
    first, tos, total = unpack_from("!BBH", frame, at)
    fragment, protocol = unpack_from("!H", frame, at + 6)[0], frame[at + 9]
    source, target = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
    if fragment & 0x1FFF or source[0] in (0, 127) or source[0] >= 224 or target[0] >= 224:
        return None
    if protocol == 1 and ("icmp" not in starts or frame[starts["icmp"]] not in ICMP_ANSWERED):
        return None
    there = len(frame) - at
    size = total if 4 * (first & 15) <= total <= there else there
    if action.resets and "tcp" in starts:
        return _ip4(0, 6, target, source, _reset(frame, starts["tcp"], at + size, target + source + b"\0\6"))
    quote = frame[at : at + min(size, MAX_QUOTE4)]
    head = pack("!BBHI", 3, action.code4, 0, 0)
    message = head[:2] + checksum(head + quote).to_bytes(2) + head[4:] + quote
    return _ip4(tos & 0x1E | 0xC0, 1, target, source, message)


def _ip4(tos: int, protocol: int, source: bytes, target: bytes, body: bytes) -> bytes:
    head = pack("!BBHHHBBH", 0x45, tos, 20 + len(body), 0, 0x4000, TTL, protocol, 0) + source + target
    return head[:10] + checksum(head).to_bytes(2) + head[12:] + body


def _reply6(packet: Packet, action: Reject, at: int) -> bytes | None:
    frame, starts = packet.frame, packet.starts
    source, target = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
    protocol = packet.members["ip6_proto"]
    if source[0] == 0xFF or target[0] == 0xFF or not any(source) or protocol in EXTENSIONS:
        return None
    if "frag" in starts and unpack_from("!H", frame, starts["frag"] + 2)[0] & 0xFFF8:
        return None
    if protocol == 58:
        kind = frame[starts["icmp6"]] if "icmp6" in starts else 0
        if kind < 128 or kind == ICMP6_REDIRECT:
            return None
    there, total = len(frame) - at, 40 + int(unpack_from("!H", frame, at + 4)[0])
    size = total if 40 < total <= there else there
    if action.resets and "tcp" in starts:
        return _ip6(6, target, source, _reset(frame, starts["tcp"], at + size, target + source + b"\0\6"))
    quote = frame[at : at + min(size, MAX_QUOTE6)]
    head = pack("!BBHI", 1, action.code6, 0, 0)
    sum_of = target + source + pack("!II", 8 + len(quote), 58) + head + quote
    return _ip6(58, target, source, head[:2] + checksum(sum_of).to_bytes(2) + head[4:] + quote)


def _ip6(protocol: int, source: bytes, target: bytes, body: bytes) -> bytes:
    return pack("!IHBB", 6 << 28, len(body), protocol, TTL) + source + target + body


def _reset(frame: bytes, at: int, end: int, pseudo: bytes) -> bytes:
    """The TCP header of the reset, for the segment at ``at``, which ends at ``end``."""
    sport, dport, sequence, acknowledged, offset, flags = unpack_from("!HHIIBB", frame, at)
    payload = max(0, end - at - 4 * (offset >> 4))
    next_one = sequence + payload + bool(flags & SYN) + bool(flags & FIN)
    numbers = (acknowledged, 0, RST) if flags & ACK else (0, next_one & 0xFFFFFFFF, RST | ACK)
    head = pack("!HHIIBBHHH", dport, sport, *numbers[:2], 0x50, numbers[2], 0, 0, 0)
    return head[:16] + checksum(pseudo + pack("!H", 20) + head).to_bytes(2) + head[18:]
