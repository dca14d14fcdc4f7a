"""The AF_PACKET socket of a link: what delivers where no XDP path works, a copy of each packet that a rule takes."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from ..kernel.core import check, ffi, lib
from ..language.errors import FrameError
from .copies import CopiedBatch
from .one_thread import OneThread
from .reader import MOST_MS
from .xsk import SocketStats

__all__ = ["PacketSocket"]

_TPACKET_V3 = 2
_PACKET_BLOCK_BYTES, _PACKET_BLOCKS, _PACKET_RETIRE_MS = 1 << 20, 16, 10


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
        self.one_thread = OneThread(device)
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

    def refilter(self, filter_fd: int) -> None:
        """Another filter, in one step: each packet meets the one or the other."""
        check(lib.xk_packet_filter(self.packet, filter_fd), self.device)

    def quiet(self) -> None:
        """Let nothing more in; what is in the ring stays."""
        if not self._quiet:
            check(lib.xk_packet_quiet(self.packet), self.device)
            self._quiet = True

    @property
    def fds(self) -> list[int]:
        """What is readable when packets are there."""
        return [int(lib.xk_packet_fd(self.packet))]

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
        lengths, times = np.empty(limit, np.uint32), np.empty(limit, np.uint64)
        with self.one_thread:
            n = check(
                lib.xk_packet_receive(
                    self.packet, limit, ffi.from_buffer("uint8_t[]", self._room), len(self._room),
                    ffi.from_buffer("uint32_t[]", lengths), ffi.from_buffer("uint64_t[]", times),
                ),
                self.device,
            )  # fmt: skip
            if not n:
                return None
            self.received += n
            return CopiedBatch(bytes(self._room[: int(lengths[:n].sum())]), lengths[:n], times[:n])

    def wait(self, stop_fd: int, timeout_ms: int) -> bool:
        """See :meth:`xdpkit.sockets.reader.Source.wait`."""
        with self.one_thread:
            ready = lib.xk_packet_wait(self.packet, stop_fd, timeout_ms)
        return ready != -errno.EINTR and check(ready, f"{self.device}: waiting for packets") > 0

    def start_worker(self, sink: Any, wait: int, cpu: int, out: Any) -> int:
        """xk_worker_start_packet."""
        return int(lib.xk_worker_start_packet(self.packet, sink, 0, wait, cpu, out))

    def close(self, worker_packets: int = 0) -> None:
        """Close; idempotent."""
        if self._final is None:
            with self.one_thread.after_others():
                self._final = self.stats(worker_packets)
                lib.xk_packet_close(self.packet)
