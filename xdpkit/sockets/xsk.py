"""AF_XDP sockets from Python: one :class:`Socket` per queue, or several that share a queue's FILL and COMPLETION rings.

Who owns a frame: :meth:`Socket.receive` takes packets off the RX ring, and their frames are then *held*; when the batch
ends they go back to the kernel.  :mod:`xdpkit.sockets.batch` says how long the packets of a batch can be read.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..kernel.core import check, ffi, lib
from ..language.errors import FrameError, NotSupported, ThreadError
from .batch import U32, U64, Batch, Columns
from .header_columns import U8
from .one_thread import OneThread
from .options import SocketOptions
from .reader import MOST_MS, slices
from .umem import Pool

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Packets", "Receivers", "SentTimes", "Socket", "SocketStats", "wait"]

XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP, XDP_USE_SG = 1 << 1, 1 << 2, 1 << 3, 1 << 4

#: The columns of struct xk_batch with one value for each packet: five that are always there, then the driver's
#: metadata.
_COLUMNS = ("u4", "u4", "u8", "u4", "u4", "u8", "u4", "u4")
_ALWAYS = 5

#: A socket keeps the times of this many sent packets for each entry of its TX ring until they are read.
TIMES_PER_ENTRY = 16

#: Packets to send: bytes objects, or the rows of a uint8 array as packets of one length.
Packets: TypeAlias = "Sequence[bytes] | npt.NDArray[np.uint8]"


@dataclass(frozen=True, slots=True)
class SocketStats:
    """Counts of a socket since it was opened.  ``received``: packets taken off the RX ring.  ``transmitted``: packets
    put into the TX ring.  ``kicks``: system calls that made the kernel transmit.  ``tx_times_lost``: TX timestamps that
    were dropped because those before them had not been read.  ``unread``: packets that wait in the RX ring.  The others
    are the kernel's XDP_STATISTICS.  Of ring buffers, ``lost_on``: how many of ``rx_ring_full`` each CPU lost, by its
    number."""

    received: int = 0
    rx_dropped: int = 0
    rx_invalid: int = 0
    tx_invalid: int = 0
    rx_ring_full: int = 0
    fill_empty: int = 0
    tx_empty: int = 0
    transmitted: int = 0
    kicks: int = 0
    tx_times_lost: int = 0
    unread: int = 0
    lost_on: dict[int, int] = field(default_factory=dict)

    def __add__(self, other: SocketStats) -> SocketStats:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "lost_on"}
        return SocketStats(**sums, lost_on=dict(Counter(self.lost_on) + Counter(other.lost_on)))


@dataclass(frozen=True, slots=True)
class SentTimes:
    """The times at which packets left, in the order of sending.  ``numbers``: uint64[n], the number of each packet
    among all that the socket has taken, from 0.  ``times``: uint64[n], nanoseconds of the clock that
    ``link.attachment.tx_timestamp`` names (software: CLOCK_TAI); 0 where the device reported none."""

    numbers: U64
    times: U64

    def __len__(self) -> int:
        return len(self.numbers)


class Socket:
    """An AF_XDP socket on one queue of a device of the calling thread's network namespace, with the frames of a
    pool."""

    def __init__(
        self,
        device: str,
        index: int,
        queue: int,
        pool: Pool,
        options: SocketOptions,
        *,
        zerocopy: bool,
        need_wakeup: bool = True,
        busy_poll: bool = False,
        multi_buffer: bool = False,
        metadata: bool = False,
        known: bool = False,
        tx_timestamp: bool = False,
        sibling: Socket | None = None,
    ):
        """Open the socket and bind it; OSError names the call.  ``zerocopy``: bind in zero-copy mode, otherwise in copy
        mode.  ``metadata``: the program writes time and rule in front of each packet; ``known``: also the driver's
        metadata.  ``tx_timestamp``: keep the times at which packets left.  ``sibling``: a socket of the same queue and
        pool; this socket shares its FILL and COMPLETION rings."""
        self.device: str = device
        self.queue: int = queue
        self.multi_buffer: bool = multi_buffer
        self.need_wakeup: bool = need_wakeup
        self._pool = pool
        ring = self._ring = options.ring_size
        config = {
            "fill_size": ring,
            "completion_size": ring,
            "rx_size": ring,
            "tx_size": ring if options.tx else 0,
            "bind_flags": (XDP_ZEROCOPY if zerocopy else XDP_COPY)
            | (XDP_USE_NEED_WAKEUP if need_wakeup else 0)
            | (XDP_USE_SG if multi_buffer else 0),
            "metadata": metadata,
            "busy_poll_us": options.busy_poll_us if busy_poll else 0,
            "busy_poll_budget": options.busy_poll_budget,
            "tx_times": TIMES_PER_ENTRY * ring if tx_timestamp else 0,
        }
        self._times, self._checksum = tx_timestamp, options.checksum
        self._columns = _COLUMNS if known else _COLUMNS[:_ALWAYS]
        self.xsk: Any = _open(device, index, queue, ffi.new("struct xk_xsk_config *", config), pool, sibling)
        self._buffers = ring if multi_buffer else 0  # that one packet may have
        self.one_thread: OneThread = OneThread(f"{device} queue {queue}")
        self._final: SocketStats | None = None
        self._held: deque[int] = deque()  # frames whose last view has gone
        self._views = 0

    def _got(self) -> Any:
        out = ffi.new("struct xk_xsk_got *")
        self._check(lib.xk_xsk_got(self._open(), out))
        return out

    @property
    def zerocopy(self) -> bool:
        """Whether the kernel bound the socket in zero-copy mode (XDP_OPTIONS, read back)."""
        return bool(self._got().zerocopy)

    @property
    def busy_poll(self) -> bool:
        """Whether the reader runs the driver: SO_PREFER_BUSY_POLL and SO_BUSY_POLL read back, and a NAPI to run
        (SO_INCOMING_NAPI_ID, which the kernel may learn from the first packet)."""
        got = self._got()
        return bool(got.prefer_busy_poll and got.busy_poll_us and got.napi_id)

    @property
    def fd(self) -> int:
        """The socket's file descriptor."""
        return int(lib.xk_xsk_fd(self._open()))

    def stats(self) -> SocketStats:
        """Counts so far; after close() the final ones."""
        if self._final is not None:
            return self._final
        raw = ffi.new("struct xk_xsk_stats *")
        self._check(lib.xk_xsk_stats(self.xsk, raw))
        counts: dict[str, Any] = {f.name: int(getattr(raw, f.name)) for f in fields(SocketStats) if f.name != "lost_on"}
        return SocketStats(**counts)

    def frames(self) -> dict[str, int]:
        """Where the frames of its pool are; see :meth:`Pool.frames`."""
        self._open()
        return self._pool.frames()

    def receive(self, limit: int = 512) -> Batch | None:
        """A batch of at most ``limit`` packets that wait in the RX ring, or None.  End it before the next call.
        :class:`xdpkit.FrameError` when the socket is closed, :class:`xdpkit.ThreadError` while another thread uses
        it."""
        self._open()
        self.reclaim()
        room = max(limit, self._buffers)
        addr, size = np.empty(room, np.uint64), np.empty(room, np.uint32)
        columns: list[Any] = [np.empty(limit, kind) for kind in self._columns]
        pointers = [_pointer(x) for x in (addr, size, *columns)]
        out = ffi.new("struct xk_batch *", [limit, room, *pointers])
        with self.one_thread:
            n, b = self._check(lib.xk_xsk_receive(self._open(), out)), out.buffers
        if not n:
            return None
        return Batch(self, Columns(addr[:b], size[:b], *[column[:n] for column in columns]))

    def transmit(self, packets: Packets, *, checksum: tuple[int, int] | None = None, timestamp: bool = False) -> int:
        """Copy ``packets`` (bytes objects, or the rows of a uint8[n, bytes] array) into free frames and put them into
        the TX ring.  Returns how many were taken, counted from the first.  It never waits: send the rest when
        :meth:`complete` has freed frames.

        ``checksum`` (start, offset): the device or the kernel sums each packet from byte ``start`` on and stores the
        Internet checksum ``offset`` bytes behind that byte, where the packet must hold the sum of its pseudo-header
        (linux/if_xdp.h, XDP_TXMD_FLAGS_CHECKSUM).  ``timestamp``: keep the time at which each packet leaves
        (XDP_TXMD_FLAGS_TIMESTAMP), for :meth:`sent_times`.

        Raises NotSupported for a checksum without ``SocketOptions(checksum=True)``, and for a timestamp where the
        socket has no TX timestamps; OSError EMSGSIZE or EINVAL for a packet that is too long or too short, and then
        none is sent; ValueError for an array that is not uint8 of 2 dimensions; :class:`xdpkit.FrameError` when the
        socket is closed; :class:`xdpkit.ThreadError` while another thread uses it."""
        if checksum is not None and not self._checksum:
            raise NotSupported("a checksum by the device", "SocketOptions(checksum=True)")
        if timestamp:
            self._keeps_times()
        places, keep = _places(packets)
        start, offset = checksum or (0, 0)
        ask = ffi.new("struct xk_tx_ask *", [checksum is not None, timestamp, start, offset])
        with self.one_thread:
            n = self._check(lib.xk_xsk_transmit(self._open(), places, ask))
        del keep
        return n

    def complete(self) -> int:
        """Let the kernel transmit what is in the TX ring, and take frames off the COMPLETION ring.  Returns their
        number.  FrameError when the socket is closed, ThreadError while another thread uses it, OSError where the
        kernel refuses."""
        with self.one_thread:
            return self._check(lib.xk_xsk_complete(self._open()))

    def sent_times(self) -> SentTimes:
        """The times at which packets left that were sent with ``timestamp=True``, for those that have left since the
        last call.  It calls :meth:`complete` first.  At most TIMES_PER_ENTRY times the size of the TX ring are kept
        until they are read; more are dropped and counted (``stats().tx_times_lost``), and their numbers are missing
        here.  NotSupported where the socket has no TX timestamps; other errors as for :meth:`complete`."""
        self._keeps_times()
        self.complete()
        room = TIMES_PER_ENTRY * self._ring
        numbers, times = np.empty(room, np.uint64), np.empty(room, np.uint64)
        with self.one_thread:
            n = self._check(lib.xk_xsk_times(self._open(), _pointer(numbers), _pointer(times), room))
        numbers, times = numbers[:n].copy(), times[:n].copy()
        if n and (numbers[1:] < numbers[:-1]).any():  # completed in another order
            order = np.argsort(numbers)
            numbers, times = numbers[order], times[order]
        return SentTimes(numbers, times)

    def _keeps_times(self) -> None:
        if not self._times:
            raise NotSupported("TX timestamps", "SocketOptions(tx_timestamp=...); link.attachment says what came of it")

    def view(self, addr: int, length: int) -> memoryview:
        """A read-only view of a held frame, which is given back when the last buffer made from it is gone."""
        self._open()
        self._views += 1
        self._pool.umem.views += 1
        pointer = ffi.gc(self._pool.umem.memory + addr, lambda _, addr=addr: self._view_gone(addr))
        return memoryview(ffi.buffer(pointer, length)).toreadonly()

    def copy(self, addr: U64, size: U32) -> U8:
        """The bytes of held frames, one behind the other."""
        self._open()
        umem = self._pool.umem
        memory = np.frombuffer(ffi.buffer(umem.memory, umem.frames * umem.chunk_size), np.uint8)
        parts = [memory[start : start + n] for start, n in zip(addr.tolist(), size.tolist(), strict=True)]
        return np.concatenate(parts) if parts else np.empty(0, np.uint8)

    def _view_gone(self, addr: int) -> None:
        self._views -= 1
        self._pool.umem.unview()
        if self._final is None:
            self._held.append(addr)

    def recycle(self, addr: U64) -> None:
        """Return held frames to the kernel, also those whose last view has gone meanwhile.  After close() it does
        nothing."""
        if self._final is not None:
            return
        with self.one_thread.after_others():
            if self._held:
                gone = [self._held.popleft() for _ in range(len(self._held))]
                addr = np.concatenate([addr, np.array(gone, np.uint64)])
            addr = np.ascontiguousarray(addr)
            if self._final is None:
                self._check(lib.xk_xsk_recycle(self.xsk, _pointer(addr), len(addr)))

    def reclaim(self) -> bool:
        """Return the frames to the kernel whose last view has gone since their batch ended.  False if views of other
        frames are still alive."""
        if self._held:
            self.recycle(np.empty(0, np.uint64))
        return not self._views

    def close(self) -> None:
        """Close the socket; idempotent.  The UMEM stays mapped while views of it are alive."""
        if self._final is not None:
            return
        with self.one_thread.after_others():
            try:
                self._final = self.stats()
            except OSError as error:  # the device is gone
                self._final = SocketStats()
                if error.errno not in (errno.ENODEV, errno.ENETDOWN):
                    raise
            finally:
                lib.xk_xsk_close(self.xsk)

    def _open(self) -> Any:
        if self._final is not None:
            raise FrameError(f"{self.device} queue {self.queue}: the socket is closed")
        return self.xsk

    def _check(self, result: int) -> int:
        return check(result, f"{self.device} queue {self.queue}")


