"""Captures on disk: packets out of pcap and pcapng files, plain or compressed with gzip or zstd.

Reading is scapy's; this module adds the compression, nanosecond times, and errors that say what is wrong with a file.
"""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard
from scapy.error import Scapy_Exception
from scapy.utils import RawPcapReader

from .pcapng import LINKTYPE_ETHERNET

__all__ = ["CapturedPacket", "read_captures"]

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)  # what is wrong with a file is said here, once

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


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


def read_captures(paths: list[Path], progress: Callable[[int], None] = lambda _: None) -> Iterator[CapturedPacket]:
    """The packets of ``paths`` one file after the other.  ``progress`` gets the number of file bytes read since its
    last call.  OSError names the file that is no capture, not of Ethernet, or ends in mid-packet."""
    for path in paths:
        with ExitStack() as stack:
            raw = stack.enter_context(open(path, "rb"))
            stream = stack.enter_context(_plain(raw))
            before = 0
            for packet in _packets(path, stream):
                now = raw.tell()
                if now != before:
                    progress(now - before)
                    before = now
                yield packet
            progress(os.fstat(raw.fileno()).st_size - before)


def _plain(raw: IO[bytes]) -> Any:
    magic = raw.read(4)
    raw.seek(0)
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw)
    if magic == _ZSTD:
        return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return raw


class _Whole:
    """A stream whose read(n) returns n bytes or those up to the end, never fewer: scapy counts on it."""

    def __init__(self, stream: Any, name: str):
        self._stream, self.name = stream, name
        self.cut = False  # the last read ended early, but not at once

    def read(self, size: int) -> bytes:
        parts, left = [], size
        while left > 0 and (part := self._stream.read(left)):
            parts.append(part)
            left -= len(part)
        self.cut = 0 < left < size
        return b"".join(parts)

    def close(self) -> None:
        self._stream.close()


def _packets(path: Path, stream: Any) -> Iterator[CapturedPacket]:
    whole = _Whole(stream, str(path))
    try:
        reader: Any = RawPcapReader(whole)  # type: ignore[arg-type]  # it finds out which of the formats this is
        for number, (data, meta) in enumerate(reader, 1):
            linktype = getattr(meta, "linktype", None)
            linktype = reader.linktype if linktype is None else linktype
            if linktype != LINKTYPE_ETHERNET:
                raise OSError(
                    0, f"packet {number} has link type {linktype}: only Ethernet (1) can be replayed", str(path)
                )
            if getattr(meta, "caplen", len(data)) != len(data):
                raise EOFError(f"packet {number} is cut short")
            yield CapturedPacket(str(path), number, _time_ns(meta, reader), data, meta.wirelen or len(data))
        if whole.cut:
            raise EOFError("it ends in the middle of a packet")
    except (Scapy_Exception, EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise OSError(0, f"not readable as a capture: {error or 'it is cut short'}", str(path)) from None


def _time_ns(meta: Any, reader: Any) -> int:
    if hasattr(meta, "tshigh"):
        if meta.tshigh is None:
            return 0
        return int(((meta.tshigh << 32) | meta.tslow) * 1_000_000_000 // meta.tsresol)
    return int(meta.sec * 1_000_000_000 + meta.usec * (1 if reader.nano else 1000))
