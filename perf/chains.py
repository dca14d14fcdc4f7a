"""What chains cost: 1,000 rules in 50 chains of 20 beside the same rules in one list.

    python perf/chains.py [--runs 7] [--json FILE]

The list is `flat`: destination port and source /24, DROP.  `by vmap` leads to the chains by a verdict map of ports, `by
rules` by 50 rules that compare the port, `calls` has one chain of 20 rules that 50 rules jump to.  Each is measured at
XDP and TC by the kernel's own BPF_PROG_TEST_RUN on a packet that the first rule of the first chain takes, on one for
the last rule of the last chain, on one that comes back from the last chain, and on one that no rule leads anywhere.
Runs of all programs take turns; the table has medians, and the ratio to `flat` in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from xdpkit import DROP, Pipeline, compile_pipeline, ip, tcp
from xdpkit.compiler.built import Built
from xdpkit.link.ruleset import Ruleset
from xdpkit.terminal import make_console

REPEAT = 200_000
CHAINS, EACH = 50, 20
HOOKS = ("xdp", "tc")
#: (port, source) of the packets.
CASES = {
    "first": (1000, "10.0.0.1"),
    "last": (1049, "10.49.19.1"),
    "comes back": (1049, "11.0.0.1"),
    "none": (80, "11.0.0.1"),
}


def packet(port: int, source: str) -> bytes:
    """64 bytes of TCP."""
    address = bytes(map(int, source.split(".")))
    head = bytes.fromhex("020000000002020000000001080045000032000000004006") + bytes(2)
    return head + address + bytes([192, 0, 2, 1, 0x9C, 0x40]) + port.to_bytes(2) + bytes(8) + b"\x50" + bytes(17)


def flat() -> Pipeline:
    """One list."""
    pipe = Pipeline("flat")
    for n in range(CHAINS):
        for i in range(EACH):
            pipe.rule((tcp.dport == 1000 + n) & ip.src.within(f"10.{n}.{i}.0/24"), DROP)
    return pipe


def chained(by: str) -> Pipeline:
    """The same rules in chains; with ``by`` "calls" the rules of one chain."""
    pipe = Pipeline(by.replace(" ", "-"))
    chains = [pipe.chain(f"c{n}") for n in range(1 if by == "calls" else CHAINS)]
    if by == "by vmap":
        pipe.apply(pipe.vmap("ports", tcp.dport, actions=[c.jump for c in chains],
                             members={1000 + n: chain.jump for n, chain in enumerate(chains)}))  # fmt: skip
    else:
        for n in range(CHAINS):
            pipe.rule(tcp.dport == 1000 + n, chains[n % len(chains)].jump)
    for n, chain in enumerate(chains):
        for i in range(EACH):
            chain.rule(ip.src.within(f"10.{n}.{i}.0/24"), DROP)
    return pipe


PROGRAMS: dict[str, Callable[[], Pipeline]] = {
    "flat": flat,
    **{by: partial(chained, by) for by in ("by vmap", "by rules", "calls")},
}


def measure(hook: str, runs: int) -> list[dict[str, Any]]:
    """A row for each program."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        for name, make in PROGRAMS.items():
            pipe = make()
            start = time.perf_counter()
            compiled = compile_pipeline(pipe, hook)
            ms = 1000 * (time.perf_counter() - start)
            program = stack.enter_context(Ruleset(Built(pipe, {hook: compiled}), hook)).program
            info = program.info()
            rows.append({
                "hook": hook, "program": name, "rules": len(pipe.rules), "tables": len(compiled.tables),
                "instructions": info["xlated_bytes"] // 8, "verified": info["verified_instructions"],
                "compile_ms": round(ms), "runs": {case: [] for case in CASES}, "test": program.test_run,
            })  # fmt: skip
        for _ in range(runs):
            for row in rows:
                for case, (port, source) in CASES.items():
                    row["runs"][case].append(row["test"](packet(port, source), repeat=REPEAT)[1])
    for row in rows:
        del row["test"]
        row["ns"] = {case: statistics.median(times) for case, times in row.pop("runs").items()}
    for row in rows:
        row["ratio"] = {case: round(ns / rows[0]["ns"][case], 2) for case, ns in row["ns"].items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", default="", metavar="FILE")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [row for hook in HOOKS for row in measure(hook, args.runs)]
    table = Table(title=f"1,000 rules in chains: ns per packet (x flat), Linux {platform.release()}", box=None)
    for column in ("", "", "tables", "instructions", "verified", "compile ms", *CASES):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        ns = [f"{row['ns'][case]:.0f} ({row['ratio'][case]:.2f})" for case in CASES]
        counts = [str(row[name]) for name in ("tables", "instructions", "verified", "compile_ms")]
        table.add_row(row["hook"], row["program"], *counts, *ns)
    make_console(width=150).print(table)
    if args.json:
        Path(args.json).write_text(json.dumps({"kernel": platform.release(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
