"""Nanoseconds per packet of a filter: xdpkit's program, a C program written by hand for the same rules, xdp-filter.

    python perf/filter.py [--rules 1,10,100] [--runs 5] [--json FILE]

The measure is the kernel's own: BPF_PROG_TEST_RUN repeats the program on one packet and reports the mean; runs of all
programs take turns, and the table has medians.  Two families of rules: `ports` (tcp.dport == P, drop), which xdp-filter
can say too, and `pairs` (source /24 and tcp.dport, drop).  Each is measured on a packet that the first rule takes, that
the last rule takes, and that no rule takes.  The hand-written program counts per rule, as xdpkit's does.

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
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from xdpkit import DROP, Pipeline, compile_pipeline, ip, netdev, tcp
from xdpkit.core import check, ffi, lib
from xdpkit.lab import Lab
from xdpkit.program import Program

REPEAT = 200_000
FAMILIES = ("ports", "pairs")

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
	__u32 bytes = end - data, rule = %(rules)d, src;
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
	src = bpf_ntohl(ip->src);
	dport = bpf_ntohs(tcp->dport);
%(tests)s
out:
	return verdict(ctx, rule, bytes, act);
}
char _license[] SEC("license") = "Dual BSD/GPL";
"""


def source(i: int) -> tuple[int, int]:
    """The /24 of rule ``i``: two octets."""
    return i % 250, i // 250


def pipeline(family: str, rules: int) -> Pipeline:
    """``rules`` rules of a family."""
    pipe = Pipeline(family)
    for i in range(rules):
        test = tcp.dport == 1000 + i
        if family == "pairs":
            a, b = source(i)
            test = ip.src.within(f"10.{a}.{b}.0/24") & test  # type: ignore[assignment]
        pipe.rule(test, DROP)
    return pipe


def c_source(family: str, rules: int) -> str:
    """The same rules by hand: a chain of ifs."""
    tests = []
    for i in range(rules):
        test = f"dport == {1000 + i}"
        if family == "pairs":
            a, b = source(i)
            test = f"(src & 0xffffff00u) == {10 << 24 | a << 16 | b << 8:#x}u && {test}"
        tests.append(f"\tif ({test}) {{ rule = {i}; act = XDP_DROP; goto out; }}")
    return C_PROGRAM % {"entries": rules + 1, "rules": rules, "tests": "\n".join(tests)}


def packets(rules: int) -> dict[str, bytes]:
    """64-byte TCP packets that the first rule, the last one and none takes."""

    def frame(i: int) -> bytes:
        a, b = source(i)
        head = bytes.fromhex("0200000000020200000000010800") + bytes.fromhex("450000320000000040060000")
        return head + bytes([10, a, b, 7, 192, 0, 2, 1]) + (40000).to_bytes(2) + (1000 + i).to_bytes(2) + bytes(26)

    return {"first": frame(0), "last": frame(rules - 1), "none": frame(30000)}


class Loaded:
    """A program that can be measured."""

    def __init__(self, name: str, fd: int, instructions: int):
        self.name, self.fd, self.instructions = name, fd, instructions

    def run(self, packet: bytes, repeat: int = 1) -> tuple[int, int]:
        """Verdict and ns per packet."""
        verdict, ns = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        check(lib.xk_test_run(self.fd, packet, len(packet), repeat, ffi.NULL, ffi.NULL, verdict, ns))
        return verdict[0], ns[0]


def by_hand(stack: ExitStack, family: str, rules: int) -> Loaded:
    """The C program, compiled by clang-19 -O2."""
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
    check(lib.xk_program_load(out[0], log, 1 << 16), "by hand")
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


def measure(family: str, rules: int, runs: int, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """Median ns of every program on every packet; all must agree on the verdicts."""
    with ExitStack() as stack:
        program = stack.enter_context(Program(compile_pipeline(pipeline(family, rules))))
        loaded = [Loaded("xdpkit", program.fd, program.info()["xlated_bytes"] // 8), by_hand(stack, family, rules)]
        other = xdp_filter(stack, rules) if family == "ports" else None
        loaded += [other] if other else []
        samples: dict[tuple[str, str], list[int]] = {}
        for name, packet in packets(rules).items():
            verdicts = {p.name: p.run(packet)[0] for p in loaded}
            assert len(set(verdicts.values())) == 1, verdicts
            for _ in range(runs):
                for p in loaded:
                    samples.setdefault((p.name, name), []).append(p.run(packet, REPEAT)[1])
            tick()
    medians = {key: statistics.median(values) for key, values in samples.items()}
    return [
        {
            "family": family, "rules": rules, "program": p.name, "instructions": p.instructions,
            "ns": {name: medians[p.name, name] for name in packets(rules)},
            "ratio": {name: medians[p.name, name] / medians["by hand (C)", name] for name in packets(rules)},
        }
        for p in loaded
    ]  # fmt: skip


def timings(family: str, rules: int, runs: int) -> dict[str, Any]:
    """Median milliseconds of each step from declaration to loaded program."""
    steps: dict[str, list[float]] = {}
    for _ in range(runs):
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
    parser.add_argument("--rules", default="1,10,100")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", default="", metavar="FILE")
    args = parser.parse_args()
    counts = [int(n) for n in args.rules.split(",")]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(counts) * len(FAMILIES) * 3)
        rows = [r for f in FAMILIES for n in counts for r in measure(f, n, args.runs, lambda: progress.advance(task))]
        times = [timings(f, n, args.runs) for f in FAMILIES for n in counts]
    report(rows, times)
    if args.json:
        Path(args.json).write_text(json.dumps({"kernel": platform.release(), "cost": rows, "time": times}, indent=1))


def report(rows: list[dict[str, Any]], times: list[dict[str, Any]]) -> None:
    """Two tables."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    table = Table(title=f"ns per packet (BPF_PROG_TEST_RUN, medians), Linux {platform.release()}", box=None)
    for column in ("rules", "", "program", "instructions", "first", "last", "none", "x by hand"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for row in rows:
        ratios = " ".join(f"{row['ratio'][name]:.2f}" for name in ("first", "last", "none"))
        ns = [f"{row['ns'][name]:.0f}" for name in ("first", "last", "none")]
        table.add_row(str(row["rules"]), row["family"], row["program"], str(row["instructions"]), *ns, ratios)
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
