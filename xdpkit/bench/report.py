"""Tables of a comparison, and JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..terminal import si, visible
from .run import Plan, Results
from .sample import Row, rows
from .verdict import QUIET, verdicts

__all__ = ["as_json", "machine", "show", "summary"]


def machine() -> dict[str, str]:
    """Kernel, CPU model, CPUs, load average."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            model = line.partition(":")[2].strip()
            break
    return {
        "kernel": platform.release(),
        "CPU": f"{model}, {os.cpu_count()} CPUs",
        "driver": "veth, one queue",
        "load average": " ".join(f"{n:.2f}" for n in os.getloadavg()),
    }


def summary(plan: Plan, results: Results, facts: dict[str, str]) -> dict[str, Any]:
    """Everything, ready for JSON: machine, plan, rows (medians), verdicts, missing paths, samples."""
    table = rows(results.samples)
    return {
        "machine": facts | {"CPUs at work besides": f"{results.idle:.2f}"},
        "plan": asdict(plan),
        "rows": [asdict(r) for r in table],
        "verdicts": [asdict(v) | {"met": v.met} for v in verdicts(table, results.idle)],
        "missing": results.missing,
        "samples": [asdict(s) | {"rate": s.rate, "unaccounted": s.unaccounted} for s in results.samples],
    }


def as_json(plan: Plan, results: Results, facts: dict[str, str]) -> str:
    """The summary as JSON."""
    return json.dumps(summary(plan, results, facts), indent=1)


def show(console: Console, results: Results, facts: dict[str, str]) -> None:
    """For people: whether to believe it, verdicts, then tables: a direction each, ways of waiting, what is missing."""
    table = rows(results.samples)
    if results.idle >= QUIET:
        warning = f"This machine was not quiet: {results.idle:.2f} CPUs did other work.  Take no figure from this run."
        console.print(warning, style="bold red")
    _verdicts(console, table, results.idle)
    console.print(visible(" · ".join(f"{name}: {value}" for name, value in facts.items())))
    for direction in ("receive", "send", "forward"):
        for size in dict.fromkeys(r.size for r in table if r.direction == direction):
            console.print(_rates(direction, size, [r for r in table if (r.direction, r.size) == (direction, size)]))
    if echo := [r for r in table if r.direction == "echo"]:
        console.print(_echo(echo))
    if waits := [s for s in results.samples if s.direction == "waits"]:
        console.print(_waits(results, [s.load for s in waits]))
    for line in dict.fromkeys(f"{r.path}: {r.attachment} ({r.knobs})" for r in table if r.direction != "waits"):
        console.print(visible(line), soft_wrap=True)
    for name, why in results.missing.items():
        console.print(visible(f"not measured: {name}: {why}"), soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _rates(direction: str, size: int, mine: Sequence[Row]) -> Table:
    table = _table(
        f"\n{direction}, {size} bytes", "path", "packets/s", "min - max", "offered/s", "ring lost", "kernel lost",
        "unknown", "fixed/s", "lost", "CPU ns", "own ns", "syscalls/p", "p50 us", "p99", "p99.9",
    )  # fmt: skip
    for r in mine:
        delays = [_delay(n, 0) for n in r.delays_us] if r.delays_us else [""] * 3
        table.add_row(
            r.path + (" *" if r.sender_bound and direction != "send" else ""),
            si(r.rate[0]) if r.rate else "", f"{si(r.rate[1])} - {si(r.rate[2])}" if r.rate else "",
            si(r.offered) if r.offered else "",
            *(_share(n) for n in (r.ring_loss, r.kernel_loss, r.unaccounted)),
            si(r.fixed_pps) if r.fixed_pps else "", _share(r.fixed_loss),
            *(f"{n:.0f}" if n is not None and n >= 0.5 else "" for n in (r.machine_ns, r.own_ns)),
            "" if r.calls_per_packet is None else f"{r.calls_per_packet:.3f}", *delays,
        )  # fmt: skip
    notes = []
    if direction != "send":
        notes.append("* nothing lost: the sending CPU was the limit, which also runs the receiver's softirq.")
    if any(r.fixed_pps for r in mine):
        notes.append(
            "fixed/s: what a paced sender achieved; there loss, and CPU per packet of machine and own processes."
        )
    table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


#: Delays are kept as ns in 32 bits: this many microseconds stand for all that do not fit.
_LONGEST_US = (2**32 - 1) / 1000


def _delay(us: float, digits: int) -> str:
    return "> 4.29 s" if us >= int(_LONGEST_US) else f"{us:.{digits}f}"


def _share(n: float | None) -> str:
    return "" if n is None else f"{n:.1%}"


def _echo(mine: Sequence[Row]) -> Table:
    table = _table("\nround trip, 64 bytes, one at a time, client spins", "path", "p50 us", "p99", "p99.9")
    for r in mine:
        table.add_row(r.path, *([_delay(n, 1) for n in r.delays_us] if r.delays_us else ["nothing came back"]))
    return table


def _waits(results: Results, loads: Sequence[str]) -> Table:
    table = _table(
        "\nways of waiting, afxdp, 64 bytes", "wait", "offered/s", "p50 us", "p99", "p99.9", "CPUs at work", "own CPUs",
        "syscalls/p",
    )  # fmt: skip
    for row in waits(results):
        table.add_row(
            row["wait"], si(row["offered"]), *(_delay(n, 1) for n in row["delays_us"]), f"{row['machine']:.2f}",
            f"{row['own']:.2f}", "" if row["calls"] is None else f"{row['calls']:.3f}",
        )  # fmt: skip
    return table


def waits(results: Results) -> list[dict[str, Any]]:
    """For each wait and rate, medians: ``offered`` packets/s, ``delays_us``, ``machine`` and ``own`` CPUs at work,
    sender included."""
    out = []
    mine = [s for s in results.samples if s.direction == "waits" and s.delays_us]
    for load, path in dict.fromkeys((s.load, s.path) for s in mine):
        runs = sorted((s for s in mine if (s.load, s.path) == (load, path)), key=lambda s: (s.delays_us or (0,))[0])
        s = runs[len(runs) // 2]
        out.append({
            "wait": path, "rate": int(load), "offered": s.sent / s.seconds, "delays_us": s.delays_us,
            "machine": s.machine_s / s.seconds, "own": s.own_s / s.seconds,
            "calls": None if s.calls is None else s.calls / max(1, s.received),
        })  # fmt: skip
    return out


def _verdicts(console: Console, table: Sequence[Row], idle: float) -> None:
    """What was measured of the targets in a table, and how many were not in a line."""
    found = verdicts(table, idle)
    measured = [v for v in found if v.measured is not None]
    out = Table(title="verdicts", box=None, title_justify="left", pad_edge=False)
    for column in ("met", "measured", "wanted"):
        out.add_column(column, justify="right", no_wrap=True)
    out.add_column("target", overflow="fold")
    for v in measured:
        words = f"{v.target} ({v.remark})" if v.remark else v.target
        out.add_row("yes" if v.met else "NO", f"{v.measured:.2f}", f"{'>=' if v.at_least else '<='} {v.limit}", words)
    if measured:
        console.print(out)
    if len(measured) < len(found):
        console.print(f"{len(found) - len(measured)} of {len(found)} targets were not measured")
