"""Packets that reach Python as copies: batches of them, and the reader of a TC program's ring buffer.

The program writes a record (time, rule, packet) into the ring buffer only while a reader is there; see bpf/copies.h.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .batch import NO_RULE, U32, U64
from .core import check, ffi, lib
from .errors import FrameError
from .program import Program
from .xsk import SocketStats, slices

__all__ = ["RING_MOST_BYTES", "CopiedBatch", "CopiesSocket", "ring_bytes"]


#: Kernel memory that a ring buffer takes at most, whatever the MTU (64 KiB on a loopback device).
RING_MOST_BYTES = 1 << 24


def ring_bytes(ring_size: int, frame_bytes: int) -> int:
    """Size of the ring buffer: ``ring_size`` (a power of two, or 0) frames, RING_MOST_BYTES at most; a power of
    two of whole pages."""
    return min(RING_MOST_BYTES, max(mmap.PAGESIZE, ring_size * (1 << (frame_bytes - 1).bit_length())))


class CopiedBatch:
    """Packets of AF_PACKET or a ring buffer: like a Batch, but its frames are copies of its own and never go stale."""

    def __init__(self, room: bytes, lengths: U32, timestamps: U64, rules: U32 | None = None):
        self.queue = 0
        self.lengths, self.timestamps = lengths, timestamps
        self.rules = np.full(len(lengths), NO_RULE, np.uint32) if rules is None else rules
        self.marks = np.zeros(len(lengths), np.uint32)
        ends = np.cumsum(lengths, dtype=np.int64)
        view = memoryview(room)
        self.frames: Sequence[memoryview] = [
            view[e - n : e] for e, n in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.lengths)


class CopiesSocket:
    """The reader of a program's ring buffer.  REDIRECT copies packets there from now on, until :meth:`quiet`."""

    def __init__(self, device: str, program: Program, *, outbound: bool):
        out = ffi.new("struct xk_copies **")
        check(lib.xk_copies_open(program.handle, out), device)
        self.copies: Any = out[0]
        self.device, self.outbound, self.received = device, outbound, 0
        self._final: SocketStats | None = None
        self._room = bytearray(1 << 20)

    def stats(self, worker_packets: int = 0) -> SocketStats:
        """As for an AF_XDP socket: RX ring full is what found no room in the ring buffer."""
        if self._final is not None:
            return self._final
        written, lost = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        check(lib.xk_copies_stats(self.copies, written, lost), self.device)
        received = self.received + worker_packets
        return SocketStats(received=received, rx_ring_full=lost[0], unread=max(0, int(written[0]) - received))

    def quiet(self) -> None:
        """REDIRECT falls back from here on; what is in the ring buffer stays."""
        if self._final is None:
            lib.xk_copies_quiet(self.copies)

    def batches(self, timeout: float | None, limit: int) -> Iterator[CopiedBatch]:
        """Batches until ``timeout`` seconds pass without a packet."""
        while True:
            lengths, rules = np.empty(limit, np.uint32), np.empty(limit, np.uint32)
            times = np.empty(limit, np.uint64)
            n = check(
                lib.xk_copies_receive(
                    self.copies, limit, ffi.from_buffer("uint8_t[]", self._room), len(self._room),
                    ffi.from_buffer("uint32_t[]", lengths), ffi.from_buffer("uint64_t[]", times),
                    ffi.from_buffer("uint32_t[]", rules),
                ),
                self.device,
            )  # fmt: skip
            if n:
                self.received += n
                room = bytes(memoryview(self._room)[: int(lengths[:n].sum())])
                yield CopiedBatch(room, lengths[:n], times[:n], rules[:n])
                if self._final is not None:
                    raise FrameError(f"{self.device}: the socket is closed")
                continue
            for left in slices(timeout):
                ready = lib.xk_copies_wait(self.copies, left)
                if ready != -errno.EINTR and check(ready, f"{self.device}: waiting for packets"):
                    break
            else:
                return

    def start_worker(self, sink: Any, wait: int, cpu: int, out: Any) -> int:
        """xk_worker_start_copies."""
        return int(lib.xk_worker_start_copies(self.copies, sink, 0, self.outbound, wait, cpu, out))

    def close(self, worker_packets: int = 0) -> None:
        """Close; idempotent."""
        if self._final is None:
            self._final = self.stats(worker_packets)
            lib.xk_copies_close(self.copies)
