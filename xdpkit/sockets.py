"""The sockets of a link, all queues together: drained by Python (:meth:`Sockets.batches`) or by C workers
(:meth:`Sockets.count`, :meth:`Sockets.write`), one way at a time.

Teardown is the reverse of set-up and loses nothing: take the sockets out of the XSKMAP (REDIRECT falls back from here
on), wait for the packets that were under way, drain, close.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol

from . import xsk
from .actions import Mirror, Verdict
from .copies import CopiedBatch, CopiesSocket
from .core import check, lib
from .errors import NotSupported
from .got import TC_MODES
from .packet_socket import PacketSocket
from .workers import Workers, WorkerStats
from .xsk import SocketStats
from .zerocopy import chunk_for_zerocopy

if TYPE_CHECKING:
    from .link import Link
    from .pipeline import Rule
    from .program import Program

__all__ = ["AnyBatch", "CopiedBatch", "Copies", "Sockets"]


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
        binds = tuple(b for b in link.binds if link.got.mode == "native" or b == "copy")
        if not binds:
            raise OSError(errno.EOPNOTSUPP, f"{device.name}: zero-copy needs native mode, and this is {link.got.mode}")
        walk = [w for w in link.got.walk if not w.startswith("zero-copy")]
        for bind in binds:
            try:
                self._bind(bind == "zerocopy")
                break
            except NotSupported as error:
                if bind == binds[-1]:
                    raise
                walk.append(f"zero-copy ({error.needs})")
            except OSError as error:
                if bind == binds[-1] or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTSUP):
                    raise
                self._close_xsks()
                walk.append(f"{'zero-copy' if bind == 'zerocopy' else bind} ({os.strerror(error.errno or 0)})")
        bound = "zerocopy" if all(x.zerocopy for x in self.xsks) else "copy"
        link.got = replace(link.got, bind=bound, walk=tuple(walk))
        self.reach(link.program)
        self._in_map = [socket.queue for socket in self.xsks]

    def gets(self, rule: Rule) -> bool:
        """Whether packets that ``rule`` takes come here."""
        return rule.action.verdict is Verdict.REDIRECT

    def reach(self, program: Program) -> None:
        """Let the REDIRECT of ``program`` find these sockets."""
        for socket in self.xsks:
            what = f"{self.link.device.name} queue {socket.queue}"
            check(lib.xk_xskmap_set(program.map_fd("xsks"), socket.queue, socket.fd), what)

    def refilter(self, program: Program) -> None:
        """Put ``program`` in the place of the packet socket's filter."""
        if isinstance(self.packet, PacketSocket):
            self.packet.refilter(program.fd)

    def _bind(self, zerocopy: bool) -> None:
        link, device, options = self.link, self.link.device, self.link.options
        if zerocopy:
            chunk_size = chunk_for_zerocopy(device, link.program.pipeline, options)
        else:
            chunk_size = options.chunk_for(device.mtu + xsk.L2_BYTES)
        for queue in link.got.queues:
            self.xsks.append(
                xsk.Socket(
                    device.name, device.index, queue, zerocopy=zerocopy, options=options,
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


class Copies(Sockets):
    """Copies of the packets that rules mirror, while they go on; made by ``link.copies()``."""

    def gets(self, rule: Rule) -> bool:
        """Whether ``rule`` mirrors."""
        return any(isinstance(step, Mirror) for step in rule.steps)

    def _open(self) -> None:
        link = self.link
        if Mirror not in link.pipeline.steps:
            raise ValueError(f"{link.device.name}: no rule of {link.pipeline.name!r} mirrors packets")
        outbound = link.got.mode == "tc_egress"
        self.packet = CopiesSocket(link.device.name, link.program, "mirrored", outbound=outbound)
