"""Where the time of sending goes, and what a sleep costs: why a path can be no faster on this machine.

    python perf/profile.py [--duration 3] [-o FILE]      # as root; wants perf: apt-get install linux-perf

Each path sends 64 bytes from one CPU, which perf samples with all that runs there (cpu-clock, call chains).  On veth
the sending CPU also runs the receiving port's softirq, after each packet, because that is where packet sockets and
AF_XDP in copy mode end: in __dev_direct_xmit().  The columns are ns of a packet: `system calls` all the kernel does;
of it `receiver`, the softirq of the receiving port (`copy`: of that the copy into a page that XDP may write,
skb_pp_cow_data(), because the sender's skb is none), and `skb`, allocating the packet's buffer.  `bound` is how many
times as fast as send() the path would be if user space cost nothing.

A sleep is measured as CPU time of this thread, which is then charged for the timer, the way into idle and the way back.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from xdpkit import attach
from xdpkit.bench.send import SEND
from xdpkit.bench.site import Site, dropping
from xdpkit.bench.traffic import CPUS
from xdpkit.lab import Lab
from xdpkit.terminal import make_console

PATHS = ("send", "sendmmsg", "afxdp-tx")
#: A column, and the functions of which the first that perf knows is meant.
PARTS = {
    "kernel": ("do_syscall_64", "entry_SYSCALL_64_after_hwframe"),
    "receiver": ("do_softirq.part.0", "do_softirq", "__do_softirq"),
    "copy": ("skb_pp_cow_data",),
    "skb": ("sock_alloc_send_pskb",),
}
SLEEPS = (100_000, 500_000)


@dataclass
class Row:
    """A path: packets a second, and ns of a packet in each part."""

    path: str
    rate: float
    kernel: float
    receiver: float
    copy: float
    skb: float

    @property
    def total(self) -> float:
        """ns of a packet."""
        return 1e9 / self.rate


def shares(data: str) -> dict[str, float]:
    """Of all samples, the share that has a function in its call chain."""
    command = ["perf", "report", "--stdio", "--children", "-g", "none", "--sort", "sym", "-i", data]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s+([\d.]+)%\s+[\d.]+%\s+\[[k.]\] (\S+)", text, flags=re.MULTILINE)
    out: dict[str, float] = {}
    for percent, name in found:
        out.setdefault(name, float(percent) / 100)
    return out


def profile(name: str, seconds: float) -> Row:
    """Send on a fresh pair, sampled."""
    path = next(p for p in SEND if p.name == name)
    with Lab.pair(names=("sender", "receiver")) as (left, right), tempfile.TemporaryDirectory() as folder:
        with right.namespace:
            counter = attach(dropping(), right.name, mode="native")
        with counter, left.namespace, path.open(Site(left, 64, CPUS[1])) as running:
            running.poll()
            data = str(Path(folder, "perf.data"))
            command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-C", str(CPUS[1]), "-g", "-o", data]
            record = subprocess.Popen([*command, "--", "sleep", str(seconds)], stderr=subprocess.DEVNULL)
            start, before = time.monotonic(), counter.ledger().seen
            while record.poll() is None:
                running.poll()
            rate = (counter.ledger().seen - before) / (time.monotonic() - start)
        if record.returncode:
            raise OSError(f"perf record ended with status {record.returncode}: may this machine sample its CPUs?")
        found = shares(data)
    parts = {k: next((found[n] for n in names if n in found), 0.0) * 1e9 / rate for k, names in PARTS.items()}
    return Row(name, rate, **parts)


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def sleep_us(nanoseconds: int, seconds: float = 0.5) -> float:
    """us of CPU time that one clock_nanosleep() takes, the median of three tries."""
    libc, pause, tries = ctypes.CDLL(None), _Timespec(0, nanoseconds), []
    for _ in range(3):
        times, start, cpu = 0, time.monotonic(), time.thread_time()
        while time.monotonic() - start < seconds:
            libc.clock_nanosleep(1, 0, ctypes.byref(pause), None)
            times += 1
        tries.append((time.thread_time() - cpu) / times * 1e6)
    return sorted(tries)[1]


def table(rows: list[Row]) -> Table:
    """A row for each path; each is compared with the first."""
    out = Table(box=None, title="send, 64 bytes: ns of a packet", title_justify="left")
    for name in ("path", "packets/s", "all", "user", "system calls", "receiver", "copy", "skb", "x send", "bound"):
        out.add_column(name, justify="left" if name == "path" else "right")
    for r in rows:
        numbers = (r.total, r.total - r.kernel, r.kernel, r.receiver, r.copy, r.skb)
        ratios = (f"{r.rate / rows[0].rate:.2f}", f"{rows[0].total / r.kernel:.2f}")
        out.add_row(r.path, f"{r.rate / 1e6:.2f} M", *(f"{n:.0f}" for n in numbers), *ratios)
    return out


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", "--seconds", dest="seconds", type=float, default=3.0)
    parser.add_argument("-o", "--output", dest="json", type=Path)
    args = parser.parse_args()
    if not shutil.which("perf"):
        print("perf/profile.py wants perf: apt-get install linux-perf", file=sys.stderr)
        return 1
    os.sched_setaffinity(0, {CPUS[1]})
    rows = [profile(name, args.seconds) for name in PATHS]
    sleeps = {ns: sleep_us(ns) for ns in SLEEPS}
    console = make_console(width=None if sys.stdout.isatty() else 140)
    console.print(table(rows))
    for ns, cost in sleeps.items():
        console.print(f"a sleep of {ns // 1000} us: {cost:.1f} us of CPU time")
    if args.json:
        result = {"send": [asdict(r) for r in rows], "sleep_us": {str(ns): cost for ns, cost in sleeps.items()}}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
