"""A firewall with a process: it reads feeds when they are due, writes what rules log, answers Prometheus, and takes new
rules on SIGHUP.  The rules act without it: when it ends, however it ends, they stay in force."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from typing import IO

from ..compiler.built import Built
from ..language.errors import NotSupported, PipelineError, VerifierError
from ..language.limits import Log
from ..link.bridge import Bridge
from ..link.events import Event
from ..link.link import Link
from ..meaning.describe import describe
from .apply import place
from .feeds import FeedReport, Feeds
from .usage import look

#: Seconds between two looks at which rules took packets.
USAGE_SECONDS = 60

__all__ = ["Service", "notify", "write_events"]


def notify(state: str) -> bool:
    """Tell systemd (sd_notify(3)); False where nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError:
            return False
    return True


class Service:
    """The loop of ``xdpkit firewall run``."""

    def __init__(
        self,
        link: Link | Bridge,
        name: str,
        load: Callable[[], Built],
        say: Callable[[str], None],
        feeds: Feeds | None = None,
    ):
        """``name``: the firewall's; ``load`` reads the rules again; ``say`` takes lines for people."""
        self.link, self._name, self._load, self._say = link, name, load, say
        self._next_look = time.monotonic()
        self.feeds = feeds or Feeds(link)
        self._watchdog = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        self._next_beat = time.monotonic()
        self._notes = 0

    def start(self) -> None:
        """Fill sets from the last good copies and from their feeds, and say that the rules are in force."""
        for report in [*self.feeds.load(), *self.feeds.refresh()]:
            self._report(report)
        notify("READY=1\nSTATUS=" + f"{self.link.pipeline.name} is in force on {place(self.link)}")

    def turn(self) -> float:
        """Do what is due; seconds until the next turn at the latest.  OSError when the rules are no longer on their
        device."""
        try:
            self.link.check()
        finally:
            for note in self.link.notes[self._notes :]:
                self._say(f"warning: {note}")
            self._notes = len(self.link.notes)
        for report in self.feeds.refresh(due=True):
            self._report(report)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + USAGE_SECONDS
            with suppress(OSError):  # no place to keep it: nobody is told when rules were last used
                look(self._name, self.link.ledger())
        if self._watchdog and time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + self._watchdog / 2
            notify("WATCHDOG=1")
        return min(0.5, self.feeds.seconds_left() or 0.5)

    def reload(self) -> bool:
        """Read the rules again and put them in force; False where they are refused, and the old ones go on."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            built = self._load()
            if Log in built.pipeline.steps and Log not in self.link.pipeline.steps:
                raise ValueError("rules that log from now on want a restart, which loses no packet")
            took = self.link.update(built)
        except (PipelineError, VerifierError, NotSupported, OSError, ValueError) as error:
            self._say(f"the new rules are refused, the old ones go on: {error}")
            notify("READY=1")
            return False
        self._say(f"{self.link.pipeline.name} is in force: {took}")
        self.start()
        return True

    def _report(self, report: FeedReport) -> None:
        for line in report.summary:
            self._say(line)
        self._say(f"{'warning: ' if report.problem else ''}{report}")


def event_line(event: Event) -> str:
    """One logged packet as a line of JSON: time (UTC), rule, bytes on the wire, and who sent what to whom."""
    when = datetime.fromtimestamp(event.time_ns / 1e9, UTC).isoformat(timespec="microseconds")
    words = {
        "time": when,
        "rule": event.rule,
        "bytes": event.wire_bytes,
        "packet": describe(event.data, event.wire_bytes),
    }
    return json.dumps(words)


def write_events(link: Link | Bridge, out: IO[str]) -> AbstractContextManager[None]:
    """A line of JSON in ``out`` for each packet that a rule logs, while the block runs; nothing where no rule does."""
    if Log not in link.pipeline.steps:
        return nullcontext()
    return link.handle_events(lambda event: print(event_line(event), file=out, flush=True))
