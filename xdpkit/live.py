"""The live table of ``xdpkit run``: the ledger with rates."""

from __future__ import annotations

from rich.table import Table

from .ledger import Ledger

__all__ = ["si", "table"]


def si(value: float, unit: str = "") -> str:
    """Three significant digits with an SI prefix: 1.23 M."""
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 999.5 or prefix == "G":
            digits = 0 if prefix == "" or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {prefix}{unit}".rstrip()
        value /= 1000
    raise AssertionError("unreachable")


def table(ledger: Ledger, before: Ledger | None = None, seconds: float = 0.0) -> Table:
    """The ledger as a rich table; with an earlier one, also packets per second since then."""
    out = Table(title=f"{ledger.pipeline} on {ledger.device}: {ledger.got}", title_justify="left", box=None)
    out.add_column("stage")
    out.add_column("packets", justify="right")
    out.add_column("per second", justify="right")
    out.add_column("", overflow="fold")
    earlier = {stage: n for stage, n, _ in before.rows()} if before else {}
    for stage, packets, remark in ledger.rows():
        rate = (packets - earlier.get(stage, 0)) / seconds if before and seconds else None
        style = "bold red" if remark.startswith("LOST") else ""
        out.add_row(stage, f"{packets:,}", "" if rate is None else si(rate), remark, style=style)
    return out
