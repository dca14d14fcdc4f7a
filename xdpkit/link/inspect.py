"""Decisions in user space about packets on a bridge: what rules with the action ``Inspect`` send there.

    with bridge(pipe, inside="eth1", outside="eth2") as wire, wire.inspect(decide):
        ...

A C thread for each pair of queues takes packets off the RX ring of one device, asks ``decide`` about the whole batch,
and hands those that go on to the TX ring of the other device, in the frames where the kernel put them; the others go
back to FILL.  The program sends no more packets than there is room for (bpf/inspect.bpf.c), so a slow inspector costs
no packet: what finds no room is treated as ``Inspect(otherwise=)`` says, and counted as ``no socket``.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..kernel.core import ffi, lib
from ..language.actions import DROP, INSPECTORS, Inspect
from ..language.errors import NotSupported
from ..logs import logger
from ..sockets.header_columns import HeaderColumns, header_columns
from ..sockets.options import Wait
from ..sockets.queues import Queues, Setup
from ..sockets.workers import wait_number
from .forward import Forwarder
from .link import Link

__all__ = ["Decide", "Inspected", "Inspector", "inspect"]

#: Bytes of each packet in which its headers are looked for.
HEADER_BYTES = 256
SIDES: tuple[Literal["inside"], Literal["outside"]] = ("inside", "outside")


class Inspected:
    """A batch of packets from one side, valid until the decision is made."""

    def __init__(self, side: Literal["inside", "outside"], data: Any, sizes: Any, count: int):
        self.side: Literal["inside", "outside"] = side
        self._data, self._count = data, count
        self.lengths: npt.NDArray[np.uint32] = np.frombuffer(ffi.buffer(sizes, 4 * count), np.uint32).copy()
        """uint32[n]: bytes of each packet; of one in several buffers, those of the first."""

    def __len__(self) -> int:
        return self._count

    def frame(self, number: int) -> memoryview:
        """The bytes of packet ``number`` where the kernel put them: they may be changed in place, but not used once the
        decision is made.  IndexError where there is no such packet."""
        if not 0 <= number < self._count:
            raise IndexError(f"packet {number} of {self._count}")
        return memoryview(ffi.buffer(self._data[number], int(self.lengths[number]))).cast("B")

    @cached_property
    def headers(self) -> HeaderColumns:
        """The outer headers of all packets as columns, found in the first 256 bytes of each."""
        sizes = np.minimum(self.lengths, HEADER_BYTES).astype(np.int64)
        parts = [bytes(ffi.buffer(self._data[i], int(size))) for i, size in enumerate(sizes)]
        return header_columns(np.frombuffer(b"".join(parts), np.uint8), np.concatenate(([0], np.cumsum(sizes))))


#: A decision: True for packets that go on, one for each of the batch or one for all.
Decide = Callable[[Inspected], "npt.ArrayLike"]


class _Room:
    """The room of a link's queues, in memory that the program sees too."""

    def __init__(self, link: Link):
        size, queues = ffi.sizeof("struct xk_room"), link.program.queues
        fd = link.program.map_fd("inspecting")
        self._memory = mmap.mmap(fd, -(-size * queues // mmap.PAGESIZE) * mmap.PAGESIZE)
        self.rooms = ffi.from_buffer("struct xk_room[]", self._memory)
        self._queues = queues
        for room in self.rooms[0:queues]:  # of one that ended without a word nothing is under way any more
            room.size = 0
        lib.xk_quiesce()
        for room in self.rooms[0:queues]:
            room.taken = room.sent

    def open(self, packets: int) -> None:
        """Let the program send so many packets to each queue."""
        for room in self.rooms[0 : self._queues]:
            room.size = packets

    def close(self) -> None:
        """Let it send none any more."""
        for room in self.rooms[0 : self._queues]:
            room.size = 0


class Inspector(Forwarder):
    """What :meth:`Bridge.inspect` started.  A context manager; ``close()`` is idempotent.

    An exception of the decision ends the inspection: the packets of that batch are dropped if any rule says
    ``Inspect(otherwise=DROP)``, else passed, and from then on ``otherwise`` counts.  ``close()`` raises it."""

    sink: str = "inspected"

    def __init__(self, a: Link, b: Link, decide: Decide | int, wait: int, cpus: Sequence[int] | None, context: int):
        self._decide = decide
        self._context = ffi.cast("void *", context)
        self._error: BaseException | None = None
        self._rooms = [_Room(link) for link in (a, b)]
        actions = [rule.action for rule in a.pipeline.outcomes]
        self._falls_open = not any(isinstance(x, Inspect) and x.otherwise == DROP for x in actions)
        self._callback = (
            ffi.cast("xk_decide", decide) if isinstance(decide, int) else ffi.callback("xk_decide", self._judge)
        )
        super().__init__(a, b, wait, cpus)

    def _open(self, setup: Setup) -> list[Queues]:
        opened = super()._open(setup)
        for queues in opened:
            queues.places = [(INSPECTORS, 0)] * len(queues.sockets)
        return opened

    def _start_thread(self, a: Any, b: Any, number: int, complete: int, wait: int, cpu: int, out: Any) -> int:
        queues = (self._queues[0].sockets[number].queue, self._queues[-1].sockets[number].queue)
        rooms = [ffi.addressof(room.rooms, queue) for room, queue in zip(self._rooms, queues, strict=True)]
        array = ffi.new("struct xk_room *[2]", rooms)
        started: int = lib.xk_inspect_start(a, b, complete, wait, cpu, self._callback, self._context, array, out)
        return started

    def _start(self, wait: int, cpus: Sequence[int]) -> None:
        super()._start(wait, cpus)
        for room in self._rooms:
            room.open(self.ring_size)

    def _judge(self, _: Any, direction: int, data: Any, sizes: Any, count: int, verdicts: Any) -> None:
        """Called by the C threads."""
        out = np.frombuffer(ffi.buffer(verdicts, count), np.uint8)
        try:
            assert not isinstance(self._decide, int)
            out[:] = np.asarray(self._decide(Inspected(SIDES[direction], data, sizes, count)), np.bool_)
        except BaseException as error:
            out[:] = self._falls_open
            if self._error is None:
                self._error = error
                logger.error("the inspection ended: %s: %s", type(error).__name__, error)
            for room in self._rooms:
                room.close()

    def stop(self) -> None:
        """Stop the inflow, judge what waits, end the threads; idempotent."""
        for room in self._rooms:
            room.close()
        super().stop()

    def close(self) -> None:
        """Stop, and close the sockets; raises what ended the inspection: OSError, or the exception of the decision."""
        super().close()
        error, self._error = self._error, None
        if error is not None:
            raise error


def inspect(
    a: Link, b: Link, decide: Decide | int, *, context: int = 0, wait: Wait = "adaptive",
    cpus: Sequence[int] | None = None,
) -> Inspector:  # fmt: skip
    """Judge the packets of both links' ``Inspect`` rules; see :meth:`Bridge.inspect`."""
    for link in (a, b):
        if link.attachment.mode not in ("native", "generic"):
            raise NotSupported(f"Inspect on {link.device.name}, in mode {link.attachment.mode}", "mode native, generic")
        if not link.program.has_map("inspecting"):
            raise ValueError(f"no rule of pipeline {link.pipeline.name!r} has the action Inspect")
    if len(a.attachment.queues) != len(b.attachment.queues):
        counts = f"{a.device.name} has {len(a.attachment.queues)} queues and {b.device.name} {len(b.attachment.queues)}"
        raise ValueError(f"{counts}: give both as many (ethtool -L)")
    return Inspector(a, b, decide, wait_number(wait), cpus, context)
