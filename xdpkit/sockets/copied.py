"""Packets that are copied out of a ring of the kernel: batches of them, and what both kinds of such sockets share."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernel.core import check, ffi
from ..language.errors import FrameError
from .batch import NO_RULE, U32, U64, AnyBatch
from .header_columns import U8
from .one_thread import OneThread
from .reader import MOST_MS
from .xsk import SocketStats

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CopiedBatch", "CopyingSocket", "buffer"]

#: Bytes that a batch has room for.
_ROOM_BYTES = 1 << 20


class CopiedBatch(AnyBatch):
    """Packets of AF_PACKET or a ring buffer: like a Batch, but its frames are copies of its own and never go stale.

    Of a ring buffer also ``marks`` (uint32; 0 where no rule gave one), ``verdicts`` (uint8, the numbers of Verdict; 0
    where it was not known yet), ``queues`` (uint32, the RX queue of each packet) and ``wire_lengths`` (uint32, bytes
    that the packet has where the copy is cut)."""

    def __init__(
        self, room: bytes, lengths: U32, timestamps: U64, rules: U32 | None = None, *, marks: U32 | None = None,
        verdicts: U8 | None = None, wire_lengths: U32 | None = None, queues: U32 | None = None,
    ):  # fmt: skip
        rules = np.full(len(lengths), NO_RULE, np.uint32) if rules is None else rules
        marks = np.zeros(len(lengths), np.uint32) if marks is None else marks
        super().__init__(0, lengths, timestamps, rules, marks)
        self.verdicts: U8 = np.zeros(len(lengths), np.uint8) if verdicts is None else verdicts
        self.wire_lengths: U32 = lengths if wire_lengths is None else wire_lengths
        self.queues: U32 = np.zeros(len(lengths), np.uint32) if queues is None else queues
        ends = np.cumsum(lengths, dtype=np.int64)
        view, self._room = memoryview(room), room
        self._frames = [view[e - n : e] for e, n in zip(ends.tolist(), lengths.tolist(), strict=True)]

    def _copy(self) -> U8:
        return np.frombuffer(self._room, np.uint8)

    @property
    def frames(self) -> Sequence[memoryview]:
        """The packets: views of a copy, which stays."""
        return self._frames


def buffer(array: NDArray[Any] | bytearray) -> Any:
    """``array`` as C sees it."""
    kind = f"{array.dtype.name}_t[]" if isinstance(array, np.ndarray) else "uint8_t[]"
    return ffi.from_buffer(kind, array)


class CopyingSocket(ABC):
    """A source for :mod:`xdpkit.sockets.reader` whose packets are copied out, and for C workers."""

    poll_ms = MOST_MS

    def __init__(self, device: str):
        self.device, self.received = device, 0
        self.one_thread = OneThread(device)
        self._final: SocketStats | None = None
        self._room = bytearray(_ROOM_BYTES)

    # ---- what the kinds do ----

    @property
    @abstractmethod
    def fds(self) -> list[int]:
        """What is readable when packets are there."""

    @abstractmethod
    def quiet(self) -> None:
        """Nothing more is copied; what is in the ring stays."""

    @abstractmethod
    def start_worker(self, sink: Any, wait: int, cpu: int, out: Any) -> int:
        """Start the one worker that drains it; 0 or -errno."""

    @abstractmethod
    def _columns(self, limit: int) -> Mapping[str, NDArray[Any]]:
        """Columns of a batch besides lengths and times, by the names that CopiedBatch gives them."""

    @abstractmethod
    def _copy(self, limit: int, lengths: U32, times: U64, columns: Mapping[str, NDArray[Any]]) -> int:
        """Copy a batch into the room and the columns; how many packets, or -errno."""

    @abstractmethod
    def _poll(self, stop_fd: int, timeout_ms: int) -> int:
        """1 when packets are there, 0 after ``timeout_ms`` or when ``stop_fd`` is readable, or -errno."""

    @abstractmethod
    def _count(self, received: int) -> SocketStats:
        """What the kernel counted, where ``received`` packets were taken off the ring."""

    @abstractmethod
    def _close(self) -> None: ...

    # ---- what they share ----

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
        lengths, times, columns = np.empty(limit, np.uint32), np.empty(limit, np.uint64), self._columns(limit)
        with self.one_thread:
            n = check(self._copy(limit, lengths, times, columns), self.device)
            if not n:
                return None
            self.received += n
            room = bytes(memoryview(self._room)[: int(lengths[:n].sum())])
        return CopiedBatch(room, lengths[:n], times[:n], **{name: column[:n] for name, column in columns.items()})

    def wait(self, stop_fd: int, timeout_ms: int) -> bool:
        """See :meth:`xdpkit.sockets.reader.Source.wait`."""
        with self.one_thread:
            ready = self._poll(stop_fd, timeout_ms)
        return ready != -errno.EINTR and check(ready, f"{self.device}: waiting for packets") > 0

    def stats(self, worker_packets: int = 0) -> SocketStats:
        """As for an AF_XDP socket; ``worker_packets``: what workers that run have received."""
        return self._final if self._final is not None else self._count(self.received + worker_packets)

    def close(self, worker_packets: int = 0) -> None:
        """Close; idempotent."""
        if self._final is None:
            with self.one_thread.after_others():
                self._final = self.stats(worker_packets)
                self._close()
