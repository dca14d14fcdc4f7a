"""Compressed files: gzip (RFC 1952) and Zstandard (RFC 8878), with a limit on what a small file may unpack to.

A file of a few kilobytes can unpack to gigabytes.  Captures and lists of addresses become 3 to 50 times as long.  A
file that becomes more than MAX_RATIO times as long is refused before it fills the memory or takes hours.  A user who
has such a file can unpack it with another tool: files that are not compressed have no such limit.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable

import zstandard

from .formats import Stream

__all__ = ["DAMAGE", "unpack"]


class TooMuch(Exception):
    """The file unpacks to more than the limit."""


#: The exceptions that reading raises where a file is damaged, cut short, or unpacks to too much.
DAMAGE = (TooMuch, EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
#: Every file may unpack to ALWAYS_BYTES bytes, and a longer file to MAX_RATIO times its own length.
ALWAYS_BYTES, MAX_RATIO = 16 << 20, 200
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: Bytes of a Zstandard file that are unpacked at once: 4 of them can become 128 KiB.
_PIECE = 256
#: Progress is reported after this many bytes, because each report draws a line.
_REPORTED_BYTES = 1 << 16


def unpack(raw: Stream, progress: Callable[[int], None] = lambda _: None) -> Stream:
    """``raw``, a file or a pipe read from its start, as a stream of what it holds, unpacked if it is compressed.

    ``progress`` is called with the number of bytes that were read since the call before.  Reading raises one of DAMAGE
    where the file is damaged, cut short, or unpacks to too much.
    """
    source = _Source(raw, progress)
    if source.start.startswith(_GZIP):
        return _Bounded(gzip.GzipFile(fileobj=source), source)  # type: ignore[call-overload]
    if source.start == _ZSTD:
        return _Bounded(_Zstandard(source), source)
    return source


class _Source:
    """The file itself.  It counts the bytes that are read, and returns the first bytes, which were read to recognise
    the format, a second time."""

    def __init__(self, raw: Stream, progress: Callable[[int], None]) -> None:
        self.taken, self._reported, self._raw, self._progress = 0, 0, raw, progress
        self.start = b""
        while len(self.start) < len(_ZSTD) and (part := self._read(len(_ZSTD) - len(self.start))):
            self.start += part
        self._again = self.start

    def _read(self, size: int) -> bytes:
        data = self._raw.read(size)
        self.taken += len(data)
        if not data or self.taken - self._reported > _REPORTED_BYTES:
            self._progress(self.taken - self._reported)
            self._reported = self.taken
        return data

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end."""
        if self._again:
            data, self._again = self._again[:size], self._again[size:]
            return data
        return self._read(size)


class _Zstandard:
    """The content of all frames of a Zstandard file.  Unlike zstandard's own reader it notices a frame that is cut
    short."""

    def __init__(self, source: Stream) -> None:
        self._source, self._left, self._packed = source, io.BytesIO(), b""
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._fresh = True

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end."""
        while not (data := self._left.read(size)):
            packed = self._packed or self._source.read(_PIECE)
            self._packed = b""
            if not packed:
                if not self._fresh:
                    raise EOFError("it is cut short")
                return b""
            self._left, self._fresh = io.BytesIO(self._frame.decompress(packed)), False
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame, self._fresh = zstandard.ZstdDecompressor().decompressobj(), True
        return data


class _Bounded:
    """The content of a compressed file, up to the limit."""

    def __init__(self, stream: Stream, source: _Source) -> None:
        self._stream, self._source, self._unpacked = stream, source, 0

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end."""
        data = self._stream.read(size)
        self._unpacked += len(data)
        if self._unpacked > ALWAYS_BYTES + MAX_RATIO * self._source.taken:
            said = f"it unpacks to more than {MAX_RATIO} times its size"
            raise TooMuch(f"{said}: unpack it with another tool if that is right")
        return data
