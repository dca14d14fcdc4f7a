"""What the doctor says: findings, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..terminal import print_table, visible

__all__ = ["Check", "as_json", "render"]

Status = Literal["ok", "note", "problem"]
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.  ``status``: "ok"; "note" for what works with a restriction; "problem" for what will not
    work.  ``advice`` says what to do; it is empty where there is nothing to do."""

    topic: str
    status: Status
    text: str
    advice: str = ""


def render(findings: Sequence[Check], console: Console) -> None:
    """Print the findings in columns, each with its advice below."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(
            Text(finding.status, _STYLES[finding.status]), Text(visible(finding.topic)), Text(visible(finding.text))
        )
        if finding.advice:
            table.add_row("", "", Text(visible(f"-> {finding.advice}")))
    print_table(console, table)


def as_json(findings: Sequence[Check]) -> str:
    """A JSON list of objects with topic, status, text and advice."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)
