"""Template frames for the generator (pure)."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import NamedTuple

__all__ = ["Template", "udp_frame"]


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
    ip = b"\x45\0" + (size - 14).to_bytes(2, "big") + b"\0\0\0\0\x40\x11\0\0" + IPv4Address(src).packed
    ip += IPv4Address(dst).packed
    total = sum(int.from_bytes(ip[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + ((total + (total >> 16)) & 0xFFFF ^ 0xFFFF).to_bytes(2, "big") + ip[12:]
    udp = b"".join(word.to_bytes(2, "big") for word in (sport, dport, size - 34, 0))
    macs = bytes.fromhex(dst_mac.replace(":", "") + src_mac.replace(":", ""))
    return Template(macs + b"\x08\0" + ip + udp + bytes(size - 42), 34, 42)