def _open(device: str, index: int, queue: int, config: Any, pool: Pool, sibling: Socket | None) -> Any:
    """Call xk_xsk_open().  On EBUSY try again for a second, because a queue is free only some time after its last
    socket was closed."""
    out = ffi.new("struct xk_xsk **")
    deadline = time.monotonic() + 1
    while True:
        result = lib.xk_xsk_open(index, queue, config, pool.handle, sibling.xsk if sibling else ffi.NULL, out)
        if result != -errno.EBUSY or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    hints = {
        errno.EBUSY: "another AF_XDP socket has this queue: stop its owner or choose other queues",
        errno.EPERM: "AF_XDP needs CAP_NET_RAW: run as root",
        errno.EOPNOTSUPP: "the driver has no zero-copy for AF_XDP here, or none for packets of several buffers: "
        "bind=copy works",
        errno.ENOBUFS: "UMEM counts against the locked-memory limit: raise 'ulimit -l' or use fewer frames",
        errno.ENETDOWN: f"bring the device up: ip link set dev {device} up",
    }
    check(result, f"{device} queue {queue}", hints.get(-result, ""))
    return out[0]


def _places(packets: Packets) -> tuple[Any, Any]:
    """A struct xk_packets *, and the Python objects that it points into, which must stay alive as long as it."""
    if isinstance(packets, np.ndarray):
        if packets.ndim != 2 or packets.dtype != np.uint8:
            raise ValueError(f"packets are rows of a uint8 array of 2 dimensions, not {packets.dtype}{packets.shape}")
        rows = packets if packets.strides[1] == 1 else np.ascontiguousarray(packets)
        n, length = rows.shape
        start = ffi.cast("uint8_t *", rows.ctypes.data)
        return ffi.new("struct xk_packets *", [n, ffi.NULL, ffi.NULL, start, rows.strides[0], length]), rows
    keep = [ffi.from_buffer(p) for p in packets]
    each = ffi.new("uint8_t *[]", [ffi.cast("uint8_t *", p) for p in keep])
    lengths = ffi.new("uint32_t[]", [len(p) for p in packets])
    return ffi.new("struct xk_packets *", [len(keep), each, lengths]), (keep, each, lengths)


