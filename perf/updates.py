"""Live change under traffic: does anything get lost, mixed up or left behind, and how long does it take?

    python perf/updates.py [--updates 1000] [--rules 10,100,10000] [--members 1e3,1e6] [--runs 15] [-o FILE]

The soak: a generator sends numbered packets as fast as the port takes them, all are redirected to a socket that Python
reads, and meanwhile one change follows the other: other rules (built ahead), `update`, `replace` and `sync` of sets,
whole pipelines compiled on the spot.  In the end

* the numbers that did not arrive must be those that the ledger names (a full RX ring: Python reads more slowly than a
  generator sends) and the generator's own;
* each packet's mark and rule must be of one ruleset: a mark says which, and rules have other numbers in each;
* between {A, B} and {} a set may change once for each `replace`, however many packets of A and B take turns;
* the rules' counters must sum to what was sent, those that every ruleset has on their own;
* programs of before must be gone, no descriptor more be open, and no memory grow.

The latencies: seconds from the call to its return, medians and 99th percentiles (of few runs the worst), and the CPU
time of the calling thread, which other work on the machine hardly touches.  Each is taken twice: on a quiet port, and
while packets come at full rate, which takes one CPU.  Exit status 1 if anything was lost without a name, mixed or left.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from rich.progress import track
from rich.table import Table
from sets import prefixes

from xdpkit import (
    COUNT,
    DROP,
    PASS,
    REDIRECT,
    Mark,
    Pipeline,
    attach,
    compile_pipeline,
    ip,
    tcp,
    udp,
)
from xdpkit.compiler.built import Built
from xdpkit.kernel.core import lib
from xdpkit.lab import Lab, Port
from xdpkit.lab.template import udp_frame
from xdpkit.language.check import PipelineWarning
from xdpkit.link.link import Link
from xdpkit.sets.live import LiveSet
from xdpkit.terminal import make_console

#: Sources of the packets of the soak, in turns; the set `watch` has both or neither.
PAIR = ("198.18.0.1", "198.18.0.2")
SOURCE_LOW = 28  # where in the frame the low half of the source address is
SHAPES = 4
#: Updates before the first look at memory: caches of Python and LLVM fill.
WARM = 100


# ---- the soak ----


def shape(number: int, denied: Sequence[str], more: int = 0) -> Pipeline:
    """Rulesets that differ in length: the rule that takes a packet is 3 + 2 * number or the next one."""
    pipe = Pipeline(f"shape-{number}")
    deny = pipe.set("deny", ip.src, members=denied, capacity=100_000)
    watch = pipe.set("watch", ip.src, intervals=False)
    pipe.rule(udp, COUNT, name="all")
    pipe.rule(udp, Mark(number), name="mark")
    pipe.rule(deny, DROP, name="deny")
    for i in range(2 * number):
        pipe.rule(tcp.dport == 1000 + i, DROP, name=f"tcp-{i}")
    pipe.rule(watch & udp, REDIRECT, name="in")
    pipe.rule(udp, REDIRECT, name="out")
    for i in range(more):
        pipe.rule(tcp.sport == 2000 + i, PASS, name=f"more-{i}")
    return pipe


class Reader(threading.Thread):
    """Reads the socket and keeps the sums: what must hold of all packets together and of each one."""

    def __init__(self, link: Link, numbers_at: int):
        super().__init__()
        self.link, self.at, self.done = link, numbers_at, threading.Event()
        self.received, self.missing, self.next, self.flips = 0, 0, 0, 0
        self.mixed, self.state = Counter[tuple[int, int]](), -1
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.link.sockets() as sockets:
                self.ready.set()
                while not self.done.is_set():
                    for batch in sockets.batches(timeout=0.2):
                        self.look(batch)
        except BaseException as error:
            self.error = error
            self.ready.set()

    def start(self) -> None:
        self.ready = threading.Event()
        super().start()
        self.ready.wait()

    def look(self, batch: Any) -> None:
        first, last = (int.from_bytes(bytes(batch.frames[i][self.at : self.at + 8])) for i in (0, -1))
        self.missing += first - self.next + (last - first + 1 - len(batch))
        self.next, self.received = last + 1, self.received + len(batch)
        place = batch.rules.astype(np.int64) - 3 - 2 * batch.marks.astype(np.int64)  # 0: in, 1: out
        for i in np.flatnonzero((place < 0) | (place > 1)).tolist():
            self.mixed[int(batch.marks[i]), int(batch.rules[i])] += 1
        states = np.concatenate([[self.state], place]) if self.state >= 0 else place
        self.flips += int(np.count_nonzero(np.diff(states)))
        self.state = int(place[-1])


def memory(link: Link) -> dict[str, int]:
    """Bytes: what the process has, and what the kernel accounts to the maps and programs that it uses."""
    status = Path("/proc/self/status").read_text()
    seen: dict[str, int] = {}
    for entry in os.listdir("/proc/self/fdinfo"):
        try:
            info = dict(line.split(":", 1) for line in Path("/proc/self/fdinfo", entry).read_text().splitlines())
        except OSError:  # the descriptor of the listing itself
            continue
        if "memlock" in info:
            kind = "map_id" if "map_id" in info else "prog_id"
            seen[kind + info[kind]] = int(info["memlock"])
    inner = 0
    for live in link.sets.values():
        with live._table() as table:
            inner += int(Path(f"/proc/self/fdinfo/{table.map.fd}").read_text().split("memlock:", 1)[1].split()[0])
    rss = int(status.split("VmRSS:", 1)[1].split()[0]) * 1024
    return {"process": rss, "kernel": sum(seen.values()) + inner, "descriptors": len(os.listdir("/proc/self/fd"))}


def settled(link: Link, built: Built) -> dict[str, int]:
    """Memory while ``built`` runs: rulesets of other shapes have other maps."""
    link.update(built)
    gc.collect()
    return memory(link)


def still_loaded(programs: list[int]) -> int:
    """How many of the programs with these ids are there."""
    there = 0
    for number in programs:
        if (fd := lib.xk_program_by_id(number)) >= 0:
            os.close(fd)
            there += 1
    return there


def change(turn: int, link: Link, built: list[Built], lists: list[list[str]]) -> str:
    """One change, of five kinds by turns; its name."""
    kind, again = turn % 5, turn // 5
    deny, watch = link.sets["deny"], link.sets["watch"]
    if kind == 0:
        link.update(built[again % SHAPES])
        return "rules, built ahead"
    if kind == 1:
        deny.update(add=lists[2][again % 50 :: 50], remove=lists[2][(again + 25) % 50 :: 50])
        return "set update"
    if kind == 2:
        watch.replace([PAIR, ()][again % 2])
        return "set replace"
    if kind == 3:
        deny.sync(lists[again % 2])
        return "set sync"
    link.update(shape((again + 1) % SHAPES, lists[again % 2][:10], more=20 + again % 7))
    return "whole pipeline"


def soak(left: Port, right: Port, updates: int) -> dict[str, Any]:
    """Change after change while packets arrive; what was lost, mixed and left."""
    some = prefixes(3000, 1)
    nets = [n for n in some if not n.startswith("198.18.")]
    lists = [nets[:1000], nets[500:1500], nets[2000:]]
    built = [Built(p := shape(n, ()), {"xdp": compile_pipeline(p, "xdp")}) for n in range(SHAPES)]
    frame = udp_frame(64, src_mac=left.mac, dst_mac=right.mac, src=PAIR[0])
    with ExitStack() as stack:
        stack.enter_context(right.namespace)
        at = frame.payload_offset
        turns = {"flow_offset": SOURCE_LOW, "flow_base": 1, "flows": 2}  # the sources of PAIR
        generator = stack.enter_context(left.generator([frame.frame], sequence_offset=at, cpu=1, **turns))
        link = stack.enter_context(attach(built[0], right.name, mode="native"))
        reader = Reader(link, at)
        reader.start()
        stack.callback(reader.done.set)
        generator.start()
        done, programs, before, start = Counter[str](), list[int](), {}, time.monotonic()
        for turn in track(range(updates), "changing", console=make_console(stderr=True), transient=True):
            number = link.program.info()["id"]
            done[change(turn, link, built, lists)] += 1
            if link.program.info()["id"] != number:
                programs.append(number)
            if turn == min(WARM, updates // 2):
                before = settled(link, built[0])
        seconds, after = time.monotonic() - start, settled(link, built[0])
        generator.stop()
        generator.settle()
        reader.done.set()
        reader.join()
        if reader.error:
            raise reader.error
        ledger = link.ledger()
        named = {r.name: r.packets for r in ledger.rules}
        arrived = generator.sent - generator.dropped
        # what was sent behind the last packet that was received did not arrive either
        missing = reader.missing + generator.sent - reader.next
        lost = ledger.lost + generator.dropped + ledger.no_socket
        wrong = {
            "lost without a name": missing - lost,
            "packets of a mixture": sum(reader.mixed.values()),
            "half sets": max(0, reader.flips - done["set replace"]),
            "counters off by": abs(ledger.seen - arrived) + abs(named["all"] - arrived),
            "in and out off by": abs(named["in"] + named["out"] - arrived),
            "dropped by mistake": named["deny"],
            "programs of before": still_loaded(programs),
            "descriptors left": after["descriptors"] - before["descriptors"],
            "problems": len(ledger.problems()),
        }
    return {
        "changes": dict(done), "seconds": seconds, "sent": generator.sent, "dropped by generator": generator.dropped,
        "received": reader.received, "lost": {"RX ring full": ledger.rx_ring_full, "FILL empty": ledger.fill_empty},
        "set changes seen": reader.flips, "wrong": wrong, "before": before, "after": after,
    }  # fmt: skip


# ---- latencies ----


def rules(count: int, seed: int) -> Pipeline:
    """``count`` rules of a source prefix and a port; other ones for every seed."""
    pipe, rng = Pipeline("rules"), Random(seed)
    for i in range(count):
        net = IPv4Address(0x0A000000 + (i << 8))
        pipe.rule(ip.src.within(f"{net}/24") & (tcp.dport == rng.randrange(1, 65536)), DROP, name=f"r{i}")
    pipe.rule(udp, DROP, name="flow")
    return pipe


def spread(values: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"median": statistics.median(values), "p99": float(np.quantile(values, 0.99, method="higher"))}


def timed(do: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock, of the thread's CPU, and what came of it."""
    start, cpu = time.perf_counter(), time.thread_time()
    made = do()
    return time.perf_counter() - start, time.thread_time() - cpu, made


