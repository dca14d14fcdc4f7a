"""Nanoseconds that tracked connections cost a packet, beside a bare look-up in an LRU hash of the same keys.

    python perf/state.py [--sizes 1e3,1e5,1e6] [--runs 7] [-o FILE]

Each run is BPF_PROG_TEST_RUN of a small program that writes a random source address among so many connections into the
packet, a TCP segment without data, and then calls the program that is measured; all in one process, in turn, medians.
`plain` has one rule on a TCP port and tracks nothing.  `lru` reads the addresses and ports at fixed offsets and looks
them up, nothing else; both tables have room for twice as many.  `state` is an XDP pipeline that tracks and has one
rule, ct.established: the walk over headers, the flow, the state machine and the window of TCP, the rule, the counters.
What state costs is `state` - `plain`; the look-up that it is held to is `lru` - `empty`, where `empty` returns at once.
Needs root and clang.
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
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from xdpkit import DROP, PASS, Pipeline, ct, tcp
from xdpkit.compiler.built import Built
from xdpkit.kernel.bpfmap import Map
from xdpkit.kernel.core import check, ffi, lib
from xdpkit.kernel.flowmaps import FLOW, FLOW_KEY
from xdpkit.link.ruleset import Ruleset

REPEAT = 300_000
SERVER = bytes((192, 0, 2, 1))
CODE = r"""
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
struct key { __u32 low[4], high[4]; __u16 ports[2]; __u32 tags; };
#ifdef HARNESS
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u32); }
	next SEC(".maps");
const volatile __u32 flows = 1;
SEC("xdp") int xdpkit(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	if (data + 54 > (__u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	*(__u32 *)(data + 26) = bpf_htonl(0x0a000000 + bpf_get_prandom_u32() % flows);
	bpf_tail_call(ctx, &next, 0);
	return XDP_ABORTED;
}
#elif defined(LRU)
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 1); __type(key, struct key); __uint(value_size, 40); }
	table SEC(".maps");
