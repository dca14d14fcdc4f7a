"""The sockets of a link, those of all queues together.  Either Python drains them (:meth:`Sockets.batches`) or C
workers do (:meth:`Sockets.count`, :meth:`Sockets.write`), not both at a time.

Teardown is the reverse of set-up and loses no packet: the sockets are removed from the XSKMAP, so that REDIRECT falls
back from then on; packets that were under way arrive; the rings are drained; the sockets are closed.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import IO, Protocol, Self, cast

from ..kernel.attachment import TC_MODES
from ..kernel.core import lib
from ..kernel.loaded import LoadedProgram
from ..language.actions import Mirror, Redirect, Verdict
from ..language.errors import NotSupported
from ..language.rule import Rule
from ..logs import logger
from . import xsk
from .attached import Attached
from .batch import AnyBatch, Batch
from .copied import CopiedBatch
from .copies import CopiesSocket
from .options import Wait
from .packet_socket import PacketSocket
from .queues import Queues, open_first, open_queues, setups
from .reader import Source, Stop, batches, batches_async, epoll_of
from .workers import Workers, WorkerStats
from .xsk import Packets, SentTimes, SocketStats

__all__ = ["AnyBatch", "CopiedBatch", "Copies", "Group", "Sockets"]


class Drains(Protocol):
    """An object that drains the sockets instead of Python: workers, or one direction of a forwarder."""

    @property
    def ended(self) -> bool:
        """Whether it has stopped."""

    @property
    def name(self) -> str:
        """A participle for what becomes of the packets, such as "counted"."""

    def stats(self) -> WorkerStats: ...

    def close(self) -> None: ...


class Reader:
    """A source of packets that counts them and checks now and then whether the program is still on the device."""

    def __init__(self, source: Source[Batch] | Source[CopiedBatch], attached: Attached, count: Callable[[int], None]):
        self._source, self._attached, self._count = source, attached, count
        self.hold, self.release = source.hold, source.release

    @property
    def fds(self) -> Sequence[int]:
        """The descriptors of the source."""
        return self._source.fds

    @property
    def poll_ms(self) -> int:
        """The longest wait of the source."""
        return self._source.poll_ms

    def wait(self, stop_fd: int, timeout_ms: int) -> bool:
        """Wait as the source does; OSError when the program is no longer on the device."""
        self._attached.check()
        return self._source.wait(stop_fd, timeout_ms)

    def receive(self, limit: int) -> AnyBatch | None:
        """The next batch of at most ``limit`` packets, or None."""
        batch = self._source.receive(limit)
        if batch is not None:
            self._count(len(batch))
            batch._pipeline = self._attached.program.pipeline
            with suppress(OSError):  # packets that have arrived are read before the error is raised
                self._attached.check()
        return batch


class Sockets:
    """Open sockets on every queue of the link; made by ``link.sockets()``."""

    def __init__(
        self, attached: Attached, queues: Queues | None = None, *, closed: Callable[[Sockets], None] = lambda _: None
    ):
        """``queues``: AF_XDP sockets that are open already; they stay open when this object is closed.  ``closed`` is
        called with this object when it is closed, and can read the final counts."""
        self._attached, self._on_closed = attached, closed
        self._queues, self._borrowed = queues, queues is not None
        self._packet: PacketSocket | CopiesSocket | None = None  # instead of xsks
        self._workers: Drains | None = None
        self._sink: tuple[str, int, int] = ("none", 0, 0)  # name, written, refused
        self.read: int = 0  # packets in batches
        self._read_lock = threading.Lock()
        self._stop = Stop()
        self._epoll: select.epoll | None = None  # of fileno()
        self._own_reader: Reader | None = None  # of receive()
        self._in_map: list[int] = []  # entries of the XSKMAP
        self._groups: dict[str, Group] = {}
        self._closed = False
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        logger.info("%s", repr(self))

    def __repr__(self) -> str:
        at = self._attached
        state = (
            "closed" if self._closed else self._workers.name + " by workers" if self.busy and self._workers else "open"
        )
        return f"<{type(self).__name__} of {at.program.pipeline.name} on {at.device.name}: {at.attachment}, {state}>"

    def _open(self) -> None:
        at, device = self._attached, self._attached.device
        if at.attachment.mode == "af_packet":
            self._packet = PacketSocket(device.name, device.index, at.program.fd)
            at.attachment = replace(at.attachment, bind="copy")
            return
        if at.attachment.mode in TC_MODES:
            self._packet = self._copies("copies")
            at.attachment = replace(at.attachment, bind="ringbuf")
            return
        if self._queues is None:
            opened, setup, refused = open_first(list(setups(at)), lambda setup: open_queues(at, setup))
            self._queues = opened  # to be closed if the next line fails
            at.attachment = opened.attachment(at.attachment, setup, refused)
        self._reach(at.program)

    def _copies(self, kind: str) -> CopiesSocket:
        at, outbound = self._attached, self._attached.attachment.mode == "tc_egress"
        return CopiesSocket(at.device.name, at.program, kind, at.options, mtu=at.device.mtu, outbound=outbound)

    def _takes(self, rule: Rule) -> bool:
        """Whether packets that ``rule`` takes reach these sockets."""
        return rule.action.verdict is Verdict.REDIRECT

    def _reach(self, program: LoadedProgram) -> None:
        """Let the REDIRECT of ``program``, which the link runs from now on, find these sockets."""
        if self._queues is not None:
            self._in_map = self._queues.reach(program)
        for drained in (self, *self._groups.values()):
            if isinstance(drained._workers, Workers) and not drained._workers.ended:
                drained._workers._name_rules(program)

    def group(self, name: str) -> Group:
        """The sockets of a named group, to which ``Redirect(group=...)`` sends packets.  They are drained separately,
        and are open as long as these sockets are.  ValueError if there is no group of that name."""
        queues = self._queues.of_group(name) if self._queues is not None else None
        if queues is None or not queues.sockets:
            raise ValueError(f"{self._attached.device.name}: no rule redirects to a group {name!r} of AF_XDP sockets")
        if name not in self._groups:
            self._groups[name] = Group(self, name, queues)
            if self.stopped:
                self._groups[name].stop()
        return self._groups[name]

    def _refilter(self, program: LoadedProgram) -> None:
        """Make ``program`` the filter of the packet socket."""
        if isinstance(self._packet, PacketSocket):
            self._packet.refilter(program.fd)

    @property
    def xsks(self) -> list[xsk.Socket]:
        """The AF_XDP sockets, in the order of the queues; empty in other modes."""
        return self._queues.sockets if self._queues is not None else []

    def batches(
        self, *, timeout: float | None = None, limit: int = 512, queue: int | None = None
    ) -> Generator[AnyBatch, None, None]:
        """Batches of at most ``limit`` packets from all queues in turn, until ``timeout`` seconds (None: never) pass
        without a packet, or until :meth:`stop`.  A batch ends when the next one is requested; its frames are no longer
        valid then.

        ``queue``: read this queue alone.  Each queue may be read in a thread of its own.

        ValueError when the sockets are closed, while workers drain them, and for a queue that has no socket;
        NotSupported for one queue where the sockets are not AF_XDP; OSError when the pipeline is no longer on the
        device (see :meth:`xdpkit.Link.check`); :class:`xdpkit.FrameError` when the sockets are closed in between;
        :class:`xdpkit.ThreadError` while another thread reads or sends with the same sockets."""
        return batches(self._reader(queue), timeout, limit, self._stop)

    def batches_async(
        self, *, timeout: float | None = None, limit: int = 512, queue: int | None = None
    ) -> AsyncGenerator[AnyBatch, None]:
        """As :meth:`batches`, for asyncio: ``async for batch in sockets.batches_async()``.  Other tasks of the event
        loop run after every batch and during a wait.  A cancelled task loses no packet: packets that it has not read
        stay in the ring.  Errors as for :meth:`batches`."""
        return batches_async(self._reader(queue), timeout, limit, self._stop)

    def __aiter__(self) -> AsyncIterator[AnyBatch]:
        return self.batches_async()

    def receive(self, limit: int = 512) -> AnyBatch | None:
        """The next batch, of at most ``limit`` packets, or None if no packet is there; it never waits.  End the batch
        (``with batch:``) before the next call.  Errors as for :meth:`batches`.

        It is for event loops other than asyncio: call it until it returns None, then wait for :meth:`fileno`."""
        self._idle()
        if self._own_reader is None:
            self._own_reader = self._reader(None)
        batch = self._own_reader.receive(limit)
        if batch is None:
            self._own_reader.wait(-1, 0)
        return batch

    def fileno(self) -> int:
        """A descriptor for select(), epoll and event loops: readable while packets are there, and after :meth:`stop`.

        Before each wait call :meth:`receive` until it returns None.  Only that call wakes a driver that has requested a
        wake-up (``need_wakeup``), and tells the program of a ring buffer (TC, mirrored copies) that a reader waits.
        The descriptor does not become readable when the device goes away: call :meth:`receive` now and then, which
        raises OSError ENODEV.  The descriptor is an epoll instance, which is closed with the sockets.  ValueError when
        they are closed."""
        self._alive()
        if self._epoll is None:
            reader = self._reader(None)
            self._epoll = epoll_of([*reader.fds, self._stop.fd])
            reader.wait(-1, 0)
        return self._epoll.fileno()

    def stop(self) -> None:
        """End all readers, :meth:`batches` and :meth:`batches_async`.  A reader that waits ends at once, another one
        after its current batch, and a reader that begins later ends at once.  No error is raised and no packet is lost:
        packets that were not read stay in the rings.  Call it from any thread or a signal handler; idempotent.  The
        sockets stay open: join the threads that read, then close the sockets."""
        self._stop.set()
        for group in list(self._groups.values()):
            group.stop()

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return bool(self._stop)

    def _reader(self, queue: int | None) -> Reader:
        self._idle()
        if self._packet is not None:
            if queue is not None:
                raise NotSupported(
                    f"reading one queue in mode {self._attached.attachment.mode}", "mode native or generic"
                )
            return Reader(self._packet, self._attached, self._count_read)
        return Reader(xsk.Receivers(self._of_queue(queue)), self._attached, self._count_read)

    def _count_read(self, packets: int) -> None:
        with self._read_lock:  # queues may be read in threads of their own
            self.read += packets

    def _of_queue(self, queue: int | None) -> list[xsk.Socket]:
        found = [x for x in self.xsks if queue is None or x.queue == queue]
        if not found:
            at = self._attached
            raise ValueError(f"queue {queue} has no socket: {at.device.name} has them on {at.attachment.queues}")
        return found

    def count(self, *, limit: int = 0, cpus: Sequence[int] | None = None, wait: Wait | None = None) -> Workers:
        """Start C workers that count packets and drop them.  Returns a context manager.  ``limit``: packets in all (0:
        no limit).  ``cpus``: the CPU that each socket's worker is pinned to (-1: not pinned; default: CPUs near the
        device, see :mod:`xdpkit.device.placement`).

        ``wait``: what a worker does when there is no packet.  "adaptive": poll the ring for a moment, then sleep.
        "busy": poll without end.  "sleep": sleep at once.  "nap": look every 0.5 ms, which takes the least CPU time and
        has the longest delay.  None: "nap" for a ring buffer (TC, mirrored copies), because a reader that polls it or
        must be woken slows the program down; otherwise "adaptive".

        ValueError when the sockets are closed, while others drain them, where ``cpus`` are not as many as the sockets,
        and for an unknown ``wait``; OSError where a thread cannot be started or pinned."""
        self._idle()
        return Workers(self, None, limit=limit, cpus=cpus, wait=wait)

    def write(
        self,
        target: str | os.PathLike[str] | IO[bytes],
        *,
        limit: int = 0,
        snaplen: int = 0,
        cpus: Sequence[int] | None = None,
        wait: Wait | None = None,
    ) -> Workers:
        """Start C workers that write packets to a pcapng file: a path, "-" for standard output, or an open binary file.
        ``limit``: packets in all (0: no limit).  ``snaplen``: most bytes of each packet (0: all).  ``cpus`` and
        ``wait`` as for :meth:`count`.

        Errors as for :meth:`count`, and OSError that names the file where it cannot be opened or written.  An error of
        a later write is raised when the workers are closed."""
        self._idle()
        return Workers(self, target, limit=limit, snaplen=snaplen, cpus=cpus, wait=wait)

    def send(
        self, packets: Packets, *, queue: int | None = None, checksum: tuple[int, int] | None = None,
        timestamp: bool = False,
    ) -> int:  # fmt: skip
        """Transmit packets out of the device, in one batch.  ``packets``: bytes objects, or the rows of a
        uint8[n, bytes] array.  Returns how many were taken, counted from the first; it never waits.  ``queue``: the
        queue whose socket sends (default: the first).  ``checksum``, ``timestamp`` and errors as for
        :meth:`xdpkit.sockets.xsk.Socket.transmit`; also ValueError without a TX ring (``SocketOptions(tx=True)``), and
        NotSupported where the sockets are not AF_XDP."""
        return self._sender(queue).transmit(packets, checksum=checksum, timestamp=timestamp)

    def sent_times(self, *, queue: int | None = None) -> SentTimes:
        """The times at which packets left that :meth:`send` sent with ``timestamp=True`` from ``queue``: see
        :meth:`xdpkit.sockets.xsk.Socket.sent_times`.  NotSupported where the sockets have no TX timestamps; ValueError
        for a queue without a socket and without a TX ring."""
        return self._sender(queue).sent_times()

    def _sender(self, queue: int | None) -> xsk.Socket:
        self._idle()
        if not self.xsks:
            raise NotSupported(
                f"sending in mode {self._attached.attachment.mode}", "AF_XDP sockets: mode native or generic"
            )
        if not self._attached.options.tx:
            raise ValueError("no TX ring: SocketOptions(tx=True)")
        return self._of_queue(queue)[0]

    def complete(self) -> int:
        """Let the kernel transmit what is in the TX rings, and take back the frames of packets that have left.  Returns
        the number of these frames.  :class:`xdpkit.FrameError` when the sockets are closed, OSError where the kernel
        refuses."""
        return sum(x.complete() for x in self.xsks)

    def _alive(self) -> None:
        if self._closed:
            raise ValueError("the sockets are closed")

    def _idle(self) -> None:
        self._alive()
        if self.busy:
            raise ValueError("workers drain these sockets already")
        if any(group.busy for group in self._groups.values()):
            raise ValueError("workers drain sockets of a group already")

    @property
    def busy(self) -> bool:
        """Whether workers drain these sockets."""
        return self._workers is not None and not self._workers.ended

    def _started(self, workers: Drains) -> None:
        """Called by Workers when they begin to drain these sockets."""
        self._workers = workers

    def _ended(self, name: str, total: WorkerStats) -> None:
        """Called by Workers when they have ended; keeps their counts."""
        if self._packet is not None:
            self._packet.received += total.packets
        self._sink = (name, self._sink[1] + total.written, self._sink[2] + total.refused)

    def stats(self) -> SocketStats:
        """The counts of all queues together; after close() the final ones.  OSError ENODEV when the device is gone."""
        running = self._workers.stats() if self._workers is not None and not self._workers.ended else WorkerStats()
        if self._packet is not None:
            return self._packet.stats(running.packets)
        return sum((x.stats() for x in self.xsks), SocketStats())

    def _live_sink(self) -> tuple[str, int, int]:
        """(name, written, refused) of the sink, including the counts of running workers so far."""
        name, written, refused = self._sink
        for drained in (self, *self._groups.values()):
            if drained._workers is not None and not drained._workers.ended:
                now = drained._workers.stats()
                name, written, refused = drained._workers.name, written + now.written, refused + now.refused
        return name, written, refused

    def _leave(self, queues: Queues | None) -> None:
        """Remove some of the sockets from the XSKMAP and wait until packets that were under way have arrived."""
        program = self._attached.program
        for number in range(len(queues.sockets) if queues is not None and not self._closed else 0):
            slot = queues.slot(program, number) if queues is not None else None
            if slot is not None and slot in self._in_map:
                lib.xk_xskmap_clear(program.map_fd("xsks"), slot)
                self._in_map.remove(slot)
        lib.xk_quiesce()

    def stop_inflow(self) -> None:
        """Remove the sockets from the XSKMAP and wait until packets that were under way have arrived; idempotent.
        OSError where the kernel refuses."""
        fd = self._attached.program.map_fd("xsks") if self._in_map else -1
        while self._in_map:
            lib.xk_xskmap_clear(fd, self._in_map.pop())
        if self._packet is not None:
            self._packet.quiet()
        lib.xk_quiesce()

    def close(self) -> None:
        """Stop the inflow, let workers drain the rings and end them, close the sockets; idempotent.  OSError where
        workers could not finish their file; the sockets are closed all the same."""
        if self._closed:
            return
        self._closed = True
        try:
            self.stop_inflow()
            for drained in (self, *self._groups.values()):
                if drained._workers is not None:
                    drained._workers.close()
        finally:  # also where a capture file could not be finished
            if self._queues is not None and not self._borrowed:
                self._queues.close()
            if self._packet is not None:
                self._packet.close()
            self._close_descriptors()
            self._on_closed(self)
            logger.info("%s", repr(self))

    def _close_descriptors(self) -> None:
        self._stop.close()
        if self._epoll is not None:
            self._epoll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Group(Sockets):
    """The sockets of a named group, made by :meth:`Sockets.group`.  They are closed with the sockets of the link."""

    def __init__(self, whole: Sockets, name: str, queues: Queues):
        self._whole, self._name = whole, name
        super().__init__(whole._attached, queues)

    def _open(self) -> None:
        """Do nothing: the sockets of the link are open, and REDIRECT finds them."""

    def _takes(self, rule: Rule) -> bool:
        """Whether ``rule`` redirects to this group."""
        return isinstance(rule.action, Redirect) and rule.action.group == self._name

    def _idle(self) -> None:
        self._whole._alive()
        if self.busy or self._whole.busy:
            raise ValueError("workers drain these sockets already")

    def _count_read(self, packets: int) -> None:
        self._whole._count_read(packets)

    def _ended(self, name: str, total: WorkerStats) -> None:
        """Add the counts of the group's workers to those of all sockets."""
        self._whole._ended(name, total)

    def stop_inflow(self) -> None:
        """Remove the sockets of the group from the XSKMAP and wait until packets that were under way have arrived."""
        self._whole._leave(self._queues)

    def close(self) -> None:
        """End the workers of the group; its sockets are closed with those of the link."""
        if self._workers is not None:
            self._workers.close()
        self._close_descriptors()


class Copies(Sockets):
    """The copies of packets that rules mirror, made by ``link.copies()``.  The packets themselves go on."""

    def _takes(self, rule: Rule) -> bool:
        """Whether ``rule`` mirrors."""
        return any(isinstance(step, Mirror) for step in rule.steps)

    def _open(self) -> None:
        at = self._attached
        if Mirror not in at.program.pipeline.steps:
            raise ValueError(f"{at.device.name}: no rule of {at.program.pipeline.name!r} mirrors packets")
        self._packet = self._copies("mirrored")

    def batches(
        self, *, timeout: float | None = None, limit: int = 512, queue: int | None = None
    ) -> Generator[CopiedBatch, None, None]:
        """As :meth:`Sockets.batches`.  These also have ``marks``, ``verdicts``, ``queues`` and ``wire_lengths``."""
        return cast(Generator[CopiedBatch, None, None], super().batches(timeout=timeout, limit=limit, queue=queue))
