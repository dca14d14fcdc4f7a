"""The headers of a batch's packets as numpy columns, found as the header walk of the pipelines finds them.

The rules are those of :mod:`xdpkit.meaning.walk` for the outer headers, applied to all packets of a batch at once: up
to two VLAN tags, IPv6 extension headers, no transport header in fragments with an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..language.fields import HEADERS
from ..meaning.walk import AH, EXTENSIONS, FRAGMENT, MAX_EXTENSIONS, TAGS

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["HeaderColumns", "header_columns"]

U8: TypeAlias = "npt.NDArray[np.uint8]"
U16: TypeAlias = "npt.NDArray[np.uint16]"
U32: TypeAlias = "npt.NDArray[np.uint32]"
I64: TypeAlias = "npt.NDArray[np.int64]"
Flags: TypeAlias = "npt.NDArray[np.bool_]"

_IP, _IP6 = 0x0800, 0x86DD
#: Transport headers that begin with a source and a destination port, with the bytes that must be there.
_WITH_PORTS = ((6, HEADERS["tcp"].size), (17, HEADERS["udp"].size), (132, HEADERS["sctp"].size))


@dataclass(frozen=True, slots=True)
class HeaderColumns:
    """The fields of the outer headers of n packets.  Where a header is missing or cut short its columns are 0.

    ``ethertype``: uint16[n], the EtherType behind the Ethernet header and up to two VLAN tags.  ``ip_version``:
    uint8[n], 4 or 6, or 0 for a packet that is neither; it says which of the addresses are valid.  ``src4``, ``dst4``:
    uint32[n], IPv4 addresses as numbers.  ``src6``, ``dst6``: uint8[n, 16], IPv6 addresses in network order.
    ``protocol``: uint8[n], the IP protocol, behind the extension headers of IPv6 (0 can also be hop-by-hop options:
    check ``ip_version``).  ``has_ports``: bool[n], whether the whole TCP, UDP or SCTP header is there.  ``sport``,
    ``dport``: uint16[n], its ports."""

    ethertype: U16
    ip_version: U8
    protocol: U8
    src4: U32
    dst4: U32
    src6: U8
    dst6: U8
    has_ports: Flags
    sport: U16
    dport: U16

    def __len__(self) -> int:
        return len(self.ethertype)


class _Bytes:
    """Numbers in network order out of packets that lie one behind the other; 0 where ``there`` is False."""

    def __init__(self, data: U8):
        self._data = data

    def __call__(self, at: I64, there: Flags, size: int = 1) -> I64:
        found, places = np.zeros(len(at), np.int64), at[there]
        for i in range(size):
            found[there] = found[there] << 8 | self._data[places + i]
        return found

    def rows(self, at: I64, there: Flags, size: int) -> U8:
        """``size`` bytes each."""
        found = np.zeros((len(at), size), np.uint8)
        found[there] = self._data[at[there, None] + np.arange(size)]
        return found


def header_columns(data: U8, offsets: I64) -> HeaderColumns:
    """The columns of packets: packet i is ``data[offsets[i]:offsets[i + 1]]``."""
    number, end = _Bytes(data), offsets[1:]
    at, ethertype = _link(number, offsets[:-1], end)
    first = number(at, at < end)
    is4 = (ethertype == _IP) & (at + HEADERS["ip"].size <= end) & (first >> 4 == 4) & (first & 15 >= 5)
    is6 = (ethertype == _IP6) & (at + HEADERS["ip6"].size <= end) & (first >> 4 == 6)
    transport, behind6, proto6 = _extensions(number, at, end, is6)
    whole4 = is4 & (number(at + 6, is4, 2) & 0x1FFF == 0)
    behind = np.where(is4, at + 4 * (first & 15), transport)
    protocol = np.where(is4, number(at + 9, is4), proto6)
    has_ports = np.zeros(len(at), np.bool_)
    for value, size in _WITH_PORTS:
        has_ports |= (whole4 | behind6) & (protocol == value) & (behind + size <= end)
    return HeaderColumns(
        ethertype=ethertype.astype(np.uint16),
        ip_version=(4 * is4 + 6 * is6).astype(np.uint8),
        protocol=protocol.astype(np.uint8),
        src4=number(at + 12, is4, 4).astype(np.uint32),
        dst4=number(at + 16, is4, 4).astype(np.uint32),
        src6=number.rows(at + 8, is6, 16),
        dst6=number.rows(at + 24, is6, 16),
        has_ports=has_ports,
        sport=number(behind, has_ports, 2).astype(np.uint16),
        dport=number(behind + 2, has_ports, 2).astype(np.uint16),
    )


def _link(number: _Bytes, start: I64, end: I64) -> tuple[I64, I64]:
    """Where Ethernet and its tags end, and the EtherType of what follows; 0 where nothing does."""
    at = start + HEADERS["eth"].size
    ethertype = number(start + 12, at <= end, 2)
    for _ in ("vlan", "vlan2"):
        tagged = np.isin(ethertype, TAGS)
        whole = tagged & (at + 4 <= end)
        ethertype = np.where(tagged, number(at + 2, whole, 2), ethertype)
        at = at + 4 * whole
    return at, ethertype


def _extensions(number: _Bytes, at: I64, end: I64, is6: Flags) -> tuple[I64, Flags, I64]:
    """Behind IPv6 and its extension headers: where that is, whether a transport header may be there, and the number
    that the last header passed names."""
    proto, there = number(at + 6, is6), is6
    at = at + HEADERS["ip6"].size
    for _ in range(MAX_EXTENSIONS):
        extension = there & np.isin(proto, tuple(EXTENSIONS))
        size = np.zeros(len(at), np.int64)
        for kind, name in EXTENSIONS.items():
            size[proto == kind] = HEADERS[name].size
        passed = extension & (at + size <= end)
        length, is_fragment, is_ah = number(at + 1, passed), proto == FRAGMENT, proto == AH
        later = passed & is_fragment & (number(at + 2, passed & is_fragment, 2) & 0xFFF8 != 0)
        there = there & ~(extension & ~passed) & ~later
        proto = np.where(passed, number(at, passed), proto)
        step = np.where(is_fragment, 8, np.where(is_ah, (length + 2) * 4, (length + 1) * 8))
        at = at + step * (passed & ~later)
    return at, there & ~np.isin(proto, tuple(EXTENSIONS)), proto