SEC("xdp") int xdpkit(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	struct key k = { .tags = 6 };
	if (data + 54 > (__u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	k.low[3] = *(__u32 *)(data + 26), k.high[3] = *(__u32 *)(data + 30);
	k.low[2] = k.high[2] = bpf_htonl(0xffff);
	k.ports[0] = *(__u16 *)(data + 34), k.ports[1] = *(__u16 *)(data + 36);
	return bpf_map_lookup_elem(&table, &k) ? XDP_PASS : XDP_DROP;
}
#else
SEC("xdp") int xdpkit(struct xdp_md *ctx) { (void)ctx; return XDP_PASS; }
#endif
char _license[] SEC("license") = "Dual BSD/GPL";
"""


def compiled(what: str) -> bytes:
    """One of the programs above as an object."""
    clang = next(path for path in map(shutil.which, ("clang-19", "clang-20", "clang")) if path)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "program.o"
        include = f"/usr/include/{platform.machine()}-linux-gnu"
        command = [clang, "-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-I{include}", f"-D{what}", "-xc", "-"]
        subprocess.run([*command, "-c", "-o", str(out)], input=CODE.encode(), check=True)
        return out.read_bytes()


class Object:
    """A loaded object of one program."""

    def __init__(self, code: bytes, *, entries: dict[str, int] | None = None, numbers: dict[str, int] | None = None):
        out, log = ffi.new("struct xk_program **"), ffi.new("char[]", 1 << 16)
        check(lib.xk_program_open(code, len(code), b"xdpkit", out), "object")
        self.handle = out[0]
        for name, size in (entries or {}).items():
            check(lib.xk_program_set_entries(self.handle, name.encode(), size), name)
        for name, value in (numbers or {}).items():
            check(lib.xk_program_set_u32(self.handle, name.encode(), value), name)
        check(lib.xk_program_load(self.handle, log, 1 << 16), ffi.string(log).decode()[-300:])
        self.fd: int = check(lib.xk_program_fd(self.handle))

    def map(self, name: str) -> int:
        """File descriptor of a map."""
        return check(lib.xk_program_map(self.handle, name.encode()), name)

    def run(self, frame: bytes, repeat: int) -> tuple[int, int]:
        """The verdict, and nanoseconds for a packet."""
        verdict, ns = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        check(lib.xk_test_run(self.fd, frame, len(frame), repeat, ffi.NULL, ffi.NULL, verdict, ns), "test run")
        return verdict[0], ns[0]

    def close(self) -> None:
        """Let go of it."""
        lib.xk_program_close(self.handle)


def frame() -> bytes:
    """A TCP segment of 54 bytes without data: sequence number 1000, acknowledges 2000."""
    link = bytes.fromhex("0200000000020200000000010800")
    network = bytes.fromhex("4500002800000000400600000a000000") + SERVER
    segment = (4000).to_bytes(2) + (443).to_bytes(2) + (1000).to_bytes(4) + (2000).to_bytes(4)
    return link + network + segment + bytes.fromhex("501003e800000000")


def connections(size: int) -> tuple[Any, Any, Any]:
    """Keys as the data plane has them, keys with the client first, values: so many clients of one server."""
    clients = (0x0A000000 + np.arange(size)).astype(">u4").view(np.uint8).reshape(-1, 4)
    first = np.zeros(size, FLOW_KEY)
    first["tags"] = 6
    first["low"][:, 10:12] = first["high"][:, 10:12] = 0xFF
    first["low"][:, 12:], first["high"][:, 12:] = clients, np.frombuffer(SERVER, np.uint8)
    first["low_port"], first["high_port"] = 4000, 443
    keys = first.copy()
    order = np.ascontiguousarray(clients).view("=u4").ravel() > int.from_bytes(SERVER, sys.byteorder)
    for a, b in (("low", "high"), ("low_port", "high_port")):
        keys[a][order], keys[b][order] = first[b][order], first[a][order]
    values = np.zeros(size, FLOW)
    values["expires_ns"], values["stage"] = time.monotonic_ns() + 10**15, 3
    values["flags"] = 2 | order
    for side, (end, other) in enumerate(((1000, 2000), (2000, 1000))):
        del other
        values["side"]["end"][:, side], values["side"]["max_end"][:, side] = end, end + 60_000
        values["side"]["max_window"][:, side] = 60_000
    return keys.view(np.uint8).reshape(size, -1), first.view(np.uint8).reshape(size, -1), values


def measure(size: int, runs: int) -> dict[str, float]:
    """Medians in nanoseconds, of programs that take turns."""
    plain, state = Pipeline("plain", default=DROP), Pipeline("state", default=DROP)
    plain.rule(tcp.dport == 443, PASS, name="web")
    state.track(capacity=2 * size, half_open=1024)
    state.rule(ct.established, PASS, name="known")
    keys, first, values = connections(size)
    with ExitStack() as stack:
        rulesets = {p.name: stack.enter_context(Ruleset(Built(p, {}), "xdp")) for p in (plain, state)}
        tables = rulesets["state"].tables
        assert tables is not None
        assert tables.flows.write(keys, values.view(np.uint8).reshape(size, -1))[0] == size
        objects = {"empty": Object(compiled("EMPTY")), "lru": Object(compiled("LRU"), entries={"table": 2 * size})}
        for each in objects.values():
            stack.callback(each.close)
        table = stack.enter_context(Map(os.dup(objects["lru"].map("table"))))
        table.write(first, values.view(np.uint8).reshape(size, -1))
        programs = {name: each.fd for name, each in objects.items()} | {n: r.program.fd for n, r in rulesets.items()}
        harness = Object(compiled("HARNESS"), numbers={"flows": size})
        stack.callback(harness.close)
        found: dict[str, list[int]] = {name: [] for name in programs}
        for _ in range(runs):
            for name, fd in programs.items():
                check(lib.xk_map_update(harness.map("next"), ffi.new("uint32_t *"), ffi.new("uint32_t *", fd), 0))
                harness.run(frame(), 2000)
                verdict, ns = harness.run(frame(), REPEAT)
                assert verdict == 2, f"{name}: verdict {verdict}, not XDP_PASS"
                found[name].append(ns)
        return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="1e3,1e5,1e6", help="connections, with commas between")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("-o", "--output", dest="json", type=Path)
    options = parser.parse_args()
    rows = {}
    print(f"{'connections':>12} {'empty':>7} {'lru':>7} {'plain':>7} {'state':>7}   state costs  bare look-up  ratio")
    for size in (int(float(text)) for text in options.sizes.split(",")):
        ns = rows[size] = measure(size, options.runs)
        cost, bare = ns["state"] - ns["plain"], ns["lru"] - ns["empty"]
        print(
            f"{size:>12,} {ns['empty']:>7.0f} {ns['lru']:>7.0f} {ns['plain']:>7.0f} {ns['state']:>7.0f}   "
            f"{cost:>8.0f} ns  {bare:>9.0f} ns  {cost / bare:>5.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps({str(size): ns for size, ns in rows.items()}, indent=1))


if __name__ == "__main__":
    main()
