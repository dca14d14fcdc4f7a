"""Capture files: the packets in the bytes of a pcap or pcapng file, of either byte order.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.  Where the drafts leave a choice this reader does what
libpcap does (sf-pcap.c, sf-pcapng.c), so that tcpdump and xdpkit see the same packets: it reads the modified pcap
format with longer record headers, corrects lengths that old versions wrote in the other order, and cuts a packet to the
snapshot length of its file.  Unlike libpcap it reads interfaces of different link types and sections of different byte
orders.

Damage is never taken for the end of the file: a record that is cut short or impossible raises :class:`Damaged`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = ["Damaged", "Record", "Stream", "records"]

#: Limits in bytes of a packet (libpcap's MAXIMUM_SNAPLEN) and of a block; a larger one is damage.
MAX_PACKET_BYTES, MAX_BLOCK_BYTES = 262_144, 16 << 20
#: Magic number to nanoseconds in a unit of the fraction, and the size of the header of a record.
_PCAP = {0xA1B2C3D4: (1000, 16), 0xA1B23C4D: (1, 16), 0xA1B2CD34: (1000, 24)}
#: The bits of a link type; the bits above it describe frame check sequences.
_LINKTYPE_MASK = 0x03FF_FFFF
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_END_OF_OPTIONS, _NAME, _TSRESOL, _TSOFFSET = 0, 2, 9, 14
#: An option of packets, and one of the values of its lowest two bits.
_FLAGS, _OUTBOUND = 2, 2


class Damaged(Exception):
    """The file is damaged; the message says how."""


class Record(NamedTuple):
    """A packet: its link type, nanoseconds since 1970, the bytes captured, its length on the wire, the name of the
    interface where it was captured (pcapng; empty where the file does not say), and whether it was leaving the host
    (pcapng; False where the file does not say)."""

    linktype: int
    time_ns: int
    data: bytes
    wire_bytes: int
    interface: str = ""
    outbound: bool = False


class Stream(Protocol):
    """An object to read from.  It may return fewer bytes than requested; only an empty result is the end."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes."""
        ...


def records(stream: Stream) -> Iterator[Record]:
    """The packets of a capture.  Raises Damaged if ``stream`` is no capture, and at the first damaged record."""
    read = _reader(stream)
    magic = read(4, "its first number", optional=True)
    for order in "<>":
        if magic and (number := struct.unpack(f"{order}I", magic)[0]) in _PCAP:
            return _pcap(read, order, *_PCAP[number])
    if magic == _SECTION.to_bytes(4):
        return _pcapng(read)
    raise Damaged("it is empty" if not magic else "neither pcap nor pcapng")


Read = Callable[..., bytes]


def _reader(stream: Stream) -> Read:
    """A function that reads exactly ``size`` bytes; ``what`` names them in errors.  With ``optional`` it returns no
    bytes where the file ends in front of them; otherwise an end there is damage."""

    def read(size: int, what: str, optional: bool = False) -> bytes:
        parts, left = list[bytes](), size
        while left and (part := stream.read(left)):
            parts.append(part)
            left -= len(part)
        if left and not (optional and left == size):
            raise Damaged(f"it is cut short in {what}")
        return b"".join(parts)

    return read


