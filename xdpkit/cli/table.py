"""The live table of ``xdpkit run``: the ledger with rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..link.ledger import Ledger
from ..terminal import si, visible

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = ["headline", "table"]


def table(ledger: Ledger, before: Ledger | None = None) -> Table:
    """The ledger as a rich table; rates are since ``before``, or over the whole run."""
    from rich.table import Table

    out = Table(box=None, pad_edge=False)
    out.add_column("stage")
    out.add_column("packets", justify="right")
    out.add_column("packets/s", justify="right")
    out.add_column("", overflow="fold")
    earlier = {stage: n for stage, n, _ in before.rows()} if before else {}
    seconds = ledger.seconds - (before.seconds if before else 0)
    for stage, packets, remark in ledger.rows():
        rate = (packets - earlier.get(stage, 0)) / seconds if seconds > 0 else 0
        style = "bold red" if remark.startswith("LOST") else ""
        out.add_row(visible(stage), f"{packets:,}", si(rate), visible(remark), style=style)
    return out


def headline(ledger: Ledger) -> Text:
    """Pipeline, device, and what the kernel gave."""
    from rich.text import Text

    return Text(visible(f"{ledger.pipeline} on {ledger.device}: {ledger.attachment}"), style="bold", overflow="fold")
