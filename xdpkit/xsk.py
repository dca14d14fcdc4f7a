"""AF_XDP sockets from Python: one :class:`Socket` per queue, and the batches that Python drains from it.

Who owns a frame: :meth:`Socket.receive` takes packets off the RX ring and their frames are *held*; when the batch ends
they go back to the kernel.  ``batch.frames[i]`` is a read-only view of the frame itself.  After the batch a plain view
raises ValueError; a buffer made from one (``numpy.frombuffer(view)``, a slice) keeps its frame held until the buffer is
gone.  So a stale view never shows another packet; what is kept too long shows as ``held`` frames and, when FILL runs
dry, as FILL-empty drops in the ledger.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from .core import check, ffi, lib
from .errors import FrameError

__all__ = ["Batch", "Frames", "Socket", "SocketOptions", "SocketStats"]

XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP = 1 << 1, 1 << 2, 1 << 3
XDP_OPTIONS_ZEROCOPY = 1
#: XDP_PACKET_HEADROOM: what the kernel keeps free in front of a received packet in each frame.
KERNEL_HEADROOM = 256
#: Ethernet header and two VLAN tags: what a frame has on top of the MTU.
L2_BYTES = 14 + 2 * 4
NO_RULE = 0xFFFFFFFF

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """Sizes of one socket.  ``ring_size``: entries of the FILL, RX, TX and COMPLETION rings, a power of two;
    ``frames``: frames of the UMEM (default twice the ring size); ``chunk_size``: bytes per frame, 2048 or 4096
    (default: the smallest that takes the device's MTU); ``headroom``: bytes kept free before each packet on top of the
    kernel's 256; ``tx``: also a TX ring; ``debug``: check every frame's owner and overwrite frames that are given back
    (default: the environment variable XDPKIT_DEBUG)."""

    ring_size: int = 2048
    frames: int | None = None
    chunk_size: int | None = None
    headroom: int = 0
    tx: bool = False
    debug: bool | None = None

    def __post_init__(self) -> None:
        if self.ring_size < 1 or self.ring_size & (self.ring_size - 1):
            raise ValueError(f"ring_size {self.ring_size}: a power of two is wanted")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames {self.frames}: at least 1")
        if self.chunk_size not in (None, 2048, 4096):
            raise ValueError(f"chunk_size {self.chunk_size}: 2048 or 4096")

    def chunk_for(self, frame_bytes: int) -> int:
        """The chunk size for packets of up to ``frame_bytes``; ValueError if no frame takes them."""
        for size in (self.chunk_size,) if self.chunk_size else (2048, 4096):
            if frame_bytes <= size - KERNEL_HEADROOM - self.headroom:
                return size
        largest = (self.chunk_size or 4096) - KERNEL_HEADROOM - self.headroom
        raise ValueError(f"packets of {frame_bytes} bytes do not fit a frame, which takes {largest}")


@dataclass(frozen=True, slots=True)
class SocketStats:
    """Counts of a socket since it was opened: ``received`` packets taken off the RX ring; the kernel's
    XDP_STATISTICS; ``unread`` packets that wait in the RX ring."""

    received: int = 0
    rx_dropped: int = 0
    rx_invalid: int = 0
    tx_invalid: int = 0
    rx_ring_full: int = 0
    fill_empty: int = 0
    tx_empty: int = 0
    unread: int = 0

    def __add__(self, other: SocketStats) -> SocketStats:
        return SocketStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Socket:
    """An AF_XDP socket with its own UMEM on one queue of a device of the calling thread's network namespace."""

    def __init__(
        self,
        device: str,
        index: int,
        queue: int,
        *,
        zerocopy: bool,
        options: SocketOptions,
        chunk_size: int,
        metadata: bool = False,
    ):
        """Open and bind; OSError names the call.  ``zerocopy`` False binds in copy mode."""
        self.device, self.queue, self.chunk_size = device, queue, chunk_size
        debug = bool(os.environ.get("XDPKIT_DEBUG")) if options.debug is None else options.debug
        ring, frames = options.ring_size, options.frames or 2 * options.ring_size
        config = ffi.new(
            "struct xk_xsk_config *",
            {
                "frames": frames,
                "chunk_size": chunk_size,
                "headroom": options.headroom,
                "fill_size": ring,
                "completion_size": ring,
                "rx_size": ring,
                "tx_size": ring if options.tx else 0,
                "bind_flags": XDP_USE_NEED_WAKEUP | (XDP_ZEROCOPY if zerocopy else XDP_COPY),
                "check": debug,
                "metadata": metadata,
            },
        )
        self.xsk = _open(device, index, queue, config)
        self._final: SocketStats | None = None
        self._held: deque[int] = deque()  # frames whose last view has gone
        self._views = 0
        size = ffi.new("size_t *")
        self._umem: Any = lib.xk_xsk_umem(self.xsk, size)
        self._umem_size = int(size[0])

    @property
    def zerocopy(self) -> bool:
        """What the kernel gave: XDP_OPTIONS read back."""
        flags = ffi.new("uint32_t *")
        check(lib.xk_xsk_options(self._open(), flags), f"{self.device} queue {self.queue}")
        return bool(flags[0] & XDP_OPTIONS_ZEROCOPY)

    @property
    def fd(self) -> int:
        """The socket's file descriptor."""
        return int(lib.xk_xsk_fd(self._open()))

    def stats(self) -> SocketStats:
        """Counts so far; after close() the final ones."""
        if self._final is not None:
            return self._final
        raw, frames = ffi.new("struct xk_xsk_stats *"), ffi.new("struct xk_frames *")
        check(lib.xk_xsk_stats(self.xsk, raw), f"{self.device} queue {self.queue}")
        lib.xk_xsk_frames(self.xsk, frames)
        counts = {f.name: int(getattr(raw, f.name)) for f in fields(SocketStats) if f.name != "unread"}
        return SocketStats(**counts, unread=int(frames.rx))

    def frames(self) -> dict[str, int]:
        """Where the frames are: free, fill, rx, held, tx, completion; they sum to ``frames``, or FrameError."""
        raw = ffi.new("struct xk_frames *")
        lib.xk_xsk_frames(self._open(), raw)
        where = {name: int(getattr(raw, name)) for name in ("free", "fill", "rx", "held", "tx", "completion")}
        if sum(where.values()) != raw.frames:
            raise FrameError(f"{self.device} queue {self.queue}: {where} do not sum to {raw.frames} frames")
        return {**where, "frames": int(raw.frames)}

    def receive(self, limit: int = 512) -> Batch | None:
        """Up to ``limit`` packets that wait in the RX ring, or None.  End the batch before the next one."""
        self._open()
        self.reclaim()
        addr, lengths = np.empty(limit, np.uint64), np.empty(limit, np.uint32)
        times, rules = np.empty(limit, np.uint64), np.empty(limit, np.uint32)
        n = check(
            lib.xk_xsk_receive(
                self._open(), limit, _array("uint64_t", addr), _array("uint32_t", lengths),
                _array("uint64_t", times), _array("uint32_t", rules),
            ),
            f"{self.device} queue {self.queue}",
        )  # fmt: skip
        return Batch(self, addr[:n], lengths[:n], times[:n], rules[:n]) if n else None

    def transmit(self, packets: Sequence[bytes]) -> int:
        """Copy ``packets`` into free frames and hand them to the TX ring; how many it took, from the first on."""
        keep = [ffi.from_buffer(p) for p in packets]
        pointers = ffi.new("uint8_t *[]", [ffi.cast("uint8_t *", p) for p in keep])
        lengths = ffi.new("uint32_t[]", [len(p) for p in packets])
        return check(
            lib.xk_xsk_transmit(self._open(), pointers, lengths, len(packets)), f"{self.device} queue {self.queue}"
        )

    def complete(self) -> int:
        """Collect transmitted frames from the COMPLETION ring; how many."""
        return check(lib.xk_xsk_complete(self._open()), f"{self.device} queue {self.queue}")

    def view(self, addr: int, length: int) -> memoryview:
        """A read-only view of a held frame, which is given back when the last buffer made from it is gone."""
        self._open()
        self._views += 1
        pointer = ffi.gc(self._umem + addr, lambda _, addr=addr: self._view_gone(addr))
        return memoryview(ffi.buffer(pointer, length)).toreadonly()

    def _view_gone(self, addr: int) -> None:
        self._views -= 1
        if self._final is None:
            self._held.append(addr)
        elif not self._views:
            self._free()

    def recycle(self, addr: U64) -> None:
        """Give held frames back, and those whose last view has gone meanwhile; nothing happens after close()."""
        if self._final is not None:
            return
        if self._held:
            gone = [self._held.popleft() for _ in range(len(self._held))]
            addr = np.concatenate([addr, np.array(gone, np.uint64)])
        addr = np.ascontiguousarray(addr)
        check(lib.xk_xsk_recycle(self.xsk, _array("uint64_t", addr), len(addr)), f"{self.device} queue {self.queue}")

    def reclaim(self) -> bool:
        """Give back the frames whose last view has gone since their batch ended; False if others are still viewed."""
        if self._held:
            self.recycle(np.empty(0, np.uint64))
        return not self._views

    def close(self) -> None:
        """Close the socket; idempotent.  The UMEM stays mapped while views of it are alive."""
        if self._final is not None:
            return
        try:
            self._final = self.stats()
        except OSError as error:  # the device is gone
            self._final = SocketStats()
            if error.errno not in (errno.ENODEV, errno.ENETDOWN):
                raise
        finally:
            lib.xk_xsk_shutdown(self.xsk)
            if not self._views:
                self._free()

    def _free(self) -> None:
        lib.xk_xsk_close(self.xsk)

    def _open(self) -> Any:
        if self._final is not None:
            raise FrameError(f"{self.device} queue {self.queue}: the socket is closed")
        return self.xsk


def _open(device: str, index: int, queue: int, config: Any) -> Any:
    """xk_xsk_open, trying again for a second on EBUSY alone: a queue is free only some time after its last socket."""
    out = ffi.new("struct xk_xsk **")
    deadline = time.monotonic() + 1
    while True:
        result = lib.xk_xsk_open(index, queue, config, out)
        if result != -errno.EBUSY or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    hints = {
        errno.EBUSY: "another AF_XDP socket has this queue: stop its owner or choose other queues",
        errno.EPERM: "AF_XDP needs CAP_NET_RAW: run as root",
        errno.EOPNOTSUPP: "the driver has no zero-copy for AF_XDP here: bind=copy works",
        errno.ENOBUFS: "UMEM counts against the locked-memory limit: raise 'ulimit -l' or use fewer frames",
        errno.ENETDOWN: f"bring the device up: ip link set dev {device} up",
    }
    check(result, f"{device} queue {queue}", hints.get(-result, ""))
    return out[0]


class Frames(Sequence[memoryview]):
    """The packets of a batch as read-only views of the UMEM, made when asked for; stale after the batch ends."""

    def __init__(self, batch: Batch):
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._batch.view(index)


class Batch:
    """Packets received together from one queue.

    ``lengths`` uint32[n] bytes; ``timestamps`` uint64[n] nanoseconds of CLOCK_REALTIME: when the program ran if the
    link was attached with ``timestamps=True``, else when the batch was received; ``rules`` uint32[n] index of the rule
    in ``pipeline.outcomes`` (NO_RULE without metadata).  The columns are copies and stay; ``frames`` does not.
    """

    def __init__(self, socket: Socket, addr: U64, lengths: U32, timestamps: U64, rules: U32):
        self.queue = socket.queue
        self.lengths, self.timestamps, self.rules = lengths, timestamps, rules
        self._socket, self._addr = socket, addr
        self._views: dict[int, memoryview] = {}
        self._ended = False

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def frames(self) -> Frames:
        """The packets themselves, without a copy."""
        return Frames(self)

    def view(self, index: int) -> memoryview:
        """Packet ``index`` as a read-only memoryview of its frame."""
        if self._ended:
            raise FrameError("the batch has ended: copy what you need of a frame (bytes(frame)) while it lasts")
        index = index if index >= 0 else len(self) + index
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        if index not in self._views:
            self._views[index] = self._socket.view(int(self._addr[index]), int(self.lengths[index]))
        return self._views[index]

    def end(self) -> None:
        """Give the frames back; idempotent.  Frames of which a derived buffer is alive follow when it goes."""
        if self._ended:
            return
        self._ended = True
        rest = self._addr
        if self._views:
            rest = np.delete(rest, list(self._views))
            while self._views:
                with suppress(BufferError):  # an array stands on it: its frame stays held until that goes
                    self._views.popitem()[1].release()
        self._socket.recycle(rest)

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def wait(sockets: Sequence[Socket], timeout: float | None) -> bool:
    """Until one of ``sockets`` has packets; False after ``timeout`` seconds (None: never).  OSError(ENODEV) when a
    device is gone."""
    handles = ffi.new("struct xk_xsk *[]", [s.xsk for s in sockets])
    for left in slices(timeout):
        # a frame whose last view goes in another thread meanwhile may be the one that the kernel waits for
        nothing_viewed = [s.reclaim() for s in sockets]
        result = lib.xk_xsk_wait(handles, len(sockets), left if all(nothing_viewed) else min(left, 10))
        if result != -errno.EINTR and check(result, f"{sockets[0].device}: waiting for packets"):
            return True
    return False


def slices(timeout: float | None, most_ms: int = 200) -> Iterator[int]:
    """Milliseconds for each poll() of a wait of ``timeout`` seconds (None: for ever), at least one: not all at once,
    because a device that goes away wakes nobody."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = most_ms if deadline is None else math.ceil(min(most_ms, 1000 * (deadline - time.monotonic())))
        yield max(0, left)
        if deadline is not None and time.monotonic() >= deadline:
            return


def batches(sockets: Sequence[Socket], timeout: float | None, limit: int) -> Iterator[Batch]:
    """Batches of ``sockets`` in turn, until ``timeout`` seconds pass without a packet."""
    while True:
        idle = True
        for socket in sockets:
            batch = socket.receive(limit)
            if batch is not None:
                idle = False
                with batch:
                    yield batch
        if idle and not wait(sockets, timeout):
            return


def _array(kind: str, array: npt.NDArray[Any]) -> Any:
    return ffi.cast(f"{kind} *", ffi.from_buffer(array))
