"""Batches: packets that Python received together from one queue.

``batch.frames[i]`` is a read-only view of the frame itself.  When the batch has ended, a plain view raises ValueError;
a buffer that was made from a view (``numpy.frombuffer(view)``, a slice) keeps its frame until the buffer is gone.  So a
view never shows another packet.  Frames that are kept too long are counted as ``held``, and when the FILL ring runs
empty the ledger shows the loss as ``FILL empty``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import numpy as np

from ..language.errors import FrameError, NotSupported
from ..language.pipeline import Pipeline
from .header_columns import I64, U8, HeaderColumns, header_columns

if TYPE_CHECKING:
    import numpy.typing as npt
    from scapy.packet import Packet as ScapyPacket

__all__ = ["NO_RULE", "NO_VLAN", "U32", "U64", "AnyBatch", "Batch", "Columns", "Frames"]

NO_RULE = 0xFFFFFFFF
NO_VLAN = 0xFFFFFFFF

U32: TypeAlias = "npt.NDArray[np.uint32]"
U64: TypeAlias = "npt.NDArray[np.uint64]"


@dataclass(frozen=True, slots=True)
class Columns:
    """struct xk_batch as arrays.  One value for each buffer: ``addr`` and ``size``.  One for each packet: ``first``
    (the index of its first buffer), ``lengths``, ``timestamps``, ``rules`` and ``marks``; and the driver's metadata
    ``device_times``, ``hashes`` and ``vlans``, None where the program does not write it."""

    addr: U64
    size: U32
    first: U32
    lengths: U32
    timestamps: U64
    rules: U32
    marks: U32
    device_times: U64 | None = None
    hashes: U32 | None = None
    vlans: U32 | None = None


class Owner(Protocol):
    """The socket that received a batch and takes its frames back."""

    queue: int

    def view(self, addr: int, size: int) -> memoryview: ...

    def copy(self, addr: U64, size: U32) -> U8: ...

    def recycle(self, addr: U64) -> None: ...


class AnyBatch:
    """Packets that were received together; a context manager that ends the batch.

    The columns are copies and stay valid after the batch.  ``lengths``: uint32[n], bytes of each packet.
    ``timestamps``: uint64[n], nanoseconds of CLOCK_REALTIME.  ``rules``: uint32[n], index of the rule in
    ``pipeline.outcomes``; NO_RULE (0xFFFFFFFF) where it is not known.  ``marks``: uint32[n], the mark of each packet; 0
    without one.  ``queue``: the RX queue; 0 where packets of all queues are read together.  ``frames``: the packets as
    read-only views."""

    def __init__(self, queue: int, lengths: U32, timestamps: U64, rules: U32, marks: U32):
        self.queue: int = queue
        self.lengths: U32 = lengths
        self.timestamps: U64 = timestamps
        self.rules: U32 = rules
        self.marks: U32 = marks
        self._pipeline: Pipeline | None = None  # whose rules these are
        self._data: U8 | None = None
        self._headers: HeaderColumns | None = None

    _device_times: U64 | None = None
    _hashes: U32 | None = None
    _vlans: U32 | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        number = len(self)
        return f"<{type(self).__name__} of {number} packet{'s' * (number != 1)}, queue {self.queue}>"

    @property
    def frames(self) -> Sequence[memoryview]:
        """The packets, as read-only views."""
        raise NotImplementedError

    def view(self, index: int) -> memoryview:
        """Packet ``index`` as a read-only view."""
        return self.frames[index]

    def buffers(self, index: int) -> list[memoryview]:
        """Packet ``index`` as read-only views of its buffers, one after the other."""
        return [self.view(index)]

    def end(self) -> None:
        """Return the frames to the kernel; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def offsets(self) -> I64:
        """int64[n + 1]: where each packet begins in :attr:`data`; packet i is ``data[offsets[i]:offsets[i + 1]]``."""
        return np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))

    @property
    def data(self) -> U8:
        """uint8[bytes]: all packets one behind the other.  It is a copy that is made at the first use and stays valid
        after the batch.  :class:`xdpkit.FrameError` if the first use is after the end of the batch."""
        if self._data is None:
            self._data = self._copy()
        return self._data

    @property
    def headers(self) -> HeaderColumns:
        """The headers of the packets as columns, which are made at the first use and stay valid.  FrameError as for
        :attr:`data`."""
        if self._headers is None:
            self._headers = header_columns(self.data, self.offsets)
        return self._headers

    @property
    def rule_names(self) -> list[str]:
        """The names of the rules that took the packets, in the pipeline that was attached when the batch was received.
        An empty string where the rule is not known (NO_RULE: attach with ``timestamps=True``)."""
        names = [rule.name for rule in self._pipeline.outcomes] if self._pipeline is not None else []
        return [names[rule] if rule < len(names) else "" for rule in self.rules.tolist()]

    def to_scapy(self) -> list[ScapyPacket]:
        """The packets as Scapy packets with their times; these are copies.  FrameError when the batch has ended,
        NotSupported where Scapy is not installed."""
        try:
            from scapy.layers import inet, inet6, l2  # noqa: F401  (layers that Ether finds)
        except ImportError as error:
            raise NotSupported("packets as Scapy's", f"pip install xdpkit[scapy] ({error})") from None
        packets: list[ScapyPacket] = []
        for frame, time_ns in zip(self.frames, self.timestamps.tolist(), strict=True):
            packets.append(l2.Ether(bytes(frame)))
            packets[-1].time = time_ns / 1e9
        return packets

    def _copy(self) -> U8:
        """All packets, one behind the other."""
        raise NotImplementedError

    @property
    def device_times(self) -> U64:
        """uint64[n]: when the device received each packet, in nanoseconds of its clock; 0 where it does not report
        it."""
        return np.zeros(len(self), np.uint64) if self._device_times is None else self._device_times

    @property
    def hashes(self) -> U32:
        """uint32[n]: the RSS hash of each packet; 0 where there is none."""
        return np.zeros(len(self), np.uint32) if self._hashes is None else self._hashes

    @property
    def vlans(self) -> U32:
        """uint32[n]: the TCI (16 bits: priority, DEI, identifier) of the VLAN tag that the device took out of each
        packet; NO_VLAN (0xFFFFFFFF) where there was none."""
        return np.full(len(self), NO_VLAN, np.uint32) if self._vlans is None else self._vlans


