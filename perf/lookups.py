"""Nanoseconds that sets, limits and steps cost a packet (BPF_PROG_TEST_RUN, medians), and how a set's cost grows.

    python perf/lookups.py [--sizes 1e3,1e4,1e5,1e6,1e7] [--runs 5] [-o FILE] [--png FILE]

The first table asks sets of many sizes: a hash of addresses and a trie of prefixes (half of them /24, half /32).
`warm` repeats one packet, so that all it touches is in the caches: what the structure itself costs.  `spread` takes
2,000 packets to random members in turn, 20 runs each: most of what it touches was last touched long ago.  The second
table is what a rule adds to a program of one rule that reads the same header.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from rich.table import Table

from xdpkit import COUNT, DROP, Mark, Pipeline, ip, limit, sample, udp
from xdpkit.compiler.built import Built
from xdpkit.kernel.loaded import LoadedProgram
from xdpkit.link.ruleset import Ruleset
from xdpkit.sets.columns import Columns
from xdpkit.terminal import make_console

REPEAT, SPREAD, TURNS = 200_000, 2_000, 20
HEAD = bytes.fromhex("0200000000020200000000010800450000320000000040110000")
TAIL = bytes.fromhex("c0000201") + (40000).to_bytes(2) + (9).to_bytes(2) + bytes(26)


def frame(source: int) -> bytes:
    """64 bytes of UDP from that address."""
    return HEAD + source.to_bytes(4) + TAIL


def members(size: int, *, prefixes: bool) -> Columns:
    """So many distinct /24 networks, every other one narrowed to a /32, or addresses; random, the same each time."""
    picked = np.random.default_rng(1).permutation(1 << 24)[:size].astype(np.uint32)
    values = (picked << 8) | (np.arange(size, dtype=np.uint32) & 1) * 7
    keys = np.ascontiguousarray(values.astype(">u4")).view(np.uint8).reshape(-1, 4)
    bits = np.where(np.arange(size) & 1, 32, 24) if prefixes else np.full(size, 32)
    return Columns(keys, bits.astype(np.uint32), np.zeros(size, np.uint32), np.zeros(size))


def warm(program: LoadedProgram, runs: int, source: int) -> float:
    """One packet again and again."""
    return statistics.median(program.test_run(frame(source), repeat=REPEAT)[1] for _ in range(runs))


def spread(program: LoadedProgram, runs: int, sources: list[int]) -> float:
    """Many packets in turn."""

    def one() -> float:
        return statistics.fmean(program.test_run(frame(s), repeat=TURNS)[1] for s in sources)

    return statistics.median(one() for _ in range(runs))


def curve(kind: str, size: int, runs: int) -> dict[str, Any]:
    """A set of one size."""
    pipe = Pipeline("set")
    pipe.rule(pipe.set("members", ip.src, intervals=kind == "trie", capacity=size), DROP)
    columns = members(size, prefixes=kind == "trie")
    picked = random.Random(1).sample(range(size), min(size, SPREAD))
    sources = [int.from_bytes(columns.keys[row].tobytes()) for row in picked]
    with Ruleset(Built(pipe, {}), "xdp") as ruleset:
        ruleset.sets["members"].replace(columns)
        return {
            "kind": kind, "members": size, "warm": warm(ruleset.program, runs, sources[0]),
            "spread": spread(ruleset.program, runs, sources), "absent": warm(ruleset.program, runs, 0xFFFFFFFE),
        }  # fmt: skip


def costs(runs: int) -> list[dict[str, Any]]:
    """What conditions and steps add."""

    def rules(add: Callable[[Pipeline], object]) -> float:
        pipe = Pipeline("cost")
        add(pipe)
        pipe.rule(udp & (ip.ttl == 0), DROP, name="base")
        with Ruleset(Built(pipe, {}), "xdp") as ruleset:
            return warm(ruleset.program, runs, 0xC6120001)

    def learned(pipe: Pipeline) -> None:
        pipe.rule(udp, pipe.set("seen", ip.src, intervals=False, timeouts=True).add(timeout=60))

    cases: dict[str, Callable[[Pipeline], object]] = {
        "nothing": lambda pipe: None,
        "COUNT": lambda pipe: pipe.rule(udp, COUNT),
        "Mark": lambda pipe: pipe.rule(udp, Mark(1)),
        "sample(100)": lambda pipe: pipe.rule(udp & sample(100), COUNT),
        "limit": lambda pipe: pipe.rule(udp & limit("1G/second"), COUNT),
        "limit per ip.src": lambda pipe: pipe.rule(udp & limit("1G/second", per=ip.src), COUNT),
        "set.add(timeout=)": learned,
        "verdict map": lambda pipe: pipe.apply(pipe.vmap("map", ip.src, ip.dst)),
    }
    found = {name: rules(add) for name, add in cases.items()}
    return [{"what": name, "ns": ns, "adds": ns - found["nothing"]} for name, ns in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e3,1e4,1e5,1e6,1e7")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-o", "--output", dest="json", default="", metavar="FILE")
    parser.add_argument("--png", default="", metavar="FILE")
    args = parser.parse_args()
    sizes = [int(float(text)) for text in args.sizes.split(",")]
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=2 * len(sizes) + 1)
        curves = []
        for kind in ("hash", "trie"):
            for size in sizes:
                curves.append(curve(kind, size, args.runs))
                progress.advance(task)
        added = costs(args.runs)
    report(curves, added)
    if args.json:
        Path(args.json).write_text(json.dumps({"kernel": platform.release(), "sets": curves, "costs": added}, indent=1))
    if args.png:
        picture(curves, args.png)


def report(curves: list[dict[str, Any]], added: list[dict[str, Any]]) -> None:
    """Two tables."""
    console = make_console()
    table = Table(title=f"ns per packet, one look-up in a set, Linux {platform.release()}", box=None)
    for column in ("", "members", "warm", "absent", "spread"):
        table.add_column(column, justify="right")
    for row in curves:
        table.add_row(row["kind"], f"{row['members']:,}", *(f"{row[c]:.0f}" for c in ("warm", "absent", "spread")))
    console.print(table)
    table = Table(title="ns per packet that a rule adds", box=None)
    for column in ("", "ns", "adds"):
        table.add_column(column, justify="right")
    for row in added:
        table.add_row(row["what"], f"{row['ns']:.0f}", f"{row['adds']:.0f}")
    console.print(table)


def picture(curves: list[dict[str, Any]], path: str) -> None:
    """Cost over members."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for kind, colour in (("hash", "tab:blue"), ("trie", "tab:orange")):
        rows = [row for row in curves if row["kind"] == kind]
        for what, style in (("warm", "-o"), ("spread", "--s")):
            axes.plot(
                [r["members"] for r in rows], [r[what] for r in rows], style, color=colour, label=f"{kind}, {what}"
            )
    axes.set(xscale="log", xlabel="members", ylabel="ns per packet", title="One look-up in a set", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