def _pcap(read: Read, order: str, unit_ns: int, header_bytes: int) -> Iterator[Record]:
    major, minor, snaplen, linktype = struct.unpack(f"{order}HH8xII", read(20, "the file header"))
    if (major, minor) not in ((2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (543, 0)):
        raise Damaged(f"pcap version {major}.{minor} is unknown")
    swapped = (major, minor) != (2, 3) and (major, minor) != (2, 4)
    number = 0
    while header := read(header_bytes, f"packet {number + 1}", optional=True):
        number += 1
        seconds, fraction, captured, wire = struct.unpack_from(f"{order}IIII", header)
        if swapped or (minor == 3 and captured > wire):
            captured, wire = wire, captured
        if captured > MAX_PACKET_BYTES:
            raise Damaged(f"packet {number} would have {captured:,} bytes")
        data = _cut(read(captured, f"packet {number}"), snaplen)
        yield Record(linktype & _LINKTYPE_MASK, seconds * 1_000_000_000 + fraction * unit_ns, data, wire)


def _cut(data: bytes, snaplen: int) -> bytes:
    """The first ``snaplen`` bytes of ``data``; all of it where ``snaplen`` is 0 or no positive ``int`` of C."""
    return data[:snaplen] if 0 < snaplen < 1 << 31 else data


# ---- pcapng ----


@dataclass(frozen=True, slots=True)
class _Interface:
    linktype: int
    snaplen: int
    units: int = 1_000_000  # in a second
    offset: int = 0  # seconds
    name: str = ""

    def time_ns(self, high: int, low: int) -> int:
        """The nanoseconds since 1970 of a time stamp in two halves, cut to 64 bits."""
        found = (high << 32 | low) * 1_000_000_000 // self.units + self.offset * 1_000_000_000
        return min(max(found, 0), (1 << 64) - 1)


def _pcapng(read: Read) -> Iterator[Record]:
    interfaces = list[_Interface]()
    order, number = _section(read), 0
    while head := read(8, "the header of a block", optional=True):
        if head[:4] == _SECTION.to_bytes(4):  # reads the same in both byte orders
            order, interfaces = _section(read, head[4:]), []
            continue
        kind, size = struct.unpack(f"{order}II", head)
        if kind == _INTERFACE:
            interfaces.append(_interface(order, _block(read, order, size)))
        elif kind in (_ENHANCED, _OLD_PACKET, _SIMPLE):
            number += 1
            yield _packet(order, kind, _block(read, order, size), interfaces, number)
        else:
            _block(read, order, size)


def _block(read: Read, order: str, size: int, start: int = 8) -> bytes:
    """The body of a block of ``size`` bytes, of which ``start`` are read already, without the length at the end."""
    if size % 4 or not start + 4 <= size <= MAX_BLOCK_BYTES:
        raise Damaged(f"a block would have {size:,} bytes")
    body = read(size - start, "a block")
    if struct.unpack(f"{order}I", body[-4:])[0] != size:
        raise Damaged("a block has not the same length at its start and at its end")
    return body[:-4]


def _section(read: Read, size: bytes = b"") -> str:
    """Read a section header, of which the type (and the ``size``, if that is passed) is read already.  Returns the byte
    order of the section."""
    size = size or read(4, "the section header")
    magic = read(4, "the section header")
    order = next((o for o in "<>" if struct.unpack(f"{o}I", magic)[0] == _BYTE_ORDER_MAGIC), None)
    if order is None:
        raise Damaged("a section has no byte order")
    body = _block(read, order, struct.unpack(f"{order}I", size)[0], start=12)
    if len(body) < 12:
        raise Damaged("a section header is too short")
    major, minor = struct.unpack_from(f"{order}HH", body)
    if (major, minor) not in ((1, 0), (1, 2)):
        raise Damaged(f"pcapng version {major}.{minor} is unknown")
    return order


def _interface(order: str, body: bytes) -> _Interface:
    if len(body) < 8:
        raise Damaged("an interface block is too short")
    linktype, snaplen = struct.unpack_from(f"{order}H2xI", body)
    units, offset, name, at = 1_000_000, 0, "", 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(f"{order}HH", body, at)
        value, at = body[at + 4 : at + 4 + size], at + 4 + (size + 3 & ~3)
        if code == _END_OF_OPTIONS:
            break
        if at > len(body) or size != {_TSRESOL: 1, _TSOFFSET: 8}.get(code, size):
            raise Damaged(f"option {code} of an interface cannot have {size:,} bytes")
        if code == _TSRESOL:
            base, power = (2, value[0] & 0x7F) if value[0] & 0x80 else (10, value[0])
            if power > (63 if base == 2 else 19):
                raise Damaged(f"an interface counts time in units of {base}^-{power} s")
            units = base**power
        elif code == _TSOFFSET:
            offset = struct.unpack(f"{order}q", value)[0]
        elif code == _NAME:
            name = value.rstrip(b"\0").decode(errors="replace")
    return _Interface(linktype, snaplen, units, offset, name)


def _packet(order: str, kind: int, body: bytes, interfaces: list[_Interface], number: int) -> Record:
    """A packet block of any of the three kinds."""
    head = {_ENHANCED: "IIIII", _OLD_PACKET: "H2xIIII", _SIMPLE: "I"}[kind]
    start = struct.calcsize(f"={head}")
    if len(body) < start:
        raise Damaged(f"the block of packet {number} is too short")
    values = struct.unpack_from(f"{order}{head}", body)
    at = 0 if kind == _SIMPLE else values[0]
    if at >= len(interfaces):
        raise Damaged(f"packet {number} is of interface {at}, and no block describes that")
    interface = interfaces[at]
    if kind == _SIMPLE:
        (wire,) = values
        captured, time_ns = min(wire, interface.snaplen or wire), 0
    else:
        _, high, low, captured, wire = values
        time_ns = interface.time_ns(high, low)
    if captured > min(len(body) - start, MAX_PACKET_BYTES):
        raise Damaged(f"packet {number} would have {captured:,} bytes")
    outbound = kind != _SIMPLE and _outbound(order, body, start + (captured + 3 & ~3))
    return Record(interface.linktype, time_ns, body[start : start + captured], wire, interface.name, outbound)


def _outbound(order: str, body: bytes, at: int) -> bool:
    """Whether the options of a packet, from ``at`` on, say that it was leaving (epb_flags, pack_flags).  Options that
    cannot be are no damage: the packet is whole, and libpcap does not look at them."""
    while at + 8 <= len(body):
        code, size = struct.unpack_from(f"{order}HH", body, at)
        if code == _END_OF_OPTIONS:
            break
        if code == _FLAGS and size == 4:
            return bool(struct.unpack_from(f"{order}I", body, at + 4)[0] & 3 == _OUTBOUND)
        at += 4 + (size + 3 & ~3)
    return False
