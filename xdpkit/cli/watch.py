"""What ``xdpkit run`` does while packets flow: the live table, the end, reloads, and what rules log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from ..link.events import Event
from ..link.ledger import Ledger
from ..link.link import Link
from ..meaning.describe import describe as describe_packet
from ..sockets.workers import Workers
from ..terminal import make_console, notice, print_line, visible
from .confirm import Confirmation
from .signals import Signals
from .table import headline, table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

__all__ = ["Watched", "describe", "print_events", "shown_while"]


class Watched:
    """A link and when to let go of it: after ``duration`` seconds or ``count`` packets (0: never), or when told to."""

    def __init__(
        self, link: Link, stop: Signals, duration: float, count: int, console: Console, quiet: bool, *,
        confirm: float = 0, json_lines: float = 0, reload: Callable[[], str] | None = None,
    ):  # fmt: skip
        """``confirm``: seconds in which somebody must answer, else it ends and is ``refused``; ``json_lines``: seconds
        between lines of JSON on standard output; 0 of either: not."""
        self.link, self.stop, self.duration, self.count = link, stop, duration, count
        self.console, self.show, self.quiet = console, console.is_terminal and not quiet, quiet
        self.reload, self.confirm, self.json_lines = reload, confirm, json_lines
        self.refused, self._notes = False, 0
        self._confirmation = Confirmation(stop)
        self._start = self._printed = time.monotonic()

    def run(self, workers: Workers | None) -> None:
        """Until the end, or the device is gone (OSError); meanwhile show the live table."""
        if not self.show:
            notice(f"{self.link.pipeline.name} on {self.link.device.name}: {self.link.attachment}")
        if self.confirm and not self.show:
            notice(f"{self._question()}; this is process {os.getpid()}")
        self._start = self._printed = time.monotonic()
        with self._live() as live:
            before = self.link.ledger()
            while not self._ended(workers):
                if self.stop.reload_wanted() and self.reload is not None:
                    notice(self.reload())
                if self.json_lines and time.monotonic() - self._printed >= self.json_lines:
                    self._printed += self.json_lines
                    print(self.link.ledger().json(), flush=True)
                if live is not None:
                    before = self._refresh(live, before)

    def _ended(self, workers: Workers | None) -> bool:
        """Wait a moment; whether it is the end."""
        passed = time.monotonic() - self._start
        left = self.duration - passed if self.duration else 1.0
        if left <= 0 or self.stop.wait(min(left, 0.05 if self.count and not self.show else 0.25)):
            return True
        try:
            self.link.check()  # OSError when the device is gone, or the link
        finally:
            self._print_notes()
        if self.confirm and self._answered():
            self.confirm = 0
        elif self.confirm and passed >= self.confirm:
            self.refused = True
            return True
        if workers is not None and workers.done:
            self.link.check()
            return True
        if workers is not None:
            return False
        return bool(self.count) and self.link.ledger().seen >= self.count

    def _print_notes(self) -> None:
        """Say what happened to the device since the last call.  The last note of a link that is lost is the error that
        the run ends with."""
        notes = self.link.notes
        for note in notes[self._notes : len(notes) - (self.link.lost is not None)]:
            notice(f"warning: {note}")
        self._notes = len(notes)

    def _answered(self) -> bool:
        """Somebody pressed Enter on our terminal, or sent SIGUSR2."""
        answered = self._confirmation.given()
        if answered and self.show and self._confirmation.lines:
            # the terminal has shown the new lines: back to where the table ends
            from rich.control import Control

            self.console.control(Control.move(0, -self._confirmation.lines))
        return answered

    def _question(self) -> str:
        left = self.confirm - (time.monotonic() - self._start)
        return (
            f"press Enter or send SIGUSR2 within {max(0, left):.0f} s, or {self.link.pipeline.name} is taken off again"
        )

    @contextmanager
    def _live(self) -> Iterator[Live | None]:
        """The live table, or None where there is none; nothing of it is left at the end."""
        if not self.show:
            yield None
            return
        from rich.live import Live
        from rich.text import Text

        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            try:
                yield live
            finally:  # rich prints in the end also the lines that did not fit on the screen, and can't remove them
                live.update(Text(), refresh=True)

    def _refresh(self, live: Live, before: Ledger) -> Ledger:
        ledger = self.link.ledger()
        if ledger.seconds - before.seconds < 0.2:
            return before
        from rich.console import Group
        from rich.text import Text

        question = [Text(visible(self._question()), style="bold yellow")] if self.confirm else []
        live.update(_fitted(self.console, Group(*question, headline(ledger), table(ledger, before))), refresh=True)
        return ledger


def _fitted(console: Console, shown: RenderableType) -> RenderableType:
    """As much of ``shown`` as the terminal has lines for, and an empty line, where the terminal shows ^C: at the end of
    a full line that would begin a new line, and rich would not find the first line again."""
    from rich.console import Group
    from rich.segment import Segment, Segments
    from rich.text import Text

    lines = console.render_lines(shown, pad=False)[: max(1, console.height - 2)]
    return Group(*(Segments([*line, Segment.line()]) for line in lines), Text(" "))


@contextmanager
def shown_while(text: str, *, stderr: bool, quiet: bool) -> Iterator[None]:
    """Show ``text`` on a terminal while the block runs.  Without one nothing is imported for it."""
    if quiet or not (sys.stderr if stderr else sys.stdout).isatty():
        yield
        return
    from rich.live import Live
    from rich.text import Text

    console = make_console(stderr=stderr)
    with Live(_fitted(console, Text(visible(text))), console=console, auto_refresh=False, transient=True) as live:
        live.refresh()
        yield


def print_events(link: Link) -> AbstractContextManager[None]:
    """A line on standard error for each packet that a rule logs, while the block runs."""
    return link.handle_events(lambda event: print_line(describe(event), file=sys.stderr))


def describe(event: Event) -> str:
    """Time, rule, and who sent what to whom, as the header walk finds it."""
    when = datetime.fromtimestamp(event.time_ns / 1e9).strftime("%H:%M:%S.%f")
    return f"{when} {event.rule}: {describe_packet(event.data, event.wire_bytes)}, {event.wire_bytes} bytes"
