"""What a run costs: CPU time of the machine and of processes, and system calls of a process."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..compiler.bitcode import shipped
from ..kernel.core import check, ffi, lib, text

__all__ = ["Calls", "Cost", "family", "idle_share", "own_seconds", "percentiles"]

_TICK = os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """Seconds that all CPUs have worked, from an arbitrary start: the time that passed less idle and iowait of
    /proc/stat (proc(5)).  The kernel takes those from a clock; what a CPU does it samples with the timer interrupt, and
    misses most of a program that sleeps between two."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (os.cpu_count() or 1) * time.monotonic() - (int(fields[4]) + int(fields[5])) / _TICK


def process_seconds(pid: int) -> float:
    """utime and stime of a process; 0.0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def own_seconds() -> float:
    """utime and stime of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def idle_share(seconds: float = 1.0) -> float:
    """CPUs that work while this process does nothing: what is taken off every figure of the whole machine."""
    before, start = machine_seconds(), time.monotonic()
    time.sleep(seconds)
    return (machine_seconds() - before) / (time.monotonic() - start)


class Cost:
    """From when it is made: CPU seconds of the machine beyond ``idle``, and of this process and ``pids``."""

    def __init__(self, idle: float, pids: Iterable[int] = ()):
        self._idle, self._pids = idle, tuple(child for pid in pids for child in family(pid))
        self._start, self._machine = time.monotonic(), machine_seconds()
        self._own = own_seconds() + sum(map(process_seconds, self._pids))

    def seconds(self) -> tuple[float, float]:
        """(machine, own) so far."""
        machine = machine_seconds() - self._machine - self._idle * (time.monotonic() - self._start)
        return max(0.0, machine), own_seconds() + sum(map(process_seconds, self._pids)) - self._own


class Calls:
    """Counts the system calls of a process; a context manager.  OSError names what the kernel refused."""

    def __init__(self, pid: int):
        code = shipped("syscalls.o")
        out, log = ffi.new("struct xk_program **"), ffi.new("char[]", 1 << 16)
        check(lib.xk_program_open(code, len(code), b"syscalls", out), "syscalls")
        self._program, self._link = out[0], -1
        try:
            check(lib.xk_program_set_u32(self._program, b"process", pid), "syscalls")
            check(lib.xk_program_load(self._program, log, len(log)), f"counting system calls: {text(log)}")
            self._link = check(lib.xk_link_trace(lib.xk_program_fd(self._program)), "syscalls")
        except BaseException:
            self.close()
            raise

    def count(self) -> int:
        """System calls since it was made."""
        out = ffi.new("uint64_t *")
        check(lib.xk_counters(check(lib.xk_program_map(self._program, b"calls")), 1, 1, out), "syscalls")
        return int(out[0])

    def close(self) -> None:
        """Stop counting; again is harmless."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        if self._program is not None:
            lib.xk_program_close(self._program)
            self._program = None

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def percentiles(delays_ns: NDArray[np.uint32] | NDArray[np.uint64]) -> tuple[float, float, float] | None:
    """50th, 99th and 99.9th percentile in microseconds; None of nothing."""
    if not len(delays_ns):
        return None
    low, high, highest = np.percentile(delays_ns, (50, 99, 99.9)) / 1000
    return float(low), float(high), float(highest)
