"""``xdpkit firewall top`` on the screen, with textual."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.widgets import DataTable, Footer, Static

from ..firewall.top import ORDERS, Screen, Watch
from ..terminal import si, visible

__all__ = ["Top"]

_COLUMNS = ("rule", "action", "packets", "packets/s", "bits/s", "share")


class Top(App[None]):
    """The live screen; ``q`` ends it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"), ("s", "sort", "Sort"), ("i", "idle", "Idle rules"), ("p", "pause", "Pause"),
    ]  # fmt: skip
    CSS = "#head, #foot { height: auto; } DataTable { height: 1fr; }"

    def __init__(self, watch: Watch, seconds: float):
        super().__init__()
        self._watch, self._seconds = watch, seconds
        self._order, self._paused, self._only_idle = ORDERS[0], False, False
        self._shown: Screen | None = None
        self.failure: OSError | None = None

    def compose(self) -> ComposeResult:
        """The parts of the screen, from top to bottom."""
        yield Static(id="head", markup=False)
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Static(id="foot", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Look now, and again every so often."""
        self.query_one(DataTable).add_columns(*_COLUMNS)
        self._look()
        self.set_interval(self._seconds, self._look)

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._order = ORDERS[(ORDERS.index(self._order) + 1) % len(ORDERS)]
        self._look(at_once=True)

    def action_idle(self) -> None:
        """Show only the rules that have taken no packet, or all again."""
        self._only_idle = not self._only_idle
        self._draw()

    def action_pause(self) -> None:
        """Stop looking, or go on."""
        self._paused = not self._paused
        self._draw()

    def _look(self, *, at_once: bool = False) -> None:
        if self._paused and not at_once:
            return
        try:
            self._shown = self._watch.look(self._order)
        except OSError as error:
            self.failure = error
            self.exit()
            return
        self._draw()

    def _draw(self) -> None:
        screen = self._shown
        if screen is None:
            return
        verdicts = "   ".join(f"{verdict} {si(rate)}/s" for verdict, rate in screen.verdicts)
        paused = "   PAUSED" if self._paused else ""
        rates = f"{si(screen.seen_per_second)} packets/s, {si(screen.bits_per_second)}bit/s   {verdicts}{paused}"
        self.query_one("#head", Static).update(visible(f"{screen.title}\n{rates}", keep="\n"))
        table: DataTable[Text] = self.query_one(DataTable)
        at = table.cursor_row
        table.clear()
        for rule in screen.rules:
            if self._only_idle and not rule.idle:
                continue
            cells = (
                visible(rule.name), visible(rule.action), f"{rule.packets:>14,}", f"{si(rule.packets_per_second):>9}",
                f"{si(rule.bits_per_second):>9}", f"{rule.share:>5.1%}",
            )  # fmt: skip
            table.add_row(*map(Text, cells))  # a str would be read as markup
        table.move_cursor(row=min(at, max(0, table.row_count - 1)))
        lines = [f"set {name}: {used:,} of {room:,} ({used / room:.0%})" for name, used, room in screen.fill]
        lines += [f"LOST, {stage}: {n:,}" for stage, n in screen.losses]
        lines += [f"NOTE: {note}" for note in screen.notes] + [f"DOES NOT SUM: {p}" for p in screen.problems]
        lines.append(f"sorted as {self._order}" + (", only rules that have taken nothing" if self._only_idle else ""))
        self.query_one("#foot", Static).update(visible("\n".join(lines), keep="\n"))
