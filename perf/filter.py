"""Nanoseconds per packet of a filter: xdpkit, C written by hand for the same rules, xdp-filter, nftables.

    python perf/filter.py [--rules 1,10,100,1000,10000] [--runs 5] [-o FILE]   # FILE.png beside it: curves

The measure is the kernel's own: BPF_PROG_TEST_RUN repeats the program on one packet and reports the mean; runs of all
programs take turns, and the table has medians.  Families of rules, all DROP: `ports` (tcp.dport == P), which xdp-filter
can say too; `pairs` (source /24 and tcp.dport); `acl` (nested source and destination prefixes of several lengths, some
of them any; ports, ranges of ports, any port).  Each is measured on a packet made for the first rule, for the last one,
and for none.  The hand-written program is a chain of tests that counts per rule, as xdpkit's does; beyond 1,000 rules
the verifier does not accept it.

nftables has no test run.  Its rules go, one by one, into a chain at the netdev ingress hook of a veth port that drops
all in the end; live frames of a generator on one CPU, which also runs the port's NAPI, arrive there.  Its figure is the
time per packet of that loop less that of the same loop with a chain that only drops: what the rules cost, without the
hook and the making of socket buffers.

The second table is the time from declaration to a loaded program, split into its steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from rich.progress import Progress
from rich.table import Table

from xdpkit import DROP, Pipeline, compile_pipeline, ip, tcp
from xdpkit.device import netdev
from xdpkit.kernel.core import check, ffi, lib
from xdpkit.kernel.program import Program
from xdpkit.lab import Lab
from xdpkit.language.check import PipelineWarning
from xdpkit.language.expr import Expr
from xdpkit.terminal import make_console

REPEAT = 200_000
FAMILIES = ("ports", "pairs", "acl")
CASES = ("first", "last", "none")
#: Beyond this many rules no program written by hand, and no xdp-filter, whose ports are added one command each.
MOST_BY_HAND = 1000

# ruff: noqa: E101  the C below has tabs
C_PROGRAM = r"""
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
struct counter { __u64 packets, bytes; };
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, %(entries)d); __type(key, __u32);
	__type(value, struct counter); } counters SEC(".maps");
struct eth { __u16 mac[6], type; };
struct vlan { __u16 tci, type; };
struct ipv4 { __u8 vihl, tos; __u16 len, id, frag; __u8 ttl, proto; __u16 sum; __u32 src, dst; };
struct tcph { __u16 sport, dport; __u32 seq, ack; __u8 off, flags; __u16 win, sum, urg; };

static __always_inline int verdict(struct xdp_md *ctx, __u32 rule, __u32 bytes, int act)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &rule);
	if (c)
		c->packets++, c->bytes += bytes;
	return act;
}