def wait(sockets: Sequence[Socket], timeout: float | None) -> bool:
    """Wait until one of ``sockets`` has packets; False after ``timeout`` seconds (None: wait for ever).
    OSError(ENODEV) when a device is gone."""
    source = Receivers(sockets)
    return any(source.wait(-1, min(left, source.poll_ms)) for left in slices(timeout))


class Receivers:
    """AF_XDP sockets that are read together, each in its turn: a :class:`xdpkit.sockets.reader.Source`."""

    def __init__(self, sockets: Sequence[Socket]):
        self._sockets, self._next = list(sockets), 0

    @property
    def fds(self) -> list[int]:
        """The sockets."""
        return [socket.fd for socket in self._sockets]

    @property
    def poll_ms(self) -> int:
        """The longest wait; short while views of frames are alive.  When the last view of a frame goes, in another
        thread or in the loop that waits, the kernel may need that frame."""
        nothing_viewed = [socket.reclaim() for socket in self._sockets]
        return MOST_MS if all(nothing_viewed) else 10

    def hold(self) -> int:
        """See :meth:`xdpkit.sockets.reader.Source.hold`."""
        try:
            return max(socket.one_thread.hold() for socket in self._sockets)
        except ThreadError:
            self.release(threading.get_ident())
            raise

    def release(self, reader: int) -> None:
        """See :meth:`xdpkit.sockets.reader.Source.release`."""
        for socket in self._sockets:
            socket.one_thread.release(reader)

    def receive(self, limit: int) -> Batch | None:
        """A batch of the next socket that has packets, or None where none has."""
        for _ in self._sockets:
            socket = self._sockets[self._next]
            self._next = (self._next + 1) % len(self._sockets)
            batch = socket.receive(limit)
            if batch is not None:
                return batch
        return None

    def wait(self, stop_fd: int, timeout_ms: int) -> bool:
        """See :meth:`xdpkit.sockets.reader.Source.wait`."""
        handles = ffi.new("struct xk_xsk *[]", [socket.xsk for socket in self._sockets])
        with ExitStack() as calls:
            for socket in self._sockets:
                calls.enter_context(socket.one_thread)
            result = lib.xk_xsk_wait(handles, len(self._sockets), stop_fd, timeout_ms)
        return result != -errno.EINTR and check(result, f"{self._sockets[0].device}: waiting for packets") > 0


def _pointer(array: npt.NDArray[Any]) -> Any:
    return ffi.cast(f"uint{8 * array.itemsize}_t *", ffi.from_buffer(array))
