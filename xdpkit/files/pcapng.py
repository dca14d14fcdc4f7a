"""pcapng blocks around the packets: section header, interface descriptions, interface statistics.

The C sink writes the Enhanced Packet Blocks between them.  Format: draft-ietf-opsawg-pcapng; host byte order.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass

__all__ = ["InterfaceStatistics", "interface", "packet", "section", "statistics"]

LINKTYPE_ETHERNET = 1


@dataclass(frozen=True, slots=True)
class InterfaceStatistics:
    """Packet counts for an Interface Statistics Block: ``received`` by the hook, ``dropped`` by the device before the
    hook, ``accepted`` by the filter, ``os_dropped`` between filter and user space, ``delivered`` to user space."""

    received: int
    dropped: int
    accepted: int
    os_dropped: int
    delivered: int


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + size + body + size


def section(application: str) -> bytes:
    """Section Header Block (4.1) of unknown length."""
    options = _option(3, f"{platform.system()} {platform.release()}".encode()) + _option(4, application.encode())
    return _block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1) + options + _option(0, b""))


def interface(name: str, *, description: str = "", filter_text: str = "", snaplen: int = 0) -> bytes:
    """Interface Description Block (4.2) for Ethernet with timestamps in nanoseconds."""
    options = _option(2, name.encode(errors="replace"))  # UTF-8, which the name of a file need not be
    if description:
        options += _option(3, description.encode())
    options += _option(9, b"\x09")
    if filter_text:
        options += _option(11, b"\0" + filter_text.encode())
    return _block(1, struct.pack("=HHI", LINKTYPE_ETHERNET, 0, snaplen) + options + _option(0, b""))


def packet(interface_id: int, time_ns: int, data: bytes, wire_bytes: int, *, outbound: bool | None = None) -> bytes:
    """Enhanced Packet Block (4.3); ``outbound``: whether the packet left the host, in epb_flags (None: not known)."""
    head = struct.pack("=IIIII", interface_id, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), wire_bytes)
    options = b"" if outbound is None else _option(2, struct.pack("=I", 2 if outbound else 1)) + _option(0, b"")
    return _block(6, head + data + b"\0" * (-len(data) % 4) + options)


def statistics(interface_id: int, time_ns: int, start_ns: int, counts: InterfaceStatistics) -> bytes:
    """Interface Statistics Block (4.6); times are CLOCK_REALTIME nanoseconds."""

    def time(ns: int) -> bytes:
        return struct.pack("=II", ns >> 32, ns & 0xFFFFFFFF)

    options = _option(2, time(start_ns)) + _option(3, time(time_ns))
    values = (counts.received, counts.dropped, counts.accepted, counts.os_dropped, counts.delivered)
    for code, value in zip(range(4, 9), values, strict=True):
        options += _option(code, struct.pack("=Q", max(0, value)))
    return _block(5, struct.pack("=I", interface_id) + time(time_ns) + options + _option(0, b""))
