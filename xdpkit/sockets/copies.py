"""Packets that reach Python as copies: batches of them, and the reader of a program's ring buffers.

A program has up to three: ``copies`` for what TC redirects, ``mirrored`` for packets that rules mirror while they go
on, ``events`` for those that rules log.  It writes a record (time, rule, mark, verdict, packet) only while a reader is
there; see bpf/copies.h.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernel.core import check, ffi, lib
from ..kernel.loaded import LoadedProgram
from ..language.errors import FrameError
from .batch import NO_RULE, U32, U64, AnyBatch
from .header_columns import U8
from .one_thread import OneThread
from .reader import MOST_MS
from .xsk import SocketStats

__all__ = ["RING_MOST_BYTES", "CopiedBatch", "CopiesSocket", "ring_bytes"]


#: Kernel memory that a ring buffer takes at most, whatever the MTU (64 KiB on a loopback device).
RING_MOST_BYTES = 1 << 24


def ring_bytes(ring_size: int, frame_bytes: int) -> int:
    """Size of the ring buffer: ``ring_size`` (a power of two, or 0) frames, RING_MOST_BYTES at most; a power of
    two of whole pages."""
    return min(RING_MOST_BYTES, max(mmap.PAGESIZE, ring_size * (1 << (frame_bytes - 1).bit_length())))


class CopiedBatch(AnyBatch):
    """Packets of AF_PACKET or a ring buffer: like a Batch, but its frames are copies of its own and never go stale.

    Of a ring buffer also ``marks`` (uint32; 0 where no rule gave one), ``verdicts`` (uint8, the numbers of Verdict; 0
    where it was not known yet) and ``wire_lengths`` (uint32, bytes that the packet has where the copy is cut)."""

    def __init__(
        self, room: bytes, lengths: U32, timestamps: U64, rules: U32 | None = None, *, marks: U32 | None = None,
        verdicts: U8 | None = None, wire_lengths: U32 | None = None,
    ):  # fmt: skip
        rules = np.full(len(lengths), NO_RULE, np.uint32) if rules is None else rules
        marks = np.zeros(len(lengths), np.uint32) if marks is None else marks
        super().__init__(0, lengths, timestamps, rules, marks)
        self.verdicts: U8 = np.zeros(len(lengths), np.uint8) if verdicts is None else verdicts
        self.wire_lengths: U32 = lengths if wire_lengths is None else wire_lengths
        ends = np.cumsum(lengths, dtype=np.int64)
        view, self._room = memoryview(room), room
        self._frames = [view[e - n : e] for e, n in zip(ends.tolist(), lengths.tolist(), strict=True)]

    def _copy(self) -> U8:
        return np.frombuffer(self._room, np.uint8)

    @property
    def frames(self) -> Sequence[memoryview]:
        """The packets: views of a copy, which stays."""
        return self._frames


class CopiesSocket:
    """The reader of one of a program's ring buffers.  Packets are copied there from now on, until :meth:`quiet`."""

    def __init__(self, device: str, program: LoadedProgram, ring: str = "copies", *, outbound: bool = False):
        out = ffi.new("struct xk_copies **")
        check(lib.xk_copies_open(program.handle, ring.encode(), out), f"{device}: {ring}")
        self.copies: Any = out[0]
        hooks = {"tc": lib.XK_HOOK_TC, "socket": lib.XK_HOOK_SOCKET}
        self._hook = lib.XK_HOOK_XDP if program.is_xdp else hooks[program.hook]
        self.device, self.outbound, self.received = device, outbound, 0
        self.one_thread = OneThread(device)
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
        """Nothing more is copied, and REDIRECT falls back; what is in the ring buffer stays."""
        if self._final is None:
            lib.xk_copies_quiet(self.copies)

    @property
    def fds(self) -> list[int]:
        """What is readable when packets are there."""
        return [int(lib.xk_copies_fd(self.copies))]

    poll_ms = MOST_MS

    def hold(self) -> int:
        """See :meth:`xdpkit.sockets.reader.Source.hold`."""
        return self.one_thread.hold()

    def release(self, reader: int) -> None:
        """See :meth:`xdpkit.sockets.reader.Source.release`."""
        self.one_thread.release(reader)

    def receive(self, limit: int = 512) -> CopiedBatch | None:
        """Up to ``limit`` packets that are there, or None."""
        if self._final is not None:
            raise FrameError(f"{self.device}: the socket is closed")
        lengths, rules, marks, wire = (np.empty(limit, np.uint32) for _ in range(4))
        times, verdicts = np.empty(limit, np.uint64), np.empty(limit, np.uint8)
        with self.one_thread:
            n = check(
                lib.xk_copies_receive(
                    self.copies, limit, ffi.from_buffer("uint8_t[]", self._room), len(self._room),
                    ffi.from_buffer("uint32_t[]", lengths), ffi.from_buffer("uint64_t[]", times),
                    ffi.from_buffer("uint32_t[]", rules), ffi.from_buffer("uint32_t[]", marks),
                    ffi.from_buffer("uint8_t[]", verdicts), ffi.from_buffer("uint32_t[]", wire),
                ),
                self.device,
            )  # fmt: skip
            if not n:
                return None
            self.received += n
            room = bytes(memoryview(self._room)[: int(lengths[:n].sum())])
            return CopiedBatch(
                room,
                lengths[:n],
                times[:n],
                rules[:n],
                marks=marks[:n],
                verdicts=verdicts[:n],
                wire_lengths=wire[:n],
            )

    def wait(self, stop_fd: int, timeout_ms: int) -> bool:
        """See :meth:`xdpkit.sockets.reader.Source.wait`."""
        with self.one_thread:
            ready = lib.xk_copies_wait(self.copies, stop_fd, timeout_ms)
        return ready != -errno.EINTR and check(ready, f"{self.device}: waiting for packets") > 0

    def start_worker(self, sink: Any, wait: int, cpu: int, out: Any) -> int:
        """xk_worker_start_copies."""
        return int(lib.xk_worker_start_copies(self.copies, sink, 0, self._hook, self.outbound, wait, cpu, out))

    def close(self, worker_packets: int = 0) -> None:
        """Close; idempotent."""
        if self._final is None:
            with self.one_thread.after_others():
                self._final = self.stats(worker_packets)
                lib.xk_copies_close(self.copies)
