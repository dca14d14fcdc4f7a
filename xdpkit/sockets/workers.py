"""C threads that drain the sockets of a link into a sink, one per queue: count, or write a pcapng file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import IO, Any, Protocol

from ..device.placement import place
from ..files import pcapng
from ..files.output import append_blocks
from ..kernel.core import check, ffi, lib
from ..kernel.loaded import LoadedProgram
from ..language.rule import Rule
from .attached import Attached
from .copies import CopiesSocket
from .options import WAITS, Wait
from .packet_socket import PacketSocket
from .xsk import Socket, SocketStats

__all__ = ["WAITS", "WorkerStats", "Workers", "open_capture", "wait_number", "worker_stats"]


#: Seconds between two Interface Statistics Blocks in a capture file.  So also a file whose writer was killed says how
#: many packets there were and how many were lost.
STATISTICS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Totals of the workers: packets and bytes that they received, that the sink wrote, and that it refused; batches.

    ``looks``: how often the ring was empty.  ``nudges``: how many of these looks made a system call (a busy poll, or a
    wake-up that the driver requested).  ``waits``: how often a worker slept.  ``error``: the errno that ended a worker,
    or 0.  ``cpus``: the CPUs that they are pinned to, -1 for a worker that is not.  ``completed``: checksums that
    :func:`xdpkit.forward` completed."""

    packets: int = 0
    bytes: int = 0
    written: int = 0
    refused: int = 0
    batches: int = 0
    looks: int = 0
    nudges: int = 0
    waits: int = 0
    error: int = 0
    cpus: tuple[int, ...] = ()
    completed: int = 0

    def __add__(self, other: WorkerStats) -> WorkerStats:
        return WorkerStats(
            self.packets + other.packets,
            self.bytes + other.bytes,
            self.written + other.written,
            self.refused + other.refused,
            self.batches + other.batches,
            self.looks + other.looks,
            self.nudges + other.nudges,
            self.waits + other.waits,
            self.error or other.error,
            self.cpus + other.cpus,
            self.completed + other.completed,
        )


class Drained(Protocol):
    """The part of :class:`xdpkit.Sockets` that workers need."""

    _attached: Attached
    _packet: PacketSocket | CopiesSocket | None

    @property
    def xsks(self) -> list[Socket]: ...

    def _started(self, workers: Workers) -> None: ...

    def _ended(self, name: str, total: WorkerStats) -> None: ...

    def stop_inflow(self) -> None: ...

    def _takes(self, rule: Rule) -> bool: ...

    def stats(self) -> SocketStats: ...


