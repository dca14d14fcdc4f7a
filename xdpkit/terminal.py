"""Text and figures for people: what a terminal may be sent, and how figures are written.

Names of rules, files, devices and processes are chosen by others.  None of them is ever read as rich's markup, and none
of their control characters reaches a terminal: each console is made by :func:`make_console`, and each text that holds
such a name goes through :func:`visible`.
"""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

__all__ = [
    "counted",
    "make_console",
    "make_progress",
    "notice",
    "print_line",
    "print_table",
    "shortened",
    "si",
    "visible",
]


def si(value: float, unit: str = "") -> str:
    """Three significant digits with an SI prefix: 1.23 M."""
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 999.5 or prefix == "G":
            digits = 0 if prefix == "" or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {prefix}{unit}".rstrip()
        value /= 1000
    raise AssertionError("unreachable")


def counted(number: int, noun: str) -> str:
    """ "1 rule", "1,200 rules": for nouns whose plural takes an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


#: Most characters of a message.  A message quotes user input, which may be a whole file.
MAX_MESSAGE = 600


def shortened(message: str) -> str:
    """``message`` on one line and with at most MAX_MESSAGE characters: the middle of a longer one is left out."""
    message = message.replace("\n", " ")
    if len(message) <= MAX_MESSAGE:
        return message
    return f"{message[: MAX_MESSAGE - 150]} [... {len(message) - MAX_MESSAGE:,} characters ...] {message[-120:]}"


def visible(text: object, *, keep: str = "") -> str:
    r"""``str(text)`` with every character that is not printable as an escape: ``\x1b``, ``\n``, ``\u202e``.

    Bytes of a file name that are no UTF-8 (PEP 383) become ``\xff``.  Characters of ``keep`` stay as they are.
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in plain)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def print_line(text: object, *, file: IO[str] | None = None) -> None:
    """A line of text on standard output, or in ``file``."""
    print(visible(text), file=file or sys.stdout, flush=file is not None)


def notice(text: object) -> None:
    """A line on standard error that says who it is from, and that is no longer than a message may be."""
    print_line(f"xdpkit: {shortened(str(text))}", file=sys.stderr)


def make_console(**options: Any) -> Console:
    """A rich console that takes text as it is: no markup, no emoji codes, no highlighting.  ``options``: as those of
    ``rich.console.Console``."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)


def print_table(out: Console, table: Table) -> None:
    """Print ``table``; where no terminal is, without blanks at the ends of lines."""
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    out.print(
        "\n".join(line.rstrip() for line in captured.get().splitlines()), soft_wrap=True, markup=False, highlight=False
    )


def make_progress() -> Progress:
    """A progress bar on standard error that goes away at its end; shown on a terminal only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(),
        TextColumn("{task.percentage:>3.0f}%", markup=False), TimeRemainingColumn(),
        console=make_console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    )  # fmt: skip
