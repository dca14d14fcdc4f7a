"""Copies of packets that a program writes into BPF ring buffers, one for each CPU.

A program has up to three kinds: ``copies`` for what TC redirects, ``mirrored`` for packets that rules mirror while they
go on, ``events`` for those that rules log.  It writes a record (time, rule, mark, verdict, packet) only while a reader
is there, who makes the ring buffers; see bpf/copies.h.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from errno import ENOMEM
from typing import TYPE_CHECKING, Any

import numpy as np

from ..device.placement import online_cpus
from ..kernel.core import check, ffi, lib
from ..kernel.loaded import LoadedProgram
from .batch import U32, U64
from .copied import CopyingSocket, buffer
from .options import L2_BYTES, SocketOptions
from .xsk import SocketStats

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COPIES_BYTES", "EVENTS_BYTES", "CopiesSocket", "ring_bytes", "rings_of"]

#: What the ring buffers of copies take at most, all CPUs together, where ``copies_buffer`` does not say it.
COPIES_BYTES = 64 << 20
#: Size of a ring buffer of copies at most, whatever the MTU (64 KiB on a loopback device).
RING_MOST_BYTES = 16 << 20
#: Size of a ring buffer of events, which are 136 bytes each.
EVENTS_BYTES = 64 << 10
#: What a record has in front of the packet: the ring buffer's header, and struct copy of bpf/copies.h.
RECORD_HEAD_BYTES = 8 + 32
#: What a record says of its packet, in the order of xk_copies_receive().
_COLUMNS = {
    "rules": "u4", "marks": "u4", "verdicts": "u1", "wire_lengths": "u4", "queues": "u4",
}  # fmt: skip


def ring_bytes(options: SocketOptions, mtu: int, rings: int) -> int:
    """Size of each of ``rings`` ring buffers, a power of two of whole pages: ``copies_buffer`` in equal parts; without
    it room for ``ring_size`` frames, COPIES_BYTES in all at most.  The longest packet always fits."""
    frame = mtu + L2_BYTES
    share = (options.copies_buffer or COPIES_BYTES) // rings
    wanted = share if options.copies_buffer else min(share, RING_MOST_BYTES, options.ring_size * _power_above(frame))
    least = max(mmap.PAGESIZE, _power_above(frame + RECORD_HEAD_BYTES))
    return max(least, 1 << (max(1, wanted).bit_length() - 1))


def _power_above(number: int) -> int:
    return 1 << (number - 1).bit_length()


def rings_of(cpus: int, online: Iterable[int]) -> list[int]:
    """The number of the ring buffer that each of ``cpus`` possible CPUs uses: those that are ``online`` have one of
    their own, and others, which may come later, share these."""
    own = {cpu: number for number, cpu in enumerate(sorted(cpu for cpu in online if cpu < cpus))}
    rings = max(1, len(own))
    return [own.get(cpu, cpu % rings) for cpu in range(cpus)]


class CopiesSocket(CopyingSocket):
    """The reader of one kind of a program's copies.  Packets are copied from now on, until :meth:`quiet`.

    In its counts, RX ring full is what found no room in a ring buffer."""

    def __init__(
        self, device: str, program: LoadedProgram, kind: str, options: SocketOptions, *, mtu: int = 0,
        outbound: bool = False,
    ):  # fmt: skip
        """``mtu``: of the packets, 0 for events.  OSError where memory or a capability is missing."""
        ring_of = rings_of(lib.xk_cpus(), online_cpus())
        rings = max(ring_of) + 1
        size = ring_bytes(options, mtu, rings) if kind != "events" else EVENTS_BYTES
        out = ffi.new("struct xk_copies **")
        result = lib.xk_copies_open(program.handle, kind.encode(), ring_of, rings, size, out)
        hint = f"{rings} ring buffers of {size >> 10} KiB: a smaller copies_buffer may do" if result == -ENOMEM else ""
        check(result, f"{device}: {kind}", hint)
        super().__init__(device)
        self.copies: Any = out[0]
        hooks = {"tc": lib.XK_HOOK_TC, "socket": lib.XK_HOOK_SOCKET}
        self._hook = lib.XK_HOOK_XDP if program.is_xdp else hooks[program.hook]
        self._outbound = outbound

    def quiet(self) -> None:
        """Nothing more is copied, and REDIRECT falls back; what is in the ring buffers stays."""
        if self._final is None:
            lib.xk_copies_quiet(self.copies)

    def keep(self, snaplen: int) -> None:
        """The program copies ``snaplen`` bytes of each packet at most, from now on; 0: all."""
        lib.xk_copies_snaplen(self.copies, snaplen)

    @property
    def fds(self) -> list[int]:
        """An epoll instance of all ring buffers."""
        return [int(lib.xk_copies_fd(self.copies))]

    def start_worker(self, sink: Any, wait: int, cpu: int, out: Any) -> int:
        """xk_worker_start_copies."""
        return int(lib.xk_worker_start_copies(self.copies, sink, 0, self._hook, self._outbound, wait, cpu, out))

    def _columns(self, limit: int) -> Mapping[str, NDArray[Any]]:
        return {name: np.empty(limit, kind) for name, kind in _COLUMNS.items()}

    def _copy(self, limit: int, lengths: U32, times: U64, columns: Mapping[str, NDArray[Any]]) -> int:
        rules, marks, verdicts, wire, queues = (buffer(columns[name]) for name in _COLUMNS)
        return int(
            lib.xk_copies_receive(
                self.copies, limit, buffer(self._room), len(self._room),
                buffer(lengths), buffer(times), rules, marks, verdicts, wire, queues,
            )
        )  # fmt: skip

    def _poll(self, stop_fd: int, timeout_ms: int) -> int:
        return int(lib.xk_copies_wait(self.copies, stop_fd, timeout_ms))

    def _count(self, received: int) -> SocketStats:
        cpus = lib.xk_cpus()
        written, lost = ffi.new("uint64_t[]", cpus), ffi.new("uint64_t[]", cpus)
        check(lib.xk_copies_stats(self.copies, written, lost), self.device)
        lost_on = {cpu: int(n) for cpu, n in enumerate(lost) if n}
        unread = max(0, sum(written) - received)
        return SocketStats(received=received, rx_ring_full=sum(lost), unread=unread, lost_on=lost_on)

    def _close(self) -> None:
        lib.xk_copies_close(self.copies)