def open_capture(target: str | os.PathLike[str]) -> IO[bytes]:
    """Open a capture file for writing; "-" is standard output.  OSError says what is wrong with the path.

    The old content of the file stays until the workers start, so that a run that cannot start loses nothing.
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
    """C threads, one for each socket, that move packets from the sockets to a sink.  It is a context manager.  It is
    made by :meth:`xdpkit.Sockets.count` and :meth:`xdpkit.Sockets.write`, which list the errors of starting."""

    def __init__(
        self,
        sockets: Drained,
        target: str | os.PathLike[str] | IO[bytes] | None,
        *,
        limit: int = 0,
        snaplen: int = 0,
        cpus: Sequence[int] | None = None,
        wait: Wait | None = None,
    ):
        self._wait = wait_number(wait or ("nap" if isinstance(sockets._packet, CopiesSocket) else "adaptive"))
        self.ended: bool = False
        self.name = "counted" if target is None else "written"
        self._sockets, self._handles = sockets, list[Any]()
        self._total = WorkerStats()
        self._start_ns = time.time_ns()
        queues = [x.queue for x in sockets.xsks] or [0]
        if cpus is not None and len(cpus) != len(queues):
            raise ValueError(f"{len(cpus)} cpus for {len(queues)} queues: one each is wanted")
        cpus = place(sockets._attached.device, queues) if cpus is None else cpus
        self._file, self._owned = self._target(target)
        sink = ffi.new("struct xk_sink **")
        if self._file is None:
            check(lib.xk_sink_count(limit, len(queues), sink), "sink")
        else:
            self._begin(self._file, self._header(queues, snaplen))
            interval_ms = round(STATISTICS_SECONDS * 1000)
            if isinstance(sockets._packet, CopiesSocket):
                sockets._packet.keep(snaplen)
            result = lib.xk_sink_pcapng(self._file.fileno(), limit, snaplen, len(queues), interval_ms, sink)
            check(result, "capture", "raise 'ulimit -v'" if result == -errno.ENOMEM else "")
        self._sink = sink[0]
        self._name_rules()
        sockets._started(self)
        try:
            for number, queue in enumerate(queues):
                self._start(number, queue, cpus[number])
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
        """Truncate the file at its position, unless the shell appends to it (>>), and write ``header``.  The workers
        write to the descriptor, so nothing may stay in the buffer of ``file``."""
        try:
            appends = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and not appends:
                file.truncate()
            append_blocks(file, header)
        except OSError as error:
            if self._owned:
                file.close()
            raise OSError(error.errno, error.strerror, str(file.name)) from None

    def _start(self, number: int, queue: int, cpu: int) -> None:
        out = ffi.new("struct xk_worker **")
        if self._sockets._packet is not None:
            result = self._sockets._packet.start_worker(self._sink, self._wait, cpu, out)
        else:
            result = lib.xk_worker_start_xsk(
                self._sockets.xsks[number].xsk, self._sink, number, queue, self._wait, cpu, out
            )
        check(result, f"worker of queue {queue}")
        self._handles.append(out[0])

    def _header(self, queues: Sequence[int], snaplen: int) -> bytes:
        at = self._sockets._attached
        rules = [f"{r.name}: {r.expr}" for r in at.program.pipeline.outcomes if self._sockets._takes(r)]
        blocks = pcapng.section("xdpkit")
        for queue in queues:
            blocks += pcapng.interface(
                at.device.name,
                description=f"{at.device.name}{f' queue {queue}' if at.attachment.queues else ''}: {at.attachment}",
                filter_text="; ".join(rules),
                snaplen=snaplen,
            )
        return blocks

    def __repr__(self) -> str:
        at, number = self._sockets._attached, len(self._handles)
        state = "ended" if self.ended else f"{number} running"
        return f"<Workers on {at.device.name}: packets are {self.name}, {state}>"

    def _name_rules(self, program: LoadedProgram | None = None) -> None:
        """Let the sink write the name of the rule with each packet, where packets carry the number of their rule.  It
        is called again when the link runs another ``program``."""
        at = self._sockets._attached
        program = program or at.program
        if self._file is None or not (at.attachment.timestamps or isinstance(self._sockets._packet, CopiesSocket)):
            return
        texts = [ffi.new("char[]", f"rule {rule.name}".encode()) for rule in program.pipeline.outcomes]
        check(lib.xk_sink_rules(self._sink, len(texts), ffi.new("char *[]", texts)), "capture")

    @property
    def done(self) -> bool:
        """Whether no more packets will come: the limit is reached, a write failed, or the pipeline is no longer on the
        device (``link.lost`` says why).  It raises no error."""
        try:
            self._sockets._attached.check()
        except OSError:
            return True
        return self.ended or bool(lib.xk_sink_done(self._sink))

    def stats(self) -> WorkerStats:
        """The totals of all workers so far; after close() the final ones."""
        return sum(self.each(), WorkerStats()) if not self.ended else self._total

    def each(self) -> list[WorkerStats]:
        """The totals of each worker, in the order of the sockets."""
        raw, out = ffi.new("struct xk_worker_stats *"), []
        for handle in self._handles:
            lib.xk_worker_stats(handle, raw)
            out.append(worker_stats(raw))
        return out

    def close(self) -> None:
        """Stop the inflow, let the threads drain the rings, end them, and finish the file; idempotent.  OSError names
        the file where a write failed, the queue where a worker ended on an error."""
        if self.ended:
            return
        self._sockets.stop_inflow()
        for handle in self._handles:
            lib.xk_worker_stop(handle)
        for handle in self._handles:
            lib.xk_worker_wait(handle)
        raw = ffi.new("struct xk_worker_stats *")
        each = []
        for handle in self._handles:
            lib.xk_worker_join(handle, raw)
            each.append(worker_stats(raw))
        self._handles.clear()
        lib.xk_sink_close(self._sink)
        self._total = sum(each, WorkerStats())
        self.ended = True
        self._sockets._ended(self.name, self._total)
        self._finish(each)

    def _finish(self, each: list[WorkerStats]) -> None:
        if self._file is None:
            return
        file, now = self._file, time.time_ns()
        try:
            if self._total.error:
                raise OSError(self._total.error, os.strerror(self._total.error), str(self._file.name))
            stats = [x.stats() for x in self._sockets.xsks] or [self._sockets.stats()]
            blocks = b""
            for number, (worker, socket) in enumerate(zip(each, stats, strict=False)):
                lost = socket.rx_dropped + socket.rx_ring_full
                counts = pcapng.InterfaceStatistics(
                    received=worker.packets + lost,
                    dropped=0,
                    accepted=worker.packets + lost,
                    os_dropped=lost,
                    delivered=worker.written,
                )
                blocks += pcapng.statistics(number, now, self._start_ns, counts)
            append_blocks(file, blocks)
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


def wait_number(wait: Wait) -> int:
    """The number XK_WAIT_* of ``wait``.  ValueError lists the choices."""
    if wait not in WAITS:
        raise ValueError(f"wait {wait!r}: {', '.join(WAITS)}")
    return WAITS.index(wait)


def worker_stats(raw: Any) -> WorkerStats:
    """The WorkerStats of a struct xk_worker_stats."""
    counts = {f.name: int(getattr(raw, f.name)) for f in fields(WorkerStats) if f.name != "cpus"}
    return WorkerStats(**counts, cpus=(int(raw.cpu),))
