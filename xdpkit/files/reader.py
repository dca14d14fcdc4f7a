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
    """``number`` from 1 in its file; ``data`` as captured; ``wire_bytes`` its length on the wire, more than len(data)
    if it was cut; ``time_ns`` nanoseconds since 1970."""

    file: str
    number: int
    time_ns: int
    data: bytes
    wire_bytes: int

    @property
    def cut(self) -> bool:
        """The capture holds only the beginning."""
        return self.wire_bytes > len(self.data)


@dataclass(slots=True)
class Skipped:
    """What of some captures was not read: ``packets`` of link types other than Ethernet, by file and number of the link
    type; ``errors``: what is wrong with files, each of which was read as far as it could be."""

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
    """The packets of ``paths`` one file after the other; "-" is standard input.  ``progress`` gets the number of file
    bytes read since its last call.

    ``skipped`` notes what cannot be read, and the rest is read all the same.  Without it, OSError names the file that
    is not a capture, that is not of Ethernet, or that ends in the middle of a packet."""
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
        for number, (linktype, time_ns, data, wire_bytes) in enumerate(records(stream), 1):
            if linktype == LINKTYPE_ETHERNET:
                yield CapturedPacket(name, number, time_ns, data, wire_bytes)
            elif skipped is None:
                said = f"packet {number} has link type {linktype}: only Ethernet (1) can be replayed"
                raise OSError(0, said, name)
            else:
                skipped.packets[name, linktype] += 1
    except (Damaged, *DAMAGE) as error:
        raise OSError(0, f"not readable as a capture: {error}", name) from None
