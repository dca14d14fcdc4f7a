"""Captures on disk: packets out of pcap and pcapng files, plain or compressed with gzip or zstd.

The formats are in capturefile.py; this module adds the compression, and errors that say what is wrong with which file.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from .formats import Damaged, records
from .pcapng import LINKTYPE_ETHERNET

__all__ = ["CapturedPacket", "read_captures"]

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
        try:
            yield from _read(path, progress)
        except OSError as error:  # a failed read() does not say of which file
            raise OSError(error.errno, error.strerror, error.filename or str(path)) from None


def _read(path: Path, progress: Callable[[int], None]) -> Iterator[CapturedPacket]:
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


def _packets(path: Path, stream: Any) -> Iterator[CapturedPacket]:
    try:
        for number, (linktype, time_ns, data, wire_bytes) in enumerate(records(stream), 1):
            if linktype != LINKTYPE_ETHERNET:
                raise OSError(
                    0, f"packet {number} has link type {linktype}: only Ethernet (1) can be replayed", str(path)
                )
            yield CapturedPacket(str(path), number, time_ns, data, wire_bytes)
    except (Damaged, EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise OSError(0, f"not readable as a capture: {error}", str(path)) from None