class Frames(Sequence[memoryview]):
    """The packets of a batch as read-only views of the UMEM.  A view is made when it is used, and is valid until the
    batch ends."""

    def __init__(self, batch: Batch):
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._batch.view(index)


class Batch(AnyBatch):
    """Packets received together from one queue.

    ``lengths`` uint32[n] bytes of the whole packet; ``timestamps`` uint64[n] nanoseconds of CLOCK_REALTIME: when the
    program ran if the link was attached with ``timestamps=True``, else when the batch was received; ``rules`` uint32[n]
    index of the rule in ``pipeline.outcomes`` (NO_RULE without metadata); ``marks`` uint32[n] what the pipeline marked
    the packet with (0 without metadata).  ``device_times``, ``hashes``, ``vlans``: what the driver knows of each
    packet, where ``SocketOptions.rx_metadata`` requests it and ``link.attachment.rx_metadata`` lists it.  The columns
    are copies and stay valid after the batch; ``frames`` does not."""

    def __init__(self, socket: Owner, columns: Columns):
        super().__init__(socket.queue, columns.lengths, columns.timestamps, columns.rules, columns.marks)
        if columns.device_times is not None:
            self._device_times, self._hashes, self._vlans = columns.device_times, columns.hashes, columns.vlans
        self._socket, self._addr, self._size, self._first = socket, columns.addr, columns.size, columns.first
        self._views: dict[int, memoryview] = {}  # by buffer
        self._joined: dict[int, memoryview] = {}  # by packet
        self._ended = False

    @property
    def frames(self) -> Frames:
        """The packets without a copy; only a packet that takes several frames is copied, to join them."""
        return Frames(self)

    def view(self, index: int) -> memoryview:
        """Packet ``index`` as a read-only memoryview of its frame, or of a copy where it has several buffers."""
        index = self._index(index)
        first, end = self._span(index)
        if end - first == 1:
            return self._buffer(first)
        if index not in self._joined:
            self._joined[index] = memoryview(b"".join(self.buffers(index)))
        return self._joined[index]

    def _copy(self) -> U8:
        self._alive()
        return self._socket.copy(self._addr, self._size)

    def buffers(self, index: int) -> list[memoryview]:
        """Packet ``index`` as read-only memoryviews of its frames, one after the other, without a copy."""
        return [self._buffer(at) for at in range(*self._span(self._index(index)))]

    def _alive(self) -> None:
        if self._ended:
            raise FrameError("the batch has ended: copy what you need of a frame (bytes(frame)) while it lasts")

    def _index(self, index: int) -> int:
        self._alive()
        index = index if index >= 0 else len(self) + index
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        return index

    def _span(self, index: int) -> tuple[int, int]:
        end = self._first[index + 1] if index + 1 < len(self._first) else len(self._addr)
        return int(self._first[index]), int(end)

    def _buffer(self, at: int) -> memoryview:
        if at not in self._views:
            self._views[at] = self._socket.view(int(self._addr[at]), int(self._size[at]))
        return self._views[at]

    def end(self) -> None:
        """Return the frames to the kernel; idempotent.  A frame with a buffer that was made from its view follows when
        the buffer is gone."""
        if self._ended:
            return
        self._ended = True
        rest = self._addr
        if self._views:
            rest = np.delete(rest, list(self._views))
        for view in (*self._joined.values(), *self._views.values()):
            with suppress(BufferError):  # an array uses the view, so its frame stays held until the array is gone
                view.release()
        self._joined.clear()
        self._views.clear()
        self._socket.recycle(rest)
