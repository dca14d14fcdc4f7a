"""What ``xdpkit run`` does while packets flow: the live table, the end, reloads, and what rules log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live

from ..language.fields import field_named
from ..language.sets import written
from ..link.events import Event, Events
from ..link.ledger import Ledger
from ..link.link import Link
from ..meaning.walk import Packet, walk
from ..sockets.workers import Workers
from ..terminal import notice, print_line
from .signals import Signals
from .table import headline, table

__all__ = ["Watched", "describe", "telling_events"]


class Watched:
    """A link and when to let go of it: after ``duration`` seconds or ``count`` packets (0: never), or when told to."""

    def __init__(
        self, link: Link, stop: Signals, duration: float, count: int, console: Console, quiet: bool, *,
        reload: Callable[[], str] | None = None,
    ):  # fmt: skip
        self.link, self.stop, self.duration, self.count = link, stop, duration, count
        self.console, self.show, self.quiet = console, console.is_terminal and not quiet, quiet
        self.reload = reload

    def run(self, workers: Workers | None) -> None:
        """Until the end, or the device is gone (OSError); meanwhile show the live table."""
        if not self.show:
            notice(f"{self.link.pipeline.name} on {self.link.device.name}: {self.link.got}")
        start, said = time.monotonic(), 0
        with Live(console=self.console, auto_refresh=False, transient=True) if self.show else ExitStack() as live:
            before = self.link.ledger()
            while True:
                left = self.duration - (time.monotonic() - start) if self.duration else 1.0
                if left <= 0 or self.stop.wait(min(left, 0.05 if self.count and not self.show else 0.25)):
                    return
                try:
                    self.link.check()
                finally:
                    said = self._say_notes(said)
                if workers is not None and workers.done:
                    self.link.check()
                    return
                if self.stop.asked_to_reload() and self.reload is not None:
                    notice(self.reload())
                if self.count and workers is None and self.link.ledger().seen >= self.count:
                    return
                if isinstance(live, Live):
                    before = self._refresh(live, before)

    def _say_notes(self, said: int) -> int:
        """Say what happened to the device since ``said`` lines; how many there are now.  The last one of a link that is
        lost is the error that the run ends with."""
        notes = self.link.notes
        for note in notes[said : len(notes) - (self.link.lost is not None)]:
            notice(f"warning: {note}")
        return len(notes)

    def _refresh(self, live: Live, before: Ledger) -> Ledger:
        ledger = self.link.ledger()
        if ledger.seconds - before.seconds < 0.2:
            return before
        live.update(Group(headline(ledger), table(ledger, before)), refresh=True)
        return ledger


@contextmanager
def telling_events(link: Link) -> Iterator[None]:
    """A line on standard error for each packet that a rule logs, while the block runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            for event in events.read(timeout=0.2):
                print_line(describe(event), file=sys.stderr)

    events = Events(link._attached)
    thread = threading.Thread(target=run, name="xdpkit-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        events.close()


def describe(event: Event) -> str:
    """Time, rule, and who sent what to whom, as the header walk finds it."""
    when = datetime.fromtimestamp(event.time_ns / 1e9).strftime("%H:%M:%S.%f")
    return f"{when} {event.rule}: {_packet(walk(event.data, wire_bytes=event.wire_bytes))}, {event.wire_bytes} bytes"


def _packet(packet: Packet) -> str:
    def value(name: str) -> str:
        number = packet.value(field_named(name))
        return "" if number is None else written(field_named(name), number)

    l4 = next((h for h in ("tcp", "udp", "sctp") if h in packet.present), "")
    for l3 in ("ip", "ip6"):
        if l3 in packet.present:
            ports = (f".{value(f'{l4}.sport')}", f".{value(f'{l4}.dport')}") if l4 else ("", "")
            what = l4 or next(
                (h for h in ("icmp", "icmp6", "gre") if h in packet.present), f"protocol {value(l3 + '.proto')}"
            )
            return f"{value(l3 + '.src')}{ports[0]} > {value(l3 + '.dst')}{ports[1]} {what}"
    if "arp" in packet.present:
        return f"arp {value('arp.spa')} > {value('arp.tpa')}"
    return f"{value('eth.src')} > {value('eth.dst')} type {int(value('eth.type') or 0):#06x}"
