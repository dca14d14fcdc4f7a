"""The AF_PACKET socket of a link: what delivers where no XDP path works, a copy of each packet that a rule takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..kernel.core import check, ffi, lib
from .batch import U32, U64
from .copied import CopyingSocket, buffer
from .xsk import SocketStats

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PacketSocket"]

_TPACKET_V3 = 2
_PACKET_BLOCK_BYTES, _PACKET_BLOCKS, _PACKET_RETIRE_MS = 1 << 20, 16, 10


class PacketSocket(CopyingSocket):
    """The AF_PACKET socket of a link in af_packet mode: a TPACKET_V3 ring behind the pipeline as socket filter.

    In its counts, RX ring full is the kernel's tp_drops."""

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
        super().__init__(device)
        self.packet: Any = out[0]
        self._quiet = False

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
        """The socket."""
        return [int(lib.xk_packet_fd(self.packet))]

    def start_worker(self, sink: Any, wait: int, cpu: int, out: Any) -> int:
        """xk_worker_start_packet."""
        return int(lib.xk_worker_start_packet(self.packet, sink, 0, wait, cpu, out))

    def _columns(self, limit: int) -> Mapping[str, NDArray[Any]]:
        return {}

    def _copy(self, limit: int, lengths: U32, times: U64, columns: Mapping[str, NDArray[Any]]) -> int:
        room = buffer(self._room)
        return int(lib.xk_packet_receive(self.packet, limit, room, len(self._room), buffer(lengths), buffer(times)))

    def _poll(self, stop_fd: int, timeout_ms: int) -> int:
        return int(lib.xk_packet_wait(self.packet, stop_fd, timeout_ms))

    def _count(self, received: int) -> SocketStats:
        passed, drops = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        check(lib.xk_packet_stats(self.packet, passed, drops), self.device)
        unread = max(0, int(passed[0]) - int(drops[0]) - received)
        return SocketStats(received=received, rx_ring_full=drops[0], unread=unread)

    def _close(self) -> None:
        lib.xk_packet_close(self.packet)
