"""Template frames for the generator (pure)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import NamedTuple

__all__ = ["Template", "checksum", "ipv4_frame", "udp_frame"]


class Template(NamedTuple):
    """A frame, and where in it are the UDP source port and the payload."""

    frame: bytes
    sport_offset: int
    payload_offset: int


def udp_frame(
    size: int = 64,
    *,
    src_mac: str,
    dst_mac: str,
    src: str = "198.18.0.1",
    dst: str = "198.19.0.1",
    sport: int = 1024,
    dport: int = 9,
) -> Template:
    """An IPv4 UDP frame of `size` bytes, FCS not counted, with a payload of zeros; addresses of RFC 2544 (C.2.2).

    The IP header checksum is right (RFC 1071); the UDP checksum is 0, none (RFC 768), so that port and payload may be
    rewritten.  ValueError for a size that cannot hold the headers (42 bytes) or a length field (65549).
    """
    if not 42 <= size <= 65549:
        raise ValueError(f"a UDP frame is 42 to 65549 bytes long, not {size}")
    udp = struct.pack("!4H", sport, dport, size - 34, 0) + bytes(size - 42)
    return Template(ipv4_frame(17, udp, src_mac=src_mac, dst_mac=dst_mac, src=src, dst=dst), 34, 42)


def ipv4_frame(protocol: int, payload: bytes, *, src_mac: str, dst_mac: str, src: str, dst: str) -> bytes:
    """An Ethernet frame with an IPv4 header (RFC 791, without options) in front of ``payload``."""
    ends = IPv4Address(src).packed + IPv4Address(dst).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    head = head[:10] + checksum(head + ends).to_bytes(2, "big")
    macs = bytes.fromhex(dst_mac.replace(":", "") + src_mac.replace(":", ""))
    return macs + b"\x08\0" + head + ends + payload


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
