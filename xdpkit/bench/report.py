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

from ..terminal import print_table, si, visible
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
            _rates(console, direction, size, [r for r in table if (r.direction, r.size) == (direction, size)])
    if echo := [r for r in table if r.direction == "echo"]:
        _echo(console, echo)
    if any(s.direction == "waits" for s in results.samples):
        _waits(console, results)
    for got in dict.fromkeys(f"{r.path}: {r.attachment} ({r.knobs})" for r in table if r.direction != "waits"):
        console.print(visible(got), soft_wrap=not console.is_terminal)
    for name, why in results.missing.items():
        console.print(visible(f"not measured: {name}: {why}"), soft_wrap=not console.is_terminal)


#: Columns that stay together: (header, one text for each row).
Columns = Sequence[tuple[str, Sequence[str]]]


def _print_columns(console: Console, title: str, first: tuple[str, Sequence[str]], groups: Sequence[Columns]) -> None:
    """A table of ``first`` and the columns of all ``groups``: as many tables as the console's width wants, each with
    the first column."""
    console.print(visible(f"\n{title}", keep="\n"), style="italic")
    left = list(groups)
    while left:
        taken = list(left.pop(0))
        while left and _width([first, *taken, *left[0]]) <= console.width:
            taken += left.pop(0)
        table = Table(box=None, pad_edge=False)
        for number, (header, _) in enumerate([first, *taken]):
            table.add_column(header, justify="right" if number else "left", no_wrap=True)
        for row in zip(first[1], *(texts for _, texts in taken), strict=True):
            table.add_row(*map(visible, row))
        print_table(console, table)


def _width(columns: Columns) -> int:
    """Characters of a line of a table, two between columns."""
    return sum(max(map(len, [header, *texts])) + 2 for header, texts in columns) - 2


def _rates(console: Console, direction: str, size: int, mine: Sequence[Row]) -> None:
    bound = direction != "send"  # by the sender, where the figure is of a receiver
    delays = [[_delay(n, 0) for n in r.delays_us] if r.delays_us else [""] * 3 for r in mine]
    _print_columns(
        console, f"{direction}, {size} bytes",
        ("path", [r.path + (" *" if r.sender_bound and bound else "") for r in mine]),
        [
            [
                ("packets/s", [si(r.rate[0]) if r.rate else "" for r in mine]),
                ("min - max", [f"{si(r.rate[1])} - {si(r.rate[2])}" if r.rate else "" for r in mine]),
                ("offered/s", [si(r.offered) if r.offered else "" for r in mine]),
            ],
            [
                ("ring lost", [_share(r.ring_loss) for r in mine]),
                ("kernel lost", [_share(r.kernel_loss) for r in mine]),
                ("unknown", [_share(r.unaccounted) for r in mine]),
            ],
            [
                ("fixed/s", [si(r.fixed_pps) if r.fixed_pps else "" for r in mine]),
                ("lost", [_share(r.fixed_loss) for r in mine]),
                ("CPU ns", [_ns(r.machine_ns) for r in mine]),
                ("own ns", [_ns(r.own_ns) for r in mine]),
            ],
            [
                ("syscalls/p", [_calls(r.calls_per_packet) for r in mine]),
                *((name, [d[n] for d in delays]) for n, name in enumerate(("p50 us", "p99", "p99.9"))),
            ],
        ],
    )  # fmt: skip
    if bound:
        console.print("* nothing lost: the sending CPU was the limit, which also runs the receiver's softirq.")
    if any(r.fixed_pps for r in mine):
        console.print(
            "fixed/s: what a paced sender achieved; there loss, and CPU per packet of machine and own processes."
        )


#: Delays are kept as ns in 32 bits: this many microseconds stand for all that do not fit.
_LONGEST_US = (2**32 - 1) / 1000


def _delay(us: float, digits: int) -> str:
    return "> 4.29 s" if us >= int(_LONGEST_US) else f"{us:.{digits}f}"


def _share(n: float | None) -> str:
    return "" if n is None else f"{n:.1%}"


def _ns(n: float | None) -> str:
    return f"{n:.0f}" if n is not None and n >= 0.5 else ""


def _calls(n: float | None) -> str:
    return "" if n is None else f"{n:.3f}"


def _echo(console: Console, mine: Sequence[Row]) -> None:
    delays = [[_delay(n, 1) for n in r.delays_us] if r.delays_us else ["nothing came back", "", ""] for r in mine]
    columns = [(name, [d[n] for d in delays]) for n, name in enumerate(("p50 us", "p99", "p99.9"))]
    title = "round trip, 64 bytes, one at a time, client spins"
    _print_columns(console, title, ("path", [r.path for r in mine]), [columns])


def _waits(console: Console, results: Results) -> None:
    found = waits(results)
    delays = [[_delay(n, 1) for n in row["delays_us"]] for row in found]
    _print_columns(
        console, "ways of waiting, afxdp, 64 bytes", ("wait", [row["wait"] for row in found]),
        [
            [
                ("offered/s", [si(row["offered"]) for row in found]),
                *((name, [d[n] for d in delays]) for n, name in enumerate(("p50 us", "p99", "p99.9"))),
            ],
            [
                ("CPUs at work", [f"{row['machine']:.2f}" for row in found]),
                ("own CPUs", [f"{row['own']:.2f}" for row in found]),
                ("syscalls/p", [_calls(row["calls"]) for row in found]),
            ],
        ],
    )  # fmt: skip


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
