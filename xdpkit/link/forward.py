"""Forwarding in user space, without a copy: packets that one link's sockets receive go out of another link's device.

    with attach(pipe, "eth1") as a, attach(pipe, "eth2") as b, forward(a, b) as running:
        ...

Both directions at once, queue by queue: a C thread for each pair of queues moves the frames of one UMEM from RX of one
device to TX of the other, and from its COMPLETION ring back to FILL.  ``forward(a, a)`` reflects: what a device
receives goes back out of it with the Ethernet addresses exchanged.  REDIRECT rules choose what is forwarded; the rest
has its own verdict.

A forwarder holds nothing back and reorders nothing.  Where a device transmits more slowly than packets come, they stay
in the RX ring, and what does not fit is in the ledger as ``RX ring full``.  ``forwarded`` there are packets handed to
the other device; what that drops it counts itself (``tx_dropped``).

Senders on the same machine (veth, or any device in generic mode) leave TCP and UDP checksums to their device, which XDP
goes past: the C core completes them, and the ledger counts them as ``checksums completed``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

from ..device.placement import place
from ..kernel.core import check, ffi, lib
from ..language.errors import NotSupported
from ..sockets.options import L2_BYTES, Wait
from ..sockets.queues import Queues, Setup, open_first, open_socket, open_umem, setups
from ..sockets.sockets import Sockets
from ..sockets.umem import Pool
from ..sockets.workers import WorkerStats, wait_number, worker_stats
from . import offloads
from .link import CHECK_SECONDS, Link
from .watcher import Watcher

__all__ = ["Forwarder", "forward"]


def forward(a: Link, b: Link, *, wait: Wait = "adaptive", cpus: Sequence[int] | None = None) -> Forwarder:
    """Forward between two links with as many queues each, or reflect (``b`` is ``a``): a context manager.

    ``wait``, ``cpus``: as for :meth:`Sockets.count`, one CPU for each pair of queues.  Sizes and switches are those of
    ``a``'s options; the UMEM is always shared.  Raises NotSupported where a link is not at XDP, ValueError for links of
    different numbers of queues, OSError that names call, device and queue; nothing stays open then."""
    for link in (a, b):
        if link.attachment.mode not in ("native", "generic"):
            raise NotSupported(
                f"forwarding on {link.device.name}, in mode {link.attachment.mode}", "mode native or generic"
            )
    at_a, at_b = len(a.attachment.queues), len(b.attachment.queues)
    if at_a != at_b:
        raise ValueError(
            f"{a.device.name} has sockets on {at_a} queues and {b.device.name} on {at_b}: "
            "choose as many (attach(queues=...))"
        )
    if _takes_several(a) != _takes_several(b):
        raise ValueError(
            f"only one of {a.device.name} and {b.device.name} takes packets of several buffers: "
            "give both the same MTU, or SocketOptions(multi_buffer=...)"
        )
    return Forwarder(a, b, wait_number(wait), cpus)


class Forwarder:
    """What :func:`forward` started.  ``close()`` is idempotent: it stops the inflow, sends what waits, closes the
    sockets.  It ends by itself when a link is lost (:attr:`xdpkit.Link.lost`): :meth:`wait` and ``close()`` then raise
    the OSError that says why."""

    #: What the ledger calls the packets that were handed to the other device.
    sink: str = "forwarded"

    def __init__(self, a: Link, b: Link, wait: int, cpus: Sequence[int] | None):
        self._links = (a,) if a is b else (a, b)
        self.ring_size: int = a.options.ring_size
        self._queues: list[Queues] = []
        self._sockets: list[Sockets] = []
        self._threads: list[Any] = []
        self._final: tuple[list[WorkerStats], list[WorkerStats]] | None = None
        self._watcher: Watcher | None = None
        self._failed: OSError | None = None
        self._over = threading.Event()
        queues = a.attachment.queues
        if cpus is not None and len(cpus) != len(queues):
            raise ValueError(f"{len(cpus)} cpus for {len(queues)} pairs of queues: one each is wanted")
        try:
            both = set(setups(b._attached))
            tries = [setup for setup in setups(a._attached) if setup in both] or list(setups(b._attached))[-1:]
            tries = [replace(setup, multi_buffer=_takes_several(a)) for setup in tries]
            self._queues, setup, refused = open_first(tries, self._open)
            for link, opened in zip(self._links, self._queues, strict=True):
                attachment = opened.attachment(link.attachment, setup, refused)
                link._attached.attachment = replace(attachment, shared_umem=True)
                self._sockets.append(link._open_sockets(opened))
            self._warn()
            self._start(wait, place(a.device, queues) if cpus is None else cpus)
            self._watcher = Watcher([link.device.index for link in self._links], self._look, CHECK_SECONDS)
        except BaseException:
            self.close()
            raise

    def _warn(self) -> None:
        for link in self._links:
            if link.attachment.mode == "generic":
                link._note(offloads.merged(link.device))
            if (text := offloads.tags_lost(link.device)) is not None:
                link._note(text)

    def _open(self, setup: Setup) -> list[Queues]:
        """A pool for each pair of queues: frames for FILL, RX and TX of both."""
        options = replace(self._links[0].options, tx=True, sockets_per_queue=1)
        frames = options.frames or 3 * options.ring_size
        opened = [Queues() for _ in self._links]
        try:
            pairs = list(zip(*(link.attachment.queues for link in self._links), strict=True))
            each = frames * len(self._links)
            umem = open_umem([link._attached for link in self._links], each * len(pairs), setup, options)
            opened[0].umems.append(umem)
            for pair in pairs:
                names = " and ".join(f"{link.device.name} queue {q}" for link, q in zip(self._links, pair, strict=True))
                pool = Pool(umem, each, names)
                opened[0].pools.append(pool)
                for link, queue, part in zip(self._links, pair, opened, strict=True):
                    part.sockets.append(open_socket(link._attached, queue, pool, setup, options))
        except BaseException:
            _close(opened)
            raise
        return opened

    def _start(self, wait: int, cpus: Sequence[int]) -> None:
        complete = sum(1 << n for n, link in enumerate(self._links) if link.attachment.partial_checksums)
        for number, cpu in enumerate(cpus):
            a, b = self._queues[0].sockets[number], self._queues[-1].sockets[number]
            out = ffi.new("struct xk_forwarder **")
            started = self._start_thread(a.xsk, b.xsk, number, complete, wait, cpu, out)
            check(started, f"forwarder of {a._pool.name}")
            self._threads.append(out[0])
        for number, sockets in enumerate(self._sockets):
            sockets._started(_Direction(self, number))
        for number, link in enumerate(self._links):
            link._counts_completed(partial(self._completed, number))

    def _look(self) -> None:
        """End, where a link is lost or a thread has ended on an error; the watcher calls this."""
        for link in self._links:
            link._look()
            if link._lost is not None:
                self._fail(link._lost.errno or 0, str(link._lost.strerror))
        if error := self.stats().error:
            self._fail(error, os.strerror(error))
        if self._failed is not None:
            for thread in self._threads:
                lib.xk_forward_stop(thread)
            self._over.set()

    def _fail(self, number: int, why: str) -> None:
        names = " and ".join(link.device.name for link in self._links)
        self._failed = self._failed or OSError(number, f"forwarding on {names}: {why}")

    def _start_thread(self, a: Any, b: Any, number: int, complete: int, wait: int, cpu: int, out: Any) -> int:
        """The thread of a pair of queues, by its ``number``."""
        started: int = lib.xk_forward_start(a, b, complete, wait, cpu, out)
        return started

    def _completed(self, direction: int) -> int:
        return self.stats(direction).completed

    @property
    def ended(self) -> bool:
        """It has stopped: it was closed, or a link was lost."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended, or ``timeout`` seconds (None: for ever) are over; whether it has ended.  OSError says why
        it ended by itself: a link was lost, or a thread met an error."""
        self._over.wait(timeout)
        self._raise_if_failed()
        return self.ended

    def _raise_if_failed(self) -> None:
        if self._failed is not None:
            raise OSError(self._failed.errno, self._failed.strerror)

    def frames(self) -> list[dict[str, int]]:
        """Where the frames of each pair of queues are; see :meth:`Pool.frames`.  They sum when nothing moves."""
        return [pool.frames() for pool in self._queues[0].pools]

    def stats(self, direction: int = 0) -> WorkerStats:
        """Totals of a direction, 0: a to b, 1: b to a; ``written`` is what was handed to TX of the other device."""
        return sum(self.each(direction), WorkerStats())

    def each(self, direction: int = 0) -> list[WorkerStats]:
        """The totals of a direction for each pair of queues."""
        if self._final is not None:
            return self._final[direction]
        raw, out = ffi.new("struct xk_worker_stats *"), []
        for thread in self._threads:
            lib.xk_forward_stats(thread, direction, raw)
            out.append(worker_stats(raw))
        return out

    def stop(self) -> None:
        """Stop the inflow, send what waits in the RX rings, end the threads; idempotent."""
        self._over.set()
        if self._watcher is not None:
            self._watcher.close()
        if not self._threads:
            return
        for sockets in self._sockets:
            sockets.stop_inflow()
        for thread in self._threads:
            lib.xk_forward_stop(thread)
        there, back = ffi.new("struct xk_worker_stats *"), ffi.new("struct xk_worker_stats *")
        final: tuple[list[WorkerStats], list[WorkerStats]] = [], []
        for thread in self._threads:
            lib.xk_forward_join(thread, there, back)
            final[0].append(worker_stats(there))
            final[1].append(worker_stats(back))
        self._final, self._threads = final, []
        if error := self.stats().error:
            self._fail(error, os.strerror(error))
        for number, sockets in enumerate(self._sockets):
            sockets._ended(self.sink, self.stats(number))

    def close(self) -> None:
        """Stop, and close the sockets; OSError if a link was lost or a thread ended on an error."""
        try:
            self.stop()
            for sockets in self._sockets:
                sockets.close()
        finally:
            _close(self._queues)
        self._raise_if_failed()

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _takes_several(link: Link) -> bool:
    """Packets of several buffers go through: not where only the stack makes them, in generic mode.  Those are longer
    than the other device's MTU, and what cannot be sent on is better lost where it is counted."""
    options = link.options
    only_merged = link.attachment.mode == "generic" and options.multi_buffer == "auto"
    return link.program.frags and not (only_merged and link.device.mtu + L2_BYTES <= options.room())


class _Direction:
    """A direction as what drains the sockets of a link."""

    def __init__(self, forwarder: Forwarder, number: int):
        self._forwarder, self._number = forwarder, number
        self.name = forwarder.sink

    @property
    def ended(self) -> bool:
        return not self._forwarder._threads

    def stats(self) -> WorkerStats:
        return self._forwarder.stats(self._number)

    def close(self) -> None:
        self._forwarder.stop()


def _close(opened: Sequence[Queues]) -> None:
    """Sockets before what they stand on, which the first of them owns."""
    for queues in reversed(opened):
        queues.close()
