"""Captures on disk: packets out of pcap and pcapng files, plain or compressed with gzip or zstd.

The formats are in formats.py, the compression is in unpack.py; this module adds errors that say what is wrong with
which file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .formats import Damaged, Stream, records
from .pcapng import LINKTYPE_ETHERNET
from .unpack import DAMAGE, unpack

__all__ = ["CapturedPacket", "Skipped", "read_captures"]


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """A packet of a capture.  ``number``: its place in the file, from 1.  ``data``: the captured bytes.
    ``wire_bytes``: its length on the wire, which is more than len(data) if the capture cut it.  ``time_ns``:
    nanoseconds since 1970.  ``interface``: where it was captured, empty where the file does not say (only pcapng
    does).  ``outbound``: the file says that it was leaving the host (only pcapng can)."""

    file: str
    number: int
    time_ns: int
    data: bytes
    wire_bytes: int
    interface: str = ""
    outbound: bool = False

    @property
    def cut(self) -> bool:
        """Whether the capture holds only the beginning of the packet."""
        return self.wire_bytes > len(self.data)


@dataclass(slots=True)
class Skipped:
    """What could not be read of some captures.  ``packets``: the number of packets of other link types than Ethernet,
    by file and number of the link type.  ``errors``: one for each damaged file, which was read up to the damage."""

    packets: Counter[tuple[str, int]] = field(default_factory=Counter)
    errors: list[OSError] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.packets or self.errors)

    def lines(self) -> list[str]:
        """A line for each file and reason."""
        found = [f"{error.filename}: {error.strerror}" for error in self.errors]
        for (file, linktype), count in self.packets.items():
            found.append(
                f"{file}: {count:,} packet{'s' * (count > 1)} of link type {linktype} skipped: "
                "only Ethernet (1) can be replayed"
            )
        return found


def read_captures(
    paths: list[Path], progress: Callable[[int], None] = lambda _: None, skipped: Skipped | None = None
) -> Iterator[CapturedPacket]:
    """The packets of ``paths``, one file after the other; "-" is standard input.  ``progress`` is called with the
    number of file bytes that were read since the call before.

    With ``skipped``, what cannot be read is noted there and reading continues.  Without it, OSError names the file that
    is not a capture, that holds other packets than Ethernet, or that ends in the middle of a packet."""
    for path in paths:
        name = "standard input" if str(path) == "-" else str(path)
        try:
            yield from _read(path, name, progress, skipped)
        except OSError as error:  # a failed read() does not say of which file
            named = OSError(error.errno, error.strerror or str(error), error.filename or name)
            if skipped is None:
                raise named from None
            skipped.errors.append(named)


def _read(path: Path, name: str, progress: Callable[[int], None], skipped: Skipped | None) -> Iterator[CapturedPacket]:
    with ExitStack() as stack:
        raw = stack.enter_context(open(0 if str(path) == "-" else path, "rb", closefd=str(path) != "-"))
        yield from _packets(name, unpack(raw, progress), skipped)


def _packets(name: str, stream: Stream, skipped: Skipped | None) -> Iterator[CapturedPacket]:
    try:
        for number, (linktype, time_ns, data, wire_bytes, interface, outbound) in enumerate(records(stream), 1):
            if linktype == LINKTYPE_ETHERNET:
                yield CapturedPacket(name, number, time_ns, data, wire_bytes, interface, outbound)
            elif skipped is None:
                said = f"packet {number} has link type {linktype}: only Ethernet (1) can be replayed"
                raise OSError(0, said, name)
            else:
                skipped.packets[name, linktype] += 1
    except (Damaged, *DAMAGE) as error:
        raise OSError(0, f"not readable as a capture: {error}", name) from None