def updates(link: Link, count: int, runs: int, traffic: bool) -> dict[str, Any]:
    """Rulesets of ``count`` rules in turn: seconds of declaring, and of each part of the update."""
    parts: dict[str, list[float]] = {
        k: [] for k in ("declare", "compile", "load", "swap", "settle", "update", "update, CPU")
    }
    for run in range(runs):
        declare, _, pipe = timed(partial(rules, count, run))
        wall, cpu, update = timed(partial(link.update, pipe))
        values = (
            declare,
            *(getattr(update, f"{p}_ns") / 1e9 for p in ("compile", "load", "swap", "settle")),
            wall,
            cpu,
        )
        for name, value in zip(parts, values, strict=True):
            parts[name].append(value)
    return {"rules": count, "traffic": traffic, "runs": runs, **{name: spread(v) for name, v in parts.items()}}


def set_changes(link: Link, count: int, runs: int, traffic: bool) -> list[dict[str, Any]]:
    """A set of ``count`` prefixes that packets are looked up in: seconds of each kind of change."""
    members = prefixes(count + max(count // 100, 1), 2)
    spare, members = members[count:], members[:count]
    pipe = Pipeline("sets")
    nets = pipe.set("nets", ip.src, capacity=2 * count)
    pipe.rule(nets, PASS, name="in")
    pipe.rule(udp, DROP, name="flow")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("one", "two")]
        files[0].write_text("\n".join(members) + "\n")
        files[1].write_text("\n".join([*spare, *members[len(spare) :]]) + "\n")
        link.update(pipe)
        live: LiveSet = link.sets["nets"]
        kinds: dict[str, Callable[[int], Any]] = {
            "replace": lambda _: live.replace(str(files[0])),
            "sync, 1 % new": lambda run: live.sync(str(files[1 - run % 2])),
            "update, 100": lambda run: live.update(add=spare[:100], remove=members[run : run + 100]),
        }
        rows = []
        for name, do in kinds.items():
            took = [timed(partial(do, run))[:2] for run in range(runs)]
            wall, cpu = (spread([t[i] for t in took]) for i in (0, 1))
            rows.append(
                {"members": count, "change": name, "traffic": traffic, "runs": runs, "seconds": wall, "CPU": cpu}
            )
    return rows


def latencies(result: dict[str, Any], link: Link, args: argparse.Namespace, *, traffic: bool) -> None:
    """Of all sizes, large ones a third as often."""
    for count in (int(n) for n in args.rules.split(",")):
        runs = args.runs if count <= 1000 else max(3, args.runs // 3)
        result["updates"].append(updates(link, count, runs, traffic))
    for members in (int(float(n)) for n in args.members.split(",")):
        runs = args.runs if members <= 100_000 else max(3, args.runs // 3)
        result["sets"] += set_changes(link, members, runs, traffic)


def report(result: dict[str, Any]) -> bool:
    """The tables; whether all is as it must be."""
    console = make_console() if sys.stdout.isatty() else make_console(width=140)
    s = result["soak"]
    console.print(f"load {result['load']}, {os.cpu_count()} CPUs, Linux {platform.release()}", style="bold")
    told = ", ".join(f"{n} {name}" for name, n in s["changes"].items())
    console.print(f"\n{sum(s['changes'].values()):,} changes in {s['seconds']:.1f} s: {told}")
    rate = s["sent"] / s["seconds"]
    losses = ", ".join(f"{name} {n:,}" for name, n in s["lost"].items())
    console.print(f"{s['sent']:,} packets sent ({rate:,.0f}/s), {s['received']:,} received; ledger: {losses}")
    console.print(", ".join(f"{name}: {n}" for name, n in s["wrong"].items()))
    b, a = s["before"], s["after"]
    sizes = ", ".join(f"{k} {b[k] / 2**20:.1f} -> {a[k] / 2**20:.1f} MiB" for k in ("process", "kernel"))
    console.print(f"memory: {sizes}\n")
    table = Table(title="ms to update to other rules, median (p99)", box=None)
    names = ("declare", "compile", "load", "swap", "settle", "update", "update, CPU")
    for column in ("rules", "traffic", *names):
        table.add_column(column, justify="right")
    for row in result["updates"]:
        table.add_row(f"{row['rules']:,}", "yes" if row["traffic"] else "no", *(_ms(row[name]) for name in names))
    console.print(table)
    table = Table(title="ms to change a set, median (p99)", box=None)
    for column in ("members", "traffic", "change", "clock", "CPU"):
        table.add_column(column, justify="right")
    for row in result["sets"]:
        traffic = "yes" if row["traffic"] else "no"
        table.add_row(f"{row['members']:,}", traffic, row["change"], _ms(row["seconds"]), _ms(row["CPU"]))
    console.print(table)
    return not any(s["wrong"].values())


def _ms(value: dict[str, float]) -> str:
    return f"{value['median'] * 1e3:,.1f} ({value['p99'] * 1e3:,.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--rules", default="10,100,10000")
    parser.add_argument("--members", default="1e3,1e6")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("-o", "--output", dest="json", default="", metavar="FILE")
    args = parser.parse_args()
    warnings.simplefilter("ignore", PipelineWarning)
    result: dict[str, Any] = {"kernel": platform.release(), "load": os.getloadavg()[0], "updates": [], "sets": []}
    with Lab.pair() as ports:
        result["soak"] = soak(*ports, args.updates)
    with Lab.pair() as (left, right):
        frame = udp_frame(64, src_mac=left.mac, dst_mac=right.mac).frame
        with right.namespace, left.generator([frame], cpu=1) as generator, attach(rules(1, 0), right.name) as link:
            latencies(result, link, args, traffic=False)
            generator.start()
            latencies(result, link, args, traffic=True)
            generator.stop()
    ok = report(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))
    sys.exit(not ok)


if __name__ == "__main__":
    main()
