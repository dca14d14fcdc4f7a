"""The sockets of a link, all queues together: drained by Python (:meth:`Sockets.batches`) or by C workers
(:meth:`Sockets.count`, :meth:`Sockets.write`), one way at a time.

Teardown is the reverse of set-up and loses nothing: take the sockets out of the XSKMAP (REDIRECT falls back from here
on), wait for the packets that were under way, drain, close.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from . import pcapng, xsk
from .copies import CopiedBatch, CopiesSocket
from .core import check, ffi, lib
from .errors import FrameError
from .got import TC_MODES
from .xsk import SocketStats

if TYPE_CHECKING:
    from .attach import Link

__all__ = ["AnyBatch", "CopiedBatch", "Sockets", "WorkerStats", "Workers", "open_capture"]

_TPACKET_V3 = 2
_PACKET_BLOCK_BYTES, _PACKET_BLOCKS, _PACKET_RETIRE_MS = 1 << 20, 16, 10


class AnyBatch(Protocol):
    """What every batch has; see :class:`xdpkit.xsk.Batch`."""

    queue: int
    lengths: xsk.U32
    timestamps: xsk.U64
    rules: xsk.U32

    def __len__(self) -> int: ...

    @property
    def frames(self) -> Sequence[memoryview]:
        """The packets."""


class PacketSocket:
    """The AF_PACKET socket of a link in af_packet mode: a TPACKET_V3 ring behind the pipeline as socket filter."""

    def __init__(self, device: str, index: int, filter_fd: int):
        config = ffi.new(
            "struct xk_packet_config *",
            {
                "kind": _TPACKET_V3,
                "filter_prog_fd": filter_fd,
                "block_size": _PACKET_BLOCK_BYTES,
                "blocks": _PACKET_BLOCKS,
                "retire_ms": _PACKET_RETIRE_MS,
            },
        )
        out = ffi.new("struct xk_packet **")
        check(lib.xk_packet_open(index, config, out), device, "AF_PACKET needs CAP_NET_RAW")
        self.packet: Any = out[0]
        self.device, self.received = device, 0
        self._quiet = False
        self._final: SocketStats | None = None
        self._room = bytearray(1 << 20)

    def stats(self, worker_packets: int = 0) -> SocketStats:
        """As for an AF_XDP socket: RX ring full is the kernel's tp_drops."""
        if self._final is not None:
            return self._final
        passed, drops = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        check(lib.xk_packet_stats(self.packet, passed, drops), self.device)
        received = self.received + worker_packets
        return SocketStats(
            received=received, rx_ring_full=drops[0], unread=max(0, int(passed[0]) - int(drops[0]) - received)
        )

    def quiet(self) -> None:
        """Let nothing more in; what is in the ring stays."""
        if not self._quiet:
            check(lib.xk_packet_quiet(self.packet), self.device)
            self._quiet = True

    def batches(self, timeout: float | None, limit: int) -> Iterator[CopiedBatch]:
        """Batches until ``timeout`` seconds pass without a packet."""
        while True:
            lengths, times = np.empty(limit, np.uint32), np.empty(limit, np.uint64)
            n = check(
                lib.xk_packet_receive(
                    self.packet, limit, ffi.from_buffer("uint8_t[]", self._room), len(self._room),
                    ffi.from_buffer("uint32_t[]", lengths), ffi.from_buffer("uint64_t[]", times),
                ),
                self.device,
            )  # fmt: skip
            if n:
                self.received += n
                yield CopiedBatch(bytes(self._room[: int(lengths[:n].sum())]), lengths[:n], times[:n])
                if self._final is not None:
                    raise FrameError(f"{self.device}: the socket is closed")
                continue
            for left in xsk.slices(timeout):
                ready = lib.xk_packet_wait(self.packet, left)
                if ready != -errno.EINTR and check(ready, f"{self.device}: waiting for packets"):
                    break
            else:
                return

    def start_worker(self, sink: Any, cpu: int, out: Any) -> int:
        """xk_worker_start_packet."""
        return int(lib.xk_worker_start_packet(self.packet, sink, 0, cpu, out))

    def close(self, worker_packets: int = 0) -> None:
        """Close; idempotent."""
        if self._final is None:
            self._final = self.stats(worker_packets)
            lib.xk_packet_close(self.packet)


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Totals of the workers: packets and bytes received, written by the sink, refused by it; batches; sleeps in poll();
    the error (errno) that ended one, or 0."""

    packets: int = 0
    bytes: int = 0
    written: int = 0
    refused: int = 0
    batches: int = 0
    waits: int = 0
    error: int = 0

    def __add__(self, other: WorkerStats) -> WorkerStats:
        return WorkerStats(
            self.packets + other.packets,
            self.bytes + other.bytes,
            self.written + other.written,
            self.refused + other.refused,
            self.batches + other.batches,
            self.waits + other.waits,
            self.error or other.error,
        )


class Sockets:
    """Open sockets on every queue of the link; made by ``link.sockets()``."""

    def __init__(self, link: Link):
        self.link = link
        self.xsks: list[xsk.Socket] = []
        self.packet: PacketSocket | CopiesSocket | None = None  # instead of xsks
        self._workers: Workers | None = None
        self.sink: tuple[str, int, int] = ("none", 0, 0)  # name, written, refused
        self._in_map: list[int] = []
        self._closed = False
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        link, device = self.link, self.link.device
        if link.got.mode == "af_packet":
            self.packet = PacketSocket(device.name, device.index, link.program.fd)
            link.got = replace(link.got, bind="copy")
            return
        if link.got.mode in TC_MODES:
            self.packet = CopiesSocket(device.name, link.program, outbound=link.got.mode == "tc_egress")
            link.got = replace(link.got, bind="ringbuf")
            return
        chunk_size = link.options.chunk_for(device.mtu + xsk.L2_BYTES)
        binds = tuple(b for b in link.binds if link.got.mode == "native" or b == "copy")
        if not binds:
            raise OSError(errno.EOPNOTSUPP, f"{device.name}: zero-copy needs native mode, and this is {link.got.mode}")
        walk = [w for w in link.got.walk if not w.startswith("zero-copy")]
        for bind in binds:
            try:
                self._bind(bind == "zerocopy", chunk_size)
                break
            except OSError as error:
                if bind == binds[-1] or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTSUP):
                    raise
                self._close_xsks()
                walk.append(f"{'zero-copy' if bind == 'zerocopy' else bind} ({os.strerror(error.errno or 0)})")
        bound = "zerocopy" if all(x.zerocopy for x in self.xsks) else "copy"
        link.got = replace(link.got, bind=bound, walk=tuple(walk))
        fd = link.program.map_fd("xsks")
        for socket in self.xsks:
            check(lib.xk_xskmap_set(fd, socket.queue, socket.fd), f"{device.name} queue {socket.queue}")
            self._in_map.append(socket.queue)

    def _bind(self, zerocopy: bool, chunk_size: int) -> None:
        link = self.link
        for queue in link.got.queues:
            self.xsks.append(
                xsk.Socket(
                    link.device.name, link.device.index, queue, zerocopy=zerocopy, options=link.options,
                    chunk_size=chunk_size, metadata=link.got.timestamps,
                )
            )  # fmt: skip

    def batches(self, *, timeout: float | None = None, limit: int = 512) -> Iterator[AnyBatch]:
        """Batches of at most ``limit`` packets from all queues in turn, until ``timeout`` seconds (None: never) pass
        without a packet.  Each batch ends, and its frames go stale, when the next one is asked for."""
        self._idle()
        if self.packet is not None:
            yield from self.packet.batches(timeout, limit)
        else:
            yield from xsk.batches(self.xsks, timeout, limit)

    def count(self, *, limit: int = 0, cpus: Sequence[int] | None = None) -> Workers:
        """C workers that count packets and forget them; a context manager.  ``limit`` packets in all (0: no limit);
        ``cpus``: one per queue, to pin to."""
        self._idle()
        return Workers(self, None, limit=limit, cpus=cpus)

    def write(
        self,
        target: str | os.PathLike[str] | IO[bytes],
        *,
        limit: int = 0,
        snaplen: int = 0,
        cpus: Sequence[int] | None = None,
    ) -> Workers:
        """C workers that write packets to a pcapng file (a path, "-" for standard output, or an open binary file).
        ``limit`` packets in all (0: no limit), at most ``snaplen`` bytes of each (0: all)."""
        self._idle()
        return Workers(self, target, limit=limit, snaplen=snaplen, cpus=cpus)

    def _idle(self) -> None:
        if self._closed:
            raise ValueError("the sockets are closed")
        if self._workers is not None and not self._workers.ended:
            raise ValueError("workers drain these sockets already")

    def started(self, workers: Workers) -> None:
        """Called by Workers: they drain these sockets from now on."""
        self._workers = workers

    def ended(self, name: str, total: WorkerStats) -> None:
        """Called by Workers when they ended: keep what they counted."""
        if self.packet is not None:
            self.packet.received += total.packets
        self.sink = (name, self.sink[1] + total.written, self.sink[2] + total.refused)

    def stats(self) -> SocketStats:
        """Totals over the queues."""
        running = self._workers.stats() if self._workers is not None and not self._workers.ended else WorkerStats()
        if self.packet is not None:
            return self.packet.stats(running.packets)
        return sum((x.stats() for x in self.xsks), SocketStats())

    def live_sink(self) -> tuple[str, int, int]:
        """(name, written, refused) of the sink, with what running workers have counted so far."""
        if self._workers is None or self._workers.ended:
            return self.sink
        now = self._workers.stats()
        return self._workers.name, self.sink[1] + now.written, self.sink[2] + now.refused

    def stop_inflow(self) -> None:
        """Take the sockets out of REDIRECT's reach and wait until what was under way has arrived; idempotent."""
        fd = self.link.program.map_fd("xsks") if self._in_map else -1
        while self._in_map:
            lib.xk_xskmap_clear(fd, self._in_map.pop())
        if self.packet is not None:
            self.packet.quiet()
        lib.xk_quiesce()

    def _close_xsks(self) -> None:
        while self.xsks:
            self.xsks.pop().close()

    def close(self) -> None:
        """Stop the inflow, end workers (they drain first), close the sockets; idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self.stop_inflow()
            if self._workers is not None:
                self._workers.close()
        finally:  # a capture file that cannot be finished keeps nothing open
            for socket in self.xsks:
                socket.close()
            if self.packet is not None:
                self.packet.close()
            self.link.forget(self)

    def __enter__(self) -> Sockets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_capture(target: str | os.PathLike[str]) -> IO[bytes]:
    """Open a capture file for writing, "-" being standard output; OSError says what is wrong with the path.

    What the file holds stays until the workers start, so that a run that cannot start loses nothing.
    """
    if os.fspath(target) == "-":
        if sys.stdout.isatty():
            raise OSError(errno.EINVAL, "a capture is not for a terminal: redirect standard output or name a file")
        file = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        file.name = "standard output"  # for messages
        return file
    return open(
        target, "wb", buffering=0, opener=lambda path, _: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    )


class Workers:
    """C threads that move packets from the sockets to a sink, one per queue.  Context manager; close() is idempotent:
    it stops the inflow, lets them drain, and finishes the file."""

    def __init__(
        self,
        sockets: Sockets,
        target: str | os.PathLike[str] | IO[bytes] | None,
        *,
        limit: int = 0,
        snaplen: int = 0,
        cpus: Sequence[int] | None = None,
    ):
        self.ended, self.name = False, "counted" if target is None else "written"
        self._sockets, self._handles = sockets, list[Any]()
        self._total = WorkerStats()
        self._start_ns = time.time_ns()
        queues = [x.queue for x in sockets.xsks] or [0]
        if cpus is not None and len(cpus) != len(queues):
            raise ValueError(f"{len(cpus)} cpus for {len(queues)} queues: one each is wanted")
        self._file, self._owned = self._target(target)
        sink = ffi.new("struct xk_sink **")
        if self._file is None:
            check(lib.xk_sink_count(limit, sink), "sink")
        else:
            self._begin(self._file, self._header(queues, snaplen))
            check(lib.xk_sink_pcapng(self._file.fileno(), limit, snaplen, sink), "sink")
        self._sink = sink[0]
        sockets.started(self)
        try:
            for number, queue in enumerate(queues):
                self._start(number, queue, -1 if cpus is None else cpus[number])
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _target(target: str | os.PathLike[str] | IO[bytes] | None) -> tuple[IO[bytes] | None, bool]:
        if target is None:
            return None, False
        if isinstance(target, (str, os.PathLike)):
            return open_capture(target), True
        target.flush()
        return target, False

    def _begin(self, file: IO[bytes], header: bytes) -> None:
        """What a file holds from here on goes, but not where the shell appends (>>).  The workers write to the
        descriptor, so nothing may stay in a buffer of ``file``."""
        try:
            appends = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and not appends:
                file.truncate()
            file.write(header)
            file.flush()
        except OSError as error:
            if self._owned:
                file.close()
            raise OSError(error.errno, error.strerror, str(file.name)) from None

    def _start(self, number: int, queue: int, cpu: int) -> None:
        out = ffi.new("struct xk_worker **")
        if self._sockets.packet is not None:
            result = self._sockets.packet.start_worker(self._sink, cpu, out)
        else:
            result = lib.xk_worker_start_xsk(self._sockets.xsks[number].xsk, self._sink, number, queue, cpu, out)
        check(result, f"worker of queue {queue}")
        self._handles.append(out[0])

    def _header(self, queues: Sequence[int], snaplen: int) -> bytes:
        link = self._sockets.link
        redirects = [
            f"{r.name}: {r.expr}" for r in link.program.pipeline.outcomes if r.action.verdict.name == "REDIRECT"
        ]
        blocks = pcapng.section("xdpkit")
        for queue in queues:
            blocks += pcapng.interface(
                link.device.name,
                description=f"{link.device.name}{f' queue {queue}' if link.got.queues else ''}: {link.got}",
                filter_text="; ".join(redirects),
                snaplen=snaplen,
            )
        return blocks

    @property
    def done(self) -> bool:
        """The sink wants no more: its limit is reached or a write failed."""
        return self.ended or bool(lib.xk_sink_done(self._sink))

    def stats(self) -> WorkerStats:
        """Totals so far; after close() the final ones."""
        return sum(self.each(), WorkerStats()) if not self.ended else self._total

    def each(self) -> list[WorkerStats]:
        """Per worker, in the order of the queues."""
        raw, out = ffi.new("struct xk_worker_stats *"), []
        for handle in self._handles:
            lib.xk_worker_stats(handle, raw)
            out.append(_stats(raw))
        return out

    def close(self) -> None:
        """Stop the inflow, drain, join, finish the file; OSError if a write failed."""
        if self.ended:
            return
        self._sockets.stop_inflow()
        for handle in self._handles:
            lib.xk_worker_stop(handle)
        raw = ffi.new("struct xk_worker_stats *")
        each = []
        for handle in self._handles:
            lib.xk_worker_join(handle, raw)
            each.append(_stats(raw))
        self._handles.clear()
        lib.xk_sink_close(self._sink)
        self._total = sum(each, WorkerStats())
        self.ended = True
        self._sockets.ended(self.name, self._total)
        self._finish(each)

    def _finish(self, each: list[WorkerStats]) -> None:
        if self._file is None:
            return
        file, now = self._file, time.time_ns()
        try:
            if self._total.error:
                raise OSError(self._total.error, os.strerror(self._total.error), str(self._file.name))
            stats = [x.stats() for x in self._sockets.xsks] or [self._sockets.stats()]
            for number, (worker, socket) in enumerate(zip(each, stats, strict=False)):
                lost = socket.rx_dropped + socket.rx_ring_full
                counts = pcapng.InterfaceStatistics(
                    received=worker.packets + lost,
                    dropped=0,
                    accepted=worker.packets + lost,
                    os_dropped=lost,
                    delivered=worker.written,
                )
                file.write(pcapng.statistics(number, now, self._start_ns, counts))
            file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file.name)) from None
        finally:
            if self._owned:
                file.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _stats(raw: Any) -> WorkerStats:
    return WorkerStats(raw.packets, raw.bytes, raw.written, raw.refused, raw.batches, raw.waits, raw.error)