SEC("xdp")
int filter(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 bytes = end - data, rule = %(rules)d, src, dst;
	struct eth *eth = data;
	void *at = eth + 1;
	struct ipv4 *ip;
	struct tcph *tcp;
	__u16 type, dport;
	int act = XDP_PASS;

	if ((void *)(eth + 1) > end)
		goto out;
	type = eth->type;
	if (type == bpf_htons(0x8100) || type == bpf_htons(0x88a8)) {
		struct vlan *v = at;
		if ((void *)(v + 1) > end)
			goto out;
		type = v->type;
		at = v + 1;
		if (type == bpf_htons(0x8100) || type == bpf_htons(0x88a8)) {
			v = at;
			if ((void *)(v + 1) > end)
				goto out;
			type = v->type;
			at = v + 1;
		}
	}
	if (type != bpf_htons(0x0800))
		goto out;
	ip = at;
	if ((void *)(ip + 1) > end || ip->vihl >> 4 != 4 || (ip->vihl & 15) < 5 || ip->proto != 6 ||
	    ip->frag & bpf_htons(0x1fff))
		goto out;
	tcp = at + (ip->vihl & 15) * 4;
	if ((void *)(tcp + 1) > end)
		goto out;
	src = bpf_ntohl(ip->src), dst = bpf_ntohl(ip->dst);
	dport = bpf_ntohs(tcp->dport);
%(tests)s
out:
	return verdict(ctx, rule, bytes, act);
}
char _license[] SEC("license") = "Dual BSD/GPL";
"""


class Match(NamedTuple):
    """A rule: prefixes (address, length), destination ports low..high."""

    source: tuple[int, int]
    destination: tuple[int, int]
    low: int
    high: int


def rules_of(family: str, count: int) -> list[Match]:
    """``count`` rules of a family, the same in every run."""
    everything = (0, 0)
    if family == "ports":
        return [Match(everything, everything, 1000 + i, 1000 + i) for i in range(count)]
    if family == "pairs":
        return [
            Match((10 << 24 | i % 250 << 16 | i // 250 << 8, 24), everything, 1000 + i, 1000 + i) for i in range(count)
        ]
    rng = Random(count)
    sites = [10 << 24 | rng.getrandbits(16) << 8 for _ in range(max(4, count // 30))]

    def prefix(anywhere: float) -> tuple[int, int]:
        if rng.random() < anywhere:
            return everything
        length = rng.choice((16, 20, 24, 24, 24, 28, 32, 32))
        return (rng.choice(sites) | rng.getrandbits(8)) >> 32 - length << 32 - length, length

    def ports() -> tuple[int, int]:
        kind, port = rng.random(), rng.choice((22, 53, 80, 123, 443, 3306, 8080, rng.randrange(1, 50000)))
        return (port, port) if kind < 0.7 else (port, port + 99) if kind < 0.9 else (1024, 65535)

    return [Match(prefix(0.05), prefix(0.2), *ports()) for _ in range(count)]


def pipeline(family: str, rules: int) -> Pipeline:
    """``rules`` rules of a family."""
    pipe = Pipeline(family)
    for match in rules_of(family, rules):
        test: Expr = tcp.dport == match.low if match.low == match.high else tcp.dport.between(match.low, match.high)
        for field, (address, length) in ((ip.dst, match.destination), (ip.src, match.source)):
            if length:
                test = field.within(f"{IPv4Address(address)}/{length}") & test
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PipelineWarning)
            pipe.rule(test, DROP)
    return pipe


def c_source(family: str, rules: int) -> str:
    """The same rules by hand: a chain of ifs."""
    tests = []
    for i, match in enumerate(rules_of(family, rules)):
        parts = []
        for name, (address, length) in (("src", match.source), ("dst", match.destination)):
            mask = 0xFFFFFFFF << 32 - length & 0xFFFFFFFF
            parts += [f"({name} & {mask:#x}u) == {address:#x}u"] if length else []
        exact = match.low == match.high
        parts.append(f"dport == {match.low}" if exact else f"dport >= {match.low} && dport <= {match.high}")
        tests.append(f"\tif ({' && '.join(parts)}) {{ rule = {i}; act = XDP_DROP; goto out; }}")
    return C_PROGRAM % {"entries": rules + 1, "rules": rules, "tests": "\n".join(tests)}


def nft_rules(family: str, rules: int, device: str) -> str:
    """The same rules for nft -f; all other packets are dropped at the end."""
    lines = []
    for match in rules_of(family, rules):
        parts = []
        for name, (address, length) in (("saddr", match.source), ("daddr", match.destination)):
            parts += [f"ip {name} {IPv4Address(address)}/{length}"] if length else []
        ports = str(match.low) if match.low == match.high else f"{match.low}-{match.high}"
        lines.append(" ".join([*parts, f"tcp dport {ports} counter drop"]))
    lines.append("drop")
    chain = f"type filter hook ingress device {device} priority 0;"
    return f"table netdev perf {{\nchain in {{\n{chain}\n" + "\n".join(lines) + "\n}\n}\n"


def packets(family: str, rules: int) -> dict[str, bytes]:
    """64-byte TCP packets: made for the first rule, for the last one, and one that none takes."""

    def frame(source: int, destination: int, port: int) -> bytes:
        head = bytes.fromhex("0200000000020200000000010800") + bytes.fromhex("450000320000000040060000")
        addresses = source.to_bytes(4) + destination.to_bytes(4)
        return (
            head
            + addresses
            + (40000).to_bytes(2)
            + port.to_bytes(2)
            + bytes.fromhex("0000000000000000500000000000")
            + bytes(12)
        )

    def of(match: Match) -> bytes:
        spare = (1 << 32 - match.source[1]) - 1 & 7
        return frame(match.source[0] | spare, match.destination[0] | 1 * (match.destination[1] < 32), match.high)

    matches = rules_of(family, rules)
    return {"first": of(matches[0]), "last": of(matches[-1]), "none": frame(0xC6336401, 0xC6336402, 999)}


class Loaded:
    """A program that can be measured."""

    def __init__(self, name: str, fd: int, instructions: int):
        self.name, self.fd, self.instructions = name, fd, instructions

    def run(self, packet: bytes, repeat: int = 1) -> tuple[int, int]:
        """Verdict and ns per packet."""
        verdict, ns = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        check(lib.xk_test_run(self.fd, packet, len(packet), repeat, ffi.NULL, ffi.NULL, verdict, ns))
        return verdict[0], ns[0]


def by_hand(stack: ExitStack, family: str, rules: int) -> Loaded | None:
    """The C program, compiled by clang-19 -O2; None where the verifier does not accept it."""
    with tempfile.TemporaryDirectory() as folder:
        c, o = Path(folder) / "filter.c", Path(folder) / "filter.o"
        c.write_text(c_source(family, rules))
        include = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}"
        subprocess.run(["clang-19", "-O2", "-g", "-target", "bpf", "-mcpu=v3", include, "-c", c, "-o", o], check=True)
        code = o.read_bytes()
    out = ffi.new("struct xk_program **")
    check(lib.xk_program_open(code, len(code), b"by-hand", out))
    stack.callback(lib.xk_program_close, out[0])
    log = ffi.new("char[]", 1 << 16)
    if lib.xk_program_load(out[0], log, 1 << 16) < 0:
        return None
    info = ffi.new("struct xk_program_info *")
    check(lib.xk_program_info(lib.xk_program_fd(out[0]), info))
    return Loaded("by hand (C)", lib.xk_program_fd(out[0]), info.xlated_bytes // 8)


def xdp_filter(stack: ExitStack, rules: int) -> Loaded | None:
    """Debian's xdp-filter with the same ports, on a veth of its own; None where it is missing or will not load."""
    if not shutil.which("xdp-filter"):
        return None
    left, _ = stack.enter_context(Lab.pair())
    run = left.namespace.run
    if run(["xdp-filter", "load", "-f", "tcp", "-p", "allow", left.name], check=False, capture_output=True).returncode:
        return None
    stack.callback(run, ["xdp-filter", "unload", left.name], check=False, capture_output=True)
    for i in range(rules):
        run(["xdp-filter", "port", "-m", "dst", "-p", "tcp", str(1000 + i)], check=True, capture_output=True)
    with left.namespace:
        (holder,) = netdev.xdp_holders(left.index)
    fd = check(lib.xk_program_by_id(holder.prog_id), "xdp-filter")
    stack.callback(os.close, fd)
    info = ffi.new("struct xk_program_info *")
    check(lib.xk_program_info(fd, info))
    return Loaded("xdp-filter", fd, info.xlated_bytes // 8)


def nftables(family: str, rules: int, runs: int) -> dict[str, float]:
    """Median ns per packet that the rules cost at the netdev ingress hook, by packet; nothing where nft is missing."""
    if not shutil.which("nft"):
        return {}
    cost: dict[str, float] = {}
    with Lab.pair() as (left, right):

        def load(text: str) -> None:
            clear = "table netdev perf\ndelete table netdev perf\n"
            right.namespace.run(["nft", "-f", "-"], input=(clear + text).encode(), check=True, capture_output=True)

        for name, packet in packets(family, rules).items():
            with left.generator([packet], cpu=0) as generator:
                loops: dict[bool, list[float]] = {True: [], False: []}
                for full in [True, False] * runs:
                    load(nft_rules(family, rules if full else 0, right.name))
                    generator.send(2_000)
                    generator.send(max(2_000, min(300_000, int(generator.achieved_pps / 5))))
                    loops[full].append(1e9 / generator.achieved_pps)
                cost[name] = statistics.median(loops[True]) - statistics.median(loops[False])
    return cost


def measure(family: str, rules: int, runs: int, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """Median ns of every program on every packet; all must agree on the verdicts."""
    with ExitStack() as stack:
        program = stack.enter_context(Program(compile_pipeline(pipeline(family, rules))))
        known: list[Loaded | None] = [Loaded("xdpkit", program.fd, program.info()["xlated_bytes"] // 8)]
        if rules <= MOST_BY_HAND:
            known.append(by_hand(stack, family, rules))
            known.append(xdp_filter(stack, rules) if family == "ports" else None)
        loaded = [p for p in known if p]
        samples: dict[tuple[str, str], list[int]] = {}
        for name, packet in packets(family, rules).items():
            verdicts = {p.name: p.run(packet)[0] for p in loaded}
            assert len(set(verdicts.values())) == 1, verdicts
            for _ in range(runs):
                for p in loaded:
                    samples.setdefault((p.name, name), []).append(p.run(packet, REPEAT)[1])
            tick()
    rows = [(p.name, p.instructions, {n: statistics.median(samples[p.name, n]) for n in CASES}) for p in loaded]
    if other := nftables(family, rules, max(1, runs // 2) if rules < 10_000 else 1):
        rows.append(("nftables (live)", 0, other))
    chain = next((ns for name, _, ns in rows if name == "by hand (C)"), None)
    return [
        {
            "family": family, "rules": rules, "program": name, "instructions": instructions, "ns": ns,
            "ratio": {n: ns[n] / chain[n] for n in CASES} if chain else {},
        }
        for name, instructions, ns in rows
    ]  # fmt: skip


def timings(family: str, rules: int, runs: int) -> dict[str, Any]:
    """Median milliseconds of each step from declaration to loaded program."""
    steps: dict[str, list[float]] = {}
    for _ in range(runs if rules < 10_000 else 3):
        start = time.perf_counter()
        pipe = pipeline(family, rules)
        declared = time.perf_counter()
        compiled = compile_pipeline(pipe)
        before = time.perf_counter()
        with Program(compiled) as program:
            load = time.perf_counter() - before
            verified = program.info()["verified_instructions"]
        row = {"declare": declared - start} | {n: ns / 1e9 for n, ns in compiled.steps_ns} | {"load": load}
        for name, seconds in row.items():
            steps.setdefault(name, []).append(seconds * 1000)
    medians = {name: statistics.median(values) for name, values in steps.items()}
    total = sum(ms for name, ms in medians.items() if name != "declare")
    return {"family": family, "rules": rules, "ms": medians, "compile_and_load_ms": total, "verified": verified}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", default="1,10,100,1000,10000")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-o", "--output", dest="json", default="", metavar="FILE")
    args = parser.parse_args()
    counts = [int(n) for n in args.rules.split(",")]
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(counts) * len(FAMILIES) * 3)
        rows = [r for f in FAMILIES for n in counts for r in measure(f, n, args.runs, lambda: progress.advance(task))]
        times = [timings(f, n, args.runs) for f in FAMILIES for n in counts]
    report(rows, times)
    if args.json:
        Path(args.json).write_text(json.dumps({"kernel": platform.release(), "cost": rows, "time": times}, indent=1))
        plot(rows, Path(args.json).with_suffix(".png"))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Curves, a picture for each family; nothing without matplotlib (pip install 'xdpkit[perf]')."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no picture: pip install 'xdpkit[perf]'", file=sys.stderr)
        return
    figure, axes = pyplot.subplots(1, len(FAMILIES), figsize=(5 * len(FAMILIES), 4), sharey=True)
    styles = {"first": ":", "last": "-", "none": "--"}
    for axis, family in zip(axes, FAMILIES, strict=True):
        mine = [row for row in rows if row["family"] == family]
        for color, program in enumerate(dict.fromkeys(row["program"] for row in mine)):
            points = [(row["rules"], row["ns"]) for row in mine if row["program"] == program]
            for case, style in styles.items():
                line = [max(ns[case], 1) for _, ns in points]
                label = f"{program}, {case}"
                axis.plot([n for n, _ in points], line, style, color=f"C{color}", marker=".", label=label)
        axis.set(title=family, xlabel="rules", xscale="log", yscale="log")
        axis.legend(fontsize=6)
    axes[0].set_ylabel(f"ns per packet, Linux {platform.release()}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def report(rows: list[dict[str, Any]], times: list[dict[str, Any]]) -> None:
    """Two tables."""
    console = make_console() if sys.stdout.isatty() else make_console(width=120)
    table = Table(title=f"ns per packet (BPF_PROG_TEST_RUN, medians), Linux {platform.release()}", box=None)
    for column in ("rules", "", "program", "instructions", *CASES, "x by hand"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for row in rows:
        ratios = " ".join(f"{ratio:.2f}" for ratio in row["ratio"].values())
        ns = [f"{row['ns'][name]:.0f}" for name in CASES]
        table.add_row(str(row["rules"]), row["family"], row["program"], str(row["instructions"] or ""), *ns, ratios)
    console.print(table)
    steps = list(times[0]["ms"])
    table = Table(title="ms from declaration to loaded program (medians)", box=None)
    for column in ("rules", "", *steps, "compile + load", "verified instructions"):
        table.add_column(column, justify="right")
    for row in times:
        ms = [f"{row['ms'][step]:.1f}" for step in steps]
        total = f"{row['compile_and_load_ms']:.1f}"
        table.add_row(str(row["rules"]), row["family"], *ms, total, str(row["verified"]))
    console.print(table)


if __name__ == "__main__":
    main()
