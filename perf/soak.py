"""The datapath for as long as you like: does memory grow, does a frame or a packet get lost?

    python perf/soak.py [--duration 600] [-o FILE]

Packets of 64 bytes come as fast as the port takes them.  They are counted in C, then written to /dev/null as pcapng,
read in Python, and forwarded to another device; then Python sends as many as it can.  Most of the time is for the
first: some six minutes at 12 million packets a second carry the rings' 32-bit indices around.  After each

* every packet that was sent is accounted for: at the port's ring, before the hook, or by the ledger to the last one;
* every frame of the UMEM is back where it belongs;
* the process is no larger than after its first seconds: resident memory, and what malloc handed out.

Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress
from rich.table import Table

from xdpkit import SocketOptions, attach, forward
from xdpkit.bench.forwarding import middle
from xdpkit.bench.site import dropping, everything
from xdpkit.bench.traffic import CPUS, frame_for
from xdpkit.lab import Lab
from xdpkit.lab.generator import Generator
from xdpkit.lab.port import Port
from xdpkit.terminal import make_console

SIZE = 64
#: Bytes by which a process may seem to grow: caches of Python and of the counters' reader.
SLACK = 1 << 20
_PAGE = 4096


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    ]


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _Mallinfo


def memory() -> tuple[int, int]:
    """Bytes resident (/proc/self/statm) and bytes that malloc has handed out (mallinfo2(3))."""
    gc.collect()
    info = _mallinfo2()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE, info.uordblks + info.hblkhd


@dataclass
class Result:
    """``sent``; ``at_port``: of them lost at the receiving port's ring, before any hook; ``lost``: by the ledger;
    ``done``: by what was tried; bytes by which the process grew; ``wrong``: what does not sum."""

    name: str
    seconds: float = 0.0
    sent: int = 0
    at_port: int = 0
    lost: int = 0
    done: int = 0
    resident: int = 0
    malloc: int = 0
    wrong: list[str] = field(default_factory=list)

    def want(self, what: str, got: object, expected: object) -> None:
        """Note what is not as it should be."""
        if got != expected:
            self.wrong.append(f"{what}: {got}, expected {expected}")


def run(result: Result, seconds: float, step: Callable[[], object], tick: Callable[[float], None]) -> None:
    """Call ``step`` for that long, and weigh the process after a tenth of it and at the end."""
    start, first = time.monotonic(), None
    while (passed := time.monotonic() - start) < seconds:
        step()
        tick(passed)
        if first is None and passed > seconds / 10:
            first = memory()
    last = memory()
    first = first or last
    result.seconds, result.resident, result.malloc = passed, last[0] - first[0], last[1] - first[1]


@contextmanager
def flood(port: Port, result: Result, dst_mac: str = "") -> Iterator[None]:
    """Packets as fast as they go, until the block ends and the last has arrived."""
    with Generator(port, [frame_for(port, SIZE, dst_mac)], cpu=CPUS[0]) as generator:
        generator.start()
        try:
            yield
        finally:
            generator.stop()
            generator.settle(30)
            result.sent, result.at_port = generator.sent, generator.dropped


def receive(result: Result, seconds: float, tick: Callable[[float], None]) -> None:
    """Count, write or read."""
    with Lab.pair(names=("sender", "receiver")) as (left, right), right.namespace:
        with attach(everything(), right.name, mode="native") as link, link.sockets() as sockets:
            if result.name == "read":

                def step() -> None:
                    deadline = time.monotonic() + 0.5
                    for batch in sockets.batches(timeout=0.1):
                        result.done += len(batch)
                        if time.monotonic() > deadline:
                            return

                with flood(left, result):
                    run(result, seconds, step, tick)
                result.done += sum(map(len, sockets.batches(timeout=0)))
            else:
                cpus = [CPUS[1]]
                workers = sockets.count(cpus=cpus) if result.name == "count" else sockets.write("/dev/null", cpus=cpus)
                with workers, flood(left, result):
                    run(result, seconds, lambda: time.sleep(0.5), tick)
                result.done = workers.stats().packets
            for x in sockets.xsks:
                frames = x.frames()
                result.want("frames", frames["free"] + frames["fill"], frames["frames"])
        ledger = link.ledger()
    result.lost = ledger.lost
    result.want("seen", ledger.seen, result.sent - result.at_port)
    result.want("done", result.done, ledger.seen - ledger.lost)
    result.want("ledger", ledger.problems(), ())


def forwarding(result: Result, seconds: float, tick: Callable[[float], None]) -> None:
    """From one device to another, in the frames where packets arrived."""
    with middle(1500) as (left, a, b, right):
        with right.namespace:
            counter = attach(dropping(), right.name, mode="native")
        with counter, a.namespace:
            with attach(everything(), "a", mode="native") as link, attach(everything(), "b", mode="native") as other:
                with forward(link, other, cpus=[CPUS[1]]) as work:
                    with flood(left, result, right.mac):
                        run(result, seconds, lambda: time.sleep(0.5), tick)
                    work.stop()
                    for frames in work.frames():
                        result.want("frames", frames["free"] + frames["fill"], frames["frames"])
                    result.done = work.stats().written
                ledger = link.ledger()
            arrived, at_port = counter.ledger().seen, b.stats()["tx_dropped"]
    result.lost = ledger.lost + at_port
    result.want("seen", ledger.seen, result.sent - result.at_port)
    result.want("done", result.done, ledger.seen - ledger.lost)
    result.want("arrived", arrived + at_port, result.done)
    result.want("ledger", ledger.problems(), ())


def sending(result: Result, seconds: float, tick: Callable[[float], None]) -> None:
    """Python sends rows of an array."""
    with Lab.pair(names=("sender", "receiver")) as (left, right):
        with right.namespace:
            counter = attach(dropping(), right.name, mode="native")
        options = SocketOptions(tx=True)
        with counter, left.namespace, attach(everything(), left.name, mode="native", options=options) as link:
            with link.sockets() as sockets:
                rows = np.tile(np.frombuffer(frame_for(left, SIZE), np.uint8), (512, 1))

                def step() -> None:
                    for _ in range(1000):
                        result.sent += sockets.send(rows)
                        sockets.complete()

                run(result, seconds, step, tick)
                while sockets.xsks[0].frames()["tx"]:
                    sockets.complete()
                frames = sockets.xsks[0].frames()
                result.want("frames", frames["free"] + frames["fill"], frames["frames"])
            result.lost = left.stats()["tx_dropped"]
            result.done = counter.ledger().seen
    result.want("arrived", result.done + result.lost, result.sent)


#: What is tried, how, and its share of the time.
PARTS: tuple[tuple[str, Callable[[Result, float, Callable[[float], None]], None], float], ...] = (
    ("count", receive, 0.7),
    ("write", receive, 0.1),
    ("read", receive, 0.08),
    ("forward", forwarding, 0.07),
    ("send", sending, 0.05),
)


def table(results: list[Result]) -> Table:
    """One row each."""
    out = Table(box=None, title="64 bytes, native copy, one queue", title_justify="left")
    for name in ("what", "seconds", "sent", "lost at port", "lost after", "done", "grew KiB", "malloc KiB", "sums"):
        out.add_column(name, justify="left" if name in ("what", "sums") else "right")
    for r in results:
        numbers = (r.sent, r.at_port, r.lost, r.done, r.resident // 1024, r.malloc // 1024)
        out.add_row(r.name, f"{r.seconds:.0f}", *(f"{n:,}" for n in numbers), "; ".join(r.wrong) or "yes")
    return out


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", "--seconds", dest="seconds", type=float, default=600.0)
    parser.add_argument("-o", "--output", dest="json", type=Path)
    args = parser.parse_args()
    results = []
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("soak", total=args.seconds)
        before = 0.0
        for name, part, share in PARTS:
            result = Result(name)
            progress.update(task, description=name)
            part(result, share * args.seconds, lambda done: progress.update(task, completed=before + done))  # noqa: B023
            before += share * args.seconds
            for what, grew in (("resident memory", result.resident), ("malloc", result.malloc)):
                if grew > SLACK:
                    result.wrong.append(f"{what} grew by {grew:,} bytes")
            results.append(result)
    make_console(width=None if sys.stdout.isatty() else 140).print(table(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    return any(r.wrong for r in results)


if __name__ == "__main__":
    sys.exit(main())
