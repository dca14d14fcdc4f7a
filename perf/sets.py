"""Seconds to load, replace and sync sets of 1,000 to 10,000,000 prefixes: xdpkit beside `nft -f` and `ipset restore`.

    python perf/sets.py [--sizes 1e3,1e4,1e5,1e6,1e7] [--runs 3] [--peer-seconds 120] [-o FILE] [--png FILE]

Every tool reads the same IPv4 prefixes from a file in its own format, on a disk cache that is warm: distinct /24, every
other one narrowed to a /32, in random order and without overlaps, which nftables' interval sets refuse.  A run of
xdpkit is in this process (a command would add its start, 0.5 s); those of the peers are whole commands in a network
namespace of their own, into an empty set.  The tables have medians: seconds by the clock, and seconds of CPU, which
other work on the machine hardly touches (all three tools use one CPU).  `parse` is part of `replace`; `sync 1%` reads
the file again with one member in a hundred exchanged.  A peer that took longer than --peer-seconds for one size is not
asked for larger ones.  The PNG needs matplotlib: pip install 'xdpkit[perf]'.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from rich.table import Table

from xdpkit import ip
from xdpkit.lab import Namespace
from xdpkit.language.sets import SetSpec, declare
from xdpkit.sets.columns import read
from xdpkit.sets.live import LiveSet
from xdpkit.terminal import make_console

PEERS = ("nft -f", "ipset restore")


def prefixes(count: int, seed: int) -> list[str]:
    """``count`` distinct prefixes that do not overlap."""
    rng = np.random.default_rng(seed)
    nets = rng.permutation(1 << 24)[:count]
    hosts = rng.integers(0, 256, count)
    return [
        f"{n >> 16}.{n >> 8 & 255}.{n & 255}.{h}/32" if i % 2 else f"{n >> 16}.{n >> 8 & 255}.{n & 255}.0/24"
        for i, (n, h) in enumerate(zip(nets.tolist(), hosts.tolist(), strict=True))
    ]


def write_files(folder: Path, members: list[str]) -> None:
    """The same members for each tool; ``changed.txt`` has one in a hundred exchanged."""
    count = len(members)
    spare = iter(prefixes(count + max(1, count // 100), 1)[count:])  # of the same shuffle: they overlap nothing
    changed = [next(spare) if i % 100 == 7 else m for i, m in enumerate(members)]
    (folder / "list.txt").write_text("\n".join(members) + "\n")
    (folder / "changed.txt").write_text("\n".join(changed) + "\n")
    elements = ",\n".join(members)
    (folder / "nft").write_text(
        "table inet t {\n set s {\n type ipv4_addr; flags interval;\n elements = { " + elements + " }\n }\n}\n"
    )
    lines = [f"create s hash:net maxelem {max(count, 65536)} hashsize {1 << max(10, (count // 4).bit_length())}"]
    (folder / "ipset").write_text("\n".join(lines + [f"add s {m}" for m in members]) + "\n")


#: Seconds by the clock and of CPU.
Times = tuple[float, float]


def timed(do: Callable[[], Any]) -> Times:
    """How long it takes in this process."""
    start, cpu = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - start, time.process_time() - cpu


def ours(spec: SetSpec, folder: Path) -> tuple[dict[str, Times], float]:
    """One run of each of our operations; the kernel's bytes per member."""
    took = {"parse": timed(lambda: read(spec, folder / "list.txt"))}
    with LiveSet(spec) as live:
        took["replace"] = timed(lambda: live.replace(folder / "list.txt"))
        took["sync, same"] = timed(lambda: live.sync(folder / "list.txt"))
        took["sync 1%"] = timed(lambda: live.sync(folder / "changed.txt"))
        took["dump"] = timed(live.entries)
        with live._table() as table:
            info = Path(f"/proc/self/fdinfo/{table.map.fd}").read_text()
        return took, int(info.split("memlock:", 1)[1].split(maxsplit=1)[0]) / len(live)


def peer(name: str, folder: Path, limit: float) -> Times | None:
    """One run of ``nft -f`` or ``ipset restore``; None if it failed or took longer than ``limit``."""
    tool = name.split(maxsplit=1)[0]
    command = ["nft", "-f", f"{folder}/nft"] if tool == "nft" else ["ipset", "restore", "-file", f"{folder}/ipset"]
    with Namespace("peer") as namespace:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        try:
            done = namespace.run(command, capture_output=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return None
        took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            print(f"{name}: {done.stderr.decode(errors='replace')[:200]}", file=sys.stderr)
            return None
        return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(count: int, runs: int, peers: list[str], limit: float) -> dict[str, Any]:
    """Medians of all tools for one size."""
    spec = declare(
        "perf", (ip.src,), capacity=count, intervals=True, timeouts=False, pinned=False, actions=(), members=(),
        source=None,
    )  # fmt: skip
    samples: dict[str, list[Times]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, prefixes(count, 1))
        for _ in range(runs):  # by turns
            mine, member_bytes = ours(spec, folder)
            for key, value in mine.items():
                samples.setdefault(key, []).append(value)
            for tool in list(peers):
                took = peer(tool, folder, limit)
                if took is None:
                    peers.remove(tool)
                else:
                    samples.setdefault(tool, []).append(took)
    medians = [{key: statistics.median(v[i] for v in values) for key, values in samples.items()} for i in (0, 1)]
    return {"members": count, "clock": medians[0], "cpu": medians[1], "bytes per member": member_bytes}


def report(rows: list[dict[str, Any]]) -> None:
    """Two tables."""
    console = make_console() if sys.stdout.isatty() else make_console(width=140)
    columns = ["parse", "replace", "sync, same", "sync 1%", "dump", *PEERS]
    for which, words in (("clock", "seconds by the clock"), ("cpu", "seconds of CPU")):
        table = Table(title=f"{words} (medians), Linux {platform.release()}", box=None)
        for column in ("members", *columns, "bytes per member"):
            table.add_column(column, justify="right")
        for row in rows:
            cells = [f"{row[which][c]:.3f}" if c in row[which] else "-" for c in columns]
            table.add_row(f"{row['members']:,}", *cells, f"{row['bytes per member']:.0f}")
        console.print(table)


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """A curve per tool over the number of members, both axes logarithmic."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("perf/sets.py: --png needs matplotlib: pip install 'xdpkit[perf]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for column, label in (
        ("replace", "xdpkit replace"),
        ("sync 1%", "xdpkit sync, 1 % changed"),
        *((p, p) for p in PEERS),
    ):
        points = [(row["members"], row["cpu"][column]) for row in rows if column in row["cpu"]]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="IPv4 prefixes", ylabel="seconds of CPU from file to kernel")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e3,1e4,1e5,1e6,1e7")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer-seconds", type=float, default=120)
    parser.add_argument("-o", "--output", dest="json", default="", metavar="FILE")
    parser.add_argument("--png", default="", metavar="FILE")
    args = parser.parse_args()
    sizes = [int(float(n)) for n in args.sizes.split(",")]
    peers = [p for p in PEERS if shutil.which(p.split()[0])]
    rows = []
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        for count in progress.track(sizes, description="measuring"):
            rows.append(measure(count, args.runs, peers, args.peer_seconds))
    report(rows)
    if args.json:
        Path(args.json).write_text(json.dumps({"kernel": platform.release(), "seconds": rows}, indent=1))
    if args.png:
        plot(rows, args.png)


if __name__ == "__main__":
    main()
